"""Records of prompts and answers: their forms, what is learnt of them, and one line for each that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyllmc import prepro
from pyllmc.base.errors import DataError
from pyllmc.tables.options import templates
from pyllmc.text import bins, masks, template
from pyllmc.text.dataset import write_dataset
from pyllmc.text.tokenizer import Tokenizer

USER = {"role": "user", "content": "Hi"}
BOT = {"role": "assistant", "content": "Hello!"}
PLAIN = "User: Hi\nAssistant:| Hello!\n"


def learnt_of(folder: Path, split: str = "train") -> str:
    """The text of a split: | stands where what is learnt begins or ends; # is EOT, which is learnt with the text before it,
    and at the start of a file, where nothing predicts it, whatever its bit says."""
    t, text, before = Tokenizer.load(folder / "tokenizer.bin"), "", False
    for path in bins.find_shards(folder, split):
        ids = bins.read_shard(path)
        for at, (i, learn) in enumerate(zip(ids.tolist(), masks.read_mask(path, len(ids)))):
            if i == t.eot:
                assert at == 0 or learn == before
                text, before = text + "#", False
                continue
            text += "|" if learn != before else ""
            text, before = text + t.decode([i]), learn
    return text


def prepare(folder: Path, *records, name: str = "a.jsonl", options: tuple[str, ...] = ()) -> int:
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (folder / name).write_text("\n".join(lines))
    words = [str(folder / name), "--tokenizer=byte", "--val_fraction=0", "--workers=1", "--overwrite"]
    return prepro.main([*words, f"--out={folder / 'd'}", *options])


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"prompt": "Hi", "completion": " Hello!\n"}, PLAIN),
        ({"prompt": "Hi", "response": "Hello!"}, PLAIN),
        ({"question": "Hi", "answer": "Hello!"}, PLAIN),
        ({"prompt": [USER], "completion": [BOT]}, PLAIN),
        ({"messages": [USER, BOT]}, PLAIN),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, BOT]}, PLAIN),
        ({"messages": [USER, BOT, USER, BOT]}, f"{PLAIN}|{PLAIN}"),
        ({"messages": [USER, {**BOT, "weight": 0}, USER, BOT]}, f"{PLAIN.replace('|', '')}{PLAIN}"),
        ({"messages": [{"role": "system", "content": "Be kind."}, USER, BOT]}, f"Be kind.\n\n{PLAIN}"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}, PLAIN),
        ({"instruction": "Hi", "input": "", "output": "Hello!"}, PLAIN),
        ({"instruction": "Say", "input": "Hi", "output": "Hello!"}, "User: Say\nHi\nAssistant:| Hello!\n"),
        ({"system": "Be kind.", "prompt": "Hi", "completion": "Hello!"}, f"Be kind.\n\n{PLAIN}"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_each_form(tmp_path, record, text, name):
    assert prepare(tmp_path, record, name=name) == 0
    assert learnt_of(tmp_path / "d") == f"#{text}#"


def test_records_of_parquet_and_csv(tmp_path):
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    table = pyarrow.table({"prompt": ["Hi"], "completion": ["Hello!"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("prompt,completion\nHi,Hello!\n")
    for name in ("a.parquet", "a.csv"):
        words = [f"--out={tmp_path / 'd'}", "--tokenizer=byte", "--overwrite", "--workers=1"]
        assert prepro.main([str(tmp_path / name), *words]) == 0
        assert learnt_of(tmp_path / "d") == f"#{PLAIN}#"


def test_the_templates_by_name(tmp_path):
    record = {"system": "Be kind.", "instruction": "Say", "input": "Hi", "output": "Hello!"}
    expected = {
        "plain": "Be kind.\n\nUser: Say\nHi\nAssistant:| Hello!\n",
        "alpaca": "Be kind.\n\n### Instruction:\nSay\n\n### Input:\nHi\n\n### Response:\n|Hello!\n\n",
        "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nSay\nHi<|im_end|>\n<|im_start|>assistant\n"
        "|Hello!<|im_end|>\n",
    }
    assert expected.keys() == templates().keys()
    for name, text in expected.items():
        assert prepare(tmp_path, record, options=(f"--template={name}",)) == 0
        assert learnt_of(tmp_path / "d") == f"#{text}#"
        assert (tmp_path / "d" / "template.txt").read_text() == templates()[name] + "\n"


def test_a_template_of_ones_own(tmp_path):
    (tmp_path / "mine.txt").write_text("Q: {prompt}\nA: {answer}\n")
    for value in (r"Q: {prompt}\nA: {answer}\n", "Q: {prompt}\nA: {answer}\n", str(tmp_path / "mine.txt")):
        assert prepare(tmp_path, {"prompt": "1", "completion": "2"}, options=(f"--template={value}",)) == 0
        assert learnt_of(tmp_path / "d") == "#Q: 1\nA:| 2\n#"
        assert (tmp_path / "d" / "template.txt").read_text() == "Q: {prompt}\\nA: {answer}\\n\n"


def test_a_misspelt_place_of_a_template_is_refused(tmp_path, capsys):
    template = r"{sytem}\n{prompt}\nA: {answer}\n{json}"
    assert prepare(tmp_path, {"prompt": "1", "completion": "2"}, options=(f"--template={template}",)) == 2
    assert "the template has {sytem}: did you mean {system}?" in capsys.readouterr().err


def test_prompts_are_learnt_if_that_is_wanted(tmp_path):
    assert prepare(tmp_path, {"prompt": "1", "completion": "2"}, options=("--learn_prompt",)) == 0
    assert learnt_of(tmp_path / "d") == "#|User: 1\nAssistant: 2\n#"


def test_pairs_that_are_too_long_are_left_out_and_told(tmp_path, capsys):
    records = [{"prompt": "x" * n, "completion": "y"} for n in (1, 50, 2, 70)]
    assert prepare(tmp_path, *records, options=("--max_len=40",)) == 0
    told = capsys.readouterr()
    assert "left out 2 of 4 pairs of more than --max_len=40 tokens; the longest has 91" in told.err
    assert "2 pairs, 8 of their tokens are learnt, at most 40 tokens in one" in told.out
    assert prepare(tmp_path, *records[1::2], options=("--max_len=40",)) == 2
    assert "all 2 are longer than --max_len" in capsys.readouterr().err


BAD = [
    ('{"prompt": "a"}', "no fields of a prompt and its answer (it has prompt)"),
    ('{"prompt": "", "completion": "b"}', "prompt is empty"),
    ('{"prompt": "a", "completion": " "}', "completion is empty"),
    ('{"prompt": "a", "completion": null}', "completion is no text (null)"),
    ('{"prompt": "a", "completion": 3}', "completion is no text (int)"),
    ('{"prompt": "a", "completion": "b"', "not a JSON line"),
    ('["a", "b"]', "an object with a prompt and an answer was expected, not a list"),
    ('"a"', "an object with a prompt and an answer was expected"),
    ('{"messages": []}', "messages holds no turns"),
    ('{"messages": [3]}', "messages.0 is no object"),
    ('{"messages": [{"role": "tool", "content": "a"}]}', "messages.0 has the role 'tool', which is none of system"),
    ('{"messages": [{"content": "a"}]}', "messages.0 has the role None"),
    (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": "0"}]}',
        "messages.1.weight is '0': write 0 for an answer that is not learnt, or 1",
    ),
    (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 2}]}',
        "messages.1.weight is 2: write 0 for an answer that is not learnt, or 1",
    ),
    (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]}',
        "ends with a prompt that has no answer",
    ),
    ('{"messages": [{"role": "user"}]}', "messages.0.value is no text (null)"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "ends with a prompt that has no answer"),
    ('{"messages": [{"role": "assistant", "content": "a"}]}', "a prompt comes before each answer"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "a"}]}', "an answer follows"),
    ('{"conversations": [{"from": "human", "value": "a"}, {"from": "system", "value": "a"}]}', "not the first message"),
    ('{"prompt": "a", "completion": "\\ud800"}', "no UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "words"), BAD)
def test_a_bad_record_is_one_line_with_its_place(tmp_path, capsys, line, words):
    good = {"prompt": "a", "completion": "b"}
    assert prepare(tmp_path, good, line) in (2, 4)
    told = capsys.readouterr().err
    assert f"{tmp_path / 'a.jsonl'}:2: " in told and words in told and told.count("\n") == 1
    assert not (tmp_path / "d").exists()


def test_a_first_record_without_an_answer_is_named_as_such(tmp_path, capsys):
    """It has no text either; yet who asks, wants an answer."""
    assert prepare(tmp_path, '{"prompt": "a"}', {"prompt": "a", "completion": "b"}) in (2, 4)
    told = capsys.readouterr().err
    assert "a.jsonl:1: no fields of a prompt and its answer (it has prompt)" in told and told.count("\n") == 1


def test_bad_pairs_may_be_left_out(tmp_path, capsys):
    records = [{"prompt": "Hi", "completion": "Hello!"}, {"prompt": "a"}, {"prompt": "a", "completion": ""}]
    assert prepare(tmp_path, *records, options=("--skip_null",)) == 0
    assert "left out 2 records without a prompt and its answer" in capsys.readouterr().err
    assert learnt_of(tmp_path / "d") == f"#{PLAIN}#"
    assert prepare(tmp_path, records[1], options=("--skip_null", "--template=plain")) == 2
    assert "no record with a prompt and an answer: name a file with some" in capsys.readouterr().err


def test_text_stays_text(tmp_path, capsys):
    """A field that holds the text is taken, as before; --template takes the pairs."""
    record = {"text": "whole", "instruction": "a", "output": "b"}
    assert prepare(tmp_path, record) == 0
    assert "hold pairs and a field 'text', which is taken" in capsys.readouterr().err
    assert not list((tmp_path / "d").glob("*.mask"))
    assert prepare(tmp_path, record, options=("--template=plain",)) == 0
    assert learnt_of(tmp_path / "d") == "#User: a\nAssistant:| b\n#"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--template=none",), "--template=none is not one of plain, alpaca, chatml"),
        (("--template={prompt}",), "needs {prompt}, and behind it {answer}"),
        (("--template=plain", "--field=prompt"), "leave one out"),
        (("--template=<{prompt}>{answer}.",), "a system text, and the template has no {system}"),
        (("--val_tokens=3",), "val_tokens would cut a prompt from its answer"),
    ],
)
def test_options_that_do_not_fit(tmp_path, capsys, options, words):
    (tmp_path / "a.jsonl").write_text('{"system": "s", "prompt": "a", "completion": "b"}\n')
    words_of = [str(tmp_path / "a.jsonl"), f"--out={tmp_path / 'd'}", "--tokenizer=byte", "--workers=1"]
    assert prepro.main([*words_of, *options]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


def test_pairs_and_text_are_prepared_apart(tmp_path, capsys):
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    names = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt")]
    assert prepro.main([*names, f"--out={tmp_path / 'd'}", "--tokenizer=byte", "--workers=1"]) == 2
    assert "b.txt holds no records" in capsys.readouterr().err


def test_a_tokenizer_without_eot_needs_a_mark(tmp_path, capsys):
    letters = sorted(set("".join(templates().values()) + "ab\n")) + ["\\"]
    Tokenizer([c.encode() for c in dict.fromkeys(letters)], "longest", -1).save(tmp_path / "t.bin")
    record = {"prompt": "a", "completion": "b"}
    own = f"--tokenizer={tmp_path / 't.bin'}"
    assert prepare(tmp_path, record, options=(own,)) == 2
    assert "choose --template chatml" in capsys.readouterr().err
    assert prepare(tmp_path, record, options=(own, "--template=chatml")) == 0
    assert learnt_of(tmp_path / "d").endswith("assistant\n|b<|im_end|>\n")


def test_the_bytes_do_not_depend_on_workers_and_are_replaced_whole(tmp_path):
    form = template.find("plain")
    texts = [masks.Marked.of([(f"ask {i}", False), ("yes " * (i % 5), True)]) for i in range(200)]
    for name, workers, documents in (("one", 1, texts), ("two", 2, texts), ("iterator", 1, iter(texts))):
        write_dataset(
            documents, tmp_path / name, "word", 0.1, workers=workers, template=form.line, shard_tokens=300
        )
        first, found = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", name))
        assert found == first
    assert (
        len(list((tmp_path / "one").glob("*.mask")))
        == len(list((tmp_path / "one").glob("[tv]*.bin"))) - 1
        > 2
    )
    write_dataset(["plain text"], tmp_path / "one", "byte", overwrite=True)  # the older masks are gone
    assert not list((tmp_path / "one").glob("*.mask"))


def test_the_end_of_an_answer_is_learnt_as_the_answer_is(tmp_path, capsys):
    """Each record with an answer of weight 0 comes before and after one that is learnt, also in another chunk."""
    unlearnt = {"messages": [USER, {**BOT, "weight": 0}]}
    assert prepare(tmp_path, unlearnt, {"messages": [USER, BOT]}, unlearnt) == 0
    assert learnt_of(tmp_path / "d") == f"#{PLAIN.replace('|', '')}#{PLAIN}#{PLAIN.replace('|', '')}#"
    (shard,) = bins.find_shards(tmp_path / "d")
    ends = masks.read_mask(shard, bins.inspect_shard(shard).ntok)[bins.read_shard(shard) == 256]
    assert ends.tolist()[1:] == [False, True, False]
    long = {"messages": [{**USER, "content": "x" * (1 << 20)}, {**BOT, "weight": 0}]}  # a chunk of its own
    assert prepare(tmp_path, long, {"messages": [USER, BOT]}) == 0
    (shard,) = bins.find_shards(tmp_path / "d")
    ends = masks.read_mask(shard, bins.inspect_shard(shard).ntok)[bins.read_shard(shard) == 256]
    assert ends.tolist()[1:] == [False, True]
    capsys.readouterr()
    assert prepare(tmp_path, unlearnt, unlearnt) == 2
    told = capsys.readouterr().err
    assert "no answer of the training data is learnt: each has weight 0" in told and told.count("\n") == 1


@pytest.mark.parametrize("eot", [True, False])
def test_no_shard_cuts_a_record(tmp_path, eot):
    """Records of 2 to 60 tokens in shards of 50: each lies whole in one, and so does its end."""
    lengths = [(1 + i * 7 % 30, 1 + i % 17) for i in range(99)]
    lengths[50] = (55, 5)  # longer than a shard: it has one of its own
    texts = [masks.Marked.of([("q" * n, False), ("a" * m, True)]) for n, m in lengths]
    meta = write_dataset(texts, tmp_path / "d", "byte", 0, template="x", shard_tokens=50, eot=eot)
    found, sizes = [], []
    for path in bins.find_shards(tmp_path / "d"):
        ids = bins.read_shard(path)
        sizes.append(len(ids))
        found.append(bytes(i if i < 256 else ord("#") for i in ids.tolist()).decode())
        learnt = masks.read_mask(path, len(ids)).tolist()
        assert learnt[1:] == [
            c == "a" or (c == "#" and before == "a") for before, c in zip(found[-1], found[-1][1:])
        ]
    assert meta["tokens"]["train"] == sum(sizes) and len(sizes) > 50
    if eot:
        assert all(text[0] == text[-1] == "#" for text in found)
        assert [part for text in found for part in text.strip("#").split("#")] == texts
    else:
        assert "".join(found) == "".join(texts) and all(text[-1] == "a" and text[0] == "q" for text in found)
    assert [size for size in sizes if size > 50] == [60 + 2 * eot]


def test_one_pair_is_not_cut(tmp_path):
    write_dataset([masks.Marked.of([("a", False), ("b", True)])], tmp_path / "d", "byte", template="x")
    assert learnt_of(tmp_path / "d") == "#a|b#"


def test_a_template_that_is_no_template():
    with pytest.raises(DataError, match="has \\{prompt\\} twice"):
        template.parse("{prompt}{prompt}{answer}.")
