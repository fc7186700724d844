"""Text becomes ids, and ids become text, by the tokenizer of a file or a model.

    python -m pyllmc.tokenizer encode|decode|info TOKENIZER ...    turn text into ids and back

    encode TOKENIZER [TEXT]      ids of TEXT, else of standard input
    decode TOKENIZER [ID ...]    text of the ids, else of those on standard input
    info TOKENIZER               the tokenizer's name, kind and sizes

TOKENIZER: a tokenizer.bin, OpenAI's vocab.bpe, Hugging Face's tokenizer.json or vocab.json with merges.txt, nanoGPT's
meta.pkl, a folder with one of these, a run, a checkpoint, or gpt2 or byte.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

from pyllmc.base.errors import INTERRUPTED, DataError, begin_command, run_command, stopped_by_signals

if __name__ == "__main__":
    begin_command()

from pyllmc.base.checks import text_bytes
from pyllmc.base.values import whole
from pyllmc.engine.named import open_tokenizer
from pyllmc.tables.options import Parser
from pyllmc.text.added import cutter
from pyllmc.text.bpe import merge_steps, split_words
from pyllmc.text.tokenizer import Tokenizer, shown

PROG = "pyllmc.tokenizer"
ABOUT = """Turn text into ids and back, by the tokenizer of a file or a model.

TOKENIZER: a tokenizer.bin, OpenAI's vocab.bpe, a folder with one of these, a run, a checkpoint, or gpt2 or byte."""
EXAMPLES = (
    'python -m pyllmc.tokenizer encode runs/demo "Once upon a time"',
    "python -m pyllmc.tokenizer encode gpt2 < text.txt",
    "python -m pyllmc.tokenizer decode vocab.bpe 15496 995",
    "python -m pyllmc.tokenizer info runs/demo",
)
MOST_OF_AN_ID = 40  # characters of a wrong id that are shown
MOST_SHOWN = 2000  # bytes of a text whose merges are shown one by one


# ---------------------------------------------------------------------------------------------------------
# the commands, which print their results


def encode(tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    data = sys.stdin.buffer.read() if args.text is None else text_bytes(args.text)
    ids = tokenizer.encode_bytes(data)
    for line in work_of(tokenizer, data, ids) if args.show_work else ():
        print(line)
    print(*ids)


def id_in(word: str) -> int:
    """The id that a word is. Raises DataError if it is none."""
    try:
        if word.isdecimal():
            return whole(word)
    except argparse.ArgumentTypeError:
        pass
    shown_part = word if len(word) <= MOST_OF_AN_ID else f"{word[:MOST_OF_AN_ID]}..."
    raise DataError(f"{shown_part!r} is no id: ids are whole numbers, with spaces between")


def decode(tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    """Writes the very bytes of the text; ends the line only on a terminal."""
    words = re.split(r"[\s,]+", " ".join(args.ids) if args.ids else sys.stdin.read())
    text = tokenizer.decode_bytes([id_in(word) for word in words if word])
    sys.stdout.buffer.write(text + b"\n" * sys.stdout.isatty())


def info(tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    longest = max(range(tokenizer.vocab_size), key=lambda i: len(tokenizer.pieces[i]))
    eot = "none" if tokenizer.eot < 0 else f"{tokenizer.eot} {quoted(tokenizer.pieces[tokenizer.eot])}"
    print(f"name     {tokenizer.name}")
    print(f"encodes  {WAYS[tokenizer.kind]}")
    print(f"V        {tokenizer.vocab_size}")
    print(f"EOT      {eot}")
    if tokenizer.added:
        print(f"added    {' '.join(f'{i} {quoted(tokenizer.pieces[i])}' for i in tokenizer.added)}")
    print(f"longest  {longest} {quoted(tokenizer.pieces[longest])}")
    if tokenizer.name == "char":
        print(f"alphabet '{tokenizer.alphabet()}'")


WAYS = {
    "unknown": "nothing: the file does not say how",
    "longest": "as the longest piece that matches, from left to right",
    "gpt2": "as byte pairs within the words of GPT-2's split",
}
ABOUT_EACH = {
    "encode": "ids of TEXT, else of standard input",
    "decode": "text of the ids, else of those on standard input",
    "info": "the tokenizer's name, kind and sizes",
}
COMMANDS = {"encode": encode, "decode": decode, "info": info}


def quoted(data: bytes) -> str:
    return f"'{shown(data)}'"


# ---------------------------------------------------------------------------------------------------------
# encode --show_work: the steps from text to ids, in the manner of minGPT's encode_and_show_work


def work_of(tokenizer: Tokenizer, data: bytes, ids: Sequence[int]) -> Iterator[str]:
    if len(data) > MOST_SHOWN:
        raise DataError(f"{len(data)} bytes of text: the work is shown for at most {MOST_SHOWN}: give less")
    yield f"text     {quoted(data)}"
    if tokenizer.kind != "gpt2":
        yield f"pieces   {_parts(tokenizer.pieces[i] for i in ids)}"
        return
    ranks, words = tokenizer.ranks, []
    for part, added in cutter(tokenizer.pieces, tokenizer.added)(data.decode()):
        words += [(word.encode(), added) for word in (split_words(part) if added < 0 else [part])]
    yield f"words    {_parts(word for word, _ in words)}"
    for word, added in words:
        yield from (
            _work_of_word(word, ranks) if added < 0 else (f"added    {quoted(word)}", f"  ids    {added}")
        )


def _work_of_word(word: bytes, ranks: dict[bytes, int]) -> Iterator[str]:
    yield f"word     {quoted(word)}"
    yield f"  bytes  {word.hex(' ')}"
    parts: list[bytes] = []
    for parts, made in merge_steps(word, ranks):
        yield (
            f"  start  {_parts(parts)}"
            if not made
            else f"  merge  {_parts(parts)}    {ranks[made]} {quoted(made)}"
        )
    yield f"  ids    {' '.join(str(ranks[p]) for p in parts)}"


def _parts(parts: Iterable[bytes]) -> str:
    return " ".join(map(quoted, parts))


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=PROG, description=ABOUT, examples=EXAMPLES, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="encode|decode|info")
    for name in COMMANDS:
        commands.add_parser(name, allow_abbrev=False, help=ABOUT_EACH[name]).add_argument(
            "tokenizer", metavar="TOKENIZER"
        )
    choices = commands.choices
    choices["encode"].add_argument("text", metavar="TEXT", nargs="?", help="default: standard input")
    choices["encode"].add_argument(
        "--show_work", action="store_true", help="words, bytes and merges step by step"
    )
    choices["decode"].add_argument("ids", metavar="ID", nargs="*", help="default: those on standard input")
    return parser


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Moves flags right behind the command, because argparse takes one between TOKENIZER and TEXT for the end of both."""
    given = list(arguments)
    end = given.index("--") if "--" in given else len(given)
    return [*given[:1], *sorted(given[1:end], key=lambda a: not a.startswith("--")), *given[max(end, 1) :]]


def main(arguments: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(flags_first(sys.argv[1:] if arguments is None else arguments))

    def work() -> None:
        with stopped_by_signals(
            lambda: os._exit(INTERRUPTED)
        ):  # even a long call of a library ends; nothing is lost by that
            COMMANDS[args.command](open_tokenizer(args.tokenizer), args)

    return run_command(PROG, work)


if __name__ == "__main__":
    sys.exit(main())
