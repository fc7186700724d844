"""The scorer: every log-probability is that of a whole forward pass, and Hugging Face's; each context is computed once."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks import make_scorer
from conftest import DEVICES, ISAS, ffi, lib

import pyllmc
from pyllmc import InvalidArgument
from pyllmc.base.errors import DataError
from pyllmc.evaluate.items import Choice, Rolling, Word
from pyllmc.evaluate.scorer import B_for, Scorer
from pyllmc.text.vocabularies import train

V, T = 97, 24
NEAR = 1e-5  # nats
EMULATED = [name for name in DEVICES if name.startswith("emu")]


def model_of(B: int = 2, **how) -> pyllmc.Model:
    c = pyllmc.GPTConfig(V, T, 2, 2, 16, **how.pop("config", {}))
    made = pyllmc.Model(c, B=B, seed=1, **how)
    rng = np.random.default_rng(0)
    for name in made.params:
        x = rng.normal(0, 0.15, made.params[name].shape).astype(np.float32)
        made.params[name] = x + (".ln_" in name and name.endswith("weight"))
    return made


def ids(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([n, seed]).integers(0, V, n).astype(np.int32)


def whole(model: pyllmc.Model, tokens: np.ndarray, last: int) -> tuple[np.ndarray, np.ndarray]:
    """The log-probabilities of the last tokens by one forward pass, and the likeliest ids in their places."""
    model.forward(tokens[None, :-1])
    x = model.logits[0].astype(np.float64)
    top = x.max(1, keepdims=True)
    logs = x - top - np.log(np.exp(x - top).sum(1, keepdims=True))
    return logs[np.arange(len(tokens) - 1), tokens[1:]][-last:], x.argmax(1)[-last:]


def questions() -> list[Choice]:
    """Contexts of every length, some with a common beginning; two to four choices of every length."""
    sizes = [(1, (1, 2)), (9, (3, 1, 7)), (T - 4, (4, 5)), (2, (1, 1, 1, 1)), (12, (T - 11, 2))]
    found = [
        Choice(ids(n, i), [ids(m, j + 7) for j, m in enumerate(more)], 0, [])
        for i, (n, more) in enumerate(sizes)
    ]
    begun = found[1].context
    found += [Choice(np.concatenate([begun, ids(n, 5)]), [ids(2, 1), ids(3, 2)], 0, []) for n in (3, 5, 0)]
    return [*found, found[1]]


def assert_choices(model: pyllmc.Model, near: float = NEAR, **how) -> None:
    items = questions()
    got = list(Scorer(model, **how).choices(items))
    assert len(got) == len(items)
    for item, logs in zip(items, got):
        assert [len(x) for x in logs] == [len(choice) for choice in item.choices]
        for choice, x in zip(item.choices, logs):
            expected, _ = whole(model, np.concatenate([item.context, choice]), len(choice))
            assert x.dtype == np.float64
            np.testing.assert_allclose(x, expected, atol=near)


@pytest.mark.parametrize("B", [1, 2, 5])
def test_choices_are_those_of_whole_passes(B):
    assert_choices(model_of(5), B=B)


@pytest.mark.parametrize("isa", ISAS)
def test_on_every_instruction_set(isa, monkeypatch):
    monkeypatch.setenv("PYLLMC_ISA", isa)
    model = model_of()
    assert model.isa == isa
    assert_choices(model)


@pytest.mark.parametrize("config", [{"window": 6}, {"window": 6, "pattern": "L"}, {"untied": 1}])
@pytest.mark.parametrize("training", [True, False])
def test_banded_and_untied_models(config, training):
    """Without training a banded layer keeps a ring, which forgets a context while a choice is scored."""
    model = model_of(config=config, training=training)
    assert ("ring" in model._arena.names("acts")) == (not training and "window" in config)
    assert_choices(model)


@pytest.mark.skipif("emu_fp32" not in EMULATED, reason="needs make emu")
def test_on_the_emulated_device():
    assert_choices(model_of(device="emu", precision="fp32"), near=3e-5)


@pytest.mark.parametrize(
    "how", [{"recompute": 3}, {"recompute": 4}, {"training": False, "keep_logits": False}]
)
def test_in_any_room(how):
    """A model without logits and one that keeps few activations score the same."""
    items, whole_room = questions(), Scorer(model_of())
    for one, other in zip(Scorer(model_of(**how)).choices(items), whole_room.choices(items)):
        for x, y in zip(one, other):
            np.testing.assert_allclose(x, y, atol=NEAR)


def test_a_context_goes_through_the_model_once():
    """Counts the tokens of each call: contexts but for their last token, one row for each token of a choice, no padding."""
    scorer, rows = Scorer(model_of()), []
    call = scorer._call
    scorer._call = lambda *arrays: (rows.append(len(arrays[0])), call(*arrays))
    context = ids(10)
    items = [Choice(np.concatenate([context, ids(n, 1)]), [ids(2), ids(3)], 0, []) for n in (1, 2)]
    list(scorer.choices(items))
    # the second context is the first one's ten tokens, of which the last was not kept, and two more
    assert sum(rows) == 10 + 5 + 1 + 5


@pytest.mark.parametrize(
    "n, stride, window, first",
    [(100, T, None, 1), (100, 5, 11, 1), (100, 1, 3, 1), (10, T, None, 4), (T, 3, None, 1), (T + 1, 2, None, 1), (T + 2, 2, None, 2), (60, 4, 10, 30)],
)  # fmt: skip
def test_a_stream_scores_every_target_once(n, stride, window, first):
    scorer = Scorer(model_of())
    item = Rolling(ids(n), stride, window, first, 1.0, 1)
    logs, seen = scorer.rolling(item), window or T
    assert len(logs) == n - first
    end, scored, expected = first + stride if first > seen else seen + 1, first, []
    while scored < n:
        end = min(end, n)
        expected.append(whole(scorer.model, item.ids[max(0, end - 1 - seen) : end], end - scored)[0])
        scored, end = end, end + stride
    np.testing.assert_allclose(logs, np.concatenate(expected), atol=NEAR)


def test_a_stream_goes_on_behind_what_is_known():
    scorer, item = Scorer(model_of()), Rolling(ids(90), 7, None, 1, 1.0, 1)
    parts = list(scorer.rolling_parts(item))
    for known in range(len(parts) + 1):
        rest = list(scorer.rolling_parts(item, skip=sum(map(len, parts[:known]))))
        assert [len(part) for part in rest] == [len(part) for part in parts[known:]]
        for one, other in zip(rest, parts[known:]):
            np.testing.assert_allclose(one, other, atol=NEAR)


def test_words_and_what_greedy_decoding_gives():
    model = model_of()
    items = []
    for n, m in ((1, 1), (5, 3), (T - 1, 2), (3 * T, 2), (7, T)):
        context = ids(n)
        items.append(Word(context, ids(m, 3)))
        greedy = context
        for _ in range(min(m, 4)):
            greedy = np.append(greedy, whole(model, np.append(greedy[-T:], 0), 1)[1])
        items.append(Word(context, greedy[n:].astype(np.int32)))
    got = list(Scorer(model).words(items))
    for item, (log, guessed) in zip(items, got):
        tokens = np.concatenate([item.context, item.target])[-T - 1 :]
        logs, likeliest = whole(model, tokens, len(item.target))
        assert log == pytest.approx(logs.sum(), abs=1e-4)
        assert guessed == (likeliest == item.target).all()
    assert any(guessed for _, guessed in got)
    assert not all(guessed for _, guessed in got)


def test_banned_ids_are_passed_over():
    model = model_of()
    context = ids(6)
    best = whole(model, np.append(context, 0), 1)[1][0]
    model.forward(context[None])
    second = int(np.argsort(model.logits[0, -1])[-2])
    target = np.array([second], np.int32)
    (_, plain), (_, passed) = Scorer(model).words(
        [Word(context, target), Word(context, target, np.array([best]))]
    )
    assert (plain, passed) == (False, True)


def test_log_probabilities_are_those_of_hugging_face(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    scorer = make_scorer(folder=tmp_path / "hf")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    text = scorer.encode("The baker didn't sell bread on Sundays. On Monday Tom went in, smelled the oven")
    choices = [scorer.encode(x) for x in (" and asked for bread", " of the sea", " he")]
    (logs,) = scorer.choices([Choice(text, choices, 0, [])])
    for choice, x in zip(choices, logs):
        tokens = torch.tensor(np.concatenate([text, choice]).astype(np.int64))
        with torch.no_grad():
            expected = theirs(tokens[None]).logits[0].log_softmax(-1)[:-1].gather(1, tokens[1:, None])
        np.testing.assert_allclose(x, expected[-len(choice) :, 0].numpy(), atol=NEAR)


# ---- input that cannot be scored ----


@pytest.mark.parametrize(
    "item, says",
    [
        (Choice(ids(0), [ids(1)], 0, []), "item 2 has no context"),
        (Choice(ids(3), [], 0, []), "item 2 has no choice"),
        (Choice(ids(3), [ids(2), ids(0)], 0, []), "item 2 has no choice, or an empty one"),
        (Choice(ids(T), [ids(2)], 0, []), f"item 2 takes {T + 1} tokens, .* sees {T}: give fewer shots"),
        (Choice(np.array([V], np.int32), [ids(2)], 0, []), f"{V} is not in 0..{V - 1}"),
    ],
)
def test_a_choice_that_cannot_be_scored_is_one_line(item, says):
    with pytest.raises(InvalidArgument, match=says) as caught:
        list(Scorer(model_of()).choices([questions()[0], item]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n, stride, window, first", [(1, 1, None, 1), (5, 1, None, 5), (9, 0, None, 1), (9, 5, 4, 1), (9, 1, T + 1, 1), (9, 1, None, 0)])  # fmt: skip
def test_a_stream_that_cannot_be_scored_is_one_line(n, stride, window, first):
    with pytest.raises(InvalidArgument, match="none to score|do not fit"):
        Scorer(model_of()).rolling(Rolling(ids(n), stride, window, first, 1.0, 1))


def test_words_that_cannot_be_scored_are_one_line():
    for item in (Word(ids(0), ids(1)), Word(ids(2), ids(0)), Word(ids(2), ids(T + 1))):
        with pytest.raises(InvalidArgument, match="item 1 has .* the context needs one"):
            list(Scorer(model_of()).words([item]))


def test_a_text_that_the_tokenizer_cannot_write_is_named():
    tokenizer = train("char", ["abc "], max_vocab=50)
    scorer = Scorer(model_of(), tokenizer)
    assert scorer.encode("a b").tolist() == tokenizer.encode("a b")
    with pytest.raises(DataError, match="cannot write 'ab§'"):
        scorer.encode("ab§")
    with pytest.raises(DataError, match="--tokenizer"):
        Scorer(model_of()).encode("a")


def test_a_batch_beyond_the_models_memory_is_refused():
    with pytest.raises(InvalidArgument, match="B=3 is more than the model's"):
        Scorer(model_of(B=2), B=3)
    assert [B_for(T) for T in (1, 1024, 4096)] == [2048, 2, 1]


@pytest.mark.parametrize(
    "counts, pos, says",
    [
        ([0], [0], "span 0: 0 tokens"),
        ([T + 1], [0], f"not 1 to T={T}"),
        ([2, 3], [0, T - 2], f"span 1: 3 tokens behind {T - 2}"),
        ([1], [-1], "behind -1"),
        ([T, T, 1], [0, 0, 0], f"{2 * T + 1} tokens at once"),
        ([], [], "0 spans"),
    ],
)
def test_the_library_refuses_spans_that_do_not_fit(counts, pos, says):
    model, n = model_of(B=2), max(1, sum(counts))
    given = [ffi.new("int[]", x or [0]) for x in ([1] * n, [1] * n, counts, pos)]
    losses = ffi.new("float[]", n)
    assert lib.llmc_model_score(model._handle, *given, len(counts), losses, ffi.NULL) == lib.LLMC_EINVAL
    assert says in ffi.string(lib.llmc_last_error()).decode()


def test_scoring_leaves_training_alone():
    """A step after scoring is, to the bit, the step without it."""
    batch = ids(2 * (T + 1)).reshape(2, T + 1)
    plain, scored = model_of(), model_of()
    list(Scorer(scored).choices(questions()))
    for model in (plain, scored):
        model.micro_step(batch[:, :-1], batch[:, 1:], accumulate=False)
        model.update()
    for name in plain.params:
        assert (plain.params[name] == scored.params[name]).all()
