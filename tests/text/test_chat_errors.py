"""A chat that goes wrong: bad arguments and files, a turn that cannot be, a signal in a pipe, an output that is full."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from test_chat import FRONT_ENDS, PROGRAMS, T, checkpoint, command, run
from test_tokenizer_c import EOT, file_bytes

from pyllmc import GPTConfig, Model


def bad_files(tmp_path: Path, checkpoint: Path) -> dict[str, Path]:
    data = checkpoint.read_bytes()
    files = {
        "cut": data[: len(data) // 2],
        "text": b"Once upon a time there was no model in this file, only words.",
        "small.bin": file_bytes([b"a", EOT]),
        "large.bin": file_bytes([bytes([i]) for i in range(256)]),
    }
    (tmp_path / "hollow").mkdir()
    (tmp_path / "between" / "replaced").mkdir(parents=True)  # after a kill
    (tmp_path / "between" / "replaced" / "last.ckpt").write_bytes(data)
    bare = Model(checkpoint, B=1, training=False)
    bare.tokenizer_bytes = b""
    (tmp_path / "alone").mkdir()
    bare.save(tmp_path / "alone" / "bare.ckpt")
    (tmp_path / "wide").mkdir()
    Model(GPTConfig(300, T, 1, 1, 8), B=1, training=False).save(tmp_path / "wide" / "wide.ckpt")
    (tmp_path / "wide" / "tokenizer.bin").write_bytes(files["small.bin"])
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return {path.name: path for path in tmp_path.iterdir()} | {
        "none": tmp_path / "none",
        "bare": tmp_path / "alone" / "bare.ckpt",
        "wide": tmp_path / "wide" / "wide.ckpt",
    }


BAD = [  # arguments, exit code, the words in the line
    (["{none}"], 5, "none"),
    (["{hollow}"], 5, "hollow"),
    (["{between}"], 5, "between/replaced: name that, or put it back with --resume="),
    (["{cut}"], 4, "cut"),
    (["{text}"], 4, "text"),
    (["{bare}"], 2, "carries no tokenizer"),
    (["{m}", "{none}"], 5, "none"),
    (["{m}", "{text}"], 4, "text"),
    (["{m}", "{hollow}"], 5, "hollow"),
    (["{m}", "{m}"], 4, "model"),
    (["{m}", "{large.bin}"], 2, "large.bin has 256 ids, the model V=9"),
    (["{large.bin}", "{m}"], 4, "m.ckpt is one: the model comes first"),
    (["{text}", "{large.bin}"], 4, "text: expected a header"),
    (["{wide}"], 2, "tokenizer.bin has 2 ids, the model V=300: it is another model's"),
    (["{wide}", "{large.bin}"], 2, "large.bin has 256 ids, the model V=300"),
    (["{m}", "{m}", "{m}"], 2, "is not an option"),
    ([], 2, "no model is named"),
    (["d12"], 2, "d12 is a size of model"),
    (
        ["{m}", "--prompt=" + 1024 * "a"],
        2,
        "longer than 1023 bytes: pipe the turn into standard input instead",
    ),
    (["{m}", "--user=" + 1024 * "a"], 2, "longer than 1023 bytes: shorten it"),
    (["{m}", "--lr=1"], 2, "unknown option --lr"),
    (["{m}", "--temperature=-1"], 2, "temperature"),
    (["{m}", "--prompt=x"], 2, "character 'x'"),
    (["{m}", "--prompt=a\udcff"], 2, "character '\\xff' (byte 255 at byte 1)"),
]


@FRONT_ENDS
@pytest.mark.parametrize(
    "arguments, code, says", BAD, ids=lambda x: " ".join(x) if isinstance(x, list) else None
)
def test_bad_input_is_one_clear_line(program, arguments, code, says, checkpoint, tmp_path):
    files = {**bad_files(tmp_path, checkpoint), "m": checkpoint}
    filled = [files[a[1:-1]] if a.startswith("{") else a for a in arguments]
    done = run(program, *filled)
    assert (done.returncode, done.stdout) == (code, b""), done.stderr
    assert done.stderr.count(b"\n") == 1 and says in done.stderr.decode()
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "model, options, code, remedy",
    [
        ("{m}", ["--device=emu"], 6, "not 'emu': run python -m pyllmc.chat --device=emu"),
        ("{hollow}", [], 5, "and python -m pyllmc.chat {hollow}, or converted"),
    ],
)
def test_a_chat_s_remedies_name_the_chat(checkpoint, tmp_path, model, options, code, remedy):
    files = {**bad_files(tmp_path, checkpoint), "m": checkpoint}
    done = run(PROGRAMS[0], model.format_map(files), *options)
    assert done.returncode == code and remedy.format_map(files) in done.stderr.decode()


@FRONT_ENDS
def test_a_standard_input_that_is_closed_is_told(program, checkpoint):
    closed = ["sh", "-c", 'exec "$@" <&-', "sh", *command(program, checkpoint)]
    done = subprocess.run(closed, capture_output=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (5, b"", 1)
    assert b"standard input" in done.stderr and b"leave it open, or make it /dev/null" in done.stderr


@FRONT_ENDS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_pipe_is_answered(program, number, checkpoint):
    command = [*program, str(checkpoint), "--sample_tokens=2"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdin.write(b"ab\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(number)
        assert process.wait(timeout=20) == 130
        assert process.stderr.read() == b"stopping; again to quit now\n"


@FRONT_ENDS
def test_a_turn_of_a_pipe_that_cannot_be_is_told_and_the_next_answered(program, checkpoint):
    done = run(program, checkpoint, "--sample_tokens=2", text="ab\nx\nab\n")
    assert done.returncode == 2 and done.stdout.count(b"ab") == 2
    assert done.stderr.count(b"\n") == 1 and b"character 'x'" in done.stderr


@FRONT_ENDS
def test_an_error_counts_the_bytes_of_the_turn_alone(program, checkpoint):
    """And what the template adds is refused before the first turn."""
    names = ["--template=chat", "--user=a", "--bot=b", "--system=", "--sample_tokens=2"]
    done = run(program, checkpoint, *names, text="abx\n")
    assert b"character 'x' (byte 120 at byte 2)" in done.stderr
    done = run(program, checkpoint, "--template=plain", text="ab\n")
    assert done.returncode == 2 and done.stdout == b""
    assert b"what stands around a turn cannot be said to this model: give another --template" in done.stderr


@pytest.mark.parametrize("name", ["chat_gpt2", "train_gpt2"])
@pytest.mark.parametrize("options", [["--max_steps=0", "--prompt=ab"], ["--help"]], ids=["write", "help"])
def test_what_could_not_be_written_is_not_done(name, options, checkpoint):
    options = [f"--model={checkpoint}", *options[name == "chat_gpt2" and len(options) > 1 :]]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command([str(ROOT / name)], *options), stdout=full, stderr=subprocess.PIPE, cwd=ROOT, timeout=60
        )
    assert done.returncode == 5 and done.stderr.count(b"\n") == 1
    assert b"standard output could not be written: No space left" in done.stderr
