"""--eval_tasks under torchrun: rank 0 scores, and nobody is given up meanwhile."""

from __future__ import annotations

import json
import signal
import sys

import pytest
import several

sys.path.insert(0, str(several.ROOT / "tests/evaluate"))
from benchmarks import make_folder

from pyllmc.engine.run_files import read_scores
from pyllmc.evaluate import __main__ as command

OPTIONS = {
    "n_layer": 1, "n_head": 1, "n_embd": 16, "max_seq_len": 256, "T": 32, "B": 2, "threads": 1, "max_steps": 4, "sample_every": 0,
    "eval_tasks": "lm1b,hellaswag", "eval_every": 2, "checkpoint_every": 2, "keep": 5, "timeout": 3,
}  # fmt: skip
PAUSE = 0.9  # seconds that each batch of rank 0 takes longer: the four of an exam more than --timeout
SLOW = f"""
import os, sys, time
from pyllmc.base.errors import begin_command
begin_command()
from pyllmc.evaluate.scorer import Scorer
run = Scorer._run
def slow(*arguments):
    print("a batch of rank", os.environ["RANK"], flush=True)
    time.sleep({PAUSE})
    return run(*arguments)
Scorer._run = slow
from pyllmc.train import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("together"))


def test_a_long_exam_is_waited_for_and_a_stop_is_heard_within_it(folder, tmp_path, capsys):
    """The exam of step 2 takes longer than --timeout; rank 1 is stopped in that of step 4."""
    run, program = tmp_path / "run", tmp_path / "slow.py"
    program.write_text(SLOW)
    given = several.words({**OPTIONS, "data": folder / "data", "eval_data": folder / "files", "out": run})
    together = several.Run(2, program=[str(program), *given])
    together.wait_for("^step 2 .* lm1b ppl")
    together.wait_for("^step 4 .* saved")
    together.send(1, signal.SIGTERM)
    assert together.end() != 0
    lines = together.told
    batches = [line for line in lines if line.startswith("a batch")]
    assert set(batches) == {"a batch of rank 0"} and PAUSE * 4 > OPTIONS["timeout"]
    assert 4 <= len(batches) < 8, lines
    assert not any(line.startswith("step 4") and "hellaswag" in line for line in lines), lines

    kept = [(r["task"], r["metric"], r["value"]) for r in read_scores(run) if r["step"] == 2]
    given = ["--tasks=lm1b,hellaswag", f"--data={folder / 'files'}", "--threads=1", "--json"]
    capsys.readouterr()
    assert command.main([str(run / "step_00000002.ckpt"), *given]) == 0
    found = json.loads(capsys.readouterr().out)["scores"]
    assert kept == [(r["task"], r["metric"], r["value"]) for r in found]
