"""Every example runs from its first line to its last, as a notebook: its cells are the parts between `# %%`.

Jupytext turns the file into a notebook, as an editor does, and a kernel executes it. The sizes are small: what an example
learns is told by its own exam, in the docs.
"""

import jupytext
import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

SMALL = {
    "adder": "--trainer.max_iters=3",
    "chargpt": "--steps=6 --tokens=20",
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
