"""The options: one table, every front end. A refusal is one clear line."""

from __future__ import annotations

import argparse
import re

import pytest
from conftest import ROOT, ffi, lib
from hypothesis import given
from hypothesis import strategies as st

import pyllmc
from pyllmc.engine._ffi import InvalidArgument
from pyllmc.stories import telling
from pyllmc.tables import options as as_text
from pyllmc.trainer import Options

ROWS = (ROOT / "csrc/options.def").read_text()
NAMES = re.findall(r"^(?:OPTION|SHARED|CALL|SHARED_CALL)\(\w+, (\w+),", ROWS, re.M)  # for training
OF_CHATS = re.findall(r"^(?:SHARED|SHARED_CALL|CHAT)\(\w+, (\w+),", ROWS, re.M)
NUMBERS = re.findall(
    r"^(?:OPTION|SHARED|CALL|SHARED_CALL)\((INT|FLOAT), (\w+), \S+ (\S+), (\S+),", ROWS, re.M
)


def test_the_table_and_the_library_agree():
    names = [ffi.string(lib.llmc_option_name(i)).decode() for i in range(lib.llmc_num_options())]
    assert len(set(names)) == len(names)
    assert set(names) == {*NAMES, *OF_CHATS}


def test_each_program_has_its_own():
    training, chat = Options(lib), Options(lib, chat=True)
    assert [name for name in OF_CHATS if f"--{name}" not in chat.help()] == []
    assert "--lr" not in chat.help() and "--bot" not in training.help()
    with pytest.raises(InvalidArgument, match="unknown option --lr"):
        chat.parse(["--lr=1"])
    with pytest.raises(InvalidArgument, match="unknown option --bot"):
        training.set("bot", "x")
    chat.parse(["models/124M", "--seed", "3", "vocab.bpe"])
    assert [chat.get(name) for name in ("model", "tokenizer", "seed")] == ["models/124M", "vocab.bpe", "3"]
    with pytest.raises(InvalidArgument, match="'third' is not an option"):
        chat.parse(["first", "second", "third"])
    chat.set("system", "two\nlines")


def test_the_folder_of_the_default_data_is_written_once():
    """The table of options names it; all other code asks the table."""
    sources = [
        *ROOT.glob("csrc/**/*"),
        *ROOT.glob("pyllmc/*.py"),
        *ROOT.glob("dev/*.py"),
        ROOT / "train_gpt2.py",
    ]
    assert Options(lib).get("data") == "data/stories" == telling.default_folder()
    assert [path.name for path in sources if path.is_file() and "data/stories" in path.read_text()] == [
        "options.def"
    ]
    assert (
        "stories" in (ROOT / "csrc/programs/train_gpt2.c").read_text()
    )  # made by `python3 -m pyllmc.stories`, without --out


def test_help_names_every_option_and_its_default():
    text = Options(lib).help()
    for name in NAMES:
        assert f"--{name}" in text
    assert "[demo]" in text


def test_a_chats_help_is_the_chats():
    text = Options(lib, chat=True).help(width=100)
    for word in (
        "[demo]",
        "checkpoint)",
        "max_steps",
        "--data",
        "data folder",
        "data order",
        "sample",
        "training",
    ):
        assert word not in text.replace("--sample_tokens", "").replace("sample from", "")
    assert "--prompt=TEXT            one turn to answer" in text and text.endswith("130 interrupted\n")
    for name in re.findall(r"^OF_CHAT\((\w+),", ROWS, re.M):
        assert re.search(rf"^SHARED(_CALL)?\(\w+, {name},", ROWS, re.M)


@pytest.mark.parametrize("arguments", [["--lr=0.5"], ["--lr", "0.5"]])
def test_values_are_read_in_both_spellings(arguments):
    options = Options(lib)
    assert options.parse(arguments) == ""
    assert float(options.get("lr")) == 0.5


def test_a_nul_byte_is_refused_not_a_cut():
    with pytest.raises(InvalidArgument, match="--prompt holds a NUL"):
        Options(lib).set("prompt", "a\0b")


def test_dashes_and_negated_flags():
    options = Options(lib)
    options.parse(["--max-steps=7", "--no-shuffle", "--plan"])
    assert (options.get("max_steps"), options.get("shuffle"), options.get("plan")) == ("7", "0", "1")


def test_of_an_option_given_twice_the_last_counts():
    options = Options(lib)
    options.parse(["--seed=1", "--shuffle", "--seed", "2", "--no_shuffle"])
    assert (options.get("seed"), options.get("shuffle")) == ("2", "0")
    assert "given twice, the last one counts" in options.help()


@pytest.mark.parametrize(
    "typo, right", [("max_step", "max_steps"), ("leaning_rate", None), ("treads", "threads"), ("sed", "seed")]
)
def test_a_misspelt_option_is_refused_and_the_right_one_suggested(typo, right):
    with pytest.raises(
        InvalidArgument, match=f"unknown option --{typo}.*" + (f"--{right}" if right else "--help")
    ):
        Options(lib).parse([f"--{typo}=1"])


ALIASES = re.findall(r"^ALIAS\((\w+), (\w+)\)", ROWS, re.M)


def refusal(arguments):
    with pytest.raises(InvalidArgument) as caught:
        Options(lib).parse(arguments)
    return str(caught.value)


@pytest.mark.parametrize("name, ours", ALIASES)
def test_the_names_of_other_trainers_are_hinted_at(name, ours, capsys):
    assert name not in NAMES and ours in NAMES
    says = f"unknown option --{name}: did you mean --{ours}?"
    assert refusal([f"--{name}=1"]) == says
    assert refusal([f"--{name.replace('_', '-')}=1"]).endswith(f"did you mean --{ours}?")
    with pytest.raises(SystemExit):
        as_text.parse([f"--{name}=1"])
    assert capsys.readouterr().err == f"train_gpt2: {says}\n"


@pytest.mark.parametrize(
    "typo",
    [
        "--help=1",
        "--help=",
        "--version=2",
        "--config=",
        "--foo",
        "--max_stesp=3",
        "--sed=1",
        "--bat=1",
        "--gradclip=2",
    ],
)
def test_both_parsers_say_the_same(typo, capsys):
    with pytest.raises(SystemExit):
        as_text.parse([typo])
    assert capsys.readouterr().err == f"train_gpt2: {refusal([typo])}\n"


def test_help_has_headings_and_every_option():
    """The commonest options of each group come first; a heading without options in this program is left out."""
    titles = re.findall(r'^GROUP\("(.*)"\)', ROWS, re.M)
    for text, programs, names in (
        (Options(lib), titles[:-1], NAMES),
        (Options(lib, chat=True), titles, OF_CHATS),
    ):
        lines = text.help().splitlines()
        assert [line[:-1] for line in lines if line.endswith(":") and line[0] != " "] == [
            title for title in programs if f"{title}:" in lines
        ]
        assert re.findall(r"^  --(\w+)", text.help(), re.M) == names
    assert "chat:" not in Options(lib).help().splitlines()


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--lr"], "needs a value"),
        (["--no_lr", "0.1"], "for flags"),
        (["--lr", "--seed=1"], "needs a value"),
        (["--lr=fast"], "not a number"),
        (["--lr=nan"], "not a number"),
        (["--lr=1e999"], "not in"),
        (["--lr=1e-400"], "--lr=1e-400 is too small for a number, and is not 0: write 0"),
        (["--lr=-0.0000_1e-400"], "too small for a number"),
        (["--max_steps=1e-1"], "--max_steps=1e-1 is not a whole number"),
        (["--max_steps=1e30"], "not in"),
        (["--max_steps=1__0"], "not a whole number"),
        (["--B=1.5"], "not a whole number"),
        (["--B="], "not a whole number"),
        (["--B=99999999999999999999"], r"--B=99999999999999999999 is not in 1\.\.65536"),
        (["--beta1=1"], "below 1"),
        (["--version=2"], "--version takes no value: write --version alone"),
        (["--help="], "--help takes no value: write --help alone"),
        (["--config="], "--config is empty: name a file of options or a run's folder"),
        (["--config", ""], "--config is empty"),
        (["--foo"], "--help lists them"),
        (["--shuffle=maybe"], "neither yes nor no"),
        (["train"], "not an option"),
        (["-B", "4"], "not an option"),
        (["--out=" + "x" * 2000], "longer than"),
        (["--prompt=a\nb"], "line break"),
        (["--" + "x" * 500], "unknown option"),
    ],
)
def test_bad_command_lines(arguments, reason):
    with pytest.raises(InvalidArgument, match=reason) as caught:
        Options(lib).parse(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind, name, least, most", NUMBERS)
def test_every_number_is_bounded_as_the_table_says(kind, name, least, most):
    options = Options(lib)
    for value in (least, most):
        options.set(name, value)
        assert float(options.get(name)) == pytest.approx(float(value))
    step = 1 if kind == "INT" else abs(float(least)) + 1
    with pytest.raises(InvalidArgument, match=f"--{name}="):
        options.set(name, type(step)(float(least) - step))


@given(
    st.sampled_from(NAMES),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40),
)
def test_any_value_is_taken_or_refused(name, value):
    options = Options(lib)
    before = options.get(name)
    try:
        options.set(name, value)
    except (InvalidArgument, pyllmc.SystemFailure):  # --config names a file
        assert options.get(name) == before


def test_text_reads_back_as_the_same_options():
    options, again = Options(lib), Options(lib)
    options.parse(["--lr=0.1234567890123", "--prompt=Once = twice", "--no_shuffle"])
    text = ffi.new("char[65536]")
    assert lib.llmc_options_text(options.handle, text, 65536) == 0
    for line in ffi.string(text).decode().splitlines():
        again.set(*line.split("=", 1))
    assert all(options.get(name) == again.get(name) for name in NAMES)


def test_help_is_asked_for():
    options = Options(lib)
    assert options.parse(["--help"]) == options.help()
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert options.parse(["--version"]) == f"pyllmc {version}\n" == f"pyllmc {pyllmc.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "means"),
    [
        (r"\n\n", "\n\n"),
        (r"a\tb\r\n", "a\tb\r\n"),
        (r"\\n", r"\n"),
        (r"\x1e", "\x1e"),
        (r"\u2029|\xe9", "\u2029|é"),
        (r"\ud83d\ude00", "😀"),
        ("é–😀 \n", "é–😀 \n"),
        ("", ""),
    ],
)
def test_escapes_are_decoded_by_one_rule(typed, means):
    assert as_text.unescaped(typed) == means


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("\\", "ends within an escape"),
        ("a\\\\\\", "ends within an escape"),
        (r"\d", "is no escape"),
        (r"\x1", "is no escape"),
        (r"\u12", "is no escape"),
        (r"\ud83d", "half a character"),
    ],
)
def test_what_is_no_escape_is_refused(typed, says):
    with pytest.raises(argparse.ArgumentTypeError, match=says):
        as_text.unescaped(typed)
