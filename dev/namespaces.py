"""A small network on one machine: namespaces of Linux, joined by links of a limited rate. It vanishes with the process that made it.

A program first calls enter(): it then runs again as the first process of namespaces of its own (network, mounts, processes).
Whatever it makes there is seen by nobody else, and the kernel removes all of it when that first process ends, even by kill -9.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence

MARK = "PYLLMC_NAMESPACES"  # set in the environment of the program within
NEEDED = ("unshare", "ip", "tc", "mount")
INTERRUPTED = 130


def why_not() -> str:
    """Why no network can be made here; "" if one can."""
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing:
        return f"{missing[0]} is not installed: install util-linux and iproute2"
    tried = subprocess.run(
        [*_unshare(), "sh", "-c", "ip link add left type veth peer name right && tc qdisc add dev left root tbf rate 1mbit burst 9kb limit 9kb"],
        capture_output=True, text=True,
    )  # fmt: skip
    return tried.stderr.strip().splitlines()[-1] if tried.returncode else ""


def _unshare() -> list[str]:
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *user, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def enter() -> None:
    """Returns within new namespaces. The process that called ends with the exit code of the one that returns."""
    if os.environ.get(MARK):
        threading.Thread(target=_end_with_the_caller, daemon=True).start()
        subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
        os.mkdir("/run/netns")
        _ip("link set lo up")  # localhost
        return
    words = [*_unshare(), sys.executable, *sys.argv]
    within = subprocess.Popen(words, stdin=subprocess.PIPE, env={**os.environ, MARK: "1"})
    try:
        sys.exit(within.wait())
    except KeyboardInterrupt:
        within.kill()
        within.wait()
        sys.exit(INTERRUPTED)


def _end_with_the_caller() -> None:
    """Ends the process once the caller is gone, however that ended: only the caller holds the other end of this pipe."""
    while os.read(0, 1):
        pass
    os._exit(1)


class Network:
    """n machines on one switch. Each link carries `rate` bytes a second each way; 0 is no limit.

    The rate counts all that a link carries: in every packet of 1,514 bytes 14 are Ethernet's and 52 are IP's and TCP's.
    """

    def __init__(self, n: int, rate: float = 0) -> None:
        self.n, self.rate = n, rate
        _ip("netns add switch")
        _ip("-n switch link add bridge type bridge")
        _ip("-n switch link set bridge up")
        for i in range(n):
            self._join(i)

    def _join(self, i: int) -> None:
        _ip(f"netns add m{i}")
        _ip(f"link add eth0 netns m{i} type veth peer name port{i} netns switch")
        _ip(f"-n m{i} addr add {self.address(i)}/24 dev eth0")
        for where, device in ((f"m{i}", "lo"), (f"m{i}", "eth0"), ("switch", f"port{i}")):
            _ip(f"-n {where} link set {device} up")
        _ip(f"-n switch link set port{i} master bridge")
        if self.rate:  # a limit is for what leaves a device: eth0 sends, and port sends what eth0 receives
            for where, device in ((f"m{i}", "eth0"), ("switch", f"port{i}")):
                self._limit(where, device)

    def _limit(self, where: str, device: str) -> None:
        """A bucket of tokens that holds two milliseconds' worth: with less, a busy machine fills it too late, and the link carries
        less than its rate."""
        bits, burst = round(8 * self.rate), max(64_000, round(self.rate * 2e-3))
        _run(f"tc -n {where} qdisc add dev {device} root tbf rate {bits}bit burst {burst} latency 50ms")

    def address(self, i: int) -> str:
        return f"10.77.0.{i + 1}"

    def start(self, i: int, words: Sequence[str], **how: object) -> subprocess.Popen[str]:
        """Starts a program on machine i."""
        words = ["ip", "netns", "exec", f"m{i}", *words]
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, text=True, **how)  # type: ignore[call-overload, no-any-return]

    def cut(self, i: int, off: bool = True) -> None:
        """Cuts machine i off, or joins it again."""
        _ip(f"-n switch link set port{i} {'down' if off else 'up'}")

    def close(self) -> None:
        for name in ("switch", *(f"m{i}" for i in range(self.n))):
            _ip(f"netns del {name}")

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ip(words: str) -> None:
    _run(f"ip {words}")


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{command}: {done.stderr.strip()}")
