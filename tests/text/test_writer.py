"""Text in, text out: pieces are whole characters; joined they are the text up to its stop string, for every
tokenizer."""

from __future__ import annotations

import codecs
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, ffi, lib
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generate import Generation
from test_tokenizer_c import EOT, file_bytes

import pyllmc
from pyllmc import GPTConfig, InvalidArgument, Model, Tokenizer, Writer
from pyllmc.convert.export import save
from pyllmc.engine import _ffi
from pyllmc.text.tokenizer import BYTES
from pyllmc.writer import open_writer

SETTINGS = settings(max_examples=300)
END = {"": lib.LLMC_GOING_ON, "eot": lib.LLMC_AT_EOT, "stop": lib.LLMC_AT_STOP, "limit": lib.LLMC_AT_LIMIT}
# parts of characters cut at every place, overlapping words, and bytes of no character
PIECES = [
    b"a",
    b"b",
    b"ab",
    b"\n",
    b"\nb:",
    b"\xc3",
    b"\xa9",
    b"\xf0\x9f",
    b"\x98",
    b"\x80a",
    b"\xff",
    "é".encode(),
]
V = len(PIECES) + 1


def make_model(pieces: list[bytes], vocab: int = 0, T: int = 24) -> Model:
    config = GPTConfig(vocab_size=vocab or len(pieces) + 1, max_seq_len=T, n_layer=1, n_head=1, n_embd=8)
    model = Model(config, B=1, seed=1, training=False, keep_logits=False, init_std=0.4)
    model.tokenizer_bytes = file_bytes([*pieces, EOT])
    return model


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model(PIECES)


class InC:
    """The C writer itself, in bytes."""

    def __init__(self, model: Model, most: int = 100, stops=(), **how) -> None:
        self.writer = Writer(model)
        out = ffi.new("llmc_writer **")
        how = ffi.new("llmc_sampling *", how)
        _ffi.check(lib, lib.llmc_writer_new(out, model._handle, self.writer._tokenizer, how, most))
        self.handle = ffi.gc(out[0], lib.llmc_writer_free)
        for stop in stops:
            _ffi.check(lib, lib.llmc_writer_stop_at(self.handle, stop, len(stop)))

    def prompt(self, text: bytes, echo: int = 0) -> None:
        _ffi.check(lib, lib.llmc_writer_prompt(self.handle, text, len(text), echo))

    def piece(self) -> bytes:
        """The next piece; empty at the end."""
        piece, size = ffi.new("char **"), ffi.new("int64_t *")
        more = _ffi.check(lib, lib.llmc_writer_next(self.handle, piece, size))
        assert (size[0] > 0) == bool(more)
        return ffi.buffer(piece[0], size[0])[:] if more else b""

    def pieces(self) -> list[bytes]:
        return list(iter(self.piece, b""))

    @property
    def end(self) -> int:
        return lib.llmc_writer_end(self.handle)


def first_stop(text: bytes, stops: list[bytes]) -> int:
    """The place of the cut: the stop string that ends first, the longest of several; the text's length if there is
    none."""
    for end in range(1, len(text) + 1):
        found = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if found:
            return end - max(found)
    return len(text)


@SETTINGS
@given(
    st.integers(0, 2**40),
    st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map(b"".join), max_size=3),
    st.lists(st.sampled_from(PIECES), max_size=4).map(b"".join),
    st.integers(0, 40),
)
def test_pieces_joined_are_the_text_up_to_its_stop(model, seed, stops, prompt, most):
    how = dict(temperature=2.0, seed=seed)
    writer = InC(model, most, stops, **how)
    writer.prompt(prompt)
    pieces = writer.pieces()
    ids = model.generate([V - 1, *encoded(prompt)], most, eot=V - 1, **how)
    text = b"".join(PIECES[id] for id in ids if id != V - 1)
    cut = first_stop(text, stops)
    assert b"".join(pieces).decode() == shown(text[:cut])
    ended = "stop" if cut < len(text) else "eot" if V - 1 in ids else "limit"
    assert writer.end == END[ended] and writer.piece() == b""
    assert all(piece.decode() for piece in pieces)


def shown(text: bytes) -> str:
    """The text with U+FFFD for invalid bytes, but without a character that the end cuts."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(text)


def encoded(text: bytes) -> list[int]:
    """The ids by the longest match."""
    ids: list[int] = []
    while text:
        ids.append(
            max((i for i in range(len(PIECES)) if text.startswith(PIECES[i])), key=lambda i: len(PIECES[i]))
        )
        text = text[len(PIECES[ids[-1]]) :]
    return ids


LETTERS = [b"a", b"b", b"\n", b":", b"\xc3", b"\xa9", b"\xf0", b"\x9f", b"\x98", b"\x80", b"\xff"]


@pytest.fixture(scope="module")
def letters() -> Model:
    return make_model(LETTERS, T=64)


@SETTINGS
@given(
    st.lists(st.sampled_from(LETTERS[:6]), max_size=6).map(b"".join),
    st.lists(st.sampled_from(LETTERS), min_size=1, max_size=2).map(b"".join),
    st.booleans(),
)
def test_a_text_goes_on_from_what_was_read(letters, prompt, stop, all_of_it):
    """The text may have ended at a stop string, at its end, or where the reader left: unseen text is not in the
    context."""
    how = dict(temperature=0.0, repetition_penalty=1.5)
    writer, again = InC(letters, 12, [stop], **how), InC(letters, 12, [stop], **how)
    writer.prompt(prompt)
    seen = b"".join(writer.pieces()) if all_of_it else writer.piece()
    if b"\xef\xbf\xbd" in seen:  # it stands for bytes that no prompt can repeat
        return
    writer.prompt(b"ab")
    again.prompt(prompt + seen + b"ab")
    assert writer.pieces() == again.pieces()


def test_a_token_that_a_stop_string_cuts():
    """The rest of the token goes before the next prompt: b"b" and b"c" are then one token."""
    pieces = [b"a", b"b", b"b\na", b"\n", b"bc", b"c", EOT]
    model = make_model(pieces[:-1], T=64)
    cut = 0
    for seed in range(150):
        writer, steps = (
            InC(model, 8, [b"\n"], temperature=2.0, seed=seed),
            Generation(model, temperature=2.0, seed=seed),
        )
        writer.prompt(b"a")
        seen = b"".join(writer.pieces())
        steps.feed([6, 0])
        ids = [steps.next()[0] for _ in seen.removesuffix(b"b") + b"\n"] if writer.end == END["stop"] else []
        if not ids or ids[-1] != 2 or not {*ids} <= {0, 1, 2, 3}:
            continue
        steps.cut(len(steps.ids) - 1, len(steps.ids))
        steps.feed([4])
        writer.prompt(b"c")
        more = b"".join(pieces[id] for id in steps.next(8)).partition(EOT)[0].partition(b"\n")[0]
        assert b"".join(writer.pieces()) == more
        cut += 1
    assert cut > 3


def test_a_writer_goes_back_to_a_beginning(letters):
    """Then it writes as a new one: after the ids that stay, with the seed and the limit that are given."""
    how, writer = dict(temperature=2.0, seed=5), InC(letters, 9, temperature=2.0, seed=1)
    writer.prompt(b"ab")
    writer.piece()  # the rewind below forgets this piece and what follows it
    for prompt, most in ((b":", 9), (b"a\nb", 4), (b"", 7)):
        assert lib.llmc_writer_rewind(writer.handle, 3, how["seed"], most) == 0  # EOT, a, b
        writer.prompt(prompt)
        again = InC(letters, most, **how)
        again.prompt(b"ab" + prompt)
        assert writer.pieces() == again.pieces() and writer.end == again.end
    for n, most in ((-1, 9), (10**6, 9), (0, -1)):
        assert lib.llmc_writer_rewind(writer.handle, n, 0, most) == lib.LLMC_EINVAL


def test_the_prompt_is_echoed_whole_and_only_if_asked(letters):
    writer = InC(letters, 3, temperature=0.0)
    writer.prompt(b"a\xc3", echo=1)  # a cut character stays cut
    writer.prompt(b"\xa9b", echo=1)
    assert writer.piece() == "aéb".encode()
    rest = writer.pieces()
    again = InC(letters, 3, temperature=0.0)
    again.prompt("aéb".encode())
    assert again.pieces() == rest
    assert Writer(letters).write("aéb", 3, 0.0) == "aéb" + b"".join(rest).decode("utf-8", "replace")


def test_ids_that_the_tokenizer_does_not_know_are_never_drawn():
    model = make_model([b"a", b"b"], vocab=50)
    texts = [Writer(model).write("a", 200, temperature=30.0, seed=seed) for seed in range(30)]
    assert set("".join(texts)) == {"a", "b"}


def test_how_it_ended(letters):
    writer = Writer(letters)
    ends = set()
    for seed in range(40):
        pieces = writer.stream("", 8, temperature=3.0, seed=seed, stop=":")
        assert writer.end in ends | {""}
        text = "".join(pieces)
        assert ":" not in text
        ends.add(writer.end)
    assert ends == {"eot", "stop", "limit"}
    assert writer.write("ab", 0) == "ab" and writer.end == "limit"


def test_long_texts_slide():
    writer = Writer(make_model(LETTERS[:4], T=8))
    text = writer.write("a" * 50, 100, temperature=1.0, seed=2)
    assert text.startswith("a" * 50) and len(text) > 51


def test_what_cannot_be_is_refused(letters):
    writer = Writer(letters)
    for named, says in (
        (dict(prompt="z"), "character 'z' .* is not in the vocabulary"),
        (dict(prompt="\ud800"), "lone surrogate"),
        (dict(stop=["a", ""]), "empty stop string"),
        (dict(max_new_tokens=-1), "-1 tokens"),
        (dict(repetition_penalty=-2.0), "repetition_penalty=-2"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            writer.stream(**named)
    with pytest.raises(InvalidArgument, match="the tokenizer has 13 ids, the model V=12"):
        Writer(letters, file_bytes([*PIECES, EOT]))
    with pytest.raises(pyllmc.LlmcError, match="carries no tokenizer"):
        Writer(letters, b"")
    with pytest.raises(pyllmc.SystemFailure, match="d12 does not exist"):
        Writer("d12")


# ---- where the tokenizer comes from


def test_a_tokenizer_is_found_beside_the_weights(letters, checkpoint, tmp_path, monkeypatch):
    """It is found in an export's folder and beside a file; a Tokenizer or a run serves as well; one with other ids is
    not taken."""
    monkeypatch.chdir(tmp_path)
    text, tokenizer = Writer(letters).write("ab", 9), Tokenizer.from_bytes(letters.tokenizer_bytes, "")
    save("d12", letters.config, letters.params, tokenizer=tokenizer)  # named as a size is
    assert Writer("d12").write("ab", 9) == Writer(Model("./d12", B=1)).write("ab", 9) == text
    save("m.bin", letters.config, letters.params)
    with pytest.raises(pyllmc.LlmcError, match="carries no tokenizer, and none that fits"):
        Writer("m.bin")
    for source in (tokenizer, letters.tokenizer_bytes, "d12/tokenizer.bin"):
        assert Writer("m.bin", source).write("ab", 9) == text
    for source in ("d12", str(checkpoint)):
        assert open_writer("m.bin", source).write("ab", 9) == text
    Tokenizer(BYTES, "longest", -1).save("tokenizer.bin")
    assert Model("m.bin").tokenizer_bytes == b""
    tokenizer.save("tokenizer.bin")
    assert Writer("m.bin").write("ab", 9) == text
    done = run(tmp_path / "d12", f"--tokenizer={checkpoint}", "--prompt=ab", "--max_new_tokens=9")
    assert (done.returncode, done.stdout.decode()) == (0, text + "\n")


@pytest.mark.parametrize("V, fits", [(13, True), (15, True), (128, True), (129, False), (12, False)])
def test_a_tokenizer_of_another_model_is_refused(tmp_path, V, fits):
    """Fewer ids than in the model are padding, more would make garbage; the model's own tokenizer may have fewer."""
    model, path = make_model(PIECES, vocab=V), tmp_path / "tokenizer.bin"
    path.write_bytes(file_bytes([*PIECES, EOT]))
    if fits:
        assert Writer(model, path).write("a", 3) == Writer(model).write("a", 3)
    else:
        with pytest.raises(InvalidArgument, match=f"{path} has 13 ids, the model V={V}: it is another"):
            Writer(model, path)
    if V > 128:
        assert Writer(model).write("a", 3)


# ---- the command


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pyllmc.sample", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def checkpoint(letters, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("writer") / "m.ckpt"
    letters.save(path)
    return path


def test_sample_shows_what_stream_yields(letters, checkpoint):
    how = dict(temperature=1.5, repetition_penalty=1.2, top_k=9, stop=["::", "\n"])
    expected = [Writer(letters).write("ab", 20, seed=seed, **how) for seed in (3, 4)]
    options = ["--temperature=1.5", "--repetition_penalty=1.2", "--top-k=9", "--stop=::", "--stop", "\n"]
    done = run(
        checkpoint, "--prompt=ab", "--max_new_tokens=20", "--count=2", "--seed=3", "--device=auto", *options
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == expected[0] + "\n\n" + expected[1] + "\n"


def test_sample_multiplies_as_it_is_told(letters, checkpoint):
    done = run(checkpoint, "--prompt", "ab" * 20, "--max_new_tokens=5", "--precision=bf16", "--weights=int8")
    model = pyllmc.Model(checkpoint, B=1, training=False, weights="int8", precision="bf16")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == Writer(model).write("ab" * 20, 5) + "\n"


def test_a_prompt_that_is_no_text_is_for_the_tokenizer_to_judge(checkpoint):
    """One of bytes takes it, in C and Python alike."""
    prompt, length = b"--prompt=\xff", "--sample_tokens=5"
    programs = ([sys.executable, "-m", "pyllmc.chat"], [ROOT / "chat_gpt2"])
    told = [
        subprocess.run(
            [*p, checkpoint, prompt, length, "--seed=1"], cwd=ROOT, capture_output=True, timeout=60
        )
        for p in programs
    ]
    assert [(done.returncode, done.stderr) for done in told] == [(0, b"")] * 2
    assert told[0].stdout == told[1].stdout != b""
    done = subprocess.run(
        [sys.executable, "-m", "pyllmc.sample", checkpoint, prompt], cwd=ROOT, capture_output=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.startswith(b"\xff"), done.stderr


@pytest.mark.parametrize(
    "option, code",
    [("--prompt=z", 2), ("--repetition_penalty=-1", 2), ("--stop=", 2), ("--stap=a", 2), ("--device=gpu", 6)],
)
def test_sample_says_in_one_line_what_is_wrong(checkpoint, option, code):
    done = run(checkpoint, option)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (code, b"", 1), done.stderr


@pytest.mark.parametrize("turn", [1, -1])
def test_of_stops_that_end_together_the_longest_counts(turn):
    """In whatever order they are given: a chat has an answer's end with an empty line before it, and without."""
    model = make_model([b"a", b"b", b"c"])
    whole = InC(model, 20, temperature=2.0, seed=3)
    whole.prompt(b"a")
    text = b"".join(whole.pieces())
    stops = [text[1:4], text[2:4]][::turn]
    assert len(text) > 4 and first_stop(text, stops) == 1
    writer = InC(model, 20, stops, temperature=2.0, seed=3)
    writer.prompt(b"a")
    assert b"".join(writer.pieces()) == text[:1]
