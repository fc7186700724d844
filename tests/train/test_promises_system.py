"""The figures in docs/promises.md about the system: a clock that is set back, many and few open files, a second run, a long run."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys

import pytest
import soak
from conftest import ROOT, not_under_asan
from test_promises import SETTINGS, check_refused, data, finish, half, preload, start, whole  # noqa: F401, fixtures

# ---- clocks, descriptors, two at once ----

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
/* Every look at the wall clock finds it a day earlier. */
static time_t day(void) { static time_t now = 2000000000; return now -= 86400; }
time_t time(time_t *t) { const time_t now = day(); return t ? *t = now : now; }
int gettimeofday(struct timeval *restrict t, void *restrict zone) { (void)zone; t->tv_sec = day(), t->tv_usec = 0; return 0; }
int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    if (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE) return real(id, t);
    t->tv_sec = day(), t->tv_nsec = 0;
    return 0;
}
"""


def test_a_clock_that_is_set_back(data, whole, tmp_path):
    (tmp_path / "clock.c").write_text(CLOCK)
    command = ["cc", "-shared", "-fPIC", "-o", tmp_path / "clock.so", tmp_path / "clock.c", "-ldl"]
    subprocess.run(command, check=True)
    run = tmp_path / "run"
    done = start(f"--data={data}", f"--out={run}", *SETTINGS, env=preload(tmp_path / "clock.so"))
    assert done.returncode == 0, done.stderr
    assert soak.outcome(run) == soak.outcome(whole)
    for line in (run / "metrics.jsonl").read_text().splitlines():
        assert '"ms": -' not in line and '"tok_s": -' not in line, line


@not_under_asan
def test_two_runs_in_one_folder(data, whole, half, tmp_path):
    """The second is refused, the first goes on undisturbed."""
    run = shutil.copytree(half, tmp_path / "run")
    holder = "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(fd, fcntl.LOCK_EX)"
    first = subprocess.Popen(
        [sys.executable, "-c", f"{holder}; print(flush=True); input()", run],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdin and first.stdout
    first.stdout.readline()
    for options in (
        [f"--resume={run}", "--max_steps=4"],
        [f"--out={run}", "--overwrite", f"--data={data}", *SETTINGS],
    ):
        done = start(*options)
        assert done.returncode == 2
        assert "is in use by another run" in done.stderr
    first.communicate("\n")
    assert finish(run) == soak.outcome(whole)


@pytest.mark.parametrize(
    "program",
    [[ROOT / "train_gpt2"], [sys.executable, "-m", "pyllmc.train"], [sys.executable, ROOT / "train_gpt2.py"]],
    ids=["binary", "python", "reference"],
)
def test_two_first_runs_at_once(program, tmp_path):
    """Each makes the stories, because neither finds them; the one that comes second trains on the first one's."""
    brief = "--max_steps=1 --val_every=0 --B=1 --T=8 --n_layer=1 --n_embd=16 --n_head=1 --threads=1".split()
    folder = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True}
    if "train_gpt2.py" not in str(program[-1]):
        brief = [*brief, "--plan", "--out="]
    runs = [
        subprocess.Popen([*program, *brief], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **folder)
        for _ in range(2)
    ]
    made = 0
    for run in runs:
        out, err = run.communicate(timeout=120)
        assert run.returncode == 0 and "V=" in out, err
        assert err in ("", "making data/stories\n")
        made += err != ""
    assert made  # both, unless one began so late that the other was done
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["stories"]


MANY = 8192


def test_8192_descriptors(data, whole, tmp_path):
    """Inherited descriptors disturb nothing, because nothing selects by number."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit[1] != resource.RLIM_INFINITY and limit[1] < MANY + 100:
        pytest.skip("this system allows no so many")
    opened = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (MANY + 100, limit[1]))
    try:
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(MANY)]
        for fd in opened:
            os.set_inheritable(fd, True)
        done = start(f"--data={data}", f"--out={tmp_path / 'run'}", *SETTINGS, close_fds=False)
    finally:
        for fd in opened:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert done.returncode == 0, done.stderr
    assert soak.outcome(tmp_path / "run") == soak.outcome(whole)


@not_under_asan
def test_too_few_descriptors_are_one_line(data, whole, half, tmp_path):
    """Each limit is tried, from the first that loads the program to the first that suffices."""
    refused = 0
    for most in range(4, 30):
        run = shutil.copytree(half, tmp_path / f"run{most}")
        done = start(
            f"--resume={run}", "--max_steps=4",
            preexec_fn=lambda most=most: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)),
        )  # fmt: skip
        if done.returncode == 0:
            break
        check_refused(done, "Too many open files", "ulimit -n")
        refused += 1
        assert finish(run) == soak.outcome(whole), most
    assert refused > 1
    assert soak.outcome(run) == soak.outcome(whole)


def test_no_child_inherits_what_a_run_has_open(data, tmp_path):
    """A program that is started beside a run inherits neither its folder nor its metrics."""
    program = (
        "import os, subprocess, sys, pyllmc\n"
        "given = dict(option[2:].split('=') for option in sys.argv[3:])\n"
        "for event in pyllmc.Trainer(data=sys.argv[1], out=sys.argv[2], **given):\n"
        "    if event.kind == 'step' and event.step == 1:\n"
        "        subprocess.run(['ls', '-l', '/proc/self/fd'], close_fds=False)\n"
    )
    command = [sys.executable, "-c", program, data, tmp_path / "run", *SETTINGS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "/proc/" in done.stdout or "->" in done.stdout
    assert str(tmp_path) not in done.stdout
    assert str(data) not in done.stdout


# ---- the soak's judge ----


def samples(**series) -> list[soak.Sample]:
    flat = {"rss_mb": 100.0, "descriptors": 8, "threads": 4}
    return [{"seconds": i, "step": i, **flat, **{k: f(i) for k, f in series.items()}} for i in range(40)]


def test_growth_is_seen():
    assert soak.growth(samples()) == []
    assert soak.growth(samples(rss_mb=lambda i: 100 - 90 * (i < 10))) == []  # it warms up
    assert soak.growth(samples(descriptors=lambda i: 8 + i % 2)) == []  # a checkpoint is being written
    for leak in (
        {"rss_mb": lambda i: 100 + i / 4},
        {"descriptors": lambda i: 8 + i // 8},
        {"threads": lambda i: 4 + i // 8},
    ):
        assert len(soak.growth(samples(**leak))) == 1


def test_a_soak_of_seconds(data, tmp_path):
    options = [
        f"--data={data}",
        *soak.SIZES,
        "--B=2",
        "--T=16",
        "--val_every=0",
        "--sample_every=0",
        "--threads=1",
    ]
    asked = ["--minutes=0.05", "--every=0.2", f"--out={tmp_path}", "--", *options]
    done = subprocess.run(
        [sys.executable, ROOT / "dev/soak.py", "run", *asked], capture_output=True, text=True
    )
    assert "samples in" in done.stdout, done.stdout + done.stderr
    assert "ended" not in done.stdout, done.stdout
    assert len((tmp_path / "soak.jsonl").read_text().splitlines()) > 4
    assert (tmp_path / "soak.png").stat().st_size > 5000
