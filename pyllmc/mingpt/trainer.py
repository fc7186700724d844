"""minGPT's two trainers: iterations with callbacks (today's), and epochs with a test set (2020's).

With a GPT of pyllmc both run the engine's forward and backward pass, clipping and AdamW, one call each. Any other module
with configure_optimizers() is trained by PyTorch.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from pyllmc.base.errors import InvalidArgument
from pyllmc.base.files import atomic_path, check_writable, flush_to_disk, writing
from pyllmc.mingpt.utils import CfgNode
from pyllmc.nn import gpt

logger = logging.getLogger(__name__)
TODAYS = ("config", "model", "train_dataset")
OF_2020 = ("model", "train_dataset", "test_dataset", "config")
ENDLESS = 10**10  # samples of an epoch that nobody sees the end of
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)  # where torch.nn.Module keeps them


class TrainerConfig:
    """What Trainer.train() reads; keywords replace the defaults."""

    max_epochs = 10
    batch_size = 64
    learning_rate = 3e-4
    betas = (0.9, 0.95)
    grad_norm_clip = 1.0
    weight_decay = 0.1  # AdamW: decay of matrices, not of embeddings
    lr_decay = False  # warm-up, then a cosine down to a tenth, by the number of targets seen
    warmup_tokens = 375e6
    final_tokens = 260e9
    ckpt_path = None
    num_workers = 0

    def __init__(self, **named: Any) -> None:
        vars(self).update(named)


def is_fused(model: Any) -> bool:
    """True if the engine may train the model in its own calls: nothing of PyTorch's takes part in a step."""
    if type(model).forward is not gpt.GPT.forward or any(getattr(model, name) for name in HOOKS):
        return False
    params = list(
        model.parameters()
    )  # fewer than the engine's if layers share one, more if a subclass has its own
    return len(params) == len(model._params()) and not any(
        p._backward_hooks or p._post_accumulate_grad_hooks or not p.requires_grad for p in params
    )


def learn(model: Any, optimizer: Any, x: Tensor, y: Tensor, clip: float) -> Tensor:
    """One step: forward, backward, clipping, update. Returns the loss."""
    if is_fused(model):
        loss = model.micro_step(x, y)
        model.clip_grad_norm_(clip)
    else:
        loss = model(x, y)[1]
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss  # type: ignore[no-any-return]


class Trainer:
    """Trainer(config, model, train_dataset).run() as minGPT is today, or, as in 2020,
    Trainer(model, train_dataset, test_dataset, config).train().

    The data set yields (x, y), LongTensors of one length; targets of -1 or -100 are ignored.
    """

    @staticmethod
    def get_default_config() -> CfgNode:
        of_data: dict[str, Any] = {"device": "auto", "num_workers": 4, "max_iters": None, "batch_size": 64}
        return CfgNode(**of_data, learning_rate=3e-4, betas=(0.9, 0.95), weight_decay=0.1, grad_norm_clip=1.0)

    def __init__(self, *given: Any, **named: Any) -> None:
        old = "test_dataset" in named or bool(given and isinstance(given[0], nn.Module))
        names = OF_2020 if old else TODAYS
        said = {**dict(zip(names, given)), **named}
        if set(said) != set(names) or len(given) + len(named) != len(names):
            raise InvalidArgument(f"Trainer({', '.join(TODAYS)}) or Trainer({', '.join(OF_2020)}) is wanted")
        self.config, self.train_dataset = said["config"], said["train_dataset"]
        self.test_dataset = said.get("test_dataset")
        self.device = getattr(self.config, "device", "auto")
        self.device = "cpu" if self.device == "auto" else self.device
        self.model = said["model"].to(self.device)
        self.optimizer: Any = None
        self.callbacks: dict[str, list[Callable[[Trainer], Any]]] = defaultdict(list)
        self.iter_num, self.iter_time, self.iter_dt = 0, 0.0, 0.0
        self.loss: Any = None
        self.tokens = 0  # targets seen, by which the learning rate of train() decays

    @property
    def _bare(self) -> Any:
        """The model itself, without what torch.nn.parallel wraps around it."""
        wrapped = hasattr(self.model, "module") and not hasattr(self.model, "configure_optimizers")
        return self.model.module if wrapped else self.model

    def add_callback(self, onevent: str, callback: Callable[[Trainer], Any]) -> None:
        self.callbacks[onevent].append(callback)

    def set_callback(self, onevent: str, callback: Callable[[Trainer], Any]) -> None:
        self.callbacks[onevent] = [callback]

    def trigger_callbacks(self, onevent: str) -> None:
        for callback in self.callbacks.get(onevent, []):
            callback(self)

    # ---- today's: iterations ----

    def run(self) -> None:
        """Trains for config.max_iters iterations, or for ever; each ends with the callbacks of 'on_batch_end'."""
        config = self.config
        self.optimizer = self._bare.configure_optimizers(config)
        self.model.train()
        self.iter_num, self.iter_time = 0, time.time()
        for x, y in self._endless():
            x, y = x.to(self.device), y.to(self.device)
            self.loss = learn(self.model, self.optimizer, x, y, config.grad_norm_clip)
            self.trigger_callbacks("on_batch_end")
            self.iter_num += 1
            now = time.time()
            self.iter_dt, self.iter_time = now - self.iter_time, now
            if config.max_iters is not None and self.iter_num >= config.max_iters:
                break

    def _endless(self) -> Iterator[Any]:
        """Batches of samples that are drawn with replacement."""
        drawn = RandomSampler(self.train_dataset, replacement=True, num_samples=ENDLESS)
        how = {"batch_size": self.config.batch_size, "num_workers": self.config.num_workers}
        return itertools.chain.from_iterable(
            DataLoader(self.train_dataset, sampler=drawn, **how) for _ in itertools.count()
        )

    # ---- 2020's: epochs ----

    def train(self) -> None:
        """Trains for config.max_epochs epochs; keeps the weights of the least test loss in config.ckpt_path."""
        if self.config.ckpt_path is not None:
            check_writable(os.fspath(self.config.ckpt_path))
        self.optimizer = self._bare.configure_optimizers(self.config)
        self.tokens, best = 0, math.inf
        for epoch in range(self.config.max_epochs):
            self._train_epoch(epoch)
            loss = -math.inf if self.test_dataset is None else self._test_loss()
            if self.config.ckpt_path is not None and (loss < best or self.test_dataset is None):
                best = loss
                self.save_checkpoint()

    def save_checkpoint(self) -> None:
        logger.info("saving %s", self.config.ckpt_path)
        path = os.fspath(self.config.ckpt_path)
        with atomic_path(path) as tmp, writing(path), open(tmp, "wb") as f:
            torch.save(self._bare.state_dict(), f)
            flush_to_disk(f)

    def _batches(self, dataset: Any) -> DataLoader[Any]:
        how = {"batch_size": self.config.batch_size, "num_workers": self.config.num_workers}
        return DataLoader(dataset, shuffle=True, **how)

    def _train_epoch(self, epoch: int) -> None:
        self.model.train()
        batches, show = with_progress(self._batches(self.train_dataset))
        for i, (x, y) in enumerate(batches):
            x, y = x.to(self.device), y.to(self.device)
            self.loss = learn(self.model, self.optimizer, x, y, self.config.grad_norm_clip)
            rate = self._decay(y)
            show(f"epoch {epoch + 1} iter {i}: train loss {self.loss.item():.5f}. lr {rate:e}")

    def _decay(self, y: Tensor) -> float:
        """Sets the next step's learning rate, and returns it."""
        config, rate = self.config, float(self.config.learning_rate)
        if not config.lr_decay:
            return rate
        self.tokens += int((y >= 0).sum())
        past, whole = self.tokens - config.warmup_tokens, config.final_tokens - config.warmup_tokens
        if past < 0:
            rate *= self.tokens / max(1, config.warmup_tokens)
        else:
            rate *= max(0.1, 0.5 * (1 + math.cos(math.pi * past / max(1, whole))))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    @torch.no_grad()
    def _test_loss(self) -> float:
        self.model.eval()
        losses = [
            self.model(x.to(self.device), y.to(self.device))[1].item()
            for x, y in self._batches(self.test_dataset)
        ]
        loss = math.fsum(losses) / max(len(losses), 1)
        logger.info("test loss: %f", loss)
        return loss


def with_progress(batches: Any) -> tuple[Any, Callable[[str], Any]]:
    """The batches, and how to show a line about each: tqdm's bar if that is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return batches, logger.debug
    bar = tqdm(batches)
    return bar, bar.set_description
