"""Compares the registers and memory of each CUDA kernel, as ptxas counted them in `make cuda`, with cuda/budgets.txt.

python dev/cuda_budgets.py            prints the kernels over their budget
python dev/cuda_budgets.py --write    makes today's figures the budget: read the diff before a commit
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = ROOT / "cuda/budgets.txt"
ELEMENTS = ("bf16", "fp32")
WRITE = "python dev/cuda_budgets.py --write"
LEGEND = f"""\
# What ptxas may take for a kernel; tests/cuda/test_cuda_build.py holds it to that. Rewritten by: {WRITE}
# Per GPU: registers of a thread, +bytes of local memory where that is not enough (spills). shared: bytes of a block,
# without those that its launch adds.
"""


class Usage(NamedTuple):
    registers: int
    local: int = 0  # bytes a thread
    shared: int = 0  # bytes a block


Usages = dict[tuple[str, str], dict[str, Usage]]  # (element, kernel): {"sm_80": ...}


def ptxas_says(log: str) -> Iterator[tuple[str, str, Usage]]:
    """The mangled name, architecture and usage of each kernel, from the output of ptxas -v."""
    for part in re.split(r"(?=ptxas info\s*: Compiling entry function)", log)[1:]:
        name, arch = re.findall(r"'(\w+)'", part)[:2]
        amounts = [
            re.search(rf"(\d+) {what}", part) for what in ("registers", "bytes stack frame", "bytes smem")
        ]
        yield name, arch, Usage(*(int(amount[1]) if amount else 0 for amount in amounts))


def short_names(mangled: list[str]) -> dict[str, str]:
    """Demangled names without arguments, result and spaces: gemm_mma_kernel<true,false>."""
    command = ["c++filt", *mangled]
    plain = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(zip(mangled, map(shortened, plain)))


def shortened(signature: str) -> str:
    name = re.sub(r"\(anonymous namespace\)::|^void |^static ", "", signature).split("(")[0]
    return name.replace(", ", ",").replace("> >", ">>")


def measured(build: Path = ROOT / "build") -> Usages:
    """The usage of each object of `make cuda`; the output of ptxas lies beside each."""
    usages: Usages = {}
    for element in ELEMENTS:
        logs = "".join(path.read_text() for path in sorted(build.glob(f"cuda_{element}/*.ptxas")))
        said = list(ptxas_says(logs))
        short = short_names(sorted({name for name, _, _ in said})) if said else {}
        assert len(set(short.values())) == len(short), "two kernels have one name: rename one"
        for name, arch, usage in said:
            usages.setdefault((element, short[name]), {})[arch] = usage
    return usages


def release(nvcc: str = "nvcc") -> str:
    """The release of the compiler: figures of other releases differ."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release [\d.]+", said)
    assert found, said
    return "nvcc " + found[0]


def archs_of(usages: Usages) -> set[str]:
    return {arch for of in usages.values() for arch in of}


def table(usages: Usages, compiler: str) -> str:
    archs = sorted(archs_of(usages), key=lambda arch: int(arch[3:]))
    rows = [["element", "kernel", "shared", *archs]]
    for (element, kernel), of in sorted(usages.items()):
        cells = [f"{u.registers}+{u.local}" if u.local else str(u.registers) for u in map(of.get, archs) if u]
        rows.append([element, kernel, str(max(usage.shared for usage in of.values())), *cells])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return LEGEND + f"# {compiler}\n" + "\n".join(lines) + "\n"


def read(text: str) -> tuple[Usages, str]:
    """Reads a table of budgets, and the compiler that made it."""
    compiler = text.splitlines()[LEGEND.count("\n")][2:]
    head, *rows = (line.split() for line in text.splitlines() if not line.startswith("#"))
    usages: Usages = {}
    for element, kernel, shared, *cells in rows:
        amounts = [[*map(int, cell.split("+")), 0][:2] for cell in cells]
        usages[element, kernel] = {
            arch: Usage(registers, local, int(shared)) for arch, (registers, local) in zip(head[3:], amounts)
        }
    return usages, compiler


def complaints(budget: Usages, now: Usages) -> list[str]:
    """One line for each kernel that exceeds its budget, has none, or is gone."""
    lines = [
        f"{' '.join(key)}: in {BUDGETS.name}, but no longer a kernel" for key in budget if key not in now
    ]
    for key, of in now.items():
        for arch, usage in of.items():
            allowed = budget.get(key, {}).get(arch)
            where = f"{' '.join(key)}, {arch}"
            if allowed is None:
                lines.append(f"{where}: has no budget")
                continue
            for what, used, may in zip(Usage._fields, usage, allowed):
                if used > may:
                    lines.append(f"{where}: {used} {what}, budget {may}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="make today's figures the budget")
    write = parser.parse_args().write
    now, budget = measured(), read(BUDGETS.read_text())[0]
    if not now:
        sys.exit("nothing is built: run `make cuda`")
    if write and archs_of(now) < archs_of(budget):
        sys.exit("only some GPUs' kernels are built, as the tests need them: run `make cuda`")
    if write:
        BUDGETS.write_text(table(now, release()))
        return 0
    lines = complaints(budget, now)
    print("\n".join(lines or [f"{len(now)} kernels within their budgets"]))
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
