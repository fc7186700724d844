"""OpenAI's TensorFlow checkpoint in the C engine: by name and by size, whole, damaged, and of other models."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import tfwriter
from conftest import ROOT, ffi, lib
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllmc import GPTConfig, Model
from pyllmc.engine import _ffi

CONFIG = GPTConfig(vocab_size=70, max_seq_len=16, n_layer=12, n_head=2, n_embd=8)
HPARAMS = dict(n_vocab=70, n_ctx=16, n_embd=8, n_head=2, n_layer=12)
DATA, INDEX = "model.ckpt.data-00000-of-00001", "model.ckpt.index"
TENSORS = tfwriter.random_tensors(CONFIG)
ENTRIES = tfwriter.index_entries(TENSORS)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tfwriter.write(tmp_path / "models/tiny", TENSORS, **HPARAMS)


def read_config(path) -> GPTConfig:
    c = ffi.new("llmc_config *")
    _ffi.check(lib, lib.llmc_model_read_config(os.fsencode(path), c))
    return GPTConfig(c.V, c.maxT, c.L, c.NH, c.C, c.window)


def describe(path) -> str:
    text = ffi.new("char[]", 128)
    _ffi.check(lib, lib.llmc_model_describe(os.fsencode(path), text, 128))
    return _ffi.text(text)


def assert_loads(path, tensors=TENSORS, config=CONFIG) -> None:
    model, expected = Model(path, B=1, T=4, training=False), tfwriter.as_ours(tensors, config)
    assert model.config == config
    assert expected.keys() == set(model.params)
    for name, x in expected.items():
        assert np.array_equal(model.params[name], x), name
    padding = ffi.cast("float *", lib.llmc_model_block(model._handle, lib.LLMC_PARAMS))
    begin, end = config.vocab_size * config.n_embd, config.padded_vocab_size * config.n_embd
    assert not any(padding[begin:end])


def refused(path, reason: str, error=_ffi.BadFile) -> None:
    """Checks for an error, without a change to the model."""
    model = Model(CONFIG, B=1, T=1, training=False)
    before = model.params["wte"].copy(), model.params["fcprojw"].copy()
    with pytest.raises(error, match=reason) as caught:
        _ffi.check(lib, lib.llmc_model_load(model._handle, os.fsencode(path)))
    assert "\n" not in str(caught.value)
    assert all(np.array_equal(a, model.params[name]) for a, name in zip(before, ("wte", "fcprojw")))


# ---- checksums ----


def test_checksums_against_known_answers():
    """The catalogue of CRCs has that of "123456789", RFC 3720 those of 32 zeros and ones; the engine's loader uses the
    same."""
    assert tfwriter.crc(b"123456789") == 0xE3069283
    assert tfwriter.crc(bytes(32)) == 0x8A9136AA
    assert tfwriter.crc(b"\xff" * 32) == 0x62A8AB43
    assert tfwriter.crc(b"123456789", 0xEDB88320) == zlib.crc32(b"123456789") == 0xCBF43926


# ---- whole ----


def test_progress_is_of_the_whole(folder):
    """The weights are read twice, to be checked and then to be taken: in the middle the half is done."""
    told = []
    pulse = ffi.callback("llmc_pulse", lambda _, text: told.append(ffi.string(text).decode()) or 0)
    lib.llmc_on_pulse(pulse, ffi.NULL)
    try:
        Model(folder, B=1, T=4, training=False)
    finally:
        lib.llmc_on_pulse(ffi.NULL, ffi.NULL)
    percents = [int(text.rpartition(": ")[2].removesuffix(" %")) for text in told if "loading" in text]
    assert percents == sorted(percents) and percents[0] < 10 and percents[-1] == 100
    assert len(percents) == len(set(percents)) > 50 and percents.count(100) == 1


@pytest.mark.parametrize("name", ["", "model.ckpt", DATA, INDEX])
@pytest.mark.parametrize("index", [True, False])
def test_every_way_to_name_it(folder, name, index):
    if not index:
        (folder / INDEX).unlink()
        if name == INDEX:
            return
    assert_loads(folder / name if name else folder)
    assert describe(folder / name).startswith(
        "OpenAI TensorFlow checkpoint with" if index else "OpenAI TensorFlow checkpoint without"
    )


def test_relative_paths_and_other_prefixes(folder, monkeypatch):
    for old in (DATA, INDEX):
        (folder / old).rename(folder / old.replace("model.ckpt", "model-1000"))
    monkeypatch.chdir(folder)
    assert_loads("model-1000")
    assert_loads("model-1000.index")


def test_tensors_larger_than_a_piece(tmp_path):
    """They are transposed across the edge of the buffer that weights are moved through; heads have 64 channels without
    hparams.json."""
    config = GPTConfig(vocab_size=5000, max_seq_len=8, n_layer=2, n_head=5, n_embd=320)
    tensors = tfwriter.random_tensors(config)
    path = tfwriter.write(tmp_path, tensors, index=False, **{**HPARAMS, "n_vocab": 5000, "n_ctx": 8,
                                                             "n_embd": 320, "n_head": 5, "n_layer": 2})  # fmt: skip
    assert_loads(path, tensors, config)


def test_it_trains_and_resets_moments(folder):
    model = Model(folder, B=1, T=8)
    model.forward([[1, 2, 3]], [[2, 3, 4]])
    model.backward()
    model.update()
    _ffi.check(lib, lib.llmc_model_load(model._handle, os.fsencode(folder)))
    assert model.step == 0
    assert not model.moments["wte"][0].any()
    assert model.tokenizer_bytes == b""


RELEASED = {
    497_759_232: (12, 768),
    1_419_292_672: (24, 1024),
    3_096_120_320: (36, 1280),
    6_230_444_800: (48, 1600),
}


@pytest.mark.parametrize("size", RELEASED)
def test_the_released_sizes_without_an_index(tmp_path, size):
    L, C = RELEASED[size]
    with open(tmp_path / DATA, "wb") as file:
        file.truncate(size)
    assert read_config(tmp_path) == GPTConfig(50257, 1024, L, C // 64, C)
    with open(tmp_path / DATA, "ab") as file:
        file.write(b"\0\0\0\0")
    refused(tmp_path, f"has {size + 4} bytes, which no GPT-2 of V=50257 and T=1024 makes")


def test_another_size_without_an_index(tmp_path):
    with open(tmp_path / DATA, "wb") as file:
        file.truncate(4 * 128 * (50257 + 1024 + 2 + 3 * (13 + 12 * 128)))
    assert read_config(tmp_path) == GPTConfig(50257, 1024, 3, 2, 128)


# ---- damaged ----


def test_every_tensor_is_checked(folder):
    """A changed bit anywhere in the data is found, and its tensor named."""
    data, good = folder / DATA, (folder / DATA).read_bytes()
    for at, name in (
        (0, "qkvb of layer 0"),
        (len(good) - 1, "wte of layer 0"),
        (len(good) // 2, " of layer "),
    ):
        data.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        refused(folder, f"{DATA} is damaged in .*{name}.*expected checksum")
    (folder / INDEX).unlink()
    data.write_bytes(struct.pack("<f", np.nan) + good[4:])
    refused(folder, "weights of qkvb hold nan", _ffi.NotFinite)


def test_truncated_data_and_trailing_bytes(folder):
    data, good = folder / DATA, (folder / DATA).read_bytes()
    for index in (True, False):
        if not index:
            (folder / INDEX).unlink()
        for content in (b"", good[:4], good[:-1], good[:-4], good + b"\0", good + good):
            data.write_bytes(content)
            refused(folder, "expected .*bytes, found")
    data.unlink()
    refused(folder / DATA, "cannot be opened", _ffi.SystemFailure)


def rewritten(folder: Path, change) -> Path:
    """The index with changed entries and right checksums."""
    entries = dict(ENTRIES)
    change(entries)
    (folder / INDEX).write_bytes(tfwriter.table(sorted(entries.items())))
    return folder


def entry(name: str, **changes) -> bytes:
    at = sum(x.nbytes for other, x in TENSORS.items() if other < name)
    x = TENSORS[name]
    return tfwriter.tensor_entry(**{"shape": x.shape, "offset": at, "data": x.tobytes(), **changes})


LN, W = "model/h3/ln_1/g", "model/h11/mlp/c_fc/w"
WRONG = {
    "missing": (lambda e: e.pop(W.encode()), f"lacks {W} of a GPT-2 with 12 layers"),
    "no embedding": (lambda e: e.pop(b"model/wte"), "lacks model/wte"),
    "extra": (
        lambda e: e.update({b"model/wte/Adam": tfwriter.tensor_entry((1,), 0, b"1234")}),
        "has model/wte/Adam, which a GPT-2 with 12 layers has not",
    ),
    "shape": (lambda e: e.update({LN.encode(): entry(LN, shape=(4, 2))}), rf"{LN} has the shape \(4,2\), expected \(8\)"),
    "orientation": (
        lambda e: e.update({W.encode(): entry(W, shape=(1, 32, 8))}),
        rf"{W} has the shape \(1,32,8\), expected \(1,8,32\)",
    ),
    "rank": (lambda e: e.update({LN.encode(): entry(LN, shape=(8, 1, 1, 1, 1))}), r"\(8,1,1,1,...\), expected \(8\)"),
    "float64": (lambda e: e.update({LN.encode(): entry(LN, dtype=2)}), f"{LN} is of TensorFlow's type 2"),
    "size": (lambda e: e.update({LN.encode(): entry(LN, data=b"1234")}), f"{LN} has 4 bytes, expected 32"),
    "overlap": (lambda e: e.update({LN.encode(): entry(LN, offset=0)}), f"{LN} begins at byte 0, expected"),
    "huge offset": (lambda e: e.update({LN.encode(): entry(LN, offset=2**62)}), f"{LN} begins at byte 4611686018427387904"),
    "shards": (lambda e: e.update({b"": tfwriter.header_entry(shards=2)}), "describes 2 files"),
    "endian": (lambda e: e.update({b"": tfwriter.header_entry(endian=1)}), "big-endian"),
    "huge V": (
        lambda e: e.update({b"model/wte": entry("model/wte", shape=(2**31, 8))}),
        "model/wte has no two dimensions that can be",
    ),
    "large V": (lambda e: e.update({b"model/wte": entry("model/wte", shape=(2**25, 8))}), "vocab_size=33554432"),
    "channels": (lambda e: e.update({b"model/wpe": entry("model/wpe", shape=(8, 16))}), "model/wte has 8 channels, model/wpe 16"),
    "layers": (
        lambda e: e.update({b"model/h99999999/ln_1/g": entry(LN)}),
        "too few for 100000000 layers",
    ),
    "no layers": (lambda e: [e.pop(k) for k in list(e) if b"/h" in k], "too few for 0 layers"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_an_index_of_something_else(folder, case):
    change, reason = WRONG[case]
    (folder / "hparams.json").write_text('{"n_head": 2}')
    refused(rewritten(folder, change), reason)


@pytest.mark.parametrize(
    "text, reason",
    [
        ('{"n_vocab": 71, "n_head": 2}', "n_vocab=71, but the tensors of .* have 70"),
        ('{"n_layer": 13, "n_head": 2}', "n_layer=13, but .* have 12"),
        ('{"n_head": 3}', "n_embd=8 is not a multiple of n_head=3"),
        ('{"n_head": 2.5}', "n_head is no whole number"),
        ('{"n_head": "2"}', "n_head is no whole number"),
        ('{"n_head": 123456789012}', "n_head is no whole number"),
        ('{"n_head": 0}', "n_head is no whole number"),
        ("{}", "hparams.json: expected .* found no n_head"),
        ("{", "hparams.json: expected .* found no n_head"),
        ('{"n_layer": 12}', "hparams.json: expected .* found no n_head"),
        (None, "n_embd=8, which is no multiple of 64, the size of OpenAI's heads"),
        (" " * 5000, "expected less than 4096 bytes"),
    ],
)
def test_hparams(folder, text, reason):
    (folder / "hparams.json").unlink(missing_ok=True)
    if text is not None:
        (folder / "hparams.json").write_text(text)
    refused(folder, reason)


@pytest.mark.parametrize("index", [True, False])
def test_hparams_must_tell_the_heads_even_where_they_could_be_guessed(tmp_path, index):
    config = GPTConfig(vocab_size=50257, max_seq_len=1024, n_layer=2, n_head=1, n_embd=64)
    path = tfwriter.write(tmp_path, tfwriter.random_tensors(config), index)
    assert read_config(path) == config
    (path / "hparams.json").write_text("{")
    refused(path, "found no n_head")


def test_hparams_that_ask_for_more_than_there_is(folder):
    (folder / INDEX).unlink()
    tfwriter.write(folder, TENSORS, False, **{**HPARAMS, "n_embd": 1 << 20, "n_layer": 1 << 20})
    refused(folder, "is too small for n_layer=1048576")
    tfwriter.write(folder, TENSORS, False, **{**HPARAMS, "n_vocab": 71})
    refused(folder, "expected .* bytes, found")


def test_the_index_is_refused_at_every_length_and_bit(folder):
    """Every length and every byte of an index of 12 layers, in blocks."""
    good, path = (folder / INDEX).read_bytes(), folder / INDEX
    for n in range(0, len(good), 7):
        path.write_bytes(good[:n])
        with pytest.raises(_ffi.BadFile, match="index"):
            read_config(folder)
    covered = len(good) - 48  # the footer's zeros and the empty meta-index have no meaning
    for at in range(0, covered, 5):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :])
        try:
            assert read_config(folder) == CONFIG
        except _ffi.BadFile as error:
            assert "damaged" in str(error)
    path.write_bytes(b"")
    refused(folder, "an index has 48 to")
    path.unlink()
    path.mkdir()
    refused(folder, "is a directory", _ffi.SystemFailure)


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_an_index_with_right_checksums_and_wrong_bytes(folder, data):
    """Bytes of entries are changed before the checksums are made, so these do not catch the change."""
    entries = list(ENTRIES[: data.draw(st.integers(1, 40))])
    i = data.draw(st.integers(0, len(entries) - 1))
    key, value = entries[i]
    at = data.draw(st.integers(0, len(value) - 1))
    entries[i] = key, value[:at] + data.draw(st.binary(max_size=12)) + value[at + 1 :]
    (folder / INDEX).write_bytes(tfwriter.table(entries, data.draw(st.integers(1, 60))))
    with pytest.raises(_ffi.BadFile, match="tiny"):
        read_config(folder)


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=80), restarts=st.integers(0, 2**32 - 1))
def test_blocks_of_anything(folder, body, restarts):
    content = body + struct.pack("<I", restarts % 3 if restarts % 2 else restarts)
    seal = lambda x: x + b"\0" + struct.pack("<I", tfwriter.masked(tfwriter.crc(x + b"\0")))  # noqa: E731
    handle = tfwriter.varint(0) + tfwriter.varint(len(content))
    footer = handle + handle
    (folder / INDEX).write_bytes(seal(content) + footer.ljust(40, b"\0") + struct.pack("<Q", tfwriter.MAGIC))
    with pytest.raises(_ffi.BadFile, match="tiny"):
        read_config(folder)


# ---- the front ends ----


def test_the_program_starts_from_it(folder, tmp_path):
    tokens = tmp_path / "tokens.bin"
    tokens.write_bytes(struct.pack("<256i", 20240520, 1, 200, *[0] * 253) + bytes(range(70)) * 5 + bytes(50))
    common = ["--B=1", "--max_steps=1", f"--data={tokens}", "--out="]
    program = shutil.which("train_gpt2", path=ROOT)
    for model in (folder, folder / "model.ckpt"):
        run = subprocess.run([program, f"--model={model}", *common], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert "step 1/1" in run.stdout
    (folder / DATA).unlink()
    run = subprocess.run([program, f"--model={folder}", *common], capture_output=True, text=True)
    assert (run.returncode, run.stderr.count("\n")) == (5, 1)
