"""Weights kept in bf16 or int8 for generation: their stored form, and every kernel that reads it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import BF16_ISAS, CPU_KERNELS, Buffers, Kernel, assert_parity, ffi, lib, make_kernels, storable

import pyllmc
from pyllmc import InvalidArgument
from pyllmc.parity import yardstick

FORMATS = {"bf16": lib.LLMC_BF16, "int8": lib.LLMC_INT8}
SHAPES = [(1, 2, 1), (1, 7, 5), (1, 33, 18), (3, 48, 49), (5, 131, 40), (1, 768, 50), (4, 770, 33), (40, 331, 17),
          (70, 97, 53), (130, 40, 100), (66, 8200, 9), (13, 2100, 19), (21, 2100, 19)]  # fmt: skip


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape, dtype=np.float32)


def stored(weight: np.ndarray, form: str) -> np.ndarray:
    """The numbers that a weight (rows, C) keeps in that form."""
    if form == "bf16":
        return torch.from_numpy(weight).bfloat16().float().numpy()
    scale = np.abs(weight).max(1, keepdims=True) / np.float32(127)
    return np.rint(weight / np.where(scale > 0, scale, 1)).astype(np.float32) * scale


@pytest.fixture(params=CPU_KERNELS)
def kernels(request) -> Kernel:
    """Kernels of CPUs, because a GPU's keep weights as they are."""
    return make_kernels(request.param)


def compressed(kernels: Kernel, buffers: Buffers, weight: np.ndarray, form: str) -> np.ndarray:
    """The buffer of the weight with compressed rows in it. Its floats lie there already if floats are stored."""
    buffer = buffers.guarded(weight)
    param = buffer if kernels.stored == "float32" else buffers.guarded(weight)
    kernels.compress(buffer, param, FORMATS[form], *weight.shape)
    kernels.context.weight_format = FORMATS[form]
    return buffer


def would_grow(kernels: Kernel, form: str, C: int) -> bool:
    """Whether a row of C + 4 bytes is longer than it was."""
    return form == "int8" and kernels.stored == "bfloat16" and C < 4


def both(formula, *arrays: np.ndarray) -> list[np.ndarray]:
    tensors = [torch.from_numpy(a.copy()) for a in arrays]
    single, double = yardstick.both(lambda kind: [np.asarray(formula(*(x.to(kind) for x in tensors)))])
    return [*single, *double]


def gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


@pytest.mark.parametrize("form", FORMATS)
def test_products(kernels: Kernel, buffers: Buffers, form: str):
    """Sums are float, and rounded once when they are stored. GELU is that of the stored sum."""
    for M, C, OC in [shape for shape in SHAPES if not would_grow(kernels, form, shape[1])]:
        kernels.workspace(1, M, max(C, OC))
        inp, bias = (buffers.guarded(storable(kernels, normal(*shape))) for shape in ((M, C), (OC,)))
        weight = normal(OC, C)
        weight[OC // 2] = 0  # a row without a scale
        buffer, out = compressed(kernels, buffers, weight, form), buffers.out(M, OC)
        kernels.matmul_forward(out, inp, buffer, bias, 1, M, C, OC)
        expected, what = both(F.linear, inp, stored(weight, form), bias), f"{form}, M={M} C={C} OC={OC}"
        assert_parity(out, *expected, what=what, stored=kernels.stored)
        again, pre = buffers.out(M, OC), buffers.out(M, OC)
        kernels.matmul_gelu_forward(again, pre, inp, buffer, bias, 1, M, C, OC)
        assert_parity(pre, *expected, what=f"pre, {what}", stored=kernels.stored)
        assert_parity(again, *both(gelu, pre), what=f"gelu, {what}", floor=1e-6, stored=kernels.stored)
        buffers.check()
        buffers.held.clear()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", CPU_KERNELS)
def test_threads_do_not_change_a_bit(name: str, buffers: Buffers, form: str):
    """Each thread rounds rows of weights in its own part of the workspace."""
    for M, C, OC in ((1, 300, 401), (14, 770, 401), (64, 1030, 150), (90, 300, 401)):
        inp, results = buffers.guarded(normal(M, C)), []
        for many in (make_kernels(name, threads) for threads in (1, 2, 3, 5)):
            many.workspace(1, M, max(C, OC))
            weight, out = compressed(many, buffers, normal(OC, C), form), buffers.out(M, OC)
            many.matmul_forward(out, inp, weight, None, 1, M, C, OC)
            results.append(out.tobytes())
        assert all(r == results[0] for r in results), f"threads change the result at {M, C, OC}"


@pytest.mark.parametrize("form", FORMATS)
def test_embedding(kernels: Kernel, buffers: Buffers, form: str):
    for C in [C for C in (2, 7, 48, 67) if not would_grow(kernels, form, C)]:
        kernels.workspace(1, 6, C)
        wte, wpe = normal(11, C), buffers.guarded(storable(kernels, normal(6, C)))
        tokens, out = buffers.guarded(np.array([3, 0, 10, 3, 7, 5], np.int32)), buffers.out(6, C)
        kernels.encoder_forward(
            out, tokens, compressed(kernels, buffers, wte, form), wpe, None, None, 1, 6, C
        )
        expected = both(torch.add, stored(wte, form)[tokens], wpe)
        assert_parity(out, *expected, what=f"{form} C={C}", stored=kernels.stored)


def test_the_longest_row_fits_the_workspace_of_one_position(kernels: Kernel, buffers: Buffers):
    """A row of fcprojw is 4 C long."""
    kernels.workspace(1, 1, 24)
    compressed(kernels, buffers, normal(3, 4 * 24), "int8")


def test_numbers_that_are_special(kernels: Kernel, buffers: Buffers):
    """bf16 of infinities, of NaN, and of numbers halfway between two; a product with 1 reads them back."""
    special = [np.inf, -np.inf, np.nan, 1 + 2**-8, 1 + 3 * 2**-8, -0.0, 3.4e38, 1e-30]
    weight = np.array([[x, 0] for x in special], np.float32)
    kernels.workspace(1, 1, 2)
    out = buffers.out(1, len(special))
    buffer = compressed(kernels, buffers, weight, "bf16")
    one = buffers.guarded(np.array([[1, 0]], np.float32))
    kernels.matmul_forward(out, one, buffer, None, 1, 1, 2, len(special))
    np.testing.assert_array_equal(out[0], stored(weight, "bf16")[:, 0] * np.float32(1))


@pytest.mark.parametrize("isa", BF16_ISAS)
def test_bf16_of_bf16_is_what_is_stored(isa: str, buffers: Buffers):
    """Such weights are those that the optimizer leaves."""
    k, weight, plain = Kernel(isa, precision="bf16"), normal(5, 67), buffers.out(5, 67)
    k.workspace(1, 1, 67)
    k.store(plain, weight, weight.size)
    np.testing.assert_array_equal(plain, compressed(k, buffers, weight, "bf16"))


# ---- the model ----


def make(weights: str, **more) -> pyllmc.Model:
    config = pyllmc.GPTConfig(vocab_size=67, max_seq_len=32, n_layer=2, n_head=3, n_embd=48)
    return pyllmc.Model(config, B=2, training=False, weights=weights, init_std=0.2, **more)


@pytest.mark.parametrize("form", FORMATS)
def test_model_equals_one_with_the_stored_numbers(form: str):
    plain, small = make("fp32"), make(form)
    for name in ("wte", "qkvw", "attprojw", "fcw", "fcprojw"):
        view = plain.params[name]
        for layer in view if view.ndim == 3 else [view]:
            layer[:] = stored(np.ascontiguousarray(layer), form)
    ids = np.random.default_rng(0).integers(0, 67, (2, 32))
    plain.forward(ids)
    small.forward(ids)
    np.testing.assert_allclose(small.logits, plain.logits, rtol=0, atol=2e-4)
    greedy = dict(max_new_tokens=24, temperature=0)
    assert list(small.generate([5, 7], **greedy)) == list(plain.generate([5, 7], **greedy))
    assert small.num_params == plain.num_params


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_compressed_weights_cannot_do(tmp_path, precision):
    small = make("int8", precision=precision)
    numbers = ffi.new("float[1]")
    of_wte = small._handle, lib.LLMC_PARAMS, 0, 0, 1, numbers
    for forbidden in (
        lambda: small.params["wte"],
        lambda: small.params.__setitem__("wte", np.float32(0)),
        lambda: small._check(lib.llmc_model_read(*of_wte)),
        lambda: small._check(lib.llmc_model_write(*of_wte)),
        lambda: small._check(lib.llmc_model_refresh(small._handle)),
        lambda: small.save(tmp_path / "x.ckpt"),
    ):
        with pytest.raises(InvalidArgument, match="compressed"):
            forbidden()
    with pytest.raises(InvalidArgument, match="training=False"):
        pyllmc.Model("gpt-nano", B=1, T=4, vocab_size=9, weights="int8")
    with pytest.raises(InvalidArgument, match="one of fp32, bf16, int8"):
        make("int4")


def test_a_model_of_bf16(tmp_path):
    """Its weights are bf16 already. Those of int8 take their place, and that of the masters."""
    plain, same, small = (make(form, precision="bf16") for form in ("fp32", "bf16", "int8"))
    ids = np.random.default_rng(0).integers(0, 67, (2, 32))
    for m in (plain, same, small):
        m.forward(ids)
    assert plain.logits.tobytes() == same.logits.tobytes()
    assert 0 < np.linalg.norm(small.logits - plain.logits) < 0.03 * np.linalg.norm(plain.logits)
    np.testing.assert_array_equal(same.params["wte"], plain.params["wte"])
    plain.save(tmp_path / "plain.ckpt")
    small._check(lib.llmc_model_load(small._handle, str(tmp_path / "plain.ckpt").encode()))
    small.forward(ids)
    assert small.logits.tobytes() == plain.logits.tobytes()


def test_load_makes_them_fp32_again(tmp_path):
    plain = make("fp32")
    plain.save(tmp_path / "plain.ckpt")
    small = pyllmc.Model(tmp_path / "plain.ckpt", B=2, training=False, weights="bf16")
    small._check(lib.llmc_model_load(small._handle, str(tmp_path / "plain.ckpt").encode()))
    np.testing.assert_array_equal(small.params["qkvw"], plain.params["qkvw"])
