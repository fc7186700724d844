"""The scores beside lm-eval's own: its task files and its model, on the same files and weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks import asked, json_lines, make_files, make_scorer, write

pytest.importorskip("torch")
lm_eval = pytest.importorskip("lm_eval")

from pyllmc.evaluate.task import perplexity, ratio  # noqa: E402
from pyllmc.evaluate.tasks import TASKS, wikitext  # noqa: E402

NEAR = 1e-4  # how far scores may be apart, and log-probabilities in nats
YAML = """include: {base}
task: {name}_here
dataset_path: {reader}
dataset_name: null
training_split: null
validation_split: {validation}
dataset_kwargs:
  data_files:
    {split}: {file}
  cache_dir: {cache}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of the files, our scorer, and lm-eval's model with the same weights."""
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("lm_eval")
    scorer = make_scorer(T=96, folder=folder / "model")
    how = {
        "device": "cpu",
        "dtype": "float32",
        "batch_size": 2,
        "add_bos_token": False,
    }  # as for GPT-2 of the hub
    theirs = HFLM(pretrained=str(folder / "model"), **how)
    return make_files(folder / "data"), scorer, theirs


def their_results(model, name: str, file: Path, folder: Path, split: str = "test", reader: str = "json"):
    """What lm-eval's task `name` scores on a file, and the log-probabilities of each record."""
    from lm_eval.tasks import TaskManager

    base = next((Path(lm_eval.__file__).parent / "tasks").glob(f"*/{name}.yaml"))
    validation = split if split == "validation" else "null"
    text = YAML.format(
        base=base,
        name=name,
        reader=reader,
        validation=validation,
        split=split,
        file=file,
        cache=folder / "cache",
    )
    task = write(folder / f"{name}.yaml", text)
    found = lm_eval.simple_evaluate(
        model=model, tasks=[str(task)], bootstrap_iters=2, task_manager=TaskManager(include_defaults=False)
    )
    samples = sorted(found["samples"][f"{name}_here"], key=lambda sample: sample["doc_id"])
    scores = {key.removesuffix(",none"): value for key, value in found["results"][f"{name}_here"].items()}
    return scores, [np.ravel([one[0][0] if isinstance(one[0], (list, tuple)) else one[0] for one in s["resps"]]) for s in samples]  # fmt: skip


def ours(name: str, folder: Path, scorer):
    """(scores by metric, the scorer's answers) of our task."""
    items = TASKS[name].items(TASKS[name].read(folder), scorer)
    answers = asked(scorer, items)
    return {score.metric: score for score in TASKS[name].score(items, answers)}, answers


def test_hellaswag(place, tmp_path):
    folder, scorer, model = place
    theirs, logs = their_results(model, "hellaswag", folder / "hellaswag_val.jsonl", tmp_path, "validation")
    scores, answers = ours("hellaswag_lm_eval", folder, scorer)
    np.testing.assert_allclose([[c.sum() for c in a] for a in answers], logs, atol=NEAR)
    assert 0 < theirs["acc_norm"] < 1
    for metric in ("acc", "acc_norm"):
        assert scores[metric].value == pytest.approx(theirs[metric])
        assert scores[metric].error == pytest.approx(theirs[f"{metric}_stderr"])


@pytest.mark.parametrize(
    "name, file, reader",
    [
        ("lambada_openai", "lambada_test.jsonl", "json"),
        ("lambada_standard", "lambada_test_plain_text.txt", "text"),
    ],
)
def test_lambada(place, tmp_path, name, file, reader):
    folder, scorer, model = place
    theirs, logs = their_results(model, name, folder / file, tmp_path, reader=reader)
    scores, answers = ours("lambada_lm_eval", folder / file, scorer)
    np.testing.assert_allclose([log for log, _ in answers], np.ravel(logs), atol=NEAR)
    assert 0 < theirs["acc"] < 1
    assert scores["acc"].value == pytest.approx(theirs["acc"])
    assert scores["acc"].error == pytest.approx(theirs["acc_stderr"])
    assert scores["ppl"].value == pytest.approx(theirs["perplexity"], rel=NEAR)


def test_wikitext(place, tmp_path):
    folder, scorer, model = place
    pages = TASKS["wikitext2_lm_eval"].read(folder)
    assert len(pages) == 2 and scorer.T < min(map(len, pages))
    file = write(tmp_path / "pages.jsonl", json_lines([{"page": page} for page in pages]))
    theirs, logs = their_results(model, "wikitext", file, tmp_path)
    scores, answers = ours("wikitext2_lm_eval", folder, scorer)
    np.testing.assert_allclose([one.sum() for one in answers], np.ravel(logs), rtol=NEAR)
    assert scores["ppl"].value == pytest.approx(theirs["word_perplexity"], rel=1e-3)
    assert scores["bpb"].value == pytest.approx(theirs["bits_per_byte"], rel=NEAR)


def test_the_clean_up_of_articles(place):
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    odd = "a ' b ' c 's d s ' e ( f ) [ g ] { h } \" i \" = = = = J = = = = 1 N 2 ° 3 : ; . ! ? , k @-@ l @,@ m @.@ n / ' 5/ \n o /' 5/"
    for page in [odd, *TASKS["wikitext2_lm_eval"].read(place[0])]:
        assert wikitext.lm_eval_text(page) == wikitext_detokenizer({"page": page})


def test_the_error_of_a_perplexity_is_the_bootstraps():
    from lm_eval.api import metrics

    logs = np.random.default_rng(1).normal(-3, 1.5, 400)
    _, error = perplexity(*ratio(-logs, np.ones(len(logs))))
    draws = np.random.default_rng(2).choice(logs, (4000, len(logs)))
    assert error == pytest.approx(np.std([metrics.perplexity(list(draw)) for draw in draws]), rel=0.1)
