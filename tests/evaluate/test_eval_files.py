"""The data of the tasks: where it is found, the hub's rows beside the files, and the one line for what is wrong."""

from __future__ import annotations

import gzip
import json
import logging
import sys
import types

import pytest
from benchmarks import (
    ARTICLES,
    PASSAGES,
    SENTENCES,
    TEXTS,
    TREEBANK,
    XML,
    cbt_question,
    hellaswag_row,
    json_lines,
    make_files,
    whole,
    write,
)

from pyllmc.base import live
from pyllmc.base.errors import BadFile, DataError, MissingDependency, SystemFailure
from pyllmc.evaluate.tasks import TASKS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("benchmarks"))


# ---- where files are found ----


@pytest.mark.parametrize("name", TASKS)
def test_a_file_may_be_named_itself(folder, name):
    task = TASKS[name]
    inside = next(path for file in task.test.files for path in sorted(folder.rglob(file)))
    assert list(task.read(inside, 5)) == list(task.read(folder, 5))


@pytest.mark.parametrize("name", TASKS)
def test_a_missing_file_is_one_line_that_names_it(tmp_path, name):
    with pytest.raises(DataError) as error:
        TASKS[name].read(tmp_path)
    line = str(error.value)
    assert line.startswith(f"{name}: nothing of it lies in {tmp_path}: put {TASKS[name].test.files[0]}")
    assert "\n" not in line
    with pytest.raises(DataError, match="nowhere is no folder: put "):
        TASKS[name].read(tmp_path / "nowhere")


def test_the_two_wikitexts_are_told_apart_by_their_folders(folder, tmp_path):
    two, hundred = (TASKS[name].read(folder) for name in ("wikitext2", "wikitext103"))
    assert two != hundred
    assert TASKS["wikitext2"].read(folder / "wikitext-2") == two
    with pytest.raises(DataError, match="wikitext103: nothing of it lies in"):
        TASKS["wikitext103"].read(folder / "wikitext-2")


def test_openais_text_of_lambada_comes_first(folder):
    assert [p.tokenised for p in TASKS["lambada"].read(folder)] == [False] * 4
    assert [p.text for p in TASKS["lambada"].read(folder / "lambada_test_plain_text.txt")] == PASSAGES[:4]


def test_compressed_files_and_other_line_ends(tmp_path):
    data = "".join(f"{line}\r\n" for line in TREEBANK).encode()
    (tmp_path / "ptb.test.txt").write_bytes(gzip.compress(data))
    assert list(TASKS["ptb"].read(tmp_path)) == TREEBANK


# ---- files that are wrong ----

ROW = hellaswag_row(0)
LINES = cbt_question(0).split("\n")
BAD = [
    ("lambada", "lambada_test.jsonl", b'{"text": "one two"}\n{"text": "cut', "lambada_test.jsonl:2: not a JSON line: is the file cut short? Fetch it again"),
    ("lambada", "lambada_test.jsonl", b'{"passage": "one two"}\n', "lambada_test.jsonl:1: no field 'text': is this the file of another data set?"),
    ("lambada", "lambada_test.jsonl", b'{"text": 5}\n', "lambada_test.jsonl:1: no passage of two words or more"),
    ("lambada", "lambada_test_plain_text.txt", b"one two\nthree\n", "lambada_test_plain_text.txt:2: no passage of two words or more: is the file cut short? Fetch it again"),
    ("lambada", "lambada_test_plain_text.txt", "café noir\n".encode("latin-1"), "lambada_test_plain_text.txt: byte 3 is no UTF-8, which the published file is: fetch it again, or rewrite it with iconv -t UTF-8"),
    ("cbt_cn", "cbtest_CN_valid_2000ex.txt", "\n".join(LINES[:-1]).encode(), "cbtest_CN_valid_2000ex.txt:1: a question has 21 lines, numbered from 1, and here are 20: is the file cut short? Fetch it again"),
    ("cbt_ne", "cbtest_NE_valid_2000ex.txt", f"{cbt_question(1)}\n\n{cbt_question(0)[:900]}".encode(), "cbtest_NE_valid_2000ex.txt:23: a question has 21 lines"),
    ("cbt_cn", "cbtest_CN_valid_2000ex.txt", b"once upon a time\n", "cbtest_CN_valid_2000ex.txt:1: a question has 21 lines"),
    ("cbt_cn", "cbtest_CN_valid_2000ex.txt", cbt_question(0).partition("\t")[0].encode(), "line 21 has no answer and choices behind tabs: fetch the file again"),
    ("cbt_cn", "cbtest_CN_valid_2000ex.txt", cbt_question(0).replace("\tFox\t", "\tWolf\t").encode(), "the answer 'Wolf' is not among 10 choices"),
    ("cbt_cn", "cbtest_CN_valid_2000ex.txt", cbt_question(0)[:-3].encode(), "cbtest_CN_valid_2000ex.txt:1: the answer 'Fox' is not among 10 choices"),
    ("cbt_cn", "cbtest_CN_valid_2000ex.txt", cbt_question(0).replace("XXXXX", "Bear").encode(), "the sentence asked about has not one XXXXX"),
    ("wikitext2", "wikitext-2/wiki.test.tokens", b"no headings here\n", "has no line like ' = Title = ': is this WikiText?"),
    ("ptb", "ptb.test.txt", b"rudolph agnew\n Mr. Agnew \n", "ptb.test.txt:2: words with capitals: ptb.test.txt (one lower-case sentence a line, with N and <unk>) was expected, as Mikolov prepared it"),
    ("lm1b", "news.en.heldout-00000-of-00050", b"One .\n\nTwo .\n", "news.en.heldout-00000-of-00050:2: an empty line, where one tokenised sentence a line was expected"),
    ("enwik8", "enwik8", b"<mediawiki>" * 9, "enwik8 has 99 bytes, and enwik8 has 100,000,000 (its test part 5,000,000): is it cut short? Fetch it again"),
    ("enwik8", "enwik8", b"PK\x03\x04rest", "enwik8 is a zip archive: unzip it, and name the file in it"),
    ("enwik8", "enwik8", b"a" * 4_999_000 + b"\xff" + b"a" * 999, "byte 4999000 is no UTF-8"),
    ("text8", "text8", b"the heron", "text8 has 9 characters, and text8 has 100,000,000 (its test part 5,000,000): is it cut short? Fetch it again"),
    ("text8", "text8", b"the heron, " * 454_545 + b"there", "holds ',', and text8 has a to z and spaces only: is this another file?"),
    ("hellaswag", "hellaswag_val.jsonl", json.dumps(ROW).encode()[:-9], "hellaswag_val.jsonl:1: not a JSON line: is the file cut short? Fetch it again"),
    ("hellaswag", "hellaswag_val.jsonl", json_lines([ROW, {**ROW, "label": ""}]).encode(), "hellaswag_val.jsonl, record 2: label '' is not 0 to 3: is this the test file, which has none?"),
    ("hellaswag_lm_eval", "hellaswag_val.jsonl", json_lines([{**ROW, "endings": ["a", "b"]}]).encode(), "hellaswag_val.jsonl, record 1: 4 endings were expected: fetch the file again"),
    ("hellaswag", "hellaswag_val.jsonl", json_lines([ROW, {**ROW, "ctx": 7}]).encode(), "hellaswag_val.jsonl, record 2: the field 'ctx' is no text: fetch the file again"),
    ("hellaswag", "hellaswag_val.jsonl", json_lines([{**ROW, "endings": ["a", "b", "c", 4]}]).encode(), "record 1: 4 endings were expected"),
    ("hellaswag_lm_eval", "hellaswag_val.jsonl", json_lines([{**ROW, "ctx_b": None}]).encode(), "record 1: the field 'ctx_b' is no text"),
    ("hellaswag", "hellaswag_val.jsonl", b'{"question": "", "choices": []}\n', "hellaswag_val.jsonl:1: no field 'activity_label'"),
    ("hellaswag", "hellaswag_val.jsonl", b"[1, 2]\n", "hellaswag_val.jsonl:1: no field 'activity_label'"),
    *((name, task.test.files[0], b"\n \n", "is empty: fetch it again") for name, task in TASKS.items()),
    *((name, task.test.files[0], gzip.compress(b"text")[:-5], "the compressed file is damaged") for name, task in TASKS.items()),
]  # fmt: skip


@pytest.mark.parametrize(
    "name, file, data, line", BAD, ids=lambda x: x if isinstance(x, str) and len(x) < 30 else ""
)
def test_a_file_that_is_wrong_is_one_line(tmp_path, name, file, data, line):
    path = write(tmp_path / file, "")
    path.write_bytes(data)
    with pytest.raises(BadFile) as error:
        TASKS[name].read(tmp_path)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_may_not_be_read(tmp_path):
    path = write(tmp_path / "ptb.test.txt", "a b")
    path.unlink()
    path.symlink_to(tmp_path)
    with pytest.raises((DataError, SystemFailure)):
        TASKS["ptb"].read(tmp_path)


# ---- the hub ----


def cbt_row(n):
    lines = [line.partition(" ")[2] for line in cbt_question(n).split("\n")]
    question, answer, _, options = lines[-1].split("\t")
    return {"sentences": lines[:-1], "question": question, "answer": answer, "options": options.split("|")}


ROWS = {  # as the hub has them
    "lambada": [{"text": text} for text in TEXTS],
    "lambada_token": [{"text": text} for text in TEXTS],
    "lambada_lm_eval": [{"text": text} for text in TEXTS],
    "cbt_cn": [cbt_row(n) for n in range(4)],
    "cbt_ne": [cbt_row(n) for n in range(4)],
    "wikitext2": [{"text": f"{line}\n" if line.strip() else ""} for line in ARTICLES],
    "wikitext103": [{"text": f"{line}\n" if line.strip() else ""} for line in ARTICLES],
    "ptb": [{"sentence": line.strip()} for line in TREEBANK],
    "lm1b": [{"text": line} for line in SENTENCES],
    "enwik8": [{"text": (XML * 60_000).encode()[-5_000_000:].decode()}],
    "text8": [{"text": whole("the heron ", 5_000_000)}],
    "hellaswag": [hellaswag_row(n) | {"label": str(hellaswag_row(n)["label"])} for n in range(12)],
    "hellaswag_lm_eval": [hellaswag_row(n) | {"label": str(hellaswag_row(n)["label"])} for n in range(12)],
    "wikitext2_lm_eval": [{"page": page} for page in ("\n".join(ARTICLES[:10]), "\n".join(ARTICLES[10:]))],
}


@pytest.fixture
def hub(monkeypatch):
    """A `datasets` whose data sets are what a test puts there; the calls that it got."""

    def load_dataset(*args, **kwargs):
        logging.getLogger("huggingface_hub").warning("Retrying in 1s")
        fake.calls.append((args, kwargs))
        if isinstance(fake.rows, Exception):
            raise fake.rows
        return fake.rows

    fake = types.SimpleNamespace(calls=[], rows=[], load_dataset=load_dataset, __spec__=None)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return fake


def words(record):
    """A line's words: the hub strips what the files have at both ends."""
    return record.split() if isinstance(record, str) else record


@pytest.mark.parametrize(
    "name", [name for name in ROWS if name not in ("enwik8", "text8", "wikitext103", "wikitext2_lm_eval")]
)
def test_the_hubs_rows_are_the_files_records(folder, hub, name):
    hub.rows = ROWS[name]
    found = TASKS[name].read()
    assert list(map(words, found)) == list(map(words, TASKS[name].read(folder)))
    assert found.folder is None and len(hub.calls) == 1


@pytest.mark.parametrize("name", ["enwik8", "text8", "wikitext103", "wikitext2_lm_eval"])
def test_the_hubs_texts_are_read(hub, name):
    hub.rows = ROWS[name]
    found = TASKS[name].read()
    if name in ("enwik8", "text8"):
        joined = "".join(row["text"] for row in ROWS[name]).encode()[-5_000_000:]
        assert (b"" if name == "enwik8" else "").join(found) in (joined, joined.decode())
        hub.rows = [{"text": "the heron"}]
        with pytest.raises(BadFile, match=" has 9 .*: is it cut short"):
            TASKS[name].read()
    else:
        assert len(found) == len(ROWS[name])


def test_a_command_tells_that_it_fetches(hub, monkeypatch, capfd):
    hub.rows = ROWS["ptb"]
    monkeypatch.setattr(live, "_running", True)
    TASKS["ptb"].read()
    line = f"ptb: reading {TASKS['ptb'].test.hub}, which is fetched from the hub once\n"
    assert capfd.readouterr() == ("", line)


def test_how_the_hub_is_asked(hub):
    hub.rows = ROWS["hellaswag"]
    TASKS["hellaswag"].read()
    assert hub.calls[-1] == (("Rowan/hellaswag", None), {"split": "validation"})
    hub.rows = ROWS["ptb"]
    TASKS["ptb"].read()
    files = "hf://datasets/ptb-text-only/ptb_text_only@refs/convert/parquet/penn_treebank/test/*.parquet"
    assert hub.calls[-1] == (("parquet",), {"data_files": files, "split": "train"})


@pytest.mark.parametrize("name", TASKS)
def test_no_network_is_one_line_that_names_the_file(hub, caplog, capfd, name):
    hub.rows = ConnectionError("Couldn't reach the hub\nafter 5 tries")
    with pytest.raises(DataError) as error:
        TASKS[name].read()
    test = TASKS[name].test
    assert capfd.readouterr().err == ""  # a library prints nothing
    assert str(error.value) == (
        f"{name}: {test.hub} cannot be fetched (ConnectionError: Couldn't reach the hub after 5 tries): "
        f"put {test.wanted()} into a folder and name that with --data"
    )
    assert not caplog.records
    logging.getLogger("another").warning("heard")
    assert len(caplog.records) == 1


def test_without_the_package_the_line_names_both_remedies(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        MissingDependency,
        match="ptb: fetching .* needs datasets: pip install datasets.*; or put ptb.test.txt",
    ):
        TASKS["ptb"].read()


def test_rows_of_another_form(hub):
    hub.rows = [{"content": "x"}]
    with pytest.raises(BadFile, match="cam-cst/cbt, row 1: no field 'sentences'"):
        TASKS["cbt_cn"].read()
    hub.rows = []
    with pytest.raises(DataError, match="ptb: the data holds no line: fetch it again"):
        TASKS["ptb"].read()
