"""Shows that a run survives kills at any instant, and hours of training.

    python dev/soak.py kill --count 200      kill -9 at random instants, resume: the same bits as without a kill
    python dev/soak.py run --minutes 60      the demo with a checkpoint every 10 steps: memory, descriptors and threads
                                             are written to soak.jsonl, drawn in soak.png, and must not grow

Exit status: 0 held, 1 broken, 2 usage.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pyllmc.convert.to_bin import section  # noqa: E402
from pyllmc.engine import _ffi  # noqa: E402
from pyllmc.engine.checkpoint import CHECKSUM, OPTIONS, STATE, read_section  # noqa: E402
from pyllmc.text import bins  # noqa: E402

Sample = dict[str, float]

# ---- kill ----

SIZES = "--n_layer=2 --n_head=2 --n_embd=32 --max_seq_len=32 --vocab_size=64".split()
SCHEDULE = (
    "--B=4 --T=32 --max_steps=40 --checkpoint_every=2 --val_every=10 --sample_every=0 --threads=1".split()
)


def write_tokens(folder: Path) -> Path:
    """Writes a small data set: random tokens suffice."""
    draw = random.Random(1)
    for name, count in (("train_0", 3000), ("train_1", 2000), ("val", 500)):
        bins.write_shard(folder / f"{name}.bin", [draw.randrange(64) for _ in range(count)], vocab_size=64)
    return folder


def content(checkpoint: Path) -> bytes:
    """A checkpoint without the options, which name its path, and without the checksum."""
    options = read_section(_ffi.load(), checkpoint, OPTIONS)
    return checkpoint.read_bytes().replace(section(OPTIONS, options), b"", 1)[:-CHECKSUM]


def state(checkpoint: Path) -> str:
    """The lines that say where a checkpoint's run stands; step=N is the first."""
    return read_section(_ffi.load(), checkpoint, STATE).decode()


def metrics(run: Path) -> list[tuple[Any, ...]]:
    """The metrics that do not depend on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(x["step"], x.get("loss"), x.get("lr"), x.get("norm"), x.get("val_loss")) for x in lines]


def outcome(run: Path) -> tuple[Any, ...]:
    best = run / "best.ckpt"
    return content(run / "last.ckpt"), content(best) if best.exists() else b"", metrics(run)


def train(program: str, *options: str) -> None:
    done = subprocess.run([program, *options], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{program} {' '.join(options)}: status {done.returncode}: {done.stderr.strip()}")


def kill_once(fresh: list[str], run: Path, after: float) -> str:
    """Starts a run, kills it, and resumes it, or begins anew if it had saved nothing. Returns the outcome in two
    words."""
    process = subprocess.Popen(fresh, stdout=subprocess.DEVNULL)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.kill()
    ended = "done before" if process.wait() == 0 else "resumed"
    # the run that was being replaced counts, too: a resume puts it back if the new one had saved nothing
    there = [run / name for name in ("last.ckpt", "moving/last.ckpt", "replaced/last.ckpt")]
    if any(path.exists() for path in there):
        train(fresh[0], f"--resume={run}")
        return ended
    train(fresh[0], *fresh[1:])
    return "begun anew"


def kills(asked: argparse.Namespace) -> int:
    draw = random.Random(asked.seed)
    counts = {"resumed": 0, "begun anew": 0, "done before": 0}
    with tempfile.TemporaryDirectory() as tmp:
        run, data = Path(tmp) / "run", write_tokens(Path(tmp))
        fresh = [asked.program, f"--data={data}", f"--out={run}", "--overwrite", *SIZES, *SCHEDULE]
        begin = time.monotonic()
        train(fresh[0], *fresh[1:])
        usual = time.monotonic() - begin
        expected, equal = outcome(run), 0
        for k in range(asked.count):
            if k % 2:  # half of the runs have no older run to fall back on
                for path in sorted(run.rglob("*"), reverse=True):
                    path.rmdir() if path.is_dir() else path.unlink()
            counts[kill_once(fresh, run, draw.uniform(0, usual))] += 1
            equal += outcome(run) == expected
    parts = ", ".join(f"{count} {what}" for what, count in counts.items())
    print(
        f"kill -9 at {asked.count} random instants of a run ({parts}): {equal} of {asked.count} end in the same bits"
    )
    return int(equal != asked.count)


# ---- soak ----


def look(pid: int, run: Path, begin: float) -> Sample | None:
    """The memory, descriptors and threads of a process; None if it is gone."""
    try:
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        rss = int(status["VmRSS"].split()[0]) / 1024
    except (OSError, KeyError):
        return None
    return {
        "seconds": round(time.monotonic() - begin, 2),
        "rss_mb": round(rss, 3),
        "descriptors": descriptors,
        "threads": int(status["Threads"]),
        "step": last_step(run / "metrics.jsonl"),
    }


def last_step(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().splitlines()[:-1]  # the last one may be half a line
    return int(json.loads(lines[-1])["step"]) if len(lines) > 1 else 0


HELD = {"rss_mb": ("memory, MB", 1.0), "descriptors": ("descriptors", 0.0), "threads": ("threads", 0.0)}


def growth(samples: Sequence[Sample]) -> list[str]:
    """Finds growth: the median of the last quarter is compared with that of the second, because a run warms up in the
    first."""
    n = len(samples) // 4
    if not n:
        return ["nothing can be told from fewer than 4 samples"]
    found = []
    for name, (label, allowed) in HELD.items():
        early = statistics.median(x[name] for x in samples[n : 2 * n])
        late = statistics.median(x[name] for x in samples[-n:])
        if late > early + allowed:
            found.append(f"{label}: {early:g} grew to {late:g}")
    return found


def draw_soak(samples: Sequence[Sample], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(8, 6), layout="constrained")
    minutes = [x["seconds"] / 60 for x in samples]
    for axis, (name, (label, _)) in zip(axes, HELD.items()):
        values = [x[name] for x in samples]
        axis.plot(minutes, values, color="#1f6fb4", linewidth=1.2, drawstyle="steps-post")
        axis.set_ylim(0, 1.2 * max(values))
        axis.set_ylabel(label)
        axis.grid(True, alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.annotate(
            f"{values[-1]:.4g}", (minutes[-1], values[-1]), (4, 0), textcoords="offset points", va="center"
        )
    steps = int(samples[-1]["step"])
    axes[0].set_title(
        f"The demo for {minutes[-1]:.0f} minutes: {steps:,} steps, {steps // 10:,} checkpoints", loc="left"
    )
    axes[-1].set_xlabel("minutes")
    axes[-1].set_xlim(0, None)
    figure.savefig(path, dpi=110)


def watch(command: list[str], asked: argparse.Namespace, log: Path) -> tuple[list[Sample], str]:
    """Samples a run until its time is over, then stops it as Ctrl-C does. Returns the samples, and why it ended before,
    or ""."""
    begin, samples = time.monotonic(), []
    with log.open("w") as file, (asked.out / "output.txt").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            while process.poll() is None and time.monotonic() - begin < 60 * asked.minutes:
                time.sleep(asked.every)
                if sample := look(process.pid, asked.out / "run", begin):
                    samples.append(sample)
                    print(json.dumps(sample), file=file, flush=True)
        finally:
            early = process.poll()
            process.send_signal(signal.SIGINT)
            status = process.wait()
    if early is not None:
        return samples, f"the run ended by itself with status {early}: see {asked.out / 'output.txt'}"
    return samples, "" if status == 130 else f"the run ended with status {status} when it was interrupted"


def soak(asked: argparse.Namespace) -> int:
    asked.out.mkdir(parents=True, exist_ok=True)
    command = [*asked.program.split(), f"--out={asked.out / 'run'}", "--overwrite", "--checkpoint_every=10"]
    command += ["--max_steps=100000000", "--log_every=1000", *asked.options]
    samples, why = watch(command, asked, asked.out / "soak.jsonl")
    faults = [why] if why else growth(samples)
    if samples and not asked.no_plot:
        draw_soak(samples, asked.plot or asked.out / "soak.png")
    if samples:
        print(
            f"{len(samples)} samples in {samples[-1]['seconds'] / 60:.1f} minutes, {samples[-1]['step']:,} steps"
        )
    print("\n".join(faults) or "memory, descriptors and threads are flat")
    return int(bool(faults))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    kill = commands.add_parser("kill", help="kill -9 at random instants, and resume")
    kill.add_argument("--count", type=int, default=200, help="kills [200]")
    kill.add_argument("--seed", type=int, default=1, help="draws the instants [1]")
    kill.add_argument(
        "--program", default=str(ROOT / "train_gpt2"), help="the program to kill [./train_gpt2]"
    )
    run = commands.add_parser("run", help="the demo for an hour, with a checkpoint every 10 steps")
    run.add_argument("--minutes", type=float, default=60, help="how long [60]")
    run.add_argument("--every", type=float, default=5, help="seconds between two samples [5]")
    run.add_argument("--out", type=Path, default=ROOT / "runs/soak", help="folder for all files [runs/soak]")
    run.add_argument("--plot", type=Path, help="file for the picture [soak.png in that folder]")
    run.add_argument("--no_plot", action="store_true", help="draw nothing")
    run.add_argument(
        "--program", default=f"{sys.executable} -m pyllmc.train", help="[python -m pyllmc.train]"
    )
    run.add_argument(
        "options", nargs="*", metavar="OPTION", help="options of the run, after --: e.g. -- --B=1"
    )
    asked = parser.parse_args()
    return kills(asked) if asked.command == "kill" else soak(asked)


if __name__ == "__main__":
    sys.exit(main())
