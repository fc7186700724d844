"""The engine as a torch.nn.Module, which any PyTorch loop can train. Only this room and pyllmc.mingpt need torch."""

from pyllmc.base.errors import need

if need("torch", "pyllmc.nn"):
    from pyllmc.nn.gpt import GPT
    from pyllmc.nn.optimizer import AdamW

__all__ = ["GPT", "AdamW"]
