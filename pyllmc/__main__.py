"""python -m pyllmc: the commands, a line each."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyllmc.errors import begin_command, run_command

PROG = "pyllmc"
HERE = Path(__file__).resolve().parent
USE = re.compile(r"python3? -m (pyllmc\.\w+)([^:\n]*?)(?:: |  +)(.+)")  # in a docstring, and what it does


def commands() -> Iterator[tuple[str, str]]:
    """(how it is called, what it does) of every module that is a command, from its docstring."""
    for path in sorted([*HERE.glob("*.py"), *HERE.glob("*/__main__.py")]):
        source = path.read_text(encoding="utf-8")
        if path == HERE / "__main__.py" or "begin_command(" not in source.partition("__main__")[2]:
            continue
        use = USE.search(ast.get_docstring(ast.parse(source)) or "")
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
    print(
        f"{PROG}: '{arguments[0]}': a command is python -m pyllmc.NAME; without arguments they are listed",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    begin_command()
    sys.exit(main())
