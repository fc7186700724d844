"""The engine's AdamW as a torch.optim.Optimizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from pyllmc.base.errors import InvalidArgument
from pyllmc.nn.memory import tensors
from pyllmc.tables import layout

EMBEDDINGS = ("wte", "wpe")
NANOGPTS = ("weight_decay", "learning_rate", "betas", "device_type")


MINGPTS = ("learning_rate", "betas", "weight_decay")
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
        if not 0 <= float(value) < float("inf"):
            raise InvalidArgument(f"{name}={value}: a finite number of at least 0 is needed")
    if not isinstance(betas, (tuple, list)) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise InvalidArgument(f"betas={betas}: two numbers are needed, at least 0 and below 1")


class AdamW(torch.optim.Optimizer):
    """AdamW of a pyllmc.nn.GPT, run by the engine in one call; its moments are the engine's.

    lr, betas, eps, weight_decay: as in torch.optim.AdamW. 2-D tensors decay, and nothing else does; with still_embeddings wte
    and wpe do not, either, as in minGPT. Schedulers may change lr, for both groups of parameters alike. Raises InvalidArgument
    for numbers that would poison the weights, such as NaN.
    """

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
        self.model, self.still_embeddings = model, bool(still_embeddings)
        still = EMBEDDINGS if still_embeddings else ()
        decays = {
            row.torch_name_of(layer): row.decay and row.name not in still
            for row, layer in layout.parameters(model.sizes)
        }
        named = list(model.named_parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in named if decays.get(name, False)]},
            {"params": [p for name, p in named if not decays.get(name, False)], "weight_decay": 0.0},
        ]
        kept = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], kept)

    def as_torch(self) -> torch.optim.AdamW:
        """The same groups for PyTorch's AdamW, without frozen parameters."""
        groups = [
            {**group, "params": [p for p in group["params"] if p.requires_grad]}
            for group in self.param_groups
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]])

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
        """Takes a state of its own or of torch.optim.AdamW for the same groups. Raises InvalidArgument."""
        super().load_state_dict(state_dict)
        kept, self.state = self.state, defaultdict(dict)  # type: ignore[assignment]
        engine, moments = self.model._engine, self._moments()
        if not kept:
            engine._check(engine._lib.llmc_model_reset_moments(engine._handle))
            return
        if any(p not in kept for p, _, _ in moments):
            raise InvalidArgument("this state lacks the moments of some parameters: use torch.optim.AdamW")
        for p, m, v in moments:
            m.copy_(kept[p]["exp_avg"])
            v.copy_(kept[p]["exp_avg_sq"])
        step = max(int(its["step"]) for its in kept.values())
        engine._check(engine._lib.llmc_model_set_step(engine._handle, step))
