"""Steps of a tiny model whose products the stand-in computes, in one scenario after another; prints JSON by scenario.

    python tests/cublas/scenarios.py fp32|bf16 fake.so FOLDER

It is a process of its own, because the library is looked for once; it has no PyTorch, so that it starts quickly.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import sys
from pathlib import Path

import numpy as np

import pyllmc

PRECISION, FAKE, FOLDER = sys.argv[1], ctypes.CDLL(sys.argv[2]), Path(sys.argv[3])
SIZES = pyllmc.GPTConfig(40, 8, 2, 2, 16)
CACHE, EPILOGUES = "PYLLMC_CUBLASLT_CACHE", "PYLLMC_EPILOGUES"
SETTINGS = {"refuse": 0, "wrong": 0, "algorithms": 3, "fastest": 0}
CALLS = [
    "Create",
    "MatmulDescCreate",
    "MatmulDescSetAttribute",
    "MatrixLayoutCreate",
    "MatmulPreferenceCreate",
]
CALLS += ["MatmulPreferenceSetAttribute", "MatmulAlgoGetHeuristic", "MatmulAlgoCheck", "Matmul"]
GELU, DGELU, SUMS = 164, 192, 512


def value(name: str) -> ctypes.c_int:
    return ctypes.c_int.in_dll(FAKE, f"fake_{name}")


def tell(fail: str, settings: dict[str, int]) -> None:
    for name, number in {**SETTINGS, **settings}.items():
        value(name).value = number
    (ctypes.c_char * 64).in_dll(FAKE, "fake_fail").value = f"cublasLt{fail}".encode() if fail else b""


def counts() -> list[int]:
    return [
        value("products").value,
        value("checks").value,
        *(ctypes.c_int * 3).in_dll(FAKE, "fake_epilogues"),
    ]


def steps(
    fail: str = "", cache: str | None = "", epilogues: str = "1", recompute: int = 0, **settings: int
) -> dict:
    """Two steps of two micro-steps: losses, every bit of the learned weights, and the calls to the library."""
    os.environ[EPILOGUES] = epilogues
    if cache is None:
        os.environ.pop(CACHE)
    else:
        os.environ[CACHE] = cache
    tell(fail, settings)
    m = pyllmc.Model(
        SIZES, B=2, T=8, device="emu", precision=PRECISION, recompute=recompute, keep_logits=False
    )
    before, losses = counts(), []
    for step in range(2):
        for micro in range(2):
            ids = np.random.default_rng(2 * step + micro).integers(0, SIZES.vocab_size, (2, 9))
            losses.append(m.micro_step(ids[:, :-1], ids[:, 1:], scale=0.5, accumulate=micro > 0))
        m.clip_grad_norm(1.0)
        m.update(lr=1e-2)
    learned = b"".join(m.params[name].tobytes() for name in m.params)
    products, checks, *used = (after - b for after, b in zip(counts(), before))
    digest = hashlib.sha256(repr(losses).encode() + learned).hexdigest()
    return {"losses": losses, "bits": digest, "products": products, "checks": checks, "epilogues": used}


def failures() -> dict:
    return {f"fail {call}": steps(call, cache=str(FOLDER / f"{call}.txt")) for call in CALLS}


def behaviours() -> dict:
    found = {f"level {level}": steps(recompute=level) for level in range(5)}
    found |= {f"level {level}, none": steps(recompute=level, epilogues="0") for level in (0, 1)}
    for name, epilogue in (("gelu", GELU), ("dgelu", DGELU), ("sums", SUMS)):
        found |= {f"{how} {name}": steps(**{how: epilogue}) for how in ("refuse", "wrong")}
    found |= {"no algorithm": steps(algorithms=0), "refuse all": steps(refuse=1)}
    return found


def damage(path: Path, how: str) -> Path:
    """A damaged copy of a file of choices."""
    text, other = path.read_text(), path.with_name(f"{how}.txt")
    changed = {
        "cut": lambda: text[: len(text) // 2],
        "words": lambda: text.replace(" 0000000000000002 ", " 0000000000000001 "),
        "foreign": lambda: text.replace("130000", "120900"),
        "binary": lambda: "\0\r\x7f" * 1000,
        "long": lambda: "x" * 100_000 + "\n" + text,
        "twice": lambda: text + text.replace(" 0000000000000002 ", " 0000000000000000 "),
    }
    other.write_text(changed[how]())
    return other


def choices() -> dict:
    os.environ["HOME"] = str(FOLDER)
    os.environ.pop("XDG_CACHE_HOME", None)
    path = FOLDER / ".cache" / "pyllmc" / "cublaslt.txt"
    found = {"untimed": steps(fastest=2), "timed": steps(cache=None, fastest=2)}
    found["kept"] = steps(cache=str(path), fastest=1)
    for how in ("cut", "words", "foreign", "binary", "long", "twice"):
        found[how] = steps(cache=str(damage(path, how)), fastest=2)
    found["recovered"] = steps(cache=str(path.with_name("cut.txt")), fastest=1)
    found["does not run"] = steps("MatmulAlgoCheck", cache=str(path))
    found["a folder"] = steps(cache=str(FOLDER), fastest=2)
    found["endless"] = steps(cache="/dev/full", fastest=2)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))  # a write is cut off, as on a full disk
    found["full"] = steps(cache=str(FOLDER / "full.txt"), fastest=2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    found["elsewhere"] = steps(cache="/proc/none/cublaslt.txt", fastest=2)
    os.environ["XDG_CACHE_HOME"] = str(FOLDER / "xdg")
    found["xdg"] = steps(cache=None, fastest=2)
    (FOLDER / "xdg" / "pyllmc" / "cublaslt.txt").rename(FOLDER / "xdg.txt")
    return found


if __name__ == "__main__":
    found = {"ours": steps("Create"), **behaviours()}
    if PRECISION == "bf16":  # these do not depend on the element
        found |= failures() | choices()
    json.dump(found, sys.stdout)
