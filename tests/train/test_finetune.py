"""Fine-tuning on pairs: answers are learnt and prompts are not, the loss is the mean over all learnt targets, and the
template travels from the data to the chat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, not_under_asan

import pyllmc
from pyllmc import prepro
from pyllmc.engine import checkpoint
from pyllmc.stories import questions
from pyllmc.tables.options import templates
from pyllmc.text import bins, dataset, masks, template
from pyllmc.text.masks import Marked
from pyllmc.text.template import Talk, Turn
from pyllmc.text.tokenizer import Tokenizer

SMALL = {"model": "gpt-nano", "max_seq_len": 64, "n_layer": 2, "n_head": 4, "n_embd": 64}
QUIET = {"sample_every": 0, "val_every": 0, "checkpoint_every": 0, "log_every": 1}
FIGURES = 6


def run(**options) -> list[pyllmc.trainer.Event]:
    return list(pyllmc.Trainer(**{**SMALL, **QUIET, **options}))


def losses(**options) -> list[tuple[float, float]]:
    return [(event.loss, event.norm) for event in run(out="", **options) if event.kind == "step"]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Path:
    """Pairs whose answers have 1 to 20 words."""
    form, out = template.find("plain"), tmp_path_factory.mktemp("uneven") / "d"
    pairs = [Turn(f"say {i}", "yes " * (1 + i * i % 20)) for i in range(40)]
    dataset.write_dataset(
        [form.render(Talk("", [pair])) for pair in pairs], out, "byte", 0.2, template=form.line
    )
    return out


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """A run that has learnt about a few figures, with its data."""
    home = tmp_path_factory.mktemp("taught")
    lines = [json.dumps({"prompt": q, "completion": a}) for q, a in questions.pairs(FIGURES)[0]]
    (home / "a.jsonl").write_text("\n".join(lines))
    words = [str(home / "a.jsonl"), "--tokenizer=word", "--val_fraction=0.1", "--workers=1"]
    assert prepro.main([*words, f"--out={home / 'data'}"]) == 0
    run(data=home / "data", out=home / "run", B=16, max_steps=250, lr=3e-3, weight_decay=0.01)
    return home


# ---- what is learnt


def test_answers_to_questions_that_were_held_out(taught):
    chat = lambda question: "".join(pyllmc.Chat(taught / "run", temperature=0).say(question))  # noqa: E731
    train, held_out = questions.pairs(FIGURES)
    assert questions.count_right(chat, train[:20]) == 20
    assert len(held_out) > 8 and questions.count_right(chat, held_out) > 0.8 * len(held_out)


def loss_by_part(run_folder: Path, data: Path) -> tuple[float, float]:
    """The mean loss of the prompts' tokens and of the learnt ones in the training data."""
    path = bins.find_shards(data)[0]
    ids = bins.read_shard(path)
    learnt = masks.read_mask(path, len(ids))
    loader = bins.Loader([path], B=1, T=64, eot=int(ids[0]))
    model = pyllmc.Model(run_folder, B=1, T=64, training=False)
    sums, counts = np.zeros(2), np.zeros(2)
    ends = [i for i, token in enumerate(ids) if token == ids[0]]
    for start, end in zip(ends, ends[1:]):
        n = end - start
        model.forward(ids[None, start:end].astype("int32"), ids[None, start + 1 : end + 1].astype("int32"))
        part = learnt[start + 1 : end + 1].astype(int)
        np.add.at(sums, part, np.asarray(model.losses).reshape(-1)[:n])
        np.add.at(counts, part, 1)
    assert loader.windows == len(ends) - 1
    return tuple(sums / counts)


def test_prompts_are_not_trained(taught, tmp_path):
    """Their loss is not that of chance only because answers share their words; learnt, it is far lower."""
    prompts, answers = loss_by_part(taught / "run" / "last.ckpt", taught / "data")
    assert answers < 0.1 and prompts > 3
    words = [str(taught / "a.jsonl"), f"--tokenizer={taught / 'data'}", "--val_fraction=0", "--workers=1"]
    assert prepro.main([*words, "--learn_prompt", f"--out={tmp_path / 'd'}"]) == 0
    run(data=tmp_path / "d", out=tmp_path / "run", B=16, max_steps=100, lr=3e-3)
    assert loss_by_part(tmp_path / "run" / "last.ckpt", taught / "data")[0] < 2


# ---- the mean


def test_micro_steps_weigh_by_their_targets(uneven):
    one, three = losses(data=uneven, B=6, max_steps=6), losses(data=uneven, B=2, grad_accum=3, max_steps=6)
    assert np.allclose(one, three, rtol=1e-4)
    loader = bins.Loader(bins.find_shards(uneven), B=2, T=64, shuffle=True, seed=42, eot=256)
    counts = [int((loader.next()[1] >= 0).sum()) for _ in range(3)]
    assert max(counts) > 1.3 * min(counts)  # a mean of means would be another number


@not_under_asan
@pytest.mark.skipif(not (ROOT / "pyllmc/lib/libpyllmc_emu_fp32.so").exists(), reason="make emu builds it")
def test_the_cuda_kernels_do_the_same(uneven):
    how = {"data": uneven, "B": 2, "grad_accum": 2, "max_steps": 2, "precision": "fp32"}
    assert np.allclose(losses(**how), losses(**how, device="emu"), rtol=1e-4)


def test_a_validation_weighs_by_targets(uneven):
    how = {"data": uneven, "val_every": 1, "val_batches": 0, "max_steps": 0, "out": ""}
    found = [next(event.val_loss for event in run(B=B, **how) if event.kind == "eval") for B in (1, 2, 4, 8)]
    assert len(bins.find_shards(uneven, "val")) == 1
    assert np.allclose(found, found[0], rtol=1e-5)


def test_the_reference_does_the_same(uneven):
    torch = pytest.importorskip("torch")
    from pyllmc import check

    reference = check.load_reference()
    names = {**SMALL, "data": uneven, "B": 2, "grad_accum": 3, "max_steps": 3, "warmup_steps": 1}
    o = reference.parse([f"--{name}={value}" for name, value in {**names, "out": ""}.items()])
    trainer = reference.Trainer(o)
    torch.manual_seed(0)
    validated, found = trainer.validate("", next(iter(trainer.vals.values()))), []
    for _ in range(3):
        loss = trainer.accumulate()
        found.append((loss, trainer.update(loss)[1]))
    events = run(**{**names, "val_every": 3, "val_batches": o.val_batches, "out": ""})
    assert np.allclose([(e.loss, e.norm) for e in events if e.kind == "step"], found, rtol=1e-4)
    assert next(e.val_loss for e in events if e.kind == "eval") == pytest.approx(validated, rel=1e-5)


EVERY_OTHER = {"B": 1, "max_steps": 8, "shuffle": False}  # steps learn something and nothing by turns


@pytest.fixture
def every_other(tmp_path):
    """Documents of which every other has nothing to learn, not even its end."""
    texts = [Marked.of([("question ", False), ("answer", i % 2 == 0)]) for i in range(8)]
    dataset.write_dataset(texts, tmp_path / "d", "byte", 0, template="{prompt}{answer}.")
    path = tmp_path / "d" / "train_000000.bin"
    learnt = masks.read_mask(path, bins.inspect_shard(path).ntok)
    learnt[bins.read_shard(path) == 256] = False
    dataset.write_mask(path, learnt)
    return tmp_path / "d"


def test_a_step_that_learns_nothing_is_no_outlier(every_other, tmp_path):
    """Its loss of 0 would make those of the other steps look large."""
    run(data=every_other, out=tmp_path / "run", skip_outliers=3, **EVERY_OTHER)
    seen = checkpoint.recorded(tmp_path / "run")[1]["loss_window"].split()
    assert len(seen) == 4 and all(float(loss) > 0 for loss in seen)


def test_a_step_that_learns_nothing_says_so_once(every_other):
    path = every_other / "train_000000.bin"
    events = [e for e in run(data=every_other, out="", **EVERY_OTHER) if e.kind == "step"]
    assert [event.loss == 0 for event in events] == [False, True] * 4
    told = [event.text for event in events if "learnt nothing" in event.text]
    assert len(told) == 1 and "step 2 | every target of its batch is masked" in told[0]
    dataset.write_mask(path, np.zeros(bins.inspect_shard(path).ntok, bool))
    with pytest.raises(pyllmc.InvalidArgument, match="lets no token be learnt"):
        run(data=every_other, out="")


def test_validation_data_of_which_the_first_batches_are_masked(tmp_path):
    texts = [("val", Marked.of([("a b c", learn)])) for learn in (False, False, True)]
    dataset.write_dataset(
        [("train", Marked.of([("a", True)])), *texts], tmp_path / "d", "byte", template="{prompt}{answer}."
    )
    path = tmp_path / "d" / "val_000000.bin"
    learnt = masks.read_mask(path, bins.inspect_shard(path).ntok)
    learnt[bins.read_shard(path) == 256] = False
    dataset.write_mask(path, learnt)
    how = {"data": tmp_path / "d", "B": 1, "max_steps": 1, "val_every": 1, "out": ""}
    with pytest.raises(pyllmc.InvalidArgument, match="none of the 2 batches .* raise --val_batches"):
        run(**how, val_batches=2)
    assert run(**how, val_batches=3)


def test_documents_that_are_cut_are_told(uneven):
    ids = bins.read_shard(bins.find_shards(uneven)[0])
    long = int((np.diff(np.flatnonzero(ids == 256)) > 48).sum())
    assert 8 < long < 30
    plan = next(iter(pyllmc.Trainer(data=uneven, out="", **{**SMALL, "T": 48}))).text
    assert f"; {long} documents are longer than T=48, and cut: raise T" in plan and "mask: " in plan
    plan = next(iter(pyllmc.Trainer(data=uneven, out="", **{**SMALL, "max_seq_len": 128}))).text
    assert "mask: " in plan and "cut" not in plan


# ---- the template travels


def test_it_travels_into_every_checkpoint(taught):
    for name in ("best.ckpt", "last.ckpt"):
        path = taught / "run" / name
        if path.exists():
            assert checkpoint.training(path)["options"]["template"] == templates()["plain"]
    assert f"template={templates()['plain']}\n" in (taught / "run" / "config.txt").read_text()


def test_weights_bring_it_to_data_without_one(taught, tmp_path):
    tokenizer = Tokenizer.load(taught / "data" / "tokenizer.bin")
    dataset.write_dataset(["Mia is a fox. " * 40] * 3, tmp_path / "d", tokenizer, 0)
    list(
        pyllmc.Trainer(data=tmp_path / "d", model=taught / "run", out=tmp_path / "run", max_steps=2, **QUIET)
    )
    assert checkpoint.training(tmp_path / "run")["options"]["template"] == templates()["plain"]


def test_a_resumed_run_is_the_same_bit_for_bit(uneven, tmp_path):
    how = {"data": uneven, "B": 2, "grad_accum": 2, "max_steps": 6, "checkpoint_every": 3}
    whole = [e.loss for e in run(**how, out=tmp_path / "a") if e.kind == "step"]
    first = pyllmc.Trainer(**{**SMALL, **QUIET, **how, "out": tmp_path / "b"})
    for event in first:
        if event.kind == "step" and event.step == 3:
            first.stop()
    rest = [e.loss for e in pyllmc.Trainer(resume=tmp_path / "b") if e.kind == "step"]
    assert rest == whole[3:]
    for tag in (b"MOMENTS ", checkpoint.STATE):
        assert checkpoint.section(tmp_path / "a", tag) == checkpoint.section(tmp_path / "b", tag) != b""


def test_both_chats_and_samples_use_it_by_themselves(taught):
    question, answer = questions.pairs(FIGURES)[0][0]
    how = [str(taught / "run"), f"--prompt={question}", "--temperature=0"]
    programs = [
        [str(ROOT / "chat_gpt2")],
        [sys.executable, "-m", "pyllmc.chat"],
        [sys.executable, "-m", "pyllmc.sample"],
    ]
    if "PYLLMC_LIB" in os.environ:
        del programs[0]  # the binary links the ordinary build
    told = [
        subprocess.run([*p, *how], capture_output=True, text=True, cwd=ROOT, timeout=60).stdout
        for p in programs
    ]
    assert told[-1].strip() == f"User: {question}\nAssistant: {answer}"
    assert told[:-1] == [f"{answer}\n"] * len(told[:-1])


def test_a_text_without_training_is_a_turn_too(taught):
    """--max_steps=0 --prompt, in C and in Python: the weights' template, --template and its check."""
    question, answer = questions.pairs(FIGURES)[0][0]
    how = [
        "--max_steps=0",
        "--temperature=0",
        "--sample_tokens=40",
        f"--model={taught / 'run'}",
        f"--prompt={question}",
    ]
    programs = [[str(ROOT / "train_gpt2")], [sys.executable, "-m", "pyllmc.train"]]
    if "PYLLMC_LIB" in os.environ:
        del programs[0]

    def told(program: list[str], *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*program, *how, *more], capture_output=True, text=True, cwd=ROOT, timeout=60)

    for program in programs:
        assert told(program).stdout.strip() == f"User: {question}\nAssistant: {answer}"
        assert told(program, "--template=story").stdout.startswith(question)
        own = told(program, r"--template={prompt} =>{answer}\n").stdout
        assert own.startswith(f"{question} =>")
        for wrong, words in (
            ("bogus", "--template=bogus is not one of"),
            ("{prompt}", "needs {prompt}, and behind it"),
        ):
            refused = told(program, f"--template={wrong}")
            assert refused.returncode == 2 and words in refused.stderr and refused.stderr.count("\n") == 1


def test_a_sample_of_the_training_is_a_turn(uneven, tmp_path):
    how = {"sample_every": 1, "max_steps": 1, "prompt": "say 3", "sample_tokens": 4, "out": tmp_path / "r"}
    texts = [event.text for event in run(data=uneven, **how) if event.kind == "sample"]
    assert texts and all(text.startswith("User: say 3\nAssistant:") for text in texts)


@pytest.mark.parametrize("val_every", [0, 1])
def test_without_a_prompt_samples_ask_what_the_data_asks(taught, val_every):
    """The first prompt of the validation data, or of the training data; that changes no batch."""
    how = {
        "data": taught / "data",
        "model": taught / "run",
        "val_every": val_every,
        "max_steps": 3,
        "B": 2,
        "temperature": 0,
    }
    events = run(**how, sample_every=1, out="")
    samples = [event.text for event in events if event.kind == "sample"]
    split = "val" if val_every else "train"
    asked = [f"User: {q}\nAssistant: {a}\n" for q, a in questions.pairs(FIGURES)[0]]
    assert len(samples) == 3 and set(samples) <= set(asked)
    tokens = bins.read_shard(taught / "data" / f"{split}_000000.bin")
    text = Tokenizer.load(taught / "data" / "tokenizer.bin").decode(tokens)
    assert samples[0] in text and (
        split == "train" or text.removeprefix("<|endoftext|>").startswith(samples[0])
    )
    assert [e.loss for e in events if e.kind == "step"] == [loss for loss, _ in losses(**how)]


def test_the_question_of_a_later_set_is_asked_if_the_first_has_none(taught, tmp_path):
    """A set of plain text shows what is forgotten; it has no prompt."""
    letters = Tokenizer.load(taught / "data" / "tokenizer.bin")
    dataset.write_dataset(["a plain text"] * 90, tmp_path / "plain", letters, val_fraction=0.5)
    plain, pairs = f"{tmp_path / 'plain'}/val_000000.bin", f"{taught / 'data'}/val_000000.bin"
    how = {
        "data": taught / "data",
        "model": taught / "run",
        "max_steps": 1,
        "B": 2,
        "out": "",
        "sample_every": 1,
    }
    for sets in plain, f"a={plain},b={pairs}":
        events = run(**how, val_data=sets, val_every=1, temperature=0)
        assert [event.text[:6] for event in events if event.kind == "sample"] == ["User: "]


def test_where_prompts_are_learnt_a_sample_is_a_document(taught, tmp_path):
    words = [str(taught / "a.jsonl"), f"--tokenizer={taught / 'data'}", "--val_fraction=0", "--workers=1"]
    assert prepro.main([*words, "--learn_prompt", f"--out={tmp_path / 'd'}"]) == 0
    how = {"data": tmp_path / "d", "max_steps": 9, "sample_every": 1, "lr": 1e-2, "out": ""}
    ours, story = (
        [event.text for event in run(**how, template=name) if event.kind == "sample"]
        for name in ("auto", "story")
    )
    assert ours == story and len(set(ours)) > 3


def test_the_end_of_a_run_on_pairs_names_the_chat(taught):
    trainer = pyllmc.Trainer(resume=taught / "run", **QUIET)
    list(trainer)
    run_path = taught / "run"
    for program, chat in (
        ("./train_gpt2", "./chat_gpt2"),
        ("bin/train_gpt2_cuda", "bin/chat_gpt2"),
        ("'my train_gpt2/train_gpt2'", "'my train_gpt2/chat_gpt2'"),
        ("python -m pyllmc.train", "python -m pyllmc.chat"),
        ("./renamed", "python -m pyllmc.chat"),
    ):
        assert f"next:\n  chat     {chat} {run_path}\n" in trainer.ending(program, "python")


def test_a_data_set_with_a_bad_template_is_refused(uneven, tmp_path):
    dataset.write_dataset([Marked.of([("a", True)])], tmp_path / "d", "byte", 0, template="{prompt}")
    with pytest.raises(pyllmc.InvalidArgument, match="needs {prompt}, and behind it {answer}"):
        run(data=tmp_path / "d", out="")
    (tmp_path / "d" / "template.txt").write_text("x" * 2000)
    with pytest.raises(pyllmc.BadFile, match="has 2000 bytes, a template at most 1023: shorten it"):
        run(data=tmp_path / "d", out="")
    with pytest.raises(pyllmc.InvalidArgument, match="--template=foo is not one of"):
        run(data=uneven, template="foo", out="")


# ---- the questions


def test_questions_are_the_same_each_time_and_held_out():
    train, held_out = questions.pairs()
    assert (train, held_out) == questions.pairs() != questions.pairs(seed=2)
    assert len(train) + len(held_out) == 30 * 16 and not set(train) & set(held_out)
    facts = {(pair.answer, figure) for pair in train for figure in pair.question.split()}
    assert all(any((p.answer, f) in facts for f in p.question.split()) for p in held_out)
