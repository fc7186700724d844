"""The tasks that score whole texts: what the model reads of them, what is counted, and the scores."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks import ARTICLES, LETTERS, SENTENCES, TREEBANK, XML, make_scorer
from test_eval_tasks import folder, items_of, scorer, text  # noqa: F401

from pyllmc.base.errors import BadFile, DataError
from pyllmc.evaluate.detokenize import LM1B, PTB, WIKITEXT
from pyllmc.evaluate.items import Rolling
from pyllmc.evaluate.task import following
from pyllmc.evaluate.tasks import TASKS
from pyllmc.evaluate.tasks.enwik8 import whole_characters


def scored(scorer, item):
    """The text of a stream, without the token that it begins with."""
    assert item.first == 1 and item.ids[0] == scorer.eot
    return text(scorer, item.ids[1:])


def test_wikitext_counts_words_and_line_ends_of_the_original(folder, scorer):
    (item,) = items_of("wikitext2", folder, scorer)
    written = scored(scorer, item)
    assert item.units == sum(len(line.split()) + 1 for line in ARTICLES)
    assert item.bytes == len("".join(f"{line}\n" for line in ARTICLES).encode())
    assert written.startswith(
        "= Otter Bridge =\n\nOtter Bridge is a stone bridge, built in 1,812 by Mr. Ash (1780 – 1851). It's 4.5 m wide;"
    )
    assert "== History ==" in written and "well-known" in written and "<unk>-free!" in written
    assert [word for line in written.split("\n") for word in WIKITEXT.split(line)] == " ".join(
        ARTICLES
    ).split()
    assert item.stride == scorer.T // 2 and item.window is None


def test_ptb_and_1bw_count_the_ends_of_sentences(folder, scorer):
    (item,) = items_of("ptb", folder, scorer)
    assert item.units == len(" ".join(TREEBANK).split()) + len(TREEBANK)
    assert scored(scorer, item) == "".join(f"{PTB.join(line.split())}\n" for line in TREEBANK)
    items = items_of("lm1b", folder, scorer)
    assert [one.units for one in items] == [len(line.split()) + 1 for line in SENTENCES]
    assert [scored(scorer, one) for one in items] == [f"{LM1B.join(line.split())}\n" for line in SENTENCES]


def test_lm_eval_reads_articles_one_by_one(folder, scorer):
    items = items_of("wikitext2_lm_eval", folder, scorer)
    assert [scored(scorer, item)[:13] for item in items] == [" = Otter Brid", " = Ash Hill ="]
    assert {item.stride for item in items} == {scorer.T}


def test_characters_and_bytes_of_text8_and_enwik8(folder, scorer):
    (item,) = items_of("text8", folder, scorer, limit=2)
    assert item.units == 2000 and scored(scorer, item) == (LETTERS * 40)[:2000]
    (item,) = items_of("enwik8", folder, scorer, limit=3)
    written = scored(scorer, item)
    assert written.encode() in XML.encode() * 30 and item.units == item.bytes == len(written.encode()) >= 2998


def test_the_whole_of_enwik8_ends_in_its_test_part(tmp_path, scorer):
    body = np.full(95_000_000, ord("a"), np.uint8).tobytes() + (XML.encode() * 60_000)[-5_000_000:]
    (tmp_path / "enwik8").write_bytes(body)
    records = TASKS["enwik8"].read(tmp_path)
    assert b"".join(records) == body[-5_000_000:] and len(records) == 5000


@pytest.mark.parametrize("start", range(5))
@pytest.mark.parametrize("end", range(5))
def test_characters_that_a_cut_divides_are_left_out(tmp_path, start, end):
    data = "😀é中 text 中é😀".encode()
    found = whole_characters(data[start : len(data) - end], tmp_path)
    assert found in data.decode() and len(data) - start - end - len(found.encode()) <= 6
    assert " text " in found


def test_bytes_that_are_no_text_are_refused(tmp_path):
    for data in (b"ab\xffcdefgh", b"\xff" + b"abcdefgh"):
        with pytest.raises(BadFile, match="no UTF-8"):
            whole_characters(data, tmp_path)


def test_a_streams_scores(scorer):
    task, bits = TASKS["wikitext2"], math.log(2)
    item = Rolling(np.arange(5, dtype=np.int32), 1, None, 1, units=2.0, bytes=10)
    logs = np.array([-1.0, -2.0, -3.0, -2.0])
    ppl, bpb, loss = task.score([item], [logs])
    assert (ppl.value, bpb.value, loss.value) == pytest.approx((math.exp(4), 0.8 / bits, 2.0))
    error = np.std(logs, ddof=1) * 2
    assert (loss.error, ppl.error, bpb.error) == pytest.approx(
        (error / 4, math.exp(4) * error / 2, error / 10 / bits)
    )
    assert (ppl.n, bpb.n, loss.n) == (2, 10, 4)
    one, two = task.score([item, item], [logs, 2 * logs])[::2]
    assert one.value == pytest.approx(math.exp(24 / 4)) and two.value == pytest.approx(24 / 8)


def test_a_tokenizer_without_an_end_of_text_begins_with_the_text(folder, scorer):
    class Bare:
        eot, T, encode = -1, 96, staticmethod(scorer.encode)

    (item,) = items_of("ptb", folder, Bare())
    assert text(scorer, item.ids).startswith("the company")


def test_what_follows_is_encoded_with_its_context(scorer):
    before, after = following(scorer, "the lamp ", "flickered")
    assert text(scorer, before) == "the lamp" and text(scorer, after) == " flickered"
    before, after = following(scorer, "", "flickered")
    assert list(before) == [scorer.eot] and text(scorer, after) == "flickered"


def test_a_tokenizer_that_cannot_write_the_text(folder):
    from pyllmc.evaluate.scorer import Scorer
    from pyllmc.text.vocabularies import train

    letters = Scorer(make_scorer(T=32, steps=1).model, train("char", ["abc "]))
    with pytest.raises(DataError, match="the tokenizer cannot write"):
        items_of("ptb", folder, letters)
