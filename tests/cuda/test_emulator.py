"""cuda/emu catches every kind of bug that it is made for, and reports nothing for the correct twins."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest
from emulated import SCHEDULES, SOURCES, Emulator, checked, emulator, libraries, plain

LAUNCH_FAILURE, INVALID_CONFIGURATION = 719, 9

# ---- the gallery of bugs ----

N = 64
IN = np.arange(1, N + 1, dtype=np.float32)
GALLERY = re.findall(r"^    X\((\w+),", (SOURCES / "bugs.cu").read_text(), re.M)

# The reports of the checked build. {line} is the line of the kernel with the marker that is given as the second item.
SHARED_RACE = (
    r"race: (read|write) at {line} of __shared__ .*{name}<true>.*; the (read|write) at bugs.cu:\d+ by thread"
)
CAUGHT = {
    "missing_syncthreads": (SHARED_RACE, "sum += part"),
    "missing_second_syncthreads": (SHARED_RACE, "part[threadIdx.x] ="),
    "missing_syncwarp": (SHARED_RACE, "row[first + 31 - lane]"),
    "half_syncwarp": (SHARED_RACE, "(bug ? 16 : 15)"),
    "barrier_not_by_all": (
        r"wait for each other for ever: 40 wait in __syncthreads at {line}, 24 have returned",
        "__syncthreads",
    ),
    "two_barriers_at_once": (
        r"__syncthreads, while others of the block wait in __syncthreads at {line}",
        "__syncthreads",
    ),
    "shuffle_with_absent_lane": (r"{line}: __shfl_xor_sync reads lane 2\d, which is not there", "__shfl_xor"),
    "lane_outside_its_mask": (r"{line}: __shfl_xor_sync: lane 16 is not in its mask 0000ffff", "__shfl_xor"),
    "two_shuffles_at_once": (
        r"__shfl_xor_sync, while its warp is in __shfl_down_sync at {line}",
        "__shfl_down",
    ),
    "race_between_blocks": (
        r"race: (read|write) at {line} of device memory.*of another block is not",
        "out[0] +=",
    ),
    "missing_threadfence": (r"race: read at {line} of device memory.*of another block", "sum += out"),
    "global_out_of_bounds": (
        r"out of bounds: {line}: read of 4 bytes, 0 bytes past the end of device memory \(256 bytes\)",
        "in[bug ?",
    ),
    "shared_out_of_bounds": (
        r"{line}: write of 4 bytes, 0 bytes past the end of __shared__ .*::a \(256 bytes\)",
        "p[threadIdx.x + bug]",
    ),
    "dynamic_shared_out_of_bounds": (
        r"{line}: write of 4 bytes, 0 bytes past the end of dynamic shared memory \(256 bytes\)",
        "tile[threadIdx.x + bug]",
    ),
    "index_out_of_bounds": (r"out of bounds: {line}: index 4 of an array", "local[last + bug]"),
    "uninitialised_shared": (
        r"thread \(4,0,0\): uninitialised: read at {line} of __shared__ .*tile, byte 20 of 256",
        "tile[threadIdx.x ^ 1]",
    ),
    "uninitialised_global": (r"uninitialised: read at {line} of device memory", "out[threadIdx.x] + 1"),
    "host_pointer": (
        r"out of bounds: {line}: read of 4 bytes: not device memory \(a pointer of the host\?\)",
        "void host_pointer",
    ),
    "null_pointer": (r"{line}: read of 4 bytes through a null pointer", "gridDim.y - 1"),
    "misaligned_float4": (
        r"misaligned: {line}: an address that is not 16-byte aligned \(4 bytes off\)",
        "float4 v",
    ),
    "cp_async_wait_too_weak": (
        r"cp.async not waited for: read at {line} of __shared__ .*; the copy is at bugs.cu:\d+",
        "tile[1][threadIdx.x]",
    ),
    "cp_async_without_barrier": (SHARED_RACE, "tile[4 * threadIdx.x ^ 4]"),
    "cp_async_never_waited_for": (r"returned before its cp.async copies were waited for", ""),
    "cp_async_misaligned": (r"{line}: cp_async_16: an address that is not 16-byte aligned", "cp_async_16"),
    "ldmatrix_misaligned": (r"{line}: ldmatrix_x4: a row that is not 16-byte aligned", "ldmatrix_x4("),
    "mma_without_all_lanes": (r"{line}: mma_bf16_16816 needs all 32 lanes", "mma_bf16"),
    "launched_too_large": (
        r"invalid configuration argument: kernel .*: 2048 threads in a block, at most 1024",
        "",
    ),
    "too_much_shared_memory": (
        r"50000 bytes of dynamic shared memory, at most 49152 \(cudaFuncSetAttribute",
        "",
    ),
}
# ... and those that every build shows: as a fault, in the same words, or as NaN
FAULTS_ALWAYS = {
    "barrier_not_by_all",
    "two_barriers_at_once",
    "shuffle_with_absent_lane",
    "lane_outside_its_mask",
    "two_shuffles_at_once",
    "cp_async_never_waited_for",
    "cp_async_misaligned",
    "ldmatrix_misaligned",
    "mma_without_all_lanes",
    "launched_too_large",
    "too_much_shared_memory",
}
NAN_ALWAYS = {
    "missing_syncthreads",
    "missing_syncwarp",
    "uninitialised_shared",
    "uninitialised_global",
    "cp_async_wait_too_weak",
}


def line_of(kernel: str, marker: str) -> str:
    """bugs.cu:N, the first line with the marker in this kernel."""
    lines = (SOURCES / "bugs.cu").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if re.search(rf"void {kernel}\(", line))
    return f"bugs.cu:{next(i + 1 for i in range(first, len(lines)) if marker in lines[i])}"


def launch(emulator: Emulator, name: str, bug: bool) -> tuple[str, np.ndarray]:
    """Launches a kernel: all reports, and the output."""
    fresh = name == "uninitialised_global"
    out = emulator.empty(4 * N) if fresh else emulator.put(np.zeros(N, np.float32))
    given = IN.ctypes.data_as(ctypes.c_void_p) if bug and name == "host_pointer" else emulator.put(IN)
    code = getattr(emulator.lib, name)(int(bug), out, given, N)
    said = emulator.reports() + ([emulator.error(code)] if code else [])
    return "\n".join(said), np.empty(0) if code else emulator.get(out, N, np.float32)


def test_the_gallery_and_the_table_agree():
    assert set(GALLERY) == set(CAUGHT)


@pytest.mark.parametrize("name", GALLERY)
def test_bug_is_caught(checked, name):
    checked.begin()
    said, _ = launch(checked, name, bug=True)
    pattern, marker = CAUGHT[name]
    line = re.escape(line_of(name, marker)) if marker else ""
    assert re.search(pattern.replace("{line}", line).replace("{name}", name), said), said
    kernel = rf"kernel {name}<true>"
    assert re.search(kernel, said), said
    if name not in ("launched_too_large", "too_much_shared_memory"):
        assert re.search(kernel + r", block \(\d,0,0\)", said), said


@pytest.mark.parametrize("name", sorted(FAULTS_ALWAYS))
def test_fault_is_caught_in_the_plain_build(plain, name):
    plain.begin()
    said, _ = launch(plain, name, bug=True)
    pattern, marker = CAUGHT[name]
    line = re.escape(line_of(name, marker)) if marker else ""
    assert re.search(pattern.replace("{line}", line), said), said


@pytest.mark.parametrize("name", sorted(NAN_ALWAYS))
def test_what_was_not_written_is_nan(plain, name):
    seen = []
    for schedule in SCHEDULES:
        plain.begin(schedule)
        said, out = launch(plain, name, bug=True)
        assert said == ""
        seen.append(np.isnan(out).any())
    assert any(seen)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_correct_twins_are_silent(emulator, schedule):
    for name in GALLERY:
        first = None
        for seed in (1, 2):
            emulator.begin(schedule, seed)
            said, out = launch(emulator, name, bug=False)
            assert said == "", name
            assert np.isfinite(out).all(), name
            first = out if first is None else first
            assert np.array_equal(out, first) or name == "missing_threadfence", name


def test_a_fault_is_sticky_until_reset(plain):
    plain.begin()
    said, _ = launch(plain, "barrier_not_by_all", bug=True)
    p = plain.empty(64)
    assert plain.lib.last_error() == LAUNCH_FAILURE
    assert plain.lib.last_error() == LAUNCH_FAILURE, "asking does not cure it"
    assert plain.lib.device_free(p) == LAUNCH_FAILURE
    assert plain.error(LAUNCH_FAILURE) == said
    plain.begin()
    assert plain.lib.last_error() == 0
    said, out = launch(plain, "barrier_not_by_all", bug=False)
    assert said == "" and np.array_equal(out, IN)


def test_a_refused_launch_is_told_once(plain):
    plain.begin()
    assert plain.lib.launched_too_large(1, None, None, N) == INVALID_CONFIGURATION
    assert plain.lib.last_error() == 0


@pytest.mark.parametrize("barrier", [0, 1])
def test_each_barrier_can_be_taken_out(checked, barrier):
    """The mutation test of a kernel: without the barrier the checked build must object."""
    lines = (SOURCES / "bugs.cu").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if "void missing_second_syncthreads" in line)
    places = [i + 1 for i in range(start, start + 12) if "__syncthreads" in lines[i]]
    checked.begin()
    checked.lib.skip_barrier(f"bugs.cu:{places[barrier]}".encode())
    said, _ = launch(checked, "missing_second_syncthreads", bug=False)
    checked.begin()
    assert "race: " in said or "uninitialised: " in said
