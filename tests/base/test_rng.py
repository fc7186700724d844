"""The generator against torch's: the same state after any calls, the same normal numbers; fresh weights."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ffi, lib

from pyllmc import GPTConfig, Model
from pyllmc.engine import _ffi

torch = pytest.importorskip("torch")

# vectorised PyTorch has another log, sin and cos than libm: one rounding in each of the three steps
TOLERANCE = 4e-7


class Both:
    """Our generator and torch's, which draw in step."""

    def __init__(self, seed: int) -> None:
        self.ours, self.torch = ffi.new("llmc_rng *"), torch.Generator().manual_seed(seed)
        lib.llmc_rng_seed(self.ours, seed)

    def normal(self, n: int, mean: float = 0, std: float = 1) -> None:
        x = np.empty(n, np.float32)
        lib.llmc_rng_normal(self.ours, ffi.cast("float *", x.ctypes.data), n, mean, std)
        reference = torch.empty(n).normal_(mean, std, generator=self.torch).numpy()
        np.testing.assert_allclose(x, reference, rtol=TOLERANCE, atol=TOLERANCE * std, err_msg=f"n={n}")

    def same_state(self) -> None:
        """The next 700 words, which cross a refill, agree exactly."""
        ours = np.array([lib.llmc_rng_uint32(self.ours) for _ in range(700)], np.uint32)
        reference = torch.rand(700, generator=self.torch).numpy()  # the low 24 bits of one word each
        assert (ours % 2**24 == reference * 2**24).all()


@pytest.mark.parametrize("seed", [0, 42, 1337, 2**32 - 1, 2**32 + 5, 2**63 - 1])
def test_words(seed):
    Both(seed).same_state()


@pytest.mark.parametrize("n", [*range(1, 41), 1000, 1007, 624 * 4, 768 * 768, 200_003])
def test_normal(n):
    both = Both(n)
    both.normal(n)
    both.same_state()


def test_mixed_sizes():
    """A small fill leaves half a pair for the next small one, across large ones between them."""
    both = Both(7)
    for n in [3, 16, 1, 5, 17, 2, 100, 15, 1, 0, 31, 7]:
        both.normal(n, mean=0.5, std=0.02)
    both.same_state()


def test_independent_of_threads_and_repeatable():
    a, b = np.empty((2, 100_000), np.float32)
    for x in (a, b):
        rng = ffi.new("llmc_rng *")
        lib.llmc_rng_seed(rng, 1)
        lib.llmc_rng_normal(rng, ffi.cast("float *", x.ctypes.data), x.size, 0, 1)
    assert (a == b).all()
    assert abs(a.mean()) < 0.01
    assert abs(a.std() - 1) < 0.01


def test_coins_are_uniform():
    state = ffi.new("uint64_t *", 3)
    coins = np.array([lib.llmc_coin(state) for _ in range(20_000)])
    assert coins.min() >= 0
    assert coins.max() < 1
    assert (abs(np.histogram(coins, 20, (0, 1))[0] - 1000) < 150).all()


def reference_weights(config: GPTConfig, names: list[str], shapes: dict, seed: int) -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name in names:
        x = torch.zeros(shapes[name])
        if x.ndim == 2:
            x.normal_(
                0, 0.02 / (2 * config.n_layer) ** 0.5 if "c_proj" in name else 0.02, generator=generator
            )
        elif name.endswith("weight"):
            x.fill_(1)
        weights[name] = x.numpy()
    return weights


@pytest.mark.parametrize("V", [7, 65, 128])
def test_model_init(V):
    """Tensors are drawn one after the other, layer after layer, and only the V real rows; the padding is zero."""
    config = GPTConfig(vocab_size=V, max_seq_len=9, n_layer=3, n_head=1, n_embd=5)
    model = Model(config, B=1, T=4, seed=11, init_std=0.02)
    shapes = {name: model.params[name].shape for name in model.params}
    reference = reference_weights(config, list(model.params), shapes, 11)
    for name, expected in reference.items():
        np.testing.assert_allclose(model.params[name], expected, rtol=TOLERANCE, atol=1e-8, err_msg=name)
    block = ffi.cast("float *", lib.llmc_model_block(model._handle, lib.LLMC_PARAMS))
    padded = np.frombuffer(ffi.buffer(block, 128 * 5 * 4), np.float32).reshape(128, 5)
    assert (padded[V:] == 0).all()
    assert (padded[:V] != 0).any()
    _ffi.check(lib, lib.llmc_model_init(model._handle, 12, 0))
    assert abs(model.params["transformer.wpe.weight"] - reference["transformer.wpe.weight"]).max() > 1e-3, (
        "another seed, other weights"
    )
