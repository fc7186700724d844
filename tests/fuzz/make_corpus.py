"""Writes tests/fuzz/corpus/<target>/: small inputs in the forms that the targets' first lines give, good and bad.

Files called found-* are not made here: each is the input of a bug that fuzzing found, kept so that the bug stays away.
"""

from __future__ import annotations

import struct
from pathlib import Path

from corpus_files import AS_IS, ints, masks, models, tf_checkpoints, token_files

from pyllmc.text import bins

CORPUS = Path(__file__).resolve().parent / "corpus"
CHAT = 1 << 15  # as in fuzz_options.c


# ---- tokenizers ----


UNKNOWN, LONGEST, GPT2 = 0, 1, 2


def tokenizer(
    text: bytes,
    *pieces: bytes,
    eot: int = -1,
    kind: int = LONGEST,
    version: int = 2,
    how: int = 0,
    added: tuple[int, ...] = (),
) -> bytes:
    head = ints(20240328, version, len(pieces), eot, kind, len(added), *[*added, 0, 0, 0][:3])
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
        "added": tokenizer(
            b"a<x><xy>b",
            *(bytes([i]) for i in range(256)),
            b"ab",
            b"<x>",
            b"<xy>",
            kind=GPT2,
            added=(257, 258),
        ),
        "added-twice": tokenizer(b"", *letters, kind=GPT2, added=(1, 1)),
        "added-eot": tokenizer(b"", *letters, eot=7, kind=GPT2, added=(7,)),
        "added-outside": tokenizer(b"", *letters, kind=GPT2, added=(0, 8)),
        "added-the-same": tokenizer(b"", *letters, b"ab", kind=GPT2, added=(2, 8)),
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
        "mask": masks(),
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
