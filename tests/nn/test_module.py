"""pyllmc.nn.GPT as a torch.nn.Module: the same numbers as PyTorch, in the engine's own memory, by PyTorch's own rules."""

from __future__ import annotations

import copy
import io
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pyllmc import check
from pyllmc.base.errors import BadFile, InvalidArgument, LlmcError, OutOfMemory
from pyllmc.nn import GPT
from pyllmc.tables.layout import GPTConfig

CONFIG = GPTConfig(vocab_size=33, max_seq_len=12, n_layer=2, n_head=2, n_embd=16)
reference = check.load_reference()


def make(**how) -> GPT:
    return GPT(CONFIG, seed=5, threads=2, **how)


def twin(model: GPT):
    """The PyTorch reference with the same weights, in float64."""
    gpt = reference.GPT(CONFIG)
    gpt.load_state_dict({n: p.detach().clone() for n, p in model.named_parameters()})
    return gpt.double()


def batch(b: int = 3, t: int = 9, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randint(33, (2, b, t), generator=g)
    y[0, :2] = -1
    return x, y


def grads(model) -> dict[str, torch.Tensor]:
    return {n: p.grad.double().clone() for n, p in model.named_parameters()}


def assert_same(ours, right, factor: float = 1, most: float = 1e-4) -> None:
    assert ours.keys() == right.keys()
    for name in right:
        off = (ours[name] - factor * right[name]).norm() / (right[name].norm() + 1e-3)
        assert off < most, (name, off)


def in_engine(model: GPT) -> bool:
    return model._gradients.in_place(model._params())


# ---- parameters ----


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_parameters_are_the_engines_memory(precision):
    model = make(precision=precision)
    assert [n for n, _ in model.named_parameters()] == [
        n for n, _ in reference.GPT(CONFIG).named_parameters()
    ]
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.25)
    assert all((model.engine.params[n] == 0.25).all() for n in model.engine.params)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert sum(p.numel() for p in model.parameters()) == model.engine.num_params


def test_seeds():
    torch.manual_seed(1)
    a, b = GPT(CONFIG), GPT(CONFIG)
    torch.manual_seed(1)
    c = GPT(CONFIG)
    wte = [m.transformer.wte.weight for m in (a, b, c)]
    assert torch.equal(wte[0], wte[2]) and not torch.equal(wte[0], wte[1])
    assert torch.equal(make().transformer.wte.weight, make().transformer.wte.weight)


def test_the_layers_compute_what_the_engine_does():
    model, (x, _) = make(), batch()
    assert torch.equal(model.transformer.wte(x), model.transformer.wte.weight[x])
    assert model.transformer.h[1].mlp.c_fc.weight.shape == (64, 16)


@pytest.mark.parametrize("how", ["cuda", "half", "double", "bf16", "shared"])
def test_it_stays_where_and_what_it_is(how):
    model = make()
    assert model.to("cpu") is model and model.float().cpu() is model
    calls = {
        "cuda": lambda: model.to("meta"),  # a device that every build of PyTorch has
        "half": model.half,
        "double": model.double,
        "bf16": lambda: model.to(torch.bfloat16),
        "shared": model.share_memory,
    }
    with pytest.raises(InvalidArgument, match="on the CPU in its own memory.*precision='bf16'"):
        calls[how]()
    assert model(*batch())[1] > 0


# ---- forward and backward ----


def test_logits_loss_and_gradients_are_pytorchs():
    model, (x, y) = make(), batch()
    gpt = twin(model)
    logits, loss = model(x, y)
    right_logits, right_loss = gpt(x, y)
    assert torch.allclose(logits.double(), right_logits, atol=1e-5)
    assert loss.shape == () and abs(loss - right_loss) < 1e-5
    loss.backward()
    right_loss.backward()
    assert_same(grads(model), grads(gpt))
    assert in_engine(model)


def test_without_targets():
    model, (x, _) = make(), batch()
    logits, loss = model(x)
    assert loss is None and logits.shape == (3, 9, 33)
    kept = logits.detach().clone()
    model(x.flip(0))
    assert torch.equal(logits, kept), "logits are the caller's own"


def test_minus_100_is_ignored_too():
    model, (x, y) = make(), batch()
    assert torch.equal(model(x, y)[1], model(x, y.masked_fill(y == -1, -100))[1])


def test_loss_weights():
    model, (x, y) = make(), batch()
    w = torch.rand(x.shape)
    gpt = twin(model)
    for net in (model, gpt):
        net(x, y, w)[1].backward()
    assert_same(grads(model), grads(gpt))


@pytest.mark.parametrize("factor", [1 / 3, 3.0, 65536.0, 0.0])
def test_the_gradient_that_arrives_is_a_scale(factor):
    model, (x, y) = make(), batch()
    model(x, y)[1].backward()
    right = grads(model)
    model.zero_grad()
    (model(x, y)[1] * factor).backward()
    assert_same(grads(model), right, factor)


LOSSES = {
    "smoothed": lambda l, y, loss: F.cross_entropy(l.flatten(0, 1), y.flatten(), ignore_index=-1, label_smoothing=0.3),
    "one_position": lambda l, y, loss: l[:, -1].logsumexp(-1).sum(),
    "beside_ours": lambda l, y, loss: loss / 2 + 1e-2 * l.square().mean(),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("again", [False, True])
def test_a_loss_of_ones_own(name, again):
    model, (x, y) = make(), batch()
    gpt = twin(model)
    for net in (model, gpt):
        for _ in range(1 + again):
            logits, loss = net(x, y)
            LOSSES[name](logits, y, loss).backward()
    assert_same(grads(model), grads(gpt))
    assert in_engine(model)


def test_a_loss_of_ones_own_in_bf16():
    model, (x, y) = make(precision="bf16"), batch()
    gpt = twin(model)
    for net in (model, gpt):
        LOSSES["smoothed"](*net(x, y)[:1], y, None).backward()
    assert_same(grads(model), grads(gpt), most=5e-2)


def test_gradients_add_up_until_they_are_zeroed():
    model, (x, y) = make(), batch()
    model(x, y)[1].backward()
    right = grads(model)
    for set_to_none in (False, True):
        for n in (2, 3):
            model(x, y)[1].backward()
            assert_same(grads(model), right, n)
        assert in_engine(model)
        model.zero_grad(set_to_none=set_to_none)
        model(x, y)[1].backward()
        assert_same(grads(model), right, 1)


def test_passes_in_any_order():
    """Two passes, a sampling and more room come between a forward pass and its backward pass."""
    model, (x, y) = make(), batch()
    a, (x2, y2) = model(x, y)[1], batch(5, 12, seed=1)
    b = model(x2, y2)[1]
    model.generate(x[:1], 3)
    (a + 2 * b).backward()
    gpt = twin(model)
    (gpt(x, y)[1] + 2 * gpt(x2, y2)[1]).backward()
    assert_same(grads(model), grads(gpt))
    loss = model(x, y)[1]
    loss.backward(retain_graph=True)
    loss.backward()
    (2 * gpt(x, y)[1]).backward()
    assert_same(grads(model), grads(gpt))


def test_a_second_backward_is_an_error_as_in_pytorch():
    """It would add the same gradients once more, unseen."""
    gpt, (x, y) = make(), batch()
    loss = gpt(x, y)[1]
    loss.backward()
    once = grads(gpt)
    with pytest.raises(RuntimeError, match="backward through the graph a second time.*retain_graph=True"):
        loss.backward()
    assert_same(grads(gpt), once, most=1e-12)


def test_a_batch_without_targets_changes_nothing():
    """Its loss is 0, where PyTorch's cross_entropy is NaN."""
    gpt, (x, y) = make(), batch()
    logits, loss = gpt(x, torch.full_like(y, -1))
    assert loss == 0 and F.cross_entropy(logits.flatten(0, 1), torch.full((y.numel(),), -100)).isnan()
    loss.backward()
    assert all(not p.grad.any() for p in gpt.parameters())


def test_parameters_that_changed_in_between_are_an_error():
    model, (x, y) = make(), batch()
    loss = model(x, y)[1]
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(2)
    with pytest.raises(InvalidArgument, match="changed between forward and backward"):
        loss.backward()


def test_gradients_of_a_call_leave_grad_alone():
    model, (x, y) = make(), batch()
    params = list(model.parameters())
    first = torch.autograd.grad(model(x, y)[1], params)
    assert all(p.grad is None for p in params)
    kept = [g.clone() for g in first]
    (2 * model(x, y)[1]).backward()
    assert all(torch.equal(a, b) for a, b in zip(first, kept)), "those handed out are not written over"
    again = torch.autograd.grad(model(x, y)[1], params)
    for p, a, b in zip(params, first, again):
        assert torch.allclose(a, b, atol=1e-6) and torch.allclose(p.grad, 2 * a, atol=1e-5)


def test_inputs_of_backward():
    model, (x, y) = make(), batch()
    w = model.transformer.wpe.weight
    model(x, y)[1].backward(inputs=[w])
    assert w.grad is not None and model.transformer.wte.weight.grad is None
    once = w.grad.clone()
    model(x, y)[1].backward(inputs=[w])
    assert torch.allclose(w.grad, 2 * once, atol=1e-6)


def test_hooks_see_what_arrives():
    model, (x, y) = make(), batch()
    w, seen, after = model.transformer.wpe.weight, [], []
    model(x, y)[1].backward()
    right = grads(model)
    model.zero_grad()
    w.register_hook(lambda g: seen.append(g.clone()) or 2 * g)
    w.register_post_accumulate_grad_hook(lambda p: after.append(p.grad.clone()))
    for n in (1, 2):
        model(x, y)[1].backward()
        assert torch.allclose(seen[-1].double(), right["transformer.wpe.weight"], atol=1e-6), (
            "only what is new"
        )
        assert torch.allclose(after[-1].double(), 2 * n * right["transformer.wpe.weight"], atol=1e-5)
    others = {n: g for n, g in grads(model).items() if "wpe" not in n}
    assert_same(others, {n: right[n] for n in others}, 2)


def test_frozen_parameters_get_none():
    model, (x, y) = make(), batch()
    model.transformer.wte.requires_grad_(False)
    model(x, y)[1].backward()
    assert model.transformer.wte.weight.grad is None and model.transformer.wpe.weight.grad is not None
    assert isinstance(model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu"), torch.optim.AdamW)
    with torch.no_grad():
        assert not model(x, y)[1].requires_grad
    assert not model.requires_grad_(False)(x, y)[1].requires_grad


def test_micro_step_is_forward_and_backward():
    model, (x, y) = make(), batch()
    loss = model(x, y)[1]
    loss.backward()
    right = grads(model)
    assert torch.equal(model.micro_step(x, y), loss.detach())
    assert_same(grads(model), right, most=1e-6)
    model.zero_grad()
    model.micro_step(x, y)
    assert_same(grads(model), right, most=1e-6)
    assert in_engine(model)


def test_micro_step_writes_over_gradients_that_somebody_holds():
    model, (x, y) = make(), batch()
    model(x, y)[1].backward()
    held, kept = model.transformer.wpe.weight.grad, model.transformer.wpe.weight.grad.clone()
    model.zero_grad(set_to_none=True)
    model.micro_step(x.flip(0), y)
    assert torch.equal(held, model.transformer.wpe.weight.grad) and not torch.equal(held, kept)


def test_without_logits():
    model, (x, y) = make(keep_logits=False), batch()
    logits, loss = model(x, y)
    assert logits is None
    loss.backward()
    whole = make()
    whole(x, y)[1].backward()
    assert_same(grads(model), grads(whole), most=1e-6)
    with pytest.raises(InvalidArgument, match="made without the logits"):
        model(x)


@pytest.mark.parametrize(
    ("idx", "words"),
    [
        (torch.zeros(1, 13, dtype=torch.long), "13 tokens, but the model knows 12"),
        (torch.zeros(4, dtype=torch.long), "a LongTensor"),
        (torch.zeros(1, 4), "a LongTensor"),
        ([[1, 2]], "not list"),
        (torch.full((1, 4), 33), "not in 0..32"),
        (None, "needs idx"),
    ],
)
def test_what_is_refused(idx, words):
    with pytest.raises(InvalidArgument, match=words):
        make()(idx)


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


# ---- parameters that are changed from outside ----


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_change_in_place_counts(precision):
    model, (x, y) = make(precision=precision), batch()
    before = model(x, y)[1]
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(3)
    changed = model(x, y)[1]
    assert abs(changed - twin(model)(x, y)[1]) < 0.05 and abs(changed - before) > 0.1
    model.transformer.ln_f.weight.data.div_(3)  # PyTorch does not count this change
    assert torch.equal(model(x, y)[1], before)
    assert model.generate(x, 3).tolist() == make(precision=precision).generate(x, 3).tolist()


def test_a_parameter_that_was_moved_comes_back():
    model, (x, y) = make(), batch()
    p = model.transformer.ln_f.weight
    p.data = torch.full((16,), 2.0)
    model.transformer.wpe.weight = torch.nn.Parameter(torch.ones(12, 16))
    assert abs(model(x, y)[1] - twin(model)(x, y)[1]) < 1e-5
    assert (model.engine.params["transformer.ln_f.weight"] == 2).all()
    torch.nn.utils.vector_to_parameters(
        torch.full((sum(q.numel() for q in model.parameters()),), 0.5), model.parameters()
    )
    assert abs(model(x, y)[1] - math.log(33)) < 1e-3
    model.transformer.wpe.weight = torch.nn.Parameter(torch.ones(13, 16))
    with pytest.raises(InvalidArgument, match=r"wpe.weight \(13, 16\) on cpu does not fit \(12, 16\)"):
        model(x, y)
    del model.transformer.wpe.weight
    with pytest.raises(InvalidArgument, match="without a plain parameter"):
        model(x, y)


# ---- state dicts, copies ----


def conv1d(state):
    matrices = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {n: x.t().contiguous() if n.endswith(matrices) else x for n, x in state.items()}


def of_2020(state):
    """The names and shapes of minGPT in 2020."""
    found = {}
    for name, x in state.items():
        name = (
            name.replace("transformer.", "")
            .replace("lm_head", "head")
            .replace("h.", "blocks.", name.count(".h."))
        )
        name = name.replace("wte.", "tok_emb.").replace("ln_1", "ln1").replace("ln_2", "ln2")
        name = (
            name.replace("attn.c_proj", "attn.proj")
            .replace("mlp.c_fc", "mlp.0")
            .replace("mlp.c_proj", "mlp.2")
        )
        if name == "wpe.weight":
            found["pos_emb"] = x[None]
        elif "c_attn" in name:
            for part, piece in zip(("query", "key", "value"), x.chunk(3)):
                found[name.replace("c_attn", part)] = piece
        else:
            found[name] = x
    return found


def test_a_state_dict_has_gpt2s_names_and_shapes():
    state = make().state_dict()
    assert list(state)[-1] == "lm_head.weight" and state["lm_head.weight"].shape == (33, 16)
    assert state["transformer.h.0.attn.c_attn.weight"].shape == (48, 16)
    file = io.BytesIO()
    torch.save(state, file)
    assert file.tell() < 4 * make().engine.num_params + 20_000, "each tensor is written once, without padding"


@pytest.mark.parametrize(
    "change",
    {
        "its_own": dict,
        "without_prefix": lambda s: {
            n.replace("transformer.", ""): x for n, x in s.items() if "lm_head" not in n
        },
        "compiled": lambda s: {f"_orig_mod.module.{n}": x for n, x in s.items()},
        "transformers": lambda s: {**conv1d(s), "transformer.h.0.attn.bias": torch.ones(1, 1, 12, 12)},
        "half": lambda s: {n: x.half() for n, x in s.items()},
        "mingpt_of_2020": of_2020,
    }.items(),
    ids=lambda change: change[0],
)
@pytest.mark.filterwarnings("ignore:.*computes GELU exactly")
def test_state_dicts_that_load(change):
    source, model, (x, y) = make(), GPT(CONFIG, seed=6), batch()
    assert model.load_state_dict(change[1](source.state_dict()), assign=True).missing_keys == []
    most = 1e-3 if change[0] == "half" else 0
    assert (model(x, y)[1] - source(x, y)[1]).abs() <= most


def test_transformers_weights_compute_the_same():
    transformers = pytest.importorskip("transformers")
    sizes = transformers.GPT2Config(vocab_size=33, n_positions=12, n_layer=2, n_head=2, n_embd=16)
    theirs, model, (x, _) = transformers.GPT2LMHeadModel(sizes).eval(), make(), batch()
    model.load_state_dict(theirs.state_dict())
    assert torch.allclose(model(x)[0], theirs(x).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("transformer.wpe.weight"), "lacks transformer.wpe.weight"),
        (lambda s: s.update(extra=torch.ones(1)), "has extra|has transformer.extra"),
        (
            lambda s: s.update({"lm_head.weight": torch.ones(33, 16)}),
            "an lm_head.weight that is not the embedding",
        ),
        (
            lambda s: s.update({"transformer.wpe.weight": torch.ones(9, 16)}),
            "max_seq_len=9, but the model 12",
        ),
        (lambda s: s.update({"transformer.ln_f.bias": torch.full((16,), math.nan)}), "is nan"),
        (lambda s: s.clear(), "has no tensor of a GPT-2: pass that of a whole model"),
    ],
)
def test_state_dicts_that_do_not(change, words):
    model, state = make(), make().state_dict()
    change(state)
    with pytest.raises((BadFile, LlmcError), match=words):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError):
        model.load_state_dict({"transformer.wpe.weight": torch.ones(2, 2)}, strict=False)
    with pytest.raises(TypeError, match="dict-like"):  # PyTorch's
        model.load_state_dict(None)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_compute_the_same_and_share_nothing(how):
    model = make(precision="bf16", keep_logits=True)
    model.engine.tokenizer_bytes = b"a tokenizer"
    model.own = torch.nn.Linear(2, 2)
    model.transformer.wte.requires_grad_(False)
    model.eval()
    x, y = batch()
    if how == "deepcopy":
        made = copy.deepcopy(model)
    elif how == "pickle":
        made = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, file := io.BytesIO())
        made = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert torch.equal(made(x, y)[1], model(x, y)[1]) and not made.training
    assert not made.transformer.wte.weight.requires_grad and made.transformer.wpe.weight.requires_grad
    assert torch.equal(made.own.weight, model.own.weight)
    assert made.engine.tokenizer_bytes == model.engine.tokenizer_bytes == b"a tokenizer"
    assert repr(made.engine) == repr(model.engine)
    with torch.no_grad():
        made.transformer.wpe.weight.zero_()
    assert model.transformer.wpe.weight.abs().max() > 0
    averaged = torch.optim.swa_utils.AveragedModel(make())
    averaged.update_parameters(make())
    assert averaged(x, y)[1] > 0


class Scored(GPT):
    """A subclass with a layer, a parameter and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.score = torch.nn.Sequential(torch.nn.Linear(16, 2), torch.nn.BatchNorm1d(2))
        self.scale = torch.nn.Parameter(torch.rand(3))
        self.register_buffer("seen", torch.rand(2))


@pytest.mark.parametrize("change", [dict, conv1d, of_2020])
@pytest.mark.filterwarnings("ignore:.*computes GELU exactly")
def test_a_subclass_loads_what_it_has_of_its_own(change):
    source, model = Scored(), Scored()
    own = {n: x for n, x in source.state_dict().items() if not n.startswith(("transformer", "lm_head"))}
    theirs = {n: x for n, x in source.state_dict().items() if n not in own}
    assert len(own) == 9
    loaded = model.load_state_dict({**own, **change(theirs)})
    assert loaded.missing_keys == loaded.unexpected_keys == []
    for name, x in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], x), name
    assert torch.equal(model(*batch())[1], source(*batch())[1])
    for wrong, words in (
        ({}, r"Missing key\(s\).*score.0.weight"),
        ({**own, "score.2.weight": own["scale"]}, r"Unexpected key\(s\).*score.2.weight"),
        ({**own, "scale": torch.ones(4)}, "size mismatch for scale"),
    ):
        with pytest.raises(RuntimeError, match=words):
            model.load_state_dict({**theirs, **wrong})


def test_a_checkpoint_of_it_is_the_engines(tmp_path):
    """And of a copy: both are from the same file, and find the tokenizer beside it."""
    model, (x, y) = make(), batch()
    model.save(tmp_path / "x.ckpt")
    read = GPT(tmp_path / "x.ckpt")
    assert torch.equal(read(x, y)[1], model(x, y)[1])
    made = copy.deepcopy(read)
    assert made.engine._source == read.engine._source == str(tmp_path / "x.ckpt")
    assert f"from {tmp_path / 'x.ckpt'}" in repr(made.engine)


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


# ---- a head of its own ----


def test_an_untied_model():
    """Its gradients are PyTorch's; each of the four kinds of state dict finds its head, or is refused."""
    sizes = replace(CONFIG, untied=True)
    model, (x, y) = GPT(sizes, seed=5), batch()
    assert model.lm_head.weight is not model.transformer.wte.weight
    gpt = reference.GPT(sizes)
    gpt.load_state_dict({n: p.detach().clone() for n, p in model.named_parameters()})
    for net in (model, gpt.double()):
        net(x, y)[1].backward()
    assert_same(grads(model), grads(gpt))
    assert "lm_head.weight" in grads(model) and in_engine(model)
    other = GPT(sizes, seed=6)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x, y)[1], model(x, y)[1])
    assert torch.equal(copy.deepcopy(other)(x, y)[1], model(x, y)[1])
    tied = make()
    other.load_state_dict(tied.state_dict())
    assert torch.equal(other(x, y)[1], tied(x, y)[1])
    with pytest.raises(BadFile, match="untied=True"):
        tied.load_state_dict(model.state_dict())


# ---- dropout ----

DROPS = {"embd_pdrop": 0.2, "attn_pdrop": 0.3, "resid_pdrop": 0.1}


def dropping(seed: int) -> tuple[GPT, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    sizes = GPTConfig(max_seq_len=7, vocab_size=11, n_layer=2, n_head=2, n_embd=12)
    return GPT(sizes, B=3, T=7, **DROPS), *torch.randint(0, 11, (2, 3, 7))


def test_each_pass_in_training_drops_something_else_and_none_in_evaluation_does():
    model, x, y = dropping(1)
    losses = [model(x, y)[1].item() for _ in range(3)]
    assert len(set(losses)) == 3
    model.eval()
    kept = [model(x, y)[1].item() for _ in range(2)]
    assert kept[0] == kept[1] not in losses
    model.train()
    assert model(x, y)[1].item() not in (*losses, *kept)
    again = dropping(1)[0]
    assert [again(x, y)[1].item() for _ in range(3)] == losses, "torch.manual_seed decides"


def test_gradients_belong_to_the_masks_of_their_own_pass():
    """Also if another pass came between, so that the first one must be run again."""
    model, x, y = dropping(2)
    engine, draw = model.engine, model._next_draw + 1
    _, loss = model(x, y)
    _, later = model(x.flip(0), y)
    loss.backward()
    found = [p.grad.clone() for p in model.parameters()]
    engine.set_dropout(embd=0.2, attn=0.3, resid=0.1, seed=draw)
    assert engine.micro_step(x.numpy(), y.numpy(), accumulate=False) == loss.item() != later.item()
    for grad, p in zip(found, model.parameters()):
        assert torch.equal(grad, p.grad), "the same memory, written by the engine's own pass"


def test_a_fused_step_drops_only_in_training():
    model, x, y = dropping(3)
    assert model.micro_step(x, y) != model.micro_step(x, y)
    model.eval()
    assert model.micro_step(x, y) == model.micro_step(x, y) == model(x, y)[1]


@pytest.mark.parametrize("p", [1.0, -0.1, float("nan")])
def test_a_rate_that_cannot_be_is_refused(p):
    with pytest.raises(InvalidArgument, match="attn"):
        GPT("gpt-nano", vocab_size=9, attn_pdrop=p)


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch knows the device")
def test_a_device_that_pytorch_has_not_is_refused_in_one_line():
    model = GPT("gpt-nano", vocab_size=9)
    for move in (model.cuda, lambda: model.to("cuda:0")):
        with pytest.raises(InvalidArgument, match="computes on the CPU"):
            move()
