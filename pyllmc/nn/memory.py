"""The engine's memory as PyTorch's tensors: parameters, and gradients with a count of who holds them. Nothing is copied."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Optional, TypeVar

import numpy as np
import torch
from torch import Tensor

from pyllmc.base.errors import InvalidArgument
from pyllmc.engine import _ffi
from pyllmc.engine.arena import Arena, make_handle
from pyllmc.model import Model

BLOCKS = ("params", "grads", "m", "v")
ORIGIN = ("_tokenizer", "_source", "_origin")  # attributes in which a Model keeps where its weights came from
Grads = tuple[Optional[Tensor], ...]
Method = TypeVar("Method", bound=Callable[..., Any])
Slices = list[tuple[slice, tuple[int, ...]]]


class Engine(Model):
    """A Model whose parameters are floats in memory even in bf16, so that they can be PyTorch's."""

    _WHOLE = True


def in_turn(method: Method) -> Method:
    """A method of GPT that one thread at a time runs; others wait, because they would write over its activations."""

    @functools.wraps(method)
    def made(gpt: Any, *args: Any, **named: Any) -> Any:
        with gpt._turn:
            return method(gpt, *args, **named)

    return made  # type: ignore[return-value]


def resized(model: Model, B: int, T: int, training: bool = True) -> Model:
    """The same model, its weights, gradients and moments, with room for B sequences of T tokens. Raises OutOfMemory.

    training=False: with its weights alone, for generation.
    """
    lib, arena = model._lib.plain, model._arena
    room = _ffi.ffi().new("llmc_room *", arena.room)
    room.B, room.T, room.training = B, T, training
    room.logits = room.logits and training
    handle = make_handle(lib, lib.llmc_model_config(arena.handle), room, model.threads)
    made = Model._borrow(lib, handle, handle)
    for block in BLOCKS if training else ("params",):
        np.copyto(made._arena.flat(block), arena.flat(block))
    made._check(lib.llmc_model_refresh(handle))
    made.separate_documents(model._separator)
    if training:
        made._check(lib.llmc_model_set_step(handle, model.step))
    vars(made).update((name, getattr(model, name)) for name in ORIGIN)
    return made


def moved(model: Model, made: Model) -> Model:
    """The same model, which from now on computes in the memory of `made`, and shows it by params, grads and moments. Arrays that were
    taken from these keep the old memory alive."""
    vars(model._arena).update(vars(made._arena))
    model._handle = made._handle
    return model


def tensors(arena: Arena, block: str) -> list[Tensor]:
    """The tensors of a block, in the order of arena.places(). Each has a storage of its own, so that files hold it alone."""
    return _cut(arena.flat(block), _slices(arena))


def _slices(arena: Arena) -> Slices:
    """(slice, shape) of each parameter in a block."""
    return [(slice(at, at + math.prod(shape)), shape) for at, shape in arena.places().values()]


@torch.inference_mode(False)
def _cut(flat: np.ndarray, slices: Slices) -> list[Tensor]:
    return [torch.from_numpy(flat[part].reshape(shape)) for part, shape in slices]


def take_back(p: Tensor, arena: Arena, i: int) -> None:
    """Copies a parameter that was moved elsewhere into the engine's memory, and moves it there. Raises InvalidArgument."""
    memory, name = tensors(arena, "params")[i], list(arena.places())[i]
    if not isinstance(p, torch.nn.Parameter):
        raise InvalidArgument(
            f"another tensor takes the place of {name} for a while, as in torch.func.functional_call, and would write over the "
            "model's weights: load such tensors into a copy.deepcopy of the model"
        )
    if p.shape != memory.shape or p.device.type != "cpu":
        raise InvalidArgument(
            f"{name} {tuple(p.shape)} on {p.device} does not fit {tuple(memory.shape)} on the CPU: make another GPT"
        )
    memory.copy_(p.data)
    p.data = memory


def refuse_move(fn: Callable[[Tensor], Tensor]) -> None:
    """Raises InvalidArgument if fn, which is to be applied to every tensor, would move it or change its type."""
    try:
        tried = fn(torch.zeros(1))
    except (AssertionError, RuntimeError) as error:  # a device that this PyTorch has not
        raise InvalidArgument(f"pyllmc.nn.GPT computes on the CPU: {error}") from None
    if tried.is_shared():
        raise InvalidArgument(
            "pyllmc.nn.GPT computes on the CPU in its own memory, which processes cannot share: pass each process a copy, or "
            "model.save(path), and GPT(path) there"
        )
    if tried.device.type != "cpu" or tried.dtype != torch.float32:
        raise InvalidArgument(
            f"pyllmc.nn.GPT computes on the CPU in its own memory, with float parameters, not on {tried.device} in "
            f"{tried.dtype}: for bf16 make it with precision='bf16', for a GPU use pyllmc.Model(device='cuda')"
        )


class Gradients:
    """The engine's gradients. Once they were handed out, a backward pass writes over them only when nobody holds them any more,
    or adds to them while they are each .grad. micro_step and clipping write to them whoever holds them."""

    def __init__(self, arena: Arena) -> None:
        self._arena, self._slices = arena, _slices(arena)
        base = arena.flat("grads").ctypes.data
        self._addresses = [base + 4 * part.start for part, _ in self._slices]
        self._out: Any = None  # a weak reference to the array that all tensors share which were handed out

    def _array(self) -> np.ndarray:
        """The array of those that were handed out, if any is still held; else a new one."""
        flat = self._out and self._out()
        if flat is None:
            flat = self._arena.flat("grads")
            self._out = weakref.ref(flat)
        return flat

    @property
    def held(self) -> bool:
        return self._out is not None and self._out() is not None

    def hand_out(self) -> list[Tensor]:
        return _cut(self._array(), self._slices)

    def in_place(self, params: Sequence[Tensor]) -> bool:
        """True if each parameter's .grad is the engine's memory."""
        return self.held and all(
            p.grad is not None and p.grad.data_ptr() == at for p, at in zip(params, self._addresses)
        )

    def bind(self, params: Sequence[Tensor]) -> None:
        """Makes the engine's memory the .grad of every parameter."""
        if not self.in_place(params):
            for p, grad in zip(params, self.hand_out()):
                p.grad = grad

    def collect(self, params: Sequence[Tensor]) -> None:
        """Brings every .grad into the engine's memory."""
        if not self.in_place(params):
            for p, grad, at in zip(params, self.hand_out(), self._addresses):
                if p.grad is not None and p.grad.data_ptr() != at:
                    grad.copy_(p.grad)

    def run(self, backward: Callable[[bool], None], params: Sequence[Tensor], plain: bool) -> Grads:
        """Runs backward(accumulate); returns the gradients that PyTorch has to add to each .grad.

        If nobody holds the engine's gradients, they are written and returned, and become .grad themselves. If they are .grad
        already, and `plain` says that nobody looks at what is added, the engine adds to them and nothing is left to do.
        Else what is to be added is a copy.
        """
        if not self.held:
            backward(False)
            return tuple(self.hand_out())
        if plain and self.in_place(params):
            backward(True)
            return (None,) * len(params)
        kept = self._array()
        before = kept.copy()
        backward(False)
        added = kept.copy()
        np.copyto(kept, before)
        return tuple(_cut(added, self._slices))
