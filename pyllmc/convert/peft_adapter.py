"""LoRA adapters in the format of Hugging Face's PEFT: written from a run with --lora_rank, and read as a whole model, or to
train them further (pyllmc.adopt).

A folder holds adapter_config.json, which names the base model, the rank and the layers, and adapter_model.safetensors with
base_model.model.<layer>.lora_A.weight (r, in) and .lora_B.weight (out, r). W becomes W + alpha / r (B @ A); see PEFT's docs,
"LoRA" and "checkpoint format".
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pyllmc.base.errors import BadFile, DataError, InvalidArgument
from pyllmc.base.files import atomic_directory, writing
from pyllmc.convert.hf_config import read_json
from pyllmc.convert.recipes import Tensor, Weights
from pyllmc.tables import layout
from pyllmc.tables.layout import GPTConfig
from pyllmc.text.template import FILE as TEMPLATE

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
CHECKSUM = "pyllmc_base_checksum"  # in the metadata of TENSORS, which other readers skip
ENDS = (".lora_A.weight", ".lora_B.weight")
OPTIONS = ("lora_rank", "lora_alpha", "lora_on", "lora_dropout")  # options of training that an adapter brings
# options of PEFT's that make another formula of it, and the values at which they do not
PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",), "use_dora": (None, False), "use_rslora": (None, False), "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}), "modules_to_save": (None, []), "trainable_token_indices": (None, []),
    "lora_bias": (None, False),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# reading: the base with the adapters merged, or both apart


class Adapter(NamedTuple):
    """An adapter and its base."""

    base: Any  # the base's place, a pyllmc.convert.kinds.Found
    weights: Weights  # its weights
    rank: int
    alpha: float
    dropout: float
    tensors: Mapping[str, Tensor]  # A and B by the names of our table

    def on(self, folder: Path) -> str:
        """The matrices that have adapters, as --lora_on names them. Raises BadFile if only some layers of one have them."""
        layers = range(self.weights.config.n_layer)
        held = {target: [f"transformer.h.{l}.{leaf}{ENDS[0]}" in self.tensors for l in layers]
                for target, leaf in _layers().items()}  # fmt: skip
        for target, each in held.items():
            if any(each) and not all(each):
                raise BadFile(
                    f"{folder} adapts {target} in some layers only, which cannot be trained further: merge it, with --lora_rank=0"
                )
        return ",".join(target for target, each in held.items() if all(each))

    def options(self, folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
        """OPTIONS of a training that goes on with the adapter; given: those that the user gave. Raises InvalidArgument for one that is not
        the adapter's, but for the dropout, which may change; BadFile as on() does."""
        own = {"lora_rank": self.rank, "lora_alpha": self.alpha, "lora_on": self.on(folder)}
        for name, value in own.items():
            asked = given.get(name, "")
            if asked != "" and _parts(asked) != _parts(value):
                raise InvalidArgument(
                    f"--{name}={_told(asked)}, but {folder} has {_told(value)}: leave the option out, or train the merged model "
                    "with --lora_rank=0"
                )
        return {**own, "lora_dropout": given.get("lora_dropout", self.dropout)}


def is_merged(given: Mapping[str, Any]) -> bool:
    """True if the options that the user gave ask for training the merged model."""
    return given.get("lora_rank") == 0


def _parts(value: Any) -> Any:
    return set(value.split(",")) if isinstance(value, str) else value


def _told(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def open_folder(folder: Path, said: Any = None) -> Weights:
    """The base's weights with an adapter merged into them. Raises BadFile if the adapter is of another model or kind, and, after the
    last tensor, if it was trained on other weights."""
    a = read_folder(folder)
    what = f"PEFT adapter of rank {a.rank}, merged into {a.base.path}: {a.weights.what}"
    base = _checked(folder, a)
    return Weights(what, a.weights.config, _merged(base, a.tensors, a.alpha / a.rank), a.weights.notes)


def read_folder(folder: Path) -> Adapter:
    """Opens an adapter and its base. Raises BadFile if the adapter is of another model or kind."""
    from pyllmc.convert.kinds import find

    about = read_json(folder / CONFIG)
    _check(folder, about)
    found = find(place_of_base(folder))
    weights, rank = found.open(), int(about["r"])
    tensors = _tensors(folder, weights.config, rank)
    return Adapter(found, weights, rank, float(about["lora_alpha"]), _dropout(folder, about), tensors)


def place_of_base(folder: Path) -> Path:
    """The path of the model that an adapter belongs to; one of the hub is fetched. Raises BadFile."""
    from pyllmc.convert import hub
    from pyllmc.convert.source import locate

    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise BadFile(f"{folder / CONFIG} names no base model: write its path as base_model_name_or_path")
    place = locate(base) or (locate(f"hub:{base}") if hub.NAME.fullmatch(base) else None)
    if place is None:
        raise BadFile(
            f"{folder} holds adapters of {base}, which does not exist here: put its path into {CONFIG}"
        )
    return place


def _dropout(folder: Path, about: Mapping[str, Any]) -> float:
    p = about.get("lora_dropout") or 0.0
    if not isinstance(p, (int, float)) or not 0 <= p < 1:
        raise BadFile(f"{folder / CONFIG}: lora_dropout={p} is no probability below 1")
    return float(p)


def base_checksum(folder: Path) -> int | None:
    """The checksum of the base's weights that save_adapter wrote; None: another program wrote the adapter."""
    from pyllmc.convert.huggingface import read_metadata

    text = read_metadata(folder / TENSORS).get(CHECKSUM, "")
    return int(text) if text.isdecimal() else None


def _check(folder: Path, about: Mapping[str, Any]) -> None:
    where = folder / CONFIG
    if about.get("peft_type") != "LORA":
        raise BadFile(f"{where}: peft_type is {about.get('peft_type')}, only LORA is read")
    for key, usual in PLAIN.items():
        if about.get(key, usual[0]) not in usual:
            raise BadFile(
                f"{where}: {key}={about[key]} is not read: merge the adapter with PEFT (merge_and_unload)"
            )
    rank, alpha = about.get("r"), about.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise BadFile(f"{where}: r={rank} and lora_alpha={alpha} are no rank and no factor")


def _tensors(folder: Path, config: GPTConfig, rank: int) -> dict[str, Tensor]:
    """A and B by the names of our table. Raises BadFile for a name or a shape that this model does not have."""
    from pyllmc.convert.huggingface import read_safetensors

    expected = {
        row.torch_name_of(l): row.shape
        for row in layout.table(config, lora_rank=rank)
        if row.kind == "ADAPTER"
        for l in range(config.n_layer)
    }
    found, path = {}, folder / TENSORS
    for name, tensor in read_safetensors(path).items():
        own = name.removeprefix(PREFIX)
        own = own if own.startswith("transformer.") else f"transformer.{own}"
        if own not in expected:
            raise BadFile(f"{path}: {name} adapts no matrix of this model: is it an adapter of another one?")
        if tensor.shape != expected[own]:
            raise BadFile(
                f"{path}: {name} is {tensor.shape}, expected {expected[own]}: it is an adapter of another model"
            )
        found[own] = tensor
    alone = [name for name in found if _other(name) not in found]
    if alone or not found:
        raise BadFile(f"{path} lacks {_other(alone[0]) if alone else 'every adapter'}: copy it again")
    return found


def _other(name: str) -> str:
    """A's name for B, and B's for A."""
    mine, others = ENDS if name.endswith(ENDS[0]) else ENDS[::-1]
    return name.removesuffix(mine) + others


def check_base(folder: Path, base: Path, found: int) -> None:
    """Raises BadFile if the base has another checksum now than save_adapter wrote."""
    expected = base_checksum(folder)
    if expected not in (None, found):
        raise BadFile(
            f"{folder} holds adapters of other weights than {base} has now: expected checksum {expected:08x}, found "
            f"{found:08x}; put the file back that they were trained on"
        )


def _checked(folder: Path, a: Adapter) -> Iterator[tuple[str, Any]]:
    """The base's tensors, which come in the order of the table, as the checksum wants them (csrc/files/adapterfile.c)."""
    rows, crc = {row.torch_name: row for row in layout.table(a.weights.config)}, 0
    for name, x in a.weights.tensors:
        crc = zlib.crc32(x.astype("<f4", copy=False).tobytes(), crc)
        if name in rows:  # rows of zeros pad the vocabulary
            crc = zlib.crc32(bytes(4 * (math.prod(rows[name].shape) - x.size)), crc)
        yield name, x
    check_base(folder, a.base.path, crc)


def _merged(
    base: Iterator[tuple[str, Any]], tensors: Mapping[str, Tensor], scale: float
) -> Iterator[tuple[str, Any]]:
    for name, x in base:
        stem = name.removesuffix(".weight")
        if stem + ENDS[0] in tensors:
            a, b = (tensors[stem + end].read() for end in ENDS)
            x = x + scale * (b @ a)
        yield name, x


# ---------------------------------------------------------------------------------------------------------
# writing


def read_adapters(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """What a checkpoint tells about its adapters, and their matrices by the names of our table; ({}, {}) if it has none."""
    import numpy as np

    from pyllmc.convert.base import settle_base
    from pyllmc.convert.kinds import find
    from pyllmc.convert.native import open_native
    from pyllmc.engine import _ffi
    from pyllmc.engine.arena import Arena, make_handle
    from pyllmc.engine.arguments import choose_trained

    file = open_native(path)
    about = file.adapters
    if not about:
        return {}, {}
    settle_base(file, find)
    lib, room = _ffi.load(), _ffi.ffi().new("llmc_room *", {"B": 1, "T": 1})
    rank, alpha = int(about["lora_rank"]), float(about["lora_alpha"])
    held = choose_trained(lib, room, about["train_only"], rank, alpha, about["lora_on"])
    handle = make_handle(lib, file.config, room)
    file.load_into(handle)
    del held
    arena = Arena(lib, handle, handle)
    if arena.config.banded:
        raise DataError(
            f"{path} adapts a model with banded layers, which is a GPT-Neo for PEFT: its q, k and v are apart there; write the "
            "whole model with --merge"
        )
    return about, {name: np.array(x) for name, x in arena.parameters() if name.endswith(ENDS)}


def adapter_json(about: Mapping[str, str], base: str) -> dict[str, Any]:
    """adapter_config.json. GPT-2 in transformers stores its matrices (in, out), which fan_in_fan_out says."""
    alpha = float(about["lora_alpha"])
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": int(about["lora_rank"]),
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": float(about.get("lora_dropout", 0)),
        "target_modules": [
            layers[target] for layers in [_layers()] for target in about["lora_on"].split(",")
        ],
        "fan_in_fan_out": True,
        "bias": "none",
        "inference_mode": True,
    }


def _layers() -> dict[str, str]:
    """LoRA's targets -> the ends of PyTorch's names: "fc" -> "mlp.c_fc"."""
    rows = [row for row in layout.table(GPTConfig(1, 1, 1, 1, 1), lora_rank=1) if row.kind == "ADAPTER"]
    return {row.name[:-1]: row.torch_name.split("%d.")[1].split(".lora_")[0] for row in rows}


def save_adapter(path: str | os.PathLike[str], source: Path, overwrite: bool = False, base: str = "") -> str:
    """Writes the adapters of a run or checkpoint as a folder for PEFT; returns a sentence on what was written.

    base: the base model as PEFT is to find it; default: where the run found it. Raises DataError if the adapters are not all
    that was trained, InvalidArgument if something else lies at `path`.
    """
    from pyllmc.convert.to_hf import write_json, write_safetensors, write_text
    from pyllmc.engine.checkpoint import template_of

    place = os.path.realpath(path)
    check_place(place, overwrite)
    about, tensors = read_adapters(source)
    if not about:
        raise DataError(f"{source} holds no adapters, but a whole model: leave --to=peft out")
    if about["train_only"]:
        raise DataError(
            f"{source} has trained {about['train_only']}, too, which an adapter of PEFT cannot hold: write the whole model "
            "with --merge"
        )
    _check_gpt2(about["base"])
    said = adapter_json(about, base or about["base"])
    named = [(PREFIX + name, x) for name, x in tensors.items()]
    with atomic_directory(place, lambda: check_place(place, overwrite)) as folder, writing(place):
        write_json(folder, CONFIG, said)
        checksum = {CHECKSUM: about["checksum"]}
        write_safetensors(os.path.join(folder, TENSORS), iter(named), iter(named), "fp32", checksum)
        if form := template_of(source):
            write_text(folder, TEMPLATE, f"{form.line}\n")
        if not _reads_back(Path(folder), said, tensors, int(about["checksum"])):
            raise BadFile(f"{place} is not written: it does not read back as it was; try again elsewhere")
    return f"PEFT adapter of rank {about['lora_rank']} on {about['lora_on']}, {len(named)} tensors, for {base or about['base']}"


def _reads_back(folder: Path, said: Mapping[str, Any], tensors: Mapping[str, Any], checksum: int) -> bool:
    """True if the files hold what was written, to the bit."""
    import numpy as np

    from pyllmc.convert.huggingface import read_safetensors

    found = {name.removeprefix(PREFIX): x.read() for name, x in read_safetensors(folder / TENSORS).items()}
    return (
        read_json(folder / CONFIG) == said
        and base_checksum(folder) == checksum
        and found.keys() == tensors.keys()
        and all(np.array_equal(found[name].view("u4"), x.view("u4")) for name, x in tensors.items())
    )


def _check_gpt2(base: str) -> None:
    """Raises DataError if transformers knows the base as another model than GPT-2."""
    folder = Path(base) if os.path.isdir(base) else Path(base).parent
    kind = read_json(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None
    if kind not in (None, "gpt2"):
        raise DataError(
            f"{base} is a {kind}, whose matrices have other names for PEFT: write the whole model with --merge"
        )


def check_place(place: str, overwrite: bool) -> None:
    """Raises InvalidArgument if something lies there that is no adapter, or an adapter that may not be replaced."""
    if not os.path.lexists(place) or (os.path.isdir(place) and not os.listdir(place)):
        return
    strange = (
        sorted(set(os.listdir(place)) - {CONFIG, TENSORS, TEMPLATE, "README.md"})
        if os.path.isdir(place)
        else [place]
    )
    if strange:
        raise InvalidArgument(f"{place} exists and is no adapter ({strange[0]}): name another destination")
    try:
        json.loads(Path(place, CONFIG).read_text(encoding="utf-8"))["peft_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InvalidArgument(f"{place} exists and is no adapter: name another destination") from None
    if not overwrite:
        raise InvalidArgument(f"{place} exists: replace it with --overwrite, or name another destination")
