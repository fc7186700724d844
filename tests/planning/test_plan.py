"""python -m pyllmc.plan: memory as training plans it, times from where they are said to come, crossovers, and bad input."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from pyllmc import plan
from pyllmc.base.errors import InvalidArgument
from pyllmc.draw.efficiency import draw_efficiency
from pyllmc.planning import compute, report, told
from pyllmc.planning.compute import Work
from pyllmc.planning.steptime import Way
from pyllmc.tables import layout

SMALL = "--model=gpt-nano --vocab_size=1000 --B=2 --T=64 --device=cpu".split()
TIMED = [*SMALL, "--step_ms=5"]


def made(*arguments: str) -> dict:
    return plan.make_plan(plan.parse(arguments))


def row_of(found: dict, n: int) -> dict:
    return next(row for row in found["rows"] if row["processes"] == n)


# ---- memory ----


def training_plans(*words: str) -> list[float]:
    """The megabytes of --plan: parameters, gradients, moments, activations, workspace, total."""
    words = tuple(word for word in words if not word.startswith("--device"))
    done = subprocess.run(
        [sys.executable, "-m", "pyllmc.train", "--plan", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("memory plan"))
    return [float(value) for value in re.findall(r"[ ](\d+\.\d)\b", line)][:6]


def planned(*words: str) -> list[float]:
    memory = made(*words, "--step_ms=5")["memory"]
    sizes = memory["params"] + memory["stored"], *(memory[p] for p in ("grads", "moments", "acts", "workspace", "total"))  # fmt: skip
    return [float(f"{size * 1e-6:.1f}") for size in sizes]


@pytest.mark.parametrize(
    "options",
    ["", "--precision=bf16", "--recompute=3 --B=5", "--recompute=4", "--lora_rank=4 --lora_on=qkv", "--train_only=h.1.*", "--n_layer=5 --untied", "--threads=3 --lora_rank=4 --lora_dropout=0.1"],
)  # fmt: skip
def test_memory_is_what_training_plans(options):
    asked = [*SMALL, *options.split()]
    assert planned(*asked) == training_plans(*asked)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_zero_shares_out_the_moments(n):
    plain, shared = (made(*TIMED, f"--nodes={n}", f"--zero={z}")["memory"] for z in (0, 1))
    assert plain["of_process"] == plain["total"] == shared["total"]
    assert shared["of_process"] == plain["total"] - plain["moments"] + math.ceil(plain["moments"] / n)


def test_diloco_keeps_two_more_copies():
    memory = made(*TIMED, "--diloco=10")["memory"]
    assert memory["of_process"] == memory["total"] + 8 * memory["trained"]


def test_gradients_of_positions_behind_T_do_not_travel():
    sent = {
        T: made("--model=d12", "--step_ms=1", f"--T={T}")["network"]["reduced_bytes"] for T in (128, 1024)
    }
    assert sent[1024] - sent[128] == 4 * (1024 - 128) * 768


def test_the_largest_batch_is_the_largest():
    o = plan.parse(TIMED)
    planner = plan.memory.Planner(o, gpu=False)
    way = Way()
    room = 3 * planner.plan(7).total / 2
    B = planner.largest_B(room, 2, way)
    assert planner.plan(B).of_process(2, way) <= room < planner.plan(B + 1).of_process(2, way)
    assert planner.largest_B(1000, 2, way) == 0


def test_a_run_folder_has_its_own_sizes(tmp_path):
    import pyllmc

    path = tmp_path / "model.bin"
    pyllmc.Model(layout.GPTConfig(80, 32, 2, 2, 16), B=1, T=8).save(str(path))
    model = made(f"--model={path}", "--step_ms=1")["model"]
    assert (model["n_layer"], model["n_embd"], model["vocab_size"]) == (2, 16, 80)
    with pytest.raises(InvalidArgument, match="--n_layer is of fresh weights"):
        made(f"--model={path}", "--step_ms=1", "--n_layer=3")


# ---- the time of a micro-step ----


@pytest.mark.parametrize("isa", compute.reports())
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_measured_step_is_told_as_measured(isa, precision):
    found = made("--model=d12", "--B=4", f"--device={isa}", f"--precision={precision}")["compute"]
    case = compute.reports()[isa]["rows"]["steps"][f"124M B=4 T=1024 {precision}"]
    taken = sorted(case["systems"]["pyllmc"]["ms"])
    assert taken[0] <= found["micro_step_ms"] <= taken[-1]
    assert (
        found["kind"] == "measured" and f"bench/results/{compute.reports()[isa]['file']}" in found["source"]
    )


@pytest.mark.parametrize("isa", compute.reports())
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_sizes_are_estimated_well(isa, precision):
    """A step of 256 tokens from one of 4,096, and the other way round, each of which was measured: as well as the page says."""
    page = (ROOT / "docs/cluster.md").read_text()
    share = int(re.findall(r"the other way round, within (\d+) % on all CPUs", page)[0]) / 100
    found = compute.reports()[isa]
    rows = {
        row.work.T: row
        for row in compute.rows_of(found)
        if row.work.B == 4 and row.work.precision == precision
    }
    for known, other in ((64, 1024), (1024, 64)):
        steps = {rows[known].name: found["rows"]["steps"][rows[known].name]}
        alone = {**found, "rows": {"kernels": found["rows"]["kernels"], "steps": steps}}
        estimate = compute.from_report(alone, rows[other].work)
        assert estimate.kind == "scaled" and estimate.source.startswith("an estimate")
        assert estimate.seconds == pytest.approx(rows[other].seconds, rel=share)


@pytest.mark.parametrize("options", ["--lora_rank=4", "--train_only=wte", "--recompute=4"])
def test_a_step_that_was_not_measured_is_no_measurement(options):
    isa = next(iter(compute.reports()))
    found = made("--model=d12", "--B=4", f"--device={isa}", options)["compute"]
    assert found["kind"] == "scaled" and found["source"].startswith("an estimate, because ")


@pytest.mark.parametrize("device", [*compute.DATA_SHEETS, "mine"])
def test_no_figure_of_a_gpu_is_called_measured(device):
    with pytest.raises(InvalidArgument, match="--step_ms or --tok_s"):
        made("--model=d12", f"--device={device}")
    found = made("--model=d12", f"--device={device}", "--mfu=0.4", "--peak_tflops=500")["compute"]
    assert found["kind"] == "assumed" and found["source"].startswith("ASSUMED, not measured: 40%")
    assert made("--model=d12", f"--device={device}", "--tok_s=1e5")["compute"]["kind"] == "given"


def test_a_share_of_the_data_sheet():
    c = layout.config_of("d12")
    found = made("--model=d12", "--B=8", "--device=h200", "--mfu=0.5")["compute"]
    flops = compute.flops_per_token(c, 1024) * 8 * 1024
    assert found["micro_step_ms"] == pytest.approx(flops / (0.5 * 989e12) * 1e3)


def test_times_that_are_given():
    assert made(*TIMED)["compute"]["micro_step_ms"] == 5
    assert made(*SMALL, "--tok_s=1280")["compute"]["micro_step_ms"] == pytest.approx(100)


def test_a_step_is_measured_here():
    found = made(*SMALL, "--measure")["compute"]
    assert found["kind"] == "measured" and found["source"].startswith("measured here: cpu")
    assert 0 < found["micro_step_ms"] < 10_000


@pytest.mark.parametrize("isa", compute.cpu_classes())
def test_a_class_of_cpus_that_nobody_has_measured_is_no_gpu(isa, monkeypatch):
    """A GPU keeps other things in memory, and its bytes travel otherwise."""
    monkeypatch.setattr(compute, "reports", lambda folder: {})
    here, there = (made(*TIMED, f"--device={device}") for device in ("cpu", isa))
    assert {**there, "device": ""} == {**here, "device": ""}
    with pytest.raises(InvalidArgument, match=f"no report in bench/results is of '{isa}'"):
        made(*SMALL, f"--device={isa}")


def test_every_report_is_of_a_class():
    assert set(compute.reports()) <= set(compute.cpu_classes())


def test_the_newest_whole_report_of_a_class_counts(tmp_path):
    for name, date, whole, isa in (("a", "2026-01-01", True, "x"), ("b", "2026-02-01", True, "x"), ("c", "2026-03-01", False, "x"),
                                   ("d", "2025-01-01", True, "y")):  # fmt: skip
        told = {"date": date, "whole": whole, "machine": {"isa": isa, "cpu": "C"}, "rows": {}, "threads": 2}
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
    found = compute.reports(tmp_path)
    assert {isa: r["file"] for isa, r in found.items()} == {"x": "b.json", "y": "d.json"}
    work = Work(layout.config_of("d12"), 1, 8, "fp32")
    with pytest.raises(InvalidArgument, match="b.json has no step in fp32"):
        compute.of_device(work, "x", folder=tmp_path)
    with pytest.raises(InvalidArgument, match=r"of 'z' \(those measured are y, x\)"):
        compute.of_device(work, "z", folder=tmp_path)
    with pytest.raises(InvalidArgument, match="there are none beside this package"):
        compute.of_device(work, "z", folder=tmp_path / "none")


# ---- what is told ----


def test_rows_are_by_the_formula():
    found = made(*TIMED, "--nodes=3", "--nproc_per_node=2", "--network=100Mbit")
    assert [row["processes"] for row in found["rows"]] == sorted([6, *(2**i for i in range(11))])
    behind_T = (found["model"]["max_seq_len"] - found["batch"]["T"]) * found["model"]["n_embd"]
    size, row = 4 * (found["memory"]["trained"] - behind_T), row_of(found, 6)
    reduce_s = 2 * 5 / 6 * size / 12.5e6 * 1514 / 1448  # the headers travel, too
    assert row["reduce_ms"] == pytest.approx(reduce_s * 1e3)
    assert row["step_ms"] == pytest.approx(5 + reduce_s * 1e3 - 0.66 * 5)
    assert row["tokens"] == 6 * 2 * 64 and row["tok_s"] == pytest.approx(row["tokens"] / row["step_ms"] * 1e3)
    assert row["efficiency"] == pytest.approx(5 / row["step_ms"])
    assert row_of(found, 1)["efficiency"] == 1


def test_on_gpus_zero_halves_what_is_reduced():
    gpu = [*SMALL[:-1], "--device=a100", "--step_ms=1", "--precision=fp32"]
    plain, shared = (row_of(made(*gpu, f"--zero={z}"), 8)["reduce_ms"] for z in (0, 1))
    assert shared == pytest.approx(plain / 2)


def test_the_verdicts_follow_from_the_figures():
    slow = made(*TIMED, "--network=10Mbit", "--memory=1MB")
    worth, told_text = slow["worth"], told.text(slow)
    assert worth["accumulation"]["worth"] and worth["bf16"]["worth"] and worth["diloco"]["worth"]
    k = int(worth["accumulation"]["option"].removeprefix("--grad_accum="))
    assert f"--grad_accum={k} brings" in " ".join(told_text.split())
    assert row_of(made(*TIMED, "--network=10Mbit", f"--grad_accum={k}"), 8)["efficiency"] >= 0.9
    assert row_of(made(*TIMED, "--network=10Mbit", f"--grad_accum={k - 1}"), 8)["efficiency"] < 0.9
    rate = worth["accumulation"]["not_needed_from_rate"]
    assert row_of(made(*TIMED, f"--network={rate * 1.0001 / 1e6}MB/s"), 8)["efficiency"] == pytest.approx(
        0.9, rel=1e-3
    )
    H = worth["diloco"]["diloco"]
    assert row_of(made(*TIMED, "--network=10Mbit", f"--diloco={H}"), 8)["efficiency"] >= 0.9
    assert "DOES NOT FIT" in told_text
    quick = made(*TIMED, "--network=900GB/s")
    assert not any(quick["worth"][name]["worth"] for name in ("accumulation", "bf16", "diloco"))
    assert quick["worth"]["zero"]["worth"] is None and "give --memory" in told.text(quick)


def test_zero_is_worth_it_where_it_makes_the_batch_fit():
    total = made(*TIMED)["memory"]["total"]
    found = made(*TIMED, f"--memory={(total - 1) / 1e6}MB", "--network=900GB/s")["worth"]["zero"]
    assert found["worth"] and found["fits_from_processes"] == 2
    assert found["largest_B"]["with"] >= 2 > found["largest_B"]["without"]
    one = made(*TIMED, "--B=1")["memory"]["total"]
    slow = made(*TIMED, f"--memory={(one + 1) / 1e6}MB", "--network=10Mbit")["worth"]["zero"]
    assert slow["worth"] and slow["tok_s"]["with"] > slow["tok_s"]["without"], (
        "more tokens share what is reduced"
    )
    far = made(*TIMED, f"--memory={total / 1e3}MB", "--network=1kbit")["worth"]["zero"]
    assert far["worth"] is False, "what a larger batch wins is less than what gathering costs"


@pytest.mark.parametrize(
    "words", ["", "--zero=1", "--diloco=7", "--reduce_precision=bf16", "--nodes=1", "--overlap=0"]
)
def test_text_and_json_say_the_same(words, capsys):
    assert plan.main([*TIMED, *words.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert plan.main([*TIMED, *words.split()]) == 0
    text = capsys.readouterr().out
    assert text == told.text(found) + "\n"
    assert max(map(len, text.splitlines())) <= told.WIDTH
    marked = [line for line in text.splitlines() if line.lstrip().startswith("*")]
    assert len(marked) == 1 and f"* {found['processes']}" in marked[0]
    assert not re.search(r"\b(nan|inf|None)\b", text)


def test_other_ways_are_compared():
    with_all = row_of(made(*TIMED, "--network=10Mbit"), 8)["efficiency_with"]
    assert [name.partition("=")[0] for name in with_all] == [
        "--reduce_precision",
        "--zero",
        "--grad_accum",
        "--diloco",
    ]
    assert "--zero=1" not in row_of(made(*TIMED, "--zero=1"), 8)["efficiency_with"], "it is the way asked for"
    for name, share in with_all.items():
        if not name.startswith("--grad_accum"):
            assert row_of(made(*TIMED, "--network=10Mbit", name), 8)["efficiency"] == pytest.approx(share)


def test_a_picture(tmp_path, capsys):
    path = tmp_path / "plan.svg"
    assert plan.main([*TIMED, f"--out={path}", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) and err == f"{path}\n"
    first = path.read_bytes()
    assert plan.main([*TIMED, f"--out={path}", "--dark"]) == 0
    assert path.read_bytes() != first
    with pytest.raises(InvalidArgument, match="a picture ends with"):
        draw_efficiency(tmp_path / "x.txt", [1, 2], {"fp32": [1, 0.5]}, title="x")


def test_rates_are_told_as_networks_are_named():
    assert [told.rate_text(rate) for rate in (1.25e9, 12.5e6, 1e13, 100.0)] == [
        "10 Gbit",
        "100 Mbit",
        "80,000 Gbit",
        "800 bit",
    ]
    assert [told.mb(size) for size in (1.25e6, 24e9)] == ["1.2 MB", "24.0 GB"]


def test_rates_are_read_as_networks_are_named():
    read = [
        plan.parse([f"--network={text}"]).network for text in ("10Gbit", "10Gbps", "10 Gbit/s", "1.25GB/s")
    ]
    assert read == [1.25e9] * 4
    assert plan.parse(["--memory=24GB"]).memory == 24e9


def test_the_numbers_in_the_table():
    assert report.counts(8) == [2**i for i in range(11)]
    assert report.counts(3000)[-2:] == [1024, 3000]


def test_the_page_shows_what_the_command_prints(capsys):
    page = (ROOT / "docs/cluster.md").read_text()
    words = re.search(r"^    python -m pyllmc.plan (.*) --out=plan.png$", page, re.M)
    block = re.search(r"<!-- plan: begin -->\n(.*?)<!-- plan: end -->", page, re.S)
    assert words and block and plan.main(words[1].split()) == 0
    assert "".join(line[4:] + "\n" for line in block[1].splitlines()) in capsys.readouterr().out


# ---- bad input ----

WRONG = {
    "--network=10Gb": "is not a rate with its unit",
    "--network=10": "such as 10Gbit",
    "--network=0Gbit": "not in 1..1e+18 bytes",
    "--memory=1e9TB": "not in 1..1e+18 bytes",
    "--memory=24": "such as 24GB",
    "--nodes=0": "whole number of at least 1",
    "--mfu=1.5": "not in 1e-06..1",
    "--mfu=0.4": "give --peak_tflops",
    "--aim=1": "not in 1e-06..0.999999",
    "--overlap=1.1": "not in 0..1",
    "--tok_s=0": "not in 1e-06..1e+12",
    "--tok_s=1e-308": "not in 1e-06..1e+12",
    "--step_ms=1e-320": "not in 1e-06..1e+12",
    "--mfu=0.4 --peak_tflops=1e308": "not in 1e-06..1e+12",
    "--step_ms=1 --tok_s=5": "give one",
    "--peak_tflops=5": "needs --mfu",
    "--zero=2": "is not in 0..1",
    "--zero=1 --diloco=5": "give one",
    "--model=gpt-nano": "give --vocab_size",
    "--model=nope": "neither a file nor a known size",
    "--T=4096": "longer than the model's context",
    "--n_head=7": "not a multiple",
    "--train_only=zzz": "no tensor is called 'zzz'",
    "--precision=fp8": "precision",
    "--out=plan.txt": "a picture ends with",
    "--nproc=2": "did you mean --nproc_per_node",
}


@pytest.mark.parametrize("words", WRONG)
def test_bad_input_is_one_line(words, capsys):
    try:
        code = plan.main(words.split())
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert err.startswith("pyllmc.plan: ") and err.count("\n") == 1
    assert WRONG[words] in err


EXTREMES = {
    "time": ["--step_ms=1e-6", "--step_ms=1e12", "--tok_s=1e-6", "--tok_s=1e12", "--mfu=1e-6 --peak_tflops=1e-6", "--mfu=1 --peak_tflops=1e12"],
    "network": ["--network=0.008kbit", "--network=1e9GB/s"],
    "aim": ["--aim=1e-6", "--aim=0.999999"],
}  # fmt: skip


@pytest.mark.parametrize("words", list(itertools.product(*EXTREMES.values())), ids=" ".join)
def test_what_follows_from_extremes_is_finite(words, capsys):
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    assert plan.main([*SMALL, *" ".join(words).split(), "--memory=1e6TB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert told.text(found)


def test_a_picture_is_refused_at_once_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plan.main([*TIMED, f"--out={tmp_path / 'plan.png'}"]) == 6
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("pyllmc.plan: the picture needs matplotlib: ")


def test_a_picture_in_a_missing_folder_is_refused_at_once(tmp_path, capsys):
    assert plan.main([*TIMED, f"--out={tmp_path / 'no/plan.png'}"]) == 5
    out, err = capsys.readouterr()
    assert out == "" and f"{tmp_path / 'no'} is no folder: make it" in err


def test_a_gpu_s_plan_is_made_without_a_gpu():
    memory = made("--model=d12", "--device=h200", "--mfu=0.4")["memory"]
    assert memory["stored"] == memory["params"] / 2, "bf16 beside fp32 masters"
    assert memory["limit"] == compute.DATA_SHEETS["h200"].memory


@pytest.mark.parametrize("part", ["--train_only=h.*", "--lora_rank=4"])
def test_what_is_frozen_behind_T_is_not_taken_off(part):
    """Only the T rows of a wpe that is trained are exchanged."""
    found = made("--model=d12", "--step_ms=1", "--T=128", part)
    assert found["network"]["reduced_bytes"] == 4 * found["memory"]["trained"]


def test_a_batch_that_just_fits_needs_no_zero():
    """A global batch leaves no faster way: only what fits counts."""
    total = made(*TIMED)["memory"]["total"]
    asked = [*TIMED, "--nodes=2", "--global_batch=4"]
    worth = [
        made(*asked, f"--memory={(total + more) * 1e-9:.9f}GB")["worth"]["zero"]["worth"] for more in (-1, 0)
    ]
    assert worth == [True, False]
