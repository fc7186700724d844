"""The documents are true: their commands, links and paths exist, and each source file, command and instruction set is named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import PurePath

import pytest
from conftest import KNOWN_ISAS, ROOT
from test_house import room_of

from pyllmc.__main__ import commands


def test_the_documents_name_every_instruction_set():
    """In the order of csrc/cpu/isas.def."""
    row = re.search(r"^\| `PYLLMC_ISA` .*$", (ROOT / "docs/install.md").read_text(), re.M)
    assert row and re.findall(r"`(\w+)`", row[0])[1:] == [*KNOWN_ISAS, "reference"]


PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def test_python_names_exist_after_import_pyllmc():
    pages = "\n".join(path.read_text() for path in PAGES)
    names = set(re.findall(r"(?<!-m )\bpyllmc\.(\w+)\.\w+\(", pages)) | {
        "nn",
        "mingpt",
        "distributed",
        "priming",
    }
    assert "convert" in names
    code = f"import pyllmc; [getattr(pyllmc, name) for name in {sorted(names)}]"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_readme_commands_exist():
    readme = "\n".join(path.read_text() for path in PAGES)
    makefiles = (ROOT / "Makefile").read_text() + (ROOT / "cuda" / "cuda.mk").read_text()
    targets = set(re.findall(r"^([a-z_]+):", makefiles, re.M))
    for target in re.findall(r"^\s*make ([a-z_]+)", readme, re.M):
        assert target in targets, f"README says make {target}"
    for module in set(re.findall(r"python3? -m (pyllmc\.[a-z_]+)", readme)):
        path = ROOT / module.replace(".", "/")
        found = path.with_suffix(".py").exists() or (path / "__main__.py").exists()
        assert found, f"README says python -m {module}"
    for path in set(re.findall(r"`((?:csrc|cuda|pyllmc|dev|tests|bench|docs)/[\w./-]+)`", readme)):
        assert (ROOT / path).exists(), f"README names {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_lead_somewhere(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for target in targets:
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_leads_to_every_page():
    linked = re.findall(r"\]\(([^)#\s]+\.md)", (ROOT / "README.md").read_text())
    assert {page.relative_to(ROOT).as_posix() for page in PAGES[1:]} <= set(linked)


def test_every_command_is_among_the_uses():
    uses = (ROOT / "docs/use.md").read_text()
    for call, _ in commands():
        name = " ".join(call.split()[:3])
        assert f"`{name}" in uses, f"docs/use.md does not show {name}"


# ---- docs/source.md: the source, one file a row ----

SOURCE_ROOMS = ("csrc", "cuda", "pyllmc", "dev", "examples")
SOURCE_ENDINGS = {".c", ".h", ".def", ".cu", ".cuh", ".cpp", ".mk", ".txt", ".py"}


def source_files() -> set[str]:
    """Every source file, but for the libraries' folder, where copies of the tables lie."""
    return {
        path.relative_to(ROOT).as_posix()
        for room in SOURCE_ROOMS
        for path in (ROOT / room).rglob("*")
        if path.suffix in SOURCE_ENDINGS and ROOT / "pyllmc/lib" not in path.parents
    }


def source_rows() -> list[tuple[str, str]]:
    """(path, what it holds) of every row of docs/source.md."""
    return re.findall(r"^\| `([^`]+)` \| (.*) \|$", (ROOT / "docs/source.md").read_text(), re.M)


def test_every_source_file_has_one_row():
    rows = [path for path, _ in source_rows()]
    files = source_files()
    assert not files - set(rows), f"docs/source.md lacks a row: {sorted(files - set(rows))}"
    assert not set(rows) - files, f"docs/source.md names what is not there: {sorted(set(rows) - files)}"
    assert not {path for path in rows if rows.count(path) > 1}, "docs/source.md has a file twice"


def test_rows_are_sentences():
    short = [path for path, words in source_rows() if not re.fullmatch(r"(★ )?[`A-Za-z].{10,}[.?]", words)]
    assert not short, f"docs/source.md: what do these hold, in a sentence? {short}"


def test_rows_stand_in_the_order_of_the_rooms():
    rooms = [room_of(path.removeprefix("csrc/")) for path, _ in source_rows() if is_in_a_room(path)]
    assert rooms == sorted(rooms), "docs/source.md: the rooms of csrc/ are not in the order of ROOMS"


def is_in_a_room(path: str) -> bool:
    return path.startswith("csrc/") and not path.startswith("csrc/cpu/")


# ---- tests/README.md: what each test file holds ----


def suite_rows() -> set[str]:
    """The patterns of test files, below tests/, in the table of the suite. `<layer>` stands for each file of csrc/cpu/ that has a test."""
    table = (ROOT / "tests/README.md").read_text().partition("| folder | file |")[2].partition("\n\n")[0]
    layers = [path.stem for path in (ROOT / "csrc/cpu").glob("*.c")]
    found, folder = set(), ""
    for row in table.splitlines()[2:]:
        _, first, files, _ = row.split("|", 3)
        folder = first.strip(" `") or folder
        for name in re.findall(r"`((?:\w+/)?test_[^`]+)`", files):
            path = name if "/" in name else folder + name
            of_layers = [path.replace("<layer>", layer) for layer in layers if "<layer>" in path]
            found.update([one for one in of_layers if (ROOT / "tests" / one).exists()] or [path])
    return found


def test_every_test_file_has_its_row():
    tests = ROOT / "tests"
    rows = suite_rows()
    files = {path.relative_to(tests).as_posix() for path in tests.rglob("test_*.py")}
    lacking = {name for name in files if not any(PurePath(name).match(row) for row in rows)}
    assert not lacking, f"tests/README.md lacks: {sorted(lacking)}"
    gone = {row for row in rows if not any(tests.glob(row))}
    assert not gone, f"tests/README.md names what is not there: {sorted(gone)}"
