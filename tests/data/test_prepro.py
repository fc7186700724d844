"""Data sets: the same bytes for any number of workers, splits, and output that is whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PLAIN, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllmc.base import live
from pyllmc.text import dataset, vocabularies
from pyllmc.text.bins import DataError, find_shards, read_shard
from pyllmc.text.dataset import write_dataset
from pyllmc.text.progress import progress_line
from pyllmc.text.tokenizer import Tokenizer

STORIES = [f"Tim had {n} red balls. He was happy — très happy!\n" * (1 + n % 5) for n in range(250)]


def contents(folder) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).iterdir()}


def tokens(folder, split="train") -> list[int]:
    try:
        return [int(i) for path in find_shards(folder, split) for i in read_shard(path)]
    except DataError:
        return []


def documents_of(folder, split="train") -> list[str]:
    """The texts between EOTs, as a reader gets them."""
    t, documents = Tokenizer.load(Path(folder) / "tokenizer.bin"), []
    for i in tokens(folder, split):
        if i == t.eot:
            documents.append([])
        else:
            documents[-1].append(i)
    return [t.decode(d) for d in documents]


def expected_split(n: int, every: int) -> tuple[list[int], list[int]]:
    return [i for i in range(n) if i % every], list(range(0, n, every))


# ---- files that are written ----


@pytest.mark.parametrize("kind", ["word", "bpe", "char", "byte"])
def test_documents_come_back(tmp_path, kind):
    meta = write_dataset(STORIES, tmp_path / "d", tokenizer=kind, source="test")
    train, val = expected_split(len(STORIES), 100)
    assert documents_of(tmp_path / "d") == [STORIES[i] for i in train]
    assert documents_of(tmp_path / "d", "val") == [STORIES[i] for i in val]
    assert tokens(tmp_path / "d")[0] == meta["eot"]  # EOT comes before each document
    assert meta["tokenizer"]["name"] == kind and meta["documents"] == 250


def test_meta_tells_what_is_there_and_nothing_else(tmp_path):
    meta = write_dataset(STORIES, tmp_path / "d", shard_tokens=1000, source="test")
    assert json.loads((tmp_path / "d" / "meta.json").read_text()) == meta
    t = Tokenizer.load(tmp_path / "d" / "tokenizer.bin")
    assert (meta["vocab_size"], meta["eot"]) == (t.vocab_size, t.eot)
    files = {s["file"]: s["sha256"] for s in [*meta["shards"], meta["tokenizer"]]}
    found = contents(tmp_path / "d")
    del found["meta.json"]
    assert files == found
    for split, total in meta["tokens"].items():
        sizes = [s["tokens"] for s in meta["shards"] if s["file"].startswith(split)]
        assert sum(sizes) == total == len(tokens(tmp_path / "d", split))
        assert all(size == 1000 for size in sizes[:-1]) and 0 < sizes[-1] <= 1000
    assert str(tmp_path) not in json.dumps(meta)


@pytest.mark.parametrize("kind", ["word", "bpe", "byte"])
def test_the_bytes_do_not_depend_on_workers_or_chunks(tmp_path, monkeypatch, kind):
    options = {"tokenizer": kind, "val_fraction": 0.07, "shard_tokens": 777}
    write_dataset(STORIES, tmp_path / "one", **options)
    expected = contents(tmp_path / "one")
    monkeypatch.setattr(dataset, "CHUNK_CHARACTERS", 900)  # many chunks
    for workers in (1, 2, 3):
        write_dataset(iter(STORIES), tmp_path / f"w{workers}", workers=workers, **options)
        assert contents(tmp_path / f"w{workers}") == expected


@given(
    st.lists(st.text("ab \n", max_size=12), max_size=12),
    st.integers(1, 9),
    st.integers(1, 30),
    st.sampled_from([{"val_documents": 2}, {"val_tokens": 7}, {"val_fraction": 0.3}, {"val_fraction": 0}]),
)
@settings(max_examples=60)
def test_no_token_is_lost(tmp_path_factory, texts, shard_tokens, chunk, validation):
    out = tmp_path_factory.mktemp("d") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "CHUNK_CHARACTERS", chunk)
        try:
            meta = write_dataset(texts, out, tokenizer="byte", shard_tokens=shard_tokens, **validation)
        except DataError as e:
            assert "no documents" in str(e) or "are validation" in str(e)
            assert os.listdir(out.parent) == []
            return
    kept = [t for t in texts if t]
    train, val = tokens(out), tokens(out, "val")
    if validation == {"val_tokens": 7}:
        stream = [i for t in kept for i in (256, *t.encode())]
        assert (val, train) == (stream[:7], stream[7:])
    elif len(kept) > 1 or "val_fraction" not in validation:
        assert sorted(documents_of(out) + documents_of(out, "val")) == sorted(kept)
    if validation == {"val_documents": 2}:
        assert documents_of(out, "val") == kept[:2]
    assert meta["tokens"] == {"train": len(train), "val": len(val)}


def test_one_document_is_cut(tmp_path):
    write_dataset(["abcdefghij"], tmp_path / "d", tokenizer="byte", val_fraction=0.2)
    assert documents_of(tmp_path / "d") == ["abcdefgh"]
    assert documents_of(tmp_path / "d", "val") == ["ij"]


def test_documents_may_decide_their_split(tmp_path):
    write_dataset(
        [("val", "v1"), ("train", "t1"), ("val", "v2")], tmp_path / "d", tokenizer="char", eot=False
    )
    t = Tokenizer.load(tmp_path / "d" / "tokenizer.bin")
    assert t.decode(tokens(tmp_path / "d")) == "t1"
    assert t.decode(tokens(tmp_path / "d", "val")) == "v1v2"


def test_more_than_65536_ids_take_uint32(tmp_path):
    alphabet = "".join(map(chr, [*range(1, 0xD800), *range(0xE000, 0x12000)]))
    meta = write_dataset([alphabet], tmp_path / "d", tokenizer="char", val_fraction=0)
    assert (meta["token_format"], meta["vocab_size"]) == ("uint32", len(alphabet) + 1)
    assert documents_of(tmp_path / "d") == [alphabet]


STREAM = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from pyllmc.text.dataset import write_dataset
text = "a little story about a ball and a boy. " * 500
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_dataset((f"{n} {text}" for n in range(100)), sys.argv[2] + "/small", shard_tokens=100_000)
before = peak()
write_dataset((f"{n} {text}" for n in range(900)), sys.argv[2] + "/large", shard_tokens=100_000)
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss counts KiB on Linux only")
def test_memory_is_bounded(tmp_path):
    """Nine times the text (18 MB, 4 million tokens) takes no more memory."""
    done = subprocess.run([sys.executable, "-S", "-c", STREAM, str(ROOT), str(tmp_path)],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert int(done.stdout) < 4 * 1024
    assert len(find_shards(tmp_path / "large")) > 35


def test_progress_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "CHUNK_CHARACTERS", 1000)
    told: list[dataset.Progress] = []
    meta = write_dataset(STORIES, tmp_path / "d", progress=told.append)
    learn, encode = ([p for p in told if p.stage == stage] for stage in ("learn", "encode"))
    assert len(learn) > 5 and len(encode) > 5
    assert encode[-1][1:] == (250, sum(map(len, STORIES)), sum(meta["tokens"].values()))


def test_the_line_of_progress_tells_a_share_of_what_is_expected(monkeypatch):
    """A packed file of another name counts with fewer characters than it holds, so there may be more in the end."""
    lines: list[str] = []
    monkeypatch.setattr(live, "show", lambda text, at_once: lines.append(text))
    monkeypatch.setattr(live, "clear", lambda: lines.append("cleared"))
    with pytest.raises(DataError), progress_line(200) as show:
        show(dataset.Progress("learn", 1, 50, 0))
        show(dataset.Progress("merge", 4, 210, 0))
        show(dataset.Progress("encode", 4000, 210, 1234))
        raise DataError("no line stays before the message")
    assert lines[0].startswith("reading: 1 documents, 25 %, ") and "%" not in lines[1]
    assert lines[2].startswith("encoding: 4,000 documents, 1,234 tokens, 100 %, ") and lines[3:] == [
        "cleared"
    ]


# ---- refusals ----


@pytest.mark.parametrize(("options", "message"), [
    ({"documents": []}, "no documents"),
    ({"documents": ["", ""]}, "no documents"),
    ({"documents": iter([]), "tokenizer": "char"}, "no text"),
    ({"documents": ["a", 7]}, "document 1 is a int, not a str"),
    ({"documents": [("test", "a")]}, "document 0 has split 'test'"),
    ({"documents": ["a\ud800"]}, "surrogate"),
    ({"tokenizer": "bep"}, "unknown tokenizer 'bep'"),
    ({"tokenizer": vocabularies.train("char", ["abc"])}, "character 'T'"),
    ({"tokenizer": Tokenizer([b"a"], "longest", -1)}, "no EOT"),
    ({"val_fraction": 1}, "val_fraction is 1"),
    ({"val_fraction": -0.1}, "val_fraction is -0.1"),
    ({"val_fraction": float("nan")}, "val_fraction is nan"),
    ({"val_tokens": -1}, "must not be negative"),
    ({"val_documents": -1}, "must not be negative"),
    ({"val_documents": 999}, "are validation"),
    ({"val_tokens": 10**9}, "are validation"),
    ({"val_tokens": 1, "val_documents": 1}, "give one of them"),
    ({"shard_tokens": 0}, "shard_tokens is 0"),
    ({"shard_tokens": 2**31}, "at most 2147483647"),
    ({"workers": 0}, "workers is 0"),
])  # fmt: skip
def test_bad_input_leaves_nothing(tmp_path, options, message):
    with pytest.raises(DataError, match=message) as e:
        write_dataset(**{"documents": STORIES, "out": tmp_path / "d", "tokenizer": "byte", **options})
    assert "\n" not in str(e.value)
    assert os.listdir(tmp_path) == []


def test_an_error_in_a_worker_is_the_same_line(tmp_path):
    with pytest.raises(DataError, match="character 'T'"):
        write_dataset(STORIES, tmp_path / "d", tokenizer=vocabularies.train("char", ["abc"]), workers=2)
    assert os.listdir(tmp_path) == []


def test_the_documents_own_error_passes_through(tmp_path):
    def failing():
        yield "a"
        raise ConnectionError("the network went away")

    for kind in ("byte", "word"):
        with pytest.raises(ConnectionError):
            write_dataset(failing(), tmp_path / "d", tokenizer=kind)
    assert os.listdir(tmp_path) == []


def test_nothing_is_replaced_unasked(tmp_path):
    write_dataset(["one"], tmp_path / "d", tokenizer="byte", val_fraction=0)
    with pytest.raises(DataError, match="is a data set already"):
        write_dataset(["two"], tmp_path / "d", tokenizer="byte", val_fraction=0)
    assert documents_of(tmp_path / "d") == ["one"]
    with pytest.raises(DataError, match="surrogate"):
        write_dataset(["\ud800"], tmp_path / "d", tokenizer="byte", val_fraction=0, overwrite=True)
    assert documents_of(tmp_path / "d") == ["one"]
    write_dataset(["two"], tmp_path / "d", tokenizer="byte", val_fraction=0, overwrite=True)
    assert documents_of(tmp_path / "d") == ["two"]
    assert os.listdir(tmp_path) == ["d"]


def test_what_is_no_data_set_is_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for out in ("home", "file"):
        with pytest.raises(DataError, match="is not a data set"):
            write_dataset(["one"], tmp_path / out, tokenizer="byte", overwrite=True)
    (tmp_path / "empty").mkdir()
    write_dataset(["one"], tmp_path / "empty", tokenizer="byte", val_fraction=0)
    assert documents_of(tmp_path / "empty") == ["one"]
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "home"]


def test_what_lies_beside_a_data_set_is_never_deleted(tmp_path):
    out = tmp_path / "d"
    write_dataset(["one"], out, tokenizer="byte", val_fraction=0)
    for name in ("notes.txt", "a_run"):
        foreign = out / name
        foreign.write_text("dear") if foreign.suffix else foreign.mkdir()
        with pytest.raises(DataError, match=f"d holds {name}, which is not of the data set: move it"):
            write_dataset(["two"], out, tokenizer="byte", val_fraction=0, overwrite=True)
        assert foreign.exists() and documents_of(out) == ["one"]
        foreign.unlink() if foreign.is_file() else foreign.rmdir()

    def late():
        yield "two"
        (out / "late.txt").write_text("dear")  # a file that appears while the new data set is made

    with pytest.raises(DataError, match="holds late.txt"):
        write_dataset(late(), out, tokenizer="byte", val_fraction=0, overwrite=True)
    assert (out / "late.txt").read_text() == "dear" and os.listdir(tmp_path) == ["d"]


@pytest.mark.parametrize(
    "meta", ["", "[]", "{}", '{"tokenizer": 3}', '{"tokenizer": {"file": "t"}, "shards": 7}']
)
def test_a_meta_json_of_something_else_is_no_data_set(tmp_path, meta):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "meta.json").write_text(meta)
    (tmp_path / "d" / "tokenizer.bin").write_text("")
    with pytest.raises(DataError, match="is not a data set"):
        write_dataset(["one"], tmp_path / "d", tokenizer="byte", overwrite=True)


def test_of_two_writers_the_first_wins_whole(tmp_path):
    def slow():
        yield "slow"
        write_dataset(["fast"], tmp_path / "d2", tokenizer="byte", val_fraction=0)
        os.rename(tmp_path / "d2", tmp_path / "d")  # as another process would
        yield "story"

    with pytest.raises(DataError, match="already"):
        write_dataset(slow(), tmp_path / "d", tokenizer="byte", val_fraction=0)
    assert documents_of(tmp_path / "d") == ["fast"]
    assert os.listdir(tmp_path) == ["d"]


LIMITED = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
from pyllmc.text.dataset import DataError, write_dataset
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # as a full disk: writes beyond fail
try:
    write_dataset(["story " * 400] * 100, sys.argv[2], tokenizer="byte", val_tokens=100, shard_tokens=100_000)
except DataError as e:
    print(e)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no file size limit on this system")
@pytest.mark.parametrize("limit", [0, 500, 1024, 1200, 3000, 100_000, 201_000])
def test_full_disk(tmp_path, limit):
    done = subprocess.run([sys.executable, "-S", "-c", LIMITED, str(ROOT), str(tmp_path / "d"), str(limit)],
                          capture_output=True, text=True)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"cannot write {tmp_path}") and done.stdout.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write .*; choose another"):
        write_dataset(["one"], tmp_path / "file" / "d", tokenizer="byte")


ENDLESS = """
import itertools, sys
sys.path.insert(0, sys.argv[1])
from pyllmc.base.errors import begin_command, run_command
from pyllmc.text.dataset import write_dataset
stories = ("a story " * 100 for _ in itertools.count())
if __name__ == "__main__":
    begin_command()
    sys.exit(run_command("endless", lambda: write_dataset(
        stories, sys.argv[2], tokenizer="byte", shard_tokens=50_000, workers=int(sys.argv[3]))))
"""


def with_workers(pid: int) -> list[int]:
    """A process and its children."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True, env=PLAIN)
    pairs = [tuple(map(int, line.split())) for line in found.stdout.splitlines()]
    return [pid, *(child for child, parent in pairs if parent == pid)]


def is_alive(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, env=PLAIN)
    return done.returncode == 0 and "Z" not in done.stdout


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_run_leaves_no_data_set(tmp_path, signal_number, workers):
    """No process is left over either; files that a SIGKILL leaves are removed by the next run."""
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    process = subprocess.Popen([sys.executable, "-S", str(script), str(ROOT), str(tmp_path / "d"), str(workers)],
                               stderr=subprocess.PIPE)  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while not list(tmp_path.glob(".d.tmp-*/train_000001.bin")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(tmp_path.glob(".d.tmp-*/train_000000.bin"))
        family = with_workers(process.pid)
        assert len(family) >= (3 if workers > 1 else 1)
    finally:
        process.send_signal(signal_number)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()  # so that a failure leaves no endless process
    while any(map(is_alive, family)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_alive, family))
    assert not (tmp_path / "d").exists()
    if signal_number != signal.SIGKILL:
        assert (process.returncode, said) == (130, b"stopping; again to quit now\n")
        assert os.listdir(tmp_path) == ["endless.py"]
    alive = tmp_path / f".d.tmp-{os.getppid()}"
    alive.mkdir()
    write_dataset(["one"], tmp_path / "d", tokenizer="byte", val_fraction=0)
    assert sorted(os.listdir(tmp_path)) == sorted([alive.name, "d", "endless.py"])
