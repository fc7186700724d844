"""The words of a run at a terminal: the line that is rewritten, the end, and what a resumed run begins with."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import re
import subprocess

import pytest
from conftest import ROOT
from test_stop import FRONT_ENDS, Terminal, data, words
from test_trainer import TINY

import pyllmc
from pyllmc.convert.__main__ import main as convert


def screen(shown: str) -> list[str]:
    """The text that stays on a terminal."""
    lines = []
    for line in shown.replace("\r\n", "\n").split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


@FRONT_ENDS
def test_the_line_goes_before_a_real_one(program, data):
    """A terminal shows the line and keeps nothing of it; a pipe has none."""
    options = words(max_steps=2, val_every=1, val_batches=3, sample_every=2, sample_tokens=5)
    command = [*program, f"--data={data}", "--out=", *options]
    with Terminal(command) as terminal:
        assert terminal.end() == 0
    for text in (
        "drawing the weights: ",
        "step 0: validation, batch 3 of 3, loss ",
        "step 2: sample, token 1",
    ):
        assert f"\r{text}" in terminal.shown
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "\r" not in piped.stdout + piped.stderr

    def steady(lines: list[str]) -> list[str]:
        return [re.sub(r"\| [\d.]+ ms \|.*|fits in .*", "", line.rstrip()) for line in lines]

    expected = [*piped.stdout.splitlines(), *piped.stderr.splitlines(), ""]
    assert steady(screen(terminal.shown)) == steady(expected)


@FRONT_ENDS
def test_the_end_says_what_was_best_and_what_comes_next(program, data, tmp_path):
    """Every command can be pasted. If a fine-tune only gets worse, the weights that it began with are kept and
    named."""
    start, out = tmp_path / "start", tmp_path / "a run's"
    list(pyllmc.Trainer(data=data, out=start, **TINY, max_steps=9, val_every=3))
    options = {"B": 3, "T": 7, "lr": 1, "max_steps": 4, "val_every": 2, "warmup_steps": 1}
    tune = [*program, f"--data={data}", f"--model={start}", f"--out={out}"]
    done = subprocess.run(
        [*tune, *(f"--{name}={value}" for name, value in options.items())],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "step 0 | val loss" in done.stdout and done.stdout.count("(best)") == 1
    assert re.search(rf"best: val loss [\d.]+ at step 0, kept in {out}/best.ckpt\n", done.stderr)
    best, first = (pyllmc.Model(folder / "best.ckpt", B=1, T=4) for folder in (out, start))
    assert all(best.params[name].tobytes() == first.params[name].tobytes() for name in first.params)
    commands = dict(re.findall(r"^  (write|go on|draw|export) +(.*)$", done.stderr, re.M))
    assert set(commands) == {"write", "go on", "draw", "export"}
    for name, command in commands.items():
        again = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert again.returncode == 0, (name, again.stderr)
        if name == "write":
            assert re.search(
                r"best\.ckpt: step 0, val loss [\d.]+, the best; the last step, 4, ended worse", again.stderr
            )
            other = again.stderr.partition("worse with ")[2].partition(": ")[2]
            assert (
                subprocess.run(other, shell=True, cwd=ROOT, capture_output=True, timeout=60).returncode == 0
            )
        if name == "go on":
            assert "last.ckpt, at step 4 of 8\nmax_steps: 4 -> 8\n" in again.stdout


@FRONT_ENDS
def test_the_end_without_a_folder_says_that_nothing_is_kept(program, data):
    command = [*program, f"--data={data}", "--out=", *words(max_steps=1, val_every=0, sample_every=0)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "nothing of it is kept" in done.stderr and "--out=runs/NAME" in done.stderr


@pytest.mark.parametrize(
    "shape, ending",
    [
        ({"window": 4}, ".bin"),
        ({"window": 16}, "-hf"),
        ({"window": 4, "pattern": "LD"}, None),
        ({"window": 4, "untied": True}, None),
        ({"untied": True}, "-hf"),
        ({"window": 4, "lora_rank": 2}, ".bin --merge"),
        ({"window": 4, "pattern": "LD", "lora_rank": 2}, None),
        ({"lora_rank": 2}, "-hf"),
        ({"lora_rank": 2, "train_only": "lnf*"}, "-hf --merge"),
    ],
)
def test_the_export_of_a_run_is_not_refused(data, tmp_path, shape, ending):
    """GPT-Neo can say a window, but no biases of q, k and v, which every training makes; llm.c's file says some windows."""
    pytest.importorskip("safetensors")
    if "lora_rank" in shape:
        tuned = {name: shape[name] for name in shape if name in ("lora_rank", "train_only")}
        sizes = {name: shape[name] for name in shape if name not in tuned}
        list(pyllmc.Trainer(data=data, out=tmp_path / "base", **TINY, **sizes, max_steps=1, sample_every=0))
        options = {"model": tmp_path / "base", "B": 3, "T": 7, **tuned}
    else:
        options = {**TINY, **shape}
    trainer = pyllmc.Trainer(data=data, out=tmp_path / "run", **options, max_steps=3, sample_every=0)
    list(trainer)
    named = re.findall(
        r"  export   python -m pyllmc.convert (\S+) (.+)\n", trainer.ending("./train_gpt2", "python")
    )
    assert named == ([] if ending is None else [(str(tmp_path / "run"), str(tmp_path / f"run{ending}"))])
    if named:
        assert convert(" ".join(named[0]).split()) == 0


@FRONT_ENDS
def test_a_run_that_goes_on_says_from_where_and_what_changed(program, data, tmp_path):
    run = tmp_path / "run"
    list(pyllmc.Trainer(data=data, out=run, **TINY, max_steps=2, val_every=0, sample_every=0))
    command = [
        *program,
        f"--resume={run}",
        "--max_steps=3",
        "--B=3",
        "--seed=7",
        "--prompt=a",
        "--no_shuffle",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told = done.stdout.partition("resume: ")[2].splitlines()
    assert told[0] == f"{run}/last.ckpt, at step 2 of 3"
    changed = [line for line in told[1:] if " -> " in line]
    assert changed == ["shuffle: 1 -> 0", "max_steps: 2 -> 3", "seed: 42 -> 7", "prompt: none -> a"]
