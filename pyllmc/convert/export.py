"""Weights out: written beside the destination, read back by a reader of its own, compared, and only then put in place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InvalidArgument
from ..files import DataError, MalformedFile, atomic_directory, atomic_path, need, reading, writing
from ..layout import GPTConfig
from ..model import Model
from ..tokenizer import Tokenizer
from . import card, to_bin, to_gguf, to_hf
from .numbers import check_finite, narrow, param_names, widen

FORMATS = {  # what --to says: what it is called, and its dtypes
    "hf": ("Hugging Face folder", ("fp32", "bf16", "fp16")),
    "gguf": ("GGUF file", ("fp32", "bf16", "fp16")),
    "bin": ("llm.c's model file", ("fp32", "bf16")),
}
FILES = {".gguf": "gguf", ".bin": "bin"}
OTHERS = (".safetensors", ".pt", ".pth", ".ckpt", ".h5", ".onnx", ".npz", ".json")  # a folder is not called so


class Exported(NamedTuple):
    """What was written."""

    path: str
    what: str  # in a sentence
    notes: list[str]  # what the format could not say


class Job(NamedTuple):
    """All that an export needs to know."""

    path: str
    to: str
    dtype: str
    config: GPTConfig
    tensors: Mapping[str, np.ndarray]
    tokenizer: Tokenizer | None
    name: str
    run: Mapping[str, Any]
    read: str


def save(
    path: str | os.PathLike[str],
    config: GPTConfig,
    tensors: Mapping[str, np.ndarray],
    *,
    to: str = "",
    dtype: str = "fp32",
    tokenizer: Tokenizer | None = None,
    name: str = "",
    run: Mapping[str, Any] | None = None,
    read: str = "",
    overwrite: bool = False,
) -> Exported:
    """Write a model as a Hugging Face folder ("hf"), a "gguf" file or llm.c's "bin", verified by reading it back.

    tensors: as Model.params, wte (V, C) or padded. to: "" follows from the path. dtype: fp32, bf16 or fp16 (rounded to
    nearest even). name: of the model, by default the path's. run, read: for the model card, what origin.training() found
    and what the weights came from. overwrite: replace an earlier export, never anything else.
    Raises DataError or OSError in one line; then nothing has changed.
    """
    to = format_of(path, to)
    check_dtype(to, dtype)
    place = check_place(path, to, overwrite)
    exact = checked(config, tensors, dtype)
    name = name or Path(place).name.removesuffix(".gguf").removesuffix(".bin")
    job = Job(place, to, dtype, config, exact, tokenizer, name, run or {}, read)
    notes = {"hf": _save_hf, "gguf": _save_gguf, "bin": _save_bin}[to](job, overwrite)
    return Exported(place, describe(job), notes)


# ---------------------------------------------------------------------------------------------------------
# before anything is written


def format_of(path: str | os.PathLike[str], to: str = "") -> str:
    """hf, gguf or bin, as asked for or as the name says. Raises InvalidArgument."""
    if to and to not in FORMATS:
        raise InvalidArgument(f"--to={to} is not one of {', '.join(FORMATS)}")
    suffix = Path(path).suffix.lower()
    if not to and suffix in OTHERS:
        raise InvalidArgument(
            f"{os.fspath(path)}: {suffix} files are not written; name a folder (Hugging Face), a .gguf or a .bin (llm.c), "
            f"or say which with --to"
        )
    return to or FILES.get(suffix, "hf")


def check_dtype(to: str, dtype: str) -> None:
    """Raises InvalidArgument where the format has no such numbers."""
    what, dtypes = FORMATS[to]
    if dtype not in dtypes:
        raise InvalidArgument(f"--dtype={dtype}: a {what} holds {', '.join(dtypes)}")


def check_place(
    path: str | os.PathLike[str], to: str, overwrite: bool, source: str | os.PathLike[str] = ""
) -> str:
    """The real path of the destination. Raises DataError where something stands there that may not be replaced."""
    if not os.fspath(path):
        raise InvalidArgument("the destination has no name: give a folder, a .gguf or a .bin")
    place = os.path.realpath(path)
    if source and os.path.exists(source):
        inside = os.path.realpath(source)
        if place == inside or inside.startswith(place + os.sep):
            raise InvalidArgument(f"{os.fspath(path)} is where the weights are read from: name another destination")
    if not os.path.lexists(place):
        return place
    what = FORMATS[to][0]
    if os.path.isdir(place) != (to == "hf"):
        found = "a folder" if os.path.isdir(place) else "not a folder"
        raise InvalidArgument(f"{place} is {found}: a {what} cannot be written there; name another destination")
    if to == "hf" and not os.listdir(place):
        return place
    with reading(place):
        foreign = {"hf": _foreign_in_folder, "gguf": _foreign_gguf, "bin": _foreign_bin}[to](place)
    if foreign:
        raise InvalidArgument(f"{place} exists and is not an export of pyllmc ({foreign}): name another destination")
    if not overwrite:
        raise InvalidArgument(f"{place} exists: replace it with --overwrite, or name another destination")
    return place


def _foreign_in_folder(folder: str) -> str:
    """What in a folder is not from us; "" if all is."""
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
    """A checkpoint begins as llm.c's file does, and holds more."""
    with open(path, "rb") as file:
        head = np.frombuffer(file.read(36), "<i4")
    if len(head) < 9 or head[0] != to_bin.MAGIC:
        return "it is not a model file"
    maxT, V, L, NH, C, _, window = (int(x) for x in head[2:9])
    try:
        size = to_bin.size_of(GPTConfig(V, maxT, L, NH, C, window), int(head[1]))
    except (ValueError, KeyError):
        return "its header is not one of ours"
    return "" if size == os.path.getsize(path) else "it holds more than weights, as a checkpoint does"


def checked(config: GPTConfig, tensors: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """The tensors without padding. Raises DataError for one that lacks, is of another shape, or not finite."""
    expected = to_bin.shapes(config)
    found = {}
    for name, shape in expected.items():
        if name not in tensors:
            raise DataError(f"{name} is missing: expected {shape}")
        x = tensors[name]
        if name.endswith("wte.weight") and x.shape == (config.padded_vocab_size, config.n_embd):
            x = x[: config.vocab_size]
        if x.shape != shape:
            raise DataError(f"{name}: expected {shape}, found {x.shape}")
        check_finite(name, x, dtype)
        found[name] = x
    extra = sorted(set(tensors) - set(expected))
    if extra:
        raise DataError(f"{extra[0]} is no tensor of this model: {len(expected)} are expected, {len(tensors)} found")
    return found


# ---------------------------------------------------------------------------------------------------------
# each format: write, read back, put in place


def _save_bin(job: Job, overwrite: bool) -> list[str]:
    with atomic_path(job.path) as temporary:
        with writing(job.path):
            to_bin.write_bin(temporary, job.config, job.tensors, job.dtype)
        engine = Model(temporary, B=1, T=1, training=False)
        if engine.config != job.config:
            raise MalformedFile(f"{job.path} reads back as {engine.config}, written was {job.config}")
        compare(job, ((name, engine.params[name]) for name in engine.params), dict.fromkeys(job.tensors, job.dtype))
        check_place(job.path, "bin", overwrite)
    return []


def _save_gguf(job: Job, overwrite: bool) -> list[str]:
    to_gguf.check_gguf(job.config)
    to_gguf.package()
    dtypes = {name: to_gguf.dtype_of(name, x, job.dtype) for name, x in job.tensors.items()}
    with atomic_path(job.path) as temporary:
        with writing(job.path):
            notes = to_gguf.write_gguf(temporary, job.config, job.tensors, job.dtype, job.tokenizer, job.name)
        compare(job, to_gguf.read_back(temporary, job.config), dtypes)
        check_place(job.path, "gguf", overwrite)
    return notes


def _save_hf(job: Job, overwrite: bool) -> list[str]:
    from . import load

    need("safetensors", "reading the folder back")
    to_hf.check_hf(job.config, job.tensors)
    with atomic_directory(job.path, lambda: _still(job.path, overwrite)) as folder:
        with writing(job.path):
            notes = _fill(folder, job)
        config, tensors = load(folder)
        expected = job.config if job.config.banded else replace(job.config, window=0)
        if config != expected:
            raise MalformedFile(f"{job.path} reads back as {config}, written was {expected}")
        compare(job, tensors.items(), dict.fromkeys(job.tensors, job.dtype))
    return notes


def _still(path: str, overwrite: bool) -> None:
    check_place(path, "hf", overwrite)


def _fill(folder: str, job: Job) -> list[str]:
    notes = ["no tokenizer is known: the folder has none, and takes and gives ids"]
    if job.tokenizer:
        notes = to_hf.write_tokenizer(folder, job.tokenizer, job.config.max_seq_len)
    if job.config.banded:
        notes.append(f"odd layers see the last {job.config.window} positions: written as GPT-Neo, which can say that")
    eot = job.tokenizer.eot if job.tokenizer else -1
    to_hf.write_model(folder, job.config, job.tensors, job.dtype, eot)
    text = card.model_card(job.name, job.config, job.dtype, job.tokenizer, job.run, notes, job.read)
    to_hf.write_text(folder, "README.md", text)
    return notes


# ---------------------------------------------------------------------------------------------------------
# comparing


def compare(job: Job, found: Iterable[tuple[str, np.ndarray]], dtypes: Mapping[str, str]) -> None:
    """Raises MalformedFile unless every tensor reads back to the bit, or to its one rounding."""
    missing = set(job.tensors)
    for name, x in found:
        written = job.tensors[name]
        missing.discard(name)
        expected = widen(narrow(written, dtypes[name]), dtypes[name])
        same = same_bits(x[: len(expected)], expected) or _same_query(job, name, x, expected)
        if not same or np.any(x[len(expected) :]):
            raise MalformedFile(f"{job.path} is not written: {name} does not read back as it was; try again elsewhere")
    if missing:
        raise MalformedFile(f"{job.path} is not written: {min(missing)} does not read back; try again elsewhere")


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(
        np.ascontiguousarray(a, np.float32).view(np.uint32), np.ascontiguousarray(b, np.float32).view(np.uint32)
    )


def _same_query(job: Job, name: str, x: np.ndarray, expected: np.ndarray) -> bool:
    """GPT-Neo's q is scaled there and back: to the bit only where sqrt(hs) is a power of 2, else one rounding more."""
    if not (job.to == "hf" and job.config.banded and name.endswith("attn.c_attn.weight")):
        return False
    C = job.config.n_embd
    step = {"fp32": 2.0**-22, "bf16": 2.0**-7, "fp16": 2.0**-9}[job.dtype]
    q, there = x[:C].astype(np.float64), job.tensors[name][:C].astype(np.float64)
    return bool(np.all(np.abs(q - there) <= step * np.abs(there) + 1e-30)) and same_bits(x[C:], expected[C:])


def describe(job: Job) -> str:
    """What was written, in a sentence."""
    what = FORMATS[job.to][0] + (f" version {to_bin.VERSIONS[job.dtype]}" if job.to == "bin" else "")
    if job.to == "hf":
        what += " of a GPTNeoForCausalLM" if job.config.banded else " of a GPT2LMHeadModel"
    return f"{what}, {job.dtype}, {len(job.tensors)} tensors read back and compared"
