"""Weights in: nanoGPT's, minGPT's, llm.c's and OpenAI's files in their exact layouts, made here; and files without
weights."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_checkpoint
import tfwriter
from foreign import CONFIG, assert_parity, assert_same, gpt2, make_gpt2, ours_of, randomise, refused, torch
from test_checkpoint import llmc_file

import pyllmc
from pyllmc import convert
from pyllmc.base import errors
from pyllmc.convert.pytorch import EXACT_GELU, WeightsWarning
from pyllmc.tables.layout import GPTConfig

pytestmark = pytest.mark.filterwarnings("ignore::pyllmc.convert.pytorch.WeightsWarning")


# ---- nanoGPT ----


class Nano(torch.nn.Module):
    """nanoGPT's and minGPT's names on nn.Linear, with their computation."""

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
    """The note about it is right: the second or third digit after the point differs."""
    model = randomise(Nano(CONFIG, 97))
    with pytest.warns(WeightsWarning, match="computes GELU exactly"):
        assert_parity(nanogpt(tmp_path / "ckpt.pt", model, 97), model, atol=2e-2)


def test_a_vocabulary_that_was_rounded_up(tmp_path):
    """50304 is GPT-2's 50257 rounded up: the rows past it are dropped, in the head as well."""
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
    model.lm_head.weight = torch.nn.Parameter(torch.ones(98, 16))
    nanogpt(path, model, 97)
    refused(path, r"lm_head.weight has the shape \(98, 16\)")


def test_a_head_of_its_own(tmp_path):
    """In each kind of pickle. A vocabulary that is cut is cut in the head, too."""
    model = randomise(Nano(CONFIG, 97, approximate="tanh"))
    model.lm_head.weight = torch.nn.Parameter(2 * model.lm_head.weight.detach())
    paths = nanogpt(tmp_path / "ckpt.pt", model, 97), mingpt(tmp_path / "model.pt", model, n_head=2)
    for path in paths:
        config, tensors = convert.load(path)
        assert config == replace(CONFIG, untied=True)
        assert_same(tensors, {n: p.detach().numpy() for n, p in model.named_parameters()})
        assert_parity(path, model)
    large = Nano(CONFIG, 50304)
    large.lm_head.weight = torch.nn.Parameter(large.lm_head.weight.detach() + 1)
    _, tensors = convert.load(nanogpt(tmp_path / "large.pt", large, 50304))
    assert np.array_equal(tensors["lm_head.weight"], large.lm_head.weight.detach().numpy()[:50257])


def test_damage_that_torch_does_not_see(tmp_path):
    path = nanogpt(tmp_path / "ckpt.pt", randomise(Nano(CONFIG, 97)), 97)
    data = path.read_bytes()
    path.write_bytes(data + b"more")
    refused(path, "is damaged .bytes follow its end.: copy or save it again")
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :])
    refused(path, "is damaged .*checksum.*: copy or save it again")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(pyllmc.LlmcError, match="fifo is not a regular file"):
        convert.load(tmp_path / "fifo")


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


def test_heads_are_told_not_guessed(tmp_path):
    """This holds for gpt-nano's sizes, too: another number of heads would be another model without any sign of it."""
    path = mingpt(tmp_path / "model.pt", randomise(Nano(GPTConfig(97, 32, 3, 3, 48), 97)))
    refused(path, "does not tell the number of heads of its 3 layers.*--n_head")
    assert convert.load(path, n_head=4)[0].n_head == 4
    mingpt(path, Nano(CONFIG, 97), n_head=2)
    with pytest.raises(pyllmc.InvalidArgument, match="n_head=16, but .* tells 2"):
        convert.load(path, n_head=16)


def test_a_bare_state_dict_of_conv1d(tmp_path, gpt2):
    path = mingpt(tmp_path / "gpt2.pt", gpt2, n_head=2)
    assert_same(convert.load(path)[1], ours_of(gpt2))


class Old(torch.nn.Module):
    """minGPT of 2020, with its own names."""

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
    config, tensors = convert.load(mingpt(path, Old(new, tied=False), n_head=2))
    assert config == replace(CONFIG, untied=True)
    assert np.array_equal(tensors["lm_head.weight"], tensors["transformer.wte.weight"] + 1)


# ---- files that the engine reads ----


@pytest.fixture(scope="module")
def block() -> np.ndarray:
    """The padded parameters of a model, as files hold them."""
    return test_checkpoint.block(test_checkpoint.make(seed=4), "LLMC_PARAMS")


def mixed_file(block: np.ndarray, version: int, norms_last: bool) -> tuple[bytes, np.ndarray]:
    """llm.c's versions 2 and 4: norms in float, the rest in bfloat16; and the parameters to expect from them."""
    SIZES, model = test_checkpoint.CONFIG, test_checkpoint.make()
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
    assert np.array_equal(test_checkpoint.block(model, "LLMC_PARAMS"), expected)
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
    """transformers reads the same numbers, in Conv1D's orientation."""
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


# ---- no weights ----


def test_paths(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(2000))
    (tmp_path / "a.h5").write_bytes(b"\x89HDF" + bytes(2000))
    (tmp_path / "a.txt").write_bytes(b"hello" * 1000)
    (tmp_path / "ü").mkdir()
    for name, reason, error in (
        ("empty", "is a folder without weights: expected", errors.SystemFailure),
        ("ü", "ü is a folder without weights", errors.SystemFailure),
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


def test_warnings_are_our_own(tmp_path):
    """Only a pickle causes one."""
    torch.save(randomise(Nano(CONFIG, 97)).state_dict(), tmp_path / "x.pt")
    (tmp_path / "config.json").write_text('{"n_head": 2}')
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        convert.load(tmp_path / "x.pt")
    assert [w.category for w in seen] == [WeightsWarning]
