"""The embedded default corpus: little stories from a seeded grammar, which can also read (exam.py).

The grammar is the text of `book.py` and `plots.py`. Each of its sentences is compiled twice: into
all its variants, from which `generate` chooses, and into a regular expression, with which `readings` reads. The
text read for a slot leaves those values of its variable that are told by it ("she" leaves the girls). Sentences
agree as long as every variable has a value left. Standard library only; the same bytes on every Python >= 3.9.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pyllmc.base import live
from pyllmc.base.errors import DataError, SystemFailure
from pyllmc.stories import book, plots
from pyllmc.stories.dice import Dice
from pyllmc.tables.options import options
from pyllmc.text import dataset

DEFAULT = 16_000  # stories: about 8 MB
OPTIONAL_ODDS = 5  # an optional step is told in one of this many cases
VAL_FRACTION = 0.01  # every hundredth story validates

Bindings = dict[str, frozenset[str]]  # variable -> the values it may still have


# ---- the grammar, compiled ----


class Slot(NamedTuple):
    """A word in braces: its variable, and the text for each value of that."""

    variable: str
    texts: dict[str, str]  # value -> text


class Step(NamedTuple):
    optional: bool
    ways: tuple[tuple[str, ...], ...]  # each way is one or more sentence templates


def _character_slots(variable: str, digit: str) -> dict[str, Slot]:
    """The slots of a character: the name and its pronouns. The friend's pronouns carry the digit 2."""
    slots = {variable: Slot(variable, {name: name for name in book.GIRLS + book.BOYS})}
    for pronoun, (girl, boy) in book.PRONOUNS.items():
        texts = {**dict.fromkeys(book.GIRLS, girl), **dict.fromkeys(book.BOYS, boy)}
        slots[pronoun + digit] = Slot(variable, texts)
    return slots


def _all_slots() -> dict[str, Slot]:
    plain = {
        "kind": book.KINDS,
        "kind2": book.KINDS,
        "trait": book.TRAITS,
        "home": book.HOMES,
        "time": book.TIMES,
        "place": book.PLACES,
        "weather": book.WEATHER,
        "look": book.LOOKS,
        "thing": book.THINGS,
        "toy": book.TOYS,
        "taste": book.TASTES,
        "food": book.FOODS,
        "skill": book.SKILLS,
        "seed": book.SEEDS,
    }
    slots = {name: Slot(name, {value: value for value in values}) for name, values in plain.items()}
    at = {place: f"{word} the {place}" for place, word in book.PLACES.items()}
    slots["at"] = Slot("place", at)
    slots["At"] = Slot("place", {place: text.capitalize() for place, text in at.items()})
    slots["Sky"] = Slot("weather", dict(book.WEATHER))
    return {**slots, **_character_slots("hero", ""), **_character_slots("friend", "2")}


SLOTS = _all_slots()
VALUES = {slot.variable: tuple(slot.texts) for slot in SLOTS.values()}
UNLIKE = (("hero", "friend"), ("kind", "kind2"))  # pairs of variables that never have the same value


def _parse(section: str) -> Iterator[Step]:
    """Yield the steps of a section of the storybook, those of included sections, too."""
    text = re.sub(r"<([a-z]+)>", lambda match: f"[{book.PHRASES[match[1]]}]", section.strip())
    for block in re.split(r"\n(?=[-?@])", text):
        mark, lines = block[0], block[1:].split("\n| ")
        if mark == "@":
            yield from _parse(book.SECTIONS[lines[0]])
        else:
            yield Step(mark == "?", tuple(tuple(line.strip().split(" / ")) for line in lines))


PLOTS = {name: tuple(_parse(plot)) for name, plot in plots.PLOTS.items()}
TEMPLATES = tuple(
    dict.fromkeys(
        template for plot in PLOTS.values() for step in plot for way in step.ways for template in way
    )
)


def _expand(template: str) -> tuple[str, ...]:
    """The variants of a template: "a [b|c]" -> "a b", "a c"."""
    choice = re.search(r"\[([^\[\]]*)\]", template)
    if not choice:
        return (template,)
    before, after = template[: choice.start()], template[choice.end() :]
    return tuple(v for option in choice[1].split("|") for v in _expand(before + option + after))


VARIANTS = {template: _expand(template) for template in TEMPLATES}


# ---- telling ----


def _cast(dice: Dice) -> dict[str, str]:
    """The text of every slot, for a random value of every variable."""
    while True:
        cast = {variable: values[dice.roll(len(values))] for variable, values in VALUES.items()}
        if all(cast[a] != cast[b] for a, b in UNLIKE):
            return {name: slot.texts[cast[slot.variable]] for name, slot in SLOTS.items()}


def _tell(dice: Dice) -> str:
    texts, sentences = _cast(dice), []
    for step in tuple(PLOTS.values())[dice.roll(len(PLOTS))]:
        if step.optional and dice.roll(OPTIONAL_ODDS):
            continue
        for template in step.ways[dice.roll(len(step.ways))]:
            variants = VARIANTS[template]
            sentences.append(variants[dice.roll(len(variants))].format_map(texts))
    return " ".join(sentences)


def generate(count: int, seed: int = 1) -> Iterator[str]:
    """Yield `count` stories, one paragraph each. Story i depends on `seed` and i only, not on `count`."""
    if count < 0:
        raise ValueError(f"cannot tell {count} stories; give a count of at least 0")
    seeds = Dice(seed)
    for _ in range(count):
        yield _tell(Dice(seeds.roll(1 << 32) << 32 | seeds.roll(1 << 32)))


# ---- reading ----


def split_sentences(text: str) -> tuple[list[str], str]:
    """The sentences of a text, and the rest at its end without an end mark ("" if there is none).

    A sentence ends at . ! or ? or a closing quote after it, if a capital or a quote follows.
    """
    text = " ".join(text.split())
    parts = re.split(r'(?:(?<=[.!?])|(?<=[.!?]")) (?=[A-Z"])', text) if text else []
    cut = bool(parts) and not re.search(r'[.!?]"?$', parts[-1])
    return (parts[:-1], parts[-1]) if cut else (parts, "")


@functools.cache
def _told_by(slot: str) -> dict[str, frozenset[str]]:
    """Text -> the values that the slot tells by this text."""
    texts = SLOTS[slot].texts
    return {text: frozenset(v for v in texts if texts[v] == text) for text in texts.values()}


@functools.cache
def _pattern(template: str) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """The template as a regular expression, and the slot of each of its groups."""
    regex = re.sub(r"[.?]", r"\\\g<0>", template).replace("[", "(?:").replace("]", ")")
    slots = tuple(re.findall(r"\{(\w+)\}", template))
    return re.compile(re.sub(r"\{(\w+)\}", lambda m: f"({'|'.join(_told_by(m[1]))})", regex)), slots


def _join(known: Bindings, new: Iterable[tuple[str, frozenset[str]]]) -> Bindings | None:
    """The bindings after new values were read; None if they contradict the known ones."""
    known = dict(known)
    for variable, values in new:
        known[variable] = known.get(variable, values) & values
        if not known[variable]:
            return None
    for a, b in UNLIKE:
        if a in known and len(known[a]) == 1 and known[a] == known.get(b):
            return None
    return known


@functools.lru_cache(maxsize=1 << 16)
def readings(sentence: str) -> dict[str, Bindings]:
    """Each template that can tell this sentence -> the bindings that it then has. Empty: the grammar rejects it."""
    found = {}
    for template in TEMPLATES:
        pattern, slots = _pattern(template)
        match = pattern.fullmatch(sentence)
        if match:
            read = [(slot, text) for slot, text in zip(slots, match.groups()) if text]
            bindings = _join({}, ((SLOTS[slot].variable, _told_by(slot)[text]) for slot, text in read))
            if bindings is not None:
                found[template] = bindings
    return found


def _join_way(sentences: Sequence[str], way: Sequence[str], known: Bindings | None) -> Bindings | None:
    """The bindings after the sentences were read as this way of telling a step, or as its beginning; None if they
    cannot be."""
    for sentence, template in zip(sentences, way):
        reading = readings(sentence).get(template)
        if known is None or reading is None:
            return None
        known = _join(known, reading.items())
    return known


def _follows(sentences: Sequence[str], steps: Sequence[Step], known: Bindings, cut: bool) -> bool:
    """True if the sentences tell these steps (if cut: their beginning) in order, and agree with the known bindings."""
    if not sentences and cut:
        return True
    if not steps:
        return not sentences
    if steps[0].optional and _follows(sentences, steps[1:], known, cut):
        return True
    for way in steps[0].ways:
        if len(way) <= len(sentences) or cut:
            after = _join_way(sentences, way, known)
            if after is not None and _follows(sentences[len(way) :], steps[1:], after, cut):
                return True
    return False


def accepts(sentences: Sequence[str], cut: bool = False) -> bool:
    """True if the sentences are a story of some plot (if cut: the beginning of one) and all its references agree."""
    return bool(sentences) and any(_follows(sentences, steps, {}, cut) for steps in PLOTS.values())


# ---- the data set ----


def write_dataset(out: str | Path, stories: int = DEFAULT, seed: int = 1, overwrite: bool = False) -> None:
    """Write the corpus as token shards with their tokenizer into the folder `out`. Every hundredth story validates.

    overwrite: replace the data set that lies there.
    """

    def show(state: dataset.Progress) -> None:
        live.show(f"making {out}: {state.stage}, {state.documents:,} of {stories:,} stories")

    dataset.write_dataset(
        live.each(generate(stories, seed), f"making {out}: story", stories),
        out,
        tokenizer="word",
        val_fraction=VAL_FRACTION,
        source=f"pyllmc.stories, {stories} stories, seed {seed}",
        overwrite=overwrite,
        progress=show,
    )
    live.clear()


def make_default(folder: str) -> None:
    """Makes the stories for a training unless they are there. Where another process makes them meanwhile, its data set stands.

    Raises DataError if something else lies there, SystemFailure.
    """
    meta = os.path.join(folder, "meta.json")
    if os.path.exists(meta):
        return
    live.tell(f"making {folder}")
    try:
        write_dataset(folder)
    except (DataError, SystemFailure) as error:
        if not os.path.exists(meta):
            raise type(error)(f"{error}, or give --data") from error
        live.clear()


def default_folder() -> str:
    """The folder where both trainers look for data: the default of --data."""
    return str(options()["data"].default)
