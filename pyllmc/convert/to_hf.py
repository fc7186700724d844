"""Writes a Hugging Face folder: config.json, model.safetensors, the tokenizer, generation_config.json and a model card.

Dense models become a GPT2LMHeadModel. If some layers see a window, it becomes a GPTNeoForCausalLM, because GPT-2 cannot say
that. GPT-Neo does not scale scores by 1 / sqrt(hs), so q is scaled; it has no bias in q, k and v.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pyllmc.base import live
from pyllmc.base.errors import DataError, MissingDependency, need
from pyllmc.base.files import flush_to_disk
from pyllmc.convert.chat_template import chat_template, cut_at_marks
from pyllmc.convert.dtypes import DTYPES, narrow
from pyllmc.convert.gptneo import written_query
from pyllmc.convert.recipes import MATRICES, targets
from pyllmc.convert.sayable import banded_bias, instead
from pyllmc.tables.layout import GPTConfig
from pyllmc.text.template import FILE as TEMPLATE
from pyllmc.text.template import Template
from pyllmc.text.tokenizer import Tokenizer
from pyllmc.text.tokenizer_formats import (
    PART,
    WHY,
    Unexpressible,
    eot_text,
    hf_tokenizer,
    merges_of,
    names,
    printable,
)

TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
SAFETENSORS_NAMES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
MARK = "pyllmc_version"  # the key of config.json in a folder of ours: no other is replaced
FILES = (  # all files that such a folder may hold
    *("config.json", "model.safetensors", "generation_config.json", "README.md", "tokenizer.bin", TEMPLATE),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
)
PIPELINE_TOKENS = 256  # tokens that transformers' pipeline writes by default
State = Iterator[tuple[str, np.ndarray]]


def write_text(folder: str, name: str, text: str) -> None:
    with open(os.path.join(folder, name), "wb") as file:
        file.write(text.encode())
        flush_to_disk(file)


def write_json(folder: str, name: str, content: Mapping[str, Any]) -> None:
    write_text(folder, name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


# ---------------------------------------------------------------------------------------------------------
# the model


def gpt2_state(config: GPTConfig, tensors: Mapping[str, np.ndarray]) -> State:
    for name, _ in targets(config):
        yield name, tensors[name].T if name.endswith(MATRICES) else tensors[name]


def neo_state(config: GPTConfig, tensors: Mapping[str, np.ndarray]) -> State:
    """Yields GPT-Neo's tensors: q, k and v apart, q over sqrt(hs); all in nn.Linear's orientation, which is ours."""
    for name, _ in targets(config):
        stem, _, kind = name.rpartition(".")
        x = tensors[name]
        if not stem.endswith(("attn.c_attn", "attn.c_proj")):
            yield name, x
        elif stem.endswith("c_proj"):
            yield f"{stem.removesuffix('c_proj')}attention.out_proj.{kind}", x
        elif kind == "weight":
            q, k, v = np.split(x, 3)
            q = written_query(q, config.n_embd // config.n_head)
            for letter, part in zip("qkv", (q, k, v)):
                yield f"{stem.removesuffix('c_attn')}attention.{letter}_proj.weight", part


def check_hf(config: GPTConfig, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises DataError if neither architecture can say this model."""
    if name := banded_bias(config, tensors):
        raise DataError(
            f"{config.bands} of this model see the last {config.window} positions only: GPT-2 cannot say that, and "
            f"GPT-Neo has no bias for q, k and v, but {name} is not zero: {instead(config, tensors)}"
        )


def write_safetensors(
    path: str, state: State, shapes: State, dtype: str, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes the format of safetensors: u64 length of a JSON header, the header, the tensors.

    It is written here, one tensor at a time, so that memory holds no second copy of the model and a full disk stays an
    OSError.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    for name, x in shapes:
        size = x.size * np.dtype(DTYPES[dtype]).itemsize
        header[name] = {"dtype": SAFETENSORS_NAMES[dtype], "shape": x.shape, "data_offsets": (at, at + size)}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, x in live.each(state, "writing: tensor", len(header) - 1):
            file.write(narrow(x, dtype).data)
        flush_to_disk(file)


def config_json(config: GPTConfig, dtype: str, eot: int) -> dict[str, Any]:
    from pyllmc import __version__

    shared = {
        "vocab_size": config.vocab_size,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "bos_token_id": eot if eot >= 0 else None,
        "eos_token_id": eot if eot >= 0 else None,
        "tie_word_embeddings": not config.untied,
        "use_cache": True,
        "torch_dtype": TORCH_NAMES[dtype],
        MARK: __version__,
    }
    return {**(neo_sizes(config) if config.banded else gpt2_sizes(config)), **shared}


def gpt2_sizes(c: GPTConfig) -> dict[str, Any]:
    """The sizes as GPT2Config names them. n_ctx is there because llama.cpp's converter reads it."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_positions": c.max_seq_len,
        "n_ctx": c.max_seq_len,
        "n_embd": c.n_embd,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_inner": None,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    }


def neo_sizes(c: GPTConfig) -> dict[str, Any]:
    names = [{"D": "global", "L": "local"}[letter] for letter in c.pattern]
    kinds: list[Any] = [[names, c.n_layer // len(names)]]
    if rest := names[: c.n_layer % len(names)]:
        kinds.append([rest, 1])
    return {
        "architectures": ["GPTNeoForCausalLM"],
        "model_type": "gpt_neo",
        "max_position_embeddings": c.max_seq_len,
        "hidden_size": c.n_embd,
        "num_layers": c.n_layer,
        "num_heads": c.n_head,
        "intermediate_size": None,
        "attention_types": kinds,
        "attention_layers": [kind for some, n in kinds for kind in some * n],
        "window_size": c.window,
        **dict.fromkeys(("attention_dropout", "embed_dropout", "resid_dropout", "classifier_dropout"), 0.0),
    }


def write_model(
    folder: str,
    config: GPTConfig,
    tensors: Mapping[str, np.ndarray],
    dtype: str,
    tokenizer: Tokenizer | None,
) -> None:
    """Writes config.json, model.safetensors and generation_config.json."""
    eot = tokenizer.eot if tokenizer else -1
    check_hf(config, tensors)
    state = neo_state if config.banded else gpt2_state
    write_json(folder, "config.json", config_json(config, dtype, eot))
    path = os.path.join(folder, "model.safetensors")
    write_safetensors(path, state(config, tensors), state(config, tensors), dtype)
    write_json(folder, "generation_config.json", generation_config(config, tokenizer))


def generation_config(config: GPTConfig, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Settings that make transformers write as our writer does: texts end at EOT, and no id without a piece is drawn."""
    said: dict[str, Any] = {}
    if config.max_seq_len <= 2 * PIPELINE_TOKENS:  # else a pipeline would overrun the context and fail
        said["max_length"] = config.max_seq_len
    if tokenizer and tokenizer.eot >= 0:
        said.update(dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eot))
    if tokenizer and tokenizer.vocab_size < config.vocab_size:
        said["suppress_tokens"] = list(range(tokenizer.vocab_size, config.vocab_size))
    return said


# ---------------------------------------------------------------------------------------------------------
# the tokenizer


def write_tokenizer(
    folder: str, tokenizer: Tokenizer, max_seq_len: int, form: Template | None = None
) -> list[str]:
    """Writes our tokenizer, and Hugging Face's if it says the same; returns sentences on what it could not say.

    form: the template of a fine-tuned model, which becomes a chat_template.
    """
    tokenizer.save(os.path.join(folder, "tokenizer.bin"))
    try:
        made = hf_tokenizer(tokenizer)
        chat = chat_template(form, tokenizer) if form else ""
        if PART in chat:
            cut_at_marks(made)
        check_same(made, tokenizer)
        begin_with_eot(made, tokenizer)
        write_text(folder, "tokenizer.json", made.to_str(pretty=True))
        if tokenizer.kind == "gpt2":
            write_bpe(folder, tokenizer)
    except (Unexpressible, MissingDependency) as reason:
        what = "tokenizer.json and the chat_template are" if form else "tokenizer.json is"
        return [f"{what} left out ({reason}): encode with pyllmc and the tokenizer.bin beside"]
    special = ("bos_token", "eos_token", "pad_token")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_seq_len,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": tokenizer.eot >= 0,
        **{name: eot_text(tokenizer) for name in special if tokenizer.eot >= 0},
        **({"chat_template": chat} if chat else {}),
    }
    write_json(folder, "tokenizer_config.json", settings)
    return []


def begin_with_eot(made: Any, tokenizer: Tokenizer) -> None:
    """Makes every text begin with EOT, as the documents of the training data and the prompts of our writer do.

    So a pipeline of transformers continues a text as pyllmc.sample does, and even an empty one has a token to start from.
    """
    if tokenizer.eot < 0:
        return
    eot = eot_text(tokenizer)
    made.post_processor = need("tokenizers", WHY).processors.TemplateProcessing(
        single=[eot, "$A"], pair=[eot, "$A", eot, "$B:1"], special_tokens=[(eot, tokenizer.eot)]
    )


def write_bpe(folder: str, tokenizer: Tokenizer) -> None:
    """Writes vocab.json and merges.txt, which older programs read."""
    merges, whole = merges_of(tokenizer)
    if whole or tokenizer.added:
        return  # only tokenizer.json can say that some pieces are never merged, or come before the merges
    write_json(folder, "vocab.json", {name: i for i, name in enumerate(names(tokenizer))})
    lines = ["#version: 0.2", *(f"{printable(a)} {printable(b)}" for a, b in merges)]
    write_text(folder, "merges.txt", "\n".join(lines) + "\n")


def check_same(made: Any, tokenizer: Tokenizer) -> None:
    """Raises Unexpressible unless the two agree on a text of all pieces, both ways."""
    text = tokenizer.decode(i for i in range(tokenizer.vocab_size) if i != tokenizer.eot).replace(
        "\ufffd", ""
    )
    try:
        ours = tokenizer.encode(text)
    except MissingDependency:
        return  # without tiktoken we cannot encode ourselves
    theirs = made.encode(text).ids
    if ours != theirs or made.decode(theirs, skip_special_tokens=False) != text:
        raise Unexpressible("it would encode or decode other than ours")
