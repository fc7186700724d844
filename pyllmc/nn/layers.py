"""The layers of GPT-2 as PyTorch's own modules, by GPT-2's names: they hold the parameters and show the model's structure.

GPT.forward never calls them, because the engine computes a whole pass at once. Each is right by itself all the same:
model.transformer.wte(idx) looks up what the engine would.
"""

from __future__ import annotations

from torch import nn

from pyllmc.tables.layout import GPTConfig


class _Parts(nn.Module):
    """A module that is nothing but its parts."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def _block(C: int) -> nn.Module:
    def linear(wide: int, out: int) -> nn.Module:
        return nn.Linear(wide, out, device="meta")

    return _Parts(
        ln_1=nn.LayerNorm(C, device="meta"),
        attn=_Parts(c_attn=linear(C, 3 * C), c_proj=linear(C, C)),
        ln_2=nn.LayerNorm(C, device="meta"),
        mlp=_Parts(c_fc=linear(C, 4 * C), c_proj=linear(4 * C, C)),
    )


def make_layers(config: GPTConfig) -> tuple[nn.Module, nn.Module]:
    """(transformer, lm_head), whose parameters have no memory yet."""
    V, C = config.vocab_size, config.n_embd
    transformer = _Parts(
        wte=nn.Embedding(V, C, device="meta"),
        wpe=nn.Embedding(config.max_seq_len, C, device="meta"),
        h=nn.ModuleList(_block(C) for _ in range(config.n_layer)),
        ln_f=nn.LayerNorm(C, device="meta"),
    )
    return transformer, nn.Linear(C, V, bias=False, device="meta")
