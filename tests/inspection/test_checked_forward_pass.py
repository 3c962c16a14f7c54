"""Every function of the package on many kinds of networks and images: correct results or a one-line error."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svertka import inspection
from svertka.errors import UsageError

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(5))


def plain(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(6)
    rectify = nn.ReLU(inplace=True)  # one for both
    maps = nn.Conv2d(3, 5, 3), rectify, nn.Conv2d(5, 5, 3), rectify
    return nn.Sequential(*maps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, classes)).eval()


class Around(nn.Module):
    """Run `plain` inside a custom `forward`."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.run = plain(), run

    def forward(self, images: Tensor) -> Any:
        return self.run(self.inner, images)


def halfway(network: Any, images: Tensor) -> Any:
    with torch.no_grad():
        maps = network[:3](images)
    return network[3:](maps)


FUNCTIONS: dict[str, Callable[[nn.Module, Any], Tensor]] = {
    "occlusion": lambda network, images: inspection.occlusion(network, images, 1, 5, 4),
    "grad_cam": lambda network, images: inspection.grad_cam(network, images, 1),
    "guided_backpropagation": lambda network, images: inspection.guided_backpropagation(network, images, 1),
    "project": lambda network, images: inspection.project(network, images, layer_of(network), 2),
    "outputs": lambda network, images: inspection.layer_outputs(network, images, [layer_of(network)])[
        layer_of(network)
    ],
    "top_patches": lambda network, images: torch.from_numpy(
        inspection.top_patches(network, images, layer_of(network), count=1)[layer_of(network)].values
    ).nan_to_num(),
    "first_layer": lambda network, _: torch.from_numpy(inspection.get_first_layer_filters(network).weights),
}


def layer_of(network: Any) -> str:
    """Return the name of the second convolution."""
    names = [layer.name for layer in inspection.list_layers(network, (1, 3, 12, 12)) if layer.kind == "Conv2d"]
    return names[1]


KINDS: dict[str, tuple[Callable[[], nn.Module], Tensor, float]] = {
    "float64": (lambda: plain().double(), IMAGES, 1e-5),
    "float64 images": (plain, IMAGES.double(), 1e-5),
    "float16": (lambda: plain().half(), IMAGES, 0.03),
    "bfloat16": (lambda: plain().bfloat16(), IMAGES, 0.1),
    "float16 images": (plain, IMAGES.half(), 0.01),
    "no_grad": (lambda: Around(torch.no_grad()(lambda network, images: network(images))), IMAGES, 1e-6),
    "set_grad_enabled": (lambda: Around(torch.set_grad_enabled(False)(lambda one, images: one(images))), IMAGES, 1e-6),
    "no_grad for half of it": (lambda: Around(halfway), IMAGES, 1e-6),
    "frozen": (lambda: plain().requires_grad_(False), IMAGES, 1e-6),
    "in training": (lambda: plain().train(), IMAGES, 1e-6),
    "not contiguous": (plain, IMAGES.transpose(2, 3).contiguous().transpose(2, 3), 1e-6),
    "wants gradients": (plain, IMAGES.clone().requires_grad_(), 1e-6),
    "many": (plain, IMAGES, 1e-6),
}


@pytest.fixture(autouse=True, scope="module")
def _no_gradients_are_left_off() -> Any:
    torch.set_grad_enabled(True)
    yield
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_results_match_the_plain_network(kind: str, function: str) -> None:
    make, images, tolerance = KINDS[kind]
    torch.set_grad_enabled(True)  # a decorator of PyTorch's changes it where it is made
    network = make()
    torch.set_grad_enabled(True)
    wanted = FUNCTIONS[function](plain(), IMAGES).detach().double()
    found = FUNCTIONS[function](network, images).detach().double()
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_uint8_images_match_their_floating_point_values(function: str) -> None:
    network = Around(lambda inner, images: inner(images.float() / 32 - 4))
    numbers = torch.arange(864, dtype=torch.uint8).view(2, 3, 12, 12)
    wanted = FUNCTIONS[function](network, numbers.float())
    assert torch.allclose(FUNCTIONS[function](network, numbers), wanted, atol=1e-6)


@pytest.mark.parametrize("function", [name for name in FUNCTIONS if name != "first_layer"])
def test_networks_that_treat_uint8_differently_are_rejected(function: str) -> None:
    network = Around(lambda inner, images: inner(images.float() / 255 if images.dtype == torch.uint8 else images))
    numbers = torch.arange(864, dtype=torch.uint8).view(2, 3, 12, 12)
    if function in ("occlusion", "outputs", "top_patches"):  # without gradients they are used as they are
        assert torch.allclose(
            FUNCTIONS[function](network, numbers), FUNCTIONS[function](network, numbers / 255), atol=1e-6
        )
        return
    with pytest.raises(
        UsageError, match=r"Around gives different outputs for torch.uint8 and for the same numbers in floating point"
    ):
        FUNCTIONS[function](network, numbers)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_compiled_network_runs_eagerly(function: str) -> None:
    wanted = FUNCTIONS[function](plain(), IMAGES)
    whole = torch.compile(plain(), backend="eager")
    inside = plain()
    inside[2] = torch.compile(inside[2], backend="eager")  # type: ignore[assignment]
    in_place = plain()
    in_place.compile(backend="eager")
    for network in (whole, in_place, *([inside] if function not in ("project", "outputs", "top_patches") else [])):
        assert torch.equal(FUNCTIONS[function](network, IMAGES), wanted)


@pytest.mark.parametrize("count", [0, 1, 33])
def test_any_number_of_images(count: int) -> None:
    many = IMAGES[:1].repeat(count, 1, 1, 1)
    for name in ("occlusion", "grad_cam", "guided_backpropagation", "project", "outputs"):
        wanted = FUNCTIONS[name](plain(), IMAGES[:1])
        found = FUNCTIONS[name](plain(), many)
        assert found.shape == (count, *wanted.shape[1:])
        assert torch.allclose(found, wanted.expand_as(found), atol=1e-6)


WRONG: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "no module": (lambda: len, IMAGES, "network=.* must be of type Module"),
    "TorchScript": (lambda: torch.jit.trace(plain(), IMAGES), IMAGES, "layers of a TorchScript network cannot"),
    "an array": (plain, IMAGES.numpy(), "(images|data)=.* must be of type Tensor"),
    "a list": (plain, [[1.0]], "(images|data)=.* must be of type Tensor"),
    "no axes": (plain, torch.tensor(1.0), "four axes"),
    "two axes": (plain, torch.ones(3, 4), "four axes"),
    "five axes": (plain, torch.ones(1, 1, 3, 12, 12), "four axes"),
    "complex numbers": (plain, IMAGES.to(torch.complex64), "images of torch.complex64 are not supported"),
    "yes and no": (plain, IMAGES > 0, "images of torch.bool are not supported"),
    "other channels": (plain, torch.ones(1, 2, 12, 12), "Sequential cannot (run|be traced)"),
    "too small": (plain, torch.ones(1, 3, 2, 2), "Sequential cannot (run|be traced)|does not fit"),
    "bytes that it does not take": (plain, IMAGES.byte(), "Sequential cannot run on images .* of torch.uint8"),
    "a network that fails": (lambda: Around(lambda *_: 1 / 0), IMAGES, "division by zero"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("function", [name for name in FUNCTIONS if name != "first_layer"])
@pytest.mark.parametrize("kind", WRONG)
def test_invalid_input_gives_a_one_line_error(kind: str, function: str) -> None:
    make, images, sentence = WRONG[kind]
    network = make()
    method = {
        "project": lambda network, images: inspection.project(network, images, "2", 2),
        "outputs": lambda network, images: inspection.layer_outputs(network, images, ["2"]),
        "top_patches": lambda network, images: inspection.top_patches(network, images, "2"),
    }.get(function, FUNCTIONS[function])
    with pytest.raises(UsageError, match=sentence) as refused:
        method(network, images)
    assert "\n" not in str(refused.value)


def behind_maps(network: Any, images: Tensor) -> Any:
    return network[2:](network[:2](images).detach())


def through_numpy(network: Any, images: Tensor) -> Any:
    scores = network(images)
    return scores if images.is_meta else torch.from_numpy(np.array(scores.tolist(), np.float32))


@pytest.mark.parametrize("function", ["grad_cam", "guided_backpropagation"])
@pytest.mark.parametrize("run", [torch.inference_mode()(lambda *asked: asked[0](asked[1])), through_numpy, behind_maps])
def test_cut_off_gradients_give_a_one_line_error(function: str, run: Callable[..., Any]) -> None:
    network = Around(run)
    if function == "grad_cam" and run is behind_maps:  # the last maps are behind it
        assert FUNCTIONS[function](network, IMAGES).max() > 0
        return
    with pytest.raises(UsageError, match="Around cuts off gradients between its input and its scores"):
        FUNCTIONS[function](network, IMAGES)
