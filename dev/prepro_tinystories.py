#!/usr/bin/env python3
"""Turn text into a data set: TinyStories from the hub by default, or your own files.

    python dev/prepro_tinystories.py                                    TinyStories, GPT-2 tokens (network)
    python dev/prepro_tinystories.py --input my.txt --tokenizer char    your own text
    python dev/prepro_tinystories.py --input my.txt --tokenizer bpe     the same, byte pairs learnt from it
    python dev/prepro_tinystories.py --input books/ --workers 4         every .txt, .jsonl, .parquet below

The output, in data/my for my.txt and data/books for books/ unless --out says otherwise, is what
pyllmc/prepro.py describes.
"""

from __future__ import annotations

import argparse
import codecs
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from pyllmc.bpe import EOT_PIECE
from pyllmc.errors import EXIT_CODES, begin_command, run_command
from pyllmc.files import DataError, FileFailure, MalformedFile, need, reading
from pyllmc.options import Parser, at_least, unescaped
from pyllmc.prepro import DEFAULT_SHARD_TOKENS, DEFAULT_VAL_FRACTION, Progress, write_dataset
from pyllmc.vocabularies import DEFAULT_MAX_VOCAB, TRAINERS

PROG = "prepro_tinystories.py"
HUB_NAME = "roneneldan/TinyStories"
DEFAULT_OUT = "data/tinystories"
MIN_VAL_TOKENS = 256  # fewer say little
HUB_SPLITS = {"train": "train", "validation": "val"}
LLMC_VAL_TOKENS = 32_768
NANOGPT_TRAIN_SHARE = 0.9
BLOCK = 1 << 20

# ---------------------------------------------------------------------------------------------------------
# readers: path -> texts


def read_blocks(path: str) -> Iterator[str]:
    """A UTF-8 file a block at a time, its line ends as they are, without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    with reading(path), open(path, "rb") as f:
        while True:
            data = f.read(BLOCK)
            try:
                block = decoder.decode(data, final=not data)
            except UnicodeDecodeError as e:
                offset = f.tell() - len(e.object) + e.start
                raise MalformedFile(f"{path}: byte {offset} is no UTF-8: convert it with iconv") from e
            if block:
                yield block
            if not data:
                return


def read_txt(path: str, delimiter: str) -> Iterator[str]:
    """Documents between delimiters, stripped; the whole file as it is when the delimiter is empty."""
    if not delimiter:
        yield "".join(read_blocks(path))
        return
    pending: list[str] = []  # parts of the document that goes on; the last may end within a delimiter
    for block in read_blocks(path):
        tail = pending.pop() if pending else ""
        *documents, rest = (tail + block).split(delimiter)
        for document in documents:
            pending.append(document)
            yield "".join(pending).strip()
            pending = []
        keep = max(0, len(rest) - len(delimiter) + 1)
        pending += [rest[:keep], rest[keep:]]
    yield "".join(pending).strip()


def read_jsonl(path: str, field: str) -> Iterator[str]:
    """The text in `field` of each line."""
    with reading(path), open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            if line.strip():
                yield _json_text(f"{path}:{number}", line, field)


def _json_text(where: str, line: bytes, field: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise MalformedFile(f"{where}: not a JSON line: {e}") from e
    if isinstance(record, dict) and isinstance(record.get(field), str):
        return str(record[field])
    if not isinstance(record, dict):
        raise DataError(f"{where}: an object with a field {field!r} was expected, not {_kind(record)}")
    if field in record:
        found = _kind(record[field])
        raise DataError(
            f"{where}: field {field!r} is {found}, not text: name the field of the text with --field"
        )
    raise DataError(f"{where}: no field {field!r} (it has {', '.join(record)}): name it with --field")


def _kind(value: Any) -> str:
    """What JSON calls it."""
    kinds = {bool: "true or false", dict: "an object", list: "a list", str: "text", type(None): "null"}
    return kinds.get(type(value), "a number")


def read_parquet(path: str, field: str) -> Iterator[str]:
    """The texts in column `field`, a batch of rows at a time."""
    parquet = need("pyarrow.parquet", "reading .parquet", "pyarrow")
    pyarrow = need("pyarrow", "reading .parquet")
    try:
        with reading(path), parquet.ParquetFile(path) as f:
            names = f.schema_arrow.names
            if field not in names:
                raise DataError(f"{path}: no column {field!r} (it has {', '.join(names)}): use --field")
            for batch in f.iter_batches(columns=[field], batch_size=1024):
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
    except pyarrow.ArrowException as e:
        raise MalformedFile(f"{path}: not a readable parquet file: {str(e).splitlines()[0]}") from e


READERS: dict[str, Callable[[str, argparse.Namespace], Iterator[str]]] = {
    ".txt": lambda path, args: read_txt(path, args.delimiter),
    ".jsonl": lambda path, args: read_jsonl(path, args.field),
    ".parquet": lambda path, args: read_parquet(path, args.field),
}


def input_files(inputs: Iterable[str]) -> list[str]:
    """The files named, and those below the folders named, by name."""
    files: list[str] = []
    for name in inputs:
        if not os.path.isdir(name):
            files.append(name)
            continue
        below = [os.path.join(d, n) for d, _, names in os.walk(name) for n in names if _suffix(n) in READERS]
        if not below:
            raise DataError(f"{name} holds no {', '.join(READERS)} file")
        files += sorted(below, key=os.fsencode)
    for path in files:
        if _suffix(path) not in READERS:
            raise DataError(f"{path}: expected {', '.join(READERS)} or a folder; if it is text, name it .txt")
        with reading(path), open(path, "rb"):
            pass  # fails here rather than after an hour
    return files


def check_apart(files: Iterable[str], out: str) -> None:
    """No input may lie in the folder that is to be replaced."""
    place = os.path.join(os.path.realpath(out), "")
    for path in files:
        if os.path.realpath(path).startswith(place):
            raise DataError(f"{path} lies inside the output folder {out}: choose another --out")


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def hub_stories() -> Iterator[tuple[str, str]]:
    """(split, story) of TinyStories, streamed from the hub."""
    remedy = f"is there a network? Else fetch {HUB_NAME} elsewhere and pass its files with --input"
    datasets = need("datasets", "streaming TinyStories")
    for hub_split, split in HUB_SPLITS.items():
        try:
            for record in datasets.load_dataset(HUB_NAME, split=hub_split, streaming=True):
                yield split, record["text"].strip()
        except Exception as e:  # whatever the network layers raise
            raise FileFailure(f"cannot stream {HUB_NAME} ({type(e).__name__}); {remedy}") from e


# ---------------------------------------------------------------------------------------------------------
# splits of other projects, of one text


def nanogpt_split(text: str) -> dict[str, Any]:
    """nanoGPT's: the first 90 % of the characters train, the rest validates, no EOT."""
    cut = int(len(text) * NANOGPT_TRAIN_SHARE)
    return {"documents": [("train", text[:cut]), ("val", text[cut:])], "eot": False}


def llmc_split(text: str) -> dict[str, Any]:
    """llm.c's: EOT before each section, which keeps its blank line; the first 32,768 tokens validate."""
    *sections, last = text.split("\n\n")
    return {"documents": [s + "\n\n" for s in sections] + [last], "val_tokens": LLMC_VAL_TOKENS}


SPLITS = {"nanogpt": nanogpt_split, "llmc": llmc_split}


# ---------------------------------------------------------------------------------------------------------
# progress


@contextmanager
def progress_bar(total: int | None) -> Iterator[Callable[[Progress], None]]:
    """A callback that shows on a terminal how far of `total` characters a stage is; plain without rich."""
    if not sys.stderr.isatty():
        yield lambda state: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError:
        yield _plain_line(total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    tasks: dict[str, Any] = {}
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:

        def show(state: Progress) -> None:
            if state.stage not in tasks:
                tasks[state.stage] = bar.add_task("", total=total)
            bar.update(tasks[state.stage], completed=state.characters, description=_counts(state))

        yield show


def _plain_line(total: int | None) -> Callable[[Progress], None]:
    def show(state: Progress) -> None:
        share = f" {min(100, 100 * state.characters // total)} %" if total else ""
        print(f"\r{_counts(state)}{share}  ", end="", file=sys.stderr, flush=True)

    return show


def _counts(state: Progress) -> str:
    tokens = f", {state.tokens:,} tokens" if state.tokens else ""
    return f"{state.stage}: {state.documents:,} documents{tokens}"


def _total(files: list[str]) -> int | None:
    """About how many characters the files hold; None where a compressed one hides it."""
    if any(_suffix(path) == ".parquet" for path in files):
        return None
    return sum(os.path.getsize(path) for path in files)


# ---------------------------------------------------------------------------------------------------------
# the command line


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in [0, 1)")
    return value


def make_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog=PROG, description=__doc__, epilog=EXIT_CODES, allow_abbrev=False, formatter_class=raw
    )
    add = parser.add_argument
    add("--input", nargs="+", metavar="PATH", help=f"{', '.join(READERS)} files or folders; else TinyStories")
    add("--out", help=f"directory to make [data/NAME of the first input; {DEFAULT_OUT}]")
    add("--tokenizer", choices=list(TRAINERS), default="gpt2", help="vocabulary [%(default)s]")
    add("--max_vocab", type=at_least(257), default=DEFAULT_MAX_VOCAB, metavar="V",
        help="largest V of --tokenizer word and bpe [%(default)s]")  # fmt: skip
    add(
        "--delimiter",
        type=unescaped,
        default=EOT_PIECE.decode(),
        help=r"what separates documents in .txt, e.g. '\n\n'; '' for one document a file [%(default)s]",
    )
    add("--field", default="text", help="field of .jsonl, column of .parquet [%(default)s]")
    validation = parser.add_mutually_exclusive_group()
    choose = validation.add_argument
    choose("--val_fraction", type=_fraction, metavar="X",
           help=f"share of the documents to validate with [{DEFAULT_VAL_FRACTION}]")  # fmt: skip
    choose("--val_tokens", type=at_least(0), metavar="N", help="how many first tokens validate instead")
    choose("--split", choices=list(SPLITS), help="split one .txt as that project does")
    add("--shard_tokens", type=at_least(1), default=DEFAULT_SHARD_TOKENS, metavar="N",
        help="tokens in a shard [%(default)s]")  # fmt: skip
    add("--workers", type=at_least(1), default=min(8, os.cpu_count() or 1), metavar="N",
        help="processes; the output does not depend on it [%(default)s]")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the data set at --out")
    return parser


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser()
    args = parser.parse_args(argv)
    if not args.input and (args.split, args.val_fraction, args.val_tokens) != (None, None, None):
        parser.error("TinyStories brings its own validation split; --split and --val_* need --input")
    if args.split and (len(args.input) != 1 or _suffix(args.input[0]) != ".txt"):
        parser.error("--split needs one .txt file as --input")
    args.out = args.out or default_out(args.input)
    return args


def default_out(inputs: list[str] | None) -> str:
    """data/my for my.txt or the folder my."""
    if not inputs:
        return DEFAULT_OUT
    path = os.path.abspath(inputs[0])
    name = os.path.basename(path) if os.path.isdir(path) else os.path.splitext(os.path.basename(path))[0]
    return os.path.join("data", name or "text")


def choose_documents(args: argparse.Namespace) -> tuple[dict[str, Any], int | None]:
    """What write_dataset is told about the documents, and about how many characters they have."""
    if not args.input:
        return {"documents": hub_stories(), "source": HUB_NAME}, None
    files = input_files(args.input)
    check_apart(files, args.out)
    check_delimiter([path for path in files if _suffix(path) == ".txt"], args.delimiter)
    source = ", ".join(os.path.basename(os.path.normpath(name)) for name in args.input)
    if args.split:
        return {**SPLITS[args.split]("".join(read_blocks(files[0]))), "source": source}, _total(files)
    validation = {"val_fraction": args.val_fraction, "val_tokens": args.val_tokens}
    return {"documents": lambda: _read_all(files, args), "source": source, **validation}, _total(files)


def check_delimiter(files: list[str], delimiter: str) -> None:
    """One that was asked for and separates nothing is misspelt. Text without the default one is a document."""
    if not files or delimiter in ("", EOT_PIECE.decode()):
        return
    if not any(len(list(islice(read_txt(path, delimiter), 2))) > 1 for path in files):
        raise DataError(
            f"--delimiter {delimiter!r} occurs nowhere in {files[0]}{' or the others' if files[1:] else ''}: "
            "give what separates the documents, or '' for one document a file"
        )


def _read_all(files: list[str], args: argparse.Namespace) -> Iterator[str]:
    for path in files:
        yield from READERS[_suffix(path)](path, args)


def validation_warning(train: int, val: int) -> str:
    """What is odd about the sizes of the splits, and the remedy; "" if nothing is."""
    share = f"{val:,} of {train + val:,} tokens validate"
    if val > train:
        return (
            f"{share}, more than half: whole documents do; choose --val_tokens, or --val_fraction 0 for none"
        )
    if 0 < val < MIN_VAL_TOKENS:
        return f"only {share}: raise --val_fraction, or choose 0 for none"
    return ""


def run(args: argparse.Namespace) -> None:
    documents, total = choose_documents(args)
    with progress_bar(total) as progress:
        meta = write_dataset(
            out=args.out, tokenizer=args.tokenizer, shard_tokens=args.shard_tokens, workers=args.workers,
            progress=progress, max_vocab=args.max_vocab, overwrite=args.overwrite, **documents,
        )  # fmt: skip
    tokens, name, V = meta["tokens"], meta["tokenizer"]["name"], meta["vocab_size"]
    warning = validation_warning(**tokens) if args.input else ""
    if warning:
        print(f"{PROG}: warning: {warning}", file=sys.stderr)
    print(f"{args.out}: {tokens['train']:,} train and {tokens['val']:,} validation tokens ({name}, V={V})")


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_command(PROG, lambda: run(args))


if __name__ == "__main__":
    begin_command()
    sys.exit(main())
