"""The engine's AdamW as a torch.optim.Optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pyllmc.base.checks import NotCopied, as_float
from pyllmc.base.errors import InvalidArgument
from pyllmc.engine.arguments import as_betas
from pyllmc.nn.memory import tensors

NANOGPTS = ("weight_decay", "learning_rate", "betas", "device_type")
MINGPTS = ("learning_rate", "betas", "weight_decay")
MADE_ANEW = "take an earlier state, or begin without one"
CALLED = (
    "configure_optimizers takes minGPT's train config alone, with {}; or as nanoGPT "
    "(weight_decay, learning_rate, betas, device_type)"
).format(", ".join(MINGPTS))


def hyper_of(given: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """AdamW's arguments, from those of configure_optimizers: minGPT's config alone, or nanoGPT's four. Raises InvalidArgument."""
    whole = [*given, *named.values()]
    alone = len(whole) == 1 and not isinstance(whole[0], (int, float)) and not set(named) & set(NANOGPTS)
    if alone:
        names = {name: getattr(whole[0], name) for name in MINGPTS if hasattr(whole[0], name)}
    else:
        names = dict(zip(NANOGPTS, given), **named)
        unknown = [str(value) for value in given[len(NANOGPTS) :]] + [
            name for name in named if name not in NANOGPTS
        ]
        if unknown:
            raise InvalidArgument(f"{CALLED}: {unknown[0]} is none of these")
    missing = [name for name in MINGPTS if name not in names]
    if missing:
        raise InvalidArgument(f"{CALLED}: {missing[0]} is missing")
    rate, betas, decay = (names[name] for name in MINGPTS)
    return {"lr": rate, "betas": betas, "weight_decay": decay, "still_embeddings": alone}


def check_hyper(lr: Any, betas: Any, eps: Any, weight_decay: Any) -> None:
    """Raises InvalidArgument for what would poison the weights."""
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if as_float(name, value) < 0:
            raise InvalidArgument(f"{name}={value} is negative")
    if not all(0 <= beta < 1 for beta in as_betas(betas)):
        raise InvalidArgument(f"betas={betas} are not at least 0 and below 1")


def check_moments(params: list[Any], held: dict[Any, Any]) -> int:
    """The step of the state that PyTorch's AdamW holds for the parameters. Raises InvalidArgument for one that is not whole."""
    if any(p not in held for p in params):
        raise InvalidArgument("this state lacks the moments of some parameters: use torch.optim.AdamW")
    for p in params:
        for name in ("exp_avg", "exp_avg_sq"):
            x = held[p].get(name)
            if not isinstance(x, torch.Tensor) or x.shape != p.shape:
                raise InvalidArgument(
                    f"this state has no {name} {tuple(p.shape)} for a parameter of that shape"
                )
            if not x.isfinite().all() or name == "exp_avg_sq" and (x < 0).any():
                raise InvalidArgument(
                    f"this state's {name} {tuple(p.shape)} has a number that cannot be: {MADE_ANEW}"
                )
    steps = [float(held[p].get("step", -1)) for p in params]
    if not all(0 <= step < 2**53 for step in steps):
        raise InvalidArgument(f"this state has a step that cannot be: {MADE_ANEW}")
    return int(max(steps))


def groups_of(model: nn.Module, weight_decay: float, still_embeddings: bool) -> list[dict[str, Any]]:
    """A model's parameters in groups for AdamW: the matrices, which decay, and the others. See AdamW."""
    embeddings = [part.weight for part in model.modules() if isinstance(part, nn.Embedding)]
    still = set(embeddings) if still_embeddings else set()
    kinds: dict[bool, list[Any]] = {True: [], False: []}
    for p in model.parameters():
        kinds[p.ndim >= 2 and p not in still].append(p)
    groups = [{"params": kinds[decays], "weight_decay": weight_decay * decays} for decays in kinds]
    return [group for group in groups if group["params"]]


def make_optimizer(model: Any, lr: float, betas: Any, weight_decay: float, still_embeddings: bool) -> Any:
    """The engine's AdamW, if the engine updates all that is to be trained; else PyTorch's for what is not frozen."""
    check_hyper(lr, betas, 0, weight_decay)
    engines = model._params()  # the call comes first, because it may tie the head again
    params = list(model.parameters())
    own = len(params) == len(engines) and set(params) == set(engines)  # fewer, if layers share one
    if own and all(p.requires_grad for p in params):
        return AdamW(model, lr, betas, weight_decay=weight_decay, still_embeddings=still_embeddings)
    groups = groups_of(model, weight_decay, still_embeddings)
    trained = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
    return torch.optim.AdamW([group for group in trained if group["params"]], lr=lr, betas=tuple(betas))


class AdamW(NotCopied, torch.optim.Optimizer):
    """AdamW of a pyllmc.nn.GPT, run by the engine in one call; its moments are the engine's.

    lr, betas, eps, weight_decay: as in torch.optim.AdamW. 2-D tensors decay, and nothing else does; with still_embeddings wte
    and wpe do not, either, as in minGPT. Schedulers may change lr, for both groups of parameters alike. Raises InvalidArgument
    for numbers that would poison the weights, such as NaN, and for parameters that the engine does not update: a subclass' own,
    or frozen ones. model.configure_optimizers(...) makes an optimizer for such a model, too.
    """

    _INSTEAD = "make AdamW(copy) of the copied model, and load_state_dict(optimizer.state_dict())"

    def __init__(
        self,
        model: Any,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        still_embeddings: bool = False,
    ) -> None:
        check_hyper(lr, betas, eps, weight_decay)
        if not hasattr(model, "_engine"):
            raise InvalidArgument(
                f"pyllmc.nn.AdamW takes the GPT itself, not a {type(model).__name__}: AdamW(model), or AdamW(ddp.module) of a "
                "wrapped one"
            )
        model._params()  # the call may tie the head again
        self.model, self.still_embeddings = model, bool(still_embeddings)
        kept = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups_of(model, weight_decay, self.still_embeddings), kept)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As PyTorch's, for parameters of the engine that are not frozen. Raises InvalidArgument."""
        super().add_param_group(param_group)
        engines = set(self.model._params())
        wrong = [p for p in self.param_groups[-1]["params"] if p not in engines or not p.requires_grad]
        if wrong:
            self.param_groups.pop()
            why = "are frozen" if wrong[0] in engines else "are not its own"
            raise InvalidArgument(
                f"the engine does not update parameters that {why}, such as one of {tuple(wrong[0].shape)}: use "
                "model.configure_optimizers(...) or torch.optim.AdamW"
            )

    def _hyper(self) -> dict[str, Any]:
        first, *others = self.param_groups
        for other in others:
            if any(other[name] != first[name] for name in ("lr", "betas", "eps")) or other["weight_decay"]:
                raise InvalidArgument(
                    "the engine's AdamW has one lr, betas and eps, and no decay in its second group: "
                    "use torch.optim.AdamW for others"
                )
        hyper = {name: first[name] for name in ("betas", "eps", "weight_decay")}
        return {**hyper, "lr": float(first["lr"]), "still_embeddings": self.still_embeddings}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates all parameters by their .grad; does nothing if none has one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if any(p.grad is not None for group in self.param_groups for p in group["params"]):
            self.model.update(**self._hyper())
        return loss

    # ---- the moments, in torch.optim.AdamW's own format ----

    def _moments(self) -> list[tuple[Any, Any, Any]]:
        """(parameter, m, v) of each parameter, over the engine's memory."""
        arena = self.model._engine._arena
        return list(zip(self.model._params(), tensors(arena, "m"), tensors(arena, "v")))

    def state_dict(self) -> dict[str, Any]:
        """The state as torch.optim.AdamW's, which can load it; the moments are views."""
        step = self.model._engine.step
        for p, m, v in self._moments() if step else ():
            self.state[p] = {"step": torch.tensor(float(step)), "exp_avg": m, "exp_avg_sq": v}
        try:
            return super().state_dict()
        finally:
            self.state.clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a state of its own or of torch.optim.AdamW for the same groups. Raises InvalidArgument; nothing is then changed."""
        engine, moments = self.model._engine, self._moments()
        held, step = self._read(state_dict)
        super().load_state_dict({**state_dict, "state": {}})
        if not held:
            engine._check(engine._lib.llmc_model_reset_moments(engine._handle))
            return
        for p, m, v in moments:
            m.copy_(held[p]["exp_avg"])
            v.copy_(held[p]["exp_avg_sq"])
        engine._check(engine._lib.llmc_model_set_step(engine._handle, step))

    def _read(self, state_dict: Any) -> tuple[dict[Any, Any], int]:
        """The state of each parameter and their step, as PyTorch's AdamW reads a state dict. Raises InvalidArgument."""
        reader = torch.optim.AdamW([dict(group) for group in self.param_groups])
        try:
            reader.load_state_dict(state_dict)
            for group in reader.param_groups:
                check_hyper(*(group[name] for name in ("lr", "betas", "eps", "weight_decay")))
            return reader.state, check_moments(self.model._params(), reader.state) if reader.state else 0
        except InvalidArgument:
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InvalidArgument(f"this is no state of an AdamW of these parameters: {error!r}") from None
