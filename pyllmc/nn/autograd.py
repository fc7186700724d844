"""A forward pass of the engine as one step of PyTorch's autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyllmc.base.errors import InvalidArgument


class Batch(NamedTuple):
    """What a forward pass reads, on the CPU: ids and targets (b, t), loss weights (b, t); None if there are none.

    draw: the seed of its dropout, so that the pass can be run again; None: it drops nothing.
    """

    inputs: Any
    targets: Any = None
    weights: Any = None
    draw: int | None = None

    @property
    def arrays(self) -> tuple[Any, Any, Any]:
        return self.inputs, self.targets, self.weights


def check_ids(name: str, x: Any) -> Tensor:
    """Ids or targets, if they are integers (b, t). Raises InvalidArgument."""
    if not isinstance(x, Tensor) or x.ndim != 2 or x.is_floating_point():
        raise InvalidArgument(f"{name}: a LongTensor (b, t) is needed, not {_told(x)}")
    return x


def as_targets(name: str, x: Any) -> Tensor:
    """Targets or labels as 64-bit numbers, because the signs -1 and -100 are ids in bytes. Raises InvalidArgument."""
    return check_ids(name, x).long()


def check_mask(mask: Any, ids: Tensor) -> None:
    """Raises InvalidArgument for a mask that is not of the shape of ids, or that hides more than the ends of sequences."""
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        raise InvalidArgument(
            f"attention_mask: a tensor {tuple(ids.shape)}, as input_ids, is needed, not {_told(mask)}"
        )
    if bool((mask[:, 1:] > mask[:, :-1]).any()):
        raise InvalidArgument("attention_mask hides the beginning of a sequence: pad on the right")


def check_none_frozen(params: Sequence[Tensor]) -> None:
    """Raises InvalidArgument unless the gradients of all parameters are wanted."""
    if frozen := sum(not p.requires_grad for p in params):
        raise InvalidArgument(
            f"micro_step computes the gradients of all parameters, and {frozen} are frozen: call model(idx, targets) and "
            "backward() on its loss"
        )


def check_none_shared(params: Sequence[Tensor]) -> None:
    """Raises InvalidArgument unless each layer has parameters of its own, because its gradients have one place in memory each."""
    if len(set(map(id, params))) < len(params):
        raise InvalidArgument(
            "layers share a parameter, and the engine's micro_step, clipping and AdamW train each by itself: call "
            "model(idx, targets) and backward() on its loss, and use torch.nn.utils.clip_grad_norm_ and torch.optim"
        )


def _told(x: Any) -> str:
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


def as_batch(idx: Tensor, targets: Tensor | None, weights: Tensor | None) -> Batch:
    """The arrays of a batch; a target of -100, PyTorch's sign for one that is ignored, becomes the engine's -1."""
    check_ids("idx", idx)
    if targets is not None:
        targets = as_targets("targets", targets)
        targets = targets.masked_fill(targets == -100, -1)
    if weights is not None:
        if not isinstance(weights, Tensor) or weights.ndim != 2 or weights.is_complex():
            raise InvalidArgument(f"weights: a FloatTensor (b, t) is needed, not {_told(weights)}")
        weights = weights.float()
    given = (idx, targets, weights)
    inputs, wanted, shares = (None if x is None else x.detach().cpu().numpy() for x in given)
    return Batch(inputs, wanted, shares)


class Pass(torch.autograd.Function):
    """(logits, loss) of a batch. The gradient of either may come back, or of both."""

    @staticmethod
    def forward(ctx: Any, gpt: Any, batch: Batch, *params: Tensor) -> Any:
        ctx.gpt, ctx.batch = gpt, batch
        out = gpt._forward(batch)
        ctx.mark, ctx.versions = gpt._mark, versions(params)
        ctx.params = params
        ctx.save_for_backward(
            torch.empty(0)
        )  # so that PyTorch refuses a second backward() without retain_graph
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlogits: Tensor | None, dloss: Tensor | None) -> Any:
        _ = ctx.saved_tensors  # PyTorch has freed them after the first backward()
        return None, None, *ctx.gpt._backward(ctx, dlogits, dloss)


def versions(params: tuple[Tensor, ...]) -> int:
    """A number that grows with every change of the parameters in place."""
    return sum(p._version for p in params)


def is_plain(ctx: Any) -> bool:
    """True if nobody looks at the gradients of this very pass: they all go to .grad, without a hook on their way."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return False  # DistributedDataParallel takes gradients by hooks that cannot be seen
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in ctx.params):
        return False
    try:  # an inner function of torch, which tells torch.autograd.grad() and backward(inputs=...) from backward()
        return all(node and torch._C._will_engine_execute_node(node) for node, _ in ctx.next_functions)
    except (AttributeError, RuntimeError):
        return False
