"""make gpu-check without a GPU: every part runs or says why not, every judge can say no, and no figure is invented."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import zipfile

import bench_process
import gpu_check
import gpu_machine
import gpu_mma
import gpu_parity
import gpu_speed
import gpu_table
import gpu_tiny
import numpy as np
import pytest
from bench_process import Failed, Skip
from conftest import ROOT, not_under_asan

pytestmark = not_under_asan
NEED_GPU = {"sanitizer", "limits", "profile"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(report, the printed text, its folder)"""
    out = tmp_path_factory.mktemp("gpu")
    words = [sys.executable, str(ROOT / "dev/gpu_check.py"), "--device", "emu", "--quick", "--commit", "abc"]
    done = subprocess.run([*words, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return json.loads(next(out.glob("*.json")).read_text()), done.stdout, out


@pytest.fixture
def report(ran):
    return json.loads(json.dumps(ran[0]))


@pytest.fixture
def setting(tmp_path):
    return gpu_machine.Setting("cuda", False, time.monotonic() + 60, tmp_path / "report.json")


# ---- the whole of it, emulated ----


def test_every_part_runs_or_needs_a_gpu(report):
    assert list(report["parts"]) == list(gpu_check.PARTS)
    for name, found in report["parts"].items():
        if name in NEED_GPU:
            assert "needs a GPU" in found["skipped"]
        else:
            assert not {"skipped", "failed"} & set(found), f"{name}: {found}"
    assert not list(gpu_table.gaps(report["parts"]["steps"], "steps"))
    assert gpu_check.wrong(report) == []


def test_the_report_says_where_it_is_from(report):
    assert report["command"] == "python dev/gpu_check.py --device emu --quick --commit abc --out DIR"
    assert report["commit"] == "abc" and report["kernels"] == gpu_machine.kernels_hash()
    assert {"date", "command", "versions", "machine", "seconds"} <= set(report) and "torch" in report[
        "versions"
    ]
    assert not report["whole"], "an emulation is never the README's"


def test_raw_repeats_are_kept_and_what_is_printed_follows_from_them(ran):
    report, printed, _ = ran
    assert gpu_table.text(report) in printed
    (case,) = report["parts"]["steps"]["cases"].values()
    assert set(case["systems"]) == {"pyllmc", "eager", "pyllmc, without graphs"}
    for record in case["systems"].values():
        assert len(record["losses"]) == gpu_speed.COMPARED and record["ms"]
    ours = case["systems"]["pyllmc"]["ms"]
    assert f"{case['B'] * case['T'] / gpu_table.median(ours) * 1e3:,.0f}" in printed


def test_the_bits_are_kept(ran):
    report, _, out = ran
    kept = dict(np.load(out / report["parts"]["mma"]["file"]))
    again = gpu_mma.cases(4)
    assert all((kept[name] == again[name]).all() for name in "abc")
    assert all(row["ok"] for row in gpu_mma.judge(kept, kept["d"]).values())
    same = gpu_mma.compare(kept, kept["d"], gpu_mma.multiply("emu", kept))
    assert {(row["same_bits"], row["apart"], row["specials"]) for row in same.values()} == {(1.0, 0.0, 0)}


# ---- judges ----


def test_a_wrong_number_fails_the_run(report):
    for name in ("kernels", "model", "mma"):
        for found in ({"ok": False}, {"failed": "broken"}, {"skipped": "no time was left"}):
            assert gpu_check.wrong({"parts": {**report["parts"], name: found}}) == [name]
    assert gpu_check.wrong({"parts": {"sanitizer": {"ok": False}}}) == ["sanitizer"]
    assert gpu_check.wrong({"parts": {"sanitizer": {"skipped": "none"}, "steps": {"failed": "slow"}}}) == []


def test_the_tiny_model_s_judge_sees_a_wrong_gradient_or_loss():
    want = {"losses": [3.0, 2.0], "grads": {"a": np.ones(4), "b": np.full(4, 1e-3)}}
    assert gpu_tiny.judge(want, want, "fp32")["ok"]
    wrong = {**want, "grads": {**want["grads"], "b": np.full(4, 1.001e-3)}}
    found = gpu_tiny.judge(wrong, want, "fp32")
    assert not found["ok"] and found["of"] == "b" and gpu_tiny.judge(wrong, want, "bf16")["ok"]
    assert not gpu_tiny.judge({**want, "losses": [3.0, 2.001]}, want, "fp32")["ok"]
    assert not gpu_tiny.judge({**want, "grads": {**want["grads"], "a": np.full(4, np.nan)}}, want, "bf16")[
        "ok"
    ]


def test_speed_counts_only_where_losses_agree_and_fall():
    case, fine = gpu_speed.QUICK[0], {"losses": [4.5 - 0.1 * i for i in range(10)]}
    gpu_speed.check_losses(case, {"pyllmc": fine, "compile": fine})
    for step in (0, 9):
        other = {"losses": [loss + 0.04 * (i == step) for i, loss in enumerate(fine["losses"])]}
        with pytest.raises(Failed, match=f"loss at step {step + 1}: results differ"):
            gpu_speed.check_losses(case, {"pyllmc": fine, "compile": other})
    with pytest.raises(Failed, match="did not fall"):
        gpu_speed.check_losses(case, {"pyllmc": {"losses": [4.5] * 10}, "compile": {"losses": [4.5] * 10}})


PLAIN = """tests/kernels/test_gelu.py::test_a[cuda-1] PASSED        [ 33%]
tests/kernels/test_gelu.py::test_a[cuda-2] FAILED        [ 66%]
=================================== FAILURES ===================================
x.py::y FAILED
"""
SHARED = """[gw1] [ 33%] PASSED tests/kernels/test_gelu.py::test_a[cuda-1]
tests/kernels/test_gelu.py::test_a[cuda-2]
[gw0] [ 66%] FAILED tests/kernels/test_gelu.py::test_a[cuda-2]
"""


@pytest.mark.parametrize("text", [PLAIN, SHARED])
def test_outcomes_are_counted_even_of_a_run_that_was_ended(text):
    found = gpu_parity.outcomes(text)
    assert found == {
        "counts": {"passed": 1, "failed": 1},
        "failing": ["tests/kernels/test_gelu.py::test_a[cuda-2]"],
    }


# ---- output of tools on a machine with a GPU ----


def tool(tmp_path, monkeypatch, name, script):
    path = tmp_path / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")


def test_the_gpu_s_facts(tmp_path, monkeypatch):
    values = "NVIDIA H200, 580.159.04, 9.0, 143771, 345, 1980, 3201, 700.00, 75.32, 31"
    tool(tmp_path, monkeypatch, "nvidia-smi", f"echo '{values}'")
    found = gpu_machine.gpu()
    assert found["name"] == "NVIDIA H200" and found["compute"] == "9.0" and found["power_limit_w"] == 700
    assert len(found) == len(gpu_machine.SMI) and found["driver"] == "580.159.04"
    tool(tmp_path, monkeypatch, "nvidia-smi", "echo no devices were found; exit 6")
    with pytest.raises(Skip, match="no devices"):
        gpu_machine.gpu()


@pytest.mark.parametrize(
    "name, rate", [("NVIDIA H200", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 80GB HBM3", 989)]
)
def test_peaks(name, rate):
    assert gpu_machine.peak(name) == rate and gpu_machine.peak("another") == 0


@pytest.mark.parametrize("errors", [0, 2])
def test_what_the_sanitizer_finds(tmp_path, monkeypatch, setting, errors):
    said = f'"========= ERROR SUMMARY: {errors} errors" "RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)" \'"ms": 1\''
    tool(tmp_path, monkeypatch, "compute-sanitizer", f"printf '%s\\n' {said}")
    found = gpu_parity.sanitizer(setting)
    assert found["tools"]["memcheck"]["found"] == errors and found["ok"] == (errors == 0)


def test_a_sanitizer_that_does_not_run_is_no_finding(tmp_path, monkeypatch, setting):
    tool(tmp_path, monkeypatch, "compute-sanitizer", "echo Device not supported; exit 1")
    found = gpu_parity.sanitizer(setting)
    assert found["ok"] and "Device not supported" in found["tools"]["racecheck"]["failed"]


NCU = '''"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Metric Name","Metric Unit","Metric Value"
"0","7","python3","h","gemm<""a"">(int)","1","7","gpu__time_duration.sum","ns","1,500"
"1","7","python3","h","gemm<""a"">(int)","1","7","gpu__time_duration.sum","ns","500"
"2","7","python3","h","other(int)","1","7","gpu__time_duration.sum","us","9"'''


def test_kernel_times_by_ncu(tmp_path, monkeypatch, setting):
    tool(tmp_path, monkeypatch, "ncu", f"cat <<'E'\n{NCU}\nE")
    assert [row[1:] for row in gpu_speed.by_ncu(gpu_speed.CASES[0], setting)] == [[1, 9.0], [2, 2.0]]


def test_a_command_that_takes_too_long_is_ended_with_its_children():
    start = time.monotonic()
    done = gpu_machine.run(["sh", "-c", "echo begun; sleep 60 & sleep 60"], 0.5)
    assert done.late and done.text == "begun\n" and time.monotonic() - start < 30


# ---- missing tools ----


def test_the_first_line_says_what_is_missing_and_how_to_carry_it(monkeypatch):
    monkeypatch.setattr(gpu_machine, "NEEDED", ("numpy", "no_such_package"))
    monkeypatch.setattr(gpu_machine, "nvcc", lambda: "")
    lacking = gpu_machine.missing("cuda")
    assert lacking == ["no_such_package", "nvcc"]
    line = gpu_machine.advice(lacking)
    assert line.startswith("missing: no_such_package, nvcc") and "--wheels DIR" in line and "\n" not in line
    assert gpu_machine.missing("emu") == ["no_such_package"]


@pytest.mark.parametrize("packed", [True, False])
def test_wheels_are_used_packed_and_unpacked(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "before")
    folder, unpacked = tmp_path / "wheels", tmp_path / "unpacked"
    folder.mkdir()
    if packed:
        with zipfile.ZipFile(folder / "carried-1-py3-none-any.whl", "w") as file:
            file.writestr("carried_package.py", "x = 1")
    else:
        (folder / "carried_package.py").write_text("x = 1")
    gpu_machine.use_wheels(folder, unpacked)
    code = [sys.executable, "-c", "import carried_package"]
    assert subprocess.run(code).returncode == 0
    assert os.environ["PYTHONPATH"].endswith(f"{os.pathsep}before")


@pytest.mark.parametrize(
    "words, error",
    [
        ("--parts steps,nope", "nope: known"),
        ("--device emu", "too slow"),
        ("--wheels /no/such", "no such folder"),
    ],
)
def test_usage(capsys, words, error):
    with pytest.raises(SystemExit) as stopped:
        gpu_check.parse(words.split())
    assert stopped.value.code == 2 and error in capsys.readouterr().err


# ---- one part after the other ----


def part(found=None, error=None, **how):
    def run(setting):
        if error:
            raise error
        return {**(found or {}), "left": setting.left}

    return gpu_check.Part(run, 100, **how)


def test_what_fails_is_told_and_the_rest_goes_on(setting, monkeypatch):
    parts = {"a": part(error=Failed("broken")), "b": part(error=ZeroDivisionError("x")), "c": part({"n": 1})}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    report = {"allowed_seconds": 60, "parts": {}}
    gpu_check.run_parts(["a", "b", "c"], setting, report)
    kept = json.loads(setting.out.read_text())
    assert (
        kept["parts"]["c"]["n"] == 1
        and "broken" in kept["parts"]["a"]["failed"]
        and "ZeroDivisionError" in kept["parts"]["b"]["failed"]
    )


def test_a_kill_loses_nothing_that_was_measured(setting, monkeypatch):
    monkeypatch.setattr(gpu_check, "PARTS", {"a": part({"n": 1}), "b": part(error=KeyboardInterrupt())})
    with pytest.raises(KeyboardInterrupt):
        gpu_check.run_parts(["a", "b"], setting, {"allowed_seconds": 60, "parts": {}})
    assert json.loads(setting.out.read_text())["parts"]["a"]["n"] == 1


def test_earlier_parts_leave_time_for_later_ones(setting, monkeypatch):
    monkeypatch.setattr(gpu_check, "PARTS", {"a": part(), "b": part(least=20)})
    report = {"allowed_seconds": 60, "parts": {}}
    gpu_check.run_parts(["a", "b"], setting, report)
    assert report["parts"]["a"]["left"] < 41 < report["parts"]["b"]["left"]
    late = {"allowed_seconds": 60, "parts": {}}
    gpu_check.run_parts(["b"], setting.within(0), late)
    assert late["parts"]["b"]["skipped"] == "no time was left"


def test_the_parts_fit_their_time():
    assert sum(part.least for part in gpu_check.PARTS.values()) < gpu_check.parse([]).seconds / 2


def test_a_measured_process_is_ended_at_its_limit(tmp_path, monkeypatch):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/x.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(bench_process, "ROOT", tmp_path)
    with pytest.raises(Failed, match="exit -9"):
        bench_process.Process("x.py", limit=0.5)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch, setting):
    tried = []

    def measure(case, setting):
        tried.append(case.B)
        if case.B > 4:
            raise Failed("torch.OutOfMemoryError: CUDA out of memory")
        return {"B": case.B}

    monkeypatch.setattr(gpu_speed, "measure_case", measure)
    assert gpu_speed.fitting(gpu_speed.Case("d12", 16, 8, 1), setting) == {"B": 4} and tried == [16, 8, 4]
    with pytest.raises(Skip, match="not even B=16"):
        gpu_speed.fitting(gpu_speed.Case("d12", 64, 8, 1), setting)


class Answering:
    """A measured process that keeps its requests, and whether it was closed."""

    def __init__(self, name, loss, log):
        self.name, self.loss, self.log = name, loss, log
        self.child = self

    def ask(self, steps):
        self.log.append((self.name, steps))
        losses = [self.loss - 0.1 * i for i in range(steps)]
        return {"ms": [10.0 * steps], "value": {"losses": losses, "device_mb": 7.0}}

    def close(self):
        self.log.append((self.name, "closed"))

    kill = close

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_systems_take_turns_and_nothing_is_quoted_where_losses_differ(monkeypatch, setting, gap):
    log = []

    def start(system, case, setting, environment=None):
        return Answering(system, 9.0 + gap * (system == "compile"), log)

    monkeypatch.setattr(gpu_speed, "start", start)
    monkeypatch.setattr(gpu_speed, "CASES", [gpu_speed.Case("d12", 4, 8, 2, {"own": {}})])
    found = gpu_speed.steps(setting)["cases"]["d12 B=4 T=8"]
    order = [name for name, steps in log if steps == 2][:8]
    assert order == ["pyllmc", "compile", "compile", "pyllmc"] * 2
    assert ("compile", "closed") in log and ("pyllmc", "closed") in log
    if gap:
        assert "results differ" in found["failed"] and "systems" not in found and found["records"]
    else:
        assert found["systems"]["pyllmc, own"]["ms"] == [10.0] * gpu_speed.ROUNDS and "failed" not in found


def test_without_its_compiler_pytorch_is_measured_eager(monkeypatch, setting):
    class Broken(Answering):
        def ask(self, steps):
            raise Failed("InductorError: no Python.h")

    def start(system, *_):
        return (Broken if system == "compile" else Answering)(system, 9.0, [])

    monkeypatch.setattr(gpu_speed, "start", start)
    found = gpu_speed.measure_case(gpu_speed.Case("d12", 4, 8, 2), setting)["systems"]
    assert "Python.h" in found["compile"]["failed"] and found["eager"]["ms"] and found["pyllmc"]["ms"]


def test_compiling_ahead_is_ended_when_measuring_begins(monkeypatch, setting):
    class Slow(Answering):
        def ask(self, steps):
            self.ended = threading.Event()
            assert self.ended.wait(30)
            raise Failed("exit -9")

        def kill(self):
            self.ended.set()

    monkeypatch.setattr(gpu_speed, "start", lambda *words: Slow("compile", 1.0, []))
    start = time.monotonic()
    notes = gpu_speed.Compiling(setting).wait(0.5)
    assert time.monotonic() - start < 20
    assert sorted(notes.values()) == ["exit -9", "exit -9", "no time was left", "no time was left"]
