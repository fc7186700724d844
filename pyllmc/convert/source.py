"""What a model is made of: sizes by name, whose weights are fresh, or weights in whatever file is read here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, Union

from pyllmc import convert
from pyllmc.base.checks import as_path
from pyllmc.convert import engine as from_engine
from pyllmc.convert import hub
from pyllmc.engine import _ffi
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
    if not (path.exists() or from_engine.is_bundle(path)):
        if not hub.repository(source):
            _ffi.check(lib, lib.llmc_config_parse(config, _ffi.encoded(source)))
        path = hub.fetch(source)
    where = os.path.abspath(path)
    if not convert.is_engines(path):
        weights = convert.open_weights(path)
        return Origin(_c_config(weights.config), weights=weights, where=where)
    name = _ffi.encoded(from_engine.file_of(path))
    _ffi.check(lib, lib.llmc_model_read_config(name, config))
    return Origin(config, name, where=where)
