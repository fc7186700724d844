"""python -m pyllmc.sample RUN: write text with a trained model, shown as it is written; or answer a query after examples."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pyllmc.base.errors import begin_command, python_command, run_command, typed

if __name__ == "__main__":
    begin_command("numpy", "cffi")

from pyllmc.base import live
from pyllmc.base.errors import DataError, counted
from pyllmc.convert.source import locate
from pyllmc.draw import chances
from pyllmc.engine.checkpoint import template_of
from pyllmc.engine.steps import Step
from pyllmc.priming import MOST, Form, Primer, prime, read_examples
from pyllmc.tables.options import Parser, add_options, at_least, unescaped
from pyllmc.text.tokenizer import shown
from pyllmc.writer import Writer, open_writer, tell_weights

PROG = "pyllmc.sample"
# rows of csrc/options.def that are options here; WORDS and DEFAULTS replace their help and their defaults
OPTIONS = (
    "prompt",
    "template",
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
    "prompt": "the beginning of each text, taken literally; of a model that was fine-tuned on pairs, a turn to answer; behind "
    "--examples the query; default: the start of a document",
    "template": "how a turn becomes text: plain, alpaca, chatml, or your own with {prompt} and {answer}; auto: as the model "
    "was fine-tuned; story: the prompt is taken literally, as with --examples",
    "seed": "seed of the first text; each further one has the next",
    "temperature": "0: always the likeliest token, the default with --examples; below 1 texts are safer, above wilder",
    "precision": "number format of weights and activations: fp32, or bf16, which is faster on a CPU with AMX, or AMD's with AVX512_BF16",
    "weights": "number format of the weights: fp32 (as --precision stores them), bf16 or int8; fewer bytes are read faster",
    "device": "cpu, cuda, or emu, which runs the CUDA kernels on the CPU to test them; auto: cpu",
}
EXAMPLES = (
    'python -m pyllmc.sample runs/demo --prompt "Once upon a time"',
    'python -m pyllmc.sample runs/demo --count=3 --top_p=0.9 --stop="The end"',
    "python -m pyllmc.sample hub:gpt2 --prompt Hello --temperature=0",
    "python -m pyllmc.sample runs/demo --prompt Once --show_work=3",
    "python -m pyllmc.sample hub:gpt2 --examples=pairs.jsonl --prompt=cheese",
)
# options that belong to the model; the others belong to the text
OF_MODEL = ("tokenizer", "threads", "weights", "precision", "device")
DEFAULTS: dict[str, Any] = {"seed": 0}
MOST_OF_TEXT = 200  # tokens
SHOWN = 5  # alternatives of --show_work without a number
# options that belong to --examples: the fields of Form, with their help
OF_FORM = {
    "separator": "stands between a query and its answer",
    "end": "stands behind an answer",
    "task": "a text before the examples, such as 'Translate English to French:'",
}


def make_parser() -> Parser:
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
        "--max_new_tokens",
        type=at_least(0),
        help=f"the most tokens in a text [{MOST_OF_TEXT}; with --examples {MOST}]",
    )
    parser.add_argument(
        "--stop",
        action="append",
        type=unescaped,
        default=[],
        help=r"ends a text before this, e.g. '\n\n' (\n \t \r \\ \xHH \uHHHH are characters); may be repeated",
    )
    parser.add_argument(
        "--show_work",
        type=at_least(1),
        nargs="?",
        const=SHOWN,
        metavar="N",
        help=f"show each token with the N likeliest ones of its moment [{SHOWN}]: the probabilities by which it was drawn (after "
        "temperature, top_k, top_p and repetition_penalty), and the model's own",
    )
    add_priming(parser)
    add_options(parser, OPTIONS, WORDS, **DEFAULTS)
    return parser


def add_priming(parser: Parser) -> None:
    parser.add_argument(
        "--examples",
        metavar="FILE",
        help='a .jsonl file of lines {"query": "...", "answer": "..."}, which the model reads before the query',
    )
    parser.add_argument(
        "--shots",
        type=at_least(0),
        metavar="N",
        help="how many examples to use, the first ones; default: all",
    )
    for name, words in OF_FORM.items():
        usual = shown(getattr(Form(), name).encode())
        help = f"{words}, with --examples" + (f" ['{usual}']" if usual else "")
        parser.add_argument(f"--{name}", type=unescaped, metavar="TEXT", help=help)


def with_number(arguments: Sequence[str]) -> list[str]:
    """The arguments with --show_work=N for a bare --show_work, because argparse would take the run behind it for N."""
    return [f"--show_work={SHOWN}" if a in ("--show_work", "--show-work") else a for a in arguments]


def parse(parser: Parser, arguments: Sequence[str]) -> dict[str, Any]:
    """The options by name, with the defaults of a text, or of an answer after examples."""
    o = vars(parser.parse_args(with_number(arguments)))
    if o["examples"] is None:
        for name in ("shots", *OF_FORM):
            if o.pop(name) is not None:
                parser.error(f"--{name} belongs to --examples=FILE")
    elif not o["prompt"]:
        parser.error("--examples needs a query: --prompt=TEXT")
    elif o["template"] not in ("auto", "story"):
        parser.error(
            f"--template={o['template']} makes a turn of the prompt, and --examples a query: leave one of them out"
        )
    elif "temperature" not in parser.given:
        o["temperature"] = 0.0
    if o["max_new_tokens"] is None:
        o["max_new_tokens"] = MOST_OF_TEXT if o["examples"] is None else MOST
    return o


class Source(NamedTuple):
    """What is shown first, and functions of a seed that write: pieces of text, or steps with `most` alternatives."""

    head: str
    pieces: Callable[[int], Iterator[str]]
    steps: Callable[[int, int], Iterator[Step]]


def text_after(prompt: str, writer: Writer, how: dict[str, Any]) -> Source:
    given = os.fsencode(prompt)  # bytes, because the tokenizer judges whether they are text
    return Source(
        typed(prompt),
        lambda seed: writer.stream(given, seed=seed, **how),
        lambda seed, most: writer.steps(given, seed=seed, alternatives=most, **how),
    )


def answer_to(query: str, writer: Writer, how: dict[str, Any]) -> Source:
    form = Form(**{name: how.pop(name) for name in OF_FORM if how[name] is not None})
    for name in OF_FORM:
        how.pop(name, None)
    path, shots = how.pop("examples"), how.pop("shots")
    pairs = read_examples(path, form.checked())
    if shots is not None and shots > len(pairs):
        raise DataError(
            f"--shots={shots}, but {path} has {counted(len(pairs), 'example')}: lower it, or add some"
        )
    prime([], query, **form._asdict())  # refuses a query that the form cannot write
    primer = Primer(writer, pairs[:shots], **form._asdict(), **how, longest=query)
    return Source(
        f"{query}{form.separator}",
        lambda seed: primer.stream(query, seed),
        lambda seed, most: primer.steps(query, most, seed),
    )


def show_text(source: Source, seed: int) -> None:
    for piece in itertools.chain([source.head], source.pieces(seed)):
        live.clear()
        print(piece, end="", flush=True)


def show_steps(source: Source, seed: int, most: int, changes: str) -> None:
    live.clear()
    print(source.head, chances.heading(changes), sep="\n")
    for number, step in enumerate(source.steps(seed, most), 1):
        live.clear()
        print("\n".join(chances.lines_of(step, number, not changes)), flush=True)


def changes_of(o: dict[str, Any]) -> str:
    """The options that make the probabilities differ from the model's own."""
    idle = {"temperature": (1,), "top_k": (0,), "top_p": (0, 1), "repetition_penalty": (0, 1)}
    return ", ".join(f"{name} {o[name]:g}" for name, values in idle.items() if o[name] not in values)


def main(arguments: Sequence[str] | None = None) -> int:
    o = parse(make_parser(), sys.argv[1:] if arguments is None else arguments)

    def work() -> None:
        run, prompt, count, seed, most = (o.pop(n) for n in ("run", "prompt", "count", "seed", "show_work"))
        run = locate(run) or run
        changes, form = changes_of(o), template_of(run, o.pop("template"))
        if form and prompt and o["examples"] is None:
            prompt, o["stop"] = form.asked(prompt), [*o["stop"], form.stop]
        writer = open_writer(run, **{name: o.pop(name) for name in OF_MODEL})
        tell_weights(PROG, run, f"{python_command()} -m {PROG} ")
        if o["examples"] is None:
            del o["examples"]
            source = text_after(prompt, writer, o)
        else:
            source = answer_to(typed(prompt), writer, o)
        for i in range(count):
            show_steps(source, seed + i, most, changes) if most else show_text(source, seed + i)
            print(end=("" if most else "\n") + ("" if i + 1 == count else "\n"), flush=True)

    return run_command(PROG, work)


if __name__ == "__main__":
    sys.exit(main())
