"""Weights in a format that only Python reads, given as --model: they become a temporary file, which the engine loads."""

from __future__ import annotations

import os
from typing import Any

from pyllmc.base.errors import InvalidArgument
from pyllmc.base.temporary import temporary_file
from pyllmc.convert import peft_adapter
from pyllmc.convert.base import base_file
from pyllmc.convert.kinds import ADAPTER, Found, find
from pyllmc.convert.source import locate
from pyllmc.engine import _ffi
from pyllmc.engine.checkpoint import adapters_of
from pyllmc.engine.weightfile import WeightFile
from pyllmc.model import Model
from pyllmc.tables import options as table
from pyllmc.text import template

MODEL = "model.bin"


def adopt_model(options: Any) -> None:
    """Lets a trainer or a chat with these pyllmc.trainer.Options begin with weights of any kind that pyllmc.convert reads.

    The temporary file also holds the tokenizer that lies beside the weights, as a checkpoint does. It vanishes with the options
    (pyllmc/base/temporary.py). A run does not need it to be resumed.

    An adapter of PEFT's is trained further, with its rank, alpha, matrices and dropout. With lora_rank=0, and in a chat, it is
    merged into its base.
    """
    _refuse_resume(options)
    _adopt_base(options)
    name = options.get("model")
    if not options.is_given("model") or (not options.is_chat and options.get("resume")):
        return
    found = _foreign(name, options.lib)
    if found is None:
        return
    _adopt_template(options, found)
    if found.kind == ADAPTER and not options.is_chat and not peft_adapter.is_merged(given := _given(options)):
        _adopt_adapter(options, found, given)
        return
    model = Model(found, B=1, T=1, training=False, keep_logits=False)
    options.set_model_file(_file_of(model, options))


def _adopt_template(options: Any, found: Found) -> None:
    """Lets turns be written as the template beside the weights says, unless another is named, or the data of a training has one."""
    trains = not options.is_chat and not options.only_write()
    if options.get("template") != "auto" or (trains and template.beside(options.get("data"))):
        return
    if line := template.beside(found.path):
        options.set("template", line)


def _refuse_resume(options: Any) -> None:
    name = "" if options.is_chat else options.get("resume")
    config = os.path.join(name, peft_adapter.CONFIG)
    if name and os.path.exists(config) and not adapters_of(os.path.join(name, "last.ckpt")):
        raise InvalidArgument(
            f"--resume={name}: an adapter of PEFT's has no step and no moments to go on with: begin a run from it, with "
            f"--model={name}"
        )


def _given(options: Any) -> dict[str, Any]:
    """The options about adapters that were set after the defaults, as values."""
    known = table.options()
    return {
        name: known[name].read(options.get(name)) for name in peft_adapter.OPTIONS if options.is_given(name)
    }


def _adopt_adapter(options: Any, found: Found, given: dict[str, Any]) -> None:
    """Makes a file of ours from an adapter of PEFT's. Raises InvalidArgument for options that are not the adapter's, BadFile
    if its base has other weights than it was trained on."""
    folder = found.where
    a = peft_adapter.read_folder(folder)
    for name, value in (how := a.options(folder, given)).items():
        options.set(name, value)
    model = Model(
        a.base, B=1, T=1, keep_logits=False, lora_rank=a.rank, lora_alpha=a.alpha, lora_on=how["lora_on"]
    )  # with gradients, because a file of adapters holds what is trained
    for name, tensor in a.tensors.items():
        model.params[name] = tensor.read()
    path = _file_of(model, options)
    file = WeightFile(options.lib, path)
    peft_adapter.check_base(folder, a.base.path, int(file.adapters["checksum"]))
    options.set_model_file(path)
    if base := base_file(file, options, find):
        options.set_base_file(base)


def _adopt_base(options: Any) -> None:
    """The same for the base of LoRA adapters, if the weights to start from or the run to resume hold those."""
    name = "" if options.is_chat else options.get("resume")
    if name and os.path.isdir(name):
        name = os.path.join(name, "last.ckpt")  # the only one of a run's that has moments
    if not name and options.is_given("model"):
        name = options.get("model")
    path = adapters_of(name) if name else None
    base = base_file(WeightFile(options.lib, path), options, find) if path else ""
    if base:
        options.set_base_file(base)


def _foreign(name: str, lib: Any) -> Found | None:
    """Finds the weights if Python must read them; None for a size, a file that the engine reads, or nothing."""
    if not name or lib.llmc_config_parse(_ffi.ffi().new("llmc_config *"), _ffi.encoded(name)) >= 0:
        return None
    path = locate(name)
    found = find(path) if path else None
    return None if found and found.is_engines else found


def _place(options: Any) -> str:
    """The folder of the temporary file: beside the run, where there is room for its checkpoints; "" is the system's own."""
    out = "" if options.is_chat else options.get("out")
    folder = os.path.dirname(os.path.abspath(out)) if out else ""
    return folder if os.access(folder, os.W_OK) else ""


def _file_of(model: Model, options: Any) -> str:
    """Saves `model` as a temporary checkpoint; returns its path, which is good as long as the options live."""
    return temporary_file(model.save, MODEL, options, _place(options))
