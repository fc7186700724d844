"""Hugging Face's folders, old and new: config.json with *.safetensors or pytorch_model*.bin; GPT-2 and GPT-Neo.

The docs of transformers (GPT2Config, GPTNeoConfig) and of safetensors describe the formats, and the index.json of sharded
checkpoints.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pyllmc.base.errors import BadFile, SystemFailure, need
from pyllmc.base.files import check_regular, reading
from pyllmc.convert import gptneo, pytorch
from pyllmc.convert.hf_config import gpt2_config, read_json
from pyllmc.convert.recipes import (
    HEAD,
    MATRICES,
    Recipe,
    Tensor,
    Weights,
    build,
    check,
    check_layers,
    plain,
    renamed,
    settle_head,
    targets,
    turned,
)
from pyllmc.tables.layout import GPTConfig

BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")  # causal masks
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def gpt2_recipes(config: GPTConfig) -> dict[str, Recipe]:
    return {
        name: (turned if name.endswith(MATRICES) else plain)(name, shape) for name, shape in targets(config)
    }


Kind = tuple[Callable[[str, Any], GPTConfig], Callable[[GPTConfig], dict[str, Recipe]], str]
KINDS: dict[str, Kind] = {
    "gpt2": (gpt2_config, gpt2_recipes, "GPT-2"),
    "gpt_neo": (gptneo.config, gptneo.recipes, "GPT-Neo"),
}


def kind_of(config: Mapping[str, Any], origin: str) -> Kind:
    kind = config.get("model_type", "gpt2")
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadFile(f"{origin}: it is of the kind {kind}, not a GPT-2; {' and '.join(KINDS)} are read")
    return KINDS[kind]


# ---- the tensors ----


def read_tensor(path: Path, name: str, dtype: str) -> Any:
    """Reads one tensor at the place that the header gives, which safetensors has checked.

    It does not use safetensors' mapping, because a mapped file that shrinks would kill the process (SIGBUS).
    """
    import numpy as np

    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(size))[name]["data_offsets"]
        file.seek(8 + size + begin)
        raw = file.read(end - begin)
    if len(raw) < end - begin:
        raise BadFile(f"{path} ends within {name}: it was changed while it was read; copy it again")
    if dtype == "BF16":  # numpy has no bfloat16
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(raw, np.dtype(DTYPES[dtype]).newbyteorder("<")).astype(np.float32)


def _opened(path: Path) -> Any:
    library = need("safetensors", f"reading {path.name}")
    check_regular(path)
    try:
        with reading(str(path)):
            return library.safe_open(str(path), framework="numpy")
    except library.SafetensorError as error:
        raise BadFile(f"{path} is damaged ({error}): copy it again") from None


def read_metadata(path: Path) -> dict[str, str]:
    """What a file of safetensors says about itself."""
    return dict(_opened(path).metadata() or {})


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file; each is read when it is asked for."""
    import numpy as np

    opened = _opened(path)

    def read(name: str, dtype: str, shape: tuple[int, ...]) -> Any:
        with reading(str(path)), np.errstate(over="ignore"):
            return read_tensor(path, name, dtype).reshape(shape)

    found = {}
    for name in opened.keys():
        part = opened.get_slice(name)
        dtype, shape = part.get_dtype(), tuple(part.get_shape())
        found[name] = Tensor(shape, DTYPES.get(dtype, dtype), functools.partial(read, name, dtype, shape))
    return found


def read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return pytorch.tensors(path, pytorch.read(path))


def shards(index: Path) -> list[Path]:
    """The files that an index.json names."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise BadFile(f"{index} has no weight_map from tensors to files: copy it again")
    for name in sorted(set(files.values())):
        if Path(name).name != name:
            raise BadFile(f"{index} names the file {name!r}, which is not in its folder: copy it again")
        if not (index.parent / name).exists():
            raise SystemFailure(f"{index.parent / name} is missing, which {index.name} names: copy it too")
    return [index.parent / name for name in sorted(set(files.values()))]


def find_files(folder: Path) -> list[Path]:
    """Finds the weights of a folder: safetensors first, because they cannot hold code."""
    for whole, several in (
        ("model.safetensors", "*.safetensors"),
        ("pytorch_model.bin", "pytorch_model*.bin"),
    ):
        if (folder / f"{whole}.index.json").exists():
            return shards(folder / f"{whole}.index.json")
        if (folder / whole).exists():
            return [folder / whole]
        if found := sorted(folder.glob(several)):
            return found
    raise BadFile(f"{folder} has neither *.safetensors nor pytorch_model*.bin: download them too")


def rename(name: str) -> str:
    """Puts "transformer." before a name that lacks it, as in the model with a head; returns "" for a mask."""
    if name.endswith(BUFFERS):
        return ""
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


def open_files(folder: Path, files: list[Path], what: str, said: dict[str, Any] | None) -> Weights:
    """Opens weights in these files. said: the content of config.json if it was read already."""
    origin = str(folder / "config.json")
    said = read_json(folder / "config.json") if said is None else said
    config_of, recipes_of, kind = kind_of(said, origin)
    config = config_of(origin, said)
    state: dict[str, Tensor] = {}
    for file in files:
        part = read_file(file)
        if twice := state.keys() & part.keys():
            raise BadFile(f"{file} has {min(twice)}, which another file has too: copy them again")
        state.update(part)
    where = str(files[0] if len(files) == 1 else folder)
    state = renamed(where, state, rename)
    check_layers(where, config, state)
    recipes = recipes_of(config)
    check(where, recipes, state)
    tied = said.get("tie_word_embeddings", True)
    if not tied and HEAD not in state:
        raise BadFile(
            f"{where} lacks {HEAD}, and {origin} says that it is not the embedding: it is not whole"
        )
    config = settle_head(config, recipes, state)
    if tied and config.untied:
        raise BadFile(
            f"{where}: {HEAD} is not the embedding, but {origin} says so, and transformers then ignores it: "
            "set tie_word_embeddings to false there, or leave the tensor out"
        )
    return Weights(f"{what}, {kind}", config, build(where, recipes, state))


def open_folder(folder: Path, said: dict[str, Any] | None = None) -> Weights:
    if not (folder / "config.json").exists():
        raise BadFile(f"{folder} has no config.json: a folder saved by transformers is needed")
    return open_files(folder, find_files(folder), "Hugging Face folder", said)


def open_file(path: Path, said: dict[str, Any] | None = None) -> Weights:
    """Opens one file with its config.json beside it."""
    if not (path.parent / "config.json").exists():
        raise BadFile(f"{path}: config.json, which tells the sizes, is missing beside it: copy it too")
    return open_files(path.parent, [path], f"{path.suffix[1:]} file", said)
