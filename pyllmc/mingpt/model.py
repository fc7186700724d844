"""minGPT's model: the classes of both of its generations, over pyllmc.nn.GPT."""

from __future__ import annotations

import logging
import os
from typing import Any

from pyllmc.base.errors import InvalidArgument
from pyllmc.convert import hub
from pyllmc.mingpt.utils import CfgNode
from pyllmc.nn import gpt
from pyllmc.tables.layout import config_of

logger = logging.getLogger(__name__)
SIZES = ("n_layer", "n_head", "n_embd")
DROPOUT = ("embd_pdrop", "resid_pdrop", "attn_pdrop")
UNSET = "gpt"  # the model_type of a config that names none
USUAL = 0.1


class GPTConfig:
    """The sizes of a model, as minGPT had them in 2020; other keywords become attributes."""

    embd_pdrop = resid_pdrop = attn_pdrop = USUAL

    def __init__(self, vocab_size: int, block_size: int, **named: Any) -> None:
        self.vocab_size, self.block_size = vocab_size, block_size
        vars(self).update(named)


class GPT1Config(GPTConfig):
    """GPT-1's sizes."""

    n_layer, n_head, n_embd = 12, 12, 768


def sizes_of(config: Any) -> gpt.GPTConfig:
    """The engine's sizes for minGPT's config, either by model_type or by n_layer, n_head, n_embd. Raises InvalidArgument.

    minGPT's head is a matrix of its own.
    """
    for name in ("vocab_size", "block_size"):
        if getattr(config, name, None) is None:
            raise InvalidArgument(f"config.{name} is None: set it, the data decide it")
    kind = getattr(config, "model_type", None)
    given: list[Any] = [getattr(config, name, None) for name in SIZES]
    if kind not in (None, UNSET):
        known = config_of(kind, config.vocab_size)
        sizes = [getattr(known, name) for name in SIZES]
        if given not in ([None] * len(SIZES), sizes):
            raise InvalidArgument(
                f"config has model_type='{kind}' and {', '.join(SIZES)}: set one of the two to None"
            )
        vars(config).update(zip(SIZES, given := sizes))
    elif None in given:
        raise InvalidArgument(f"config has neither model_type nor all of {', '.join(SIZES)}: set one")
    L, NH, C = given
    return gpt.GPTConfig(config.vocab_size, config.block_size, L, NH, C, untied=True)


def dropout_of(config: Any) -> dict[str, Any]:
    """The three rates of a config; 0 for one that it lacks."""
    return {name: getattr(config, name, 0.0) for name in DROPOUT}


class GPT(gpt.GPT):
    """minGPT's GPT: config is a CfgNode of get_default_config(), or a GPTConfig of 2020. Its methods are pyllmc.nn.GPT's."""

    @staticmethod
    def get_default_config() -> CfgNode:
        unset = dict.fromkeys((*SIZES, "vocab_size", "block_size"))
        return CfgNode(model_type=UNSET, **unset, **dict.fromkeys(DROPOUT, USUAL))

    def __init__(self, config: Any) -> None:
        sizes = sizes_of(config)
        super().__init__(sizes, init_std=0.02, **dropout_of(config))
        self.block_size = config.block_size
        logger.info("number of parameters: %.2fM", self._engine.num_params / 1e6)

    def get_block_size(self) -> int:
        return self.block_size

    @classmethod
    def from_pretrained(cls, model_type: str | os.PathLike[str]) -> GPT:
        """The weights of gpt2, gpt2-medium, ... from the hub; or of any path or model of the hub that pyllmc reads."""
        name = os.fspath(model_type)
        model = cls.__new__(cls)
        source = f"{hub.PREFIX}{name}" if name in hub.OPENAI else name
        gpt.GPT.__init__(model, source, **dropout_of(cls.get_default_config()))
        model.block_size = model.sizes.max_seq_len
        return model
