"""The options of dropout in a run: what they stand for, what is refused, and that a resumed run goes on to the same bits."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import pytest
from test_trainer import QUIET, TINY, data, metrics, without_times

import pyllmc
from pyllmc.engine.checkpoint import training

NAMES = "embd_pdrop", "attn_pdrop", "resid_pdrop"


def run(**options) -> pyllmc.Trainer:
    trainer = pyllmc.Trainer(**options)
    list(trainer)
    return trainer


def recorded(folder) -> list[float]:
    """The probabilities in a run's checkpoint."""
    options = training(folder / "last.ckpt")["options"]
    return [float(options[name]) for name in NAMES]


@pytest.mark.parametrize(
    "options,want",
    [
        ({}, [0, 0, 0]),
        ({"dropout": 0.1}, [0.1, 0.1, 0.1]),
        ({"dropout": 0.1, "attn_pdrop": 0}, [0.1, 0, 0.1]),
        ({"embd_pdrop": 0.2}, [0.2, 0, 0]),
        ({"resid_pdrop": 0.3, "dropout": 0.2}, [0.2, 0.2, 0.3]),
    ],
)
def test_dropout_stands_for_the_three(data, tmp_path, options, want):
    run(data=data, out=tmp_path / "a", max_steps=1, **options, **TINY, **QUIET)
    assert recorded(tmp_path / "a") == want
    config = tmp_path / "a" / "config.txt"  # a run of its config.txt has the same; what the call says wins
    run(config=config, out=tmp_path / "b", max_steps=1)
    assert recorded(tmp_path / "b") == want
    run(config=config, out=tmp_path / "c", max_steps=1, dropout=0.4)
    assert recorded(tmp_path / "c") == [0.4, 0.4, 0.4]
    run(resume=tmp_path / "a", max_steps=2)
    assert recorded(tmp_path / "a") == want
    run(resume=tmp_path / "a", max_steps=3, dropout=0.5)
    assert recorded(tmp_path / "a") == [0.5, 0.5, 0.5]


def test_the_run_tells_it(data):
    told = [next(iter(pyllmc.Trainer(data=data, **p, **TINY, **QUIET))).text for p in ({}, {"dropout": 0.1})]
    assert "dropout" not in told[0]
    assert "dropout of embeddings 0.1, attention 0.1, residual 0.1" in told[1]


@pytest.mark.parametrize("name", ["dropout", *NAMES])
def test_1_is_refused(name):
    with pytest.raises(pyllmc.InvalidArgument, match=f"--{name}=1 .*it must be at least 0 and below 1$"):
        pyllmc.Trainer(**{name: 1})
    with pytest.raises(pyllmc.InvalidArgument, match=f"--{name}=-0.1 .*it must be at least 0 and below 1$"):
        pyllmc.Trainer(**{name: -0.1})


@pytest.mark.parametrize("precision, rank", [("fp32", 0), ("bf16", 0), ("fp32", 2)])
def test_resume_is_bit_exact(data, tmp_path, precision, rank):
    options = {
        **TINY,
        **QUIET,
        "data": data,
        "max_steps": 7,
        "grad_accum": 2,
        "val_every": 3,
        "val_batches": 1,
    }
    options |= {"dropout": 0.2, "attn_pdrop": 0.3, "precision": precision}
    if rank:  # LoRA
        run(data=data, out=tmp_path / "base", max_steps=1, **TINY, **QUIET)
        options |= {"model": tmp_path / "base", "lora_rank": rank, "lora_dropout": 0.25, "lr": 1e-2}
    run(out=tmp_path / "whole", threads=1, **options)
    trainer = pyllmc.Trainer(out=tmp_path / "parts", threads=3, **options)
    for event in trainer:
        if event.kind == "step" and event.step == 4:
            trainer.stop()
    resumed = run(resume=tmp_path / "parts", recompute=4)
    assert recorded(tmp_path / "parts") == [0.2, 0.3, 0.2]
    assert without_times(metrics(tmp_path / "parts")) == without_times(metrics(tmp_path / "whole"))
    whole = pyllmc.Model(tmp_path / "whole" / "last.ckpt", B=1, T=4, lora_rank=rank)
    for name, x in whole.params.items():
        assert x.tobytes() == resumed.model.params[name].tobytes(), name


def test_the_seed_and_the_probability_matter_to_training_alone(data):
    """The first validation, before any step, is without dropout; the first loss is not."""
    options = {
        **TINY,
        **QUIET,
        "data": data,
        "max_steps": 1,
        "val_every": 1,
        "val_batches": 2,
        "model": "gpt-nano",
    }

    def found(**more):
        events = list(pyllmc.Trainer(**options, **more))
        kinds = {e.kind: e for e in reversed(events)}
        return kinds["eval"].val_loss, kinds["step"].loss

    (val, loss), (val_dropped, loss_dropped) = found(), found(dropout=0.3)
    assert val_dropped == val
    assert loss_dropped != loss
    assert found(dropout=0.3) == (val_dropped, loss_dropped)
