"""pyllmc.nn.GPT computes with the parameters that its tree of modules has, or refuses: none is passed over."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from modules import assert_same, batch, grads, make, twin
from torch import nn

from pyllmc.base.errors import InvalidArgument
from pyllmc.mingpt.trainer import is_fused
from pyllmc.nn import AdamW


def put_norm(model) -> None:
    model.transformer.ln_f = norm = nn.LayerNorm(16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)


def put_block(model) -> None:
    model.transformer.h[1] = make().transformer.h[0]


def put_all(model) -> None:
    other = make()
    nn.init.normal_(other.transformer.wte.weight)
    model.transformer, model.lm_head = other.transformer, other.lm_head


@pytest.mark.parametrize("put", [put_norm, put_block, put_all])
@pytest.mark.parametrize("room", [{}, {"B": 3, "T": 9}])
def test_a_part_that_was_put_in_is_what_the_engine_computes_with(put, room):
    model, (x, y) = make(**room), batch()
    put(model)
    right = twin(model)
    loss, theirs = model(x, y)[1], right(x, y)[1]
    loss.backward()
    theirs.backward()
    assert abs(loss.item() - theirs.item()) < 1e-5
    assert_same(grads(model), grads(right))


@pytest.mark.parametrize(
    "put",
    [
        lambda model: setattr(model.transformer.h, "1", nn.Identity()),
        lambda model: setattr(model.transformer.h[0].mlp, "c_fc", nn.Linear(16, 3)),
        lambda model: setattr(model.transformer.h[0].mlp, "c_fc", nn.Linear(16, 64, bias=False)),
        lambda model: setattr(model.transformer.h[0].mlp, "c_fc", nn.Sequential(nn.Linear(16, 64))),
        lambda model: setattr(model, "lm_head", nn.Linear(16, 33, bias=False)),
        lambda model: setattr(model.lm_head, "weight", nn.Parameter(torch.zeros(33, 16))),
        lambda model: nn.utils.parametrizations.spectral_norm(model.lm_head),
    ],
)
@pytest.mark.parametrize("room", [{}, {"B": 3, "T": 9}])
def test_what_the_engine_cannot_compute_with_is_refused(put, room):
    """Also where nothing else makes it look for its parts, because there is room enough."""
    model = make(**room)
    model(*batch(1, 1))
    put(model)
    with pytest.raises(
        InvalidArgument,
        match="the engine computes|without a plain parameter transformer.h.0.mlp|does not fit",
    ):
        model(*batch())


def test_an_embedding_that_is_assigned_is_the_head_too():
    """As load_state_dict(assign=True) of a module around it does for each of the two."""
    model, (x, y) = make(), batch()
    outer = nn.Sequential(model)
    outer.load_state_dict({name: 2 * p for name, p in outer.state_dict().items()}, assign=True)
    assert isinstance(AdamW(model), AdamW)
    loss = model(x, y)[1]
    assert abs(loss.item() - twin(model)(x, y)[1].item()) < 1e-5
    assert model.lm_head.weight is model.transformer.wte.weight
    model.transformer.wte.weight = nn.Parameter(torch.zeros(33, 16))
    assert model(x)[0].abs().max() == 0


def test_layers_that_share_parameters_train_by_pytorch():
    model, (x, y) = make(), batch()
    right = twin(model)
    for net in (model, right):
        net.transformer.h[1] = net.transformer.h[0]
    assert not is_fused(model) and not isinstance(
        model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu"), AdamW
    )
    for net in (model, right):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            net(x, y)[1].backward()
            optimizer.step()
    assert_same(grads(model), grads(right))
    for call in (lambda: model.micro_step(x, y), lambda: model.clip_grad_norm_(1.0), model.update):
        with pytest.raises(InvalidArgument, match="layers share a parameter"):
            call()


def test_memory_is_freed_with_the_model():
    """Without the help of Python's collector of cycles."""
    model = make()
    model(*batch())[1].backward()
    engine = weakref.ref(model.engine)
    gc.disable()
    try:
        del model
        assert engine() is None
    finally:
        gc.enable()
