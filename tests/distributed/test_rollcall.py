"""Who is named when a process is lost: the roll call over torch's store, without any training."""

from __future__ import annotations

import datetime
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyllmc.distributed import rollcall
from pyllmc.distributed.rollcall import RollCall

dist = pytest.importorskip("torch").distributed
PATIENCE = 1.0


@pytest.fixture
def server():
    return dist.TCPStore("localhost", 0, None, True, datetime.timedelta(seconds=5), wait_for_workers=False)


def member(server, rank: int, world: int = 3, keeps: bool = False) -> RollCall:
    store = dist.TCPStore(
        "localhost", server.port, None, False, datetime.timedelta(seconds=5), wait_for_workers=False
    )
    return RollCall(store, rank, world, PATIENCE, keeps)


def test_whoever_does_not_answer_is_named(server):
    zero, one = (member(server, rank) for rank in (0, 1))
    line = zero.who_was_lost("")
    assert line == "rank 2 of 3 does not answer: it has ended, hangs, or its network is cut"
    assert one.who_was_lost("") == line


def test_whoever_is_still_at_work_is_named_by_one_that_waits(server):
    """The slow one does not tell, because torchrun may end it before it could."""
    zero, one = (member(server, rank, 2) for rank in (0, 1))
    one.busy_since = 0
    assert one.who_was_lost("timed out") == "rank 0 of 2 is still at work, for 0 s now: raise --timeout"
    assert one.speaks
    zero.close()


def test_whoever_keeps_the_store_waits_until_the_others_have_read_it(server):
    """Rank 1 begins to ask when rank 0, with whose end the store ends, already has its line."""
    zero, one = (member(server, rank, 2, keeps=rank == 0) for rank in (0, 1))
    with ThreadPoolExecutor() as pool:
        late = threading.Timer(0.4, lambda: asked.append(pool.submit(one.who_was_lost, "broken")))
        asked: list = []
        late.start()
        assert "every process answers" in zero.who_was_lost("broken")
        began = time.monotonic()
        closed = pool.submit(zero.close)
        late.join()
        assert "every process answers" in asked[0].result()
        assert not closed.done()
        one.close()
        closed.result()
        assert time.monotonic() - began < PATIENCE + 1


def test_why_the_keeper_of_the_store_ended_is_known_after_its_end(server):
    """The others notice that rank 0 has ended when the store has ended with it."""
    zero, one = (member(server, rank, 2, keeps=rank == 0) for rank in (0, 1))
    zero.leave("the disk is full")
    zero.close()
    one._store = None  # as a store that is gone: every call fails
    assert one.who_was_lost("connection closed by peer") == "rank 0 of 2 has ended: the disk is full"
    assert one.speaks


class Cut:
    """A store on a link that is down: calls do not return."""

    def __getattr__(self, name):
        return lambda *_: time.sleep(60)


def test_a_store_that_is_cut_off_is_not_waited_for():
    began = time.monotonic()
    roll = RollCall(Cut(), 1, 2, 0.2)
    assert "rank 1 reaches no other process" in roll.who_was_lost("timed out")
    roll.leave("the network is cut")
    roll.close()
    assert time.monotonic() - began < 10 * rollcall.EVERY


def test_an_end_without_a_fault_waits_for_nobody(server):
    zero = member(server, 0, 2, keeps=True)
    began = time.monotonic()
    zero.close()
    assert time.monotonic() - began < PATIENCE
