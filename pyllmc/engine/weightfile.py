"""A weight file that the engine reads, opened once for all questions about it, which then concern the same bytes."""

from __future__ import annotations

import functools
import os
from typing import Any

from pyllmc.engine import _ffi


class WeightFile:
    """llm.c's model file, a checkpoint, a run folder or OpenAI's TensorFlow checkpoint. It is closed with its last reference.

    Raises BadFile, SystemFailure.
    """

    def __init__(self, lib: Any, path: str | os.PathLike[str]) -> None:
        out = _ffi.ffi().new("llmc_file **")
        _ffi.check(lib, lib.llmc_file_open(out, _ffi.encoded(path)))
        self._lib, self._file = lib, _ffi.ffi().gc(out[0], lib.llmc_file_free)

    @property
    def config(self) -> Any:
        """A copy of its sizes, as an llmc_config."""
        return _ffi.ffi().new("llmc_config *", self._lib.llmc_file_config(self._file)[0])

    def describe(self) -> str:
        """The kind of the file, in a few words."""
        text = _ffi.ffi().new("char[]", 128)
        _ffi.check(self._lib, self._lib.llmc_file_describe(self._file, text, 128))
        return _ffi.text(text)

    def section(self, tag: bytes) -> bytes:
        """The bytes of a section of a checkpoint; empty if it has no such section."""
        size = _ffi.check(self._lib, self._lib.llmc_file_section(self._file, tag, _ffi.ffi().NULL, 0))
        data = _ffi.ffi().new("char[]", max(size, 1))
        if size:
            _ffi.check(self._lib, self._lib.llmc_file_section(self._file, tag, data, size))
        return bytes(_ffi.ffi().buffer(data, size))

    @functools.cached_property
    def adapters(self) -> dict[str, str]:
        """What the file tells about the LoRA adapters that it holds: base, lora_rank, ...; empty if it holds a model."""
        size = _ffi.check(self._lib, self._lib.llmc_file_adapters(self._file, _ffi.ffi().NULL, 0))
        text = _ffi.ffi().new("char[]", size + 1)
        _ffi.check(self._lib, self._lib.llmc_file_adapters(self._file, text, size + 1))
        lines = os.fsdecode(_ffi.ffi().string(text)).splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    def set_base(self, path: str | os.PathLike[str]) -> None:
        """Read the base of the file's adapters from another place than where it was."""
        _ffi.check(self._lib, self._lib.llmc_file_set_base(self._file, _ffi.encoded(path)))

    def load_into(self, model: Any) -> None:
        """Load the weights into a C model, which changes only after the whole file has been checked."""
        _ffi.check(self._lib, self._lib.llmc_model_load_from(model, self._file))
