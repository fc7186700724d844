"""pyllmc.check agrees with a good engine and names the tensor that is wrong."""

from __future__ import annotations

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import pyllmc  # noqa: E402
from pyllmc import check  # noqa: E402
from pyllmc.base import checkout  # noqa: E402
from pyllmc.tables import layout  # noqa: E402
from pyllmc.tables.layout import GPTConfig  # noqa: E402

reference = check.load_reference()
SMALL = {
    "n_layer": 3,
    "n_head": 2,
    "n_embd": 12,
    "max_seq_len": 16,
    "vocab_size": 45,
    "B": 2,
    "T": 9,
    "threads": 2,
}


def arguments(**changed: object) -> list[str]:
    return [f"--{name}={value}" for name, value in {**SMALL, **changed}.items()]


def run(capsys, **changed: object) -> tuple[int, str]:
    code = check.main(arguments(**changed))
    return code, capsys.readouterr().out


def first(text: str) -> str:
    found = re.search(r"diverges from PyTorch: first the (.*),", text)
    return found.group(1) if found else ""


@pytest.mark.parametrize("changed", [{}, {"window": 3}, {"T": 0, "seed": 7}])
def test_a_good_engine_agrees(capsys, changed):
    code, text = run(capsys, **changed)
    assert code == 0
    assert "every tensor agrees with PyTorch" in text
    assert "diverges" not in text


def test_every_tensor_is_listed_in_the_order_of_computation(capsys):
    _, text = run(capsys)
    names = [
        line.rsplit(maxsplit=2)[0]
        for line in text.splitlines()
        if line.startswith(("weight", "activation", "gradient"))
    ]
    rows = layout.table(GPTConfig(45, 16, 3, 2, 12))
    shown = {name.split()[-1].split(".")[-1] for name in names}
    assert {row.name for row in rows} - shown == {"positions", "offsets", "adamw", "dropouts"}
    order = [
        "weight wte",
        "activation tokens",
        "activation h.0.ln1",
        "activation h.0.qkv",
        "activation h.1.ln1",
    ]
    order += [
        "activation logits",
        "gradient in logits",
        "gradient of lnfw",
        "gradient of h.2.fcw",
        "gradient of h.2.qkvw",
    ]
    order += ["gradient of h.0.qkvw", "gradient of wte", "gradient in dqkv"]
    assert sorted(order, key=names.index) == order


def exact_gelu(self, x):
    return self.c_proj(torch.nn.functional.gelu(self.c_fc(x)))


def test_another_activation_function_is_named(capsys, monkeypatch):
    monkeypatch.setattr(reference.MLP, "forward", exact_gelu)
    code, text = run(capsys)
    assert code == 1
    assert first(text) == "activation h.0.fch_gelu"


def test_another_draw_of_a_weight_is_named(capsys, monkeypatch):
    init = reference.GPT.init_weights

    def wrong(self, *seed):
        init(self, *seed)
        self.transformer.h[1].mlp.c_fc.weight.data[5, 7] += 1e-4

    monkeypatch.setattr(reference.GPT, "init_weights", wrong)
    code, text = run(capsys)
    assert code == 1
    assert first(text) == "weight h.1.fcw"


# the tensor that is disturbed -> the first tensor that shows it
WRONG_WEIGHTS = {
    "transformer.wpe.weight": "activation h.0.residual1",
    "transformer.h.0.ln_1.bias": "activation h.0.ln1",
    "transformer.h.2.attn.c_attn.weight": "activation h.2.qkv",
    "transformer.h.1.attn.c_proj.bias": "activation h.1.residual2",
    "transformer.h.2.mlp.c_fc.weight": "activation h.2.fch",
    "transformer.h.0.mlp.c_proj.weight": "activation h.1.residual1",
    "transformer.h.2.mlp.c_proj.bias": "activation residual3",
    "transformer.ln_f.weight": "activation lnf",
}


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_one_wrong_weight_is_found_where_it_is_used(capsys, monkeypatch, name):
    copy = check.copy_weights

    def wrong(m, gpt):
        copy(m, gpt)
        gpt.get_parameter(name).data += 1e-3

    monkeypatch.setattr(check, "copy_weights", wrong)
    code, text = run(capsys)
    assert code == 1
    assert first(text) == WRONG_WEIGHTS[name]


WRONG_GRADIENTS = {
    "transformer.ln_f.bias": "gradient of lnfb",
    "transformer.h.2.mlp.c_proj.weight": "gradient of h.2.fcprojw",
    "transformer.h.1.attn.c_attn.bias": "gradient of h.1.qkvb",
    "transformer.wpe.weight": "gradient of wpe",
}


@pytest.mark.parametrize("name", WRONG_GRADIENTS)
def test_one_wrong_gradient_is_named(capsys, monkeypatch, name):
    copy = check.copy_weights

    def wrong(m, gpt):
        copy(m, gpt)
        gpt.get_parameter(name).register_hook(lambda gradient: 1.001 * gradient)

    monkeypatch.setattr(check, "copy_weights", wrong)
    code, text = run(capsys)
    assert code == 1
    assert first(text) == WRONG_GRADIENTS[name]


def test_a_wrong_window_is_found_in_the_first_odd_layer(capsys, monkeypatch):
    visible = reference.visible
    monkeypatch.setattr(
        reference,
        "visible",
        lambda T, window, device=None, offsets=None: visible(T, window + 1 if window else 0),
    )
    code, text = run(capsys, window=3)
    assert code == 1
    assert first(text) == "activation h.1.lse"


def test_nan_diverges():
    exact = np.ones(3)
    assert not check.measure("x", np.array([1, np.nan, 1]), exact, 1.0).ok
    assert not check.measure("x", np.ones(2), exact, 1.0).ok
    assert check.measure("x", np.ones(3), exact, 0.0).ok


@pytest.mark.parametrize("version", [3, 5])
def test_a_model_file(capsys, tmp_path, version):
    gpt, path = reference.GPT(GPTConfig(50, 16, 2, 2, 8), seed=3), tmp_path / "model.bin"
    reference.write_model(gpt, str(path), version)
    assert check.main([str(path), "--B=2", "--T=16"]) == 0
    data = bytearray(path.read_bytes())
    assert "weight h.1.qkvw" in capsys.readouterr().out
    path.write_bytes(data[:-1])
    assert check.main([str(path)]) == 4


def test_a_checkpoint_of_the_engine(capsys, tmp_path):
    m = pyllmc.Model(GPTConfig(50, 16, 2, 2, 8, window=3), B=1, T=4)
    m.save(tmp_path / "model.ckpt")
    assert check.main([str(tmp_path / "model.ckpt"), "--B=1", "--T=7"]) == 0


@pytest.fixture
def banded(tmp_path) -> str:
    pyllmc.Model(GPTConfig(50, 16, 2, 2, 8, window=3), B=1, T=4).save(tmp_path / "model.ckpt")
    return str(tmp_path / "model.ckpt")


OTHER = {
    "n_layer": 3,
    "n_head": 1,
    "n_embd": 6,
    "max_seq_len": 17,
    "vocab_size": 5,
    "window": 0,
    "pattern": "LD",
}


@pytest.mark.parametrize("option", [*(f"--{name}={value}" for name, value in OTHER.items()), "--untied"])
def test_sizes_that_are_not_the_weights_are_refused(capsys, banded, option):
    """By the reference's training, too."""
    assert check.main([banded, option]) == 2
    told = capsys.readouterr().err
    assert f"but {banded} has" in told and told.endswith(": leave the option out\n") and told.count("\n") == 1
    with pytest.raises(pyllmc.InvalidArgument, match="leave the option out"):
        reference.load_model(reference.parse([f"--model={banded}", option]))


def test_sizes_that_are_the_weights_are_taken(capsys, banded):
    same = ["--n_layer=2", "--window=3", "--pattern=DL", "--no_untied", "--vocab_size=50"]
    assert check.main([banded, "--B=1", "--T=7", *same]) == 0


def test_two_models_are_refused(capsys, banded):
    with pytest.raises(SystemExit) as stop:
        check.main([banded, "--model=d12"])
    assert stop.value.code == 2
    assert "both name a model: give one of them" in capsys.readouterr().err


def test_adapters_are_refused_with_the_command_that_merges_them(capsys, banded, tmp_path):
    m = pyllmc.Model(banded, B=1, T=4, lora_rank=2)
    m.save(tmp_path / "adapters.ckpt")
    assert check.main([str(tmp_path / "adapters.ckpt")]) == 4
    told = capsys.readouterr().err
    assert f"python -m pyllmc.convert {tmp_path / 'adapters.ckpt'} DIR --merge" in told


@pytest.mark.parametrize("changed", [{"model": "d13"}, {"model": "no.bin"}, {"T": 17}, {"n_head": 5}])
def test_usage_errors_are_one_line_and_2(capsys, changed):
    assert check.main(arguments(**changed)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unknown_option_is_suggested(capsys):
    with pytest.raises(SystemExit) as stop:
        check.main(["--n_layers=3"])
    assert stop.value.code == 2
    assert "did you mean --n_layer?" in capsys.readouterr().err


def test_without_the_reference_the_error_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(checkout, "PACKAGE", tmp_path / "pyllmc")
    assert check.main(arguments()) == 2
    assert "train_gpt2.py, with which pyllmc.check compares, is missing" in capsys.readouterr().err
