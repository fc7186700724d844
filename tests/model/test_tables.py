"""The tables read as text agree with the compiled library."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT, ffi, lib
from hypothesis import given
from hypothesis import strategies as st

from pyllmc.engine import _ffi
from pyllmc.model import Model
from pyllmc.tables import layout, options
from pyllmc.tables.layout import GPTConfig
from pyllmc.text import bpe
from pyllmc.trainer import Options

KINDS = {lib.LLMC_PARAM: ("PARAM", "LAYER_PARAM"), lib.LLMC_ACT: ("ACT",), lib.LLMC_LAYER_ACT: ("LAYER_ACT",)}
KINDS.update(
    {
        lib.LLMC_ADAPTER: ("ADAPTER",),
        lib.LLMC_CACHE: ("CACHE",),
        lib.LLMC_CHUNK_ACT: ("CHUNK_ACT",),
        lib.LLMC_OVER_ACT: ("OVER_ACT",),
        lib.LLMC_GRAD_ACT: ("GRAD_ACT",),
    }
)
INITS = {getattr(lib, f"LLMC_{name}"): name for name in ("ZERO", "ONE", "NORMAL", "RESIDUAL", "UNIFORM")}
ADAPTERS = [name + part for name in ("qkv", "attproj", "fc", "fcproj") for part in "AB"]

sizes = st.integers(1, 300)


@given(
    V=sizes,
    maxT=sizes,
    L=st.integers(1, 20),
    NH=st.integers(1, 9),
    hs=sizes,
    B=sizes,
    recompute=st.integers(0, 4),
    untied=st.integers(0, 1),
    rank=st.integers(0, 4),
)
def test_every_row_of_the_tensors(V, maxT, L, NH, hs, B, recompute, untied, rank):
    config, T = GPTConfig(V, maxT, L, NH, NH * hs, untied=untied), (maxT + 1) // 2
    rank = min(rank, NH * hs)
    c = ffi.new("llmc_config *", {"maxT": maxT, "V": V, "L": L, "NH": NH, "C": NH * hs, "untied": untied})
    rows = ffi.new("llmc_tensor[]", lib.llmc_num_tensors())
    room = ffi.new("llmc_room *", (B, T, 1, recompute, 1, lib.LLMC_FP32, rank, 15 if rank else 0, 16))
    assert lib.llmc_layout(c, room, rows) == 0
    theirs = [t for t in rows if t.rank]  # the others are not there
    missing = {_ffi.text(t.name) for t in rows if not t.rank}
    assert ("lmheadw" in missing) == (not untied)
    assert missing - {"lmheadw"} == {"ring", "whole", *([] if rank else [*ADAPTERS, "lora", "dlora"])}
    assert not any(t.size for t in rows if not t.rank)
    ours = layout.table(config, B, T, lora_rank=rank)
    assert len(ours) == len(theirs)
    offset = 0
    for row, t in zip(ours, theirs):
        assert row.name == _ffi.text(t.name)
        assert row.kind in KINDS[t.kind]
        assert row.type == {lib.LLMC_I: "I", lib.LLMC_F: "F", lib.LLMC_X: "X"}[t.type] or not row.is_act
        assert row.shape == tuple(t.shape[0 : t.rank])
        assert (row.size, row.per_layer) == (t.size, t.layers > 0)
        assert t.kept == (not row.level or recompute < row.level)
        if row.kind == "OVER_ACT":
            other = next(t for t in theirs if _ffi.text(t.name) == row.other)
            assert t.size <= other.size and (t.offset == other.offset) == (not t.kept)
        if not row.is_act:
            assert (row.torch_name, row.init, row.decay) == (
                _ffi.text(t.torch_name),
                INITS[t.init],
                bool(t.decay),
            )
            assert t.offset == offset
            offset += row.size * (L if row.per_layer else 1)
    adapters = [row for row in ours if row.kind == "ADAPTER"]
    assert [row.name for row in adapters] == (ADAPTERS if rank else [])
    files = offset - sum(row.size * L for row in adapters)
    assert sum(row.size for row, _ in layout.parameters(config)) == files  # model files hold no adapters


def test_the_highest_recompute_is_the_same_in_every_table():
    """options.def and tensors.def have it as a number; the engine's is RECOMPUTE_MOST in layout.h."""
    most = int(options.options()["recompute"].most)
    levels = {
        row.level for row in layout.table(GPTConfig(5, 5, 2, 1, 4)) if row.kind in ("LAYER_ACT", "CACHE")
    }
    assert max(levels) == most + 1  # tensors kept at every level have the next number
    c = ffi.new("llmc_config *", {"maxT": 5, "V": 5, "L": 2, "NH": 1, "C": 4})
    rows = ffi.new("llmc_tensor[]", lib.llmc_num_tensors())
    assert lib.llmc_layout(c, ffi.new("llmc_room *", (1, 5, 1, most, 0)), rows) == 0
    assert lib.llmc_layout(c, ffi.new("llmc_room *", (1, 5, 1, most + 1, 0)), rows) == lib.LLMC_EINVAL
    assert _ffi.message(lib) == f"recompute={most + 1} is not in 0..{most}"


@pytest.mark.parametrize("B, T", [(2, 3), (4, 1024)])
def test_a_chunk_of_logits_lies_over_what_is_idle(B, T):
    """It lies over fch_gelu and dresidual if the first is not kept; else over nothing but buffers that are used at
    other times."""
    c = ffi.new("llmc_config *", {"maxT": T, "V": 50257, "L": 3, "NH": 2, "C": 64})
    for recompute in range(5):
        rows = ffi.new("llmc_tensor[]", lib.llmc_num_tensors())
        assert lib.llmc_layout(c, ffi.new("llmc_room *", (B, T, 1, recompute, 0)), rows) == 0
        weights = (lib.LLMC_PARAM, lib.LLMC_ADAPTER)
        at = {_ffi.text(row.name): row for row in rows if row.kind not in weights and row.rank}
        logits = at["logits"]
        assert (logits.offset == at["fch_gelu"].offset) == (recompute > 0)
        assert not logits.kept and logits.size == min(B * T, 512) * 50304
        over = {"logits", "dqkv", "dfch"} | ({"fch_gelu", "dresidual"} if recompute else set())
        assert all(row.offset + row.size <= logits.offset for name, row in at.items() if name not in over)
        assert recompute or at["dqkv"].offset >= logits.offset + logits.size


def test_the_arena_lies_as_layout_h_draws_it():
    header = (ROOT / "csrc/model/layout.h").read_text()
    drawn = re.search(r"\| (params .*) \|", header)[1].replace("|", " ").split()
    assert drawn == ["params", "stored", "grads", "m", "v", "outer", "acts", "workspace"]
    blocks = {
        "params": lib.LLMC_PARAMS,
        "grads": lib.LLMC_GRADS,
        "m": lib.LLMC_M,
        "v": lib.LLMC_V,
        "acts": lib.LLMC_ACTS,
    }
    m = Model(GPTConfig(5, 5, 2, 1, 4), B=1, T=5)
    at = [
        int(ffi.cast("intptr_t", lib.llmc_model_block(m._handle, blocks[name])))
        for name in drawn
        if name in blocks
    ]
    assert at[0] > 0 and at == sorted(at)
    turns = ["tokens", "fch_gelu", "logits"]  # ALONE, BENEATH, OVER
    offsets = [m._arena.rows[name].offset for name in turns]
    assert offsets == sorted(offsets)


def test_the_order_of_computation_goes_layer_by_layer():
    rows = layout.table(GPTConfig(5, 5, 2, 1, 4))
    order = [(row.name, layer) for row, layer in layout.in_order(rows, 2)]
    assert len(order) == len(set(order)) == sum(2 if row.per_layer else 1 for row in rows)
    at = {key: i for i, key in enumerate(order)}
    assert (
        at["wpe", 0] < at["ln1w", 0] < at["fcprojb", 0] < at["ln1w", 1] < at["lnfw", 0] < at["residual1", 0]
    )
    assert (
        at["residual1", 0]
        < at["qkv", 0]
        < at["fch_gelu", 0]
        < at["residual1", 1]
        < at["residual3", 0]
        < at["loss", 0]
    )


@pytest.mark.parametrize("name", [*layout._known_sizes(), "d12", "d48"])
def test_sizes_by_name(name):
    c = ffi.new("llmc_config *")
    assert lib.llmc_config_parse(c, name.encode()) == 0
    config = layout.config_of(name, fallback=65)
    assert config == GPTConfig(c.V or 65, c.maxT, c.L, c.NH, c.C)
    assert layout.config_of(name, vocab_size=99).vocab_size == 99


def test_sizes_nobody_knows():
    assert len(layout._known_sizes()) >= 25
    with pytest.raises(ValueError, match=r"'d13' is neither a file nor a known size: try gpt2:d6"):
        layout.config_of("d13")
    with pytest.raises(ValueError, match="gpt-nano' takes its vocabulary from the data: give vocab_size"):
        layout.config_of("gpt-nano")


names = st.sampled_from(["vocab_size", "max_seq_len", "n_layer", "n_head", "n_embd", "window", "untied"])


@given(name=names, value=st.integers(-(2**31), 2**31 - 1))
def test_the_same_configurations_are_refused(name, value):
    fields = {
        "vocab_size": 99,
        "max_seq_len": 8,
        "n_layer": 2,
        "n_head": 3,
        "n_embd": 12,
        "window": 0,
        "untied": 0,
        name: value,
    }
    V, maxT, L, NH, C, window, untied = fields.values()
    sizes = {"maxT": maxT, "V": V, "L": L, "NH": NH, "C": C, "window": window, "untied": untied}
    c = ffi.new("llmc_config *", sizes)
    if lib.llmc_config_check(c) == 0:
        assert GPTConfig(**fields).padded_vocab_size == c.Vp
    else:
        with pytest.raises(ValueError) as error:
            GPTConfig(**fields)
        assert str(error.value) == _ffi.message(lib).replace("0 or 1", "True or False")  # Python's word


@pytest.mark.parametrize("value", [1.5, "12", None, True])
def test_sizes_are_whole_numbers(value):
    with pytest.raises(ValueError, match=r"n_layer=.* is not a whole number"):
        GPTConfig(10, 10, value, 1, 1)


# ---- options ----


def test_the_options_have_the_same_defaults():
    theirs, ours = Options(lib), options.parse([])
    assert list(vars(ours)) == list(options.options())
    everything = [_ffi.text(lib.llmc_option_name(i)) for i in range(lib.llmc_num_options())]
    assert list(options.options(*options.OF_ANY)) == everything
    for name, value in vars(ours).items():
        assert (
            type(value)(theirs.get(name)) == value
            if not isinstance(value, bool)
            else theirs.get(name) == str(int(value))
        )


GOOD = [
    ["--lr=0.5"], ["--lr", "0.5"], ["--max-steps=7"], ["--shuffle"], ["--no_shuffle"], ["--shuffle=no"],
    ["--shuffle=True", "--B", "3"], ["--data=a b"], ["--prompt="],
    ["--val-data=x", "--T=0"], ["--seed=9223372036854775807"],
    ["--B=2", "--B=3"], ["--shuffle", "--no_shuffle"], ["--no-shuffle", "--shuffle=yes"],
]  # fmt: skip
BAD = [
    ["--B=0"], ["--B=x"], ["--B=1.5"], ["--B"], ["--lr=-1"], ["--lr=nan"], ["--lr=inf"], ["--B=0", "--B=2"],
    ["--mx_steps=3"], ["--shuffle=perhaps"], ["--max_step=3"], ["B=3"],
    ["--zzzzzzzzz=1"], ["--data"], ["--no_lr"], ["--B", "--T=3"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", GOOD, ids=" ".join)
def test_both_parsers_read_the_same(arguments):
    theirs, ours = Options(lib), options.parse(arguments)
    theirs.parse(arguments)
    for name, value in vars(ours).items():
        assert type(value)(int(theirs.get(name)) if isinstance(value, bool) else theirs.get(name)) == value


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_both_parsers_refuse_the_same(arguments, capsys):
    with pytest.raises(_ffi.InvalidArgument):
        Options(lib).parse(arguments)
    with pytest.raises(SystemExit) as stop:
        options.parse(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_misspelt_option_is_suggested(capsys):
    with pytest.raises(SystemExit):
        options.parse(["--mx_steps=3"])
    assert capsys.readouterr().err == "train_gpt2: unknown option --mx_steps: did you mean --max_steps?\n"


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        options.parse(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in options.options())


def test_what_c_and_python_both_say_of_gpt2():
    said: dict[str, set[int]] = {}
    for path in (ROOT / "csrc").rglob("*.[ch]"):
        for name, value in re.findall(
            r"\b(GPT2_V|GPT2_CRC|MAX_PIECE)\b(?: = | )(\w+)[, ]",
            re.sub(r"#ifdef FUZZING.*?#else", "", path.read_text(), flags=re.S),
        ):
            said.setdefault(name, set()).add(int(value, 0))
    assert said == {"GPT2_V": {bpe.GPT2_VOCAB}, "GPT2_CRC": {bpe.GPT2_CRC}, "MAX_PIECE": {bpe.MAX_PIECE}}
