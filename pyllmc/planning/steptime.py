"""The time of a step on n processes, from the time of one process and the rate of the network.

Times are in seconds, sizes in bytes, rates in bytes a second. The rate is that of the slowest link in the ring, each way. The
formulas leave out what a message costs besides its bytes, so real steps take longer where the ring is long (hundreds of processes),
and the gradients that are final last, the embeddings', which nothing hides. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

FP32, BF16 = 4, 2  # bytes of an element
TCP = 1448 / 1514  # the share of what an Ethernet carries that is not headers of its own, of IP or of TCP
OVERLAP = 0.66  # the share of a step in which gradients can travel: the backward pass is two thirds of it


def all_reduce_s(n: int, size: float, rate: float) -> float:
    """The time until n processes hold the sum of their blocks of `size` bytes: 2 (n-1)/n size/rate.

    Each process sends size/n bytes in each of 2 (n-1) turns: n-1 turns add, n-1 hand the sums round. This is the least that any
    all-reduce needs (Patarasuk & Yuan 2009, Bandwidth optimal all-reduce algorithms for clusters of workstations).
    """
    return 2 * (n - 1) / n * size / rate


def half_turn_s(n: int, size: float, rate: float) -> float:
    """The time of the first or of the second half of that ring: a reduce-scatter, or an all-gather of `size` bytes in all."""
    return (n - 1) / n * size / rate


@dataclass(frozen=True)
class Way:
    """How the processes of a run agree."""

    reduced: int = FP32  # bytes of an element that travels: FP32 or BF16
    zero: bool = False  # ZeRO-1: each process updates 1/n of the parameters, then all gather them
    accumulate: int = 1  # micro-steps of one optimizer step
    diloco: int = (
        0  # steps without any communication before an outer step; 0: gradients are averaged in each step
    )


@dataclass(frozen=True)
class Job:
    """What one process computes and sends.

    compute: the seconds of a micro-step alone, with clip and update. elements: those that have gradients. rate: of the slowest
    link. overlap: the share of `compute` in which gradients can travel. scatters: ZeRO-1 replaces the all-reduce by its first
    half (NCCL); else it reduces all gradients, because gloo's reduce-scatter takes twice the time of its all-reduce. carried: the
    share of the rate that carries gradients. unseen: elements whose gradients are zeros, so that only DiLoCo and ZeRO-1 send them.
    """

    compute: float
    elements: int
    rate: float
    overlap: float = OVERLAP
    scatters: bool = False
    carried: float = 1.0
    unseen: int = 0

    def sent(self, way: Way) -> int:
        """The elements that an averaging of gradients, or DiLoCo's exchange, is about."""
        return self.elements - (0 if way.diloco else self.unseen)

    def reduce_s(self, n: int, way: Way) -> float:
        """Averaging the gradients, or DiLoCo's changes of the parameters, once."""
        size = float(self.sent(way) * way.reduced)
        half = way.zero and self.scatters
        rate = self.carried * self.rate
        return half_turn_s(n, size, rate) if half else all_reduce_s(n, size, rate)

    def gather_s(self, n: int, way: Way) -> float:
        """ZeRO-1's second half: the updated parameters, as floats. Nothing is computed meanwhile."""
        return half_turn_s(n, float(self.elements * FP32), self.carried * self.rate) if way.zero else 0.0

    def waiting_s(self, n: int, way: Way) -> float:
        """The seconds of an optimizer step in which a process waits for the network.

        Gradients travel while the backward pass of the last micro-step runs: max(0, t_reduce - overlap t_compute). DiLoCo's outer
        step hides nothing, and its time is shared by the steps before it.
        """
        if way.diloco:
            return self.reduce_s(n, way) / way.diloco
        return max(0.0, self.reduce_s(n, way) - self.overlap * self.compute) + self.gather_s(n, way)

    def step_s(self, n: int, way: Way) -> float:
        """An optimizer step. The update counts in every micro-step, so long accumulation is a little faster than this."""
        return way.accumulate * self.compute + self.waiting_s(n, way)

    def efficiency(self, n: int, way: Way) -> float:
        """The share of a step in which a process computes, 0..1: the speed of n processes over n times that of one."""
        return way.accumulate * self.compute / self.step_s(n, way)

    # ---- from where on something pays ----

    def hidden_from(self, n: int, way: Way) -> float:
        """The rate from which on the averaging of gradients hides behind the backward pass; 0 for n = 1."""
        needed = self.reduce_s(n, way) * self.rate  # the bytes that pass each link
        hidden = self.overlap * self.compute
        return needed / hidden if hidden else (math.inf if needed else 0.0)

    def rate_for(self, n: int, way: Way, aim: float) -> float:
        """The rate at which an efficiency is just reached: waiting = k t (1/aim - 1). Not for DiLoCo."""
        reduced, gathered = self.reduce_s(n, way) * self.rate, self.gather_s(n, way) * self.rate
        allowed, hidden = way.accumulate * self.compute * (1 / aim - 1), self.overlap * self.compute
        shown = (reduced + gathered) / (allowed + hidden)
        return shown if reduced >= hidden * shown else gathered / allowed

    def first_shown(self, way: Way) -> int | None:
        """The least n at which processes wait for gradients; None if they never do. It follows from t_reduce > overlap t_compute,
        where t_reduce = (n-1)/n t_endless."""
        endless = self.reduce_s(2, way) * 2
        share = self.overlap * self.compute / endless
        if share >= 1:
            return None
        n = max(2, math.floor(1 / (1 - share)))
        return n if self.shows(n, way) else n + 1

    def shows(self, n: int, way: Way) -> bool:
        """True if n processes wait for gradients."""
        return self.reduce_s(n, way) > self.overlap * self.compute

    def accumulation_for(self, n: int, way: Way, aim: float) -> int:
        """The fewest micro-steps that reach an efficiency: k t / (k t + waiting) >= aim."""
        least = aim / (1 - aim) * self.waiting_s(n, replace(way, diloco=0)) / self.compute
        return self._least(least, lambda k: self.efficiency(n, replace(way, accumulate=k)) >= aim)

    def diloco_for(self, n: int, way: Way, aim: float) -> int:
        """The fewest steps between outer steps that reach an efficiency: k t / (k t + t_reduce / H) >= aim."""
        way = replace(way, zero=False)
        least = aim / (1 - aim) * self.reduce_s(n, replace(way, diloco=1)) / (way.accumulate * self.compute)
        return self._least(least, lambda H: self.efficiency(n, replace(way, diloco=H)) >= aim)

    def diloco_faster(self, n: int, way: Way) -> int | None:
        """The fewest steps between outer steps that are faster than averaging in each step: t_reduce / H < waiting. None: averaging
        is hidden, so that DiLoCo can only be slower."""
        each, way = replace(way, diloco=0), replace(way, zero=False)
        waiting = self.waiting_s(n, each)
        if not waiting:
            return None
        exchange = self.reduce_s(n, replace(way, diloco=1))
        return self._least(exchange / waiting, lambda H: exchange / H < waiting)

    @staticmethod
    def _least(near: float, holds: Callable[[int], bool]) -> int:
        """The least whole number from 1 on that holds; near: it, but for rounding."""
        k = max(1, math.floor(near))
        return next((i for i in (k, k + 1) if holds(i)), k + 2)
