"""Writes OpenAI's release of GPT-2 as TensorFlow would: PREFIX.data-00000-of-00001 and PREFIX.index, with right
checksums."""

from __future__ import annotations

import functools
import json
import struct
from pathlib import Path

import numpy as np

from pyllmc.tables.layout import GPTConfig

MAGIC = 0xDB4775248B80FB57
NAMES = {  # for each tensor of a layer: our name, TensorFlow's
    "attn.c_attn.bias": "attn/c_attn/b",
    "attn.c_attn.weight": "attn/c_attn/w",
    "attn.c_proj.bias": "attn/c_proj/b",
    "attn.c_proj.weight": "attn/c_proj/w",
    "ln_1.bias": "ln_1/b",
    "ln_1.weight": "ln_1/g",
    "ln_2.bias": "ln_2/b",
    "ln_2.weight": "ln_2/g",
    "mlp.c_fc.bias": "mlp/c_fc/b",
    "mlp.c_fc.weight": "mlp/c_fc/w",
    "mlp.c_proj.bias": "mlp/c_proj/b",
    "mlp.c_proj.weight": "mlp/c_proj/w",
}
OUTSIDE = {"ln_f.bias": "ln_f/b", "ln_f.weight": "ln_f/g", "wpe.weight": "wpe", "wte.weight": "wte"}


@functools.cache
def crc_table(polynomial: int) -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (polynomial if byte & 1 else 0)
        table.append(byte)
    return table


def crc(data: bytes, polynomial: int = 0x82F63B78) -> int:
    """One byte at a time: slow and plain."""
    table, value = crc_table(polynomial), 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF


def masked(value: int) -> int:
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def tensor_entry(shape: tuple[int, ...], offset: int, data: bytes, dtype: int = 1, shard: int = 0) -> bytes:
    """A BundleEntryProto; a proto leaves out values of 0."""
    dims = b"".join(field(2, field(1, n)) for n in shape)
    parts = [field(1, dtype), field(2, dims), shard and field(3, shard), offset and field(4, offset)]
    parts.append(field(5, len(data)) + varint(6 << 3 | 5) + struct.pack("<I", masked(crc(data))))
    return b"".join(part for part in parts if part)


def header_entry(shards: int = 1, endian: int = 0) -> bytes:
    return field(1, shards) + (field(2, endian) if endian else b"") + field(3, field(1, 1))


def block(entries: list[tuple[bytes, bytes]], restart_every: int = 16) -> bytes:
    """A block with shared prefixes and restarts, as in LevelDB."""
    out, restarts, last = b"", [], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % restart_every == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return out + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(entries: list[tuple[bytes, bytes]], per_block: int = 50) -> bytes:
    """A table: blocks, then an empty meta-index, the index and the footer."""
    out, handles = b"", []

    def put(content: bytes) -> bytes:
        nonlocal out
        handle = varint(len(out)) + varint(len(content))
        out += content + b"\0" + struct.pack("<I", masked(crc(content + b"\0")))
        return handle

    for at in range(0, len(entries), per_block):
        part = entries[at : at + per_block]
        handles.append((part[-1][0] + b"~", put(block(part))))
    footer = put(block([])) + put(block(handles, 1))
    return out + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC)


def random_tensors(config: GPTConfig, seed: int = 1) -> dict[str, np.ndarray]:
    """Random tensors by TensorFlow's names and shapes, sorted as bytes."""
    rng = np.random.default_rng(seed)
    V, T, L, C = config.vocab_size, config.max_seq_len, config.n_layer, config.n_embd
    wide = {"attn/c_attn": 3 * C, "attn/c_proj": C, "mlp/c_fc": 4 * C, "mlp/c_proj": C}
    shapes = {"model/wte": (V, C), "model/wpe": (T, C), "model/ln_f/b": (C,), "model/ln_f/g": (C,)}
    for name in NAMES.values():
        stem, _, kind = name.rpartition("/")
        out = wide.get(stem, C)
        shape = (1, 4 * C if stem == "mlp/c_proj" else C, out) if kind == "w" else (out,)
        shapes.update({f"model/h{layer}/{name}": shape for layer in range(L)})
    names = sorted(shapes, key=str.encode)
    return {name: rng.normal(0, 0.3, shapes[name]).astype("<f4") for name in names}


def as_ours(tensors: dict[str, np.ndarray], config: GPTConfig) -> dict[str, np.ndarray]:
    """The tensors by our names and in our orientation."""
    found = {f"transformer.{ours}": tensors[f"model/{theirs}"] for ours, theirs in OUTSIDE.items()}
    for layer in range(config.n_layer):
        for ours, theirs in NAMES.items():
            x = tensors[f"model/h{layer}/{theirs}"]
            found[f"transformer.h.{layer}.{ours}"] = x[0].T if x.ndim == 3 else x
    return found


def index_entries(tensors: dict[str, np.ndarray]) -> list[tuple[bytes, bytes]]:
    entries, at = [(b"", header_entry())], 0
    for name, x in tensors.items():
        entries.append((name.encode(), tensor_entry(x.shape, at, x.tobytes())))
        at += x.nbytes
    return entries


def write(folder: Path, tensors: dict[str, np.ndarray], index: bool = True, **hparams: int) -> Path:
    """Writes the folder of a release."""
    folder.mkdir(parents=True, exist_ok=True)
    data = b"".join(x.tobytes() for x in tensors.values())
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(data)
    if index:
        (folder / "model.ckpt.index").write_bytes(table(index_entries(tensors)))
    if hparams:
        (folder / "hparams.json").write_text(json.dumps(hparams))
    return folder
