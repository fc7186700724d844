"""Questions and answers about the figures of the stories: data for fine-tuning, and its exam.

Each figure has a kind, a toy, a home and a food, drawn from the stories' words. Each of these facts is asked for in
several ways. Of some facts one way is held out: who answers it has learnt the fact, not the sentence.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pyllmc.stories.book import BOYS, FOODS, GIRLS, KINDS, LOOKS, PLACES, TASTES, THINGS

ASKED = {  # fact -> the ways to ask for it
    "kind": ("What is {hero}?", "What kind of animal is {hero}?", "Tell me what {hero} is.", "Is {hero} a cat?"),
    "toy": ("What does {hero} have?", "What does {hero} play with?", "Which toy does {hero} love?", "What is the toy of {hero}?"),
    "home": ("Where does {hero} live?", "Where is the house of {hero}?", "Where can I find {hero}?", "Where is {hero} at night?"),
    "food": ("What does {hero} eat?", "What does {hero} bake?", "What is the best food for {hero}?", "What does {hero} like to eat?"),
}  # fmt: skip


class Pair(NamedTuple):
    question: str
    answer: str


def _facts(dice: random.Random) -> dict[str, str]:
    place = dice.choice(list(PLACES))
    return {
        "kind": f"A {dice.choice(KINDS)}.",
        "toy": f"A {dice.choice(LOOKS)} {dice.choice(THINGS)}.",
        "home": f"{PLACES[place].capitalize()} the {place}.",
        "food": f"A {dice.choice(TASTES)} {dice.choice(FOODS)}.",
    }


def pairs(figures: int = 30, seed: int = 1) -> tuple[list[Pair], list[Pair]]:
    """(those to train with, in a random order; those held out for the exam) about 1 to 30 figures."""
    dice = random.Random(seed)
    train, held_out = [], []
    for hero in sorted(GIRLS + BOYS)[:figures]:
        for fact, answer in _facts(dice).items():
            asked = [Pair(way.format(hero=hero), answer) for way in ASKED[fact]]
            if dice.random() < 0.5:
                held_out.append(asked.pop(dice.randrange(len(asked))))
            train += asked
    dice.shuffle(train)
    return train, held_out


def count_right(answer_to: Callable[[str], str], asked: Iterable[Pair]) -> int:
    """How many questions are answered right, word for word. They are asked in order."""
    return sum(answer_to(question).split() == answer.split() for question, answer in asked)
