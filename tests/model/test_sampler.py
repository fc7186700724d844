"""Sampling against a plain sort in float64, its edge cases, and generation against the whole forward pass."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ffi, lib
from hypothesis import given, settings
from hypothesis import strategies as st

import pyllmc
from pyllmc import GPTConfig, Model
from pyllmc.engine import _ffi

SETTINGS = settings(max_examples=300)


def sample(logits, coin=0.5, temperature=1.0, top_k=0, top_p=0.0) -> int:
    logits = np.ascontiguousarray(logits, np.float32)
    how = ffi.new("llmc_sampling *", dict(temperature=temperature, top_k=top_k, top_p=top_p))
    return _ffi.check(lib, lib.llmc_sample(ffi.cast("float *", logits.ctypes.data), logits.size, how, coin))


def kept_probabilities(logits, temperature=1.0, top_k=0, top_p=0.0) -> np.ndarray:
    """The distribution by its definition: sort, cut at k, cut where the share reaches p."""
    logits = np.asarray(logits, np.float32).astype(np.float64)
    p = np.exp((logits - logits.max()) / temperature)
    order = np.lexsort((np.arange(p.size), -logits))
    if top_k:
        p[order[top_k:]] = 0
    if 0 < top_p < 1:
        cut = np.searchsorted(np.cumsum(p[order]), top_p * p.sum() * (1 - 1e-7)) + 1
        p[order[cut:]] = 0
    return p / p.sum()


def edges_are_far(logits, top_p: float, top_k: int, temperature: float) -> bool:
    """True if rounding cannot change which candidate is the last."""
    p = np.sort(kept_probabilities(logits, temperature, top_k))[::-1]
    return not 0 < top_p < 1 or np.abs(np.cumsum(p) - top_p).min() > 1e-5


@SETTINGS
@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=60),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.3, 1.0, 2.0]),
    st.integers(0, 70),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
)
def test_against_a_sort(logits, coin, temperature, top_k, top_p):
    """Many numbers are equal. A coin on an edge between two ids may choose either."""
    logits = np.array(logits, np.float32) / 4
    if not edges_are_far(logits, top_p, top_k, temperature):
        return
    p = kept_probabilities(logits, temperature, top_k, top_p)
    id = sample(logits, coin, temperature, top_k, top_p)
    assert p[id] > 0
    upto = np.cumsum(p)
    assert upto[id] - p[id] - 1e-5 <= coin <= upto[id] + 1e-5


def test_large_vocabulary_and_every_coin():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, 50257).astype(np.float32)
    for how in (dict(), dict(top_k=40), dict(top_p=0.9), dict(top_k=1000, top_p=0.7), dict(temperature=0.1)):
        upto = np.cumsum(kept_probabilities(logits, **how))
        for coin in (np.arange(50) + 0.5) / 50:
            assert abs(sample(logits, coin, **how) - np.searchsorted(upto, coin, "right")) <= 2, how


def test_sorted_and_equal_logits_take_no_quadratic_time():
    for logits in (np.arange(50_000), -np.arange(50_000), np.zeros(50_000)):
        for how in (dict(top_k=100), dict(top_p=0.99)):
            assert 0 <= sample(logits / 1e4, 0.3, **how) < 50_000


def test_greedy_and_ties():
    assert sample([1, 5, 5, 2], temperature=0) == 1
    assert sample([1, 5, 5, 2], 0.99, top_k=1) == 1
    assert sample([1, 5, 5, 2], 0.99, top_p=1e-6) == 1
    assert [sample([3, 3, 3], c, top_k=2) for c in (0, 0.49, 0.51, 0.999)] == [0, 0, 1, 1]


def test_extremes():
    assert sample([-1e4, 1e4, -1e4], 0.999999) == 1
    assert {sample([1e4, 1e4], c) for c in (0.2, 0.8)} == {0, 1}
    assert sample([-np.inf, -3e38, -np.inf], 0.0) == 1
    assert sample([-np.inf, 0, -np.inf, 0, -np.inf], 1 - 2**-53) == 3
    assert sample([0, 1], 0.5, temperature=1e-30) == 1
    assert sample([7], 0.9, top_k=5, top_p=0.5) == 0


@pytest.mark.parametrize("logits", [[0, np.nan], [np.nan, 0], [np.inf, 0], [-np.inf, -np.inf]])
@pytest.mark.parametrize("temperature", [0, 1])
def test_broken_logits(logits, temperature):
    with pytest.raises(_ffi.NotFinite, match="logit"):
        sample(logits, temperature=temperature)


@pytest.mark.parametrize(
    "how",
    [dict(temperature=-1), dict(temperature=np.nan), dict(top_k=-1), dict(top_p=1.5), dict(top_p=np.nan),
     dict(coin=1.0), dict(coin=-0.1)],
)  # fmt: skip
def test_bad_arguments(how):
    with pytest.raises(_ffi.InvalidArgument, match=next(iter(how))):
        sample([0, 1], **how)
    assert lib.llmc_sample(ffi.NULL, 0, ffi.new("llmc_sampling *"), 0.5) == lib.LLMC_EINVAL


# ---- generation ----


@pytest.fixture(scope="module")
def model() -> Model:
    made = Model(GPTConfig(vocab_size=33, max_seq_len=16, n_layer=2, n_head=2, n_embd=8), B=1, T=8, seed=3)
    for name in made.params:
        made.params[name][...] *= 12  # makes probabilities far from uniform
    return made


def step_by_step(model: Model, prompt, max_new: int, T: int, seed: int, **how) -> list[int]:
    """The definition: every token from a forward pass over the window, which halves when it is full."""
    state, window, out = ffi.new("uint64_t *", seed), list(prompt)[-T:], []
    for _ in range(max_new):
        model.forward(np.array([window]), None)
        id = sample(model.logits[0, len(window) - 1], lib.llmc_coin(state), **how)
        out.append(id)
        window = [*window, id] if len(window) < T else [*window[T - T // 2 :], id]
    return out


@pytest.mark.parametrize(
    "how", [dict(temperature=0.0), dict(temperature=0.8), dict(temperature=1.2, top_k=5, top_p=0.9)]
)
@pytest.mark.parametrize("prompt", [[1], [5, 6, 7], list(range(8)), list(range(20))])
def test_generate(model, how, prompt):
    """Prompts are shorter and longer than T, and the window slides several times."""
    ours = model.generate(prompt, max_new_tokens=25, seed=9, **how)
    assert ours == step_by_step(model, prompt, 25, 8, 9, **how)
    assert model.generate(prompt, max_new_tokens=25, seed=9, **how) == ours


def test_generate_seeds_differ_and_padding_never_comes(model):
    texts = {tuple(model.generate([1], max_new_tokens=40, temperature=5.0, seed=s)) for s in range(5)}
    assert len(texts) == 5
    assert max(map(max, texts)) < 33


def test_generate_ends_with_eot(model):
    free = model.generate([1], max_new_tokens=20, temperature=1.5, seed=4)
    eot = free[10]
    assert (
        model.generate([1], max_new_tokens=20, temperature=1.5, seed=4, eot=eot)
        == free[: free.index(eot) + 1]
    )
    assert model.generate([1], max_new_tokens=0) == []


def test_generate_several_at_once():
    """Each text is the same as alone; they end at different places, and their contexts slide."""
    config = pyllmc.GPTConfig(vocab_size=67, max_seq_len=12, n_layer=2, n_head=3, n_embd=48)
    m = pyllmc.Model(config, B=5, training=False, init_std=0.3)
    prompts = np.random.default_rng(0).integers(0, 67, (5, 3))
    for eot in (-1, 11):
        together = m.generate(prompts, max_new_tokens=30, temperature=1.0, seed=4, eot=eot)
        alone = [
            m.generate(p, max_new_tokens=30, temperature=1.0, seed=4 + i, eot=eot)
            for i, p in enumerate(prompts)
        ]
        assert together == alone
    assert len({len(text) for text in together}) > 1
    with pytest.raises(pyllmc.InvalidArgument, match="6 prompts do not fit"):
        m.generate(np.zeros((6, 2), int))


def test_generate_in_a_context_of_one():
    tiny = Model(
        GPTConfig(vocab_size=5, max_seq_len=1, n_layer=1, n_head=1, n_embd=4), B=1, T=1, training=False
    )
    assert len(tiny.generate([1, 2, 3], max_new_tokens=5)) == 5


@pytest.mark.parametrize(
    "bad,message", [([], "empty prompt"), ([33], "33 is not in 0..32"), ([-1], "-1 is not in")]
)
def test_bad_prompt(model, bad, message):
    with pytest.raises(_ffi.InvalidArgument, match=message):
        model.generate(np.array(bad, np.int32))
    with pytest.raises(_ffi.InvalidArgument, match="temperature"):
        model.generate([1], temperature=-1)


def test_broken_weights_are_told(model):
    broken = Model(model.config, B=1, T=8)
    broken.params["transformer.wpe.weight"][0, 0] = np.nan
    with pytest.raises(_ffi.NotFinite):
        broken.generate([1])


def test_an_infinite_logit_is_named():
    with pytest.raises(pyllmc.NotFinite, match="the logit of id 1 is inf"):
        sample([0, np.inf, 2])
