"""Talking with a model: ./chat_gpt2 and python -m pyllmc.chat follow one policy, with checkpoints and with OpenAI's
files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tfwriter
from conftest import ROOT
from test_tokenizer_c import EOT, file_bytes

import pyllmc
from pyllmc import Chat, GPTConfig, InvalidArgument, Model, Writer

T = 64
LETTERS = [c.encode() for c in "ab :\n.é😀"]
NAMES = dict(user="a", bot="b")
CHAT = ["--template=chat", "--user=a", "--bot=b"]
PROGRAMS = [[str(ROOT / "chat_gpt2")], [sys.executable, "-m", "pyllmc.chat"]]
FRONT_ENDS = pytest.mark.parametrize("program", PROGRAMS, ids=["binary", "python"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    config = GPTConfig(vocab_size=len(LETTERS) + 1, max_seq_len=T, n_layer=2, n_head=2, n_embd=16)
    model = Model(config, B=1, seed=5, training=False, init_std=0.5)
    model.tokenizer_bytes = file_bytes([*LETTERS, EOT])
    path = tmp_path_factory.mktemp("chat") / "m.ckpt"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def endless(tmp_path_factory) -> Path:
    """A model whose texts never end."""
    model = Model(GPTConfig(len(LETTERS), T, 1, 1, 8), B=1, training=False)
    model.tokenizer_bytes = file_bytes(LETTERS, eot=-1)
    path = tmp_path_factory.mktemp("endless") / "m.ckpt"
    model.save(path)
    return path


def command(program: list[str], *arguments) -> list[str]:
    if "PYLLMC_LIB" in os.environ:
        pytest.skip("the binary links the ordinary build")
    if not os.access(program[0], os.X_OK):
        pytest.fail(f"{program[0]} is not built: run make")
    return [*program, *map(str, arguments)]


def run(program: list[str], *arguments, text: str = "", **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(program, *arguments),
        input=text.encode(),
        capture_output=True,
        cwd=ROOT,
        timeout=60,
        **kwargs,
    )


def start(program: list[str], *arguments) -> subprocess.Popen:
    """Starts a program with a first turn."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen(command(program, *arguments), cwd=ROOT, **pipes)
    process.stdin.write(b"ab\n")
    process.stdin.flush()
    return process


def say(chat: Chat, text: str) -> str:
    return "".join(chat.say(text))


# ---- both front ends


@pytest.mark.parametrize(
    "options", [["--template=story"], [*CHAT, "--system=ab."], [*CHAT, "--system="], []], ids=" ".join
)
def test_both_front_ends_write_the_same(checkpoint, options):
    turns = ["ab", "", "a😀", "éé", ". a", "b"] * 3
    arguments = [
        checkpoint,
        *options,
        "--seed=7",
        "--sample_tokens=9",
        "--temperature=1.3",
        "--repetition_penalty=1.1",
    ]
    outputs = [run(program, *arguments, text="\n".join(turns)) for program in PROGRAMS]
    assert [done.stderr for done in outputs] == [b"", b""]
    assert [done.returncode for done in outputs] == [0, 0]
    assert outputs[0].stdout == outputs[1].stdout
    named = dict(argument[2:].split("=", 1) for argument in arguments[1:])
    chat = Chat(checkpoint, **named)
    assert outputs[0].stdout.decode() == "".join(say(chat, turn) + "\n" for turn in turns)


@FRONT_ENDS
def test_one_turn_by_option(program, checkpoint):
    done = run(program, checkpoint, "--prompt=ab", "--temperature=0", "--sample_tokens=5")
    expected = Writer(Model(checkpoint, B=1, training=False)).write("ab", 5, 0.0)
    assert (done.returncode, done.stdout.decode()) == (0, expected + "\n")


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_smaller_weights(checkpoint, weights):
    outputs = [
        run(program, checkpoint, f"--weights={weights}", "--prompt=ab", "--threads=1").stdout
        for program in PROGRAMS
    ]
    assert outputs[0] == outputs[1] and len(outputs[0]) > 3


@FRONT_ENDS
def test_training_front_ends_write_without_data(program, checkpoint):
    program = [str(ROOT / "train_gpt2")] if program is PROGRAMS[0] else [sys.executable, "-m", "pyllmc.train"]
    options = ["--max_steps=0", "--prompt=ab", "--sample_tokens=9", "--seed=4", "--repetition_penalty=1.5"]
    done = run(program, f"--model={checkpoint}", *options)
    writer = Writer(Model(checkpoint, B=1, training=False))
    expected = writer.write("ab", 9, 0.8, seed=4, repetition_penalty=1.5)
    assert (done.returncode, done.stderr, done.stdout.decode()) == (0, b"", expected + "\n")


@FRONT_ENDS
def test_a_reader_that_leaves_is_no_error(program, endless):
    process = start(program, endless, "--sample_tokens=10000000")
    process.stdin.close()
    process.stdout.read(2)
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == b""


# ---- the policy


def answer_by_hand(checkpoint: Path, context: str, most: int) -> tuple[str, str]:
    """The answer to a context that is read from its start: the text shown, and the text that stays in the context."""
    writer = Writer(Model(checkpoint, B=1, training=False))
    stops = ["\n\na:", "\na:", "\n\nb:", "\nb:"]
    answer = "".join(writer.stream(context, most, 0.0, stop=stops, repetition_penalty=1.4))
    return answer.lstrip(" \t\r\n"), answer


@pytest.mark.parametrize("system", ["", ".a."])
def test_history_is_forgotten_in_whole_turns(checkpoint, system):
    """Each answer is the one that a new text, of the opening and the turns that fit, would get."""
    most = 7
    chat = Chat(
        checkpoint,
        temperature=0,
        repetition_penalty=1.4,
        sample_tokens=most,
        system=system,
        template="chat",
        **NAMES,
    )
    turns: list[str] = []
    forgotten = 0
    for i in range(14):
        text = "ab é"[: 1 + i % 4]
        turn = f"\na: {text}\nb:" if turns or system else f"a: {text}\nb:"
        held = 1 + len(system) + len("".join(turns))
        if held + len(turn) + most > T:
            while turns and 1 + len(system) + len("".join(turns)) > T // 2 - len(turn):
                turns.pop(0)
                forgotten += 1
        shown, whole = answer_by_hand(checkpoint, system + "".join(turns) + turn, most)
        assert say(chat, text) == shown
        turns.append(turn + whole)
    assert forgotten > 4


def test_an_answer_ends_where_somebody_elses_line_begins(tmp_path):
    """The model has, so to speak, only seen dialogues: its tokens are lines of them."""
    pieces = [b"a", b"b", b":", b" ", b"\n", b"\na:", b"\n\nb:", b" ab"]
    model = Model(GPTConfig(len(pieces) + 1, 60, 1, 1, 8), B=1, training=False, seed=2)
    model.tokenizer_bytes = file_bytes([*pieces, EOT])
    model.save(tmp_path / "m.ckpt")
    chat = Chat(tmp_path / "m.ckpt", template="chat", system="", temperature=3, sample_tokens=5, **NAMES)
    ends = set()
    for _ in range(40):
        answer = say(chat, "ab")
        assert "\na:" not in answer and "\nb:" not in answer and not answer.startswith((" ", "\n"))
        ends.add(chat.end)
    assert ends == {"eot", "stop", "limit"}


def test_an_answer_that_nobody_waits_for_is_cut(checkpoint):
    """The part that was seen stays in the context."""
    how = dict(temperature=0, repetition_penalty=1.4, system=".", template="chat", sample_tokens=12, **NAMES)
    chat = Chat(checkpoint, **how)
    _, whole = answer_by_hand(checkpoint, ".\na: ab\nb:", 12)
    pieces, seen = chat.say("ab"), ""
    while not seen.strip():
        seen += next(pieces)
    assert chat.end == ""
    lead = whole[: len(whole) - len(whole.lstrip())]
    assert say(chat, "b") == answer_by_hand(checkpoint, f".\na: ab\nb:{lead}{seen}\na: b\nb:", 12)[0]


def test_a_story_goes_on_after_an_empty_turn(endless):
    chat = Chat(endless, template="story", temperature=0, repetition_penalty=1.3, sample_tokens=10)
    writer = Writer(Model(endless, B=1, training=False))
    how = dict(temperature=0.0, repetition_penalty=1.3)
    assert (first := say(chat, "ab\n")) == writer.write("ab", 10, **how)
    assert chat.end == writer.end == "limit"
    assert first + say(chat, "") == writer.write("ab", 20, **how)
    assert say(chat, "é") == writer.write("é", 10, **how)  # this text begins anew


def test_a_window_is_told(tmp_path):
    for window in (0, 3):
        model = Model(GPTConfig(len(LETTERS) + 1, T, 1, 1, 8, window=window), B=1, training=False)
        model.tokenizer_bytes = file_bytes([*LETTERS, EOT])
        model.save(tmp_path / "m.ckpt")
        assert ("window=3" in Chat(tmp_path / "m.ckpt").about) == (window == 3)


def test_which_template_a_newcomer_gets(checkpoint):
    assert "a dialogue" not in Chat(checkpoint).about.splitlines()[1].partition("(")[0]
    assert Chat(checkpoint).label(False) == "> "
    chat = Chat(checkpoint, template="chat", system="", **NAMES)
    assert (chat.label(False), chat.label(True)) == ("a: ", "b: ")
    assert "a dialogue: write a line" in chat.about


def test_what_cannot_be_is_refused_and_the_chat_goes_on(checkpoint):
    chat = Chat(checkpoint, template="chat", system="", temperature=0, **NAMES)
    alone = Chat(checkpoint, template="chat", system="", temperature=0, **NAMES)
    for text, says in (
        ("x", "character 'x'"),
        ("ab" * 30, "this turn has 66 tokens, and only 47 fit"),
        ("\ud800", "surrogate"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            chat.say(text)
    assert say(chat, "ab") == say(alone, "ab")
    for named, says in (
        (dict(template="talk"), "--template=talk is not one of"),
        (dict(template="chat", user=""), "--user needs a name"),
        (dict(template="chat", bot="b\nc"), "--bot needs a name"),
        (dict(template="chat", user="x", system=""), None),
        (
            dict(template="chat", system="ab" * 20, **NAMES),
            "has 40 tokens, and the context is 64: shorten --system",
        ),
        (dict(tempreature=1), "did you mean --temperature"),
        (dict(weights="int7"), "int7"),
        (dict(device="tpu"), "tpu"),
    ):
        if says:
            with pytest.raises(pyllmc.LlmcError, match=says):
                Chat(checkpoint, **named)
        else:  # a name that the vocabulary lacks is noticed at the first turn
            with pytest.raises(InvalidArgument, match="character 'x'"):
                Chat(checkpoint, **named).say("a")


# ---- OpenAI's files


@pytest.fixture(scope="module")
def openai(vocab_bpe, tmp_path_factory) -> Path:
    """OpenAI's files as released, without the index, and with vocab.bpe beside them."""
    tensors = tfwriter.random_tensors(GPTConfig(50257, 1024, 2, 1, 64))
    folder = tfwriter.write(tmp_path_factory.mktemp("openai") / "124M", tensors, index=False)
    (folder / "vocab.bpe").write_bytes(vocab_bpe)
    return folder


def test_openais_files_alone_are_enough(openai):
    """tiktoken makes the ids of the text, the model continues them, tiktoken decodes them."""
    tiktoken = pytest.importorskip("tiktoken").get_encoding("gpt2")
    context = "A talk.\nAlice: Grüß dich, who're  you?\nBob:"
    ids = Model(openai, B=1, training=False).generate(
        [50256, *tiktoken.encode_ordinary(context)], 12, 0.0, repetition_penalty=1.5
    )
    expected = tiktoken.decode_bytes(ids).decode("utf-8", "replace").lstrip(" \t\r\n") + "\n"
    options = [
        "--system=A talk.",
        "--prompt=Grüß dich, who're  you?",
        "--temperature=0",
        "--sample_tokens=12",
    ]
    named = [
        [openai],
        [openai / "model.ckpt", openai / "vocab.bpe"],
        [openai / "model.ckpt.data-00000-of-00001"],
    ]
    for program in PROGRAMS:
        for files in named if program is PROGRAMS[0] else named[:1]:
            done = run(program, *files, *options, "--repetition_penalty=1.5")
            assert (done.returncode, done.stderr) == (0, b"")
            assert done.stdout.decode("utf-8", "replace") == expected


def test_the_default_opening_fits_gpt2(openai):
    chat = Chat(openai, sample_tokens=3, temperature=0)
    assert (chat.label(False), chat.label(True)) == ("Alice: ", "Bob: ")
    assert "a dialogue" in chat.about and say(chat, "Hello")


def test_an_introduction_that_does_not_fit_is_left_out(vocab_bpe, tmp_path):
    path = tmp_path / "vocab.bpe"
    path.write_bytes(vocab_bpe)
    Model(GPTConfig(50257, 100, 1, 1, 8), B=1, training=False).save(tmp_path / "m.ckpt")
    options = dict(sample_tokens=3, temperature=0, tokenizer=path)
    bare = Chat(tmp_path / "m.ckpt", system="", **options)
    assert say(Chat(tmp_path / "m.ckpt", **options), "Hello") == say(bare, "Hello")
    with pytest.raises(InvalidArgument, match="shorten --system"):
        Chat(tmp_path / "m.ckpt", system="one two " * 40, **options)


@FRONT_ENDS
def test_help(program):
    done = run(program, "--help")
    assert done.returncode == 0 and b"--template" in done.stdout and b"exit status" in done.stdout


@pytest.mark.parametrize("begun", [False, True])
def test_an_answer_that_another_turn_cuts_short_says_so(checkpoint, begun):
    """Whether it has begun or not; the newer answer is whole."""
    how = dict(template="chat", system="", temperature=1.0, sample_tokens=12, **NAMES)
    seed = next(s for s in range(20) if len(list(Chat(checkpoint, seed=s, **how).say("a"))) > 2)
    alone, chat = (Chat(checkpoint, seed=seed, **how) for _ in range(2))
    old, first = chat.say("a"), alone.say("a")
    if begun:
        assert next(old) == next(first)
    newer = chat.say("b")
    with pytest.raises(InvalidArgument, match="another turn was said before this answer had ended"):
        next(old)
    assert "".join(newer) == "".join(alone.say("b"))


def test_a_turn_that_fits_alone_fits_after_others(checkpoint):
    """Those are forgotten, and the turn is written as a first one, without a line break before it."""

    def answer(*turns: str) -> str:
        chat = Chat(checkpoint, temperature=0, system="", template="chat", sample_tokens=12, **NAMES)
        return [say(chat, turn) for turn in turns][-1]

    longest = "a" * (T - 12 - len("a: \nb:") - 1)  # 1: the token that begins a text
    alone = answer(longest)
    with pytest.raises(InvalidArgument, match="say it in fewer words"):
        answer(longest + "a")
    assert answer("b", longest) == alone
