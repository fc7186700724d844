"""Keeps the bits that mma.sync m16n8k16 gives for bf16 operands on a GPU, and compares the emulation's bits with them.

    python dev/gpu_mma.py FILE.npz      computes the file's cases by the emulation; tells the bits that differ

A tensor core adds 16 products in an order and with a rounding that NVIDIA does not document; cuda/emu adds them in order, in
float. FILE holds a (n,16,16) and b (n,16,8) as bf16's bits, c and d (n,16,8) as float's, kind (n) of KINDS.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from bench_process import ROOT, Failed, measured

KINDS = ("normal", "wide", "cancelling", "subnormal", "special", "any bits")
G, T = np.arange(32)[:, None] // 4, np.arange(32)[:, None] % 4  # group, and thread in it, of each lane
SMALLEST = 2.0**-149  # the smallest float above 0
# a share of |c| + sum |a b|; 17 terms, each cut off at 2^-23 of the largest, differ by less
BOUND = 2.0**-18


def bf16(x: Any) -> Any:
    """Bits of float cut off to bf16: for a test as good as rounding."""
    return (np.asarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def bf16_value(bits: Any) -> Any:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def operands(kind: str, n: int, rng: Any) -> tuple[Any, Any, Any]:
    """a and b as bf16's bits, c as float's."""
    shapes = [(n, 16, 16), (n, 16, 8), (n, 16, 8)]
    if kind == "any bits":
        a, b = (rng.integers(0, 1 << 16, shape, np.uint16) for shape in shapes[:2])
        return a, b, rng.integers(0, 1 << 32, shapes[2], np.uint32)
    a, b, c = (rng.standard_normal(shape, np.float32) for shape in shapes)
    if kind == "wide":
        a, b = (x * np.float32(2) ** rng.integers(-30, 30, x.shape).astype(np.float32) for x in (a, b))
    if kind == "cancelling":  # c takes back nearly all of the products
        a[:, :, 8:], b[:, 8:] = a[:, :, :8], -b[:, :8]
        a[:, :, 0] *= 1 + 2.0**-7
        c *= np.float32(2.0**-10)
    if kind == "subnormal":  # operands, products and sums are subnormal
        a *= np.float32(2.0**-126) * np.float32(2) ** rng.integers(-6, 2, a.shape)
        b *= np.float32(2) ** rng.integers(-24, 8, (n, 1, 1)).astype(np.float32)
        c *= np.float32(2.0**-130)
    if kind == "special":
        for x in (a, b, c):
            where = rng.random(x.shape) < 0.01
            x[where] = rng.choice(
                np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 3e38], np.float32), where.sum()
            )
    return bf16(a), bf16(b), c.astype(np.float32).view(np.uint32)


def cases(n: int) -> dict[str, Any]:
    """n cases of each kind, the same on every machine."""
    rng = np.random.default_rng(7)
    with np.errstate(all="ignore"):
        found = [operands(kind, n, rng) for kind in KINDS]
    a, b, c = (np.concatenate(parts) for parts in zip(*found))
    return {"a": a, "b": b, "c": c, "kind": np.repeat(np.arange(len(KINDS)), n)}


def fragments(a: Any, b: Any, c: Any) -> Any:
    """(n, 32, 10) words: the operands of each lane, by the tables of the PTX ISA."""
    words = np.empty((len(a), 32, 10), np.uint32)
    lanes, g, t = np.arange(32), G[:, 0], T[:, 0]
    for r in range(4):
        row, column = g + 8 * (r % 2), 2 * t + 8 * (r // 2)
        words[:, lanes, r] = a[:, row, column] | a[:, row, column + 1].astype(np.uint32) << 16
    for r in range(2):
        k = 2 * t + 8 * r
        words[:, lanes, 4 + r] = b[:, k, g] | b[:, k + 1, g].astype(np.uint32) << 16
    for i in range(4):
        words[:, lanes, 6 + i] = c[:, g + 8 * (i // 2), 2 * t + i % 2]
    return words


def multiply(device: str, given: dict[str, Any]) -> Any:
    """d (n,16,8) as float's bits, computed by build/libmma_DEVICE.so."""
    lib = ctypes.CDLL(str(ROOT / f"build/libmma_{device}.so"))
    words = np.ascontiguousarray(fragments(given["a"], given["b"], given["c"]))
    out = np.full((len(words), 32, 4), 0x7FFFFFFF, np.uint32)
    pointers = (x.ctypes.data_as(ctypes.c_void_p) for x in (out, words))
    error = lib.mma_cases(*pointers, len(words))
    if error:
        raise Failed(f"mma: CUDA's error {error}")
    d = np.empty((len(words), 16, 8), np.uint32)
    for i in range(4):
        d[:, G[:, 0] + 8 * (i // 2), 2 * T[:, 0] + i % 2] = out[:, :, i]
    return d


def exact(given: dict[str, Any]) -> tuple[Any, Any]:
    """c + a b in float64, and |c| + sum |a b| over finite terms; below 2^127 no order of adding leaves float's
    range."""
    with np.errstate(all="ignore"):
        a, b = (bf16_value(given[name]).astype(np.float64) for name in "ab")
        c = given["c"].view(np.float32).astype(np.float64)
        sums = c + a @ b
        a, b, c = (np.where(np.isfinite(x), np.abs(x), 0) for x in (a, b, c))
        return sums, c + a @ b


def judge(given: dict[str, Any], d: Any) -> dict[str, Any]:
    """For each kind: the distance from the exact sum, as a share of |c| + sum |a b|; the number of wrong NaN or
    infinities."""
    sums, sizes = exact(given)
    judged: dict[str, Any] = {}
    for i, kind in enumerate(KINDS):
        of = (given["kind"] == i)[:, None, None] & (sizes < 2.0**127)
        with np.errstate(all="ignore"):
            v, s = d[of].view(np.float32).astype(np.float64), sums[of]
            wrong = np.where(np.isfinite(s), ~np.isfinite(v), (v != s) & (np.isnan(v) != np.isnan(s)))
            far = np.maximum(np.abs(v - s) - 17 * SMALLEST, 0)  # each sum may be rounded to a subnormal
            error = np.where(np.isfinite(s), far / np.maximum(sizes[of], SMALLEST), 0)
        worst = float(np.nanmax(error, initial=0))
        judged[kind] = {"numbers": int(v.size), "worst": worst, "wrongly_special": int(wrong.sum())}
        judged[kind]["ok"] = worst <= BOUND and not wrong.any()
    return judged


def compare(given: dict[str, Any], d: Any, other: Any) -> dict[str, Any]:
    """For each kind: the share of equal bits (any NaN equals any), and the largest difference of finite results."""
    found: dict[str, Any] = {}
    _, sizes = exact(given)
    for i, kind in enumerate(KINDS):
        of = given["kind"] == i
        x, y, size = d[of].view(np.float32), other[of].view(np.float32), sizes[of]
        same = (d[of] == other[of]) | (np.isnan(x) & np.isnan(y))
        both = np.isfinite(x) & np.isfinite(y) & (size < 2.0**127)
        with np.errstate(all="ignore"):
            apart = np.abs(x[both].astype(np.float64) - y[both]) / np.maximum(size[both], SMALLEST)
        specials = int((np.isfinite(x) != np.isfinite(y)).sum())
        found[kind] = {
            "same_bits": float(same.mean()),
            "apart": float(apart.max(initial=0)),
            "specials": specials,
        }
    return found


def prepare(device: str, out: str, n: int = 64) -> Any:
    """The measured process: writes the file, judges it."""

    def call() -> dict[str, Any]:
        given = cases(n)
        d = multiply(device, given)
        np.savez_compressed(out, d=d, kinds=np.array(KINDS), **given)
        return judge(given, d)

    return lambda: call


def read(path: Path) -> dict[str, Any]:
    """The cases and results of a file. Ends the program if it has none."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in ("a", "b", "c", "d", "kind")}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        sys.exit(f"gpu_mma.py: {path} is no file of mma's cases, as dev/gpu_check.py makes it: {error}")


def main(arguments: list[str] | None = None) -> None:
    about, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE.npz", type=Path, help="cases and the results of a GPU")
    kept = read(parser.parse_args(arguments).file)
    subprocess.run(["make", "--no-print-directory", "build/libmma_emu.so"], cwd=ROOT, check=True)
    for kind, row in compare(kept, kept["d"], multiply("emu", kept)).items():
        print(
            f"{kind:>10}: {row['same_bits']:.2%} of the bits the same, at most {row['apart']:.1e} of "
            f"|c| + sum |a b| apart, {row['specials']} NaN or infinite in one only"
        )


if __name__ == "__main__":
    measured(prepare) if any("=" in word for word in sys.argv[1:]) else main()
