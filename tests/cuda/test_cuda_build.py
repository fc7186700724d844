"""The build for GPUs, as far as it can be tested without one: nvcc's output for each kernel, and the message if nvcc is
missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cuda_budgets
import pytest
from conftest import DEVICES, ROOT
from cuda_budgets import Usage

NVCC = os.environ.get("NVCC") or "nvcc"
MAKEFILE = (ROOT / "cuda/cuda.mk").read_text()
NUMBERS = re.search(r"^CUDA_ARCHS *\?= (.*)$", MAKEFILE, re.M)[1].split()
BUILT = [NUMBERS[0], "90", NUMBERS[-1]]  # each takes half a minute; make cuda builds for those between, too
ARCHS = {f"sm_{number}" for number in BUILT}


def nvcc_knows() -> set[str]:
    """The GPUs that this nvcc compiles for."""
    if shutil.which(NVCC) is None:
        return set()
    return set(subprocess.run([NVCC, "--list-gpu-code"], capture_output=True, text=True).stdout.split())


needs_nvcc = [
    pytest.mark.skipif(not nvcc_knows() >= ARCHS, reason="needs nvcc of CUDA 13"),
    pytest.mark.skipif("PYLLMC_LIB" in os.environ, reason="builds the ordinary libraries"),
]


@pytest.fixture(scope="module")
def built() -> None:
    """Builds every .cu for both elements and several GPUs, with warnings as errors (cuda/cuda.mk)."""
    command = ["make", "-C", str(ROOT), "-j2", "cuda", f"NVCC={NVCC}", f"CUDA_ARCHS={' '.join(BUILT)}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def nvcc_test(function):
    for mark in needs_nvcc:
        function = mark(function)
    return pytest.mark.usefixtures("built")(function)


# ---- the counts of ptxas ----


@nvcc_test
def test_every_kernel_keeps_its_budget():
    budget, compiler = cuda_budgets.read(cuda_budgets.BUDGETS.read_text())
    now = cuda_budgets.measured()
    assert [key for key, of in now.items() if set(of) != ARCHS] == []
    if compiler != cuda_budgets.release(NVCC):
        pytest.skip(f"the budgets are of {compiler}, this is {cuda_budgets.release(NVCC)}")
    lines = cuda_budgets.complaints(budget, now)
    assert not lines, "\n".join([*lines, f"if that is meant: {cuda_budgets.WRITE}"])


LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4spinILb1ELi2EEvPf' for 'sm_90'
ptxas info    : Function properties for _Z4spinILb1ELi2EEvPf
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 8 bytes cumulative stack size, 640 bytes smem
ptxas info    : Compiling entry function '_Z4spinILb1ELi2EEvPf' for 'sm_100'
ptxas info    : Function properties for _Z4spinILb1ELi2EEvPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 464 bytes cmem[0]
"""


def test_ptxas_is_understood(tmp_path):
    (tmp_path / "cuda_fp32").mkdir()
    (tmp_path / "cuda_fp32/spin.ptxas").write_text(LOG)
    now = cuda_budgets.measured(tmp_path)
    assert now == {("fp32", "spin<true,2>"): {"sm_90": Usage(255, 8, 640), "sm_100": Usage(40)}}


def test_what_exceeds_its_budget_is_told():
    key = ("bf16", "kernel<1>")
    budget = {key: {"sm_80": Usage(32, 8, 64), "sm_100": Usage(40, 0, 64)}}
    assert cuda_budgets.read(cuda_budgets.table(budget, "nvcc release 1.2")) == (budget, "nvcc release 1.2")

    def told(**changes: int) -> list[str]:
        now = {key: {**budget[key], "sm_100": budget[key]["sm_100"]._replace(**changes)}}
        return cuda_budgets.complaints(budget, now)

    assert told() == told(registers=39) == []
    assert told(registers=41) == ["bf16 kernel<1>, sm_100: 41 registers, budget 40"]
    assert told(local=4) == ["bf16 kernel<1>, sm_100: 4 local, budget 0"]
    assert told(shared=65) == ["bf16 kernel<1>, sm_100: 65 shared, budget 64"]
    assert cuda_budgets.complaints({}, budget)[0] == "bf16 kernel<1>, sm_80: has no budget"
    assert "no longer" in cuda_budgets.complaints(budget, {})[0]


# ---- the instructions, disassembled ----


def tools() -> str | None:
    """The folder of cuobjdump and nvdisasm: beside nvcc, or in NVIDIA's packages."""
    beside = [Path(found).parent for found in [shutil.which("cuobjdump")] if found]
    packages = [found for path in sys.path for found in Path(path or ".").glob("nvidia/cu*/bin")]
    for folder in [*beside, Path("/usr/local/cuda/bin"), *packages]:
        if (folder / "cuobjdump").exists() and (folder / "nvdisasm").exists():
            return str(folder)
    return None


TOOLS = tools()
needs_tools = pytest.mark.skipif(
    TOOLS is None, reason="needs nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm from PyPI"
)


def dump(what: str, name: str, element: str) -> str:
    env = {**os.environ, "PATH": f"{TOOLS}:{os.environ['PATH']}"}
    command = ["cuobjdump", what, str(ROOT / f"build/cuda_{element}/{name}.o")]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


Mnemonics = dict[tuple[str, str, str], set[str]]  # (element, kernel, "sm_80"): the set of its instructions


def mnemonics(name: str, element: str) -> Mnemonics:
    """The mnemonics of each kernel of an object, for each GPU."""
    found: dict[tuple[str, str], set[str]] = {}
    arch, instructions = "", set()
    line = re.compile(
        r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)|^arch = (sm_\w+)|Function : (\w+)"
    )
    for match in map(line.match, (text.strip() for text in dump("-sass", name, element).splitlines())):
        if match is None:
            continue
        if match[2]:
            arch = match[2]
        elif match[3]:
            instructions = found.setdefault((match[3], arch), set())
        else:
            instructions.add(match[1])
    short = cuda_budgets.short_names(sorted({kernel for kernel, _ in found}))
    return {(element, short[kernel], arch): of for (kernel, arch), of in found.items()}


TENSOR = ("HMMA", "LDSM", r"LDGSTS.*\.128")  # products, their operands, and copies during the computation
LOADS, STORES = r"LDG.*\.128", r"STG.*\.128"
VECTORS = {"bf16": 8, "fp32": 4}  # elements in 16 bytes; stands for {} below
# object, elements, its kernels, the instructions that each of them must have
EXPECTED = [
    ("gemm_mma", ("bf16",), r"gemm_mma_kernel<", TENSOR),
    ("attention", ("bf16",), r"mma::(forward|backward)<", (*TENSOR, r"STG.*\.128")),
    ("layernorm", ("bf16", "fp32"), r"layernorm_(forward|backward)_kernel<Split<\d+,{},", (LOADS, STORES)),
    ("adamw", ("bf16", "fp32"), r"(adamw|scale)_kernel<4>", (LOADS, STORES)),
    ("adamw", ("bf16", "fp32"), r"(norm_parts|store)_kernel<4>", (LOADS,)),
    ("classifier", ("bf16", "fp32"), r"classifier_forward_kernel<{}>", (LOADS,)),
    ("classifier", ("bf16", "fp32"), r"classifier_backward_kernel<{}>", (LOADS, STORES)),
]


@pytest.fixture(scope="module")
def disassembled(built) -> dict[tuple[str, str], Mnemonics]:
    objects = sorted({(name, element) for name, elements, _, _ in EXPECTED for element in elements})
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(objects, pool.map(lambda key: mnemonics(*key), objects)))


@nvcc_test
@needs_tools
@pytest.mark.parametrize("name, elements, kernels, needed", EXPECTED)
def test_the_instructions_that_matter_are_there(disassembled, name, elements, kernels, needed):
    for element in elements:
        pattern = kernels.replace("{}", str(VECTORS[element]))
        chosen = {key: of for key, of in disassembled[name, element].items() if re.match(pattern, key[1])}
        assert {arch for _, _, arch in chosen} == ARCHS
        for key, of in chosen.items():
            for instruction in needed:
                assert any(re.match(instruction, has) for has in of), f"{key} has no {instruction}"


@nvcc_test
@needs_tools
def test_local_memory_is_touched_only_where_it_is_budgeted(disassembled):
    budget, _ = cuda_budgets.read(cuda_budgets.BUDGETS.read_text())
    for of_object in disassembled.values():
        for (element, kernel, arch), of in of_object.items():
            if not budget[element, kernel][arch].local:
                assert not {has for has in of if re.match(r"(LDL|STL)\b", has)}, (element, kernel, arch)


# ---- occupancy ----

REGISTERS = 65536  # registers of a multiprocessor, on every GPU from sm_80 on


def launch_bounds(name: str, element: str) -> dict[str, tuple[int, int]]:
    """The threads of a block, and the blocks of a multiprocessor, in the __launch_bounds__ of its kernels."""
    bounds = {}
    for entry in re.split(r"\.entry ", dump("-ptx", name, element))[1:]:
        kernel, head = entry.split("(", 1)[0], entry.split("{", 1)[0]
        threads, blocks = (re.search(rf"\.{what} (\d+)", head) for what in ("maxntid", "minnctapersm"))
        if threads:
            bounds[kernel] = int(threads[1]), int(blocks[1]) if blocks else 1
    short = cuda_budgets.short_names(sorted(bounds))
    return {short[kernel]: of for kernel, of in bounds.items()}


def registers_of_block(threads: int, registers: int) -> int:
    """Registers that a block takes: a warp gets them in units of 8 a thread."""
    return -(-threads // 32) * 32 * -(-registers // 8) * 8


@nvcc_test
@needs_tools
@pytest.mark.parametrize("element", cuda_budgets.ELEMENTS)
def test_registers_leave_room_for_the_blocks_that_were_asked_for(element):
    now = cuda_budgets.measured()
    bounded = {}
    for source in sorted((ROOT / "cuda").glob("*.cu")):
        bounded.update(launch_bounds(source.stem, element))
    assert len(bounded) > 20
    for kernel, (threads, blocks) in bounded.items():
        for arch, usage in now[element, kernel].items():
            needed = registers_of_block(threads, usage.registers) * blocks
            assert needed <= REGISTERS, f"{kernel}, {arch}: {blocks} blocks need {needed} registers"


# ---- without a GPU ----

without_gpu = pytest.mark.skipif(
    any(name.startswith("cuda") for name in DEVICES), reason="there is a GPU here"
)


def run(*command: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)


@nvcc_test
@without_gpu
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_a_model_on_no_gpu_is_an_error_that_says_so(precision):
    code = (
        "import pyllmc\n"
        f"try: pyllmc.Model(pyllmc.GPTConfig(50, 16, 2, 2, 24), B=2, T=9, device='cuda', precision='{precision}')\n"
        "except pyllmc.NoDevice as error: print(error)"
    )
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"no CUDA device: .*\. Without a GPU take --device=cpu[^\n]*\n", done.stdout)


@nvcc_test
@without_gpu
def test_the_program_without_a_gpu_ends_with_one_line(tmp_path):
    done = run(str(ROOT / "train_gpt2_cuda"), f"--out={tmp_path / 'run'}", f"--data={tmp_path}")
    assert done.returncode == 6
    assert re.fullmatch(r"[^\n]*no CUDA device: [^\n]*--device=cpu[^\n]*\n", done.stderr)
    assert not (tmp_path / "run").exists()
