"""Tests vf_exp (simd.h), gelu and gelu_slope (gelu.h) alone, compiled as in the library for each instruction set; and the
functions of cuda/gelu.cuh, compiled for the CPU.

The kernels that use them are tested in test_matmul.py (GELU), test_classifier.py and test_attention.py (exp).
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
import torch
from conftest import ISAS, ROOT, assert_parity, ffi

from pyllmc.parity import yardstick

CPU_PROBE = """
#include "gelu.h"
#define PROBE(f) \
    __attribute__((visibility("default"))) void f##_probe(float *y, const float *x, int n); \
    void f##_probe(float *y, const float *x, int n) { \
        for (int i = 0; i < n; i += VL) vf_store_n(y + i, f(vf_load_n(x + i, LANES(i, n))), LANES(i, n)); \
    }
PROBE(vf_exp) PROBE(gelu) PROBE(gelu_slope)
"""
CUDA_PROBE = """
#include "gelu.cuh"
#define PROBE(f) \
    extern "C" __attribute__((visibility("default"))) void f##_probe(float *y, const float *x, int n) { \
        for (int i = 0; i < n; i++) y[i] = f(x[i]); \
    }
PROBE(gelu) PROBE(gelu_slope)
"""


def torch_gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU in float64 as x sigmoid(2u), which is the same: in doubles, too, 1 + tanh(u) is 0 for x far below 0."""
    if x.dtype == torch.float64:
        return x * torch.sigmoid((8 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))
    return torch.nn.functional.gelu(x, approximate="tanh")


def torch_slope(x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(torch_gelu(x).sum(), x)[0]


TORCH: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "vf_exp": torch.exp,
    "gelu": torch_gelu,
    "gelu_slope": torch_slope,
}
SMALLEST_NORMAL = np.finfo(np.float32).tiny


def compiler(isa: str, element: str) -> list[str]:
    """The compiler and flags that the Makefile uses for a kernel file."""
    command = (
        "$(CXX) $(EMU_CXXFLAGS)" if isa == "cuda" else f"$(CC) $(CFLAGS) $(ISA_{isa}) $(ELEMENT_{element})"
    )
    show = f"show:;@echo {command}"
    return subprocess.run(
        ["make", "-s", f"--eval={show}", "show"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()


def compiled(isa: str, element: str, folder: Path) -> Callable[[str, np.ndarray], np.ndarray]:
    """apply(function's name, x) -> y"""
    cuda = isa == "cuda"
    source = folder / ("probe.cpp" if cuda else "probe.c")
    source.write_text(CUDA_PROBE if cuda else CPU_PROBE)
    target, includes = str(source.with_suffix(".so")), [f"-I{ROOT / 'csrc/cpu'}", f"-I{ROOT / 'csrc'}"]
    command = [*compiler(isa, element), "-shared", *includes, str(source), "-o", target, "-lm"]
    subprocess.run(command, check=True)
    probes = type(ffi)()
    probes.cdef("".join(f"void {name}_probe(float *y, const float *x, int n);" for name in TORCH))
    lib = probes.dlopen(target)

    def call(name: str, x: np.ndarray) -> np.ndarray:
        if not hasattr(lib, name + "_probe"):
            pytest.skip(f"{isa} has no {name} of its own")
        x, y = np.ascontiguousarray(x, np.float32), np.empty(x.shape, np.float32)
        getattr(lib, name + "_probe")(
            probes.from_buffer("float[]", y), probes.from_buffer("float[]", x), x.size
        )
        return y

    return call


COMPILED = [isa for isa in ISAS if isa != "reference"]


@pytest.fixture(scope="module", params=[*COMPILED, "cuda"])
def apply(request, tmp_path_factory):
    return compiled(request.param, "fp32", tmp_path_factory.mktemp(request.param))


def sweep() -> np.ndarray:
    """Numbers from -100 to 100 evenly, and around every power of two, down to the smallest."""
    even = np.linspace(-100, 100, 400_001, dtype=np.float32)
    sizes = np.float32(2) ** np.linspace(-140, 7, 50_000, dtype=np.float32)
    return np.sort(np.concatenate([even, sizes, -sizes]))


@pytest.mark.parametrize("name", TORCH)
def test_accuracy(apply, name: str):
    """Each small interval has its own limit, so that small results are measured by their size."""
    x = sweep()
    ours, t = apply(name, x), torch.from_numpy(x)
    (single,), (double,) = yardstick.both(lambda kind: [TORCH[name](t.to(kind)).numpy()])
    assert (np.isinf(ours) == np.isinf(single.here)).all()
    normal = (
        np.isfinite(single.here)
        & (np.abs(double) >= SMALLEST_NORMAL)
        & (np.abs(double) < np.finfo(np.float32).max)
    )
    for part in np.array_split(np.flatnonzero(normal), 1000):
        assert_parity(ours[part], single[part], double[part], f"{name} from {x[part[0]]} to {x[part[-1]]}")
    assert (np.abs(ours[~normal & np.isfinite(single.here)]) <= SMALLEST_NORMAL).all()


@pytest.mark.parametrize("isa", COMPILED)
def test_accuracy_that_bf16_needs(isa: str, tmp_path):
    """Where bf16 is stored, which rounds by up to 2^-9, shorter formulas may err by 2^-12."""
    apply, x = compiled(isa, "bf16", tmp_path), sweep()
    x = x[(np.abs(x) < 9) & (np.abs(x) > 1e-20)]
    for name in ("gelu", "gelu_slope"):
        exact = TORCH[name](torch.from_numpy(x).double()).numpy()
        scale = np.abs(exact) if name == "gelu" else np.maximum(np.abs(exact), 0.1)
        assert (np.abs(apply(name, x) - exact) <= 2.0**-12 * scale).all()
    test_limits(apply, "gelu", [0, 0, 0, -0.0, 0, 100, 1e30, np.inf])
    test_limits(apply, "gelu_slope", [0, 0, 0, 0.5, 0.5, 1, 1, 1])
    for name in ("gelu", "gelu_slope"):
        test_nan_stays(apply, name)


@pytest.mark.parametrize(
    "name,limits",  # at -inf, -1e30, -100, -0.0, 0, 100, 1e30, inf
    [
        ("vf_exp", [0, 0, 0, 1, 1, np.inf, np.inf, np.inf]),
        ("gelu", [0, 0, 0, -0.0, 0, 100, 1e30, np.inf]),
        ("gelu_slope", [0, 0, 0, 0.5, 0.5, 1, 1, 1]),
    ],
)
def test_limits(apply, name: str, limits: list[float]):
    x = np.array([-np.inf, -1e30, -100, -0.0, 0.0, 100, 1e30, np.inf], np.float32)
    got, expected = apply(name, x), np.array(limits, np.float32)
    assert (got == expected).all(), got
    assert (np.signbit(got[3:]) == np.signbit(expected[3:])).all(), got


@pytest.mark.parametrize("name", TORCH)
def test_nan_stays(apply, name: str):
    x = np.full(37, np.nan, np.float32)
    x[::3] = 1
    assert (np.isnan(apply(name, x)) == np.isnan(x)).all()


def test_denormals(apply):
    x = np.array([1e-45, -1e-45, 1e-40, -1e-39], np.float32)
    assert (apply("vf_exp", x) == 1).all()
    assert (np.abs(apply("gelu", x) - x.astype(np.float64) / 2) <= 1e-45).all()
    assert (apply("gelu_slope", x) == 0.5).all()
