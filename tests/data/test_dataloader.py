"""The data loader: formats, the order of windows, agreement with pyllmc.text.bins, bad files."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import ffi, lib
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllmc.engine import _ffi

QUICK = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
FORMATS = {"uint16": (20240520, 1, "<u2"), "uint32": (20240801, 7, "<u4"), "raw": (None, None, "<i4")}


def shard_bytes(ids, fmt: str = "uint16", magic=None, version=None, ntok=None) -> bytes:
    own_magic, own_version, dtype = FORMATS[fmt]
    body = np.asarray(ids).astype(dtype).tobytes()
    if own_magic is None:
        return body
    head = [magic or own_magic, version or own_version, len(ids) if ntok is None else ntok]
    return struct.pack("<256i", *head, *[0] * 253) + body


def write(path: Path, *args, **kwargs) -> Path:
    path.write_bytes(shard_bytes(*args, **kwargs))
    return path


class Loader:
    def __init__(
        self,
        paths,
        B=1,
        T=4,
        shuffle=0,
        seed=0,
        rank=0,
        world=1,
        V=0,
        split="train",
        eot=-1,
        opens=lib.llmc_loader_open,
    ) -> None:
        self.B, self.T = B, T
        out = ffi.new("llmc_loader **")
        name = os.fsencode(paths)
        options = (B, T, shuffle, seed, rank, world, V, eot)
        _ffi.check(lib, opens(out, name, split.encode(), *options))
        self.handle = ffi.gc(out[0], lib.llmc_loader_free)
        self.windows = lib.llmc_loader_windows(self.handle)

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        x, y = np.full((2, self.B, self.T), -9, np.int32)
        cast = [ffi.cast("int *", a.ctypes.data) for a in (x, y)]
        _ffi.check(lib, lib.llmc_loader_next(self.handle, *cast))
        return x, y

    @property
    def position(self) -> int:
        return lib.llmc_loader_position(self.handle)

    @position.setter
    def position(self, value: int) -> None:
        _ffi.check(lib, lib.llmc_loader_set_position(self.handle, value))


# ---- formats and files ----


@pytest.mark.parametrize("fmt", FORMATS)
def test_formats(tmp_path, fmt):
    ids = np.arange(21) + (0 if fmt == "uint16" else 70_000)
    loader = Loader(write(tmp_path / "a.bin", ids, fmt), B=2, T=5)
    assert loader.windows == 4
    assert lib.llmc_loader_tokens(loader.handle) == 21
    x, y = loader.next()
    assert (x == ids[:10].reshape(2, 5)).all()
    assert (y == ids[1:11].reshape(2, 5)).all()
    x, y = loader.next()
    assert (x == ids[10:20].reshape(2, 5)).all()
    assert y[-1, -1] == ids[20]
    assert (loader.next()[0] == ids[:10].reshape(2, 5)).all()  # the next epoch


def test_unequal_shards_of_a_folder(tmp_path):
    """Files are sorted as bytes; the end of a shard that fills no window is left out; files of the other split are not
    read."""
    folder = tmp_path / "daten ü [x]"
    folder.mkdir()
    sizes = {"train_2.bin": 5, "train_10.bin": 23, "train.bin": 4, "train_B.bin": 9, "val_0.bin": 50}
    for k, (name, size) in enumerate(sizes.items()):
        write(folder / name, 100 * k + np.arange(size))
    loader = Loader(folder, B=1, T=4)
    assert lib.llmc_loader_num_shards(loader.handle) == 4
    assert loader.windows == 0 + 5 + 1 + 2
    starts = [int(loader.next()[0][0, 0]) for _ in range(8)]
    assert starts == [100, 104, 108, 112, 116, 0, 300, 304]
    assert Loader(folder, split="val").windows == 12
    assert Loader(str(folder).replace("[", "[[]") + "/train_?.bin").windows == 3


def test_more_shards_than_open_files(tmp_path):
    for s in range(150):
        write(tmp_path / f"train_{s:03d}.bin", [s] * 9)
    loader = Loader(tmp_path, B=1, T=4, shuffle=1)
    opened = len(os.listdir("/proc/self/fd"))
    seen = [int(loader.next()[0][0, 0]) for _ in range(300)]
    assert sorted(seen) == sorted(list(range(150)) * 2)
    assert len(os.listdir("/proc/self/fd")) <= opened + 64


BAD = {
    "empty": (b"", "is empty"),
    "half a header": (shard_bytes([1] * 9)[:700], "expected a header of 1024 bytes, found 700"),
    "truncated": (shard_bytes([1] * 9)[:-1], "truncated: expected 1042 bytes for 9 tokens, found 1041"),
    "trailing": (shard_bytes([1] * 9) + b"x", "trailing bytes: expected 1042"),
    "version": (shard_bytes([1] * 9, version=2), "expected version 1, found 2"),
    "zero tokens": (shard_bytes([]), "counts 0 tokens"),
    "negative": (shard_bytes([1] * 9, ntok=-9), "counts -9 tokens"),
    "huge": (shard_bytes([1] * 9, ntok=2**31 - 1), "expected 4294968318 bytes"),
    "other kind": (shard_bytes([1] * 9, magic=20240326), "is a model file"),
    "big-endian": (struct.pack(">256i", 20240520, 1, 9, *[0] * 253), "big-endian"),
    "text": (b"Once upon a time.", "no token file: expected magic 20240520 or 20240801, found 1701015119"),
    "too short": (shard_bytes([1] * 4), "has 4 tokens, but T=4 needs 5"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_file(tmp_path, case):
    data, message = BAD[case]
    (tmp_path / "train.bin").write_bytes(data)
    for source in (tmp_path, tmp_path / "train.bin"):
        with pytest.raises((_ffi.BadFile, _ffi.InvalidArgument), match=message) as error:
            Loader(source)
        assert "train.bin" in str(error.value)


def test_bad_path(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dir.bin").mkdir()
    write(tmp_path / "other.bin", [1] * 9)
    os.mkfifo(tmp_path / "fifo")
    for name, message in [
        ("", r"has no train\*.bin; it has (other|dir).bin: name the files with a glob"),
        ("dir.bin", r"has no train\*.bin: make the data with python -m pyllmc.prepro"),
        ("none*.bin", "no token file matches"),
        ("none", "(no token file matches|there is no data at) .*none"),
        ("loop", "no token file matches|symbolic links"),
        ("fifo", "is not a regular file: copy its content into one"),
    ]:
        with pytest.raises(_ffi.SystemFailure, match=message):
            Loader(tmp_path / name)
    with pytest.raises(_ffi.InvalidArgument, match="no data is named"):
        Loader("")


@pytest.mark.parametrize(
    "bad",
    [dict(B=0), dict(T=0), dict(T=-1), dict(rank=1), dict(rank=-1), dict(world=0), dict(V=-1), dict(eot=-2)],
)
def test_bad_arguments(tmp_path, bad):
    with pytest.raises(_ffi.InvalidArgument):
        Loader(write(tmp_path / "a.bin", [1] * 9), **bad)


@pytest.mark.parametrize("fmt,bad", [("uint16", 50), ("uint32", 2**31), ("raw", -1), ("raw", 50)])
def test_id_outside_the_vocabulary(tmp_path, fmt, bad):
    """A bad id is found at every place, the last target included; the position does not move."""
    for place in (0, 3, 4, 8):
        ids = np.arange(9, dtype=np.int64)
        ids[place] = bad
        loader = Loader(write(tmp_path / "a.bin", ids, fmt), T=8, V=50)
        with pytest.raises(_ffi.BadFile, match=rf"a.bin: id {bad} at token {place} is outside \[0, 50\)"):
            loader.next()
        assert loader.position == 0


def test_file_that_shrinks_while_it_is_read(tmp_path):
    path = write(tmp_path / "a.bin", np.arange(5000))
    loader = Loader(path, T=4)
    loader.next()
    os.truncate(path, 1100)
    loader.position = 1000
    with pytest.raises(_ffi.BadFile, match="truncated, or was changed"):
        loader.next()


def test_file_that_vanishes_or_changes_before_it_is_read(tmp_path):
    path = write(tmp_path / "a.bin", np.arange(50))
    loader = Loader(path)
    write(path, np.arange(49))
    with pytest.raises(_ffi.BadFile, match="changed while it was in use"):
        loader.next()
    path.unlink()
    with pytest.raises(_ffi.SystemFailure, match="cannot be opened"):
        loader.next()


@QUICK
@given(st.data())
def test_every_damaged_file_is_refused_or_read_whole(tmp_path, data):
    """A file that is cut, lengthened or has a changed byte in its head gives an error, or windows of exactly its
    ids."""
    whole = shard_bytes(list(range(12)), data.draw(st.sampled_from(list(FORMATS))))
    cut = data.draw(st.one_of(st.integers(0, len(whole)), st.sampled_from([1, 4, 1023, 1024, 1025])))
    damaged = bytearray(whole[:cut] + data.draw(st.binary(max_size=8)))
    if damaged and data.draw(st.booleans()):
        damaged[data.draw(st.integers(0, min(len(damaged), 16) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.bin"
    path.write_bytes(damaged)
    try:
        loader = Loader(path, T=2)
        batches = [loader.next() for _ in range(loader.windows)]
    except _ffi.LlmcError:
        return
    assert all((x >= 0).all() and (x[0, 1:] == y[0, :-1]).all() for x, y in batches)


# ---- the order of windows ----


@QUICK
@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 10**9))
def test_permute_is_a_bijection(N, seed, epoch):
    assert sorted(lib.llmc_permute(i, N, seed, epoch) for i in range(N)) == list(range(N))


def test_permute_large_and_bad():
    for N in (2**31, 2**40 + 1, 2**62):
        seen = {lib.llmc_permute(i, N, 5, 0) for i in range(1000)}
        assert len(seen) == 1000
        assert 0 <= min(seen) <= max(seen) < N
    for i, N in [(0, 0), (-1, 5), (5, 5), (0, -3)]:
        assert lib.llmc_permute(i, N, 0, 0) == lib.LLMC_EINVAL


def test_shuffled_epochs(tmp_path):
    """Each epoch takes every window once, in another order; another seed gives another order."""
    path = write(tmp_path / "a.bin", np.arange(4 * 100 + 1))
    orders = []
    for seed in (1, 2):
        loader = Loader(path, B=4, T=4, shuffle=1, seed=seed)
        order = [int(i) // 4 for _ in range(50) for i in loader.next()[0][:, 0]]
        orders += [order[:100], order[100:]]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert list(range(100)) not in orders


def test_ranks_share_the_stream(tmp_path):
    path = write(tmp_path / "a.bin", np.arange(4 * 37 + 1))
    one = Loader(path, B=6, T=4, shuffle=1, seed=3)
    ranks = [Loader(path, B=2, T=4, shuffle=1, seed=3, rank=r, world=3) for r in range(3)]
    for _ in range(20):
        together = np.concatenate([loader.next()[0] for loader in ranks])
        assert (together == one.next()[0]).all()
    assert {loader.position for loader in [one, *ranks]} == {120}


def test_resume_at_any_position(tmp_path):
    for s, size in enumerate((30, 7, 90)):
        write(tmp_path / f"train{s}.bin", 1000 * s + np.arange(size))
    straight = Loader(tmp_path, B=3, T=4, shuffle=1, seed=9)
    batches = [(straight.position, *straight.next()) for _ in range(40)]
    for position, x, y in batches[::7]:
        resumed = Loader(tmp_path, B=3, T=4, shuffle=1, seed=9)
        resumed.position = position
        x2, y2 = resumed.next()
        assert (x == x2).all()
        assert (y == y2).all()
    for bad in (-1, 2**62):
        with pytest.raises(_ffi.InvalidArgument, match=f"data position {bad}"):
            straight.position = bad


@QUICK
@given(st.data())
def test_windows_of_documents_agree_with_python(tmp_path, data):
    """Documents have all lengths, down to one id, or there are none; all windows agree, also after a resume."""
    bins = pytest.importorskip("pyllmc.text.bins")
    folder = tmp_path / str(len(os.listdir(tmp_path)))
    folder.mkdir()
    eot = data.draw(st.sampled_from([-1, 0, 7, 70_000]))
    text = st.integers(0, data.draw(st.sampled_from([0, 1, 9, 60])))
    for s in range(data.draw(st.integers(1, 3))):
        documents = data.draw(st.lists(st.lists(text, max_size=40), max_size=12))
        fmt = data.draw(st.sampled_from(list(FORMATS)))
        known = 0 <= eot < (1 << 16 if fmt == "uint16" else 1 << 31)
        ids = [i for document in documents for i in [*([eot] if known else []), *document]]
        write(folder / f"train{s}.bin", ids or [0], fmt)
    T, shuffle = data.draw(st.integers(1, 20)), data.draw(st.integers(0, 1))
    options = dict(B=2, T=T, shuffle=shuffle, seed=5, eot=eot)
    try:
        ours = Loader(folder, **options)
    except _ffi.InvalidArgument:
        with pytest.raises(bins.DataError, match="use more data or a smaller T"):
            bins.Loader(bins.find_shards(folder), **options)
        return
    theirs = bins.Loader(bins.find_shards(folder), **options)
    assert ours.windows == theirs.windows
    ours.position = theirs.position = data.draw(st.integers(0, 2 * ours.windows))
    for _ in range(ours.windows):
        for a, b in zip(ours.next(), theirs.next()):
            assert (a == b).all()
    assert ours.position == theirs.position


@pytest.mark.parametrize("fmt", FORMATS)
def test_windows_of_documents_beyond_the_buffer(tmp_path, fmt):
    """The file is larger than the part scanned at once; documents cross its edges, and windows are longer than it."""
    bins = pytest.importorskip("pyllmc.text.bins")
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 200, 600_000)
    path = write(tmp_path / "a.bin", ids, fmt)
    for T in (1, 64, 1000, 250_000):
        ours, theirs = Loader(path, T=T, eot=3), bins.Loader([path], 1, T, eot=3)
        assert ours.windows == theirs.windows
        for position in {0, *rng.integers(0, ours.windows, 50).tolist(), ours.windows - 1}:
            ours.position = theirs.position = position
            for a, b in zip(ours.next(), theirs.next()):
                assert (a == b).all()


@pytest.mark.parametrize("shuffle", [0, 1])
def test_agrees_with_python(tmp_path, shuffle):
    bins = pytest.importorskip("pyllmc.text.bins")
    rng = np.random.default_rng(0)
    for s, size in enumerate((301, 17, 1000)):
        write(tmp_path / f"train_{s}.bin", rng.integers(0, 60000, size), "uint32" if s == 1 else "uint16")
    paths = bins.find_shards(tmp_path)
    for rank in (0, 1):
        ours = Loader(tmp_path, B=3, T=8, shuffle=shuffle, seed=77, rank=rank, world=2)
        theirs = bins.Loader(paths, 3, 8, shuffle=bool(shuffle), seed=77, rank=rank, world=2)
        assert ours.windows == theirs.windows
        for _ in range(120):
            for a, b in zip(ours.next(), theirs.next()):
                assert (a == b).all()
        assert ours.position == theirs.position


def test_permute_agrees_with_python():
    bins = pytest.importorskip("pyllmc.text.bins")
    for N in (1, 2, 3, 5, 16, 17, 1000, 65537, 10**12, 2**62):
        for seed, epoch in [(0, 0), (42, 1), (2**63 - 1, 10**6)]:
            for i in {0, N - 1, N // 2, N // 3}:
                assert lib.llmc_permute(i, N, seed, epoch) == bins.permute(i, N, seed, epoch)


def test_file_that_grows_before_it_is_read(tmp_path):
    """It is another file, although all that was there may still be read."""
    path = write(tmp_path / "a.bin", np.arange(50))
    loader = Loader(path)
    write(path, np.arange(60)[::-1])
    with pytest.raises(_ffi.BadFile, match="changed while it was in use: it had 1124 bytes, now 1144"):
        loader.next()
