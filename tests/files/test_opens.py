"""A file of weights is opened once for all that is asked of it: what is read belongs together, even if a run replaces it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from opens import count_opens

import pyllmc
from pyllmc.convert.__main__ import main as convert
from pyllmc.text import dataset

TRAIN, CHAT = ROOT / "train_gpt2", ROOT / "chat_gpt2"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts with inotify")


def run(program: Path, *arguments: object, stdin: str = "") -> None:
    done = subprocess.run(
        [program, *map(str, arguments), "--threads=1"],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run of two steps with its data beside it."""
    texts = ["the cat sat on the mat", "a dog ran:\n"] * 30
    dataset.write_dataset(texts, tmp_path / "data", tokenizer="char", val_fraction=0.1)
    sizes = ("--model=gpt-nano", "--max_seq_len=16", "--B=2", "--T=7", "--sample_tokens=3")
    run(TRAIN, f"--data={tmp_path / 'data'}", *sizes, "--max_steps=2", f"--out={tmp_path / 'run'}")
    return tmp_path


def test_the_counter_counts(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with count_opens(file) as opens:
        for _ in range(3):
            assert file.read_text() == "x"
    assert opens == [3]


def test_resume_opens_its_checkpoint_once(folder):
    with count_opens(folder / "run/last.ckpt") as opens:
        run(TRAIN, f"--resume={folder / 'run'}", "--max_steps=3")
    assert opens == [1]


def test_a_start_from_weights_opens_them_before_the_data_is_made_and_after(folder):
    out = folder / "other"
    with count_opens(folder / "run/best.ckpt") as opens:
        run(
            TRAIN,
            f"--model={folder / 'run'}",
            f"--data={folder / 'data'}",
            "--B=2",
            "--max_steps=1",
            f"--out={out}",
        )
    assert opens == [2]


def test_a_chat_opens_its_model_once(folder):
    with count_opens(folder / "run/best.ckpt") as opens:
        run(CHAT, folder / "run", "--sample_tokens=3", stdin="the cat\n")
    assert opens == [1]


def test_python_opens_a_model_once(folder):
    with count_opens(folder / "run/best.ckpt") as opens:
        assert pyllmc.Model(folder / "run").tokenizer_bytes
    assert opens == [1]


def test_an_export_opens_its_source_for_each_of_its_questions_once(folder):
    """Weights, tokenizer and training are told apart; before the last two its first bytes tell that it is a checkpoint, and
    first of all that it holds no adapters."""
    with count_opens(folder / "run/best.ckpt") as opens:
        assert convert([str(folder / "run"), str(folder / "out.bin")]) == 0
    assert opens == [6]
