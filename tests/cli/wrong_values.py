"""Values of every type that a function may be given by mistake, by a name for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np


class Hostile:
    """An object that answers nothing."""

    def __repr__(self) -> str:
        return "line one\nline two " + "x" * 500


STRIDED = np.arange(24).reshape(4, 6)[::2, ::3]
WRONG: dict[str, object] = {
    "None": None,
    "5": 5,
    "-1": -1,
    "2**40": 2**40,
    "2**70": 2**70,
    "-2**70": -(2**70),
    "1.5": 1.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "True": True,
    "1j": 1j,
    "text": "a",
    "empty text": "",
    "surrogate": "\ud800",
    "NUL": "a\0b",
    "two lines": "a\nb",
    "bytes": b"a",
    "bytes that are no UTF-8": b"\xff\x00",
    "list": [],
    "list of None": [None],
    "list of texts": ["a", "b"],
    "ragged": [[1], [2, 3]],
    "tuple": (1, 2),
    "dict": {},
    "set": {1},
    "object": object(),
    "hostile": Hostile(),
    "type": str,
    "function": len,
    "generator": (i for i in ()),
    "path": Path("none/such"),
    "float64 array": np.zeros((2, 3)),
    "strided array": STRIDED,
    "int8 array": np.zeros((1, 4), np.int8),
    "uint64 array": np.full((1, 4), 2**64 - 1, np.uint64),
    "array of NaN": np.full((1, 4), np.nan, np.float32),
    "array of no dimension": np.array(3),
    "array of three": np.zeros((1, 2, 2), int),
    "empty array": np.zeros((0, 4), int),
    "array of objects": np.array([None, "a"], object),
    "array of texts": np.array([["a", "b"]]),
    "complex array": np.zeros((1, 4), complex),
    "bool array": np.ones((1, 4), bool),
    "numpy's nan": np.float32("nan"),
}
