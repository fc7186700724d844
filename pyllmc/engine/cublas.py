"""NVIDIA's cuBLASLt, where pip put it: the CUDA library looks for it by name, and then only in the system's folders.

$PYLLMC_CUBLASLT (cuda/cublaslt.cu) tells it a path; set and empty, it does without.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

VARIABLE = "PYLLMC_CUBLASLT"
NAMES = ("libcublasLt.so.13", "libcublasLt.so.12")  # newest first, as cuda/cublaslt.cu tries them
FOLDERS = (
    "nvidia/cu13/lib",
    "nvidia/cublas/lib",
    "torch/lib",
)  # CUDA 13's packages, CUDA 12's, PyTorch's own copy


def in_packages() -> Path | None:
    """Of the first place on sys.path that has it."""
    for place in dict.fromkeys(sys.path):
        for path in (Path(place or ".", folder, name) for name in NAMES for folder in FOLDERS):
            if path.is_file():
                return path.resolve()
    return None


def in_system() -> bool:
    """Whether the loader finds it by name; it then stays loaded, as it would be in a moment."""
    for name in NAMES:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def settle() -> str:
    """Sets the variable where it is needed, before the CUDA library is loaded. Returns what it is now."""
    if VARIABLE not in os.environ:
        found = None if in_system() else in_packages()
        if found:
            os.environ[VARIABLE] = str(found)
    return os.environ.get(VARIABLE, "")
