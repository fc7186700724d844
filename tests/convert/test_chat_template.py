"""The chat_template of an export: transformers makes of messages the ids that the training reads and a chat continues."""

from __future__ import annotations

import json
import shutil

import pytest
from converted import TEXT, make_model
from hypothesis import example, given, settings
from hypothesis import strategies as st

transformers = pytest.importorskip("transformers")
pytest.importorskip("jinja2")

import pyllmc  # noqa: E402
from pyllmc import Chat, GPTConfig, sample  # noqa: E402
from pyllmc.convert import to_hf  # noqa: E402
from pyllmc.convert.__main__ import main as convert  # noqa: E402
from pyllmc.convert.chat_template import PART, chat_template  # noqa: E402
from pyllmc.convert.export import save  # noqa: E402
from pyllmc.engine.checkpoint import template_of  # noqa: E402
from pyllmc.tables.options import templates  # noqa: E402
from pyllmc.text import dataset, pairs, template  # noqa: E402
from pyllmc.text.tokenizer import BYTES, Tokenizer  # noqa: E402
from pyllmc.text.vocabularies import train  # noqa: E402
from pyllmc.train import main as train_command  # noqa: E402

LINES = [
    *templates().values(),
    "{prompt}{answer}.",
    r"{system}'{turn}{prompt}'  {answer}\n\n",
    r"{{%\\{system}}}{turn}{{ c{prompt}#}END{answer}\t'",
    r"é{system}日\n\n{prompt}:   {answer}\n\n",
]
# two texts become one token, or other tokens, where these stand at the border of two parts
WORDS = ["s", "it's", "a", "b's", ".", "1", "a\n\nb", "the cat", "é", "'", "User:", "  12 "]
CONTENTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map("".join)
SPANNING = sorted(
    {
        f"{a}{b}".encode()
        for a in ["\n", ":", ": ", "'", ".", "日", "\t'"]
        for b in ["s", "User", "é", " ", "1", "#"]
    }
)


def tokenizer_of(kind: str) -> Tokenizer:
    """One that can write every template and every content."""
    if kind == "spanning":
        return Tokenizer([*BYTES, *SPANNING, b"<|endoftext|>"], "longest", 256 + len(SPANNING))
    if kind == "no end":
        return Tokenizer([*BYTES, *SPANNING], "longest", -1)
    return train(
        kind, [TEXT * 3, *LINES * 3, *WORDS * 3, "\n\t".join(map(chr, range(32, 127)))], max_vocab=320
    )


def ours(form: template.Template, tokenizer: Tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """The ids of the training: EOT, then each part alone. An open turn is what a chat continues."""
    last = messages[-1:] if messages[-1]["role"] == "user" else []
    closed = messages[: len(messages) - len(last)]
    texts = []
    if len(closed) > 1:
        texts = [text for text, _ in form.render(pairs.talk_of({"messages": closed})).parts]
    elif closed and (said := closed[0]["content"].strip()):
        texts = [form.opening[0] + said + form.opening[1]]
    texts += [form.asked(message["content"].strip()) for message in last]
    return [i for i in [tokenizer.eot] if i >= 0] + [i for text in texts for i in tokenizer.encode(text)]


def messages_of(system: str | None, said: list[str]) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def ids_of(theirs, messages, **how) -> list[int]:
    return theirs.apply_chat_template(messages, return_dict=False, **how)


KINDS = ["byte", "char", "word", "bpe", "spanning", "no end"]
CASES = [*((kind, line) for kind in KINDS for line in LINES), ("gpt2", LINES[0]), ("gpt2", LINES[-1])]


@pytest.mark.parametrize("kind, line", CASES)
def test_messages_become_the_ids_of_the_training(tmp_path, kind, line):
    form, tokenizer = template.parse(line), tokenizer_of(kind)
    assert to_hf.write_tokenizer(str(tmp_path), tokenizer, 64, form) == []
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    systems = st.one_of(st.none(), CONTENTS) if form.opening else st.none()

    @settings(max_examples=60)
    @given(systems, st.lists(CONTENTS, min_size=1, max_size=5))
    @example(None, ["s", "s", "s", "s", "'s"])  # ".'s" is cut as ".'" and "s", but "." ends an answer
    def check(system, said):
        messages = messages_of(system, said)
        assert ids_of(theirs, messages, add_generation_prompt=True) == ours(form, tokenizer, messages)
        named = [{**m, "role": "developer"} if m["role"] == "system" else m for m in messages]
        assert ids_of(theirs, named, add_generation_prompt=True) == ours(form, tokenizer, messages)
        parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        assert ids_of(theirs, parts, add_generation_prompt=True) == ours(form, tokenizer, messages)
        text = theirs.apply_chat_template(messages, tokenize=False)
        if len(said) % 2:  # without the words that come before an answer
            assert text.endswith(form.before + said[-1].strip())

    check()
    for text in (TEXT, "", " a", "User: a\n\nUser: b"):  # the marks change no other text
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)


def test_marks_stand_only_where_the_tokenizer_would_join_two_parts():
    plain = template.find("plain")
    assert PART not in chat_template(plain, tokenizer_of("word"))
    ends = [line for line in chat_template(plain, tokenizer_of("gpt2")).splitlines() if PART in line]
    assert len(ends) == 1  # "\n\n" is one token, and "\n\nUser" begins with two
    assert "text(messages[0])" in ends[0]


@pytest.mark.parametrize(
    "line, messages, why",
    [
        ("{prompt}{answer}.", messages_of("Be kind.", ["a"]), "has no place for a system text"),
        ("{prompt}{answer}.", messages_of(None, ["a"]) * 2, "must take turns"),
        ("{prompt}{answer}.", messages_of(None, ["a", "b"])[1:], "must take turns"),
        ("{prompt}{answer}.", messages_of(None, ["a", " \n"]), "a message is empty"),
        ("{system} {prompt}{answer}.", messages_of("a", ["b", "c"])[:1] * 2, "must take turns"),
    ],
)
def test_what_the_training_never_reads_is_refused(tmp_path, line, messages, why):
    to_hf.write_tokenizer(str(tmp_path), tokenizer_of("byte"), 64, template.parse(line))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(Exception, match=why):
        theirs.apply_chat_template(messages)


def test_an_empty_system_text_is_none(tmp_path):
    to_hf.write_tokenizer(str(tmp_path), tokenizer_of("byte"), 64, template.find("plain"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ids_of(theirs, messages_of(" ", ["a"])) == ids_of(theirs, messages_of(None, ["a"]))


def test_without_tokenizer_json_there_is_no_chat_template(tmp_path):
    (note,) = to_hf.write_tokenizer(
        str(tmp_path), Tokenizer([*BYTES], "unknown", -1), 8, template.find("plain")
    )
    assert note.startswith("tokenizer.json and the chat_template are left out (it only decodes")


# ---- a model


def tuned(folder, line: str):
    """A checkpoint as a training on pairs writes it, and its path."""
    form = template.find(line)
    talks = [template.Talk("", [template.Turn(f"say {i}", f"{i} it is")]) for i in range(20)]
    dataset.write_dataset(
        [form.render(talk) for talk in talks], folder / "d", "byte", 0.2, template=form.line
    )
    how = {"n_layer": 1, "n_head": 2, "n_embd": 32, "max_seq_len": 128, "B": 4, "max_steps": 60, "lr": 1e-2}
    list(pyllmc.Trainer(data=folder / "d", out=folder / "run", sample_every=0, val_every=0, **how))
    return folder / "run"


@pytest.mark.parametrize("line", ["plain", "chatml"])
def test_the_card_s_chat_is_ours(tmp_path, monkeypatch, capsys, line):
    run = tuned(tmp_path, line)
    assert convert([str(run), str(tmp_path / "hf")]) == 0
    settings = json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
    assert "text(message)" in settings["chat_template"]
    card = (tmp_path / "hf/README.md").read_text()
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(card.split("```python\n")[1].split("```")[0].replace("Once upon a time", "say 3"), {})
    written = capsys.readouterr().out
    assert (
        written.split(template.find(line).stop)[0].strip()
        == "".join(Chat(run, temperature=0).say("say 3")).strip()
    )


@pytest.fixture
def hub_of(tmp_path, monkeypatch):
    """Makes the hub give what it is asked for of a folder."""

    def put(folder) -> None:
        def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
            for path in folder.iterdir():
                if any(path.match(pattern) for pattern in allow_patterns):
                    shutil.copy(path, tmp_path / "fetched")
            return str(tmp_path / "fetched")

        (tmp_path / "fetched").mkdir()
        monkeypatch.setattr(pytest.importorskip("huggingface_hub"), "snapshot_download", download)

    return put


def test_the_template_travels_with_the_folder(tmp_path, capsys, hub_of):
    """To a chat, to a sample, and to a training program that only writes; a template that is named is the one that counts."""
    run, folder = tuned(tmp_path, "plain"), tmp_path / "hf"
    assert convert([str(run), str(folder)]) == 0
    assert template.beside(folder) == template.find("plain").line
    hub_of(folder)
    written = []
    for model in (run, folder, "hub:me/chat"):
        for name in ("auto", "story"):
            how = {"temperature": 0, "sample_tokens": 20, "template": name}
            written.append("".join(Chat(model, **how).say("say 3")))
            capsys.readouterr()
            options = ["--temperature=0", "--max_new_tokens=20", f"--template={name}"]
            assert sample.main([str(model), "--prompt=say 3", *options]) == 0
            written.append(capsys.readouterr().out)
            options = [f"--{option}={value}" for option, value in how.items()]
            assert train_command([f"--model={model}", "--max_steps=0", "--prompt=say 3", *options]) == 0
            written.append(capsys.readouterr().out)
    assert (
        written[:6] == written[6:12] == written[12:] and written[0] != written[3] and written[1] != written[4]
    )
    assert convert([str(run), str(folder), "--overwrite"]) == 0


def test_a_training_that_goes_on_from_the_folder_keeps_the_template(tmp_path):
    """Unless its data has another."""
    run, folder = tuned(tmp_path, "plain"), tmp_path / "hf"
    assert convert([str(run), str(folder)]) == 0
    dataset.write_dataset(["say 1 and 2. " * 20], tmp_path / "text", "byte", 0.2)
    form = template.find("chatml")
    talk = form.render(template.Talk("", [template.Turn("say 3", "it is")]))
    dataset.write_dataset([talk] * 20, tmp_path / "pairs", "byte", 0.2, template=form.line)
    for data, line in (("text", "plain"), ("pairs", "chatml")):
        how = {"max_steps": 1, "B": 1, "sample_every": 0, "val_every": 0}
        list(pyllmc.Trainer(model=folder, data=tmp_path / data, out=tmp_path / f"on {data}", **how))
        assert template_of(tmp_path / f"on {data}") == template.find(line)


def test_an_export_of_a_folder_keeps_the_template_and_llm_c_s_file_cannot(tmp_path, capsys):
    run, folder = tuned(tmp_path, "plain"), tmp_path / "hf"
    assert convert([str(run), str(folder)]) == 0
    assert convert([str(folder), str(tmp_path / "again")]) == 0
    assert template.beside(tmp_path / "again") == template.find("plain").line
    capsys.readouterr()
    assert convert([str(folder), str(tmp_path / "m.bin")]) == 0
    assert (
        f"note: files of llm.c carry no template: name it with --template='{template.find('plain').line}'"
        in (capsys.readouterr().out)
    )


def test_a_model_that_was_not_fine_tuned_has_none(tmp_path):
    tokenizer = tokenizer_of("byte")
    m = make_model(GPTConfig(tokenizer.vocab_size, 12, 1, 1, 8), tokenizer)
    save(tmp_path / "hf", m.config, m.params, tokenizer=tokenizer)
    assert "chat_template" not in json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
    assert "messages" not in (tmp_path / "hf/README.md").read_text()
    assert not (tmp_path / "hf/template.txt").exists()
