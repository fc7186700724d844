"""python -m pyllmc.convert SRC DST: weights from any file that is known into a Hugging Face folder, a GGUF or llm.c's file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from pyllmc.errors import EXIT_CODES, begin_command, run_command

if __name__ == "__main__":
    begin_command("numpy", "cffi")

from pyllmc.convert import detect, load
from pyllmc.convert.export import save
from pyllmc.convert.origin import find_tokenizer, training
from pyllmc.convert.place import FORMATS, check_dtype, check_place, format_of
from pyllmc.options import Parser

PROG = "pyllmc.convert"


def make_parser() -> Parser:
    parser = Parser(prog=PROG, description=__doc__, epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument(
        "source", metavar="SRC", help="a run, a checkpoint, a folder, a file, or a name of the hub"
    )
    parser.add_argument(
        "destination", metavar="DST", help="a folder (Hugging Face), NAME.gguf or NAME.bin (llm.c)"
    )
    parser.add_argument("--to", default="", help=f"{', '.join(FORMATS)}; default: as DST is called")
    parser.add_argument(
        "--dtype", default="fp32", help="of the numbers: fp32, bf16, and but for bin fp16 [fp32]"
    )
    parser.add_argument("--name", default="", help="of the model; default: as DST is called")
    parser.add_argument(
        "--tokenizer", default="", help="a tokenizer.bin, gpt2 or none; default: what belongs to SRC"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--revision", default=None, help="of a name of the hub: a branch, tag or commit")
    return parser


def convert(o: Any) -> None:
    """What can be refused is refused before anything large is read."""
    to = format_of(o.destination, o.to)
    check_dtype(to, o.dtype)
    check_place(o.destination, to, o.overwrite, o.source)
    said: list[str] = []
    config, tensors = load(o.source, revision=o.revision, tell=said.append)
    tokenizer, where = find_tokenizer(o.source, config.vocab_size, o.tokenizer)
    what = f"{tokenizer.name}, {where}" if tokenizer else f"none, {where}"
    print(f"read {o.source}: {' '.join(said)}; tokenizer: {what}", flush=True)
    made = save(
        o.destination,
        config,
        tensors,
        to=to,
        dtype=o.dtype,
        tokenizer=tokenizer,
        name=o.name,
        run=training(o.source),
        read=detect(o.source),
        overwrite=o.overwrite,
    )
    print(f"wrote {made.path}: {made.what}")
    for note in made.notes:
        print(f"note: {note}")


def main(arguments: Sequence[str] | None = None) -> int:
    o = make_parser().parse_args(arguments)
    return run_command(PROG, lambda: convert(o))


if __name__ == "__main__":
    sys.exit(main())
