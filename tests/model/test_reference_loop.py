"""The loop of train_gpt2.py: it prints the engine's lines, and ends as it does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, ffi, lib
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")


import pyllmc  # noqa: E402
from pyllmc import check, train  # noqa: E402
from pyllmc.tables import options  # noqa: E402
from pyllmc.tables.layout import GPTConfig  # noqa: E402
from pyllmc.text import bins, dataset  # noqa: E402
from pyllmc.trainer import Options  # noqa: E402

reference = check.load_reference()


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine", "wsd"]),
    step=st.integers(0, 300),
    size=st.integers(1, 100),
    max_steps=st.integers(0, 250),
    warmup=st.integers(0, 300),
    final=st.floats(0, 1),
    decay=st.floats(0, 1),
)
def test_the_learning_rate_is_the_engines(schedule, step, size, max_steps, warmup, final, decay):
    out = ffi.new("double *")
    assert (
        lib.llmc_schedule_lr(out, schedule.encode(), step, size, max_steps, warmup, 3e-3, final, decay) == 0
    )
    o = options.parse([f"--schedule={schedule}"])
    o.lr, o.final_lr_frac, o.decay_frac = 3e-3, final, decay
    assert reference.learning_rate(o, step, size, max_steps, warmup) == pytest.approx(
        out[0], rel=1e-12, abs=1e-18
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "letters"
    texts = ["a cat sat " * 9, "the dog ran off " * 7, "we saw it all " * 8]
    dataset.write_dataset(
        [texts[i % 3] for i in range(40)], out, tokenizer="char", val_fraction=0.2, shard_tokens=997
    )
    return out


TINY = [
    "--n_layer=2",
    "--n_head=2",
    "--n_embd=16",
    "--max_seq_len=16",
    "--B=3",
    "--T=11",
    "--max_steps=6",
    "--warmup_steps=2",
]
TINY += ["--val_every=3", "--val_batches=4", "--log_every=1", "--grad_accum=2", "--threads=2"]


def numbers(text: str) -> list[tuple[str, ...]]:
    """The numbers that do not depend on the clock: step, loss, lr, norm, batch; step, val losses, and if the run ends."""
    steps = re.findall(
        r"step +(\d+)/(\d+) \| loss (\S+) \| lr (\S+) \| norm (\S+) \| \S+ ms \| \d+ tok/s \| ETA [\d:]+(.*)",
        text,
    )
    return steps + re.findall(
        r"step (\d+) \| val loss (?:x )?([\d.]+)( \(best\))?(?:, y ([\d.]+))?(.{0,16})", text
    )


INSTEAD = {
    "max_steps": ("epochs", "max_tokens"),
    "warmup_steps": ("warmup_tokens",),
    "grad_accum": ("global_batch",),
}


def tiny(data: Path, more: list[str]) -> list[str]:
    """The command line of a small run; options in `more` take the place of those that they contradict."""
    names = {argument[2:].partition("=")[0] for argument in more}
    kept = [argument for argument in TINY if not names & {*INSTEAD.get(argument[2:].partition("=")[0], ())}]
    return [*kept, f"--data={data}", *(argument.format(data=data) for argument in more)]


def assert_alike(ours: str, theirs: str) -> None:
    assert len(numbers(ours)) == len(numbers(theirs)) > 0
    for a, b in zip(numbers(ours), numbers(theirs)):
        for x, y in zip(a, b):
            assert x == y or float(x) == pytest.approx(float(y), abs=2e-4), (a, b)


def engines_lines(arguments: list[str]) -> str:
    parsed = Options(lib)
    parsed.parse([*arguments, "--out=", "--sample_every=0"])
    return "\n".join(event.text for event in pyllmc.Trainer(parsed))


@pytest.mark.parametrize(
    "more, validations",
    [
        ([], 3),
        (["--no_shuffle", "--schedule=wsd", "--grad_clip=0", "--T=16"], 3),
        (["--window=4", "--weight_decay=0.5", "--untied"], 3),
        (["--window=4", "--pattern=L"], 3),
        (["--dropout=0.2", "--attn_pdrop=0.3", "--window=4"], 3),
        (["--val_data=x={data},y={data}/train_000000.bin", "--patience=1", "--lr=9", "--val_every=1"], 2),
        (["--max_tokens=700", "--grad_accum=4", "--batch_ramp_tokens=200", "--decay_tokens=250"], 4),
        (["--epochs=0.05", "--warmup_tokens=100", "--no_shuffle"], 2),
        (["--global_batch=9"], 3),
        (["--global_batch=3"], 3),
        (["--overfit_batch"], 3),
        (["--separate_documents", "--dropout=0.1"], 3),
    ],
)
def test_the_same_lines_as_the_engine(data, capsys, more, validations):
    arguments = tiny(data, more)
    assert reference.main(arguments) == 0
    ours, theirs = capsys.readouterr().out, engines_lines(arguments)
    assert_alike(ours, theirs)
    assert len(re.findall("val loss", ours)) == validations
    told = [re.search(r"^training: .*$", text, re.M)[0] for text in (ours, theirs)]
    assert told[0] == told[1]


def test_help_shows_what_has_an_effect(capsys):
    """Other options of ./train_gpt2 are accepted, so that its command lines run here, too."""
    with pytest.raises(SystemExit):
        reference.parse(["--help"])
    shown = set(re.findall(r"^  --(\w+)", capsys.readouterr().out, re.M)) & set(options.options())
    source = Path(reference.__file__).read_text()
    used = {name for name in shown if re.search(rf'\bo\.{name}\b|"{name}"', source)}
    assert len(shown) > 40 and shown - used == {"config"}, "the parser reads it"
    assert not shown & set(reference.WITHOUT_EFFECT)
    assert reference.parse(["--temperature=0.5", "--keep=2"]).temperature == 0.5


def test_outliers_are_the_engines(data, capsys):
    """With so low a limit many steps are left out, and each changes all losses after it."""
    arguments = tiny(data, ["--max_steps=150", "--skip_outliers=0.5", "--val_every=0", "--grad_accum=1"])
    assert reference.main(arguments) == 0
    ours = capsys.readouterr().out
    assert 3 < ours.count("is an outlier") < 22
    theirs = re.sub(r", z-score \S+", "", engines_lines(arguments))
    assert_alike(re.sub(r", z-score \S+", "", ours), theirs)


@pytest.mark.parametrize(
    "more",
    [
        ["--epochs=1", "--max_steps=3"],
        ["--epochs=1", "--max_tokens=3"],
        ["--max_tokens=1", "--max_steps=3"],
        ["--warmup_steps=1", "--warmup_tokens=9"],
        ["--overfit_batch", "--epochs=1"],
        ["--batch_ramp_tokens=9", "--grad_accum=1"],
        ["--val_data=,"],
        ["--val_data={data},{data}"],
        ["--patience=1", "--val_every=0"],
        ["--val_data={data}/a b,{data}"],
    ],
)
def test_what_the_engine_refuses(data, more, capsys):
    """In one line each, which names the option."""
    arguments = [f"--data={data}", "--out=", *(argument.format(data=data) for argument in more)]
    for main in (reference.main, train.main):
        assert main([a for a in arguments if a != "--out=" or main is train.main]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and more[0].partition("=")[0] in error, error


def test_exports_at_the_end(data, tmp_path):
    model, state = tmp_path / "model.bin", tmp_path / "state.bin"
    arguments = [
        *TINY,
        f"--data={data}",
        f"--export={model}",
        "--export_version=5",
        f"--export_state={state}",
    ]
    run = subprocess.run(
        [sys.executable, "train_gpt2.py", *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    V = (
        json.loads((data / "meta.json").read_text()).get("vocab_size")
        or reference.Tokenizer.load(data / "tokenizer.bin").vocab_size
    )
    assert reference.read_model(str(model)).config == GPTConfig(V, 16, 2, 2, 16)
    assert np.fromfile(state, "<i4", 4).tolist() == [20240327, 2, 3, 11]


@pytest.mark.parametrize(
    "arguments, reason, code",
    [
        (["--model=d13"], "d13", 2),
        (["--T=17"], "longer than the model's context of 16: lower --T", 2),
        (["--data=nowhere"], "there is no data at nowhere: make the data with", 5),
        (["--schedule=cosin"], "'cosin' is not one of constant, linear, cosine, wsd", 2),
        (["--vocab_size=3"], "different vocabularies", 4),
        (["--n_head=3"], "n_embd=16 is not a multiple of n_head=3", 2),
    ],
)
def test_bad_input_is_one_line(data, capsys, arguments, reason, code):
    names = [a.partition("=")[0] for a in arguments]
    rest = [a for a in [*TINY, f"--data={data}"] if a.partition("=")[0] not in names]
    assert reference.main([*rest, *arguments]) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert reason in err


HEAD = bins.pack_header(20240520, 1, 500)


@pytest.mark.parametrize(
    "content, code",
    [
        (None, 5),
        (b"", 4),
        (b"Once upon a time, this was text", 4),
        (HEAD[:100], 4),
        (HEAD + bytes(100), 4),
        (HEAD + bytes(1000), 2),  # valid, but demo has no vocabulary
    ],
)
def test_bad_data_ends_every_front_end_alike(tmp_path, capsys, content, code):
    """The reason is the same, too; the reference reports it before a vocabulary that the model lacks."""
    path = tmp_path / "x.bin"
    if content is not None:
        path.write_bytes(content)
    assert reference.main([f"--data={path}"]) == code
    ours = capsys.readouterr().err
    assert train.main([f"--data={path}", "--out="]) == code
    theirs = capsys.readouterr().err
    assert ours.count("\n") == theirs.count("\n") == 1
    for reason in ("there is no data at", "is empty", "is no token file", "truncated", "vocabulary"):
        assert (reason in ours) == (reason in theirs), (ours, theirs)


@pytest.mark.parametrize("option", ["export", "export_state"])
def test_a_place_that_cannot_be_written_is_told_before_training(data, tmp_path, capsys, option):
    (tmp_path / "folder.bin").mkdir()
    for place, reason in (("none/e.bin", "No such file or directory"), ("folder.bin", "Is a directory")):
        assert reference.main([*TINY, f"--data={data}", f"--{option}={tmp_path / place}"]) == 5
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        assert f"cannot write {tmp_path / place}: {reason}; choose another" in err
    assert os.listdir(tmp_path) == ["folder.bin"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("export", [True, False])
def test_an_interrupted_training_exports_what_there_is(data, tmp_path, number, export):
    model = tmp_path / "model.bin"
    arguments = [*TINY, f"--data={data}", "--max_steps=1000000", *([f"--export={model}"] if export else [])]
    process = subprocess.Popen(
        [sys.executable, "train_gpt2.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    while "step" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    kept = f"the weights go to {model}" if export else "nothing is kept without --export"
    assert process.returncode == 130
    answer = r"stopping after this [\w -]+; again to quit now\n"
    assert re.fullmatch(rf"{answer}train_gpt2.py: interrupted after step \d+: {re.escape(kept)}\n", said)
    if export:
        assert reference.read_model(str(model)).config.n_layer == 2


def test_a_run_folder_is_a_model(tmp_path):
    config = GPTConfig(37, 6, 2, 2, 8)
    gpt = reference.GPT(config, seed=3)
    reference.write_model(gpt, str(tmp_path / "last.ckpt"))
    again = reference.load_model(reference.parse([f"--model={tmp_path}"]))
    assert all(torch.equal(p, q) for p, q in zip(gpt.parameters(), again.parameters()))


@pytest.mark.parametrize("option", ["--resume=runs/demo", "--out=runs/x", "--overwrite", "--plan"])
def test_what_the_reference_does_not_do_is_refused(option, capsys):
    with pytest.raises(SystemExit) as stop:
        reference.main([option])
    assert stop.value.code == 2
    assert option.partition("=")[0] in capsys.readouterr().err


def test_a_device_that_is_not_there_is_one_line_and_6(capsys):
    for device in ("quantum", *([] if torch.cuda.is_available() else ["cuda"])):
        assert reference.main(["--max_steps=0", f"--device={device}"]) == 6
        assert capsys.readouterr().err.count("\n") == 1
    assert train.main(["--device=quantum", "--max_steps=0"]) == 6
    assert capsys.readouterr().err.count("\n") == 1


def test_shards_are_read_in_the_same_order(data):
    """Compares position for position; the loaders' own tests compare more."""
    loader = bins.Loader(bins.find_shards(data), 2, 5, shuffle=True, seed=3, eot=7)
    handle = ffi.new("llmc_loader **")
    assert lib.llmc_loader_open(handle, str(data).encode(), b"train", 2, 5, 1, 3, 0, 1, 0, 7) == 0
    x, y = ffi.new("int[10]"), ffi.new("int[10]")
    for _ in range(20):
        assert lib.llmc_loader_next(handle[0], x, y) == 0
        inputs, targets = loader.next()
        assert [*x] == inputs.ravel().tolist()
        assert [*y] == targets.ravel().tolist()
    lib.llmc_loader_free(handle[0])
