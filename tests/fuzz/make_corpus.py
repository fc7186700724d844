"""Writes tests/fuzz/corpus/<target>/: small inputs in the forms that the targets' first lines give, good and bad.

Files called found-* are not made here: each is the input of a bug that fuzzing found, kept so that the bug stays away.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

CORPUS = Path(__file__).resolve().parent / "corpus"
sys.path[:0] = [str(CORPUS.parents[2]), str(CORPUS.parents[1])]

import numpy as np  # noqa: E402
import tfwriter  # noqa: E402

from pyllmc.tables import layout  # noqa: E402
from pyllmc.text import bins  # noqa: E402

AS_IS, CHECKSUM = 1, 2  # as in fuzz.h
OTHER_MODEL = 4  # as in fuzz_model.c
NO_INDEX = 4  # as in fuzz_tf.c
ONE_FILE, SHUFFLED = 4, 8  # as in fuzz_tokens.c
CHAT = 1 << 15  # as in fuzz_options.c


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
    made["window"] = bytes([CHECKSUM]) + b"".join(model(3, 3, 2, 2, 1, 1, window=2)[:2])
    return made


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


# ---- tokenizers ----


UNKNOWN, LONGEST, GPT2 = 0, 1, 2


def tokenizer(
    text: bytes, *pieces: bytes, eot: int = -1, kind: int = LONGEST, version: int = 2, how: int = 0
) -> bytes:
    head = ints(20240328, version, len(pieces), eot, kind)
    padding = bytes(bins.HEADER_BYTES - len(head)) if how & AS_IS else b""
    return bytes([how, len(text)]) + text + head + padding + b"".join(bytes([len(p)]) + p for p in pieces)


def tokenizers() -> dict[str, bytes]:
    letters = [b"a", b"b", b"ab", b"abc", b"\xc3\xa9", b"\xe2\x82\xac", b"\n", b"<end>"]
    return {
        "longest": tokenizer(b"abcab\xc3\xa9aab", *letters, eot=7),
        "as-is": tokenizer(b"ab", *letters, eot=7, how=AS_IS),
        "unknown-character": tokenizer(b"abx", *letters, eot=7),
        "unknown-return": tokenizer(b"ab\r", *letters, eot=7),
        "unknown-utf8": tokenizer(b"ab\xf0\x9f\x98\x80", *letters, eot=7),
        "gpt2": tokenizer(b"ab", *letters, kind=GPT2),
        "gpt2-bytes": tokenizer(b"a b\xff", *(bytes([i]) for i in range(256)), b"ab", b" b", kind=GPT2),
        "decode-only": tokenizer(b"ab", *letters, kind=UNKNOWN),
        "version-1": tokenizer(b"a", b"A", version=1),
        "no-eot": tokenizer(b"aa", b"a"),
        "twice": tokenizer(b"aa", b"a", b"a"),
        "empty-piece": tokenizer(b"", b""),
        "truncated": tokenizer(b"", *letters, eot=7)[:-1],
        "trailing": tokenizer(b"", *letters, eot=7) + b"x",
        "short": tokenizer(b"", how=AS_IS)[:300],
        "long-pieces": tokenizer(b"a" * 255, b"a" * 255, b"a"),
        "long-alphabet": tokenizer(b"~", *(chr(i).encode() for i in range(0x2000, 0x2100))),
    }


# ---- byte pairs ----

VOCAB_WHOLE = 4  # as in fuzz_vocab.c


def vocabularies() -> dict[str, bytes]:
    merges = "a b\nab c\n\u0120 t\n\u0120t h\n"
    lines = {
        "few": (0, merges),
        "unknown-symbol": (0, "a b\nabc d\n"),
        "twice": (0, "a b\nab c\nb c\na bc\n"),
        "three": (0, "a b c\n"),
        "crlf": (0, "a b\r\n"),
        "not-of-the-alphabet": (0, "a \u4e2d\n"),
        "no-end": (0, "a b\nab"),
        "doubling": (0, "a a\n" + "".join(f"{'a' * 2**i} {'a' * 2**i}\n" for i in range(1, 9))),
        "whole": (VOCAB_WHOLE, ""),
        "whole-more": (VOCAB_WHOLE, "\u0120 t\n\u0120t h\n"),
        "version": (AS_IS, "#version: 0.3\na b\n"),
        "short": (AS_IS, "#version"),
    }
    made = {name: bytes([how]) + text.encode() for name, (how, text) in lines.items()}
    made["not-utf8"] = b"\0a \xff\n"
    return made


def bpe(text: str | bytes, *pieces: bytes) -> bytes:
    listed = b"".join(bytes([len(piece)]) + piece for piece in pieces)
    return bytes([0, len(pieces)]) + listed + (text if isinstance(text, bytes) else text.encode())


def byte_pairs() -> dict[str, bytes]:
    english = (b"th", b"he", b"the", b" t", b" the", b"in", b"ing", b"er", b"'s", b"  ")
    return {
        "english": bpe("The thing's in the other  the\n\n  there", *english),
        "repeats": bpe("a" * 40 + "b" + "a" * 7, b"aa", b"aaa", b"aaaa", b"ba"),
        "overlaps": bpe("abcabcbcab", b"bc", b"ab", b"abc", b"ca", b"cab"),
        "white": bpe(" \t\r\n  x   \u00a0\u2003 12 \u0663!?  ", b"  ", b" x", b"12"),
        "contractions": bpe("I'll've don't 's 'S x're'd"),
        "letters": bpe("\u00e9\u4e2d\U0001f600e\u0301 \u0905\u093f", b"\xc3\xa9", b"\xe4\xb8", b"\xb8\xad"),
        "cut": bpe(b"ab\xe4\xb8"),
        "surrogate": bpe(b"\xed\xa0\x80"),
        "empty": bpe(""),
        "ascii": b"\1" + bpe(bytes(range(256)), b"ab", b"cd")[1:],
    }


# ---- writing ----


def writers() -> dict[str, bytes]:
    def one(seed: int, most: int, prompt: str, *stops: str) -> bytes:
        return bytes([seed, most]) + "\n".join([prompt, *stops]).encode()

    return {
        "none": one(1, 40, "ab"),
        "letter": one(2, 40, "", "ab"),
        "line": one(3, 40, "a\\nb", "\\n\\n", "\\n"),
        "overlap": one(4, 40, "b", "abab", "baba", "aba"),
        "handed-out": one(6, 40, "aa", "aa"),  # half of the token that it cuts
        "half": one(5, 40, "a", "\u00e9", "\U0001f600"),
        "empty": one(6, 40, "a", "", "b"),
        "unknown": one(7, 40, "x", "b"),
        "long": one(8, 47, "ab" * 20, "a" * 60, ":"),
        "no-tokens": one(9, 0, "a", "b"),
    }


STORY = 1  # as in fuzz_chat.c


def chats() -> dict[str, bytes]:
    def one(seed: int, most: int, pieces: int, *lines: str, how: int = 0) -> bytes:
        return bytes([how, seed, most, pieces]) + "\n".join(lines).encode()

    return {
        "usual": one(1, 20, 100, "A", "B", "A talks.", "hello", "and then?", "bye"),
        "no-system": one(2, 20, 100, "A", "B", "", "x", "", "y"),
        "no-name": one(3, 20, 100, "", "B", "", "x"),
        "long-system": one(4, 20, 100, "A", "B", "a" * 60, "x"),
        "long-turn": one(5, 5, 100, "A", "B", "", "a" * 70, "b" * 200, "c"),
        "cut-short": one(6, 60, 3, "A", "B", "", "x", "y", "z"),
        "full": one(7, 63, 100, "A", "B", "", *["abcdefgh"] * 12),
        "story": one(8, 63, 100, "A", "B", "", "once", "", "", "again", how=STORY),
        "letters": one(9, 63, 100, "\u00e9", "\u4e2d", "\u00e9", "\u00e9\u00e9"),
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


# ---- texts ----


def options(*arguments: str, room: int = 4096) -> bytes:
    return struct.pack("<H", room) + "\n".join(arguments).encode()


def command_lines() -> dict[str, bytes]:
    return {
        "usual": options(
            "--n_layer=2", "--lr", "1e-3", "--no_shuffle", "--plan", "--max-steps=7", "--schedule=wsd"
        ),
        "numbers": options("--seed=9223372036854775807", "--lr=0x1p-3", "--eps=nan", "--B=0", "--B", "-1"),
        "strings": options("--data=" + "x" * 1000, "--prompt", "caf\u00e9", "--out="),
        "terminal": options("--n_layer=\x1b[2J\r"),
        "chat": options("a.ckpt", "vocab.bpe", "--bot=x", "--top_k=3", room=CHAT | 4000),
        "help": options("--help", "-h"),
        "mistakes": options("--n_layr=2", "n_layer", "--", "--=3", "--no_lr", "--shuffle=maybe", room=10),
        "set": options("n_layer", "3", "no_shuffle", "0", "prompt", "x", "lr", "1e309", room=0),
    }


def config(
    descriptor: str, sizes: tuple[int, ...], room: tuple[int, ...], threads: int = 2, text: int = 200
) -> bytes:
    return bytes([text]) + ints(*sizes, *room, threads) + descriptor.encode()


AUTO, FP32, BF16, INT8 = range(4)  # kernels.h


def configs() -> dict[str, bytes]:
    tiny, room = (8, 10, 0, 2, 2, 4, 0), (2, 8, 1, 2, 0, AUTO)
    names = ["d12", "gpt2:d48", "gpt3:c12288", "gpt2-xl", "openai-gpt", "gpt-nano", "demo", "d13", "x" * 80]
    made = {name.replace(":", "-")[:12]: config(name, tiny, room) for name in names}
    made["plan-no-buffer"] = config(
        "", (1 << 24, 1 << 24, 0, 1, 1, 1 << 18, 0), (1, 16, 1, 0, 1, BF16), text=0
    )
    made["huge"] = config("", (1 << 24, 1 << 24, 0, 1, 1, 1 << 18, 0), (1 << 16, 1 << 14, 1, 0, 1, FP32))
    made["beyond-64-bits"] = config("", (1, 1, 0, 1 << 12, 1, 1 << 24, 0), (1, 1, 1, 2, 0, FP32))
    made["many"] = config("", (1 << 24,) * 6 + (0,), (1 << 30, 1 << 24, 1, 3, 1, BF16), threads=-1)
    made["generate"] = config("demo", (8, 10, 0, 2, 2, 4, 3), (2, 8, 0, 0, 0, BF16), threads=1 << 30)
    made["int8"] = config("demo", tiny, (2, 8, 0, 0, 0, INT8))  # no precision
    return made


def schedules() -> dict[str, bytes]:
    def one(kind: str, done: int, end: int = 100, warmup: int = 10, *rates: float, size: int = 1) -> bytes:
        return struct.pack("<4q3d", done, size, end, warmup, *(rates or (1e-3, 0.1, 0.2))) + kind.encode()

    made = {kind: one(kind, 50) for kind in ("constant", "linear", "cosine", "wsd")}
    made |= {
        "warmup": one("cosine", 3),
        "tokens": one("cosine", 3, size=9),
        "over": one("wsd", 1 << 62),
        "none": one("linear", 0, 0, 0),
        "bad": one("x", 1),
    }
    made["extreme"] = one("cosine", (1 << 63) - 1, 1, -(1 << 63), 1e308, 1e308, -1e308)
    return made


def paths() -> dict[str, bytes]:
    lines = {
        "folder": ("train", ""),
        "subfolder": ("", "sub"),
        "no-such-split": ("test", "sub/"),
        "empty-folder": ("", "empty"),
        "file": ("", "val.bin"),
        "glob": ("train", "t*_[01].bin"),
        "glob-deep": ("", "*/?.bin"),
        "brackets": ("", "sub/[y].bin"),
        "odd": ("a", "[!a-\\"),
        "absent": ("", "nowhere/*"),
    }
    return {name: "\n".join(both).encode() for name, both in lines.items()}


def corpus() -> dict[str, dict[str, bytes]]:
    return {
        "model": models(),
        "tokenizer": tokenizers(),
        "tokens": token_files(),
        "options": command_lines(),
        "config": configs(),
        "schedule": schedules(),
        "paths": paths(),
        "tf": tf_checkpoints(),
        "vocab": vocabularies(),
        "bpe": byte_pairs(),
        "writer": writers(),
        "chat": chats(),
    }


def main() -> None:
    for target, inputs in corpus().items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if not old.name.startswith("found-"):
                old.unlink()
        for name, data in inputs.items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
