"""Modified files of optimized networks: rejected, or run without reading out of bounds."""

import contextlib
import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.compiler.optimize import Optimized, optimize
from svertka.errors import SvertkaError
from svertka.tensor_files import read_tensors_and_header, write_tensors


class Small(nn.Module):
    """Every kind of step, a chain, and operations of PyTorch with sizes that depend on the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.each, self.narrow = (
            nn.Conv2d(3, 48, 1),
            nn.Conv2d(48, 48, 3, 1, 1, groups=48),
            nn.Conv2d(48, 16, 1),
        )
        self.tiled, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(32 * 4, 5)

    def forward(self, x: Tensor) -> Any:
        y = self.narrow(self.each(self.wide(x)).relu())
        y = torch.cat([self.tiled(y) + y, F.max_pool2d(y, 3, 1, 1)], 1)
        mask = torch.arange(len(y))[:, None, None, None] > 100
        y = F.adaptive_avg_pool2d(y.masked_fill(mask, 0).softmax(1), 2)
        return {"scores": self.head(y.reshape(len(y), -1)), "parts": (y, len(y))}


NUMBERS = (0, -1, 1, 2, 7, 10**6, 10**12, 2**63, 10**30, True, None, "a", 1.5, [1], float("nan"), float("inf"))
TEXTS = (
    "",
    "relu.default",
    "as_strided.default",
    "zeros.default",
    "new_empty.default",
    "Convolution",
    "float64",
    "MEAN",
)
OTHERS: tuple[Any, ...] = ([], None, {}, 3, {"is": "Size", "each": 3, "more": -1}, {"is": "Value", "number": 2})


def paths(structure: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places in nested JSON."""
    if path:
        yield path
    if isinstance(structure, dict | list):
        for key in structure if isinstance(structure, dict) else range(len(structure)):
            yield from paths(structure[key], (*path, key))


def changed(header: Any, chance: random.Random) -> Any:
    """`header` with one to three of its parts other ones."""
    header = copy.deepcopy(header)
    for _ in range(chance.choice((1, 1, 2, 3))):
        *way, last = chance.choice(list(paths(header)))
        inner = header
        for key in way:
            inner = inner[key]
        part = inner[last]
        if isinstance(part, list) and part and chance.random() < 0.6:
            chance.choice((part.reverse, part.pop, lambda part=part: part.append(part[0])))()
        elif isinstance(part, int | float):
            inner[last] = chance.choice((*NUMBERS, part + 1, part - 1, part * 3))
        else:
            inner[last] = chance.choice(TEXTS if isinstance(part, str) else OTHERS)
    return header


def test_modified_headers_are_rejected_or_run(tmp_path: Path, large_count: Callable[[int, int], int]) -> None:
    path, x = tmp_path / "network.safetensors", torch.randn(2, 3, 8, 8)
    optimize(Small(), x).save(path)
    tensors, header = read_tensors_and_header(path)
    met = {"refused": 0, "run": 0}
    for seed in range(large_count(60, 5000)):
        write_tensors(path, tensors, changed(json.loads(json.dumps(header)), random.Random(seed)))
        try:
            loaded = Optimized.load(path)
        except SvertkaError:
            met["refused"] += 1
            continue
        for size in (2, 1, 5):
            with contextlib.suppress(SvertkaError):
                loaded(torch.randn(size, 3, 8, 8))
                met["run"] += 1
    assert met["refused"] > met["run"] > 0


@pytest.mark.parametrize("length", [0, 7, 8, 100, 1000, -1])
def test_truncated_files_are_rejected(tmp_path: Path, length: int) -> None:
    path = tmp_path / "network.safetensors"
    optimize(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)).save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(SvertkaError, match="is damaged"):
        Optimized.load(path)
