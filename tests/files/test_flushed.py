"""What Python writes is on the disk before it stands under its name: a power cut leaves the old file or the new one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from converted import make_model

from pyllmc.convert.export import save
from pyllmc.mingpt.model import GPT
from pyllmc.mingpt.trainer import Trainer, TrainerConfig
from pyllmc.tables.layout import GPTConfig
from pyllmc.text import bins, dataset, masks, vocabularies

TEXTS = ["the cat sat", "on the mat"] * 9
TALKS = [masks.Marked.of([("Q: a", False), ("A: b\n", True)])] * 9


def export(path: Path) -> None:
    tokenizer = vocabularies.train("bpe", TEXTS, 260)
    m = make_model(GPTConfig(tokenizer.vocab_size, 8, 1, 1, 8), tokenizer)
    save(path, m.config, m.params, tokenizer=tokenizer)


def mingpts(path: Path) -> None:
    config = GPT.get_default_config()
    config.merge_from_dict({"model_type": "gpt-nano", "vocab_size": 9, "block_size": 8})
    Trainer(GPT(config), None, None, TrainerConfig(ckpt_path=path)).save_checkpoint()


def write_mask(path: Path) -> None:
    bins.write_shard(path, [1, 2, 3], 9)
    dataset.write_mask(path, [0, 1, 1])


WRITERS = {
    "tokenizer.bin": lambda path: vocabularies.train("byte").save(path),
    "shard.bin": lambda path: bins.write_shard(path, [1, 2, 3], 9),
    "masked.bin": write_mask,
    "data": lambda path: dataset.write_dataset(TEXTS, path),
    "talks": lambda path: dataset.write_dataset(TALKS, path, template=r"Q: {prompt}\nA: {answer}\n"),
    "hf": export,
    "model.gguf": export,
    "model.bin": export,
    "mingpt.pt": mingpts,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_is_flushed(name, tmp_path, monkeypatch):
    synced, sync = set(), os.fsync

    def noted(file: int) -> None:
        sync(file)
        at = os.fstat(file)
        synced.add((at.st_ino, at.st_size))

    monkeypatch.setattr(os, "fsync", noted)
    WRITERS[name](tmp_path / name)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    for path in written:
        assert (path.stat().st_ino, path.stat().st_size) in synced, path
