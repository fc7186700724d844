"""What can be pickled and copied; whatever lives in the engine cannot, and says what to do instead."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import copy
import importlib
import pickle
import re

import pytest
from test_surface import TINY, good, place  # noqa: F401

import pyllmc
from pyllmc import trainer
from pyllmc.engine import arena
from pyllmc.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    "kind", [pyllmc.Model, pyllmc.Trainer, pyllmc.Writer, pyllmc.Chat, trainer.Options, arena.Views]
)
@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_lives_in_the_engine_says_what_to_do_instead_of_copying(kind, way, good):
    remedy = "can neither be pickled nor copied: (save it with|give it|make|copy the arrays)"
    with pytest.raises(pyllmc.InvalidArgument, match=f"^a {kind.__name__} lives in .*{remedy}") as caught:
        way(good.object_of(kind))
    assert isinstance(caught.value, TypeError)  # pickle and copy raise this elsewhere


def test_the_rest_is_copied(good):
    for thing in (
        good.model.config,
        good.tokenizer,
        next(pyllmc.Trainer(**{**TINY, "vocab_size": 1000}, plan=True)),
    ):
        for again in (pickle.loads(pickle.dumps(thing)), copy.deepcopy(thing)):
            assert repr(again) == repr(thing)
    arrays = {name: x.copy() for name, x in good.model.params.items()}
    assert pickle.loads(pickle.dumps(arrays)).keys() == good.model.params.keys()


def test_what_moves_within_the_package_keeps_its_public_name():
    """A pickle, or a traceback, says pyllmc.GPTConfig; older ones said where the file was."""
    config, tokenizer = pyllmc.GPTConfig(7, 8, 1, 1, 4), Tokenizer([b"a", b"b"], "longest", -1)
    for thing in (config, tokenizer):
        data = pickle.dumps(thing, protocol=0)
        assert re.findall(rb"pyllmc[\w.]*", data) == [b"pyllmc"]
        assert vars(pickle.loads(data)) == vars(thing)
    assert {getattr(pyllmc, name).__module__ for name in ("BadFile", "NoDevice", "LlmcError")} == {"pyllmc"}
    assert importlib.import_module("pyllmc.tokenizer").Tokenizer is Tokenizer
