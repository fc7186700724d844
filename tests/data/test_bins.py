"""Token files: the bytes that are written, the files that are refused, and the order in which a trainer sees
windows."""

from __future__ import annotations

import itertools
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllmc.text import bins
from pyllmc.text.bins import DataError, Loader, find_shards, inspect_shard, permute, read_shard, write_shard

SEQUENCES = st.lists(st.integers(0, 299), max_size=200)


def header(*values: int) -> bytes:
    return struct.pack("<256i", *values, *[0] * (256 - len(values)))


def shard_bytes(ids, magic=20240520, version=1, width="H", ntok=None) -> bytes:
    """A token file made by hand, not by the code under test."""
    return header(magic, version, len(ids) if ntok is None else ntok) + struct.pack(
        f"<{len(ids)}{width}", *ids
    )


@pytest.fixture
def scratch(tmp_path):
    """A fresh path for each example of a property."""
    numbers = itertools.count()
    return lambda: tmp_path / f"{next(numbers)}.bin"


# ---- files


@pytest.mark.parametrize(
    ("V", "magic", "version", "width"),
    [(300, 20240520, 1, "H"), (65536, 20240520, 1, "H"), (65537, 20240801, 7, "I")],
)
def test_bytes_of_a_shard(tmp_path, V, magic, version, width):
    ids = [0, 1, 255, 256, V - 1]
    assert write_shard(tmp_path / "s.bin", iter(ids), V) == 5
    assert (tmp_path / "s.bin").read_bytes() == shard_bytes(ids, magic, version, width)
    assert read_shard(tmp_path / "s.bin").tolist() == ids
    assert os.listdir(tmp_path) == ["s.bin"]


def test_what_is_written_is_read(scratch):
    @given(SEQUENCES, st.sampled_from([300, 70000]))
    @settings(max_examples=40)
    def check(ids, V):
        path = scratch()
        write_shard(path, ids, V)
        assert read_shard(path).tolist() == ids

    check()


def test_writes_are_chunked(tmp_path, monkeypatch):
    monkeypatch.setattr(bins, "WRITE_CHUNK", 7)
    write_shard(tmp_path / "s.bin", range(100), 100)
    assert read_shard(tmp_path / "s.bin").tolist() == list(range(100))


def test_ids_come_from_numpy_too(tmp_path):
    write_shard(tmp_path / "s.bin", np.arange(10, dtype=np.int64), 10)
    assert read_shard(tmp_path / "s.bin").tolist() == list(range(10))


@pytest.mark.parametrize("bad", [-1, 300, 65536, 2**40, "7", 1.5, None])
def test_an_id_outside_the_vocabulary_is_named_and_nothing_is_left(tmp_path, bad):
    with pytest.raises(DataError, match=r"s\.bin: id .* at token 2 .* \[0, 300\)"):
        write_shard(tmp_path / "s.bin", [5, 6, bad, 7], 300)
    assert os.listdir(tmp_path) == []


def test_an_error_keeps_the_old_file(tmp_path):
    write_shard(tmp_path / "s.bin", [1, 2], 300)
    with pytest.raises(ZeroDivisionError):
        write_shard(tmp_path / "s.bin", (1 // n for n in (1, 0)), 300)
    assert read_shard(tmp_path / "s.bin").tolist() == [1, 2]
    assert os.listdir(tmp_path) == ["s.bin"]


def test_a_shard_has_a_largest_size(tmp_path, monkeypatch):
    assert bins.MAX_SHARD_TOKENS == 2**31 - 1
    monkeypatch.setattr(bins, "MAX_SHARD_TOKENS", 10)
    write_shard(tmp_path / "s.bin", range(10), 300)
    with pytest.raises(DataError, match="at most 10 tokens.*shard_tokens"):
        write_shard(tmp_path / "t.bin", range(11), 300)


def test_unwritable_place(tmp_path):
    with pytest.raises(DataError, match=r"cannot write .*missing.*No such file"):
        write_shard(tmp_path / "missing" / "s.bin", [1], 300)


def test_raw_int32_stream_is_read(tmp_path):
    (tmp_path / "raw.bin").write_bytes(np.array([50256, 3, 70000], "<i4").tobytes())
    assert inspect_shard(tmp_path / "raw.bin").format is bins.RAW
    assert read_shard(tmp_path / "raw.bin").tolist() == [50256, 3, 70000]


def test_more_tokens_than_an_int32_holds_in_a_raw_stream(tmp_path, monkeypatch):
    with open(tmp_path / "raw.bin", "wb") as f:
        f.truncate(4 * (2**31 + 5))  # sparse, so it takes no space on the disk
    assert inspect_shard(tmp_path / "raw.bin").ntok == 2**31 + 5
    windows = (2**31 + 4) // 1024
    monkeypatch.setattr(bins, "read_shard", None)  # only a window is read, not the whole file
    loader = Loader([tmp_path / "raw.bin"], B=1, T=1024, position=windows - 1)
    assert loader.windows == windows
    assert loader.next()[0].shape == (1, 1024)


def test_every_truncation_is_refused(tmp_path):
    whole = shard_bytes([1, 2, 3])
    path = tmp_path / "s.bin"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="empty" if size == 0 else "truncated|no token file") as e:
            inspect_shard(path)
        assert str(path) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(("content", "message"), [
    (shard_bytes([1, 2, 3], version=2), "expected version 1, found 2"),
    (shard_bytes([1], magic=20240801, version=1, width="I"), "expected version 7, found 1"),
    (shard_bytes([1, 2, 3], ntok=-3), "counts -3 tokens"),
    (shard_bytes([1, 2, 3], ntok=2**31 - 1), "truncated: expected 4294968318 bytes"),
    (shard_bytes([1, 2, 3], ntok=2), r"trailing bytes: expected 1028 bytes \(2 uint16 tokens\), found 1030"),
    (shard_bytes([1, 2, 3]) + b"\0", "trailing bytes"),
    (header(20240326, 3), "is a model file"),
    (header(20240328, 2), "is a tokenizer file"),
    (struct.pack(">256i", 20240520, 1, 2, *[0] * 253), "big-endian"),
    (b"Once upon a time, there", "no token file"),
])  # fmt: skip
def test_malformed_files_are_refused(tmp_path, content, message):
    (tmp_path / "é s.bin").write_bytes(content)
    with pytest.raises(DataError, match=message) as e:
        read_shard(tmp_path / "é s.bin")
    assert "é s.bin" in str(e.value)


def test_a_directory_and_a_missing_file_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.bin"):
        with pytest.raises(DataError, match="cannot read"):
            read_shard(path)


def test_garbage_never_escapes_as_another_error(scratch):
    starts = st.sampled_from([b"", shard_bytes([1, 2]), header(20240801, 7, 1), header(20240520, 1, -1)])

    @given(starts, st.binary(max_size=40), st.integers(0, 1100))
    @settings(max_examples=150)
    def check(start, tail, cut):
        path = scratch()
        path.write_bytes((start + tail)[:cut])
        try:
            ids = read_shard(path)
        except DataError:
            return
        assert len(ids) == inspect_shard(path).ntok

    check()


# ---- finding shards


def test_shards_are_found_and_sorted(tmp_path):
    folder = tmp_path / "da[t]a"
    folder.mkdir()
    for name in ("train_000010.bin", "train_000009.bin", "trainé.bin", "val_000000.bin", "tokenizer.bin"):
        write_shard(folder / name, [1], 10)
    names = lambda paths: [os.path.basename(p) for p in paths]  # noqa: E731
    assert names(find_shards(folder)) == ["train_000009.bin", "train_000010.bin", "trainé.bin"]
    assert names(find_shards(folder, "val")) == ["val_000000.bin"]
    assert names(find_shards(folder / "val_000000.bin")) == ["val_000000.bin"]
    assert names(find_shards(f"{tmp_path}/*/train_*.bin")) == ["train_000009.bin", "train_000010.bin"]


def test_no_shards(tmp_path):
    (tmp_path / "fineweb_train_000001.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"no train\*\.bin; it has fineweb_train_000001\.bin: .*glob"):
        find_shards(tmp_path)
    for nothing in (tmp_path / "x", f"{tmp_path}/*.txt", ""):
        with pytest.raises(DataError, match="pyllmc.prepro"):
            find_shards(nothing)


# ---- the order of windows


def test_permutation_visits_every_index_once_and_depends_on_its_keys():
    @given(st.integers(1, 700), st.integers(-(2**63), 2**64), st.integers(0, 2**40))
    @settings(max_examples=60)
    def check(N, seed, epoch):
        assert sorted(permute(i, N, seed, epoch) for i in range(N)) == list(range(N))

    check()
    orders = {
        tuple(permute(i, 100, seed, epoch) for i in range(100)) for seed in range(5) for epoch in range(5)
    }
    assert len(orders) == 25


def test_permutation_is_the_one_in_numpy_arithmetic():
    """The same network in wrapping uint64 arithmetic, written from its description."""
    u, golden = np.uint64, np.uint64(0x9E3779B97F4A7C15)

    def mix(z):
        z = (z ^ (z >> u(30))) * u(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> u(27))) * u(0x94D049BB133111EB)
        return z ^ (z >> u(31))

    def reference(N, seed, epoch):
        h = next(h for h in range(1, 40) if 4**h >= N)
        key, mask = mix(u(seed) * golden + u(epoch + 1)), u(2**h - 1)
        value = np.arange(N, dtype=u)
        todo = np.ones(N, bool)
        while todo.any():
            L, R = value[todo] >> u(h), value[todo] & mask
            for r in range(4):
                L, R = R, L ^ (mix(R + key + u(r) * golden) & mask)
            value[todo] = L << u(h) | R
            todo = value >= N
        return value.tolist()

    with np.errstate(over="ignore"):
        for N, seed, epoch in [(1, 0, 0), (5, 1, 2), (17, 2**63 + 5, 9), (1000, 42, 0), (4097, 7, 3)]:
            assert [permute(i, N, seed, epoch) for i in range(N)] == reference(N, seed, epoch)


def test_permutation_golden_values():
    """csrc/data/dataloader.c must give the same values."""
    assert [permute(i, 10, 42, 0) for i in range(10)] == [5, 8, 7, 4, 9, 2, 0, 1, 6, 3]
    assert permute(123456789, 10**12, 1337, 3) == 424666227186


def test_permutation_spreads_evenly():
    """Neighbours are separated: the first hundred of 10,000 come from all parts."""
    first = [permute(i, 10_000, 1, 0) for i in range(100)]
    assert 4000 < np.mean(first) < 6000 and 2300 < np.std(first) < 3500


def windows_by_hand(shards, T):
    return [s[k : k + T + 1] for s in shards for k in range(0, len(s) - T, T)]


def test_loader_gives_each_window_once_an_epoch(tmp_path_factory):
    @given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(1, 7), st.integers(1, 5),
           st.booleans(), st.integers(1, 3))  # fmt: skip
    @settings(max_examples=40)
    def check(sizes, T, B, shuffle, world):
        folder = tmp_path_factory.mktemp("shards")
        numbers = itertools.count()
        shards = [list(itertools.islice(numbers, n)) for n in sizes]  # no two tokens are equal
        paths = [folder / f"train_{s}.bin" for s in range(len(shards))]
        for path, ids in zip(paths, shards):
            write_shard(path, ids, 300)
        expected = windows_by_hand(shards, T)
        if not expected:
            with pytest.raises(DataError, match=f"T={T} needs {T + 1}"):
                Loader(paths, B, T)
            return
        ranks = [Loader(paths[::-1], B, T, shuffle, 3, r, world) for r in range(world)]
        N = len(expected)
        assert ranks[0].windows == N
        steps = -(-2 * N // (B * world)) + 1
        seen = [row for _ in range(steps) for loader in ranks for row in joined(*loader.next())]
        if shuffle:
            assert seen[:N] == [expected[permute(i, N, 3, 0)] for i in range(N)]
            assert sorted(seen[N : 2 * N]) == sorted(expected)
        else:
            assert seen[: 2 * N] == expected * 2
        assert {loader.position for loader in ranks} == {steps * B * world}

    check()


def joined(inputs, targets):
    assert inputs.dtype == targets.dtype == np.int32
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    return [[*x, y[-1]] for x, y in zip(inputs.tolist(), targets.tolist())]


def test_loader_resumes_anywhere(tmp_path):
    write_shard(tmp_path / "a.bin", range(100), 300)
    write_shard(tmp_path / "b.bin", range(100, 137), 300)
    paths = [tmp_path / "a.bin", tmp_path / "b.bin"]
    whole = Loader(paths, B=3, T=4, shuffle=True, seed=9)
    batches = []
    for _ in range(30):  # reaches into the third epoch
        position = whole.position
        batches.append((position, joined(*whole.next())))
    for position, batch in batches:
        assert joined(*Loader(paths, 3, 4, True, 9, position=position).next()) == batch


def test_loader_names_the_token_that_is_too_large(tmp_path):
    write_shard(tmp_path / "a.bin", [1] * 21, 300)
    write_shard(tmp_path / "b.bin", [1] * 13 + [250] + [1] * 7, 300)
    loader = Loader([tmp_path / "a.bin", tmp_path / "b.bin"], B=2, T=5, vocab_size=250)
    assert Loader(loader.paths, B=2, T=5, vocab_size=251).windows == 8
    loader.next()
    loader.next()
    with pytest.raises(DataError, match=r"b\.bin: id 250 at token 13 is outside \[0, 250\)"):
        loader.next(), loader.next()


def test_loader_refuses_negative_and_huge_raw_ids(tmp_path):
    np.array([1, 2, -1, 4], "<i4").tofile(tmp_path / "raw.bin")
    with pytest.raises(DataError, match="id -1 at token 2.*raw int32"):
        Loader([tmp_path / "raw.bin"], 1, 3).next()
    write_shard(tmp_path / "u32.bin", [1, 2**31, 3], 2**32 - 1)
    with pytest.raises(DataError, match="id 2147483648 at token 1"):
        Loader([tmp_path / "u32.bin"], 1, 2).next()


E = 9  # the id before each document, in the tests below


@pytest.mark.parametrize(("ids", "starts"), [
    ([E, 1, 2, E, 3, 4, 5, E, 6, 7], [0, 3]),  # p = 3: more than half of T = 4, then 7, which is too late
    ([E, 1, 2, E, 3, 4, 5, E, 6, 7, 8, 0], [0, 3, 7]),  # its last target is the last id
    ([E, 1, E, 2, 3, 4, 5, 6, 7], [0, 4]),  # p = 2 is only half: the first two documents share a window
    ([E, 1, 2, 3, 4, 5, E, 7, 8, 0, 1, 2, 3], [0, 4, 8]),  # a long document goes on at s + T; its end is half
    ([E] * 9, [0, 3]),
    ([1] * 9, [0, 4]),
    ([1, 2, 3, 4, E], [0]),
    ([E, 1, 2, 3], []),
    ([], []),
])  # fmt: skip
def test_windows_begin_where_documents_do(ids, starts):
    assert [*bins.window_starts(np.array(ids, "<u2"), 4, E)] == starts


def test_windows_cover_every_id():
    """The property holds for all documents; if none are looked for, windows begin at every T ids."""

    @given(st.lists(st.sampled_from([E, 1, 2]), max_size=60), st.integers(1, 12))
    @settings(max_examples=300)
    def check(ids, T):
        starts = [*bins.window_starts(np.array(ids, "<u2"), T, E)]
        assert [*bins.window_starts(np.array(ids, "<u2"), T)] == [*range(0, len(ids) - T, T)]
        assert starts[:1] == [0][: len(ids) > T]
        for s, later in zip(starts, starts[1:]):
            found = [p for p in range(s + 1, s + T + 1) if p > s + T / 2 and ids[p] == E]
            assert later == (found[0] if found else s + T)
        if starts:
            assert starts[-1] + T + 1 <= len(ids) < starts[-1] + 2 * T + 1

    check()


@pytest.mark.parametrize("bad", [
    {"B": 0}, {"T": 0}, {"T": -1}, {"rank": 1}, {"world": 0}, {"rank": -1}, {"position": -1}, {"eot": -2},
])  # fmt: skip
def test_loader_arguments(tmp_path, bad):
    write_shard(tmp_path / "a.bin", range(100), 300)
    with pytest.raises(DataError):
        Loader([tmp_path / "a.bin"], **{"B": 1, "T": 4, **bad})


def test_no_shard_at_all():
    with pytest.raises(DataError, match="no shard"):
        Loader([], 1, 1)
