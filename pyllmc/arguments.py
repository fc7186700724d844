"""What Python hands to C, checked: models by name or file, numbers that fit, token ids."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import Any, NamedTuple, Union

import numpy as np

from pyllmc import _ffi, convert
from pyllmc.convert import engine
from pyllmc.errors import InvalidArgument
from pyllmc.layout import GPTConfig
from pyllmc.options import unescaped as unescaped  # of what is typed for a front end: --stop, --delimiter

Source = Union[str, "os.PathLike[str]", GPTConfig]


class Origin(NamedTuple):
    """Where a model's weights come from."""

    config: Any  # llmc_config *
    file: bytes = b""  # the path of what the engine reads itself
    weights: Any = None  # what Python reads: a pyllmc.convert.state.Weights


def _c_config(source: GPTConfig) -> Any:
    config = _ffi.ffi().new("llmc_config *")
    config.V, config.maxT, config.window = source.vocab_size, source.max_seq_len, source.window
    config.L, config.NH, config.C = source.n_layer, source.n_head, source.n_embd
    return config


def make_config(source: Source, lib: Any) -> Origin:
    """The C llmc_config of a GPTConfig, a descriptor such as "d12", or of weights in whatever file convert knows."""
    if isinstance(source, GPTConfig):
        return Origin(_c_config(source))
    config = _ffi.ffi().new("llmc_config *")
    status = lib.llmc_config_parse(config, os.fspath(source).encode())
    path = Path(source)
    if status >= 0 or not (path.exists() or engine.is_bundle(path)):  # a file called d12 does not hide a size
        _ffi.check(lib, status)
        return Origin(config)
    if not convert.is_engines(path):
        weights = convert.open_weights(path)
        return Origin(_c_config(weights.config), weights=weights)
    name = os.fspath(engine.file_of(path)).encode()
    _ffi.check(lib, lib.llmc_model_read_config(name, config))
    return Origin(config, name)


def read_section(lib: Any, path: bytes, tag: bytes) -> bytes:
    """A section of a checkpoint; empty if it has none."""
    size = _ffi.check(lib, lib.llmc_checkpoint_text(path, tag, _ffi.ffi().NULL, 0))
    data = _ffi.ffi().new("char[]", max(size, 1))
    if size:
        _ffi.check(lib, lib.llmc_checkpoint_text(path, tag, data, size))
    return bytes(_ffi.ffi().buffer(data, size))


def as_int(name: str, value: Any, bits: int = 32) -> int:
    """A whole number that a C integer of that many bits holds; raises InvalidArgument."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidArgument(f"{name}={value!r} is not a whole number") from None
    if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
        raise InvalidArgument(f"{name}={number} does not fit {bits} bits")
    return number


def make_sampling(
    temperature: float, top_k: int | None, top_p: float | None, seed: int, repetition_penalty: float
) -> Any:
    """The C llmc_sampling; None is off."""
    how = _ffi.ffi().new("llmc_sampling *", {"temperature": temperature, "top_p": top_p or 0})
    how.top_k, how.seed = as_int("top_k", top_k or 0), as_int("seed", seed, 64)
    how.repetition_penalty = repetition_penalty
    return how


def as_ids(name: str, array: Any) -> np.ndarray:
    """Token ids as contiguous int32 (b, t); raises InvalidArgument on floats or other ranks."""
    ids = np.asarray(array)
    if ids.dtype.kind not in "iu" or ids.ndim != 2:
        raise InvalidArgument(f"{name}: an integer array (b, t) is needed, not {ids.dtype} {ids.shape}")
    if ids.size and (ids.max() >= 2**31 or ids.min() < -(2**31)):
        raise InvalidArgument(f"{name}: token id {ids.max()} does not fit 32 bits")
    return np.ascontiguousarray(ids, dtype=np.int32)
