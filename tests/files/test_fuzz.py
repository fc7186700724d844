"""Tests the parsers with inputs that nobody would write: the corpus and some thousands of its mutations, under sanitizers.

`make fuzz` runs the same targets for longer, guided by coverage. Here gcc suffices, and every run has the same inputs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests/fuzz"))
import make_corpus  # noqa: E402
import run as fuzz  # noqa: E402

RUNS = {
    "chat": 1500,
    "options": 1500,
    "writer": 2000,
    "model": 2000,
    "tf": 3000,
}  # the number of mutations
COPIED = ("Makefile", "pyproject.toml", "csrc", "cuda", "tests/fuzz")

# the code that is removed from a copy of the library, and a word of the finding that its target must make then
PLANTED = {
    "bpe": ("bpe.c", r"if \(child \+ 1 < w->waiting && .*child\+\+;", "", "memcmp(ids, plain"),
    "chat": ("chat.c", r"line \+ 1, n - 1", "line, n", "expect_no_line_of"),
    "config": ("config.c", r"params < 1e14", "1", "layout.c"),
    "mask": ("mask.c", r"\(size_t\)bytes \+ 1", "(size_t)bytes / 2 + 1", "in read_bits"),
    "model": ("load.c", r"CHECK\(bad < 0", "CHECK(1", "gpt2_find_nonfinite(blocks"),
    "options": (
        "growing.c",
        r"2 \* \(g->size \+ more\)",
        "(g->size + more < 600 ? 2 * (g->size + more) : g->size)",
        "growing.c",
    ),
    "paths": ("shards.c", r"strcmp\(\*\(char \*const \*\)a, ", "-strcmp(*(char *const *)a, ", "found.names"),
    "schedule": ("schedule.c", r"fmin\(fmax\(x, 0\), 1\)", "x", "rate >= 0"),
    "tf": ("tfindex.c", r"n < 0 \|\| n > s->end - s->at", "n < 0", "tfindex.c"),
    "tokenizer": ("tokenizer.c", r"CHECK\(length,", "CHECK(1,", "size >= 1"),
    "tokens": ("dataloader.c", r"CHECK\(ids\[i\] >= 0 && ids\[i\] < limit", "CHECK(1", "inputs[i]"),
    "vocab": ("vocabbpe.c", r"HEADER_BYTES \+ 2 \* 256", "HEADER_BYTES", "vocabbpe.c"),
    "writer": ("writer.c", r"w->size - begun_stop\(w\)", "w->size - 0 * begun_stop(w)", "fuzz_writer.c"),
}


def has_sanitizers() -> bool:
    command = ["cc", *fuzz.SANITIZE.split(), "-xc", "-", "-o", "/dev/null"]
    return not subprocess.run(command, input=b"int main(void) { return 0; }", capture_output=True).returncode


pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="keeps files in memory as Linux does"),
    pytest.mark.skipif(
        shutil.which("cc") is None or not has_sanitizers(), reason="needs a compiler with sanitizers"
    ),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    fuzz.build(folder, guided=False, targets=fuzz.TARGETS)
    return folder


@pytest.fixture(scope="module")
def planted(built, tmp_path_factory) -> Path:
    """A build with all these bugs, each in a file of its own; other files are not compiled again."""
    root = tmp_path_factory.mktemp("planted")
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, root / name)
    shutil.copytree(built, root / "build")
    for file, old, new, _ in PLANTED.values():
        path = next((root / "csrc").rglob(file))
        text, count = re.subn(old, new, path.read_text(), count=1)
        assert count, f"{file} no longer contains {old}"
        path.write_text(text)
    fuzz.build(root / "build", guided=False, targets=fuzz.TARGETS, root=root)
    return root / "build"


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_nothing_is_found(built, target):
    outcome = fuzz.run(built, target, f"-runs={RUNS.get(target, 5000)}")
    assert not outcome.found, outcome.output
    assert outcome.executions >= RUNS.get(target, 5000)


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_a_planted_bug_is_found(built, planted, target):
    """The finding comes with its input and a command that repeats it; the unchanged library accepts that input."""
    outcome = fuzz.run(planted, target, f"-runs={RUNS.get(target, 5000)}")
    assert outcome.found
    assert PLANTED[target][3] in outcome.output, outcome.output
    (line,) = re.findall(r"^reproduce: (.*)$", outcome.output, re.M)
    assert subprocess.run(line.split(), capture_output=True).returncode
    _, kept = line.split()
    assert Path(kept).exists()
    assert not subprocess.run([built / f"fuzz_{target}", kept], capture_output=True).returncode


def test_hangs_leaks_and_large_requests_are_findings(built, tmp_path):
    """Tests the driver on a target that obeys its input."""
    source = tmp_path / "naughty.c"
    source.write_text(
        """
        #include "fuzz.h"
        int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
            static volatile int forever = 1;
            if (size && *data == 'h') while (forever) {}
            if (size && *data == 'l') fuzz_expect(malloc(7));
            if (size && *data == 'm') free(malloc((size_t)1 << 30));
            return 0;
        }
        """
    )
    program = tmp_path / "naughty"
    objects = [path for path in built.rglob("*.o") if not path.name.startswith("fuzz_")]
    headers = ["-I", ROOT / "tests/fuzz", "-I", ROOT / "csrc"]
    command = ["cc", "-g", *headers, *fuzz.SANITIZE.split(), source, *objects, "-lm", "-o", program]
    subprocess.run(command, check=True)
    for letter, told in {
        "h": "too long",
        "l": "memory leaks",
        "m": "allocation-size-too-big",
        "x": "",
    }.items():
        kept = tmp_path / letter
        kept.write_text(letter)
        patience = 1 if letter == "h" else 60  # a report takes time on a busy machine
        command = [program, kept, f"-timeout={patience}"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert bool(done.returncode) == bool(told), done.stderr
        assert told in done.stderr
        assert (f"reproduce: {program} {kept}" in done.stderr) == bool(told)


def test_the_corpus_is_what_its_script_writes():
    written = make_corpus.corpus()
    assert sorted(written) == fuzz.TARGETS
    kept = {
        target: {path.name: path.read_bytes() for path in (fuzz.CORPUS / target).iterdir()}
        for target in written
    }
    for target, inputs in kept.items():
        assert written[target] == {
            name: data for name, data in inputs.items() if not name.startswith("found-")
        }
    assert sum(len(data) for inputs in kept.values() for data in inputs.values()) < 200_000


def test_every_target_says_what_it_eats():
    for target in fuzz.TARGETS:
        assert (ROOT / f"tests/fuzz/fuzz_{target}.c").read_text().startswith("/* ")
    assert set(PLANTED) == set(fuzz.TARGETS)


def test_the_command_refuses_what_it_does_not_know():
    command = [sys.executable, str(ROOT / "tests/fuzz/run.py"), "--runs=1", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no target is called nonsense" in done.stderr
