"""python -m pyllmc.prepro --input my.txt: turn text into tokens: your files, or TinyStories.

The tokens become a data set, which pyllmc.text.dataset describes.
"""

from __future__ import annotations

import argparse
import codecs
import os
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pyllmc.base.errors import DataError, SystemFailure, begin_command, counted, need, run_command, typed

if __name__ == "__main__":
    begin_command()

from pyllmc.engine.named import open_tokenizer
from pyllmc.tables.options import Parser, at_least, number, templates, unescaped
from pyllmc.text import inputs, pairs, template, token_files
from pyllmc.text.bpe import EOT_PIECE
from pyllmc.text.characters import How, Source, read_blocks
from pyllmc.text.dataset import DEFAULT_SHARD_TOKENS, DEFAULT_VAL_FRACTION, write_dataset
from pyllmc.text.progress import progress_line
from pyllmc.text.readers import READERS, read_txt
from pyllmc.text.tokenizer import Tokenizer
from pyllmc.text.vocabularies import DEFAULT_MAX_VOCAB, FIXED, TRAINERS, train

PROG = "pyllmc.prepro"
ABOUT = """Turn text into a data set of tokens, which ./train_gpt2 --data=FOLDER trains on.

Records of prompts and answers (docs/finetune.md) become pairs, of which training learns the answers only.
Text is any file of characters (.txt, .md, .py, ...); .jsonl, .json, .csv, .tsv and .parquet hold records; all may be
compressed (.gz, .bz2, .xz, .zst). Ends of lines (CR LF, CR) become "\\n". Hidden files in a folder, and those that are
no text, are left out. The data set is data/my for my.txt and data/books for books/ unless --out says otherwise; python -m
pydoc pyllmc.text.dataset describes it."""
EXAMPLES = (
    "python -m pyllmc.prepro --input my.txt --tokenizer char      your own text",
    "python -m pyllmc.prepro --input my.txt --tokenizer bpe       its byte pairs",
    "python -m pyllmc.prepro --input more.txt --tokenizer runs/x  a model's ids",
    "python -m pyllmc.prepro --input books/ --workers 4           a whole folder",
    "python -m pyllmc.prepro --input a.jsonl --field data.text    a nested field",
    "python -m pyllmc.prepro --input - < notes.txt                standard input",
    "python -m pyllmc.prepro pairs.jsonl --tokenizer runs/x       answers",
    "python -m pyllmc.prepro --input data/shakespeare_char        nanoGPT's ids",
    "python -m pyllmc.prepro                                      TinyStories",
)
HUB_NAME = "roneneldan/TinyStories"
DEFAULT_OUT = "data/tinystories"
DEFAULT_TOKENIZER = "gpt2"
DEFAULT_TEMPLATE = "plain"
MIN_VAL_TOKENS = 256  # a loss over fewer says little
HUB_SPLITS = {"train": "train", "validation": "val"}
LLMC_VAL_TOKENS = 32_768
NANOGPT_TRAIN_SHARE = 0.9


def hub_stories() -> Iterator[tuple[str, str]]:
    """Yields (split, story) of TinyStories, streamed from the hub."""
    remedy = f"is there a network? Else fetch {HUB_NAME} elsewhere and pass its files with --input"
    datasets = need("datasets", "streaming TinyStories")
    for hub_split, split in HUB_SPLITS.items():
        try:
            for record in datasets.load_dataset(HUB_NAME, split=hub_split, streaming=True):
                yield split, record["text"].strip()
        except Exception as e:  # the network layers raise errors of any kind
            raise SystemFailure(f"cannot stream {HUB_NAME} ({type(e).__name__}); {remedy}") from e


# ---------------------------------------------------------------------------------------------------------
# how other projects split one text


def nanogpt_split(text: str) -> dict[str, Any]:
    """nanoGPT's split: the first 90 % of the characters train, the rest validates, no EOT."""
    cut = int(len(text) * NANOGPT_TRAIN_SHARE)
    return {"documents": [("train", text[:cut]), ("val", text[cut:])], "eot": False}


def llmc_split(text: str) -> dict[str, Any]:
    """llm.c's split: EOT stands before each section, which keeps its blank line; the first 32,768 tokens validate."""
    *sections, last = text.split("\n\n")
    return {"documents": [s + "\n\n" for s in sections] + [last], "val_tokens": LLMC_VAL_TOKENS}


SPLITS = {"nanogpt": nanogpt_split, "llmc": llmc_split}


# ---------------------------------------------------------------------------------------------------------
# the command line


def _fraction(text: str) -> float:
    value = number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in [0, 1)")
    return value


def _encoding(text: str) -> str:
    try:
        if codecs.lookup(text)._is_text_encoding:  # type: ignore[attr-defined]
            return text
    except (LookupError, ValueError):  # a ValueError is about a name that no encoding can have
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r} is no encoding: utf-8, cp1252, latin-1, utf-16 and the like are"
    )


def _tokenizer(text: str) -> str | Tokenizer:
    """Reads --tokenizer: a kind of vocabulary, or the path of a file or folder that has one."""
    if text in TRAINERS:
        return text
    if not os.path.lexists(text) and os.sep not in text:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither {', '.join(TRAINERS)} nor a file or folder with a tokenizer"
        )
    return os.path.join(os.curdir, text) if os.sep not in text else text


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(prog=prog, description=ABOUT, examples=EXAMPLES, allow_abbrev=False)
    _add_input(parser)
    add = parser.add_argument
    add("--out", help=f"directory to make [data/NAME of the first input; {DEFAULT_OUT}]")
    add("--tokenizer", type=_tokenizer, metavar="NAME|PATH", help=f"{', '.join(TRAINERS)}; or an existing one: a "
        "run, a checkpoint, a data set, a tokenizer.bin, vocab.bpe, tokenizer.json, meta.pkl or a folder of Hugging "
        f"Face's [{DEFAULT_TOKENIZER}]")  # fmt: skip
    add("--max_vocab", type=at_least(257), default=DEFAULT_MAX_VOCAB, metavar="V",
        help="largest V of --tokenizer word and bpe [%(default)s]")  # fmt: skip
    validation = parser.add_mutually_exclusive_group()
    choose = validation.add_argument
    choose("--val_fraction", type=_fraction, metavar="X",
           help=f"share of the documents to validate with [{DEFAULT_VAL_FRACTION}]")  # fmt: skip
    choose(
        "--val_tokens", type=at_least(0), metavar="N", help="number of first tokens to validate with instead"
    )
    choose(
        "--split",
        choices=list(SPLITS),
        metavar="NAME",
        help=f"split one file of text as {' or '.join(SPLITS)} does",
    )
    add("--shard_tokens", type=at_least(1), default=DEFAULT_SHARD_TOKENS, metavar="N",
        help="tokens in a shard [%(default)s]")  # fmt: skip
    add("--workers", type=at_least(1), default=min(8, os.cpu_count() or 1), metavar="N",
        help="processes; the output does not depend on it [%(default)s]")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the data set at --out")
    return parser


def _add_input(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="the same as --input")
    add("--input", nargs="+", metavar="PATH", help="files or folders; - is standard input; else TinyStories")
    add("--format", choices=inputs.FORMATS, help="format of every input, if its name does not tell")
    add("--encoding", type=_encoding, metavar="NAME",
        help="encoding of text without a byte order mark, such as cp1252 [utf-8]")  # fmt: skip
    add("--keep_line_ends", action="store_true", help="leave CR LF and CR as they are")
    add("--delimiter", type=unescaped, default=EOT_PIECE.decode(),
        help=r"separator of documents in text, e.g. '\n\n'; '' for one document a file [%(default)s]")  # fmt: skip
    add("--field", type=typed, default="text",
        help="field or column that holds the text, a.b for one within another [%(default)s]")  # fmt: skip
    add(
        "--skip_null",
        action="store_true",
        help="leave out records whose field is null or missing, and bad pairs",
    )
    add("--template", metavar="NAME|TEXT|FILE", help="how records of prompts and answers become text: "
        f"{', '.join(templates())}, or your own with {{prompt}} and {{answer}} [{DEFAULT_TEMPLATE}]")  # fmt: skip
    add("--learn_prompt", action="store_true", help="learn prompts, too, not only answers")
    add("--max_len", type=at_least(0), default=0, metavar="N",
        help="leave out pairs of more tokens, such as the --T of the training [0: none]")  # fmt: skip


def parse_arguments(argv: list[str] | None, prog: str = PROG) -> argparse.Namespace:
    parser = make_parser(prog)
    args = parser.parse_args(argv)
    args.prog, args.encoding = prog, args.encoding or ""
    args.input = [*(args.input or []), *args.paths] or None
    args.field_given = "field" in parser.given  # type: ignore[attr-defined]
    if not args.input and (args.split, args.val_fraction, args.val_tokens) != (None, None, None):
        parser.error("TinyStories brings its own validation split; --split and --val_* need --input")
    if args.split and len(args.input) != 1:
        parser.error("--split needs one file of text as --input")
    args.out = args.out or default_out(args.input)
    return args


def default_out(names: list[str] | None) -> str:
    """The default of --out: data/my for my.txt or the folder my."""
    if not names:
        return DEFAULT_OUT
    path = os.path.abspath(names[0])
    name = os.path.basename(path)
    if not os.path.isdir(path):
        name = os.path.splitext(inputs.without_compression(name))[0]
    return os.path.join("data", "text" if name in ("", inputs.STDIN) else name)


# ---------------------------------------------------------------------------------------------------------
# from arguments to documents


def choose_documents(args: argparse.Namespace, how: How) -> tuple[dict[str, Any], int | None]:
    """The arguments of write_dataset that name the documents, and about how many characters these have."""
    if not args.input:
        return {"documents": hub_stories(), "source": HUB_NAME}, None
    kind = f".{args.format}" if args.format else ""
    sources = inputs.find(args.input, kind, args.encoding, lambda says: warn(args, says))
    check_apart(sources, args.out)
    check_delimiter([source for source in sources if source.kind == ".txt"], how)
    named = ", ".join(
        "standard input" if n == inputs.STDIN else os.path.basename(os.path.normpath(n)) for n in args.input
    )
    if args.split:
        if len(sources) != 1 or sources[0].kind != ".txt":
            raise DataError("--split needs one file of text as --input")
        return {**SPLITS[args.split]("".join(read_blocks(sources[0], how))), "source": named}, _total(sources)
    validation = {"val_fraction": args.val_fraction, "val_tokens": args.val_tokens}
    if form := choose_template(args, sources, how):
        how.pairs = True
        documents = lambda: pairs.read_pairs(sources, how, form, args.learn_prompt)  # noqa: E731
        asked = {"template": form.line, "max_len": args.max_len}
        return {"documents": documents, "source": named, **asked, **validation}, _total(sources)
    return {"documents": lambda: read_all(sources, how), "source": named, **validation}, _total(sources)


def choose_template(args: argparse.Namespace, sources: list[Source], how: How) -> template.Template | None:
    """The template if the records are prompts and answers: their form says so, or --template. None for text."""
    asked = args.template or args.learn_prompt or args.max_len
    if args.field_given and asked:
        raise DataError("--field names the field of a text, and --template, --learn_prompt and --max_len are for "
                        "prompts and answers: leave one out")  # fmt: skip
    record = None if args.field_given else pairs.first_record(sources, how)
    has_text = isinstance(record, dict) and isinstance(record.get(how.field), str)
    found = pairs.looks_like_pairs(record) or (not has_text and pairs.lacks_an_answer(record))
    if found and has_text and not asked:
        warn(
            args,
            f"the records hold pairs and a field {how.field!r}, which is taken: --template takes the pairs",
        )
    if not asked and (not found or has_text):
        return None
    if not found:
        has = ", ".join(map(str, list(record)[:12])) if isinstance(record, dict) else "no fields"
        raise DataError(f"{sources[0].name}: no prompts and answers (it has {has or 'no fields'}), which --template, "
                        "--learn_prompt and --max_len are for: docs/finetune.md shows their forms")  # fmt: skip
    return template.find(args.template or DEFAULT_TEMPLATE)


def check_end(asked: dict[str, Any], eot: bool) -> None:
    """Raises DataError if answers would have no end that a chat can tell from their lines."""
    if "template" in asked and not eot and not template.parse(asked["template"]).end.strip():
        raise DataError(
            "this tokenizer has no end-of-text id, so answers need another end: choose --template chatml, or one with "
            "a mark behind {answer}"
        )


def _total(sources: list[Source]) -> int | None:
    """The approximate number of characters in the files; None if a compressed one hides it."""
    if any(s.kind == ".parquet" or inputs.without_compression(s.name) != s.name for s in sources):
        return None
    return sum(os.path.getsize(source.path) for source in sources)


def check_apart(sources: list[Source], out: str) -> None:
    """Raises DataError if an input lies in the output folder, because that folder is to be replaced."""
    place = os.path.join(os.path.realpath(out), "")
    for source in sources:
        if os.path.realpath(source.path).startswith(place):
            raise DataError(f"{source.name} lies inside the output folder {out}: choose another --out")


def check_delimiter(sources: list[Source], how: How) -> None:
    """Raises DataError if a delimiter that was asked for separates nothing, because it is misspelt then.

    Text without the default delimiter is one document.
    """
    if not sources or how.delimiter in ("", EOT_PIECE.decode()):
        return
    if not any(len(list(islice(read_txt(source, how), 2))) > 1 for source in sources):
        raise DataError(
            f"--delimiter {how.delimiter!r} occurs nowhere in {sources[0].name}{' or the others' if sources[1:] else ''}: "
            "give what separates the documents, or '' for one document a file"
        )


def read_all(sources: list[Source], how: How) -> Iterator[str]:
    """Yields every text. Raises DataError if there is none."""
    how.skipped, found = 0, False
    for source in sources:
        for text in READERS[source.kind](source, how):
            found = found or bool(text)
            yield text
    if not found:
        names = sources[0].name + (f" and {len(sources) - 1} more" if sources[1:] else "")
        is_empty = not any(os.path.getsize(source.path) for source in sources)
        why = (
            "the input is empty"
            if is_empty
            else "white space, delimiters or skipped records are all there is"
        )
        raise DataError(f"{names}: no documents: {why}: name a file with text")


# ---------------------------------------------------------------------------------------------------------
# the work


def validation_warning(train: int, val: int) -> str:
    """A warning if the sizes of the splits are odd, with the remedy; "" if they are not."""
    share = f"{val:,} of {train + val:,} tokens validate"
    if val > train:
        return (
            f"{share}, more than half: whole documents do; choose --val_tokens, or --val_fraction 0 for none"
        )
    if 0 < val < MIN_VAL_TOKENS:
        return f"only {share}: raise --val_fraction, or choose 0 for none"
    return ""


def warn(args: argparse.Namespace, says: str) -> None:
    print(f"{args.prog}: {says}", file=sys.stderr)


def choose_tokenizer(asked: str | None) -> str | Tokenizer:
    if asked is None or asked in TRAINERS:
        return asked or DEFAULT_TOKENIZER
    return open_tokenizer(asked)


def convert(args: argparse.Namespace, files: list[str]) -> None:
    """Makes the data set from ids instead of text."""
    name = args.tokenizer or token_files.tokenizer_beside(files)
    if name in TRAINERS and name not in FIXED:
        raise DataError(
            f"--tokenizer {name} learns from text, and {files[0]} holds ids: name the tokenizer that made them, or text"
        )
    tokenizer = train(name) if name in FIXED else choose_tokenizer(name)
    report(args, token_files.convert(files, tokenizer, args))  # type: ignore[arg-type]


def run(args: argparse.Namespace) -> None:
    files = [] if args.format or args.split else token_files.files_of(args.input or [])
    if files:
        return convert(args, files)
    how = How(args.delimiter, args.field, args.skip_null, args.encoding, args.keep_line_ends)
    tokenizer = choose_tokenizer(args.tokenizer)
    eot = isinstance(tokenizer, str) or tokenizer.eot >= 0
    documents, total = choose_documents(args, how)
    check_end(documents, eot)
    with progress_line(total) as progress:
        meta = write_dataset(
            out=args.out, tokenizer=tokenizer, shard_tokens=args.shard_tokens, workers=args.workers,
            progress=progress, max_vocab=args.max_vocab, overwrite=args.overwrite, **{"eot": eot, **documents},
        )  # fmt: skip
    if not eot and meta["documents"] > 1:
        warn(args, "warning: this tokenizer has no end-of-text id: nothing separates the documents")
    if how.skipped:
        lacking = "a prompt and its answer" if how.pairs else f"a text in {args.field!r}"
        warn(args, f"left out {counted(how.skipped, 'record')} without {lacking}")
    if meta.get("too_long"):
        of = f"{meta['too_long']:,} of {meta['too_long'] + meta['documents']:,}"
        warn(
            args,
            f"left out {of} pairs of more than --max_len={args.max_len} tokens; the longest has {meta['longest']:,}",
        )
    report(args, meta)


def report(args: argparse.Namespace, meta: dict[str, Any]) -> None:
    tokens, name, V = meta["tokens"], meta["tokenizer"]["name"], meta["vocab_size"]
    warning = validation_warning(**tokens) if args.input and not args.split else ""
    if warning:
        warn(args, f"warning: {warning}")
    print(f"{args.out}: {tokens['train']:,} train and {tokens['val']:,} validation tokens ({name}, V={V})")
    if "learnt" in meta:
        learnt, kept = sum(meta["learnt"].values()), args.max_len if meta["too_long"] else meta["longest"]
        print(
            f"{counted(meta['documents'], 'pair')}, {learnt:,} of their tokens are learnt, at most {kept:,} tokens in one"
        )


def main(argv: list[str] | None = None, prog: str = PROG) -> int:
    args = parse_arguments(argv, prog)
    return run_command(prog, lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
