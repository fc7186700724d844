"""The place where pip put NVIDIA's cuBLASLt, because the CUDA library itself looks only in the system's folders.

$PYLLMC_CUBLASLT (cuda/cublaslt.cu) gives the CUDA library a path. Set but empty, it switches cuBLASLt off.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

VARIABLE = "PYLLMC_CUBLASLT"
NAMES = ("libcublasLt.so.13", "libcublasLt.so.12")  # the newest first, in the order of cuda/cublaslt.cu
FOLDERS = (
    "nvidia/cu13/lib",
    "nvidia/cublas/lib",
    "torch/lib",
)  # the packages of CUDA 13, those of CUDA 12, PyTorch's own copy


def in_packages() -> Path | None:
    """The path of the library in the first folder on sys.path that has it; None if none has."""
    for place in dict.fromkeys(sys.path):
        for path in (Path(place or ".", folder, name) for name in NAMES for folder in FOLDERS):
            if path.is_file():
                return path.resolve()
    return None


def in_system() -> bool:
    """True if the loader finds the library by name. It then stays loaded, because it is needed in a moment."""
    for name in NAMES:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def settle() -> str:
    """Set the variable if it is needed, before the CUDA library is loaded. Return its value."""
    if VARIABLE not in os.environ:
        found = None if in_system() else in_packages()
        if found:
            os.environ[VARIABLE] = str(found)
    return os.environ.get(VARIABLE, "")
