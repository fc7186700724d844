"""The most exact PyTorch that a CPU could have: every operation in float64, rounded once.

Matrix libraries and vector instructions err by different amounts, and no single machine shows all of them.
PYLLMC_TORCH=lucky makes every test use this PyTorch, so that none passes only because PyTorch happens to err much.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NARROW = (torch.float32, torch.bfloat16)
aten = torch.ops.aten
# operations that round nothing, or are random and must draw the same numbers
AS_IT_IS = {aten._to_copy, aten.copy_, aten.detach, aten.clone, aten.empty, aten.normal_, aten.uniform_}
AS_IT_IS |= {aten.set_, aten.resize_}  # torch.load gives tensors their storage by these
AS_IT_IS |= {aten._to_sparse, aten._sparse_coo_tensor_with_dims_and_tensors}
# PyTorch's attention rounds its weights to bfloat16 on every CPU, so this rounding is part of its formula
AS_IT_IS |= {
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
}


def is_narrow(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype in NARROW


def written(func: Any) -> list[int]:
    """The positions of the arguments that an operation changes."""
    return [i for i, a in enumerate(func._schema.arguments) if a.alias_info and a.alias_info.is_write]


def is_view(func: Any) -> bool:
    return not written(func) and any(a.alias_info for a in func._schema.arguments)


def wide(x: Any) -> Any:
    return x.double() if is_narrow(x) else x


class Lucky(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (
            not hasattr(func, "_schema")
            or getattr(func, "overloadpacket", None) in AS_IT_IS
            or is_view(func)
            or not any(is_narrow(x) for x in tree_leaves((args, kwargs)))
        ):
            return func(*args, **kwargs)
        wide_args, wide_kwargs = tree_map(wide, (args, kwargs))
        exact = func(*wide_args, **wide_kwargs)
        if places := written(func):
            return self.write_back(func, places, args, wide_args, kwargs)
        return tree_map(
            lambda x, like: x.to(like.dtype) if is_narrow(like) else x, exact, func(*args, **kwargs)
        )

    def write_back(self, func, places, args, wide_args, kwargs):
        """Copies the changes that an operation made in the float64 copies into the tensors it was given."""
        for i in places:
            if i >= len(args):
                raise NotImplementedError(f"{func} writes into a keyword argument")
            tree_map(lambda x, exact: x.copy_(exact) if is_narrow(x) else x, args[i], wide_args[i])
        return args[places[0]] if func._schema.returns else None


def begin() -> None:
    """Makes all operations exact until the process ends."""
    Lucky().__enter__()
