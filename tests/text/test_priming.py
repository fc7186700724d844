"""Examples before a query: what the model reads, that it reads the examples once, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT
from test_tokenizer_c import EOT

import pyllmc
from pyllmc import GPTConfig, InvalidArgument, Model, Primer, Tokenizer, Writer, prime
from pyllmc.draw.shots import draw_shots
from pyllmc.engine import _ffi
from pyllmc.priming import Form, read_examples

PAIRS = [("ab", "ba"), ("ca", "ac"), ("bb", "bb")]
LETTERS = [b"a", b"b", b"c", b"\n", b" ", b"=", b">"]


def make_model(T: int = 64, pieces=LETTERS, eot: bool = True, window: int = 0) -> Model:
    V = len(pieces) + eot
    config = GPTConfig(vocab_size=V, max_seq_len=T, n_layer=2, n_head=2, n_embd=16, window=window)
    model = Model(config, B=1, seed=1, training=False, keep_logits=False, init_std=0.5)
    table = Tokenizer([*pieces, EOT] if eot else pieces, "longest", len(pieces) if eot else -1)
    model.tokenizer_bytes = table.to_bytes()
    return model


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model()


# ---- the prompt


def test_the_form_of_a_prompt():
    assert prime(PAIRS, "cc") == "ab => ba\nca => ac\nbb => bb\ncc =>"
    assert prime([], "cc") == "cc =>"
    assert prime(PAIRS[:1], "cc", separator=">", end=";") == "ab>ba;cc>"
    assert prime(PAIRS[:1], "cc", task="Turn round:") == "Turn round:\nab => ba\ncc =>"
    assert prime([["é", "日本"]], "ß", separator="  ") == "é  日本\nß"


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("ab", "q"), "examples='ab' is not a list of pairs"),
        (([("a", "b"), ("a",)], "q"), r"examples\[1\]=\('a',\) is not a pair"),
        ((["ab"], "q"), r"examples\[0\]='ab' is not a pair"),
        (([("a", 3)], "q"), r"examples\[0\]: answer=3 is not a text"),
        (([("a", "")], "q"), r"examples\[0\]: the answer is empty"),
        (([("", "a")], "q"), r"examples\[0\]: the query is empty"),
        (([("a", "b\nc")], "q"), r"examples\[0\]: the answer holds '\\n', with which an answer ends"),
        (([("a\n", "b")], "q"), r"examples\[0\]: the query holds '\\n'"),
        (([("a => b", "b")], "q"), r"examples\[0\]: the query holds the separator ' => '"),
        (([], ""), "query '': the query is empty"),
        (([], "a\nb"), r"query 'a\\nb': the query holds '\\n'"),
        (([], 3), "query=3 is not a text"),
        (([], "a", ""), "separator is empty"),
        (([], "a", ">", ""), "end is empty"),
        (([], "a", ">", "\n", 3), "task=3 is not a text"),
    ],
)
def test_what_the_form_cannot_write_is_refused(model, arguments, says):
    with pytest.raises(InvalidArgument, match=says):
        prime(*arguments)


# ---- answers


@pytest.mark.parametrize(
    "form", [{}, dict(separator=">", end="\n"), dict(separator=" >  ", task="cab", end="\n\n")]
)
@pytest.mark.parametrize("shots", [0, 1, 3])
@pytest.mark.parametrize("eot", [True, False])
@pytest.mark.parametrize("window", [0, 1])
def test_an_answer_is_what_a_writer_writes_after_the_prompt(form, shots, eot, window):
    """Whatever was asked before: the end, the document's end and the limit are those of the writer."""
    model = make_model(eot=eot, window=window)
    how, ends = dict(temperature=1.0, max_new_tokens=7), set()
    primer = Primer(Writer(model), PAIRS[:shots], seed=3, **form, **how)
    gap = Form(**form).gap
    for query in ("a", "cc", "abab", "a", "b"):
        expected = Writer(model)
        text = "".join(
            expected.stream(prime(PAIRS[:shots], query, **form), seed=3, stop=[form.get("end", "\n")], **how)
        )
        assert primer.answer(query) == text.removeprefix(gap)
        assert primer.writer.end == expected.end
        ends.add(expected.end)
        other = "".join(
            expected.stream(prime(PAIRS[:shots], query, **form), seed=8, stop=[form.get("end", "\n")], **how)
        )
        assert primer.answer(query, seed=8) == other.removeprefix(gap)
    assert ends


def test_the_examples_are_read_once(model):
    """After the first query the keys of the examples are spoilt: a second query that read them again would not notice."""
    primer = Primer(model, PAIRS, separator=">")
    assert primer.answer("ab") == primer.answer("ab")
    model.acts["qkv"][:, 0, : primer.tokens] = np.nan
    with pytest.raises(pyllmc.NotFinite):
        primer.answer("ab")


def test_what_banded_layers_cache_of_the_examples_is_kept():
    """Their rings forget the examples during an answer. The keys of dense layers are spoilt, as above."""
    model, ffi = make_model(window=1, eot=False), _ffi.ffi()
    primer = Primer(model, PAIRS, separator=">", end="\n\n", temperature=1.0, max_new_tokens=25)
    asked = [primer.answer(query, seed=6) for query in ("ab", "ca", "ab", "ca")]
    assert asked[:2] == asked[2:] and max(map(len, asked)) > 20
    lib, row = model._lib, model._arena.rows["qkv"]
    acts = ffi.cast("float *", lib.llmc_model_block(model._handle, lib.LLMC_ACTS))
    keys = np.frombuffer(ffi.buffer(acts + row.offset, 4 * 3 * 16 * primer.tokens), np.float32)
    keys[:] = np.nan
    with pytest.raises(pyllmc.NotFinite):
        primer.answer("ab")


@pytest.mark.parametrize("window", [0, 1])
def test_another_writer_between_two_queries_changes_nothing(window):
    model = make_model(window=window)
    primer = Primer(model, PAIRS, separator=">", temperature=1.0)
    first = [primer.answer(query) for query in ("ab", "ca")]
    assert Writer(model).write("abc", 30)
    assert [primer.answer(query) for query in ("ab", "ca")] == first


def test_an_answer_that_was_not_read_to_its_end_is_forgotten(model):
    primer = Primer(model, PAIRS, separator=">", temperature=1.0, max_new_tokens=30)
    expected = primer.answer("ca")
    next(primer.stream("ab"), "")
    assert primer.answer("ca") == expected


def test_steps_of_an_answer(model):
    primer = Primer(model, PAIRS, separator=">", temperature=1.0, max_new_tokens=9, seed=2)
    text = primer.answer("ca")
    steps = list(primer.steps("ca", 3))
    assert "".join(step.text for step in steps).startswith(text)
    assert all(len(step.alternatives) == 3 for step in steps)


# ---- the context


def test_the_oldest_examples_are_left_out_with_a_notice():
    model, pairs = make_model(T=40), [("ab", "ba")] * 3 + PAIRS * 3
    with pytest.warns(
        RuntimeWarning,
        match="the context of 40 tokens holds the last 5 of 12 examples; the others are left out",
    ):
        primer = Primer(model, pairs, separator=">", max_new_tokens=3)
    assert primer.shots == 5 and primer.examples == pairs[-5:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits = Primer(model, pairs[-5:], separator=">", max_new_tokens=3)
        assert fits.answer("ab") == primer.answer("ab")
        assert Primer(model, pairs[-4:], separator=">", longest="a" * 11).shots == 4
    with pytest.warns(RuntimeWarning, match="the last 3 of 5 examples"):
        Primer(model, pairs[-5:], separator=">", longest="a" * 18)


def test_an_answer_ends_where_the_context_does():
    model = make_model(T=20, pieces=LETTERS[:3] + LETTERS[6:] + [b"\n"], eot=False)
    model.params["wte"][-1] = 0  # the end is seldom likely
    primer = Primer(model, [("ab", "ba")], separator=">", temperature=2.0, max_new_tokens=100)
    longest = max((primer.answer("ab", seed) for seed in range(40)), key=len)
    assert len(longest) == 20 - 6 - 3 and primer.answer("ab", 0) == primer.answer("ab", 0)


def test_what_does_not_fit_is_refused():
    model = make_model(T=20)
    with pytest.raises(
        InvalidArgument, match="the context of 20 tokens holds no example beside a query: .* 14 tokens"
    ):
        Primer(model, [("ab" * 5, "ba")], separator=">")
    primer = Primer(model, [("ab", "ba")], separator=">")
    with pytest.raises(
        InvalidArgument, match="query 'aaaa.*no room for an answer behind it and 1 example; give fewer"
    ):
        primer.answer("a" * 12)
    assert primer.answer("a" * 11)[:1] in "abc =>"
    with pytest.raises(InvalidArgument, match="character 'x' .* is not in the vocabulary"):
        primer.answer("x")
    with pytest.raises(InvalidArgument, match="character 'x' .* is not in the vocabulary"):
        Primer(model, [("x", "a")], separator=">")
    for named, says in (
        (dict(max_new_tokens=-1), "max_new_tokens=-1 is negative"),
        (dict(stop=[""]), "empty stop string"),
        (dict(temperature=-1), "temperature=-1"),
        (dict(seed="x"), "seed='x'"),
        (dict(longest=3), "longest=3 is not a text"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            Primer(model, [], **named)
    with pytest.raises(pyllmc.SystemFailure, match="none does not exist"):
        Primer("none")


# ---- files of examples


def write(path, *lines) -> str:
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    )
    return str(path)


GOOD = {"query": "ab", "answer": "ba"}


def test_a_file_of_examples(tmp_path):
    path = write(
        tmp_path / "a.jsonl", b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), b"", {**GOOD, "more": 1}, b"\r"
    )
    assert read_examples(path) == [("ab", "ba")] * 2


@pytest.mark.parametrize(
    "line, says",
    [
        (b"{", "no JSON in UTF-8"),
        (b"[" * 100000, "no JSON in UTF-8"),
        (b'{"query": "\xff"}', "no JSON in UTF-8"),
        ([1], "not an object with the texts query and answer"),
        ({"query": "a"}, "not an object with the texts query and answer"),
        ({"query": "a", "answer": 3}, "not an object with the texts query and answer"),
        ({"query": "a", "answer": ""}, "the answer is empty"),
        ({"query": "a", "answer": "b\nc"}, r"the answer holds '\\n'"),
        ({"query": "a => b", "answer": "c"}, "the query holds the separator ' => '"),
        (b'{"query": "\\ud800", "answer": "b"}', "character 0 of query is a lone surrogate"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    path = write(tmp_path / "a.jsonl", GOOD, b"", line, GOOD)
    with pytest.raises(pyllmc.BadFile, match=f"a.jsonl:3: .*{says}") as error:
        read_examples(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_file_without_examples(tmp_path):
    for content in (b"", b"\n \n"):
        with pytest.raises(pyllmc.BadFile, match="a.jsonl holds no example: write a line"):
            read_examples(write(tmp_path / "a.jsonl", content))
    with pytest.raises(pyllmc.SystemFailure, match="none.jsonl"):
        read_examples(tmp_path / "none.jsonl")


# ---- the command


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("priming") / "m.ckpt"
    model.save(path)
    return path


def command(*arguments) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "pyllmc.sample", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, timeout=60, text=True, env={**os.environ})


def test_the_command_answers_after_examples(model, checkpoint, tmp_path):
    path = write(tmp_path / "a.jsonl", *({"query": q, "answer": a} for q, a in PAIRS))
    done = command(checkpoint, f"--examples={path}", "--prompt=ca", "--separator=>", "--max_new_tokens=8")
    primer = Primer(model, PAIRS, separator=">", max_new_tokens=8)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"ca>{primer.answer('ca')}\n"
    options = [
        "--shots=1",
        "--task=cab",
        "--end=\\n\\n",
        "--temperature=1.5",
        "--seed=4",
        "--count=2",
        "--stop=c",
    ]
    done = command(checkpoint, f"--examples={path}", "--prompt=ca", *options)
    primer = Primer(model, PAIRS[:1], task="cab", end="\n\n", temperature=1.5, stop="c")
    assert done.stdout == f"ca => {primer.answer('ca', 4)}\n\nca => {primer.answer('ca', 5)}\n"
    done = command(checkpoint, f"--examples={path}", "--prompt=ca", "--max_new_tokens=3", "--show_work=2")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("ca => \neach step: ")


def test_the_command_tells_what_the_context_holds(checkpoint, tmp_path):
    path = write(tmp_path / "a.jsonl", *[GOOD] * 30)
    done = command(checkpoint, f"--examples={path}", "--prompt=ca")
    assert done.returncode == 0 and done.stderr.count("\n") == 1
    assert "warning: the context of 64 tokens holds the last 6 of 30 examples" in done.stderr


@pytest.mark.parametrize(
    "options, code, says",
    [
        (["--examples=FILE"], 2, "--examples needs a query: --prompt=TEXT"),
        (["--shots=2"], 2, "--shots belongs to --examples=FILE"),
        (["--separator=>"], 2, "--separator belongs to --examples=FILE"),
        (["--examples=FILE", "--prompt=ca", "--shots=-1"], 2, "'-1' is not a whole number of at least 0"),
        (["--examples=FILE", "--prompt=ca", "--shots=99"], 2, "good.jsonl has "),
        (["--examples=FILE", "--prompt=ca", "--separator="], 2, "separator is empty"),
        (["--examples=FILE", "--prompt=a\nb"], 2, "the query holds"),
        (["--examples=FILE", "--prompt=x"], 2, "character 'x'"),
        (["--examples=FILE", "--prompt=\udcff"], 2, "character 0 of query is a lone surrogate"),
        (
            ["--examples=FILE", "--prompt=ca", "--template=plain"],
            2,
            "and --examples a query: leave one of them out",
        ),
        (["--examples=none.jsonl", "--prompt=ca"], 5, "none.jsonl"),
        (["--examples=EMPTY", "--prompt=ca"], 4, "holds no example"),
        (["--examples=BAD", "--prompt=ca"], 4, "bad.jsonl:2: "),
    ],
)
def test_a_bad_call_is_one_line(checkpoint, tmp_path, options, code, says):
    names = {
        "FILE": write(tmp_path / "good.jsonl", GOOD),
        "EMPTY": write(tmp_path / "empty.jsonl", b""),
        "BAD": write(tmp_path / "bad.jsonl", GOOD, b"x"),
    }
    for name, path in names.items():
        options = [option.replace(name, path) for option in options]
    done = command(checkpoint, *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert says in done.stderr


def test_a_picture_with_too_few_shares_or_of_no_kind_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    path = draw_shots(
        tmp_path / "a.svg", (0, 4), {"one $x$": (0.1, 0.9)}, {"one $x$": (0, 1), "other": (0, 0.5)}
    )
    assert path.read_text().startswith("<?xml")
    with pytest.raises(InvalidArgument, match="two: 1 shares for 2 numbers of examples"):
        draw_shots(tmp_path / "b.svg", (0, 4), {"one": (0.1, 0.9), "two": (0.1,)})
    with pytest.raises(InvalidArgument, match="b.txt: a picture ends with"):
        draw_shots(tmp_path / "b.txt", (0, 4), {"one": (0.1, 0.9)})


def test_an_answer_that_another_query_cuts_short_says_so(model):
    """Even one of which nothing was read yet."""
    primer = Primer(model, PAIRS, separator=">", temperature=1.0, max_new_tokens=30)
    wholes = ([step.id for step in primer.steps("a", seed=seed)] for seed in range(20))
    seed, whole = next((seed, ids) for seed, ids in enumerate(wholes) if len(ids) > 2)
    steps = primer.steps("a", seed=seed)
    assert next(steps).id == whole[0]
    assert [step.id for step in primer.steps("a", seed=seed)] == whole
    with pytest.raises(InvalidArgument, match="another query was asked"):
        list(steps)
    unread, newer = primer.stream("a"), primer.answer("b")
    assert isinstance(newer, str)
    with pytest.raises(InvalidArgument, match="another query was asked"):
        next(unread)


@pytest.mark.parametrize("T", range(24, 40))
def test_one_more_line_as_long_as_the_longest_fits_behind_the_examples(T):
    with pytest.warns(RuntimeWarning, match="are left out"):
        primer = Primer(make_model(T=T), [("ab", "ba")] * 12, separator=">")
    line = len("ab>ba\n")
    assert primer.tokens == 1 + primer.shots * line and primer.tokens + line <= T < primer.tokens + 2 * line


def test_the_examples_are_read_anew_once_a_parameter_is_assigned():
    model = make_model()
    primer = Primer(model, PAIRS, separator=">", temperature=1.0)
    first = primer.answer("ca", seed=3)
    model.params["wte"] = model.params["wte"] * np.float32(-3)
    assert (
        primer.answer("ca", seed=3)
        == Primer(model, PAIRS, separator=">", temperature=1.0).answer("ca", seed=3)
        != first
    )


def test_threads_that_ask_one_primer_get_their_own_answers():
    """A piece that one thread reads is never another's: answers wait for each other, and a stream that was cut short says so."""
    primer = Primer(
        make_model(eot=False), PAIRS, separator=">", temperature=1.0, seed=9, end="\n\n", max_new_tokens=8
    )
    queries = ["ab", "ca", "bb", "cc"]
    right = {query: primer.answer(query) for query in queries}
    assert len(set(right.values())) == 4

    def streamed(query: str) -> str:
        try:
            return "".join(primer.stream(query))
        except InvalidArgument as error:
            return str(error)

    told = "another query was asked before this answer had ended"
    with ThreadPoolExecutor(4) as pool:
        for query, made in zip(queries * 50, pool.map(primer.answer, queries * 50)):
            assert made == right[query]
        for query, made in zip(queries * 100, pool.map(streamed, queries * 100)):
            assert made == right[query] or made.startswith(told)
