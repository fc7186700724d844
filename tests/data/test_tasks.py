"""The corpus of little tasks: only the examples tell an answer, and the exam's ciphers are not in it."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter

import pytest

from pyllmc.stories import tasks
from pyllmc.stories.dice import Dice

GOLDEN = "322e5307daccd6a1"


def cipher_of(task: tasks.Task) -> dict[str, str]:
    return {a: b for query, answer in task.pairs for a, b in zip(query, answer)}


def test_the_bytes_are_the_same_everywhere():
    text = "".join(tasks.generate(300))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == GOLDEN


def test_a_document_depends_on_seed_and_place_only():
    assert list(tasks.generate(5, 3)) == list(tasks.generate(50, 3))[:5]
    assert not set(tasks.generate(50, 4)) & set(tasks.generate(50, 3))
    with pytest.raises(ValueError, match="at least 0"):
        list(tasks.generate(-1))


def test_a_document_is_lines_of_one_length():
    """So a window holds one document, whose lines stand at the same places in all of them."""
    for text in tasks.generate(200):
        lines = text.split(tasks.END)
        assert lines.pop() == "" and len(lines) == tasks.LINES
        assert {len(line) for line in lines} == {2 * tasks.SIZE + 1}
        assert set(text) <= {*tasks.LETTERS, tasks.SEPARATOR, tasks.END}


@pytest.mark.parametrize("held_out", [False, True])
def test_a_cipher_is_a_table_without_two_alike(held_out):
    dice = Dice(1)
    for _ in range(300):
        table = cipher_of(tasks.make_task("cipher", dice, held_out))
        assert len(set(table.values())) == len(table)
        whole = [
            "".join(letters)
            for letters in itertools.permutations(tasks.LETTERS)
            if all(letters[tasks.LETTERS.index(a)] == b for a, b in table.items())
        ]
        assert any(tasks.is_held_out(letters) == held_out for letters in whole)
        assert len(table) < len(tasks.LETTERS) or tasks.is_held_out(whole[0]) == held_out


def test_the_corpus_has_none_of_the_held_out_ciphers():
    tables = [cipher_of(tasks.make_task("cipher", Dice(seed))) for seed in range(2000)]
    whole = ["".join(table[a] for a in tasks.LETTERS) for table in tables if len(table) == len(tasks.LETTERS)]
    assert len(whole) > 500 and not any(map(tasks.is_held_out, whole))


def test_a_query_does_not_tell_the_task():
    """Queries are drawn alike for all kinds, and without examples no answer of the exam is likelier than another by much."""
    for kind in tasks.KINDS:
        dice = Dice(5)
        first = [tasks.make_task(kind, dice).pairs[0] for _ in range(36 * 200)]
        queries, answers = zip(*first)
        for words in (queries, answers) if kind in tasks.EXAMINED else (queries,):
            counts = Counter(words)
            assert set(counts) == set(tasks.WORDS)
            assert 120 < min(counts.values()) and max(counts.values()) < 300


def test_a_phrase_has_one_answer():
    dice = Dice(9)
    for _ in range(100):
        task = tasks.make_task("phrases", dice)
        assert len(dict(task.pairs)) == len(set(task.pairs)) <= tasks.PHRASES


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_told_says_whether_the_examples_determine_the_answer(kind):
    """Compared with trying every rule."""
    dice, told = Dice(3), Counter()
    tables = ["".join(t) for t in itertools.permutations(tasks.LETTERS)]
    for _ in range(25):
        task = tasks.make_task(kind, dice)
        for shots in (0, 1, 2, 4, 8):
            seen, (query, answer) = task.pairs[:shots], task.pairs[shots]
            if kind == "phrases":
                possible = {a for q, a in seen if q == query} or set(tasks.WORDS)
            elif kind == "places":
                rules = [(i, j) for i in (0, 1) for j in (0, 1)]
                fitting = [(i, j) for i, j in rules if all(q[i] + q[j] == a for q, a in seen)]
                possible = {query[i] + query[j] for i, j in fitting}
            else:
                maps = [str.maketrans(tasks.LETTERS, table) for table in tables]
                possible = {query.translate(m) for m in maps if all(q.translate(m) == a for q, a in seen)}
            assert answer in possible and task.told(shots) == (len(possible) == 1)
            told[shots] += task.told(shots)
    assert told[0] < 10 and told[8] > 15
