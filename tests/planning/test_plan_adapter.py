"""python -m pyllmc.plan --model=ADAPTER: an adapter of PEFT's is planned by the rules by which it is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_plan import planned, training_plans

import pyllmc
from pyllmc import plan
from pyllmc.base.errors import InvalidArgument
from pyllmc.convert.peft_adapter import save_adapter

pytest.importorskip("safetensors")
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 256, "max_seq_len": 24}
CALM = {"B": 3, "max_steps": 1, "val_every": 0, "sample_every": 0, "checkpoint_every": 0}


def train(data: Path, out: Path, **options) -> Path:
    for _ in pyllmc.Trainer(data=str(data), out=str(out), **{**CALM, **options}):
        pass
    return out


@pytest.fixture(scope="module")
def adapter(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    base = train(data, folder / "base", **SIZES)
    lora = {"lora_rank": 4, "lora_alpha": 6, "lora_dropout": 0.25, "lora_on": "qkv,fc"}
    save_adapter(folder / "adapter", train(data, folder / "run", model=str(base), **lora))
    return folder / "adapter"


@pytest.mark.parametrize("options", ["", "--lora_rank=4", "--lora_rank=0", "--lora_dropout=0"])
def test_the_memory_is_that_of_its_training(adapter, data, options):
    words = [f"--model={adapter}", "--B=2", *options.split()]
    assert planned(*words, "--device=cpu") == training_plans(*words, f"--data={data}", "--out=")


@pytest.mark.parametrize("options", ["lora_rank=2", "lora_alpha=1.5", "lora_on=qkv"])
def test_what_training_refuses_is_not_planned(adapter, data, options):
    name, _, value = options.partition("=")
    with pytest.raises(InvalidArgument, match=f"^--{options}, but .* has ") as planning:
        plan.make_plan(plan.parse([f"--model={adapter}", "--step_ms=5", f"--{options}"]))
    with pytest.raises(InvalidArgument) as training:
        pyllmc.Trainer(data=str(data), model=str(adapter), **{name: value})
    assert str(planning.value) == str(training.value)


@pytest.mark.parametrize("given, dropout", [("", 0.25), ("--lora_dropout=0.5", 0.5), ("--lora_dropout=0", 0)])
def test_a_measured_step_has_the_adapters_dropout(adapter, given, dropout):
    o = plan.parse([f"--model={adapter}", "--step_ms=5", *given.split()])
    found = plan.make_plan(o)
    assert (o.lora_rank, o.lora_alpha, o.lora_on, o.lora_dropout) == (4, 6, "qkv,fc", dropout)
    assert found["memory"]["trained"] < 0.5 * found["model"]["parameters"]
