"""A model whose logits are made by a matrix of its own: its files, its weights, its training. Its gradients: test_model.py."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from conftest import ffi, lib
from converted import logits, make_model

import pyllmc
from pyllmc import Model, convert
from pyllmc.base.errors import BadFile, DataError, InvalidArgument
from pyllmc.convert.export import save
from pyllmc.engine.checkpoint import read_header
from pyllmc.tables.layout import GPTConfig
from pyllmc.text import dataset

TIED = GPTConfig(97, 12, 2, 2, 24)
UNTIED = replace(TIED, untied=True)
HEAD = "lm_head.weight"
IDS = [5, 17, 3, 96, 0, 42]


def test_fresh_weights_are_those_of_pytorch():
    """The head is drawn last, so all else is as in a tied model of the same seed."""
    pytest.importorskip("torch")
    from pyllmc.parity.reference import load_reference

    ours, tied = Model(UNTIED, B=1, seed=7), Model(TIED, B=1, seed=7)
    theirs = dict(load_reference().GPT(UNTIED, seed=7).named_parameters())
    assert list(ours.params) == [*tied.params, HEAD]
    assert set(ours.params) == set(theirs)
    for name, x in theirs.items():
        np.testing.assert_allclose(ours.params[name], x.detach().numpy(), rtol=0, atol=1e-7, err_msg=name)
    assert all(np.array_equal(ours.params[name], tied.params[name]) for name in tied.params)
    assert ours.params["lmheadw"].shape == (97, 24)
    assert ours.num_params == tied.num_params + 97 * 24
    with pytest.raises(KeyError):
        tied.params["lmheadw"]


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_micro_step_is_forward_and_backward(accumulate):
    """Also where it writes gradients instead of adding to them: that of wte comes from the embedding alone."""
    one, two = Model(UNTIED, B=2, seed=1, keep_logits=False), Model(UNTIED, B=2, seed=1)
    for m in (one, two):
        m.grads["wte"] = 7
    ids = np.random.default_rng(0).integers(0, 97, (2, 13))
    if not accumulate:
        two.zero_grad()
    two.forward(ids[:, :-1], ids[:, 1:])
    two.backward()
    one.micro_step(ids[:, :-1], ids[:, 1:], accumulate=accumulate)
    for name in one.grads:
        assert np.array_equal(one.grads[name], two.grads[name]), name
    unseen = np.setdiff1d(np.arange(97), ids[:, :-1])
    assert (one.grads["wte"][unseen] == (7 if accumulate else 0)).all()
    assert one.grads["lmheadw"][unseen].all()


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_generation_reads_the_head(precision, weights):
    """Each id is the likeliest of a whole forward pass, whatever the weights are stored as."""
    m = Model(UNTIED, B=1, seed=3, training=False, precision=precision, weights=weights, init_std=0.3)
    made = m.generate(IDS, max_new_tokens=6, temperature=0)
    for n in range(len(made)):
        assert made[n] == logits(m, IDS + made[:n])[-1].argmax()


def test_a_checkpoint(tmp_path):
    m, path = make_model(UNTIED), tmp_path / "m.ckpt"
    ids = np.random.default_rng(0).integers(0, 97, (1, 13))
    m.micro_step(ids[:, :-1], ids[:, 1:])
    m.update()
    m.save(path)
    again = Model(path, B=1)
    assert again.config == UNTIED
    for name in m.params:
        assert np.array_equal(m.params[name], again.params[name])
        assert all(np.array_equal(a, b) for a, b in zip(m.moments[name], again.moments[name]))
    assert again.moments["lmheadw"][0].any()
    assert convert.load(path)[0] == UNTIED
    read, theirs = ffi.new("llmc_config *"), Model(TIED, B=1)
    assert lib.llmc_model_read_config(str(path).encode(), read) == 0
    assert (read.untied, read.V) == (1, 97)
    assert lib.llmc_model_load(theirs._handle, str(path).encode()) == lib.LLMC_EINVAL


def test_only_the_own_version_says_it(tmp_path):
    """A tied model's file stays llm.c's version 3. Who does not know version 103 refuses the file, and so does this engine
    if the header, or the checksum behind the weights, is not that of such a file."""
    version, path = lambda path: struct.unpack_from("<2i", path.read_bytes(), 0)[1], tmp_path / "m.ckpt"
    make_model(TIED).save(tmp_path / "tied.ckpt")
    make_model(UNTIED).save(path)
    assert (version(tmp_path / "tied.ckpt"), version(path)) == (3, 103)
    assert struct.unpack_from("<10i", (tmp_path / "tied.ckpt").read_bytes())[9] == 0
    good = path.read_bytes()
    for at, value in ((1, 3), (1, 104), (9, 2), (9, 0)):
        path.write_bytes(good[: 4 * at] + struct.pack("<i", value) + good[4 * at + 4 :])
        with pytest.raises(BadFile):
            Model(path, B=1)
    path.write_bytes(good[: 1024 + 4 * sum(row.size for row, _ in pyllmc.tables.layout.parameters(UNTIED))])
    with pytest.raises(BadFile, match="does not end with its checksum"):
        Model(path, B=1)


def test_pytorch_reads_the_checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    from pyllmc.parity.reference import load_reference

    reference, m = load_reference(), make_model(UNTIED)
    m.save(tmp_path / "m.ckpt")
    gpt = reference.read_model(str(tmp_path / "m.ckpt"))
    np.testing.assert_allclose(gpt(torch.tensor([IDS]))[0][0].detach().numpy(), logits(m, IDS), atol=1e-4)
    with pytest.raises(DataError, match="an lm_head of its own"):
        reference.write_model(gpt, str(tmp_path / "m.bin"))


def test_llm_c_s_file_has_no_room(tmp_path):
    with pytest.raises(
        DataError, match=r"an lm_head of its own.*: write a folder \(--to hf\) or a GGUF file \(--to gguf\)$"
    ):
        save(tmp_path / "m.bin", UNTIED, make_model(UNTIED).params)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("window", [0, 3])
def test_a_folder_of_hugging_face(tmp_path, window):
    """GPT-2 and GPT-Neo: written, read back, and run by transformers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = replace(UNTIED, window=window)
    m = make_model(config)
    for layer in range(config.n_layer if window else 0):
        m.params[f"transformer.h.{layer}.attn.c_attn.bias"][:] = 0
    save(tmp_path / "hf", config, m.params)
    assert json.loads((tmp_path / "hf/config.json").read_text())["tie_word_embeddings"] is False
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(expected, logits(m, IDS), rtol=1e-4, atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    again = Model(tmp_path / "theirs", B=1)
    assert again.config == config
    np.testing.assert_array_equal(again.params["lmheadw"], m.params["lmheadw"])


def test_a_head_that_equals_the_embedding_is_tied(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = dict(vocab_size=97, n_positions=12, n_embd=24, n_layer=2, n_head=2)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, tie_word_embeddings=False))
    theirs.lm_head.weight = torch.nn.Parameter(theirs.transformer.wte.weight.detach().clone())
    theirs.save_pretrained(tmp_path / "hf")
    assert Model(tmp_path / "hf", B=1).config == TIED


@pytest.mark.parametrize("asked", [False, True])
def test_a_gguf_file(tmp_path, asked):
    gguf = pytest.importorskip("gguf")
    m = make_model(UNTIED)
    save(tmp_path / "m.gguf", UNTIED, m.params, untied=asked)
    found = {x.name: x.data for x in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert np.array_equal(found["output.weight"], m.params[HEAD])
    assert np.array_equal(found["token_embd.weight"], m.params["wte"])


@pytest.mark.parametrize("name", [HEAD, "lmheadw", "lm_*"])
def test_the_head_alone_is_trained(name):
    full, some = Model(UNTIED, B=2, seed=1), Model(UNTIED, B=2, seed=1, train_only=name)
    ids = np.random.default_rng(0).integers(0, 97, (2, 13))
    for m in (full, some):
        m.micro_step(ids[:, :-1], ids[:, 1:])
    assert list(some.grads) == [HEAD]
    assert np.array_equal(some.grads[HEAD], full.grads[HEAD])
    before = {key: x.copy() for key, x in some.params.items()}
    some.update(lr=0.1)
    assert [key for key, x in before.items() if not np.array_equal(x, some.params[key])] == [HEAD]
    with pytest.raises(InvalidArgument, match="no tensor is called"):
        Model(TIED, B=1, train_only=name)


def test_adapters_of_an_untied_model(tmp_path):
    """Their file tells that the base is untied, and its pattern. The head stays as it is."""
    config = replace(UNTIED, n_layer=3, window=4, pattern="LLD")
    base, path = tmp_path / "base.ckpt", tmp_path / "lora.ckpt"
    make_model(config).save(base)
    m = Model(base, B=1, lora_rank=2, lora_alpha=4)
    assert m.config == config and all("lora_" in name for name in m.grads)
    ids = np.random.default_rng(0).integers(0, 97, (1, 13))
    for _ in range(3):
        m.micro_step(ids[:, :-1], ids[:, 1:])
        m.update(lr=0.05)
    m.save(path)
    assert struct.unpack_from("<2i", path.read_bytes())[1] == 1000
    assert read_header(path) == (1000, config)
    again, merged, plain = Model(path, B=1, lora_rank=2, lora_alpha=4), Model(path, B=1), Model(base, B=1)
    assert again.config == merged.config == config
    for name in m.params:
        assert np.array_equal(again.params[name], m.params[name]), name
    for name in m.moments:
        assert all(np.array_equal(a, b) for a, b in zip(again.moments[name], m.moments[name]))
    assert np.array_equal(merged.params[HEAD], plain.params[HEAD])
    np.testing.assert_allclose(logits(merged, IDS), logits(m, IDS), atol=1e-4)
    assert np.abs(logits(plain, IDS) - logits(m, IDS)).max() > 0.1


def test_a_run_is_resumed_bit_for_bit(tmp_path):
    data = tmp_path / "data"
    dataset.write_dataset(["the cat sat on the mat " * 9] * 20, data, tokenizer="char", val_fraction=0.1)
    given = dict(data=str(data), n_layer=1, n_head=2, n_embd=16, max_seq_len=16, B=2, untied=1)
    often = dict(val_every=0, sample_every=0, checkpoint_every=2, max_steps=4)
    whole = pyllmc.Trainer(**given, **often, out=str(tmp_path / "whole"))
    assert " untied," in "".join(event.text for event in whole)
    for _ in pyllmc.Trainer(**given, **{**often, "max_steps": 2}, out=str(tmp_path / "part")):
        pass
    again = pyllmc.Trainer(resume=str(tmp_path / "part"), max_steps=4)
    for _ in again:
        pass
    assert whole.model.config.untied and again.model.config.untied
    for name in whole.model.params:
        assert whole.model.params[name].tobytes() == again.model.params[name].tobytes()
    run = str(tmp_path / "whole")
    with pytest.raises(InvalidArgument, match="--untied=0, but .* has 1: leave the option out"):
        pyllmc.Trainer(model=run, data=str(data), untied=0, out="")
    assert pyllmc.Trainer(model=run, data=str(data), out="", max_steps=1)
