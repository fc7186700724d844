"""A tiny GPT-2 on the device, beside the CPU engine and PyTorch; or a few of its steps alone, for compute-sanitizer.

    python dev/gpu_tiny.py device=cuda what=parity turns=1

All three begin with the same weights and see the same tokens. `parity` also checks every gradient of the first step against
PyTorch's in float64: its distance relative to the tensor's norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from bench_process import Call, measured, one_of
from bench_steps import BETAS, CLIP, DECAY, EPS

from pyllmc.tables.layout import GPTConfig

LR, STEPS = 1e-3, 10
# allowed differences: of losses, relative; of a gradient, its distance over its norm
ALLOWED = {"fp32": {"losses": 2e-5, "grads": 1e-4}, "bf16": {"losses": 1e-2, "grads": 4e-2}}
SIZES = {  # config, B, T: heads of 64 and of 16; a T that fills no block
    "parity": (GPTConfig(257, 96, 2, 2, 128), 3, 81),
    "quick": (GPTConfig(97, 32, 2, 2, 32), 2, 19),
    "step": (GPTConfig(257, 64, 2, 2, 128), 2, 33),
}


def tokens(V: int, B: int, T: int) -> Any:
    return np.random.default_rng(3).integers(0, V, (B, T + 1), dtype=np.int32)


def engine(what: str, device: str, precision: str, steps: int) -> dict[str, Any]:
    """The loss of every step, and the gradients of the first as {PyTorch's name: array}."""
    import pyllmc

    config, B, T = SIZES[what]
    m = pyllmc.Model(config, B=B, T=T, device=device, precision=precision, keep_logits=False)
    ids, losses, grads = tokens(config.vocab_size, B, T), [], {}
    for step in range(steps):
        losses.append(float(m.micro_step(ids[:, :-1], ids[:, 1:], accumulate=False)))
        if step == 0:
            grads = {name: np.array(m.grads[name]) for name in m.grads}
        m.clip_grad_norm(CLIP)
        m.update(LR, BETAS, EPS, DECAY)
    return {"losses": losses, "grads": grads}


def reference(what: str, steps: int) -> dict[str, Any]:
    """The same by PyTorch on the CPU, in float64."""
    import torch

    import train_gpt2

    config, B, T = SIZES[what]
    m = train_gpt2.GPT(config, seed=42).double()
    optimizer = m.optimizer(LR, BETAS, EPS, DECAY)
    ids, losses = torch.from_numpy(tokens(config.vocab_size, B, T)).long(), []
    grads: dict[str, Any] = {}
    for _ in range(steps):
        optimizer.zero_grad()
        _, loss = m(ids[:, :-1], ids[:, 1:])
        loss.backward()
        losses.append(float(loss.detach()))
        grads = grads or {
            name: p.grad.numpy().copy() for name, p in m.named_parameters() if p.grad is not None
        }
        torch.nn.utils.clip_grad_norm_(m.parameters(), CLIP)
        optimizer.step()
    return {"losses": losses, "grads": grads}


def worst_gradient(ours: dict[str, Any], want: dict[str, Any]) -> tuple[float, str]:
    """The largest distance over the norm, and the name of that gradient."""
    distance = {
        name: float(np.linalg.norm(ours[name] - grad) / np.linalg.norm(grad)) for name, grad in want.items()
    }
    name = max(distance, key=lambda name: distance[name] if distance[name] == distance[name] else np.inf)
    return distance[name], name


def judge(ours: dict[str, Any], want: dict[str, Any], precision: str) -> dict[str, Any]:
    far, name = worst_gradient(ours["grads"], want["grads"])
    apart = float(np.max(np.abs(np.array(ours["losses"]) / np.array(want["losses"]) - 1)))
    allowed = ALLOWED[precision]
    ok = apart <= allowed["losses"] and far <= allowed["grads"]
    return {"losses": ours["losses"], "losses_apart": apart, "worst_gradient": far, "of": name, "ok": ok}


def parity(what: str, device: str) -> dict[str, Any]:
    want = reference(what, STEPS)
    found: dict[str, Any] = {"PyTorch, float64": {"losses": want["losses"]}}
    found["cpu fp32"] = judge(engine(what, "cpu", "fp32", STEPS), want, "fp32")
    for precision in ("fp32", "bf16"):
        found[f"{device} {precision}"] = judge(engine(what, device, precision, STEPS), want, precision)
    return found


def step_alone(device: str) -> float:
    """Two steps and a few generated words, without PyTorch."""
    import pyllmc

    config, B, T = SIZES["step"]
    m = pyllmc.Model(config, B=B, T=T, device=device, training=False)
    m.generate([1, 2, 3], max_new_tokens=4, temperature=0)
    return engine("step", device, "bf16", 2)["losses"][-1]


def prepare(device: str, what: str) -> Callable[..., Call]:
    one_of("what", what, SIZES)
    return lambda: lambda: step_alone(device) if what == "step" else parity(what, device)


if __name__ == "__main__":
    measured(prepare)
