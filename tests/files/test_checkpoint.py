"""Checkpoints: what is in the file, and what is loaded from it."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
from conftest import ffi, lib

from pyllmc import GPTConfig, Model
from pyllmc.engine import _ffi

CONFIG = GPTConfig(vocab_size=37, max_seq_len=6, n_layer=2, n_head=2, n_embd=8)
HEAD = 1024
TAGS = [b"OPTIONS ", b"STATE   ", b"TOKENIZR", b"MOMENTS ", b"CRC32   "]


def make(seed=1, training=True, config=CONFIG) -> Model:
    return Model(config, B=2, T=4, seed=seed, training=training, threads=1)


def block(model: Model, which: str) -> np.ndarray:
    """A copy of a whole block, padding included."""
    rows = [lib.llmc_model_tensor(model._handle, i) for i in range(lib.llmc_num_tensors())]
    n = sum(r.size * max(r.layers, 1) for r in rows if r.kind == lib.LLMC_PARAM)
    pointer = lib.llmc_model_block(model._handle, getattr(lib, which))
    return np.frombuffer(ffi.buffer(ffi.cast("float *", pointer), 4 * n), np.float32).copy()


def trained(seed=1, steps=3) -> Model:
    model, rng = make(seed), np.random.default_rng(seed)
    for _ in range(steps):
        step(model, rng)
    return model


def step(model: Model, rng) -> float:
    ids = rng.integers(0, CONFIG.vocab_size, (2, 5))
    loss = model.forward(ids[:, :-1], ids[:, 1:])
    model.zero_grad()
    model.backward()
    model.update(lr=1e-2)
    return loss


def save(model: Model, path, options=None, state=None, tokenizer=b"", moments=1) -> None:
    text = [ffi.NULL if t is None else t.encode() for t in (options, state)]
    _ffi.check(
        lib,
        lib.llmc_checkpoint_save(
            model._handle, os.fsencode(path), *text, tokenizer or ffi.NULL, len(tokenizer), moments
        ),
    )


def load(model: Model, path) -> None:
    _ffi.check(lib, lib.llmc_model_load(model._handle, os.fsencode(path)))


def section(path, tag: bytes) -> bytes:
    size = _ffi.check(lib, lib.llmc_checkpoint_text(os.fsencode(path), tag, ffi.NULL, 0))
    out = ffi.new("char[]", size + 1)
    assert lib.llmc_checkpoint_text(os.fsencode(path), tag, out, size + 1) == size
    return ffi.buffer(out)[:size]


def sections(data: bytes, params: int) -> dict[bytes, bytes]:
    at, found = HEAD + 4 * params, {}
    while at < len(data):
        tag, size = struct.unpack("<8sq", data[at : at + 16])
        found[tag] = data[at + 16 : at + 16 + size]
        at += 16 + size
    return found


def llmc_file(version: int, weights: np.ndarray, config=CONFIG, /, **changes) -> bytes:
    """llm.c's model .bin from the padded block of weights."""
    c = config
    Vp = (c.vocab_size + 127) // 128 * 128
    head = dict(magic=20240326, version=version, maxT=c.max_seq_len, V=c.vocab_size, L=c.n_layer, NH=c.n_head)
    head.update(C=c.n_embd, Vp=Vp if version > 1 else 0, window=0)
    head.update(changes)
    body = weights
    if version == 1:
        body = np.concatenate([weights[: c.vocab_size * c.n_embd], weights[Vp * c.n_embd :]])
    raw = (
        (body.view(np.uint32) >> 16).astype("<u2").tobytes() if version == 5 else body.astype("<f4").tobytes()
    )
    return struct.pack("<256i", *head.values(), *[0] * 247) + raw


# ---- what is in the file ----


def test_round_trip_and_format(tmp_path):
    """The head is llm.c's model file, byte by byte; then come the sections, then zlib's checksum."""
    model, path = trained(), tmp_path / "ü.ckpt"
    save(model, path, "lr=1\nB=2\n", "step=3\nposition=17\n", b"\0token\xff")
    data, params = path.read_bytes(), block(model, "LLMC_PARAMS")
    assert data[: HEAD + params.nbytes] == llmc_file(3, params)
    found = sections(data, params.size)
    assert list(found) == TAGS
    assert found[b"OPTIONS "] == b"lr=1\nB=2\n" == section(path, b"OPTIONS ")
    assert found[b"STATE   "] == b"step=3\nposition=17\n" == section(path, b"STATE   ")
    assert found[b"TOKENIZR"] == b"\0token\xff" == section(path, b"TOKENIZR")
    moments = np.frombuffer(found[b"MOMENTS "], np.float32).reshape(2, -1)
    assert (moments[0] == block(model, "LLMC_M")).all()
    assert (moments[1] == block(model, "LLMC_V")).all()
    assert struct.unpack("<I", found[b"CRC32   "])[0] == zlib.crc32(data[:-20])
    assert os.listdir(tmp_path) == ["ü.ckpt"]

    other = make(seed=9)
    load(other, path)
    for which in ("LLMC_PARAMS", "LLMC_M", "LLMC_V"):
        assert (block(other, which) == block(model, which)).all()
    assert lib.llmc_model_step(other._handle) == 3
    a, b = np.random.default_rng(5), np.random.default_rng(5)
    assert [step(model, a) for _ in range(3)] == [step(other, b) for _ in range(3)]


def test_python_face(tmp_path):
    model, path = trained(), tmp_path / "m.ckpt"
    model.save(path)
    again = Model(path, B=2, T=4)
    assert again.config == model.config
    assert again.step == 3
    assert (block(again, "LLMC_V") == block(model, "LLMC_V")).all()
    frozen = Model(path, B=1, T=4, training=False)
    assert (block(frozen, "LLMC_PARAMS") == block(model, "LLMC_PARAMS")).all()
    frozen.save(path)
    fresh = Model(path, B=2, T=4)
    assert fresh.step == 0, "without moments AdamW begins anew"
    assert not block(fresh, "LLMC_M").any()


def test_weights_alone_leave_no_old_moments(tmp_path):
    model, path = trained(), tmp_path / "w.ckpt"
    save(model, path, moments=0)
    load(model, path)
    assert lib.llmc_model_step(model._handle) == 0
    assert not block(model, "LLMC_M").any()
    assert not block(model, "LLMC_V").any()


def test_optional_sections(tmp_path):
    path = tmp_path / "x"
    save(trained(), path, state="position=4\nlaststep=9\n", moments=0)
    assert section(path, b"STATE   ") == b"step=3\nposition=4\nlaststep=9\n"
    assert section(path, b"OPTIONS ") == section(path, b"TOKENIZR") == b""
    save(trained(), path, state="position=4\nstep=3\n")
    assert section(path, b"STATE   ") == b"position=4\nstep=3\n"
    model = make(2)
    load(model, path)
    assert lib.llmc_model_step(model._handle) == 3
    small = ffi.new("char[4]")
    assert lib.llmc_checkpoint_text(os.fsencode(path), b"STATE   ", small, 4) == lib.LLMC_EINVAL
    assert lib.llmc_checkpoint_text(os.fsencode(path), b"STAT", small, 4) == lib.LLMC_EINVAL


@pytest.mark.parametrize("version", [1, 3, 5])
def test_llmc_versions(tmp_path, version):
    model, path = make(seed=4), tmp_path / "model.bin"
    params = block(model, "LLMC_PARAMS")
    expected = (params.view(np.uint32) & 0xFFFF0000).view(np.float32) if version == 5 else params
    path.write_bytes(llmc_file(version, params))
    again = Model(path, B=2, T=4, seed=8)
    assert (block(again, "LLMC_PARAMS") == expected).all()
    assert section(path, b"STATE   ") == b""


def test_padding_is_zero_whatever_the_file_holds(tmp_path):
    params = block(make(), "LLMC_PARAMS")
    params[37 * 8 : 128 * 8] = 5
    (tmp_path / "m.bin").write_bytes(llmc_file(3, params))
    model = Model(tmp_path / "m.bin", B=1, T=4)
    assert not block(model, "LLMC_PARAMS")[37 * 8 : 128 * 8].any()


def test_window_travels(tmp_path):
    config = GPTConfig(vocab_size=37, max_seq_len=6, n_layer=2, n_head=2, n_embd=8, window=3)
    make(config=config).save(tmp_path / "w")
    assert Model(tmp_path / "w", B=1, T=4).config.window == 3
    with pytest.raises(_ffi.InvalidArgument, match="window=3, the model 0"):
        load(make(), tmp_path / "w")


def test_pieces(tmp_path):
    """The file is larger than the buffer that weights are moved through."""
    config = GPTConfig(vocab_size=5000, max_seq_len=8, n_layer=1, n_head=1, n_embd=64)
    model = Model(config, B=1, T=2)
    model.save(tmp_path / "m")
    again = Model(tmp_path / "m", B=1, T=2, seed=7)
    assert (block(model, "LLMC_PARAMS") == block(again, "LLMC_PARAMS")).all()
    model.params["transformer.ln_f.bias"][-1] = np.inf
    with pytest.raises(_ffi.NotFinite, match="weights of lnfb hold inf"):
        model.save(tmp_path / "m")


def test_a_run_folder_stands_for_its_best_checkpoint(tmp_path):
    """If nothing was validated, the last checkpoint stands for the folder."""
    make(seed=1).save(tmp_path / "last.ckpt")
    assert np.array_equal(Model(tmp_path, B=1).params["wte"], make(seed=1).params["wte"])
    make(seed=2).save(tmp_path / "best.ckpt")
    assert np.array_equal(Model(tmp_path, B=1).params["wte"], make(seed=2).params["wte"])
    (tmp_path / "hollow").mkdir()
    with pytest.raises(OSError, match="hollow is a folder without weights: expected .*best.ckpt, last.ckpt"):
        Model(tmp_path / "hollow")
