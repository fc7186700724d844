"""Help: hints for a name that is nearly right, and --help at any width."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, ffi, lib

from pyllmc.engine._ffi import InvalidArgument
from pyllmc.tables import options as as_text
from pyllmc.trainer import Options


@pytest.mark.parametrize(
    "name, says",
    [
        (
            "tokens",
            "did you mean --max_tokens, --warmup_tokens, --decay_tokens, --batch_ramp_tokens or --sample_tokens?",
        ),
        (
            "every",
            "did you mean --val_every, --eval_every, --sample_every, --checkpoint_every or --log_every?",
        ),
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
