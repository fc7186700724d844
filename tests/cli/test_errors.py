"""The end of every Python command: one line and the engine's exit codes; Ctrl-C is quiet, at any moment."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, ffi

import pyllmc
from pyllmc.base import errors, files

STATUS = ffi.typeof("enum llmc_status").relements
COMMANDS = {
    "train": ["-m", "pyllmc.train", "--plan"],
    "sample": ["-m", "pyllmc.sample", "runs/none"],
    "chat": ["-m", "pyllmc.chat", "runs/none"],
    "grade": ["-m", "pyllmc.grade", "runs/none"],
    "check": ["-m", "pyllmc.check", "--B=1", "--T=4"],
    "plot": ["-m", "pyllmc.plot", "runs/none"],
    "plan": ["-m", "pyllmc.plan", "--step_ms=1"],
    "evaluate": ["-m", "pyllmc.evaluate", "runs/none", "--tasks=lambada"],
    "stories": ["-m", "pyllmc.stories", "--print=100000"],
    "tokenizer": ["-m", "pyllmc.tokenizer", "info", "runs/none"],
    "train_gpt2.py": ["train_gpt2.py", "--max_steps=0"],
    "prepro": ["-m", "pyllmc.prepro", "--input", "none.txt"],
    "bench": ["dev/bench.py", "--rows=none"],
}
PACKAGES = {
    "train": "cffi",
    "sample": "numpy",
    "chat": "cffi",
    "grade": "cffi",
    "evaluate": "cffi",
    "check": "torch",
    "plan": "cffi",
    "train_gpt2.py": "torch",
    "bench": "numpy",
}


def run(command: list[str], path: str | Path = "", **kwargs) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", **kwargs.pop("env", {})}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        **kwargs,
    )


@pytest.mark.parametrize("name", [name for name in STATUS if name != "LLMC_OK"])
def test_the_codes_are_those_of_the_c_program(name):
    """1 - status, as in csrc/programs/program.h."""
    error = errors.ERRORS[STATUS[name]]("x")
    assert errors.exit_code(error) == 1 - STATUS[name]
    assert "1 - status" in (ROOT / "csrc/programs/program.h").read_text()


def test_the_codes_are_told_in_the_same_words():
    """The same words stand in --help of the C program, of the Python commands, and in docs/run.md."""
    words = errors.EXIT_CODES.replace("\n", " ")
    for path in ("csrc/options/optiontext.c", "docs/run.md"):
        text = re.sub(r'"\s*"', "", (ROOT / path).read_text())  # a text may go on in the next line
        text = re.sub(r"\s+", " ", text)
        assert words.replace("exit status: ", "") in text, path
    numbers = {int(n) for n in re.findall(r"\d+", words)}
    assert numbers == {0, errors.INTERRUPTED, *(end.code for end in errors.ENDINGS)}


@pytest.mark.parametrize(
    "error, code",
    [
        (errors.DataError("x"), 2),
        (errors.BadFile("x"), 4),
        (errors.SystemFailure("x"), 5),
        (errors.MissingDependency("x"), 6),
        (MemoryError(), 3),
        (FileNotFoundError(2, "No such file", "x"), 5),
        (ValueError("x"), 2),
    ],
)
def test_an_error_is_one_line_and_its_code(error, code, capsys):
    def work():
        raise error

    assert errors.run_command("prog", work) == code
    line = capsys.readouterr().err
    assert line.startswith("prog: ") and line.count("\n") == 1 and len(line) > len("prog: \n")
    if isinstance(error, errors.DataError):
        assert isinstance(error, pyllmc.LlmcError)


def test_a_mistake_in_the_program_is_not_hidden():
    with pytest.raises(KeyError):
        errors.run_command("prog", lambda: {}["x"])


@pytest.mark.parametrize(
    "n, what, told",
    [
        (1, "layer", "1 layer"),
        (0, "layer", "0 layers"),
        (1024, "step", "1,024 steps"),
        (1, "process", "1 process"),
        (2, "process", "2 processes"),
    ],
)
def test_a_number_with_its_noun(n, what, told):
    assert errors.counted(n, what) == told


def test_a_file_error_is_not_explained_twice():
    with pytest.raises(errors.SystemFailure) as caught, files.writing("outer"), files.writing("inner"):
        raise OSError(errno.ENOSPC, "No space left")
    assert (
        str(caught.value)
        == "cannot write inner: No space left; free some space or choose another output place"
    )


def test_what_killed_processes_have_left_is_swept(tmp_path):
    """Remains beside a file and beside a folder are removed; those of living processes, and files with other names,
    stay."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    dead, alive = ended.pid, os.getppid()
    for name in ("x.bin", ".d"):
        for pid in (dead, alive, "mine"):
            (tmp_path / f"{name}.tmp-{pid}").write_text("")
    (tmp_path / f"y.bin.tmp-{dead}").write_text("")
    (tmp_path / f".d.tmp-{dead}.old").mkdir()  # the last copy
    with files.atomic_path(str(tmp_path / "x.bin")) as path:
        Path(path).write_text("")
    with files.atomic_directory(str(tmp_path / "d"), lambda: None):
        pass
    kept = {f"{name}.tmp-{pid}" for name in ("x.bin", ".d") for pid in (alive, "mine")}
    kept |= {"x.bin", "d", f"y.bin.tmp-{dead}", f".d.tmp-{dead}.old"}
    assert set(os.listdir(tmp_path)) == kept
    with files.atomic_directory(str(tmp_path / "d"), lambda: None):
        pass
    assert set(os.listdir(tmp_path)) == kept - {f".d.tmp-{dead}.old"}


def test_ctrl_c_during_the_work_is_quiet(capsys):
    def work():
        raise KeyboardInterrupt

    assert errors.run_command("prog", work) == 130
    assert capsys.readouterr() == ("", "")


SIGTERM = """
import os, signal, sys, time
from pyllmc.base.errors import begin_command, run_command
def work():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    except KeyboardInterrupt:
        print("one answer ends, the chat goes on")
    finally:
        print("tidied")
begin_command()
sys.exit(run_command("prog", work))
"""


def test_sigterm_tidies_up_and_ends():
    done = run(["-c", SIGTERM])
    assert (done.returncode, done.stdout) == (130, "tidied\n")
    assert done.stderr == "stopping; again to quit now\n"


def program_of(command: list[str]) -> str:
    return command[1] if command[0] == "-m" else os.path.basename(command[0])


@pytest.mark.parametrize("name", PACKAGES)
def test_ctrl_c_while_the_libraries_load_is_quiet(name, tmp_path):
    """A package sends Ctrl-C when it is imported."""
    for package in ("numpy", "torch"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(
            "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n"
        )
    done = run(COMMANDS[name], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "{}":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import importlib.util as u
real = u.find_spec
u.find_spec = lambda name, *a: None if name == "{}" else real(name, *a)
"""


@pytest.mark.parametrize("name", PACKAGES)
def test_without_a_package_it_is_one_line(name, tmp_path):
    package = PACKAGES[name]
    (tmp_path / "sitecustomize.py").write_text(BLOCK.format(package, package))
    done = run(COMMANDS[name], tmp_path)
    assert done.returncode == 6, done.stderr
    remedy = f"pip install {package}, or make setup and use .venv/bin/python"
    assert done.stderr == f"{program_of(COMMANDS[name])}: {package} is not installed: {remedy}\n"


def test_outside_a_checkout_make_is_not_named(monkeypatch, tmp_path):
    monkeypatch.setattr(errors.checkout, "PACKAGE", tmp_path / "pyllmc")
    assert errors.how_to_install("numpy") == "pip install numpy"


OLD = """
import runpy, sys
sys.version_info = (3, 8, 18, "final", 0)
sys.argv = sys.argv[1:]
if sys.argv[0] == "-m":
    runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "check"])
def test_an_old_python_is_one_line_and_2(name):
    done = run(["-c", OLD, *COMMANDS[name]])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pyllmc needs Python >= 3.9, this is 3.8: ")
    assert done.stderr.count("\n") == 1


def test_the_oldest_python_is_the_same_everywhere():
    (oldest,) = re.findall(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    for path in ("pyllmc/__init__.py", "Makefile", "README.md"):
        assert f"Python >= {oldest}" in (ROOT / path).read_text(), path


def test_an_old_python_can_read_the_file_that_refuses_it():
    """Before Python 3.7 the __future__ has no annotations."""
    tree = ast.parse((ROOT / "pyllmc/__init__.py").read_text(), feature_version=(3, 6))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "__future__" not in modules


def test_a_library_that_is_not_built_is_one_line():
    code = "from pyllmc.base import errors; from pyllmc.engine import _ffi; import sys; sys.exit(errors.run_command('x', _ffi.load))"
    for path, says in (
        ("none.so", "none.so is not built: run `make`"),
        ("Makefile", "Makefile cannot be loaded"),
    ):
        done = run(["-c", code], env={"PYLLMC_LIB": path})
        assert done.returncode == 6
        assert says in done.stderr and done.stderr.count("\n") == 1 and len(done.stderr) < 150


@pytest.mark.parametrize("name", ["sample", "chat", "grade", "plot", "tokenizer", "prepro"])
def test_a_missing_file_is_one_line_and_5(name):
    done = run(COMMANDS[name])
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith(program_of(COMMANDS[name]) + ": ") and done.stderr.count("\n") == 1
    assert re.search(r"give|check|name|expected", done.stderr), "names no remedy"


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_one_line_and_2(name):
    done = run([*COMMANDS[name], "--seeed=3"])
    assert done.returncode == 2, done.stderr
    assert "unknown option --seeed" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "name, option", [("sample", "--count=0"), ("grade", "--count=-1"), ("sample", "--count=x")]
)
def test_a_count_that_cannot_be_is_one_line_and_2(name, option):
    done = run([*COMMANDS[name], option])
    assert done.returncode == 2, done.stderr
    assert "is not a whole number of at least" in done.stderr and done.stderr.count("\n") == 1


def test_a_reader_that_leaves_is_no_error():
    process = subprocess.Popen(
        [sys.executable, *COMMANDS["stories"]],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    process.stdout.read(1000)
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_output_is_one_line_and_5():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pyllmc.tokenizer", "encode", "byte", "a"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    says = "standard output: No space left on device: free some space or write elsewhere"
    assert (done.returncode, done.stderr) == (5, f"pyllmc.tokenizer: {says}\n")


TELL = """
import os
from pyllmc.base import errors
begin = errors.begin_command
def begin_and_tell(*packages):
    begin(*packages)
    os.write({}, b"!")
errors.begin_command = begin_and_tell
"""


@pytest.mark.parametrize("name", ["stories", "check"])
def test_ctrl_c_at_some_moments_is_quiet(name, tmp_path):
    """The moments reach from the first line of the program, which tells it through a pipe, to its end."""
    for delay in (0.0, 0.2, 0.7, 1.5):
        told, tell = os.pipe()
        (tmp_path / "sitecustomize.py").write_text(TELL.format(tell))
        process = subprocess.Popen(
            [sys.executable, *COMMANDS[name]],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
            pass_fds=[tell],
        )
        os.close(tell)
        assert os.read(told, 1) == b"!"
        os.close(told)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode in (0, 130, -signal.SIGINT), error  # a shell sees the last one as 130
        assert error in (b"", b"stopping; again to quit now\n")


CLOSED = {
    "c": ["./train_gpt2", "--help"],
    "list": [sys.executable, "-m", "pyllmc"],
    "stories": [sys.executable, "-m", "pyllmc.stories", "--print=1"],
    "encode": [sys.executable, "-m", "pyllmc.tokenizer", "encode", "byte", "a"],
}


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize(
    "streams, code", [(">&-", 5), ("2>&-", 0), ("<&-", 0), ("<&- >&- 2>&-", 5), ("2>/dev/full", 0)]
)
def test_a_stream_that_is_closed(name, streams, code):
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {streams}', "sh", *CLOSED[name]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    told = done.stderr.splitlines()
    assert len(told) == (streams == ">&-") and all("standard" in line for line in told), told


def test_no_file_takes_the_number_of_a_stream_that_is_closed(tmp_path):
    """Messages would be written into that file."""
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 200)
    data, out = tmp_path / "data", tmp_path / "run"
    prepro = [sys.executable, "-m", "pyllmc.prepro", f"--input={text}", "--tokenizer=char", f"--out={data}"]
    size = [f"--data={data}", f"--out={out}", "--model=gpt-nano", "--n_layer=1", "--T=8", "--max_steps=2"]
    for command in (
        prepro,
        ["./train_gpt2", *size],
        [sys.executable, "-m", "pyllmc.train", *size, "--overwrite"],
    ):
        done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], cwd=ROOT, timeout=60)
        assert done.returncode in (0, 5)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 2]


def test_the_commands_are_listed():
    """Each is listed with its docstring, so every module that ends as a command is one of them."""
    done = run(["-m", "pyllmc"])
    assert (done.returncode, done.stderr) == (0, "")
    listed = re.findall(r"^  python -m (pyllmc\.\w+).*  \S.*$", done.stdout, re.M)
    commands = {command[1] for command in COMMANDS.values() if command[0] == "-m"}
    assert len(listed) == len(set(listed)) and set(listed) == {*commands, "pyllmc.convert"}
    assert "own texts and questions\n" in done.stdout, "a description of two lines is whole"
    assert re.search(r"pyllmc\.stories +makes the training data\n", done.stdout), (
        "one of several uses stands alone"
    )
    done = run(["-m", "pyllmc", "train"])
    assert done.returncode == 2 and done.stderr.count("\n") == 1
