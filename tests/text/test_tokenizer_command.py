"""python -m pyllmc.tokenizer: any source of a tokenizer; ids, text, the merges between; ./train_gpt2 with the same
tokenizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_tokenizer_c import made_up_vocab_bpe

from pyllmc.text import dataset, vocabularies
from pyllmc.tokenizer import main

TEXTS = ["the cat sat on the mat", "a dog ran after the cat"] * 60


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    pytest.importorskip("tokenizers")
    out = tmp_path_factory.mktemp("data") / "pairs"
    dataset.write_dataset(TEXTS, out, tokenizer="bpe", max_vocab=300, val_fraction=0.1)
    return out


def command(capsys, *arguments: str, code: int = 0) -> str:
    """The output of a command; an error must be one line."""
    found = main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    assert found == code, err
    assert err.count("\n") == bool(code)
    return err if code else out


def piped(*arguments: str, stdin: bytes = b"") -> bytes:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-W", "error", "-m", "pyllmc.tokenizer", *arguments], input=stdin,
                          capture_output=True, cwd=ROOT, env=env, check=True)  # fmt: skip
    assert done.stderr == b""
    return done.stdout


def test_a_run_carries_its_byte_pairs(data, tmp_path, capsys):
    """The C program trains with it and encodes --prompt itself; the run's folder then stands for the tokenizer."""
    if "PYLLMC_LIB" in os.environ:
        pytest.skip("the binary links the ordinary build")
    run = tmp_path / "run"
    arguments = [
        "--model=gpt-nano",
        "--max_seq_len=16",
        "--B=2",
        "--T=8",
        "--max_steps=2",
        "--sample_every=2",
    ]
    done = subprocess.run(
        [ROOT / "train_gpt2", f"--data={data}", f"--out={run}", "--prompt=the cät's 12", *arguments],
        capture_output=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "sample: the cät's 12".encode() in done.stdout
    own = dataset.Tokenizer.load(data / "tokenizer.bin")
    for source in (data, run, run / "last.ckpt", data / "tokenizer.bin"):
        ids = [int(i) for i in command(capsys, "encode", source, "the cät's 12").split()]
        assert ids == own.encode("the cät's 12")
    assert "name     bpe\n" in command(capsys, "info", run)

    damaged = bytearray((run / "last.ckpt").read_bytes())
    damaged[damaged.index(b"TOKENIZR") + 2000] ^= (
        1  # within the table: ids of another vocabulary, were it taken
    )
    (run / "damaged.ckpt").write_bytes(damaged)
    assert "damaged.ckpt is damaged: expected checksum" in command(
        capsys, "encode", run / "damaged.ckpt", "the", code=4
    )


def test_ids_and_text_come_and_go_as_they_are():
    text = "Zwölf Bären 🐻\n\n  \0".encode() + b"\xff"
    ids = piped("encode", "byte", stdin=text)
    assert ids == " ".join(map(str, text)).encode() + b"\n"
    assert piped("decode", "byte", stdin=ids) == text
    assert piped("decode", "byte", "72, 105", "33") == b"Hi!"


def test_info_tells_what_a_vocabulary_knows(tmp_path, capsys):
    vocabularies.train("char", ["ba\n"]).save(tmp_path / "t.bin")
    lines = command(capsys, "info", tmp_path / "t.bin").splitlines()
    assert lines == [
        "name     char",
        "encodes  as the longest piece that matches, from left to right",
        "V        4",
        "EOT      3 '<|endoftext|>'",
        "longest  3 '<|endoftext|>'",
        r"alphabet '\nab'",
    ]


def test_a_folder_of_openais_has_its_vocabulary(tmp_path, capsys):
    (tmp_path / "vocab.bpe").write_bytes(made_up_vocab_bpe())
    assert "V        50257\n" in command(capsys, "info", tmp_path)


def test_the_work_is_shown(data, tmp_path, capsys):
    pytest.importorskip("regex")
    pieces = [*(bytes([b]) for b in range(256)), b"he", b" t", b"\xc3\xa9", b" the", b"<|endoftext|>"]
    tokenizer = dataset.Tokenizer(pieces, "gpt2", 260)
    tokenizer.save(tmp_path / "t.bin")
    assert command(capsys, "encode", tmp_path / "t.bin", "é the", "--show-work").splitlines() == [
        "text     'é the'",
        "words    'é' ' the'",
        "word     'é'",
        "  bytes  c3 a9",
        r"  start  '\xc3' '\xa9'",
        "  merge  'é'    258 'é'",
        "  ids    258",
        "word     ' the'",
        "  bytes  20 74 68 65",
        "  start  ' ' 't' 'h' 'e'",
        "  merge  ' ' 't' 'he'    256 'he'",
        "  merge  ' t' 'he'    257 ' t'",
        "  merge  ' the'    259 ' the'",
        "  ids    259",
        "258 259",
    ]
    for words in (
        ("byte", "Hi", "--show-work"),
        ("byte", "--show_work", "Hi"),
        ("--show-work", "byte", "--", "Hi"),
    ):
        assert "pieces   'H' 'i'\n" in command(capsys, "encode", *words)


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["info", "{dir}/none"], 5, "cannot read"),
    (["info", "{dir}/empty"], 5, "empty holds none of tokenizer.bin, vocab.bpe, best.ckpt, last.ckpt, tokenizer.json, "),
    (["info", "{dir}/fifo"], 5, "fifo is not a regular file"),
    (["info", "{dir}"], 4, "vocab.bpe:2: expected two symbols"),
    (["info", "{dir}/junk"], 4, "expected a header of 1024 bytes, found 4"),
    (["info", "{dir}/vocab.bpe"], 4, "vocab.bpe:2: expected two symbols"),
    (["encode", "{dir}/char.bin", "cab"], 2, "character 'c' (byte 99 at byte 0)"),
    (["encode", "byte", "x" * 2001, "--show_work"], 2, "2001 bytes of text: the work is shown for at most 2000: give less"),
    (["decode", "byte", "1", "-2"], 2, "'-2' is no id"),
    (["decode", "byte", "1e3"], 2, "'1e3' is no id"),
    (["decode", "byte", "1" * 5000], 2, f"'{'1' * 40}...' is no id: ids are whole numbers"),
    (["decode", "byte", "٣"], 2, "'٣' is no id"),
    (["decode", "byte", "257"], 2, "id 257 is outside [0, 257)"),
])  # fmt: skip
def test_bad_input(tmp_path, capsys, arguments, code, message):
    (tmp_path / "junk").write_bytes(b"junk")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "vocab.bpe").write_bytes(b"#version: 0.2\nab\n")
    vocabularies.train("char", ["ab"]).save(tmp_path / "char.bin")
    arguments = [a.replace("{dir}", str(tmp_path)) for a in arguments]
    if arguments[-1] == "-2":
        arguments.insert(2, "--")
    assert message in command(capsys, *arguments, code=code)
