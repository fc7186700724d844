"""Writes GGUF, which llama.cpp runs: architecture gpt2, in fp32, fp16 or bf16 (positions and vectors stay fp32).

The file of a tied model has no output.weight, because llama.cpp then takes the embedding, as GPT-2 does. Builds before March
2025 refuse such a file: for them the embedding is written a second time under that name (untied).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np

from pyllmc.base import live
from pyllmc.base.errors import BadFile, DataError, MissingDependency, need
from pyllmc.base.files import flush_to_disk
from pyllmc.convert.chat_template import chat_template
from pyllmc.convert.dtypes import narrow
from pyllmc.convert.recipes import HEAD as OUR_HEAD
from pyllmc.convert.recipes import targets
from pyllmc.convert.sayable import instead
from pyllmc.tables.layout import GPTConfig
from pyllmc.text.template import Template
from pyllmc.text.tokenizer import Tokenizer
from pyllmc.text.tokenizer_formats import PART, Lists, Unexpressible, eot_text, gguf_lists

ARCH = "gpt2"
HEAD = "output.weight"
MARK = "pyllmc.version"  # the key of a file of ours: --overwrite replaces no other
FILE_TYPES = {"fp32": "ALL_F32", "fp16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}
TENSOR_TYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
NO_BEGINNING = (
    "llama.cpp puts no token before a text of such a vocabulary: begin each prompt with {}, as pyllmc does"
)
EMBEDDING = "transformer.wte.weight"
NAMES = {  # our name, without "transformer." and the layer -> llama.cpp's
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def package() -> Any:
    return need("gguf", "a GGUF file")


def name_of(ours: str) -> str:
    """llama.cpp's name of a tensor: transformer.h.3.attn.c_attn.weight -> blk.3.attn_qkv.weight"""
    stem, _, kind = ours.removeprefix("transformer.").rpartition(".")
    if not stem.startswith("h."):
        return f"{NAMES[stem]}.{kind}"
    _, layer, stem = stem.split(".", 2)
    return f"blk.{layer}.{NAMES[stem]}.{kind}"


def names_of(config: GPTConfig, untied: bool) -> Iterator[tuple[str, str]]:
    """Yields (our name, llama.cpp's) of each tensor in the order of the file."""
    for ours, _ in targets(config):
        yield ours, HEAD if ours == OUR_HEAD else name_of(ours)
    if untied and not config.untied:
        yield EMBEDDING, HEAD


def dtype_of(name: str, x: np.ndarray, dtype: str) -> str:
    return dtype if x.ndim == 2 and not name.endswith("wpe.weight") else "fp32"


def check_gguf(config: GPTConfig, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises DataError if llama.cpp's gpt2 would compute something else."""
    if config.banded:
        raise DataError(
            f"{config.bands} of this model see the last {config.window} positions only, which llama.cpp's gpt2 cannot "
            f"say: {instead(config, tensors)}"
        )


def write_gguf(
    path: str,
    config: GPTConfig,
    tensors: Mapping[str, np.ndarray],
    dtype: str,
    tokenizer: Tokenizer | None,
    name: str,
    untied: bool = False,
    form: Template | None = None,
) -> list[str]:
    """Writes `path` in place; returns sentences on what the file could not say of the tokenizer and the template `form`."""
    check_gguf(config, tensors)
    gguf = package()
    notes: list[str] = []
    with closing(gguf.GGUFWriter(path, ARCH)) as writer:
        add_sizes(gguf, writer, config, dtype, name)
        has_one = add_tokenizer(gguf, writer, config, tokenizer, notes)
        if form:
            add_template(writer, tokenizer if has_one else None, form, notes)
        for ours, theirs in names_of(config, untied):
            x = tensors[ours]
            kind = dtype_of(ours, x, dtype)
            raw = gguf.GGMLQuantizationType[TENSOR_TYPES[kind]]
            size = 4 if kind == "fp32" else 2
            writer.add_tensor_info(theirs, x.shape, np.dtype(np.float32), size * x.size, raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        # one tensor at a time, so that there is no second copy of the model
        for ours, _ in live.each(list(names_of(config, untied)), "writing: tensor"):
            writer.write_tensor_data(narrow(tensors[ours], dtype_of(ours, tensors[ours], dtype)))
        flush_to_disk(writer.fout[0])
    return notes


def sizes_of(c: GPTConfig) -> dict[str, int]:
    return {
        "context_length": c.max_seq_len,
        "embedding_length": c.n_embd,
        "block_count": c.n_layer,
        "feed_forward_length": 4 * c.n_embd,
        "attention.head_count": c.n_head,
        "vocab_size": c.vocab_size,
    }


def add_sizes(gguf: Any, writer: Any, c: GPTConfig, dtype: str, name: str) -> None:
    from pyllmc import __version__

    writer.add_string(MARK, __version__)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[dtype]])
    for key, value in sizes_of(c).items():
        writer.add_uint32(f"{ARCH}.{key}", value)
    writer.add_layer_norm_eps(1e-5)


def add_tokenizer(
    gguf: Any, writer: Any, config: GPTConfig, tokenizer: Tokenizer | None, notes: list[str]
) -> bool:
    """Adds the tokenizer if llama.cpp can run it exactly, else none and a note. True if it was added."""
    missing = "no tokenizer is known"
    try:
        if tokenizer:
            lists = gguf_lists(tokenizer)
            if lists.model == "rwkv" and tokenizer.eot >= 0:
                notes.append(NO_BEGINNING.format(eot_text(tokenizer)))
            add_lists(gguf, writer, lists, tokenizer, config.vocab_size)
            return True
    except Unexpressible as reason:
        missing = f"the tokenizer is left out ({reason})"
    notes.append(
        f"{missing}: llama.cpp loads the file, but its programs want text; only its library runs on ids"
    )
    writer.add_tokenizer_model("none")
    return False


def add_template(writer: Any, tokenizer: Tokenizer | None, form: Template, notes: list[str]) -> None:
    """Adds the template of a fine-tuned model as tokenizer.chat_template, and a note on what llama.cpp must be told besides."""
    try:
        if not tokenizer:
            raise Unexpressible("the file has no tokenizer")
        chat = chat_template(form, tokenizer)
    except (Unexpressible, MissingDependency) as reason:
        notes.append(f"the chat_template is left out ({reason}): write turns as {form.line}")
        return
    writer.add_chat_template(chat.replace(PART, ""))
    notes.append(
        f"an answer ends before {form.stop!r}: name that to llama.cpp as a stop text (its reverse prompt)"
    )
    if PART in chat:
        notes.append(
            "llama.cpp encodes a talk as one text, so that some ids at the borders of its parts are others than in training"
        )


def add_lists(gguf: Any, writer: Any, lists: Lists, tokenizer: Tokenizer, V: int) -> None:
    unused = V - tokenizer.vocab_size
    kinds = [gguf.TokenType.NORMAL] * tokenizer.vocab_size + [gguf.TokenType.UNUSED] * unused
    writer.add_tokenizer_model(lists.model)
    if lists.pre:
        writer.add_tokenizer_pre(lists.pre)
    if tokenizer.eot >= 0:
        kinds[tokenizer.eot] = gguf.TokenType.CONTROL
        writer.add_bos_token_id(tokenizer.eot)
        writer.add_eos_token_id(tokenizer.eot)
    for i in tokenizer.added:
        kinds[i] = gguf.TokenType.USER_DEFINED
    writer.add_token_list([*lists.pieces, *(f"[unused {i}]" for i in range(unused))])
    writer.add_token_types(kinds)
    if lists.model == "llama":
        writer.add_token_scores([0.0] * V)
    if lists.merges:
        writer.add_token_merges(lists.merges)
    writer.add_add_bos_token(tokenizer.eot >= 0)  # because our writer begins a text so
    writer.add_add_space_prefix(False)


def read_back(path: str, config: GPTConfig, untied: bool = False) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (our name, float32 values) of the tensors that gguf's own reader finds. Raises BadFile."""
    try:
        reader = package().GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:
        raise BadFile(f"{path} does not read back: {error}") from None
    for key, value in sizes_of(config).items():
        field = reader.fields.get(f"{ARCH}.{key}")
        if field is None or field.contents() != value:
            raise BadFile(f"{path} does not read back: its {ARCH}.{key} is not {value}")
    found = {x.name: x for x in reader.tensors}
    for ours, theirs in names_of(config, untied):
        x = found.pop(theirs, None)
        if x is None:
            raise BadFile(f"{path} does not read back: {theirs} is missing")
        bits = x.data.view(np.uint16).astype(np.uint32) << 16 if x.tensor_type.name == "BF16" else None
        yield ours, x.data.astype(np.float32) if bits is None else bits.view(np.float32)
    if found:
        raise BadFile(f"{path} holds {next(iter(found))}, which was not written")


def is_export(path: str | os.PathLike[str]) -> bool:
    """True if pyllmc wrote this file: then its key is among the first bytes."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    return head.startswith(b"GGUF") and MARK.encode() in head
