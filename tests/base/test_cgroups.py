"""The cores and the memory that control groups grant, read from made-up folders by tests/threads.c."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from test_threads import ordinary, program

V2, PERIOD = "sys/fs/cgroup", "cpu.cfs_period_us"
QUOTAS = {  # files below a made-up root: the cores that they grant, 0 for no limit
    "half a core": ({"proc/self/cgroup": "0::/a\n", f"{V2}/a/cpu.max": "50000 100000\n"}, 1),
    "two and a half": ({"proc/self/cgroup": "0::/a\n", f"{V2}/a/cpu.max": "250000 100000\n"}, 3),
    "exactly four": ({"proc/self/cgroup": "0::/a\n", f"{V2}/a/cpu.max": "400000 100000\n"}, 4),
    "max": ({"proc/self/cgroup": "0::/a\n", f"{V2}/a/cpu.max": "max 100000\n"}, 0),
    "a parent has less": (
        {
            "proc/self/cgroup": "0::/a/b/c\n",
            f"{V2}/a/b/c/cpu.max": "max 100000",
            f"{V2}/a/cpu.max": "200000 100000",
        },
        2,
    ),
    "a parent has more": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            f"{V2}/a/b/cpu.max": "150000 50000",
            f"{V2}/a/cpu.max": "800000 100000",
        },
        3,
    ),
    "the root of a container": ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "150000 100000"}, 2),
    "a path that the container does not see": (
        {"proc/self/cgroup": "0::/docker/0123/x\n", f"{V2}/cpu.max": "300000 100000"},
        3,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "4:cpu:/d\n",
            f"{V2}/cpu/d/cpu.cfs_quota_us": "120000",
            f"{V2}/cpu/d/{PERIOD}": "100000",
        },
        2,
    ),
    "version 1, two names": (
        {
            "proc/self/cgroup": "9:cpuset:/x\n4:cpu,cpuacct:/d/e\n",
            f"{V2}/cpu,cpuacct/d/cpu.cfs_quota_us": "700000",
            f"{V2}/cpu,cpuacct/d/{PERIOD}": "100000",
            f"{V2}/cpu,cpuacct/d/e/cpu.cfs_quota_us": "-1",
            f"{V2}/cpu,cpuacct/d/e/{PERIOD}": "100000",
        },
        7,
    ),
    "version 1, of a container": (
        {
            "proc/self/cgroup": "4:cpuacct,cpu:/docker/0123\n",
            f"{V2}/cpu/cpu.cfs_quota_us": "50000",
            f"{V2}/cpu/{PERIOD}": "100000",
        },
        1,
    ),
    "both versions": (
        {
            "proc/self/cgroup": "4:cpu:/d\n0::/u\n",
            f"{V2}/cpu/d/cpu.cfs_quota_us": "500000",
            f"{V2}/cpu/d/{PERIOD}": "100000",
            f"{V2}/unified/u/cpu.max": "300000 100000",
        },
        3,
    ),
    "not of the CPU": (
        {
            "proc/self/cgroup": "4:cpuset:/d\n",
            f"{V2}/cpu/d/cpu.cfs_quota_us": "1",
            f"{V2}/cpu/d/{PERIOD}": "100000",
        },
        0,
    ),
    "nonsense": (
        {"proc/self/cgroup": "0::/a\n::\nx\n4:cpu\n", f"{V2}/a/cpu.max": "-5 0\n", f"{V2}/cpu.max": ""},
        0,
    ),
    "nothing": ({}, 0),
}
MEMORY = {  # files below a made-up root: the bytes that are left, -1 for no limit
    "version 2": (
        {
            "proc/self/cgroup": "0::/a\n",
            f"{V2}/a/memory.max": "8000000\n",
            f"{V2}/a/memory.current": "3000000\n",
            f"{V2}/a/memory.stat": "anon 2000000\nactive_file 250000\ninactive_file 500000\n",
        },
        5500000,
    ),
    "max": (
        {
            "proc/self/cgroup": "0::/a\n",
            f"{V2}/a/memory.max": "max\n",
            f"{V2}/a/memory.current": "3000000\n",
        },
        -1,
    ),
    "a job's group has less left than the container": (
        {
            "proc/self/cgroup": "0::/slurm/job\n",
            f"{V2}/memory.max": "9000000",
            f"{V2}/memory.current": "1000000",
            f"{V2}/slurm/job/memory.max": "5000000",
            f"{V2}/slurm/job/memory.current": "900000",
        },
        4100000,
    ),
    "a parent is nearly full": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            f"{V2}/a/memory.max": "5000000",
            f"{V2}/a/memory.current": "4900000",
            f"{V2}/a/b/memory.max": "5000000",
            f"{V2}/a/b/memory.current": "10",
        },
        100000,
    ),
    "more is used than granted": (
        {"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "1000", f"{V2}/memory.current": "2000"},
        1,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "9:memory:/d\n4:cpu:/x\n",
            f"{V2}/memory/d/memory.limit_in_bytes": "6000000",
            f"{V2}/memory/d/memory.usage_in_bytes": "2000000",
            f"{V2}/memory/d/memory.stat": "inactive_file 1\ntotal_inactive_file 300000\n",
            f"{V2}/memory/memory.limit_in_bytes": "9223372036854771712",
            f"{V2}/memory/memory.usage_in_bytes": "8000000000",
        },
        4300000,
    ),
    "nonsense": ({"proc/self/cgroup": "0::/a\n", f"{V2}/a/memory.max": "much\n"}, -1),
    "nothing": ({}, -1),
}


def granted(program: Path, what: str, files: dict[str, str], root: Path) -> int:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return int(subprocess.run([program, what, root], capture_output=True, text=True, check=True).stdout)


@ordinary
@pytest.mark.parametrize("files, cores", QUOTAS.values(), ids=QUOTAS)
def test_a_containers_quota_counts_as_cores_do(program, tmp_path, files, cores):
    assert granted(program, "cores", files, tmp_path) == cores


@ordinary
@pytest.mark.parametrize("files, left", MEMORY.values(), ids=MEMORY)
def test_a_groups_memory_is_a_limit(program, tmp_path, files, left):
    assert granted(program, "memory", files, tmp_path) == left
