"""The parts of PTX that need no context: types, formulas of simple instructions, and the emulator's names of the others."""

from __future__ import annotations

import re

BITS = {
    "bf16x2": 32,
    "f16x2": 32,
    "pred": 1,
    "b8": 8,
    "u8": 8,
    "s8": 8,
    "b16": 16,
    "u16": 16,
    "s16": 16,
    "f16": 16,
    "bf16": 16,
}
BITS |= {f"{kind}{n}": n for kind in "busf" for n in (32, 64)}

# formulas of a, b, c, which have the instruction's type; integers wrap, so these are unsigned if the bits are the same
UNSIGNED = {"add": "a + b", "sub": "a - b", "mul.lo": "a * b", "mad.lo": "a * b + c", "neg": "0 - a"}
UNSIGNED |= {"and": "a & b", "or": "a | b", "xor": "a ^ b", "not": "~a"}
FLOAT = {
    "add": "a + b",
    "sub": "a - b",
    "mul": "a * b",
    "neg": "-a",
    "fma": "fmaf(a, b, c)",
    "abs": "fabsf(a)",
}
FLOAT |= {
    "fma.rm": "ptx::fma_down(a, b, c)",
    "div": "a / b",
    "ex2": "exp2_approx(a)",
    "sqrt": "std::sqrt(a)",
    "rcp": "1 / a",
    "rsqrt": "1 / std::sqrt(a)",
    "lg2": "log2f(a)",
}
TYPED = {
    "div": "a / b",
    "rem": "a % b",
    "mul.hi": "ptx::mul_hi(a, b)",
    "min": "b < a ? b : a",
    "max": "a < b ? b : a",
    "mov": "a",
    "cvta": "a",
    "cvta.to": "a",
}
# parts of a name that change nothing here; any other must be in a table, as in fma.rm
PLAIN = {"rn", "approx", "ftz", "full", "global", "shared"}
ROUND = {"rn": "", "rni": "rintf", "rzi": "truncf", "rmi": "floorf", "rpi": "ceilf"}
COMPARE = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
}
SHUFFLE = {
    "bfly": "__shfl_xor_sync",
    "idx": "__shfl_sync",
    "up": "__shfl_up_sync",
    "down": "__shfl_down_sync",
}
ATOMIC = {
    "add": "Add",
    "min": "Min",
    "max": "Max",
    "or": "Or",
    "and": "And",
    "inc": "Inc",
    "cas": "CAS",
    "exch": "Exch",
}
VOTE = {"ballot": "__ballot_sync", "any": "__any_sync", "all": "__all_sync"}
BARRIER = {"popc": "__syncthreads_count", "or": "__syncthreads_or", "and": "__syncthreads_and"}
MMA = {"m16n8k16.bf16": "bf16_16816", "m16n8k16.f16": "f16_16816", "m16n8k8.tf32": "tf32_1688"}
SHORT = {("bf16", "f32"): "ptx::bf16", ("f16", "f32"): "ptx::f16", ("f32", "f16"): "ptx::from_f16"}
SHORT |= {("bf16x2", "f32"): "ptx::bf16x2", ("f16x2", "f32"): "ptx::f16x2", ("f32", "bf16"): "ptx::from_bf16"}
PAIRS = {"bf16x2": "__nv_bfloat162", "f16x2": "__half2"}
SPECIAL = {"tid": "threadIdx", "ntid": "blockDim", "ctaid": "blockIdx", "nctaid": "gridDim"}


class Unknown(Exception):
    pass


def cpp(kind: str) -> str:
    """The C++ type of a PTX type."""
    if kind not in BITS:
        raise Unknown(f".{kind}")
    if kind == "pred":
        return "bool"
    if kind in ("f32", "f64"):
        return "float" if kind == "f32" else "double"
    return f"{'' if kind[0] == 's' else 'u'}int{BITS[kind]}_t"


def operands(text: str) -> list[str]:
    """Splits the operands at commas outside braces and brackets."""
    return [part.strip() for part in re.split(r",(?![^{\[]*[}\]])", text)] if text.strip() else []


def group(text: str) -> list[str]:
    """The registers of a group: {%r1,%r2} -> ["%r1", "%r2"]"""
    return [part.strip() for part in text.strip("{} ").split(",")]
