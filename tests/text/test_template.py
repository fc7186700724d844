"""Templates: C and Python parse them alike, and a chat writes its turns exactly as the training has read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_tokenizer_c import EOT, file_bytes

from pyllmc import Chat, GPTConfig, InvalidArgument, Model, Writer, sample
from pyllmc.base.errors import DataError
from pyllmc.tables.options import templates
from pyllmc.text import template
from pyllmc.text.template import BLANKS, Talk, Turn

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


def test_an_answer_stops_at_its_end(model):
    whole = chat_answers(model, "{prompt}>{answer}~~~~", "")[0]
    end = next(c for c in whole[2:] if c not in " \\{" and whole.index(c) >= 2)
    line = f"{{prompt}}>{{answer}}{end}"
    found = chat_answers(model, line, "")
    assert found[0] == whole[: whole.index(end)]
    assert found == expected_answers(model, line, "")


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
