"""Chooses the reader of weights by their content, not by their name. Nothing heavy is loaded before they are opened."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyllmc.base.checks import as_path
from pyllmc.base.errors import BadFile, InvalidArgument, SystemFailure
from pyllmc.base.files import check_regular, explain_os_errors, reading
from pyllmc.convert import hub
from pyllmc.convert.hf_config import read_json
from pyllmc.convert.native import is_bundle
from pyllmc.engine.checkpoint import is_run

if TYPE_CHECKING:
    from pyllmc.convert.recipes import Weights


class Kind(NamedTuple):
    """A kind of weights: the module and function that read it, and its name for people ("": the engine tells)."""

    module: str
    opener: str
    words: str


ENGINE = Kind("native", "open_file", "")
FOLDER = Kind("huggingface", "open_folder", "Hugging Face folder")
ONE_FILE = Kind("huggingface", "open_file", "file of a Hugging Face folder")
ADAPTER = Kind("peft_adapter", "open_folder", "PEFT adapter, merged into its base")
PYTORCH = Kind("pytorch", "open_file", "PyTorch file")


class Found(NamedTuple):
    """Weights that were found."""

    kind: Kind  # their reader
    path: Path  # as the caller named it, or the folder that was fetched
    where: Path  # the path to open, which may be a file in that folder
    said: dict[str, Any] | None = None  # the content of config.json, if the kind was told by it

    @property
    def is_engines(self) -> bool:
        """True if the C engine reads them itself."""
        return self.kind == ENGINE

    def open(self, n_head: int = 0) -> Weights:
        """Opens the weights; only their numbers are not checked yet. n_head: for a minGPT file, which does not tell it."""
        opener = getattr(import_module(f"pyllmc.convert.{self.kind.module}"), self.kind.opener)
        if self.is_engines:
            weights: Weights = opener(self.where, find)
        elif self.kind == PYTORCH:
            weights = opener(self.where, n_head, self.said)
        else:
            weights = opener(self.where, self.said)
        if n_head and weights.config.n_head != n_head:
            raise InvalidArgument(
                f"n_head={n_head}, but {self.where} tells {weights.config.n_head}: leave n_head out"
            )
        return weights


OTHERS = {b"GGUF": "GGUF, which is written here, not read", b"\x89HDF": "HDF5; save it as safetensors"}
IN_FOLDER = ("ckpt.pt", "model.pt")  # the names that nanoGPT and minGPT give theirs
WANTED = "config.json with *.safetensors or pytorch_model*.bin, ckpt.pt, model.pt, model.ckpt.*, best.ckpt, last.ckpt"


def _kind_of_folder(path: Path) -> Found:
    if is_run(path) or is_bundle(path):
        return Found(ENGINE, path, path)
    config = path / "config.json"
    if (path / "adapter_config.json").exists() and not config.exists():
        return Found(ADAPTER, path, path)
    said = read_json(config) if config.exists() else None
    if said is not None and "model_type" in said:
        return Found(FOLDER, path, path, said)
    for name in IN_FOLDER:
        if (path / name).exists():
            return _kind_of_file(path / name)._replace(said=said)
    if said is not None:
        return Found(FOLDER, path, path, said)
    if is_run(aside := path / "replaced"):
        raise SystemFailure(
            f"{path} holds no weights yet: the run that was to be replaced lies in {aside}: name that, or put it back with "
            f"--resume={path}"
        )
    raise SystemFailure(f"{path} is a folder without weights: expected {WANTED}")


def _kind_of_file(path: Path) -> Found:
    check_regular(path)
    with reading(str(path)), open(path, "rb") as file:
        head = file.read(9)
    if other := OTHERS.get(head[:4]):
        raise BadFile(f"{path} is {other}")
    if path.suffix == ".safetensors" or head[8:] == b"{":
        return Found(ONE_FILE, path, path)
    if head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        beside = path.name.startswith("pytorch_model") and (path.parent / "config.json").exists()
        return Found(ONE_FILE if beside else PYTORCH, path, path)
    return Found(ENGINE, path, path)  # its error says what else the file may be


def find(path: str | os.PathLike[str], revision: str | None = None) -> Found:
    """Finds the weights at a path or under a name of the hub. Raises BadFile or SystemFailure if there are none,
    InvalidArgument for a revision of something that is not of the hub."""
    name = as_path("path", path)
    hub.check_revision(name, revision)
    local = Path(name)
    with explain_os_errors("read", name, "check the path and its permissions"):
        if local.is_dir():
            return _kind_of_folder(local)._replace(path=local)
        if is_bundle(local):
            return Found(ENGINE, local, local)
        if local.exists():
            return _kind_of_file(local)
    if hub.repository(name):
        folder = hub.fetch(name, revision)
        return Found(FOLDER, folder, folder)
    if name in hub.OPENAI:
        raise SystemFailure(f"{name} is a size, and there is no such file: OpenAI's weights are hub:{name}")
    raise SystemFailure(f"{name} does not exist: give a file or folder of weights, or hub:owner/name")
