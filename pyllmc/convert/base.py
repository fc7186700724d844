"""The base of LoRA adapters, where only Python can read it: it becomes a temporary file, which the engine loads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyllmc.base.errors import DataError
from pyllmc.base.temporary import temporary_file

if TYPE_CHECKING:
    from pyllmc.engine.weightfile import WeightFile


def base_file(file: WeightFile, owner: Any, find: Callable[[str], Any]) -> str:
    """A file of the base's weights that the engine reads, good as long as `owner` lives; "" if it reads the base itself.

    find: pyllmc.convert.kinds.find, which imports those who call this. If the base is not there, the engine says so.
    """
    from pyllmc.convert import to_bin

    name = file.adapters.get("base", "")
    try:
        found = find(name) if name else None
    except (DataError, OSError):
        return ""
    if found is None or found.is_engines:
        return ""
    weights = found.open()

    def write(path: str) -> None:
        to_bin.write_bin(path, weights.config, dict(weights.tensors), "fp32", b"")

    return temporary_file(write, "base.bin", owner)


def settle_base(file: WeightFile, find: Callable[[str], Any]) -> None:
    """Lets a file of adapters find its base; nothing to do for a file that holds a model."""
    path = base_file(file, file, find)
    if path:
        file.set_base(path)
