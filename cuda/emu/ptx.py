"""Translates nvcc's PTX to C++ for the emulator: python cuda/emu/ptx.py in.ptx out.cpp

This is the second gate: nvcc's code of a kernel, the strings of its inline assembly included, runs on the CPU. Each PTX
instruction becomes one C++ statement on registers that hold bits; cuda/emu/ptx_run.h has the functions that they call. A
kernel with an unknown instruction is left out, and named in the last lines. Types and semantics are those of the PTX ISA.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

from ptx_isa import (
    ATOMIC,
    BARRIER,
    BITS,
    COMPARE,
    FLOAT,
    MMA,
    PAIRS,
    PLAIN,
    ROUND,
    SHORT,
    SHUFFLE,
    SPECIAL,
    TYPED,
    UNSIGNED,
    VOTE,
    Unknown,
    cpp,
    group,
    operands,
)


class Parameter(NamedTuple):
    kind: str
    count: int  # the length of an array; 0 if it is none
    align: int
    offset: int


class Kernel:
    def __init__(
        self, name: str, parameters: str, body: str, shared: dict[str, str], shared_bytes: int, first: int
    ):
        self.name, self.shared, self.shared_bytes = name, dict(shared), shared_bytes
        self.registers: dict[str, str] = {}
        self.parameters = self.layout(parameters)
        self.line = first
        self.statements = [code for line in body.splitlines() for code in self.translate_line(line) if code]

    @staticmethod
    def layout(text: str) -> dict[str, Parameter]:
        """The parameters, laid out as members of a struct."""
        members, at = {}, 0
        pattern = r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?"
        for align, kind, name, count in re.findall(pattern, text):
            size = BITS[kind] // 8
            step = int(align or size)
            at = -(-at // step) * step
            members[name] = Parameter(kind, int(count or 0), step, at)
            at += size * int(count or 1)
        return members

    # ---- operands ----

    def read(self, text: str, kind: str) -> str:
        """An operand as a C++ expression of its type."""
        kind_cpp = cpp(kind)
        if match := re.fullmatch(r"%(n?tid|n?ctaid)\.([xyz])", text):
            return f"({kind_cpp}){SPECIAL[match[1]]}.{match[2]}"
        if text == "%laneid":
            return "emu::lane_id()"
        if match := re.fullmatch(r"0f([0-9A-Fa-f]{8})", text):
            return f"ptx::as<float>(0x{match[1]}u)"
        if match := re.fullmatch(r"0d([0-9A-Fa-f]{16})", text):
            return f"ptx::as<double>((uint64_t)0x{match[1]}ull)"
        if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)U?", text):
            return f"({kind_cpp}){text.rstrip('U')}ll"
        if text in self.shared:
            return f"({kind_cpp}){self.shared[text]}"
        if text.startswith("!"):
            return f"!{self.read(text[1:], kind)}"
        if text in self.registers:
            return f"ptx::as<{kind_cpp}>({self.register(text)})"
        raise Unknown(text)

    @staticmethod
    def register(name: str) -> str:
        return "r_" + name.lstrip("%")

    def address(self, text: str, space: str) -> str:
        match = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\d+))?\s*\]", text)
        if not match:
            raise Unknown(text)
        base, offset = match[1], match[2] or "0"
        if space == "param":
            return f"(parameters + {self.parameters[base].offset} + {offset})"
        if space == "shared":
            return f"(shared + {self.read(base, 'u32')} + {offset})"
        return f"((char *){self.read(base, 'u64')} + {offset})"

    def write(self, target: str, value: str) -> str:
        if target == "_":
            return f"(void)({value});"
        if target not in self.registers:
            raise Unknown(target)
        return f"ptx::put({self.register(target)}, {value});"

    # ---- statements ----

    def translate_line(self, line: str) -> list[str]:
        """The statements of a line, without the braces of a scope, whose names are taken to be unlike any others."""
        self.line += 1
        text = re.sub(r"^\{(?!.*\}\s*,)|(?<=[;\s])\}$|^\}$", "", line.split("//")[0].strip())
        return [self.translate(part.strip()) for part in text.split(";")]

    def translate(self, text: str) -> str:
        if not text or text.startswith((".loc", ".pragma")):
            return ""
        if match := re.fullmatch(r"(\$\w+):", text):
            return f"{self.label(match[1])}:;"
        if text.startswith("."):
            return self.declare(text)
        match = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)", text)
        if not match:
            raise Unknown(text)
        condition = f"if ({match[1]}{self.register(match[2])}) " if match[2] else ""
        code = self.instruction(match[3].split("."), operands(match[4]))
        return f"    {condition}{{ {code} }}".replace("@AT", f'{{"{self.name}.ptx", {self.line}}}')

    @staticmethod
    def label(text: str) -> str:
        return text.replace("$", "_")

    def declare(self, text: str) -> str:
        if match := re.fullmatch(r"\.reg\s+\.(\w+)\s+(%\w+)<(\d+)>", text):
            self.registers |= {f"{match[2]}{i}": match[1] for i in range(int(match[3]))}
        elif match := re.fullmatch(r"\.reg\s+\.(\w+)\s+([%\w, ]+)", text):
            self.registers |= {name.strip(): match[1] for name in match[2].split(",")}
        elif match := re.fullmatch(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", text):
            start = -(-self.shared_bytes // int(match[1])) * int(match[1])
            self.shared[match[2]] = str(start)
            self.shared_bytes = start + int(match[3])
        else:
            raise Unknown(text)
        return ""

    def instruction(self, op: list[str], args: list[str]) -> str:
        special = getattr(self, "do_" + op[0], None)
        if special and (code := special(op, args)):
            return code
        kind = op[-1]
        name = ".".join([op[0], *(part for part in op[1:-1] if part not in PLAIN)])
        table = FLOAT if kind in ("f32", "f64") and name in FLOAT else TYPED if name in TYPED else UNSIGNED
        if name not in table or (table is UNSIGNED and kind[0] == "f"):
            raise Unknown(".".join(op))
        if table is UNSIGNED:
            kind = kind.replace("s", "u")
        given = " ".join(f"{cpp(kind)} {v} = {self.read(arg, kind)};" for v, arg in zip("abc", args[1:]))
        return f"{given} {self.write(args[0], f'({cpp(kind)})({table[name]})')}"

    def do_ret(self, op: list[str], args: list[str]) -> str:
        return "return;"

    def do_bra(self, op: list[str], args: list[str]) -> str:
        return f"goto {self.label(args[0])};"

    def do_mov(self, op: list[str], args: list[str]) -> str:
        if args[0].startswith("{"):  # splits a register into halves
            kind, bits = cpp(op[1]), BITS[op[1]] // 2
            parts = [f"(uint{bits}_t)(v >> {bits * i})" for i in range(2)]
            writes = " ".join(self.write(r, part) for r, part in zip(group(args[0]), parts))
            return f"{kind} v = {self.read(args[1], op[1])}; {writes}"
        if not args[1].startswith("{"):
            return ""
        low, high = group(args[1])  # joins two halves in a register
        half = f"b{BITS[op[1]] // 2}"
        wide = cpp(op[1])
        value = f"({wide}){self.read(low, half)} | ({wide}){self.read(high, half)} << {BITS[half]}"
        return self.write(args[0], value)

    def do_cvta(self, op: list[str], args: list[str]) -> str:
        if "shared" not in op:
            return ""
        sign = "-" if "to" in op else "+"
        return self.write(args[0], f"{self.read(args[1], 'u64')} {sign} (uint64_t)shared")

    def do_cvt(self, op: list[str], args: list[str]) -> str:
        to, given = op[-2], op[-1]
        value = self.read(args[1], given)
        if op[1:] == ["sat", "f32", "f32"]:
            return self.write(args[0], f"ptx::saturate({value})")
        if op[1] == "rna":
            return self.write(args[0], f"to_tf32({value})")
        if (to, given) in SHORT:
            return self.write(
                args[0], f"{SHORT[to, given]}({', '.join(self.read(x, given) for x in args[1:])})"
            )
        rounding = "" if len(op) == 3 else ROUND.get(".".join(op[1:-2]))
        if rounding is None or "bf16" in (to, given) or "f16" in (to, given):
            raise Unknown(".".join(op))
        return self.write(args[0], f"({cpp(to)}){rounding}({value})")

    def do_ld(self, op: list[str], args: list[str]) -> str:
        values = group(args[0])
        kind = cpp(op[-1])
        load = f"auto v = ptx::load<{kind}, {len(values)}>({self.address(args[1], op[1])});"
        return load + "".join(f" {self.write(r, f'v.at[{i}]')}" for i, r in enumerate(values))

    def do_st(self, op: list[str], args: list[str]) -> str:
        values = ", ".join(self.read(v, op[-1]) for v in group(args[1]))
        n = len(group(args[1]))
        return f"ptx::store<{cpp(op[-1])}, {n}>({self.address(args[0], op[1])}, {{{{{values}}}}});"

    def do_mul(self, op: list[str], args: list[str]) -> str:
        if op[1] != "wide":
            return ""
        wide = cpp(op[2][0] + str(2 * BITS[op[2]]))
        a, b = (self.read(x, op[2]) for x in args[1:3])
        extra = f" + {self.read(args[3], op[2][0] + str(2 * BITS[op[2]]))}" if len(args) > 3 else ""
        return self.write(args[0], f"({wide})({wide}){a} * ({wide}){b}{extra}")

    do_mad = do_mul

    def do_shl(self, op: list[str], args: list[str]) -> str:
        return self.write(args[0], f"ptx::{op[0]}({self.read(args[1], op[1])}, {self.read(args[2], 'u32')})")

    do_shr = do_shl

    def do_setp(self, op: list[str], args: list[str]) -> str:
        a, b = (self.read(x, op[-1]) for x in args[1:3])
        name = op[1]
        if name in ("nan", "num"):
            test = f"({a} != {a} || {b} != {b}) == {int(name == 'nan')}"
        elif name == "ne" and op[-1][0] == "f":  # false if one is NaN
            test = f"({a} < {b} || {a} > {b})"
        elif name in COMPARE:
            test = f"{a} {COMPARE[name]} {b}"
        elif name[-1] == "u" and name[:-1] in COMPARE:  # true if one is NaN
            test = f"({a} != {a} || {b} != {b} || {a} {COMPARE[name[:-1]]} {b})"
        else:
            raise Unknown(".".join(op))
        if len(op) == 4:  # joined with another predicate
            join = {"and": "&&", "or": "||", "xor": "!="}[op[2]]
            test = f"({test}) {join} {self.read(args[3], 'pred')}"
        return self.write(args[0].split("|")[0], test)

    def do_and(self, op: list[str], args: list[str]) -> str:
        if op[1] != "pred":
            return ""
        sign = {"and": "&&", "or": "||", "xor": "!="}[op[0]]
        return self.write(args[0], f"{self.read(args[1], 'pred')} {sign} {self.read(args[2], 'pred')}")

    do_or = do_xor = do_and

    def do_not(self, op: list[str], args: list[str]) -> str:
        return self.write(args[0], f"!{self.read(args[1], 'pred')}") if op[1] == "pred" else ""

    def do_fma(self, op: list[str], args: list[str]) -> str:
        if op[-1] not in ("bf16x2", "f16x2"):
            return ""
        return self.write(args[0], f"ptx::fma_{op[-1]}({', '.join(self.read(x, 'b32') for x in args[1:])})")

    def do_bfi(self, op: list[str], args: list[str]) -> str:
        return self.write(args[0], f"ptx::bfi({', '.join(self.read(x, 'b32') for x in args[1:])})")

    def do_selp(self, op: list[str], args: list[str]) -> str:
        a, b = (self.read(x, op[1]) for x in args[1:3])
        return self.write(args[0], f"{self.read(args[3], 'pred')} ? {a} : {b}")

    # ---- threads together ----

    def do_bar(self, op: list[str], args: list[str]) -> str:
        if op[1] == "sync":
            return "__syncthreads(@AT);"
        if op[1] == "warp":
            return f"__syncwarp({self.read(args[0], 'u32')}, @AT);"
        return self.write(args[0], f"(uint32_t){BARRIER[op[2]]}({self.read(args[2], 'pred')}, @AT)")

    def do_shfl(self, op: list[str], args: list[str]) -> str:
        value, by, clamp, mask = (self.read(x, "u32") for x in args[1:5])
        call = f"{SHUFFLE[op[2]]}({mask}, {value}, {by}, (int)(32 - ({clamp} >> 8)), @AT)"
        return self.write(args[0].split("|")[0], call)

    def do_vote(self, op: list[str], args: list[str]) -> str:
        call = f"{VOTE[op[2]]}({self.read(args[2], 'u32')}, {self.read(args[1], 'pred')}, @AT)"
        return self.write(args[0], call)

    def do_redux(self, op: list[str], args: list[str]) -> str:
        call = f"__reduce_{op[2]}_sync({self.read(args[2], 'u32')}, {self.read(args[1], op[3])}, @AT)"
        return self.write(args[0], call)

    def do_atom(self, op: list[str], args: list[str]) -> str:
        kind, space = op[-1], op[1] if op[1] in ("global", "shared") else "generic"
        name = "atomic" + next(ATOMIC[part] for part in op if part in ATOMIC)
        at = self.address(args[1], space)
        if kind in PAIRS:
            value = f"emu::bits_as<{PAIRS[kind]}>({self.read(args[2], 'b32')})"
            return self.write(args[0], f"emu::bits_as<uint32_t>({name}(({PAIRS[kind]} *){at}, {value}))")
        given = ", ".join(self.read(x, kind) for x in args[2:])
        return self.write(args[0], f"{name}(({cpp(kind)} *){at}, {given})")

    def do_mma(self, op: list[str], args: list[str]) -> str:
        name = MMA.get(f"{op[3]}.{op[7]}") or MMA.get(f"{op[3]}.{op[6]}")
        if not name or op[1:3] != ["sync", "aligned"] or op[4:6] != ["row", "col"]:
            raise Unknown(".".join(op))
        d, a, b, c = (group(x) for x in args)
        inputs = ", ".join(self.read(x, "f32") for x in c)
        code = f"float d[] = {{{inputs}}};"
        for letter, registers in (("a", a), ("b", b)):
            code += f" uint32_t {letter}[] = {{{', '.join(self.read(x, 'b32') for x in registers)}}};"
        code += f" mma_{name}(d, a, b, @AT);"
        return code + "".join(f" {self.write(r, f'd[{i}]')}" for i, r in enumerate(d))

    def do_ldmatrix(self, op: list[str], args: list[str]) -> str:
        if op[1:4] != ["sync", "aligned", "m8n8"] or op[-1] != "b16":
            raise Unknown(".".join(op))
        name = f"ldmatrix_{op[4]}" + ("_trans" if "trans" in op else "")
        registers = group(args[0])
        code = f"uint32_t r[{len(registers)}]; {name}(r, {self.address(args[1], 'shared')}, @AT);"
        return code + "".join(f" {self.write(x, f'r[{i}]')}" for i, x in enumerate(registers))

    def do_cp(self, op: list[str], args: list[str]) -> str:
        if op[2] == "commit_group":
            return "emu::cp_async_close();"
        if op[2] == "wait_group":
            return f"emu::cp_async_finish({args[0]});"
        read = self.read(args[3], "s32") if len(args) > 3 else args[2]
        to, source = self.address(args[0], "shared"), self.address(args[1], "global")
        return f"emu::cp_async({to}, {source}, {args[2]}, {read}, @AT);"

    # ---- the function ----

    def function(self) -> str:
        storage = {1: "bool", 16: "uint16_t", 32: "uint32_t", 64: "uint64_t"}
        lines = [f"static void body_{self.name}(const void *memory) {{"]
        lines.append("    const char *parameters = (const char *)memory; (void)parameters;")
        lines.append(f"    const unsigned dynamic = {self.static_bytes()}; (void)dynamic;")
        shared = "(char *)emu::dynamic_shared()" if self.uses_shared() else "nullptr"
        lines.append(f"    char *shared = {shared}; (void)shared;")
        used = set(re.findall(r"r_\w+", "\n".join(self.statements)))
        for name, kind in self.registers.items():
            if self.register(name) in used:
                lines.append(f"    {storage[BITS[kind]]} {self.register(name)} = 0;")
        lines += [*self.statements, "}"]
        return "\n".join(lines)

    def row(self) -> str:
        return f'    {{"{self.name}", body_{self.name}, {self.static_bytes()}}},'

    def static_bytes(self) -> int:
        """The bytes of static shared memory, behind which the dynamic one begins."""
        return -(-self.shared_bytes // 128) * 128

    def uses_shared(self) -> bool:
        return any("shared" in statement for statement in self.statements)


def kernels(text: str) -> tuple[list[Kernel], list[str]]:
    """Translates every .entry; returns one line for each that could not be translated, too."""
    done, left_out = [], []
    shared, size = {}, 0  # name -> its offset, or the C++ variable of the offset
    for align, name, count in re.findall(
        r"^\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", text, re.M
    ):
        start = -(-size // int(align)) * int(align)
        shared[name] = str(start)
        size = start + int(count)
    for name in re.findall(r"^\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\]", text, re.M):
        shared[name] = "dynamic"
    for match in re.finditer(r"\.entry\s+([\w$]+)\((.*?)\)[^{]*\{\n(.*?)\n\}", text, re.S):
        first = text[: match.start(3)].count("\n")
        try:
            done.append(Kernel(match[1], match[2], match[3], shared, size, first))
        except (Unknown, KeyError) as unknown:
            left_out.append(f"{match[1]}: {unknown}")
    return done, left_out


def translate(text: str) -> tuple[str, list[str]]:
    done, left_out = kernels(text)
    rows = "\n".join(k.row() for k in done)
    table = f"const ptx::Kernel ptx::kernels[] = {{\n{rows}\n    {{nullptr, nullptr, 0}}}};\n"
    return '#include "ptx_launch.h"\n' + "\n".join(k.function() for k in done) + "\n" + table, left_out


if __name__ == "__main__":
    code, missing = translate(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(code)
    if missing:
        print("not translated:", *missing, sep="\n  ")
