"""What pyllmc.Model refuses before C sees it: sizes, names, questions that have no answer yet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_model import CASES, make_engine

import pyllmc

TOO_LARGE = [
    ("B", lambda m: pyllmc.Model("d12", B=2**40)),
    ("T", lambda m: pyllmc.Model("d12", T=2**31)),
    ("seed", lambda m: pyllmc.Model("d12", B=1, T=4, seed=2**70)),
    ("threads", lambda m: pyllmc.Model("d12", B=1, T=4, threads=-(2**33))),
    ("vocab_size", lambda m: pyllmc.Model("gpt-nano", vocab_size=2**35)),
    ("max_new_tokens", lambda m: m.generate([1], max_new_tokens=2**40)),
    ("top_k", lambda m: m.generate([1], top_k=2**31)),
    ("seed", lambda m: m.generate([1], seed=2**63)),
    ("eot", lambda m: m.generate([1], eot=2**31)),
]


@pytest.mark.parametrize("name, call", TOO_LARGE, ids=lambda x: x if isinstance(x, str) else "")
def test_a_number_that_no_c_integer_holds_is_refused(name, call):
    with pytest.raises(pyllmc.InvalidArgument, match=rf"^{name}=-?\d+ does not fit (32|64) bits$"):
        call(make_engine(CASES["odd_tokens"]))


@pytest.mark.parametrize("id", [-(2**40), 2**40, 2**31, -(2**31) - 1, np.uint64(2**63 + 5)])
def test_the_id_that_does_not_fit_is_named(id):
    with pytest.raises(pyllmc.InvalidArgument, match=f"^inputs: token id {id} does not fit 32 bits$"):
        make_engine(CASES["odd_tokens"]).forward(np.array([[5, id]], np.asarray(id).dtype))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.generate([[1, 2], [3]]), "ids=.* is not an array: its rows, such as prompts, must be of one length"),
        (lambda m: m.forward([[1]], [[1]], torch.ones(1, 1, requires_grad=True)), "weights=.*: give x.detach()"),
        (lambda m: m.params.__setitem__("lnfw", torch.ones(1).bfloat16()), r"lnfw=.* of bfloat16 x.detach\(\).float\(\)"),
    ],
    ids=["ragged", "grad", "bfloat16"],
)  # fmt: skip
def test_what_numpy_cannot_read_is_refused_with_a_remedy(call, says):
    with pytest.raises(pyllmc.InvalidArgument, match=says):
        call(make_engine(CASES["odd_tokens"]))


@pytest.mark.parametrize("B", [1.5, "4", None])
def test_a_size_that_is_no_whole_number_is_refused(B):
    with pytest.raises(pyllmc.InvalidArgument, match="B=.* is not a whole number"):
        pyllmc.Model("d12", B=B, T=4)


@pytest.mark.parametrize("std", [-0.5, 101])
def test_a_spread_of_weights_that_no_option_has_is_refused(std):
    """As --init_std refuses it; a negative one was taken for the usual."""
    with pytest.raises(pyllmc.InvalidArgument, match=rf"^init_std={std} is not in 0..100"):
        pyllmc.Model(CASES["odd_tokens"].config, B=1, T=4, init_std=std)


def test_numpy_integers_are_whole_numbers():
    m = pyllmc.Model(CASES["odd_tokens"].config, B=np.int64(2), T=np.int32(3), seed=np.uint8(1))
    assert len(m.generate([1], max_new_tokens=np.int16(2))) == 2


def test_there_are_no_logits_before_a_forward_pass():
    m = make_engine(CASES["odd_tokens"])
    for what in ("logits", "losses"):
        with pytest.raises(pyllmc.InvalidArgument, match=f"{what}: there was no forward pass yet"):
            getattr(m, what)
    m.forward([[1, 2]])
    assert m.logits.shape == (1, 2, m.config.vocab_size)
    with pytest.raises(pyllmc.InvalidArgument, match="had no targets"):
        print(m.losses)
    m.forward([[1, 2]], [[2, 3]])
    assert m.losses.shape == (1, 2)
    m.generate([1], 2)
    assert m.shape == (0, 0)
    with pytest.raises(pyllmc.InvalidArgument, match="logits: .*or a text was written since"):
        print(m.logits)


@pytest.mark.parametrize(
    ("block", "name", "says"),
    [
        ("params", "wtee", "did you mean wte?"),
        ("params", "qkv", "did you mean qkvw or qkvb?"),
        ("grads", "transformer.h.0.attn.c_attn.weigth", "did you mean transformer.h.0.attn.c_attn.weight or"),
        ("acts", "zzzz", "list(model.acts) tells the names"),
    ],
)
def test_a_misspelt_tensor_gets_the_nearest_names(block, name, says):
    model = pyllmc.Model("gpt-nano", B=1, T=4, vocab_size=9)
    with pytest.raises(KeyError) as caught:
        getattr(model, block)[name]
    assert f"no tensor '{name}' among {block}: {says}" in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("V", [8, 10])
def test_weights_keep_their_vocabulary(tmp_path, V):
    pyllmc.Model("gpt-nano", B=1, T=4, vocab_size=9).save(tmp_path / "m.bin")
    with pytest.raises(pyllmc.InvalidArgument, match=f"vocab_size={V}, but .*m.bin has 9"):
        pyllmc.Model(tmp_path / "m.bin", vocab_size=V)


def test_a_size_without_a_vocabulary_asks_for_one():
    with pytest.raises(
        pyllmc.InvalidArgument, match="'gpt-nano' takes its vocabulary from the data: give vocab_size"
    ):
        pyllmc.Model("gpt-nano")
