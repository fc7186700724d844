"""Both front ends as a person uses them: equal options give equal lines, and bad input gives one clear line."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, lib

from pyllmc.text import bins, dataset

BINARY = [str(ROOT / "train_gpt2")]
MODULE = [sys.executable, "-m", "pyllmc.train"]
FRONT_ENDS = pytest.mark.parametrize("program", [BINARY, MODULE], ids=["binary", "python"])
TINY = [
    "--model=gpt-nano",
    "--max_seq_len=16",
    "--n_layer=2",
    "--B=3",
    "--T=7",
    "--warmup_steps=2",
    "--log_every=1",
]
SHORT = ["--max_steps=4", "--val_every=2", "--sample_every=4", "--checkpoint_every=0"]

if "PYLLMC_LIB" in os.environ:
    pytest.skip("the binary links the ordinary build", allow_module_level=True)


def run(program: list[str], *arguments: str, cwd: Path = ROOT, **kwargs) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **kwargs.pop("env", {})}
    command = [*program, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, **kwargs
    )


def without_times(text: str) -> list[str]:
    lines = [re.sub(r"\| [\d.]+ ms \|.*", "", line) for line in text.splitlines()]
    return [
        re.sub(r"fits in .*|\S*last.ckpt", "", line) for line in lines if not line.startswith("loss curve")
    ]


def test_both_front_ends_print_the_same_lines(data, tmp_path):
    outputs, endings = [], []
    for program, name in ((BINARY, "a"), (MODULE, "b")):
        done = run(program, f"--data={data}", f"--out={tmp_path / name}", *TINY, *SHORT)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
        endings.append(done.stderr.replace(str(tmp_path / name), "RUN").split("next:")[0])
    assert endings[0] == endings[1]
    assert re.fullmatch(
        r"best: .* kept in RUN/best.ckpt\nlast: step 4, .* kept in RUN/last.ckpt\n", endings[0]
    )
    assert without_times(outputs[0]) == without_times(outputs[1])
    a, b = ((tmp_path / name / "metrics.jsonl").read_text() for name in "ab")
    drop = re.compile(r', "ms".*')
    assert drop.sub("", a) == drop.sub("", b)  # nine digits are enough to tell any two floats apart
    assert "val loss" in outputs[0]
    assert "sample: " in outputs[0]
    assert (tmp_path / "b" / "loss.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "ends, code, says", [("kill -INT $$", 130, ""), ("exit 130", 130, ""), ("exit 5", 5, "--data")]
)
def test_the_binary_while_its_data_is_made(ends, code, says, tmp_path):
    """A script takes the place of python3, and ends as an interrupted or a failed one does."""
    (tmp_path / "python3").write_text(f"#!/bin/sh\n{ends}\n")
    (tmp_path / "python3").chmod(0o755)
    done = run(BINARY, cwd=tmp_path, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == code
    assert done.stderr.splitlines()[0] == "making data/stories"
    assert len(done.stderr.splitlines()) == 1 + bool(says) and says in done.stderr


@FRONT_ENDS
@pytest.mark.parametrize(
    "argument, code, says",
    [
        ("--schedule=cos", 2, "schedule 'cos'"),
        ("--model=d13x", 2, "d13x"),
        ("--precision=fp16", 2, "precision 'fp16'"),
        ("--device=gpu", 6, "cpu, cuda, emu"),
        ("--n_head=7", 2, "n_head=7"),
        ("--T=1000", 2, "--T=1000"),
        ("--out={run}", 2, "holds a run"),
    ],
)
def test_options_are_checked_before_data_is_made(program, argument, code, says, bad, tmp_path):
    done = run(program, argument.format(**bad), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@FRONT_ENDS
def test_a_plan_needs_no_data_where_the_model_has_a_vocabulary(program, tmp_path):
    done = run(program, "--model=d12", "--plan", "--B=1", "--T=16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "V=50257, 124.44M parameters, fresh weights\nmemory plan: " in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [[], ["--out=run", "--resume=auto"]], ids=["begin", "auto"])
def test_data_that_cannot_be_made_is_one_line_with_the_reason(more, tmp_path):
    """The program runs outside of the checkout, without the package."""
    done = run(BINARY, "--max_steps=1", *more, cwd=tmp_path, env={"PYTHONPATH": ""})
    if done.returncode == 0:
        pytest.skip("the package is installed")
    assert done.returncode == 5
    first, line = done.stderr.splitlines()
    assert first == "making data/stories"
    assert line == (
        "train_gpt2: data/stories cannot be made, because python3 -m pyllmc.stories does not run here: "
        "run in the checkout with python3 >= 3.9, or give --data"
    )


@FRONT_ENDS
@pytest.mark.parametrize(
    ("obstacle", "code", "says"),
    [
        (
            "a file",
            5,
            "cannot write {}/data/stories: File exists; choose another output place, or give --data",
        ),
        (
            "a stranger",
            2,
            "{}/data/stories exists and is not a data set: choose another output place, or give --data",
        ),
        ("a limit", 5, "File too large; free some space or choose another output place, or give --data"),
    ],
)
def test_data_that_cannot_be_written_is_one_line(program, tmp_path, obstacle, code, says):
    folder = tmp_path / "data/stories"
    if obstacle == "a file":
        folder.parent.touch()
    elif obstacle == "a stranger":
        folder.mkdir(parents=True)
        (folder / "x").touch()
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000))
    path = {"PYTHONPATH": str(ROOT)}
    done = run(program, cwd=tmp_path, env=path, preexec_fn=limit if obstacle == "a limit" else None)
    first, line = done.stderr.splitlines()
    assert (first, done.returncode) == ("making data/stories", code)
    assert line.endswith(says.format(os.path.realpath(tmp_path))) and line.count(": ") <= 2


@FRONT_ENDS
def test_validation_that_is_off_is_not_missing_data(program, data, tmp_path):
    for every, says in (("--val_every=0", False), (f"--val_data={data / 'val_000000.bin'}", False)):
        done = run(program, f"--data={data}", "--out=", *TINY, "--plan", every)
        assert ("no validation data" in done.stdout) == says
    shard = shutil.copy(data / "train_000000.bin", tmp_path)
    for path in shard, tmp_path:  # a file, and a folder without val*.bin
        done = run(
            program, f"--data={path}", "--vocab_size=99", "--out=", *TINY, "--max_steps=1", "--sample_every=0"
        )
        assert done.returncode == 0 and "no validation data" in done.stdout, done.stderr


@FRONT_ENDS
def test_training_starts_from_a_run(program, bad, data):
    for model, file in ((bad["run"], "best.ckpt"), (bad["run"] / "last.ckpt", "last.ckpt")):
        done = run(program, f"--data={data}", f"--model={model}", "--out=", "--B=3", "--T=7", "--max_steps=0")
        assert done.returncode == 0, done.stderr
        assert f"from {bad['run']}/{file}" in done.stdout


@FRONT_ENDS
def test_a_sample_with_nul_bytes_is_whole(program, tmp_path):
    """A byte model that has only seen NULs writes them; text can contain them."""
    data, out = tmp_path / "data", tmp_path / "run"
    dataset.write_dataset(["\0" * 40 + "z"] * 50, data, tokenizer="byte", eot=False)
    options = [*TINY, "--max_steps=30", "--lr=0.01", "--val_every=0", "--temperature=0", "--prompt=z"]
    done = run(program, f"--data={data}", f"--out={out}", *options, "--sample_every=30", "--sample_tokens=6")
    assert done.returncode == 0, done.stderr
    assert "sample: z" + "\0" * 6 + "\n" in done.stdout
    (sample,) = (out / "samples").iterdir()
    assert sample.read_bytes() == b"z" + b"\0" * 6


@FRONT_ENDS
def test_more_threads_than_cores_are_pointed_out(program, data, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = lib.llmc_default_threads()
    s = "s" * (cores > 1)
    for threads, says in (
        (cores, f" {cores} thread{s}\n"),
        (cores + 3, f" threads on {cores} core{s}: more than"),
    ):
        done = run(program, f"--data={data}", "--out=", *TINY, "--plan", f"--threads={threads}")
        assert done.returncode == 0, done.stderr
        assert says in done.stdout


@FRONT_ENDS
def test_help(program):
    done = run(program, "--help")
    assert done.returncode == 0
    assert "--max_steps=N" in done.stdout
    assert "exit status" in done.stdout


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def bad(tmp_path_factory, data) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bad")
    whole = (data / "train_000000.bin").read_bytes()
    large = np.full(500, 60000, np.uint16)
    other = folder / "other"
    dataset.write_dataset(["0123456789 quite another alphabet"] * 30, other, tokenizer="char")
    subprocess.run(
        [*BINARY, f"--data={data}", f"--out={folder / 'run'}", *TINY, "--max_steps=1"],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    bins.write_shard(folder / "large.bin", large, vocab_size=65536)
    bins.write_shard(folder / "short.bin", [1, 2, 3], vocab_size=10)
    (folder / "hollow").mkdir()
    return {
        "empty": write(folder / "empty.bin", b""),
        "truncated": write(folder / "truncated.bin", whole[:-3]),
        "text": write(folder / "text.bin", b"Once upon a time there was a file that is no shard.."),
        "garbage": write(folder / "garbage.ckpt", os.urandom(4096)),
        "cut": write(folder / "cut.ckpt", (folder / "run/last.ckpt").read_bytes()[:-10]),
        "large": folder / "large.bin",
        "short": folder / "short.bin",
        "hollow": folder / "hollow",
        "other": other,
        "run": folder / "run",
        "file": write(folder / "file", b"not a folder"),
        "missing": folder / "missing",
    }


BAD_INPUT = [  # arguments, exit code, the words in the line
    (["--data={missing}"], 5, "there is no data at"),
    (["--data={hollow}"], None, "hollow"),
    (["--data="], 2, "--data is empty"),
    (["--data={empty}"], 4, "empty.bin"),
    (["--data={truncated}", "--vocab_size=99"], 4, "truncated.bin"),
    (["--data={text}", "--vocab_size=99"], 4, "text.bin"),
    (["--data={large}", "--vocab_size=99"], None, "60000"),
    (["--data={short}", "--vocab_size=99"], None, "tokens"),
    (["--data={data}", "--model={garbage}"], 4, "garbage.ckpt"),
    (["--data={data}", "--model={cut}"], 4, "cut.ckpt"),
    (["--data={other}", "--model={run}/last.ckpt"], 2, "V="),
    (
        ["--data={data}", "--model={hollow}"],
        5,
        "best.ckpt, last.ckpt",
    ),
    (["--resume={missing}"], 5, "cannot be read"),
    (["--resume={hollow}"], 5, "last.ckpt"),
    (["--data={data}", "--T=1000"], 2, "longer than the model's context"),
    (["--data={data}", "--n_head=5"], 2, "not a multiple of n_head"),
    (["--data={data}", "--vocab_size=3"], 2, "less than the tokenizer's"),
    (["--data={data}", "--model=d13"], 2, "neither a file nor a known size"),
    (["--data={data}", "--schedule=cosin"], 2, "cosin"),
    (
        ["--data={data}", "--out={file}/run"],
        5,
        "run cannot be made: {file} is not a folder; name another --out",
    ),
    (["--out=/dev/null"], 5, "/dev/null cannot be made: /dev/null is not a folder; name another --out"),
    (["--data={data}", "--out={run}"], 2, "--overwrite"),
    (["--data={data}", "--tokenizer={text}"], 4, "text.bin"),
    (["--max_stesp=3"], 2, "did you mean --max_steps?"),
    (["--frobnicate=3"], 2, "unknown option"),
    (["--B=0"], 2, "not in 1.."),
    (["--lr=-1"], 2, "not in 0.."),
    (["--threads=-2"], 2, "not in 0.."),
    (["extra"], 2, "not an option"),
]


@FRONT_ENDS
@pytest.mark.parametrize(
    "arguments, code, says", BAD_INPUT, ids=lambda x: " ".join(x) if isinstance(x, list) else None
)
def test_bad_input_is_one_clear_line(program, arguments, code, says, bad, data, tmp_path):
    filled = [argument.format(data=data, **bad) for argument in arguments]
    given = {argument.split("=")[0] for argument in filled}
    rest = [
        option for option in [*TINY, "--max_steps=2", "--val_every=0"] if option.split("=")[0] not in given
    ]
    if not any("out" in name for name in given):
        rest.append(f"--out={tmp_path / 'run'}")
    done = run(program, *filled, *(rest if given & {"--data", "--resume"} else []))
    assert done.returncode == code or (code is None and done.returncode in (2, 4, 5)), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert says.format(**bad) in done.stderr
    assert "Traceback" not in done.stderr
    assert code is None or done.stdout == ""


@FRONT_ENDS
def test_a_full_disk_is_one_clear_line_and_the_old_checkpoint_stays(program, data, tmp_path):
    """RLIMIT_FSIZE imitates a full disk: writing beyond it fails."""
    out = tmp_path / "run"
    options = [f"--data={data}", f"--out={out}", *TINY, "--val_every=0", "--sample_every=0"]
    assert run(program, *options, "--max_steps=1").returncode == 0
    before = (out / "last.ckpt").read_bytes()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = run(program, f"--resume={out}", "--max_steps=3", preexec_fn=limit)
    assert done.returncode == 5, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "last.ckpt" in done.stderr
    assert (out / "last.ckpt").read_bytes() == before
    assert [p.name for p in out.glob("*.tmp*")] == []


@FRONT_ENDS
def test_interrupt_saves_and_resume_continues(program, data, tmp_path):
    out = tmp_path / "run"
    options = [
        f"--data={data}",
        f"--out={out}",
        *TINY,
        "--val_every=0",
        "--sample_every=0",
        "--max_steps=1000000",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*program, *options], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    deadline = time.time() + 60
    while time.time() < deadline and "step" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "continue with --resume" in output
    # the run is past that step already: nothing is done, nothing harmed
    done = run(program, f"--resume={out}", "--max_steps=1")
    assert done.returncode == 0, done.stderr
    assert "last: step " in done.stderr and "before the first step" not in done.stderr
    none = run(program, f"--resume={out}/step_00000001.ckpt")
    assert none.returncode == 5 and none.stderr.endswith("No such file or directory; check the path\n")
