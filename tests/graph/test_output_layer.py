import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svertka.compiler.optimize import optimize
from svertka.errors import UsageError
from svertka.graph.output_layer import count_classes, find_output_layer, resize_output_layer
from svertka.graph.summary import trace

SHAPE = (1, 3, 32, 32)


class WithForward(nn.Module):
    """A network whose forward is given."""

    def __init__(self, forward: Any, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def pooled(*head: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), *head)


HEADS = {
    "a linear layer": (pooled(nn.Flatten(), nn.Linear(8, 5)), "4"),
    "one of two linear layers": (pooled(nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5)), "6"),
    "a 1×1 convolution before pooling": (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "1",
    ),
    "a name that says otherwise": (
        WithForward(
            lambda self, x: self.embedding(self.classifier(x).mean((2, 3))),
            classifier=nn.Conv2d(3, 7, 3),
            embedding=nn.Linear(7, 5),
        ),
        "embedding",
    ),
    "a scale behind it": (
        WithForward(lambda self, x: self.fc(x.mean((2, 3))) * 2.0 + 1.0, fc=nn.Linear(3, 5)),
        "fc",
    ),
    "a product with a parameter": (WithForward(lambda self, x: x.mean((2, 3)) @ torch.ones(3, 5).to(x)), None),
    "two linear layers side by side": (
        WithForward(
            lambda self, x: self.a(x.mean((2, 3))) + self.b(x.amax((2, 3))), a=nn.Linear(3, 5), b=nn.Linear(3, 5)
        ),
        None,
    ),
    "batch norm of the scores": (pooled(nn.Flatten(), nn.Linear(8, 5), nn.BatchNorm1d(5)), None),
    "a 3×3 convolution": (nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), None),
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_is_found_by_what_is_computed(kind: str) -> None:
    network, path = HEADS[kind]
    assert find_output_layer(network, SHAPE) == path
    assert count_classes(network, SHAPE) == 5


@pytest.mark.parametrize("kind", [kind for kind, (_, path) in HEADS.items() if path is not None])
def test_a_resized_head_has_other_classes_and_the_same_features(kind: str) -> None:
    network, path = HEADS[kind]
    assert path is not None
    inputs: list[Tensor] = []
    for classes in (5, 9):
        changed = resize_output_layer(network, path, classes)
        hook = changed.get_submodule(path).register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        assert changed.eval()(torch.ones(2, 3, 32, 32)).shape == (2, classes)
        hook.remove()
    torch.testing.assert_close(inputs[0], inputs[1], rtol=0, atol=0)
    resize_output_layer(network, path, 5)


def test_a_network_that_is_its_own_head() -> None:
    assert isinstance(resize_output_layer(nn.Linear(4, 2), "", 3), nn.Linear)


UNUSABLE = {
    "feature maps": (nn.Conv2d(3, 8, 3), "returns a tensor of N×8×30×30, torch.float32; svertka needs class scores"),
    "a tuple": (WithForward(lambda _, x: (x.mean((2, 3)), x)), "returns a tuple; svertka needs class scores"),
    "integers": (WithForward(lambda _, x: x.mean((2, 3)).argmax(1)), "returns a tensor of N, torch.int64"),
    "one row": (WithForward(lambda _, x: x.mean((0, 2, 3))[None]), "returns a tensor of 1×3"),
    "a branch": (
        WithForward(lambda _, x: x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))),
        "depends on the values of its input",
    ),
    "another size": (nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), "cannot be traced with an input of 1×3×32×32"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_is_no_classifier_is_refused_in_one_sentence(kind: str) -> None:
    network, sentence = UNUSABLE[kind]
    with pytest.raises(UsageError, match=re.escape(sentence)) as caught:
        count_classes(network, SHAPE)
    assert "\n" not in str(caught.value)


def test_a_network_that_needs_another_input_is_refused() -> None:
    class Conditional(nn.Module):
        def forward(self, x: Tensor, text: Tensor, *, scale: float, depth: int = 3) -> Tensor:
            return x.mean((2, 3)) + text * scale

    with pytest.raises(UsageError, match=r"Conditional needs inputs other than images \(text, scale\); wrap it"):
        count_classes(Conditional(), SHAPE)
    with pytest.raises(UsageError, match=r" says: .*missing .*; it needs inputs other than images \(text, scale"):
        trace(Conditional(), SHAPE)
    with pytest.raises(UsageError, match=r"; it needs inputs other than images \(text, scale\); wrap .* images only$"):
        optimize(Conditional().eval(), torch.zeros(SHAPE))
