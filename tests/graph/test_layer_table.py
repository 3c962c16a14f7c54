"""The layer table: its sums against those of PyTorch's own counters, its width, and what it refuses."""

import shutil
from os import terminal_size

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from svertka import summary
from svertka.errors import UsageError
from svertka.graph.layer_table import layer_rows
from svertka.models.lenet import LeNet5
from svertka.models.squeezenet import SqueezeNet
from svertka.text_width import text_width


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
    return SqueezeNet().eval()


def test_the_sums_are_those_that_pytorch_counts(squeezenet: nn.Module) -> None:
    squeezenet.requires_grad_(False)
    next(squeezenet.parameters()).requires_grad_(True)
    table = summary(squeezenet, 96)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        squeezenet(torch.zeros(1, 3, 96, 96))
    assert table.size.multiply_adds == counter.get_total_flops() // 2
    assert table.size.parameters == sum(one.numel() for one in squeezenet.parameters())
    assert table.size.trainable == next(squeezenet.parameters()).numel()
    assert table.to_dict()["multiply_adds"] == table.size.multiply_adds
    assert repr(table).count("\n") == 0
    assert "LayerTable('SqueezeNet', 3×96×96" in repr(table)


@pytest.mark.parametrize("columns", [30, 60, 80, 160])
def test_no_line_is_wider_than_the_terminal(
    columns: int, squeezenet: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda fallback: terminal_size((columns, 24)))
    title, *lines, _, _ = str(summary(squeezenet, 64)).splitlines()
    assert title == "SqueezeNet on 3×64×64 pixels"
    assert max(map(text_width, lines)) <= columns
    assert lines[0].startswith("layer")
    assert any("multiply-adds" in line for line in lines) == (columns >= 80)


def test_channels_are_those_of_the_first_convolution_unless_given() -> None:
    assert summary(LeNet5(), 32).shape == (1, 1, 32, 32)
    assert summary(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), 4).shape == (1, 3, 4, 4)
    assert summary(nn.Conv2d(5, 2, 3), (8, 6)).trace.layers[0].shape == (1, 2, 6, 4)
    assert summary(nn.Conv2d(5, 2, 3), (5, 8, 6)).shape == (1, 5, 8, 6)


def test_sizes_are_those_of_one_image_where_tokens_come_before_images() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 32, 8, stride=8)
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
            self.head = nn.Linear(32, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens = self.stem(images).flatten(2).transpose(1, 2)
            return self.head((tokens + self.attention(tokens, tokens, tokens)[0]).mean(1))

    rows = [row for row in layer_rows(summary(Attending(), (1, 32, 32)).trace) if "attention" in row[0]]
    assert [row[2] for row in rows] == ["16×32"]


def test_sizes_are_those_of_one_image_where_steps_or_windows_come_before_images() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.LSTM(3, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.steps(images.mean(2).permute(2, 0, 1))[0]

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 16))

    for network, name, expected in ((Recurrent(), "steps", "12×4"), (Windows(), "head", "6×3×5")):
        rows = layer_rows(summary(network, (3, 8, 12)).trace)
        assert [row[2] for row in rows if row[0] == name] == [expected]


def test_what_inference_does_not_use_is_said() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3))
    network.auxiliary = nn.Linear(10, 10)
    network.forward = lambda x: network[0](x)
    assert str(summary(network, 8)).splitlines()[-1] == "110 parameters are not used in inference."


def test_a_notebook_shows_the_same_table_as_html() -> None:
    html = summary(LeNet5(), 32)._repr_html_()
    assert html.count("<tr>") == 20  # header, 14 layers, 4 kinds, total
    assert "60,000" in html
    assert "text-align:right" in html


@pytest.mark.parametrize("size", [0, -3, True, (), (1,), (8, True), (2, 1, 32, 32), (1, 2, 3, 4, 5)])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(UsageError, match="must be the side of the image in pixels"):
        summary(LeNet5(), size)


def test_a_network_for_other_channels_is_refused_with_a_sentence() -> None:
    with pytest.raises(UsageError, match="LeNet5 cannot be traced with an input of 1×3×32×32"):
        summary(LeNet5(), (3, 32, 32))
