"""Opens a model to be examined, with its tokenizer; and the checkpoints of a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyllmc.base.errors import OutOfMemory, SystemFailure
from pyllmc.convert.companions import find_tokenizer
from pyllmc.convert.source import make_config
from pyllmc.engine import _ffi
from pyllmc.engine.checkpoint import RUN, is_run, recorded
from pyllmc.evaluate.scorer import B_for, Scorer
from pyllmc.model import Model
from pyllmc.text.tokenizer import Tokenizer
from pyllmc.writer import find_weights, open_model

NUMBERED = re.compile(r"step_(\d+)\.ckpt")


def open_scorer(source: str, tokenizer: str = "", B: int = 0, **how: Any) -> Scorer:
    """A scorer of the weights at `source`, of any kind that Model loads. tokenizer: as find_tokenizer takes it; B: sequences of T tokens
    in memory, 0: some 2,048 tokens. how: of Model. Raises DataError or LlmcError."""
    longest = 0 if B else _longest(source, **how)
    model = with_room(lambda B: open_model(source, B=B, **how), longest, B)
    return Scorer(model, tokenizer_of(source, tokenizer, model.tokenizer_bytes, model.config.vocab_size))


def with_room(make: Callable[[int], Model], longest: int, B: int = 0) -> Model:
    """The model that `make` makes for B sequences of `longest` tokens; 0: for as many as score fast, or fit."""
    try:
        return make(B or B_for(longest))
    except OutOfMemory:
        if B:
            raise
        return make(1)  # shorter batches are slower, but may fit


def _longest(source: str, device: str = "cpu", precision: str = "auto", **_: Any) -> int:
    """The most tokens that the weights at `source` see, which their header tells."""
    return int(make_config(find_weights(source), _ffi.load(device, precision)).config.maxT)


def tokenizer_of(source: str, choice: str, carried: bytes, V: int) -> Tokenizer | None:
    """The tokenizer of weights with V ids: the `choice`, as find_tokenizer takes it; else the one that they carry, or one that fits."""
    if carried and not choice:
        found = Tokenizer.from_bytes(carried, source)
        if found.vocab_size <= V:
            return found
    return find_tokenizer(source, V, choice)[0]


def step_of(source: str) -> int | None:
    """The step of a run's or a checkpoint's weights; None for weights of other programs."""
    _, state = recorded(source)
    return int(state["step"]) if "step" in state else None


def checkpoints_of(run: str) -> dict[int, str]:
    """The checkpoints that a run's folder keeps, by step. Raises SystemFailure if it is none."""
    folder = Path(run)
    if not is_run(folder):
        raise SystemFailure(f"--every_checkpoint: {run} is no run folder with checkpoints: name one")
    found: dict[int, str] = {}
    for name in RUN:
        if (folder / name).exists() and (step := step_of(str(folder / name))) is not None:
            found[step] = str(folder / name)
    for path in folder.iterdir():
        if number := NUMBERED.fullmatch(path.name):
            found[int(number[1])] = str(path)
    return dict(sorted(found.items()))
