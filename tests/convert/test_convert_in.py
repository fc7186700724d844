"""Weights in: Hugging Face's folders of GPT-2 and GPT-Neo against the model that wrote them; and all faults of such
folders."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from foreign import (
    CONFIG,
    assert_parity,
    assert_same,
    folder,
    gpt2,
    ids_for,
    ours_of,
    randomise,
    refused,
    safetensors,
    save,
    torch,
    transformers,
    without,
)

import pyllmc
from pyllmc import convert
from pyllmc.base import errors
from pyllmc.convert.companions import find_tokenizer
from pyllmc.convert.pytorch import WeightsWarning
from pyllmc.tables.layout import GPTConfig

pytestmark = pytest.mark.filterwarnings("ignore::pyllmc.convert.pytorch.WeightsWarning")


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
    """The padding of the vocabulary is 0, not the old content of that memory."""
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
    assert_same(convert.load(folder)[1], ours_of(gpt2))  # their names tell them apart
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


def test_a_tensor_that_two_shards_hold(folder, gpt2):
    state = without(gpt2.state_dict(), "lm_head.weight")
    safetensors.save_file(state, folder / "model-1.safetensors")
    safetensors.save_file({name: state[name] for name in list(state)[:1]}, folder / "model-2.safetensors")
    (folder / "model.safetensors").unlink()
    refused(
        folder, "model-2.safetensors has transformer.wte.weight, which another file has too: copy them again"
    )


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


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats(folder, gpt2, dtype, safe):
    kind = getattr(torch, dtype)
    save(folder, {n: x.to(kind) for n, x in gpt2.state_dict().items() if n != "lm_head.weight"}, safe)
    expected = {n: torch.from_numpy(x.copy()).to(kind).float().numpy() for n, x in ours_of(gpt2).items()}
    assert_same(convert.load(folder)[1], expected)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.bin"])
def test_a_pipe_in_a_folder_is_refused_and_not_waited_for(folder, gpt2, name):
    if name == "pytorch_model.bin":
        save(folder, gpt2.state_dict(), safe=False)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(errors.LlmcError, match=f"{name} is not a regular file"):
        find_tokenizer(folder, CONFIG.vocab_size) if name == "tokenizer.bin" else convert.load(folder)


def test_a_number_of_layers_that_the_file_cannot_hold(folder):
    path, L = folder / "config.json", 1 << 24
    path.write_text(json.dumps({**json.loads(path.read_text()), "n_layer": L}))
    tracemalloc.start()
    refused(
        folder, f"model.safetensors has 40 tensors, too few for n_layer={L}: it is not whole, or not a GPT-2"
    )
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


def test_pickles_are_told_of(folder, gpt2):
    save(folder, gpt2.state_dict(), safe=False)
    with pytest.warns(WeightsWarning, match="pytorch_model.bin is a pickle"):
        convert.load(folder)
    assert_parity(folder / "pytorch_model.bin", gpt2)


LNF, QKV = "transformer.ln_f.bias", "transformer.h.1.attn.c_attn.weight"
WRONG_STATES = {
    "missing": (lambda s: without(s, LNF), rf"lacks {LNF} \(16,\)"),
    "missing layer": (lambda s: {n: x for n, x in s.items() if ".h.2." not in n}, r"lacks transformer.h.2.ln_1.weight"),
    "extra": (lambda s: {**s, "transformer.h.3.x": torch.ones(2)}, r"has transformer.h.3.x \(2,\), which a GPT-2 has not"),
    "shape": (lambda s: {**s, LNF: torch.ones(17)}, rf"{LNF} has the shape \(17,\), expected \(16,\)"),
    "orientation": (lambda s: {**s, QKV: s[QKV].T}, rf"{QKV} has the shape \(48, 16\), expected \(16, 48\)"),
    "int8": (lambda s: {**s, QKV: s[QKV].to(torch.int8)}, f"{QKV} is of I?i?n?t?8, expected one of float32"),
    "untied": (lambda s: {**s, "lm_head.weight": s["transformer.wte.weight"] + 1}, "lm_head.weight is not the embedding.*set tie_word_embeddings to false"),
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
    "no head": (dict(tie_word_embeddings=False), "lacks lm_head.weight"),
    "tied to what": (dict(tie_word_embeddings="yes"), "tie_word_embeddings='yes'"),
    "cross": (dict(add_cross_attention=True), "add_cross_attention"),
    "quantized": (dict(quantization_config={"bits": 4}), "quantization_config"),
    "llama": (dict(model_type="opt"), "it is of the kind opt, not a GPT-2"),
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


def test_a_file_that_shrinks_while_it_is_read(folder, gpt2):
    save(folder, without(gpt2.state_dict(), "lm_head.weight"), True)
    weights = convert.open_weights(folder)
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 4)
    with pytest.raises(
        errors.BadFile, match="ends within .*: it was changed while it was read; copy it again"
    ):
        dict(weights.tensors)


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
        (dict(attention_types=[[["global", "local"], 1], [["local"], 2]]), 8),
    ],
)
def test_gpt_neo(tmp_path, more, window):
    pattern = "DLLL" if more.get("attention_types", [0])[-1] == [["local"], 2] else ""
    model, config = make_neo(**more), GPTConfig(97, 32, 4, 2, 16, window, pattern=pattern)
    model.save_pretrained(tmp_path)
    assert convert.load(tmp_path)[0] == config
    assert_parity(tmp_path, model, config)


def test_a_gpt_neo_that_tells_no_window_has_that_of_transformers(tmp_path):
    make_neo(max_position_embeddings=300).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    said = json.loads(path.read_text())
    del said["window_size"]
    path.write_text(json.dumps(said))
    assert convert.load(tmp_path)[0].window == transformers.GPTNeoConfig().window_size


@pytest.mark.parametrize(
    "changes, reason",
    [
        (dict(attention_types=[[["global", "banded"], 2]]), "a layer is banded, but GPT-Neo's are global or"),
        (dict(attention_types=[[["global", "local"], 3]]), "tells 6 layers, num_layers 4"),
        (dict(attention_types="all"), "attention_types is no list"),
        (dict(attention_types=[[["global", {}], 2]]), "attention_types is no list"),
        (dict(window_size=-1), "window=-1"),
        (dict(window_size=0), "window_size=0, but local layers"),
        (dict(attention_layers=["global"] * 4), "attention_layers, .* and attention_types, .* differ"),
        (dict(intermediate_size=65), "intermediate_size=65, expected 64"),
        (dict(num_heads=3), "multiple of n_head=3"),
        (dict(activation_function="relu"), "activation_function='relu'"),
    ],
)
def test_another_gpt_neo(tmp_path, changes, reason):
    make_neo().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attention_layers": None, **changes}))
    refused(tmp_path, reason)


# ---- the hub, and the credits ----


def test_the_hub(folder, gpt2, monkeypatch):
    hub, asked = pytest.importorskip("huggingface_hub"), []

    def download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns[1]))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert_same(convert.load("hub:gpt2", revision="v2")[1], ours_of(gpt2))
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


def test_the_c_front_end_says_convert_first(folder, tmp_path):
    tokens = tmp_path / "tokens.bin"
    tokens.write_bytes(struct.pack("<256i", 20240520, 1, 200, *[0] * 253) + bytes(400))
    for path in (folder, folder / "model.safetensors"):
        for command in ([str(ROOT / "train_gpt2")],):
            run = subprocess.run(
                [*command, f"--model={path}", f"--data={tokens}", "--out="],
                capture_output=True, text=True, cwd=ROOT,
            )  # fmt: skip
            assert run.returncode in (4, 5)
            assert run.stderr.count("\n") == 1
            assert f"python -m pyllmc.convert {path} model.bin" in run.stderr
