"""Every example runs from its first line to its last, as a notebook: its cells are the parts between `# %%`.

Jupytext turns the file into a notebook, as an editor does, and a kernel executes it. The sizes are small: what an example
learns is told by its own exam, in the docs.
"""

import json
import os
import re
import runpy
import signal
import subprocess
import sys

import jupytext
import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

SMALL = {
    "adder": "--trainer.max_iters=3",
    "chargpt": "--steps=2 --tokens=20",
    "finetune_chat": "--steps=4 --model=gpt-nano",
    "image": "--steps=3 --each=1",
    "priming": "--documents=400 --steps=3 --questions=4 --out=.",
    "sort": "--trainer.max_iters=3",
}
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def test_each_example_has_a_small_size():
    assert EXAMPLES == sorted(SMALL)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_as_a_notebook(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = jupytext.read(ROOT / "examples" / f"{name}.py")
    command = [f"{name}.py", *SMALL[name].split()]
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"import sys; sys.argv = {command!r}"))
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", ()))
    assert printed.strip(), "the exam prints its result"
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


# ---- at the command line


def started(name: str, words: list[str], folder, **how) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=env, text=True, **pipes, **how)


# One example for each kind of training loop: minGPT's and the engine's.
LONG = {"adder": "--trainer.max_iters=100000", "chargpt": "--steps=100000"}
ON_CTRL_C = "signal.signal(signal.SIGINT, lambda *_: sys.exit(130))"


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_takes_ctrl_c_before_it_imports_what_takes_long(name):
    text = (ROOT / "examples" / f"{name}.py").read_text()
    first = re.split(r"^(?:import|from) (?:matplotlib|numpy|torch|sklearn|pyllmc)", text, flags=re.M)[0]
    assert ON_CTRL_C in first and len(first) < len(text)
    assert text.count("signal.signal(") == 1, "nothing takes it back"


@pytest.mark.parametrize("name", LONG)
def test_ctrl_c_is_no_traceback(name, tmp_path):
    """In the midst of the training."""
    process = started(name, LONG[name].split(), tmp_path)
    try:
        for line in process.stdout:
            if "loss" in line:
                break
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in told and "KeyboardInterrupt" not in told, told


def test_ctrl_c_amid_the_imports_is_no_traceback(tmp_path):
    process = started("adder", [], tmp_path)
    while "libtorch" not in open(f"/proc/{process.pid}/maps").read():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 130


@pytest.fixture
def ended(tmp_path, monkeypatch, capsys):
    """Runs an example here until it ends itself: what it prints, and what it says at its end."""

    def run(name: str, *words: str) -> tuple[str, str]:
        path = str(ROOT / "examples" / f"{name}.py")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [path, *words])
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # Ctrl-C stays this process's
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # and so do its errors
        with pytest.raises(SystemExit) as end:
            try:
                runpy.run_path(path, run_name="__main__")
            except Exception:
                sys.excepthook(*sys.exc_info())  # an example's own says it in a line, and exits
        assert end.value.code
        printed, told = capsys.readouterr()
        return printed, told + (end.value.code if isinstance(end.value.code, str) else "")

    return run


DRAWS = ("adder", "chargpt", "finetune_chat", "image", "sort")  # priming makes the folder of its picture
NO_FOLDER = ("there is no such folder: make it first", "no is no folder: make it, or choose another place")
WRONG = [  # each is told before the training
    *((f"{name} --out=no/such.png", NO_FOLDER) for name in DRAWS),
    *((f"{name} --out=a.xyz", "a.xyz: a picture ends with") for name in DRAWS),
    ("adder --out=5", "--out=5: a picture ends with"),
    ("adder --digits=0", "--digits=0 is no whole number in 1..3"),
    ("adder --digits=x", "--digits=x is no whole number"),
    ("adder --trainer.max_iters=0", "--trainer.max_iters=0 is no whole number"),
    ("adder --model.model_type=gpt9", "gpt9"),
    ("sort --length=0", "--length=0 is no whole number in 2..12"),
    ("sort --trainer.batch_size=0", "--trainer.batch_size=0 is no whole number"),
    *((f"{name} --trainer.learning_rate=x", "learning_rate=x is no number") for name in ("adder", "sort")),
    *(
        (f"{name} --trainer.num_workers=-1", "num_workers=-1 is no whole number")
        for name in ("adder", "sort")
    ),
    ("adder --trainer.betas=0.9", "betas=0.9 is not two numbers"),
    ("sort --trainer.device=cuda", "pyllmc.nn.GPT computes on the CPU"),
    ("priming --out=/proc/x", "/proc/x: No such file"),
    ("finetune_chat --model=nope", "model 'nope' is neither"),
    ("finetune_chat --lr=-1", "--lr=-1.0 is not in"),
    ("chargpt --text=short.txt", "use more data or a smaller T"),
]


@pytest.mark.parametrize("call, why", WRONG, ids=[call for call, _ in WRONG])
def test_a_wrong_setting_is_one_line(tmp_path, ended, call, why):
    (tmp_path / "short.txt").write_text("a word or two\n" * 60)
    name, *words = call.split()
    printed, told = ended(name, *words)
    assert "loss" not in printed
    assert told.startswith(f"{name}.py: ") and "\n" not in told.rstrip("\n"), told
    assert any(words in told for words in ([why] if isinstance(why, str) else why)), told


@pytest.mark.parametrize("name", ["adder", "sort"])
def test_a_folder_that_takes_no_picture_is_told_before_the_training(ended, monkeypatch, name):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "nothing can be written in that folder" in ended(name)[1]


def test_a_picture_that_cannot_be_drawn_is_an_error(tmp_path):
    (tmp_path / "taken.png").mkdir()
    process = started("finetune_chat", ["--steps=2", "--model=gpt-nano", "--out=taken.png"], tmp_path)
    _, told = process.communicate(timeout=120)
    assert process.returncode and told.endswith("the picture could not be drawn: see above\n")


def test_the_exam_of_own_pairs_asks_them(tmp_path):
    """Every tenth, which the training does not see."""
    pairs = [{"prompt": f"Say {i}.", "completion": f"It is {i}."} for i in range(40)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    process = started("finetune_chat", ["--steps=3", "--model=gpt-nano", "--pairs=mine.jsonl"], tmp_path)
    printed, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert [line.rstrip() for line in printed.splitlines() if line.startswith("> ")] == [
        "> Say 9.",
        "> Say 19.",
        "> Say 29.",
    ]
    assert "right of 4 questions in words not seen" in printed and "Mia" not in printed
    learnt = [
        json.loads(line) for line in (tmp_path / "runs/finetune_chat/train.jsonl").read_text().splitlines()
    ]
    assert learnt == [pair for i, pair in enumerate(pairs) if i % 10 != 9]


def test_a_run_of_no_step_is_refused(ended):
    assert (
        "argument --steps: '0' is not a whole number of at least 1" in ended("finetune_chat", "--steps=0")[1]
    )


@pytest.mark.parametrize(
    "content, why", [("{", "Expecting"), ('{"prompt": "a"}', "no fields of a prompt"), (None, "No such file")]
)
def test_own_pairs_that_are_wrong_are_one_line(tmp_path, ended, content, why):
    if content is not None:
        (tmp_path / "mine.jsonl").write_text(content)
    _, told = ended("finetune_chat", "--pairs=mine.jsonl")
    assert "finetune_chat.py: error: --pairs=mine.jsonl: " in told and why in told
