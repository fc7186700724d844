"""Options in a file: a run's file repeats it; files of people are read, or refused by file and line. Numbers and hints,
too."""

from __future__ import annotations

import argparse
import decimal
import os
import re
import resource
import shlex
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import ROOT, ffi, lib
from hypothesis import example, given
from hypothesis import strategies as st

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
    """Every option of training with the longest value that a run can have; but device, precision, schedule, and flags."""
    train(data=data, out=tmp_path / "first", max_steps=1, **SIZES, **OFTEN)
    (tmp_path / "empty.txt").write_text("")
    values = {
        **{"data": longest(data), "val_data": longest(data), "tokenizer": longest(data / "tokenizer.bin")},
        **{"model": longest(tmp_path / "first"), "out": longest(tmp_path / "run")},
        **{"config": longest(tmp_path / "empty.txt"), "prompt": ("the cat " * 128)[:1023]},
        **{
            "n_layer": "1",
            "n_head": "3",
            "n_embd": "48",
            "max_seq_len": "16",
            "vocab_size": "0",
            "window": "0",
        },
        **{"max_steps": "1", "B": "2", "T": "8", "grad_accum": "1", "threads": "1", "sample_tokens": "1"},
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
    assert strings - values.keys() == {"resume", "device", "precision", "schedule"}
    assert sum(len(value) == 1023 for value in values.values()) == 7
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
    of_run, options = set(values) - {"out", "config", "threads"}, Options(lib)
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


# ---- numbers ----


@given(st.floats(0, 1000))
def test_a_number_is_told_in_the_fewest_digits_that_read_back(x):
    options = Options(lib)
    options.set("lr", repr(x))
    text = options.get("lr")
    assert (
        float(text) == x and len(text.strip("0.").split("e")[0]) <= len(repr(x).strip("0.").split("e")[0]) + 1
    )


WHOLE = [
    "1e4",
    "1.5e3",
    "1E+4",
    "10_000",
    "1.0",
    "10e-1",
    "+7",
    "0e5",
    "0.0",
    "9223372036854775807",
    "1e18",
    "007",
    "5.",
]
NO_WHOLE = [
    "1e-1",
    "1.5",
    "1e",
    "e5",
    ".",
    "",
    "-",
    "1_",
    "_1",
    "1__0",
    "0x10",
    "nan",
    "inf",
    "1 0",
    "٣",
    "1e1.5",
    "1,000",
]


def refused(text: str) -> bool:
    try:
        as_text.whole(text)
    except argparse.ArgumentTypeError:
        return True
    return False


@example("0E30")
@given(st.one_of(st.sampled_from(WHOLE + NO_WHOLE), st.text("0123456789.eE+-_ ", max_size=9)))
def test_whole_numbers_have_one_rule_in_c_and_python(text):
    options = Options(lib)
    try:
        options.set("seed", text)
    except InvalidArgument as error:
        assert refused(text) or ("is not in" in str(error) and not 0 <= as_text.whole(text) < 2**63)
    else:
        assert int(options.get("seed")) == as_text.whole(text)


@given(st.from_regex(r"(0|[1-9][0-9]{0,2})(\.[0-9]{1,3})?[eE]-?[0-9]{1,3}", fullmatch=True))
@example("1e-400")
@example("0e-400")
@example("0.000e-9999")
@example("5e-324")
@example("1e400")
def test_a_number_that_a_type_cannot_hold_is_refused_in_c_and_python(text):
    options, exact = Options(lib), Fraction(decimal.Decimal(text))
    try:
        options.set("lr", text)
    except InvalidArgument as error:
        with pytest.raises(argparse.ArgumentTypeError, match=str(error).partition("=")[2].partition(" ")[2]):
            as_text.options()["lr"].read(text)
        assert exact > 1000 or 0 < exact < Fraction(5e-324)
    else:
        value = as_text.options()["lr"].read(text)
        assert float(options.get("lr")) == value and (value > 0) == (exact > 0)


def test_a_count_has_an_end():
    assert as_text.at_least(1)("9223372036854775807") == 2**63 - 1
    for text in ("1e400", "9223372036854775808"):
        with pytest.raises(
            argparse.ArgumentTypeError, match="not a whole number of at most 9223372036854775807"
        ):
            as_text.at_least(1)(text)


def test_whole_numbers_as_people_write_them():
    assert [as_text.whole(text) for text in WHOLE[:6]] == [10000, 1500, 10000, 10000, 1, 1]
    assert all(map(refused, NO_WHOLE)) and as_text.at_least(1)("1e4") == 10000
    with pytest.raises(argparse.ArgumentTypeError, match="whole number of at least 1"):
        as_text.at_least(1)("1e-1")


# ---- names ----


@pytest.mark.parametrize(
    "name, says",
    [
        ("tokens", "did you mean --sample_tokens?"),
        ("every", "did you mean --val_every, --sample_every, --checkpoint_every or --log_every?"),
        ("max_new_token", "--help lists them"),
    ],
)
def test_a_part_of_a_name_is_enough_for_a_hint(name, says, capsys):
    with pytest.raises(InvalidArgument) as caught:
        Options(lib).parse([f"--{name}=1"])
    assert str(caught.value) == f"unknown option --{name}: {says}"
    with pytest.raises(SystemExit):
        as_text.parse([f"--{name}=1"])
    assert says in capsys.readouterr().err


def test_two_names_of_ours_mean_one_thing():
    options = Options(lib)
    options.parse(["--max-new-tokens=7"])
    assert options.get("sample_tokens") == options.get("max_new_tokens") == "7"
    assert as_text.parse(["--max_new_tokens=7"]).sample_tokens == 7
    parser = as_text.Parser(prog="x")
    parser.add_argument("--max_new_tokens", type=int)
    assert parser.parse_args(["--sample_tokens=8"]).max_new_tokens == 8


# ---- help ----


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_help_fits_the_terminal(chat, width):
    text = Options(lib, chat).help("./program", width)
    for line in text.splitlines():
        assert len(line) <= width or " " not in line.strip().removesuffix(" \\"), line
    assert "for example\n  ./program" in text and " \n" not in text
    help_text = next(o for o in as_text.options(*as_text.OF_ANY).values() if o.name == "top_p").help
    assert help_text in " ".join(text.split())


def test_examples_can_be_pasted_at_any_width():
    """What a shell reads is the same, whether a command stands on one line or on several."""
    for chat in (False, True):
        wide, narrow = (
            re.findall(r"^  \./program(?:.*\\\n)*.*", Options(lib, chat).help("./program", width), re.M)
            for width in (120, 40)
        )
        assert len(wide) >= 3 and "\n" not in "".join(wide) and "\n" in "".join(narrow)
        assert [shlex.split(command.replace("\\\n", "")) for command in narrow] == list(
            map(shlex.split, wide)
        )


def test_examples_of_python_commands_can_be_pasted_at_any_width(monkeypatch):
    examples = ['python -m x RUN --prompt "Once upon a time" --top_p=0.9  writes', "python -m x  the default"]
    parser = as_text.Parser(prog="x", examples=examples)
    monkeypatch.setenv("COLUMNS", "80")
    assert "examples:\n    " + "\n    ".join(examples) + "\n\n" in parser.format_help()
    monkeypatch.setenv("COLUMNS", "40")
    narrow = (
        "examples:\n    python -m x RUN --prompt \\\n"
        '            "Once upon a time" \\\n            --top_p=0.9\n        writes\n'
        "    python -m x\n        the default\n\n"
    )
    assert narrow in parser.format_help()


def test_help_of_any_length_is_handed_out_whole():
    options = Options(lib)
    small = ffi.new("char[10]")
    size = lib.llmc_options_help(options.handle, b"x", 80, small, 10)
    assert (
        size == len(options.help("x", 80)) > 5000 and ffi.string(small).decode() == options.help("x", 80)[:9]
    )


def test_sample_tells_its_own_options():
    command = [sys.executable, "-m", "pyllmc.sample", "--help"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "COLUMNS": "72"}
    )
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 72
    for word in ("max_steps", "--data", "training", "data order", "of a sample", "how a sample"):
        assert word not in done.stdout


# ---- what fine-tuning begins with ----


@pytest.mark.parametrize("C, lr", [(48, 0.00096), (768, 6e-5), (1600, 2.88e-5), (16, 1e-3)])
def test_the_gentle_rate_follows_from_the_width(C, lr):
    o = argparse.Namespace(model=str(ROOT), lr=0.0, warmup_steps=50, max_steps=100, schedule="cosine", seed=1)
    train_gpt2.settle_rate(o, C)
    assert o.lr == pytest.approx(lr) and o.warmup_steps == 10


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
