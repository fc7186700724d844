"""Printed text: no output fails because of a character that it cannot hold, and a model's cut text is the same
everywhere."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import pyllmc
from pyllmc.text import dataset
from pyllmc.writer import open_writer

LOCALE_OF_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
OUTPUTS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "locale C": LOCALE_OF_C,
}
SMILE = "\U0001f600"
SIZES = {"model": "gpt-nano", "max_seq_len": 32, "n_layer": 1, "B": 4, "T": 16, "val_every": 0}

if "PYLLMC_LIB" in os.environ:
    pytest.skip("the programs link the ordinary build", allow_module_level=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with text, data and a run, whose names and contents no small encoding holds."""
    folder = tmp_path_factory.mktemp("home") / f"Ü世{SMILE}"
    folder.mkdir()
    pick = random.Random(1).choice
    text = "".join(pick([SMILE, "é", "한", "—", "世", " "]) for _ in range(4000))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    dataset.write_dataset([text], folder / "data", tokenizer="byte", eot=False)
    list(
        pyllmc.Trainer(
            data=folder / "data", out=folder / "run", max_steps=60, lr=0.01, sample_every=0, **SIZES
        )
    )
    return folder


# {} is the folder; then the text that the lines must hold, if they came in UTF-8
COMMANDS = {
    "train": ["-m", "pyllmc.train", "--data={}/data", "--out={}/again", "--overwrite", "--max_steps=1", "--sample_every=1",
              "--model=gpt-nano", "--max_seq_len=32", "--n_layer=1", "--val_every=0", f"--prompt={SMILE}"],
    "only write": ["-m", "pyllmc.train", "--model={}/run", "--max_steps=0", f"--prompt={SMILE}"],
    "sample": ["-m", "pyllmc.sample", "{}/run", f"--prompt=世{SMILE}", "--max_new_tokens=60"],
    "chat": ["-m", "pyllmc.chat", "{}/run", f"--prompt={SMILE}"],
    "encode": ["-m", "pyllmc.tokenizer", "encode", "{}/run", f"{SMILE} 世"],
    "decode": ["-m", "pyllmc.tokenizer", "decode", "{}/run", "240", "159", "152", "128"],
    "plot": ["-m", "pyllmc.plot", "{}/run", "--out={}/a.png"],
    "convert": ["-m", "pyllmc.convert", "{}/run", "{}/run.bin", "--overwrite"],
    "prepro": ["dev/prepro_tinystories.py", "--input={}/text.txt", "--tokenizer=char", "--out={}/chars", "--overwrite"],
}  # fmt: skip
REFUSED = {
    "grade": (["-m", "pyllmc.grade", "{}/run", "--count=2"], 2, "writes no stories: of the first 2 texts"),
    "no such run": (["-m", "pyllmc.sample", "{}/none"], 5, "none"),
}
SLOW = {
    "reference": [
        "train_gpt2.py",
        "--data={}/data",
        "--model={}/run",
        "--max_steps=1",
        "--T=16",
        "--val_every=0",
    ],
    "check": ["-m", "pyllmc.check", "--model={}/run", "--B=1", "--T=8"],
}


def run(arguments: list[str], home: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    command = [sys.executable, *(argument.format(home) for argument in arguments)]
    return subprocess.run(
        [os.fsencode(x) for x in command],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_dies_of_what_it_prints(name, output, home):
    done = run(COMMANDS[name], home, OUTPUTS[output])
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode("utf-8", "replace")


@pytest.mark.parametrize("name", SLOW)
def test_nor_do_those_that_need_torch(name, home):
    done = run(SLOW[name], home, LOCALE_OF_C)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode("utf-8", "replace")


@pytest.mark.parametrize("output", ["ascii", "locale C"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_one_line_in_any_encoding(name, output, home):
    arguments, code, says = REFUSED[name]
    done = run(arguments, home, OUTPUTS[output])
    assert (done.returncode, done.stderr.count(b"\n")) == (code, 1), done.stderr
    assert says.encode() in done.stderr and b"surrogate" not in done.stderr


def test_a_prompt_means_the_same_in_every_locale(home):
    texts = [run(COMMANDS["encode"], home, environment).stdout for environment in ({}, LOCALE_OF_C)]
    assert texts[0] == texts[1] and b"240" in texts[0]


def test_a_text_that_the_locale_does_not_know_reaches_the_engine(home):
    code = "from pyllmc.engine import _ffi; from pyllmc.trainer import Options; o = Options(_ffi.load());"
    code += r"o.set('prompt', '\u6f22'); print(ascii(o.get('prompt')))"
    done = run(["-c", code], home, LOCALE_OF_C)
    assert done.stdout == rb"'\udce6\udcbc\udca2'" + b"\n", done.stderr


def test_what_is_looked_for_means_the_same_in_every_locale(home):
    """--stop, --delimiter and --field are compared with text."""
    stop = [
        "-m",
        "pyllmc.sample",
        "{}/run",
        "--prompt=a",
        "--max_new_tokens=60",
        "--temperature=0.8",
        "--seed=3",
    ]
    whole = run(stop, home, {}).stdout.decode()
    at = next(c for c in whole[1:] if not c.isascii() and c != "\ufffd")
    out = [run([*stop, f"--stop={at}"], home, environment) for environment in ({}, LOCALE_OF_C)]
    assert [done.returncode for done in out] == [0, 0], out[1].stderr
    assert out[0].stdout.decode().rstrip("\n") == whole[: whole.index(at, 1)].rstrip("\n")
    (home / "field.jsonl").write_text('{"世": "a"}\n' * 300, encoding="utf-8")
    cut = ["-m", "pyllmc.prepro", "--tokenizer=byte", "--out={}/cut", "--overwrite", "--workers=1"]
    for more in (["--input={}/text.txt", "--delimiter=世"], ["--input={}/field.jsonl", "--field=世"]):
        done = run([*cut, *more], home, LOCALE_OF_C)
        assert done.returncode == 0, done.stderr


def test_an_export_into_a_name_that_is_no_text(home):
    """The model card and the metadata cannot hold the bytes of such a name."""
    place = os.fsencode(home) + b"/m\xff"
    for end in (b"", b".gguf"):
        command = [sys.executable, "-m", "pyllmc.convert", home / "run", place + end]
        done = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=60)
        assert done.returncode == 0 and os.path.exists(place + end), done.stderr


def test_bytes_of_a_path_in_an_encoding_without_single_bytes(home):
    """UTF-16 cannot hold the byte of a path as it is."""
    command = [sys.executable, "-m", "pyllmc.sample", b"/none/b\xff"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-16"}
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment, timeout=60)
    assert done.returncode == 5 and r"/none/b\xff does not exist" in done.stderr.decode("utf-16")


# ---- text that is cut inside a character ----


def write(program: list, *arguments: str) -> bytes:
    done = subprocess.run([*program, *arguments], capture_output=True, cwd=ROOT, timeout=60, check=True)
    return done.stdout


@pytest.mark.parametrize("tokens", [5, 6, 7, 8, 30, 31])
def test_both_front_ends_write_the_same_valid_text(tokens, home):
    """This holds for any number of tokens: nothing is shown of a character that the end cuts."""
    how = [f"--prompt={SMILE}", "--seed=3", "--temperature=1.5"]
    once = [f"--model={home / 'run'}", "--max_steps=0", f"--sample_tokens={tokens}", *how]
    in_c = write([ROOT / "train_gpt2"], *once)
    in_python = write([sys.executable, "-m", "pyllmc.train"], *once)
    sampled = write(
        [sys.executable, "-m", "pyllmc.sample"], str(home / "run"), f"--max_new_tokens={tokens}", *how
    )
    assert in_c == in_python == sampled
    assert SMILE in in_c.decode()  # decode raises if it is not UTF-8


def test_files_and_streams_hold_the_same_valid_text(home, tmp_path):
    texts = set()
    for tokens in range(1, 9):
        options = {**SIZES, "sample_every": 1, "sample_tokens": tokens, "temperature": 1.5, "max_steps": 1}
        run = tmp_path / str(tokens)
        said = [e.text for e in pyllmc.Trainer(data=home / "data", out=run, **options) if e.kind == "sample"]
        kept = (run / "samples/step_00000001.txt").read_bytes()
        writer = open_writer(run / "last.ckpt")
        streamed = "".join(writer.stream(max_new_tokens=tokens, temperature=1.5, seed=42 + 1))
        assert said == [kept.decode()] == [streamed]
        texts.add(streamed)
    assert len(texts) > 4 and re.search(
        "\ufffd", "".join(texts)
    )  # bytes that are no character, as a fresh model writes them


def test_a_chat_answers_in_valid_text(home):
    turns = "\n".join(["é", "", "世", ""]) + "\n"
    how = [str(home / "run"), "--template=story", "--sample_tokens=5", "--temperature=1.5"]
    answers = [
        subprocess.run(
            [*program, *how], input=turns.encode(), capture_output=True, cwd=ROOT, timeout=60, check=True
        ).stdout
        for program in ([ROOT / "chat_gpt2"], [sys.executable, "-m", "pyllmc.chat"])
    ]
    assert answers[0] == answers[1] and answers[0].decode()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "program", [["./train_gpt2"], [sys.executable, "-m", "pyllmc.train"]], ids="c py".split()
)
def test_a_run_outlives_the_disk_under_its_lines(program, home, tmp_path):
    """Its steps are worth more than its log, whose loss is told at the end."""
    sizes = [f"--{name}={value}" for name, value in {**SIZES, "max_steps": 3, "sample_every": 0}.items()]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*program, *sizes, f"--data={home / 'data'}", f"--out={tmp_path / 'run'}"],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 5 and "No space left" in done.stderr.splitlines()[-1]
    assert pyllmc.Model(tmp_path / "run" / "last.ckpt").step == 3
