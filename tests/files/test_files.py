"""A file of weights as a handle: which file a path means, and what an open file answers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tfwriter
from conftest import ffi, lib
from test_tokenizer_c import BYTES, EOT, file_bytes

from pyllmc import GPTConfig, Model
from pyllmc.engine import _ffi

TABLE = file_bytes([*BYTES, EOT])
CONFIG = GPTConfig(vocab_size=257, max_seq_len=6, n_layer=2, n_head=2, n_embd=8)


def save(path: Path, seed: int, tokenizer: bytes = b"", state: bytes = b"step=5\n") -> Model:
    model = Model(CONFIG, B=1, T=4, seed=seed, training=False, threads=1)
    carried = tokenizer or ffi.NULL
    code = lib.llmc_checkpoint_save(
        model._handle, os.fsencode(path), b"lr=1\n", state, carried, len(tokenizer), 0
    )
    _ffi.check(lib, code)
    return model


def find(path: Path) -> Path | None:
    out = ffi.new("char[]", 4096)
    found = lib.llmc_file_find(os.fsencode(path), out, 4096)
    return Path(_ffi.text(out)) if found else None


class File:
    def __init__(self, path: Path) -> None:
        out = ffi.new("llmc_file **")
        _ffi.check(lib, lib.llmc_file_open(out, os.fsencode(path)))
        self.handle = ffi.gc(out[0], lib.llmc_file_free)

    @property
    def path(self) -> Path:
        return Path(_ffi.text(lib.llmc_file_path(self.handle)))

    def describe(self) -> str:
        text = ffi.new("char[]", 128)
        _ffi.check(lib, lib.llmc_file_describe(self.handle, text, 128))
        return _ffi.text(text)

    def section(self, tag: bytes) -> bytes:
        size = _ffi.check(lib, lib.llmc_file_section(self.handle, tag, ffi.NULL, 0))
        out = ffi.new("char[]", size + 1)
        assert lib.llmc_file_section(self.handle, tag, out, size + 1) == size
        return ffi.buffer(out)[:size]

    def tokenizer(self, beside: int) -> bytes:
        """The bytes of its tokenizer.bin; empty if there is none."""
        out, size = ffi.new("llmc_tokenizer **"), ffi.new("int64_t *")
        _ffi.check(lib, lib.llmc_file_tokenizer(self.handle, beside, out))
        if not out[0]:
            return b""
        found = ffi.gc(out[0], lib.llmc_tokenizer_free)
        return bytes(ffi.buffer(lib.llmc_tokenizer_bytes(found, size), size[0]))


def test_a_run_folder_means_its_best_else_its_last(tmp_path):
    assert find(tmp_path) is None
    save(tmp_path / "last.ckpt", 1)
    assert find(tmp_path) == File(tmp_path).path == tmp_path / "last.ckpt"
    save(tmp_path / "best.ckpt", 2)
    assert find(tmp_path) == File(tmp_path).path == tmp_path / "best.ckpt"
    assert find(tmp_path / "last.ckpt") == File(tmp_path / "last.ckpt").path == tmp_path / "last.ckpt"


def test_a_bundle_is_found_by_each_of_its_names(tmp_path):
    config = GPTConfig(vocab_size=30, max_seq_len=8, n_layer=2, n_head=2, n_embd=8)
    sizes = dict(n_vocab=30, n_ctx=8, n_layer=2, n_head=2, n_embd=8)
    folder = tfwriter.write(tmp_path / "bundle", tfwriter.random_tensors(config), **sizes)
    data = folder / "model.ckpt.data-00000-of-00001"
    for path in (folder, folder / "model.ckpt", folder / "model.ckpt.index", data):
        assert find(path) == path
        assert File(path).path == data
        assert File(path).describe() == "OpenAI TensorFlow checkpoint with its index"


def test_nothing_and_a_folder_without_weights_mean_no_file(tmp_path):
    assert find(tmp_path / "absent") is None
    with pytest.raises(_ffi.LlmcError, match="absent cannot be opened: No such file"):
        File(tmp_path / "absent")
    with pytest.raises(_ffi.LlmcError, match=r"without best\.ckpt, last\.ckpt or model\.ckpt"):
        File(tmp_path)


def test_an_open_file_stays_the_one_that_was_opened(tmp_path):
    """A run replaces its checkpoint; all answers are still about the file before."""
    path = tmp_path / "last.ckpt"
    first = save(path, 1, state=b"step=5\n")
    file = File(tmp_path)
    save(path, 2, state=b"step=6\n")
    assert file.section(b"STATE   ") == b"step=5\n"
    assert file.section(b"OPTIONS ") == b"lr=1\n"
    assert file.describe() == "pyllmc checkpoint"
    c = lib.llmc_file_config(file.handle)
    assert GPTConfig(c.V, c.maxT, c.L, c.NH, c.C, c.window) == CONFIG
    model = Model(CONFIG, B=1, T=4, seed=3, training=False, threads=1)
    _ffi.check(lib, lib.llmc_model_load_from(model._handle, file.handle))
    assert np.array_equal(model.params["wte"], first.params["wte"])
    assert lib.llmc_model_step(model._handle) == 5


def test_the_tokenizer_inside_comes_before_the_one_beside(tmp_path):
    path = tmp_path / "model.ckpt"
    save(path, 1)
    assert File(path).tokenizer(beside=1) == b""
    (tmp_path / "tokenizer.bin").write_bytes(TABLE)
    assert File(path).tokenizer(beside=0) == b""
    assert File(path).tokenizer(beside=1) == TABLE
    own = file_bytes([*BYTES[::-1], EOT])
    save(path, 1, tokenizer=own)
    assert File(path).tokenizer(beside=0) == File(path).tokenizer(beside=1) == own


def test_a_tokenizer_beside_must_fit(tmp_path):
    save(tmp_path / "model.ckpt", 1)
    (tmp_path / "tokenizer.bin").write_bytes(file_bytes(BYTES[:100]))
    with pytest.raises(_ffi.LlmcError, match="100 ids, the model V=257"):
        File(tmp_path / "model.ckpt").tokenizer(beside=1)
