"""Every remedy in a message can be followed: its commands, options, make's targets, packages and files exist.

The texts are found in the sources: all strings of csrc/*.c and of the Python files, what --help shows, and the documents.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from pyllmc.__main__ import commands, hint
from pyllmc.tables import options

PYTHON = [
    *(ROOT / "pyllmc").rglob("*.py"),
    *(ROOT / "dev").glob("prepro*.py"),
    ROOT / "train_gpt2.py",
    ROOT / "setup.py",
]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
MAKEFILES = [ROOT / "Makefile", ROOT / "cuda/cuda.mk"]
APT = {
    "gcc",
    "make",
    "python3-venv",
    "lib%s-dev",
}  # each was looked for in Debian; lib%s-dev: libopenblas-dev
HOLE = "%s"  # stands where a message names its input
FOREIGN = {  # options of other programs, which messages name as theirs
    "--help",
    "--nnodes",
    "--nproc_per_node",
    "--editable",
    "--force-reinstall",
    "--name",
    "--no_name",
}


def strings_of_c(path: Path) -> Iterator[str]:
    code = re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.S)
    for found in re.finditer(r'"(?:[^"\\\n]|\\.)*"(?:\s*"(?:[^"\\\n]|\\.)*")*', code):
        parts = re.findall(r'"((?:[^"\\\n]|\\.)*)"', found[0])
        yield "".join(parts).replace('\\"', '"').replace("\\n", "\n")


def strings_of_python(path: Path) -> Iterator[str]:
    """Whole texts: an f-string has a hole for each of its values."""
    tree = ast.parse(path.read_text())
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else HOLE for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


@functools.cache
def texts() -> tuple[tuple[str, str], ...]:
    """(file, text) of every text that may be shown."""
    found = [(path.name, text) for path in (ROOT / "csrc").rglob("*.c") for text in strings_of_c(path)]
    found += [(path.name, text) for path in PYTHON for text in strings_of_python(path)]
    found += [("options.def", option.help) for option in options.options(*options.OF_ANY).values()]
    found += [(path.name, line) for path in PAGES for line in re.findall(r"`([^`\n]+)`", path.read_text())]
    return tuple(found)


@functools.cache
def help_of(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    return done.stdout if done.returncode == 0 else ""


@functools.cache
def options_of(module: str) -> frozenset[str]:
    """The options of a command, by its --help and those of its own commands."""
    shown = help_of("-m", module) + "".join(
        help_of("-m", module, part) for part in ("encode", "decode", "info") if "tokenizer" in module
    )
    table = {"pyllmc.train": options.OF_TRAINING, "pyllmc.chat": ("SHARED", "SHARED_CALL", "CHAT")}.get(
        module
    )
    return frozenset(re.findall(r"--(\w+)", shown)) | frozenset(options.options(*table) if table else ())


MODULES = [call.split()[2] for call, _ in commands()]


def all_options() -> set[str]:
    known = set(options.options(*options.OF_ANY)).union(*map(options_of, MODULES))
    for script in ("dev/prepro_tinystories.py", "train_gpt2.py"):
        known |= set(re.findall(r"--(\w+)", help_of(script)))
    return known | {f"no_{name}" for name, o in options.options().items() if o.type == "FLAG"}


def commands_in(text: str) -> Iterator[tuple[str, str]]:
    """(module, its arguments up to the end of the command) of each python -m in a text."""
    for found in re.finditer(
        r"python3? -m (pyllmc(?:\.\w+)?)((?: +(?!python)(?:--?)?[\w./={}%:|\[\]\"-]+)*)", text
    ):
        yield found[1], re.split(r"\b(?:and|or|then|with|where)\b", found[2])[0]


def test_every_command_that_is_named_is_there():
    named = [(file, *command) for file, text in texts() for command in commands_in(text)]
    assert {"pyllmc.convert", "pyllmc.train", "pyllmc.stories"} <= {module for _, module, _ in named}
    wrong = []
    for file, module, arguments in named:
        if module in ("pyllmc", "pyllmc.NAME"):
            continue
        if module not in MODULES:
            wrong.append(f"{file}: python -m {module} is no command")
            continue
        unknown = (
            {n.replace("-", "_") for n in re.findall(r"--(\w[\w-]*)", arguments)}
            - options_of(module)
            - {"help", "version", "name"}
        )
        wrong += [f"{file}: {module} has no --{name}" for name in unknown if not name.startswith("no_")]
    assert not wrong, "\n".join(wrong)


def test_every_option_that_is_named_is_there():
    known = all_options()
    wrong = [
        f"{file}: there is no {name}: {text!r:.120}"
        for file, text in texts()
        for name in re.findall(r"(?<![\w-])--[a-z][\w-]*(?![\w*-])", text)
        if name not in FOREIGN
        and not name.endswith("_")
        and name[2:].replace("-", "_") not in known
        and not file.startswith("setup")
        and not file.endswith(".md")
    ]
    assert not wrong, "\n".join(wrong)


def test_every_target_of_make_that_is_named_is_there():
    rules = "\n".join(path.read_text() for path in MAKEFILES)
    targets = set(re.findall(r"^([a-z][\w-]*):", rules, re.M))
    assert {"all", "setup", "emu", "cuda", "demo"} <= targets
    for file, text in texts():
        named = re.findall(r"`make ([\w-]+)`|\bor make ([a-z]+) and|^make ([a-z-]+)$", text)
        for target in filter(None, (name for names in named for name in names)):
            assert target in targets, f"{file}: make {target}"
        for variable in re.findall(r"\bmake ([A-Z_]+)=", text):
            assert re.search(rf"\$\({variable}\)|\b{variable} *[?:]?=", rules), f"{file}: make {variable}="


def test_every_package_that_is_missing_can_be_installed():
    """need("module", ...) and begin_command("module") name packages of pyproject.toml, so that the extras bring
    them."""
    project = (ROOT / "pyproject.toml").read_text()
    known = {name.lower().replace("-", "_") for name in re.findall(r'"([A-Za-z][\w-]*)\s*[>=;]', project)}
    known.add("compression")  # a part of Python 3.14's own library
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", ""))
            if called not in ("need", "begin_command", "how_to_install"):
                continue
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
            package = next((k.value.value for k in node.keywords if k.arg == "package"), None)
            if called == "need":  # the third argument is the package, if its name differs
                names = [package or (names[2] if len(names) > 2 else names[0])] if names else []
            for name in names:
                assert name.partition(".")[0].lower().replace("-", "_") in known, (
                    f"{path.name}: {called}({name!r})"
                )
    for file, text in texts():
        for extra in re.findall(r"pip install [^\n]*\[([\w,]+)\]", text):
            for name in extra.split(","):
                assert re.search(rf"^{name} = \[", project, re.M), f"{file}: the extra {name}"


def test_every_package_of_the_system_is_known():
    sources = [*texts(), *((path.name, path.read_text().replace("\\\n\t", "")) for path in MAKEFILES)]
    named = {}
    for file, text in sources:
        for packages in re.findall(
            r"apt-get\s+install\s+((?:(?:lib\$\(BLAS\)|[a-z0-9%])[\w.%$()-]*[ ,)]?)+)", text
        ):
            for package in re.findall(
                r"[\w%$().-]+", packages.replace("$(comma)", ",").split(",")[0].split(" or ")[0].rstrip("):")
            ):
                named[package.replace("$(BLAS)", "%s")] = file
    assert {"gcc", "python3-venv"} <= set(named)
    assert set(named) <= APT, {package: file for package, file in named.items() if package not in APT}


def test_every_file_that_is_named_is_there():
    rules = (ROOT / "Makefile").read_text() + (ROOT / "cuda/cuda.mk").read_text()
    for file, text in texts():
        for name in re.findall(
            r"(?<![\w/.-])(?:dev|docs|csrc|cuda|tests)/[\w/.-]+\.(?:py|md|c|h|def|mk|txt)\b", text
        ):
            assert (ROOT / name).exists(), f"{file}: {name}"
        for program in re.findall(r"(?<![\w/])\./([a-z]\w+_gpt2\w*|train_gpt2\w*)(?!\.py)\b", text):
            assert re.search(rf"\b{program}\b", rules), f"{file}: ./{program}"


# ---- --help of every command, with numpy and cffi alone ----


@pytest.mark.parametrize("module", MODULES)
def test_help_needs_nothing_fits_the_terminal_and_ends_with_examples_and_exit_codes(module):
    code = f"""
import sys, runpy
for name in ("torch", "transformers", "matplotlib", "tiktoken", "tokenizers", "safetensors", "datasets", "rich", "regex", "gguf"):
    sys.modules[name] = None
sys.argv = [{module!r}, "--help"]
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "exit status: 0 done, 2 usage, 3 memory" in " ".join(done.stdout.split())
    if module in ("pyllmc.train", "pyllmc.chat"):
        return  # its --help is csrc/options/optiontext.c's
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []
    examples = done.stdout.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    assert examples and all(line.strip().startswith(f"python -m {module}") for line in examples)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("module", MODULES)
def test_help_that_cannot_be_written_is_an_error(module):
    """As for all other output; argparse would say nothing, and exit with 0."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", module, "--help"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 5 and "No space left on device" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["pyllmc", *MODULES])
def test_every_command_tells_its_version(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and re.fullmatch(r"pyllmc \d+\.\d+\.\d+\n", done.stdout), done.stderr


@pytest.mark.parametrize(
    "word, meant",
    [
        ("trian", "train"),
        ("generate", "sample"),
        ("Stories", "stories"),
        ("pyllmc.plots", "plot"),
        ("export", "convert"),
    ],
)
def test_an_unknown_command_suggests_the_right_one(word, meant):
    assert hint(word) == f"'{word}': did you mean python -m pyllmc.{meant}?"
    assert "python -m pyllmc lists them" in hint("nonsense")
