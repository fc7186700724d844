"""make gpu-check: compares the GPU's results with right ones. Each part returns its entry in the report; "ok": False
fails the run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from typing import Any

from bench_process import ROOT, Failed, Process, Skip, not_measured
from gpu_machine import Setting, make, run

FILES = [f"tests/kernels/test_{name}.py" for name in ("matmul", "attention", "encoder", "layernorm", "gelu", "classifier", "adamw")]  # fmt: skip
OWN_PRODUCTS = {"PYLLMC_CUBLASLT": ""}  # turns cuBLASLt off
OUTCOME = re.compile(r"^(?=.*::).*\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b")
TEST = re.compile(r"tests/\S+::.*?(?= (?:PASSED|FAILED|ERROR)|$)")


# ---- the suite's own parity tests, on this device ----


def outcomes(text: str) -> dict[str, Any]:
    """The counts of each outcome and the failed tests, from the output of pytest -v, even if it was ended halfway."""
    counts: dict[str, int] = {}
    failing = []
    for line in text.partition("= FAILURES =")[0].splitlines():
        found = OUTCOME.match(line)
        if not found:
            continue
        counts[found[1].lower()] = counts.get(found[1].lower(), 0) + 1
        name = TEST.search(line)
        if found[1] in ("FAILED", "ERROR") and name:
            failing.append(name[0].strip())
    return {"counts": counts, "failing": failing[:50]}


def pytest(setting: Setting, files: list[str], only: str, environment: dict[str, str]) -> dict[str, Any]:
    words = [sys.executable, "-m", "pytest", "-vv", "--tb=short", "-rN", "-p", "no:cacheprovider", "-k", only]
    if importlib.util.find_spec("xdist") and not setting.quick:
        words += ["-n", str(min(6, os.cpu_count() or 1))]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = run(
        [*words, *files], setting.left, {"PYTHONPATH": path, "OMP_WAIT_POLICY": "passive", **environment}
    )
    found: dict[str, Any] = {"command": " ".join(["pytest", *words[3:], *files]), **outcomes(done.text)}
    found["ok"] = done.code == 0 and found["counts"].get("passed", 0) > 0
    if not found["ok"]:
        found["said"] = ("its time was over; " if done.late else "") + done.text[-4000:]
    return found


def kernels(setting: Setting) -> dict[str, Any]:
    """Tests every kernel against PyTorch on the CPU; matrix products by cuBLASLt, if it is found, and by our own
    kernels."""
    if setting.quick:
        return pytest(
            setting, ["tests/kernels/test_encoder.py"], f"test_backward and {setting.device}_fp32", {}
        )
    found = pytest(setting.within(0.75 * setting.left), FILES, setting.device, {})
    own = pytest(setting, FILES[:1], setting.device, OWN_PRODUCTS)
    return {**found, "own products": own, "ok": found["ok"] and own["ok"]}


# ---- the whole model ----


def model(setting: Setting) -> dict[str, Any]:
    """Tests a tiny GPT-2's losses and gradients (gpu_tiny.py), with and without cuBLASLt."""
    what = "quick" if setting.quick else "parity"
    environments = {"": {}, "own products": OWN_PRODUCTS, "no graphs": {"PYLLMC_GRAPHS": "0"}}
    found: dict[str, Any] = {}
    for name, environment in list(environments.items())[: 1 if setting.quick else None]:
        for row, value in tiny(setting, what, environment).items():
            found[f"{row}, {name}" if name else row] = value
    return {"runs": found, "ok": all(row.get("ok", True) for row in found.values())}


def tiny(setting: Setting, what: str, environment: dict[str, str]) -> dict[str, Any]:
    try:
        with Process("gpu_tiny.py", environment, setting.left, device=setting.device, what=what) as process:
            return dict(process.ask()["value"])
    except (Skip, Failed) as reason:
        return {setting.device: {**not_measured("tiny model", reason), "ok": False}}


# ---- the tensor core ----


def mma(setting: Setting) -> dict[str, Any]:
    """Keeps the tensor core's bits. Plain numbers must be near the exact sums; oddities of other numbers are only
    told."""
    make(setting, f"build/libmma_{setting.device}.so")
    file = setting.out.with_name(f"{setting.out.stem}-mma.npz")
    words = {"device": setting.device, "out": str(file), "n": 4 if setting.quick else 64}
    with Process("gpu_mma.py", {}, setting.left, **words) as process:
        kinds = process.ask()["value"]
    return {"file": file.name, "kinds": kinds, "ok": kinds["normal"]["ok"]}


# ---- compute-sanitizer ----

TOOLS = {"memcheck": r"ERROR SUMMARY: (\d+) error", "racecheck": r"RACECHECK SUMMARY: .*\((\d+) error"}


def sanitizer(setting: Setting) -> dict[str, Any]:
    """Runs two tiny steps and a few generated words under each tool; a finding fails the run."""
    setting.need_gpu()
    program = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if not program:
        raise Skip("compute-sanitizer is not on the PATH")
    step = [sys.executable, "dev/gpu_tiny.py", "device=cuda", "what=step", "turns=1"]
    found: dict[str, Any] = {}
    for i, (tool, pattern) in enumerate(TOOLS.items()):
        limit = setting.left / (len(TOOLS) - i)
        done = run([program, "--tool", tool, *step], limit, {**OWN_PRODUCTS, "PYLLMC_GRAPHS": "0"})
        summary = re.search(pattern, done.text)
        if summary:
            clean = summary[1] == "0" and '"ms"' in done.text
            found[tool] = {
                "found": int(summary[1]),
                "ok": clean,
                **({} if clean else {"said": done.text[-3000:]}),
            }
        else:
            found[tool] = {"failed": f"{'its time was over; ' if done.late else ''}{done.text[-800:]}"}
    return {"tools": found, "ok": all(row.get("ok", True) for row in found.values())}
