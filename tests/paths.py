"""make paths: every parity test with PyTorch forced to other code paths, as a table of path and file.

python tests/paths.py [PATH ...]      e.g. lucky
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATHS: dict[str, dict[str, str]] = {
    "lucky": {"PYLLMC_TORCH": "lucky"},  # see lucky.py
    "no_onednn": {"PYLLMC_TORCH": "no_onednn"},
    "aten_default": {"ATEN_CPU_CAPABILITY": "default"},
    "aten_avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "mkl_sse4": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "mkl_avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "mkl_compatible": {"MKL_CBWR": "COMPATIBLE"},
    "onednn_sse4": {"DNNL_MAX_CPU_ISA": "SSE41"},
    "one_thread": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    "four_threads": {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"},
}
# all files that compare numbers with PyTorch's; the emulation's own (test_emulated, test_gemm_cublas) compare with the
# CPU's kernels
NAMES = (
    "matmul model model_steps attention layernorm encoder classifier adamw gelu compress precision check memory rng "
    "reference reference_loop convert_in convert_in_files convert_out convert_gguf"
)
FILES = [f"{next(ROOT.glob(f'tests/*/test_{name}.py')).relative_to(ROOT)}" for name in NAMES.split()]


def passes(path: str, *words: str) -> tuple[bool, str]:
    """True if these tests pass on this path; and the output of pytest."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *words]
    environment = {**os.environ, **PATHS[path]}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


def main(chosen: list[str]) -> int:
    failed = 0
    for path in chosen or PATHS:
        for file in FILES:
            ok, said = passes(path, file)
            print(f"{path:<15} {file:<35} {'passed' if ok else 'FAILED'}", flush=True)
            failed += not ok
            if not ok:
                print(said[-4000:])
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
