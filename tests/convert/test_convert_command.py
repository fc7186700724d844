"""python -m pyllmc.convert as a person uses it: its output, its destinations, its refusals, and what a failure
leaves."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tfwriter
from conftest import ROOT
from converted import make_model, tokenizer_of

import pyllmc
from pyllmc import GPTConfig, Model, Writer
from pyllmc.base.errors import BadFile, DataError, InvalidArgument, SystemFailure
from pyllmc.convert import card, dtypes, export
from pyllmc.convert.__main__ import main
from pyllmc.convert.companions import find_tokenizer
from pyllmc.convert.export import save
from pyllmc.engine.checkpoint import training
from pyllmc.text import dataset
from pyllmc.text.tokenizer import Tokenizer

pytest.importorskip("safetensors")
pytest.importorskip("gguf")
CONFIG = GPTConfig(37, 8, 2, 2, 16)
TO = pytest.mark.parametrize("name", ["hf", "m.gguf", "m.bin"])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of 6 steps over letters."""
    folder = tmp_path_factory.mktemp("convert")
    dataset.write_dataset(
        ["the cat sat on the mat"] * 60, folder / "letters", "char", val_fraction=0.1, source="mats"
    )
    sizes = {"model": "gpt-nano", "max_seq_len": 16, "n_layer": 2, "B": 3, "threads": 1}
    often = {"max_steps": 6, "val_every": 3, "sample_every": 0, "checkpoint_every": 0}
    for _ in pyllmc.Trainer(data=str(folder / "letters"), out=str(folder / "run"), **sizes, **often):
        pass
    Tokenizer([b"a", b"b", b"c"], "longest", -1).save(folder / "few.bin")
    return folder / "run"


def content(place: Path) -> dict[str, bytes]:
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    return {path.name: path.read_bytes() for path in files}


# ---- output and files ----


@TO
def test_a_run_in_one_command(run, tmp_path, name, capsys):
    assert main([str(run), str(tmp_path / name)]) == 0
    read, wrote = capsys.readouterr().out.splitlines()
    assert read.startswith(f"read {run}: ")
    assert "tokenizer: char, of the checkpoint" in read
    assert wrote.startswith(f"wrote {tmp_path / name}: ")
    assert "28 tensors read back and compared" in wrote
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_card_has_the_run_s_figures(run, tmp_path):
    assert main([str(run), str(tmp_path / "mats"), "--dtype=bf16"]) == 0
    text = (tmp_path / "mats/README.md").read_text()
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last, val = ([x for x in steps if x.get(key)][-1] for key in ("loss", "val_loss"))
    for line in (
        "# mats",
        "| steps | 6 of 6 |",
        f"| tokens seen | {6 * 3 * 16} |",
        f"| training loss of the last batch | {last['loss']:.4f} |",
        f"| validation loss | {val['val_loss']:.4f} nats per token |",
        "| data | mats |",
        "| numbers | bf16 |",
        "max_steps=6",
    ):
        assert line in text.splitlines()
    assert str(run.parent) not in text


def test_the_card_keeps_the_paths_of_this_machine_to_itself():
    said = {
        "model": "/home/me/secret",
        "eval_data": "me/secret",
        "resume": "runs",
        "lr": "0.01",
        "max_steps": "7",
    }
    assert card.changed(said) == {"lr": "0.01", "max_steps": "7"}


@pytest.mark.parametrize(
    "line",
    ["[1]", '{"step": 5, "lo', "7", '{"step": 6, "loss": null}', '{"step": 6, "loss": 1' + "0" * 400 + "}"],
)
def test_a_line_that_tells_no_loss_is_passed_over(run, tmp_path, line):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    steps = (run / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(f"{line}\n{steps}")
    assert training(copy)["loss"] == training(run)["loss"] != ""
    (copy / "metrics.jsonl").write_text(f"{line}\n")
    assert training(copy)["loss"] == ""


def test_nothing_is_said_of_a_model_of_which_nothing_is_known(tmp_path):
    make_model(CONFIG).save(tmp_path / "m.ckpt")
    assert main([str(tmp_path / "m.ckpt"), str(tmp_path / "hf"), "--name=Small"]) == 0
    text = (tmp_path / "hf/README.md").read_text()
    assert "# Small" in text
    assert "## Training" not in text
    assert "no tokenizer is known" in text


def test_a_model_of_gpt2_s_vocabulary_gets_gpt2_s_tokenizer(tmp_path):
    make_model(GPTConfig(50257, 8, 1, 1, 4)).save(tmp_path / "m.ckpt")
    found, where = find_tokenizer(tmp_path / "m.ckpt", 50257)
    assert (found.name, where) == ("gpt2", "GPT-2's, as 50257 ids suggest")
    assert find_tokenizer(tmp_path / "m.ckpt", 50257, "none")[0] is None
    assert find_tokenizer(tmp_path / "m.ckpt", 60000) == (None, f"{tmp_path / 'm.ckpt'} has none")


def test_a_tokenizer_with_other_ids_than_the_model_s(tmp_path):
    """With too few ids the text would be garbage; ids that only round a vocabulary up mean nothing."""
    for V, fits in ((29, False), (30, True), (31, False), (32, True), (128, True), (129, False)):
        place = tmp_path / f"{V}"
        save(place, GPTConfig(V, 8, 1, 1, 4), make_model(GPTConfig(V, 8, 1, 1, 4)).params)
        Tokenizer([bytes([97 + i]) for i in range(30)], "longest", -1).save(place / "tokenizer.bin")
        for choice in ("", str(place), str(place / "tokenizer.bin")):
            if fits:
                assert find_tokenizer(place, V, choice)[0].vocab_size == 30
            else:
                with pytest.raises(DataError, match=f"has 30 ids, the model {V}: name its own"):
                    find_tokenizer(place, V, choice)


def test_a_tokenizer_of_another_model_may_lie_beside_a_file(tmp_path):
    make_model(GPTConfig(31, 8, 1, 1, 4)).save(tmp_path / "m.ckpt")
    Tokenizer([bytes([97 + i]) for i in range(30)], "longest", -1).save(tmp_path / "tokenizer.bin")
    assert find_tokenizer(tmp_path / "m.ckpt", 31) == (None, f"{tmp_path / 'm.ckpt'} has none")


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_the_tokenizer_of_a_folder_is_found(tmp_path, kind):
    tokenizer = tokenizer_of(kind)
    config = GPTConfig(tokenizer.vocab_size, 8, 1, 1, 4)
    save(tmp_path / "hf", config, make_model(config).params, tokenizer=tokenizer)
    assert find_tokenizer(tmp_path / "hf", config.vocab_size)[0].pieces == tokenizer.pieces
    (tmp_path / "hf/tokenizer.bin").unlink()
    # with all of Hugging Face's files, and with tokenizer.json alone
    for name in ("merges.txt", "vocab.json"):
        found = find_tokenizer(tmp_path / "hf", config.vocab_size)[0]
        assert (found.pieces, found.kind, found.eot) == (tokenizer.pieces, tokenizer.kind, tokenizer.eot)
        assert Model(tmp_path / "hf").tokenizer_bytes == (found.to_bytes() if found else b"")
        (tmp_path / "hf" / name).unlink(missing_ok=True)


def test_there_and_back(run, tmp_path):
    """run -> folder -> bin: the weights are the same, and so is the tokenizer in the folder."""
    assert (
        main([str(run), str(tmp_path / "hf")]) == main([str(tmp_path / "hf"), str(tmp_path / "m.bin")]) == 0
    )
    ours, theirs = Model(run, B=1, training=False), Model(tmp_path / "m.bin", B=1, training=False)
    assert all(np.array_equal(ours.params[name], theirs.params[name]) for name in ours.params)
    assert (
        Tokenizer.load(tmp_path / "hf/tokenizer.bin").pieces
        == find_tokenizer(run, ours.config.vocab_size)[0].pieces
    )


def test_openai_s_checkpoint_brings_its_vocabulary(vocab_bpe, tmp_path, capsys):
    tensors = tfwriter.random_tensors(GPTConfig(50257, 1024, 2, 1, 64))
    folder = tfwriter.write(tmp_path / "124M", tensors, index=False)
    (folder / "vocab.bpe").write_bytes(vocab_bpe)
    for source in (folder, folder / "model.ckpt"):
        assert main([str(source), str(tmp_path / "m.gguf"), "--overwrite"]) == 0
        assert f"tokenizer: gpt2, of {folder / 'vocab.bpe'}" in capsys.readouterr().out


def test_a_pickle_is_one_line_of_warning(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    m = make_model(CONFIG)
    state = {
        name: torch.from_numpy(m.params[name][: CONFIG.vocab_size if "wte" in name else None])
        for name in m.params
    }
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 37, "bias": True}
    torch.save({"model": state, "model_args": sizes}, tmp_path / "ckpt.pt")
    assert main([str(tmp_path / "ckpt.pt"), str(tmp_path / "m.bin")]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    (warning,) = said.err.splitlines()
    assert "pickle" in warning


# ---- refusals ----


BAD = [  # arguments, exit code, the words in the line
    (["{run}", "{tmp}/x.pt"], 2, ".pt files are not written"),
    (["{run}", "{tmp}/x", "--to=onnx"], 2, "not one of hf, gguf, bin"),
    (["{run}", "{tmp}/x.bin", "--dtype=fp16"], 2, "holds fp32, bf16"),
    (["{run}", "{tmp}/x", "--dtype=int8"], 2, "holds fp32, bf16, fp16"),
    (["{run}", "{tmp}/x", "--untied"], 2, "--untied is of a GGUF file"),
    (["{run}", "{run}"], 2, "is where the weights are read from"),
    (
        ["{run}/last.ckpt", "{run}/last.ckpt", "--to=bin", "--overwrite"],
        2,
        "is where the weights are read from",
    ),
    (["{run}/best.ckpt", "{run}", "--overwrite"], 2, "is where the weights are read from"),
    (
        ["{run}/best.ckpt", "{run}/last.ckpt", "--to=bin", "--overwrite"],
        2,
        "more than an export, as a checkpoint",
    ),
    (["{run}", "{tmp}/missing/x.bin"], 5, "cannot write"),
    (["{run}", "{run}/last.ckpt/x"], 5, "cannot write"),
    (["{run}", "{tmp}/x", "--tokenizer={run}/metrics.jsonl"], 4, "expected a header"),
    (["{run}", "{tmp}/x", "--tokenizer=gpt2"], 2, "has 50257 ids, the model"),
    (["{run}", "{tmp}/x", "--tokenizer={run}/../few.bin"], 2, "has 3 ids, the model"),
    (["{run}", ""], 2, "no name"),
    (["{run}"], 2, "DST"),
    (["{run}", "{tmp}/x", "--overwritten"], 2, "did you mean --overwrite?"),
]


@pytest.mark.parametrize("arguments, code, says", BAD, ids=[" ".join(row[0]) for row in BAD])
def test_bad_input_is_one_clear_line(run, tmp_path, arguments, code, says, capsys):
    before = content(run / "last.ckpt")
    try:
        done = main([a.format(run=run, tmp=tmp_path) for a in arguments])
    except SystemExit as end:
        done = end.code
    error = capsys.readouterr().err
    assert (done, len(error.splitlines())) == (code, 1), error
    assert says in error
    assert list(tmp_path.iterdir()) == []
    assert content(run / "last.ckpt") == before


def test_llmc_s_file_carries_the_tokenizer_behind_what_llmc_reads(run, tmp_path, capsys):
    """The file then serves as well as the run; bf16, which has no sections, gets a remedy."""
    place, text = tmp_path / "m.bin", Writer(run).write("the", 9)
    assert main([str(run), str(place)]) == 0
    assert Writer(place).write("the", 9) == text
    assert main([str(place), str(tmp_path / "alone.bin"), "--tokenizer=none"]) == 0
    assert place.read_bytes().startswith((tmp_path / "alone.bin").read_bytes())
    assert main([str(run), str(place), "--overwrite"]) == 0
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    with pytest.raises(pyllmc.BadFile, match="checksum|CRC"):
        Model(place)
    capsys.readouterr()
    assert main([str(run), str(tmp_path / "b.bin"), "--dtype=bf16"]) == 0
    assert "note: bf16 files of llm.c carry no tokenizer: name it with --tokenizer" in capsys.readouterr().out


@TO
def test_an_export_is_replaced_only_when_asked(tmp_path, name):
    place = tmp_path / name
    save(place, CONFIG, make_model(CONFIG, seed=1).params)
    before = content(place)
    with pytest.raises(ValueError, match="exists: replace it with --overwrite"):
        save(place, CONFIG, make_model(CONFIG, seed=2).params)
    assert content(place) == before
    save(place, CONFIG, make_model(CONFIG, seed=2).params, overwrite=True)
    assert content(place).keys() == before.keys()
    assert content(place) != before


@TO
def test_what_is_no_export_is_never_replaced(tmp_path, name):
    place = tmp_path / name
    if name == "hf":
        save(place, CONFIG, make_model(CONFIG).params)
        (place / "notes.txt").write_text("mine")
    else:
        place.write_bytes(b"GGUF of someone else")
    before = content(place)
    with pytest.raises(ValueError, match="is not an export of pyllmc"):
        save(place, CONFIG, make_model(CONFIG).params, overwrite=True)
    assert content(place) == before


def test_a_folder_of_someone_else_is_never_replaced(tmp_path):
    place = tmp_path / "hf"
    place.mkdir()
    save(place, CONFIG, make_model(CONFIG).params)  # an empty folder may be used
    (place / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="does not say pyllmc_version"):
        save(place, CONFIG, make_model(CONFIG).params, overwrite=True)
    with pytest.raises(ValueError, match="is a folder"):
        save(place, CONFIG, make_model(CONFIG).params, to="bin", overwrite=True)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save(tmp_path / "link", CONFIG, make_model(CONFIG).params)
    assert (tmp_path / "real/config.json").exists()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda t: t.pop("transformer.h.1.ln_1.bias"), r"h.1.ln_1.bias is missing: expected \(16,\)"),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), "extra is no tensor of this model"),
        (
            lambda t: t.update({"transformer.wpe.weight": np.zeros((7, 16))}),
            r"expected \(8, 16\), found \(7, 16\)",
        ),
        (lambda t: t["transformer.ln_f.bias"].fill(np.nan), "ln_f.bias holds nan"),
        (lambda t: t["transformer.ln_f.bias"].fill(7e4), "fp16 cannot hold: write fp32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, says):
    m = make_model(CONFIG)
    tensors = {name: m.params[name].copy() for name in m.params}
    change(tensors)
    with pytest.raises(DataError, match=says):
        save(tmp_path / "hf", CONFIG, tensors, dtype="fp16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("meta", "what"),
    [({"masks": []}, "tokens seen, at most"), ({}, "tokens seen, at most"), ({"source": "x"}, "tokens seen")],
)
def test_the_card_counts_the_padding_of_pairs_as_what_may_be_tokens(meta, what):
    about = {"state": {"tokens": "15360"}, "options": {}, "loss": "", "meta": meta}
    assert (what, "15,360") in card.training_rows(about)


# ---- failures ----


def test_a_revision_is_of_the_hub(run, tmp_path, capsys):
    assert main([str(run), str(tmp_path / "x"), "--revision=main"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"{run} is not of the hub" in err and err.count("\n") == 1
    with pytest.raises(InvalidArgument, match="is not of the hub, .*: leave the revision out"):
        pyllmc.convert.load(run, revision="main")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tokens", [{"train": "x"}, {"train": 1.5, "val": 2}, {}, ["x"], "x"])
def test_the_card_leaves_out_what_an_odd_meta_json_says(tokens):
    about = {"state": {}, "options": {}, "loss": "", "meta": {"tokens": tokens, "source": "mats"}}
    assert card.training_rows(about) == [("steps", "0 of 0"), ("data", "mats")]


@TO
def test_what_does_not_read_back_is_not_put_in_place(tmp_path, name, monkeypatch):
    def wrong(x, dtype):
        made = dtypes.narrow(x, dtype).copy()
        made.reshape(-1)[-1:].view(np.uint32)[:] ^= 1  # one bit
        return made

    place = tmp_path / name
    save(place, CONFIG, make_model(CONFIG, seed=1).params)
    before = content(place)
    for module in (export.to_hf, export.to_gguf, export.to_bin):
        monkeypatch.setattr(module, "narrow", wrong)
    with pytest.raises(BadFile, match="does not read back as it was"):
        save(place, CONFIG, make_model(CONFIG, seed=2).params, overwrite=True)
    assert content(place) == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


@TO
@pytest.mark.parametrize("limit", [10, 5_000, 25_000])
def test_a_full_disk_is_one_clear_line_and_the_old_export_stays(tmp_path, name, limit):
    """RLIMIT_FSIZE imitates a full disk: writing beyond it fails."""
    place = tmp_path / name
    save(place, CONFIG, make_model(CONFIG, seed=1).params)
    before, limits = content(place), resource.getrlimit(resource.RLIMIT_FSIZE)
    other = make_model(CONFIG, seed=2).params
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        with pytest.raises(SystemFailure, match=f"cannot write {place}: "):
            save(place, CONFIG, other, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(place) == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


KILLED = """
import os, signal, sys
from pyllmc.convert import export
from pyllmc.convert.__main__ import main
export.compare = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
main([sys.argv[1], sys.argv[2], "--overwrite"])
"""


@TO
def test_a_kill_leaves_the_old_export(tmp_path, name):
    place, source = tmp_path / name, tmp_path / "m.ckpt"
    make_model(CONFIG, seed=2).save(source)
    save(place, CONFIG, make_model(CONFIG, seed=1).params)
    before = content(place)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, source, place], env=environment, cwd=ROOT, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    assert content(place) == before
    assert main([str(source), str(place), "--overwrite"]) == 0
