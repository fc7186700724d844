"""The rules of the house as tests: the order of the rooms, the calls that the library must not make, every kernel, comments."""

from __future__ import annotations

import ast
import io
import itertools
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CPU_KERNELS, ROOT, ffi, make_kernels

from pyllmc.engine import _ffi
from pyllmc.tables import options

CSRC = [path for path in sorted((ROOT / "csrc").rglob("*.*")) if path.parent.name != "cpu"]
CPU = sorted((ROOT / "csrc/cpu").glob("*.[ch]"))
CUDA = sorted((ROOT / "cuda").glob("*.cu*"))
LIBRARY = [path for path in CSRC + CPU + CUDA if path.parent.name != "programs"]

# The rooms of csrc/ in their order of reading: each builds on those before it. All of them share the tables and headers
# beside them.
ROOMS_OF_C = ["base", "text", "data", "model", "files", "options", "write", "train", "programs"]
SHARED = ["kernels.h", "pyllmc.h", "frontends.h", "tensors.def", "options.def", "models.def", "devices.def"]


def room_of(name: str) -> int:
    """The number of a file's room; -1: all rooms share the file."""
    room = Path(name).parent.name
    assert room in ROOMS_OF_C or name in SHARED, f"csrc/{name} is in no room: {', '.join(ROOMS_OF_C)}"
    return ROOMS_OF_C.index(room) if room else -1


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


@pytest.mark.parametrize("room", ROOMS_OF_C)
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
        line
        for name in ("Makefile", "cuda/cuda.mk", "cuda/emu/emu.mk", "csrc/cpu/isas.def")
        for line in (ROOT / name).read_text().splitlines()
        if not line.startswith("#")
    )
    assert "-ffast-math" not in flags
    assert "use_fast_math" not in flags
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
    code = "import pyllmc.engine._ffi as f; f.load(); x = 5e-324; print(x / 2 == 0, x > 0, float('nan') != float('nan'))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert out.split() == ["True", "True", "True"]


ENTRIES = [name for name, field in ffi.typeof("Kernels").fields if field.type.kind == "function"]


@pytest.mark.parametrize("name", CPU_KERNELS)
def test_every_entry_is_filled_for_every_instruction_set(name):
    table = make_kernels(name).table
    assert [name for name in ENTRIES if getattr(table, name) == ffi.NULL] == []


def test_the_help_names_every_device():
    """Those of csrc/devices.def."""
    option = re.search(r"^\w+\(STRING, device, .*$", (ROOT / "csrc/options.def").read_text(), re.M)
    assert option and [name for name in _ffi.DEVICES if not re.search(rf"\b{name}\b", option[0])] == []


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
        path.name
        for path in CPU
        if path.suffix == ".c" and re.search(rf"^void K\({entry}\)\(", path.read_text(), re.M)
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


def test_every_option_is_used_by_the_engine():
    rooms = ROOMS_OF_C[ROOMS_OF_C.index("options") :]
    code = "\n".join(without_comments(path) for path in CSRC if path.parent.name in rooms)
    unused = [name for name in options.options(*options.OF_ANY) if not re.search(rf"(->|\.){name}\b", code)]
    assert not unused, f"csrc/ reads none of the options {unused}"


def test_files_stay_short():
    tracked = [
        path
        for path in [*CSRC, *CPU, *ROOT.glob("pyllmc/**/*.py"), *ROOT.glob("dev/*"), *ROOT.glob("cuda/**/*")]
        if path.is_file() and path.suffix != ".pyc"
    ]
    long = {path.name: n for path in tracked if (n := len(path.read_text().splitlines())) > 400}
    assert not long, f"over 400 lines: {long}"


# The rooms of pyllmc/, the lowest first: a file imports from its own room and from lower ones. Above them is the face,
# the files of pyllmc/ itself. pyllmc/__init__.py, which every import runs first, imports nothing and holds the version.
ROOMS = [
    "base",
    "tables",
    "text",
    "stories",
    "engine",
    "draw",
    "convert",
    "planning",
    "parity",
    "distributed",
]
ABOVE = ["evaluate", "nn", "mingpt"]  # rooms that build on the face; the last two need torch
PYTHON = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "pyllmc").rglob("*.py"))
    if "lib" not in path.parts
}
COMMANDS = [
    name for name, path in PYTHON.items() if re.search(r"^    begin_command\(", path.read_text(), re.M)
]


def floor_of(module: str) -> int:
    """The height of its room. A command stands above all rooms, because no module imports it."""
    parts = module.split(".")
    if module == "pyllmc":
        return -1
    floors = [*ROOMS, "the face", *ABOVE, "commands"]
    room = parts[1] if parts[1] in [*ROOMS, *ABOVE] else "the face"
    return floors.index("commands" if module in COMMANDS else room)


def imports(module: str) -> set[str]:
    """The modules of pyllmc that one imports, at once or within a function or for its types."""
    found = set()
    for node in ast.walk(ast.parse(PYTHON[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: an import that begins with a dot"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in PYTHON else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(PYTHON)


def test_every_folder_is_a_room_and_is_installed():
    assert {"pyllmc.train", "pyllmc.convert.__main__"} < set(COMMANDS)
    folders = {".".join(path.relative_to(ROOT).parts[:-1]) for path in PYTHON.values()}
    packages = re.search(r"^packages = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    listed = ast.literal_eval(packages[1])
    assert sorted(listed) == sorted(folders)
    rooms = dict.fromkeys(name.split(".")[1] for name in listed[1:])  # a room may have folders within it
    assert list(rooms) == [*ROOMS, *ABOVE]


def test_the_picture_has_every_room_in_its_place():
    """docs/architecture.md draws Python's rooms and C's side by side, each on those below it."""
    picture = (ROOT / "docs/architecture.md").read_text().split("```")[1].splitlines()
    top = next(i for i, line in enumerate(picture) if "┌" in line)
    drawn = []
    for left in (found.start() for found in re.finditer("┌", picture[top])):
        box = itertools.takewhile(lambda line: line[left] == "│", picture[top + 1 :])  # noqa: B023
        drawn.append([name for line in box if (name := line[left + 1 :].split()[0]).isalpha()])
    assert drawn == [["commands", *ABOVE[::-1], "pyllmc", *ROOMS[::-1]], ROOMS_OF_C[::-1]]


@pytest.mark.parametrize("module", PYTHON)
def test_a_module_imports_from_its_own_room_or_lower_ones(module):
    up = [name for name in imports(module) if floor_of(name) > floor_of(module)]
    assert not up, f"{module} imports {up}, which is above it"
    assert not set(COMMANDS) & imports(module), f"{module} imports a command"


def test_no_modules_import_each_other_in_a_circle():
    """Nor would they if every import stood at the top of its file: what imports nothing that is left goes, until none is."""
    left = {module: imports(module) - {module} for module in PYTHON}
    while free := [module for module, wanted in left.items() if not wanted & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"circles among {sorted(left)}"


# ---- words ----

SPEAKING = [
    path
    for folder in ("csrc", "cuda", "pyllmc", "dev", "tests")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".c", ".h", ".cu", ".cuh", ".cpp", ".def", ".py"} and path.parts[-2] != "lib"
]


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


def may_begin_badly(text: str) -> bool:
    """False for most files, whose comments need not be parsed, which takes long: no sign of a comment or string stands before a word of
    the rule."""
    return re.search(r"""(#[#: ]*|["'][\s\\]*|/\*+\s*|//\s*)(of|that|which)\s""", text, re.I) is not None


def begins_badly(comment: str) -> bool:
    return re.match(r"(of|that|which)\s", comment, re.I) is not None


def test_a_comment_begins_with_its_subject():
    """A comment that begins with "of", "that" or "which" leaves its subject for the reader to guess."""
    found = []
    for path in SPEAKING:
        name = str(path.relative_to(ROOT))
        comments = comments_of_python if path.suffix == ".py" else comments_of_c
        whole = path.read_text()
        found += [
            f"{name}:{line}: {text[:60]}"
            for line, text in (comments(whole) if may_begin_badly(whole) else ())
            if begins_badly(text)
        ]
    assert not found, "\n".join(found)


def test_the_rule_sees_every_kind_of_comment():
    python = '"""Of a module."""\nx = 1  # of x\n# first\n# that goes on\n\n# Which one?\n'
    assert [line for line, text in comments_of_python(python) if begins_badly(text)] == [1, 2, 6]
    in_c = "/* of a\n * thing */ int x; // that one\n/* x of y */\n/* ---- which ---- */\n"
    assert [line for line, text in comments_of_c(in_c) if begins_badly(text)] == [1, 2]
    for bad in (
        '"""Of a module."""',
        "x = 1  # of x",
        "# Which one?",
        "/* of a",
        "int x; // that",
        "/** which",
    ):
        assert may_begin_badly(bad + " thing")
