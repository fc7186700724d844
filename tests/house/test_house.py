"""The rules of the house as tests: the order of includes, the calls that the library must not make, the parts of every
kernel."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ISAS, ROOT, ffi, lib

CSRC = [path for path in sorted((ROOT / "csrc").rglob("*.*")) if path.parent.name != "cpu"]
CPU = sorted((ROOT / "csrc/cpu").glob("*.[ch]"))
CUDA = sorted((ROOT / "cuda").glob("*.cu"))
LIBRARY = [path for path in CSRC + CPU + CUDA if path.parent.name != "programs"]

# The rooms of csrc/ in their order of reading: each builds on those before it. All of them share the tables and headers
# beside them.
ROOMS = ["base", "text", "data", "model", "files", "options", "write", "train", "programs"]
SHARED = ["kernels.h", "pyllmc.h", "tensors.def", "options.def", "models.def"]


def room_of(name: str) -> int:
    """The number of a file's room; -1: all rooms share the file."""
    room = Path(name).parent.name
    assert room in ROOMS or name in SHARED, f"csrc/{name} is in no room: {', '.join(ROOMS)}"
    return ROOMS.index(room) if room else -1


def includes(path: Path) -> list[str]:
    return re.findall(r'^#include "([^"]+)"', path.read_text(), re.M)


def without_comments(path: Path) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.S)


def includes_within(room: str) -> dict[str, set[str]]:
    """For each module (a header and its source) of a room: the other modules of that room that it includes."""
    found: dict[str, set[str]] = {}
    for path in CSRC:
        if path.parent.name == room:
            near = {Path(name).stem for name in includes(path) if Path(name).parent.name == room}
            found.setdefault(path.stem, set()).update(near - {path.stem})
    return found


@pytest.mark.parametrize("path", CSRC, ids=lambda p: p.name)
def test_files_include_from_their_room_or_one_before_it(path):
    own = str(path.relative_to(ROOT / "csrc"))
    for name in includes(path):
        assert room_of(name) <= room_of(own), f"{own} includes {name}, which builds on it"


@pytest.mark.parametrize("room", ROOMS)
def test_no_circle_of_includes_in_a_room(room):
    left = includes_within(room)
    while free := [name for name, near in left.items() if not near & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"csrc/{room}/: these include each other: {', '.join(left)}"


@pytest.mark.parametrize("path", CSRC, ids=lambda p: p.name)
def test_the_model_never_names_a_device(path):
    if path.parent.name != "programs":
        assert not [name for name in includes(path) if name.startswith("cpu/")]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.name)
def test_the_library_never_exits_aborts_or_prints(path):
    called = re.findall(
        r"\b(exit|_exit|abort|assert|printf|puts|putchar|perror|system)\s*\(", without_comments(path)
    )
    assert not called, f"{path.name} calls {called}"
    assert "stderr" not in without_comments(path)


def test_no_fast_math_and_no_native_code_in_the_library():
    flags = "\n".join(
        line for line in (ROOT / "Makefile").read_text().splitlines() if not line.startswith("#")
    )
    assert "-ffast-math" not in flags
    assert "-Ofast" not in flags
    assert "-march=native" not in flags


def test_only_llmc_symbols_are_exported():
    out = subprocess.run(
        ["nm", "-D", "--defined-only", ffi_path()], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[-1] for line in out.splitlines() if line.split()[-2] in "TDBR"]
    assert names
    assert [name for name in names if not name.startswith("llmc_") and name not in ("_init", "_fini")] == []


def ffi_path() -> str:
    return os.environ.get("PYLLMC_LIB") or str(ROOT / "pyllmc/lib/libpyllmc.so")


def test_the_library_leaves_the_process_as_it_was():
    """-ffast-math at link time would switch the whole process to flush-to-zero (RELIABILITY of peers)."""
    code = "import pyllmc._ffi as f; f.load(); x = 5e-324; print(x / 2 == 0, x > 0, float('nan') != float('nan'))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert out.split() == ["True", "True", "True"]


ENTRIES = [name for name, field in ffi.typeof("Kernels").fields if field.type.kind == "function"]


@pytest.mark.parametrize("isa", ISAS)
def test_every_entry_is_filled_for_every_instruction_set(isa):
    table = lib.llmc_kernels(isa.encode())
    assert [name for name in ENTRIES if getattr(table, name) == ffi.NULL] == []


HOUSEKEEPING = {
    "supported",
    "memory_available",
    "open",
    "close",
    "alloc",
    "free",
    "workspace_bytes",
    "sync",
    "fill",
    "copy_in",
    "copy_out",
    "replay",
    "recorded",
    "store",
}
ONLY_ON_CPUS = {"compress"}


@pytest.mark.parametrize("entry", [name for name in ENTRIES if name not in HOUSEKEEPING])
def test_every_kernel_has_its_file_and_its_test(entry):
    defined = [
        path.name for path in CPU if re.search(rf"\bK\({entry}\)\(", path.read_text()) and path.suffix == ".c"
    ]
    assert len(defined) == 1, f"{entry} is defined in {defined}"
    files = [path.name for path in CUDA if re.search(rf"^void gpu_{entry}\(", path.read_text(), re.M)]
    assert len(files) == (entry not in ONLY_ON_CPUS), f"gpu_{entry} is defined in {files}"
    tests = (ROOT / "tests").rglob("test_*.py")
    tested = [path.name for path in tests if re.search(rf"\b(kernels|k)\.{entry}\(", path.read_text())]
    assert tested, f"no test calls {entry}"


def imported_by(code: str) -> set[str]:
    code += "\nimport sys; print(*sorted(m for m in sys.modules if '.' not in m))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    return set(out.split())


def test_import_is_light():
    assert not imported_by("import pyllmc") & {"numpy", "cffi", "torch", "datasets", "tiktoken"}
    assert not imported_by("import pyllmc; pyllmc.Model; pyllmc.Trainer") & {
        "torch",
        "datasets",
        "tiktoken",
        "rich",
        "matplotlib",
    }


def test_readme_commands_exist():
    readme = "\n".join(
        path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    )
    makefiles = (ROOT / "Makefile").read_text() + (ROOT / "cuda" / "cuda.mk").read_text()
    targets = set(re.findall(r"^([a-z_]+):", makefiles, re.M))
    for target in re.findall(r"^\s*make ([a-z_]+)", readme, re.M):
        assert target in targets, f"README says make {target}"
    for module in set(re.findall(r"python3? -m (pyllmc\.\w+)", readme)):
        path = ROOT / module.replace(".", "/")
        found = path.with_suffix(".py").exists() or (path / "__main__.py").exists()
        assert found, f"README says python -m {module}"
    for path in set(re.findall(r"`((?:csrc|cuda|pyllmc|dev|tests|bench|docs)/[\w./-]+)`", readme)):
        assert (ROOT / path).exists(), f"README names {path}"


def test_files_stay_short():
    tracked = [
        path
        for path in [*CSRC, *CPU, *ROOT.glob("pyllmc/**/*.py"), *ROOT.glob("dev/*"), *ROOT.glob("cuda/**/*")]
        if path.is_file()
    ]
    long = {path.name: n for path in tracked if (n := len(path.read_text().splitlines())) > 400}
    assert not long, f"over 400 lines: {long}"


# ---- words ----

SPEAKING = [
    path
    for folder in ("csrc", "cuda", "pyllmc", "dev", "tests")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".c", ".h", ".cu", ".cuh", ".cpp", ".def", ".py"} and path.parts[-2] != "lib"
]
UNMENDED = [  # rooms whose comments do not follow the rule yet
    "csrc/cpu",
    "csrc/files",
    "csrc/model",
    "csrc/programs",
    "csrc/train",
    "csrc/write",
    "cuda",
    "pyllmc",
]
UNMENDED_FILES = ["csrc/kernels.h", "csrc/pyllmc.h", "csrc/tensors.def", "csrc/models.def"]


def comments_of_python(text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each comment and docstring. A comment that goes on from the line above is not a new one."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            yield node.body[0].lineno, ast.get_docstring(node) or ""
    above = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            if not (alone and above == token.start[0] - 1):
                yield token.start[0], token.string.lstrip("#: ")
            above = token.start[0] if alone else 0


def comments_of_c(text: str) -> Iterator[tuple[int, str]]:
    for found in re.finditer(r"/\*+\s*(.*?)\*/|(?<!:)//\s*([^\n]*)", text, re.S):
        yield text.count("\n", 0, found.start()) + 1, found[1] or found[2] or ""


def begins_badly(comment: str) -> bool:
    return re.match(r"(of|that|which)\s", comment, re.I) is not None


def test_a_comment_begins_with_its_subject():
    """A comment that begins with "of", "that" or "which" leaves its subject for the reader to guess."""
    found = []
    for path in SPEAKING:
        name = str(path.relative_to(ROOT))
        if name in UNMENDED_FILES or any(name.startswith(f"{room}/") for room in UNMENDED):
            continue
        comments = comments_of_python if path.suffix == ".py" else comments_of_c
        found += [
            f"{name}:{line}: {text[:60]}" for line, text in comments(path.read_text()) if begins_badly(text)
        ]
    assert not found, "\n".join(found)


def test_the_rule_sees_every_kind_of_comment():
    python = '"""Of a module."""\nx = 1  # of x\n# first\n# that goes on\n\n# Which one?\n'
    assert [line for line, text in comments_of_python(python) if begins_badly(text)] == [1, 2, 6]
    in_c = "/* of a\n * thing */ int x; // that one\n/* x of y */\n/* ---- which ---- */\n"
    assert [line for line, text in comments_of_c(in_c) if begins_badly(text)] == [1, 2]
