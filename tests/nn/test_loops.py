"""Any loop of PyTorch's world trains a pyllmc.nn.GPT: optimizers, schedulers, clipping, scalers, accelerate, transformers."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from modules import CONFIG, batch, make, twin

from pyllmc.base.errors import InvalidArgument
from pyllmc.nn import GPT, AdamW

# eps is so large because the gradient of a key's bias is 0 but for rounding, which a small eps would make an update of
HYPER = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-5}


def torchs(model) -> torch.optim.AdamW:
    """PyTorch's AdamW with the groups of the engine's."""
    params = list(model.parameters())
    groups = [
        {"params": [p for p in params if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in params if p.ndim != 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, **HYPER)


def train(model, optimizer, steps: int = 5, clip: float = 0.5, scheduler=None, first: int = 0) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        x, _ = batch(seed=step)
        loss = model(x, (x + 1) % 33)[1]  # the next id up, which can be learnt
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if scheduler:
            scheduler.step()
        losses.append(loss.item())
    return losses


def test_every_pair_of_engine_and_optimizer_learns_the_same():
    right = make()
    gpt = twin(right)
    wanted = train(gpt, torchs(gpt))
    assert train(right, torchs(right)) == pytest.approx(wanted, rel=1e-5)
    ours = make()
    assert train(ours, AdamW(ours, **HYPER)) == pytest.approx(wanted, rel=1e-5)
    assert wanted[-1] < wanted[0]
    for p, q in zip(ours.parameters(), right.parameters()):
        assert torch.allclose(p, q, atol=2e-6)
    padding = ours.engine._arena.flat("params")[33 * 16 : 128 * 16]
    assert not padding.any() and not right.engine._arena.flat("params")[33 * 16 : 128 * 16].any()


def test_in_bf16_pytorchs_optimizer_moves_the_masters():
    model, whole = make(precision="bf16"), make()
    losses = train(model, torchs(model), steps=20)
    assert losses == pytest.approx(train(whole, torchs(whole), steps=20), rel=2e-2)
    assert losses[-1] < losses[0] - 0.1


def test_a_scheduler_sets_the_rate():
    ours, right = make(), make()
    optimizers = AdamW(ours, **HYPER), torchs(right)
    rates = [torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.1) for o in optimizers]
    a, b = (train(m, o, scheduler=r) for m, o, r in zip((ours, right), optimizers, rates))
    assert a == pytest.approx(b, rel=1e-6)
    assert optimizers[0].param_groups[0]["lr"] == pytest.approx(3e-5)


def test_accumulated_and_scaled_losses():
    ours, right = make(), make()
    optimizer, scaler = AdamW(ours, **HYPER), torch.amp.GradScaler("cpu", init_scale=1024.0)
    theirs = torchs(right)
    for seed in (0, 2):
        for k in (seed, seed + 1):
            scaler.scale(ours(*batch(seed=k))[1] / 2).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(ours.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ((right(*batch(seed=seed))[1] + right(*batch(seed=seed + 1))[1]) / 2).backward()
        torch.nn.utils.clip_grad_norm_(right.parameters(), 0.5)
        theirs.step()
        theirs.zero_grad()
    for p, q in zip(ours.parameters(), right.parameters()):
        assert torch.allclose(p, q, atol=2e-6)


def test_the_engines_clipping_is_pytorchs():
    ours, right = make(), make()
    for model in (ours, right):
        model(*batch())[1].backward()
    norm = torch.nn.utils.clip_grad_norm_(right.parameters(), 0.3)
    assert ours.clip_grad_norm_(0.3) == pytest.approx(float(norm), rel=1e-5)
    for p, q in zip(ours.parameters(), right.parameters()):
        assert torch.allclose(p.grad, q.grad, atol=1e-7)


def test_gradients_that_lie_elsewhere_count():
    ours, right = make(), make()
    optimizers = AdamW(ours, **HYPER), torchs(right)
    for model, optimizer in zip((ours, right), optimizers):
        model(*batch())[1].backward()
        for p in model.parameters():
            p.grad = 2 * p.grad
        optimizer.step()
    for p, q in zip(ours.parameters(), right.parameters()):
        assert torch.allclose(p, q, atol=2e-6)


def test_what_the_engines_optimizer_refuses():
    model = make()
    optimizer = AdamW(model, **HYPER)
    before = model.transformer.wte.weight.clone()
    optimizer.step()
    assert torch.equal(model.transformer.wte.weight, before), (
        "without gradients nothing happens, as in PyTorch"
    )
    model(*batch())[1].backward()
    model.transformer.wpe.weight.grad = None
    words = "wpe.weight has no gradient.*use torch.nn.utils.clip_grad_norm_ and torch.optim"
    for step in (optimizer.step, lambda: model.clip_grad_norm_(1.0)):
        with pytest.raises(InvalidArgument, match=words):
            step()
    model(*batch())[1].backward()
    optimizer.param_groups[1]["lr"] = 1.0
    with pytest.raises(InvalidArgument, match="use torch.optim.AdamW"):
        optimizer.step()


def test_the_engines_optimizer_takes_the_model_itself_and_is_not_copied():
    model = make()
    for other in (model.parameters(), torch.nn.Sequential(model)):
        with pytest.raises(InvalidArgument, match="takes the GPT itself, not a .*: AdamW"):
            AdamW(other)
    with pytest.raises(InvalidArgument, match=r"make AdamW\(copy\) of the copied model"):
        copy.deepcopy(AdamW(model))


NAN = math.nan


@pytest.mark.parametrize(
    "given, named, words",
    [
        ((NAN,), {}, "takes minGPT's train config alone.*: learning_rate is missing"),
        ((), {}, "learning_rate is missing"),
        ((0.1, 1e-3), {}, "betas is missing"),
        ((), {"weight_decay": 0.1}, "learning_rate is missing"),
        ((SimpleNamespace(learning_rate=1e-3, betas=(0.9, 0.95)),), {}, "weight_decay is missing"),
        ((), {"weight_decay": 0.1, "lr": 1e-3, "betas": (0.9, 0.95)}, "lr is none of these"),
        ((0.1, 1e-3, (0.9, 0.95), "cpu", 5), {}, "5 is none of these"),
        ((NAN, 1e-3, (0.9, 0.95), "cpu"), {}, "weight_decay=nan is not a finite number"),
        ((0.1, NAN, (0.9, 0.95), "cpu"), {}, "lr=nan is not a finite number"),
        ((0.1, "x", (0.9, 0.95), "cpu"), {}, "lr='x' is not a number"),
        ((0.1, -1, (0.9, 0.95), "cpu"), {}, "lr=-1 is negative"),
        ((0.1, 1e-3, 0.9, "cpu"), {}, "betas=0.9 is not two numbers"),
        ((0.1, 1e-3, (0.9, 1), "cpu"), {}, r"betas=\(0.9, 1\) are not at least 0 and below 1"),
        ((0.1, 1e-3, (0.9, NAN), "cpu"), {}, r"betas\[1\]=nan is not a finite number"),
    ],
)
def test_what_configure_optimizers_refuses(given, named, words):
    """In a line that names what is wrong."""
    with pytest.raises(InvalidArgument, match=words):
        make().configure_optimizers(*given, **named)


@pytest.mark.parametrize("to_torch", [False, True])
def test_an_optimizers_state_goes_on(to_torch):
    """From the engine's to the engine's, or to PyTorch's, whose format it is; and back."""
    whole, first = make(), make()
    wanted = train(whole, o := AdamW(whole, **HYPER), steps=3) + train(whole, o, steps=3, first=3)
    losses = train(first, o := AdamW(first, **HYPER), steps=3)
    second = make()
    second.load_state_dict(first.state_dict())
    other = torchs(second) if to_torch else AdamW(second, lr=1.0)
    other.load_state_dict(o.state_dict())
    losses += train(second, other, steps=2, first=3)
    third = make()
    third.load_state_dict(second.state_dict())
    last = AdamW(third)
    last.load_state_dict(other.state_dict())
    assert last.param_groups[0]["lr"] == HYPER["lr"] and third.engine.step == 5
    losses += train(third, last, steps=1, first=5)
    assert losses == pytest.approx(wanted, rel=1e-6)
    moments = third.engine.moments["wpe"][0].copy()
    last.load_state_dict(last.state_dict())
    assert third.engine.step == 6 and (third.engine.moments["wpe"][0] == moments).all() and moments.any()
    partly = torch.optim.AdamW(third.parameters()).state_dict()
    partly["state"] = {
        0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(33, 16), "exp_avg_sq": torch.ones(33, 16)}
    }
    partly["param_groups"] = AdamW(third).state_dict()["param_groups"]
    with pytest.raises(InvalidArgument, match="lacks the moments"):
        last.load_state_dict(partly)
    assert third.engine.step == 6
    last.load_state_dict(AdamW(make()).state_dict())
    assert third.engine.step == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["state"][5].update(exp_avg=torch.ones(3)), r"no exp_avg \(\d+,( \d+)?\) for a parameter"),
        (lambda s: s["state"][5].pop("exp_avg_sq"), "no exp_avg_sq"),
        (lambda s: s["state"][5]["exp_avg"].fill_(NAN), "exp_avg .* has a number that cannot be: take an earlier"),
        (lambda s: s["state"][5]["exp_avg_sq"].neg_(), "exp_avg_sq .* has a number that cannot be"),
        (lambda s: s["state"][5].update(step=torch.tensor(-1.0)), "a step that cannot be"),
        (lambda s: s["param_groups"][0].update(lr=NAN), "lr=nan is not a finite number"),
        (lambda s: s["param_groups"][0].pop("eps"), "no state of an AdamW of these parameters: KeyError"),
        (lambda s: s["param_groups"].pop(), "no state of an AdamW of these parameters: ValueError"),
        (lambda s: s.clear(), "no state of an AdamW of these parameters: KeyError"),
    ],
)  # fmt: skip
def test_an_optimizers_state_that_is_refused_changes_nothing(change, words):
    source, model = make(), make()
    train(source, o := AdamW(source, **HYPER), steps=2)
    train(model, mine := AdamW(model, lr=1e-3), steps=1)
    change(state := copy.deepcopy(o.state_dict()))
    before = copy.deepcopy(mine.state_dict())
    with pytest.raises(InvalidArgument, match=words):
        mine.load_state_dict(state)
    after = mine.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for i, its in before["state"].items():
        assert all(torch.equal(after["state"][i][name], x) for name, x in its.items())


def test_whose_optimizer_is_configured():
    class Said:
        learning_rate, betas, weight_decay = 1e-3, (0.8, 0.9), 0.2

    model = make()
    mingpts = model.configure_optimizers(Said)
    nanogpts = model.configure_optimizers(
        weight_decay=0.2, learning_rate=1e-3, betas=(0.8, 0.9), device_type="cpu"
    )
    for optimizer, decayed in ((mingpts, 8), (nanogpts, 10)):
        assert [len(group["params"]) for group in optimizer.param_groups] == [decayed, 28 - decayed]
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
        assert optimizer.param_groups[1]["betas"] == (0.8, 0.9)


class Valued(GPT):
    """A subclass with layers of its own, which its loss goes through."""

    def __init__(self) -> None:
        super().__init__(CONFIG, seed=5)
        self.value, self.kind = torch.nn.Linear(33, 1), torch.nn.Embedding(2, 1)

    def forward(self, idx):
        return self.value(super().forward(idx)[0]) + self.kind(idx % 2)


@pytest.mark.parametrize("still", [False, True])
def test_layers_of_ones_own_are_trained(still):
    """And by nanoGPT's rule or minGPT's decay, or not."""
    numbers = {"weight_decay": 0.1, "learning_rate": 1e-2, "betas": (0.9, 0.95)}
    model, (x, _) = Valued(), batch()
    given = ((SimpleNamespace(**numbers),), {}) if still else ((), {**numbers, "device_type": "cpu"})
    optimizer = model.configure_optimizers(*given[0], **given[1])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    decayed = [{id(p) for p in group["params"]} for group in optimizer.param_groups if group["weight_decay"]]
    assert id(model.value.weight) in decayed[0] and len(decayed) == 1
    assert (id(model.kind.weight) in decayed[0]) != still
    assert (id(model.transformer.wpe.weight) in decayed[0]) != still


def test_the_engines_optimizer_refuses_parameters_that_are_not_the_engines():
    """It would leave them what they are."""
    with pytest.raises(InvalidArgument, match=r"not its own, such as one of \(1, 33\): use model.configure"):
        AdamW(Valued())
    optimizer = AdamW(make())
    with pytest.raises(InvalidArgument, match=r"such as one of \(3,\)"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 28
    optimizer.param_groups.clear()
    optimizer.model.transformer.ln_f.bias.requires_grad_(False)
    for call in (
        lambda: AdamW(optimizer.model),
        lambda: optimizer.add_param_group({"params": optimizer.model.parameters()}),
    ):
        with pytest.raises(
            InvalidArgument, match=r"that are frozen, such as one of \(16,\): use model.configure"
        ):
            call()
    assert not optimizer.param_groups


def test_accelerate_trains_it():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = make()
    data = torch.utils.data.TensorDataset(*(x.repeat(4, 1) for x in batch(4)))
    wrapped, optimizer, loader = accelerator.prepare(
        model, torchs(model), torch.utils.data.DataLoader(data, batch_size=4)
    )
    losses = []
    for _ in range(3):
        for x, y in loader:
            with accelerator.accumulate(wrapped):
                loss = wrapped(x, y)[1]
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert accelerator.unwrap_model(wrapped) is model


def test_transformers_trainer_trains_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    x, _ = batch(4)
    data = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in x]
    said = transformers.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, max_steps=6, per_device_train_batch_size=2, learning_rate=1e-2,
        gradient_accumulation_steps=2, report_to=[], logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    model = GPT(CONFIG, seed=5)
    trainer = transformers.Trainer(model=model, args=said, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.2


def test_transformers_manner_of_calling():
    transformers = pytest.importorskip("transformers")
    sizes = transformers.GPT2Config(vocab_size=33, n_positions=12, n_layer=2, n_head=2, n_embd=16)
    theirs, model, (x, _) = transformers.GPT2LMHeadModel(sizes).eval(), make(), batch()
    model.load_state_dict(theirs.state_dict())
    labels = x.masked_fill(x < 5, -100)
    assert model(input_ids=x, labels=labels)["loss"].item() == pytest.approx(
        theirs(x, labels=labels).loss.item(), abs=1e-5
    )
    assert set(model(input_ids=x)) == {"logits"}
    mask = torch.ones_like(x)
    mask[0, 0] = 0
    with pytest.raises(InvalidArgument, match="pad on the right"):
        model(input_ids=x, attention_mask=mask)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"targets": torch.zeros(2, 8)}, "either idx, targets and weights, or, as transformers"),
        ({"input_ids": torch.zeros(2, 8)}, "either idx, targets and weights, or, as transformers"),
        ({"attention_mask": torch.ones(2, 3)}, r"a tensor \(2, 8\), as input_ids, .* not torch.float32 \(2, 3\)"),
        ({"attention_mask": torch.ones(8)}, r"attention_mask: .* not torch.float32 \(8,\)"),
        ({"attention_mask": [[1]]}, "attention_mask: .* not list"),
        ({"labels": [[1]]}, r"labels: a LongTensor \(b, t\) is needed, not list"),
    ],
)  # fmt: skip
def test_what_transformers_manner_refuses(named, words):
    """And what it serves: input_ids without their name."""
    model, (x, _) = make(), batch(2, 8)
    with pytest.raises(InvalidArgument, match=words):
        model(x, **{"labels": x, **named})
    found = model(x, labels=x, attention_mask=torch.ones_like(x))
    assert torch.equal(found["loss"], model(input_ids=x, labels=x)["loss"])


def test_a_decay_that_the_engine_has_not_is_refused_and_changes_nothing():
    model = make()
    optimizer = AdamW(model, **HYPER)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.1
    x, y = batch()
    model(x, y)[1].backward()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(InvalidArgument, match="no decay in its second group"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before)) and model.engine.step == 0


def test_the_steps_of_a_state_go_on_from_the_last_one():
    """PyTorch counts by parameter, and one whose gradient was None has taken fewer."""
    right, ours = make(), make()
    optimizer = torchs(right)
    train(right, optimizer, steps=1)
    next(p for p in right.parameters() if p.ndim == 1).grad = None
    right.lm_head.weight.grad = None
    optimizer.step()
    AdamW(ours, **HYPER).load_state_dict(optimizer.state_dict())
    assert ours.engine.step == 2
