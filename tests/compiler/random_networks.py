"""Random networks, as data, and what becomes of them when they are optimized; one process tries many.

    python tests/compiler/random_networks.py 0 2000     # the networks of these seeds, in this process

prints what becomes of each as a line of JSON, and fails if one is computed wrongly; a crash ends the process, and the
last line names the seed. `test_random_networks.py` runs the same in processes that may
crash, and makes what it finds small.
"""

import copy
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.compiler import convolution_chain_tiling
from svertka.compiler.accuracy_check import max_relative_channel_error
from svertka.compiler.activation_ranges import observe_activations
from svertka.compiler.calibration_batches import CalibrationBatches
from svertka.compiler.capture_at_several_batch_sizes import capture_graph
from svertka.compiler.fusion import fuse
from svertka.compiler.ir import FusedConvolution
from svertka.compiler.mixed_precision import apply_layer_precisions
from svertka.compiler.optimize import Optimized, optimize
from svertka.compiler.output_structure import iter_output_tensors
from svertka.compiler.packing import separate_shared_weights
from svertka.compiler.quantization import unfuse_gates
from svertka.compiler.serialize import OptimizationRecord
from svertka.errors import UsageError

# Ours may be so many times as far from float64 as PyTorch's float32 is, or so far of a channel's largest value.
FACTOR, LEAST = 30, 3e-5
USELESS = 1e-3  # PyTorch's own error from which nothing can be told: a step has made much of little
OF_TIES = 0.02  # root mean square error in 8 bits: a tie that is rounded otherwise changes a number by a step
LARGEST = 1 << 14  # numbers in a value


@dataclass(frozen=True)
class Node:
    """An operation on values by their numbers, 0 is the input; what it is exactly follows from `seed` and the sizes."""

    kind: str
    inputs: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Design:
    """A network and how it is tried. `batch`: of the example; `batches`: that it is called with."""

    seed: int
    channels: int
    size: tuple[int, int]
    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    shape: str = "single"  # of the output
    batch: int = 2
    batches: tuple[int, ...] = (1, 3)
    layout: str = "contiguous"
    threads: int = 1
    precision: str = "fp32"
    strict: bool = False
    saved: bool = False
    other_size: tuple[int, int] | None = None

    @classmethod
    def read(cls, text: str) -> "Design":
        """A design from its JSON."""
        given = json.loads(text)
        nodes = tuple(Node(one["kind"], tuple(one["inputs"]), one["seed"]) for one in given.pop("nodes"))
        return cls(nodes=nodes, **{key: tuple(part) if isinstance(part, list) else part for key, part in given.items()})

    def __str__(self) -> str:
        return json.dumps(asdict(self))


def design(seed: int) -> Design:
    """A random one."""
    chance = random.Random(seed)
    kinds = list(KINDS)
    weights = [FREQUENT.get(kind, 1) for kind in kinds]
    nodes = []
    for number in range(chance.randint(1, 10)):
        recent = [max(0, number - int(chance.expovariate(0.7))) for _ in range(3)]
        nodes.append(Node(chance.choices(kinds, weights)[0], tuple(recent), chance.randrange(1 << 30)))
    others = chance.sample(range(len(nodes)), min(len(nodes), chance.choice((0, 0, 1, 2))))
    return Design(
        seed,
        chance.choice((1, 2, 3, 3, 4, 8, 16, 20)),
        (chance.randint(3, 13), chance.randint(3, 13)),
        tuple(nodes),
        (len(nodes), *others),
        chance.choice(("single", "tuple", "dict", "nested")),
        chance.choice((1, 2, 2, 3, 4)),
        tuple(chance.sample(range(10), 2)),
        chance.choice(("contiguous", "contiguous", "channels-last", "strided", "expanded")),
        chance.choice((1, 1, 2, 3)),
        chance.choice(("fp32",) * 8 + ("int8", "bf16", "mixed")),
        chance.random() < 0.2,
        chance.random() < 0.3,
        (chance.randint(3, 13), chance.randint(3, 13)) if chance.random() < 0.3 else None,
    )


class Step(nn.Module):
    """A function of tensors, as a module, with the parameters and buffers that it needs.

    `jumps`: a rounding error can change a result by any amount, so that results in bfloat16 tell nothing.
    """

    jumps = False

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *values: Tensor) -> Any:
        return self.function(self, *values)


Maker = Callable[[random.Random, list[Tensor], list[nn.Module]], nn.Module | None]
KINDS: dict[str, Maker] = {}
FREQUENT = {"convolution": 12, "shared": 4, "activation": 6, "add": 5, "cat": 4, "norm": 3, "pool": 4, "linear": 3,
            "view": 4, "attention": 3, "depthwise": 3, "gate": 2}  # fmt: skip


def kind(maker: Maker) -> Maker:
    KINDS[maker.__name__] = maker
    return maker


def of_rank(rank: int) -> Callable[[Maker], Maker]:
    """For makers that need a first value of this rank."""

    def limited(maker: Maker) -> Maker:
        def made(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module | None:
            return maker(chance, values, before) if values[0].dim() == rank else None

        KINDS[maker.__name__] = made
        return made

    return limited


@of_rank(4)
def convolution(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module:
    ins = values[0].shape[1]
    groups = chance.choice([one for one in (1, 1, 1, 2, ins) if ins % one == 0])
    outs = chance.choice((1, 2, 5, 8, 16, 17, 32)) * groups if groups < 8 else groups
    kernel = chance.choice((1, 1, 3, 3, 3, 5, (1, 3), (2, 2), (5, 1), 7))
    padding: Any = chance.choice((0, 1, 1, 2, (0, 1), "same", "valid"))
    stride = 1 if padding == "same" else chance.choice((1, 1, 1, 2, (1, 2)))
    mode = chance.choice(("zeros",) * 6 + ("reflect", "circular", "replicate"))
    settings = kernel, stride, padding, chance.choice((1, 1, 1, 2)), groups, chance.random() < 0.7
    return nn.Conv2d(ins, outs, *settings, padding_mode=mode)


@of_rank(4)
def depthwise(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module:
    ins, taps = values[0].shape[1], chance.choice((3, 3, 5, 7))
    return nn.Conv2d(ins, ins * chance.choice((1, 1, 2)), taps, chance.choice((1, 2)), taps // 2, groups=ins)


@of_rank(4)
def transposed(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module:
    return nn.ConvTranspose2d(values[0].shape[1], chance.choice((3, 8)), chance.choice((2, 3)), chance.choice((1, 2)))


@of_rank(4)
def shared(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module | None:
    """A weight that is used already, in another way or the same."""
    found = [
        one for layer in before for one in layer.modules()
        if isinstance(one, nn.Conv2d) and one.in_channels == values[0].shape[1] and one.padding_mode == "zeros"
    ]  # fmt: skip
    if not found:
        return None
    layer = chance.choice(found)
    if chance.random() < 0.4:
        return layer
    stride, padding, dilation = chance.choice((1, 2)), chance.choice((0, 1, 3)), chance.choice((1, 2))
    return Step(
        lambda step, x: F.conv2d(x, step.layer.weight, None, stride, padding, dilation, layer.groups), layer=layer
    )


@of_rank(4)
def pool(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module:
    taps, stride = chance.choice((2, 3, (1, 2))), chance.choice((None, 1, 2))
    padding, ceil = (0 if taps != 3 else chance.choice((0, 1))), chance.random() < 0.3
    return chance.choice(
        [
            nn.MaxPool2d(taps, stride, padding, ceil_mode=ceil),
            nn.AvgPool2d(taps, stride, padding, ceil, chance.random() < 0.5),
            nn.AdaptiveAvgPool2d(chance.choice((1, 2, (1, None), 3))),
            nn.AdaptiveMaxPool2d(chance.choice((1, 2))),
            nn.LPPool2d(2, 2, ceil_mode=ceil),
            nn.MaxPool2d(2, 1, dilation=2),
        ]
    )


@of_rank(4)
def norm(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module:
    channels = values[0].shape[1]
    made = chance.choice(
        [
            nn.BatchNorm2d(channels),
            nn.BatchNorm2d(channels),
            nn.BatchNorm2d(channels, affine=False),
            nn.GroupNorm(1, channels),
            nn.LocalResponseNorm(3),
            nn.LayerNorm(values[0].shape[3]),
            Step(lambda step, x: step.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), inner=nn.LayerNorm(channels)),
            Step(lambda _, x: F.normalize(x, dim=1)),
        ]
    )
    if isinstance(made, nn.BatchNorm2d):
        made.running_mean.uniform_(-0.5, 0.5)
        made.running_var.uniform_(0.5, 2)
    return made


@kind
def activation(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module:
    inplace = chance.random() < 0.15
    channels = values[0].shape[1] if values[0].dim() > 1 else 1
    return chance.choice(
        [
            nn.ReLU(inplace), nn.ReLU(), nn.ReLU6(inplace), nn.Hardtanh(-0.3, 0.9), nn.Hardswish(), nn.SiLU(),
            nn.GELU(), nn.LeakyReLU(0.1), nn.ELU(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.Hardsigmoid(), nn.Mish(),
            nn.PReLU(channels), nn.Softmax(-1), nn.RReLU(), nn.Dropout(0.4), nn.Identity(), nn.Softsign(),
            Step(lambda _, x: x.clamp(min=-0.2)), Step(lambda _, x: x.clamp(max=0.4)),
            Step(lambda _, x: x.clamp(0.3, 0.1)),
            Step(lambda _, x: x.clamp_min(0)), Step(lambda _, x: x.abs().sqrt()), Step(lambda _, x: x.exp().log1p()),
        ]
    )  # fmt: skip


@kind
def add(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module | None:
    if values[0].shape == values[1].shape:
        return chance.choice(
            [
                Step(lambda _, x, y, *__: x + y),
                Step(lambda _, x, y, *__: y + x),
                Step(lambda _, x, y, *__: (x + y).relu()),
                Step(lambda _, x, y, *__: x - y),
                Step(lambda _, x, y, *__: x * y),
                Step(lambda _, x, y, *__: torch.add(x, y, alpha=0.5)),
                Step(lambda _, x, y, *__: torch.maximum(x, y)),
                Step(lambda _, x, y, *__: torch.where(x > y, x, y)),
                Step(lambda _, x, y, *__: torch.stack([x, y]).mean(0)),
            ]
        )
    return chance.choice(
        [
            Step(lambda _, x, *__: x + x),
            Step(lambda _, x, *__: 0.7 * x),
            Step(lambda _, x, *__: 1 - x),
            Step(lambda _, x, *__: x / 3 + 1),
            Step(lambda _, x, *__: x.add_(0.5)),
            Step(lambda _, x, *__: x * x),
        ]
    )


@kind
def cat(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module:
    first = values[0]
    fitting = [n for n, one in enumerate(values) if one.dim() == first.dim() and first.dim() > 1
               and (one.shape[0], *one.shape[2:]) == (first.shape[0], *first.shape[2:])]  # fmt: skip
    chosen = [chance.choice(fitting or [0]) for _ in range(chance.randint(2, 3))]
    dim = 1 if first.dim() > 1 else 0
    if chance.random() < 0.2 and first.dim() == 4:
        dim, chosen = chance.choice((2, 3)), [0, 0]
    return Step(lambda _, *xs: torch.cat([xs[one] for one in chosen], dim))


@of_rank(4)
def gate(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module:
    """Squeeze and excitation, or a gate of another kind."""
    channels = values[0].shape[1]
    return chance.choice(
        [
            Step(lambda step, x, *_: x * step.fc(x.mean((2, 3), keepdim=True)).sigmoid(),
                 fc=nn.Conv2d(channels, channels, 1)),
            Step(lambda step, x, *_: x * step.fc(x.mean((2, 3))).sigmoid()[:, :, None, None],
                 fc=nn.Linear(channels, channels)),
            Step(lambda _, x, *__: x * x.amax(1, keepdim=True).sigmoid()),
            Step(lambda _, x, *__: x - x.mean((1, 2, 3), keepdim=True)),
            Step(lambda _, x, *__: x * x.std((2, 3), unbiased=False, keepdim=True)),
            Step(lambda step, x, *_: x * step.scale + step.shift,
                 scale=nn.Parameter(torch.rand(channels, 1, 1)), shift=torch.rand(channels, 1, 1)),
        ]
    )  # fmt: skip


@of_rank(4)
def view(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module:
    """Another look at maps, or a part of them."""
    channels, height, width = values[0].shape[1:]
    half = max(1, channels // 2)
    halves = channels % 2 == 0
    return chance.choice(
        [
            Step(lambda _, x: x.flatten(2)),
            Step(lambda _, x: x.flatten(2).transpose(1, 2)),
            Step(lambda _, x: x.flatten(1)),
            Step(lambda _, x: x.view(x.shape[0], -1, x.shape[3]) if x.is_contiguous() else x.flatten(1, 2)),
            Step(lambda _, x: x.permute(0, 1, 3, 2)),
            Step(lambda _, x: x.permute(0, 2, 3, 1)),
            Step(lambda _, x: x.transpose(1, 3).contiguous()),
            Step(lambda _, x: x[:, :half]),
            Step(lambda _, x: x[:, ::2]),
            Step(lambda _, x: x[:, :, 1:, :-1] if min(x.shape[2:]) > 1 else x),
            Step(lambda _, x: x.flip(2)),
            Step(lambda _, x: x.roll((1, 2), (2, 3))),
            Step(lambda _, x: x.narrow(2, 0, max(1, height // 2))),
            Step(lambda _, x: x.split(half, 1)[-1]),
            Step(lambda _, x: torch.cat(x.chunk(2, 1)[::-1], 1)),
            Step(lambda _, x: x.unflatten(1, (2, half)).transpose(1, 2).flatten(1, 2) if halves else x),
            Step(lambda _, x: x.reshape(-1, 1, height, width).relu().reshape(x.shape[0], channels, height, width)),
            Step(lambda _, x: x.reshape(x.shape[0] * channels, height * width).reshape(x.shape[0], -1, height, width)),
            Step(lambda _, x: x.unbind(1)[0][:, None].expand(-1, channels, -1, -1)),
            Step(lambda _, x: torch.einsum("nchw->nhcw", x)),
            Step(lambda _, x: x.unsqueeze(2).squeeze(2)),
            Step(lambda _, x: x.movedim(1, -1).movedim(-1, 1)),
            Step(lambda _, x: F.layer_norm(x, x.shape[3:])),
            Step(lambda _, x: F.layer_norm(x.transpose(2, 3), x.shape[2:3]) + x.transpose(2, 3).relu()),
        ]
    )


@of_rank(4)
def resize(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module:
    channels = values[0].shape[1]
    width = [chance.randint(0, 2) for _ in range(4)]
    return chance.choice(
        [
            nn.Upsample(scale_factor=2),
            nn.Upsample(size=(7, 5), mode="bilinear"),
            nn.Upsample(scale_factor=1.5, mode="bicubic"),
            nn.PixelShuffle(2) if channels % 4 == 0 else nn.Identity(),
            nn.PixelUnshuffle(2),
            nn.ChannelShuffle(2) if channels % 2 == 0 else nn.Identity(),
            nn.ZeroPad2d(width),
            nn.ConstantPad2d(width, 0.5),
            nn.ConstantPad2d(1, -float("inf")) if chance.random() < 0.2 else nn.ReplicationPad2d(width),
            nn.ReflectionPad2d(1),
            Step(lambda _, x: F.pad(x, (-1, 0, 1, 0)) if x.shape[3] > 1 else x),
            Step(lambda _, x: F.unfold(x, 2)),
        ]
    )


@kind
def reduce(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module | None:
    if values[0].dim() < 3:
        return None
    dim = chance.choice(range(1, values[0].dim()))
    keep = chance.random() < 0.5
    return chance.choice(
        [
            Step(lambda _, x: x.mean(dim, keepdim=keep)),
            Step(lambda _, x: x.sum(dim, keepdim=keep) / 8),
            Step(lambda _, x: x.amax(dim, keepdim=keep)),
            Step(lambda _, x: x.max(dim, keepdim=keep)[0]),
            Step(lambda _, x: x.logsumexp(dim, keepdim=keep)),
            Step(lambda _, x: x.cumsum(dim)),
            Step(lambda _, x: x.mean(list(range(2, x.dim())))),
            Step(lambda _, x: x.norm(dim=dim, keepdim=keep)),
            Step(lambda _, x: x.sort(dim)[0]),
        ]
    )


@kind
def linear(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module | None:
    if values[0].dim() < 2:
        return None
    features, outs = values[0].shape[-1], chance.choice((1, 3, 8, 16, 33))
    if values[0].dim() == 4 and chance.random() < 0.4:
        return nn.Sequential(nn.Flatten(), nn.Linear(values[0][0].numel(), outs, bias=chance.random() < 0.7))
    if values[0].dim() == 3 and chance.random() < 0.3:
        return nn.Conv1d(values[0].shape[1], outs, 3, padding=1)
    if values[0].dim() == 2 and chance.random() < 0.3:
        return nn.BatchNorm1d(features)
    return nn.Linear(features, outs, bias=chance.random() < 0.7)


@kind
def attention(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module | None:
    """Over maps or sequences, written out or by PyTorch's function."""
    if values[0].dim() == 4:
        channels = values[0].shape[1]
        made = {name: nn.Conv2d(channels, channels, 1) for name in "qkv"}
        heads = 2 if channels % 2 == 0 else 1

        def over_maps(step: Any, x: Tensor, *_: Tensor) -> Tensor:
            q, k, v = (
                getattr(step, name)(x).reshape(x.shape[0] * heads, channels // heads, -1) for name in ("q", "k", "v")
            )
            weights = (q.transpose(1, 2) @ k / channels).softmax(-1)
            return (v @ weights.transpose(1, 2)).reshape(x.shape)

        return Step(over_maps, **made)
    if values[0].dim() != 3:
        return None
    width = values[0].shape[2]
    heads = 2 if width % 2 == 0 else 1
    choice = chance.randrange(4)
    if choice == 0:
        return Step(
            lambda step, x, *_: step.inner(x, x, x)[0], inner=nn.MultiheadAttention(width, heads, batch_first=True)
        )
    if choice == 1 and width % 2 == 0:
        return nn.TransformerEncoderLayer(width, heads, 16, batch_first=True)
    causal = chance.random() < 0.5

    def over_rows(step: Any, x: Tensor, *_: Tensor) -> Tensor:
        q, k, v = step.qkv(x).reshape(*x.shape[:2], 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        if choice == 2:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        else:
            mask = torch.ones(x.shape[1], x.shape[1], device=x.device).triu(1).bool()
            scores = q @ k.transpose(-2, -1) / width**0.5
            out = (scores.masked_fill(mask, -float("inf")) if causal else scores).softmax(-1) @ v
        return out.transpose(1, 2).reshape(x.shape)

    return Step(over_rows, qkv=nn.Linear(width, 3 * width))


@of_rank(3)
def sequence(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module:
    length, width = values[0].shape[1:]
    side = next((one for one in (4, 3, 2) if length % one == 0), 1)
    return chance.choice(
        [
            nn.LayerNorm(width),
            nn.Identity(),
            Step(lambda _, x: x.transpose(1, 2)),
            Step(lambda _, x: x.transpose(1, 2).unflatten(2, (side, -1))),
            Step(lambda _, x: x.unflatten(1, (side, -1)).permute(0, 3, 1, 2)),
            Step(lambda _, x: x[:, 0]),
            Step(lambda _, x: x.mean(1)),
            Step(lambda step, x: torch.cat([step.token.expand(x.shape[0], -1, -1), x], 1),
                 token=nn.Parameter(torch.rand(1, 1, width))),
            Step(lambda step, x: x + step.positions, positions=nn.Parameter(torch.rand(1, length, width))),
            Step(lambda _, x: torch.bmm(x, x.transpose(1, 2)) / width),
            Step(lambda _, x: torch.einsum("nlc,nmc->nlm", x, x) / width),
        ]
    )  # fmt: skip


@of_rank(2)
def rows(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module:
    width = values[0].shape[1]
    return chance.choice(
        [
            Step(lambda _, x: x[:, :, None, None]),
            Step(lambda _, x: x[:, None]),
            Step(lambda _, x: x.unflatten(1, (2, -1)) if width % 2 == 0 else x),
            Step(lambda _, x: x.log_softmax(1)),
            Step(lambda _, x: x.topk(1, 1)[0]),
            Step(lambda _, x: x @ x.T @ x / 50),
            Step(lambda _, x: F.glu(x, 1) if width % 2 == 0 else x),
        ]
    )


@kind
def made(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module:
    """With a tensor that is made on the way."""
    width = values[0].shape[-1] if values[0].dim() else 1
    return chance.choice(
        [
            Step(lambda _, x: x + torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype)),
            Step(lambda _, x: x + torch.arange(width, device=x.device) / width),
            Step(lambda _, x: x * torch.tensor([0.5], device=x.device)),
            Step(lambda _, x: x * x.new_tensor(0.25)),
            Step(lambda _, x: x.masked_fill(torch.arange(width, device=x.device) > width // 2, 0)),
            Step(lambda _, x: x @ torch.eye(width, device=x.device, dtype=x.dtype) if x.dim() > 1 else x),
            Step(lambda _, x: x + torch.zeros_like(x) + x.new_ones(x.shape)),
            Step(lambda _, x: x.masked_fill(x > 0.5, -float("inf")).exp(), jumps=True),
            Step(
                lambda _, x: (
                    torch.meshgrid(x.new_ones(2), torch.arange(width, device=x.device), indexing="ij")[1][0] + x
                )
            ),
        ]
    )


@kind
def batchwise(chance: random.Random, values: list[Tensor], before: list[nn.Module]) -> nn.Module:
    """With the batch, or its size, in what is computed."""
    by_image = chance.random() < 0.2
    return chance.choice(
        [
            Step(lambda _, x: x / (x.shape[0] + 1)),
            Step(lambda _, x: x - x.mean(0, keepdim=True)),
            Step(lambda _, x: x + torch.arange(x.shape[0], device=x.device).view(-1, *[1] * (x.dim() - 1)) / 10),
            Step(lambda _, x: x.reshape(1, -1, *x.shape[2:]).relu().reshape(x.shape) if x.dim() > 2 else x),
            Step(lambda _, x: x.flip(0)),
            Step(lambda _, x: torch.cat([x, x]).chunk(2)[0]),
            Step(lambda _, x: x.transpose(0, -1).contiguous().transpose(0, -1)),
            Step(lambda _, x: torch.stack([one * 2 for one in x]) if by_image else x.roll(1, 0)),
        ]
    )


class Network(nn.Module):
    """The network of a design; steps that do not fit the sizes that they meet do nothing."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.design = design
        torch.manual_seed(design.seed)
        self.steps = nn.ModuleList()
        values = [torch.randn(2, design.channels, *design.size)]
        with torch.no_grad():
            for node in design.nodes:
                torch.manual_seed(node.seed)
                step, result = self._fitting(node, values)
                self.steps.append(step)
                values.append(result)
        self.eval()

    def _fitting(self, node: Node, values: list[Tensor]) -> tuple[nn.Module, Tensor]:
        given = [values[number] for number in node.inputs]
        try:
            step = KINDS[node.kind](random.Random(node.seed), given, list(self.steps))
            if step is not None:
                step.eval()
                result = _called(step, [one.clone() for one in given])
                if isinstance(result, Tensor) and result.dim() and 0 < result.numel() <= LARGEST:
                    return step, result
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError):
            pass
        return nn.Identity(), given[0]

    def forward(self, x: Tensor) -> Any:
        """The outputs, in the design's shape."""
        values = [x]
        for node, step in zip(self.design.nodes, self.steps, strict=True):
            values.append(_called(step, [values[number] for number in node.inputs]))
        outputs = [values[number] for number in self.design.outputs]
        if self.design.shape == "single":
            return outputs[0]
        if self.design.shape == "dict":
            return {f"output {number}": one for number, one in enumerate(outputs)}
        return (
            (outputs[0], [outputs, {"count": len(x), "none": None}])
            if self.design.shape == "nested"
            else tuple(outputs)
        )


def _called(step: nn.Module, values: list[Tensor]) -> Any:
    try:
        several = step.function.__code__.co_argcount > 2 or step.function.__code__.co_flags & 4  # type: ignore[union-attr]
    except AttributeError:
        several = False
    return step(*values) if several else step(values[0])


def images(design: Design, count: int, size: tuple[int, int] | None = None) -> Tensor:
    """So many, in the design's memory layout; of its size if there is no other."""
    generator = torch.Generator().manual_seed(design.seed + 7 * count)
    height, width = size or design.size
    if design.layout == "expanded" and count:
        return torch.randn(1, design.channels, height, width, generator=generator).expand(count, -1, -1, -1)
    if design.layout == "strided":
        return torch.randn(count, design.channels, height, 2 * width, generator=generator)[..., ::2]
    x = torch.randn(count, design.channels, height, width, generator=generator)
    return x.contiguous(memory_format=torch.channels_last) if design.layout == "channels-last" else x


def tried(design: Design) -> tuple[str, str]:
    """What becomes of a design: "right", "refused", "useless" or "wrong", and why."""
    torch.set_num_threads(design.threads)
    network = Network(design)
    if design.precision != "fp32" and any(getattr(step, "jumps", False) for step in network.modules()):
        return "useless", "a step that jumps, in a lower precision"
    exact = copy.deepcopy(network).double()
    settings: Any = {"precision": design.precision, "strict": design.strict}
    if design.precision == "int8":
        settings["calibration"] = images(design, 100)
    others = [] if design.other_size is None or design.precision == "mixed" else [design.other_size]
    make = partial(mixed, design=design) if design.precision == "mixed" else partial(optimize, sizes=others, **settings)
    try:
        optimized = make(network, images(design, design.batch))
    except UsageError as error:
        if "computes something else" not in str(error):
            if others and str(error).startswith("sizes= has"):  # the network takes only the size that it is made for
                return tried(replace(design, other_size=None))
            return "refused", str(error)
        x = images(design, design.batch, design.other_size if str(error).startswith("sizes= has") else None)
        with torch.no_grad():
            pairs = list(
                zip(iter_output_tensors(network(x.clone())), iter_output_tensors(exact(x.double())), strict=True)
            )
        usual = max(max_relative_channel_error(a, b) for a, b in pairs)
        is_zero = any(b.numel() and not b.any() for _, b in pairs)  # any rounding is infinitely large beside it
        return ("useless" if usual > USELESS or is_zero else "wrong"), str(error)
    with torch.no_grad():
        for size, count in product((design.size, *others), (design.batch, *design.batches)):
            fault = _fault(design, network, exact, optimized, images(design, count, size))
            if fault:
                return ("useless" if fault == "useless" else "wrong"), f"{count} images of {size}: {fault}"
    return _saved(design, optimized)


def mixed(network: nn.Module, example: Tensor, design: Design) -> Optimized:
    """The network with a random precision for each of its weights, fp32 or int8."""
    fused = separate_shared_weights(fuse(capture_graph(network, tuple(example.shape))))
    weights = {step.result: step.weight for step in fused.steps if isinstance(step, FusedConvolution)}
    chance = random.Random(design.seed)
    chosen = {name: chance.choice(("fp32", "int8")) for name in sorted(set(weights.values()))}
    calibration = CalibrationBatches(images(design, 100), tuple(example.shape[1:]), fused.batch_size)
    with torch.no_grad():
        (observed,) = observe_activations([unfuse_gates(fused, weights)], calibration)
        made = apply_layer_precisions(fused, observed, {result: chosen[name] for result, name in weights.items()})
    info = OptimizationRecord(tuple(example.shape), "auto", "auto", strict=design.strict)
    return Optimized([(made, info, None)])


def _fault(design: Design, network: nn.Module, exact: nn.Module, optimized: Optimized, x: Tensor) -> str | None:
    """What is wrong with the results for `x`, if anything."""
    try:
        theirs = list(iter_output_tensors(network(x.clone())))
        truth = list(iter_output_tensors(exact(x.double())))
    except (RuntimeError, IndexError, ValueError):
        theirs = None
    try:
        ours = list(iter_output_tensors(optimized(x)))
    except UsageError:
        return None
    if theirs is None:
        return "it gives something where PyTorch refuses" if len(x) else None
    steps = truth
    if design.precision in ("int8", "mixed"):  # in float64, each result rounded to the numbers that can be stored
        compiled = next(one for one in optimized.compiled if one.fused.image_size == x.shape[2:])
        steps = list(iter_output_tensors(compiled.run_reference(x.double())))
    for a, b, c, d in zip(ours, theirs, truth, steps, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"it gives {tuple(a.shape)} {a.dtype} in place of {tuple(b.shape)} {b.dtype}"
        usual = max_relative_channel_error(b, c)
        if usual > USELESS:
            return "useless"
        if design.precision in ("int8", "mixed"):
            kept, finite = a.double(), d.isfinite()
            if not torch.equal(kept[~finite], d[~finite]):
                return "it is infinite elsewhere than the values from the same steps in float64"
            kept, d = kept[finite], d[finite]
            error = float((kept - d).square().mean().sqrt() / d.square().mean().sqrt().clamp(min=1e-30))
            if kept.numel() and a.is_floating_point() and not error <= OF_TIES:
                return f"off by {error:.1e} of the values from the same steps in float64"
            continue
        limit = max(FACTOR * usual, LEAST) if design.precision == "fp32" else 1.0
        if not (error := max_relative_channel_error(a, c)) <= limit:
            if not c.any():
                return "useless"
            return f"off by {error:.1e}, PyTorch by {usual:.1e}"
    return None


def _saved(design: Design, optimized: Optimized) -> tuple[str, str]:
    """Whether what is loaded gives the same numbers as what was saved."""
    if not design.saved:
        return "right", ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        try:
            optimized.save(path)
        except UsageError as error:
            return "right", f"not saved: {error}"
        loaded = Optimized.load(path)
    pairs: list[tuple[Tensor, Tensor]] = []
    for size in optimized.sizes:
        x = images(design, design.batch, size)
        pairs += zip(iter_output_tensors(optimized(x)), iter_output_tensors(loaded(x)), strict=True)
    same = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)
    return ("right", "") if same else ("wrong", "loaded, it gives other numbers")


def smaller(design: Design) -> Iterator[Design]:
    """Designs with a little less in them, those with much less first."""
    count = len(design.nodes)
    for number in reversed(range(count)):
        nodes = [one for one in design.nodes if one is not design.nodes[number]]
        instead = design.nodes[number].inputs[0]

        def moved(value: int, number: int = number, instead: int = instead) -> int:
            return instead if value == number + 1 else value - (value > number + 1)

        nodes = [replace(node, inputs=tuple(map(moved, node.inputs))) for node in nodes]
        yield replace(design, nodes=tuple(nodes), outputs=tuple(map(moved, design.outputs)))
    for number in range(len(design.outputs)):
        if len(design.outputs) > 1:
            yield replace(design, outputs=design.outputs[:number] + design.outputs[number + 1 :])
    for batch in design.batches:
        if len(design.batches) > 1:
            yield replace(design, batches=(batch,))
    plain = {"shape": "single", "layout": "contiguous", "threads": 1, "saved": False, "strict": False}
    for key, simple in (plain | {"other_size": None}).items():
        simpler: dict[str, Any] = {key: simple}
        if getattr(design, key) != simple:
            yield replace(design, **simpler)


def main() -> int:
    """Try designs: of the seeds given, first and last, or those that come in, a line each. How many are wrong."""
    wrong = 0
    convolution_chain_tiling.MIN_TILED_FLOATS = 0  # these networks have small maps only
    warnings.simplefilter("ignore")
    given = (str(design(seed)) for seed in range(*map(int, sys.argv[1:3]))) if len(sys.argv) > 2 else sys.stdin
    for line in given:
        one = Design.read(line)
        print(json.dumps({"seed": one.seed}), flush=True)
        try:
            what, why = tried(one)
        except Exception as error:
            what, why = "wrong", f"{type(error).__name__}: {error}"
        print(json.dumps({"seed": one.seed, "what": what, "why": why}), flush=True)
        wrong += what == "wrong"
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(), 1))
