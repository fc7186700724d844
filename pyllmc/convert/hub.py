"""Models on the Hugging Face hub: their names, and how they are fetched.

hub:NAME is always a model of the hub; owner/name is one, too, unless a path begins so. A bare gpt2 is a size, as d12 is, and
gives fresh weights: OpenAI's are hub:gpt2.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pyllmc.base.checks import as_path, as_text
from pyllmc.base.errors import InvalidArgument, SystemFailure, need
from pyllmc.text import template

PREFIX = "hub:"
OPENAI = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # names on the hub that belong to openai-community
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
# the documentation's own folders: a missing path that begins so is a mistyped path, not a name of the hub
FOLDERS = ("runs", "data", "models", ".", "..")
WITH_THE_WEIGHTS = [
    "config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    template.FILE,
]


def repository(name: str) -> str:
    """The repository of the hub that a name stands for, "" for none. Raises InvalidArgument if no name follows hub:."""
    name = as_path("name", name)
    if name.startswith(PREFIX):
        rest = name[len(PREFIX) :]
        if not NAME.fullmatch(rest):
            raise InvalidArgument(f"{name} is no name of the hub: write hub:gpt2 or hub:owner/name")
        return rest if "/" in rest else f"openai-community/{rest}" if rest in OPENAI else rest
    owner, slash, _ = name.partition("/")
    is_name = bool(slash and NAME.fullmatch(name)) and owner not in FOLDERS and not os.path.exists(owner)
    return name if is_name and not os.path.exists(name) else ""


def check_revision(name: str, revision: str | None) -> None:
    """Raises InvalidArgument if a revision is asked of something that is not of the hub."""
    revision = None if revision is None else as_text("revision", revision)
    if revision is not None and not repository(name):
        raise InvalidArgument(
            f"{name} is not of the hub, whose models a revision chooses among: leave the revision out"
        )


def fetch(name: str, revision: str | None = None) -> Path:
    """Downloads a model of the hub and its tokenizer, once; returns the folder. Pickles are taken only if need be."""
    name = as_path("name", name)
    revision = None if revision is None else as_text("revision", revision)
    hub = need("huggingface_hub", f"fetching {name} from the hub, as no such path is here,")
    try:
        for kind in ("model*.safetensors", "pytorch_model*.bin"):
            patterns = [
                WITH_THE_WEIGHTS[0],
                kind,
                f"{kind.replace('*', '')}.index.json",
                *WITH_THE_WEIGHTS[1:],
            ]
            found = hub.snapshot_download(repository(name), revision=revision, allow_patterns=patterns)
            if any(Path(found).glob(kind)):
                break
        return Path(found)
    except Exception as error:  # the hub's errors have no common base
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise SystemFailure(
            f"{name} {'is no path here, nor can it' if name[: len(PREFIX)] != PREFIX else 'cannot'} be fetched from the hub "
            f"({reason}): check the name and the network, or give the path of a folder that has it"
        ) from None
