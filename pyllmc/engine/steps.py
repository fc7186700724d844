"""Generation told token by token: which token was drawn, how likely it was, and which others were likely."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from pyllmc.base import live
from pyllmc.base.errors import OutOfMemory
from pyllmc.engine import _ffi


class Alternative(NamedTuple):
    """A token that might have been drawn."""

    id: int
    text: str  # bytes that are no whole character are U+FFFD; "" where no tokenizer is known
    probability: float  # the probability to be drawn, after repetition_penalty, temperature, top_k and top_p
    own: float  # the model's own probability, the softmax of its logits


class Step(NamedTuple):
    """A token that was drawn, as in Alternative, and the likeliest tokens of that moment.

    alternatives: the likeliest first; the drawn token is among them if it is one of the likeliest.
    """

    id: int
    text: str
    probability: float
    own: float
    alternatives: tuple[Alternative, ...]


class Watch:
    """The probabilities of a generation's last draw.

    V: the model's ids. most: alternatives in a step. text_of: the text of an id.
    """

    def __init__(self, lib: Any, generation: Any, V: int, most: int, text_of: Callable[[int], str]) -> None:
        self._lib, self._generation, self._most, self._text_of = lib, generation, most, text_of
        self._own, self._probability = np.empty(V, np.float32), np.empty(V, np.float32)

    def step(self) -> Step:
        arrays = (_ffi.ffi().cast("float *", a.ctypes.data) for a in (self._own, self._probability))
        drawn = _ffi.check(self._lib, self._lib.llmc_generation_last(self._generation, 0, *arrays))
        order = np.lexsort((-self._own, -self._probability))[: self._most]
        return Step(*self._about(drawn), tuple(map(self._about, order.tolist())))

    def _about(self, id: int) -> Alternative:
        return Alternative(id, self._text_of(id), float(self._probability[id]), float(self._own[id]))


def steps_of(
    lib: Any, model: Any, owner: Any, ids: np.ndarray, max_new_tokens: int, how: Any, eot: int, most: int
) -> Iterator[Step]:
    """The steps of a text that follows ids (1,n) in the C model, which `owner` keeps alive; up to and with the first `eot`."""
    ffi, out = _ffi.ffi(), _ffi.ffi().new("llmc_generation **")
    _ffi.check(lib, lib.llmc_generation_new(out, model, 1, how))
    generation = ffi.gc(out[0], lib.llmc_generation_free)
    pointer = ffi.cast("int *", ids.ctypes.data)
    _ffi.check(lib, lib.llmc_generation_feed(generation, pointer, ids.shape[1]))
    watch = Watch(lib, generation, lib.llmc_model_config(model).V, most, lambda id: "")
    return _drawn(lib, generation, watch, max_new_tokens, eot, owner)


def _drawn(
    lib: Any, generation: Any, watch: Watch, max_new_tokens: int, eot: int, owner: Any
) -> Iterator[Step]:
    """The steps still to draw; they hold the generation's model, which the caller may let go of meanwhile."""
    drawn = _ffi.ffi().new("int *")
    for _ in range(max_new_tokens):
        _ffi.check(lib, lib.llmc_generation_next(generation, drawn))
        yield watch.step()
        if drawn[0] == eot:
            return


def texts_of(lib: Any, model: Any, prompts: Any, most: int, how: Any, eot: int) -> list[list[int]]:
    """The ids behind each of the prompts (b, n), at most `most`, up to and with the first eot."""
    ffi = _ffi.ffi()
    try:
        out = np.empty((len(prompts), max(most, 0)), np.int32)
    except (MemoryError, ValueError):
        raise OutOfMemory(f"max_new_tokens={most}: no memory for so many") from None
    ids = ffi.cast("int *", prompts.ctypes.data), ffi.cast("int *", out.ctypes.data)
    with live.interruptible(ffi, lib):
        status = lib.llmc_model_generate(model, ids[0], *prompts.shape, most, how, ids[1], eot)
    made = _ffi.check(lib, status)
    rows = [row[:made].tolist() for row in out]
    return [row[: row.index(eot) + 1] if eot in row else row for row in rows]
