"""The command under torchrun: its lines and files, and what it does when a process is lost, stopped or wrong."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import several
from test_together import QUIET, SMALL
from test_trainer import TINY, content, data, metrics, without_times

import pyllmc
from pyllmc.text import bins

LONG = {**SMALL, "max_steps": 400, "checkpoint_every": 20, "timeout": 10}


def moments(run: Path) -> bytes:
    """The bytes of a checkpoint from its moments on, which follow from all that went before, without the last checksum."""
    content = (run / "last.ckpt").read_bytes()
    return content[content.rindex(b"MOMENTS ") : -20]


def lines_without_times(lines: list[str]) -> list[str]:
    return [re.sub(r" \| [\d.]+ ms .*", "", line) for line in lines if line.startswith(("step", "sample"))]


def test_the_lines_and_files_are_those_of_one_process(data, tmp_path):
    """Rank 0 alone prints and writes. The checkpoint is one file, which one process resumes, and so do two."""
    options = {**SMALL, "data": data, "max_steps": 8, "val_every": 4, "sample_every": 8, "sample_tokens": 5}
    code, lines = several.train(2, **options, out=tmp_path / "two", zero=1)
    assert code == 0, lines
    alone = list(pyllmc.Trainer(**{**options, "grad_accum": 2, "out": tmp_path / "one"}))
    for name in ("config.txt", "metrics.jsonl", "last.ckpt", "best.ckpt"):
        assert (tmp_path / "two" / name).exists()
    assert {p.name for p in (tmp_path / "two").iterdir()} <= {
        *(p.name for p in (tmp_path / "one").iterdir()),
        "loss.png",
    }
    steps = [line for line in lines if line.startswith("step")]
    assert len(steps) == len(
        [event for event in alone if event.kind != "plan" and event.text and event.kind != "sample"]
    )
    assert all(" | batch 28" in line for line in steps if "loss" in line and "val" not in line)
    assert len([line for line in lines if line.startswith("sample")]) == 1
    plan = "\n".join(lines)
    assert "processes: 2, 2 of them on this machine; a step takes 4 windows, 28 tokens" in plan
    assert "each process: memory plan" in plan and "the moments are shared out" in plan
    shutil.copytree(tmp_path / "two", tmp_path / "again")
    list(pyllmc.Trainer(resume=tmp_path / "again", max_steps=10, grad_accum=2))
    code, lines = several.train(2, resume=tmp_path / "two", max_steps=10, zero=0)
    assert code == 0, lines
    for one, two in zip(metrics(tmp_path / "again"), metrics(tmp_path / "two")):
        assert one.get("loss", 1) == pytest.approx(two.get("loss", 1), rel=1e-6)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    code, lines = several.train(2, **LONG, data=data, out=run)
    assert code == 0, lines
    return run


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_and_a_restart_give_the_same_bits(data, tmp_path, undisturbed, rank):
    """torchrun starts the processes anew, and --resume=auto goes on. This also tells if torch's restarts change: with torchrun's
    own store they failed until each attempt got keys of its own (pytorch issues 135712, 167288)."""
    out = tmp_path / "run"
    run = several.Run(2, "--max-restarts=1", **LONG, data=data, out=out, resume="auto")
    run.wait_for(r"step +60/")
    run.send(rank, signal.SIGKILL)
    assert run.end() == 0, run.lines
    assert any(line.startswith("resume: ") for line in run.lines), run.lines
    assert moments(out) == moments(undisturbed)
    assert without_times(metrics(out)) == without_times(metrics(undisturbed))


def test_a_slow_process_is_waited_for_and_one_that_hangs_is_named(data, tmp_path):
    run = several.Run(2, **{**LONG, "max_steps": 100000, "timeout": 5}, data=data, out=tmp_path / "run")
    run.wait_for(r"step +40/")
    slow = run.send(1, signal.SIGSTOP)
    time.sleep(2)
    before = len(run.lines)
    os.kill(slow, signal.SIGCONT)
    run.wait_for(rf"step +{int(run.lines[before - 1].split('/')[0].split()[1]) + 100}/")
    assert not [line for line in run.lines if line.startswith("pyllmc.train: ")], run.lines
    hanging = run.send(1, signal.SIGSTOP)
    began = time.monotonic()
    try:
        run.wait_for("^pyllmc.train: ")
        assert time.monotonic() - began < 15, run.lines
    finally:
        os.kill(hanging, signal.SIGKILL)
    assert run.end() != 0
    line = next(line for line in run.told if line.startswith("pyllmc.train: "))
    assert "rank 1 of 2 does not answer" in line
    assert (tmp_path / "run/last.ckpt").exists()


def test_both_sides_of_a_cut_network_end_with_a_line():
    """dev/faults.py makes the network, and cuts it."""
    command = [sys.executable, str(several.ROOT / "dev/faults.py"), "cut", "--short"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=several.LIMIT)
    if done.returncode == 6:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr


def test_sigterm_saves_a_checkpoint(data, tmp_path):
    """torchrun hands SIGTERM on, as a machine that is being taken away gets it."""
    run = several.Run(
        2, **{**LONG, "max_steps": 100000, "checkpoint_every": 0}, data=data, out=tmp_path / "run"
    )
    run.wait_for(r"step +40/")
    run.process.send_signal(signal.SIGTERM)
    run.end()
    assert any("last.ckpt; stopped" in line for line in run.lines), run.lines
    assert pyllmc.Model(tmp_path / "run/last.ckpt", B=1, T=4)


def only_line(code: int, lines: list[str]) -> str:
    assert code != 0
    mine = [line for line in lines if line.startswith("pyllmc.train: ")]
    assert len(mine) == 1, lines
    return mine[0]


def test_a_full_disk_on_rank_0_ends_all_with_one_line(data, tmp_path):
    """Rank 0 still takes the moments that the other sends."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    run = several.Run(2, before=limit, **{**SMALL, "max_steps": 5}, data=data, out=tmp_path / "run", zero=1)
    line = only_line(run.end(), run.told)
    assert "last.ckpt cannot be written: File too large" in line
    assert not (tmp_path / "run/last.ckpt").exists() and not list((tmp_path / "run").glob("*.tmp"))


def by_rank(tmp_path: Path, ranked: str) -> list[str]:
    """A program that runs pyllmc.train after a line of its own, for torchrun instead of -m pyllmc.train."""
    program = tmp_path / "program.py"
    program.write_text(
        f"import os, sys\nrank = os.environ['RANK']\n{ranked}\nfrom pyllmc.train import main\nsys.exit(main())\n"
    )
    return [str(program)]


def start_by_rank(tmp_path: Path, ranked: str, *arguments: str) -> tuple[int, list[str]]:
    command = [*several.STANDALONE, "--nproc_per_node=2", *by_rank(tmp_path, ranked), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=several.environment(), timeout=300)
    return done.returncode, several.told(done.stdout + done.stderr)


@pytest.mark.parametrize(
    "work, expected",
    [("time.sleep(60)", "rank 0 of 2 is still at work, for 4 s now: raise --timeout"), ("os._exit(0)", "rank 0 of 2 does not answer")],
)  # fmt: skip
def test_a_process_that_is_slow_or_lost_in_preparation_is_named(data, tmp_path, work, expected):
    """Rank 0 works first, as when it reads weights of another format. torchrun would end the other one after any exit code but 0."""
    ranked = (
        f"import time, pyllmc.trainer\nif rank == '0': pyllmc.trainer.adopt_model = lambda options: {work}"
    )
    given = several.words({**SMALL, "out": "", "timeout": 5})
    assert expected in only_line(*start_by_rank(tmp_path, ranked, f"--data={data}", *given))


BY_PATH = "sys.argv[1] += 'ab'[int(rank)]"
LIBRARY = Path(os.environ.get("PYLLMC_LIB") or several.ROOT / "pyllmc/lib/libpyllmc.so")
OTHER_VERSION = "if rank == '1': os.environ['PYLLMC_LIB'] = os.path.dirname(__file__) + '/other.so'"


def write_other_version(path: Path) -> None:
    """The engine's library, but it says that it is of another version."""
    was, other = (f"\0{number}\0".encode() for number in (pyllmc.__version__, "9" + pyllmc.__version__[1:]))
    library = LIBRARY.read_bytes()
    assert library.count(was) == 1
    path.write_bytes(library.replace(was, other))


@pytest.mark.parametrize(
    "ranked, expected",
    [
        (BY_PATH, "rank 1 has other data than rank 0"),
        ("sys.argv.append('--lr=0.00' + rank)", "rank 1 has other options than rank 0"),
        ("if rank == '1': os.environ['PYLLMC_ISA'] = 'reference'", "rank 1 has kernels of another instruction set"),
        ("if rank == '1': sys.argv[1] += 'nowhere'", "rank 1: "),
        (OTHER_VERSION, "rank 1 has another version of pyllmc than rank 0"),
    ],
)  # fmt: skip
def test_a_process_that_differs_is_named(data, tmp_path, ranked, expected):
    """Each option is right by itself, so nobody would see that the processes train on different things."""
    for name in "ab":
        shutil.copytree(data, tmp_path / name)
    for shard in (tmp_path / "b").glob("train*.bin"):
        content = shard.read_bytes()
        shard.write_bytes(
            content[:1024] + content[1026:] + content[1024:1026]
        )  # every token is one place further on
    if ranked == OTHER_VERSION:
        write_other_version(tmp_path / "other.so")
    where = f"--data={tmp_path}/" if ranked == BY_PATH else f"--data={data}"
    line = only_line(*start_by_rank(tmp_path, ranked, where, *several.words({**SMALL, "out": ""})))
    assert expected in line


@pytest.mark.parametrize("changed", [False, True])
def test_weights_are_compared_by_all_their_numbers_and_not_by_their_path(data, tmp_path, changed):
    """The same data and weights under other names are the same; one number amid the weights makes them others."""
    trained = {**TINY, "data": data, "max_steps": 1, **QUIET}
    list(pyllmc.Trainer(**trained, out=tmp_path / "run"))
    for name in "ab":
        shutil.copytree(data, tmp_path / f"data{name}")
        model = pyllmc.Model(tmp_path / "run/last.ckpt", B=1)
        if changed and name == "b":
            model.params["fcw"][1, 77, 5] += 0.5
        model.save(tmp_path / f"model{name}.ckpt")
    ranked = f"sys.argv += [o + 'ab'[int(rank)] + e for o, e in (('--data={tmp_path}/data', ''), ('--model={tmp_path}/model', '.ckpt'))]"
    code, lines = start_by_rank(tmp_path, ranked, "--max_steps=1", "--B=2", "--out=", *several.words(QUIET))
    if changed:
        assert "rank 1 has other weights than rank 0" in only_line(code, lines)
    else:
        assert code == 0, lines


def test_a_mistake_is_told_once_and_torchrun_ends_with_it(tmp_path):
    """torchrun prints a traceback of its own behind the line; the last lines of all say it again. Whichever process is first tells
    it, because torchrun ends the other, here rank 0, before that has read its options."""
    slow = by_rank(tmp_path, "import time\nif rank == '0': time.sleep(60)")
    run = several.Run(2, program=slow, batch=4)
    assert run.end() != 0
    line = only_line(1, run.told)
    assert "batch" in line
    cause = run.lines.index("Root Cause (first observed failure):")
    assert f"  traceback : {line.removeprefix('pyllmc.train: ')}" in run.lines[cause:]


def test_one_process_imports_no_torch(data, tmp_path):
    """Not even under torchrun."""
    import subprocess

    code = "import sys, pyllmc.train; pyllmc.train.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    options = several.words({**SMALL, "data": data, "max_steps": 1, "out": ""})
    env = several.environment(RANK="0", WORLD_SIZE="1")
    done = subprocess.run([sys.executable, "-c", code, *options], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_moments_are_compared_too_when_a_run_goes_on(data, tmp_path):
    """The weights of one step are the same, and would part from the next one on."""
    list(pyllmc.Trainer(**{**TINY, "data": data, "max_steps": 2, **QUIET}, out=tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    content = bytearray((tmp_path / "b/last.ckpt").read_bytes())
    at = content.rindex(b"MOMENTS ") + 16
    content[at + 4000 : at + 4004] = struct.pack("<f", 1.5)
    content[-4:] = struct.pack("<I", zlib.crc32(content[:-20]))
    (tmp_path / "b/last.ckpt").write_bytes(content)
    ranked = f"sys.argv.append('--resume={tmp_path}/' + 'ab'[int(rank)])"
    line = only_line(*start_by_rank(tmp_path, ranked, "--max_steps=4", "--out="))
    assert "rank 1 has other weights than rank 0" in line
