"""What DiLoCo costs in validation loss, beside gradients that are summed in each step, after the same tokens.

    python dev/diloco.py                        on the demo's data
    python dev/diloco.py --text=input.txt       on a text as characters, whose last tenth validates

Each row is a training under torchrun on this machine, which differs from the others of its data in the number of processes and in
how these agree. B is that of a process, so more processes see more tokens in as many steps; the row of one process shows what they
gain. Prints a table in Markdown, and each row as soon as it is known. Exit status: 0, 1 a training failed, 2 usage.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pyllmc.base.values import at_least  # noqa: E402
from pyllmc.stories import telling  # noqa: E402
from pyllmc.text import dataset  # noqa: E402

MODEL = "--n_layer=2 --n_head=4 --n_embd=64 --max_seq_len=64 --B=8 --threads=1"
SHORT = "--diloco_lr=1 --diloco_momentum=0.5"  # for runs of few exchanges
WAYS = (
    "",
    "--diloco=20",
    f"--diloco=20 {SHORT}",
    f"--diloco=50 {SHORT}",
)  # "": gradients are summed in each step
QUIET = "--val_batches=0 --sample_every=0 --checkpoint_every=0 --log_every=1000000"


def train(data: Path, processes: int, words: list[str], folder: Path) -> dict[str, Any]:
    """The last validation of a run, and how long it took."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    program = [*(torchrun if processes > 1 else []), "-m", "pyllmc.train"]
    done = subprocess.run(
        [sys.executable, *program, f"--data={data}", f"--out={folder}", "--overwrite", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        raise SystemExit(f"diloco: a training failed:\n{done.stdout}{done.stderr}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    val = [line["val_loss"] for line in lines if "val_loss" in line]
    return {"val_loss": val[-1], "seconds": sum(line.get("ms", 0) for line in lines) * 1e-3}


def measure(data: Path, o: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for n, way in [(1, ""), *((n, way) for n in o.ranks for way in o.ways)]:
        words = f"{MODEL} {QUIET} --max_steps={o.steps} --val_every={o.steps} {way}".split()
        rows.append({"processes": n, "way": way, **train(data, n, words, folder / "run")})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each row: the loss, and how much of what more processes gain is there."""
    lines = ["| processes | exchange | val loss | of the gain |", "|---|---|---|---|"]
    alone = rows[0]["val_loss"]
    summed = {row["processes"]: row["val_loss"] for row in rows if not row["way"]}
    for row in rows:
        n, way, loss = row["processes"], row["way"], row["val_loss"]
        how = f"`{way}`" if way else "none" if n == 1 else "gradients, each step"
        gain = f"{(alone - loss) / (alone - summed[n]):.0%}" if way and n in summed else ""
        lines.append(f"| {n} | {how} | {loss:.4f} | {gain} |")
    return lines


def numbers(text: str) -> list[int]:
    return [at_least(1)(word) for word in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, help="a text instead of the demo's data, e.g. Tiny Shakespeare")
    parser.add_argument("--ranks", type=numbers, default=[2, 4], help="numbers of processes [2,4]")
    parser.add_argument("--ways", nargs="+", default=WAYS, help="options of each row; '' sums gradients")
    parser.add_argument("--steps", type=at_least(1), default=600, help="optimizer steps of each run [600]")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        if o.text:
            text = o.text.read_text(encoding="utf-8")
            dataset.write_dataset([text], data, tokenizer="char", val_fraction=0.1)
        else:
            telling.write_dataset(data)
        print("\n".join(table(measure(data, o, Path(folder)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
