"""Puts nvcc's PTX of kernels in the place of g++'s code: python cuda/emu/ptx_instead.py in.ptx out.cpp PATTERN

Each kernel whose mangled name matches PATTERN becomes a function of that name with the same arguments. It is linked before
the objects that hold the same kernel, which it may replace because that one comes from a template. So a launch runs the PTX,
and so do the tests of a layer. Kernels with __shared__ arrays of their own are refused, because the launch would have to
place these.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ptx import Kernel, Parameter, kernels
from ptx_isa import cpp


def type_of(p: Parameter) -> str:
    return f"ptx::Bytes<{p.count}, {p.align}>" if p.count else cpp(p.kind)


def instead(kernel: Kernel) -> str:
    """The function that stands in for a kernel: it puts the arguments where PTX expects them."""
    given = list(kernel.parameters.values())
    arguments = ", ".join(f"{type_of(p)} p{i}" for i, p in enumerate(given))
    copies = "".join(f" memcpy(memory + {p.offset}, &p{i}, sizeof p{i});" for i, p in enumerate(given))
    last = given[-1]
    size = f"{last.offset} + sizeof({type_of(last)})"
    head = f"void instead_{kernel.name}({arguments})"
    body = f"alignas(16) char memory[{size}];{copies} ptx_threads++; body_{kernel.name}(memory);"
    return f'{head} __asm__("{kernel.name}");\n{head} {{ {body} }}'


def main(source: str, target: str, pattern: str) -> None:
    done, left_out = kernels(Path(source).read_text())
    missing = [line for line in left_out if re.search(pattern, line)]
    chosen = [k for k in done if re.search(pattern, k.name)]
    bad = [k.name for k in chosen if k.static_bytes()]
    if missing or bad or not chosen:
        sys.exit(f"{source}: not translated: {missing}; with __shared__ arrays: {bad}; chosen: {len(chosen)}")
    parts = [text for k in chosen for text in (k.function(), instead(k))]
    Path(target).write_text('#include "ptx_run.h"\n' + "\n".join(parts) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
