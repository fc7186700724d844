"""Measured processes of make gpu-check: whole optimizer steps, ours and PyTorch's; generation; one step's kernels.

    python dev/gpu_steps.py system=pyllmc model=d12 B=64 T=1024 device=cuda turns=3

A step is forward, backward, clip and AdamW in bf16 with float master weights. All steps have the same random tokens, which
are copied to the device each time. A turn is several steps; it waits for the device only at its end, unless a system waits
by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench_process import Call, Skip, measured, one_of
from bench_steps import BETAS, CLIP, DECAY, EPS, LR, config_of, engine_model, random_ids

from pyllmc.tables import layout

MB = 2**20


def sizes_of(model: str) -> layout.GPTConfig:
    """A size of GPT-2 such as "d12", or the bench's "tiny"."""
    return config_of(model) if model == "tiny" else layout.config_of(model)


# ---- ours ----


def our_steps(c: layout.GPTConfig, B: int, T: int, device: str) -> Callable[[int], dict[str, Any]]:
    """steps(n): the losses of n steps, and the memory taken since before the model was made."""
    from pyllmc.engine import _ffi
    from pyllmc.engine.arguments import as_batch

    ffi = _ffi.ffi()
    lib = _ffi.load(device, "bf16")
    table = lib.llmc_kernels(ffi.NULL, lib.LLMC_BF16)
    if table == ffi.NULL:
        raise Skip(_ffi.message(lib))
    before = table.memory_available()
    m = engine_model(c, B=B, T=T, device=device, precision="bf16", keep_logits=False)
    ids = random_ids(c.vocab_size, B, T)
    arrays, pointers = as_batch(ids[:, :-1], ids[:, 1:], None)
    hyper, norm = ffi.new("llmc_adamw *", (LR, *BETAS, EPS, DECAY, 0)), ffi.new("float *")
    taken: list[float | None] = []

    def steps(n: int) -> dict[str, Any]:
        losses = ffi.new("float[]", n)
        for i in range(n):
            m._check(lib.llmc_model_micro_step(m._handle, *pointers, B, T, 1.0, 0, losses + i))
            m._check(lib.llmc_model_grad_norm(m._handle, CLIP, norm))
            m._check(lib.llmc_model_update(m._handle, hyper, 1))
        m._check(lib.llmc_model_sync(m._handle))
        if not taken:  # measured in the first call, because others may take memory later
            taken.append((before - table.memory_available()) / MB if device == "cuda" else None)
        return {"losses": list(losses), "device_mb": taken[0]}

    steps.batch = arrays  # type: ignore[attr-defined]  # held for as long as their pointers are used
    return steps


# ---- PyTorch's ----


def torch_model(c: layout.GPTConfig, seed: int | None) -> Any:
    """The reference with its weights on the CPU; without a seed they are left as they are."""
    import torch

    import train_gpt2

    with torch.device("meta"):
        m = train_gpt2.GPT(c)
    if seed is not None:
        m = m.to_empty(device="cpu")
        m.init_weights(seed)
    return m


def torch_steps(
    c: layout.GPTConfig, B: int, T: int, device: str, compiled: bool, seed: int | None = 42
) -> Callable[[int], dict[str, Any]]:
    """The same as our_steps. Only its first call touches the GPU, so that another process can measure its memory
    before."""
    m, ready = torch_model(c, seed), list[Callable[[], Any]]()
    place = "cuda" if device == "cuda" else "cpu"

    def steps(n: int) -> dict[str, Any]:
        import torch

        if not ready:
            ready.append(torch_step(m, random_ids(c.vocab_size, B, T), place, compiled))
        losses = torch.stack([ready[0]() for _ in range(n)]).tolist()  # waits for all of them
        if place != "cuda":
            return {"losses": losses, "device_mb": None}
        taken = torch.cuda.max_memory_allocated() / MB
        return {"losses": losses, "device_mb": taken, "reserved_mb": torch.cuda.max_memory_reserved() / MB}

    return steps


def torch_step(m: Any, tokens: Any, place: str, compiled: bool) -> Callable[[], Any]:
    """A step of PyTorch at its fastest: autocast to bf16, flash attention, fused AdamW. Its loss stays on the
    device."""
    import torch

    torch.set_float32_matmul_precision("high")
    if any(p.is_meta for p in m.parameters()):
        m = m.to_empty(device=place)
        for p in m.parameters():
            torch.nn.init.normal_(p, std=0.02)
    m = m.to(place)
    optimizer = m.optimizer(lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    for group in optimizer.param_groups:
        group["fused"] = True
    run: Any = torch.compile(m) if compiled else m
    ids = torch.from_numpy(tokens).long()
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    if place == "cuda":
        x, y = x.pin_memory(), y.pin_memory()

    def step() -> Any:
        with torch.autocast(place, dtype=torch.bfloat16):
            _, loss = run(x.to(place, non_blocking=True), y.to(place, non_blocking=True))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


# ---- generation, and the kernels of a step ----


def our_words(c: layout.GPTConfig, B: int, new: int, device: str) -> Call:
    """Generates B texts of `new` tokens after one token, greedily."""
    import numpy as np

    m = engine_model(c, B=B, T=new + 1, device=device, precision="bf16", training=False, keep_logits=False)
    prompts = random_ids(c.vocab_size, B, 0)

    def call() -> int:
        return int(np.size(m.generate(prompts, max_new_tokens=new, temperature=0)))

    return call


def kernel_times(c: layout.GPTConfig, B: int, T: int, device: str) -> Call:
    """[[name, launches, us in all]] of one step after some others, the longest first, as CUPTI counts them through
    PyTorch."""
    import torch

    torch.cuda.init()
    steps = our_steps(c, B, T, device)
    steps(3)

    def call() -> list[list[Any]]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            steps(1)
        found = [(row.key, row.count, row.self_device_time_total) for row in profile.key_averages()]
        return sorted(([name[:120], n, us] for name, n, us in found if us), key=lambda row: -row[2])

    return call


# ---- the process ----

SYSTEMS = ("pyllmc", "compile", "eager", "precompile", "generate", "kernels")


def prepare(system: str, model: str, B: int, T: int, device: str) -> Callable[..., Call]:
    """precompile: runs PyTorch's step on other weights, which leaves the compiled code in its cache. generate: T new
    tokens."""
    one_of("system", system, SYSTEMS)
    c = sizes_of(model)
    if system == "generate":
        words = our_words(c, B, T, device)
        return lambda: words
    if system == "kernels":
        times = kernel_times(c, B, T, device)
        return lambda: times
    if system == "pyllmc":
        run = our_steps(c, B, T, device)
    else:
        run = torch_steps(c, B, T, device, system != "eager", None if system == "precompile" else 42)
    return lambda steps=1: lambda: run(steps)


if __name__ == "__main__":
    measured(prepare)
