"""The masks of dropout, from the rule that csrc/kernels.h documents: for the reference in PyTorch, and for tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

KINDS = (
    "embedding", "attention", "attproj", "fcproj", "lora_qkv", "lora_attproj", "lora_fc", "lora_fcproj",
)  # fmt: skip # in the order of csrc/kernels.h
ROUNDS = 7
FACTORS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
LOW = np.uint64(0xFFFFFFFF)


def philox(counter: tuple[np.ndarray, ...], key: tuple[int, int], rounds: int = ROUNDS) -> list[np.ndarray]:
    """Philox4x32 (Salmon et al., SC 2011): four words of 32 bits, as uint64, from a counter of four and a key of two."""
    a, b, c, d = (np.asarray(word, np.uint64) for word in counter)
    for i in range(rounds):
        key0, key1 = (np.uint64((k + i * step) & 0xFFFFFFFF) for k, step in zip(key, KEY_STEPS))
        left, right = a * np.uint64(FACTORS[0]), c * np.uint64(FACTORS[1])
        a, c = (right >> np.uint64(32)) ^ b ^ key0, (left >> np.uint64(32)) ^ d ^ key1
        b, d = right & LOW, left & LOW
    return [a, b, c, d]


class Dropout(NamedTuple):
    """The numbers of struct Dropout in csrc/kernels.h."""

    p: float
    seed: int = 0
    step: int = 0
    micro_step: int = 0
    layer: int = 0
    kind: int = 0

    @property
    def threshold(self) -> int:
        """The numbers 0..65535 below it drop."""
        return min(round(self.p * 65536), 65535)

    @property
    def scale(self) -> float:
        """The factor of what is kept: 1 / (1 - p), for p as a multiple of 1/65536."""
        return 65536 / (65536 - self.threshold)

    @property
    def key(self) -> tuple[int, int]:
        return self.seed & 0xFFFFFFFF, self.seed >> 32 & 0xFFFFFFFF

    @property
    def place(self) -> int:
        adapters = 2**31 if self.kind >= KINDS.index("lora_qkv") else 0
        return (adapters + self.micro_step * 4096 + self.layer * 4 + self.kind % 4) & 0xFFFFFFFF

    def words(self) -> np.ndarray:
        """The struct in memory, as six words of 32 bits, which numpy takes for int32."""
        scale = np.float32(self.scale).view(np.uint32)
        numbers = [*self.key, self.step & 0xFFFFFFFF, self.place, self.threshold, int(scale)]
        return np.array(numbers, np.uint32).view(np.int32)

    def kept(self, rows: int, columns: int) -> np.ndarray:
        """(rows, columns) bool: True where an element is kept."""
        groups = -(-columns // 8)
        counter = (
            np.arange(groups)[None, :],
            np.arange(rows)[:, None],
            np.uint64(self.step),
            np.uint64(self.place),
        )
        words = np.stack(np.broadcast_arrays(*philox(counter, self.key)), -1)  # (rows, groups, 4)
        numbers = np.stack([words & np.uint64(0xFFFF), words >> np.uint64(16)], -1)  # (rows, groups, 4, 2)
        return numbers.reshape(rows, 8 * groups)[:, :columns] >= self.threshold

    def factors(self, rows: int, columns: int) -> np.ndarray:
        """(rows, columns) float64: 0 where an element drops, else scale."""
        return np.where(self.kept(rows, columns), self.scale, 0.0)


class Dropouts(NamedTuple):
    """All dropouts of a model: the probabilities, and what the masks of a pass follow from."""

    embd: float = 0.0
    attn: float = 0.0
    resid: float = 0.0
    seed: int = 0
    step: int = 0
    micro_step: int = 0
    lora: float = 0.0

    def of(self, kind: str, layer: int = 0) -> Dropout:
        """The dropout of a kind (KINDS) in a layer."""
        p = {"embedding": self.embd, "attention": self.attn}.get(kind, self.resid)
        p = self.lora if kind.startswith("lora_") else p
        return Dropout(p, self.seed, self.step, self.micro_step, layer, KINDS.index(kind))

    def drop(self, x: Any, kind: str, layer: int = 0) -> Any:
        """A tensor of PyTorch's times its factors; its last axis has the columns, the others the rows."""
        dropout = self.of(kind, layer)
        if not dropout.threshold:
            return x
        columns = x.shape[-1]
        factors = dropout.factors(x.numel() // columns, columns).reshape(x.shape)
        return x * x.new_tensor(factors)
