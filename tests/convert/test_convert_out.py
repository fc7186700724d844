"""Weights out: Hugging Face folders and llm.c's file hold the same model; the tokenizer encodes the same; nothing is
lost."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from converted import TEXT, logits, make_model, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from pyllmc import GPTConfig, Model, Writer  # noqa: E402
from pyllmc.base.errors import DataError  # noqa: E402
from pyllmc.convert import dtypes, to_hf  # noqa: E402
from pyllmc.convert.export import save  # noqa: E402
from pyllmc.text import foreign_tokenizer  # noqa: E402
from pyllmc.text.bpe import EOT_PIECE  # noqa: E402
from pyllmc.text.tokenizer import BYTES, Tokenizer  # noqa: E402
from pyllmc.text.tokenizer_formats import hf_tokenizer, merges_of  # noqa: E402
from pyllmc.text.vocabularies import train  # noqa: E402

KINDS = ["byte", "char", "word", "bpe", "gpt2"]
CONFIG = GPTConfig(97, 12, 3, 2, 24)
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]


def rounded(m, dtype):
    """The model with its numbers rounded to that dtype."""
    for name in m.params:
        m.params[name][:] = dtypes.widen(dtypes.narrow(m.params[name], dtype), dtype)
    return m


def their_logits(path, ids=IDS):
    model = transformers.AutoModelForCausalLM.from_pretrained(path).float().eval()
    with torch.no_grad():
        return type(model).__name__, model(torch.tensor([ids])).logits[0].numpy()


# ---- numbers ----


@given(st.lists(st.floats(width=32), min_size=1))
def test_numbers_are_rounded_as_pytorch_rounds(values):
    x = np.array(values, np.float32)
    bf16 = dtypes.widen(dtypes.narrow(x, "bf16"), "bf16")
    np.testing.assert_array_equal(bf16, torch.from_numpy(x).to(torch.bfloat16).float().numpy())
    np.testing.assert_array_equal(dtypes.narrow(x, "fp16"), torch.from_numpy(x).to(torch.float16).numpy())


# ---- folders ----


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_transformers_computes_the_same(tmp_path, dtype):
    m = make_model(CONFIG)
    made = save(tmp_path / "hf", CONFIG, m.params, dtype=dtype)
    name, theirs = their_logits(tmp_path / "hf")
    assert name == "GPT2LMHeadModel"
    np.testing.assert_allclose(theirs, logits(rounded(m, dtype), IDS), rtol=1e-4, atol=1e-4)
    assert made.path == str(tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["n_ctx"] == config["n_positions"] == 12
    assert config["torch_dtype"] == {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[dtype]


def test_the_safetensors_file_is_as_transformers_writes_it(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    m = make_model(CONFIG)
    save(tmp_path / "ours", CONFIG, m.params)
    transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    ours, theirs = (
        safetensors.safe_open(tmp_path / x / "model.safetensors", "np") for x in ("ours", "theirs")
    )
    assert set(ours.keys()) == set(theirs.keys())
    assert all(np.array_equal(ours.get_tensor(name), theirs.get_tensor(name)) for name in ours.keys())
    assert ours.metadata() == theirs.metadata()


@pytest.mark.parametrize("n_layer, n_head", [(2, 6), (3, 2)])  # sqrt(hs) is 2, or no whole number
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_banded_model_is_a_gpt_neo(tmp_path, n_layer, n_head, dtype):
    config = GPTConfig(97, 12, n_layer, n_head, 24, window=3)
    m = make_model(config)
    for layer in range(n_layer):
        m.params[f"transformer.h.{layer}.attn.c_attn.bias"][:] = 0
        m.params[f"transformer.h.{layer}.attn.c_attn.weight"][0, :3] = (
            3e-8,
            1e-6,
            1e-39,
        )  # subnormal in fp16, in fp32
    made = save(tmp_path / "neo", config, m.params, dtype=dtype)
    name, theirs = their_logits(tmp_path / "neo")
    assert name == "GPTNeoForCausalLM"
    allowed = 1e-4 if dtype == "fp32" else 0.05  # q is rounded after it was scaled
    np.testing.assert_allclose(theirs, logits(rounded(m, dtype), IDS), rtol=allowed, atol=allowed)
    assert "last 3 positions" in made.notes[-1]


def test_a_banded_file_of_llm_c_says_that_it_is_not_llm_c_s(tmp_path):
    config = GPTConfig(97, 12, 2, 2, 24, window=3)
    (note,) = save(tmp_path / "m.bin", config, make_model(config).params).notes
    assert note.endswith(
        "last 3 positions, which only pyllmc reads from such a file: in llm.c they would see all"
    )


LEADS_ON = {  # a model -> the formats of which one can say it
    "odd layers": (GPTConfig(97, 12, 2, 2, 24, window=3), {"bin"}),
    "a pattern": (GPTConfig(97, 12, 4, 2, 24, window=3, pattern="DLLL"), set()),
    "odd layers, untied": (GPTConfig(97, 12, 2, 2, 24, window=3, untied=True), set()),
    "untied": (GPTConfig(97, 12, 2, 2, 24, untied=True), {"hf", "gguf"}),
    "a window as long as the context": (GPTConfig(97, 12, 2, 2, 24, window=12), {"hf", "gguf", "bin"}),
}


@pytest.mark.parametrize("kind", LEADS_ON)
def test_a_refusal_names_the_formats_that_are_not_refused(tmp_path, kind):
    """Those, and no other: a user who follows it is not sent round."""
    config, can = LEADS_ON[kind]
    for to in ("hf", "gguf", "bin"):
        if to in can:
            save(tmp_path / to, config, make_model(config).params, to=to)
            continue
        with pytest.raises(DataError) as refused:
            save(tmp_path / to, config, make_model(config).params, to=to)
        assert not (tmp_path / to).exists()
        assert set(re.findall(r"--to (\w+)", str(refused.value))) == can
        assert bool(can) != ("keep it as a checkpoint" in str(refused.value))


def test_the_bias_that_gpt_neo_cannot_say_is_found_in_any_layer(tmp_path):
    config = GPTConfig(97, 12, 2, 2, 24, window=3)
    m = make_model(config)
    m.params["transformer.h.0.attn.c_attn.bias"][:] = 0
    with pytest.raises(
        DataError, match="but transformer.h.1.attn.c_attn.bias is not zero: write llm.c's file"
    ):
        save(tmp_path / "hf", config, m.params)


# ---- llm.c's file ----


@pytest.mark.parametrize("dtype, version", [("fp32", 3), ("bf16", 5)])
def test_the_engine_reads_llm_c_s_file(tmp_path, dtype, version):
    config = GPTConfig(97, 12, 2, 2, 24, window=3)
    m = make_model(config)
    save(tmp_path / "m.bin", config, m.params, dtype=dtype)
    head = np.fromfile(tmp_path / "m.bin", "<i4", 9).tolist()
    assert head == [20240326, version, 12, 97, 2, 2, 24, 128, 3]
    theirs = Model(tmp_path / "m.bin", B=1)
    assert np.array_equal(logits(theirs, IDS), logits(rounded(m, dtype), IDS))


# ---- tokenizers ----


@pytest.mark.parametrize("kind", KINDS)
def test_auto_tokenizer_encodes_the_same(tmp_path, kind):
    tokenizer = tokenizer_of(kind)
    config = GPTConfig(tokenizer.vocab_size, 12, 1, 1, 8)
    made = save(tmp_path / "hf", config, make_model(config).params, tokenizer=tokenizer)
    assert made.notes == []
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == theirs.bos_token_id == tokenizer.eot
    for text in (TEXT, "the  cat\n", " a", "", "It's"):
        ids = tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.encode(text) == [tokenizer.eot, *ids]
        assert theirs.decode(ids) == text
    assert theirs.encode("the<|endoftext|>") == [tokenizer.eot, *tokenizer.encode("the"), tokenizer.eot]
    assert Tokenizer.load(tmp_path / "hf/tokenizer.bin").pieces == tokenizer.pieces
    assert (tmp_path / "hf/merges.txt").exists() == (kind in ("bpe", "gpt2"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_writes_what_we_write(tmp_path, kind):
    """Both write greedily, with a prompt and without one; the model has more ids than the tokenizer."""
    tokenizer = tokenizer_of(kind)
    T = 48
    m = make_model(GPTConfig(tokenizer.vocab_size + 9, T, 2, 2, 32), tokenizer)
    m.params["transformer.wte.weight"][tokenizer.vocab_size :] *= 3  # ids without a piece are the likeliest
    save(tmp_path / "hf", m.config, m.params, tokenizer=tokenizer)
    pipeline = transformers.pipeline("text-generation", str(tmp_path / "hf"))
    for prompt in ("the cat", "", "On", " a"):
        ours = Writer(m, tokenizer).write(prompt, 12, 0.0)
        theirs = pipeline(prompt, do_sample=False, max_new_tokens=12)[0]["generated_text"]
        assert theirs.rstrip("\ufffd") == ours.rstrip("\ufffd")
        whole = Writer(m, tokenizer).write(prompt, T - 1 - len(tokenizer.encode(prompt)), 0.0)
        theirs = pipeline(prompt, do_sample=False)[0]["generated_text"]
        assert theirs.rstrip("\ufffd") == whole.rstrip(
            "\ufffd"
        )  # ours does not show a character that the end cuts


def test_a_pipeline_ends_with_the_context(tmp_path):
    """It writes 256 tokens unless it is told otherwise, which have no room behind a prompt of 200 in a context of 400."""
    tokenizer = train("char", ["ab"])
    m = make_model(GPTConfig(tokenizer.vocab_size, 400, 1, 1, 8), tokenizer)
    m.params["transformer.ln_f.weight"][:] = 0
    m.params["transformer.ln_f.bias"][:] = (
        9 * m.params["transformer.wte.weight"][0]
    )  # so that only "a" follows
    m.params["transformer.wte.weight"][0] *= 9
    save(tmp_path / "hf", m.config, m.params, tokenizer=tokenizer)
    pipeline = transformers.pipeline("text-generation", str(tmp_path / "hf"))
    written = pipeline("ab" * 100, do_sample=False)[0]["generated_text"]
    assert written == "ab" * 100 + "a" * 199  # EOT stands before them


@pytest.mark.parametrize("T", [24, 1024])
def test_the_card_s_example_runs(tmp_path, monkeypatch, capsys, T):
    tokenizer = train("char", ["ab é"])  # it cannot encode "Once upon a time"
    m = make_model(GPTConfig(tokenizer.vocab_size, T, 1, 1, 8), tokenizer)
    save(tmp_path / "hf", m.config, m.params, tokenizer=tokenizer)
    card = (tmp_path / "hf/README.md").read_text()
    assert f"begins with `<|endoftext|>` (id {tokenizer.eot})" in card
    monkeypatch.chdir(tmp_path)
    exec(card.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out == Writer(m, tokenizer).write("", min(T - 1, 256), 0.0) + "\n"


def test_the_card_of_a_folder_without_tokenizer_json(tmp_path):
    tokenizer = Tokenizer([*BYTES, EOT_PIECE], "unknown", 256)
    config = GPTConfig(257, 8, 1, 1, 8)
    save(tmp_path / "hf", config, make_model(config).params, tokenizer=tokenizer)
    card = (tmp_path / "hf/README.md").read_text()
    assert "Every text begins with the id 256" in card and "```python" not in card


@pytest.mark.parametrize("kind", ["byte", "word", "bpe", "gpt2"])
def test_any_text_is_encoded_the_same(kind):
    tokenizer = tokenizer_of(kind)
    theirs = hf_tokenizer(tokenizer)
    parts = st.sampled_from(
        [" ", "  ", "\n", "cat", " the", "'s", "sat", "12", "é", "日", "<|end", "\0", "😀", "."]
    )

    @settings(max_examples=200)
    @given(st.lists(st.one_of(parts, st.text(max_size=3)), max_size=12).map("".join))
    def check(text):
        if "<|endoftext|>" in text:
            return
        ids = tokenizer.encode(text)
        assert theirs.encode(text).ids == ids
        assert theirs.decode(ids, skip_special_tokens=False) == text

    check()


@settings(max_examples=100)
@given(st.sets(st.binary(min_size=2, max_size=5), max_size=40), st.text(max_size=30))
def test_any_table_finds_the_longest_match(pieces, text):
    pieces = sorted(pieces - {EOT_PIECE})
    tokenizer = Tokenizer([*BYTES, *pieces, EOT_PIECE], "longest", 256 + len(pieces))
    text = text + "".join(p.decode("utf-8", "ignore") for p in pieces)
    assert hf_tokenizer(tokenizer).encode(text).ids == tokenizer.encode(text)


def test_an_unknown_character_is_an_error_there_too():
    theirs = hf_tokenizer(train("char", ["aé"]))
    for text in ("ab", "aè", "日"):
        with pytest.raises(Exception, match="Missing"):
            theirs.encode(text)


def test_a_piece_that_no_merge_makes(tmp_path):
    """tiktoken takes a whole word from the table, and so does tokenizer.json; merges.txt cannot express it."""
    tokenizer = Tokenizer([*BYTES, b"abc"], "gpt2", -1)
    assert merges_of(tokenizer) == ([], [256])
    assert hf_tokenizer(tokenizer).encode("abc abc xabc").ids == tokenizer.encode("abc abc xabc")
    assert to_hf.write_tokenizer(str(tmp_path), tokenizer, 8) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "tokenizer.bin",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_added_pieces_go_to_transformers_and_come_back(tmp_path):
    """vocab.json and merges.txt cannot say that they come before the merges."""
    tokenizer = tokenizer_of("added")
    assert save_tokenizer_alone(tmp_path, tokenizer) == ["tokenizer.json", "tokenizer_config.json"]
    assert foreign_tokenizer.load(str(tmp_path / "tokenizer.json")).to_bytes() == tokenizer.to_bytes()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "<|user|>the cat[SEP] sat <|é bot|><|user|"
    ids = tokenizer.encode(text)
    assert theirs.encode(text, add_special_tokens=False) == ids
    assert theirs.decode(ids, skip_special_tokens=True) == text


def save_tokenizer_alone(folder, tokenizer) -> list[str]:
    assert to_hf.write_tokenizer(str(folder), tokenizer, 8) == []
    (folder / "tokenizer.bin").unlink()
    return sorted(p.name for p in folder.iterdir())


def test_a_tokenizer_that_only_decodes_is_left_out(tmp_path):
    tokenizer = Tokenizer([*BYTES], "unknown", -1)
    (note,) = to_hf.write_tokenizer(str(tmp_path), tokenizer, 8)
    assert "only decodes" in note
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.bin"]


@pytest.mark.parametrize("name", ["out.gguf", "out.bin", "out"])
def test_a_tensor_that_no_format_would_write_is_refused(name, tmp_path):
    m = make_model(CONFIG)
    with pytest.raises(DataError, match="extra.weight is no tensor of this model: .* are expected, .* found"):
        save(tmp_path / name, m.config, {**m.params, "extra.weight": np.zeros(3, np.float32)})
    assert not list(tmp_path.iterdir())


def test_ties_go_to_the_even_number():
    """Every number halfway between two of bf16, which a random one seldom is."""
    bits = np.arange(1 << 16, dtype=np.uint32) << 16 | 0x8000
    x = bits.view(np.float32)
    x = x[np.isfinite(x)]
    theirs = torch.from_numpy(x.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(dtypes.narrow(x, "bf16"), theirs)
    nan = np.array([0x7FFFFFFF, 0x7F800001], np.uint32).view(np.float32)
    assert np.isnan(dtypes.widen(dtypes.narrow(nan, "bf16"), "bf16")).all()
