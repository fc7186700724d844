"""Options in a file: a run's file repeats it; files of people are read, or refused by file and line."""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, lib, not_under_asan

import pyllmc
import train_gpt2
from pyllmc.engine._ffi import InvalidArgument
from pyllmc.engine.checkpoint import read_section
from pyllmc.tables import options as as_text
from pyllmc.trainer import Options

SIZES = {"model": "gpt-nano", "max_seq_len": 16, "n_layer": 1, "B": 2, "T": 8}
OFTEN = {"val_every": 3, "val_batches": 1, "sample_every": 0, "checkpoint_every": 2, "log_every": 1}
TIMES = re.compile(r', "ms".*')


def train(stop_at: int = 0, **options) -> None:
    trainer = pyllmc.Trainer(**options)
    for event in trainer:
        if stop_at and event.kind == "step" and event.step == stop_at:
            trainer.stop()


def metrics(run: Path) -> str:
    return TIMES.sub("", (run / "metrics.jsonl").read_text())


def again(run: Path, out: Path, *more: str) -> None:
    """Repeats a run by the C program from the run's own file."""
    if "PYLLMC_LIB" in os.environ:
        train(config=run, out=out)
        return
    command = [ROOT / "train_gpt2", f"--config={run / 'config.txt'}", f"--out={out}", "--threads=1", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# ---- the file of a run ----


def test_a_fresh_run_is_repeated_to_the_bit(data, tmp_path):
    train(data=data, out=tmp_path / "a", lr=0.2 / 3, max_steps=5, prompt=" the ", **SIZES, **OFTEN)
    again(tmp_path / "a", tmp_path / "b")
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") != ""
    text = (tmp_path / "a/config.txt").read_text()
    for line in ("n_layer=1", "n_embd=48", "max_seq_len=16", "T=8", "beta2=0.95", "temperature=0.8"):
        assert f"\n{line}\n" in text
    assert '\nprompt=" the "\n' in text
    assert not re.search(r"^(out|resume|config|overwrite|plan|device|threads)=", text, re.M)
    without_call = [re.sub(r"(?m)^# \w+=.*", "", (tmp_path / x / "config.txt").read_text()) for x in "ab"]
    assert without_call[0] == without_call[1]


def test_a_run_from_weights_is_repeated_to_the_bit(data, tmp_path):
    train(data=data, out=tmp_path / "first", max_steps=4, **SIZES, **OFTEN)
    sizes = {"model": tmp_path / "first", "B": 2, "T": 8}
    train(data=data, out=tmp_path / "a", max_steps=20, **sizes, **OFTEN)
    again(tmp_path / "a", tmp_path / "b")
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") != ""
    assert "\nlr=0.00096\nschedule=cosine\nwarmup_steps=2\n" in (tmp_path / "a/config.txt").read_text()


def test_a_resumed_run_is_repeated_to_the_bit(data, tmp_path):
    """A run that was stopped, and resumed without further options, is repeated from its beginning."""
    train(3, data=data, out=tmp_path / "a", max_steps=6, **SIZES, **OFTEN)
    train(resume=tmp_path / "a")
    again(tmp_path / "a", tmp_path / "b")
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") and metrics(tmp_path / "a").count("loss") > 6
    assert "until" not in (tmp_path / "a/config.txt").read_text()


def test_what_was_otherwise_before_a_resume_is_told(data, tmp_path):
    """Comments say so; further resumes keep them; with them each part of the run is repeated."""
    train(data=data, out=tmp_path / "a", max_steps=2, **SIZES, **OFTEN)
    train(resume=tmp_path / "a", max_steps=4, lr=0.001)
    train(resume=tmp_path / "a/last.ckpt", max_steps=6, out=tmp_path / "c")
    text = (tmp_path / "c/config.txt").read_text()
    lr = re.search(r"^# until step 2: --max_steps=2 --lr=(\S+)$", text, re.M)[1]
    assert re.search(r"^# until step 4: --max_steps=4$", text, re.M) and "\nlr=0.001\n" in text
    config = tmp_path / "c/config.txt"
    train(config=config, out=tmp_path / "b", max_steps=2, lr=lr)
    train(config=config, resume=tmp_path / "b", max_steps=4)
    train(config=config, resume=tmp_path / "b")
    assert metrics(tmp_path / "b") == metrics(tmp_path / "a") + metrics(tmp_path / "c")


def longest(path: Path) -> str:
    """Another name of a path, as long as a value of an option may be."""
    return str(path.parent) + "/" * (1023 - len(str(path.parent)) - len(path.name)) + path.name


def longest_values(data: Path, tmp_path: Path) -> dict[str, str]:
    """Every option of training with the longest value that a run can have; but those that have other options beside them, words, and flags."""
    train(data=data, out=tmp_path / "first", max_steps=1, **SIZES, **OFTEN)
    (tmp_path / "empty.txt").write_text("")
    values = {
        **{"data": longest(data), "val_data": longest(data), "tokenizer": longest(data / "tokenizer.bin")},
        **{"model": longest(tmp_path / "first"), "out": longest(tmp_path / "run")},
        **{"config": longest(tmp_path / "empty.txt"), "prompt": ("the cat " * 128)[:1023]},
        **{"train_only": "h.0.qkvw," * 113 + "lnf***", "lora_rank": "2"},
        **{"template": "{prompt}" + ("the cat " * 128)[: 1023 - 17] + "{answer}."},
        **{
            "n_layer": "1",
            "n_head": "3",
            "n_embd": "48",
            "max_seq_len": "16",
            "vocab_size": "0",
            "window": "0",
        },
        **{"max_steps": "1", "B": "2", "T": "8", "grad_accum": "1", "threads": "1", "sample_tokens": "1"},
        **{
            "epochs": "0",
            "max_tokens": "0",
            "warmup_tokens": "0",
            "batch_ramp_tokens": "0",
            "global_batch": "0",
            "diloco": "0",
            "eval_every": "0",
            "eval_limit": "0",
        },
        **{"repetition_penalty": "1.1234567890123457", "val_batches": "1", "recompute": "3", "top_k": "1"},
    }
    for name, option in as_text.options().items():
        if name not in values and option.type == "INT":
            values[name] = str(int(min(option.most, 2**63 - 1024)))
        elif name not in values and option.type == "FLOAT":
            values[name] = repr(min(option.most, 0.12345678901234566))
    return values


def test_every_option_at_its_longest_is_saved_and_read_back(data, tmp_path):
    values, run = longest_values(data, tmp_path), tmp_path / "run"
    strings = {name for name, option in as_text.options().items() if option.type == "STRING"}
    assert strings - values.keys() == {
        "resume",
        "device",
        "precision",
        "schedule",
        "pattern",
        "lora_on",
        "reduce_precision",
        "eval_tasks",
        "eval_data",
    }
    assert sum(len(value) == 1023 for value in values.values()) == 9
    train(**values)
    saved = read_section(lib, str(run / "last.ckpt").encode(), b"OPTIONS ").decode()
    recorded = dict(line.split("=", 1) for line in saved.splitlines())
    expected = {**values, "vocab_size": recorded["vocab_size"]}  # 0 is the model's own
    assert list(recorded) == list(as_text.options())
    assert {name: recorded[name] for name in values} == expected
    plan = next(
        iter(pyllmc.Trainer(resume=longest(run), data=data, val_data="", tokenizer="", prompt=""))
    ).text
    for name, value in (("data", data), ("val_data", "none"), ("tokenizer", "none"), ("prompt", "none")):
        assert f"\n{name}: {values[name]} -> {value}" in plan
    of_run, options = set(values) - {"out", "config", "threads", "timeout"}, Options(lib)
    options.set("config", run)
    assert {name: options.get(name) for name in of_run} == {name: expected[name] for name in of_run}


def test_another_models_shape_is_its_own(data, tmp_path):
    train(data=data, out=tmp_path / "a", max_steps=2, **SIZES, **OFTEN)
    plan = next(iter(pyllmc.Trainer(config=tmp_path / "a", model="gpt-mini", T=8, out=""))).text
    assert "L=6 NH=6 C=192" in plan and "lr 0.0017" in plan
    train(config=tmp_path / "a", model=tmp_path / "a", out=tmp_path / "tuned")
    assert "\nlr=0.00096\n" in (tmp_path / "tuned/config.txt").read_text()


# ---- files of people ----

GOOD = '\ufeff# mine\n\n max-steps = 1e1 \r\nlr=2e-3 # high\nprompt="a \\"b\\" # c "\nout=runs/#1\nshuffle=no\nmax_new_tokens=7'


def test_a_file_as_people_write_it(tmp_path):
    path = tmp_path / "my.txt"
    path.write_text(GOOD)
    expected = dict(
        max_steps="10", lr="0.002", prompt='a "b" # c ', out="runs/#1", shuffle="0", sample_tokens="7"
    )
    options = Options(lib)
    options.parse(["--lr=0.5", f"--config={path}", "--seed=3"])
    assert {name: options.get(name) for name in expected} == {**expected, "lr": "0.5"}
    read = as_text.parse(["--lr=0.5", f"--config={path}", "--seed=3"])
    assert (read.lr, read.max_steps, read.prompt, read.out, read.shuffle, read.sample_tokens, read.seed) == (
        *(0.5, 10, 'a "b" # c ', "runs/#1", False),
        *(7, 3),
    )
    other = tmp_path / "other.txt"
    other.write_text("B=4")
    options.parse([f"--config={path}", f"--config={other}"])  # only the last file counts
    assert (options.get("B"), options.get("max_steps"), options.get("seed")) == ("4", "4000", "3")


BAD = [
    ("B=4\nblock=3", 2, "unknown option --block"),
    ("B=4\n\nsample_token=3", 3, "did you mean --sample_tokens?"),
    ("B=4\nB=5", 2, "--B stands here a second time"),
    ("sample_tokens=4\nmax-new-tokens=5", 2, "second time"),
    ("lr=fast", 1, "is not a number"),
    ("# x\nB=0", 2, "is not in 1..65536"),
    ("seed=1e-1", 1, "is not a whole number"),
    ("B 4", 1, "'B 4' is no line name=value"),
    ("config=x", 1, "cannot name another one"),
    ('prompt="a', 1, 'closing " is missing'),
    ('prompt="a" b', 1, "nothing but a # comment"),
    ("seed=1\nlr=\0", 2, "a NUL byte"),
    ("bot=Bob", 1, "unknown option --bot"),
]


@pytest.mark.parametrize("text, line, says", BAD)
def test_a_bad_line_is_told_by_file_and_line_and_nothing_is_taken(text, line, says, tmp_path, capsys):
    path = tmp_path / "bad.txt"
    path.write_text("val_every=7\n" + text)
    options = Options(lib)
    for arguments in ([f"--config={path}"], ["--lr=1", "--B=2", f"--config={path}"]):
        with pytest.raises(InvalidArgument, match=re.escape(f"{path}:{line + 1}: ")) as caught:
            options.parse(arguments)
        assert says in str(caught.value) and options.get("val_every") == "200"
    with pytest.raises(SystemExit) as ended:
        as_text.parse([f"--config={path}"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and f"{path}:{line + 1}: " in said and says in said and said.count("\n") == 1


def test_a_file_that_is_not_there(tmp_path, capsys):
    with pytest.raises(pyllmc.SystemFailure, match="--config=.*none.txt cannot be read: No such file"):
        Options(lib).parse([f"--config={tmp_path / 'none.txt'}"])
    with pytest.raises(SystemExit) as ended:
        as_text.parse([f"--config={tmp_path / 'none.txt'}"])
    assert ended.value.code == 5 and "cannot be read: No such file" in capsys.readouterr().err


@not_under_asan
@pytest.mark.parametrize("command", [["./train_gpt2"], [sys.executable, "train_gpt2.py"]])
@pytest.mark.parametrize(
    "path, code, says",
    [
        ("/dev/zero", 2, "is longer than 1 MiB"),
        ("/dev/stdin", 2, ":2: unknown option --b"),
        ("csrc", 5, "Is a dir"),
        ("{fifo}", 5, "it is a named pipe, which nobody may ever write into"),
    ],
)
def test_what_never_ends_is_refused_and_a_pipe_is_a_file(command, path, code, says, tmp_path):
    path = path.format(fifo=tmp_path / "fifo")
    os.mkfifo(tmp_path / "fifo")

    def limit():  # reading everything must not take the machine's memory
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    done = subprocess.run(
        [*command, f"--config={path}"],
        cwd=ROOT,
        input="seed=1\nb\xe9=1\n".encode("latin-1"),
        capture_output=True,
        timeout=60,
        preexec_fn=limit,
    )
    said = done.stderr.decode(errors="replace")
    assert done.returncode == code and path in said and says in said and said.count("\n") == 1, said


def test_an_endless_line_is_no_other_than_many(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("# " + "x" * (1 << 20))
    with pytest.raises(InvalidArgument, match="is longer than 1 MiB: this is no file of options"):
        Options(lib).parse([f"--config={path}"])
    path.write_text("seed=5\n# " + "x" * ((1 << 20) - 9))  # as long as allowed, without an end of the line
    options = Options(lib)
    options.parse([f"--config={path}"])
    assert options.get("seed") == "5"


# ---- what fine-tuning begins with ----


@pytest.mark.parametrize("C, lr", [(48, 0.00096), (768, 6e-5), (1600, 2.88e-5), (16, 1e-3)])
def test_the_gentle_rate_follows_from_the_width(C, lr):
    o = argparse.Namespace(model=str(ROOT), lr=0.0, seed=1)
    train_gpt2.settle_rate(o, C)
    assert o.lr == pytest.approx(lr)


@pytest.mark.parametrize("more", [[], ["--lr=0.01"], ["--warmup_steps=50"], ["--max_steps=30"]])
def test_the_reference_and_the_engine_fine_tune_alike(more, data, tmp_path, capsys):
    train(data=data, out=tmp_path / "first", max_steps=2, **SIZES, **OFTEN)
    for model in (f"--model={tmp_path / 'first'}", "--model=gpt-nano"):
        arguments = [f"--data={data}", model, "--T=8", "--max_steps=200", *more]
        parsed = Options(lib)
        parsed.parse([*arguments, "--out=", "--plan"])
        (event,) = pyllmc.Trainer(parsed)
        capsys.readouterr()
        train_gpt2.Trainer(train_gpt2.parse(arguments))
        lines = [line for line in event.text.splitlines() if line.startswith(("model: ", "training: "))]
        said = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(said[0]) and said[1:] == lines[1:]  # the engine names the file of a run
        assert ("fine-tunes" in lines[1]) == ("first" in model)
