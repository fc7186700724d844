"""pyllmc.nn.GPT makes room for larger batches, and generates."""

from __future__ import annotations

import copy
import gc

import numpy as np
import pytest
import torch
from modules import assert_same, batch, grads, in_engine, make
from test_tokenizer_c import EOT

import pyllmc
from pyllmc import Tokenizer
from pyllmc.base.errors import LlmcError, OutOfMemory
from pyllmc.nn import GPT

# ---- room ----


def test_room_grows_and_nothing_is_lost():
    model, (x, y) = make(), batch(1, 4)
    optimizer = model.configure_optimizers(0.1, 1e-2, (0.9, 0.99), "cpu")
    other = make(B=5, T=12)
    theirs = other.configure_optimizers(0.1, 1e-2, (0.9, 0.99), "cpu")
    params = list(model.parameters())
    for net, opt in ((model, optimizer), (other, theirs)):
        net(x, y)[1].backward()
        opt.step()
        net(*batch(2, 12))[1].backward()  # its gradients are added to those that are there
        opt.step()
        net(*batch(5, 3))[1].backward()
        opt.step()
    assert all(p is q for p, q in zip(params, model.parameters())) and in_engine(model)
    assert_same(grads(model), grads(other), most=1e-6)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters()))
    assert model.engine.step == 3


def test_no_room_for_both_is_room_for_the_batch(monkeypatch):
    import pyllmc.nn.gpt as module

    asked = []

    def few(engine, B, T, resized=module.resized):
        asked.append((B, T))
        if B * T > 20:
            raise LlmcError("no memory")
        return resized(engine, B, T)

    monkeypatch.setattr(module, "resized", few)
    model = make()
    assert model(*batch(1, 12))[1] > 0 and model(*batch(6, 2))[1] > 0
    assert asked == [(1, 12), (6, 12), (6, 2)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_engine_is_the_same_model_whatever_its_room(precision):
    model = make(precision=precision)
    engine, views, array = model.engine, model.engine.params, model.engine.moments["lnfw"][0]
    optimizer = model.configure_optimizers(0.1, 1e-2, (0.9, 0.99), "cpu")
    for b, t in ((2, 3), (3, 9)):
        model(*batch(b, t))[1].backward()
        optimizer.step()
        assert model.engine is engine and engine.shape == (b, t) and engine.step == b - 1
        assert np.array_equal(views["lnfw"], model.transformer.ln_f.weight.detach())
    assert array.shape == (16,) and not array.any(), "an array keeps the memory that it was taken from"


@pytest.mark.parametrize("copied", [False, True])
def test_documents_stay_separate_whatever_the_room(copied):
    model, (x, y) = make(), batch()
    model.engine.separate_documents(int(x[0, 4]))
    model = copy.deepcopy(model) if copied else model
    other = make(B=3, T=9)
    plain = other(x, y)[1]
    other.engine.separate_documents(int(x[0, 4]))
    assert torch.equal(model(x, y)[1], other(x, y)[1]) and not torch.equal(plain, other(x, y)[1])
    model.engine.separate_documents(None)
    assert torch.equal(model(*batch(4, 12))[1], make(B=4, T=12)(*batch(4, 12))[1])


# ---- texts ----


def texts(**how) -> GPT:
    """A model whose engine has a tokenizer of 33 letters."""
    model = make(**how)
    pieces = [bytes([i]) for i in b"abcdefghijklmnopqrstuvwxyz0123\n>"]
    model.engine.tokenizer_bytes = Tokenizer([*pieces, EOT], "longest", 32).to_bytes()
    return model


def test_a_writer_needs_a_context():
    model = texts()
    for make_one in (pyllmc.Writer, lambda engine: pyllmc.Primer(engine, [("a", "b")])):
        with pytest.raises(pyllmc.InvalidArgument, match=r"1 token at a time.*make it with T=12"):
            make_one(model.engine)
    model(*batch(1, 12))
    assert pyllmc.Writer(model.engine).write("abc", 20) == pyllmc.Writer(texts(T=12).engine).write("abc", 20)


def test_texts_go_on_while_the_room_grows():
    """A text that is being written has its memory still; what is written later has the weights of then."""
    model = texts(T=9)
    writer = pyllmc.Writer(model.engine)
    primer = pyllmc.Primer(writer, [("a", "b")], separator=">", temperature=1.0)
    whole, first = writer.write("abc", 20), primer.answer("c")
    pieces = writer.stream("abc", 20)
    begun = "abc" + next(pieces)
    optimizer = model.configure_optimizers(0.1, 0.5, (0.9, 0.99), "cpu")
    model(*batch(5, 12))[1].backward()
    optimizer.step()
    gc.collect()
    assert begun + "".join(pieces) == whole
    fresh = pyllmc.Primer(model.engine, [("a", "b")], separator=">", temperature=1.0)
    assert primer.answer("c") == fresh.answer("c") != first


# ---- generation ----


def test_generation_is_that_of_the_logits():
    model, (x, _) = make(), batch(2, 3)
    right = x
    for _ in range(8):
        right = torch.cat([right, model(right)[0][:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(x, 8), right)
    torch.manual_seed(3)
    a = model.generate(x, 8, do_sample=True, top_k=5)
    b = model.generate(x, 8, do_sample=True, top_k=5)
    torch.manual_seed(3)
    assert torch.equal(model.generate(x, 8, do_sample=True, top_k=5), a) and not torch.equal(a, b)
    assert a.shape == (2, 11) and a.dtype == torch.long
    assert torch.equal(model.generate(x, 0), x)
    assert model.generate(x, 30).shape == (2, 33), "longer than the context"
    assert np.isin(model.generate(x, 5).numpy(), np.arange(33)).all()


def room_of(model: GPT) -> tuple[int, int]:
    return model._engine._arena.room.B, model._engine._arena.room.T


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_many_prompts_take_turns(monkeypatch, precision):
    model, (x, _) = make(B=7, T=9, precision=precision), batch(7, 3)
    together = model.generate(x, 6, do_sample=True, seed=4)
    monkeypatch.setattr("pyllmc.nn.gpt.AT_ONCE", 2)
    other = make(precision=precision)
    assert torch.equal(other.generate(x, 6, do_sample=True, seed=4), together)
    frugal = make(B=7, T=9, precision=precision, recompute=3)
    assert torch.equal(frugal.generate(x, 6, do_sample=True, seed=4), together)
    assert model.generate(x[:0], 2).shape == (0, 5)


def test_generation_leaves_the_memory_for_training_as_it_is(monkeypatch):
    """The weights are those of now, also one that was moved; a pass that came before needs no second one."""
    model, (x, y) = make(B=3, T=9), batch()
    loss, mark = model(x, y)[1], model._mark
    model.transformer.ln_f.weight.data = torch.full((16,), 2.0)
    made = model.generate(x[:, :3].repeat(2, 1), 9)
    assert room_of(model) == (3, 9) and model._mark == mark
    loss.backward()
    assert torch.equal(made, torch.cat([model.generate(x[:, :3], 9)] * 2))
    assert torch.equal(made[:3, :9], model.generate(x[:, :3], 6)) and room_of(model) == (3, 9)
    assert model._mark > mark, "that fitted the engine's own room"


@pytest.mark.parametrize(("most", "asked"), [(4, [7, 3]), (1, [7, 3, 1]), (0, [7, 3, 1])])
def test_where_memory_is_short_fewer_prompts_go_together(monkeypatch, most, asked):
    import pyllmc.nn.gpt as module

    model, (x, _), tried = make(), batch(7, 3), []
    wanted = model.generate(x, 4)

    def few(engine, B, T, training=True, resized=module.resized):
        tried.append(B)
        assert not training, "it has neither gradients nor moments"
        if B > most:
            raise OutOfMemory("no memory")
        return resized(engine, B, T, training)

    monkeypatch.setattr(module, "resized", few)
    if most:
        assert torch.equal(model.generate(x, 4), wanted)
    else:
        with pytest.raises(OutOfMemory):
            model.generate(x, 4)
    assert tried == asked and room_of(model) == (1, 1)
