"""The memory of a process, by the engine's own plan, and what ZeRO-1 and DiLoCo change of it."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any

from pyllmc.base.errors import InvalidArgument, NoDevice
from pyllmc.convert import peft_adapter
from pyllmc.convert.kinds import ADAPTER, find
from pyllmc.convert.source import Source, locate, make_config
from pyllmc.engine import _ffi
from pyllmc.engine.arena import config_of
from pyllmc.engine.arguments import choose_trained, make_room
from pyllmc.planning.steptime import FP32, Way
from pyllmc.tables import layout
from pyllmc.tables.layout import GPTConfig

# the options of training that change a model's sizes or its memory
SIZES = ("max_seq_len", "n_layer", "n_head", "n_embd", "window", "untied", "pattern")
OPTIONS = (
    "model", *SIZES, "vocab_size", "B", "T", "grad_accum", "global_batch", "train_only", "lora_rank", "lora_alpha", "lora_on",
    "lora_dropout", "precision", "recompute", "threads",
)  # fmt: skip
MOST_B = 1 << 24


@dataclass(frozen=True)
class Plan:
    """llmc_plan in bytes; device: the library that made it."""

    params: int
    stored: int
    grads: int
    moments: int
    acts: int
    workspace: int
    total: int
    num_params: int
    trained: int
    device: str

    def of_process(self, n: int, way: Way) -> int:
        """The bytes of one of n processes. ZeRO-1 leaves it 1/n of the moments; DiLoCo keeps the parameters of the last outer step
        and the outer momentum beside them."""
        shared = self.moments - -(-self.moments // n) if way.zero else 0
        return self.total - shared + (2 * FP32 * self.trained if way.diloco else 0)


class Planner:
    """The engine's plans for the model and the batch that options of training name.

    Raises InvalidArgument for impossible sizes, BadFile for a weight file that cannot be read, NoDevice without the engine.
    """

    def __init__(self, options: argparse.Namespace, gpu: bool) -> None:
        self.options = o = options
        self.gpu = gpu
        self.lib, self.device = library(o.precision, gpu)
        self.config = self._config(_source(o))
        self.sizes: GPTConfig = config_of(self.config)
        self.T = o.T or self.sizes.max_seq_len
        if self.T > self.sizes.max_seq_len:
            raise InvalidArgument(
                f"--T={self.T} is longer than the model's context of {self.sizes.max_seq_len}: lower --T or raise --max_seq_len"
            )
        usual = "bf16" if gpu else "fp32"
        self.precision = usual if o.precision == "auto" else str(o.precision)
        self.element = _ffi.check(self.lib, self.lib.llmc_precision(_ffi.encoded(self.precision)))

    def _config(self, source: Source) -> Any:
        config = make_config(source, self.lib).with_vocabulary(self.options.vocab_size, source)
        _ffi.check(self.lib, self.lib.llmc_config_check(config))
        return config

    def plan(self, B: int) -> Plan:
        """The plan for B sequences of T tokens, as training takes them."""
        o = self.options
        room = make_room(B, self.T, True, o.recompute, False, self.element)
        room.whole = self.gpu  # a GPU keeps whole masters, whatever library plans
        held = choose_trained(  # noqa: F841, room points there
            self.lib, room, o.train_only, o.lora_rank, o.lora_alpha, o.lora_on
        )
        out = _ffi.ffi().new("llmc_plan *")
        _ffi.check(self.lib, self.lib.llmc_plan_memory(self.config, room, o.threads, out))
        found = {f.name: int(getattr(out, f.name)) for f in dataclasses.fields(Plan) if f.name != "device"}
        return Plan(**found, device=self.device)

    def unseen(self) -> int:
        """The elements of positions behind T, if they are trained with the whole model: their gradients are zeros in every process."""
        whole = not (self.options.lora_rank or self.options.train_only)
        return whole * (self.sizes.max_seq_len - self.T) * self.sizes.n_embd

    def largest_B(self, memory: float, n: int, way: Way) -> int:
        """The most sequences whose memory fits; 0 if not even one does."""

        def fits(B: int) -> bool:
            return self.plan(B).of_process(n, way) <= memory

        least, most = 0, 1
        while most < MOST_B and fits(most):
            least, most = most, 2 * most
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if fits(middle) else (least, middle)
        return least


def library(precision: str, gpu: bool) -> tuple[Any, str]:
    """The library that plans, and its device. A GPU's plan needs no GPU if the emulated kernels are built; else the CPU's stands
    for it, whose workspace differs."""
    for device in ("cuda", "emu") if gpu else ():
        try:
            lib = _ffi.load(device, precision)
            if lib.llmc_kernels(_ffi.ffi().NULL, lib.LLMC_AUTO) != _ffi.ffi().NULL:
                return lib, device
        except NoDevice:
            pass
    return _ffi.load(), "cpu"


def adopt_adapter(o: argparse.Namespace) -> None:
    """Lets an adapter of PEFT's say what is trained, as training does (pyllmc.adopt). Raises InvalidArgument for options that are
    not the adapter's."""
    path = None if layout.is_size(o.model) else locate(o.model)
    found = path and find(path)
    given = {name: getattr(o, name) for name in peft_adapter.OPTIONS if name in o.given}
    if found and found.kind == ADAPTER and not peft_adapter.is_merged(given):
        vars(o).update(peft_adapter.read_folder(found.where).options(found.where, given))


def _source(o: argparse.Namespace) -> Source:
    """A size that options change, or a file of weights, which they cannot."""
    changed = {name: getattr(o, name) for name in SIZES if getattr(o, name)}
    if not layout.is_size(o.model):
        if changed:
            name = next(iter(changed))
            raise InvalidArgument(
                f"--{name} is of fresh weights, and {o.model} has sizes of its own: leave it out"
            )
        return str(o.model)
    sizes = layout.config_of(o.model, o.vocab_size, fallback=1)
    if sizes.vocab_size == 1:
        raise InvalidArgument(f"--model={o.model} takes its vocabulary from the data: give --vocab_size")
    return dataclasses.replace(sizes, **changed)
