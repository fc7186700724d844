"""Shared by the tests of pyllmc.convert: tiny models whose tensors are all random, and tokenizers of each kind."""

from __future__ import annotations

import numpy as np

import pyllmc
from pyllmc.text.tokenizer import Tokenizer
from pyllmc.text.vocabularies import train

TEXT = "Once upon a time the cat sat on the mat — with a dog, too. It's héllo, wörld 12!\n\nThe  end.\n"


def make_model(config: pyllmc.GPTConfig, tokenizer: Tokenizer | None = None, seed: int = 1) -> pyllmc.Model:
    """A model with random tensors, so large that the likeliest tokens are apart."""
    m = pyllmc.Model(config, B=1, seed=seed, threads=1)
    rng = np.random.default_rng(seed)
    for name in m.params:
        x = m.params[name]
        x[:] = rng.normal(1 if ".ln_" in name and name.endswith("weight") else 0, 0.2, x.shape)
        if name.endswith(("wte.weight", "lm_head.weight")):
            x[config.vocab_size :] = 0
    m.tokenizer_bytes = tokenizer.to_bytes() if tokenizer else b""
    return m


def tokenizer_of(name: str) -> Tokenizer:
    """A tokenizer by the name of its vocabulary. "added": byte pairs with pieces that come before them."""
    if name == "added":
        learnt = tokenizer_of("bpe")
        pieces = [*learnt.pieces, b"<|user|>", "<|é bot|>".encode(), b"[SEP]"]
        return Tokenizer(pieces, "gpt2", learnt.eot, range(learnt.vocab_size, len(pieces)))
    return train(name, [TEXT * 3], max_vocab=290)


def logits(m: pyllmc.Model, ids: list[int]) -> np.ndarray:
    """The logits, (t, V)."""
    m.forward(np.array([ids], np.int32))
    return m.logits[0]
