"""What a model is asked (a text, a word, one choice of several), and what is told of the answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rolling:
    """One stream of tokens, each of which is scored once, with as much context as the windows leave it.

    ids: int32 (n). stride: new targets in each window. window: tokens that a window holds; None: the model's T.
    first: how many leading tokens are context only, at least 1. units: what the published figure divides by: the words, characters or bytes
    of the original text. bytes: UTF-8 bytes of the original text.
    """

    ids: np.ndarray
    stride: int
    window: int | None
    first: int
    units: float
    bytes: int


@dataclass(frozen=True)
class Choice:
    """A context and its possible continuations, as int32 ids, none of them empty.

    answer: the number of the right one. lengths: what a normalised score divides by, for each choice: its bytes or its tokens.
    """

    context: np.ndarray
    choices: list[np.ndarray]
    answer: int
    lengths: list[float]


@dataclass(frozen=True)
class Word:
    """A context and the tokens of the word that follows it (LAMBADA): its log-probability, and whether greedy decoding gives it.

    banned: ids that greedy decoding passes over at the word's first token, such as stop words; the log-probability is not changed.
    """

    context: np.ndarray
    target: np.ndarray
    banned: np.ndarray | None = None


@dataclass(frozen=True)
class Score:
    """One figure of a task.

    metric: ppl, acc, acc_norm, bpb (bits per byte), bpc (bits per character) or loss (nats per token). error: its standard
    error, None if none is defined. n: the items (or units) it is the mean of. paper: published figures by the size's name.
    """

    name: str
    metric: str
    value: float
    error: float | None
    n: int
    protocol: str
    paper: dict[str, float] | None
