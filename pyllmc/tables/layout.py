"""The table of tensors, csrc/tensors.def, read as text: this needs no compiled code and no package."""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from pyllmc.base.checkout import PACKAGE
from pyllmc.base.checks import as_flag, as_int, as_text
from pyllmc.base.errors import InvalidArgument

VOCAB_MULTIPLE = 128  # V is padded to a multiple of this, so that every row of the logits is aligned
NO_VOCABULARY = "model '{}' takes its vocabulary from the data: give vocab_size"
MOST_PATTERN = 127  # letters of a pattern
MAX_SIZE = 1 << 24  # no dimension needs more, and products of sizes then fit 64 bits


def definition(name: str) -> Path:
    """The path of tensors.def or another table: in csrc/ of a checkout, or beside an installed library."""
    for folder in (PACKAGE.parent / "csrc", PACKAGE / "lib"):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"csrc/{name} is missing: run pyllmc from a checkout, or reinstall the package")


TABLES = (
    "kernels.h",
    "pyllmc.h",
    "frontends.h",
    "tensors.def",
    "options.def",
    "models.def",
    "devices.def",
)  # the same order as in the Makefile
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def tables_cksum() -> str:
    """The checksum of POSIX `cat TABLES | cksum`. A library built from these carries it as llmc_headers()."""
    data = b"".join(definition(name).read_bytes() for name in TABLES)
    size = len(data).to_bytes(8, "little").rstrip(b"\0")
    # cksum's CRC is zlib's CRC-32 with every bit order reversed, and with a register that starts at 0
    crc = zlib.crc32((data + size).translate(REVERSED_BITS), 0xFFFFFFFF)
    return str(int(f"{crc:032b}"[::-1], 2))


def table_lines(name: str) -> list[str]:
    """The rows of a table, without comments and preprocessor lines."""
    code = re.sub(r"/\*.*?\*/", "", definition(name).read_text(encoding="utf-8"), flags=re.S)
    return [line for line in map(str.strip, code.splitlines()) if line and not line.startswith("#")]


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT-2. window: 0 for dense attention, w if banded layers see the last w positions only.
    pattern: which layers are dense, "D", and which banded, "L", repeated over the layers; with a window it is "DL" unless
    it is given. It is kept as short as it can be said.
    untied: the logits are made by a matrix of their own, lm_head.weight, as in minGPT; else by the embedding.

    Raises InvalidArgument, a ValueError, for impossible sizes.
    """

    __module__ = "pyllmc"  # pickle writes this name
    vocab_size: int  # V
    max_seq_len: int  # maxT
    n_layer: int  # L
    n_head: int  # NH
    n_embd: int  # C
    window: int = 0
    untied: bool = False
    pattern: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "untied", as_flag("untied", self.untied))
        for name in (field.name for field in fields(self) if field.type == "int"):
            value = getattr(self, name)
            if isinstance(value, bool):
                raise InvalidArgument(f"{name}={value!r} is not a whole number")
            value = as_int(name, value, 64)
            if name != "window" and not 1 <= value <= MAX_SIZE:
                raise InvalidArgument(f"{name}={value} is not in 1..{MAX_SIZE}")
        if self.n_embd % self.n_head:
            raise InvalidArgument(
                f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}: "
                "every head needs the same size"
            )
        rows = (2 if self.untied else 1) * self.vocab_size + self.max_seq_len
        params = 12.0 * self.n_layer * self.n_embd**2 + rows * self.n_embd
        if params >= 1e14:
            raise InvalidArgument(
                f"n_layer={self.n_layer} n_embd={self.n_embd} make {params:.1e} parameters: "
                "more than any machine holds"
            )
        if not 0 <= self.window <= MAX_SIZE:
            raise InvalidArgument(
                f"window={self.window} is not in 0..{MAX_SIZE}: 0 means dense attention, w > 0 the last w positions"
            )
        object.__setattr__(self, "pattern", self._pattern())

    def _usual_pattern(self) -> str:
        """GPT-3's alternation; "" without a window."""
        return "DL"[: self.n_layer] if self.window else ""

    def _pattern(self) -> str:
        """The checked pattern, as short as it can be said."""
        text, L = as_text("pattern", self.pattern), self.n_layer
        text = text or self._usual_pattern()
        if text and not self.window:
            raise InvalidArgument(f"pattern={text} without a window: window=w is what its layers L see")
        for letter in text:
            if letter not in "DL":
                raise InvalidArgument(
                    f"pattern={text} has the letter '{letter}': D is a dense layer, L one that sees the window"
                )
        if len(text) > L:
            raise InvalidArgument(
                f"pattern={text} has {len(text)} letters, but n_layer={L}: give at most one letter a layer"
            )
        whole = (text * (L // max(len(text), 1) + 1))[:L]
        repeated = (text[:n] for n in range(1, len(text)) if whole[n:] == whole[:-n])
        text = next(repeated, text)
        if len(text) > MOST_PATTERN:
            raise InvalidArgument(
                f"pattern={text[:20]}... has {len(text)} letters: {MOST_PATTERN} are possible"
            )
        return text

    @property
    def padded_vocab_size(self) -> int:
        """Vp: V rounded up to a multiple of VOCAB_MULTIPLE."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def window_of(self, layer: int) -> int:
        """The number of positions that a layer sees; 0: all."""
        layer = as_int("layer", layer, 64)
        return self.window if self.window and self.pattern[layer % len(self.pattern)] == "L" else 0

    @property
    def banded(self) -> bool:
        """True if some layer sees less than all positions."""
        return 0 < self.window < self.max_seq_len and "L" in self.pattern

    @property
    def bands(self) -> str:
        """The layers that see the window, in words."""
        return "odd layers" if self.alternates else f"the layers L of {self.pattern}"

    @property
    def alternates(self) -> bool:
        """True if the odd layers see the window, if there is one: llm.c's header, with our window in it, says no other."""
        return self.pattern == self._usual_pattern()


def _known_sizes() -> dict[str, tuple[int, ...]]:
    """Descriptor -> (L, NH, C, maxT, V), read from csrc/models.def. V = 0: the data decide."""
    text = definition("models.def").read_text(encoding="utf-8")
    rows = re.findall(r'^MODEL\("([\w:-]+)",([\d, ]+)\)$', text, re.M)
    return {name: tuple(map(int, sizes.split(","))) for name, sizes in rows}


def is_size(descriptor: str) -> bool:
    """True if the descriptor names sizes. A model made from sizes has fresh weights."""
    descriptor = as_text("descriptor", descriptor)
    return not {descriptor, f"gpt2:{descriptor}"}.isdisjoint(_known_sizes())


def config_of(descriptor: str, vocab_size: int = 0, fallback: int = 0) -> GPTConfig:
    """The sizes of "d12", "gpt2:d48", "gpt3:c768", "gpt-nano" ...

    vocab_size: replaces the descriptor's own; fallback: used if it has none. Raises ValueError.
    """
    known, vocab_size = _known_sizes(), as_int("vocab_size", vocab_size, 64)
    name = as_text("descriptor", descriptor)
    name = descriptor if descriptor in known else f"gpt2:{descriptor}"
    if name not in known:
        raise InvalidArgument(
            f"model '{descriptor:.80}' is neither a file nor a known size: try {', '.join(known)}"
        )
    L, NH, C, maxT, V = known[name]
    V = vocab_size or V or as_int("fallback", fallback, 64)
    if not V:
        raise InvalidArgument(NO_VOCABULARY.format(descriptor))
    return GPTConfig(V, maxT, L, NH, C)


class Row(NamedTuple):
    """One tensor. shape: the shape of one layer; torch_name: holds %d for the layer if the tensor is per_layer."""

    kind: str  # PARAM, LAYER_PARAM, ADAPTER, ACT, LAYER_ACT, CACHE, RING, CHUNK_ACT, OVER_ACT or GRAD_ACT
    name: str
    shape: tuple[int, ...]
    torch_name: str
    init: str  # NORMAL, RESIDUAL, ONE or ZERO; "" for activations
    decay: bool
    per_layer: bool
    type: str  # F float, I int32, or X the element that the library stores (float on the CPU)
    level: int  # the tensor is not kept from this --recompute on; 0: recompute does not matter
    other: str  # the tensor whose buffer this one shares if neither is kept; "" for none
    padded: bool = False  # a parameter of V rows in files, which memory pads to Vp

    @property
    def is_param(self) -> bool:
        return self.kind.endswith("PARAM")

    @property
    def is_act(self) -> bool:
        """True for what a pass computes. An ADAPTER is neither that nor a parameter of model files."""
        return not self.is_param and self.kind != "ADAPTER"

    @property
    def size(self) -> int:
        """The number of elements of one layer."""
        return math.prod(self.shape)

    def torch_name_of(self, layer: int) -> str:
        return self.torch_name % layer if self.per_layer else self.torch_name


PARAM = re.compile(r'(?P<kind>PARAM|LAYER_PARAM|ADAPTER)\((?P<name>\w+), \((?P<shape>[^()]+)\), '
                   r'"(?P<torch_name>[^"]+)", (?P<init>\w+), (?P<decay>[01])\)')  # fmt: skip
ACT = re.compile(
    r"(?P<kind>\w*ACT|CACHE|RING)\((?P<name>\w+), (?P<type>[FIX]), \((?P<shape>[^()]+)\)(, ((?P<level>\d)|(?P<other>\w+)))?\)"
)


@functools.cache
def _parsed() -> tuple[dict[str, str], ...]:
    """The rows of the table as text fields."""
    rows = []
    for line in table_lines("tensors.def"):
        found = PARAM.fullmatch(line) or ACT.fullmatch(line)
        if not found:
            raise ValueError(f"tensors.def: this row is neither a parameter nor an activation: {line}")
        rows.append(found.groupdict(""))
    return tuple(rows)


def _shape(text: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The numbers of a shape's text: "B, T, 3*C" -> (4, 64, 2304)."""
    return tuple(
        math.prod(int(f) if f.isdigit() else sizes[f] for f in (g.strip() for g in dim.split("*")))
        for dim in text.split(",")
    )


def table(config: GPTConfig, B: int = 1, T: int = 1, lora_rank: int = 0) -> list[Row]:
    """The tensors of a model with room for B sequences of T tokens. Parameters are in the order of memory and files.

    Only tensors that the model has in training: one of 0 rows is not there, and without LoRA none of its.
    """
    sizes = {"B": B, "T": T, "C": config.n_embd, "NH": config.n_head, "L": config.n_layer, "r": lora_rank}
    sizes.update(V=config.vocab_size, Vp=config.padded_vocab_size, maxT=config.max_seq_len)
    sizes["Vh"] = sizes["Vp"] if config.untied else 0
    sizes.update(S=B, R=0, Tr=0)  # rings serve generation alone
    levels = {row["name"]: int(row.get("level") or 0) for row in _parsed()}
    rows = [
        Row(
            kind=row["kind"],
            name=row["name"],
            shape=_shape(row["shape"], sizes),
            torch_name=row.get("torch_name", ""),
            init=row.get("init", ""),
            decay=row.get("decay") == "1",
            per_layer=row["kind"].startswith("LAYER_") or row["kind"] in ("CACHE", "RING", "ADAPTER"),
            type=row.get("type", "F"),
            level=0 if row["kind"] == "CHUNK_ACT" else levels[row.get("other") or row["name"]],
            other=row.get("other", ""),
            padded=row["shape"].startswith("V"),
        )
        for row in _parsed()
    ]
    return [row for row in rows if row.size]


def parameters(config: GPTConfig) -> Iterator[tuple[Row, int]]:
    """Yield (row, layer) of every parameter in the order of files: layer after layer inside each tensor."""
    for row in table(config):
        if row.is_param:
            yield from ((row, layer) for layer in range(config.n_layer if row.per_layer else 1))


def in_order(rows: Iterable[Row], n_layer: int) -> Iterator[tuple[Row, int]]:
    """Yield (row, layer) in the order of computation: neighbouring rows that are per layer go layer by layer."""
    pending: list[Row] = []
    for row in [*rows, None]:
        if row is not None and row.per_layer:
            pending.append(row)
            continue
        yield from ((held, layer) for layer in range(n_layer) for held in pending)
        pending = []
        if row is not None:
            yield row, 0
