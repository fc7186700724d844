"""GPT-2 as a torch.nn.Module: its parameters are the engine's own memory, and the engine computes forward and backward."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyllmc.base.checks import as_int
from pyllmc.base.errors import InvalidArgument, LlmcError, OutOfMemory
from pyllmc.convert.source import Source
from pyllmc.model import Model
from pyllmc.nn.autograd import (
    Batch,
    Pass,
    as_batch,
    as_targets,
    check_ids,
    check_mask,
    check_none_frozen,
    check_none_shared,
    is_plain,
    versions,
)
from pyllmc.nn.copies import become_copy, state_for_copy
from pyllmc.nn.layers import make_layers
from pyllmc.nn.memory import Engine, Gradients, in_turn, moved, refuse_move, resized, tensors
from pyllmc.nn.optimizer import hyper_of, make_optimizer
from pyllmc.nn.parts import LAYERS, Parts
from pyllmc.nn.states import read_state
from pyllmc.tables.layout import GPTConfig

AT_ONCE = 16  # prompts that are continued together at most; more are hardly faster
MANNERS = "forward takes either idx, targets and weights, or, as transformers calls it, input_ids, labels and attention_mask"


class GPT(nn.Module):
    """GPT-2 in the C engine, as a torch.nn.Module on the CPU.

    >>> model = pyllmc.nn.GPT("gpt-nano", vocab_size=65)
    >>> logits, loss = model(idx, targets)
    >>> loss.backward()

    source: all that Model takes: a size, a GPTConfig, the path of weights, or a model of the hub.
    B, T: the largest batch and sequence that there is room for; the room grows when a larger one comes.
    seed: of fresh weights; None draws it from PyTorch's generator, so that torch.manual_seed() decides.
    init_std, vocab_size, precision, threads, recompute: those of Model. In bf16 the parameters are the float masters.
    keep_logits=False: model(idx, targets) returns (None, loss), which saves B T V floats and the time to copy them.
    embd_pdrop, attn_pdrop, resid_pdrop: GPT-2's dropout, while the module is in training (train(), eval()). Its masks follow
        from a number that is drawn from PyTorch's generator here, and from how many passes there were.

    Parameters and their gradients are views of the engine's memory, by GPT-2's names and in nn.Linear's orientation. A
    change in place (an optimizer of PyTorch's, load_state_dict) counts from the next forward pass on. lm_head.weight is the
    embedding, unless the sizes are untied. Calls from several threads wait for each other; gradients are one memory, so give each
    thread that trains a model of its own.
    """

    def __init__(
        self,
        source: Source,
        B: int = 1,
        T: int = 1,
        *,
        seed: int | None = None,
        init_std: float = 0.0,
        vocab_size: int = 0,
        precision: str = "auto",
        threads: int = 0,
        recompute: int = 2,
        keep_logits: bool = True,
        embd_pdrop: float = 0.0,
        attn_pdrop: float = 0.0,
        resid_pdrop: float = 0.0,
    ) -> None:
        super().__init__()
        seed = int(torch.randint(2**31 - 1, ())) if seed is None else seed
        kept = {"precision": precision, "recompute": recompute, "keep_logits": keep_logits}
        drawn = {"seed": seed, "init_std": init_std, "vocab_size": vocab_size}
        self._how: dict[str, Any] = {**kept, "threads": threads}
        self._drops: dict[str, Any] = {"embd": embd_pdrop, "attn": attn_pdrop, "resid": resid_pdrop}
        self._next_draw = int(torch.randint(2**62, ())) if any(self._drops.values()) else 0
        self._adopt(Engine(source, B, T, **self._how, **drawn))  # type: ignore[arg-type]
        self._engine.set_dropout(**self._drops)

    @torch.inference_mode(False)  # the memory is for training, too, whenever it is made
    def _adopt(self, model: Model) -> None:
        """Builds the layers over a model's memory."""
        self.sizes = model.config
        self._turn = threading.RLock()
        self._mark = 0  # changes whenever the engine's activations do
        self.transformer, self.lm_head = make_layers(self.sizes)
        self._set_engine(model)
        for (part, name), memory in zip(self._parts.held, tensors(model._arena, "params")):
            setattr(part, name, nn.Parameter(memory))
        self._tie()

    def _tie(self) -> None:
        if not self.sizes.untied:
            self.lm_head.weight = self.transformer.wte.weight  # type: ignore[union-attr, assignment]

    def _set_engine(self, model: Model) -> None:
        self._engine, arena = model, model._arena
        self._gradients = Gradients(arena)
        self._parts = Parts(self, arena)
        self._mark += 1

    @property
    def engine(self) -> Model:
        """The Model that computes, always the same object; its room is that of the largest batch. Who calls it may change the
        activations: a backward pass then runs its forward pass again."""
        self._mark += 1
        self._refresh()
        return self._engine

    def _others(self) -> dict[str, Any]:
        """The layers that a subclass has of its own."""
        return {name: part for name, part in self._modules.items() if name not in LAYERS}

    def extra_repr(self) -> str:
        return repr(self._engine)

    # ---- what the engine computes with ----

    def _params(self) -> list[nn.Parameter]:
        """The parameters in the engine's order. One that was moved elsewhere (p.data = x) comes back with its new values."""
        return self._parts.params(self)

    def _refresh(self) -> list[nn.Parameter]:
        """Brings what the engine computes with up to date after any change of the parameters."""
        params = self._params()
        self._engine._check(self._engine._lib.llmc_model_refresh(self._engine._handle))
        return params

    def _draw(self) -> int | None:
        """The seed of the next pass' dropout; None if it drops nothing."""
        if not (self.training and any(self._drops.values())):
            return None
        self._next_draw += 1
        return self._next_draw

    def _set_dropout(self, draw: int | None) -> None:
        rates = dict.fromkeys(self._drops, 0.0) if draw is None else self._drops
        self._engine.set_dropout(**rates, seed=draw or 0)
        self._engine.micro_steps = 0
        self._engine.train(draw is not None)

    def _fit(self, b: int, t: int) -> None:
        """Makes room for a batch: at least the room that is there, or else for this batch alone."""
        room = self._engine._arena.room
        if b <= room.B and t <= room.T:
            return
        most = self.sizes.max_seq_len
        if t > most:
            raise InvalidArgument(f"a sequence of {t} tokens, but the model knows {most} positions: cut it")
        T = room.T if t <= room.T else t if room.T == 1 else min(max(t, 2 * room.T), most)
        try:
            self._move(resized(self._engine, max(b, room.B), T))
        except LlmcError:
            self._move(resized(self._engine, b, t))

    @torch.inference_mode(False)  # the memory is for training, too, whenever it is made
    def _move(self, model: Model) -> None:
        params, held = self._params(), self._gradients.in_place(self._params())
        self._set_engine(moved(self._engine, model))
        for p, memory in zip(params, tensors(model._arena, "params")):
            p.data = memory
        if held:
            self._gradients.bind(params)

    # ---- forward and backward ----

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch.compile would trace what the engine computes in C
    @in_turn
    def forward(
        self,
        idx: Tensor | None = None,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Any:
        """(logits (b, t, V), loss): the mean over the targets that are neither -1 nor -100; loss None without targets.

        If every target is ignored, loss and gradients are 0, where torch.nn.functional.cross_entropy gives NaN: such a batch,
        which fine-tuning on answers meets now and then, changes nothing instead of making every weight NaN.
        idx, targets: integers (b, t). weights: floats (b, t), >= 0, for sum(w l) / sum(w).
        input_ids, labels, attention_mask, all (b, t): the names of transformers, whose Trainer calls a model by them; labels are
        shifted here, and a dict is returned. As there, input_ids may come first, without its name. Raises InvalidArgument.
        """
        if any(x is not None for x in (input_ids, labels, attention_mask)):
            if (idx is None) == (input_ids is None) or targets is not None or weights is not None:
                raise InvalidArgument(MANNERS)
            return self._as_transformers(idx if input_ids is None else input_ids, labels, attention_mask)
        if idx is None:
            raise InvalidArgument("forward needs idx, or input_ids for transformers' manner")
        return Pass.apply(self, as_batch(idx, targets, weights)._replace(draw=self._draw()), *self._params())

    def _as_transformers(self, ids: Any, labels: Tensor | None, mask: Tensor | None) -> dict[str, Any]:
        check_mask(mask, check_ids("input_ids", ids))
        if labels is not None:
            labels = nn.functional.pad(as_targets("labels", labels)[:, 1:], (0, 1), value=-100)
        logits, loss = GPT.forward(self, ids, labels)  # not self(...), which would call hooks a second time
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}

    def _forward(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        self._fit(*batch.inputs.shape)
        self._refresh()
        self._mark += 1
        self._set_dropout(batch.draw)
        loss = self._engine.forward(*batch.arrays)
        logits = torch.from_numpy(self._engine.logits.copy()) if self._how["keep_logits"] else None
        return logits, None if loss is None else torch.tensor(loss)

    @in_turn
    def _backward(self, ctx: Any, dlogits: Tensor | None, dloss: Tensor | None) -> Sequence[Tensor | None]:
        if versions(ctx.params) != ctx.versions:
            raise InvalidArgument(
                "parameters were changed between forward and backward: call backward before optimizer.step()"
            )
        if self._mark != ctx.mark:  # another pass came between: the same numbers once more
            self._forward(ctx.batch)

        def backward(accumulate: bool) -> None:
            self._mark += 1
            if dloss is not None:
                self._engine.backward(float(dloss), accumulate=accumulate)
            if dlogits is not None and dloss is not None:
                self._forward(ctx.batch)
            if dlogits is not None:
                both = accumulate or dloss is not None
                self._engine.backward(dlogits=dlogits.float().numpy(), accumulate=both)

        found = self._gradients.run(backward, ctx.params, is_plain(ctx))
        return [grad if wanted else None for grad, wanted in zip(found, ctx.needs_input_grad[2:])]

    @in_turn
    def micro_step(self, idx: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """zero_grad(), the forward pass and loss.backward() at once, which is faster; returns the loss.

        Every parameter's .grad is then the engine's memory. Hooks are not called. Earlier gradients that somebody still holds,
        as after zero_grad(set_to_none=True), may be that memory, too, and are then written over: clone those to be kept.
        Raises InvalidArgument if parameters are frozen.
        """
        check_none_frozen(self._params())
        check_none_shared(self._params())
        batch = as_batch(idx, targets, weights)
        self._fit(*batch.inputs.shape)
        params = self._refresh()
        self._mark += 1
        self._set_dropout(self._draw())
        loss = self._engine.micro_step(*batch.arrays, accumulate=False)
        self._gradients.bind(params)
        return torch.tensor(loss)

    # ---- optimizers ----

    @in_turn
    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """torch.nn.utils.clip_grad_norm_ of the engine's parameters, not of a subclass' own; returns the norm before.

        Raises NotFinite if the norm is not finite; the gradients then stay what they are.
        """
        self._gradients.collect(self._with_gradients())
        norm = torch.tensor(self._engine.clip_grad_norm(max_norm))
        self._gradients.bind(self._params())
        return norm

    @in_turn
    def update(self, **hyper: Any) -> None:
        """One step of the engine's AdamW with the .grad of all parameters: see Model.update."""
        self._gradients.collect(self._with_gradients())
        self._engine.update(**hyper)
        for p in self._params():
            torch.autograd.graph.increment_version(p)

    def _with_gradients(self) -> list[nn.Parameter]:
        params = self._params()
        check_none_shared(params)
        for p, name in zip(params, self._engine._arena.places()):
            if p.grad is None:
                raise InvalidArgument(
                    f"{name} has no gradient: the engine clips and updates all parameters or none; use "
                    "torch.nn.utils.clip_grad_norm_ and torch.optim"
                )
        return params

    def configure_optimizers(self, *given: Any, **named: Any) -> Any:
        """An optimizer, called as minGPT does, (train_config), or as nanoGPT: (weight_decay, learning_rate, betas, device_type).

        It is the engine's own AdamW, or PyTorch's if parameters are frozen or a subclass has its own. minGPT does not decay embeddings.
        """
        return make_optimizer(self, **hyper_of(given, named))

    # ---- generation ----

    @in_turn
    @torch.no_grad()
    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        do_sample: bool = False,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """idx (b, t) with max_new_tokens ids more in each row, (b, t + max_new_tokens): minGPT's generate.

        do_sample=False takes the likeliest id. seed None: drawn from PyTorch's generator. The engine caches keys and values;
        whenever the context is full, its later half becomes a new one, where minGPT moves it by one id. What there is no room
        for is computed in memory of its own, with a copy of the weights, which is freed at the end.
        """
        ids, new = as_batch(idx, None, None).inputs, as_int("max_new_tokens", max_new_tokens)
        if seed is None:
            seed = int(torch.randint(2**62, ())) if do_sample else 0
        T = min(ids.shape[1] + max(new, 0), self.sizes.max_seq_len)
        engine, at_once = self._writer(min(len(ids), AT_ONCE) or 1, T)
        how, made = {"temperature": temperature if do_sample else 0.0, "top_k": top_k, "top_p": top_p}, []
        for first in range(0, len(ids), at_once):
            part = ids[first : first + at_once]
            made += engine.generate(part, new, seed=seed + first, **how)  # type: ignore[arg-type]
        return torch.cat([idx, torch.tensor(made, dtype=idx.dtype).reshape(len(ids), max(new, 0))], dim=1)

    def _writer(self, b: int, T: int) -> tuple[Model, int]:
        """(model, b): the engine, if it has room for b texts of T tokens; else one for generation alone, so that the memory for
        training does not grow. Where memory is short, b becomes less. Raises OutOfMemory."""
        room = self._engine._arena.room
        if b <= room.B and T <= room.T and (b == 1 or room.recompute < 3):  # 3 keeps the keys of one text
            return self.engine, b
        self._params()
        try:
            return resized(self._engine, b, T, training=False), b
        except OutOfMemory:
            if b == 1:
                raise
            return self._writer(b // 2, T)

    # ---- weights in and out ----

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Takes a state dict by GPT-2's names, nn.Linear's or Conv1D's (transformers), or minGPT's of 2020.

        The values are copied, whatever `assign` says, because the parameters are the engine's memory. Raises BadFile or NotFinite; or,
        for what a subclass has of its own, PyTorch's RuntimeError. The engine's parameters then stay what they are.
        """
        if not strict or not isinstance(state_dict, Mapping):
            return super().load_state_dict(state_dict, strict=strict)
        own = {*self._others(), *self._parameters, *self._buffers}
        others = {name: x for name, x in state_dict.items() if name.partition(".")[0] in own}
        rest = {name: x for name, x in state_dict.items() if name not in others}
        read = list(read_state(rest, self.sizes))  # all of it is checked before any of it is copied
        here = {name: x for name, x in self.state_dict().items() if name.partition(".")[0] in LAYERS}
        loaded = super().load_state_dict({**here, **others})
        named = dict(zip(self._engine._arena.places(), self._params()))
        with torch.no_grad():
            for name, values in read:
                named[name].copy_(torch.from_numpy(values))
        return loaded

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checkpoint that GPT(path), Model(path) and every command of pyllmc read; see Model.save."""
        self.engine.save(path)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """to(), cuda(), half() and their like: the engine's memory stays where and what it is."""
        refuse_move(fn)
        for part in self._others().values():
            part._apply(fn)
        return self

    def __copy__(self) -> GPT:
        return copy.deepcopy(self)  # two models cannot have one memory

    def __getstate__(self) -> dict[str, Any]:
        return state_for_copy(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        become_copy(self, state)


__all__ = ["GPT", "GPTConfig"]
