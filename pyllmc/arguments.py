"""What Python hands to C, checked: models by name or file, numbers that fit, token ids."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, Union

import numpy as np

from pyllmc import _ffi, convert
from pyllmc.base.checks import as_float, as_int, as_path, refuse
from pyllmc.base.errors import InvalidArgument
from pyllmc.convert import engine, hub
from pyllmc.tables.layout import GPTConfig

Source = Union[str, "os.PathLike[str]", GPTConfig]


class Origin(NamedTuple):
    """Where a model's weights come from."""

    config: Any  # llmc_config *
    file: bytes = b""  # the path of what the engine reads itself
    weights: Any = None  # what Python reads: a pyllmc.convert.state.Weights
    where: str = ""  # the path of the weights, beside which a tokenizer may lie


def _c_config(source: GPTConfig) -> Any:
    config = _ffi.ffi().new("llmc_config *")
    config.V, config.maxT, config.window = source.vocab_size, source.max_seq_len, source.window
    config.L, config.NH, config.C = source.n_layer, source.n_head, source.n_embd
    return config


def make_config(source: Source, lib: Any) -> Origin:
    """The C llmc_config of a GPTConfig, a descriptor such as "d12", or of weights in whatever file convert knows."""
    if isinstance(source, GPTConfig):
        return Origin(_c_config(source))
    source = as_path("source", source)
    config = _ffi.ffi().new("llmc_config *")
    status = lib.llmc_config_parse(config, _ffi.encoded(source))
    path = Path(source)
    if status >= 0:  # a file called d12 does not hide a size
        return Origin(config)
    if not (path.exists() or engine.is_bundle(path)):
        if not hub.repository(source):
            _ffi.check(lib, lib.llmc_config_parse(config, _ffi.encoded(source)))
        path = hub.fetch(source)
    where = os.path.abspath(path)
    if not convert.is_engines(path):
        weights = convert.open_weights(path)
        return Origin(_c_config(weights.config), weights=weights, where=where)
    name = _ffi.encoded(engine.file_of(path))
    _ffi.check(lib, lib.llmc_model_read_config(name, config))
    return Origin(config, name, where=where)


def read_section(lib: Any, path: bytes, tag: bytes) -> bytes:
    """A section of a checkpoint; empty if it has none."""
    size = _ffi.check(lib, lib.llmc_checkpoint_text(path, tag, _ffi.ffi().NULL, 0))
    data = _ffi.ffi().new("char[]", max(size, 1))
    if size:
        _ffi.check(lib, lib.llmc_checkpoint_text(path, tag, data, size))
    return bytes(_ffi.ffi().buffer(data, size))


def make_sampling(
    temperature: float, top_k: int | None, top_p: float | None, seed: int, repetition_penalty: float
) -> Any:
    """The C llmc_sampling; None is off."""
    how = _ffi.ffi().new("llmc_sampling *")
    how.temperature = as_float("temperature", temperature)
    how.top_p = 0 if top_p is None else as_float("top_p", top_p)
    how.top_k = 0 if top_k is None else as_int("top_k", top_k)
    how.seed = as_int("seed", seed, 64)
    how.repetition_penalty = as_float("repetition_penalty", repetition_penalty)
    return how


def as_array(name: str, values: Any, dtype: Any = None) -> np.ndarray:
    """numpy's array of whatever can become one; complex numbers and texts cannot."""
    try:
        array = np.asarray(values)
        if dtype is not None and array.dtype.kind not in "biuf":
            refuse(name, values, f"an array of numbers: its elements are {array.dtype}")
        return array if dtype is None else array.astype(dtype, copy=False)
    except InvalidArgument:
        raise
    except Exception:  # numpy asks the object itself, which may raise anything
        refuse(name, values, "an array")


def as_ids(name: str, array: Any) -> np.ndarray:
    """Token ids as contiguous int32 (b, t); raises InvalidArgument on floats or other ranks."""
    ids = as_array(name, array)
    if ids.dtype.kind not in "iu" or ids.ndim != 2:
        raise InvalidArgument(f"{name}: an integer array (b, t) is needed, not {ids.dtype} {ids.shape}")
    if ids.size and (ids.max() >= 2**31 or ids.min() < -(2**31)):
        raise InvalidArgument(f"{name}: token id {ids.max()} does not fit 32 bits")
    return np.ascontiguousarray(ids, dtype=np.int32)


def as_prompts(ids: Any) -> tuple[np.ndarray, bool]:
    """Ids to go on from as (b, n), and whether it is one text: (n); an empty one has no type of its own."""
    array = as_array("ids", ids)
    array = array.astype(np.int32) if array.size == 0 and array.dtype.kind == "f" else array
    return as_ids("ids", array.reshape(1, -1) if array.ndim == 1 else array), array.ndim == 1


def as_betas(betas: Any) -> tuple[float, float]:
    try:
        first, second = betas
    except (TypeError, ValueError):
        refuse("betas", betas, "two numbers")
    return as_float("betas[0]", first), as_float("betas[1]", second)
