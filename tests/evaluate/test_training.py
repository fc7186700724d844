"""--eval_tasks: the scores of a model in training are those of its checkpoints, and training does not notice."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import make_folder
from conftest import ROOT

import pyllmc
from pyllmc import train
from pyllmc.draw.curves import read_run
from pyllmc.engine import _ffi
from pyllmc.engine.run_files import read_scores
from pyllmc.evaluate import __main__ as command
from pyllmc.evaluate.training import Examiner

SIZES = {"n_layer": 1, "n_head": 1, "n_embd": 16, "max_seq_len": 256, "T": 32, "B": 2, "threads": 1}
RUN = {
    **SIZES,
    "max_steps": 4,
    "checkpoint_every": 2,
    "keep": 5,
    "sample_every": 0,
    "lr": 0.01,
    "warmup_steps": 0,
}
TASKS = "lambada,hellaswag,wikitext2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("training"))


def asked(folder: Path) -> dict[str, Any]:
    return {"eval_tasks": TASKS, "eval_every": 2, "eval_data": folder / "files", "eval_limit": 3}


def trained(folder: Path, **options: Any) -> tuple[pyllmc.Trainer, list[pyllmc.Event]]:
    trainer = pyllmc.Trainer(data=folder / "data", examiner=Examiner, **{**RUN, **options})
    return trainer, list(trainer)


def values(records: list[dict[str, Any]], step: int) -> dict[tuple[str, str], float]:
    return {(r["task"], r["metric"]): r["value"] for r in records if r["step"] == step}


def evaluated(folder: Path, path: Path, capsys: Any, *more: str, tasks: str = TASKS) -> list[dict[str, Any]]:
    """What pyllmc.evaluate says of a checkpoint."""
    given = [f"--tasks={tasks}", f"--data={folder / 'files'}", "--limit=3", "--threads=1", "--json", *more]
    capsys.readouterr()
    assert command.main([str(path), *given]) == 0
    return json.loads(capsys.readouterr().out)["scores"]


EMU = {"device": "emu", "precision": "fp32", "max_seq_len": 64, "eval_tasks": "hellaswag", "eval_every": 4}
LORA = {"lora_rank": 2, "lora_dropout": 0.2}


@pytest.mark.parametrize(
    "how",
    [{}, {"dropout": 0.3}, {"precision": "bf16", "recompute": 3}, {"window": 16, "untied": 1}, LORA],
    ids=["plain", "dropout", "bf16", "banded", "lora"],
)  # fmt: skip
def test_scores_are_those_of_the_checkpoint_to_the_last_bit(folder, tmp_path, capsys, how):
    if how is LORA:
        trained(folder, out=tmp_path / "base", max_steps=1)
        how = {**how, "model": tmp_path / "base/last.ckpt"}
    _, events = trained(folder, out=tmp_path / "run", **asked(folder), **how)
    kept = read_scores(tmp_path / "run")
    same = [f"--{name}={how[name]}" for name in ("precision", "device") if name in how]
    assert [event.step for event in events if event.kind == "exam"] == [2, 4]
    for step in (2, 4):
        found = evaluated(folder, tmp_path / f"run/step_{step:08}.ckpt", capsys, *same)
        assert values(kept, step) == values(found, step)
        assert len(values(found, step)) == 7
    assert values(kept, 2) != values(kept, 4)
    # a record of the command takes the place of the same one of the training
    assert len(read_scores(tmp_path / "run")) == len(kept)
    assert not list((tmp_path / "run").glob("evaluate-*"))


def test_scores_are_printed_drawn_and_found_by_the_model_card(folder, tmp_path):
    _, events = trained(folder, out=tmp_path / "run", **asked(folder))
    kinds = [event.kind for event in events if event.step == 4]
    assert kinds == ["step", "eval", "checkpoint", "exam"]
    line = events[-1].text
    assert re.fullmatch(
        r"step 4 \| lambada acc [\d.]+ % ± .*, ppl .* \| hellaswag acc_norm .* \| wikitext2 ppl .*, bpb .*, loss .*", line
    ), line  # fmt: skip
    curve = read_run(tmp_path / "run").curves["wikitext2:loss"]
    kept = read_scores(tmp_path / "run")
    assert curve.x.tolist() == [2, 4]
    assert curve.y.tolist() == [values(kept, step)["wikitext2", "loss"] for step in (2, 4)]
    from pyllmc import plot
    from pyllmc.engine.checkpoint import training

    picture = tmp_path / "scores.png"
    assert plot.main([str(tmp_path / "run"), f"--out={picture}", "--panels=lr,wikitext2:loss"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {score["step"] for score in training(tmp_path / "run")["scores"]} == {4}


def test_scores_on_the_emulated_device(folder, tmp_path, capsys):
    if not (_ffi.PACKAGE / "lib" / "libpyllmc_emu_fp32.so").exists():
        pytest.skip("needs make emu")
    trained(folder, out=tmp_path / "run", **{**asked(folder), **EMU})
    kept = values(read_scores(tmp_path / "run"), 4)
    found = evaluated(
        folder, tmp_path / "run/last.ckpt", capsys, "--device=emu", "--precision=fp32", tasks="hellaswag"
    )
    assert kept == values(found, 4) and len(kept) == 2


def losses(events: list[pyllmc.Event]) -> list[tuple[float, float]]:
    return [(event.loss, event.norm) for event in events if event.kind == "step"]


def params(trainer: pyllmc.Trainer) -> dict[str, np.ndarray]:
    return {name: np.array(trainer.model.params[name]) for name in trainer.model.params}


@pytest.mark.parametrize("how", [{}, {"dropout": 0.3, "sample_every": 1}], ids=["plain", "dropout"])
def test_training_does_not_notice(folder, tmp_path, how):
    """The same bits with and without tasks, in one go and resumed."""
    plain, without = trained(folder, out=tmp_path / "plain", **how)
    scored, with_tasks = trained(folder, out=tmp_path / "scored", **asked(folder), **how)
    assert losses(without) == losses(with_tasks)
    ids = {"data": folder / "data", "examiner": Examiner}
    resumed = pyllmc.Trainer(resume=tmp_path / "scored/step_00000002.ckpt", out=tmp_path / "resumed", **ids)
    rest = list(resumed)
    assert losses(rest) == losses(without)[2:]
    for name, x in params(plain).items():
        assert (params(scored)[name] == x).all() and (params(resumed)[name] == x).all()
    assert values(read_scores(tmp_path / "resumed"), 4) == values(read_scores(tmp_path / "scored"), 4)


def test_tasks_are_scored_at_the_end_only_unless_told(folder, tmp_path):
    _, events = trained(folder, out="", **{**asked(folder), "eval_every": 0, "eval_tasks": "lambada"})
    assert [event.step for event in events if event.kind == "exam"] == [4]
    _, events = trained(folder, out="", eval_every=0)
    assert "exam" not in [event.kind for event in events]


# ---- interruptions ----


def test_a_run_that_is_stopped_while_it_scores_goes_on_with_that(folder, tmp_path):
    """What was found out is not computed again, and a run that was scored is not scored twice."""
    run, batches = tmp_path / "run", []
    trainer = pyllmc.Trainer(data=folder / "data", out=run, examiner=Examiner, **RUN, **asked(folder))
    examiner: Any = trainer._examiner
    between = examiner._scorer._between

    def stop_soon() -> None:
        batches.append(1)
        if len(batches) == 3:
            trainer.stop()
        between()

    examiner._scorer._between = stop_soon
    assert [event.kind for event in trainer][-1] == "checkpoint"
    assert {task for task, _ in values(read_scores(run), 2)} == {"lambada", "hellaswag"}
    assert len(list(run.glob("evaluate-*"))) == 2  # an empty one goes
    _, whole = trained(folder, out=tmp_path / "whole", **asked(folder))

    resumed = pyllmc.Trainer(resume=run, examiner=Examiner, max_steps=2)
    examiner, batches = resumed._examiner, []
    examiner._scorer._between = lambda: batches.append(1)
    events = list(resumed)
    assert [event.kind for event in events] == ["plan", "checkpoint", "exam"] and len(batches) == 1
    assert events[-1].text == next(event.text for event in whole if event.kind == "exam")
    assert not list(run.glob("evaluate-*"))

    again = list(pyllmc.Trainer(resume=run, examiner=Examiner, max_steps=2))
    assert [event.kind for event in again] == ["plan", "checkpoint"]
    curve = read_run(run).curves["lambada:acc"]
    assert curve.x.tolist() == [2]


# ---- what is refused, before the first step ----

REFUSED = [
    (["--eval_tasks=lambda"], 2, "--eval_tasks: 'lambda' is no task: did you mean lambada"),
    (["--eval_tasks=ptb", "--eval_data={files}/none"], 5, "none is no folder: put ptb.test.txt"),
    (["--eval_tasks=hellaswag_bin"], 2, "name it or its folder with --eval_data"),
    (["--eval_tasks=hellaswag_bin", "--eval_data={files}/ptb.test.txt"], 4, "expected magic"),
    (["--eval_every=5"], 2, "that between validations is --val_every"),
    (["--eval_data=x"], 2, "about the tasks of --eval_tasks, and none is named"),
    (["--eval_limit=3"], 2, "about the tasks of --eval_tasks, and none is named"),
    (["--eval_tasks=cbt_cn", "--eval_data={files}", "--max_seq_len=32"], 2, "^pyllmc.train: cbt_cn: item 1 takes"),
    (["--eval_tasks=lambada", "--eval_data={files}", "--data={bare}"], 2, "no tokenizer, so texts cannot be scored"),
]  # fmt: skip


@pytest.mark.parametrize("given, code, says", REFUSED)
def test_what_cannot_be_scored_is_refused_before_the_first_step(folder, tmp_path, capsys, given, code, says):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in (folder / "data").glob("*.bin"):
        if path.name != "tokenizer.bin":
            (bare / path.name).write_bytes(path.read_bytes())
    words = [f"--{name}={value}" for name, value in {**RUN, "out": tmp_path / "run"}.items()]
    filled = [word.format(files=folder / "files", bare=bare) for word in given]
    more = ["--vocab_size=257"] if "bare" in given[-1] else []
    assert train.main([f"--data={folder / 'data'}", *words, *filled, *more]) == code
    told = capsys.readouterr()
    assert told.err.startswith("pyllmc.train: ") and told.err.count("\n") == 1 and "step" not in told.out
    assert re.search(says, told.err), told.err
    assert not (tmp_path / "run").exists()


def test_a_file_that_scores_cannot_be_added_to_is_refused_before_the_first_step(folder, tmp_path):
    run = tmp_path / "run"
    list(pyllmc.Trainer(data=folder / "data", out=run, **{**RUN, "max_steps": 1}))
    (run / "evaluate.json").write_text("nonsense")
    with pytest.raises(pyllmc.BadFile, match="holds no scores that can be read"):
        next(iter(pyllmc.Trainer(resume=run, max_steps=2, examiner=Examiner, **asked(folder))))
    assert (run / "evaluate.json").read_text() == "nonsense"


def test_other_front_ends_refuse_tasks(folder, tmp_path):
    given = [f"--data={folder / 'data'}", "--eval_tasks=lambada", "--out=", "--max_steps=1"]
    done = subprocess.run([ROOT / "train_gpt2", *given], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "tasks are scored by python -m pyllmc.train" in done.stderr
    with pytest.raises(pyllmc.InvalidArgument, match="examiner=pyllmc.Examiner"):
        pyllmc.Trainer(data=folder / "data", eval_tasks="lambada")


def test_the_scores_of_a_run_that_was_replaced_are_not_taken_for_those_of_the_new_one(folder, tmp_path):
    run = tmp_path / "run"
    trained(folder, out=run, **asked(folder))
    trained(folder, out=run, seed=1, overwrite=True)
    old = len(read_scores(run))
    events = list(pyllmc.Trainer(resume=run, examiner=Examiner, **asked(folder)))
    assert [event.step for event in events if event.kind == "exam" and event.text] == [4]
    assert len({score["weights"] for score in read_scores(run) if score["step"] == 4}) == 2
    assert len(read_scores(run)) == old + 7
