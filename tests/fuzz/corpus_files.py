"""Inputs for the targets that read model files, TensorFlow checkpoints, token files and masks: see make_corpus.py."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (2, 1)]

import numpy as np  # noqa: E402
import tfwriter  # noqa: E402

from pyllmc.tables import layout  # noqa: E402
from pyllmc.text import bins  # noqa: E402

AS_IS, CHECKSUM = 1, 2  # as in fuzz.h
OTHER_MODEL = 4  # as in fuzz_model.c
NO_INDEX = 4  # as in fuzz_tf.c
ONE_FILE, SHUFFLED = 4, 8  # as in fuzz_tokens.c


def ints(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


# ---- model files ----


def section(tag: str, payload: bytes) -> bytes:
    return tag.ljust(8).encode() + struct.pack("<q", len(payload)) + payload


def model(
    version: int, maxT: int, V: int, L: int, NH: int, C: int, window: int = 0
) -> tuple[bytes, bytes, int]:
    """The header's ints, the parameters, and their number."""
    config = layout.GPTConfig(vocab_size=V, max_seq_len=maxT, n_layer=L, n_head=NH, n_embd=C)
    n = sum(row.size for row, _ in layout.parameters(config))
    if version < 3:
        n -= (config.padded_vocab_size - V) * C
    wide = sum(row.size for row, _ in layout.parameters(config) if "ln" in row.name)  # in versions 2 and 4
    values = bytes(n * 4 if version in (1, 3) else n * 2 + (0 if version == 5 else wide * 2))
    return ints(bins.MODEL_MAGIC, version, maxT, V, L, NH, C, config.padded_vocab_size, window), values, n


def models() -> dict[str, bytes]:
    head, values, n = model(3, 1, 1, 1, 1, 1)
    texts = (
        section("OPTIONS", b"seed=1\n")
        + section("STATE", b"tokens=7\nstep=3\n")
        + section("TOKENIZR", b"abc")
    )
    whole = head + values + texts + section("MOMENTS", bytes(8 * n))
    nan = head + values[:-4] + struct.pack("<f", float("nan"))
    made = {
        "v3": bytes([0]) + head + values,
        "other": bytes([OTHER_MODEL]) + head + values,
        "v3-as-is": bytes([AS_IS]) + head + bytes(bins.HEADER_BYTES - len(head)) + values,
        "checkpoint": bytes([CHECKSUM]) + whole,
        "checkpoint-no-moments": bytes([CHECKSUM]) + head + values + texts,
        "checkpoint-state": bytes([CHECKSUM]) + head + values + section("STATE", b"step=-1\n"),
        "checkpoint-empty": bytes([CHECKSUM]) + head + values,
        "wrong-checksum": bytes([0]) + whole + section("CRC32", b"abcd"),
        "no-checksum": bytes([0]) + whole,
        "section-too-long": bytes([CHECKSUM]) + head + values + b"STATE   " + struct.pack("<q", 1 << 62),
        "section-negative": bytes([CHECKSUM]) + head + values + b"STATE   " + struct.pack("<q", -1),
        "section-twice": bytes([CHECKSUM]) + head + values + 2 * section("STATE", b""),
        "section-unknown": bytes([CHECKSUM]) + head + values + section("WHAT", b""),
        "nan": bytes([0]) + nan,
        "trailing": bytes([0]) + head + values + b"x",
        "truncated": bytes([0]) + head + values[:-1],
        "empty": bytes([AS_IS]),
        "big-endian": bytes([0]) + head[3::-1] + head[4:] + values,
        "huge": bytes([0]) + ints(bins.MODEL_MAGIC, 3, 1 << 24, 1 << 24, 1 << 24, 1, 1 << 24, 1 << 24),
        "heads": bytes([0]) + ints(bins.MODEL_MAGIC, 3, 1, 1, 1, 2, 3, 128) + values,
    }
    for version in (1, 2, 4, 5):
        made[f"v{version}"] = bytes([0]) + b"".join(model(version, 2, 3, 1, 2, 2)[:2])
    for name, untied, pattern in (
        ("untied", 1, b""),
        ("pattern", 0, b"LDD"),
        ("pattern-bad", 0, b"Lx"),
        ("no-end", 0, b"D" * 128),
    ):
        own = layout.GPTConfig(1, 1, 3, 1, 1, 1, bool(untied))
        size = 4 * sum(row.size for row, _ in layout.parameters(own))
        header = ints(bins.MODEL_MAGIC, 103, 1, 1, 3, 1, 1, 128, 1, untied) + pattern
        made[name] = bytes([AS_IS | CHECKSUM]) + header.ljust(bins.HEADER_BYTES, b"\0") + bytes(size)
    made.update(outer_checkpoints())
    made["window"] = bytes([CHECKSUM]) + b"".join(model(3, 3, 2, 2, 1, 1, window=2)[:2])
    return made


def outer_checkpoints() -> dict[str, bytes]:
    """DiLoCo's, of version 104: OUTER holds the momentum, and two moments for each process but the first."""

    def one(n: int, version: int = 104, moments: bool = True, first: bool = False) -> bytes:
        head, values, size = model(3, 1, 1, 1, 1, 1)
        head = head[:4] + ints(version) + head[8:]
        outer, both = (
            section("OUTER", bytes(4 * size * n)),
            section("MOMENTS", bytes(8 * size)) if moments else b"",
        )
        body = outer + both if first else both + outer
        return (
            bytes([AS_IS | CHECKSUM])
            + head.ljust(bins.HEADER_BYTES, b"\0")
            + values
            + section("STATE", b"step=3\n")
            + body
        )

    return {
        "outer": one(3),
        "outer-alone": one(1),
        "outer-even": one(2),
        "outer-none": one(0),
        "outer-no-moments": one(3, moments=False),
        "outer-first": one(3, first=True),
        "outer-old": one(3, version=103),
    }


# ---- TensorFlow checkpoints ----


def zeros(V: int, T: int, L: int, C: int) -> dict[str, np.ndarray]:
    config = layout.GPTConfig(vocab_size=V, max_seq_len=T, n_layer=L, n_head=1, n_embd=C)
    return {name: np.zeros_like(x) for name, x in tfwriter.random_tensors(config).items()}


def tf_block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A block without its restart, which the target makes."""
    return tfwriter.block(entries, restart_every=len(entries))[:-8]


def tf(hparams: str, index: bytes, size: int, data: bytes = b"", how: int = 0, second: bytes = b"") -> bytes:
    if not how & AS_IS:
        index = struct.pack("<H", len(index)) + index + second
    return bytes([how]) + struct.pack("<3H", len(hparams), len(index), size) + hparams.encode() + index + data


def tf_checkpoints() -> dict[str, bytes]:
    one = '{"n_head": 1}'
    small = tfwriter.index_entries(zeros(3, 2, 1, 1))
    size = sum(x.nbytes for x in zeros(3, 2, 1, 1).values())
    layers = tfwriter.index_entries(zeros(2, 2, 11, 2))
    more = sum(x.nbytes for x in zeros(2, 2, 11, 2).values())
    foreign = [(b"model/x", tfwriter.tensor_entry((1,), size, bytes(4)))]
    long_names = [(b"m" * 300, b""), (b"m" * 299 + b"n", b"")]
    whole = '{"n_vocab": 3, "n_ctx": 2, "n_embd": 1, "n_head": 1, "n_layer": 1}'
    return {
        "small": tf(one, tf_block(small), size),
        "eleven-layers": tf('{"n_head" : 2 }', tf_block(layers[:40]), more, second=tf_block(layers[40:])),
        "foreign-tensor": tf(one, tf_block(small), size + 4, second=tf_block(foreign)),
        "without-second": tf(one, tf_block(layers[:40]), more),
        "as-is": tf(one, tfwriter.table(small, per_block=6), size, how=AS_IS),
        "no-heads": tf("", tf_block(small), size),
        "not-the-data": tf(one, tf_block(small), size, data=b"\0\0\x80\x3f"),
        "too-much-data": tf(one, tf_block(small), size + 4),
        "other-hparams": tf(whole.replace("3", "4"), tf_block(small), size),
        "bad-hparams": tf('{"n_head": 1e5, "n_ctx": -3}', tf_block(small), size),
        "by-size": tf(whole, b"", size, how=NO_INDEX),
        "by-size-many-layers": tf(whole.replace('r": 1', 'r": 99999999'), b"", size, how=NO_INDEX),
        "by-size-released": tf("", b"", 0, how=NO_INDEX),
        "long-names": tf(one, tf_block(long_names), size),
        "raw": tf(one, b"\0" * 40 + struct.pack("<Q", tfwriter.MAGIC), size, how=AS_IS),
    }


# ---- token files ----


def tokens(
    how: int, *files: bytes, B: int = 2, T: int = 4, V: int = 0, eot: int = -1, position: int = 0
) -> bytes:
    asked = ints(B, T, V, eot, 0, 1) + struct.pack("<qq", position, 5)
    return bytes([how]) + asked + struct.pack("<H", len(files[0])) + b"".join(files)


def token_files() -> dict[str, bytes]:
    ids = list(range(1, 30))
    short = ints(20240520, 1, len(ids)) + struct.pack(f"<{len(ids)}H", *ids)
    wide = ints(20240801, 7, len(ids)) + struct.pack(f"<{len(ids)}I", *ids)
    raw = ints(*ids)
    return {
        "two": tokens(SHUFFLED, short, wide, V=30),
        "documents": tokens(SHUFFLED, short, wide, V=30, eot=7),
        "one": tokens(ONE_FILE, short, V=30),
        "in-order": tokens(ONE_FILE, wide, position=5),
        "raw": tokens(ONE_FILE | AS_IS, raw, V=30),
        "raw-odd": tokens(ONE_FILE | AS_IS, raw[:-1]),
        "empty": tokens(ONE_FILE | AS_IS, b""),
        "beyond-V": tokens(ONE_FILE, wide, V=20),
        "negative": tokens(ONE_FILE, wide + ints(-1)),
        "too-few": tokens(ONE_FILE, short, T=29),
        "just-enough": tokens(ONE_FILE, short, T=28, B=1),
        "truncated": tokens(ONE_FILE, short[:-1]),
        "trailing": tokens(ONE_FILE, short + b"xy"),
        "count": tokens(ONE_FILE, ints(20240520, 1, (1 << 31) - 1)),
        "huge-T": tokens(ONE_FILE, short, T=(1 << 31) - 2),
        "huge-position": tokens(ONE_FILE | SHUFFLED, short, position=(1 << 61) - 2),
    }


def masks() -> dict[str, bytes]:
    """Token files of up to 20 ids with their masks, in documents that begin with id 7."""
    ids, header = (
        bytes([7, 1, 2, 3, 7, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]),
        ints(20261130, 1, 0, 0),
    )

    def one(
        mask: bytes, how: int = CHECKSUM, B: int = 1, T: int = 4, eot: int = 7, ids: bytes = ids
    ) -> bytes:
        return bytes([how, B - 1, T - 1]) + ints(eot) + bytes([len(ids)]) + ids + mask

    def whole(bits: bytes, summed: bytes, ids: bytes = ids) -> bytes:
        """A mask that has the checksums of these bits and these ids."""
        tokens = ints(20240520, 1, len(ids)).ljust(bins.HEADER_BYTES, b"\0") + b"".join(
            bytes([i, 0]) for i in ids
        )
        crcs = struct.pack("<II", zlib.crc32(tokens), zlib.crc32(summed))
        return ints(20261130, 1, len(ids), 0) + crcs + bytes(8) + bits

    return {
        "all": one(header + b"\xff\xff\x0f"),
        "some": one(header + b"\x0e\x0a\x08", B=2, T=6),
        "no-documents": one(header + b"\xaa\xaa\x0a", eot=-1),
        "none": one(header + bytes(3)),
        "behind-the-end": one(header + b"\xff\xff\xff"),
        "short": one(header + b"\xff\xff"),
        "long": one(header + b"\xff\xff\x0f\0"),
        "count": one(ints(20261130, 1, 19, 0) + b"\xff\xff\x07", how=0),
        "version": one(ints(20261130, 2, 0, 0) + b"\xff\xff\x0f"),
        "damaged": one(whole(b"\xff\xff\x0f", b"\xfe\xff\x0f"), how=AS_IS),
        "other-tokens": one(whole(b"\xff\xff\x0f", b"\xff\xff\x0f", ids[::-1]), how=AS_IS),
        "truncated": one(header, how=AS_IS),
        "one-token": one(header + b"\1", ids=b"\7"),
        "no-token": one(header, ids=b""),
        "one-document": one(header + b"\xfe\xff\x0f", T=16, eot=99),
    }
