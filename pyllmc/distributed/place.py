"""What torchrun, or srun, tells a process in its environment: its number, how many there are, and where they meet."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from pyllmc.base.errors import InvalidArgument

MAX_PORT = 65535


def is_one_of_several() -> bool:
    """True if this process was started as one of several, by torchrun or in its way."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def _number(name: str, default: str | None = None) -> int:
    text = os.environ.get(name, default)
    if not text:
        raise InvalidArgument(f"the environment has no {name}: start with torchrun, which sets it")
    if not (text.isascii() and text.isdigit()):
        raise InvalidArgument(f"{name}={text} in the environment is no whole number: start with torchrun")
    return int(text)


class Place(NamedTuple):
    """One process among several. local_rank, local_world: among those of its machine."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    host: str
    port: int
    attempt: str  # differs each time that torchrun starts the processes anew
    agent_serves: bool  # True if torchrun itself keeps the store where the processes meet; else rank 0 does

    @classmethod
    def read(cls) -> Place:
        """The place that the environment gives. Raises InvalidArgument if a variable is missing or impossible."""
        rank, world, local = _number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_WORLD_SIZE", "1")
        if rank >= world:
            raise InvalidArgument(f"RANK={rank} is not below WORLD_SIZE={world}: start with torchrun")
        attempt = (
            f"{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        )
        serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "") == "True"
        host, port = os.environ.get("MASTER_ADDR", "localhost"), _number("MASTER_PORT")
        if not 1 <= port <= MAX_PORT:
            raise InvalidArgument(
                f"MASTER_PORT={port} in the environment is not in 1..{MAX_PORT}: give the port where the processes meet"
            )
        return cls(rank, world, _number("LOCAL_RANK", "0"), local, host, port, f"{attempt}/{world}", serves)

    @property
    def turn(self) -> int:
        """0: rank 0; 1: the first process of another machine; 2: all others."""
        return 0 if self.rank == 0 else 1 if self.local_rank == 0 else 2


def settle_machine() -> None:
    """Gives this process its part of the machine, before the engine and torch are loaded.

    torchrun sets OMP_NUM_THREADS=1 unless it is set; without it the engine shares the cores out among the processes. Each
    process sees one GPU, its own."""
    local = _number("LOCAL_WORLD_SIZE", "1")
    if local > 1 and os.environ.get("OMP_NUM_THREADS") == "1":
        del os.environ["OMP_NUM_THREADS"]
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    own = _number("LOCAL_RANK", "0")
    if local > 1 and (not seen or own < len(seen)):
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[own] if seen else str(own)


def tells_for_machine(local_rank: int) -> bool:
    """True for the process that tells an error which each process of a machine finds by itself: under torchrun for the first that
    asks, because torchrun ends the others as soon as one has left; elsewhere for the machine's first process."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE", os.devnull)
    if path == os.devnull:
        return local_rank == 0
    # torchrun has a folder for each attempt, with one for each process of the machine
    attempt = Path(path).parent.parent
    try:
        (attempt / "pyllmc.told").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return local_rank == 0
    return True


def tell_torchrun(line: str, code: int) -> None:
    """Leaves the reason of a failure where torchrun looks for it. torchrun prints a long traceback of its own after a failure, which
    ends with that reason (torch.distributed.elastic.multiprocessing.errors). Does nothing elsewhere."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    told = {"message": line, "errorCode": code, "extraInfo": {"timestamp": int(time.time())}}
    try:
        with open(path, "w", encoding="utf-8", errors="replace") as file:
            json.dump({"message": told}, file)
    except OSError:
        pass  # the line was printed, too
