"""python -m pyllmc.evaluate: its table, its files, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from benchmarks import TEXTS, json_lines, make_files, make_scorer, write

import pyllmc
from pyllmc.base.errors import BadFile
from pyllmc.convert.card import model_card
from pyllmc.engine.checkpoint import training
from pyllmc.engine.run_files import read_scores
from pyllmc.evaluate import __main__ as command
from pyllmc.evaluate import report
from pyllmc.evaluate.tasks.choices import OwnChoices
from pyllmc.evaluate.tasks.hellaswag_bin import HellaSwagBin, read_eval_file
from pyllmc.evaluate.tasks.text import OwnText
from pyllmc.text import bins, dataset
from pyllmc.text.characters import How, Source
from pyllmc.text.readers import read_txt

QUESTIONS = [
    {"context": "The baker", "choices": ["sells bread", "kept bees"], "answer": 0},
    {"context": "The lamp ", "choices": ["flickered", " twice", "oil"], "answer": 1},
    {"context": "Mr. Grey", "choices": ["kept bees", "lay"], "answer": 0},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with the checkpoints of steps 2, 4 and 6."""
    out = tmp_path_factory.mktemp("runs") / "run"
    dataset.write_dataset(TEXTS * 40, out.parent / "data", tokenizer="byte", val_fraction=0.1)
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 16, "max_seq_len": 64, "B": 2, "max_steps": 6, "keep": 5}
    list(pyllmc.Trainer(data=out.parent / "data", out=out, checkpoint_every=2, sample_every=0, **sizes))
    return out


@pytest.fixture
def files(tmp_path):
    return [
        f"--text={write(tmp_path / 'my.txt', ' '.join(TEXTS))}",
        f"--choices={write(tmp_path / 'my.jsonl', json_lines(QUESTIONS))}",
    ]


def test_own_texts_and_questions_are_scored(run, files, capsys):
    assert command.main([str(run), *files]) == 0
    shown = capsys.readouterr().out
    for words in (
        "perplexity per word",
        "bits per byte",
        "accuracy, normalised",
        "my.txt: one stream",
        " ± ",
    ):
        assert words in shown
    assert "published" not in shown
    scores = {(s["task"], s["metric"]): s for s in read_scores(run)}
    text, loss = " ".join(TEXTS), scores["my.txt", "loss"]
    nats = loss["value"] * loss["n"]
    assert loss["n"] == len(text.encode())  # a token a byte
    assert scores["my.txt", "ppl"]["value"] == pytest.approx(math.exp(loss["value"]))
    assert scores["my.txt", "ppl_word"]["value"] == pytest.approx(math.exp(nats / len(text.split())))
    assert scores["my.txt", "bpb"]["value"] == pytest.approx(nats / len(text.encode()) / math.log(2))
    assert scores["my.jsonl", "acc"]["n"] == 3


def test_json_is_json(run, files, capsys):
    assert command.main([str(run), *files, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert [s["metric"] for s in scores] == ["loss", "ppl", "ppl_word", "bpb", "acc", "acc_norm"]
    assert all(s["model"] == str(run) and s["step"] in (2, 4, 6) for s in scores)


def test_a_benchmark_stands_beside_the_paper(run, tmp_path, capsys):
    make_files(tmp_path)
    assert command.main([str(run), "--tasks=wikitext2,hellaswag", f"--data={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert "124M 29.41, 355M 22.76" in shown
    assert "wikitext2: " in shown


def test_a_file_called_like_a_benchmark_does_not_stand_beside_the_paper(run, tmp_path, capsys):
    text = write(tmp_path / "enwik8", TEXTS[0])
    questions = write(tmp_path / "hellaswag", json_lines(QUESTIONS))
    assert command.main([str(run), f"--text={text}", f"--choices={questions}", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert {(s["task"], s["metric"]) for s in scores} > {("enwik8", "bpb"), ("hellaswag", "acc_norm")}
    assert [s["paper"] for s in scores] == [None] * len(scores)


def test_several_models_in_a_table_and_a_picture(run, files, tmp_path, capsys):
    other = tmp_path / "other.ckpt"
    other.write_bytes(min(run.glob("step_*.ckpt")).read_bytes())
    picture = tmp_path / "both.png"
    assert command.main([str(run), str(other), *files, f"--out={picture}"]) == 0
    head = capsys.readouterr().out.splitlines()[0].split()
    assert head == ["task", "score", "n", "run", "other.ckpt"]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("ns, told", [((144, 66), "144 / 66"), ((1200, 1200), "1,200"), ((7, None), "7")])
def test_the_table_says_of_how_many_each_score_is(ns, told):
    """Models with other tokenizers cut a text into more tokens, or into fewer."""
    given = {"task": "my.txt", "metric": "loss", "value": 2.0, "error": None, "paper": None, "protocol": "-"}
    records = [{**given, "model": model, "n": n} for model, n in zip("ab", ns) if n]
    row = report.table(records, {"a": "one", "b": "two"}).splitlines()[1]
    assert re.split("  +", row) == ["my.txt", "loss per token", told, "2.000", "2.000" if ns[1] else "-"]


def test_every_checkpoint_is_scored_and_drawn(run, files, capsys):
    assert command.main([str(run), *files, "--every_checkpoint", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    losses = {s["step"]: s["value"] for s in scores if s["metric"] == "loss"}
    assert list(losses) == [2, 4, 6]
    assert losses[6] < losses[2]
    assert (run / "evaluate.png").read_bytes().startswith(b"\x89PNG")


def test_scores_are_in_the_model_card(run, files):
    command.main([str(run / "last.ckpt"), *files])
    card = model_card(
        "x", pyllmc.GPTConfig(257, 64, 1, 1, 16), "fp32", None, training(run / "last.ckpt"), [], "", False
    )
    row = next(line for line in card.splitlines() if line.startswith("| my.txt | bpb"))
    assert "one stream" in row
    other = training(min(run.glob("step_*.ckpt")))  # another step, whose scores these are not
    assert other["state"]["step"] == "2" and {score["step"] for score in other["scores"]} <= {2}
    assert "## Evaluation" not in model_card(
        "x", pyllmc.GPTConfig(257, 64, 1, 1, 16), "fp32", None, {}, [], "", False
    )


def test_a_score_takes_the_place_of_the_same_one_before(run, files):
    command.main([str(run), *files])
    before = read_scores(run)
    command.main([str(run), *files])
    assert read_scores(run) == before


def test_a_score_of_other_data_or_precision_stands_beside_the_first(run, tmp_path):
    text = write(tmp_path / "twice.txt", TEXTS[0])
    count = lambda: len([r for r in read_scores(run) if r["task"] == "twice.txt"])  # noqa: E731
    command.main([str(run), f"--text={text}"])
    assert count() == 4
    command.main([str(run), f"--text={text}", "--precision=bf16"])
    assert count() == 8
    write(text, TEXTS[1])
    command.main([str(run), f"--text={text}"])
    assert count() == 12


KEEPS = """
import sys
from pathlib import Path
from pyllmc.evaluate import report
for step in range(60):
    report.keep(Path(sys.argv[1]), [{"task": sys.argv[2], "metric": "acc", "protocol": "x", "n": 1, "step": step}])
"""


def test_scores_that_two_processes_keep_at_once_are_all_there(tmp_path):
    both = [subprocess.Popen([sys.executable, "-c", KEEPS, str(tmp_path), task]) for task in ("a", "b")]
    assert [one.wait() for one in both] == [0, 0]
    assert len(read_scores(tmp_path)) == 120
    assert [path.name for path in tmp_path.iterdir()] == ["evaluate.json"]


def test_scores_are_on_the_disk_before_they_replace_others(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *a: (done.append("fsync"), sync(*a))[1])
    monkeypatch.setattr(os, "replace", lambda *a: (done.append("replace"), replace(*a))[1])
    report.keep(tmp_path, [])
    assert done[:2] == ["fsync", "replace"]


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[]", '{"scores": 1}', '{"scores": [1]}', '{"scores": [{}]}']
)
def test_a_file_that_scores_cannot_be_added_to_is_refused_before_the_work(
    run, tmp_path, monkeypatch, capsys, text
):
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes())
    write(copy / "evaluate.json", text)
    monkeypatch.setattr(command, "open_scorer", None)
    assert command.main([str(copy), f"--text={write(tmp_path / 'my.txt', 'a text')}"]) == 4
    assert re.fullmatch(
        f"pyllmc.evaluate: {copy}/evaluate.json holds no scores .* move it away.*\n", capsys.readouterr().err
    )
    assert (copy / "evaluate.json").read_text() == text
    with pytest.raises(BadFile):
        report.keep(copy, [])
    assert (copy / "evaluate.json").read_text() == text
    assert training(copy)["scores"] == []


def test_scores_that_cannot_be_read_are_no_damaged_file(run, tmp_path, capsys):
    """Else the remedy would make the user move good scores away."""
    copy = tmp_path / "run"
    (copy / "evaluate.json").mkdir(parents=True)
    (copy / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes())
    assert command.main([str(copy), f"--text={write(tmp_path / 'my.txt', 'a text')}"]) == 5
    assert re.fullmatch(
        f"pyllmc.evaluate: {copy}/evaluate.json is not a regular file.*\n", capsys.readouterr().err
    )


def test_limit_counts_the_documents_of_a_text(run, tmp_path, capsys):
    text = write(tmp_path / "my.txt", "<|endoftext|>".join(TEXTS))
    assert command.main([str(run), f"--text={text}", "--limit=2", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores[-1]["n"] == sum(len(one.encode()) for one in TEXTS[:2])


# ---- llm.c's eval file ----


def eval_file(path, examples, n=None):
    stream = []
    for i, (context, choices, label) in enumerate(examples):
        body = [i, label, len(choices), len(context), *context]
        for choice in choices:
            body += [len(choice), *choice]
        stream += [65535, 2 * (len(body) + 2), *body]
    head = bins.pack_header(20240522, 1, len(examples) if n is None else n, 2 * len(stream))
    path.write_bytes(head + np.array(stream, "<u2").tobytes())
    return path


EXAMPLES = [([5, 6, 7], [[1, 2], [3], [4, 4, 4], [9]], 2), ([300], [[1], [2], [3], [4]], 0)]


def test_an_eval_file_of_llmc_is_read(tmp_path):
    path = eval_file(tmp_path / "hellaswag_val.bin", EXAMPLES)
    found = list(read_eval_file(path))
    assert [(i.context.tolist(), [c.tolist() for c in i.choices], i.answer) for i in found] == EXAMPLES
    task, scorer = HellaSwagBin(), make_scorer()
    scorer.tokenizer = None
    items = task.items(task.read(tmp_path), scorer)
    results = list(scorer.choices(items))
    norm, plain = task.score(items, results)
    means = [[x.mean() for x in result] for result in results]
    assert norm.value == np.mean([int(np.argmax(m)) == item.answer for m, item in zip(means, items)])
    assert (norm.metric, plain.metric) == ("acc_norm", "acc")


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda data: data[:-2], "example 2 of 2: .* cut short or damaged"),
        (lambda data: data[:-1], "cut short or damaged"),
        (lambda data: data + b"ab", "2 bytes follow the 2 examples"),
        (lambda data: data[:1024], "example 1 of 2"),
        (lambda data: b"abcd" + data[4:], "expected magic 20240522"),
        (lambda data: data[:4] + b"\7" + data[5:], "expected version 1, found 7"),
        (lambda data: data[:100], "expected magic"),
        (lambda data: data[:1034] + b"\xff" + data[1035:], "example 1 of 2"),
    ],
)
def test_a_damaged_eval_file_is_one_line(tmp_path, spoil, says):
    path = eval_file(tmp_path / "x.bin", EXAMPLES)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(BadFile, match=says):
        list(read_eval_file(path))


# ---- what is refused ----


@pytest.mark.parametrize(
    "arguments, code, says",
    [
        (["{run}"], 2, "name what to score"),
        (["{run}", "--tasks=lambda"], 2, "did you mean lambada"),
        (["{run}", "--tasks=xyzzy"], 2, "the tasks are lambada"),
        (["{run}", "--text={files}/none.txt"], 5, "none.txt is no file"),
        (["{run}", "--text={files}/my.txt", "--text={files}/b/my.txt"], 2, "my.txt is named twice"),
        (["{run}", "--text={files}/my.txt", "--shots=1"], 2, "leave --shots out"),
        (["{run}", "--text={files}/white.txt"], 4, "white.txt is empty: name another file"),
        (["{run}", "--text={files}/latin.txt"], 4, "byte 2 is no UTF-8: rewrite it with iconv"),
        (["{run}", "--text={files}/my.txt", "--out=x.gif"], 2, "a picture ends with"),
        (["{run}", "--text={files}/my.txt", "--out={files}/no/x.png"], 5, "/no is no folder: make it"),
        (
            ["{run}", "--choices={files}/my.txt"],
            4,
            "my.txt:1: not a JSON line: write one object on each line",
        ),
        (
            ["{run}", "--choices={files}/answer.jsonl"],
            4,
            "record 1: answer 2 is not the number of a choice, 0 to 1",
        ),
        (["{run}", "--choices={files}/one.jsonl"], 4, "record 1: choices must be a list of two or more"),
        (
            ["{run}", "--choices={files}/field.jsonl"],
            4,
            "no field 'choices': each line has context, choices, answer",
        ),
        (["{run}", "--choices={files}/long.jsonl"], 2, "{files}/long.jsonl: item 1 takes .* sees 64"),
        (["{run}", "--choices={files}/my.jsonl", "--shots=3"], 2, "leave none to ask"),
        (["{run}", "--tasks=hellaswag_bin"], 2, "has no data set on the hub: make hellaswag_val.bin"),
        (["{run}", "--tasks=hellaswag", "--data={files}"], 5, "put hellaswag_val.jsonl"),
        (["{run}", "--tasks=lambada", "--data={files}/none"], 5, "none is no folder: put lambada_test.jsonl"),
        (["{run}/none", "--text={files}/my.txt"], 5, "does not exist"),
        (["{run}", "{run}/last.ckpt", "--text={files}/my.txt", "--every_checkpoint"], 2, "is of one run"),
        (["{files}", "--text={files}/my.txt", "--every_checkpoint"], 5, "is no run folder"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, capsys, arguments, code, says):
    write(tmp_path / "my.txt", "a text\n")
    write(tmp_path / "b/my.txt", "a text\n")
    write(tmp_path / "white.txt", " \n\n")
    (tmp_path / "latin.txt").write_bytes(b"na\xefve")
    write(tmp_path / "my.jsonl", json_lines(QUESTIONS))
    write(tmp_path / "answer.jsonl", json_lines([{**QUESTIONS[0], "answer": 2}]))
    write(tmp_path / "one.jsonl", json_lines([{**QUESTIONS[0], "choices": ["a"]}]))
    write(tmp_path / "field.jsonl", json_lines([{"context": "a", "answer": 0}]))
    write(tmp_path / "long.jsonl", json_lines([{**QUESTIONS[0], "context": "a b " * 40}]))
    given = [argument.format(run=run, files=tmp_path) for argument in arguments]
    assert command.main(given) == code
    told = capsys.readouterr().err
    assert told.startswith("pyllmc.evaluate: ") and told.count("\n") == 1
    assert re.search(says.format(files=tmp_path), told), told
    assert not list(run.glob("evaluate-*")), "an empty file stays"


def test_shots_are_drawn_from_the_file_and_not_asked(tmp_path):
    task = OwnChoices(str(write(tmp_path / "my.jsonl", json_lines(QUESTIONS))))
    scorer = make_scorer(T=96)
    items = task.items(task.read(), scorer, shots=2, seed=1)
    assert len(items) == 1
    assert scorer.tokenizer.decode(items[0].context).count("\n\n") == 2
    assert "after 2 examples" in task.score(items, list(scorer.choices(items)), 2)[0].protocol


def test_a_text_is_cut_as_prepro_cuts_it(tmp_path):
    text = "\n A tale.\r\nIt ends. \n<|endoftext|>\n \n<|endoftext|>\rAnother\rone.\n<|endoftext|>"
    path = tmp_path / "my.txt"
    path.write_bytes(text.encode())
    scorer, task = make_scorer(), OwnText(str(path))
    found = read_txt(Source(str(path), path.name, "txt"), How())
    dataset.write_dataset(found, tmp_path / "data", scorer.tokenizer, val_fraction=0)
    (item,) = task.items(task.read(), scorer)
    assert item.ids.tolist() == bins.read_shard(tmp_path / "data/train_000000.bin").tolist()
    assert (item.units, item.bytes) == (6, len("A tale.\nIt ends.Another\none."))
    (first,) = task.items(task.read(limit=1), scorer)
    assert first.bytes == len("A tale.\nIt ends.")


def test_a_text_of_one_token_has_nothing_to_score(tmp_path):
    task = OwnText(str(write(tmp_path / "a.txt", "a")))
    scorer = make_scorer()
    items = task.items(task.read(), scorer)
    if scorer.eot < 0:
        with pytest.raises(pyllmc.InvalidArgument, match="give a longer one"):
            scorer.rolling(items[0])
    else:
        assert len(scorer.rolling(items[0])) == 1
