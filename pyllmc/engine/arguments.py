"""Checks of the values that Python passes to C: numbers that fit, arrays, token ids."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyllmc.base.checks import as_flag, as_float, as_int, as_word, refuse
from pyllmc.base.errors import InvalidArgument
from pyllmc.engine import _ffi


def make_room(B: int, T: int, training: bool, recompute: int, keep_logits: bool, precision: int) -> Any:
    """The C llmc_room, from which a model's memory is planned. See also choose_trained."""
    return _ffi.ffi().new(
        "llmc_room *",
        (
            as_int("B", B),
            as_int("T", T),
            as_flag("training", training),
            as_int("recompute", recompute),
            as_flag("keep_logits", keep_logits),
            precision,
        ),
    )


def choose_trained(lib: Any, room: Any, train_only: str, rank: int, alpha: float, on: str) -> Any:
    """Writes into an llmc_room what is trained. Returns the memory of a text that the room points to."""
    room.lora_rank, room.lora_alpha = as_int("lora_rank", rank), as_float("lora_alpha", alpha)
    if room.lora_rank:
        room.lora_on = _ffi.check(lib, lib.llmc_lora_targets(as_word("lora_on", on)))
    room.train_only = held = _ffi.ffi().new("char[]", as_word("train_only", train_only))
    return held


def make_sampling(
    temperature: float, top_k: int | None, top_p: float | None, seed: int, repetition_penalty: float
) -> Any:
    """The C llmc_sampling. None switches top_k or top_p off."""
    how = _ffi.ffi().new("llmc_sampling *")
    how.temperature = as_float("temperature", temperature)
    how.top_p = 0 if top_p is None else as_float("top_p", top_p)
    how.top_k = 0 if top_k is None else as_int("top_k", top_k)
    how.seed = as_int("seed", seed, 64)
    how.repetition_penalty = as_float("repetition_penalty", repetition_penalty)
    return how


def as_array(name: str, values: Any, dtype: Any = None) -> np.ndarray:
    """A numpy array of any value that can become one. With a dtype, complex numbers and texts are refused."""
    try:
        array = np.asarray(values)
        if dtype is not None and array.dtype.kind not in "biuf":
            refuse(name, values, f"an array of numbers: its elements are {array.dtype}")
        return array if dtype is None else array.astype(dtype, copy=False)
    except InvalidArgument:
        raise
    except Exception as error:  # numpy calls the object's own methods, which may raise anything
        refuse(name, values, f"an array{_remedy(values, error)}")


def _remedy(values: Any, error: Exception) -> str:
    """What to give instead of values that numpy cannot read; "" if that is not known."""
    if hasattr(values, "detach"):  # one of PyTorch's tensors
        return " as it is: give x.detach(), of bfloat16 x.detach().float(), from a GPU x.detach().cpu()"
    return ": its rows, such as prompts, must be of one length" if "inhomogeneous" in str(error) else ""


def as_ids(name: str, array: Any) -> np.ndarray:
    """Token ids as contiguous int32 (b, t). Raises InvalidArgument on floats or other ranks."""
    ids = as_array(name, array)
    if ids.dtype.kind not in "iu" or ids.ndim != 2:
        raise InvalidArgument(f"{name}: an integer array (b, t) is needed, not {ids.dtype} {ids.shape}")
    for id in (ids.min(), ids.max()) if ids.size else ():
        if not -(2**31) <= id < 2**31:
            raise InvalidArgument(f"{name}: token id {id} does not fit 32 bits")
    return np.ascontiguousarray(ids, dtype=np.int32)


def as_batch(inputs: Any, targets: Any, weights: Any) -> tuple[list[Any], list[Any]]:
    """The three as arrays, which the caller must hold, and as pointers; None becomes NULL."""
    ids, ffi = as_ids("inputs", inputs), _ffi.ffi()
    if weights is not None and targets is None:
        raise InvalidArgument("weights need targets")
    arrays = [
        ids,
        None if targets is None else as_ids("targets", targets),
        None if weights is None else np.ascontiguousarray(as_array("weights", weights, np.float32)),
    ]
    for name, array in zip(("targets", "weights"), arrays[1:]):
        if array is not None and array.shape != ids.shape:
            raise InvalidArgument(f"{name} {array.shape} and inputs {ids.shape} differ in shape")
    kinds = ("int *", "int *", "float *")
    return arrays, [
        ffi.NULL if a is None else ffi.cast(kind, a.ctypes.data) for a, kind in zip(arrays, kinds)
    ]


def as_dlogits(values: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """The gradient of logits as an array of floats, which the caller must hold, and as a pointer; None becomes NULL."""
    if values is None:
        return None, _ffi.ffi().NULL
    array = np.ascontiguousarray(as_array("dlogits", values, np.float32))
    if array.shape != shape:
        raise InvalidArgument(f"dlogits {array.shape} are not of the shape of the logits, {shape}")
    return array, _ffi.ffi().cast("float *", array.ctypes.data)


def as_prompts(ids: Any) -> tuple[np.ndarray, bool]:
    """The ids of prompts as (b, n), and whether `ids` was one text (n). Empty floats pass: numpy makes them of []."""
    array = as_array("ids", ids)
    array = array.astype(np.int32) if array.size == 0 and array.dtype.kind == "f" else array
    return as_ids("ids", array.reshape(1, -1) if array.ndim == 1 else array), array.ndim == 1


def as_betas(betas: Any) -> tuple[float, float]:
    try:
        first, second = betas
    except (TypeError, ValueError):
        refuse("betas", betas, "two numbers")
    return as_float("betas[0]", first), as_float("betas[1]", second)
