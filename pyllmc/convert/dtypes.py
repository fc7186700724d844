"""The number formats of weight files: fp32, bf16 and fp16, rounded to nearest even, never to infinity."""

from __future__ import annotations

import numpy as np

from pyllmc.base.errors import DataError

DTYPES = {"fp32": "<f4", "bf16": "<u2", "fp16": "<f2"}  # bf16: the upper half of a float's bits


def narrow(x: np.ndarray, dtype: str) -> np.ndarray:
    """Rounds float32 to the numbers of that dtype, little-endian; bf16 as its 16 bits. NaN stays NaN; fp32 is not copied."""
    x = np.ascontiguousarray(x, np.float32)
    if dtype != "bf16":
        with np.errstate(over="ignore"):  # check_finite finds infinities
            return x.astype(DTYPES[dtype], copy=False)
    bits = x.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16  # adds half of the last place, ties go to even
    return np.where(np.isnan(x), 0x7FC0, rounded).astype("<u2")


def widen(x: np.ndarray, dtype: str) -> np.ndarray:
    """The float32 values of the numbers that narrow() made."""
    return (
        (x.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else x.astype(np.float32, copy=False)
    )


def check_finite(name: str, x: np.ndarray, dtype: str) -> None:
    """Raises DataError if a number is not finite, or would not be finite in that dtype."""
    if not np.isfinite(x).all():
        raise DataError(
            f"{name} holds {x[~np.isfinite(x)][0]}: such weights are of no use; take an earlier checkpoint"
        )
    largest = float(np.abs(x).max(initial=0))
    if not np.isfinite(widen(narrow(np.array([largest]), dtype), dtype)[0]):
        raise DataError(f"{name} holds {largest:.4g}, which {dtype} cannot hold: write fp32")
