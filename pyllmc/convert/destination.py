"""The destination of an export: it may be new, or an earlier export of ours, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pyllmc.base.errors import InvalidArgument
from pyllmc.base.files import reading
from pyllmc.convert import to_bin, to_gguf, to_hf
from pyllmc.engine.checkpoint import read_header

FORMATS = {  # word of --to -> the format's name, and its dtypes
    "hf": ("Hugging Face folder", ("fp32", "bf16", "fp16")),
    "gguf": ("GGUF file", ("fp32", "bf16", "fp16")),
    "bin": ("llm.c's model file", ("fp32", "bf16")),
}
FILES = {".gguf": "gguf", ".bin": "bin"}
OTHERS = (
    ".safetensors",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".onnx",
    ".npz",
    ".json",
)  # names that end so mean files, not folders


def format_of(path: str | os.PathLike[str], to: str = "") -> str:
    """The format: hf, gguf or bin, as asked for or by the name. Raises InvalidArgument for others."""
    if to and to not in FORMATS:
        raise InvalidArgument(f"--to={to} is not one of {', '.join(FORMATS)}")
    suffix = Path(path).suffix.lower()
    if not to and suffix in OTHERS:
        raise InvalidArgument(
            f"{os.fspath(path)}: {suffix} files are not written; name a folder (Hugging Face), a .gguf or a .bin (llm.c), "
            "or say which with --to"
        )
    return to or FILES.get(suffix, "hf")


def check_dtype(to: str, dtype: str) -> None:
    """Raises InvalidArgument if the format has no such numbers."""
    dtypes = FORMATS[to][1]
    if dtype not in dtypes:
        raise InvalidArgument(f"--dtype={dtype}: --to={to} holds {', '.join(dtypes)}")


def check_untied(to: str, untied: bool) -> None:
    """Raises InvalidArgument for other formats than GGUF, because they say that the head is the embedding."""
    if untied and to != "gguf":
        raise InvalidArgument(f"--untied is of a GGUF file: leave it out for --to={to}, or name a .gguf")


def check_place(
    path: str | os.PathLike[str], to: str, overwrite: bool, source: str | os.PathLike[str] = ""
) -> str:
    """The real path of the destination. Raises InvalidArgument if something stands there that may not be replaced."""
    if not os.fspath(path):
        raise InvalidArgument("the destination has no name: give a folder, a .gguf or a .bin")
    place = os.path.realpath(path)
    if source and os.path.exists(source):
        inside = os.path.realpath(source)
        if place == inside or inside.startswith(place + os.sep):
            raise InvalidArgument(
                f"{os.fspath(path)} is where the weights are read from: name another destination"
            )
    if not os.path.lexists(place):
        return place
    if os.path.isdir(place) != (to == "hf"):
        found = "a folder" if os.path.isdir(place) else "not a folder"
        raise InvalidArgument(
            f"{place} is {found}: --to={to} cannot be written there; name another destination"
        )
    if to == "hf" and not os.listdir(place):
        return place
    with reading(place):
        foreign = {"hf": _foreign_in_folder, "gguf": _foreign_gguf, "bin": _foreign_bin}[to](place)
    if foreign:
        raise InvalidArgument(
            f"{place} exists and is not an export of pyllmc ({foreign}): name another destination"
        )
    if not overwrite:
        raise InvalidArgument(f"{place} exists: replace it with --overwrite, or name another destination")
    return place


def _foreign_in_folder(folder: str) -> str:
    """Names something in a folder that is not ours; "" if all of it is."""
    strange = sorted(set(os.listdir(folder)) - set(to_hf.FILES))
    if strange:
        return f"it holds {strange[0]}"
    try:
        ours = to_hf.MARK in json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        ours = False
    return "" if ours else f"its config.json does not say {to_hf.MARK}"


def _foreign_gguf(path: str) -> str:
    return "" if to_gguf.is_export(path) else f"it has no key {to_gguf.MARK}"


def _foreign_bin(path: str) -> str:
    """Says why a file is no export of ours; "" if it is one. A checkpoint begins as llm.c's file does, but holds more."""
    try:
        header = read_header(path)
        if header is None:
            return "it is not a model file"
        size = to_bin.size_of(header[1], header[0])
    except (ValueError, KeyError):
        return "its header is not one of ours"
    with open(path, "rb") as file:  # only a tokenizer and the checksum may follow the weights
        file.seek(size)
        tag, length = file.read(8), int.from_bytes(file.read(8), "little")
    size += 36 + length if tag == b"TOKENIZR" else 0
    return "" if size == os.path.getsize(path) else "it holds more than an export, as a checkpoint does"
