"""Intel's AMX: the instructions in plain C give the bits of the hardware, and so does every product on them."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import BF16_ISAS, CANARY, Kernel

from pyllmc.parity.dropout import Dropout

AMX = [isa for isa in BF16_ISAS if isa in ("amx", "amx_emulated")]
if not AMX:
    pytest.skip("neither AMX nor AVX2, which its emulation is compiled for", allow_module_level=True)

# Computed on an Intel Xeon with AMX (family 6, model 167): sums of 64 x 64 products of 64 numbers of each kind
HARDWARE = {
    "any bits": "098fe722c26501a7",
    "infinite, NaN and zero": "f2722d2cfb2a575d",
    "denormal and large": "be414c34eba002fd",
    "just normal": "1c69c98aca0edba3",
    "tiny products": "b2558cb8925941c7",
    "far apart": "704488e835eebe7a",
    "near one": "79e565be247b88f2",
}


def words(seed: int, count: int) -> np.ndarray:
    """Random 16-bit words by Knuth's MMIX generator, which no version of a library changes."""
    state, found = seed, np.empty(count, np.uint16)
    for i in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        found[i] = state >> 48
    return found


def exponents(bits: np.ndarray, low: int, high: int) -> np.ndarray:
    """The same signs and fractions, with exponents between two."""
    span = high - low + 1
    return (bits & 0x807F) | ((low + (bits >> 7 & 0xFF) % span) << 7).astype(np.uint16)


def sprinkled(bits: np.ndarray, others: list[int]) -> np.ndarray:
    """One in 301 numbers is one of the others."""
    bits = exponents(bits, 120, 134)
    bits[::301] = np.resize(np.array(others, np.uint16), bits[::301].shape)
    return bits


KINDS = {  # each makes operands of random words
    "near one": lambda bits: exponents(bits, 124, 130),
    "far apart": lambda bits: exponents(bits, 67, 187),
    "tiny products": lambda bits: exponents(bits, 60, 67),
    "just normal": lambda bits: exponents(bits, 63, 64),
    "denormal and large": lambda bits: np.where(bits & 1, exponents(bits, 0, 1), exponents(bits, 180, 190)),
    "infinite, NaN and zero": lambda bits: sprinkled(
        bits, [0x7F80, 0xFF80, 0x7FC1, 0xFFA5, 0, 0x8000, 0x0001]
    ),
    "any bits": lambda bits: bits,
}


def operands(kind: str, seed: int, M: int, N: int, K: int) -> tuple[np.ndarray, np.ndarray]:
    """A (M,K) and B (N,K) of numbers that bf16 holds, as floats."""
    bits = KINDS[kind](words(seed, (M + N) * K)).astype(np.uint32) << 16
    both = bits.view(np.float32).reshape(M + N, K)
    return both[:M].copy(), both[M:].copy()


def product(isa: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a b' as the kernels compute it, in floats: those of weights' gradients."""
    (M, K), N = a.shape, len(b)
    kernels, c = Kernel(isa, 1, "bf16"), np.full((M, N), np.nan, np.float32)
    kernels.workspace(1, K, max(M, N))
    kernels.matmul_backward_weight(c, None, a.T.copy(), b.T.copy(), 0, 1, K, N, M)
    return c


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isa", AMX)
def test_bits_of_the_hardware(isa, kind):
    c = product(isa, *operands(kind, 7, 65, 64, 64))
    assert hashlib.sha256(c.tobytes()).hexdigest()[:16] == HARDWARE[kind]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(65, 64, 33), (97, 200, 1100), (65, 1, 8200), (600, 70, 40), (8, 97, 70)])
def test_every_product_has_the_bits_of_the_emulation(shape, seed):
    """Long sums are cut at the same places; each bit depends on the shape alone."""
    if "amx" not in AMX:
        pytest.skip("this CPU has no AMX")
    M, N, K = shape
    a, b = operands("near one", seed, M, N, K)
    assert_same_bits(*(product(isa, a, b) for isa in ("amx", "amx_emulated")))


@pytest.mark.parametrize("isa", AMX)
def test_a_thin_gradient_has_the_bits_of_a_part_of_a_wide_one(isa):
    """It is computed otherwise (csrc/cpu/gemm_thin.c), but each sum in the same order."""
    a, b = operands("near one", 5, 40, 130, 4300)
    whole = product(isa, a, b)
    assert_same_bits(product(isa, a[:9].copy(), b), whole[:9].copy())
    assert_same_bits(product(isa, a, b[:16].copy()), whole[:, :16].copy())


@pytest.mark.parametrize("drop", [None, Dropout(0.2, seed=3)], ids=["", "dropout"])
@pytest.mark.parametrize("r", [8, 16, 40])
def test_adapters_have_the_bits_of_the_emulation(r, drop):
    if "amx" not in AMX:
        pytest.skip("this CPU has no AMX")
    M, C, OC = 70, 200, 97
    rng = np.random.default_rng(r)
    shapes = {"x": (M, C), "W": (OC, C), "b": (OC,), "A": (r, C), "B": (OC, r), "dout": (M, OC)}
    given = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}

    def results(isa: str) -> list[np.ndarray]:
        kernels = Kernel(isa, 2, "bf16")
        kernels.workspace(1, M, C)
        x, W, b, A, B, dout = given.values()
        masks = drop and drop.words()
        out, hidden, dhidden, dinp = (np.full((M, n), np.nan, np.float32) for n in (OC, r, r, C))
        kernels.lora_forward(out, None, hidden, x, W, b, A, B, masks, 2.0, 1, M, C, OC, r)
        kernels.lora_backward_hidden(dhidden, dout, B, 2.0, 1, M, OC, r)
        kernels.lora_backward_input(dinp, dout, W, dhidden, A, None, masks, 1, M, C, OC, r)
        return [out, hidden, dhidden, dinp]

    for one, two in zip(results("amx"), results("amx_emulated")):
        assert_same_bits(one, two)


def aligned(*shape: int) -> np.ndarray:
    """NaN in rows of whole cache lines, in bf16, too, with canaries behind; other arrays begin where NumPy likes."""
    size = int(np.prod(shape))
    memory = np.full(size + 64, np.nan, np.float32)
    at = -memory.ctypes.data % 128 // 4
    memory[at + size :] = CANARY
    return memory[at : at + size].reshape(shape)


def assert_same_bits(one: np.ndarray, two: np.ndarray) -> None:
    np.testing.assert_array_equal(one.view(np.int32), two.view(np.int32))


def moved(by: int):
    """Makes arrays like aligned() whose first element lies further on in a cache line."""
    return lambda *shape: aligned(int(np.prod(shape)) + by)[by:].reshape(shape)


@pytest.mark.parametrize("isa", AMX)
def test_a_large_result_is_stored_past_the_caches_to_the_same_bits(isa):
    """Only whole vectors at whole lines are, so the same product at another address is stored in the usual way."""
    M, few, many = 1040, 40, 1040
    rng = np.random.default_rng(1)
    shapes = (M, few), (many, few), (many,), (few, many), (few, many), (M, many)
    x, w, bias, wide, dout, pre = (rng.standard_normal(shape, np.float32) for shape in shapes)
    kernels = Kernel(isa, 2, "bf16")
    kernels.workspace(1, M, many)

    def results(new) -> list[np.ndarray]:
        out, gelu, also, dpre, dw = (new(M, many) for _ in range(5))
        kernels.matmul_forward(out, x, w, bias, 1, M, few, many)
        kernels.matmul_gelu_forward(gelu, also, x, w, bias, 1, M, few, many)
        kernels.matmul_gelu_backward_input(dpre, x, wide, pre, 1, M, many, few)
        kernels.matmul_backward_weight(dw, None, dout, wide, 0, 1, few, many, many)
        return [out, gelu, also, dpre, dw]

    whole = results(aligned)
    for by in (1, 8, 16):
        for one, two in zip(whole, results(moved(by))):
            assert np.isfinite(one).all()
            assert_same_bits(one, two)
            assert one.base[-1] == CANARY


@pytest.mark.parametrize("isa", AMX)
def test_attention_stores_past_the_caches_to_the_same_bits(isa):
    B, T, C, NH = 1, 150, 128, 2
    qkv = np.random.default_rng(1).standard_normal((T, 3 * C), np.float32)
    kernels = Kernel(isa, 2, "bf16")
    kernels.workspace(B, T, C, NH)

    def results(new) -> list[np.ndarray]:
        out, lse, dqkv = new(T, C), new(NH, T), new(T, 3 * C)
        kernels.attention_forward(out, lse, qkv, None, None, B, T, C, NH, 0)
        kernels.attention_backward(dqkv, qkv[:, :C].copy(), out, lse, qkv, None, None, B, T, C, NH, 0)
        return [out, dqkv]

    for by in (1, 8, 16):
        for one, two in zip(results(aligned), results(moved(by))):
            assert np.isfinite(one).all()
            assert_same_bits(one, two)


REFUSED = """
import ctypes, sys
class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
small = ctypes.create_string_buffer(2048)
assert not ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(small), 0, 2048)), None)
from pyllmc.engine import _ffi
lib = _ffi.load()
bf16 = lib.LLMC_BF16
print(_ffi.text(lib.llmc_kernels(b"", bf16).name), _ffi.text(lib.llmc_refused()), lib.llmc_kernels(b"amx", bf16) == _ffi.ffi().NULL)
"""


def test_the_system_refuses():
    """Linux does if a thread's stack for signals cannot hold the tiles; the next set that is fast on Intel's CPUs is taken, with a reason."""
    if "amx" not in AMX:
        pytest.skip("this CPU has no AMX")
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=True)
    assert done.stdout == ("avx512 no AMX: a thread's stack for signals is too small for it True\n")
