"""Takes out one __syncthreads after the other and lists the tests that notice: python barriers.py FILE:LINE ... -> JSON.

Run with PYLLMC_LIB set to a checked build. A barrier is needed if, without it, the checker reports something or a number
changes.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from device import DeviceKernel

from pyllmc.engine import _ffi

LIBRARY = ctypes.CDLL(os.environ["PYLLMC_LIB"])
TEXT = ctypes.create_string_buffer(1 << 16)


def reports() -> int:
    return LIBRARY.emu_report(TEXT, ctypes.c_size_t(len(TEXT)))


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def out(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def layernorm(k: DeviceKernel, T: int, C: int) -> list[np.ndarray]:
    x, w, y, mean, rstd = random(T, C), random(C), out(T, C), out(T), out(T)
    k.workspace(1, T, C)
    k.layernorm_forward(y, mean, rstd, x, w, w, 1, T, C)
    dx, dw, db = np.zeros_like(x), np.zeros(C, np.float32), np.zeros(C, np.float32)
    k.layernorm_backward(dx, dw, db, x[::-1].copy(), x, w, mean, rstd, 1, T, C)
    return [y, dx, dw, db]


def matmul(k: DeviceKernel, M: int, C: int, OC: int) -> list[np.ndarray]:
    y, dw, db = out(M, OC), np.zeros((OC, C), np.float32), np.zeros(OC, np.float32)
    k.workspace(1, M, max(C, OC))
    k.matmul_forward(y, random(M, C), random(OC, C), None, 1, M, C, OC)
    k.matmul_backward_weight(dw, db, random(M, OC), random(M, C), 1, 1, M, C, OC)
    return [y, dw, db]


def attention(k: DeviceKernel, T: int, hs: int) -> list[np.ndarray]:
    qkv, y, lse, dqkv = random(1, T, 3 * hs), out(1, T, hs), out(1, 1, T), out(1, T, 3 * hs)
    k.workspace(1, T, hs)
    k.attention_forward(y, lse, qkv, None, None, 1, T, hs, 1, 0)
    k.attention_backward(dqkv, random(1, T, hs), y, lse, qkv, None, None, 1, T, hs, 1, 0)
    return [y, dqkv]


def cached(k: DeviceKernel, T: int, hs: int, n: int) -> list[np.ndarray]:
    cache, y = random(1, T, 3 * hs), out(1, n, hs)
    k.workspace(1, T, hs)
    k.attention_cached(
        y, cache, None, random(1, n, 3 * hs), np.array([T - n], np.int32), 1, n, T, T, hs, 1, 0
    )
    return [y]


def classifier(k: DeviceKernel, T: int, V: int, Vp: int) -> list[np.ndarray]:
    logits, losses, lse, loss = random(T, Vp), out(T), out(T), out(2)
    targets, weights = np.arange(T, dtype=np.int32), np.ones(T, np.float32)
    k.workspace(1, T, 1, 1, Vp)
    k.classifier_forward(losses, lse, logits, targets, 1, T, V, Vp)
    k.loss_mean(loss, losses, targets, weights, T)
    k.classifier_backward(logits, lse, targets, weights, loss, 1.0, 1, T, V, Vp)
    return [losses, loss, logits]


def norm(k: DeviceKernel, N: int) -> list[np.ndarray]:
    k.workspace(1, 1, 1)
    result = out(2)
    k.global_norm(result, random(N), 1.0, N)
    return [result]


CASES = [
    (matmul, 40, 96, 136),
    (matmul, 20, 33, 25),
    (layernorm, 60, 64),
    (layernorm, 3, 1100),
    (layernorm, 3, 1104),
    (attention, 140, 16),
    (attention, 70, 7),
    (cached, 600, 16, 1),
    (cached, 40, 16, 3),
    (cached, 600, 7, 1),
    (classifier, 3, 300, 384),
    (norm, 5000),
]


def run(k: DeviceKernel, case: tuple) -> list[bytes]:
    return [x.tobytes() for x in case[0](k, *case[1:])]


def main() -> None:
    LIBRARY.emu_options(b"random", ctypes.c_uint64(1), 0)
    k = DeviceKernel("emu", _ffi.load("emu"))
    expected = [run(k, case) for case in CASES]
    assert reports() == 0, TEXT.value.decode()
    noticed = {}
    for barrier in sys.argv[1:]:
        LIBRARY.emu_skip_barrier(barrier.encode())
        for case, numbers in zip(CASES, expected):
            changed = run(k, case) != numbers
            if reports() or changed:
                noticed[barrier] = " ".join([case[0].__name__, *map(str, case[1:])])
                break
    print(json.dumps(noticed))


main()
