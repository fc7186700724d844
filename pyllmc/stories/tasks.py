"""Little tasks that only their examples explain: a corpus from which a small model learns to read examples.

A document is one task, as lines `query>answer` that all follow its rule. The rule is drawn for each document, and the queries
are drawn alike for every rule, so nothing but the examples tells which answer is right. A kind of rule:

    cipher   each letter stands for another: a table of LETTERS, drawn anew. One table in HELD_OUT is never in a document of
             the corpus, but only in the exam
    phrases  a phrase book of PHRASES random queries, each with a random answer, drawn anew; so hardly any two are alike
    places   the answer takes its letters from places of the query: copied, turned round, the first or the last twice. The
             corpus has all of these rules, so the exam leaves them out; they are the first that a model learns, and with
             them to look at places of a line, which the other kinds need

Standard library only; the same bytes on every Python >= 3.9.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from pyllmc.stories.dice import Dice

LETTERS = "abcdef"
SIZE = 2  # letters in a query, and in an answer
LINES = 9  # in a document
SEPARATOR, END = ">", "\n"
PHRASES = 4  # queries in a phrase book
HELD_OUT = 5  # the exam has one in so many ciphers, which the corpus lacks
KINDS = ("cipher", "phrases", "places")
EXAMINED = ("cipher", "phrases")
PLACES = tuple(itertools.product(range(SIZE), repeat=SIZE))
WORDS = tuple(map("".join, itertools.product(LETTERS, repeat=SIZE)))


class Task(NamedTuple):
    """Queries of one rule with their answers, in the order in which they are shown."""

    kind: str
    pairs: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        return "".join(f"{query}{SEPARATOR}{answer}{END}" for query, answer in self.pairs)

    def told(self, shots: int) -> bool:
        """True if the first `shots` pairs determine the answer to the query behind them."""
        seen, (query, _) = self.pairs[:shots], self.pairs[shots]
        if self.kind == "phrases":
            return query in dict(seen)
        if self.kind == "places":
            fitting = [p for p in PLACES if all(_placed(q, p) == a for q, a in seen)]
            return len({_placed(query, p) for p in fitting}) == 1
        letters = set("".join(query for query, _ in seen))
        return (
            set(query) <= letters or len(letters) >= len(LETTERS) - 1
        )  # the last letter has one answer left


def _word(dice: Dice) -> str:
    return WORDS[dice.roll(len(WORDS))]


def _placed(query: str, places: tuple[int, ...]) -> str:
    return "".join(query[i] for i in places)


def is_held_out(table: str) -> bool:
    """True for the ciphers of the exam. table: what the LETTERS stand for, in their order."""
    return sum(i * LETTERS.index(letter) for i, letter in enumerate(table)) % HELD_OUT == 0


def _cipher(dice: Dice, held_out: bool) -> dict[str, str]:
    while True:
        letters, table = list(LETTERS), ""
        while letters:
            table += letters.pop(dice.roll(len(letters)))
        if is_held_out(table) == held_out:
            return dict(zip(LETTERS, table))


def make_task(kind: str, dice: Dice, held_out: bool = False) -> Task:
    """A task of a kind, with LINES pairs. held_out: a cipher that the corpus lacks; of the other kinds nothing is held out."""
    if kind == "phrases":
        book = {_word(dice): _word(dice) for _ in range(PHRASES)}
        queries = [tuple(book)[dice.roll(len(book))] for _ in range(LINES)]
        return Task(kind, tuple((query, book[query]) for query in queries))
    queries = [_word(dice) for _ in range(LINES)]
    if kind == "cipher":
        table = _cipher(dice, held_out)
        return Task(kind, tuple((query, "".join(table[letter] for letter in query)) for query in queries))
    places = PLACES[dice.roll(len(PLACES))]
    return Task(kind, tuple((query, _placed(query, places)) for query in queries))


def generate(count: int, seed: int = 1) -> Iterator[str]:
    """Yield `count` documents, of all KINDS alike. Document i depends on `seed` and i only, not on `count`."""
    if count < 0:
        raise ValueError(f"cannot make {count} documents; give a count of at least 0")
    seeds = Dice(seed)
    for _ in range(count):
        dice = Dice(seeds.roll(1 << 32) << 32 | seeds.roll(1 << 32))
        yield make_task(KINDS[dice.roll(len(KINDS))], dice).text
