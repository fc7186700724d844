"""cuda/emu: CUDA on the CPU does what a GPU does, and every kind of bug it is there for is caught."""

from __future__ import annotations

import ctypes
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "tests/emulator"
SCHEDULES = ["in_order", "reversed", "random"]
LAUNCH_FAILURE, INVALID_CONFIGURATION = 719, 9
pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="the emulator is compiled with g++")


class Emulator:
    """A library of tests/emulator/*.cu with the emulator, plain or checked."""

    def __init__(self, path: Path) -> None:
        self.lib = ctypes.CDLL(str(path))
        self.lib.device_alloc.restype = ctypes.c_void_p
        self.lib.error_text.restype = ctypes.c_char_p
        for name in ("read_after_copy", "source_reused", "two_streams", "replay"):
            if hasattr(self.lib, name):
                getattr(self.lib, name).restype = ctypes.c_float

    def begin(self, schedule: str = "in_order", seed: int = 1, defer: bool = False, workers: int = 1) -> None:
        self.lib.reset()
        self.lib.skip_barrier(None)
        self.lib.workers(workers)
        assert self.lib.options(schedule.encode(), ctypes.c_uint64(seed), int(defer)) == 0
        self.reports()

    def reports(self) -> list[str]:
        text = ctypes.create_string_buffer(1 << 16)
        count = self.lib.report(text, ctypes.c_size_t(len(text)))
        lines = text.value.decode().splitlines()
        assert count in (-1, len(lines))
        return lines

    def error(self, code: int) -> str:
        return self.lib.error_text(code).decode()

    def empty(self, size: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.lib.device_alloc(ctypes.c_size_t(size)))

    def put(self, array: np.ndarray) -> ctypes.c_void_p:
        array = np.ascontiguousarray(array)
        p = self.empty(array.nbytes)
        assert self.lib.copy_in(p, array.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(array.nbytes)) == 0
        return p

    def get(self, p: ctypes.c_void_p, shape, dtype) -> np.ndarray:
        array = np.empty(shape, dtype)
        code = self.lib.copy_out(array.ctypes.data_as(ctypes.c_void_p), p, ctypes.c_size_t(array.nbytes))
        assert code == 0, self.error(code)
        return array

    def run(self, name: str, out: np.ndarray, *args) -> np.ndarray:
        """name(out, args...) with arrays on the device; returns what out became."""
        on_device = [self.put(a) if isinstance(a, np.ndarray) else a for a in (out, *args)]
        code = getattr(self.lib, name)(*on_device)
        assert code == 0, self.error(code)
        return self.get(on_device[0], out.shape, out.dtype)


BUILD = ROOT / "build/emulator"


def make(*targets: str) -> None:
    command = ["make", "--no-print-directory", "-j2", "-f", SOURCES / "Makefile", f"BUILD={BUILD}", *targets]
    subprocess.run([*command, f"PYTHON={sys.executable}"], cwd=ROOT, check=True)


@pytest.fixture(scope="session")
def libraries() -> Path:
    make()
    return BUILD


@pytest.fixture(scope="session")
def plain(libraries) -> Emulator:
    return Emulator(libraries / "libemu.so")


@pytest.fixture(scope="session")
def checked(libraries) -> Emulator:
    return Emulator(libraries / "libcheck.so")


@pytest.fixture(params=["plain", "checked"])
def emulator(request) -> Emulator:
    return request.getfixturevalue(request.param)


# ---- the gallery of bugs ----

N = 64
IN = np.arange(1, N + 1, dtype=np.float32)
GALLERY = re.findall(r"^    X\((\w+),", (SOURCES / "bugs.cu").read_text(), re.M)

# What the checked build says. {line} is the line of the kernel that holds the marker given as the second item.
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
# ... and those that show without it: as a fault, with the same words, or as NaN
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
    """Everything that was said, and the output."""
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


# ---- instructions, against numpy ----


def bf16(x: np.ndarray) -> np.ndarray:
    """float32 -> bits, to nearest, ties to even."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def bf16_value(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def pairs(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low.astype(np.uint32) | high.astype(np.uint32) << 16


LANE = np.arange(32)
G, T = LANE // 4, LANE % 4


def fragments(a: np.ndarray, b: np.ndarray, d: np.ndarray) -> np.ndarray:
    """(32, 10) words: what each lane holds of a (16, K), b (K, 8), d (16, 8), from the tables of the PTX ISA."""
    K = a.shape[1]
    words = np.zeros((32, 10), np.uint32)
    for r, (down, right) in enumerate([(0, 0), (8, 0), (0, 1), (8, 1)]):
        if K == 16:
            c = 2 * T + 8 * right
            words[:, r] = pairs(a[G + down, c], a[G + down, c + 1])
        else:
            words[:, r] = a[G + down, T + 4 * right]
    for r in range(2):
        k = 2 * T + 8 * r
        words[:, 4 + r] = pairs(b[k, G], b[k + 1, G]) if K == 16 else b[T + 4 * r, G]
    for i in range(4):
        words[:, 6 + i] = d.view(np.uint32)[G + i // 2 * 8, 2 * T + i % 2]
    return words


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_mma(emulator, kind, schedule):
    emulator.begin(schedule)
    rng = np.random.default_rng(3)
    K = 8 if kind == "tf32" else 16
    a, b, d = (rng.standard_normal(shape).astype(np.float32) for shape in [(16, K), (K, 8), (16, 8)])
    if kind == "bf16":
        bits, values = [bf16(a), bf16(b)], [bf16_value(bf16(a)), bf16_value(bf16(b))]
    elif kind == "f16":
        bits = [a.astype(np.float16).view(np.uint16), b.astype(np.float16).view(np.uint16)]
        values = [a.astype(np.float16), b.astype(np.float16)]
    else:  # the low 13 bits of a tf32 operand are not looked at
        bits = [a.view(np.uint32), b.view(np.uint32)]
        values = [(x.view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (a, b)]
    expected = d + values[0].astype(np.float64) @ values[1].astype(np.float64)
    out = emulator.run(
        "mma", np.zeros((32, 4), np.float32), fragments(*bits, d), ["bf16", "f16", "tf32"].index(kind)
    )
    for i in range(4):
        np.testing.assert_allclose(out[:, i], expected[G + i // 2 * 8, 2 * T + i % 2], rtol=1e-5, atol=1e-5)
    assert emulator.reports() == []


@pytest.mark.parametrize("matrices, trans", [(4, 0), (4, 1), (2, 0), (2, 1), (1, 0)])
def test_ldmatrix(emulator, matrices, trans):
    emulator.begin("random")
    m = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8) + 1000
    out = emulator.run("ldmatrix", np.zeros((32, 4), np.uint32), m, matrices, trans)
    seen = m.transpose(0, 2, 1) if trans else m
    for i in range(4):
        expected = pairs(seen[i, G, 2 * T], seen[i, G, 2 * T + 1]) if i < matrices else np.zeros(32)
        assert np.array_equal(out[:, i], expected)
    assert emulator.reports() == []


@pytest.mark.parametrize("size", [0, 4, 6, 16])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_cp_async(emulator, size, groups):
    emulator.begin()
    data = np.arange(1, 2049).astype(np.uint8).reshape(32, 64)
    out = emulator.run("copy_async", np.zeros((32, 64), np.uint8), data, size, groups)
    expected = np.full((32, 64), 7, np.uint8)
    for at, copied, read in [(0, 16, size), (16, 8, min(size, 8)), (24, 4, min(size, 4)), (32, 16, 16)]:
        expected[:, at : at + copied] = 0
        expected[:, at : at + read] = data[:, at : at + read]
    expected[:, {3: 64, 2: 24, 1: 16}[groups] :] = 0
    assert np.array_equal(out, expected)
    assert emulator.reports() == []


def test_conversions(emulator):
    emulator.begin()
    rng = np.random.default_rng(0)
    special = [
        0,
        -0.0,
        np.inf,
        -np.inf,
        65504,
        65519,
        65520,
        1e-8,
        2.0**-24,
        2.0**-25,
        3 * 2.0**-26,
        6.1e-5,
        -1e-40,
        3e38,
    ]
    x = np.concatenate([special, rng.standard_normal(500), np.exp(rng.uniform(-20, 12, 510))]).astype(
        np.float32
    )
    out = emulator.run("conversions", np.zeros((x.size, 4), np.uint32), x, x.size)
    finite = np.isfinite(x)
    tf32 = ((x.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32)
    assert np.array_equal(out[finite, 0].view(np.float32), tf32[finite])
    assert np.array_equal(out[~finite, 0].view(np.float32), x[~finite])
    assert np.array_equal(out[:, 1], bf16(x))
    with np.errstate(over="ignore"):
        assert np.array_equal(out[:, 2], x.astype(np.float16).view(np.uint16))
        exact = np.exp2(x.astype(np.float64))
    np.testing.assert_allclose(out[:, 3].view(np.float32), np.where(exact > 3.4e38, np.inf, exact), rtol=1e-6)


def test_every_half_has_its_value(plain):
    plain.begin()
    bits = np.arange(1 << 16, dtype=np.uint16)
    out = plain.run("conversions_back", np.zeros((bits.size, 2), np.float32), bits, bits.size)
    assert np.array_equal(out[:, 0], bf16_value(bits), equal_nan=True)
    assert np.array_equal(out[:, 1], bits.view(np.float16).astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warp_collectives(emulator, schedule):
    emulator.begin(schedule)
    v = np.random.default_rng(1).integers(-50, 50, 32).astype(np.int32)
    out = emulator.run("warp", np.zeros((32, 16), np.int32), v)

    def within(source: np.ndarray, width: int) -> np.ndarray:
        """v[source], or a lane's own where that leaves its segment"""
        return v[np.where(source // width == LANE // width, source, LANE)]

    ballot = int(sum(1 << i for i in range(32) if v[i] > 0))
    votes = int((v == v[31]).any()) + 2 * int((v == v[31]).all())
    expected = [
        np.full(32, v[5]),
        v[LANE // 8 * 8 + 3],
        v[LANE ^ 16],
        v[LANE ^ 3],
        within(LANE + 2, 32),
        within(LANE + 3, 8),
        within(LANE - 1, 32),
        within(LANE - 5, 16),
        np.full(32, np.uint32(ballot)).view(np.int32),
        np.full(32, votes),
        np.full(32, v.sum()),
        np.full(32, v.max()),
        v[LANE ^ 1],
        np.full(32, (v > 0).sum()),
        np.full(32, votes),
        v[LANE ^ 1],
    ]
    for i, column in enumerate(expected):
        assert np.array_equal(out[:, i], column), i
    assert emulator.reports() == []


@pytest.mark.parametrize("workers", [1, 3])
def test_atomics(emulator, workers):
    emulator.begin("random", workers=workers)
    blocks = 40
    n = 64 * blocks
    fields = "f:f4 i:i4 most:i4 least:i4 u:u4 bits:u4 wrapped:u4 _:u4 l:u8 b:2u2 h:2f2"
    counters = np.zeros(1, np.dtype([tuple(f.split(":")) for f in fields.split()]))
    out = emulator.run("atomics", counters, blocks)[0]
    assert (out["f"], out["i"], out["most"], out["least"]) == (n, n * (n - 1) // 2, n - 1, 1 - n)
    assert (out["u"], out["bits"], out["wrapped"], out["l"]) == (2 * n, 0xFFFFFFFF, n % 100, n << 33)
    assert bf16_value(out["b"]).tolist() == [100, 200] and out["h"].tolist() == [100, 200]
    assert emulator.reports() == []


# ---- schedules ----


def order(emulator: Emulator, blocks: int = 5, threads: int = 40) -> list[int]:
    return emulator.run("order", np.zeros(1 + blocks * threads, np.int32), blocks, threads)[1:].tolist()


def test_schedules(emulator):
    emulator.begin("in_order")
    assert order(emulator) == list(range(200))
    emulator.begin("reversed")
    assert order(emulator) == list(range(200))[::-1]
    seen = []
    for seed in (1, 2, 3):
        emulator.begin("random", seed)
        seen.append(order(emulator))
        assert sorted(seen[-1]) == list(range(200))
    assert seen[0] != seen[1] != seen[2] != seen[0]
    assert emulator.lib.options(b"sideways", ctypes.c_uint64(1), 0) == -1


def test_coordinates(emulator):
    for schedule in SCHEDULES:
        emulator.begin(schedule)
        out = emulator.run("indices", np.zeros((4, 3, 2, 5, 2, 4), np.int32))
        bz, by, bx, tz, ty, tx = np.indices(out.shape)
        assert np.array_equal(out, tx + 10 * ty + 100 * tz + 1000 * bx + 10000 * by + 100000 * bz)


def test_several_workers_share_a_grid(plain):
    plain.begin(workers=4)
    assert sorted(order(plain, blocks=64)) == list(range(64 * 40))


# ---- streams, graphs, the device ----


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("defer", [False, True])
def test_streams_when_the_host_waits(emulator, schedule, defer):
    for seed in range(3):
        emulator.begin(schedule, seed, defer)
        assert emulator.lib.read_after_copy(1) == 7
        assert emulator.lib.source_reused(1) == 1
        assert emulator.lib.two_streams(1) == 3
        assert emulator.lib.replay(3) == 14
    assert emulator.reports() == []


def test_streams_when_the_host_does_not_wait(emulator):
    emulator.begin(defer=True)
    assert emulator.lib.read_after_copy(0) == 0, "the copy has not happened yet"
    assert emulator.lib.source_reused(0) == 2, "the source was read too late"
    seen = set()
    for seed in range(16):
        emulator.begin("random", seed, defer=True)
        seen.add(emulator.lib.two_streams(0))
    assert seen == {0, 1, 3}, "two streams that nothing orders: scale and copy around the addition"


@pytest.mark.parametrize(
    "how, text",
    [
        (0, "the default stream cannot be captured"),
        (1, "cudaStreamSynchronize during a capture"),
        (2, "cudaMalloc during a capture"),
        (3, "cudaMemcpy during a capture"),
        (4, "the first stream does not wait for another's work"),
    ],
)
def test_captures_that_cuda_refuses(emulator, how, text):
    emulator.begin()
    code = emulator.lib.bad_capture(how)
    assert code and text in emulator.error(code)
    emulator.lib.last_error()
    assert emulator.lib.replay(1) == 2


@pytest.mark.parametrize(
    "program, text",
    [
        ("default_stream_in_capture", "work for the default stream during a capture"),
        ("wrong_direction", "a copy to the host has its target on the device"),
        ("copy_past_the_end", "a copy to the device does not fit an allocation"),
        ("free_twice", "cudaFree of what cudaMalloc did not give"),
        ("too_much_memory", "out of memory: "),
    ],
)
def test_misuse_of_the_runtime(emulator, program, text):
    emulator.begin()
    code = getattr(emulator.lib, program)()
    assert code and text in emulator.error(code)
    emulator.begin()


def test_the_device(emulator):
    emulator.begin()
    name, numbers = ctypes.create_string_buffer(256), (ctypes.c_int * 3)()
    assert emulator.lib.properties(name, numbers) == 0
    assert name.value == b"CPU emulation" and list(numbers) == [1, 32, 1024]
    assert emulator.lib.free_memory_shrinks()
    assert emulator.lib.more_shared_memory(227) == 0
    assert emulator.lib.more_shared_memory(228) != 0


# ---- the second gate: the same kernels as nvcc's PTX, inline assembly included ----

needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc writes the PTX")


class Translated(Emulator):
    """tests/emulator/instructions.cu by way of nvcc; a kernel is found by its name in the source."""

    def __init__(self, build: Path) -> None:
        super().__init__(build / "libptx.so")
        entries = re.findall(r"\.entry (\w+)\(", (build / "instructions.ptx").read_text())
        self.entries = [name for name in entries if f'"{name}"' in (build / "ptx.cpp").read_text()]
        self.all_entries = entries

    def launch(self, kernel: str, blocks: int, threads: int, out: np.ndarray, *args) -> np.ndarray:
        """What out became; arrays are given as pointers, integers as int."""
        [name] = [entry for entry in self.entries if kernel in entry]
        on_device = [self.put(a) if isinstance(a, np.ndarray) else a for a in (out, *args)]
        is_pointer = [isinstance(a, ctypes.c_void_p) for a in on_device]
        words = b"".join(
            struct.pack("Q", a.value) if p else struct.pack("i", a) for a, p in zip(on_device, is_pointer)
        )
        assert is_pointer == sorted(is_pointer, reverse=True), (
            "pointers first, or they would have to be aligned"
        )
        grid, block = ((ctypes.c_uint * 3)(n, 1, 1) for n in (blocks, threads))
        code = self.lib.ptx_launch(name.encode(), grid, block, 0, words, ctypes.c_size_t(len(words)))
        assert code == 0, self.error(code)
        return self.get(on_device[0], out.shape, out.dtype)


@pytest.fixture(scope="session")
def translated(libraries) -> Translated:
    make("ptx")
    return Translated(libraries)


@needs_nvcc
def test_every_kernel_is_translated(translated):
    assert translated.entries == translated.all_entries != []


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == b.tobytes()


@needs_nvcc
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_ptx_mma(plain, translated, kind, schedule):
    rng = np.random.default_rng(5)
    words = rng.standard_normal((32, 10)).astype(np.float32).view(np.uint32)
    if kind == "f16":
        words[:, :6] = rng.standard_normal((32, 12)).astype(np.float16).view(np.uint32)
    if kind == "bf16":
        words[:, :6] = bf16(rng.standard_normal((32, 12))).view(np.uint32)
    for emulator in (plain, translated):
        emulator.begin(schedule)
    ours = plain.run("mma", np.zeros((32, 4), np.float32), words, ["bf16", "f16", "tf32"].index(kind))
    ptx = translated.launch(f"_Z{len(kind)}{kind}", 1, 32, np.zeros((32, 4), np.float32), words)
    assert np.isfinite(ours).all() and same_bits(ours, ptx)


@needs_nvcc
@pytest.mark.parametrize("matrices, trans", [(4, 0), (4, 1), (2, 0), (2, 1), (1, 0)])
def test_ptx_ldmatrix(plain, translated, matrices, trans):
    m = np.random.default_rng(matrices).integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)
    for emulator in (plain, translated):
        emulator.begin("random")
    ours = plain.run("ldmatrix", np.zeros((32, 4), np.uint32), m, matrices, trans)
    assert same_bits(
        ours, translated.launch("ldmatrix", 1, 32, np.zeros((32, 4), np.uint32), m, matrices, trans)
    )


@needs_nvcc
@pytest.mark.parametrize("size", [0, 4, 6, 16])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_ptx_cp_async(plain, translated, size, groups):
    data = np.arange(1, 2049).astype(np.uint8).reshape(32, 64)
    for emulator in (plain, translated):
        emulator.begin()
    ours = plain.run("copy_async", np.zeros((32, 64), np.uint8), data, size, groups)
    assert same_bits(
        ours, translated.launch("cp_async", 1, 32, np.zeros((32, 64), np.uint8), data, size, groups)
    )


@needs_nvcc
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ptx_of_everything_else(plain, translated, schedule):
    rng = np.random.default_rng(2)
    x = rng.standard_normal(256).astype(np.float32)
    v = rng.integers(-50, 50, 32).astype(np.int32)
    bits = np.arange(1 << 16, dtype=np.uint16)
    zeros = {n: np.zeros(n, np.uint32) for n in (1024, 512, 16, 41, 960, 2 << 16)}
    for emulator in (plain, translated):
        emulator.begin(schedule)
    pairs_of_results = [
        (
            plain.run("conversions", zeros[1024], x, 256),
            translated.launch("conversions", 1, 256, zeros[1024], x),
        ),
        (
            plain.run("conversions_back", zeros[2 << 16], bits, 1 << 16),
            translated.launch("back", 256, 256, zeros[2 << 16], bits),
        ),
        (plain.run("warp", zeros[512], v), translated.launch("warp", 1, 32, zeros[512], v)),
        (plain.run("atomics", zeros[16], 5), translated.launch("atomic", 5, 64, zeros[16])),
        (plain.run("order", zeros[41], 1, 40), translated.launch("order", 1, 40, zeros[41])),
    ]
    for ours, ptx in pairs_of_results:
        assert ours.any() and same_bits(ours, ptx)
