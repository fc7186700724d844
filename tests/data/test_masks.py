"""Loss masks: their format, the windows of documents, agreement of C and Python, and the masks that are refused."""

from __future__ import annotations

import itertools
import os
import pickle
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ffi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_dataloader import Loader, lib, write

from pyllmc import BadFile, LlmcError
from pyllmc.base.errors import DataError
from pyllmc.text import bins, dataset, masks

EOT = 9
FORMATS = ["uint16", "uint32", "raw"]


def mask_bytes(tokens: Path, learnt, **other) -> bytes:
    """The mask of a token file, made by hand."""
    bits = bytearray((len(learnt) + 7) // 8)
    for i, learn in enumerate(learnt):
        bits[i // 8] |= bool(learn) << i % 8
    head = {"magic": 20261130, "version": 1, "n": len(learnt), "crc": zlib.crc32(tokens.read_bytes())}
    head.update(other)
    return struct.pack("<iiqII8x", *head.values(), zlib.crc32(bits)) + bits


@pytest.fixture
def scratch(tmp_path):
    """A fresh path for each example of a property."""
    numbers = itertools.count()
    return lambda: tmp_path / f"{next(numbers)}.bin"


@given(st.lists(st.booleans(), min_size=1, max_size=70), st.integers(1, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_bytes_of_a_mask(scratch, learnt, piece):
    path = write(scratch(), range(len(learnt)))
    dataset.write_mask(path, learnt)
    found = path.with_name(path.name + ".mask").read_bytes()
    assert found == mask_bytes(path, learnt)
    assert masks.read_mask(path, len(learnt)).tolist() == learnt
    writer = masks.MaskWriter()  # in pieces
    for i in range(0, len(learnt), piece):
        writer.append(bytes(learnt[i : i + piece]))
    writer.write(os.fspath(path) + ".again", os.fspath(path), "again")
    assert Path(os.fspath(path) + ".again").read_bytes() == found
    assert (writer.ntok, writer.learnt) == (len(learnt), sum(learnt[1:]))


DOCUMENTS = st.lists(st.lists(st.integers(0, 8), max_size=9), min_size=1, max_size=6)


@given(DOCUMENTS, st.integers(1, 12), st.sampled_from(FORMATS), st.sampled_from([EOT, -1]), st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_learnt_token_is_a_target_once(scratch, documents, T, fmt, eot, data):
    """And documents that fit T lie in one window, from their first id on. Python's loader gives the same batches."""
    ids = [i for document in documents for i in (EOT, *document)] + [EOT]
    learnt = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    learnt[-1] = True
    path = write(scratch(), ids, fmt)
    dataset.write_mask(path, learnt)
    loader, reference = Loader(path, T=T, eot=eot), bins.Loader([path], B=1, T=T, eot=eot)
    assert loader.windows == reference.windows
    assert lib.llmc_loader_learnt(loader.handle) == sum(learnt[1:])
    targets = []
    for _ in range(loader.windows):
        (x, y), (x2, y2) = loader.next(), reference.next()
        assert x.tolist() == x2.tolist() and y.tolist() == y2.tolist()
        assert x.min() >= 0
        targets += y[y >= 0].tolist()
    assert targets == [i for i, learn in zip(ids[1:], learnt[1:]) if learn]
    if eot >= 0:
        fitting = [len(document) + 1 <= T for document in documents]
        assert lib.llmc_loader_cut(loader.handle) == fitting.count(False)
        if all(fitting):
            assert loader.windows == len(documents)


@pytest.mark.parametrize("n", [0, 5, 7])
def test_a_mask_of_another_number_of_tokens_is_refused(tmp_path, n):
    path = write(tmp_path / "a.bin", range(6))
    with pytest.raises(DataError, match=f"learnt has {n} values, and .*a.bin 6 tokens: give one for each"):
        dataset.write_mask(path, [True] * n)
    assert list(tmp_path.iterdir()) == [path]


def test_shards_with_and_without_masks(tmp_path):
    write(tmp_path / "train_0.bin", [EOT, 1, 2, EOT, 3, EOT])
    write(tmp_path / "train_1.bin", [EOT, 4, 5, 6, 7, 8, 1])
    dataset.write_mask(tmp_path / "train_0.bin", [1, 0, 1, 1, 0, 1])
    loader = Loader(tmp_path, T=3, eot=EOT)
    batches = [loader.next() for _ in range(loader.windows)]
    assert [y.tolist() for _, y in batches] == [[[-1, 2, 9]], [[-1, 9, -1]], [[4, 5, 6]], [[7, 8, 1]]]
    assert [x.tolist() for x, _ in batches[:2]] == [[[9, 1, 2]], [[9, 3, 9]]]
    assert lib.llmc_loader_learnt(loader.handle) == 3 + 6


def test_checking_a_mask_gives_signs_of_life(tmp_path):
    """And whoever hears them may stop it."""
    path, heard = write(tmp_path / "a.bin", [EOT, *[1] * (1 << 20), EOT]), []
    dataset.write_mask(path, [1] * ((1 << 20) + 2))
    stops = ["nothing"]

    def pulse(context, text) -> int:
        heard.append(ffi.string(text).decode())
        return heard[-1].startswith(stops[-1])

    callback = ffi.callback("llmc_pulse", pulse)
    lib.llmc_on_pulse(callback, ffi.NULL)
    try:
        Loader(path, T=8, eot=EOT)
        shares = [int(share) for text in heard for share in re.findall(r"checking .*a\.bin: (\d+) %$", text)]
        assert len(shares) > 3 and shares == sorted(shares) and shares[-1] == 100
        assert any("looking for documents in" in text for text in heard) and heard[-1] == ""
        for work in ("checking", "looking for documents"):
            stops.append(work)
            with pytest.raises(LlmcError, match="stopped"):
                Loader(path, T=8, eot=EOT)
    finally:
        lib.llmc_on_pulse(ffi.NULL, ffi.NULL)


def test_without_a_mask_nothing_is_masked(tmp_path):
    loader = Loader(write(tmp_path / "a.bin", [EOT, 1, 2, 3]), T=3, eot=EOT)
    assert lib.llmc_loader_learnt(loader.handle) == -1
    assert loader.next()[1].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path, ids: mask_bytes(path, [1] * 5), "is the mask of 5 tokens, and"),
        (lambda path, ids: mask_bytes(path, [1] * 6, crc=7), "of other tokens"),
        (
            lambda path, ids: mask_bytes(path, [1] * 6, magic=20240520),
            "no loss mask: expected magic 20261130",
        ),
        (lambda path, ids: mask_bytes(path, [1] * 6, version=2), "version 1, found 20261130 and 2"),
        (lambda path, ids: mask_bytes(path, [1] * 6)[:20], "is truncated: it has 20 bytes"),
        (lambda path, ids: mask_bytes(path, [1] * 6) + b"\0", "expected 33 bytes for 6 tokens, found 34"),
        (lambda path, ids: mask_bytes(path, [1] * 6)[:-1] + b"\1", "is damaged: expected checksum"),
        (lambda path, ids: b"", "is truncated"),
    ],
)
def test_a_mask_that_is_not_of_the_file_is_refused(tmp_path, damage, words):
    path = write(tmp_path / "a.bin", [EOT, 1, 2, 3, 4, EOT])
    (tmp_path / "a.bin.mask").write_bytes(damage(path, 6))
    with pytest.raises(LlmcError, match=words) as error:
        Loader(path, T=2, eot=EOT)
    assert "prepare the data again" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(BadFile, match="write it again"):
        masks.read_mask(path, 6)


def test_tokens_that_were_changed_are_refused(tmp_path):
    path = write(tmp_path / "a.bin", [EOT, 1, 2, EOT])
    dataset.write_mask(path, [1] * 4)
    write(path, [EOT, 1, 3, EOT])
    with pytest.raises(LlmcError, match="of other tokens"):
        Loader(path, T=2, eot=EOT)


def test_data_of_which_nothing_is_learnt_is_refused(tmp_path):
    path = write(tmp_path / "a.bin", [EOT, 1, 2, EOT])
    dataset.write_mask(path, [1, 0, 0, 0])  # nothing predicts the first token
    with pytest.raises(LlmcError, match="lets no token be learnt: prepare the data again"):
        Loader(path, T=2, eot=EOT)


def test_marked_texts_are_kept():
    text = masks.Marked.of([("ab", False), ("c", True)])
    again = pickle.loads(pickle.dumps(text))
    assert (again, again.parts) == ("abc", (("ab", False), ("c", True)))


def test_a_file_of_numpy_masks(tmp_path):
    path = write(tmp_path / "a.bin", [EOT, 1, 2, EOT])
    dataset.write_mask(path, np.array([0, 1, 0, 1], bool))
    assert masks.read_mask(path, 4).tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    "learnt", [np.array([EOT, 1, 2, EOT]), [0.5, 1, 0, 1], [None] * 4, ["0", "1", "0", "1"]]
)
def test_what_is_no_mask_is_refused(tmp_path, learnt):
    """Token ids, for one: all of them would count as learnt."""
    path = write(tmp_path / "a.bin", [EOT, 1, 2, EOT])
    with pytest.raises(DataError, match=f"learnt holds {learnt[0]}: give True or False for each token"):
        dataset.write_mask(path, learnt)
    assert masks.read_mask(path, 4) is None
