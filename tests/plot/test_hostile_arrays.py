"""Every figure of arrays is right, or refused with a sentence, whatever is given."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from svertka import plot
from svertka.errors import SvertkaError, UsageError

ARRAYS: dict[str, Any] = {
    "gradient": torch.rand(2, 3, 8, 8, requires_grad=True),
    "none": torch.rand(0, 3, 8, 8),
    "no pixels": torch.rand(2, 3, 0, 8),
    "no axes": torch.tensor(1.0),
    "one axis": torch.rand(8),
    "gray": torch.rand(2, 1, 8, 8),
    "two axes": torch.rand(8, 8),
    "four channels": torch.rand(2, 4, 8, 8),
    "five axes": torch.rand(1, 2, 3, 8, 8),
    "bool": torch.rand(2, 3, 8, 8) > 0.5,
    "float16": torch.rand(2, 3, 8, 8).half(),
    "bfloat16": torch.rand(2, 3, 8, 8).bfloat16(),
    "float64": torch.rand(2, 3, 8, 8).double(),
    "uint8": (255 * torch.rand(2, 3, 8, 8)).byte(),
    "int64": (255 * torch.rand(2, 3, 8, 8)).long(),
    "complex": torch.rand(2, 3, 8, 8) * 1j,
    "meta": torch.empty(2, 3, 8, 8, device="meta"),
    "sparse": torch.eye(8).to_sparse(),
    "nan": torch.full((2, 3, 8, 8), torch.nan),
    "gray nan": torch.full((2, 8, 8), torch.nan),
    "infinite": torch.full((2, 8, 8), torch.inf),
    "large": torch.full((2, 3, 8, 8), 1e38),
    "constant": torch.ones(2, 3, 8, 8),
    "array": np.random.default_rng(0).random((2, 8, 8, 3)),
    "array of float16": np.ones((2, 8, 8), np.float16),
    "objects": np.array([object(), None]),
    "text": "text",
    "texts": ["a", "b"],
    "ragged": [[1.0], [2.0, 3.0]],
    "list of tensors": [torch.tensor(1.0, requires_grad=True), torch.tensor(2.0)],
    "list of rows": [torch.rand(3), torch.rand(3)],
    "pair": (torch.tensor(1.0), 2.0),
    "number": 3,
    "nothing": None,
    "empty list": [],
    "empty tuple": (),
    "dictionary": {"a": [1.0]},
}


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


FIGURES: dict[str, Callable[[Any], Figure]] = {
    "images": plot.images,
    "signed images": lambda values: plot.images(values, signed=True),
    "curves": lambda values: plot.curves({"a": values}),
    "named curves": plot.curves,
    "curve with x": lambda values: plot.curves({"a": (values, values)}),
    "logarithmic curves": lambda values: plot.curves({"a": values}, log_x=True, log_y=True),
    "feature maps": lambda values: plot.feature_maps(make_network(), values, "0"),
    "top patches": lambda values: plot.top_patches(make_network(), values, "0"),
    "projections": lambda values: plot.projections(make_network(), values, "0"),
    "saliency": lambda values: plot.saliency(make_network(), values),
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", FIGURES)
def test_whatever_is_given_is_drawn_or_refused(name: str) -> None:
    drawn, sentences = 0, list[str]()
    for kind, values in ARRAYS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                figure = FIGURES[name](values)
            except SvertkaError as error:
                sentences.append(str(error))
                continue
            except Exception as error:
                raise AssertionError(f"{name} of {kind}: {type(error).__name__}: {error}") from error
            figure.draw_without_rendering()
        drawn += 1
    assert drawn
    assert not [one for one in sentences if "\n" in one or len(one) > 300]


def test_figures_have_the_values_that_are_given() -> None:
    figure = plot.curves({"a": torch.tensor([1.0, 3.0], requires_grad=True), "b": np.float16([2, 4])})
    assert [line.get_ydata().tolist() for line in figure.axes[0].get_lines()] == [[1, 3], [2, 4]]
    for values, expected in (
        (torch.tensor([[True, False]]), [[1, 0]]),
        (torch.tensor([[0.5, -2.0]]).bfloat16(), [[0.5, -2]]),
        (torch.tensor([[[300, 255, -1]]]), [[[255, 255, 0]]]),
        (torch.tensor([[[1.5, 0.5, -1.0]]], requires_grad=True), [[[1, 0.5, 0]]]),
    ):
        (shown,) = plot.images([values]).axes[0].get_images()
        assert np.asarray(shown.get_array()).tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"columns": 0}, "columns=0 must be at least 1"),
        ({"side": 0.0}, "side=0.0 must be 0.1 to 100 inches"),
        ({"titles": ["a", "b"]}, "2 titles for 1 images"),
    ],
)
def test_settings_that_are_too_small_are_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        plot.images([np.ones((4, 4))], **arguments)
