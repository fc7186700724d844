"""Memory that runs out: each allocation of the engine fails once, and each time the answer is LLMC_ENOMEM."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tfwriter
from conftest import KNOWN_ISAS, PRECISIONS, ROOT
from test_tokenizer_c import made_up_vocab_bpe

from pyllmc.tables.layout import GPTConfig
from pyllmc.text import dataset

WRAPPED = "malloc calloc realloc free strdup strndup posix_memalign fopen opendir glob".split()
COMPILER = shutil.which(os.environ.get("CC", "cc"))

pytestmark = [
    pytest.mark.skipif("PYLLMC_LIB" in os.environ, reason="links the objects of the ordinary build"),
    pytest.mark.skipif(COMPILER is None, reason="needs a C compiler"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    program = tmp_path_factory.mktemp("program") / "allocations"
    build, apart = ROOT / "build", ("main", "chat_main", "terminal")
    engine = [path.relative_to(ROOT / "csrc") for path in (ROOT / "csrc").rglob("*.c")]
    objects = [
        build / path.with_suffix(".o")
        for path in engine
        if path.parts[0] not in ("cpu", "programs") and path.stem not in apart
    ]
    # includes instruction sets that this machine cannot run, but no object of a source file that is no more
    builds = [f"{isa}_{element}" for isa in (*KNOWN_ISAS, "reference") for element in PRECISIONS]
    kernels = [path.stem for path in (ROOT / "csrc/cpu").glob("*.c")]
    objects += [o for name in builds for o in (build / name).glob("*.o") if o.stem in kernels]
    objects += [build / "cpu" / f"{name}.o" for name in ("memory", "dispatch")]
    wrap = ",".join(f"--wrap={name}" for name in WRAPPED)
    command = [
        COMPILER,
        "-std=gnu11",
        "-g",
        "-Wall",
        f"-I{ROOT / 'csrc'}",
        ROOT / "tests/allocations.c",
        *objects,
    ]
    subprocess.run([*command, "-pthread", "-lm", f"-Wl,{wrap}", "-o", program], check=True)
    return program


def test_every_allocation_may_fail(program, tmp_path):
    """A failure is an error with its message; nothing leaks, no lock is kept, and the next attempt works as the first
    did."""
    data = tmp_path / "data"
    dataset.write_dataset(
        ["the cat sat on the mat", "a dog ran:\n"] * 30, data, tokenizer="char", val_fraction=0.1
    )
    (tmp_path / "vocab.bpe").write_bytes(made_up_vocab_bpe())
    config = GPTConfig(vocab_size=30, max_seq_len=8, n_layer=2, n_head=2, n_embd=8)
    sizes = dict(n_vocab=30, n_ctx=8, n_layer=2, n_head=2, n_embd=8)
    for name in ("bundle", "bare"):
        tfwriter.write(tmp_path / name, tfwriter.random_tensors(config), name == "bundle", **sizes)
    done = subprocess.run([program, data, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(re.findall(r"^(\w+): (\d+) calls$", done.stdout, re.M))
    expected = "model checkpoint index size tokenizer bpe folder glob trainer chat"
    assert set(counts) == set(expected.split())
    assert int(counts["trainer"]) > 60 and min(map(int, counts.values())) > 4, counts
