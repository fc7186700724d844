"""struct Kernels is complete on every instruction set, and each of its entries has a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import BF16_ISAS, CPU_KERNELS, ISAS, ROOT, ffi, lib, make_kernels

from pyllmc.engine import _ffi

ENTRIES = [name for name, field in ffi.typeof("Kernels").fields if field.type.kind == "function"]
# the entries before these are for memory, not for layers
KERNELS = ENTRIES[ENTRIES.index("copy_out") + 1 :]


def pointers(name: str) -> dict[str, object]:
    table = make_kernels(name).table
    return {entry: getattr(table, entry) for entry in ENTRIES}


@pytest.mark.parametrize("name", CPU_KERNELS)
def test_every_entry_is_there(name: str):
    missing = [entry for entry, pointer in pointers(name).items() if pointer == ffi.NULL]
    assert not missing, f"{name} lacks {', '.join(missing)}"


@pytest.mark.parametrize("name", CPU_KERNELS)
def test_no_kernel_is_borrowed(name: str):
    """Each set has its own function for each element, so that testing one does not test another twice."""
    ours = pointers(name)
    for other in CPU_KERNELS:
        theirs = pointers(other)
        shared = [entry for entry in KERNELS if other != name and ours[entry] == theirs[entry] != ffi.NULL]
        assert not shared, f"{name} shares {shared} with {other}"


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_has_a_test(name: str):
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    assert any(re.search(rf"\b{name}\b", path.read_text()) for path in tests), f"no test calls {name}"


# ---- which kernels llmc_kernels returns ----


def chosen(isa: str, element: int, monkeypatch) -> tuple[str, int] | str:
    """The set and the element, or the error, if $PYLLMC_ISA names the set."""
    monkeypatch.setenv("PYLLMC_ISA", isa)
    table = lib.llmc_kernels(ffi.NULL, element)
    return _ffi.message(lib) if table == ffi.NULL else (_ffi.text(table.name), table.element)


def test_a_set_that_is_named_has_the_element_that_is_asked_for(monkeypatch):
    for isa in {*ISAS, *BF16_ISAS}:
        for element, sets in ((lib.LLMC_FP32, ISAS), (lib.LLMC_BF16, BF16_ISAS)):
            if isa in sets:
                assert chosen(isa, element, monkeypatch) == (isa, element)


def test_any_element_is_fp32_where_there_is_fp32(monkeypatch):
    for isa in {*ISAS, *BF16_ISAS}:
        first = lib.LLMC_FP32 if isa in ISAS else lib.LLMC_BF16
        assert chosen(isa, lib.LLMC_AUTO, monkeypatch) == (isa, first)
    assert chosen("", lib.LLMC_AUTO, monkeypatch) == chosen("", lib.LLMC_FP32, monkeypatch)


@pytest.mark.parametrize("isa", [isa for isa in BF16_ISAS if isa not in ISAS])
def test_a_set_of_bf16_alone_is_refused_for_fp32(isa: str, monkeypatch):
    """The one line says how it goes on."""
    error = chosen(isa, lib.LLMC_FP32, monkeypatch)
    assert error == f"{isa} has kernels for bf16 only: unset PYLLMC_ISA, or choose the precision bf16"


def test_names_of_other_machines_and_of_none(monkeypatch):
    foreign = "neon" if "generic" in ISAS else "avx2"
    assert chosen(foreign, lib.LLMC_AUTO, monkeypatch) == (
        f"{foreign} belongs to another kind of machine: unset PYLLMC_ISA"
    )
    assert "no kernels called 'avx3': PYLLMC_ISA knows amx, " in chosen("avx3", lib.LLMC_BF16, monkeypatch)
