"""The engine's own threads: whole loops, many callers, forks, systems that start no more threads, quotas,
sanitizers."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, lib

import pyllmc

ordinary = pytest.mark.skipif("PYLLMC_LIB" in os.environ, reason="uses the objects of the ordinary build")
X = np.arange(512).reshape(8, 64) % 50


def small_model(threads: int = 2, seed: int = 1) -> pyllmc.Model:
    return pyllmc.Model("gpt-nano", vocab_size=64, B=8, T=64, seed=seed, threads=threads)


def some_bits(threads: int = 2, seed: int = 1) -> bytes:
    m = small_model(threads, seed)
    m.micro_step(X, X)
    m.update(lr=1e-2)
    return m.params["qkvw"].tobytes()


# ---- without Python: tests/threads.c ----


def make(name: str, check: bool = True) -> Path | None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(["make", "-C", ROOT, f"build/{name}"], env=clean, check=check, capture_output=True)
    return ROOT / "build" / name if done.returncode == 0 else None


@pytest.fixture(scope="module")
def program() -> Path | None:
    return make("threads")


@ordinary
@pytest.mark.parametrize("what", ["pool", "model", "forks", "refused 0", "refused 2"])
def test_without_python(program, what):
    """Every iteration runs once; loops within loops, many callers, forks of busy processes, threads that do not
    start."""
    done = subprocess.run([program, *what.split()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


@ordinary
def test_no_races():
    """The threads under ThreadSanitizer, with ordinary objects of the engine (`make tsan` instruments those, too)."""
    # places memory where the sanitizer expects it
    runner = ["setarch", "-R"] if shutil.which("setarch") else []
    program = make("threads_tsan", check=False)
    if not program or subprocess.run([*runner, program, "cores", "/nowhere"], capture_output=True).returncode:
        pytest.skip("no ThreadSanitizer that runs here")
    env = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    for what in ("pool", "model"):  # no forks: the sanitizer allows no new thread in a child
        done = subprocess.run([*runner, program, what], env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr[:3000]


# ---- how many ----

PLAN = [ROOT / "train_gpt2", "--model=gpt-nano", "--vocab_size=1024", "--plan"]


def device_line(**how) -> str:
    done = subprocess.run([*PLAN, *how.pop("options", [])], capture_output=True, text=True, check=True, **how)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("device: "))
    return line


@ordinary
def test_a_real_quota():
    """A control group of this machine, if one may be made."""
    group = Path("/sys/fs/cgroup/cpu") / f"pyllmc-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        (group / "cpu.cfs_quota_us").write_text("50000")
        line = device_line(preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())))
    except OSError as error:
        pytest.skip(f"the control group takes no quota: {error}")
    finally:
        group.rmdir()
    assert line.endswith(", 1 thread")


@ordinary
def test_the_environment_limits_the_default_only(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = lib.llmc_default_threads()
    env, all_of_them = {**os.environ, "OMP_NUM_THREADS": "1"}, f", {cores} thread{'s' * (cores > 1)}"
    few = f", 1 thread of {cores} cores: OMP_NUM_THREADS is set" if cores > 1 else all_of_them
    assert device_line(env=env).endswith(few)
    assert device_line(env=env, options=[f"--threads={cores}"]).endswith(all_of_them)
    for unset in ("", "0", "no number", "999"):
        assert device_line(env={**env, "OMP_NUM_THREADS": unset}).endswith(all_of_them)


@pytest.fixture
def for_everybody(tmp_path_factory):
    """A copy of the program that another user can find."""
    folder = Path("/tmp") / f"pyllmc-threads-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o755)  # whatever the umask is
    yield shutil.copy(ROOT / "train_gpt2", folder)
    shutil.rmtree(folder)


needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="a limit on processes is none to root: needs setuid"
)


@ordinary
@needs_root
def test_a_limit_on_processes_is_told(for_everybody):
    """Another user, who may have one process, runs it: it works alone, and says why."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        os.setgid(54321)
        os.setuid(54321)

    options = ["--model=gpt-nano", "--vocab_size=1024", "--plan", "--threads=4"]
    done = subprocess.run(
        [for_everybody, *options], cwd="/", preexec_fn=limit, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert ", 1 thread of 4: the system starts no more (ulimit -u" in done.stdout
    assert "gomp" not in done.stdout + done.stderr


LIMITED = """
import os, resource, warnings
import numpy as np, pyllmc
x = np.arange(512).reshape(8, 64) % 50
make = lambda: pyllmc.Model("gpt-nano", vocab_size=64, B=8, T=64, seed=1, threads=3)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    m = make()
    loss = m.forward(x, x)
pid = os.fork()  # whose child has no threads yet
if pid == 0:
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    os.setuid(54322)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        m = make()
    print(m.threads, m.forward(x, x) == loss, *(w.message for w in said), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""


@needs_root
def test_a_limit_on_processes_warns_in_python():
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("1 True 1 threads of 3: the system starts no more (ulimit -u"), done.stdout


# ---- forks ----

FORKS = {
    "after computing": "run(); child()",
    "before computing": "child()",
    "from a thread": "run(); t = threading.Thread(target=child); t.start(); t.join()",
    "while another thread computes": (
        "run(); t = threading.Thread(target=lambda: [run() for _ in range(60)]); t.start()\nfor _ in range(10): child()\nt.join()"
    ),
    "in a child": "run(); child(lambda: child())",
    "multiprocessing": (
        "run(); pool = multiprocessing.get_context('fork').Pool(2); out = pool.map(run, range(6)); pool.close(); pool.join()\n"
        "assert out == [run()] * 6"
    ),
}
FORK = """
import multiprocessing, os, signal, sys, threading
import numpy as np, pyllmc
x = np.arange(512).reshape(8, 64) % 50

def run(_=0):
    return pyllmc.Model("gpt-nano", vocab_size=64, B=8, T=64, seed=1, threads=3).forward(x, x)

def child(inside=lambda: None):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        code = 1
        try:
            inside()
            code = int(abs(run() - 3.3586513996124268) > 1e-5)
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"status of a child: {status}"

"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", FORKS.values(), ids=FORKS)
def test_a_child_computes_too(how):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FORK + how], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]


# ---- in a process with others ----


def test_models_side_by_side():
    """Each model has a thread of its own, with helpers of its own: the bits are the same as alone."""
    expected = {seed: some_bits(1, seed) for seed in range(3)}
    wrong = []

    def work(seed: int) -> None:
        for threads in (2, 3, 1, 5):
            if some_bits(threads, seed) != expected[seed]:
                wrong.append((seed, threads))

    running = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for t in running:
        t.start()
    for t in running:
        t.join(60)
        assert not t.is_alive()
    assert not wrong


def threads_there() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
def test_threads_are_kept_and_no_more_are_made():
    some_bits(4)
    before = threads_there()
    for _ in range(10):
        some_bits(4)
        t = threading.Thread(target=some_bits, args=(4,))
        t.start()
        t.join()
    assert (
        threads_there() <= before + 3
    )  # one more team, if a thread began before the last one's loop was over


def test_idle_threads_sleep():
    """A thread without work soon leaves its core to others."""
    code = (
        "import time, numpy as np, pyllmc; x = np.arange(512).reshape(8, 64) % 50\n"
        "m = pyllmc.Model('gpt-nano', vocab_size=64, B=8, T=64, threads=2); m.forward(x, x); time.sleep(0.05)\n"
        "before = time.process_time(); time.sleep(0.5); print(time.process_time() - before)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.05


def test_openmp_is_torchs_alone():
    """The library brings no OpenMP; torch's number of threads stays torch's, ours stays ours."""
    files = [Path(os.environ.get("PYLLMC_LIB") or ROOT / "pyllmc/lib/libpyllmc.so"), ROOT / "train_gpt2"]
    for file in files:
        needed = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True).stdout
        assert "NEEDED" in needed
        assert not re.search(r"lib[gi]?omp", needed), file
    before = torch.get_num_threads()
    bits = some_bits(3)
    assert torch.get_num_threads() == before
    ours = small_model(0).threads
    try:
        torch.set_num_threads(1)
        assert small_model(0).threads == ours == lib.llmc_default_threads()
        assert some_bits(3) == bits
    finally:
        torch.set_num_threads(before)


def test_exit_while_a_thread_computes():
    code = (
        "import threading, time, numpy as np, pyllmc; x = np.arange(512).reshape(8, 64) % 50\n"
        "m = pyllmc.Model('gpt-nano', vocab_size=64, B=8, T=64, threads=3)\n"
        "def forever():\n    while True: m.forward(x, x)\n"
        "threading.Thread(target=forever, daemon=True).start(); time.sleep(0.3)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=30
        )
        assert (done.returncode, done.stderr) == (0, "")
