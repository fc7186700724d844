"""Shared by the tests of weights from elsewhere: models whose tensors are all random, and the tensors to expect from
their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pyllmc
from pyllmc import convert
from pyllmc.base import errors
from pyllmc.tables.layout import GPTConfig

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
transformers = pytest.importorskip("transformers")

CONFIG = GPTConfig(vocab_size=97, max_seq_len=32, n_layer=3, n_head=2, n_embd=16)


def randomise(module):
    torch.manual_seed(3)
    with torch.no_grad():
        for name, p in module.named_parameters():
            norm = ".ln" in name or "ln_f" in name
            p.normal_(1.0 if norm and name.endswith("weight") else 0.0, 0.3 if p.ndim > 1 else 0.1)
    return module.eval()


def make_gpt2(config: GPTConfig = CONFIG, **more):
    c = config
    sizes = dict(n_positions=c.max_seq_len, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head)
    return randomise(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=c.vocab_size, bos_token_id=0, eos_token_id=0, **sizes, **more)
        )
    )


@pytest.fixture(scope="module")
def gpt2():
    return make_gpt2()


@pytest.fixture
def folder(gpt2, tmp_path) -> Path:
    gpt2.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def ours_of(hf) -> dict[str, np.ndarray]:
    """The parameters of a GPT2LMHeadModel, by our names and in our orientation."""
    conv1d = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {n: (p.T if n.endswith(conv1d) else p).detach().numpy() for n, p in hf.named_parameters()}


def assert_same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, x in found.items():
        assert x.dtype == np.float32
        assert np.array_equal(x, expected[name]), name


def ids_for(config: GPTConfig) -> np.ndarray:
    return np.random.default_rng(0).integers(0, config.vocab_size, (2, config.max_seq_len))


def logits_of(source, ids) -> np.ndarray:
    model = pyllmc.Model(source, B=len(ids), T=ids.shape[1], training=False)
    model.forward(ids)
    return model.logits.copy()


def assert_parity(source, theirs, config: GPTConfig = CONFIG, atol: float = 2e-5) -> None:
    ids = ids_for(config)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids))
    expected = getattr(expected, "logits", expected).numpy()[..., : config.vocab_size]
    np.testing.assert_allclose(logits_of(source, ids), expected, rtol=1e-4, atol=atol)


def refused(path, reason: str, error=errors.BadFile) -> None:
    """Checks that load and Model refuse a file, each in one line."""
    for take in (convert.load, lambda p: pyllmc.Model(p, B=1, T=1)):
        with pytest.raises(error, match=reason) as caught:
            take(path)
        assert "\n" not in errors.line_of(caught.value)


def save(folder: Path, state: dict, safe: bool = True) -> None:
    """Saves a state and replaces the one that is there."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    if safe:
        safetensors.save_file({n: x.contiguous() for n, x in state.items()}, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin")


def without(state: dict, *names: str) -> dict:
    return {n: x for n, x in state.items() if n not in names}
