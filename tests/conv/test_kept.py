"""Packed weights are used while they are those of the parameter, and never after."""

import copy
import gc
import io
import pickle

import pytest
import torch
from torch import nn

from svertka.conv import kept, native, native_winograd
from svertka.conv.accelerate import accelerate
from svertka.geometry import ConvShape

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))

SHAPE = ConvShape.of((1, 128, 14, 14), (128, 128, 3, 3), padding=1)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Conv2d(128, 128, 3, padding=1, bias=False).to(memory_format=torch.channels_last)


def packed(layer):
    with torch.no_grad():
        return kept.packed(layer.weight, SHAPE)


def is_current(layer):
    """Whether what is kept, if anything, is what the weights are now; asked twice, so that they are kept after it."""
    first, second = packed(layer), packed(layer)
    expected = native_winograd.pack(layer.weight.detach())
    assert second is None or torch.equal(second, expected)
    return first is None or torch.equal(first, expected)


def test_weights_are_packed_when_they_are_met_again_and_then_kept(layer):
    assert packed(layer) is None
    first = packed(layer)
    assert torch.equal(first, native_winograd.pack(layer.weight.detach()))
    assert packed(layer) is first


@torch.no_grad()
def double(layer):
    layer.weight.mul_(2)


@torch.inference_mode()
def double_in_inference_mode(layer):
    layer.weight.mul_(2)


def double_behind_the_count(layer):
    layer.weight.data.mul_(2)


def double_in_numpy(layer):
    layer.weight.detach().numpy()[:] *= 2


def take_a_step(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 128, 14, 14)).sum().backward()
    optimizer.step()


def load(layer):
    layer.load_state_dict({"weight": torch.ones_like(layer.weight)})


def load_by_assignment(layer):
    layer.load_state_dict({"weight": torch.ones_like(layer.weight)}, assign=True)


def exchange_the_parameter(layer):
    layer.weight = nn.Parameter(layer.weight.detach() * 2)


def exchange_the_memory(layer):
    layer.weight.data = layer.weight.data * 2


def exchange_the_tensors(layer):
    torch.utils.swap_tensors(layer.weight, nn.Parameter(layer.weight.detach() * 2))


@pytest.mark.parametrize(
    "change",
    [
        double,
        double_in_inference_mode,
        double_behind_the_count,
        double_in_numpy,
        take_a_step,
        load,
        load_by_assignment,
        exchange_the_parameter,
        exchange_the_memory,
        exchange_the_tensors,
    ],
    ids=lambda change: change.__name__,
)
def test_no_change_of_the_weights_is_missed(layer, change):
    before = layer.weight.detach().clone()
    assert is_current(layer)
    change(layer)
    assert not torch.equal(layer.weight, before)
    assert is_current(layer)


def test_another_instruction_set_packs_anew(layer):
    sets = native.instruction_sets()
    assert is_current(layer)
    native.use(sets[-1])
    assert is_current(layer)
    native.use(sets[0])
    assert is_current(layer)


def test_nothing_is_kept_where_a_write_would_not_be_seen(layer):
    layer.weight = nn.Parameter(layer.weight.detach())
    layer.share_memory()  # other processes write into it
    assert packed(layer) is None
    assert packed(layer) is None
    with torch.inference_mode():
        unseen = nn.Conv2d(128, 128, 3)  # its weights are inference tensors, whose writes are not counted
    assert packed(unseen) is None
    assert packed(unseen) is None


def test_nothing_is_kept_where_it_does_not_pay(layer):
    many = ConvShape.of((16, 128, 14, 14), (128, 128, 3, 3), padding=1)
    few = nn.Parameter(torch.randn(64, 64, 3, 3))
    for weight, shape in (
        (layer.weight, many),
        (few, ConvShape.of((1, 64, 14, 14), few.shape)),
        (layer.weight * 2, SHAPE),
    ):
        for _ in range(3):
            assert kept.packed(weight, shape) is None


def test_what_is_kept_goes_with_the_parameter(layer):
    before = len(kept._kept)
    assert is_current(layer)
    assert len(kept._kept) == before + 1
    del layer.weight
    gc.collect()
    assert len(kept._kept) == before


def test_an_accelerated_layer_computes_with_them_and_is_saved_without(layer, monkeypatch):
    calls = []
    finished = native_winograd.finished
    monkeypatch.setattr(
        native_winograd, "finished", lambda *given, **named: calls.append(1) or finished(*given, **named)
    )
    monkeypatch.setattr("svertka.conv.choose.algorithm", lambda *_: native_winograd)
    x = torch.randn(SHAPE.input)
    expected = layer(x)
    size = len(pickle.dumps(layer))
    accelerate(layer)
    with torch.inference_mode():
        for _ in range(3):
            torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-4)
    assert len(calls) == 2
    assert len(pickle.dumps(layer)) < size + 1000
    assert torch.load(io.BytesIO(saved(layer)), weights_only=True).keys() == {"weight"}
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight.zero_()
        assert not twin(x).any()
        torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-4)
    layer(x).sum().backward()  # training does not use them
    assert len(calls) == 3


def saved(layer):
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    return file.getvalue()
