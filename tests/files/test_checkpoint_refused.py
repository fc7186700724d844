"""Checkpoints that are refused: every way in which a file can be wrong, and models that must not be saved."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, lib
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_checkpoint import HEAD, TAGS, block, llmc_file, load, make, save, section, trained

from pyllmc import GPTConfig, Model
from pyllmc.engine import _ffi

SETTINGS = settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_to_save_what_is_not_finite(tmp_path, value):
    model, path = trained(), tmp_path / "m.ckpt"
    save(model, path)
    before = path.read_bytes()
    model.params["transformer.h.1.mlp.c_fc.weight"][3, 2] = value
    with pytest.raises(_ffi.NotFinite, match=f"m.ckpt is not written: the weights of fcw hold {value}"):
        save(model, path)
    model = trained()
    model.moments["transformer.wpe.weight"][1][0, 0] = value
    with pytest.raises(_ffi.NotFinite, match="moments of wpe"):
        save(model, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.ckpt"]


@pytest.mark.parametrize("version", [1, 3, 5])
@pytest.mark.parametrize("name", ["wte", "wpe", "lnfb"])
def test_refuses_to_load_what_is_not_finite(tmp_path, version, name):
    source = make()
    row = source._arena.rows[name]
    params = block(source, "LLMC_PARAMS")
    params[row.offset + (3 if name == "wte" else row.size - 1)] = -np.inf
    (tmp_path / "m.bin").write_bytes(llmc_file(version, params))
    model = make(seed=6)
    before = block(model, "LLMC_PARAMS")
    with pytest.raises(_ffi.NotFinite, match=f"m.bin: weights of {name} hold -inf"):
        load(model, tmp_path / "m.bin")
    assert (block(model, "LLMC_PARAMS") == before).all()


HEADS = {
    "magic": (dict(magic=5), "something else, not a model file: expected magic 20240326, found 5"),
    "tokens": (dict(magic=20240520), "is a token file"),
    "version": (
        dict(version=6),
        r"expected version 1 or 3 \(fp32\), 2 or 4 \(mixed\) or 5 \(bf16\), found 6",
    ),
    "Vp": (dict(Vp=64), "V=37 is padded to 64, expected 128"),
    "zero": (dict(NH=0), "n_head=0 is not in 1"),
    "negative": (dict(C=-8), "n_embd=-8 is not in 1"),
    "heads": (dict(NH=3), "n_embd=8 is not a multiple of n_head=3"),
    "window": (dict(window=-1), "window=-1 is not in 0..16777216"),
    "large window": (dict(window=2**31 - 1), "window=2147483647 is not in 0..16777216"),
    "V": (dict(V=129, Vp=256), "truncated: expected"),
    "L": (dict(L=3), "truncated: expected"),
    "overflow": (dict(L=2**24, C=2**24, NH=1), "n_layer=16777216 n_embd=16777216 make .* damaged"),
    "maxT": (dict(maxT=5), "expected the file to end at byte 12320 or to go on"),
}


@pytest.mark.parametrize("case", HEADS)
def test_bad_header(tmp_path, case):
    changes, message = HEADS[case]
    path = tmp_path / "model.bin"
    path.write_bytes(llmc_file(3, block(make(), "LLMC_PARAMS"), **changes))
    for open_it in (lambda: load(make(), path), lambda: Model(path), lambda: section(path, b"STATE   ")):
        with pytest.raises(_ffi.BadFile, match=message) as error:
            open_it()
        assert "model.bin" in str(error.value)


def test_other_sizes(tmp_path):
    path = tmp_path / "m.ckpt"
    make().save(path)
    other = GPTConfig(vocab_size=38, max_seq_len=6, n_layer=2, n_head=2, n_embd=8)
    with pytest.raises(
        _ffi.InvalidArgument, match="vocab_size=37, the model 38: make the model from the file"
    ):
        load(make(config=other), path)
    with pytest.raises(_ffi.InvalidArgument, match="n_head=2, the model 4"):
        load(make(config=GPTConfig(vocab_size=37, max_seq_len=6, n_layer=2, n_head=4, n_embd=8)), path)


def test_bad_paths(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for name in ("none", "", "loop"):
        with pytest.raises(_ffi.SystemFailure, match=r"cannot be opened|is a directory"):
            load(make(), tmp_path / name)
    for name in ("no/such/folder/m", ""):
        with pytest.raises((_ffi.SystemFailure, _ffi.InvalidArgument), match=r"cannot be|needs a file name"):
            save(make(), tmp_path / name if name else "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(_ffi.SystemFailure, match=r"cannot be put in place"):
        save(make(), tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["folder", "loop"]
    with pytest.raises(_ffi.InvalidArgument, match="made without moments"):
        save(make(training=False), tmp_path / "m", moments=1)


class Whole(bytes):
    """The bytes of a checkpoint, with a short text when a test prints them."""

    def __repr__(self) -> str:
        return f"<checkpoint of {len(self)} bytes>"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "m.ckpt"
    save(trained(), path, "lr=1\n", "step=3\n", b"token")
    return Whole(path.read_bytes())


@pytest.fixture(scope="module")
def victim() -> Model:
    return make(seed=3)


def refused(victim: Model, path: Path, data: bytes) -> None:
    """Checks for an error that names the file, without a change to any weight."""
    path.write_bytes(data)
    before = block(victim, "LLMC_PARAMS").tobytes(), block(victim, "LLMC_M").tobytes()
    with pytest.raises((_ffi.BadFile, _ffi.NotFinite, _ffi.InvalidArgument), match=re.escape(path.name)):
        load(victim, path)
    assert before == (block(victim, "LLMC_PARAMS").tobytes(), block(victim, "LLMC_M").tobytes())


def boundaries(data: bytes) -> list[int]:
    end = data.index(b"OPTIONS ")
    heads = [
        at
        for tag in TAGS
        for at in (data.index(tag, end), data.index(tag, end) + 8, data.index(tag, end) + 16)
    ]
    return [0, HEAD, end, len(data), *heads]


def test_cut_at_every_boundary(tmp_path, whole, victim):
    for at in {b + d for b in boundaries(whole) for d in (-1, 0, 1)}:
        # the file up to there is a whole file of llm.c's
        if 0 <= at < len(whole) and at != whole.index(b"OPTIONS "):
            refused(victim, tmp_path / "cut.bin", whole[:at])
    load(victim, _written(tmp_path / "cut.bin", whole[: whole.index(b"OPTIONS ")]))


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@SETTINGS
@given(data=st.data())
def test_every_changed_bit_and_length_is_found(tmp_path, whole, victim, data):
    at = data.draw(st.one_of(st.sampled_from(boundaries(whole)[:-1]), st.integers(0, len(whole) - 1)))
    at = max(0, min(at + data.draw(st.integers(-8, 8)), len(whole) - 1))
    damaged = bytearray(whole)
    kind = data.draw(st.sampled_from(["flip", "drop", "insert", "append"]))
    if kind == "flip":
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "drop":
        del damaged[at : at + data.draw(st.integers(1, 40))]
    elif kind == "insert":
        damaged[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    else:
        damaged += data.draw(st.binary(min_size=1, max_size=40))
    refused(victim, tmp_path / "damaged.bin", bytes(damaged))


@pytest.mark.parametrize("size", [-1, 2**63 - 1, -(2**63), 2**40, 0])
@pytest.mark.parametrize("tag", TAGS)
def test_lying_section_sizes(tmp_path, whole, victim, tag, size):
    at = whole.index(tag, whole.index(b"OPTIONS "))
    refused(victim, tmp_path / "m.bin", whole[: at + 8] + struct.pack("<q", size) + whole[at + 16 :])


def resealed(body: bytes) -> bytes:
    """The bytes with a right checksum, so that only their meaning is wrong."""
    return body + b"CRC32   " + struct.pack("<qI", 4, zlib.crc32(body))


def test_wrong_meaning_under_a_right_checksum(tmp_path, whole, victim):
    body = whole[:-20]
    assert resealed(body) == whole
    options = b"OPTIONS " + struct.pack("<q", 1) + b"x"
    refused(victim, tmp_path / "m", resealed(body + options))  # the section is there twice
    refused(victim, tmp_path / "m", resealed(body + b"UNKNOWN " + struct.pack("<q", 0)))
    refused(victim, tmp_path / "m", resealed(body.replace(b"step=3", b"step=-")[:-4]))  # moments too short
    # the checksum is not at the end
    refused(victim, tmp_path / "m", resealed(body)[:-20] + whole[-20:] + options)
    refused(victim, tmp_path / "m", resealed(body[:-4] + struct.pack("<f", np.nan)))  # a moment is NaN
    five_bytes = b"STATE   " + struct.pack("<q", 7) + b"step=-5"
    head = whole[: whole.index(b"OPTIONS ")]
    refused(victim, tmp_path / "m", resealed(head + five_bytes))
    load(victim, _written(tmp_path / "m", resealed(head + five_bytes.replace(b"-5", b"55"))))


def test_a_state_too_long_for_its_readers(tmp_path, whole, victim):
    """It is not written, and a file that has one is damaged, whether a model or a run reads it."""
    longest = "x=" + "1" * (16383 - len("x=\nstep=3\n")) + "\nstep=3\n"
    save(victim, tmp_path / "m", state=longest)
    load(victim, tmp_path / "m")
    assert lib.llmc_model_step(victim._handle) == 3
    with pytest.raises(_ffi.InvalidArgument, match="has 16384 bytes: a checkpoint holds at most 16383"):
        save(victim, tmp_path / "n", state=longest + "\n")
    assert not (tmp_path / "n").exists()
    head = whole[: whole.index(b"OPTIONS ")]
    state = b"STATE   " + struct.pack("<q", 16384) + longest.encode() + b"\n"
    refused(victim, tmp_path / "last.ckpt", resealed(head + state))
    program = [ROOT / "train_gpt2", f"--resume={tmp_path}/last.ckpt", f"--data={tmp_path}"]
    done = subprocess.run(program, capture_output=True, text=True)
    assert "section STATE has 16384 bytes, expected at most 16383; use another copy" in done.stderr
    assert done.returncode == 4 and done.stderr.count("\n") == 1


def test_of_two_lines_of_the_state_the_first_counts(tmp_path, victim):
    save(victim, tmp_path / "m", state="laststep=9\nstep=2\nstep=7\n")
    load(victim, tmp_path / "m")
    assert lib.llmc_model_step(victim._handle) == 2
