"""Templates: C and Python parse them alike, and a chat writes its turns exactly as the training has read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_tokenizer_c import EOT, file_bytes

from pyllmc import Chat, GPTConfig, InvalidArgument, Model, Writer, sample
from pyllmc.base.errors import DataError
from pyllmc.tables.options import templates
from pyllmc.text import bins, dataset, template
from pyllmc.text.masks import Marked
from pyllmc.text.template import BLANKS, Talk, Turn
from pyllmc.text.tokenizer import Tokenizer

ASCII = [b"\n", b"\t", *(bytes([i]) for i in range(32, 127))]
GOOD = [
    *templates().values(),
    "{prompt}{answer}.",
    r"{prompt}\t=  {answer}\n",
    r"{system} {prompt}>{answer}\\\n",
    r"a{system}b{turn} c{prompt}d {answer}e{f}",
    r"<{system}>{turn}\n\n{prompt}:{answer}\n\n",
]
BAD = [
    ("{prompt}", "needs {prompt}, and behind it {answer}"),
    ("{answer}.", "needs {prompt}, and behind it {answer}"),
    ("{answer}{prompt}.", "{prompt} behind {answer}: the order is {system}, {turn}, {prompt}, {answer}"),
    ("{prompt}{system}{answer}.", "{system} behind {prompt}: the order is"),
    ("{turn}{system}{prompt}{answer}.", "{system} behind {turn}: the order is"),
    ("{turn}{prompt}{answer}.", "{turn} without {system} before it"),
    ("{prompt}{prompt}{answer}.", "{prompt} twice"),
    ("{prompt}{answer}", "nothing stands behind {answer}"),
    (r"{prompt}{answer}\q", r"has \q, and knows"),
    ("{prompt}{answer}\\", "and knows"),
]
SAYS = ["What is it?", "b", "so  "]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model whose answers depend on every character before; they hold ASCII only."""
    config = GPTConfig(vocab_size=len(ASCII) + 1, max_seq_len=512, n_layer=1, n_head=2, n_embd=32)
    made = Model(config, B=1, seed=7, training=False, init_std=0.6)
    made.tokenizer_bytes = file_bytes([*ASCII, EOT])
    path = tmp_path_factory.mktemp("template") / "m.ckpt"
    made.save(path)
    return path


def chat_answers(model: Path, line: str, system: str) -> list[str]:
    options = {
        "template": line,
        "temperature": 0,
        "sample_tokens": 12,
        **({"system": system} if system else {}),
    }
    chat = Chat(model, **options)
    return ["".join(chat.say(text)) for text in SAYS]


def expected_answers(model: Path, line: str, system: str) -> list[str]:
    """What the model writes after the text that Python makes of the same talk."""
    form, writer, answers = template.parse(line), Writer(Model(model, B=1, training=False)), []
    text = form.opening[0] + system + form.opening[1] if form.opening and system else ""
    for i, said in enumerate(SAYS):
        text += (form.end if i else "") + form.asked(said)
        written = "".join(writer.stream(text, max_new_tokens=12, temperature=0, stop=[form.stop]))
        if writer.end == "eot":
            written = written.removesuffix(form.end)
        text += written
        answers.append(written.lstrip(BLANKS))
    return answers


@pytest.mark.parametrize("system", ["", "Be kind."])
@pytest.mark.parametrize("line", GOOD)
def test_a_chat_writes_what_the_training_reads(model, line, system):
    if system and not template.parse(line).opening:
        with pytest.raises(InvalidArgument, match="has no {system}: leave --system out"):
            chat_answers(model, line, system)
        return
    assert chat_answers(model, line, system) == expected_answers(model, line, system)


class Trained:
    """A model with its own tokens, and what it says to the ids that training makes of a talk."""

    def __init__(self, folder: Path, line: str, extra: list[bytes], T: int = 512, seed: int = 7) -> None:
        self.path, self.folder, self.form = folder / "m.ckpt", folder, template.parse(line)
        pieces = [*ASCII, *dict.fromkeys(extra), EOT]
        config = GPTConfig(vocab_size=len(pieces), max_seq_len=T, n_layer=1, n_head=2, n_embd=32)
        self.model = Model(config, B=1, seed=seed, training=False, init_std=0.6)
        self.model.tokenizer_bytes = file_bytes(pieces)
        self.model.save(self.path)
        self.tokenizer = Tokenizer(pieces, "longest", len(pieces) - 1)

    def chat(self, **how: object) -> Chat:
        return Chat(self.path, template=self.form.line, temperature=0, sample_tokens=1, **how)

    def answer(self, talk: list[tuple[str, str]], said: str) -> str:
        """The text of the one token that follows the ids of the pairs (turn, answer) and of what is said."""
        parts = []
        for asked, answer in talk:
            parts += [(self.form.asked(asked), False), (answer + self.form.end, True)]
        text = Marked.of([*parts, (self.form.asked(said), True)])
        dataset.write_dataset(
            [("train", text)], self.folder / "d", self.tokenizer, template=self.form.line, overwrite=True
        )
        ids = bins.read_shard(bins.find_shards(self.folder / "d")[0])[:-1]  # without the end of the text
        (token,) = self.model.generate(ids.tolist(), 1, temperature=0)
        written = "" if token == self.tokenizer.eot else self.tokenizer.decode([token])
        return written.split(self.form.stop)[0]


@pytest.mark.parametrize("line", GOOD)
def test_a_chat_reads_the_ids_of_the_training(tmp_path, line):
    """Also where a token spans the end of an answer and the turn behind it, which the training encodes apart."""
    form = template.parse(line)
    spanning = [f"{form.end[-k:]}{form.before or c}"[: k + 1].encode() for k in (1, 2) for c in "abcdef"]
    trained = Trained(tmp_path, line, spanning)
    chat, talk = trained.chat(), []
    for said in "abcdef":
        answer = trained.answer(talk, said)
        assert "".join(chat.say(said)) == answer.lstrip(BLANKS)
        talk.append((said, answer))


@pytest.mark.parametrize("line", [r"<{prompt}>{answer}~~~~", "{prompt}>{answer}~"])
def test_what_is_forgotten_leaves_no_end_behind(tmp_path, line):
    """Neither the end of an answer nor the first bytes of a token that the stop has cut stand before the next turn."""
    trained = Trained(tmp_path, line, [f"{chr(c)}~".encode() for c in range(33, 127)], T=64)
    long = "x" * 40
    alone = "".join(trained.chat().say(long))
    assert alone.strip()
    for first in "abcdefghijklmnopqrst":
        chat = trained.chat()
        "".join(chat.say(first * 20))
        assert "".join(chat.say(long)) == alone


def test_a_turn_that_stays_does_not_begin_with_the_end_of_one_that_is_forgotten(tmp_path):
    trained = Trained(tmp_path, "{prompt}>{answer}~~~~", [], T=64)
    for said in "abcdefghijklmnopqrst":
        chat = trained.chat()
        before = "".join(chat.say("x" * 40))
        stays = (said, "".join(chat.say(said)))
        assert stays[1] == trained.answer([("x" * 40, before)], said)
        assert "".join(chat.say("y" * 20)) == trained.answer([stays], "y" * 20)


def test_an_answer_stops_at_its_end(model):
    whole = chat_answers(model, "{prompt}>{answer}~~~~", "")[0]
    end = next(c for c in whole[2:] if c not in " \\{" and whole.index(c) >= 2)
    line = f"{{prompt}}>{{answer}}{end}"
    found = chat_answers(model, line, "")
    assert found[0] == whole[: whole.index(end)]
    assert found == expected_answers(model, line, "")


@pytest.mark.parametrize(
    ("end", "stop"), [(r"\n", "\nUser:"), (r"\n\n", "\n\nUser:"), ("<end>", "<end>"), (r"<end>\n", "<end>\n")]
)
def test_an_answer_of_several_lines_is_not_cut_at_the_first(end, stop):
    assert template.parse(rf"User: {{prompt}}\nAssistant: {{answer}}{end}").stop == stop


@pytest.mark.parametrize(("line", "words"), BAD)
def test_both_refuse_the_same_with_the_same_words(model, line, words):
    with pytest.raises(DataError) as in_python:
        template.parse(line)
    with pytest.raises(InvalidArgument) as in_c:
        Chat(model, template=line)
    assert words in str(in_c.value) and str(in_python.value) == str(in_c.value)


def test_a_template_that_is_too_long(model):
    line = "{prompt}" + "x" * 1010 + "{answer}."
    with pytest.raises(DataError, match="longer than 1023 bytes"):
        template.parse(line)
    with pytest.raises(InvalidArgument, match="longer than 1023 bytes"):
        Chat(model, template=line)


def test_a_name_that_is_none(model):
    with pytest.raises(
        InvalidArgument, match="--template=foo is not one of chat, story, auto, plain, alpaca, chatml"
    ):
        Chat(model, template="foo")
    with pytest.raises(DataError, match="--template=foo is not one of plain, alpaca, chatml"):
        template.find("foo")


def test_every_name_is_in_the_messages():
    """The message of C holds them as words."""
    text = (Path(__file__).parents[2] / "csrc/write/template.c").read_text()
    assert f"chat, story, auto, {', '.join(templates())}, nor" in text


@pytest.mark.parametrize("line", GOOD)
def test_a_rendered_talk_is_the_chat_s_text(line):
    form = template.parse(line)
    talk = Talk("s" if form.opening else "", [Turn("a", "b"), Turn("c", "d", False)])
    text = form.render(talk)
    opening = form.opening[0] + "s" + form.opening[1] if form.opening else ""
    spaced = form.spaces
    assert text == (f"{opening}{form.asked('a')}{spaced}b{form.end}{form.asked('c')}{spaced}d{form.end}")
    assert [part for part, learnt in text.parts if learnt] == [f"{spaced}b{form.end}"]
    assert all(learnt for _, learnt in form.render(talk, learn_prompt=True).parts)


def test_a_sample_is_a_turn_if_a_template_is_given(model, capsys):
    how = [str(model), "--prompt=b", "--temperature=0", "--max_new_tokens=8"]
    assert sample.main([*how, r"--template=Q: {prompt}\nA: {answer}\n"]) == 0
    assert capsys.readouterr().out.startswith("Q: b\nA:")
    assert sample.main(how) == sample.main([*how, "--template=story"]) == 0
    both = capsys.readouterr().out
    assert both.startswith("b") and both[: len(both) // 2] == both[len(both) // 2 :]
    assert sample.main([*how, "--template={prompt}"]) == 2
    assert "needs {prompt}, and behind it {answer}" in capsys.readouterr().err


def test_the_end_of_an_answer_goes_also_where_the_text_ends_behind_it(tmp_path):
    """So a model that has seen single turns ends them. What would stop the answer is longer here: the end and a next turn."""
    pieces = [b"a", b"<", b">", b"\n"]
    made = Model(GPTConfig(len(pieces) + 1, 32, 1, 1, 8), B=1, training=False, seed=2)
    made.tokenizer_bytes = file_bytes([*pieces, EOT])
    made.save(tmp_path / "m.ckpt")
    seen = 0
    for seed in range(200):
        how = {"temperature": 3, "seed": seed}
        writer = Writer(made)
        written = "".join(writer.stream("<a>", max_new_tokens=6, stop=["\n<"], **how))
        if writer.end == "eot" and written.endswith("\n"):
            chat = Chat(tmp_path / "m.ckpt", template=r"<{prompt}>{answer}\n", sample_tokens=6, **how)
            assert "".join(chat.say("a")) == written[:-1].lstrip() and chat.end == "eot"
            seen += 1
    assert seen > 3
