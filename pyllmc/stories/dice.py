"""The random numbers of the corpora that are made here. Standard library only."""

from __future__ import annotations


class Dice:
    """Random numbers by SplitMix64 (Steele, Lea, Flood 2014), because Python's own may change with its version."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def roll(self, sides: int) -> int:
        """A number in [0, sides), from the upper 32 of 64 bits."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        z ^= z >> 31
        return ((z >> 32) * sides) >> 32
