"""Freezing by name, and LoRA: gradients against PyTorch in float64, what is frozen stays as it is, and what is refused."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from conftest import BF16_ISAS, DEVICES, ISAS, assert_parity
from test_model import CASES, HYPER, batch_of, isa, make_reference, random_weights  # noqa: F401

import pyllmc
from pyllmc.base.errors import InvalidArgument
from pyllmc.tables import layout

torch = pytest.importorskip("torch")
from pyllmc.parity import yardstick  # noqa: E402
from pyllmc.parity.dropout import KINDS, Dropouts  # noqa: E402

ALL = "qkv,attproj,fc,fcproj"
MODULES = {"qkv": "attn.c_attn", "attproj": "attn.c_proj", "fc": "mlp.c_fc", "fcproj": "mlp.c_proj"}
ALPHA = 5.0
SEED = (3 << 32) + 41  # dropout's


class LoraLinear(torch.nn.Module):
    """PEFT's linear layer, in any type of number: W x + b + alpha / r B (A drop(x))."""

    def __init__(self, base, A, B, drop) -> None:
        super().__init__()
        self.base, self.scale, self.drop = base, ALPHA / len(A), drop
        self.A, self.B = torch.nn.Parameter(torch.from_numpy(A)), torch.nn.Parameter(torch.from_numpy(B))

    def forward(self, x):
        added = torch.nn.functional.linear(torch.nn.functional.linear(self.drop(x), self.A), self.B)
        return self.base(x) + self.scale * added


def random_adapters(config, rank: int, on: str = ALL) -> dict[str, np.ndarray]:
    """By the table's names, with the layers stacked. B is not 0, so that every gradient is seen."""
    rng = np.random.default_rng(3)
    rows = [row for row in layout.table(config, lora_rank=rank) if row.kind == "ADAPTER"]
    shape = {row.name: (config.n_layer, *row.shape) for row in rows if row.name[:-1] in on.split(",")}
    return {name: rng.normal(0, 0.1, s).astype(np.float32) for name, s in shape.items()}


def make_lora(name: str, rank: int, on: str = ALL, **options) -> pyllmc.Model:
    c = CASES[name]
    from test_model import ON

    options = {"lora_rank": rank, "lora_alpha": ALPHA, "lora_on": on, "threads": 2, **ON, **options}
    m = pyllmc.Model(c.config, *c.room, **options)
    for key, value in random_weights(c).items():
        m.params[key] = value
    for key, value in random_adapters(c.config, rank, on).items():
        m.params[key] = value
    return m


def make_torch(name: str, rank: int, on: str = ALL, p: float = 0):
    """The reference with adapters in place of its linear layers, with the masks of the first pass."""
    c, gpt = CASES[name], make_reference(CASES[name])
    adapters, masks = random_adapters(c.config, rank, on), Dropouts(lora=p, seed=SEED)
    for target in on.split(","):
        for l, block in enumerate(gpt.transformer["h"]):
            parent, leaf = MODULES[target].split(".")
            inner = block.get_submodule(parent)
            base = getattr(inner, leaf)
            a, b = (adapters[target + part][l].copy() for part in "AB")
            drop = functools.partial(masks.drop, kind=f"lora_{target}", layer=l)
            setattr(inner, leaf, LoraLinear(base, a, b, drop))
    return gpt


@functools.cache
def expected(name: str, rank: int, on: str = ALL, kind: torch.dtype = torch.float32, p: float = 0):
    """(names, in `kind`, in float64): the loss, the gradient of every adapter, and those of the norms, from PyTorch."""
    batch = [torch.as_tensor(x, dtype=torch.long) for x in batch_of(CASES[name])[:2]]
    weights = torch.from_numpy(batch_of(CASES[name])[2])
    names: list[tuple[str, int]] = []

    def run(k: torch.dtype) -> list[np.ndarray]:
        gpt = make_torch(name, rank, on, p).to(k)
        _, loss = gpt(*batch, weights.to(k))
        loss.backward()
        names.clear()
        found = [loss.detach().double().numpy()]
        for l, block in enumerate(gpt.transformer["h"]):
            for target in on.split(","):
                linear = block.get_submodule(MODULES[target])
                for part in "AB":
                    names.append((target + part, l))
                    found.append(getattr(linear, part).grad.double().numpy())
            names.append(("ln2w", l))
            found.append(block.ln_2.weight.grad.double().numpy())
        return found

    single, double = yardstick.both(run, kind)
    return names, single, double


def step(m: pyllmc.Model, name: str, accumulate: bool = False) -> float:
    inputs, targets, weights = batch_of(CASES[name])
    return m.micro_step(inputs, targets, weights, accumulate=accumulate)


LORA_CASES = [("one_token", 1, ALL), ("odd_tokens", 3, ALL), ("smaller_than_room", 8, ALL), ("banded", 5, ALL),
              ("odd_channels", 2, ALL), ("thirteen_layers", 4, "qkv,fcproj")]  # fmt: skip


@pytest.mark.parametrize("p", [0, 0.3], ids=["", "dropout"])
@pytest.mark.parametrize("name, rank, on", LORA_CASES)
def test_the_gradient_of_every_adapter(isa, name, rank, on, p):  # noqa: F811
    names, single, double = expected(name, rank, on, p=p)
    m = make_lora(name, rank, on, train_only="h.*.ln2w")
    m.set_dropout(lora=p, seed=SEED)
    loss = step(m, name)
    assert m.isa == isa
    assert_parity(np.array(loss), single[0], double[0], "loss")
    for (tensor, layer), s, d in zip(names, single[1:], double[1:]):
        assert_parity(m.grads[tensor][layer], s, d, f"h.{layer}.{tensor}", floor=4 * 2.0**-24)
    first = {key: m.grads[key].copy() for key in m.grads}
    m.micro_steps = 0  # the same masks
    step(m, name, accumulate=True)
    for key, x in first.items():
        assert np.allclose(m.grads[key], 2 * x, rtol=1e-5, atol=1e-7 * np.abs(x).max()), key


@pytest.mark.parametrize("recompute", [1, 2, 3, 4])
@pytest.mark.parametrize("on", [ALL, "qkv", "fc", "attproj,fcproj"])
def test_recompute_gives_the_same_bits(isa, recompute, on):  # noqa: F811
    """So does another number of threads. Every kind of dropout is on."""
    name = "smaller_than_room"
    kept = make_lora(name, 3, on, keep_logits=False)
    again = make_lora(name, 3, on, keep_logits=False, recompute=recompute, threads=recompute)
    for m in kept, again:
        m.set_dropout(0.1, 0.1, 0.1, SEED, lora=0.2)
    assert step(kept, name) == step(again, name)
    assert len(kept.grads) == 2 * len(on.split(",")) * kept.config.n_layer
    for key in kept.grads:
        assert (kept.grads[key] == again.grads[key]).all(), key


def test_only_training_drops():
    """Neither the validation nor generation does; a step does, with other masks each time."""
    name = "banded"
    m, plain = make_lora(name, 4), make_lora(name, 4)
    m.set_dropout(lora=0.3, seed=SEED)
    batch = batch_of(CASES[name])
    assert m.forward(*batch) == plain.forward(*batch)
    assert m.generate([1, 2, 3], 9, temperature=0) == plain.generate([1, 2, 3], 9, temperature=0)
    losses = {step(m, name), step(m, name, accumulate=True), plain.forward(*batch)}
    assert len(losses) == 3
    m.set_dropout()
    assert step(m, name) == step(plain, name)


def test_the_sites_of_dropout_are_apart():
    """Each layer and matrix has masks of its own, and no place of GPT-2's own dropouts."""
    places = [
        Dropouts(lora=0.5, micro_step=i).of(kind, l).place
        for i in (0, 1)
        for kind in KINDS
        for l in range(99)
    ]
    assert len(set(places)) == len(places)


def test_dropout_of_adapters_needs_adapters():
    m = pyllmc.Model(CASES["banded"].config, B=1, T=8)
    with pytest.raises(InvalidArgument, match="lora=0.1 is for adapters, and this model has none"):
        m.set_dropout(lora=0.1)
    with pytest.raises(InvalidArgument, match="lora=1.5 is not in"):
        make_lora("banded", 4).set_dropout(lora=1.5)
    with pytest.raises(
        InvalidArgument, match="--lora_dropout=0.1 drops what adapters read, and there are none"
    ):
        pyllmc.Trainer(lora_dropout=0.1)


@pytest.mark.parametrize("p", [0, 0.3], ids=["", "dropout"])
@pytest.mark.parametrize(
    "name", [*(f"{name}-bf16" for name in BF16_ISAS), *(d for d in DEVICES if "fp32" not in d)]
)
def test_gradients_in_bf16(monkeypatch, name, p):
    """They are as near to the float64 answer as PyTorch's bfloat16, on the whole tensor."""
    monkeypatch.setenv("PYLLMC_ISA", "" if name in DEVICES else name.removesuffix("-bf16"))
    on = {"device": name} if name in DEVICES else {}
    case, rank = "smaller_than_room", 4
    names, single, double = expected(case, rank, ALL, torch.bfloat16, p)
    m = make_lora(case, rank, precision="bf16", **on)
    m.set_dropout(lora=p, seed=SEED)
    step(m, case)
    theirs = next(iter([single])) if isinstance(single, list) else single
    for (tensor, layer), s, d in zip(names, theirs[1:], double[1:]):
        if tensor != "ln2w":
            s = next(iter(s.each())) if isinstance(s, yardstick.Single) else s
            size = np.linalg.norm(d)
            ours, torchs = (np.linalg.norm(x - d) / size for x in (m.grads[tensor][layer], s))
            assert ours <= 2 * torchs + 2.0**-8, f"h.{layer}.{tensor}: {ours:.4f}, PyTorch's {torchs:.4f}"


def weights_of(m: pyllmc.Model) -> dict[str, bytes]:
    return {key: m.params[key].tobytes() for key in m.params}


def take_steps(m: pyllmc.Model, name: str, n: int = 3) -> list[float]:
    losses = []
    for _ in range(n):
        losses.append(step(m, name))
        m.clip_grad_norm(1.0)
        m.update(**HYPER)
    return losses


def test_only_adapters_are_trained(isa):  # noqa: F811
    name = "banded"
    m = make_lora(name, 4)
    before = weights_of(m)
    losses = take_steps(m, name)
    assert losses[-1] < losses[0]
    changed = {key for key, x in weights_of(m).items() if x != before[key]}
    assert changed == {key for key in before if "lora_" in key} == set(m.grads) == set(m.moments)


FROZEN = [
    ("h.1.*,lnf*", {"h.1.", "ln_f"}), ("transformer.h.0.attn.c_attn.weight", {"h.0.attn.c_attn.weight"}),
    ("h.1.mlp.c_fc.bias, lnfb", {"h.1.mlp.c_fc.bias", "ln_f.bias"}), ("wpe", {"wpe"}), ("wte", {"wte"}),
    ("h.0.ln1w", {"h.0.ln_1.weight"}), ("*.ln2b,h.?.attprojw", {"ln_2.bias", "attn.c_proj.weight"}), ("lnfw", {"ln_f.weight"}),
    ("h.1.qkvb", {"h.1.attn.c_attn.bias"}), ("*", {""}),
]  # fmt: skip


@pytest.mark.parametrize("patterns, parts", FROZEN)
def test_train_only(isa, patterns, parts):  # noqa: F811
    """The gradients of what is named have the bits of a training of all; nothing else has one, and nothing else changes."""
    from test_model import ON

    name = "banded"
    c = CASES[name]
    full, some = (pyllmc.Model(c.config, *c.room, threads=2, **ON, train_only=p) for p in ("", patterns))
    for m in (full, some):
        for key, value in random_weights(c).items():
            m.params[key] = value
    named = {key for key in full.params if any(part in key for part in parts)}
    assert set(some.grads) == named and set(full.grads) == set(full.params)
    assert step(full, name) == step(some, name)
    for key in named:
        assert (full.grads[key] == some.grads[key]).all(), key
    norm = np.sqrt(sum((full.grads[key].astype(np.float64) ** 2).sum() for key in named))
    assert some.clip_grad_norm(1e9) == pytest.approx(norm, rel=1e-5)
    before = weights_of(some)
    some.update(**HYPER)
    assert {key for key, x in weights_of(some).items() if x != before[key]} == named


def test_frozen_tensors_have_no_gradient():
    m = pyllmc.Model(CASES["banded"].config, B=1, T=8, train_only="h.1.*")
    assert m.grads["transformer.h.1.attn.c_attn.weight"].shape == (192, 64)
    for block, name, where in (("grads", "wte", "wte"), ("moments", "qkvw", "h.0.qkvw")):
        with pytest.raises(InvalidArgument, match=f"{where} is frozen, so it has no gradient and no moments"):
            getattr(m, block)[name]
    with pytest.raises(InvalidArgument, match="qkvw is frozen"):
        m.grads["qkvw"] = 0
    with pytest.raises(InvalidArgument, match="no tensor 'qkvA' among params"):
        m.params["qkvA"]


def test_memory_follows_what_is_trained():
    from conftest import ffi, lib

    config = ffi.new("llmc_config *", {"maxT": 256, "V": 50257, "L": 12, "NH": 12, "C": 768})

    def plan(**what):
        room, out = (
            ffi.new("llmc_room *", {"B": 4, "T": 256, "training": 1, "recompute": 2, **what}),
            ffi.new("llmc_plan *"),
        )
        assert lib.llmc_plan_memory(config, room, 1, out) == 0
        return out

    full, lora = plan(), plan(lora_rank=8, lora_on=15, lora_alpha=16)
    pattern = ffi.new("char[]", b"h.11.*")
    last = plan(train_only=pattern)
    assert full.trained * 4 == full.grads == full.params and full.moments == 2 * full.grads
    assert lora.trained == 12 * 8 * 16 * 768  # r (C + OC) of four matrices: 4C + 2C + 5C + 5C
    assert last.trained == 12 * 768**2 + 13 * 768
    for p in (lora, last):
        assert p.grads <= 4 * p.trained + 64 and p.moments == 2 * p.grads
    assert lora.total <= 0.45 * full.total


def test_adapters_begin_as_pefts():
    m = pyllmc.Model("gpt-nano", vocab_size=50, B=1, T=8, lora_rank=4, seed=7)
    generator = torch.Generator().manual_seed(7)
    for target in ALL.split(","):
        for l in range(3):
            a = m.params[f"{target}A"][l]
            theirs = torch.empty(a.shape)
            torch.nn.init.kaiming_uniform_(theirs, a=5**0.5, generator=generator)
            assert np.allclose(a, theirs.numpy(), rtol=0, atol=1e-7), (target, l)
        assert not m.params[f"{target}B"].any()
    fresh = pyllmc.Model("gpt-nano", vocab_size=50, B=1, T=8, seed=7)
    for key in fresh.params:
        assert (fresh.params[key] == m.params[key]).all()


def test_a_model_with_adapters_generates_with_them():
    m = make_lora("banded", 4)
    ids = np.arange(10)[None]
    m.forward(ids)
    want = int(m.logits[0, -1].argmax())
    assert m.generate(ids[0], 1, temperature=0) == [want]
    with pytest.raises(InvalidArgument, match="cannot have adapters"):
        make_lora("banded", 4, training=False, weights="int8")


WRONG = [
    ({"train_only": "h.1.qkww"}, "no tensor is called 'h.1.qkww': did you mean h.1.qkvw?"),
    ({"train_only": "h.7.*"}, r"no tensor is called 'h.7.\*': names are wte"),
    ({"train_only": "wpe,lmw"}, "no tensor is called 'lmw'"),
    ({"train_only": " , "}, "holds no pattern"),
    (
        {"train_only": ",".join(["transformer.h.1.mlp.c_fc.weight"] * 65)},
        "train_only has 2079 bytes, and a checkpoint records at most 2047",
    ),
    ({"lora_rank": -1}, r"lora_rank=-1 is not in 0..256"),
    ({"lora_rank": 65}, "lora_rank=65 is more than the model's 64 channels"),
    (
        {"lora_rank": 4, "lora_on": "qkv,mlp"},
        "lora_on: 'mlp' has no adapters: choose among qkv, attproj, fc, fcproj",
    ),
    ({"lora_rank": 4, "lora_on": ""}, "lora_on is empty"),
    ({"lora_rank": 4, "lora_alpha": 0}, "lora_alpha=0 is not > 0"),
]


@pytest.mark.parametrize("options, message", WRONG)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(InvalidArgument, match=message):
        pyllmc.Model(CASES["banded"].config, B=1, T=8, **options)


def test_moments_of_many_names_are_loaded(tmp_path):
    """With the longest list that a checkpoint records."""
    names = ",".join(["transformer.h.1.mlp.c_fc.weight"] * 64)
    m = pyllmc.Model(CASES["banded"].config, B=1, T=8, train_only=names)
    m.forward(np.arange(8)[None], np.arange(1, 9)[None])
    m.backward()
    m.update()
    m.save(tmp_path / "m.ckpt")
    assert pyllmc.Model(tmp_path / "m.ckpt", B=1, T=8, train_only=names).step == 1


def test_every_target_is_listed():
    """The names of options and messages are those of the table."""
    rows = [row.name for row in layout.table(CASES["banded"].config, lora_rank=1) if row.kind == "ADAPTER"]
    assert rows == [target + part for target in ALL.split(",") for part in "AB"]
    assert list(MODULES) == ALL.split(",")
    assert len(ISAS) > 1


def test_moments_of_other_tensors_are_not_taken(tmp_path):
    """They are as many, under a pattern that is as long."""
    config = pyllmc.GPTConfig(80, 16, 2, 2, 16)
    m = pyllmc.Model(config, B=1, T=8, train_only="h.0.*")
    m.micro_step(np.arange(8)[None], np.arange(1, 9)[None])
    m.update(lr=1e-3)
    m.save(tmp_path / "m.ckpt")
    steps = {
        only: pyllmc.Model(tmp_path / "m.ckpt", B=1, T=8, train_only=only).step for only in ("h.0.*", "h.1.*")
    }
    assert steps == {"h.0.*": 1, "h.1.*": 0}
