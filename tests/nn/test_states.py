"""The weights of pyllmc.nn.GPT: changed from outside, as state dicts of every kind, copied, with a head of their own."""

from __future__ import annotations

import copy
import io
import math
import pickle
from dataclasses import replace

import pytest
import torch
from modules import CONFIG, assert_same, batch, grads, in_engine, make, reference, twin

from pyllmc.base.errors import BadFile, InvalidArgument, LlmcError
from pyllmc.nn import GPT

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


def test_tensors_that_only_take_a_parameters_place_are_refused():
    """torch.func.functional_call would otherwise write over the weights for good."""
    model, (x, y) = make(), batch()
    before = model(x, y)[1]
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    with pytest.raises(InvalidArgument, match="place of transformer.wte.weight.*copy.deepcopy of the model"):
        torch.func.functional_call(model, zeros, (x, y))
    assert torch.equal(model(x, y)[1], before)


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
    for values in state.values():
        values += 1
    change(state)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises((BadFile, LlmcError), match=words):
        model.load_state_dict(state)
    assert all(map(torch.equal, model.parameters(), before)), "what is refused changes nothing"
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


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_an_optimizer_that_is_copied_along_trains_the_copy(how):
    model = make()
    model.own = torch.nn.Linear(16, 33, bias=False)
    model.own.weight = model.transformer.wte.weight
    made, optimizer = how((model, torch.optim.SGD(model.parameters(), lr=0.1)))
    assert made.own.weight is made.transformer.wte.weight is made.lm_head.weight
    before = [p.clone() for p in made.parameters()]
    made(*batch())[1].backward()
    optimizer.step()
    assert not any(map(torch.equal, made.parameters(), before))
    assert all(map(torch.equal, model.parameters(), before)) and copy.copy(model)(*batch())[1] > 0
    assert all(map(torch.equal, model.parameters(), before))


def loss_of(model, there):
    there.put(model(*batch())[1].item())


def test_a_spawned_process_gets_a_copy():
    model, context = make(), torch.multiprocessing.get_context("spawn")
    loss = model(*batch())[1].item()
    there = context.SimpleQueue()
    process = context.Process(target=loss_of, args=(model, there))
    process.start()
    assert there.get() == loss
    process.join()


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
            model.load_state_dict({**{n: x + 1 for n, x in theirs.items()}, **wrong})
        assert torch.equal(model.transformer.wte.weight, source.transformer.wte.weight)


def test_a_checkpoint_of_it_is_the_engines(tmp_path):
    """And of a copy: both are from the same file, and find the tokenizer beside it."""
    model, (x, y) = make(), batch()
    model.save(tmp_path / "x.ckpt")
    read = GPT(tmp_path / "x.ckpt")
    assert torch.equal(read(x, y)[1], model(x, y)[1])
    made = copy.deepcopy(read)
    assert made.engine._source == read.engine._source == str(tmp_path / "x.ckpt")
    assert f"from {tmp_path / 'x.ckpt'}" in repr(made.engine)


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
