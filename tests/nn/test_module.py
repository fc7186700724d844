"""pyllmc.nn.GPT as a torch.nn.Module: the same numbers as PyTorch, in the engine's own memory, by PyTorch's own rules."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from modules import CONFIG, assert_same, batch, grads, in_engine, make, reference, twin
from torch.nn import functional as F

from pyllmc.base.errors import InvalidArgument
from pyllmc.nn import GPT
from pyllmc.tables.layout import GPTConfig

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


@pytest.mark.parametrize("how", ["cuda", "half", "double", "bf16"])
def test_it_stays_where_and_what_it_is(how):
    model = make()
    assert model.to("cpu") is model and model.float().cpu() is model
    calls = {
        "cuda": lambda: model.to("meta"),  # a device that every build of PyTorch has
        "half": model.half,
        "double": model.double,
        "bf16": lambda: model.to(torch.bfloat16),
    }
    with pytest.raises(InvalidArgument, match="on the CPU in its own memory.*precision='bf16'"):
        calls[how]()
    with pytest.raises(InvalidArgument, match="its own memory, which processes cannot share: pass each"):
        model.share_memory()
    assert model(*batch())[1] > 0


@pytest.mark.parametrize("kind", ["loss", "logits", "generate"])
def test_threads_that_share_a_model_get_their_own_numbers(kind):
    """Each computes what it would alone: their calls wait for each other."""

    def computed(x, y):
        if kind == "generate":
            return model.generate(x, 3).tolist()
        logits, loss = model(x, y)
        return loss.item() if kind == "loss" else logits.sum().item()

    model, batches = make(B=3, T=12), [batch(seed=seed) for seed in (1, 2)]
    wanted = [computed(*one) for one in batches]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda i: computed(*batches[i % 2]), range(400)))
    assert found == wanted * 200


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


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_targets_of_any_integers(dtype):
    """In bytes -1 is 255 and -100 is 156, which are ids."""
    model, z = GPT(dataclasses.replace(CONFIG, vocab_size=256), seed=5), torch.tensor([[156, 255, 3, 156]])
    wanted = model(z, z)[1]
    assert torch.equal(model(z.to(dtype), z.to(dtype))[1], wanted)
    assert torch.equal(model.micro_step(z.to(dtype), z.to(dtype)), wanted.detach())
    assert torch.equal(model(input_ids=z, labels=z.to(dtype))["loss"], model(input_ids=z, labels=z)["loss"])


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


def test_a_hook_sees_what_is_new_where_gradients_are_the_engines():
    """The engine could add to each .grad by itself, without a word to the hook."""
    model, (x, y) = make(), batch()
    model.micro_step(x, y)
    w, seen = model.transformer.wpe.weight, []
    once = w.grad.clone()
    w.register_hook(lambda g: seen.append(g.clone()))
    model(x, y)[1].backward()
    assert len(seen) == 1 and torch.allclose(seen[0], once, atol=1e-6)
    assert torch.allclose(w.grad, 2 * once, atol=1e-6)


def test_a_gradient_that_is_put_in_the_place_of_the_engines_counts():
    model, (x, y) = make(), batch()
    model(x, y)[1].backward()
    still, moving = model.transformer.wpe.weight, model.transformer.ln_f.bias
    before = still.detach().clone(), moving.detach().clone()
    still.grad = torch.zeros_like(still)
    model.update(lr=0.1, weight_decay=0.0)
    assert torch.equal(still, before[0]) and not torch.equal(moving, before[1])


def test_a_change_of_any_parameter_before_backward_is_noticed():
    """Also of one that was changed less often than others."""
    model, (x, y) = make(), batch()
    with torch.no_grad():
        for _ in range(3):
            model.transformer.wpe.weight.mul_(1.0)
    loss = model(x, y)[1]
    with torch.no_grad():
        model.transformer.ln_f.bias.add_(1.0)
    with pytest.raises(InvalidArgument, match="parameters were changed between forward and backward"):
        loss.backward()


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


def test_micro_step_refuses_frozen_parameters():
    model = make()
    model.transformer.wte.requires_grad_(False)
    with pytest.raises(InvalidArgument, match="1 are frozen: call model"):
        model.micro_step(*batch())
    assert all(p.grad is None for p in model.parameters())


def test_transformers_manner_calls_hooks_once():
    model, (x, _), seen = make(), batch(), []
    model.register_forward_hook(lambda net, args, out: seen.append(type(out)))
    model(input_ids=x)
    assert seen == [dict]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_learns_the_same(backend):
    model, other = make(), make()
    for net in (torch.compile(model, backend=backend), other):
        net(*batch())[1].backward()
    assert_same(grads(model), grads(other), most=1e-6)


def test_memory_made_in_inference_mode_is_for_training_too():
    with torch.inference_mode():
        model = make()
        model(*batch(1, 2))
    model.micro_step(*batch(1, 2))
    with torch.inference_mode():
        model(*batch(4, 9))  # the room grows
    model.clip_grad_norm_(1.0)
    model(*batch())[1].backward()
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


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([[1.0]], "weights: a FloatTensor .* not list"),
        (torch.ones(3), r"weights: .* not torch.float32 \(3,\)"),
        (torch.ones(3, 8), r"weights \(3, 8\) and inputs \(3, 9\) differ"),
    ],
)
def test_loss_weights_that_are_refused(weights, words):
    model, (x, y) = make(), batch()
    with pytest.raises(InvalidArgument, match=words):
        model(x, y, weights)
    halves = torch.rand(3, 9).bfloat16()
    assert torch.equal(model(x, y, halves)[1], model(x, y, halves.float())[1])


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
