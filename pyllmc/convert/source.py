"""The source of a model: sizes by name, which get fresh weights, or weights in any file that can be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, Union

from pyllmc.base.checks import as_path
from pyllmc.base.errors import InvalidArgument
from pyllmc.convert import hub, native
from pyllmc.convert.base import settle_base
from pyllmc.convert.kinds import Found, find
from pyllmc.engine import _ffi
from pyllmc.engine.weightfile import WeightFile
from pyllmc.tables.layout import NO_VOCABULARY, GPTConfig

Source = Union[str, "os.PathLike[str]", GPTConfig, Found]


class Origin(NamedTuple):
    """The place that a model's weights come from."""

    config: Any  # llmc_config *
    file: WeightFile | None = None  # open, if the engine reads it itself
    weights: Any = None  # a pyllmc.convert.recipes.Weights, if Python reads them
    where: str = ""  # the path of the weights, beside which a tokenizer may lie

    def with_vocabulary(self, V: int, source: Source) -> Any:
        """The sizes, with V instead of their own unless V is 0. Raises InvalidArgument if the weights have another V."""
        if V and self.where and V != self.config.V:
            raise InvalidArgument(f"vocab_size={V}, but {self.where} has {self.config.V}")
        self.config.V = V or self.config.V
        if not self.config.V:
            raise InvalidArgument(NO_VOCABULARY.format(source))
        return self.config


def _c_config(source: GPTConfig) -> Any:
    config = _ffi.ffi().new("llmc_config *")
    config.V, config.maxT, config.window = source.vocab_size, source.max_seq_len, source.window
    config.L, config.NH, config.C = source.n_layer, source.n_head, source.n_embd
    config.untied, config.pattern = source.untied, source.pattern.encode()
    return config


def make_config(source: Source, lib: Any) -> Origin:
    """The C llmc_config of a GPTConfig, of a descriptor such as "d12", or of weights in any file that convert knows."""
    if isinstance(source, GPTConfig):
        return Origin(_c_config(source))
    config = _ffi.ffi().new("llmc_config *")
    if not isinstance(source, Found):
        name = as_path("source", source)
        status = lib.llmc_config_parse(config, _ffi.encoded(name))
        if status >= 0:  # a file called d12 does not hide a size
            return Origin(config)
        path = locate(name)
        if path is None:
            raise _ffi.failure(lib, status)
        source = find(path)
    where = os.path.abspath(source.path)
    if not source.is_engines:
        weights = source.open()
        return Origin(_c_config(weights.config), weights=weights, where=where)
    file = WeightFile(lib, native.file_of(source.where))
    settle_base(file, find)
    return Origin(file.config, file, where=where)


def locate(name: str) -> Path | None:
    """Finds weights that are named by a path or by a model of the hub, which is fetched; None if there are none."""
    path = Path(name)
    if path.exists() or native.is_bundle(path):
        return path
    return hub.fetch(name) if hub.repository(name) else None
