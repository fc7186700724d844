#!/usr/bin/env python3
"""GPT-2 in one file of PyTorch: the model, its weights in and out, and a trainer.

The C engine is tested against it: the same tensors (csrc/tensors.def), the same options
(csrc/options.def), the same batches in the same order, the same line for every step. Start at GPT.forward;
the rest can wait.

    python train_gpt2.py                                                     # train, as ./train_gpt2 does
    python train_gpt2.py --model=hub:gpt2 --max_steps=0 --export=gpt2.bin    # OpenAI's weights for llm.c

Sizes: B batch, T time, C channels, NH heads, hs = C/NH, L layers, V vocabulary, Vp = V padded to 128s.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyllmc.base.errors import (
    INTERRUPTED,
    BadFile,
    InvalidArgument,
    NoDevice,
    begin_command,
    run_command,
    stopped_by_signals,
)

if __name__ == "__main__":
    begin_command("numpy", "torch")

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from pyllmc import convert
from pyllmc.base import live
from pyllmc.base.files import atomic_path, check_writable, writing
from pyllmc.convert import hub, native, to_bin
from pyllmc.convert.recipes import Weights, parameter_count
from pyllmc.engine.checkpoint import ADAPTER_VERSION, OUTER_VERSION, OWN_VERSION, checkpoint_of, parse_header
from pyllmc.parity.dropout import Dropouts
from pyllmc.stories import telling
from pyllmc.tables import layout, options
from pyllmc.tables.layout import GPTConfig
from pyllmc.text.bins import HEADER_BYTES, Loader, find_shards, inspect_shard, pack_header
from pyllmc.text.tokenizer import Tokenizer

Tensor = torch.Tensor

# ---------------------------------------------------------------------------------------------------------
# the model


class CausalSelfAttention(nn.Module):
    """Each position attends to itself and to those before it; with window > 0, to the last `window` positions only; with
    offsets, to those of its own document only."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.n_head, self.layer, self.window = config.n_head, layer, config.window_of(layer)
        # query, key and value of all heads in one product
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, dropouts: Dropouts, offsets: Tensor | None = None) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x)  # (B, T, 3C)
        q, k, v = (
            y.view(B, T, self.n_head, -1).transpose(1, 2) for y in qkv.split(C, dim=2)
        )  # (B, NH, T, hs)
        if dropouts.attn:  # written out, because PyTorch's own would draw the mask itself
            hidden = ~visible(T, self.window, x.device, offsets)
            scores = (q @ k.transpose(-2, -1) / math.sqrt(k.shape[-1])).masked_fill(hidden, -math.inf)
            y = dropouts.drop(torch.softmax(scores, -1), "attention", self.layer) @ v
        elif 0 < self.window < T or offsets is not None:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible(T, self.window, x.device, offsets))
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).reshape(B, T, C)  # (B, NH, T, hs) -> heads side by side
        return self.c_proj(y)


def visible(T: int, window: int, device: Any = None, offsets: Tensor | None = None) -> Tensor:
    """(T, T) bool: query i sees the keys j <= i, and j > i - window where window > 0. With offsets (B, T): (B, 1, T, T) bool,
    and query i sees the keys j >= i - offsets[b, i]."""
    back = torch.arange(T, device=device)[:, None] - torch.arange(T, device=device)  # i - j
    seen = (back >= 0) & (back < (window or T))
    return seen if offsets is None else (seen & (back <= offsets[:, :, None]))[:, None]


def offsets_of(idx: Tensor, separator: int) -> Tensor:
    """(B, T): how many positions of its own document stand before each one. The separator begins a document."""
    rows = torch.arange(idx.shape[1], device=idx.device)
    return rows - torch.where(idx == separator, rows, 0).cummax(1).values


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.layer, self.attn = layer, CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, dropouts: Dropouts, offsets: Tensor | None = None) -> Tensor:
        x = x + dropouts.drop(self.attn(self.ln_1(x), dropouts, offsets), "attproj", self.layer)
        return x + dropouts.drop(self.mlp(self.ln_2(x)), "fcproj", self.layer)


class GPT(nn.Module):
    """GPT-2. Its parameters have the names, shapes and start values that csrc/tensors.def gives."""

    def __init__(self, config: GPTConfig, seed: int | None = None, init_std: float = 0.0) -> None:
        super().__init__()
        self.config, self.dropouts = config, Dropouts()  # the next pass drops nothing
        self.separator = -1  # >= 0: the id that begins a document, which sees nothing before it
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.max_seq_len, config.n_embd),
                "h": nn.ModuleList(Block(config, layer) for layer in range(config.n_layer)),
                "ln_f": nn.LayerNorm(config.n_embd),
            }
        )
        if config.untied:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if seed is not None:
            self.init_weights(seed, init_std)

    def forward(self, idx: Tensor, targets: Tensor | None = None, weights: Tensor | None = None) -> Any:
        """Logits (B, T, V), and the mean loss or None. idx, targets (-1: ignored), weights: (B, T)."""
        _, T = idx.shape
        h: Any = self.transformer
        offsets = offsets_of(idx, self.separator) if self.separator >= 0 else None
        positions = torch.arange(T, device=idx.device) if offsets is None else offsets
        x = h["wte"](idx) + h["wpe"](positions)  # (B, T, C) + (T, C) or (B, T, C)
        x = self.dropouts.drop(x, "embedding")
        for block in h["h"]:
            x = block(x, self.dropouts, offsets)
        head = self.lm_head if self.config.untied else h["wte"]  # a tied head shares the embedding's weight
        logits = F.linear(h["ln_f"](x), head.weight)
        return logits, None if targets is None else mean_loss(token_losses(logits, targets), targets, weights)

    @torch.no_grad()
    def init_weights(self, seed: int, init_std: float = 0.0) -> None:
        """Draws each tensor of each layer once, in the table's order: the same numbers as llmc_model_init()."""
        usual = 0.02 * math.sqrt(
            max(1.0, 768 / self.config.n_embd)
        )  # wider if the model is narrower than GPT-2
        rng = torch.Generator().manual_seed(seed)
        std = {
            "NORMAL": init_std or usual,
            "RESIDUAL": (init_std or usual) / math.sqrt(2 * self.config.n_layer),
        }
        for row, p in self.rows():
            if row.init in std:
                p.copy_(torch.empty(p.shape).normal_(0, std[row.init], generator=rng))
            else:
                p.fill_(1 if row.init == "ONE" else 0)

    def rows(self) -> Iterator[tuple[layout.Row, nn.Parameter]]:
        """(row of the table, parameter), layer after layer inside each tensor: the order in files."""
        named = dict(self.named_parameters())
        for row, layer in layout.parameters(self.config):
            yield row, named[row.torch_name_of(layer)]

    def optimizer(self, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> Any:
        """AdamW that decays the tensors that the table marks."""
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for row, p in self.rows():
            groups[row.decay].append(p)
        decays = [
            {"params": params, "weight_decay": weight_decay * decay} for decay, params in groups.items()
        ]
        return torch.optim.AdamW(decays, lr=lr, betas=betas, eps=eps)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token, (B, T); 0 if its target is -1."""
    B, T, V = logits.shape
    flat = F.cross_entropy(logits.view(B * T, V), targets.reshape(B * T), ignore_index=-1, reduction="none")
    return flat.view(B, T)


def mean_loss(losses: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """sum(w l) / sum(w) over the targets that are not -1; 0 if there are none."""
    w = (targets != -1).to(losses.dtype)
    if weights is not None:
        w = w * weights.to(losses.dtype)
    total = w.sum()
    return (w * losses).sum() / torch.where(total > 0, total, 1)


# ---------------------------------------------------------------------------------------------------------
# llm.c's files: model (.bin version 1, 3, 5) and debug state

STATE_MAGIC = 20240327
FP32_UNPADDED = 1  # this version of the model file is read, never written
NAMES = {version: dtype for dtype, version in to_bin.VERSIONS.items()}
FP32, BF16 = to_bin.VERSIONS["fp32"], to_bin.VERSIONS["bf16"]


def as_numpy(x: Any) -> np.ndarray:
    return x.detach().cpu().float().numpy()


def write_model(model: GPT, path: str, version: int = FP32) -> None:
    """llm.c's model file: version 3 (fp32) or 5 (bf16)."""
    if version not in NAMES:
        raise ValueError(f"version {version} of the model file is not written: 3 is fp32, 5 is bf16")
    tensors = {name: as_numpy(p) for name, p in model.named_parameters()}
    with atomic_path(path) as temporary, writing(path):
        to_bin.write_bin(temporary, model.config, tensors, NAMES[version])


def read_model(path: str) -> GPT:
    """Reads llm.c's model file of version 1, 3 or 5, or a checkpoint, which begins like one. Raises BadFile with the
    reason."""
    with open(path, "rb") as file:
        head = file.read(HEADER_BYTES)
        if len(head) < HEADER_BYTES or struct.unpack_from("<i", head)[0] != to_bin.MAGIC:
            raise BadFile(f"{path} is not a model file: it does not begin with {to_bin.MAGIC}")
        version, config = parse_header(head)
        if version == ADAPTER_VERSION:
            raise BadFile(
                f"{path} holds LoRA adapters, which the reference does not know: write the whole model with "
                f"python -m pyllmc.convert {path} DIR --merge"
            )
        if version not in (FP32_UNPADDED, FP32, BF16, OWN_VERSION, OUTER_VERSION):
            raise BadFile(f"{path}: version {version} of the model file is not known (1, 3 and 5 are)")
        model = GPT(config)
        dtype = np.dtype("<i2" if version == BF16 else "<f4")
        for row, p in model.rows():
            shape = p.shape if version == FP32_UNPADDED else row.shape
            size = math.prod(shape) * dtype.itemsize
            data = file.read(size)
            if len(data) < size:
                raise BadFile(f"{path} is truncated in {row.name}: copy or export it again")
            x = torch.from_numpy(np.frombuffer(data, dtype).copy()).view(shape)
            p.data.copy_((x.view(torch.bfloat16) if version == BF16 else x)[: len(p)])
    return model


def write_state(model: GPT, path: str, x: Tensor, y: Tensor) -> None:
    """llm.c's debug state, version 2: a batch with its logits, loss and gradients."""
    model.zero_grad()
    logits, loss = model(x, y)
    loss.backward()
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(pack_header(STATE_MAGIC, 2, *x.shape))
        for ids in (x, y):
            file.write(ids.cpu().numpy().astype("<i4").tobytes())
        for values in (logits, loss):
            file.write(to_bin.padded_bytes(as_numpy(values)))
        for row, p in model.rows():
            file.write(to_bin.padded_bytes(as_numpy(p.grad), row.shape[0]))


# ---------------------------------------------------------------------------------------------------------
# training


SHAPE = ("n_layer", "n_head", "n_embd", "max_seq_len", "vocab_size", "window", "untied", "pattern")


def load_model(o: argparse.Namespace, V: int = 0) -> GPT:
    """The model of --model: with the weights of a file that pyllmc.convert reads or of the hub, or with fresh weights
    of a size."""
    if not names_weights(o.model):
        return GPT(make_config(o, V), o.seed, o.init_std)
    found = checkpoint_of(o.model)  # llm.c's format is read here, without compiled code
    gpt = read_model(os.fspath(found)) if found else from_weights(convert.open_weights(o.model))
    refuse_other_sizes(o, gpt.config)
    return gpt


def refuse_other_sizes(o: argparse.Namespace, c: GPTConfig) -> None:
    """What weights say of their model cannot be changed by options: csrc/train/sizes.c."""
    asked = {name: getattr(o, name) for name in SHAPE}
    given = [name for name in SHAPE if asked[name] or (name in ("window", "untied") and name in o.given)]
    if o.pattern:
        asked["pattern"] = dataclasses.replace(c, pattern=o.pattern).pattern  # as short as the model's
    for name in given:
        if asked[name] != (has := getattr(c, name)):
            shown = [x if isinstance(x, str) else int(x) for x in (asked[name], has)]
            raise InvalidArgument(f"--{name}={shown[0]}, but {o.model} has {shown[1]}: leave the option out")


def told(o: argparse.Namespace, c: GPTConfig) -> str:
    """The line of the plan that describes the model, in the words of ./train_gpt2."""
    extra = f" window={c.window}" if c.window else ""
    extra += f" pattern={c.pattern}" if not c.alternates else ""
    extra += " untied" if c.untied else ""
    alike = f" (OpenAI's: hub:{o.model})" if o.model in hub.OPENAI else ""
    origin = f"from {o.model}" if names_weights(o.model) else f"fresh weights{alike}"
    return (
        f"model: L={c.n_layer} NH={c.n_head} C={c.n_embd} T={c.max_seq_len} V={c.vocab_size}{extra}, "
        f"{parameter_count(c) * 1e-6:.2f}M parameters, {origin}"
    )


def names_weights(model: str) -> bool:
    """True if --model names weights, in a file or on the hub. A name that is also a size is a size, as for
    ./train_gpt2."""
    if layout.is_size(model):
        return False
    return os.path.exists(model) or native.is_bundle(Path(model)) or bool(hub.repository(model))


@torch.no_grad()
def from_weights(weights: Weights) -> GPT:
    """Makes a model of weights that pyllmc.convert has opened."""
    model = GPT(weights.config)
    named = dict(model.named_parameters())
    for name, x in weights.tensors:
        named[name].copy_(torch.as_tensor(np.asarray(x)))
    return model


def make_config(o: argparse.Namespace, V: int = 0, fallback: int = 0) -> GPTConfig:
    """The sizes of --model, changed by --n_layer ...; V: from the data; fallback: V if nothing else gives it."""
    c = layout.config_of(o.model, o.vocab_size or V, fallback)
    changed = {name: getattr(o, name) for name in SHAPE if name != "vocab_size"}
    return dataclasses.replace(c, **{name: value for name, value in changed.items() if value})


# the share of the way from lr to its final value that is done at x in [0, 1]
SCHEDULES = {
    "constant": lambda x: 0.0,
    "linear": lambda x: x,
    "cosine": lambda x: 0.5 * (1 - math.cos(math.pi * x)),
    "wsd": lambda x: x,  # warm-up, stable, decay: x grows in the last decay_frac only
}


def learning_rate(o: argparse.Namespace, done: int, size: int, end: int, warmup: int) -> float:
    """The rate of a step before which `done` was done, and which does `size` more, in steps or tokens, as `end` and `warmup`:
    csrc/train/schedule.c, line for line."""
    if o.schedule not in SCHEDULES:
        raise ValueError(f"schedule '{o.schedule}' is not one of {', '.join(SCHEDULES)}")
    if done < warmup:
        return o.lr * min(done + size, warmup) / warmup
    start: float = warmup
    if o.schedule == "wsd":
        start = max(start, end * (1 - o.decay_frac))
    x = min(max((done - start) / max(1, end - start), 0), 1)
    return o.lr + (o.lr * o.final_lr_frac - o.lr) * SCHEDULES[o.schedule](x)


def check_length(o: argparse.Namespace) -> None:
    """Lets the one length that the command line gave count, as csrc/train/length.c does."""
    called: frozenset[str] = getattr(o, "called", frozenset())
    lengths = [
        name
        for name in ("max_steps", "epochs", "max_tokens")
        if name in called and (name == "max_steps" or getattr(o, name))
    ]
    if len(lengths) > 1:
        raise ValueError(
            f"--{lengths[0]} and --{lengths[1]} both say how long the run is: leave one of them out"
        )
    for name in ("epochs", "max_tokens"):
        if lengths and name not in lengths:
            setattr(o, name, 0)
    if o.epochs and o.max_tokens:
        raise ValueError(
            "epochs and max_tokens both say how long the run is: give one of them, or set it to 0"
        )
    if "warmup_steps" in called and "warmup_tokens" in called and o.warmup_tokens:
        raise ValueError(
            "--warmup_steps and --warmup_tokens both say how long the warm-up is: leave one of them out"
        )
    if "warmup_steps" in called:
        o.warmup_tokens = 0
    if o.overfit_batch and o.epochs:
        raise ValueError("--overfit_batch trains on one batch: give --max_steps instead of --epochs")
    settle_batch(o, called)
    if o.batch_ramp_tokens and o.grad_accum < 2:
        raise ValueError("--batch_ramp_tokens lets a batch grow to --grad_accum, which is 1: raise it")


def settle_batch(o: argparse.Namespace, called: frozenset[str]) -> None:
    """Makes micro-steps of --global_batch, as csrc/train/length.c does for one process; but B must divide it."""
    if "grad_accum" in called and not ("global_batch" in called and o.global_batch):
        o.global_batch = 0
    if o.global_batch and o.grad_accum > 1:
        raise ValueError(
            "--global_batch and --grad_accum both say how large a step is: leave one of them out"
        )
    if o.global_batch % o.B:
        raise ValueError(
            f"--global_batch={o.global_batch} is no multiple of --B={o.B}, as the reference needs it"
        )
    if o.global_batch:
        o.grad_accum = o.global_batch // o.B


FOREVER = 1 << 61  # steps or tokens that no run reaches


class Course:
    """How long a run is, how large its steps are, and their learning rates: csrc/train/length.c."""

    def __init__(self, o: argparse.Namespace, windows: int, B: int, T: int) -> None:
        self.o, self.micro_step = o, B * T
        self.last_window = math.ceil(o.epochs * windows)  # 0: the run does not end at one
        if o.epochs:
            o.max_steps, self.tokens = self.walk(last_token=self.last_window * T)[0], self.last_window * T
        elif o.max_tokens:
            o.max_steps, self.tokens = self.walk(last_token=o.max_tokens)
        else:
            self.tokens = self.walk(last_step=o.max_steps)[1]
        if names_weights(o.model) and "warmup_steps" not in getattr(o, "given", ()):
            o.warmup_steps = min(o.warmup_steps, o.max_steps // 10)
        self.in_tokens = bool(o.warmup_tokens or o.decay_tokens or o.batch_ramp_tokens)
        self.warmup, self.end = o.warmup_steps, o.max_steps
        if self.in_tokens:
            self.warmup = o.warmup_tokens or self.walk(last_step=o.warmup_steps)[1]
            self.end = o.decay_tokens or self.tokens

    def micro_steps(self, tokens: int) -> int:
        """Those of a step that begins after so many tokens; GPT-3's batches grew so (Brown et al. 2020, appendix B)."""
        o = self.o
        if tokens >= o.batch_ramp_tokens:
            return int(o.grad_accum)
        return int(1 + (o.grad_accum - 1) * tokens // o.batch_ramp_tokens)

    def walk(self, last_step: int = FOREVER, last_token: int = FOREVER) -> tuple[int, int]:
        """(steps, tokens) where a run from the beginning first is at or behind either end."""
        steps = tokens = 0
        while steps < last_step and tokens < last_token:
            m, more = self.micro_steps(tokens), self.o.grad_accum - 1
            growing = m < self.o.grad_accum  # until the tokens after which steps are larger
            end = min(last_token, -(-m * self.o.batch_ramp_tokens // more)) if growing else last_token
            n = min(-(-(end - tokens) // (m * self.micro_step)), last_step - steps)
            steps, tokens = steps + n, tokens + n * m * self.micro_step
        return steps, tokens

    def rate(self, step: int, tokens: int, size: int) -> float:
        done, size = (tokens, size) if self.in_tokens else (step, 1)
        return learning_rate(self.o, done, size, self.end, self.warmup)

    def told(self) -> str:
        o = self.o
        warmup = f"{self.warmup} tokens" if self.in_tokens else f"{self.warmup}"
        line = f"warm-up {warmup}, schedule {o.schedule}"
        line += f" up to {self.end} tokens" if self.in_tokens else ""
        if o.epochs or o.max_tokens:
            length = f"--epochs={o.epochs:g}" if o.epochs else f"--max_tokens={o.max_tokens}"
            line += f"; {length} makes {o.max_steps} step{'' if o.max_steps == 1 else 's'}"
        if o.batch_ramp_tokens:
            each = self.micro_step
            line += f"; batches grow from {each} to {each * o.grad_accum} tokens over the first {o.batch_ramp_tokens}"
        return line + ("; on the first batch alone (--overfit_batch)" if o.overfit_batch else "")


def settle_rate(o: argparse.Namespace, C: int) -> str:
    """Chooses --lr if it is not given, and tells it. Fine-tuning has a smaller one; csrc/train/setup.c says why."""
    tuning = names_weights(o.model)
    gentle = " (gentle, to keep what they know; --lr changes it)" if tuning and not o.lr else ""
    o.lr = o.lr or (min(1e-3, 6e-5 * 768 / C) if tuning else min(6e-3, 6e-4 * (768 / C) ** 0.75))
    first = "fine-tunes the weights" if tuning else f"fresh weights of seed {o.seed}"
    return f"training: {first} with lr {o.lr:.3g}{gentle}"


class Outliers:
    """The z-scores of --skip_outliers: csrc/train/outliers.c, after llm.c's outlier_detector.h."""

    WINDOW = 128  # steps

    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = {"loss": [], "norm": []}

    def find(self, loss: float, norm: float, limit: float) -> tuple[str, float]:
        """What is an outlier, and its z-score; "", 0 if neither is, or if fewer than WINDOW steps came before."""
        full = len(self.seen["loss"]) == self.WINDOW
        for name, x in (("loss", loss), ("norm", norm)):
            self.seen[name] = [*self.seen[name], x][-self.WINDOW :]
        for name, window in self.seen.items():
            mean = sum(window) / len(window)
            std = math.sqrt(sum((x - mean) ** 2 for x in window) / len(window))
            if full and std and (window[-1] - mean) / std > limit:
                return name, (window[-1] - mean) / std
        return "", 0.0


NAME = re.compile(r"[\w.-]{1,32}", re.ASCII)


def val_sets(text: str) -> dict[str, str]:
    """--val_data: paths by their names, "" for a single one without; csrc/train/valsets.c reads the same."""
    found: dict[str, str] = {}
    parts = [text] if os.path.exists(text) else text.split(",")
    for part in parts:
        name, equals, path = part.partition("=")
        if not equals or os.path.exists(part) or not NAME.fullmatch(name):
            name, path = "", part
        if not path:
            raise ValueError(
                "--val_data holds an empty part: write --val_data=PATH or --val_data=NAME=PATH,NAME=PATH"
            )
        if len(parts) > 1 and not name:
            name = re.sub(r"(?<=.)\.bin$", "", os.path.basename(path.rstrip("/")))
        if name in found:
            raise ValueError(f"--val_data: two sets are named {name}: give them other names, NAME=PATH")
        if len(parts) > 1 and not NAME.fullmatch(name):
            raise ValueError(
                f"--val_data: {path} gives no name of letters, digits, '.', '_' or '-': write NAME={path}"
            )
        found[name] = path
    if len(found) > MOST_VALS:
        raise ValueError(f"--val_data names more than {MOST_VALS} sets: leave some out")
    return found


MOST_VALS = 8


def settle_dropout(o: argparse.Namespace) -> Dropouts:
    """Chooses the probabilities as options_settle_dropout in csrc/options/options.c does."""

    def weight(name: str) -> int:  # an option of the call outweighs one of its --config
        return 2 if name in getattr(o, "called", ()) else 1 if name in getattr(o, "given", ()) else 0

    for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
        if weight("dropout") > weight(name):
            setattr(o, name, o.dropout)
    return Dropouts(o.embd_pdrop, o.attn_pdrop, o.resid_pdrop, o.seed)


def told_dropout(d: Dropouts) -> str:
    any_is = d.embd or d.attn or d.resid
    return f"; dropout of embeddings {d.embd:g}, attention {d.attn:g}, residual {d.resid:g}" if any_is else ""


def separator_of(tokenizer: Tokenizer | None) -> int:
    """The id that begins a document, for --separate_documents."""
    if tokenizer is None or tokenizer.eot < 0:
        why = (
            "the data has none: name it with --tokenizer"
            if tokenizer is None
            else "this one has none: prepare the data again with python -m pyllmc.prepro"
        )
        raise ValueError(
            f"--separate_documents needs a tokenizer that knows the id which begins a document, and {why}"
        )
    return tokenizer.eot


LONG_STEP = 500  # ms; shorter steps need no signs of life inside them


class Trainer:
    """The loop of csrc/train/trainer.c: the same batches, steps, validations and lines. It writes no samples and no
    files."""

    def __init__(self, o: argparse.Namespace) -> None:
        self.o, self.device = o, open_device(o.device)
        learning_rate(o, 0, 1, 1, 0)  # refuses an unknown schedule
        check_length(o)
        vals = val_sets(o.val_data) if o.val_data else {}
        if not names_weights(o.model):
            make_config(o, fallback=1)  # refuses impossible sizes before data is made
        data = o.data
        if data == telling.default_folder():
            telling.make_default(data)
        shards = find_shards(data)
        for path in shards:
            inspect_shard(path)  # reports bad data before a vocabulary that the model lacks
        file = Path(o.tokenizer or Path(data) / "tokenizer.bin")
        tokenizer = Tokenizer.load(file) if o.tokenizer or file.exists() else None
        self.model = load_model(o, tokenizer.vocab_size if tokenizer else 0).to(self.device)
        c = self.model.config
        print(told(o, c), flush=True)
        T = o.T or c.max_seq_len
        if c.max_seq_len < T:
            raise ValueError(f"--T={T} is longer than the model's context of {c.max_seq_len}: lower --T")
        eot = tokenizer.eot if tokenizer and o.documents else -1
        if o.separate_documents:
            self.model.separator = separator_of(tokenizer)
        how: dict[str, Any] = {"vocab_size": c.vocab_size, "eot": eot, "pack": bool(o.separate_documents)}
        self.data = Loader(shards, o.B, T, o.shuffle, o.seed, **how)
        vals = vals or ({"": data} if any(Path(data).glob("val*.bin")) else {})
        self.vals = {name: Loader(find_shards(path, "val"), o.B, T, **how) for name, path in vals.items()}
        if o.patience and not (self.vals and o.val_every):
            raise ValueError(
                "--patience counts validations, and there are none: give --val_data and --val_every"
            )
        self.dropouts = settle_dropout(o)
        rate = settle_rate(o, c.n_embd)
        self.course = Course(o, self.data.windows, o.B, T)
        separated = "; documents do not see each other" if o.separate_documents else ""
        print(f"{rate}, {self.course.told()}{told_dropout(self.dropouts)}{separated}", flush=True)
        self.optimizer = self.model.optimizer(o.lr, (o.beta1, o.beta2), o.eps, o.weight_decay)
        self.step, self.tokens, self.windows = 0, 0, 0  # windows: those of the present step
        self.best, self.best_step, self.stale, self.early = math.inf, 0, 0, False
        self.outliers, self.skipped = Outliers(), ""
        self.stopped, self.doing, self.ms = False, "step", 0.0  # ms: the time of a step, smoothed

    def stop(self) -> None:
        """Ends the run after the current micro-step or batch of a validation; another thread may call this."""
        self.stopped = True

    def stopping(self) -> str:
        return f"stopping after this {self.doing}; again to quit now"

    def batch(self, loader: Loader) -> list[Tensor]:
        """The next inputs and targets: (B, T) each."""
        return [torch.from_numpy(ids).long().to(self.device) for ids in loader.next()]

    def loss(self, loader: Loader, most: int | None = None) -> Tensor:
        """The mean loss of the next batch, or of its first windows, with the dropout of the model's next pass."""
        return self.counted(loader, most)[0]

    def counted(self, loader: Loader, most: int | None = None) -> tuple[Tensor, int]:
        """That loss, and its weight in a validation: with a loss mask, the targets that are learnt; else the windows."""
        bf16 = self.o.precision == "bf16" or (self.o.precision == "auto" and self.device.type == "cuda")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            inputs, targets = (ids[:most] for ids in self.shortened(self.batch(loader), loader))
            return self.model(inputs, targets)[1], int((targets >= 0).sum()) if loader.masked else len(inputs)

    @staticmethod
    def shortened(batch: list[Tensor], loader: Loader) -> list[Tensor]:
        """With a loss mask: the batch up to its last learnt target, rounded up to 16, as step_shorten in csrc/train/step.c
        cuts it. The loss is the same; dropout's masks follow from where a token stands in the batch."""
        learnt = (batch[1] >= 0).any(0).nonzero()
        longest = -(-(int(learnt[-1]) + 1 if len(learnt) else 1) // 16) * 16
        return [ids[:, :longest] for ids in batch] if loader.masked else batch

    def run(self) -> None:
        o = self.o
        while True:
            due = o.val_every and (self.step % o.val_every == 0 or self.step == o.max_steps)
            if self.vals and due and not self.stopped:
                self.validate_all()
            if self.step >= o.max_steps or self.stopped or self.early:
                return
            started = time.perf_counter()
            mean = self.accumulate()
            if mean is None:
                return
            loss, lr, norm = mean, *self.update(mean)
            ms = 1e3 * (time.perf_counter() - started)
            self.ms = 0.95 * self.ms + 0.05 * ms if self.ms else ms
            if self.step % o.log_every == 0 or self.step in (1, o.max_steps) or self.skipped:
                self.report(loss, lr, norm, ms, (o.max_steps - self.step) * self.ms / 1e3)

    def report(self, loss: float, lr: float, norm: float, ms: float, eta: float) -> None:
        size = self.windows * self.data.T
        last, tok_s = self.o.max_steps, size / ms * 1e3
        other = self.o.batch_ramp_tokens or self.o.global_batch > self.o.B
        special = f" | batch {size}" if other else ""
        live.clear()
        print(
            f"step {self.step:{len(str(last))}}/{last} | loss {loss:.4f} | lr {lr:.2e} | norm {norm:.3f} | "
            f"{ms:.1f} ms | {tok_s:.0f} tok/s | ETA {live.clock(eta)}{special}{self.skipped}",
            flush=True,
        )

    def accumulate(self) -> float | None:
        """Computes a step's gradients; returns its loss, or None if the run was stopped between two micro-steps."""
        o, mean, data = self.o, 0.0, self.data
        if o.overfit_batch:
            data.position = 0
        first, self.windows = data.position, o.B * self.course.micro_steps(self.tokens)
        if self.course.last_window:
            self.windows = min(self.windows, self.course.last_window - first)
        n = -(-self.windows // o.B)
        self.doing = "micro-step" if n > 1 else "step"
        self.optimizer.zero_grad()
        for i, share in enumerate(self.shares(n)):
            if i and self.stopped:
                return None
            if not 0 < self.ms < LONG_STEP:
                live.show(f"step {self.step + 1}/{o.max_steps}: micro-step {i + 1} of {n}")
            b = min(o.B, self.windows - i * o.B)
            self.model.dropouts = self.dropouts._replace(step=self.step, micro_step=i)
            loss = self.loss(data, b)
            self.model.dropouts = Dropouts()
            (loss * share).backward()
            mean += loss.item() * share
        data.position = first + self.windows  # the last batch may have read further
        return mean

    def shares(self, n: int) -> list[float]:
        """The share of each of n micro-steps in the loss of the next step: with a loss mask, by its learnt targets."""
        rows, position = [min(self.o.B, self.windows - i * self.o.B) for i in range(n)], self.data.position
        self.learnt = True  # some target of the step
        if not self.data.masked:
            return [b / self.windows for b in rows]
        counts = [int((self.data.next()[1][:b] >= 0).sum()) for b in rows]
        self.data.position, self.learnt = position, sum(counts) > 0
        return [count / max(1, sum(counts)) for count in counts]

    def update(self, loss: float) -> tuple[float, float]:
        """Takes a step with the gradients, unless it is an outlier: (lr, their norm before clipping)."""
        o = self.o
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), o.grad_clip or math.inf)
        size = self.windows * self.data.T
        lr = self.course.rate(self.step, self.tokens, size)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        looks = o.skip_outliers and self.learnt
        found = self.outliers.find(loss, norm.item(), o.skip_outliers) if looks else ("", 0.0)
        self.skipped = f" | skipped: the {found[0]} is an outlier, z-score {found[1]:.2f}" if found[0] else ""
        if self.learnt and not self.skipped:
            self.optimizer.step()
        else:
            for state in self.optimizer.state.values():
                state["step"] += 1  # so that AdamW's correction of its means counts the step, too
        self.step, self.tokens = self.step + 1, self.tokens + size
        return lr, norm.item()

    def validate_all(self) -> None:
        """Prints the loss of each set; the first decides what is best, and whether --patience is at its end."""
        o = self.o
        losses = {name: self.validate(name, val) for name, val in self.vals.items()}
        if self.stopped:
            return
        first = next(iter(losses.values()))
        best = first < self.best and o.max_steps > 0
        if best:
            self.best, self.best_step = first, self.step
        self.stale = 0 if best else self.stale + 1
        self.early = bool(o.patience) and self.stale >= o.patience
        shown = [f"{name} {loss:.4f}".strip() for name, loss in losses.items()]
        line = f"step {self.step} | val loss {', '.join([shown[0] + ' (best)' * best, *shown[1:]])}"
        if self.early:
            line += f" | stopped early: {self.stale} validation{'s' * (self.stale > 1)} in a row without a better loss"
            line += f" than {self.best:.4f} at step {self.best_step}"
        print(line, flush=True)

    @torch.no_grad()
    def validate(self, name: str, val: Loader) -> float:
        """The mean loss of the first val_batches, the same windows each time; NaN if the run was stopped."""
        windows, val.position = min(self.o.val_batches * val.B or val.windows, val.windows), 0
        self.doing, total, weight = "batch of the validation", 0.0, 0
        of = f" of {name}" if name else ""
        for at in live.each(range(0, windows, val.B), f"step {self.step}: validation{of}, batch"):
            if self.stopped:
                return math.nan
            mean, n = self.counted(val, min(val.B, windows - at))
            total, weight = total + n * mean.item(), weight + n
        return total / weight


PROG = "train_gpt2.py"
SIZES = dict(zip(hub.OPENAI, ("d12", "d24", "d36", "d48")))  # the names of fresh models of OpenAI's sizes
SEVERAL = (
    "reduce_precision",
    "zero",
    "diloco",
    "diloco_lr",
    "diloco_momentum",
    "timeout",
)  # options of several processes, which the reference does not start
WITHOUT_EFFECT = (  # options of samples, checkpoints and memory, which a command line for ./train_gpt2 may hold
    *"template sample_every sample_tokens prompt temperature top_k top_p repetition_penalty".split(),
    *"checkpoint_every keep recompute".split(),
)
EXTRA = {  # options that only this front end has
    "export": ("", "write the weights as llm.c's model file at the end"),
    "export_version": ("3", "version of that file; 3: fp32, 5: bf16"),
    "export_state": ("", "write a batch with its logits, loss and gradients, in llm.c's format"),
}


def parse(args: list[str] | None = None) -> argparse.Namespace:
    about = "GPT-2 in PyTorch, beside ./train_gpt2; run folders, samples and checkpoints are only there"
    hidden = (
        *"eval_tasks eval_every eval_data eval_limit".split(),
        *"out overwrite resume plan train_only lora_rank lora_alpha lora_dropout lora_on".split(),
        *WITHOUT_EFFECT,
        *SEVERAL,
    )
    parser = options.make_parser(PROG, about, hidden=hidden)
    for name, (default, text) in EXTRA.items():
        parser.add_argument(f"--{name}", default=default, metavar="TEXT", help=f"{text} [{default}]")
    o = parser.parse_args(args)
    o.given, o.called = parser.given, parser.called
    if o.train_only or o.lora_rank:
        parser.error("--train_only and LoRA are ./train_gpt2's: the reference trains all tensors")
    if o.eval_tasks:
        parser.error(
            "--eval_tasks is python -m pyllmc.train's: export weights, and score them with python -m pyllmc.evaluate"
        )
    if o.resume or o.plan or o.overwrite or o.out not in ("", options.options()["out"].default):
        parser.error(
            "--out, --overwrite, --resume and --plan are ./train_gpt2's: the reference writes no runs and plans no "
            "memory; weights are written with --export"
        )
    if o.precision not in ("auto", "fp32", "bf16"):
        parser.error(f"--precision={o.precision} is not one of auto, fp32, bf16")
    if o.export_version not in map(str, NAMES):
        parser.error(f"--export_version={o.export_version} is not one of {', '.join(map(str, NAMES))}")
    return o


def open_device(name: str) -> torch.device:
    """The device "cpu", "cuda" ...; "auto" is the CPU. Raises NoDevice if it is not there."""
    try:
        return torch.zeros(1, device="cpu" if name == "auto" else name).device
    except (RuntimeError, AssertionError) as error:
        raise NoDevice(f"--device={name}: {str(error).partition(chr(10))[0]}") from None


def train(o: argparse.Namespace) -> int:
    for path in filter(None, (o.export, o.export_state)):
        check_writable(path)
    torch.set_num_threads(o.threads or torch.get_num_threads())
    given = o.data != telling.default_folder()
    if o.export and not (given or o.max_steps or o.export_state):  # a conversion needs no data
        if o.model in hub.OPENAI:
            raise ValueError(
                f"--model={o.model} is a size, whose weights are fresh: OpenAI's are --model=hub:{o.model}; for fresh "
                f"weights of that size say --model={SIZES[o.model]}"
            )
        write_model(load_model(o), o.export, int(o.export_version))
        return 0
    trainer = Trainer(o)
    if o.export or o.export_state:
        to_bin.check_bin(trainer.model.config)
    with stopped_by_signals(trainer.stop, trainer.stopping) as interrupted:
        trainer.run()
    live.clear()
    if interrupted():
        kept = f"the weights go to {o.export}" if o.export else "nothing is kept without --export"
        print(f"{PROG}: interrupted after step {trainer.step}: {kept}", file=sys.stderr)
    if o.export_state:
        write_state(trainer.model, o.export_state, *trainer.batch(trainer.data))
    if o.export:
        write_model(trainer.model, o.export, int(o.export_version))
    return INTERRUPTED if interrupted() else 0


def main(args: list[str] | None = None) -> int:
    o = parse(args)
    return run_command(PROG, lambda: train(o))


if __name__ == "__main__":
    sys.exit(main())
