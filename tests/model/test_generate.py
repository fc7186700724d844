"""Generation step by step: fed in parts, cut, taking turns with others, penalised. Each id agrees with a whole forward
pass."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import numpy as np
import pytest
from conftest import ffi, lib
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllmc import GPTConfig, InvalidArgument, Model
from pyllmc.engine import _ffi

SETTINGS = settings(max_examples=60)
V, T = 33, 22


@pytest.fixture(scope="module", params=["dense", "banded"])
def model(request) -> Model:
    """The banded layers of a model that is not trained have rings, of 19 rows."""
    config = GPTConfig(V, T, 2, 2, 8, window=3 if request.param == "banded" else 0)
    made = Model(config, B=2, seed=3, training=request.param == "dense")
    for name in made.params:
        made.params[name][...] *= 12  # makes probabilities far from uniform
    return made


class Generation:
    """A generation of one or more texts; ids are numpy arrays (b, n)."""

    def __init__(self, model: Model, b: int = 1, **how) -> None:
        self.model, self.b = model, b
        out = ffi.new("llmc_generation **")
        _ffi.check(lib, lib.llmc_generation_new(out, model._handle, b, ffi.new("llmc_sampling *", how)))
        self.handle = ffi.gc(out[0], lib.llmc_generation_free)

    def feed(self, ids) -> None:
        ids = np.ascontiguousarray(np.reshape(ids, (self.b, -1)), np.int32)
        pointer = ffi.cast("int *", ids.ctypes.data)
        _ffi.check(lib, lib.llmc_generation_feed(self.handle, pointer, ids.shape[1]))

    def next(self, n: int = 1) -> list[int]:
        out, ids = ffi.new("int[]", self.b), []
        for _ in range(n):
            _ffi.check(lib, lib.llmc_generation_next(self.handle, out))
            ids.append(list(out) if self.b > 1 else out[0])
        return ids

    def cut(self, start: int, end: int) -> None:
        _ffi.check(lib, lib.llmc_generation_cut(self.handle, start, end))

    @property
    def ids(self) -> list[int]:
        n = ffi.new("int *")
        ids = lib.llmc_generation_ids(self.handle, 0, n)
        return ffi.unpack(ids, n[0]) if n[0] else []


def likeliest(model: Model, context: list[int]) -> int:
    model.forward(np.array([context]))
    return int(model.logits[0, len(context) - 1].argmax())


def cached(model: Model) -> int:
    """The number of tokens whose keys and values the last step found in the cache."""
    return int(model.acts["positions"][0])


def test_generate_is_a_loop_over_it(model):
    for how in (dict(temperature=0.0), dict(temperature=1.0, top_k=9, seed=5)):
        generation = Generation(model, **how)
        generation.feed([1, 2, 3])
        assert generation.next(30) == model.generate([1, 2, 3], 30, **how)


def test_what_was_read_is_not_read_again(model):
    generation = Generation(model)
    generation.feed([1, 2, 3])
    generation.next(2)
    assert cached(model) == 3
    generation.feed([4, 5])  # the last id drawn, and these two, are new
    generation.next()
    assert cached(model) == 4 and len(generation.ids) == 8


@SETTINGS
@given(
    st.lists(
        st.one_of(
            st.lists(st.integers(0, V - 1), max_size=T + 5),
            st.integers(1, 4),
            st.tuples(st.integers(0, T), st.integers(0, T)),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_sequence_of_feeding_drawing_and_cutting(model, steps):
    """Each id is the likeliest after the ids held, computed from scratch; forward passes lie in between."""
    generation, held = Generation(model), [7]
    generation.feed([7])
    for step in steps:
        if isinstance(step, list):
            generation.feed(step)
            fresh = step[-T:]
            keep = max(T // 2, len(fresh)) if len(held) + len(fresh) > T else T
            held = (held + fresh)[-keep:]
        elif isinstance(step, tuple):
            start, end = sorted(min(i, len(held)) for i in step)
            if end - start == len(held):
                continue
            generation.cut(start, end)
            del held[start:end]
        else:
            for id in generation.next(step):
                assert id == likeliest(model, held)
                held = [*(held if len(held) < T else held[T - T // 2 :]), id]
        assert generation.ids == held


def test_steps_keep_their_model():
    def make() -> Model:
        return Model("gpt-nano", vocab_size=65, B=1, training=False)

    steps, kept = make().steps([1, 2, 3], 20), make()
    gc.collect()
    assert [step.id for step in steps] == [step.id for step in kept.steps([1, 2, 3], 20)]


def test_texts_that_take_turns_on_one_model(model):
    """Each text finds its keys and values overwritten, and reads its ids again."""
    how = dict(temperature=1.0, seed=3)
    alone = [model.generate(prompt, 25, **how) for prompt in ([1, 2], [3])]
    pair = Generation(model, **how), Generation(model, **how)
    for generation, prompt in zip(pair, ([1, 2], [3])):
        generation.feed(prompt)
    together: list[list[int]] = [[], []]
    for _ in range(25):
        for ids, generation in zip(together, pair):
            ids += generation.next()
    assert together == alone


def test_weights_that_change_are_read_again(model, tmp_path):
    model.save(tmp_path / "m.ckpt")
    generation = Generation(model)
    generation.feed([1, 2, 3])
    generation.next()
    other = Model(tmp_path / "m.ckpt", B=2)
    _ffi.check(lib, lib.llmc_model_load(model._handle, str(tmp_path / "m.ckpt").encode()))
    assert generation.next() == [likeliest(other, generation.ids[:-1])]
    assert cached(model) == 0


def set_by_name(m: Model) -> None:
    m.params["qkvw"] = 2 * m.params["qkvw"]


def set_in_place(m: Model) -> None:
    m.params["qkvw"][...] *= 2
    _ffi.check(lib, lib.llmc_model_refresh(m._handle))


def learn(m: Model) -> None:
    for name in m.grads:
        m.grads[name] = np.ones_like(m.grads[name])
    m.update(lr=0.1)


@pytest.mark.parametrize("change", [set_by_name, set_in_place, learn])
def test_texts_go_on_with_weights_that_change(change):
    model = Model(GPTConfig(V, T, 2, 2, 8), B=2, seed=3)
    generation = Generation(model)
    generation.feed([1, 2, 3])
    generation.next()
    change(model)
    assert cached(model) == 0
    assert generation.next() == [likeliest(model, generation.ids[:-1])]


def test_several_texts_each_as_if_alone(model):
    generation = Generation(model, 2, temperature=1.0, seed=8)
    generation.feed([[1, 2], [3, 4]])
    first = generation.next(3)
    generation.feed([[5], [6]])
    rest = generation.next(20)
    for i, (prompt, more) in enumerate((([1, 2], [5]), ([3, 4], [6]))):
        alone = Generation(model, temperature=1.0, seed=8 + i)
        alone.feed(prompt)
        assert alone.next(3) == [ids[i] for ids in first]
        alone.feed(more)
        assert alone.next(20) == [ids[i] for ids in rest]


@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_the_repetition_penalty_is_hugging_faces(model, penalty):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rule = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    prompt = [1, 2, 2, 9]
    ours = model.generate(prompt, 20, temperature=0.0, repetition_penalty=penalty)
    held = list(prompt)
    for id in ours:
        model.forward(np.array([held]))
        logits = torch.tensor(model.logits[0, len(held) - 1].copy())[None]
        assert id == int(rule(torch.tensor([held]), logits).argmax())
        held = [*(held if len(held) < T else held[T - T // 2 :]), id]
    assert ours != model.generate(prompt, 20, temperature=0.0)
    for off in (0.0, 1.0):
        assert model.generate(prompt, 20, temperature=0.0, repetition_penalty=off) == model.generate(
            prompt, 20, temperature=0.0
        )


def test_only_ids_that_are_known(model):
    generation = Generation(model, temperature=50.0, vocab=5)
    generation.feed([30])
    assert set(generation.next(200)) == {0, 1, 2, 3, 4}
    logits = ffi.new("float[]", [1, 2, 9])
    assert lib.llmc_sample(logits, 3, ffi.new("llmc_sampling *", dict(vocab=2)), 0.5) == 1
    assert lib.llmc_sample(logits, 3, ffi.new("llmc_sampling *", dict(vocab=7)), 0.5) == 2


@pytest.mark.parametrize(
    "how, says",
    [(dict(repetition_penalty=-1), "repetition_penalty=-1"), (dict(repetition_penalty=np.inf), "repetition_penalty=inf"),
     (dict(vocab=-1), "vocab=-1"), (dict(b=3), "3 prompts do not fit"), (dict(b=0), "0 prompts")],
)  # fmt: skip
def test_what_cannot_be_is_refused(model, how, says):
    with pytest.raises(InvalidArgument, match=says):
        Generation(model, **how)


def test_misuse_is_refused(model):
    generation = Generation(model)
    with pytest.raises(InvalidArgument, match="empty prompt"):
        generation.next()
    with pytest.raises(InvalidArgument, match="33 is not in 0..32"):
        generation.feed([33])
    generation.feed([1, 2])
    for start, end in ((-1, 1), (1, 0), (0, 3)):
        with pytest.raises(InvalidArgument, match="not among the 2 held"):
            generation.cut(start, end)


def test_the_last_draw_of_each_text_is_told(model):
    """Before the first one, and for a text that is not there, the reason is told."""
    steps = Generation(model, b=2, temperature=1.5, top_k=4, repetition_penalty=1.4)
    own, chances = ffi.new("float[]", V), ffi.new("float[]", V)
    assert lib.llmc_generation_last(steps.handle, 0, own, chances) == lib.LLMC_EINVAL
    assert "no id was drawn yet" in ffi.string(lib.llmc_last_error()).decode()
    steps.feed([[1, 2, 3], [4, 5, 6]])
    for _ in range(2 * T):
        (drawn,) = steps.next()
        for i in (0, 1):
            assert lib.llmc_generation_last(steps.handle, i, own, chances) == drawn[i]
            assert chances[drawn[i]] > 0 and sum(p > 0 for p in chances) <= 4
            assert abs(sum(own) - 1) < 1e-5 and abs(sum(chances) - 1) < 1e-5
    for i in (-1, 2):
        assert lib.llmc_generation_last(steps.handle, i, own, chances) == lib.LLMC_EINVAL


def test_a_micro_step_overwrites_the_keys_of_a_text():
    """No weight has changed, but the batch took the memory of the cache."""
    model = Model(GPTConfig(V, T, 2, 2, 8), B=2, seed=3)
    for name in model.params:
        model.params[name][...] *= 12
    generation = Generation(model)
    generation.feed([1, 2, 3])
    generation.next()
    batch = np.arange(2 * T, dtype=np.int32).reshape(2, T) % V
    for _ in range(5):
        model.micro_step(batch, batch[:, ::-1])
        (id,) = generation.next()
        assert id == likeliest(model, generation.ids[:-1])


@pytest.fixture
def answers_ctrl_c():
    """As in a program that is no command; a test may have imported one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_librarys_call_soon_and_the_model_goes_on(model, answers_ctrl_c):
    """In the main thread, where Python runs handlers. Other threads generate on, as they do for any call into C."""
    right, begun = model.generate([1, 2], 2000), time.perf_counter()
    assert model.generate([1, 2], 2000) == right
    whole = 200 * (time.perf_counter() - begun)
    timer, begun = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)), time.perf_counter()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        model.generate([1, 2], 400_000)
    assert time.perf_counter() - begun < whole / 4
    assert model.generate([1, 2], 2000) == right
    found: list[list[int]] = []
    thread = threading.Thread(target=lambda: found.append(model.generate([1, 2], 2000)))
    thread.start()
    thread.join()
    assert found == [right]
