"""LoRA runs on disk: their checkpoints, and adapters in PEFT's format, written for it and read from it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import PLAIN, ROOT

import pyllmc
from pyllmc.base.errors import BadFile, DataError, InvalidArgument
from pyllmc.convert.__main__ import main as convert
from pyllmc.engine.checkpoint import template_of
from pyllmc.engine.weightfile import WeightFile
from pyllmc.evaluate.opening import open_scorer
from pyllmc.text import template

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
from safetensors.numpy import load_file, save_file  # noqa: E402  # PEFT needs it, too

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 32, "max_seq_len": 24, "B": 3}
CALM = {"val_every": 0, "sample_every": 0, "checkpoint_every": 4, "keep": 9, "threads": 2}


def train(data: Path, out: Path, **options) -> Path:
    for _ in pyllmc.Trainer(data=str(data), out=str(out), **{**CALM, **options}):
        pass
    return out


@pytest.fixture(scope="module")
def base(data, tmp_path_factory) -> Path:
    return train(data, tmp_path_factory.mktemp("lora") / "base", max_steps=12, lr=3e-2, **SIZES)


@pytest.fixture(scope="module")
def run(data, base) -> Path:
    """A LoRA run whose adapters have learnt something."""
    out = base.parent / "run"
    return train(
        data,
        out,
        model=str(base),
        B=3,
        max_steps=8,
        lora_rank=4,
        lora_alpha=6,
        lora_dropout=0.1,
        lr=3e-2,
        warmup_steps=0,
    )


def logits_of(m: pyllmc.Model, ids: np.ndarray) -> np.ndarray:
    m.forward(ids)
    return np.array(m.logits)


def ids_for(m: pyllmc.Model) -> np.ndarray:
    return np.random.default_rng(0).integers(0, m.config.vocab_size, (2, 20))


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= 2e-5 * np.abs(b).max())


def test_a_checkpoint_holds_what_was_trained(base, run):
    """It is small, names its base, and is loaded with its adapters or merged: the logits are the same."""
    assert (run / "last.ckpt").stat().st_size < 0.5 * (base / "last.ckpt").stat().st_size
    about = WeightFile(pyllmc.engine._ffi.load(), run / "last.ckpt").adapters
    assert about["base"] == str(base / "last.ckpt") and about["lora_on"] == "qkv,attproj,fc,fcproj"
    assert about["lora_dropout"] == "0.1"
    apart = pyllmc.Model(run, lora_rank=4, lora_alpha=6, training=False)
    merged, plain = (pyllmc.Model(path, training=False) for path in (run, base))
    ids = ids_for(plain)
    assert np.abs(logits_of(apart, ids) - logits_of(plain, ids)).max() > 0.1
    assert close(logits_of(merged, ids), logits_of(apart, ids))
    frozen = [name for name in plain.params if "c_" not in name or name.endswith("bias")]
    for name in frozen:
        assert (merged.params[name] == plain.params[name]).all(), name
    for name in plain.params:
        assert (apart.params[name] == plain.params[name]).all(), name


def test_a_run_is_resumed_to_the_bit(data, run, tmp_path):
    again = train(data, tmp_path / "again", resume=str(run / "step_00000004.ckpt"))
    first, second = (
        pyllmc.Model(path, lora_rank=4, lora_alpha=6) for path in (run / "last.ckpt", again / "last.ckpt")
    )
    assert first.step == second.step == 8
    for name in first.params:
        assert (first.params[name] == second.params[name]).all(), name
    for name in first.moments:
        for a, b in zip(first.moments[name], second.moments[name]):
            assert (a == b).all(), name


def test_adapters_and_named_tensors_together(data, base, tmp_path):
    out = train(
        data,
        tmp_path / "run",
        model=str(base),
        B=3,
        max_steps=4,
        lora_rank=2,
        train_only="lnf*,h.1.ln1b",
        lr=1e-2,
    )
    m = pyllmc.Model(out, lora_rank=2, train_only="lnf*,h.1.ln1b")
    plain = pyllmc.Model(base, training=False)
    changed = {name for name in plain.params if (m.params[name] != plain.params[name]).any()}
    assert changed == {"transformer.ln_f.weight", "transformer.ln_f.bias", "transformer.h.1.ln_1.bias"}
    again = train(data, tmp_path / "more", resume=str(out), max_steps=6)
    assert pyllmc.Model(again).config == plain.config
    with pytest.raises(DataError, match="has trained lnf.*which an adapter of PEFT cannot hold"):
        pyllmc.convert.peft_adapter.save_adapter(tmp_path / "adapter", out)


def test_a_run_of_some_tensors_is_resumed_to_the_bit(data, base, tmp_path):
    named = {"train_only": "h.1.*", "model": str(base), "B": 3, "max_steps": 8}
    whole = train(data, tmp_path / "whole", **named)
    again = train(data, tmp_path / "again", resume=str(whole / "step_00000004.ckpt"))
    first, second = (pyllmc.Model(path / "last.ckpt", train_only="h.1.*") for path in (whole, again))
    for name in first.params:
        assert (first.params[name] == second.params[name]).all(), name
    for name in first.moments:
        assert all((a == b).all() for a, b in zip(first.moments[name], second.moments[name]))
    other = pyllmc.Model(whole / "last.ckpt", train_only="h.0.*")  # as many moments, but of other tensors
    assert other.step == 0 and not any(other.moments[name][0].any() for name in other.moments)
    with pytest.raises(InvalidArgument, match=r"--train_only=h.0.\*, but the run has --train_only=h.1.\*"):
        pyllmc.Trainer(resume=str(whole), train_only="h.0.*")


def test_the_programs_write_with_a_lora_run(run):
    words = ["--prompt=the cat", "--sample_tokens=8", "--temperature=0"]
    one = subprocess.run(
        [ROOT / "train_gpt2", f"--model={run}", "--max_steps=0", *words], capture_output=True, env=PLAIN
    )
    two = subprocess.run(
        [ROOT / "chat_gpt2", run, *words, "--template=story"], capture_output=True, env=PLAIN
    )
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    m = pyllmc.Model(run, training=False)
    assert one.stdout.startswith(b"the cat") and len(one.stdout) > len("the cat")
    assert pyllmc.Writer(m).write("the cat", max_new_tokens=8, temperature=0).encode() in one.stdout + b" "


REFUSED = [
    (
        {"lora_rank": 8},
        "holds adapters of lora_rank=4 lora_alpha=6 on matrices 15, the model is made for 8, 16 and 15",
    ),
    (
        {"lora_rank": 4, "lora_alpha": 6, "train_only": "wpe"},
        "was trained with train_only='', the model is made for 'wpe'",
    ),
]


@pytest.mark.parametrize("options, message", REFUSED)
def test_adapters_of_another_form_are_refused(run, options, message):
    with pytest.raises(InvalidArgument, match=message):
        pyllmc.Model(run, **options)


def test_a_wrong_base_is_refused(data, base, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    file = WeightFile(pyllmc.engine._ffi.load(), copy / "last.ckpt")
    other = train(data, tmp_path / "other", max_steps=1, **SIZES)
    file.set_base(other)
    m = pyllmc.Model(base, lora_rank=4, lora_alpha=6)
    # the path of a copy, as Python makes one of a base that only it reads, tells nothing
    with pytest.raises(
        BadFile, match=f"holds adapters of other weights than {base}.* has now: expected checksum"
    ):
        file.load_into(m._handle)
    raw = (copy / "best.ckpt" if (copy / "best.ckpt").exists() else copy / "last.ckpt").read_bytes()
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(raw.replace(str(base).encode(), str(base)[:-1].encode() + b"X"))
    with pytest.raises(BadFile, match="damaged"):  # the text is under the checksum, too
        WeightFile(pyllmc.engine._ffi.load(), broken).load_into(m._handle)
    with pytest.raises(InvalidArgument, match="fresh weights: save a model first"):
        pyllmc.Model(m.config, lora_rank=2).save(tmp_path / "x.ckpt")
    with pytest.raises(InvalidArgument, match="LoRA adapts a model that is trained already"):
        pyllmc.Trainer(data=str(data), model="gpt-nano", lora_rank=4, out=str(tmp_path / "y"))


@pytest.mark.parametrize("where", [0, 36, 40, 168, 1024, 1100, 1400, -1])
def test_a_cut_or_changed_file_is_refused(run, tmp_path, where):
    raw = bytearray((run / "last.ckpt").read_bytes())
    broken = tmp_path / "broken.ckpt"
    raw[where] ^= 0x55
    for content in (raw, raw[: len(raw) // 2], raw[:1030]):
        broken.write_bytes(content)
        with pytest.raises((DataError, OSError)):
            pyllmc.Model(broken)


# ---- PEFT ----


@pytest.fixture(scope="module")
def exported(base, run) -> tuple[Path, Path]:
    """(the base as a folder for transformers, the adapter as a folder for PEFT)."""
    whole, adapter = base.parent / "base-hf", base.parent / "adapter"
    assert convert([str(base), str(whole)]) == 0
    assert convert([str(run), str(adapter), "--base", str(whole)]) == 0
    return whole, adapter


def logits_in_torch(model, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(ids)).logits.numpy()


def test_peft_reads_our_adapter(run, exported):
    whole, adapter = exported
    assert sorted(path.name for path in adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    said = json.loads((adapter / "adapter_config.json").read_text())
    assert said["lora_dropout"] == 0.1
    assert said["fan_in_fan_out"] is True  # PEFT corrects it with a warning, other readers do not
    m = pyllmc.Model(run, lora_rank=4, lora_alpha=6, training=False)
    ids = ids_for(m)
    gpt = transformers.GPT2LMHeadModel.from_pretrained(whole)
    theirs = logits_in_torch(peft.PeftModel.from_pretrained(gpt, adapter), ids)
    assert close(logits_of(m, ids), theirs)
    assert close(logits_of(pyllmc.Model(adapter, training=False), ids), theirs)


@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]])
def test_we_read_pefts_adapter(exported, tmp_path, targets):
    whole, _ = exported
    theirs = make_adapter(whole, tmp_path / "adapter", target_modules=targets)
    m = pyllmc.Model(tmp_path / "adapter", training=False)
    ids = ids_for(m)
    assert close(logits_of(m, ids), logits_in_torch(theirs, ids))


def make_adapter(whole: Path, to: Path, **options) -> peft.PeftModel:
    """An adapter as PEFT makes and saves it, on a base for transformers."""
    how = {
        "r": 3,
        "lora_alpha": 7,
        "lora_dropout": 0.25,
        "target_modules": ["c_attn", "mlp.c_proj"],
        **options,
    }
    gpt = transformers.GPT2LMHeadModel.from_pretrained(whole)
    theirs = peft.get_peft_model(gpt, peft.LoraConfig(fan_in_fan_out=True, init_lora_weights=False, **how))
    theirs.save_pretrained(to)
    return theirs


def test_pefts_adapter_is_trained_further(data, exported, tmp_path):
    """With its rank, alpha, matrices and dropout, from its numbers on; back in PEFT it has the same logits as here."""
    whole, _ = exported
    theirs = make_adapter(whole, tmp_path / "adapter")
    still = train(data, tmp_path / "still", model=str(tmp_path / "adapter"), B=3, max_steps=1, lr=1e-12)
    about = WeightFile(pyllmc.engine._ffi.load(), still / "last.ckpt").adapters
    assert {key: about[key] for key in ("base", "lora_rank", "lora_alpha", "lora_dropout", "lora_on")} == {
        "base": str(whole), "lora_rank": "3", "lora_alpha": "7", "lora_dropout": "0.25", "lora_on": "qkv,fcproj",
    }  # fmt: skip
    m = pyllmc.Model(still, training=False)
    ids = ids_for(m)
    assert close(logits_of(m, ids), logits_in_torch(theirs, ids))
    out = train(
        data, tmp_path / "run", model=str(tmp_path / "adapter"), B=3, max_steps=4, lr=1e-2, lora_dropout=0.5
    )
    assert WeightFile(pyllmc.engine._ffi.load(), out / "last.ckpt").adapters["lora_dropout"] == "0.5"
    again = train(data, tmp_path / "again", resume=str(out), max_steps=6)
    assert convert([str(again), str(tmp_path / "back")]) == 0
    gpt = transformers.GPT2LMHeadModel.from_pretrained(whole)
    back = logits_in_torch(peft.PeftModel.from_pretrained(gpt, tmp_path / "back"), ids)
    assert close(logits_of(pyllmc.Model(again, training=False), ids), back)
    assert not close(back, logits_in_torch(theirs, ids))


def test_an_adapter_of_ours_comes_back_from_peft(data, run, exported, tmp_path):
    """A step of training has the same bits whether the adapter went through PEFT's format or not."""
    how = {"B": 3, "max_steps": 1, "lr": 1e-2}
    own = train(data, tmp_path / "own", model=str(run), lora_rank=4, lora_alpha=6, lora_dropout=0.1, **how)
    theirs = train(data, tmp_path / "theirs", model=str(exported[1]), **how)
    one, two = (pyllmc.Model(path, lora_rank=4, lora_alpha=6, training=False) for path in (own, theirs))
    for name in one.params:
        assert (one.params[name] == two.params[name]).all(), name


def test_a_merged_adapter_is_trained_whole(data, exported, tmp_path):
    out = train(data, tmp_path / "run", model=str(exported[1]), B=3, max_steps=1, lora_rank=0)
    assert not WeightFile(pyllmc.engine._ffi.load(), out / "last.ckpt").adapters


def test_adapters_that_cannot_be_trained_further(data, base, exported, tmp_path):
    whole, adapter = exported
    for options, message in (
        (
            {"model": str(adapter), "lora_rank": 8},
            "--lora_rank=8, but .* has 4: leave the option out, or train the merged",
        ),
        ({"model": str(adapter), "lora_alpha": 1}, "--lora_alpha=1, but .* has 6"),
        ({"model": str(adapter), "lora_on": "qkv"}, "--lora_on=qkv, but .* has qkv,attproj,fc,fcproj"),
        (
            {"resume": str(adapter)},
            "has no step and no moments to go on with: begin a run from it, with --model=",
        ),
    ):
        with pytest.raises(InvalidArgument, match=message):
            pyllmc.Trainer(data=str(data), out=str(tmp_path / "x"), **options)
    make_adapter(whole, tmp_path / "some", layers_to_transform=[1], layers_pattern="h")
    with pytest.raises(BadFile, match="adapts qkv in some layers only"):
        pyllmc.Trainer(data=str(data), out=str(tmp_path / "x"), model=str(tmp_path / "some"))
    other = train(data, tmp_path / "other", max_steps=1, **SIZES)
    shutil.copytree(adapter, tmp_path / "moved")
    path = tmp_path / "moved" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(other)}))
    with pytest.raises(
        BadFile, match="holds adapters of other weights than .*other has now: expected checksum"
    ):
        pyllmc.Trainer(data=str(data), out=str(tmp_path / "x"), model=str(tmp_path / "moved"))
    with pytest.raises(BadFile, match="holds adapters of other weights than .*other has now"):
        pyllmc.Model(tmp_path / "moved", training=False)


def test_a_merged_export(run, exported, tmp_path, capsys):
    assert convert([str(run), str(tmp_path / "merged"), "--merge"]) == 0
    assert convert([str(run), str(tmp_path / "merged.bin"), "--merge"]) == 0
    m = pyllmc.Model(run, training=False)
    ids = ids_for(m)
    theirs = logits_in_torch(transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "merged"), ids)
    assert close(logits_of(m, ids), theirs)
    assert (logits_of(pyllmc.Model(tmp_path / "merged.bin", training=False), ids) == logits_of(m, ids)).all()
    capsys.readouterr()
    for words, message in (
        ([str(run), str(tmp_path / "x.bin")], "would hold a whole model: add --merge"),
        ([str(exported[0]), str(tmp_path / "x"), "--merge"], "holds no adapters to merge"),
        (
            [str(exported[0]), str(tmp_path / "x"), "--to=peft"],
            "--to=peft and --base are for those of a LoRA run",
        ),
        ([str(run), str(exported[1])], "exists: replace it with --overwrite"),
        ([str(run), str(exported[0])], "exists and is no adapter"),
        ([str(tmp_path / "nothing"), str(tmp_path / "x"), "--merge"], "nothing does not exist"),
        ([str(exported[1]), str(exported[0]), "--overwrite"], "is where the weights are read from"),
    ):
        assert convert(words) != 0
        assert message in capsys.readouterr().err
    assert convert([str(run), str(exported[1]), "--overwrite", "--base", str(exported[0])]) == 0


def test_the_base_of_adapters_is_not_replaced(data, exported, tmp_path, capsys):
    """Adapters of a base that is overwritten belong to nothing any more."""
    whole = shutil.copytree(exported[0], tmp_path / "whole")
    run = train(data, tmp_path / "run", model=str(whole), B=3, max_steps=1, lora_rank=2)
    before = (whole / "model.safetensors").read_bytes()
    assert convert([str(run), str(whole), "--merge", "--overwrite"]) != 0
    assert "is where the weights are read from: name another destination" in capsys.readouterr().err
    assert (whole / "model.safetensors").read_bytes() == before


def test_adapters_of_a_gpt_neo_without_bands_are_merged_only(data, exported, tmp_path, capsys):
    """Here it is a GPT-2."""
    V = json.loads((exported[0] / "config.json").read_text())["vocab_size"]
    neo = transformers.GPTNeoConfig(
        vocab_size=V, hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=16,
        attention_types=[[["global"], 2]],
    )  # fmt: skip
    transformers.GPTNeoForCausalLM(neo).save_pretrained(tmp_path / "neo")
    run = train(data, tmp_path / "run", model=str(tmp_path / "neo"), B=3, max_steps=1, lora_rank=2)
    assert convert([str(run), str(tmp_path / "peft")]) != 0
    assert "is a gpt_neo, whose matrices have other names for PEFT" in capsys.readouterr().err


def test_adapters_of_banded_models_are_merged_only(data, tmp_path, capsys):
    """PEFT would know their model as a GPT-Neo, where q, k and v are apart."""
    banded = train(data, tmp_path / "banded", max_steps=1, window=4, **SIZES)
    run = train(data, tmp_path / "run", model=str(banded), B=3, max_steps=1, lora_rank=2)
    assert convert([str(run), str(tmp_path / "peft")]) != 0
    assert "a GPT-Neo for PEFT" in (said := capsys.readouterr().err) and "with --merge" in said
    assert not (tmp_path / "peft").exists() and convert([str(run), str(tmp_path / "x.bin"), "--merge"]) == 0


def test_a_base_that_only_python_reads(data, exported, tmp_path):
    """LoRA on a folder of Hugging Face's: trained, resumed, and used for writing."""
    whole, _ = exported
    out = train(data, tmp_path / "run", model=str(whole), B=3, max_steps=4, lora_rank=2, lr=1e-2)
    assert WeightFile(pyllmc.engine._ffi.load(), out / "last.ckpt").adapters["base"] == str(whole)
    again = train(data, tmp_path / "again", resume=str(out), max_steps=6)
    ids = ids_for(m := pyllmc.Model(again, training=False))
    assert close(logits_of(m, ids), logits_of(pyllmc.Model(again, lora_rank=2, training=False), ids))


def test_the_tokenizer_of_the_base_writes_and_is_scored_with(exported, run, tmp_path):
    """Adapters come without one: the base has it, in its folder, or, where the base is a run, in its checkpoint."""
    whole, adapter = exported
    carried = pyllmc.Model(run, training=False).tokenizer_bytes
    assert carried and open_scorer(str(whole)).tokenizer is not None
    of_run = tmp_path / "adapter"
    shutil.copytree(adapter, of_run)
    path = of_run / "adapter_config.json"
    config = json.loads(path.read_text())
    base = WeightFile(pyllmc.engine._ffi.load(), run / "last.ckpt").adapters["base"]
    path.write_text(json.dumps({**config, "base_model_name_or_path": base}))
    for folder in (adapter, of_run):
        assert not list(folder.glob("*token*")) and not list(folder.glob("vocab*"))
        assert pyllmc.Model(folder, training=False).tokenizer_bytes
        assert pyllmc.Writer(folder).write("the", 3).startswith("the")
        assert open_scorer(str(folder)).tokenizer is not None


WRONG = [
    ({"peft_type": "IA3"}, "peft_type is IA3, only LORA is read"),
    *(({key: True}, f"{key}=True is not read") for key in pyllmc.convert.peft_adapter.PLAIN),
    ({"r": 5}, r"is \(4, 32\), expected \(5, 32\): it is an adapter of another model"),
    ({"r": "4"}, "are no rank and no factor"),
    ({"lora_dropout": 1.5}, "lora_dropout=1.5 is no probability below 1"),
    ({"lora_dropout": 1}, "lora_dropout=1 is no probability below 1"),
    ({"base_model_name_or_path": None}, "names no base model"),
    ({"base_model_name_or_path": "/nowhere"}, "holds adapters of /nowhere, which does not exist here"),
]


@pytest.mark.parametrize("change, message", WRONG)
def test_adapters_that_cannot_be_read(exported, tmp_path, change, message):
    folder = tmp_path / "adapter"
    shutil.copytree(exported[1], folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadFile, match=message):
        pyllmc.Model(folder, training=False)


@pytest.mark.parametrize(
    "kept, message", [(0, "lacks every adapter"), (1, "lacks transformer.*lora_[AB].weight")]
)
def test_an_adapter_that_is_not_whole_is_refused(exported, tmp_path, kept, message):
    """It would be merged as if it had learnt nothing."""
    folder = shutil.copytree(exported[1], tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    found = sorted(load_file(path).items())[:kept]
    save_file(dict(found), path)
    with pytest.raises(BadFile, match=message):
        pyllmc.Model(folder, training=False)


def test_an_adapter_that_does_not_read_back_is_not_written(run, tmp_path, monkeypatch):
    write = pyllmc.convert.to_hf.write_safetensors

    def write_and_damage(path, *how):
        write(path, *how)
        raw = Path(path).read_bytes()
        Path(path).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))

    monkeypatch.setattr(pyllmc.convert.to_hf, "write_safetensors", write_and_damage)
    with pytest.raises(
        BadFile, match="adapter is not written: it does not read back as it was; try again elsewhere"
    ):
        pyllmc.convert.peft_adapter.save_adapter(tmp_path / "adapter", run)
    assert not (tmp_path / "adapter").exists()


def test_the_template_travels_with_the_adapter(data, base, tmp_path):
    line = r"Q: {prompt}\nA: {answer}\n"
    run = train(data, tmp_path / "run", model=str(base), max_steps=1, lora_rank=2, template=line)
    adapter = tmp_path / "adapter"
    for more in ([], ["--overwrite"]):
        assert convert([str(run), str(adapter), *more]) == 0
    assert template.beside(adapter) == line and template_of(adapter) == template.parse(line)
    further = train(data, tmp_path / "further", model=str(adapter), max_steps=1)
    assert template_of(further) == template.parse(line)
