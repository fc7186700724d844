"""train_gpt2.py itself: its weights in and out, its start, and an independent GPT-2. test_reference_loop.py tests its
loop."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

torch = pytest.importorskip("torch")

import tfwriter  # noqa: E402

import pyllmc  # noqa: E402
from pyllmc import check  # noqa: E402
from pyllmc.convert.huggingface import BUFFERS  # noqa: E402
from pyllmc.convert.recipes import MATRICES  # noqa: E402
from pyllmc.tables import layout  # noqa: E402
from pyllmc.tables.layout import GPTConfig  # noqa: E402

reference = check.load_reference()
CONFIG = GPTConfig(97, 12, 2, 2, 24)


@pytest.fixture
def gpt():
    """A model with random tensors."""
    model = reference.GPT(CONFIG)
    torch.manual_seed(5)
    for p in model.parameters():
        p.data.normal_(0.1, 0.1)
    return model


def same(a, b, exact: bool = True) -> bool:
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    close = torch.equal if exact else (lambda x, y: torch.allclose(x, y, rtol=2**-8, atol=0))
    return (
        a.config == b.config and ours.keys() == theirs.keys() and all(close(ours[n], theirs[n]) for n in ours)
    )


# ---- the start ----


GOLDEN = {  # the first, second and last value of seed 42, from PyTorch 2.13
    "wte.weight": [0.03853830322623253, 0.02974568121135235, 0.012889577075839043],
    "wpe.weight": [-0.02098580077290535, 0.02165730483829975, 0.010586872696876526],
    "h.1.attn.c_attn.weight": [0.0029558187816292048, -0.010381033644080162, 0.010529013350605965],
    "h.0.mlp.c_proj.weight": [-0.00721057690680027, -0.00273520196788013, -0.013561006635427475],
    "h.1.mlp.c_proj.weight": [0.02034992165863514, 0.018449263647198677, -0.004902292508631945],
}


def test_the_start_is_golden():
    named = dict(reference.GPT(CONFIG, seed=42, init_std=0.02).named_parameters())
    for name, values in GOLDEN.items():
        found = named[f"transformer.{name}"].detach().flatten()[[0, 1, -1]].tolist()
        assert found == pytest.approx(values, abs=1e-8), name


def test_the_start_is_what_the_table_asks_for():
    gpt = reference.GPT(GPTConfig(1000, 300, 4, 4, 64), seed=1)
    usual = 0.02 * 12**0.5  # 768 / 64
    for row, p in gpt.rows():
        std = {"NORMAL": usual, "RESIDUAL": usual / 8**0.5}.get(row.init, 0)
        assert p.std().item() == pytest.approx(std, rel=0.05)
        assert p.mean().item() == pytest.approx(float(row.init == "ONE"), abs=1e-3)


def test_the_engine_starts_with_the_same_weights():
    m, gpt = pyllmc.Model(CONFIG, B=1, T=1, seed=42), reference.GPT(CONFIG, seed=42)
    assert list(m.params) == [name for _, name in names_of(gpt)]
    for name, p in gpt.named_parameters():
        np.testing.assert_allclose(m.params[name], p.detach(), rtol=1e-6, atol=1e-9)


def names_of(gpt):
    return [(row, row.torch_name_of(layer)) for row, layer in layout.parameters(gpt.config)]


# ---- the model ----


def test_against_transformers(gpt):
    transformers = pytest.importorskip("transformers")
    c = gpt.config
    config = transformers.GPT2Config(vocab_size=c.vocab_size, n_positions=12, n_embd=24, n_layer=2, n_head=2)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    state = {name: x.t() if name.endswith(MATRICES) else x for name, x in gpt.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(
        {**state, "lm_head.weight": state["transformer.wte.weight"]}, strict=False
    )
    assert not unexpected
    assert all(name.endswith(BUFFERS) for name in missing)
    ids = torch.randint(0, 97, (2, 12))
    torch.testing.assert_close(gpt(ids)[0], theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_the_future_is_not_seen(gpt):
    ids = torch.randint(0, 97, (1, 12))
    changed = ids.clone()
    changed[0, 7:] = 0
    assert torch.equal(gpt(ids)[0][:, :7], gpt(changed)[0][:, :7])


@pytest.mark.parametrize("window, sees", [(1, 5), (3, 3), (0, 0)])
def test_odd_layers_see_the_window(window, sees):
    """If only layer 1 looks back, position 5 depends on positions `sees` to 5."""
    gpt = reference.GPT(GPTConfig(97, 12, 2, 2, 24, window), seed=1)
    gpt.transformer["h"][0].attn.c_proj.weight.data.zero_()
    ids = torch.arange(6)[None]
    depends = []
    for i in range(6):
        changed = ids.clone()
        changed[0, i] = 90
        depends.append(not torch.allclose(gpt(ids)[0][0, 5], gpt(changed)[0][0, 5], atol=1e-7))
    assert depends == [i >= sees for i in range(6)]


def test_the_loss_counts_and_weighs(gpt):
    ids, targets = torch.randint(0, 97, (2, 2, 12))
    targets[0, :5] = -1
    weights = torch.rand(2, 12)
    logits, loss = gpt(ids, targets, weights)
    log_p = logits.log_softmax(-1)
    total = sum(
        -weights[b, t] * log_p[b, t, y] for b in range(2) for t in range(12) if (y := targets[b, t]) >= 0
    )
    assert loss.item() == pytest.approx((total / weights[targets >= 0].sum()).item(), rel=1e-5)
    assert gpt(ids, torch.full_like(targets, -1))[1].item() == 0


# ---- llm.c's files ----


@pytest.mark.parametrize("version, size", [(3, 4), (5, 2)])
def test_a_model_file_reads_back(gpt, tmp_path, version, size):
    path = tmp_path / "model.bin"
    reference.write_model(gpt, str(path), version)
    data = path.read_bytes()
    assert struct.unpack("<9i", data[:36]) == (20240326, version, 12, 97, 2, 2, 24, 128, 0)
    padding = 31 * 24
    assert len(data) == 1024 + size * (sum(p.numel() for p in gpt.parameters()) + padding)
    assert not any(data[1024 + size * 97 * 24 : 1024 + size * 128 * 24])
    assert same(reference.read_model(str(path)), gpt, exact=version == 3)
    m = pyllmc.Model(str(path), B=1, T=4)
    for name, p in reference.read_model(str(path)).named_parameters():
        assert np.array_equal(m.params[name], p.detach()), name
    assert [p.name for p in tmp_path.iterdir()] == ["model.bin"]


def test_version_1_has_no_padding(gpt, tmp_path):
    path = tmp_path / "model.bin"
    header = struct.pack("<256i", 20240326, 1, 12, 97, 2, 2, 24, *[0] * 249)
    path.write_bytes(header + b"".join(p.detach().numpy().tobytes() for _, p in gpt.rows()))
    assert same(reference.read_model(str(path)), gpt)


def test_the_window_travels(tmp_path):
    gpt = reference.GPT(GPTConfig(30, 8, 2, 1, 4, window=3), seed=1)
    reference.write_model(gpt, str(tmp_path / "model.bin"))
    assert same(reference.read_model(str(tmp_path / "model.bin")), gpt)
    assert pyllmc.Model(tmp_path / "model.bin", B=1, T=4).config == gpt.config


def test_bad_model_files(gpt, tmp_path):
    path = tmp_path / "model.bin"
    reference.write_model(gpt, str(path))
    good = path.read_bytes()
    for data, reason in (
        (good[:-1], "truncated in lnfb"),
        (good[:1000], "is not a model file"),
        (b"\1" + good[1:], "is not a model file"),
        (good[:4] + b"\2" + good[5:], "version 2"),
        (good[:20] + b"\5" + good[21:], "n_embd=24 is not a multiple of n_head=5"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=reason):
            reference.read_model(str(path))


def test_the_debug_state(gpt, tmp_path):
    x, y = torch.randint(0, 97, (2, 3, 5))
    reference.write_state(gpt, str(tmp_path / "state.bin"), x, y)
    data = np.fromfile(tmp_path / "state.bin", "<i4")
    assert data[:4].tolist() == [20240327, 2, 3, 5]
    assert np.array_equal(data[256:286], torch.cat([x, y]).flatten())
    floats = data[286:].view("<f4")
    logits, loss = gpt(x, y)
    assert np.array_equal(floats[: 15 * 97], logits.detach().flatten())
    assert floats[15 * 97] == loss.item()
    at = 15 * 97 + 1
    for row, p in gpt.rows():
        assert np.array_equal(floats[at : at + p.numel()], p.grad.flatten()), row.name
        at += row.size
    assert at == len(floats)


# ---- weights from elsewhere: tests/convert/test_convert_in*.py test them all ----


def save_hf(gpt, folder: Path) -> str:
    theirs = pytest.importorskip("foreign").make_gpt2(gpt.config)
    state = {name: x.t() if name.endswith(MATRICES) else x for name, x in gpt.state_dict().items()}
    theirs.load_state_dict({**state, "lm_head.weight": state["transformer.wte.weight"]})
    theirs.save_pretrained(folder)
    return str(folder)


def model_of(*arguments: str):
    return reference.load_model(reference.parse(list(arguments)))


def test_a_folder_of_transformers(gpt, tmp_path):
    assert same(model_of(f"--model={save_hf(gpt, tmp_path / 'hf')}"), gpt)


def test_it_needs_no_compiled_code(gpt, tmp_path):
    folder = save_hf(gpt, tmp_path / "hf")
    code = f"""
import sys
sys.modules["cffi"] = None
import train_gpt2
assert train_gpt2.main(["--model={folder}", "--max_steps=0", "--export={tmp_path / "out.bin"}"]) == 0
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert same(reference.read_model(str(tmp_path / "out.bin")), gpt)


def test_other_files_of_the_engine(gpt, tmp_path):
    path = tmp_path / "model.bin"
    reference.write_model(gpt, str(path))
    folder = tfwriter.write(tmp_path / "124M", tfwriter.random_tensors(CONFIG), n_head=2)
    assert model_of(f"--model={folder}").config == CONFIG
    assert same(model_of(f"--model={path}"), gpt)


def test_openais_names_are_the_hubs(gpt, tmp_path, monkeypatch):
    hub, asked = pytest.importorskip("huggingface_hub"), []
    folder = save_hf(gpt, tmp_path / "hf")
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: asked.append(name) or folder)
    assert same(model_of("--model=hub:gpt2-xl"), gpt)
    assert asked == ["openai-community/gpt2-xl"]


def test_a_download_that_fails_is_one_line(monkeypatch, capsys):
    def fail(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(pytest.importorskip("huggingface_hub"), "snapshot_download", fail)
    assert reference.main(["--model=hub:gpt2", "--max_steps=0", "--export=x.bin"]) == 5
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "give the path of a folder" in err
