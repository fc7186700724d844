"""Generation told token by token: its probabilities are the softmax of the model's logits, and its tokens are those that
generate and stream draw."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from test_tokenizer_c import EOT
from test_writer import LETTERS, PIECES, make_model

from pyllmc import GPTConfig, InvalidArgument, Model, Writer
from pyllmc.draw import chances
from pyllmc.engine.steps import Alternative, Step

V, T = 23, 32
HOWS = [
    dict(temperature=1.0),
    dict(temperature=0.0),
    dict(temperature=0.6, top_k=5),
    dict(temperature=1.7, top_p=0.7),
    dict(temperature=0.9, top_k=9, top_p=0.8, repetition_penalty=1.6),
]


@pytest.fixture(scope="module")
def model() -> Model:
    config = GPTConfig(vocab_size=V, max_seq_len=T, n_layer=2, n_head=2, n_embd=16)
    return Model(config, B=2, seed=5, init_std=0.5)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def drawn_by(logits, ids, temperature=1.0, top_k=0, top_p=0.0, repetition_penalty=1.0) -> np.ndarray:
    """The probabilities by which an id is drawn, written anew with numpy and in double."""
    x = logits.astype(np.float64)
    for i in set(ids):
        x[i] = x[i] / repetition_penalty if x[i] > 0 else x[i] * repetition_penalty
    if temperature == 0:
        return np.eye(len(x))[x.argmax()]
    p = softmax(x / temperature)
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
    if 0 < top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p * p.sum()]] = 0
    return p / p.sum()


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_probabilities_are_those_of_the_logits(model, how):
    ids, most = [3, 1, 4], 6
    steps = list(model.steps(ids, 20, alternatives=most, seed=2, **how))
    assert [step.id for step in steps] == model.generate(ids, 20, seed=2, **how)
    for step in steps:
        model.forward(np.array([ids]))
        logits = model.logits[0, -1]
        own, p = softmax(logits.astype(np.float64)), drawn_by(logits, ids, **how)
        for row in (step, *step.alternatives):
            np.testing.assert_allclose(
                (row.probability, row.own), (p[row.id], own[row.id]), rtol=1e-4, atol=1e-6
            )
            assert row.text == ""
        assert [row.id for row in step.alternatives] == np.lexsort((-own, -p))[:most].tolist()
        ids.append(step.id)


def test_a_text_that_is_longer_than_the_context_is_told_to_its_end(model):
    how = dict(seed=4, temperature=1.2, repetition_penalty=1.3)
    steps = list(model.steps([1] * (T - 2), 3 * T, **how))
    assert [step.id for step in steps] == model.generate([1] * (T - 2), 3 * T, **how)


def test_steps_end_with_the_first_eot(model):
    ids = [step.id for step in model.steps([1], 60, seed=1, temperature=2.0, eot=7)]
    assert ids == model.generate([1], 60, seed=1, temperature=2.0, eot=7) and ids[-1] == 7
    assert list(model.steps([1], 0)) == [] and next(model.steps([1], 1, alternatives=0)).alternatives == ()


@pytest.mark.parametrize(
    "named, says",
    [
        (dict(ids=[[1, 2], [3, 4]]), "steps are those of one text"),
        (dict(ids=[1], alternatives=-1), "alternatives=-1 is negative"),
        (dict(ids=[1], max_new_tokens=-1), "max_new_tokens=-1 is negative"),
        (dict(ids=[1], temperature=-1.0), "temperature=-1"),
        (dict(ids=[V]), f"{V} is not in 0..{V - 1}"),
    ],
)
def test_what_cannot_be_is_refused(model, named, says):
    with pytest.raises(InvalidArgument, match=says):
        model.steps(**named)


# ---- with texts


@pytest.mark.parametrize("seed", range(12))
def test_steps_are_the_tokens_of_stream(seed):
    """Tokens may hold halves of characters; the last one may be the end, or complete a stop string."""
    writer, how = Writer(make_model(PIECES)), dict(temperature=2.0, seed=seed, stop=["b:"])
    text = "".join(writer.stream("ab", 12, **how))
    end = writer.end
    steps = list(writer.steps("ab", 12, alternatives=3, **how))
    assert writer.end == end
    pieces = [*PIECES, EOT]
    assert all(step.text == pieces[step.id].decode("utf-8", "replace") for step in steps)
    told = b"".join(pieces[step.id] for step in steps if step.id < len(PIECES))
    if end == "limit":
        assert len(steps) == 12
    assert (steps[-1].id == len(PIECES)) == (end == "eot")
    assert told.decode("utf-8", "replace").startswith(text.rstrip("\ufffd"))


def test_an_id_that_only_the_model_knows_has_no_text():
    writer = Writer(make_model([b"a", b"b"], vocab=40))
    step = next(writer.steps("a", 1, alternatives=40, temperature=1.0))
    assert {row.text for row in step.alternatives} == {"a", "b", EOT.decode(), ""}
    assert sum(row.probability for row in step.alternatives) == pytest.approx(1)
    assert all(row.probability == 0 for row in step.alternatives if not row.text)
    assert sum(row.own for row in step.alternatives) == pytest.approx(1, abs=1e-5)


# ---- on a terminal

STEP = Step(
    1,
    " the",
    0.2,
    0.25,
    (Alternative(0, "\n", 0.75, 0.5), Alternative(1, " the", 0.2, 0.25), Alternative(2, "日本", 0.05, 0.2)),
)


def test_lines_fit_the_width_and_bars_are_in_proportion():
    lines = list(chances.lines_of(STEP, 7, False, 60, "#"))
    assert lines == [
        "    7   '\\n'    75.00%  50.00% " + "#" * 21,
        "      > ' the'  20.00%  25.00% " + "#" * 6,
        "        '日本'   5.00%  20.00% #",
    ]
    for width in range(20, 90):
        for line in chances.lines_of(STEP, 7, False, width, "#"):
            assert chances.columns(line) <= max(width, 31)


def test_the_drawn_token_is_shown_even_if_it_was_unlikely():
    step = STEP._replace(id=9, text="x" * 99, probability=0.001, own=0.002)
    lines = list(chances.lines_of(step, 1, True, 60, "#"))
    assert len(lines) == 4 and [">" in line for line in lines] == [False, False, False, True]
    assert lines[-1].endswith(f"> '{'x' * 21}..   0.10%")


def test_an_id_without_a_text_is_shown_by_its_number():
    (line,) = chances.lines_of(Step(5, "", 1.0, 1.0, ()), 1, True, 40, "#")
    assert line == "    1 > id 5 100.00% " + "#" * 18


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("steps") / "m.ckpt"
    make_model(LETTERS, T=64).save(path)
    return path


def command(*arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pyllmc.sample", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_the_command_shows_the_steps(checkpoint):
    how = dict(temperature=0.5, top_k=4, seed=3)
    options = ["--prompt=ab", "--temperature=0.5", "--top_k=4", "--seed=3", "--max_new_tokens=5"]
    done = command(checkpoint, *options, "--show_work=2", PYTHONIOENCODING="utf-8")
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "ab" and "(temperature 0.5, top_k 4), then the model's own" in " ".join(lines[1:3])
    expected = [
        line
        for i, step in enumerate(Writer(Model(checkpoint, B=1)).steps("ab", 5, 2, **how), 1)
        for line in chances.lines_of(step, i, False, 80, "\u2588")
    ]
    assert lines[3:] == expected
    bare = command(
        "--show-work", checkpoint, *options, "--temperature=1", "--top_k=0", PYTHONIOENCODING="ascii"
    )
    lines = bare.stdout.decode().splitlines()
    assert (bare.returncode, bare.stderr) == (0, b"") and "the model's own, as drawn" in " ".join(lines[1:3])
    assert sum(" #" in line for line in lines) > 4 and "\\u2588" not in bare.stdout.decode()


@pytest.mark.parametrize("value", ["0", "-1", "x", ""])
def test_a_bad_number_of_alternatives_is_one_line(checkpoint, value):
    done = command(checkpoint, f"--show_work={value}")
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert b"is not a whole number of at least 1" in done.stderr
