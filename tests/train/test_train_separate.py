"""--separate_documents in a run: the reference trains the same, a resumed run goes on to the same bits, whole pairs share windows,
and what is refused."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_dataloader import Loader, lib, write
from test_masks import DOCUMENTS, EOT, FORMATS, scratch  # noqa: F401
from test_trainer import QUIET, metrics, without_times

import pyllmc
from pyllmc import check
from pyllmc.engine.checkpoint import training
from pyllmc.text import bins, dataset, template
from pyllmc.text.template import Talk, Turn

TINY = {"model": "gpt-nano", "max_seq_len": 48, "n_layer": 2, "n_head": 2, "n_embd": 16, "B": 3, "seed": 7}


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """Documents of 2 to 30 letters."""
    out, rng = tmp_path_factory.mktemp("short") / "d", np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcde "), int(rng.integers(2, 30)))) for _ in range(300)]
    dataset.write_dataset(texts, out, tokenizer="char", val_fraction=0.2)
    return out


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Prompts with answers, 10 to 25 tokens each."""
    form, out = template.find("{prompt}={answer}."), tmp_path_factory.mktemp("pairs") / "d"
    talks = [Talk("", [Turn(f"{i} plus {i % 7}", str(i + i % 7) * (1 + i % 3))]) for i in range(80)]
    dataset.write_dataset([form.render(talk) for talk in talks], out, "char", 0.2, template=form.line)
    return out


def run(**options) -> pyllmc.Trainer:
    trainer = pyllmc.Trainer(**{**TINY, **QUIET, "separate_documents": 1, **options})
    list(trainer)
    return trainer


def events(**options) -> list[pyllmc.trainer.Event]:
    return list(pyllmc.Trainer(**{**TINY, **QUIET, "out": "", "separate_documents": 1, **options}))


@pytest.mark.parametrize("kind", ["short", "pairs"])
@pytest.mark.parametrize(
    "more", [{}, {"window": 5, "dropout": 0.2}, {"grad_accum": 3, "documents": 0}], ids=str
)
def test_the_reference_does_the_same(request, kind, more):
    reference = check.load_reference()
    names = {**TINY, "data": request.getfixturevalue(kind), "max_steps": 4, "warmup_steps": 1, **more}
    arguments = [f"--{name}={value}" for name, value in {**names, "out": "", "separate_documents": 1}.items()]
    trainer = reference.Trainer(reference.parse(arguments))
    validated, found = trainer.validate("", next(iter(trainer.vals.values()))), []
    for _ in range(4):
        loss = trainer.accumulate()
        found.append((loss, trainer.update(loss)[1]))
    ours = events(**names, val_every=4, val_batches=trainer.o.val_batches)
    assert np.allclose([(e.loss, e.norm) for e in ours if e.kind == "step"], found, rtol=1e-3)
    assert next(e.val_loss for e in ours if e.kind == "eval") == pytest.approx(validated, rel=1e-5)
    plain = events(**names, val_every=4, separate_documents=0)
    assert [e.loss for e in plain if e.kind == "step"] != [e.loss for e in ours if e.kind == "step"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_is_bit_exact(short, tmp_path, precision):
    options = {"data": short, "max_steps": 7, "grad_accum": 2, "val_every": 3, "val_batches": 1}
    options |= {"dropout": 0.2, "precision": precision}
    run(out=tmp_path / "whole", threads=1, **options)
    trainer = pyllmc.Trainer(
        out=tmp_path / "parts", threads=3, separate_documents=1, **{**TINY, **QUIET, **options}
    )
    for event in trainer:
        if event.kind == "step" and event.step == 4:
            trainer.stop()
    resumed = pyllmc.Trainer(resume=tmp_path / "parts", recompute=3)  # the option is the checkpoint's
    list(resumed)
    assert training(tmp_path / "parts" / "last.ckpt")["options"]["separate_documents"] == "1"
    assert without_times(metrics(tmp_path / "parts")) == without_times(metrics(tmp_path / "whole"))
    whole = pyllmc.Model(tmp_path / "whole" / "last.ckpt", B=1, T=4)
    for name, x in whole.params.items():
        assert x.tobytes() == resumed.model.params[name].tobytes(), name


def test_the_run_tells_it(short):
    told = [events(data=short, max_steps=1, separate_documents=on)[0].text for on in (0, 1)]
    assert ["documents do not see each other" in text for text in told] == [False, True]


def test_samples_are_those_of_a_run_without(short):
    """Generation reads a prompt as one document, so fresh weights write the same."""
    how = {"data": short, "max_steps": 1, "sample_every": 1, "sample_tokens": 20, "lr": 1e-12}
    texts = [
        next(e.text for e in events(**how, separate_documents=on) if e.kind == "sample") for on in (0, 1)
    ]
    assert texts[0] == texts[1]


# ---- what is refused ----


def test_data_without_a_tokenizer(short, tmp_path):
    shutil.copy(bins.find_shards(short)[0], tmp_path / "train_0.bin")
    reference = check.load_reference()
    why = "--separate_documents needs a tokenizer .* the data has none: name it with --tokenizer"
    with pytest.raises(pyllmc.InvalidArgument, match=why):
        events(data=tmp_path, vocab_size=50, max_steps=1)
    arguments = [f"--data={tmp_path}", "--model=gpt-nano", "--vocab_size=50", "--separate_documents"]
    with pytest.raises(ValueError, match=why):
        reference.Trainer(reference.parse(arguments))
    tokenizer = short / "tokenizer.bin"
    assert events(data=tmp_path, tokenizer=tokenizer, max_steps=1)[-1].step == 1


def test_a_tokenizer_without_such_an_id(short, tmp_path):
    shutil.copytree(short, tmp_path / "d")
    path = tmp_path / "d" / "tokenizer.bin"
    head = np.fromfile(path, "<i4")[:4]
    data = bytearray(path.read_bytes())
    data[12:16] = np.int32(-1).tobytes()
    path.write_bytes(data)
    assert head[3] >= 0
    with pytest.raises(pyllmc.InvalidArgument, match="this one has none: prepare the data again"):
        events(data=tmp_path / "d", max_steps=1)


# ---- windows of whole pairs ----


def fewest(lengths: list[int], T: int, last_end: int) -> int:
    """How many windows hold documents of these lengths, in their order and as many as fit; last_end: 1 if an EOT ends the last."""
    count, i = 0, 0
    while sum(lengths[i:]) - 1 + last_end > 0:
        count += 1
        if sum(lengths[i:]) - 1 + last_end <= T:
            break
        room = T
        while lengths[i] <= room:
            room, i = room - lengths[i], i + 1
    return count


@given(DOCUMENTS, st.integers(1, 30), st.sampled_from(FORMATS), st.sampled_from([EOT, -1]), st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_learnt_token_is_a_target_once(scratch, documents, T, fmt, eot, data):
    """Windows hold whole documents, as many as fit; Python's loader gives the same batches."""
    last_end = data.draw(st.integers(0, 1)) if len(documents) > 1 else 1
    ids = [i for document in documents for i in (EOT, *document)] + [EOT] * last_end
    learnt = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    learnt[-1] = True
    path = write(scratch(), ids, fmt)
    dataset.write_mask(path, learnt)
    loader = Loader(path, T=T, eot=eot, opens=lib.llmc_loader_open_packed)
    reference, targets = bins.Loader([path], B=1, T=T, eot=eot, pack=True), []
    assert loader.windows == reference.windows
    for _ in range(loader.windows):
        (x, y), (x2, y2) = loader.next(), reference.next()
        assert x.tolist() == x2.tolist() and y.tolist() == y2.tolist()
        targets += y[y >= 0].tolist()
    assert targets == [i for i, learn in zip(ids[1:], learnt[1:]) if learn]
    lengths = [1 + len(document) for document in documents]
    if eot >= 0 and max(lengths) <= T:
        assert lib.llmc_loader_cut(loader.handle) == 0
        assert loader.windows == fewest(lengths, T, last_end)


def test_a_pair_learns_what_it_learns_alone(pairs):
    """The loss of a window of several pairs is the mean over all of them, each in a window of its own."""
    alone = events(data=pairs, val_every=1, val_batches=0, max_steps=0, separate_documents=0, B=1)
    together = events(data=pairs, val_every=1, val_batches=0, max_steps=0, B=1)
    losses = [next(e.val_loss for e in found if e.kind == "eval") for found in (alone, together)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    windows = [int(re.search(r"(\d+) windows of", found[0].text)[1]) for found in (alone, together)]
    assert windows[1] < 0.6 * windows[0]
