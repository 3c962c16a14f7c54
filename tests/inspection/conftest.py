import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from svertka.classifier import Classifier, Config
from svertka.data.preprocessing import Preprocess
from svertka.models.registry import find_model


@pytest.fixture(scope="session")
def exact_network() -> Callable[[str, int], nn.Module]:
    """Make a model by name and input size, in float64, with random batch-norm statistics and biases.

    In float64, rounding neither changes the maximum of a pooling window nor hides small differences.
    """

    @cache
    def make(name: str, size: int) -> nn.Module:
        torch.manual_seed(1)
        network = find_model(name).build(classes=10, size=size).double().eval()
        for key, values in network.state_dict().items():
            if key.endswith("running_var") or (key.endswith("weight") and values.ndim == 1):
                values.uniform_(0.5, 1.5)
            elif key.endswith(("bias", "running_mean")):
                values.normal_(0, 0.1)
        return network

    return make


@pytest.fixture
def assert_unchanged() -> Callable[[nn.Module], AbstractContextManager[None]]:
    """A context manager that asserts that its body leaves a network bit-for-bit unchanged, even after an exception."""

    @contextmanager
    def watched(network: nn.Module) -> Iterator[None]:
        before = _state(network)
        try:
            yield
        finally:
            after = _state(network)
            assert before.keys() == after.keys()
            for name, value in before.items():
                same = torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name]
                assert same, name

    return watched


def _state(network: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {"rng": torch.get_rng_state(), "grad enabled": torch.is_grad_enabled()}
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        found[name] = tensor.detach().clone()
        found[f"{name}'s"] = (id(tensor), tensor._version, tensor.grad, tensor.requires_grad, tensor._backward_hooks)
    for name, module in network.named_modules():
        found[f"{name}:"] = copy.copy({key: value for key, value in vars(module).items() if "_modules" not in key})
        found[f"{name} hooks"] = (
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            len(module._backward_hooks),
        )
    return found


@pytest.fixture
def captum() -> Iterator[Any]:
    """captum's `attr` module, without its warnings about hooks and gradients."""
    import captum.attr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield captum.attr


@pytest.fixture(scope="session")
def squeezenet_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved classifier: SqueezeNet with random weights for 96×96 pixels, with unit 3 of the first layer dead."""
    torch.manual_seed(1)
    preprocess = Preprocess(size=96, resize=96, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    config = Config(model="squeezenet1_1", names=("china", "flower"), preprocess=preprocess)
    network = config.build().eval()
    with torch.no_grad():
        network.get_submodule("features.0").get_parameter("weight")[3] = 0
        network.get_submodule("features.0").get_parameter("bias")[3] = -1
    folder = tmp_path_factory.mktemp("squeezenet_run")
    Classifier(network, config).save(folder)
    return folder
