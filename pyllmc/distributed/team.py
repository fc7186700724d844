"""The engine's llmc_team over torch.distributed: sums, gathering, and what to say when a process is lost.

The engine calls these functions from the thread that runs the trainer. Memory is never copied for a call but where small
gradients are packed, or rounded to bf16."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyllmc.base.errors import LlmcError, SystemFailure, need
from pyllmc.distributed.place import Place
from pyllmc.distributed.rollcall import RollCall
from pyllmc.engine import _ffi

ALONE = 1 << 15  # elements: a gradient of at least so many is summed by itself, smaller ones are packed
PACK = 1 << 18  # elements in a pack: more would still travel when nothing is left to compute
GRACE = 2.0  # seconds that a roll call waits for answers, at most a fifth of --timeout


class _OnDevice:
    """Memory of a GPU, as torch.as_tensor takes it without a copy."""

    def __init__(self, address: int, elements: int) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": (elements,),
            "typestr": "<f4",
            "version": 3,
        }


class Team:
    """This process and the others. `pointer` is the engine's llmc_team, which lives as long as this object.

    After a failed call every other fails at once; `why` then says who was lost. `speaks`: True if it is this process that
    tells the user."""

    def __init__(self, options: Any, place: Place) -> None:
        self.place = place
        self._torch = need("torch", "training with several processes", "torch")
        self._cuda = options.get("device") == "cuda"
        self._bf16 = options.get("reduce_precision") == "bf16"
        timeout = float(options.get("timeout"))
        grace = min(GRACE, timeout / 5)
        self._torch.set_num_threads(1)  # the cores are the engine's
        self._meet(timeout - grace, grace)
        self._failure: Exception | None = None
        self._tensors: dict[tuple[int, int], Any] = {}
        self._pack: list[Any] = []
        self._sums: list[tuple[Any, Any, list[Any]]] = []
        self.pointer = self._make_pointer()

    # ---- the meeting ----

    def _meet(self, timeout: float, grace: float) -> None:
        """Opens the store and the process group. The store's keys begin with the attempt, because torchrun keeps the store, with
        what an earlier attempt has left in it, when it starts the processes anew (pytorch issues 135712, 167288)."""
        dist, place = self._torch.distributed, self.place
        wait = datetime.timedelta(seconds=timeout)
        serves = place.rank == 0 and not place.agent_serves
        try:
            store = dist.TCPStore(place.host, place.port, None, serves, wait, wait_for_workers=False)
            store = dist.PrefixStore(f"pyllmc/{place.attempt}", store)
            self._come(store, wait)
            backend = "cpu:gloo,cuda:nccl" if self._cuda else "gloo"
            dist.init_process_group(
                backend, store=store, rank=place.rank, world_size=place.world, timeout=wait
            )
        except Exception as error:
            raise SystemFailure(
                f"rank {place.rank} of {place.world} did not meet the others at {place.host}:{place.port} within --timeout: "
                f"{str(error).splitlines()[0][:200]}; start all with one MASTER_ADDR and MASTER_PORT, and give them time with "
                "--timeout"
            ) from error
        self.roll = RollCall(self._store_of_roll_call(grace), place.rank, place.world, grace, keeps=serves)

    def _store_of_roll_call(self, grace: float) -> Any:
        """A connection of its own to the same store, because it is given up much sooner than the process group's."""
        dist, place = self._torch.distributed, self.place
        soon = datetime.timedelta(seconds=max(grace, 1))
        try:
            store = dist.TCPStore(place.host, place.port, None, False, soon, wait_for_workers=False)
        except Exception as error:
            raise SystemFailure(
                f"rank {place.rank} of {place.world} has lost the store at {place.host}:{place.port} where processes meet: "
                f"{str(error).splitlines()[0][:200]}"
            ) from error
        return dist.PrefixStore(f"pyllmc/{place.attempt}/roll", store)

    def _come(self, store: Any, wait: datetime.timedelta) -> None:
        """Waits until all are there, so that one that does not come is named."""
        store.set(f"come/{self.place.rank}", "1")
        keys = [f"come/{rank}" for rank in range(self.place.world)]
        try:
            store.wait(keys, wait)
        except Exception:
            missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
            raise RuntimeError(f"rank {', '.join(map(str, missing))} did not come") from None

    def close(self) -> None:
        self.roll.close()
        if not self._failure:
            self._torch.distributed.destroy_process_group()

    def leave(self, error: BaseException) -> None:
        """Tells the others why this process ends."""
        self.roll.leave(str(error))

    @property
    def speaks(self) -> bool:
        return self.roll.speaks

    def in_turn(self, work: Callable[[], Any]) -> None:
        """Rank 0 works first, then one process of each other machine, then the rest. An error of one is raised by all."""
        for turn in range(3):
            error: Exception | None = None
            try:
                if turn == self.place.turn:
                    work()
            except (LlmcError, OSError, ValueError, MemoryError, ImportError) as came:
                error = came
            self._raise_first(error)

    def _raise_first(self, error: Exception | None) -> None:
        """Tells the others this process's error, or None, and hears theirs. One that is lost, or at work for longer than --timeout, is
        named."""
        told: list[Any] = [None] * self.place.world
        mine = (
            (type(error), str(error))
            if isinstance(error, LlmcError)
            else error and (SystemFailure, str(error))
        )
        gather = self._torch.distributed.all_gather_object
        if self._guarded(lambda: self._wait(lambda: gather(told, mine)))(None) < 0:
            raise error or self._lost()
        for rank, one in enumerate(told):
            if one:
                raise one[0](one[1] if rank == 0 else f"rank {rank}: {one[1]}") from error

    def _lost(self) -> SystemFailure:
        """The error after a failed call."""
        return SystemFailure(_ffi.text(self._why(None)))

    def any(self, flag: bool) -> bool:
        """True for all if it is for one; its own answer if the others are lost."""
        x = self._torch.tensor([float(flag)], dtype=self._torch.float64)
        try:
            self._torch.distributed.all_reduce(x)
        except Exception:
            return flag
        return bool(x[0] > 0)

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes. Raises SystemFailure, which names the process that was lost."""
        x = np.array(numbers, np.float64)
        if self._guarded(self._sum)(None, _ffi.ffi().from_buffer("double[]", x), len(x)) < 0:
            raise self._lost()
        return [float(value) for value in x]

    # ---- the calls of the engine ----

    def _make_pointer(self) -> Any:
        ffi = _ffi.ffi()
        team = ffi.new("llmc_team *")
        team.rank, team.world, team.local = self.place.rank, self.place.world, self.place.local_world
        kinds = {
            "sum": "int(void *, double *, int)",
            "begin_sum": "int(void *, float *, int64_t)",
            "end_sums": "int(void *)",
            "gather": "int(void *, float *, int64_t)",
            "fetch": "int(void *, float *, int64_t, int)",
        }
        self._held = [ffi.callback("const char *(void *)", self._why, onerror=self._note)]
        team.why = self._held[0]
        for name, kind in kinds.items():
            call = ffi.callback(kind, self._guarded(getattr(self, f"_{name}")), error=-1, onerror=self._note)
            self._held.append(call)
            setattr(team, name, call)
        return team

    def _guarded(self, work: Callable[..., None]) -> Callable[..., int]:
        def call(_: Any, *arguments: Any) -> int:
            if self._failure:
                return -1
            try:
                work(*arguments)
            except Exception as error:  # the engine fails with the line of `_why`
                self._failure = error
                return -1
            return 0

        return call

    def _note(self, kind: Any, error: Any, trace: Any) -> None:
        self._failure = error if isinstance(error, Exception) else RuntimeError(str(error))

    def _why(self, _: Any) -> Any:
        if not hasattr(self, "_line"):
            reason = str(self._failure).splitlines() or [""]
            line = self.roll.who_was_lost(reason[0][:200])
            self._line = _ffi.ffi().new("char[]", line.encode())
        return self._line

    def _wait(self, work: Callable[[], Any]) -> None:
        """Waits for the other processes in a call."""
        self.roll.busy_since = 0
        work()
        self.roll.calls += 1
        self.roll.busy_since = time.monotonic()

    def _tensor(self, pointer: Any, n: int) -> Any:
        """The engine's n floats at an address as a tensor, without a copy."""
        address = int(_ffi.ffi().cast("uintptr_t", pointer))
        if (address, n) not in self._tensors:
            if self._cuda:
                tensor = self._torch.as_tensor(_OnDevice(address, n), device="cuda")
            else:  # the emulated device has its memory on the host, too
                tensor = self._torch.from_numpy(
                    np.frombuffer(_ffi.ffi().buffer(pointer, 4 * n), dtype=np.float32)
                )
            self._tensors[address, n] = tensor
        return self._tensors[address, n]

    def _finish_device(self) -> None:
        if self._cuda:
            self._torch.cuda.synchronize()

    def _sum(self, x: Any, n: int) -> None:
        doubles = self._torch.from_numpy(np.frombuffer(_ffi.ffi().buffer(x, 8 * n), dtype=np.float64))
        self._wait(lambda: self._torch.distributed.all_reduce(doubles))

    def _begin_sum(self, x: Any, n: int) -> None:
        if n >= ALONE:
            return self._start([self._tensor(x, n)])
        self._pack.append(self._tensor(x, n))
        if sum(part.numel() for part in self._pack) >= PACK:
            self._start_pack()

    def _start_pack(self) -> None:
        if self._pack:
            self._start(self._pack)
        self._pack = []

    def _start(self, parts: list[Any]) -> None:
        """Begins the sum of some gradients as one call."""
        sent = parts[0] if len(parts) == 1 else self._torch.cat(parts)
        if self._bf16:
            sent = sent.to(self._torch.bfloat16)
        self._sums.append((self._torch.distributed.all_reduce(sent, async_op=True), sent, parts))

    def _end_sums(self) -> None:
        self._start_pack()
        sums, self._sums = self._sums, []
        self._wait(lambda: [handle.wait() for handle, _, _ in sums])
        for _, sent, parts in sums:
            if sent is parts[0]:
                continue
            for part, summed in zip(parts, sent.split([part.numel() for part in parts])):
                part.copy_(summed)
        self._finish_device()

    def _gather(self, x: Any, each: int) -> None:
        if not each:
            return
        whole = self._tensor(x, each * self.place.world)
        own = whole[self.place.rank * each : (self.place.rank + 1) * each].clone()
        dist = self._torch.distributed
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its older name
        self._wait(lambda: gather(whole, own))
        self._finish_device()

    def _fetch(self, x: Any, n: int, source: int) -> None:
        part = self._torch.from_numpy(np.frombuffer(_ffi.ffi().buffer(x, 4 * n), dtype=np.float32))
        dist = self._torch.distributed
        self._wait(lambda: dist.send(part, 0) if self.place.rank else dist.recv(part, source))
