"""python -m pyllmc: lists the commands, one a line."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence

from pyllmc import __version__
from pyllmc.base.checkout import PACKAGE
from pyllmc.base.errors import begin_command, run_command
from pyllmc.tables.options import meant, one_of

PROG = "pyllmc"
# Each name that other trainers use, and our command that does the same.
SYNONYMS = {
    "generate": "sample",
    "inference": "sample",
    "write": "sample",
    "talk": "chat",
    "export": "convert",
    "eval": "evaluate",
    "benchmark": "evaluate",
    "perplexity": "evaluate",
    "finetune": "train",
    "test": "check",
    "data": "prepro",
    "prepare": "prepro",
    "tokenize": "tokenizer",
    "encode": "tokenizer",
    "draw": "plot",
}
# matches how a docstring says a command is called, and what it does
USE = re.compile(r"python3? -m (pyllmc\.\w+)([^:\n]*?)(?:: |  +)(.+)")


def commands() -> Iterator[tuple[str, str]]:
    """Yields (how it is called, what it does) for every module that is a command, from its docstring."""
    for path in sorted([*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__main__.py")]):
        source = path.read_text(encoding="utf-8")
        if path == PACKAGE / "__main__.py" or "begin_command(" not in source.partition("__main__")[2]:
            continue
        told = ast.get_docstring(ast.parse(source)) or ""
        use = USE.search(
            re.sub(r"(?<=\S)\n(?=\S)(?!python3? -m)", " ", told)
        )  # a sentence may take two lines
        if use:
            module, arguments, does = use.groups()
            yield f"python -m {module}{arguments}", re.split(r"[.;](?=\s|$)", does)[0]


def listing() -> str:
    rows = list(commands())
    width = max(len(call) for call, _ in rows)
    lines = [f"  {call:{width}}  {does}" for call, does in rows]
    return "\n".join(["the commands of pyllmc, each with --help:", "", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if set(arguments) <= {"-h", "--help"}:
        return run_command(PROG, lambda: print(listing()))
    if arguments[0] == "--version":
        return run_command(PROG, lambda: print(f"pyllmc {__version__}"))
    print(f"{PROG}: {hint(arguments[0])}", file=sys.stderr)
    return 2


def hint(word: str) -> str:
    """Says which command python -m pyllmc WORD may have meant."""
    names = [call.split()[2] for call, _ in commands()]
    asked = word.removeprefix("pyllmc.").lower().replace("-", "_")
    near = meant(SYNONYMS.get(asked, asked), [name.removeprefix("pyllmc.") for name in names])
    if near:
        return f"'{word}': did you mean {one_of([f'python -m pyllmc.{name}' for name in near])}?"
    return f"'{word}': a command is python -m pyllmc.NAME; python -m pyllmc lists them"


if __name__ == "__main__":
    begin_command()
    sys.exit(main())
