"""python -m pyllmc.sample RUN: text from a trained model."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pyllmc.errors import EXIT_CODES, begin_command, run_command

if __name__ == "__main__":
    begin_command("numpy", "cffi")

from pyllmc import _ffi
from pyllmc.arguments import read_section
from pyllmc.files import DataError, find_checkpoint
from pyllmc.model import Model
from pyllmc.options import Parser, at_least
from pyllmc.tokenizer import Tokenizer

PROG = "pyllmc.sample"


class Writer(NamedTuple):
    """A model and the tokenizer that travelled with it."""

    model: Model
    tokenizer: Tokenizer

    def write(
        self,
        prompt: str = "",
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> str:
        """`prompt` and what follows it, up to the end of the document. An empty prompt starts a document."""
        eot = self.tokenizer.eot
        ids = self.tokenizer.encode(prompt)
        start = [eot, *ids] if eot >= 0 else ids
        if not start:
            raise DataError("this tokenizer has no end-of-text token to start from: give a prompt")
        new = self.model.generate(start, max_new_tokens, temperature, top_k, top_p, seed, eot)
        return self.tokenizer.decode(ids + [i for i in new if i != eot])


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer inside a checkpoint."""
    data = read_section(_ffi.load(), os.fspath(path).encode(), b"TOKENIZR")
    if not data:
        raise DataError(f"{path} carries no tokenizer: it was trained on data without one")
    return Tokenizer.from_bytes(data, os.fspath(path))


def open_writer(
    path: str | os.PathLike[str], threads: int = 0, weights: str = "fp32", device: str = "cpu"
) -> Writer:
    """A run folder or checkpoint, ready to write. Raises DataError or LlmcError."""
    checkpoint = find_checkpoint(path)
    tokenizer = read_tokenizer(checkpoint)
    model = Model(
        checkpoint,
        B=1,
        threads=threads,
        weights=weights,
        device=device,
        training=False,
        keep_logits=False,
    )
    return Writer(model, tokenizer)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PROG, description=__doc__, epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument("run", help="a run folder or a checkpoint")
    parser.add_argument(
        "--prompt", default="", help="how the text begins; default: at the start of a document"
    )
    parser.add_argument("--count", type=at_least(1), default=1, help="texts to write [1]")
    parser.add_argument("--max_new_tokens", type=at_least(0), default=200, help="tokens of each [200]")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token [0.8]")
    parser.add_argument("--top_k", type=at_least(0), default=None, help="only the k likeliest tokens")
    parser.add_argument(
        "--top_p", type=float, default=None, help="only the likeliest tokens that hold this share"
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of the first text; the next counts up [0]"
    )
    parser.add_argument(
        "--weights", default="fp32", help="fp32, bf16 or int8: fewer bytes are read faster [fp32]"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or emu [cpu]")
    o = parser.parse_args(arguments)

    def work() -> None:
        writer = open_writer(o.run, weights=o.weights, device=o.device)
        for i in range(o.count):
            text = writer.write(o.prompt, o.max_new_tokens, o.temperature, o.top_k, o.top_p, o.seed + i)
            print(text + ("\n" if i + 1 < o.count else ""), flush=True)

    return run_command(PROG, work)


if __name__ == "__main__":
    sys.exit(main())
