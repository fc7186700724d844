"""Nobody waits long: every command shows that it lives and answers the first signal; a second signal ends it at once."""

from __future__ import annotations

import os
import pty
import random
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from test_trainer import TINY

import pyllmc
from pyllmc.text import dataset

BINARY = [str(ROOT / "train_gpt2")]
MODULE = [sys.executable, "-m", "pyllmc.train"]
REFERENCE = [sys.executable, str(ROOT / "train_gpt2.py")]
FRONT_ENDS = pytest.mark.parametrize("program", [BINARY, MODULE], ids=["binary", "python"])
ANSWER = "; again to quit now"
if "PYLLMC_LIB" in os.environ:
    pytest.skip("the binary links the ordinary build", allow_module_level=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "letters"
    texts = ["the cat sat on the mat " * 20, "a dog ran " * 20] * 60
    dataset.write_dataset(texts, out, tokenizer="char", val_fraction=0.1)
    return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_encoding_one_endless_word_ends_at_once(tmp_path, number):
    """Encoding it is one call of a library, and takes many seconds."""
    from pyllmc.text.vocabularies import train

    pick = random.Random(1).choices
    train("bpe", ["".join(pick("ACGT", k=50_000))], 1000).save(tmp_path / "tokenizer.bin")
    (tmp_path / "dna").write_text("".join(pick("ACGT", k=8_000_000)))
    command = [sys.executable, "-m", "pyllmc.tokenizer", "encode", str(tmp_path)]
    with open(tmp_path / "dna") as text:
        process = subprocess.Popen(command, stdin=text, stdout=subprocess.DEVNULL, cwd=ROOT)
    time.sleep(3)
    assert process.poll() is None
    process.send_signal(number)
    try:
        assert process.wait(2) == 130
    finally:
        process.kill()


class NoThread:
    """A system that starts no more threads."""

    def __init__(self, *_, **__) -> None: ...

    def start(self) -> None:
        raise RuntimeError("can't start new thread")


def test_without_another_thread_a_stop_is_answered_all_the_same(monkeypatch, capfd):
    """Under ulimit -u Python's handlers do the work of the missing thread."""
    from pyllmc.base import signals

    monkeypatch.setattr(signals, "Thread", NoThread)
    stops = []
    before = [signal.getsignal(number) for number in signals.WAYS_TO_END]
    try:
        for number, default in signals.WAYS_TO_END.items():
            signal.signal(number, default)
        signals.end_quietly()
        with signals.interruptible():
            with signals.stopped_by_signals(lambda: stops.append(1), lambda: "heard") as came:
                os.kill(os.getpid(), signal.SIGINT)
                assert came() and stops == [1]
    finally:
        for number, handler in zip(signals.WAYS_TO_END, before):
            signal.signal(number, handler)
    assert capfd.readouterr().err == "heard\n"


def words(**options) -> list[str]:
    return [f"--{name}={value}" for name, value in {**TINY, **options}.items()]


class Terminal:
    """A program at a terminal of its own, and the text shown there."""

    def __init__(self, command: list[str], cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
        self.ear, side = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        # a suite that was started by nohup ignores SIGHUP, and so would the program
        self.process = subprocess.Popen(
            command,
            stdin=side,
            stdout=side,
            stderr=side,
            cwd=cwd,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        os.close(side)
        self.shown = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ear)

    def read(self, seconds: float) -> bool:
        if not select.select([self.ear], [], [], max(seconds, 0))[0]:
            return False
        try:
            more = os.read(self.ear, 4096)
        except OSError:  # the program has ended
            return False
        self.shown += more.decode("utf-8", "replace")
        return bool(more)

    def wait_for(self, pattern: str, seconds: float = 60) -> None:
        """Waits until it is shown after the last text that was waited for."""
        end, start = time.time() + seconds, len(self.shown)
        while not re.search(pattern, self.shown[start:]):
            assert self.read(end - time.time()), f"{pattern!r} did not come: {self.shown[-400:]!r}"

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def hang_up(self) -> None:
        """Closes, as a window does, or a connection that breaks."""
        os.close(self.ear)
        self.ear = os.open(os.devnull, os.O_RDONLY)
        self.send(signal.SIGHUP)

    def end(self) -> int:
        while self.read(60):
            pass
        return self.process.wait(timeout=60)


LONG = {**TINY, "max_seq_len": 64, "T": 64, "B": 512, "n_layer": 8, "max_steps": 9, "val_batches": 0}


@FRONT_ENDS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_in_a_validation_is_answered_and_the_run_goes_on_later(program, number, data, tmp_path):
    out = tmp_path / "run"
    options = {**TINY, "B": 1, "max_steps": 1, "val_batches": 0, "val_every": 1, "sample_every": 0}
    with Terminal([*program, f"--data={data}", f"--out={out}", *words(**options)]) as terminal:
        terminal.wait_for(r"step 0: validation, batch \d+ of")
        terminal.send(number)
        assert terminal.end() == 130
    if "stopping" not in terminal.shown:
        pytest.skip("it had ended before")
    assert terminal.shown.count(ANSWER) == 1
    after = terminal.shown.split(ANSWER)[1]
    assert "batch" not in after.replace("batch of the validation", ""), "another batch after the answer"
    assert f"--resume={shlex.quote(str(out))}" in after


@pytest.mark.parametrize("program", [BINARY, MODULE, REFERENCE], ids=["binary", "python", "reference"])
def test_a_second_signal_ends_within_a_piece(program, data):
    """The library or PyTorch is working, so that Python runs no handler."""
    options = {**LONG, "B": 256, "val_every": 0}
    with Terminal([*program, f"--data={data}", "--out=", *words(**options)]) as terminal:
        terminal.wait_for("micro-step 1 of 1")
        terminal.send(signal.SIGINT)
        terminal.wait_for(f"stopping after this step{ANSWER}")
        terminal.send(signal.SIGINT)
        assert terminal.end() == 130
    assert "step 1/9 |" not in terminal.shown and "stopped" not in terminal.shown


BUSY = """
import hashlib, sys
from pyllmc.base.errors import begin_command, run_command
begin_command()
def work():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 1_000_000_000)  # minutes in C, which no handler interrupts
sys.exit(run_command("prog", work))
"""


@pytest.mark.parametrize(
    "first, second", [("SIGINT", "SIGINT"), ("SIGTERM", "SIGTERM"), ("SIGINT", "SIGTERM")]
)
def test_the_mechanism_of_every_command(first, second):
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "busy\n"
    process.send_signal(getattr(signal, first))
    assert process.stderr.readline() == "stopping; again to quit now\n"
    assert process.poll() is None
    process.send_signal(getattr(signal, second))
    assert process.wait(timeout=20) == 130
    assert process.communicate() == ("", "")


ENDING = """
import os, sys, time
from pyllmc.base.errors import begin_command, run_command
begin_command()
class Slow:
    def __del__(self, write=os.write, sleep=time.sleep):  # as the libraries' own ends are, after Python's handlers have gone
        write(1, b"ending\\n")
        sleep(1)
slow = Slow()
sys.exit(run_command("prog", lambda: {code}))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("code", [0, 130])
def test_a_signal_while_python_ends_changes_no_exit_code(code, number):
    process = subprocess.Popen(
        [sys.executable, "-c", ENDING.format(code=code)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ending\n"
    process.send_signal(number)
    assert process.wait(timeout=20) == code
    process.stdout.close()


LIBRARY = """
import signal
handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
import pyllmc
from pyllmc import sample, train
from pyllmc.base import signals
for event in pyllmc.Trainer(data="{data}", max_steps=1, model="gpt-nano", max_seq_len=16, T=7, B=2):
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert signal.set_wakeup_fd(-1) == -1
train.main(["--data={data}", "--out=", "--max_steps=1", "--model=gpt-nano", "--max_seq_len=16", "--T=7", "--B=2"])
assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
"""


def test_a_library_user_keeps_their_handlers(data):
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY.format(data=data)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@FRONT_ENDS
def test_a_terminal_that_closes_ends_a_run_with_a_checkpoint(program, data, tmp_path):
    """Its lines can go nowhere then."""
    out = tmp_path / "run"
    options = {**TINY, "max_steps": 100_000, "val_every": 0, "sample_every": 0, "checkpoint_every": 0}
    with Terminal([*program, f"--data={data}", f"--out={out}", *words(**options)]) as terminal:
        terminal.wait_for(r"step +5/")
        terminal.hang_up()
        assert terminal.process.wait(timeout=60) == 130
    assert (out / "last.ckpt").exists()


def test_the_maker_of_the_data_is_stopped_too(tmp_path):
    (tmp_path / "python3").write_text("#!/bin/sh\necho $$ > pid\nexec sleep 60\n")
    (tmp_path / "python3").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with Terminal(BINARY, cwd=tmp_path, env=path) as terminal:
        terminal.wait_for(r"making data/stories: \d+ s")
        start = time.time()
        terminal.send(signal.SIGTERM)
        assert terminal.end() == 130
        assert time.time() - start < 20
    assert ANSWER in terminal.shown
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    list(pyllmc.Trainer(data=data, out=out, **TINY, max_steps=4, val_every=2))
    return out


@pytest.fixture(scope="module")
def slow(run, tmp_path_factory) -> Path:
    """A model that takes a second for the texts after which pyllmc.grade sees that they are no stories."""
    small, path = pyllmc.Model(run), tmp_path_factory.mktemp("slow") / "model.ckpt"
    large = pyllmc.Model(pyllmc.GPTConfig(small.config.vocab_size, 256, 8, 8, 512), training=False)
    large.tokenizer_bytes = small.tokenizer_bytes
    large.save(path)
    return path


# a command that takes long, and its line meanwhile
COMMANDS = {
    "sample": (["-m", "pyllmc.sample", "{run}", "--count=1000000"], "a"),
    "grade": (["-m", "pyllmc.grade", "{slow}", "--count=1000000"], r"\rgrading: story \d+ of 1000000"),
    "stories": (
        ["-m", "pyllmc.stories", "--out={new}", "--stories=9000000"],
        r"\rmaking \S+: story \d+ of 9000000",
    ),
    "check": (
        ["-m", "pyllmc.check", "--model=gpt-nano", "--B=9", "--T=99"],
        r"\rPyTorch in float32 .* batch \d+ of",
    ),
    "reference": (
        ["train_gpt2.py", "--data={data}", *words(max_steps=99999, val_every=1, val_batches=0)],
        r"\rstep \d+: validation, batch \d+ of",
    ),
    "bench": (["dev/bench.py", "--rows=gemm", "--rounds=999"], r"\r  (starting|measuring): "),
    "prepro": (
        [
            "dev/prepro_tinystories.py",
            "--input",
            "{text}",
            "--tokenizer",
            "word",
            "--out",
            "{new}",
            "--workers",
            "1",
        ],
        "reading|encoding",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_that_it_lives_and_answers_the_first_signal(name, run, slow, data, tmp_path):
    arguments, shown = COMMANDS[name]
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat " * (2_000_000 if name == "prepro" else 1))
    places = {"run": run, "slow": slow, "data": data, "new": tmp_path / "new", "text": text}
    command = [sys.executable, *(a.format(**places) for a in arguments)]
    with Terminal(command) as terminal:
        terminal.wait_for(shown)
        terminal.send(signal.SIGINT)
        assert terminal.end() == 130
    assert terminal.shown.count(ANSWER) == 1, terminal.shown[-500:]
    assert "Traceback" not in terminal.shown
    assert not (tmp_path / "new").exists()
