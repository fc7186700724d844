"""Arrays of float32 for kernels that store bfloat16."""

from __future__ import annotations

import numpy as np

GUARD = 32  # elements around every copy that no kernel may touch
CANARY = np.uint16(0xF780)  # -(2^112)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, ties to even, as its 16 bits. Bits that are a bfloat16 already stay, whatever they mean."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def base_of(array: np.ndarray) -> np.ndarray:
    """The array that this one is a part of: the one with the guards that a test put around it."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


class Narrow:
    """A copy of an array in bfloat16, for one call. It begins at half the address within a cache line, so that a test
    that moves its array moves the copy."""

    def __init__(self, base: np.ndarray) -> None:
        self.base = base
        self.memory = np.full(base.size + 3 * GUARD, CANARY)
        start = GUARD + (address(base) // 2 - address(self.memory)) % 64 // 2
        self.before, self.bits, self.behind = np.split(self.memory, [start, start + base.size])
        self.bits[:] = to_bf16(base).ravel()

    def address_of(self, part: np.ndarray) -> int:
        return address(self.bits) + (address(part) - address(self.base)) // 2

    def fetch(self) -> None:
        """Copies back into the array. An array that the kernel may only read comes back as numbers of bfloat16."""
        assert (self.before == CANARY).all(), "written before the buffer"
        assert (self.behind == CANARY).all(), "written past the buffer"
        self.base[...] = from_bf16(self.bits).reshape(self.base.shape)
