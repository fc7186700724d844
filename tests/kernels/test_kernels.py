"""struct Kernels is complete on every instruction set, and each of its entries has a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ISAS, ROOT, ffi, lib

ENTRIES = [name for name, field in ffi.typeof("Kernels").fields if field.type.kind == "function"]
# the entries before and after these are for memory, not for layers
KERNELS = ENTRIES[ENTRIES.index("copy_out") + 1 : -1]


def pointers(isa: str) -> dict[str, object]:
    table = lib.llmc_kernels(isa.encode())
    return {name: getattr(table, name) for name in ENTRIES}


@pytest.mark.parametrize("isa", ISAS)
def test_every_entry_is_there(isa: str):
    missing = [name for name, pointer in pointers(isa).items() if pointer == ffi.NULL]
    assert not missing, f"{isa} lacks {', '.join(missing)}"


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "reference"])
def test_no_kernel_is_borrowed(isa: str):
    """Each set has its own function, so that testing one set does not test another twice."""
    for other in ISAS:
        if other != isa:
            theirs = pointers(other)
            shared = [
                name for name, pointer in pointers(isa).items() if pointer == theirs[name] and name in KERNELS
            ]
            assert not [name for name in shared if theirs[name] != ffi.NULL], (
                f"{isa} shares {shared} with {other}"
            )


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_has_a_test(name: str):
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    assert any(re.search(rf"\b{name}\b", path.read_text()) for path in tests), f"no test calls {name}"
