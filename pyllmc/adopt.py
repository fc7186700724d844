"""--model in a format that Python alone reads: a file of the engine's is made of it, for as long as it takes to load it."""

from __future__ import annotations

import os
import tempfile
import weakref
from typing import Any

from pyllmc.convert.kinds import Found, find
from pyllmc.convert.source import locate
from pyllmc.engine import _ffi
from pyllmc.model import Model

MODEL = "model.bin"


def adopt_model(options: Any) -> None:
    """Lets a trainer or a chat with these pyllmc.trainer.Options begin with weights of whatever kind pyllmc.convert reads.

    The tokenizer that lies beside the weights comes along, as in a checkpoint. What is made needs no name: it vanishes
    with the options, or with the process, however that ends. A run does not need it to be resumed.
    """
    name = options.get("model")
    if not options.is_given("model") or (not options.is_chat and options.get("resume")):
        return
    found = _foreign(name, options.lib)
    if found is None:
        return
    model = Model(found, B=1, T=1, training=False, keep_logits=False)
    options.set_model_file(_file_of(model, _place(options), options))


def _foreign(name: str, lib: Any) -> Found | None:
    """The weights, if Python must read them; None for sizes, for the engine's own files, and for nothing."""
    if not name or lib.llmc_config_parse(_ffi.ffi().new("llmc_config *"), _ffi.encoded(name)) >= 0:
        return None
    path = locate(name)
    found = find(path) if path else None
    return None if found and found.is_engines else found


def _place(options: Any) -> str:
    """Beside the run, where there is room for its checkpoints; else where temporary files go."""
    out = "" if options.is_chat else options.get("out")
    folder = os.path.dirname(os.path.abspath(out)) if out else ""
    return folder if os.access(folder, os.W_OK) else tempfile.gettempdir()


def _file_of(model: Model, place: str, owner: Any) -> str:
    """The path of a checkpoint of `model` in that folder, which lives as long as `owner`."""
    folder = tempfile.TemporaryDirectory(prefix=".pyllmc-", dir=place)
    path = os.path.join(folder.name, MODEL)
    model.save(path)
    if not os.path.exists("/proc/self/fd"):
        weakref.finalize(owner, folder.cleanup)
        return path
    number = os.open(path, os.O_RDONLY)
    weakref.finalize(owner, os.close, number)
    folder.cleanup()  # the open file is all that is left
    return f"/proc/self/fd/{number}"
