"""The suite says the same on every CPU. This is a part of `make paths`, which runs all of it."""

from __future__ import annotations

import os

import numpy as np
import paths
import pytest
import torch

from pyllmc.parity import yardstick

PART = [
    "tests/kernels/test_matmul.py::test_parity[generic-check_forward]",
    "tests/model/test_model_steps.py::test_ten_adamw_steps[generic-thirteen_layers]",
]


@pytest.mark.skipif("PYLLMC_TORCH" in os.environ, reason="PyTorch is another one already")
@pytest.mark.parametrize("path", ["lucky", "aten_default"])
def test_another_path_of_pytorch_changes_no_answer(path):
    ok, said = paths.passes(path, *PART)
    assert ok, said[-4000:]


def test_the_yardstick_is_the_plain_loop():
    a, b = np.random.default_rng(0).standard_normal((2, 3, 700), dtype=np.float32)
    want = np.zeros((3, 3), np.float32)
    for k in range(700):
        want += a[:, k, None] * b[None, :, k]
    with yardstick.plainly():
        got = torch.from_numpy(a) @ torch.from_numpy(b).T
    np.testing.assert_array_equal(got.numpy(), want)
