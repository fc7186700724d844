"""Weights in: every kind of file in its exact layout, made here, against the model that wrote it; and all that is wrong."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tfwriter
from test_checkpoint import llmc_file

import pyllmc
from pyllmc import convert, errors
from pyllmc.convert.pytorch import EXACT_GELU, WeightsWarning
from pyllmc.layout import GPTConfig

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parent.parent
CONFIG = GPTConfig(vocab_size=97, max_seq_len=32, n_layer=3, n_head=2, n_embd=16)
pytestmark = pytest.mark.filterwarnings("ignore::pyllmc.convert.pytorch.WeightsWarning")


def randomise(module):
    torch.manual_seed(3)
    with torch.no_grad():
        for name, p in module.named_parameters():
            norm = ".ln" in name or "ln_f" in name
            p.normal_(1.0 if norm and name.endswith("weight") else 0.0, 0.3 if p.ndim > 1 else 0.1)
    return module.eval()


def make_gpt2(config: GPTConfig = CONFIG, **more):
    c = config
    sizes = dict(n_positions=c.max_seq_len, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head)
    return randomise(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=c.vocab_size, bos_token_id=0, eos_token_id=0, **sizes, **more)
        )
    )


@pytest.fixture(scope="module")
def gpt2():
    return make_gpt2()


@pytest.fixture
def folder(gpt2, tmp_path) -> Path:
    gpt2.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def ours_of(hf) -> dict[str, np.ndarray]:
    """GPT2LMHeadModel's parameters by our names and in our orientation."""
    conv1d = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {n: (p.T if n.endswith(conv1d) else p).detach().numpy() for n, p in hf.named_parameters()}


def assert_same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, x in found.items():
        assert x.dtype == np.float32
        assert np.array_equal(x, expected[name]), name


def ids_for(config: GPTConfig) -> np.ndarray:
    return np.random.default_rng(0).integers(0, config.vocab_size, (2, config.max_seq_len))


def logits_of(source, ids) -> np.ndarray:
    model = pyllmc.Model(source, B=len(ids), T=ids.shape[1], training=False)
    model.forward(ids)
    return model.logits.copy()


def assert_parity(source, theirs, config: GPTConfig = CONFIG, atol: float = 2e-5) -> None:
    ids = ids_for(config)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids))
    expected = getattr(expected, "logits", expected).numpy()[..., : config.vocab_size]
    np.testing.assert_allclose(logits_of(source, ids), expected, rtol=1e-4, atol=atol)


def refused(path, reason: str, error=errors.BadFile) -> None:
    """In one line, by load and by Model."""
    for take in (convert.load, lambda p: pyllmc.Model(p, B=1, T=1)):
        with pytest.raises(error, match=reason) as caught:
            take(path)
        assert "\n" not in errors.line_of(caught.value)


# ---- Hugging Face: GPT-2 ----


def test_a_folder(folder, gpt2):
    said: list[str] = []
    config, tensors = convert.load(folder, tell=said.append)
    assert config == CONFIG
    assert_same(tensors, ours_of(gpt2))
    assert list(tensors) == list(pyllmc.Model(CONFIG, B=1, T=1).params)
    assert said == [
        "Hugging Face folder, GPT-2, 3 layers, 2 heads, 16 channels, V=97, T=32, 11,936 parameters"
    ]
    assert convert.detect(folder) == "Hugging Face folder"
    assert_parity(folder, gpt2)
    assert_parity(folder / "model.safetensors", gpt2)


def test_a_folder_trains(folder):
    """The padding of the vocabulary is 0, not what the memory held."""
    model = pyllmc.Model(folder, B=2, T=8)
    ids = ids_for(CONFIG)[:, :8]
    assert np.isfinite(model.forward(ids, ids))
    model.backward()
    model.update()
    assert np.isfinite(model.forward(ids, ids))


@pytest.mark.parametrize("safe", [True, False])
def test_shards(folder, gpt2, tmp_path, safe):
    names = (
        ("model-1.safetensors", "model-2.safetensors")
        if safe
        else ("pytorch_model-1.bin", "pytorch_model-2.bin")
    )
    state, where = gpt2.state_dict(), {}
    state.pop("lm_head.weight")
    for i, file in enumerate(names):
        part = {n: x for k, (n, x) in enumerate(state.items()) if k % 2 == i}
        (safetensors.save_file if safe else torch.save)(part, folder / file)
        where.update(dict.fromkeys(part, file))
    (folder / "model.safetensors").unlink()
    assert_same(convert.load(folder)[1], ours_of(gpt2))  # told by their names
    index = folder / ("model.safetensors.index.json" if safe else "pytorch_model.bin.index.json")
    index.write_text(json.dumps({"weight_map": where}))
    assert_same(convert.load(folder)[1], ours_of(gpt2))
    (folder / names[1]).rename(folder / "elsewhere")
    refused(folder, f"{names[1]} is missing, which .* names", errors.SystemFailure)
    index.write_text(json.dumps({"weight_map": {**where, "x": "../hf/elsewhere"}}))
    refused(folder, "names the file '../hf/elsewhere', which is not in its folder")
    for text in ("{}", '{"weight_map": {"a": 1}}', "[]", "", "{" * 100_000):
        index.write_text(text)
        refused(folder, index.name)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("safe", [True, False])
def test_old_and_new_state_dicts(folder, gpt2, prefix, masks, head, safe):
    state = {}
    for name, x in gpt2.state_dict().items():
        if name == "lm_head.weight":
            continue
        state[prefix + name[len("transformer.") :]] = x.clone()
        if masks and name.endswith("attn.c_attn.bias"):
            stem = prefix + name[len("transformer.") : -len("c_attn.bias")]
            state[stem + "bias"] = torch.ones(1, 1, 32, 32).tril().to(torch.uint8)
            state[stem + "masked_bias"] = torch.tensor(-1e4)
    if head:
        state["lm_head.weight"] = gpt2.transformer.wte.weight.detach().clone()
    save(folder, state, safe)
    assert_same(convert.load(folder)[1], ours_of(gpt2))


def save(folder: Path, state: dict, safe: bool = True) -> None:
    """Instead of what is there."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    if safe:
        safetensors.save_file({n: x.contiguous() for n, x in state.items()}, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin")


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats(folder, gpt2, dtype, safe):
    kind = getattr(torch, dtype)
    save(folder, {n: x.to(kind) for n, x in gpt2.state_dict().items() if n != "lm_head.weight"}, safe)
    expected = {n: torch.from_numpy(x.copy()).to(kind).float().numpy() for n, x in ours_of(gpt2).items()}
    assert_same(convert.load(folder)[1], expected)


def test_pickles_are_told_of(folder, gpt2):
    save(folder, gpt2.state_dict(), safe=False)
    with pytest.warns(WeightsWarning, match="pytorch_model.bin is a pickle"):
        convert.load(folder)
    assert_parity(folder / "pytorch_model.bin", gpt2)


def without(state: dict, *names: str) -> dict:
    return {n: x for n, x in state.items() if n not in names}


LNF, QKV = "transformer.ln_f.bias", "transformer.h.1.attn.c_attn.weight"
WRONG_STATES = {
    "missing": (lambda s: without(s, LNF), rf"lacks {LNF} \(16,\)"),
    "missing layer": (lambda s: {n: x for n, x in s.items() if ".h.2." not in n}, r"lacks transformer.h.2.ln_1.weight"),
    "extra": (lambda s: {**s, "transformer.h.3.x": torch.ones(2)}, r"has transformer.h.3.x \(2,\), which a GPT-2 has not"),
    "shape": (lambda s: {**s, LNF: torch.ones(17)}, rf"{LNF} has the shape \(17,\), expected \(16,\)"),
    "orientation": (lambda s: {**s, QKV: s[QKV].T}, rf"{QKV} has the shape \(48, 16\), expected \(16, 48\)"),
    "int8": (lambda s: {**s, QKV: s[QKV].to(torch.int8)}, f"{QKV} is of I?i?n?t?8, expected one of float32"),
    "untied": (lambda s: {**s, "lm_head.weight": s["transformer.wte.weight"] + 1}, "lm_head.weight is not the embedding"),
    "head shape": (lambda s: {**s, "lm_head.weight": torch.ones(98, 16)}, r"lm_head.weight has the shape \(98, 16\)"),
    "twice": (lambda s: {**s, "ln_f.bias": s[LNF] + 1}, f"has {LNF} twice"),
    "llama": (lambda s: {**s, "model.layers.0.mlp.gate_proj.weight": torch.ones(1)}, "it is a llama, not a GPT-2"),
}  # fmt: skip


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("case", WRONG_STATES)
def test_a_state_that_does_not_fit(folder, gpt2, case, safe):
    change, reason = WRONG_STATES[case]
    state = without({n: x.clone() for n, x in gpt2.state_dict().items()}, "lm_head.weight")
    save(folder, change(state), safe)
    refused(folder, reason)


@pytest.mark.parametrize("value, kind", [(np.nan, "float32"), (np.inf, "bfloat16"), (1e39, "float64")])
def test_numbers_that_are_none(folder, gpt2, value, kind):
    state = without(
        {n: x.to(getattr(torch, kind), copy=True) for n, x in gpt2.state_dict().items()}, "lm_head.weight"
    )
    state[QKV][2, 5] = value
    save(folder, state)
    refused(folder, rf"{QKV}\[5, 2\] is (nan|inf)", errors.NotFinite)


WRONG_CONFIGS = {
    "relu": (dict(activation_function="relu"), "activation_function='relu'"),
    "eps": (dict(layer_norm_epsilon=1e-6), "layer_norm_epsilon"),
    "inner": (dict(n_inner=32), "n_inner=32, expected 64"),
    "scale": (dict(scale_attn_weights=False), "scale_attn_weights"),
    "by layer": (dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
    "untied": (dict(tie_word_embeddings=False), "tie_word_embeddings"),
    "cross": (dict(add_cross_attention=True), "add_cross_attention"),
    "quantized": (dict(quantization_config={"bits": 4}), "quantization_config"),
    "llama": (dict(model_type="llama"), "it is a llama, not a GPT-2"),
    "list": (dict(model_type=["gpt2"]), "not a GPT-2"),
    "heads": (dict(n_head=3), "n_embd=16 is not a multiple of n_head=3"),
    "text": (dict(n_layer="3"), "n_layer='3' is not a whole number"),
    "float": (dict(vocab_size=97.0), "vocab_size=97.0 is not a whole number"),
    "zero": (dict(n_layer=0), "n_layer=0 is not in"),
    "negative": (dict(n_embd=-16), "n_embd=-16 is not in"),
    "huge": (dict(n_layer=2**24, n_embd=2**24, n_head=1), "more than any machine holds"),
    "beyond": (dict(vocab_size=2**70), "vocab_size=1180591620717411303424"),
    "lacks": (dict(n_layer=None), "lacks n_layer"),
    "V": (dict(vocab_size=98), r"wte.weight has the shape \(97, 16\), expected \(98, 16\)"),
}


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_a_config_of_another_computation(folder, case):
    changes, reason = WRONG_CONFIGS[case]
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    refused(folder, reason)


def test_the_same_computation_by_other_words(folder, gpt2):
    path = folder / "config.json"
    said = json.loads(path.read_text())
    said.pop("n_positions")
    said.update(n_ctx=32, n_inner=64, activation_function="gelu_pytorch_tanh")
    path.write_text(json.dumps(said))
    assert_same(convert.load(folder)[1], ours_of(gpt2))


def test_damaged_files(folder, gpt2, tmp_path):
    for safe, name in ((True, "model.safetensors"), (False, "pytorch_model.bin")):
        save(folder, without(gpt2.state_dict(), "lm_head.weight"), safe)
        data = (folder / name).read_bytes()
        for cut in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
            (folder / name).write_bytes(data[:cut])
            refused(folder, f"{name}.* damaged")
        if safe:
            (folder / name).write_bytes(data + b"\0")
            refused(folder, f"{name}.* damaged")
        (folder / name).unlink()
    refused(folder, r"has neither \*.safetensors nor pytorch_model\*.bin")
    for text in ("", "[]", "nonsense", "\xff", "[" * 100_000):
        (folder / "config.json").write_text(text)
        refused(folder, "config.json is not")


# ---- a pickle with code in it ----


class Evil:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


def test_code_in_a_pickle_is_not_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    for name, where in (("ckpt.pt", folder / "ckpt.pt"), ("pytorch_model.bin", folder)):
        torch.save({"a": Evil()}, folder / name)
        refused(where, f"{name} holds code .*mkdir.*, which was not run")
        torch.save({"a": Evil()}, folder / name, pickle_protocol=4)
        refused(where, f"{name} is not what torch.save writes, or damaged")
        (folder / name).write_bytes(pickle.dumps({"a": Evil()}))
        refused(where, f"{name} is not what torch.save writes, or damaged")
    assert not Path("hacked").exists()


@pytest.mark.parametrize(
    "content, reason",
    [
        (torch.ones(3), "holds a Tensor, expected a dict"),
        ([], "holds a list, expected a dict"),
        ({}, "holds a dict, expected"),
        ({"a": 1}, "'a' is a int, no plain tensor"),
        ({1: torch.ones(1)}, "1 is a Tensor, no plain tensor"),
        ({"a": torch.ones(3, 3).to_sparse()}, "no plain tensor"),
        ({"w": torch.ones(1)}, "lacks transformer.wte.weight: it is no GPT-2 that is known here"),
        ({"model": {"layers.0.feed_forward.w1.weight": torch.ones(1)}, "model_args": {"dim": 8}}, "it is a llama"),
        ({"model": {"a": torch.ones(1)}, "model_args": {}}, "model_args lacks vocab_size"),
        ({"tok_emb.weight": torch.tensor(1.0), "pos_emb": torch.ones(1)}, r"tok_emb.weight has the shape \(\)"),
    ],
)  # fmt: skip
def test_other_pickles(tmp_path, content, reason):
    torch.save(content, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", reason)


# ---- GPT-Neo ----


def make_neo(**more):
    config = dict(vocab_size=97, max_position_embeddings=32, hidden_size=16, num_layers=4, num_heads=2)
    config.update(attention_types=[[["global", "local"], 2]], window_size=8, bos_token_id=0, eos_token_id=0)
    return randomise(transformers.GPTNeoForCausalLM(transformers.GPTNeoConfig(**{**config, **more})))


@pytest.mark.parametrize(
    "more, window",
    [
        ({}, 8),
        (dict(attention_types=[[["global"], 4]]), 0),
        (dict(attention_types=[[["global", "local"], 1], [["global"], 1], [["local"], 1]]), 8),
        (dict(intermediate_size=64, window_size=100), 100),
    ],
)
def test_gpt_neo(tmp_path, more, window):
    model, config = make_neo(**more), GPTConfig(97, 32, 4, 2, 16, window)
    model.save_pretrained(tmp_path)
    assert convert.load(tmp_path)[0] == config
    assert_parity(tmp_path, model, config)


@pytest.mark.parametrize(
    "changes, reason",
    [
        (dict(attention_types=[[["local", "global"], 2]]), "global and local must take turns"),
        (
            dict(attention_types=[[["global", "local"], 1], [["local"], 2]]),
            "global and local must take turns",
        ),
        (dict(attention_types=[[["global", "banded"], 2]]), "must take turns|lacks|global"),
        (dict(attention_types=[[["global", "local"], 3]]), "tells 6 layers, num_layers 4"),
        (dict(attention_types="all"), "attention_types is no list"),
        (dict(window_size=-1), "window=-1"),
        (dict(intermediate_size=65), "intermediate_size=65, expected 64"),
        (dict(num_heads=3), "multiple of n_head=3"),
        (dict(activation_function="relu"), "activation_function='relu'"),
    ],
)
def test_another_gpt_neo(tmp_path, changes, reason):
    make_neo().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    refused(tmp_path, reason)


# ---- nanoGPT ----


class Nano(torch.nn.Module):
    """nanoGPT's and minGPT's names on nn.Linear, with its computation."""

    def __init__(self, c: GPTConfig, V: int, bias: bool = True, approximate: str = "none") -> None:
        super().__init__()
        nn, C = torch.nn, c.n_embd
        self.n_head, self.approximate = c.n_head, approximate

        def block():
            return nn.ModuleDict(
                dict(
                    ln_1=nn.LayerNorm(C, bias=bias),
                    attn=nn.ModuleDict(dict(c_attn=nn.Linear(C, 3 * C, bias), c_proj=nn.Linear(C, C, bias))),
                    ln_2=nn.LayerNorm(C, bias=bias),
                    mlp=nn.ModuleDict(dict(c_fc=nn.Linear(C, 4 * C, bias), c_proj=nn.Linear(4 * C, C, bias))),
                )
            )

        blocks = nn.ModuleList(block() for _ in range(c.n_layer))
        wte, wpe = nn.Embedding(V, C), nn.Embedding(c.max_seq_len, C)
        self.transformer = nn.ModuleDict(dict(wte=wte, wpe=wpe, h=blocks, ln_f=nn.LayerNorm(C, bias=bias)))
        self.lm_head = nn.Linear(C, V, bias=False)
        self.lm_head.weight = wte.weight

    def forward(self, ids):
        F, t = torch.nn.functional, self.transformer
        x = t.wte(ids) + t.wpe.weight[: ids.shape[1]]
        for b in t.h:
            q, k, v = (
                y.unflatten(-1, (self.n_head, -1)).transpose(1, 2)
                for y in b.attn.c_attn(b.ln_1(x)).chunk(3, dim=-1)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
            x = x + b.attn.c_proj(y)
            x = x + b.mlp.c_proj(F.gelu(b.mlp.c_fc(b.ln_2(x)), approximate=self.approximate))
        return self.lm_head(t.ln_f(x))


def nanogpt(path: Path, model, V: int, bias: bool = True, prefix: str = "", **more) -> Path:
    args = dict(n_layer=3, n_head=2, n_embd=16, block_size=32, bias=bias, vocab_size=V, dropout=0.0)
    state = {prefix + name: x for name, x in model.state_dict().items()}
    content = {
        "model": state,
        "optimizer": {"state": {}},
        "model_args": args,
        "iter_num": 5,
        "config": {"a": 1},
    }
    torch.save({**content, **more}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt(tmp_path, prefix, bias):
    model = randomise(Nano(CONFIG, 97, bias))
    path, said = nanogpt(tmp_path / "ckpt.pt", model, 97, bias, prefix), []
    config, tensors = convert.load(path, tell=said.append)
    assert config == CONFIG
    state = dict(model.named_parameters())
    for name, x in tensors.items():
        assert np.array_equal(x, state[name].detach().numpy() if name in state else np.zeros_like(x)), name
    assert EXACT_GELU in said[0]
    assert ("without biases" in said[0]) != bias
    model.approximate = "tanh"
    assert_parity(path, model)
    assert_parity(tmp_path, model)  # the folder that nanoGPT calls out_dir
    assert convert.detect(path) == "PyTorch file"


def test_the_exact_gelu_is_near(tmp_path):
    """What the note about it means: the second or third digit after the point."""
    model = randomise(Nano(CONFIG, 97))
    with pytest.warns(WeightsWarning, match="computes GELU exactly"):
        assert_parity(nanogpt(tmp_path / "ckpt.pt", model, 97), model, atol=2e-2)


def test_a_vocabulary_that_was_rounded_up(tmp_path):
    """50304 is GPT-2's 50257 rounded up: what lies past it goes, in the head as well."""
    model = randomise(Nano(CONFIG, 50304, approximate="tanh"))
    path, said = nanogpt(tmp_path / "ckpt.pt", model, 50304), []
    config, tensors = convert.load(path, tell=said.append)
    assert config.vocab_size == 50257
    assert tensors["transformer.wte.weight"].shape == (50257, 16)
    assert "the ids past it are left out" in said[0]
    assert_parity(path, model, config)


def test_nanogpts_that_do_not_fit(tmp_path):
    model, path = randomise(Nano(CONFIG, 97)), tmp_path / "ckpt.pt"
    nanogpt(path, model, 98)
    refused(path, r"wte.weight has the shape \(97, 16\), expected \(98, 16\)")
    nanogpt(path, model, 97, bias=False)
    refused(path, r"has transformer.h.0.ln_1.bias \(16,\), which a GPT-2 has not")
    nanogpt(path, model, 97, model_args={"vocab_size": 97})
    refused(path, "model_args lacks block_size")
    nanogpt(path, model, 97, model_args=[1])
    refused(path, "no plain tensor")
    model.lm_head.weight = torch.nn.Parameter(torch.ones(97, 16))
    nanogpt(path, model, 97)
    refused(path, "lm_head.weight is not the embedding")


# ---- minGPT ----


def mingpt(path: Path, module, **config) -> Path:
    torch.save(module.state_dict(), path)
    if config:
        (path.parent / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    "config",
    [{"n_head": 2}, {"model": {"n_head": 2, "model_type": None}}, {"model": {"model_type": "gpt-nano"}}],
)
def test_mingpt(tmp_path, config):
    nano = config.get("model", {}).get("model_type") == "gpt-nano"
    sizes = GPTConfig(97, 32, 3, 3, 48) if nano else CONFIG
    model = randomise(Nano(sizes, 97, approximate="tanh"))
    path = mingpt(tmp_path / "model.pt", model, **config)
    assert convert.load(path)[0] == sizes
    assert_parity(path, model, sizes)
    assert_parity(tmp_path, model, sizes)


def test_the_heads_of_known_sizes(tmp_path):
    said: list[str] = []
    model = randomise(Nano(GPTConfig(97, 32, 3, 3, 48), 97))
    assert convert.load(mingpt(tmp_path / "model.pt", model), tell=said.append)[0].n_head == 3
    assert "n_head=3 is that of the known model of 3 layers and 48 channels" in said[0]
    refused(
        mingpt(tmp_path / "other.pt", randomise(Nano(CONFIG, 97))),
        "does not tell the number of heads of its 3 layers",
    )


def test_a_bare_state_dict_of_conv1d(tmp_path, gpt2):
    path = mingpt(tmp_path / "gpt2.pt", gpt2, n_head=2)
    assert_same(convert.load(path)[1], ours_of(gpt2))


class Old(torch.nn.Module):
    """minGPT as it was in 2020, in its own names."""

    def __init__(self, new: Nano, tied: bool = True) -> None:
        super().__init__()
        self.new = new
        self.tied = tied

    def state_dict(self):
        state = {}
        for name, x in self.new.state_dict().items():
            name = name.replace("transformer.h.", "blocks.").replace("transformer.", "")
            for a, b in (
                ("ln_1", "ln1"),
                ("ln_2", "ln2"),
                ("attn.c_proj", "attn.proj"),
                ("c_fc", "0"),
                ("mlp.c_proj", "mlp.2"),
            ):
                name = name.replace(a, b)
            if "c_attn" in name:
                for part, y in zip(("query", "key", "value"), x.chunk(3)):
                    state[name.replace("c_attn", part)] = y.clone()
            else:
                state[name] = x
        state["tok_emb.weight"], state["head.weight"] = state.pop("wte.weight"), state.pop("lm_head.weight")
        state["pos_emb"] = state.pop("wpe.weight")[None]
        state["blocks.0.attn.mask"] = torch.ones(1, 1, 32, 32)
        if not self.tied:
            state["head.weight"] = state["head.weight"] + 1
        return state


def test_minGPT_of_2020(tmp_path):
    new, said = randomise(Nano(CONFIG, 97)), []
    path = mingpt(tmp_path / "old.pt", Old(new), n_head=2)
    config, tensors = convert.load(path, tell=said.append)
    assert config == CONFIG
    assert_same(tensors, {n: p.detach().numpy() for n, p in new.named_parameters()})
    assert "minGPT in 2020" in said[0] and EXACT_GELU in said[0]
    refused(mingpt(path, Old(new, tied=False)), "head.weight is not the embedding")


# ---- what the engine reads ----


@pytest.fixture(scope="module")
def block() -> np.ndarray:
    """The padded parameters of a model, as files hold them."""
    from test_checkpoint import block, make

    return block(make(seed=4), "LLMC_PARAMS")


def mixed_file(block: np.ndarray, version: int, norms_last: bool) -> tuple[bytes, np.ndarray]:
    """llm.c's versions 2 and 4: norms in float, the rest in bfloat16; and what comes out of them."""
    from test_checkpoint import CONFIG as SIZES
    from test_checkpoint import make

    model = make()
    rows = {n: r for n, r in model._arena.rows.items() if r.kind == 0}
    expected, pieces = block.copy(), {}
    for name, row in rows.items():
        part = expected[row.offset : row.offset + row.size * max(row.layers, 1)]
        stored = part[: SIZES.vocab_size * SIZES.n_embd] if name == "wte" and version == 2 else part
        if name.startswith("ln"):
            pieces[name] = stored.tobytes()
        else:
            part[:] = (part.view(np.uint32) & 0xFFFF0000).view(np.float32)
            pieces[name] = (stored.view(np.uint32) >> 16).astype("<u2").tobytes()
    order = sorted(pieces, key=lambda n: n.startswith("ln")) if norms_last else list(pieces)
    head = llmc_file(3, block[:0], version=version, Vp=0 if version == 2 else 128)
    return head + b"".join(pieces[name] for name in order), expected


@pytest.mark.parametrize("version, norms_last", [(2, False), (2, True), (4, False)])
def test_llmcs_mixed_versions(tmp_path, block, version, norms_last):
    data, expected = mixed_file(block, version, norms_last)
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    assert convert.detect(path) == f"llm.c model file, version {version} (mixed)"
    model = pyllmc.Model(path, B=1, T=4)
    from test_checkpoint import block as block_of

    assert np.array_equal(block_of(model, "LLMC_PARAMS"), expected)
    for wrong, reason in ((data[:-1], "truncated"), (data + b"\0", "trailing bytes")):
        path.write_bytes(wrong)
        refused(path, reason)


@pytest.mark.parametrize("version", [1, 3, 5])
def test_llmcs_versions(tmp_path, block, version):
    path = tmp_path / "model.bin"
    path.write_bytes(llmc_file(version, block))
    config, tensors = convert.load(path)
    assert config.vocab_size == 37
    expected = (block.view(np.uint32) & 0xFFFF0000).view(np.float32) if version == 5 else block
    assert np.array_equal(tensors["transformer.wte.weight"].ravel(), expected[: 37 * 8])
    assert convert.detect(path).startswith(f"llm.c model file, version {version}")


def test_checkpoints_and_runs(tmp_path):
    model = pyllmc.Model(CONFIG, B=1, T=4, seed=5)
    model.save(tmp_path / "best.ckpt")
    for path in (tmp_path, tmp_path / "best.ckpt"):
        config, tensors = convert.load(path)
        assert config == CONFIG
        assert_same(tensors, dict(model.params))
        assert convert.detect(path) == "pyllmc checkpoint"


def test_openais_checkpoint(tmp_path):
    """As transformers would have it: the same numbers in Conv1D's orientation."""
    config = GPTConfig(97, 32, 12, 2, 16)
    hf, tensors = make_gpt2(config), {}
    for name, x in hf.state_dict().items():
        ours, layer = name.removeprefix("transformer."), None
        if ours.startswith("h."):
            _, layer, ours = ours.split(".", 2)
        if ours in tfwriter.NAMES:
            value = x.numpy()[None] if x.ndim == 2 else x.numpy()
            tensors[f"model/h{layer}/{tfwriter.NAMES[ours]}"] = value
        elif ours in tfwriter.OUTSIDE:
            tensors[f"model/{tfwriter.OUTSIDE[ours]}"] = x.numpy()
    folder = tfwriter.write(tmp_path, dict(sorted(tensors.items())), n_head=2)
    assert_parity(folder, hf, config)
    assert_same(convert.load(folder / "model.ckpt")[1], ours_of(hf))
    assert convert.detect(folder) == "OpenAI TensorFlow checkpoint with its index"


# ---- what is nothing ----


def test_paths(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(2000))
    (tmp_path / "a.h5").write_bytes(b"\x89HDF" + bytes(2000))
    (tmp_path / "a.txt").write_bytes(b"hello" * 1000)
    (tmp_path / "ü").mkdir()
    for name, reason, error in (
        ("empty", "is a folder without weights: expected", errors.BadFile),
        ("ü", "ü is a folder without weights", errors.BadFile),
        ("a.gguf", "is GGUF", errors.BadFile),
        ("a.h5", "is HDF5", errors.BadFile),
        ("a.txt", "something else, not a model file", errors.BadFile),
    ):
        refused(tmp_path / name, reason, error)
        with pytest.raises(error, match=reason):
            convert.detect(tmp_path / name)
    for name in ("none", "", "loop"):
        with pytest.raises((errors.SystemFailure, errors.BadFile)):
            convert.load(str(tmp_path / name))
    if os.getuid():
        (tmp_path / "a.txt").chmod(0)
        refused(tmp_path / "a.txt", "Permission denied", errors.SystemFailure)


def test_the_hub(folder, gpt2, monkeypatch):
    hub, asked = pytest.importorskip("huggingface_hub"), []

    def download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns[1]))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert_same(convert.load("gpt2", revision="v2")[1], ours_of(gpt2))
    assert asked == [("openai-community/gpt2", "v2", "model*.safetensors")]
    save(folder, gpt2.state_dict(), safe=False)
    assert_same(convert.load("some/model")[1], ours_of(gpt2))
    assert asked[1:] == [("some/model", None, kind) for kind in ("model*.safetensors", "pytorch_model*.bin")]


def test_nothing_heavy_is_loaded_before_it_is_needed(folder):
    code = f"""
import sys
import pyllmc.convert
assert not {{"torch", "transformers", "safetensors", "numpy", "cffi"}} & set(sys.modules)
pyllmc.convert.load({str(folder)!r})
assert not {{"torch", "transformers", "cffi"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_both_front_ends_say_convert_first(folder, tmp_path):
    tokens = tmp_path / "tokens.bin"
    tokens.write_bytes(struct.pack("<256i", 20240520, 1, 200, *[0] * 253) + bytes(400))
    for path in (folder, folder / "model.safetensors"):
        for command in ([str(ROOT / "train_gpt2")], [sys.executable, "-m", "pyllmc.train"]):
            run = subprocess.run(
                [*command, f"--model={path}", f"--data={tokens}", "--out="],
                capture_output=True, text=True, cwd=ROOT,
            )  # fmt: skip
            assert run.returncode in (4, 5)
            assert run.stderr.count("\n") == 1
            assert f"python -m pyllmc.convert {path} model.bin" in run.stderr


def test_warnings_are_our_own(tmp_path):
    """One for a pickle."""
    torch.save(randomise(Nano(CONFIG, 97)).state_dict(), tmp_path / "x.pt")
    (tmp_path / "config.json").write_text('{"n_head": 2}')
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        convert.load(tmp_path / "x.pt")
    assert [w.category for w in seen] == [WeightsWarning]
