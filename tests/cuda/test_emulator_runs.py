"""cuda/emu behaves as a GPU: instructions against numpy, schedules, streams, graphs."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import ctypes

import numpy as np
import pytest
from emulated import SCHEDULES, Emulator, bf16, bf16_value, checked, emulator, libraries, pairs, plain

# ---- instructions, against numpy ----

LANE = np.arange(32)
G, T = LANE // 4, LANE % 4


def fragments(a: np.ndarray, b: np.ndarray, d: np.ndarray) -> np.ndarray:
    """(32, 10) words: each lane's part of a (16, K), b (K, 8), d (16, 8), by the tables of the PTX ISA."""
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
    else:  # the low 13 bits of a tf32 operand are ignored
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
        """v[source], or a lane's own value if `source` is outside of its segment."""
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
