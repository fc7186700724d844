"""Makes a model's tensors of a file's: checks name, shape and type of all before it reads any, then reads one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pyllmc.base import live
from pyllmc.base.errors import BadFile, NotFinite, counted
from pyllmc.tables import layout
from pyllmc.tables.layout import GPTConfig

if TYPE_CHECKING:
    import numpy as np

FLOATS = ("float32", "float16", "bfloat16", "float64")
WTE = "transformer.wte.weight"
HEAD = "lm_head.weight"  # our name; files may have another
MATRICES = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # weights that Conv1D stores as (in, out)
LLAMA = ("gate_proj", "feed_forward.w1", "input_layernorm", "attention_norm", "rotary_emb")
Shape = tuple[int, ...]


class Tensor(NamedTuple):
    """A tensor in a file, not yet read."""

    shape: Shape
    dtype: str  # one of FLOATS, or another name that the file gives
    read: Callable[[], Any]  # returns a float32 array


class Recipe(NamedTuple):
    """Tells how a parameter is made of the file's tensors: their names and shapes there, and a function of the arrays."""

    sources: tuple[tuple[str, Shape], ...]
    build: Callable[..., Any]


class Weights(NamedTuple):
    """Weights that a reader found. All is checked but the numbers, which are checked as `tensors` yields them."""

    what: str
    config: GPTConfig
    tensors: Iterator[tuple[str, np.ndarray]]  # (name, float32 array), names and shapes as Model.params
    notes: tuple[str, ...] = ()  # sentences on what differs from the file or from how its maker computes

    def told(self) -> str:
        """A sentence on what was read."""
        c = self.config
        sizes = f"{counted(c.n_layer, 'layer')}, {counted(c.n_head, 'head')}, {counted(c.n_embd, 'channel')}, V={c.vocab_size}, T={c.max_seq_len}"
        return "; ".join([f"{self.what}, {sizes}, {parameter_count(c):,} parameters", *self.notes])


def plain(name: str, shape: Shape) -> Recipe:
    return Recipe(((name, shape),), lambda x: x)


def turned(name: str, shape: Shape) -> Recipe:
    """The recipe of a Conv1D's weight, which is stored (in, out)."""
    return Recipe(((name, shape[::-1]),), lambda x: x.T)


def zeros(shape: Shape) -> Recipe:
    import numpy as np

    return Recipe((), lambda: np.zeros(shape, np.float32))


def first_rows(name: str, shape: Shape, stored: int) -> Recipe:
    """The recipe that takes the first shape[0] rows of `stored`."""
    return Recipe(((name, (stored, *shape[1:])),), lambda x: x[: shape[0]])


def targets(config: GPTConfig) -> Iterator[tuple[str, Shape]]:
    """Yields (name, shape) of every parameter, in the table's order, without the padding of V."""
    for row, layer in layout.parameters(config):
        rows = config.vocab_size if row.padded else row.shape[0]
        yield row.torch_name_of(layer), (rows, *row.shape[1:])


def parameter_count(config: GPTConfig) -> int:
    return sum(math.prod(shape) for _, shape in targets(config))


def make_config(origin: str, sizes: Mapping[str, Any]) -> GPTConfig:
    """A GPTConfig of the sizes in a file; raises BadFile if they are impossible."""
    try:
        return GPTConfig(**sizes)
    except ValueError as error:
        raise BadFile(f"{origin}: {error}; the file is damaged or of another kind of model") from None


def config_said(origin: str, said: Mapping[str, Any], whose: str, inner: str = "", **names: str) -> GPTConfig:
    """GPTConfig of a file that states every size.

    names: our key -> the file's, where they differ; inner: the file's key for the width of the MLP, which must be 4C.
    """
    theirs = {
        ours: names.get(ours, ours) for ours in ("vocab_size", "max_seq_len", "n_layer", "n_head", "n_embd")
    }
    for name in theirs.values():
        if said.get(name) is None:
            raise BadFile(f"{origin} lacks {name}: it is not {whose}")
    made = make_config(origin, {ours: said[name] for ours, name in theirs.items()})
    if said.get(inner) not in (None, 4 * made.n_embd):
        raise BadFile(f"{origin}: {inner}={said[inner]!r}, expected {4 * made.n_embd}: another kind of model")
    return made


def renamed(origin: str, state: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """The tensors under other names; the name "" drops a tensor."""
    found: dict[str, Tensor] = {}
    for name, x in state.items():
        new = rename(name)
        if new in found:
            raise BadFile(f"{origin} has {new} twice, once as {name}: save the model again")
        if new:
            found[new] = x
    return found


def refuse_llama(origin: str, names: Iterable[str]) -> None:
    for name in names:
        if any(part in name for part in LLAMA):
            raise BadFile(f"{origin} has {name}: it is a llama, not a GPT-2; only GPT-2's kind is read here")


def check_layers(origin: str, config: GPTConfig, state: Mapping[str, Tensor]) -> None:
    """Raises BadFile if there are fewer tensors than layers, before gigabytes of recipes are made for the layers."""
    if config.n_layer > len(state):
        raise BadFile(
            f"{origin} has {len(state)} tensors, too few for n_layer={config.n_layer}: it is not whole, or not a GPT-2"
        )


def check(origin: str, recipes: Mapping[str, Recipe], state: Mapping[str, Tensor], head: str = HEAD) -> None:
    """Raises BadFile unless every wanted tensor is there, with its shape, in floats, and no other but perhaps `head`."""
    refuse_llama(origin, state)
    wanted = {name: shape for recipe in recipes.values() for name, shape in recipe.sources}
    if head in state:
        wanted[head] = recipes[WTE].sources[0][1]
    for name, shape in wanted.items():
        if name not in state:
            raise BadFile(f"{origin} lacks {name} {shape}: it is not whole, or not a GPT-2")
        found = state[name]
        if tuple(found.shape) != shape:
            raise BadFile(
                f"{origin}: {name} has the shape {tuple(found.shape)}, expected {shape}: other sizes than it says"
            )
        if found.dtype not in FLOATS:
            raise BadFile(
                f"{origin}: {name} is of {found.dtype}, expected one of {', '.join(FLOATS)}: "
                "save the model without quantization"
            )
    for name in state:
        if name not in wanted:
            raise BadFile(
                f"{origin} has {name} {tuple(state[name].shape)}, which a GPT-2 has not: save the plain model"
            )


def settle_head(
    config: GPTConfig, recipes: dict[str, Recipe], state: dict[str, Tensor], head: str = HEAD
) -> GPTConfig:
    """The sizes, untied if a checked state has a head that differs from the embedding. It is then made as the embedding is.

    A head that is equal to the embedding is left out of the state.
    """
    import numpy as np

    ((wte, shape),) = recipes[WTE].sources
    if head not in state:
        return config
    if np.array_equal(state[head].read(), state[wte].read()):
        del state[head]
        return config
    recipes[HEAD] = Recipe(((head, shape),), recipes[WTE].build)
    return replace(config, untied=True)


def build(
    origin: str, recipes: Mapping[str, Recipe], state: dict[str, Tensor]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the parameters one by one from a checked state, and empties it."""
    import numpy as np

    for name, recipe in live.each(recipes.items(), "loading: tensor"):
        parts = [state.pop(source).read() for source, _ in recipe.sources]
        x = np.ascontiguousarray(recipe.build(*parts), np.float32)
        if not np.isfinite(x).all():
            where = np.unravel_index(np.argmin(np.isfinite(x)), x.shape)
            at = ", ".join(str(int(i)) for i in where)
            raise NotFinite(
                f"{origin}: {name}[{at}] is {x[where]}: take a checkpoint from before it diverged"
            )
        yield name, x
