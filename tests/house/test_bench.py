"""The bench measures what it claims: every row runs, the roofline's formulas are right, and the README shows a report
that is kept."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import bench_aims
import bench_documents
import bench_kernels
import bench_limits as limits
import bench_matmul
import bench_process
import bench_steps
import bench_table
import pytest
from conftest import ROOT

import bench
from pyllmc.planning.compute import num_params, reports

MEASURED = {"pyllmc", "eager"}  # systems that --quick measures
ALLOWED = (
    "no products in bf16",
    "transformers",
    "oneDNN",
    "OpenBLAS",
    "MKL",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("bench") / "report.json"
    words = [sys.executable, str(ROOT / "dev/bench.py"), "--quick", "--rounds", "1", "--threads", "2"]
    words += ["--out", str(out)]  # two threads even on one core, because some rows compare one with several
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(out.read_text())
    assert bench_table.text(found) in done.stdout
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return found


def test_every_row_is_measured_or_says_why_not(report):
    assert set(report["rows"]) == set(bench.ROWS)
    for kind, reason, what in bench_table.gaps(report["rows"]):
        assert kind == "skipped" and any(word in reason for word in ALLOWED), f"{what}: {kind}, {reason}"


def test_fp32_is_measured_in_every_row(report):
    rows = report["rows"]
    case = bench_steps.QUICK[0].name
    for row in ("steps", "small"):
        systems = rows[row][case]["systems"]
        assert set(systems) == MEASURED and all(systems[s]["ms"] and systems[s]["losses"] for s in systems)
    assert set(rows["memory"][case]) == MEASURED
    assert {len(ms) for ms in rows["gemm"]["fp32"]["ms"].values()} == {
        len(rows["gemm"]["fp32"]["ms"]["fwd 16 32 96"])
    }
    assert set(rows["attention"]["fp32"]["ms"]) == {"pyllmc", "torch"}
    assert rows["generate"]["256 tokens, fp32"]["ms"]["pyllmc"]
    assert set(rows["growth"]["ms"]) == {"dense", "banded"}


def test_the_profile_has_every_kernel_of_a_step(report):
    """The profile has all entries of kernels.h, except those that only generation, a clip by itself, dropout, or LoRA calls."""
    layers = re.findall(r"X\((\w+)\)", (ROOT / "csrc/kernels.h").read_text())
    profile = report["rows"]["kernels"][bench_steps.QUICK[0].name]["kernels"]
    lora = {name for name in layers if name.startswith("lora_")}
    assert {name.split()[0] for name in profile} == {*layers} - {
        "attention_cached",
        "dropout",
        "scale",
    } - lora
    assert all(set(of["ms"]) == {"1", str(report["threads"])} for of in profile.values())


def test_limits_are_of_this_machine(report):
    counts = {"1", str(report["threads"])}
    for what in ("fma", "read", "update"):
        assert set(report["limits"][what]) == counts
        assert all(value > 0 for values in report["limits"][what].values() for value in values)


def test_a_quick_report_is_never_the_readme_s(report):
    assert not report["whole"]
    assert "limits" not in bench.default_path(report).name and "steps" in bench.default_path(report).name


@pytest.mark.parametrize("file", bench_documents.DOCUMENTS)
def test_documents_show_a_report_that_is_kept(file):
    document = (ROOT / file).read_text(encoding="utf-8")
    names = re.findall(r"<!-- bench: (\S+\.json) -->", document)
    assert len(names) == 1
    shown = bench_documents.with_table(document, names[0], bench_documents.DOCUMENTS[file])
    assert shown == document, "run `python dev/bench.py --readme`"


def faster(case: dict, than: dict) -> float:
    """How many times as fast one case is as another."""
    fp32, other = (bench_table.median(each["ms"]) for each in (than, case))
    return fp32 / other


def test_the_readme_says_which_cpus_gain_from_bf16():
    gains = {}
    for isa, report in reports().items():
        steps = {name: case["systems"]["pyllmc"] for name, case in report["rows"]["steps"].items()}
        names = [f"124M B=4 T={T}" for T in (64, 1024)]
        gains[isa] = [faster(steps[f"{name} bf16"], steps[f"{name} fp32"]) for name in names]
    words = r"CPUs with (.*) train GPT-2 124M faster with .*, and one with `(\w+)` alone .* within (\d+) %"
    said = re.search(words, " ".join((ROOT / "README.md").read_text().split()))
    assert said
    winners, equal, share = re.findall(r"`(\w+)`", said[1]), said[2], int(said[3]) / 100
    assert {*winners, equal} == set(gains)
    assert all(min(gains[isa]) > 1.1 for isa in winners)
    assert all(abs(each - 1) < share + 0.005 for each in gains[equal])


def test_the_page_says_what_int8_gains():
    rows = [
        {name: {"ms": case["ms"]["pyllmc"]} for name, case in r["rows"]["generate"].items()}
        for r in reports().values()
    ]
    gains = [faster(row["256 tokens, int8"], row["256 tokens, fp32"]) for row in rows]
    said = f"8 bits: {min(gains):.1f} to {max(gains):.1f} times the tokens a second of fp32 at 124M"
    assert said in (ROOT / "docs/use.md").read_text()


def test_reports_have_every_repeat_and_where_they_are_from():
    for path in bench_documents.RESULTS.glob("*.json"):
        kept = json.loads(path.read_text())
        if kept.get("kind") == "gpu":  # tests/cuda/test_gpu_check.py reads these
            continue
        assert {"date", "command", "commit", "machine", "versions", "threads", "limits", "rows"} <= set(kept)
        assert bench_table.text(kept)


@pytest.mark.parametrize(
    "value, least, goal, state",
    [
        (2.3, 2, 2.3, "goal reached"),
        (2.1, 2, 2.3, "reached"),
        (1.9, 2, 2.3, "**missed**"),
        (0.7, 0, 0.8, "**goal missed**"),
    ],
)
def test_an_aim_that_is_missed_is_said_to_be(value, least, goal, state):
    assert bench_table.state(value, least, goal) == state


def test_every_aim_of_a_whole_run_is_told():
    newest = json.loads((bench_documents.RESULTS / bench_documents.kept()[0]).read_text())
    wanted = [what for aims in bench_aims.AIMS.values() for what, _, _ in aims]
    assert [line.split(" | ")[0][2:] for line in bench_table.aims(newest).splitlines()[2:]] == wanted
    newest["rows"] = {"steps": {"failed": "hot"}}
    assert bench_table.aims(newest) == ""


def test_an_aim_on_amx_is_one_of_the_others():
    for told, special in bench_aims.ON_AMX.items():
        assert set(special) <= {what for what, _, _ in bench_aims.AIMS[told]}


# ---- the roofline ----


def test_step_flops_of_124M():
    """The products take 0.741 GFLOP a token, attention 0.066 at T=1024."""
    c = bench_steps.config_of("124M")
    assert limits.step_flops(c, 4, 1024) / 4096e9 == pytest.approx(0.741 + 0.066, rel=2e-3)
    assert limits.attention_flops(c, 4, 1024) / 4096e9 == pytest.approx(0.066, rel=5e-3)


@pytest.mark.parametrize("T, window", [(1, 0), (7, 0), (7, 3), (7, 7), (7, 20)])
def test_visible_pairs(T, window):
    assert limits.visible(T, window) == sum(min(t + 1, window or T) for t in range(T))


MEASURED_LIMITS = {name: {"2": [50.0, 100.0]} for name in ("fma", "bf16", "read", "update")}


def test_step_floor_is_flops_then_bytes():
    c = bench_steps.config_of("124M")
    floor = limits.step_floor(c, 4, 64, "fp32", MEASURED_LIMITS, 2)
    assert floor == pytest.approx(1e-8 * (limits.step_flops(c, 4, 64) + limits.step_bytes(c, 4, 64, "fp32")))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kernels_know_their_work(precision):
    """Together they have the products of a step. AdamW reads 4 floats and writes 3; in bf16 one of each is in two halves."""
    c = bench_steps.config_of("124M")
    profile = list(bench_kernels.kernels("124M", 4, 64, precision))
    assert sum(k.calls * k.flops for k in profile) == pytest.approx(limits.step_flops(c, 4, 64))
    adamw = next(k for k in profile if k.name == "adamw")
    assert adamw.calls * adamw.bytes(precision) == pytest.approx(28 * num_params(c))
    gelu = next(k for k in profile if k.name == "gelu_forward")
    assert gelu.bytes(precision) == 2 * 4 * 64 * 4 * 768 * limits.BYTES[precision]


def test_generation_reads_the_weights_for_every_token():
    c = bench_steps.config_of("124M")
    floor = limits.generate_floor(
        c, {"B": 1, "prompt": 1, "new": 256, "precision": "fp32"}, MEASURED_LIMITS, 2
    )
    per_token = floor / 256 * 100e6 / 4  # reading the weights at 100 GB/s
    assert 1 <= per_token / limits.weights(c) < 1.05  # and the cache


def test_without_a_bf16_instruction_its_peak_is_fp32_s():
    assert limits.flops_peak({"fma": {"1": [3.0, 4.0]}}, "bf16", 1) == 4
    slow = {"fma": {"1": [4.0]}, "bf16": {"1": [2.0]}}  # as on Intel
    assert limits.flops_peak(slow, "bf16", 1) == 4
    assert limits.best({}, "update", 1) == 0


# ---- processes ----


def process(tmp_path, monkeypatch, body):
    """A measured process whose prepare() has this body."""
    (tmp_path / "dev").mkdir()
    script = f"import sys; sys.path.insert(0, {str(ROOT / 'dev')!r})\nfrom bench_process import *\n"
    (tmp_path / "dev/x.py").write_text(f"{script}def prepare(n=1):\n    {body}\nmeasured(prepare)\n")
    monkeypatch.setattr(bench_process, "ROOT", tmp_path)
    return lambda **words: bench_process.Process("x.py", **words)


def test_a_process_answers(tmp_path, monkeypatch):
    with process(tmp_path, monkeypatch, "print('noise'); return lambda k=0: lambda: n + k")(n=2) as p:
        found = p.ask(k=3, calls=4)
        assert found["value"] == 5 and len(found["ms"]) == 4 and found["peak_mb"] > 1
        assert len(p.ask(warm=1, seconds=0.01)["ms"]) > 1
        assert "noise" in p.printed()


def test_a_process_that_skips_or_breaks_says_why(tmp_path, monkeypatch):
    start = process(tmp_path, monkeypatch, "raise Skip('no such thing') if n == 1 else ValueError('broken')")
    with pytest.raises(bench_process.Skip, match="no such thing"):
        start(n=1)
    with pytest.raises(bench_process.Failed, match="broken"):
        start(n=2)


@pytest.mark.parametrize("words", [["n"], ["m=1"], ["n=1", "turns=x"]])
def test_words_that_a_process_does_not_know_are_refused(words):
    with pytest.raises(SystemExit, match="key=value"):
        bench_process.settings_of(words, lambda n: None)


class Told:
    def __init__(self, *losses):
        self.found = dict(enumerate(losses, 1))

    def losses(self):
        return self.found


def test_losses_must_agree():
    case = bench_steps.QUICK[0]
    bench_steps.check_losses(case, {"pyllmc": Told(4.0, 3.0), "eager": Told(4.001, 3.001, 9.0)})
    for other in (Told(4.1, 3.0), Told(4.0, 3.1), Told(4.0, float("nan"))):
        with pytest.raises(bench_process.Failed, match="loss at step .*results differ"):
            bench_steps.check_losses(case, {"pyllmc": Told(4.0, 3.0), "eager": other})


def test_gaps_are_told_once_for_all_they_kept_from_being_measured():
    rows = {"a": {"x": {"skipped": "no\nluck"}, "y": {"skipped": "no luck"}}, "b": {"failed": "hot"}}
    rows["c"] = {"z": {"systems": {"compile": {"skipped": "no cc"}, "eager": {"ms": [1.0]}}}}
    text = bench_table.missing(rows).splitlines()
    assert text[2:] == [
        "* a, x; a, y: skipped, no luck",
        "* b: failed, hot",
        "* c, z, compile: skipped, no cc",
    ]


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--rows", "steps,nope", "'nope' is not one of limits, steps"),
        ("--rows", "", "'' is not one of limits, steps"),
        ("--rounds", "0", "0 is not at least 1"),
        ("--threads", "-1", "-1 is not in 0..1024"),
        ("--out", str(ROOT), "is a folder: name a file"),
        ("--out", str(ROOT / "README.md/report.json"), "README.md: "),
    ],
)
def test_bad_options_are_refused_before_anything_is_measured(option, value, message, capsys):
    with pytest.raises(SystemExit):
        bench.parse([option, value])
    told = capsys.readouterr().err
    assert told.startswith(f"bench.py: {option}: ") and message in told and told.count("\n") == 1


def test_only_a_whole_run_draws_into_the_documents():
    plots = {words: bench.plot_of(bench.parse(words.split())) for words in ("", "--rows growth", "--quick")}
    assert plots.pop("") == ROOT / "docs/growth.png"
    assert not any(plot.is_relative_to(ROOT) for plot in plots.values())
    assert bench.plot_of(bench.parse(["--out", "report.json"])) == Path("report.png")


@pytest.mark.parametrize(
    "words, message", [({"product": "nope"}, "product=nope"), ({"M": "x"}, "M=x"), ({"C": 0}, "C=0")]
)
def test_a_product_there_is_not_is_refused(words, message):
    with pytest.raises(SystemExit, match=message):
        bench_matmul.check_product(**{"product": "fwd", "M": 1, "C": 1, "OC": 1, **words})


@pytest.mark.parametrize(
    "words, message", [({"B": 0}, "B=0"), ({"T": 999}, "T=999"), ({"precision": "fp8"}, "fp8")]
)
def test_a_profile_there_is_not_is_refused(words, message):
    with pytest.raises(SystemExit, match=message):
        bench_kernels.prepare(
            **{"model": "tiny", "B": 2, "T": 16, "precision": "fp32", "threads": 1, **words}
        )
