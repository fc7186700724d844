"""python -m pyllmc.sample RUN: write text with a trained model, shown as it is written."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any

from pyllmc.base.errors import begin_command, python_command, run_command, typed

if __name__ == "__main__":
    begin_command("numpy", "cffi")

from pyllmc.base import live
from pyllmc.tables.options import Parser, add_options, at_least, unescaped
from pyllmc.writer import open_writer, tell_weights

PROG = "pyllmc.sample"
# rows of csrc/options.def that are options here; WORDS and DEFAULTS replace their help and their defaults
OPTIONS = (
    "prompt",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "seed",
    "threads",
    "weights",
    "precision",
    "device",
)
WORDS = {
    "prompt": "the beginning of each text, taken literally; default: the start of a document",
    "seed": "seed of the first text; each further one has the next",
    "temperature": "0: always the likeliest token; below 1 texts are safer, above wilder",
    "precision": "number format of weights and activations: fp32, or bf16, which is faster on a CPU with AMX, or AMD's with AVX512_BF16",
    "weights": "number format of the weights: fp32 (as --precision stores them), bf16 or int8; fewer bytes are read faster",
    "device": "cpu, cuda, or emu, which runs the CUDA kernels on the CPU to test them; auto: cpu",
}
EXAMPLES = (
    'python -m pyllmc.sample runs/demo --prompt "Once upon a time"',
    'python -m pyllmc.sample runs/demo --count=3 --top_p=0.9 --stop="The end"',
    "python -m pyllmc.sample hub:gpt2 --prompt Hello --temperature=0",
)
# options that belong to the model; the others belong to the text
OF_MODEL = ("tokenizer", "threads", "weights", "precision", "device")
DEFAULTS: dict[str, Any] = {"seed": 0}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PROG, description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    parser.add_argument(
        "run",
        help="a run folder (its best.ckpt, else last.ckpt), a checkpoint, weights of Hugging Face's or nanoGPT's, "
        "or a name of the hub: hub:gpt2, owner/name",
    )
    parser.add_argument(
        "--tokenizer",
        default="",
        help="a tokenizer.bin, vocab.bpe, run or export; default: the one that belongs to the weights",
    )
    parser.add_argument(
        "--count", type=at_least(1), default=1, help="texts to write; each has the next seed [1]"
    )
    parser.add_argument(
        "--max_new_tokens", type=at_least(0), default=200, help="the most tokens in a text [200]"
    )
    parser.add_argument(
        "--stop",
        action="append",
        type=unescaped,
        default=[],
        help=r"ends a text before this, e.g. '\n\n' (\n \t \r \\ \xHH \uHHHH are characters); may be repeated",
    )
    add_options(parser, OPTIONS, WORDS, **DEFAULTS)
    o = vars(parser.parse_args(arguments))

    def work() -> None:
        run, count, prompt = o.pop("run"), o.pop("count"), o.pop("prompt")
        given, prompt = (
            os.fsencode(prompt),
            typed(prompt),
        )  # bytes, because the tokenizer judges whether they are text
        writer = open_writer(run, **{name: o.pop(name) for name in OF_MODEL})
        tell_weights(PROG, run, f"{python_command()} -m {PROG} ")
        for i in range(count):
            pieces = writer.stream(given, **{**o, "seed": o["seed"] + i})
            for piece in itertools.chain([prompt], pieces):
                live.clear()
                print(piece, end="", flush=True)
            print("\n" if i + 1 < count else "", flush=True)

    return run_command(PROG, work)


if __name__ == "__main__":
    sys.exit(main())
