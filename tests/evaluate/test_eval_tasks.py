"""The tasks on small files in their true formats: what the model is asked, what its answers score, and by which figures."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from benchmarks import PASSAGES, asked, make_files, make_scorer

from pyllmc.base.errors import InvalidArgument
from pyllmc.evaluate.detokenize import BOOKS
from pyllmc.evaluate.items import Choice, Word
from pyllmc.evaluate.paper import published
from pyllmc.evaluate.stopwords import STOP_WORDS
from pyllmc.evaluate.task import perplexity, ratio
from pyllmc.evaluate.tasks import TASKS
from pyllmc.evaluate.tasks.lambada import stop_ids

STREAMS = ["wikitext2", "wikitext103", "wikitext2_lm_eval", "ptb", "enwik8", "text8", "lm1b"]
QUESTIONS = [name for name in TASKS if name not in STREAMS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def scorer():
    return make_scorer(T=96)


@pytest.fixture(scope="module")
def wide():
    """A scorer whose context holds whole questions of CBT with an example before them."""
    return make_scorer(T=1024, steps=1)


def items_of(name, folder, scorer, limit=None, **how):
    return TASKS[name].items(TASKS[name].read(folder, limit), scorer, **how)


def text(scorer, ids):
    return scorer.tokenizer.decode([int(id) for id in ids])


# ---- every task ----


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_read_asked_and_scored(folder, scorer, name):
    task = TASKS[name]
    records = task.read(folder, 20)
    items = task.items(records, scorer)
    scores = task.score(items, asked(scorer, items))
    assert [score.metric for score in scores] == list(task.metrics)
    for score in scores:
        assert score.name == name and score.protocol == task.protocol
        assert math.isfinite(score.value) and score.value >= 0 and score.n > 0
        assert score.error is not None and score.error >= 0
        assert score.metric[:3] != "acc" or score.value <= 1
    assert len(TASKS[name].read(folder, 1)) == 1


@pytest.mark.parametrize("name", TASKS)
def test_each_protocol_is_one_line_that_names_its_source(name):
    protocol = TASKS[name].protocol
    assert "\n" not in protocol and len(protocol) < 160
    assert any(
        source in protocol for source in ("GPT-2 paper, sec. 3.", "lm-eval's", "llm.c's", "openai/gpt-2")
    )
    assert TASKS[name].__doc__ and TASKS[name].name == name


def test_the_published_figures():
    assert published("lambada", "ppl") == {"124M": 35.13, "355M": 15.6, "774M": 10.87, "1.5B": 8.63}
    assert published("cbt_ne", "acc") == {"124M": 0.834, "355M": 0.871, "774M": 0.88, "1.5B": 0.8905}
    assert published("lm1b", "ppl")["774M"] == 44.575
    assert published("hellaswag", "acc_norm")["124M"] == 0.294
    assert published("wikitext2", "loss") is None
    of_the_paper = [
        "lambada",
        "cbt_cn",
        "cbt_ne",
        "wikitext2",
        "wikitext103",
        "ptb",
        "enwik8",
        "text8",
        "lm1b",
    ]
    assert all(published(name, TASKS[name].metrics[0]) for name in of_the_paper)


def test_limits_must_leave_a_record(folder):
    with pytest.raises(InvalidArgument, match="limit=0 leaves no record: give at least 1"):
        TASKS["ptb"].read(folder, 0)


# ---- means and errors ----


def test_the_error_of_a_mean_is_that_of_its_samples():
    right = [1, 0, 0, 1, 1, 1, 0]
    mean, error = ratio(right, [1] * 7)
    assert mean == pytest.approx(4 / 7)
    assert (
        error == pytest.approx(math.sqrt(4 / 7 * 3 / 7 / 6)) == pytest.approx(np.std(right, ddof=1) / 7**0.5)
    )
    assert ratio([2.0], [4.0]) == (0.5, None)


def test_the_error_of_a_ratio_is_the_bootstraps():
    rng = np.random.default_rng(1)
    units = rng.integers(5, 40, 300)
    sums = units * 3.0 + rng.normal(0, 8, 300)
    draws = rng.integers(0, 300, (4000, 300))
    spread = np.std(sums[draws].sum(1) / units[draws].sum(1))
    assert ratio(sums, units)[1] == pytest.approx(spread, rel=0.1)


def test_a_perplexity_of_a_hopeless_model_is_infinite():
    assert perplexity(800.0, 1.0)[0] == math.inf
    assert perplexity(2.0, None) == (pytest.approx(math.e**2), None)


# ---- LAMBADA ----


def test_lambada_asks_for_the_last_word(folder, scorer):
    (word, *_) = items_of("lambada", folder, scorer)
    assert text(scorer, word.context).endswith("behind the last rock lay the")
    assert text(scorer, word.target) == " boat"
    bees = items_of("lambada", folder, scorer)[2]
    assert text(scorer, bees.context).endswith("loved his") and text(scorer, bees.target) == "\nbees"
    assert text(scorer, items_of("lambada_lm_eval", folder, scorer)[2].target) == " his\nbees"
    last = items_of("lambada_token", folder, scorer)[0]
    assert [*last.context, *last.target] == [*word.context, *word.target] and len(last.target) == 1


def test_lambadas_plain_text_is_detokenised_but_for_lm_eval(folder, scorer):
    file = folder / "lambada_test_plain_text.txt"
    assert text(scorer, items_of("lambada", file, scorer)[0].context).startswith(
        '"where is the boat?" asked anna.'
    )
    assert (
        text(scorer, items_of("lambada_lm_eval", file, scorer)[0].context) == PASSAGES[0].rpartition(" ")[0]
    )


def test_the_stop_word_filter_passes_over_stop_words_only_at_the_first_token(folder, scorer):
    """Beside the logits of a whole forward pass."""
    banned = stop_ids(scorer)
    assert banned.size and all(text(scorer, [id])[1:] in STOP_WORDS for id in banned)
    (word, *_) = items_of("lambada", folder, scorer)
    assert list(word.banned) == list(banned)
    for context in (word.context[:n] for n in range(3, 30)):
        scorer.model.forward(context[None])
        order = np.argsort(-scorer.model.logits[0, -1])
        for first, forbidden in (
            (order[0], None),
            (order[1], order[:1]),
            (order[3], order[:3]),
            (order[0], order[1:2]),
            (order[-1], order[:-1]),
        ):
            for target in (first, order[7]):
                item = Word(
                    context,
                    np.array([target], np.int32),
                    None if forbidden is None else forbidden.astype(np.int32),
                )
                ((log, right),) = scorer.words([item])
                assert right == (target == first)
    two = np.array([word.target[0], banned[0]], np.int32)
    answers = list(scorer.words([Word(word.context, two, banned), Word(word.context, two)]))
    assert answers[0][0] == answers[1][0], "the filter changes no probability"


def test_lambadas_examples_have_gpt3s_form(folder, scorer):
    items = items_of("lambada", folder, scorer, shots=2, seed=3)
    context = text(scorer, items[0].context)
    head, first, second, question = context.split("\n\n")
    assert head == "Fill in blank:"
    drawn = [BOOKS.join(p.split()) for p in PASSAGES]
    for example in (first, second):
        before, word = example.split(" ____. -> ")
        assert f"{before} {word}" in drawn
    assert question.endswith("lay the ____. ->") and text(scorer, items[0].target) == " boat"
    assert items[0].banned is None
    scores = TASKS["lambada"].score(items, asked(scorer, items), shots=2)
    assert [score.paper for score in scores] == [None, None]
    assert all("GPT-3" in score.protocol and "after 2 examples" in score.protocol for score in scores)


# ---- Children's Book Test ----


def test_cbt_fills_the_blank_and_scores_the_rest_of_the_sentence(folder, wide):
    items = items_of("cbt_cn", folder, wide)
    context, choices = text(wide, items[1].context), [text(wide, c) for c in items[1].choices]
    assert context.startswith('"Look, Owl," said the Hen, "I don\'t know Mr. Toad\'s house. "Look, Cat,"')
    assert context.endswith('house. "Good day," said')
    assert (
        choices[0] == " Fox's friend, and the Owl laughed."
        and choices[1] == " Hen's friend, and the Owl laughed."
    )
    assert items[1].answer == 1 and len(choices) == 10


def test_cbt_chooses_the_likeliest_whole(folder, scorer):
    items = items_of("cbt_cn", folder, scorer)
    logs = [
        [np.array([-1.0, -9.0]), *[np.array([-4.0, -4.0])] * 9],
        [*[np.array([-2.0])] * 9, np.array([-1.0, -0.5])],
    ]
    (score,) = TASKS["cbt_cn"].score([items[0], items[0]], logs)
    assert score.value == 0 and score.n == 2
    (score,) = TASKS["cbt_cn"].score([items[1], items[0]], logs)
    assert score.value == 0.5


def test_a_context_too_long_loses_its_beginning(folder, wide):
    narrow = make_scorer(T=64, steps=1)
    for short, whole in zip(items_of("cbt_ne", folder, narrow), items_of("cbt_ne", folder, wide)):
        assert len(short.context) + max(map(len, short.choices)) == 65
        assert list(short.context) == list(whole.context[-len(short.context) :])
    assert len(asked(narrow, items_of("cbt_ne", folder, narrow))) == 4


def test_cbts_examples_have_their_blanks_filled(folder, wide):
    context = text(wide, items_of("cbt_cn", folder, wide, shots=1)[0].context)
    example, question = context.split("\n\n")
    assert example.endswith("laughed.") and "XXXXX" not in context and question.startswith('"Look,')


# ---- HellaSwag ----


def test_hellaswags_two_protocols(folder, scorer):
    plain, cleaned = (
        items_of("hellaswag", folder, scorer)[1],
        items_of("hellaswag_lm_eval", folder, scorer)[1],
    )
    assert text(scorer, plain.context) == "[header] How to fold a boat [title] Take paper. [step] Fold it."
    assert text(scorer, cleaned.context) == "How to fold a boat: How to fold a boat. Take paper. Fold it."
    assert [text(scorer, c) for c in plain.choices] == [
        " Fold it again.",
        " Eat it all.",
        " Burn it  now.",
        " Drive it.",
    ]
    assert text(scorer, cleaned.choices[2]) == " Burn it now."
    assert plain.lengths == [len(c) for c in plain.choices]
    assert cleaned.lengths == [
        len("Fold it again."),
        len("Eat it all."),
        len("Burn it now."),
        len("Drive it."),
    ]


def test_hellaswags_scores_divide_by_the_lengths(folder, scorer):
    item = items_of("hellaswag", folder, scorer)[0]
    item = Choice(item.context, item.choices, 1, [4.0, 1.0, 1.0, 1.0])
    logs = [np.array([-2.0, -2.0]), np.array([-3.0]), np.array([-3.5]), np.array([-9.0])]
    norm, plain = TASKS["hellaswag"].score([item, item], [logs, logs])
    assert (norm.metric, norm.value) == ("acc_norm", 0) and (plain.metric, plain.value) == ("acc", 1)
    assert norm.paper and norm.paper["124M"] == 0.294


def test_hellaswags_examples_end_with_the_right_ending(folder, scorer):
    items = items_of("hellaswag", folder, scorer, shots=3)
    context = text(scorer, items[0].context)
    assert "A woman fills a kettle. then she pours water\n\n" in context
    assert context.endswith("\n\nA woman fills a kettle. then she")


# ---- examples ----


@pytest.mark.parametrize("name", QUESTIONS)
def test_examples_are_drawn_by_the_seed(folder, wide, name):

    def contexts(seed):
        return [text(wide, item.context) for item in items_of(name, folder, wide, shots=1, seed=seed)]

    assert contexts(5) == contexts(5)
    assert len({contexts(seed)[0] for seed in range(8)}) > 1


@pytest.mark.parametrize("name", STREAMS)
def test_texts_take_no_examples(folder, scorer, name):
    with pytest.raises(
        InvalidArgument, match=f"{name} scores a text and takes no examples: leave --shots out"
    ):
        items_of(name, folder, scorer, 2, shots=1)


def test_more_examples_than_there_are(folder, scorer):
    with pytest.raises(InvalidArgument, match="hellaswag: 9 examples of 3: give at most 3 --shots"):
        items_of("hellaswag", folder, scorer, shots=9)


def test_examples_lie_beside_the_questions(folder, scorer):
    with pytest.raises(
        InvalidArgument, match=r"drawn from hellaswag_train.jsonl .*: name the folder that holds both files"
    ):
        items_of("hellaswag", folder / "hellaswag_val.jsonl", scorer, shots=1)


def test_the_documents_say_the_same():
    """Each task has a row in docs/evaluate.md, with its file, its data set of the hub, its published figure and its command."""
    page = (Path(__file__).parents[2] / "docs/evaluate.md").read_text()
    rows = {row[1]: row[0] for row in re.finditer(r"^\| `(\w+)` \|.*$", page, re.M)}
    assert list(rows) == [*TASKS, "hellaswag_bin"]
    for name, task in TASKS.items():
        row, (_, data, *_) = rows[name], rows[name].strip("| ").split(" | ")
        assert data == "the same" or (task.test.files[0] in data and task.test.hub in data)
        assert f"`python -m pyllmc.evaluate MODEL --tasks={name}`" in row
        for metric in task.metrics:
            figure = (published(name, metric) or {}).get("124M")
            if figure is not None:
                told = re.search(rf"\b{metric} ([\d.]+)( %)?", row.split(" | ")[4])
                assert told and float(told[1]) / (100 if told[2] else 1) == pytest.approx(figure)


def test_own_choices_are_divided_by_their_bytes_without_the_space_before_them():
    from pyllmc.evaluate.task import Records
    from pyllmc.evaluate.tasks.choices import OwnChoices, question_of

    line = {"context": "It is", "choices": ["größer", "a b", "\tc"], "answer": 2}
    (item,) = OwnChoices("my.jsonl").items(Records([question_of(line, "my.jsonl")], None), make_scorer())
    assert item.lengths == [8, 3, 1] and item.answer == 2
