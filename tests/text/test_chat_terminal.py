"""Chat at a terminal: what it shows and when; Ctrl-C in an answer, between turns, and in a pipe."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from test_chat import FRONT_ENDS, PROGRAMS, ROOT, T, checkpoint, command, endless, start
from test_tokenizer_c import file_bytes

from pyllmc import GPTConfig, Model

# the exit status as a shell shows it: Python restores its handlers at the end, and a late Ctrl-C kills it then
IN_A_TERMINAL = """
import os, pty, sys
code = os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:]))
sys.exit(code if code >= 0 else 128 - code)
"""


class Terminal:
    """A program that runs at a terminal of its own."""

    def __init__(self, program: list[str], *arguments, term: str = "dumb", columns: int = 0) -> None:
        wide = ["sh", "-c", f'stty cols {columns} rows 24; exec "$@"', "sh"] if columns else []
        spawn = [sys.executable, "-c", IN_A_TERMINAL, *wide, *command(program, *arguments)]
        environment = {**os.environ, "TERM": term}
        self.process = subprocess.Popen(
            spawn, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment
        )
        self.seen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()
        self.process.wait()

    def wait_for(self, text: str, seconds: float = 30) -> None:
        end = time.time() + seconds
        while text not in self.seen:
            ready = select.select([self.process.stdout], [], [], max(end - time.time(), 0))[0]
            more = os.read(self.process.stdout.fileno(), 4096) if ready else b""
            assert more, f"{text!r} did not come: {self.seen[-300:]!r}"
            self.seen += more.decode("utf-8", "replace")
        self.seen = self.seen.split(text, 1)[1]

    def type(self, text: str) -> None:
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def end(self) -> int:
        return self.process.wait(timeout=30)


@FRONT_ENDS
def test_at_a_terminal(program, endless):
    """A turn that is refused, Ctrl-C in an endless answer, Ctrl-D."""
    with Terminal(program, endless, "--sample_tokens=16000000") as terminal:
        terminal.wait_for("Ctrl-D ends")
        terminal.wait_for("> ")
        terminal.type("x\n")
        terminal.wait_for("character 'x'")
        terminal.wait_for("> ")
        for _ in range(2):
            terminal.type("ab\n")
            terminal.wait_for("ab\r\nab")  # the typed text, and the answer
            terminal.type("\x03")
            terminal.wait_for("\n> ")
        terminal.type("\x04")
        assert terminal.end() == 0


def test_a_line_that_ctrl_d_ends_is_whole(endless):
    with Terminal([sys.executable, "-m", "pyllmc.chat"], endless, "--sample_tokens=3") as terminal:
        terminal.wait_for("Ctrl-D ends")
        terminal.wait_for("> ")
        terminal.type("abx\x04\x04")
        terminal.wait_for("character 'x' (byte 120 at byte")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.end() == 0


@pytest.fixture(scope="module")
def wordy(tmp_path_factory):
    """A model that writes words of two to seven letters, and nothing else."""
    pieces = [b" cat", b" dog", b" house", b" garden", b" \xe6\x97\xa5\xe6\x9c\xac", b"a", b"b"]
    model = Model(GPTConfig(len(pieces), T, 1, 1, 8), B=1, training=False)
    model.tokenizer_bytes = file_bytes(pieces, eot=-1)
    path = tmp_path_factory.mktemp("wordy") / "m.ckpt"
    model.save(path)
    return path


@pytest.mark.parametrize("columns", [12, 31])
def test_no_word_is_broken_at_the_edge(wordy, columns):
    """Both front ends print the same lines; without an edge, the same words stand in one line."""
    seen = []
    for program in PROGRAMS:
        how = (wordy, "--prompt=a", "--sample_tokens=40", "--temperature=3")
        with Terminal(program, *how, columns=columns) as terminal:
            shown = terminal.process.stdout.read().decode()
            seen.append(re.sub(r"\r(loading|lo\.\.)[^\r]*|\r +\r", "", shown))  # without signs of life
        whole = subprocess.run(command(program, *how), capture_output=True, cwd=ROOT).stdout.decode()
    lines = seen[0].rstrip("\r\n").split("\r\n")
    assert seen[0] == seen[1] and len(lines) > 4
    assert "".join(lines).replace(" ", "") == whole.strip().replace(" ", "")
    assert all(sum(1 + (c > "\u2e80") for c in line) <= columns for line in lines)
    words = {word for line in lines for word in re.split(r"[ 日本]+", line)} - {""}
    assert all(re.fullmatch(r"(cat|dog|house|garden|)[ab]*", word) for word in words), words
    assert not any(re.fullmatch(r"[ab]+", line.split(" ")[0]) for line in lines[1:] if line)


def test_arrow_keys_and_history(endless):
    """The command in Python edits a line and recalls the one before it."""
    pytest.importorskip("readline")
    with Terminal(PROGRAMS[1], endless, "--sample_tokens=3", term="xterm", columns=80) as terminal:
        terminal.wait_for("Ctrl-D ends")
        terminal.wait_for("> ")
        terminal.type("b:\x1b[D\x1b[Dx\n")  # to the left twice: xb:
        terminal.wait_for("character 'x' (byte 120 at byte 0")
        terminal.wait_for("> ")
        terminal.type("\x1b[A\x01\x1b[3~a\n")  # up, to the start of the line, delete: ab:
        terminal.wait_for("\nab:")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.end() == 0


@FRONT_ENDS
def test_ctrl_c_twice_ends_it(program, endless):
    with Terminal(program, endless) as terminal:
        terminal.wait_for("> ")
        time.sleep(0.2)  # Python may miss a signal just before it waits
        terminal.type("\x03")
        if program is PROGRAMS[0]:
            terminal.wait_for("> ")
        time.sleep(0.2)
        assert terminal.process.poll() is None
        while terminal.process.poll() is None:
            terminal.type("\x03")
            time.sleep(0.2)
        assert terminal.end() == 130


@FRONT_ENDS
def test_ctrl_c_in_a_pipe_ends_it(program, endless):
    process = start(program, endless, "--sample_tokens=16000000")
    process.stdout.read(3)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, b"stopping; again to quit now\n")


def at_terminal(*arguments) -> tuple[subprocess.Popen, int]:
    theirs, ours = pty.openpty()
    program = command(PROGRAMS[0], *arguments)
    process = subprocess.Popen(
        program, stdin=ours, stdout=ours, stderr=ours, cwd=ROOT, start_new_session=True
    )
    os.close(ours)
    return process, theirs


def read_until(terminal: int, end: bytes) -> bytes:
    text = b""
    while not text.endswith(end):
        assert select.select([terminal], [], [], 30)[0], text
        text += os.read(terminal, 4096)
    return text


def test_at_a_terminal_the_shell_gets_a_line_of_its_own(checkpoint):
    process, terminal = at_terminal(checkpoint, "--sample_tokens=2")
    read_until(terminal, b"> ")
    os.write(terminal, b"x\n")
    assert b"\r\nchat_gpt2: character 'x'" in read_until(terminal, b"> ")
    process.send_signal(signal.SIGINT)
    assert read_until(terminal, b"> ") == b"\r\n> "
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert read_until(terminal, b"\n") == b"\r\n"
    os.close(terminal)


@FRONT_ENDS
def test_a_reader_that_has_gone_ends_the_talk(program, endless):
    """Nobody would see the answer, which never ends."""
    terminal, typed = pty.openpty()
    reader, written = os.pipe()
    with subprocess.Popen(
        command(program, endless, "--sample_tokens=16000000"), stdin=typed, stdout=written, cwd=ROOT
    ) as process:
        os.close(written)
        seen = b""
        while not seen.endswith(b"\n> "):
            seen += os.read(reader, 4096)
        os.close(reader)
        os.write(terminal, b"ab\nab\n")
        try:
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
    os.close(terminal), os.close(typed)
