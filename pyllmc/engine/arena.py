"""A model's tensors by name: numpy views of the arena on the CPU, copies on a GPU."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pyllmc.base.checks import NotCopied, as_text
from pyllmc.base.errors import InvalidArgument
from pyllmc.engine import _ffi
from pyllmc.engine.arguments import as_array
from pyllmc.engine.weightfile import WeightFile
from pyllmc.tables import layout
from pyllmc.tables.layout import GPTConfig

BLOCKS = {"params": 0, "grads": 1, "m": 2, "v": 3, "acts": 4}
GRADIENTS = ("grads", "m", "v")


class _Block:
    """One block of the arena as an array. A view of it keeps the arena alive."""

    def __init__(self, handle: Any, pointer: Any, elements: int) -> None:
        self.handle = handle
        address = int(_ffi.ffi().cast("uintptr_t", pointer))
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (elements,),
            "typestr": "<f4",
            "version": 3,
        }


class NoTensor(InvalidArgument, KeyError):
    """No tensor has the name. This is a KeyError, too, because mappings raise that."""

    __str__ = Exception.__str__  # KeyError's own would show the text in quotes


class Views(NotCopied, Mapping[str, Any]):
    """Tensors by name: the table's ("qkvw", all layers stacked) or PyTorch's ("transformer.h.0.attn.c_attn.weight").

    On the CPU they are views, which may be written to; on a GPU, and of a model of bf16 its parameters and all that it
    stores in bf16, they are read-only copies. `params[name] = array` sets a tensor everywhere. A text
    that is being written (Model.steps, Writer, Primer) does not notice what is written into a view, and goes on with keys and
    values of the old weights: assign params[name] = array, and they are computed anew.
    """

    _INSTEAD = "copy the arrays: {name: x.copy() for name, x in model.params.items()}"

    def __init__(self, arena: Arena, *blocks: str) -> None:
        self._arena, self._blocks = arena, blocks

    def __getitem__(self, name: str) -> Any:
        views = tuple(self._arena.view(block, name) for block in self._blocks)
        return views if len(views) > 1 else views[0]

    def __setitem__(self, name: str, values: Any) -> None:
        each = values if len(self._blocks) > 1 else (values,)
        if not isinstance(each, (tuple, list)) or len(each) != len(self._blocks):
            raise InvalidArgument("moments are set as a pair: model.moments[name] = m, v")
        for block, array in zip(self._blocks, each):
            self._arena.set(block, name, array)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arena.names(self._blocks[0]))

    def __len__(self) -> int:
        return len(self._arena.names(self._blocks[0]))


def config_of(c: Any) -> GPTConfig:
    """The GPTConfig of an llmc_config."""
    return GPTConfig(c.V, c.maxT, c.L, c.NH, c.C, c.window, c.untied, _ffi.text(c.pattern))


class Arena:
    """A model's memory, by the table's rows. `owner` keeps it alive."""

    def __init__(self, lib: Any, handle: Any, owner: Any) -> None:
        self.lib, self.handle, self.owner = lib, handle, owner
        c = lib.llmc_model_config(handle)
        self.config = config_of(c)
        self.padded = {row.name for row in layout.table(self.config) if row.padded}
        self.rows, self.index = {}, {}
        for i in range(lib.llmc_num_tensors()):
            row = lib.llmc_model_tensor(handle, i)
            if row.size:  # else the model has no such tensor
                self.rows[_ffi.text(row.name)], self.index[_ffi.text(row.name)] = row, i
        self.by_torch_name = {
            torch: (name, layer) for name, row in self.rows.items() for layer, torch in _torch_names(row)
        }

    def is_weight(self, row: Any) -> bool:
        """True for a parameter or an adapter, as opposed to an activation."""
        return row.kind in (self.lib.LLMC_PARAM, self.lib.LLMC_ADAPTER)

    def gradient_at(self, name: str, layer: int) -> int:
        """Where the gradient and the moments of a layer begin in their blocks, in elements; -1: it is frozen."""
        return self.lib.llmc_model_gradient_at(self.handle, self.index[name], layer)

    def check(self, status: int) -> int:
        return _ffi.check(self.lib, status)

    @property
    def room(self) -> Any:
        """The llmc_room that the model was made with: B, T, training, recompute, precision."""
        return self.lib.llmc_model_room(self.handle)[0]

    @property
    def training(self) -> bool:
        return bool(self.room.training)

    @property
    def bf16(self) -> bool:
        """True if weights and activations are bf16. AdamW moves float masters of the weights."""
        return bool(self.room.precision == self.lib.LLMC_BF16)

    @property
    def shape(self) -> tuple[int, int]:
        """(b, t) of the last forward pass, (0, 0) before the first."""
        b, t = _ffi.ffi().new("int *"), _ffi.ffi().new("int *")
        self.check(self.lib.llmc_model_shape(self.handle, b, t))
        return b[0], t[0]

    def parameters(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (PyTorch's name, values) of each parameter, in the order of files."""
        yield from ((name, self.view("params", name)) for name in self.by_torch_name)

    def names(self, block: str) -> list[str]:
        """The names in a block: PyTorch's of parameters, of those that are trained in the blocks of gradients and moments."""
        if block in GRADIENTS and self.training:
            return [torch for torch, at in self.by_torch_name.items() if self.gradient_at(*at) >= 0]
        if block == "acts":
            return [name for name, row in self.rows.items() if not self.is_weight(row)]
        return list(self.by_torch_name)

    def find(self, block: str, name: str) -> tuple[str, Any, int | None]:
        """The tensor's name in the table, its row, and the layer that `name` means; None: all layers."""
        layer, name = None, as_text("name", name)
        if name in self.by_torch_name and block != "acts":
            name, layer = self.by_torch_name[name]
        row = self.rows.get(name)
        if row is None or self.is_weight(row) != (block != "acts"):
            raise NoTensor(self._no_tensor(block, name))
        if block == "params" and self.lib.llmc_model_weights(self.handle) != self.room.precision:
            raise InvalidArgument("params: these weights are compressed; make the model with weights='fp32'")
        of_gradients = block in GRADIENTS or row.kind == self.lib.LLMC_GRAD_ACT
        if of_gradients and not self.training:
            raise InvalidArgument(f"{block}: this model was made without gradients (training=False)")
        if block in GRADIENTS:
            self.refuse_frozen(block, name, row, layer)
        return name, row, layer

    def refuse_frozen(self, block: str, name: str, row: Any, layer: int | None) -> None:
        layers = range(max(row.layers, 1)) if layer is None else [layer]
        frozen = [l for l in layers if self.gradient_at(name, l) < 0]
        if not frozen:
            return
        where = f"h.{frozen[0]}.{name}" if row.layers else name
        rest = "; name a single layer" if len(frozen) < len(layers) else ""
        raise InvalidArgument(f"{block}: {where} is frozen, so it has no gradient and no moments{rest}")

    def _no_tensor(self, block: str, name: str) -> str:
        names = self.names(block)
        if block != "acts":  # parameters have the table's names, too
            names += [own for own, row in self.rows.items() if self.is_weight(row)]
        near = difflib.get_close_matches(str(name), names)
        hint = f"did you mean {' or '.join(near)}?" if near else f"list(model.{block}) tells the names"
        return f"no tensor '{name[:80]}' among {block}: {hint}"

    def view(self, block: str, name: str) -> np.ndarray:
        name, row, layer = self.find(block, name)
        if not row.kept:
            raise InvalidArgument(f"{name} is not kept: {self.how_to_keep(row)}")
        in_bf16 = self.bf16 and (block == "params" or row.type == self.lib.LLMC_X)
        if in_bf16 or not self.lib.llmc_model_on_host(self.handle):
            return self.copy(block, name, row, layer)
        pointer = self.lib.llmc_model_block(self.handle, BLOCKS[block])
        at = row.offset, row.stride
        if block in GRADIENTS:
            if layer is not None:
                return self.strided(
                    pointer, row, self.shape_of(row, name), (self.gradient_at(name, layer), 0), 0
                )
            at = self.gradient_at(name, 0), row.size
        view = self.strided(pointer, row, self.shape_of(row, name), at, row.layers)
        return view if layer is None else view[layer] if row.layers else view

    def how_to_keep(self, row: Any) -> str:
        """The remedy for an activation that is not kept."""
        if row.kind == self.lib.LLMC_CHUNK_ACT:
            is_trainers = self.owner is not self.handle
            other = "a trainer never keeps them; call model.save(path), and look into pyllmc.Model(path)"
            return other if is_trainers else "make the model with keep_logits=True"
        return f"make the model with {'a lower recompute' if self.training else 'training=True'}"

    def copy(self, block: str, name: str, row: Any, layer: int | None) -> np.ndarray:
        """A copy of a tensor, of one layer or of all."""
        layers = range(max(row.layers, 1)) if layer is None else [layer]
        shape = self.shape_of(row, name)
        kind = np.int32 if row.type == self.lib.LLMC_I else np.float32
        out = np.empty((len(layers), math.prod(shape)), kind)
        for l, part in zip(layers, out):
            data = _ffi.ffi().cast("void *", part.ctypes.data)
            place = BLOCKS[block], self.index[name], l, part.size
            self.check(self.lib.llmc_model_read(self.handle, *place, data))
        out.flags.writeable = False
        return out.reshape((row.layers, *shape) if row.layers and layer is None else shape)

    def set(self, block: str, name: str, values: Any) -> None:
        """Set a parameter, its gradient or a moment: all layers, or the one that is named."""
        name, row, layer = self.find(block, name)
        layers = range(max(row.layers, 1)) if layer is None else [layer]
        shape = self.shape_of(row, name)
        whole = (row.layers, *shape) if row.layers and layer is None else shape
        array = as_array(f"{block} {name}", values, np.float32)
        try:
            data = np.broadcast_to(array, whole)
        except ValueError:
            raise InvalidArgument(f"{block} {name}: {array.shape} does not fit {whole}") from None
        if name in self.padded:  # the rows that pad the vocabulary are 0
            data = np.pad(data, ((0, row.shape[0] - self.config.vocab_size), (0, 0)))
        data = np.ascontiguousarray(data).reshape(len(layers), -1)
        for l, part in zip(layers, data):
            place = BLOCKS[block], self.index[name], l, part.size
            self.check(
                self.lib.llmc_model_write(self.handle, *place, _ffi.ffi().cast("float *", part.ctypes.data))
            )

    def shape_of(self, row: Any, name: str) -> tuple[int, ...]:
        """The shape of one layer, in the sizes of the last forward pass."""
        if self.is_weight(row):
            rows = self.config.vocab_size if name in self.padded else row.shape[0]
            return (rows, *row.shape[1 : row.rank])
        used = _ffi.ffi().new("llmc_tensor[]", self.lib.llmc_num_tensors())
        room = _ffi.ffi().new("llmc_room *", self.room)
        room.B, room.T = (max(size, 1) for size in self.shape)
        self.check(self.lib.llmc_layout(self.lib.llmc_model_config(self.handle), room, used))
        index = self.index[name]
        return tuple(used[index].shape[0 : used[index].rank])

    def flat(self, block: str) -> np.ndarray:
        """Parameters, gradients or moments as one array over the host's memory.

        Of a model of bf16 the parameters are the float masters, if its room asks for whole ones: llmc_model_refresh must follow a
        change.
        """
        pointer = self.lib.llmc_model_block(self.handle, BLOCKS[block])
        if pointer == _ffi.ffi().NULL:
            raise InvalidArgument(
                f"{block} are not floats in this machine's memory: read and write model.{block}[name]"
            )
        sizes = [self.rows[self.by_torch_name[name][0]].size for name in self.names(block)]
        return np.asarray(_Block(self.owner, pointer, sum(sizes)))

    def places(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """(first element, shape) of each parameter in flat(), by PyTorch's name; without the rows that pad the vocabulary.

        They are the same in all blocks if no tensor is frozen.
        """
        found = {}
        for torch_name, (name, layer) in self.by_torch_name.items():
            row = self.rows[name]
            found[torch_name] = (row.offset + layer * row.stride, self.shape_of(row, name))
        return found

    def strided(
        self, pointer: Any, row: Any, shape: tuple[int, ...], at: tuple[int, int], layers: int
    ) -> np.ndarray:
        """The view of all layers of a tensor, or of one if `layers` is 0. at: its offset in the block, and its stride."""
        offset, stride = at
        extent = stride * (max(layers, 1) - 1) + row.size
        start = _ffi.ffi().cast("float *", pointer) + offset
        flat = np.asarray(_Block(self.owner, start, extent))
        if row.type == self.lib.LLMC_I:
            flat = flat.view(np.int32)
        steps = [4]
        for size in reversed(shape[1:]):
            steps.insert(0, steps[0] * size)
        if layers:
            shape, steps = (layers, *shape), [4 * stride, *steps]
        return np.lib.stride_tricks.as_strided(flat, shape, steps)


def make_handle(lib: Any, config: Any, room: Any, threads: int = 0) -> Any:
    """A C model with memory for an llmc_room. It is freed with its last reference. Raises OutOfMemory."""
    out = _ffi.ffi().new("llmc_model **")
    _ffi.check(lib, lib.llmc_model_create(out, config, room, threads))
    return _ffi.ffi().gc(out[0], lib.llmc_model_free)


def load_arena(file: WeightFile) -> Arena:
    """The weights of a file that the engine reads, as an arena to look at: nothing is computed with it."""
    lib = _ffi.load()
    room = {"B": 1, "T": 1, "precision": lib.LLMC_AUTO}
    handle = make_handle(lib, file.config, _ffi.ffi().new("llmc_room *", room))
    file.load_into(handle)
    return Arena(lib, handle, handle)


def _torch_names(row: Any) -> list[tuple[int, str]]:
    pattern = _ffi.text(row.torch_name)
    if not pattern:
        return []
    return [(l, pattern % l) for l in range(row.layers)] if row.layers else [(0, pattern)]
