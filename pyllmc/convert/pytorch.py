"""Files of torch.save: nanoGPT's checkpoints, minGPT's state dicts, new and old. Pickles are never executed."""

from __future__ import annotations

import functools
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pyllmc.base.errors import BadFile, need
from pyllmc.base.files import check_regular, reading
from pyllmc.convert.hf_config import read_json
from pyllmc.convert.recipes import (
    HEAD,
    MATRICES,
    Recipe,
    Tensor,
    Weights,
    build,
    check,
    check_layers,
    config_said,
    first_rows,
    make_config,
    plain,
    refuse_llama,
    renamed,
    settle_head,
    targets,
    turned,
    zeros,
)
from pyllmc.tables import layout
from pyllmc.tables.layout import GPTConfig
from pyllmc.text.bpe import GPT2_VOCAB, NANOGPT_VOCAB

ZIP_END = 22  # bytes of an archive's last record
EXACT_GELU = "its maker computes GELU exactly, this engine by GPT-2's tanh formula: logits differ slightly"


class WeightsWarning(UserWarning):
    """A warning about weights that are read all the same."""


def read(path: Path) -> Any:
    """Reads a file of tensors, numbers, texts and containers of them; refuses anything else."""
    torch = need("torch", f"reading {path.name}, a pickle,")
    check_regular(path)
    check_zip(path)
    warnings.warn(
        f"{path} is a pickle, read with PyTorch's restricted reader, which runs none of its code; "
        "safetensors are safer",
        WeightsWarning,
        stacklevel=2,
    )
    try:
        with warnings.catch_warnings():  # torch's warnings about old pickles are for its developers
            warnings.simplefilter("ignore")
            # read, not mapped, because a mapped file that shrinks would kill the process (SIGBUS)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # torch raises errors of many kinds
        raise explained(path, error) from None


def check_zip(path: Path) -> None:
    """Checks what torch does not: each part's checksum, and that nothing follows. Old pickles, no archives, have neither."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with reading(str(path)), zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
            bad = f"{bad} does not agree with its checksum" if bad else ""
            with open(path, "rb") as file:
                file.seek(-len(archive.comment) - ZIP_END, os.SEEK_END)
                bad = bad or ("" if file.read(4) == b"PK\5\6" else "bytes follow its end")
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, RuntimeError, zlib.error) as error:
        bad = f"{error}"
    if bad:
        raise BadFile(f"{path} is damaged ({bad}): copy or save it again")


def explained(path: Path, error: Exception) -> BadFile:
    """Puts torch's many words into one line."""
    words = " ".join(str(error).split())
    if code := re.search(r"GLOBAL (\S+)", words):
        return BadFile(
            f"{path} holds code or an object of its own ({code[1]}), which was not run: save the state dict alone"
        )
    inner = re.search(r"WeightsUnpickler error: (.{1,100}?)(?: Check the documentation|$)", words)
    reason = inner[1] if inner else words[:100] or type(error).__name__
    return BadFile(f"{path} is not what torch.save writes, or damaged ({reason}): copy or save it again")


def as_array(x: Any) -> Any:
    """A copy in float32, so that nothing refers to the file's own memory."""
    return x.detach().float().numpy().copy()


def tensors(path: Path, state: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, to be read later."""
    import torch

    if not isinstance(state, Mapping) or not state:
        raise BadFile(
            f"{path} holds a {type(state).__name__}, expected a dict of tensors: save the state dict"
        )
    found = {}
    for name, x in state.items():
        if not isinstance(name, str) or not isinstance(x, torch.Tensor) or x.layout != torch.strided:
            raise BadFile(
                f"{path}: {name!r} is a {type(x).__name__}, no plain tensor: save the state dict alone"
            )
        dtype = str(x.dtype).partition(".")[2]
        found[name] = Tensor(tuple(x.shape), dtype, functools.partial(as_array, x))
    return found


def stripped(name: str) -> str:
    """A name without the prefixes of torch.compile and DistributedDataParallel; "" for a causal mask."""
    name = re.sub(r"^(_orig_mod\.|module\.)+", "", name)
    return "" if re.search(r"\.attn\.(bias|masked_bias|mask)$", name) else name


def finish(path: Path, what: str, recipes: dict[str, Recipe], config: GPTConfig, state: dict[str, Tensor],
           notes: Iterable[str] = (), head: str = HEAD) -> Weights:  # fmt: skip
    check(str(path), recipes, state, head)
    config = settle_head(config, recipes, state, head)
    for note in notes:
        warnings.warn(f"{path}: {note}", WeightsWarning, stacklevel=2)
    return Weights(what, config, build(str(path), recipes, state), tuple(notes))


# ---- nanoGPT: {"model": state dict, "model_args": {...}, ...} ----


def nanogpt_recipe(name: str, shape: tuple[int, ...], V: int, bias: bool) -> Recipe:
    if name.endswith(".bias") and not bias:
        return zeros(shape)
    return first_rows(name, shape, V) if name == "transformer.wte.weight" else plain(name, shape)


def open_nanogpt(path: Path, state: dict[str, Tensor], said: Mapping[str, Any]) -> Weights:
    """Opens nanoGPT's checkpoint. Missing biases become 0.

    A vocabulary of 50304 is cut to GPT-2's 50257, because the ids past it mean nothing.
    """
    refuse_llama(str(path), state)
    config = config_said(f"{path}: model_args", said, "nanoGPT's", max_seq_len="block_size")
    notes, V = [EXACT_GELU], config.vocab_size
    if V == NANOGPT_VOCAB:
        config = make_config(str(path), {**vars(config), "vocab_size": GPT2_VOCAB})
        notes.append(
            f"the vocabulary of {V} is GPT-2's {GPT2_VOCAB} rounded up: the ids past it are left out"
        )
    check_layers(str(path), config, state)
    bias = said.get("bias", True)
    recipes = {name: nanogpt_recipe(name, shape, V, bool(bias)) for name, shape in targets(config)}
    return finish(
        path, f"nanoGPT checkpoint{'' if bias else ' without biases'}", recipes, config, state, notes
    )


# ---- minGPT: a state dict alone, which does not tell the heads ----


def heads_said(path: Path, said: dict[str, Any] | None) -> Any:
    """n_head from the config.json that minGPT writes beside its model, or from the model_type named there; 0 if unknown.

    said: the content of that file if it was read already.
    """
    beside = path.parent / "config.json"
    if said is None and not beside.exists():
        return 0
    said = read_json(beside) if said is None else said
    said = said["model"] if isinstance(said.get("model"), dict) else said
    if said.get("n_head"):
        return said["n_head"]
    try:
        return layout.config_of(str(said.get("model_type")), fallback=1).n_head
    except ValueError:
        return 0


def heads_of(path: Path, L: int, C: int, n_head: int) -> Any:
    """The number of heads, as the caller or the file's folder says. It is never guessed, because it changes the model."""
    if n_head:
        return n_head
    raise BadFile(
        f"{path} does not tell the number of heads of its {L} layers of {C} channels: put a config.json with "
        f'{{"n_head": ...}} beside it, or convert it once: python -m pyllmc.convert {path} NEW --n_head=N'
    )


def layer_count(names: Iterable[str], pattern: str) -> int:
    """The number of layers that are named without a gap."""
    layers = {int(found[1]) for name in names if (found := re.match(pattern, name))}
    return next(n for n in range(len(layers) + 1) if n not in layers)


def sizes_of(
    path: Path, n_head: int, state: Mapping[str, Tensor], wte: str, wpe: str, layers: str
) -> GPTConfig:
    """Tells the sizes from the shapes of the two embeddings and the names of the layers."""
    refuse_llama(str(path), state)
    for name in (wte, wpe):
        if name not in state:
            raise BadFile(f"{path} lacks {name}: it is no GPT-2 that is known here (nanoGPT, minGPT)")
    V, T = state[wte].shape[:-1], state[wpe].shape[:-1]
    if len(V) != 1 or len(T) not in (1, 2):
        raise BadFile(f"{path}: {wte} has the shape {state[wte].shape}, expected (V, C)")
    L, C = layer_count(state, layers), state[wte].shape[-1]
    sizes = {"vocab_size": V[0], "max_seq_len": T[-1], "n_layer": L, "n_embd": C}
    return make_config(str(path), {**sizes, "n_head": heads_of(path, L, C, n_head)})


def open_mingpt(path: Path, state: dict[str, Tensor], n_head: int) -> Weights:
    """Opens a state dict of nn.Linear, as minGPT saves it, or of Conv1D, as GPT-2's first port did."""
    state = renamed(
        str(path), state, lambda n: n if n.startswith(("transformer.", "lm_head.")) else f"transformer.{n}"
    )
    config = sizes_of(
        path, n_head, state, "transformer.wte.weight", "transformer.wpe.weight", r"transformer\.h\.(\d+)\."
    )
    C, first = config.n_embd, state.get("transformer.h.0.attn.c_attn.weight")
    conv1d = first is not None and first.shape == (C, 3 * C)
    recipes = {
        name: (turned if conv1d and name.endswith(MATRICES) else plain)(name, shape)
        for name, shape in targets(config)
    }
    return finish(
        path, f"state dict of GPT-2 ({'Conv1D' if conv1d else 'nn.Linear'})", recipes, config, state
    )


OLD_NAMES = {  # our name: minGPT's in 2020
    "ln_1": "ln1",
    "ln_2": "ln2",
    "attn.c_proj": "attn.proj",
    "mlp.c_fc": "mlp.0",
    "mlp.c_proj": "mlp.2",
}


def old_recipe(name: str, shape: tuple[int, ...]) -> Recipe:
    import numpy as np

    if name == "transformer.wpe.weight":
        return Recipe((("pos_emb", (1, *shape)),), lambda x: x[0])
    if name == "transformer.wte.weight":
        return plain("tok_emb.weight", shape)
    old = re.sub(r"^transformer\.(h\.(?=\d))?", lambda found: "blocks." if found[1] else "", name)
    if ".c_attn." in old:
        stem, part = old.split("c_attn")
        each = (shape[0] // 3, *shape[1:])
        sources = tuple((f"{stem}{which}{part}", each) for which in ("query", "key", "value"))
        return Recipe(sources, lambda q, k, v: np.concatenate([q, k, v]))
    for new, its in OLD_NAMES.items():
        old = old.replace(f".{new}.", f".{its}.")
    return plain(old, shape)


def open_old_mingpt(path: Path, state: dict[str, Tensor], n_head: int) -> Weights:
    config = sizes_of(path, n_head, state, "tok_emb.weight", "pos_emb", r"blocks\.(\d+)\.")
    recipes = {name: old_recipe(name, shape) for name, shape in targets(config)}
    return finish(path, "state dict of minGPT in 2020", recipes, config, state, (EXACT_GELU,), "head.weight")


def open_file(path: Path, n_head: int = 0, said: dict[str, Any] | None = None) -> Weights:
    """Opens a file. n_head: for a state dict without a config.json; said: the content of config.json if it was read."""
    found = read(path)
    args = found.get("model_args") if isinstance(found, Mapping) else None
    state = found["model"] if isinstance(args, Mapping) and "model" in found else found
    opener: Callable[..., Weights] = open_mingpt
    named = renamed(str(path), tensors(path, state), stripped)
    if isinstance(args, Mapping):
        return open_nanogpt(path, named, args)
    if "tok_emb.weight" in named:
        opener = open_old_mingpt
    return opener(path, named, heads_said(path, said) or n_head)
