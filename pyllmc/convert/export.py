"""Exports weights: writes them beside the destination, reads them back, compares, and only then puts them in place."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyllmc.base import live
from pyllmc.base.errors import BadFile, DataError, need, typed
from pyllmc.base.files import atomic_directory, atomic_path, writing
from pyllmc.convert import card, gptneo, load, to_bin, to_gguf, to_hf
from pyllmc.convert.destination import FORMATS, check_dtype, check_place, check_untied, format_of
from pyllmc.convert.dtypes import check_finite, narrow, widen
from pyllmc.convert.recipes import targets
from pyllmc.engine import _ffi
from pyllmc.engine.arena import load_arena
from pyllmc.engine.weightfile import WeightFile
from pyllmc.tables.layout import GPTConfig
from pyllmc.text import template
from pyllmc.text.tokenizer import Tokenizer


class Exported(NamedTuple):
    """The result of an export."""

    path: str
    what: str  # a sentence on what was written
    notes: list[str]  # sentences on what the format could not say


class Job(NamedTuple):
    """The settings of an export."""

    path: str
    to: str
    dtype: str
    config: GPTConfig
    tensors: Mapping[str, np.ndarray]
    tokenizer: Tokenizer | None
    name: str
    run: Mapping[str, Any]
    read: str
    untied: bool
    form: template.Template | None


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
    untied: bool = False,
    form: template.Template | None = None,
) -> Exported:
    """Writes a model as a Hugging Face folder ("hf"), a "gguf" file or llm.c's "bin", verified by reading it back.

    tensors: as Model.params, wte and lm_head (V, C) or padded. to: "" follows from the path. dtype: fp32, bf16 or fp16 (rounded to
    nearest even). name: the model's, by default the path's. run, read: for the model card, what checkpoint.training() found
    and the source of the weights. overwrite: replaces an earlier export, never anything else. untied: a GGUF gets the
    embedding a second time as output.weight, for llama.cpp before March 2025. form: the template of a fine-tuned model, by
    default the run's.
    Raises DataError or OSError with one line; then nothing has changed.
    """
    to = format_of(path, to)
    check_dtype(to, dtype)
    check_untied(to, untied)
    place = check_place(path, to, overwrite)
    exact = checked(config, tensors, dtype)
    name = typed(name or Path(place).name.removesuffix(".gguf").removesuffix(".bin"))
    name = name.encode(
        "utf-8", "replace"
    ).decode()  # a path may hold bytes that are no text; files hold text only
    form = form or (template.meant(run["options"].get("template", "auto")) if run else None)
    job = Job(place, to, dtype, config, exact, tokenizer, name, run or {}, read, untied, form)
    notes = {"hf": _save_hf, "gguf": _save_gguf, "bin": _save_bin}[to](job, overwrite)
    return Exported(place, describe(job), notes)


# ---------------------------------------------------------------------------------------------------------
# checks before anything is written


def checked(config: GPTConfig, tensors: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """The tensors without padding. Raises DataError for one that is missing, has another shape, or is not finite."""
    expected = dict(targets(config))
    found = {}
    for name, shape in live.each(expected.items(), "checking: tensor"):
        if name not in tensors:
            raise DataError(f"{name} is missing: expected {shape}")
        x = tensors[name]
        padded = (config.padded_vocab_size, config.n_embd)
        if shape == (config.vocab_size, config.n_embd) and x.shape == padded:
            x = x[: config.vocab_size]
        if x.shape != shape:
            raise DataError(f"{name}: expected {shape}, found {x.shape}")
        check_finite(name, x, dtype)
        found[name] = x
    extra = sorted(set(tensors) - set(expected))
    if extra:
        raise DataError(
            f"{extra[0]} is no tensor of this model: {len(expected)} are expected, {len(tensors)} found"
        )
    return found


# ---------------------------------------------------------------------------------------------------------
# the formats: each is written, read back and put in place


def _save_bin(job: Job, overwrite: bool) -> list[str]:
    to_bin.check_bin(job.config, job.tensors)
    carries = job.tokenizer is not None and job.dtype == "fp32"
    tokenizer = job.tokenizer.to_bytes() if job.tokenizer and carries else b""
    with atomic_path(job.path) as temporary:
        with writing(job.path):
            to_bin.write_bin(temporary, job.config, job.tensors, job.dtype, tokenizer)
        arena = load_arena(WeightFile(_ffi.load(), temporary))
        if arena.config != job.config:
            raise BadFile(f"{job.path} reads back as {arena.config}, written was {job.config}")
        compare(job, arena.parameters(), dict.fromkeys(job.tensors, job.dtype))
        check_place(job.path, "bin", overwrite)
    notes = []
    if job.tokenizer and not carries:
        notes.append(
            f"{job.dtype} files of llm.c carry no tokenizer: name it with --tokenizer where the file is used"
        )
    if job.form:
        notes.append(
            f"files of llm.c carry no template: name it with --template={shlex.quote(job.form.line)} where the file is used"
        )
    if job.config.banded:
        notes.append(
            f"{job.config.bands} see the last {job.config.window} positions, which only pyllmc reads from such a file: in "
            "llm.c they would see all"
        )
    return notes


def _save_gguf(job: Job, overwrite: bool) -> list[str]:
    to_gguf.check_gguf(job.config, job.tensors)
    to_gguf.package()
    dtypes = {name: to_gguf.dtype_of(name, x, job.dtype) for name, x in job.tensors.items()}
    with atomic_path(job.path) as temporary:
        with writing(job.path):
            notes = to_gguf.write_gguf(
                temporary, job.config, job.tensors, job.dtype, job.tokenizer, job.name, job.untied, job.form
            )
        compare(job, to_gguf.read_back(temporary, job.config, job.untied), dtypes)
        check_place(job.path, "gguf", overwrite)
    return notes


def _save_hf(job: Job, overwrite: bool) -> list[str]:
    need("safetensors", "reading the folder back")
    to_hf.check_hf(job.config, job.tensors)
    with atomic_directory(job.path, lambda: _still(job.path, overwrite)) as folder:
        with writing(job.path):
            notes = _fill(folder, job)
        config, tensors = load(folder)
        expected = job.config if job.config.banded else replace(job.config, window=0, pattern="")
        if config != expected:
            raise BadFile(f"{job.path} reads back as {config}, written was {expected}")
        compare(job, tensors.items(), dict.fromkeys(job.tensors, job.dtype))
    return notes


def _still(path: str, overwrite: bool) -> None:
    check_place(path, "hf", overwrite)


def _fill(folder: str, job: Job) -> list[str]:
    notes = ["no tokenizer is known: the folder has none, and takes and gives ids"]
    form = job.form
    if form:  # for this project's programs; transformers reads the tokenizer's chat_template
        to_hf.write_text(folder, template.FILE, f"{form.line}\n")
    if job.tokenizer:
        notes = to_hf.write_tokenizer(folder, job.tokenizer, job.config.max_seq_len, form)
    if job.config.banded:
        notes.append(
            f"{job.config.bands} see the last {job.config.window} positions: written as GPT-Neo, which can say that"
        )
    has = os.path.exists(os.path.join(folder, "tokenizer.json"))
    to_hf.write_model(folder, job.config, job.tensors, job.dtype, job.tokenizer)
    text = card.model_card(
        job.name, job.config, job.dtype, job.tokenizer, job.run, notes, job.read, has, form
    )
    to_hf.write_text(folder, "README.md", text)
    return notes


# ---------------------------------------------------------------------------------------------------------
# comparing


def compare(job: Job, found: Iterable[tuple[str, np.ndarray]], dtypes: Mapping[str, str]) -> None:
    """Raises BadFile unless every tensor reads back to the bit as it was rounded."""
    missing = set(job.tensors)
    for name, x in live.each(found, "comparing: tensor", len(job.tensors)):
        missing.discard(name)
        expected = _stored(job, name, job.tensors[name], dtypes[name])
        if not same_bits(x[: len(expected)], expected) or np.any(x[len(expected) :]):
            raise BadFile(
                f"{job.path} is not written: {name} does not read back as it was; try again elsewhere"
            )
    if missing:
        raise BadFile(f"{job.path} is not written: {min(missing)} does not read back; try again elsewhere")


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(
        np.ascontiguousarray(a, np.float32).view(np.uint32),
        np.ascontiguousarray(b, np.float32).view(np.uint32),
    )


def _stored(job: Job, name: str, x: np.ndarray, dtype: str) -> np.ndarray:
    """The tensor as it reads back: rounded once. GPT-Neo's q is rounded as it is scaled, and read as it is scaled back."""
    if not (job.to == "hf" and job.config.banded and name.endswith("attn.c_attn.weight")):
        return widen(narrow(x, dtype), dtype)
    C, head_size = job.config.n_embd, job.config.n_embd // job.config.n_head
    scaled = np.concatenate([gptneo.written_query(x[:C], head_size), x[C:]])
    found = widen(narrow(scaled, dtype), dtype)
    return np.concatenate([gptneo.read_query(found[:C], head_size), found[C:]])


def describe(job: Job) -> str:
    """A sentence on what was written."""
    what = FORMATS[job.to][0] + (f" version {to_bin.VERSIONS[job.dtype]}" if job.to == "bin" else "")
    if job.to == "hf":
        what += " of a GPTNeoForCausalLM" if job.config.banded else " of a GPT2LMHeadModel"
    return f"{what}, {job.dtype}, {len(job.tensors)} tensors read back and compared"
