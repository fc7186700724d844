"""The meaning of --model: a size has fresh weights; weights of any kind, or from the hub, are read by Python for every
command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from foreign import make_gpt2

import pyllmc
import train_gpt2 as reference
from pyllmc import check, convert, grade, sample
from pyllmc.base import errors
from pyllmc.base.temporary import temporary_file
from pyllmc.convert import hf_config, hub
from pyllmc.engine import _ffi
from pyllmc.engine.checkpoint import read_tokenizer
from pyllmc.tables.layout import GPTConfig
from pyllmc.text import dataset, vocabularies
from pyllmc.trainer import Options
from pyllmc.writer import open_model

TEXTS = ["the cat sat on the mat", "a dog ran to the sun", "we saw the moon"] * 9
QUICK = {"max_steps": 2, "B": 2, "T": 8, "warmup_steps": 1, "sample_tokens": 3, "val_batches": 1}


@pytest.fixture(scope="module")
def tokenizer():
    return vocabularies.train("bpe", TEXTS, max_vocab=270)


@pytest.fixture(scope="module")
def data(tmp_path_factory, tokenizer) -> Path:
    out = tmp_path_factory.mktemp("data") / "words"
    dataset.write_dataset(TEXTS, out, tokenizer=tokenizer, val_fraction=0.2)
    return out


@pytest.fixture(scope="module")
def origin(tmp_path_factory, tokenizer) -> Path:
    """The same weights as a Hugging Face folder with its tokenizer, as nanoGPT's ckpt.pt, and converted to an engine's
    file."""
    folder = tmp_path_factory.mktemp("origin")
    config = GPTConfig(tokenizer.vocab_size, max_seq_len=16, n_layer=2, n_head=2, n_embd=16)
    model = make_gpt2(config)
    model.save_pretrained(folder / "hf")
    tokenizer.save(folder / "hf" / "tokenizer.bin")
    args = {
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 16,
        "block_size": 16,
        "vocab_size": config.vocab_size,
        "bias": True,
    }
    conv1d = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {n: (p.T.contiguous() if n.endswith(conv1d) else p) for n, p in model.state_dict().items()}
    (folder / "nano").mkdir()
    torch.save({"model": state, "model_args": args}, folder / "nano" / "ckpt.pt")
    tokenizer.save(folder / "nano" / "tokenizer.bin")
    pyllmc.Model(folder / "hf").save(folder / "model.bin")
    return folder


def events(**options) -> list[pyllmc.Event]:
    return list(pyllmc.Trainer(**{**QUICK, **options}))


@pytest.mark.filterwarnings("ignore:.*pickle")
@pytest.mark.parametrize("kind", ["hf", "nano/ckpt.pt"])
def test_training_starts_from_weights_of_any_kind(origin, data, tmp_path, kind, monkeypatch):
    """The losses are those from the engine's own file; record and plan name what the user gave; no file is left
    over."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    name = str(origin / kind)
    ours = events(model=name, data=data, out=tmp_path / "run")
    theirs = events(model=origin / "model.bin", data=data)
    assert [e.loss for e in ours if e.kind == "step"] == [e.loss for e in theirs if e.kind == "step"]
    assert [e.val_loss for e in ours if e.kind == "eval"] == [e.val_loss for e in theirs if e.kind == "eval"]
    assert f"parameters, from {name}\n" in ours[0].text
    assert f"model={name}\n" in (tmp_path / "run" / "config.txt").read_text()
    assert os.listdir(tmp_path) == ["run"] and not list((tmp_path / "run").glob("**/.pyllmc*"))


KILLED = """
import os, signal, sys
from pyllmc.base.temporary import temporary_file
temporary_file(lambda path: (open(path, "w").close(), os.kill(os.getpid(), signal.SIGKILL)), "x", object, sys.argv[1])
"""


def test_what_a_kill_leaves_of_temporary_weights_goes_with_the_next(tmp_path):
    """What living processes write stays, and so does what others have put there."""
    for name in (".pyllmc-tmp-mine", ".pyllmc-settings"):
        (tmp_path / name).mkdir()
    (tmp_path / ".pyllmc-tmp-a_link__").symlink_to(tmp_path / ".pyllmc-settings")
    others = set(os.listdir(tmp_path))
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT)
    (left,) = set(os.listdir(tmp_path)) - others

    owners = [Options(_ffi.load()), Options(_ffi.load())]

    def write(path: str) -> None:
        assert not (tmp_path / left).exists()
        temporary_file(lambda other: Path(other).write_text("b"), "b", owners[1], str(tmp_path))
        Path(path).write_text("a")

    path = temporary_file(write, "a", owners[0], str(tmp_path))
    assert Path(path).read_text() == "a"
    owners.clear()
    assert set(os.listdir(tmp_path)) == others and not Path(path).exists()


def test_a_run_goes_on_without_the_weights_it_began_with(origin, data, tmp_path, tokenizer):
    folder = tmp_path / "gone"
    os.rename(origin / "hf", folder)
    try:
        whole = events(model=folder, data=data, out=tmp_path / "whole", max_steps=4)
        events(model=folder, data=data, out=tmp_path / "half", max_steps=4, checkpoint_every=2, val_every=2)
        first = pyllmc.Trainer(model=folder, data=data, out=tmp_path / "run", **{**QUICK, "max_steps": 4})
        for event in first:
            if event.kind == "step" and event.step == 2:
                first.stop()
    finally:
        os.rename(folder, origin / "hf")
    del first
    rest = events(resume=tmp_path / "run", max_steps=4)
    assert [e.loss for e in rest if e.kind == "step"] == [e.loss for e in whole if e.kind == "step"][2:]
    assert read_tokenizer(tmp_path / "run" / "last.ckpt").pieces == tokenizer.pieces
    done = subprocess.run(
        [ROOT / "train_gpt2", f"--resume={tmp_path / 'run'}", "--max_steps=5", "--sample_every=0"],
        capture_output=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr


def test_the_vocabulary_of_adopted_weights_is_checked(origin, tmp_path):
    dataset.write_dataset(TEXTS, tmp_path / "other", tokenizer="char")
    with pytest.raises(pyllmc.InvalidArgument, match=f"^{origin / 'hf'} has V=.* the tokenizer of the data"):
        events(model=origin / "hf", data=tmp_path / "other")


def test_a_vocabulary_that_others_padded_is_taken(data, tmp_path, tokenizer):
    """nanoGPT pads 50257 ids to 50304 rows; weights without a tokenizer may have up to 127 such rows."""
    V = -(-tokenizer.vocab_size // 64) * 64
    assert V != tokenizer.vocab_size
    pyllmc.Model(GPTConfig(V, 16, 1, 1, 8)).save(tmp_path / "padded.bin")
    assert events(model=tmp_path / "padded.bin", data=data)[-1].kind in ("eval", "sample", "step")
    pyllmc.Model(GPTConfig(V + 1, 16, 1, 1, 8)).save(tmp_path / "other.bin")
    with pytest.raises(pyllmc.InvalidArgument, match="has V="):
        events(model=tmp_path / "other.bin", data=data)


def test_every_command_takes_them(origin, capsys):
    name = str(origin / "hf")
    assert sample.main([name, "--prompt=the cat", "--max_new_tokens=4", "--temperature=0"]) == 0
    written = capsys.readouterr().out
    assert written.startswith("the cat")
    from pyllmc import chat, train

    assert (
        train.main(
            [f"--model={name}", "--max_steps=0", "--prompt=the cat", "--sample_tokens=4", "--temperature=0"]
        )
        == 0
    )
    assert capsys.readouterr().out == written
    assert chat.main([name, "--prompt=the cat", "--sample_tokens=4", "--template=story"]) == 0
    assert grade.main([name, "--count=1", "--show=0"]) in (0, 2)
    capsys.readouterr()
    assert check.main([name, "--B=1", "--T=4"]) == 0
    assert "every tensor agrees" in capsys.readouterr().out


@pytest.mark.parametrize("program, word", [("train_gpt2", "train"), ("chat_gpt2", "model.bin")])
def test_the_c_programs_say_the_whole_command(origin, program, word):
    for model in (
        origin / "hf",
        origin / "nano" / "ckpt.pt",
        origin / "hf" / "model.safetensors",
        "hub:gpt2",
    ):
        done = subprocess.run([ROOT / program, f"--model={model}"], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode in (2, 4, 5) and done.stderr.count("\n") == 1
        assert f"python -m pyllmc.convert {model} model.bin" in done.stderr and word in done.stderr


# ---- sizes and the hub


@pytest.mark.parametrize("model", ["gpt2", "d12", "gpt-nano"])
def test_a_size_is_fresh_weights_everywhere_and_says_so(model, capsys):
    """./train_gpt2, pyllmc.train, pyllmc.Model and train_gpt2.py agree on each size."""
    plan = [f"--model={model}", "--plan", "--vocab_size=50257"]
    done = subprocess.run([ROOT / "train_gpt2", *plan], capture_output=True, text=True, cwd=ROOT)
    alike = " (OpenAI's: hub:gpt2, in Python)" if model == "gpt2" else ""
    assert f"parameters, fresh weights{alike}\n" in done.stdout, done.stderr
    from pyllmc import train

    assert train.main(plan) == 0
    assert f"fresh weights{alike}\n" in capsys.readouterr().out
    o = reference.parse([f"--model={model}"])
    assert not reference.names_weights(model)
    assert "parameters, fresh weights" in reference.told(o, reference.make_config(o, fallback=7))
    assert repr(pyllmc.Model("gpt-nano", B=1, T=4, vocab_size=9)).endswith("fresh weights>")


def test_openais_weights_are_asked_for_by_a_word_that_is_no_size(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert reference.main(["--model=gpt2-xl", "--max_steps=0", "--export=x.bin"]) == 2
    assert (
        "OpenAI's are --model=hub:gpt2-xl; for fresh weights of that size say --model=d48"
        in capsys.readouterr().err
    )
    for call in (lambda: open_model("gpt2"), lambda: convert.load("gpt2")):
        with pytest.raises(errors.SystemFailure, match="gpt2 is a size, .* hub:gpt2"):
            call()


@pytest.fixture
def the_hub(origin, monkeypatch):
    asked = []
    monkeypatch.setattr(
        pytest.importorskip("huggingface_hub"),
        "snapshot_download",
        lambda name, **how: asked.append((name, how["allow_patterns"])) or str(origin / "hf"),
    )
    return asked


@pytest.mark.parametrize(
    "name, repository", [("hub:gpt2", "openai-community/gpt2"), ("some-owner/a.model", "some-owner/a.model")]
)
def test_models_of_the_hub(the_hub, origin, data, name, repository, capsys, tokenizer):
    model = pyllmc.Model(name)
    assert np.array_equal(model.params["wte"], pyllmc.Model(origin / "model.bin").params["wte"])
    assert model.tokenizer_bytes == tokenizer.to_bytes()
    assert f"from {origin / 'hf'}" in repr(model)
    assert f"parameters, from {name}\n" in events(model=name, data=data)[0].text
    assert sample.main([name, "--prompt=the", "--max_new_tokens=2"]) == 0
    assert check.main([name, "--B=1", "--T=4"]) == 0
    assert same_weights(reference.load_model(reference.parse([f"--model={name}"])), model)
    assert {asked for asked, _ in the_hub} == {repository}
    assert {"tokenizer.json", "vocab.json", "merges.txt"} <= set(the_hub[0][1])


def same_weights(gpt, model) -> bool:
    return all(np.array_equal(p.detach().numpy(), model.params[n]) for n, p in gpt.named_parameters())


@pytest.mark.parametrize("name", ["runs/none", "models/124M", "./a/b", "tests/none", "a/b/c", "none"])
def test_a_mistyped_path_asks_no_hub(the_hub, name, monkeypatch):
    monkeypatch.chdir(ROOT)
    for call in (lambda: open_model(name), lambda: pyllmc.Model(name), lambda: pyllmc.Chat(name)):
        with pytest.raises(pyllmc.LlmcError, match=name):
            call()
    assert the_hub == []


def test_a_name_of_the_hub_that_is_none():
    for name in ("hub:", "hub:a b", "hub:a/b/c"):
        with pytest.raises(pyllmc.InvalidArgument, match="write hub:gpt2 or hub:owner/name"):
            hub.repository(name)


def test_a_size_comes_before_a_file_of_that_name(origin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt-nano").write_bytes((origin / "model.bin").read_bytes())
    options = Options(_ffi.load())
    options.set("model", "gpt-nano")
    pyllmc.adopt.adopt_model(options)
    assert pyllmc.Model("gpt-nano", B=1, T=4, vocab_size=9).config.n_embd == 48
    assert not reference.names_weights("gpt-nano") and reference.names_weights("./gpt-nano")


@pytest.mark.parametrize("how", ["load", "Model", "open_model", "adopt_model"])
def test_config_json_is_parsed_once_an_opening(origin, how, monkeypatch):
    """It tells both the kind of a folder and the sizes of its model; one reading serves both."""
    parsed = []
    monkeypatch.setattr(
        hf_config, "json", types.SimpleNamespace(loads=lambda data: parsed.append(1) or json.loads(data))
    )
    if how == "adopt_model":
        options = Options(_ffi.load())
        options.set("model", origin / "hf")
        pyllmc.adopt.adopt_model(options)
    else:
        {"load": convert.load, "Model": pyllmc.Model, "open_model": open_model}[how](origin / "hf")
    assert parsed == [1]
