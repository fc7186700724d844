"""The formulas of a step on many processes: what must hold whatever the numbers, and crossovers found by trying all."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyllmc.planning.steptime import BF16, FP32, Job, Way, all_reduce_s, half_turn_s

JOBS = st.builds(
    Job,
    compute=st.floats(1e-3, 1e3),
    elements=st.integers(1, 10**11),
    rate=st.floats(1e5, 1e12),
    overlap=st.just(0.0) | st.floats(0.01, 1),
    scatters=st.booleans(),
    carried=st.floats(0.5, 1),
)
WAYS = st.builds(
    Way,
    reduced=st.sampled_from([FP32, BF16]),
    zero=st.booleans(),
    accumulate=st.integers(1, 100),
)
LOCAL = st.builds(Way, accumulate=st.integers(1, 10), diloco=st.integers(1, 1000))
PROCESSES = st.integers(2, 2048)
AIMS = st.floats(0.05, 0.99)


def ring(blocks: np.ndarray) -> list[float]:
    """Runs the ring all-reduce on (n, n) blocks, a piece a column, in place; returns the pieces that each process has sent."""
    n = len(blocks)
    sent = [0.0] * n
    for adds in (True, False):
        for turn in range(n - 1):
            moved = [(i, (i - turn + (0 if adds else 1)) % n) for i in range(n)]
            pieces = [blocks[i, piece] for i, piece in moved]
            for (i, piece), value in zip(moved, pieces):
                to = (i + 1) % n
                blocks[to, piece] = blocks[to, piece] + value if adds else value
                sent[i] += 1
    return sent


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_the_formula_counts_what_a_ring_sends(n):
    blocks = np.random.default_rng(0).integers(0, 100, (n, n)).astype(float)
    whole = blocks.sum(0)
    sent = ring(blocks)
    assert (blocks == whole).all(), "every process holds the sum"
    size, rate = 12.0, 3.0
    assert all(all_reduce_s(n, size, rate) == pytest.approx(pieces * size / n / rate) for pieces in sent)
    assert all_reduce_s(n, size, rate) == pytest.approx(2 * half_turn_s(n, size, rate))


@given(JOBS, WAYS | LOCAL)
def test_one_process_only_computes(job, way):
    assert job.step_s(1, way) == way.accumulate * job.compute
    assert job.efficiency(1, way) == 1


@given(JOBS, WAYS | LOCAL, PROCESSES, st.floats(1, 1e3))
def test_a_faster_network_is_never_slower(job, way, n, faster):
    quick = replace(job, rate=job.rate * faster)
    assert quick.step_s(n, way) <= job.step_s(n, way)
    assert 0 < job.efficiency(n, way) <= quick.efficiency(n, way) <= 1


@given(JOBS, WAYS | LOCAL, PROCESSES)
def test_more_processes_never_wait_less_but_do_more(job, way, n):
    assert job.waiting_s(n, way) <= job.waiting_s(n + 1, way) * (1 + 1e-12)
    assert n / job.step_s(n, way) < (2 * n) / job.step_s(2 * n, way)


@given(JOBS, WAYS, PROCESSES)
def test_bf16_and_accumulation_never_harm(job, way, n):
    assert job.step_s(n, replace(way, reduced=BF16)) <= job.step_s(n, replace(way, reduced=FP32))
    more = replace(way, accumulate=way.accumulate + 1)
    assert job.efficiency(n, more) >= job.efficiency(n, way) * (1 - 1e-12)


@given(JOBS, WAYS, PROCESSES)
def test_a_step_is_at_least_computing_and_at_most_both_in_turn(job, way, n):
    least = way.accumulate * job.compute
    most = least + job.reduce_s(n, way) + job.gather_s(n, way)
    assert least <= job.step_s(n, way) <= most * (1 + 1e-12)


@given(JOBS, WAYS, PROCESSES, AIMS)
def test_accumulation_is_the_least_that_reaches_the_aim(job, way, n, aim):
    k = job.accumulation_for(n, way, aim)
    assert job.efficiency(n, replace(way, accumulate=k)) >= aim * (1 - 1e-9)
    assert k == 1 or job.efficiency(n, replace(way, accumulate=k - 1)) < aim * (1 + 1e-9)


@given(JOBS, WAYS, PROCESSES, AIMS)
def test_diloco_is_the_least_that_reaches_the_aim(job, way, n, aim):
    way = replace(way, zero=False)
    H = job.diloco_for(n, way, aim)
    assert job.efficiency(n, replace(way, diloco=H)) >= aim * (1 - 1e-9)
    assert H == 1 or job.efficiency(n, replace(way, diloco=H - 1)) < aim * (1 + 1e-9)


@given(JOBS, WAYS, PROCESSES)
def test_diloco_is_faster_from_there_on(job, way, n):
    way = replace(way, zero=False)
    H, each = job.diloco_faster(n, way), job.waiting_s(n, way)
    if H is None:
        assert each == 0
    else:
        assume(H < 1e9)  # beyond, rounding decides
        assert job.waiting_s(n, replace(way, diloco=H)) < each * (1 + 1e-9)
        assert H == 1 or job.waiting_s(n, replace(way, diloco=H - 1)) >= each * (1 - 1e-9)


@given(JOBS, WAYS, PROCESSES)
def test_averaging_hides_from_that_rate_on(job, way, n):
    way = replace(way, zero=False)
    rate = job.hidden_from(n, way)
    if not job.overlap * job.compute:
        assert rate == math.inf
        return
    assert replace(job, rate=rate * 1.001).waiting_s(n, way) == 0
    assert replace(job, rate=rate * 0.999).waiting_s(n, way) > 0


@given(JOBS, WAYS, PROCESSES, AIMS)
def test_the_aim_is_just_reached_at_its_rate(job, way, n, aim):
    at = replace(job, rate=job.rate_for(n, way, aim))
    assert at.efficiency(n, way) == pytest.approx(aim, rel=1e-6)


@given(JOBS, WAYS)
def test_waiting_begins_with_the_first_number_that_waits(job, way):
    way = replace(way, zero=False)
    tried = next((n for n in range(2, 2049) if job.waiting_s(n, way) > 0), None)
    found = job.first_shown(way)
    assert found == tried or (tried is None and found is not None and found > 2048)


def test_a_hand_made_example():
    """10 MB a process over 1 MB/s, of which 3 s hide."""
    job = Job(compute=4.0, elements=2_500_000, rate=1e6, overlap=0.75)
    assert job.reduce_s(2, Way()) == 10
    assert job.step_s(2, Way()) == 4 + 10 - 3
    assert job.step_s(2, Way(reduced=BF16)) == 4 + 5 - 3
    assert job.step_s(2, Way(zero=True)) == 4 + 10 - 3 + 5
    assert replace(job, scatters=True).step_s(2, Way(zero=True)) == 4 + 5 - 3 + 5
    assert job.step_s(2, Way(accumulate=3)) == 12 + 10 - 3
    assert job.step_s(2, Way(diloco=5)) == 4 + 10 / 5
    part = replace(job, unseen=500_000, carried=0.5)
    assert part.reduce_s(2, Way()) == 16 and part.reduce_s(2, Way(diloco=5)) == 20
    assert part.gather_s(2, Way(zero=True)) == 10
    assert job.accumulation_for(2, Way(), 0.9) == 16  # 64 / (64 + 7) is 90.1 %, 60 / 67 is 89.6 %
    assert job.diloco_faster(2, Way()) == 2  # 10 / 2 < 7
