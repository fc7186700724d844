"""What a process does when another one cannot do its part, played by functions instead of other processes."""

from __future__ import annotations

import contextlib
import datetime
from dataclasses import replace

import numpy as np
import pytest
from conftest import DEVICES

import pyllmc
from pyllmc import GPTConfig
from pyllmc.distributed.place import Place
from pyllmc.distributed.team import Team
from pyllmc.engine import _ffi
from pyllmc.trainer import Options


class Played:
    """A team of two, whose other process says in each sum whether it has failed."""

    def __init__(self, rank: int, other_failed: float) -> None:
        ffi = _ffi.ffi()
        self.calls: list[str] = []

        def add(_, x, n):
            self.calls.append("sum")
            x[0] += other_failed
            return 0

        def fetch(*_):
            self.calls.append("fetch")
            return 0

        self.held = [ffi.callback("int(void *, double *, int)", add), ffi.callback("int(void *, float *, int64_t, int)", fetch)]  # fmt: skip
        self.team = ffi.new("llmc_team *")
        self.team.rank, self.team.world, self.team.local = rank, 2, 2
        self.team.sum, self.team.fetch = self.held


def shared_out(rank: int, other_failed: float):
    """A model with one of two shares of the moments, and its team."""
    ffi, lib = _ffi.ffi(), _ffi.load()
    config = ffi.new("llmc_config *")
    _ffi.check(lib, lib.llmc_config_parse(config, b"gpt-nano"))
    config.V, config.maxT = 50, 8
    room = ffi.new("llmc_room *", {"B": 1, "T": 8, "training": 1, "shards": 2, "shard": rank})
    model = ffi.new("llmc_model **")
    _ffi.check(lib, lib.llmc_model_create(model, config, room, 1))
    handle = ffi.gc(model[0], lib.llmc_model_free)
    _ffi.check(lib, lib.llmc_model_init(handle, 42, 0.02))
    _ffi.check(lib, lib.llmc_model_reset_moments(handle))
    played = Played(rank, other_failed)
    _ffi.check(lib, lib.llmc_model_join(handle, played.team))
    return lib, handle, played


def save(lib, model, path) -> int:
    ffi = _ffi.ffi()
    return lib.llmc_checkpoint_save(model, str(path).encode(), ffi.NULL, ffi.NULL, ffi.NULL, 0, 1)


def test_nobody_sends_moments_to_a_file_that_cannot_be_begun(tmp_path):
    lib, model, played = shared_out(0, other_failed=0)
    assert save(lib, model, tmp_path / "missing/x.ckpt") == -4
    assert "cannot be written: No such file or directory" in _ffi.text(lib.llmc_last_error())
    assert played.calls == ["sum"], "the other process learns it, and none waits in a transfer"
    lib, model, played = shared_out(1, other_failed=1)
    assert lib.llmc_checkpoint_send(model) == -4
    assert played.calls == ["sum"]


def test_a_process_that_cannot_send_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"old")
    lib, model, played = shared_out(0, other_failed=1)
    assert save(lib, model, path) == -4
    assert played.calls == ["sum"]
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_moments_travel_where_all_are_ready(tmp_path):
    lib, model, played = shared_out(0, other_failed=0)
    assert save(lib, model, tmp_path / "x.ckpt") == 0
    assert played.calls[0] == "sum" and set(played.calls[1:]) == {"fetch"}
    lib, model, played = shared_out(1, other_failed=0)
    assert lib.llmc_checkpoint_send(model) == 0
    assert played.calls[0] == "sum" and set(played.calls[1:]) == {"fetch"}


# ---- the sums of gradients ----

CONFIG = GPTConfig(vocab_size=50, max_seq_len=8, n_layer=3, n_head=2, n_embd=8)
KINDS = {
    "whole": (CONFIG, {}),
    "untied": (replace(CONFIG, untied=True), {}),
    "banded": (replace(CONFIG, window=2, pattern="DL"), {"recompute": 4}),
    "lora": (CONFIG, {"lora_rank": 2}),
    "lora-some": (CONFIG, {"lora_rank": 2, "lora_on": "attproj,fc"}),
    "some": (CONFIG, {"train_only": "h.1.*,h.2.ln2w,wpe"}),
    "above-ln1": (CONFIG, {"train_only": "h.1.qkvw,h.2.*"}),
    "head": (CONFIG, {"train_only": "lnfw,lnfb"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_gradient_is_summed_once(kind):
    """All that is trained, but the positions that no process sees; a new tensor that nobody sums would be missing."""
    config, how = KINDS[kind]
    T, ffi, lib = 5, _ffi.ffi(), _ffi.load()
    m = pyllmc.Model(config, 2, T, keep_logits=False, **how)
    base, spans = int(ffi.cast("uintptr_t", lib.llmc_model_block(m._handle, lib.LLMC_GRADS))), []

    def begin(_, x, n):
        spans.append(((int(ffi.cast("uintptr_t", x)) - base) // 4, n))
        return 0

    played = Played(0, 0)
    held = ffi.callback("int(void *, float *, int64_t)", begin)
    played.team.begin_sum = held
    _ffi.check(lib, lib.llmc_model_join(m._handle, played.team))
    _ffi.check(lib, lib.llmc_model_sum_next(m._handle))
    ids = np.arange(2 * (T + 1)).reshape(2, T + 1) % 50
    m.micro_step(ids[:, :-1], ids[:, 1:], accumulate=False)
    trained = sum(m.grads[name].size for name in m.grads)
    summed = np.zeros(trained, int)
    for first, n in spans:
        summed[first : first + n] += 1
    unseen = (config.max_seq_len - T) * config.n_embd if "transformer.wpe.weight" in list(m.grads) else 0
    assert summed.max() == 1 and (summed == 0).sum() == unseen


def test_an_error_that_a_device_tells_once_ends_the_micro_step():
    """In the wait before a sum, whose gradients would be wrong."""
    if "emu_fp32" not in DEVICES:
        pytest.skip("make emu builds the emulation")
    ffi, lib = _ffi.ffi(), _ffi.load("emu", "fp32")
    m = pyllmc.Model(CONFIG, 2, 5, keep_logits=False, device="emu", precision="fp32")
    kernels, context = lib.llmc_kernels(ffi.NULL, lib.LLMC_AUTO), ffi.new("Context *", {"threads": 1})
    _ffi.check(lib, kernels.open(context))
    begun = []

    def begin(_, x, n):
        if not begun:
            kernels.fill(context, ffi.cast("void *", 4096), 0, 64)  # memory of nobody
        begun.append(n)
        return 0

    played = Played(0, 0)
    played.team.begin_sum = held = ffi.callback("int(void *, float *, int64_t)", begin)
    _ffi.check(lib, lib.llmc_model_join(m._handle, played.team))
    ids = np.arange(12).reshape(2, 6)
    for fails in (True, False):
        begun = begun if fails else [held]
        _ffi.check(lib, lib.llmc_model_sum_next(m._handle))
        with pytest.raises(pyllmc.NoDevice, match="does not fit") if fails else contextlib.nullcontext():
            m.micro_step(ids[:, :-1], ids[:, 1:], accumulate=False)
    assert len(begun) > 2, "the other processes wait for all sums"


def test_the_roll_call_leaves_the_process_groups_store_its_timeout():
    """Whoever gives up a dead store soon has a connection of its own, because nccl uses the group's store later."""
    dist = pytest.importorskip("torch").distributed
    from pyllmc.distributed.team import Team

    free = dist.TCPStore("localhost", 0, None, True, wait_for_workers=False)
    options = Options(_ffi.load())
    options.set("timeout", 50)
    team = Team(options, Place(0, 1, 0, 1, "localhost", free.port, "test", agent_serves=True))
    try:
        group, roll = dist.distributed_c10d._get_default_store(), team.roll._store
        assert roll.timeout == datetime.timedelta(seconds=2)
        assert group.timeout == datetime.timedelta(seconds=48)
        x = np.ones(3)
        assert team._guarded(team._sum)(None, _ffi.ffi().from_buffer("double[]", x), 3) == 0
    finally:
        team.close()


# ---- the environment

WHOLE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "name, value, why",
    [
        ("RANK", "x", "RANK=x in the environment is no whole number"),
        ("RANK", None, "the environment has no RANK: start with torchrun"),
        ("RANK", "²", "RANK=² in the environment is no whole number"),
        ("WORLD_SIZE", "", "the environment has no WORLD_SIZE"),
        ("MASTER_PORT", "99999", "MASTER_PORT=99999 in the environment is not in 1..65535"),
        ("MASTER_PORT", "0", "MASTER_PORT=0 in the environment is not in 1..65535"),
    ],
)
def test_an_environment_that_is_wrong_is_told(monkeypatch, name, value, why):
    for key, text in {**WHOLE, name: value}.items():
        monkeypatch.setenv(key, text) if text is not None else monkeypatch.delenv(key, raising=False)
    with pytest.raises(pyllmc.InvalidArgument, match=why):
        Place.read()


def test_a_process_that_nobody_meets_says_what_to_do():
    """It is alone, and waits for a second."""
    torch = pytest.importorskip("torch")
    store = torch.distributed.TCPStore("localhost", 0, None, True, wait_for_workers=False)
    options = Options(_ffi.load())
    options.set("timeout", 1)
    place = Place(0, 2, 0, 2, "localhost", store.port, "a/0/2", agent_serves=True)
    with pytest.raises(pyllmc.SystemFailure, match="rank 1 did not come; start all with one MASTER_ADDR"):
        Team(options, place)
