"""Placeholder until the table's reader lands."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    vocab_size: int
    max_seq_len: int
    n_layer: int
    n_head: int
    n_embd: int
    window: int = 0
