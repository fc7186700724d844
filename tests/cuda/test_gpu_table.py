"""The tables of docs/gpu.md follow from a report that is kept, and from formulas that others use."""

from __future__ import annotations

import json

import gpu_limits
import gpu_machine
import gpu_table
import pytest
from bench_process import Failed
from conftest import ROOT

from pyllmc.planning import compute
from pyllmc.tables import layout


def test_llm_c_s_formula_of_124M():
    c = layout.config_of("d12")
    assert compute.num_params(c) == 124_475_904  # the number that llm.c prints
    assert compute.flops_per_token(c, 1024) == 6 * 124_475_904 + 6 * 12 * 768 * 1024


def test_products_have_gpt2_s_shapes():
    shapes = list(gpu_limits.shapes())
    assert {(16384, 768, 2304), (65536, 768, 50304), (65536, 1600, 6400), (32768, 6400, 1600)} <= set(shapes)
    assert len(shapes) == len(set(shapes))


def measured_report():
    """The report of a GPU that does not exist; its figures belong to this test only."""
    steps = {"pyllmc": {"ms": [100.0, 90.0, 110.0], "device_mb": 1000.0}, "compile": {"ms": [120.0]}}
    cases = {"d12 B=64 T=1024": {"model": "d12", "B": 64, "T": 1024, "systems": steps}}
    parts = {"steps": {"cases": cases}, "kernels": {"ok": True, "counts": {"passed": 3}}}
    parts["limits"] = {"matmul_tflop_s": {"1 x 1 x 1": [700.0]}, "copy_gb_s": [4000.0], "best_tflop_s": 700.0}
    parts["profile"] = {"failed": "no CUPTI"}
    head = {
        "kind": "gpu",
        "whole": True,
        "date": "2026-01-01T00:00",
        "command": "make gpu-check",
        "commit": "abc",
    }
    return {**head, "kernels": "old", "versions": {}, "machine": {"name": "NVIDIA H200"}, "parts": parts}


def test_the_table_s_figures():
    """65,536 tokens in 100 ms at 803.5 MFLOP each are 526.6 TFLOP/s: 53.2 % of 989, 75.2 % of 700."""
    text = gpu_table.text(measured_report())
    row = "| d12 B=64 T=1024 | pyllmc | 100 ms | 655,360 | 53.2% | 75.2% | 1,000 MiB | **1.20×** |"
    assert row in text and "| compile | 120 ms | 546,133 | 44.4% | 62.7% | – | – |" in text
    assert "kernels: right (3 passed)" in text and "* profile: failed, no CUPTI" in text


def test_a_report_of_other_kernels_is_stale():
    report = measured_report()
    assert gpu_table.STALE in gpu_table.text(report)
    assert gpu_table.STALE not in gpu_table.text({**report, "kernels": gpu_machine.kernels_hash()})


def test_the_document_shows_the_newest_whole_report_or_that_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_table, "RESULTS", tmp_path)
    document = f"a\n{gpu_table.BLOCK.format('x.json', 'old')}\nb"
    assert gpu_table.newest() == "none" and gpu_table.NONE in gpu_table.with_table(document, "none")
    (tmp_path / "part.json").write_text(json.dumps({**measured_report(), "whole": False}))
    (tmp_path / "cpu.json").write_text(json.dumps({"whole": True, "date": "2027"}))
    assert gpu_table.newest() == "none"
    (tmp_path / "gpu.json").write_text(json.dumps(measured_report()))
    shown = gpu_table.with_table(document, gpu_table.newest())
    assert "gpu.json" in shown and "655,360" in shown and shown.endswith("b")
    with pytest.raises(Failed, match="needs one block"):
        gpu_table.with_table("nothing", "none")


def test_the_document_is_up_to_date():
    document = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    assert gpu_table.with_table(document, gpu_table.newest()) == document, (
        "run `python dev/gpu_check.py --readme`"
    )
