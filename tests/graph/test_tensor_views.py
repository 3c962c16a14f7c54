"""Random writes into views of tensors, compared with PyTorch."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svertka.compiler.optimize import Optimized, optimize
from svertka.errors import UsageError

# Of tensors of any number of axes, the first of which is the batch.
VIEWS: tuple[Callable[[Tensor, random.Random], Any], ...] = (
    lambda x, _: x.flatten(1),
    lambda x, _: x.view(len(x), -1, 2),
    lambda x, _: x.unsqueeze(-1),
    lambda x, _: x.transpose(-1, -2),
    lambda x, _: x.transpose(0, 1),
    lambda x, _: x.permute(0, *range(x.dim() - 1, 0, -1)),
    lambda x, _: x.mT,
    lambda x, _: x[:, 1:],
    lambda x, _: x[..., ::2],
    lambda x, _: x[..., -3:-1],
    lambda x, _: x[:, -1],
    lambda x, _: x[..., 0],
    lambda x, _: x[:, None],
    lambda x, _: x.narrow(1, 1, x.shape[1] - 1),
    lambda x, _: x.diagonal(0, -2, -1),
    lambda x, chance: chance.choice(x.chunk(2, -1)),
    lambda x, chance: chance.choice(x.split(1, 1)),
    lambda x, chance: chance.choice(x.unbind(-1)),
    lambda x, _: x.tensor_split(2, 1)[0],
    lambda x, _: x.squeeze(),
    lambda x, _: x.detach(),
)
WRITES: tuple[Callable[[Tensor], Any], ...] = (
    lambda x: x.mul_(0.5),
    lambda x: x.relu_(),
    lambda x: x.fill_(0.25),
    lambda x: x.copy_(x.flip(-1) + 1),
    lambda x: x.add_(x.mean(-1, keepdim=True)),
    lambda x: x.__setitem__((slice(None), 0), 2.0),
    lambda x: x.__setitem__((..., slice(1, None)), x[..., :1] * 2),
)


class Written(nn.Module):
    """Takes views of maps, of what was taken, and writes into any of them; `seed` says which."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.conv, self.seed = nn.Conv2d(3, 6, 3, padding=1), seed

    def forward(self, x: Tensor) -> list[Tensor]:
        chance = random.Random(self.seed)
        tensors = [self.conv(x)] if chance.random() < 0.8 else [x, self.conv(x)]
        for _ in range(chance.randint(2, 8)):
            one = chance.choice(tensors[-4:])
            try:
                if chance.random() < 0.6:
                    tensors.append(chance.choice(VIEWS)(one, chance))
                else:
                    chance.choice(WRITES)(one)
            except (RuntimeError, IndexError):  # PyTorch says at once that it cannot
                continue
        return [one.clone() for one in tensors]


@pytest.mark.parametrize("group", [0, 1, *(pytest.param(group, marks=pytest.mark.large) for group in range(2, 50))])
def test_writes_into_views_reach_what_they_are_views_of(group: int) -> None:
    done = 0
    for seed in range(20 * group, 20 * group + 20):
        torch.manual_seed(seed)
        network, images = Written(seed).eval(), torch.randn(3, 3, 4, 4)
        try:
            optimized = optimize(network, images)
        except UsageError:
            continue
        done += 1
        for batch in (3, 2, 4):
            images = torch.randn(batch, 3, 4, 4)
            try:
                found = optimized(images.clone())
            except UsageError:  # it does something else for so many
                continue
            with torch.no_grad():
                torch.testing.assert_close(found, network(images.clone()), rtol=1e-4, atol=1e-5)
    assert done >= 16


class Boxes(nn.Module):
    """As detectors of objects write their centers and sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).sigmoid().permute(0, 2, 3, 1).contiguous()
        y[..., :2] = (y[..., :2] * 2 - 0.5) * 8
        y[..., 2:4] = (y[..., 2:4] * 2) ** 2
        return y


def test_saved_it_does_the_same(tmp_path: Any) -> None:
    network, images = Boxes().eval(), torch.randn(2, 3, 8, 8)
    optimize(network, images).save(tmp_path / "boxes.safetensors")
    with torch.no_grad():
        found = Optimized.load(tmp_path / "boxes.safetensors")(images)
        torch.testing.assert_close(found, network(images), rtol=1e-4, atol=1e-5)


class Rows(nn.Module):
    """Writes through windows that overlap, which are no part of which the rest is known."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y.unfold(3, 2, 1)[..., 0] = 1
        return y


def test_views_of_other_kinds_are_refused() -> None:
    with pytest.raises(UsageError, match="into a part or another view of a tensor that is read later"):
        optimize(Rows(), torch.randn(2, 3, 8, 8))


class Late(nn.Module):
    """A mask that is made once, and written into after the first run has used it."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.ones(1, 1, 8, 8)
            self.mask[..., 0] = 0.5
        return x * self.mask


def test_a_mask_made_once_keeps_what_was_written() -> None:
    network, images = Late().eval(), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(optimize(network, images)(images), network(images), rtol=0, atol=0)
