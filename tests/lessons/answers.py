"""Right answers to the exercises, computed without the checks, and wrong ones with a part of the reason."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.models.lenet import make_class_codes


def convolve(image: Tensor, kernel: Tensor) -> Tensor:
    rows, columns = kernel.shape
    result = torch.zeros(image.shape[0] - rows + 1, image.shape[1] - columns + 1)
    for i in range(result.shape[0]):
        for j in range(result.shape[1]):
            result[i, j] = (image[i : i + rows, j : j + columns] * kernel).sum()
    return result


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


MATRIX = [
    [1, 2, 0, 3, 4, 0, 0, 0, 0],
    [0, 1, 2, 0, 3, 4, 0, 0, 0],
    [0, 0, 0, 1, 2, 0, 3, 4, 0],
    [0, 0, 0, 0, 1, 2, 0, 3, 4],
]


def input_gradient(gradient: Tensor, kernel: Tensor, *, turned: bool = True) -> Tensor:
    rows, columns = kernel.shape
    around = F.pad(gradient, (columns - 1, columns - 1, rows - 1, rows - 1))
    return F.conv2d(around[None, None], (kernel.flip(0, 1) if turned else kernel)[None, None])[0, 0]


def square_gradient(gradient: Tensor, kernel: Tensor) -> Tensor:
    """Return the gradient of the input, with the padding of rows and columns mixed up."""
    rows, columns = kernel.shape
    around = F.pad(gradient, (rows - 1, rows - 1, columns - 1, columns - 1))
    return F.conv2d(around[None, None], kernel.flip(0, 1)[None, None])[0, 0]


def weight_gradient(padding: int) -> Tensor:
    weight = torch.zeros(1, 1, 3, 3, requires_grad=True)
    F.conv2d(torch.ones(1, 1, 5, 5), weight, padding=padding).sum().backward()
    assert weight.grad is not None
    return weight.grad[0, 0]


def even_kernels(stride: int) -> list[int]:
    found = []
    for size in range(3, 10):
        counts = F.conv_transpose1d(torch.ones(1, 1, 9), torch.ones(1, 1, size), stride=stride)[0, 0]
        if len(counts[size:-size].unique()) == 1:
            found.append(size)
    return found


def winograd(d: list[Any], g: list[Any]) -> list[Any]:
    half = 0.5 * (g[0] + g[2])
    products = (d[0] - d[2]) * g[0], (d[1] + d[2]) * (half + g[1] / 2), (d[2] - d[1]) * (half - g[1] / 2)
    return [sum(products), products[1] - products[2] - (d[1] - d[3]) * g[2]]


def twice_winograd(d: list[Any], g: list[Any]) -> list[Any]:
    return [winograd(d, g)[0], winograd(d, g)[1]]


def direct(d: list[Any], g: list[Any]) -> list[Any]:
    return [d[0] * g[0] + d[1] * g[1] + d[2] * g[2], d[1] * g[0] + d[2] * g[1] + d[3] * g[2]]


def tiles(image: Tensor, size: int) -> Tensor:
    height, width = image.shape
    return image.reshape(height // size, size, width // size, size).transpose(1, 2).flatten(2)


OVERLAPPING = [[0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0]]
DIFFERENT = int((make_class_codes(10)[3] != make_class_codes(10)[8]).sum())


def repair(scans: Any) -> Any:
    return np.array([255 - scan.T for scan in scans])


def momentum_step(weight: float, gradient: float, velocity: float, rate: float, momentum: float) -> tuple[float, float]:
    velocity = momentum * velocity + gradient
    return weight - rate * velocity, velocity


WHO = {"A": "shuffled labels", "B": "low rate", "C": "right", "D": "few images", "E": "high rate"}


def train_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, *, softmax: bool = False
) -> Tensor:
    scores = network(images)
    if softmax:
        scores = scores.softmax(1)
    loss = -scores.log_softmax(1)[range(len(labels)), labels].mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def accumulating_step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    F.cross_entropy(network(images), labels).backward()
    optimizer.step()


def faulty_step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    F.cross_entropy(network(images).softmax(1), labels).backward()
    optimizer.step()


def late_step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    F.cross_entropy(network(images), labels).backward()
    optimizer.zero_grad()
    optimizer.step()


def summed_step(
    loss: Any, network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> None:
    optimizer.zero_grad()
    loss(network(images), labels, reduction="sum").backward()
    optimizer.step()


def strongest(maps: Tensor, unit: int) -> tuple[int, int, int]:
    best = max((float(maps[n, unit, i, j]), n, i, j) for n, i, j in np.ndindex(len(maps), *maps.shape[2:]))
    return best[1:]


def seen_rows() -> list[int]:
    image = torch.zeros(1, 1, 64, 64, requires_grad=True)
    layers = nn.Sequential(nn.Conv2d(1, 1, 3, 2), nn.AvgPool2d(3, 2), nn.Conv2d(1, 1, 3, padding=1))
    for parameter in layers.parameters():
        nn.init.ones_(parameter)
    layers(image)[0, 0, 5].sum().backward()
    assert image.grad is not None
    rows = image.grad[0, 0].abs().sum(1).nonzero().flatten().tolist()
    return [rows[0], rows[-1]]


def nearest_mean(features: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    means = [features[labels == label].mean(0) for label in labels.unique()]
    return torch.stack([((queries - mean) ** 2).sum(1) for mean in means]).argmin(0)


def nearest_image(features: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    return labels[((queries[:, None] - features) ** 2).sum(2).argmin(1)]


def nearest_sum(features: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    sums = torch.zeros(3, features.shape[1], dtype=features.dtype).index_add(0, labels, features)
    return torch.cdist(queries, sums).argmin(1)


def freeze(network: nn.Sequential) -> None:
    network.eval()
    network.requires_grad_(False)
    network[-1].requires_grad_(True)


def freeze_gradients(network: nn.Sequential) -> None:
    network.train()
    network[:-1].requires_grad_(False)


def freeze_but_dropout(network: nn.Sequential) -> None:
    freeze(network)
    network[3].train()


def freeze_convolutions(network: nn.Sequential) -> None:
    network.eval()
    network[0].requires_grad_(False)


def as_convolution(linear: nn.Linear, channels: int, side: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, linear.out_features, side)
    convolution.load_state_dict({"weight": linear.weight.unflatten(1, (channels, side, side)), "bias": linear.bias})
    return convolution


def wrong_order(linear: nn.Linear, channels: int, side: int) -> nn.Conv2d:
    convolution = as_convolution(linear, channels, side)
    convolution.weight.data.copy_(linear.weight.unflatten(1, (side, side, channels)).permute(0, 3, 1, 2))
    return convolution


def transposed_kernels(linear: nn.Linear, channels: int, side: int) -> nn.Conv2d:
    convolution = as_convolution(linear, channels, side)
    convolution.weight.data.copy_(convolution.weight.data.mT.clone())
    return convolution


def without_bias(linear: nn.Linear, channels: int, side: int) -> nn.Conv2d:
    convolution = as_convolution(linear, channels, side)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


def smallest_power() -> int:
    return next(k for k in range(1, 99) if 0.9**k + 99 * 0.1**k > 100 * 0.3**k)


def pointwise(maps: Tensor, weight: Tensor) -> Tensor:
    return (maps.movedim(1, -1) @ weight.T).movedim(-1, 1)


def reshaped_pointwise(maps: Tensor, weight: Tensor) -> Tensor:
    mixed = maps.reshape(-1, maps.shape[1]) @ weight.T
    return mixed.reshape(len(maps), len(weight), *maps.shape[2:])


def residual_block(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    return (x + second(first(x).relu())).relu()


def in_place_block(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    x += second(first(x).relu())
    return x.relu()


def top_k_error(scores: Tensor, labels: Tensor, k: int) -> float:
    best = scores.argsort(1, descending=True)[:, :k].tolist()
    return sum(label not in row for label, row in zip(labels.tolist(), best, strict=True)) / len(labels)


def wilson_upper_end(images: int) -> float:
    """Return the error, in per cent, at which a result without mistakes is 1.96 standard deviations away."""
    errors = np.linspace(0, 1, 1_000_001)[1:-1]
    return 100 * float(errors[errors <= 1.96 * np.sqrt(errors * (1 - errors) / images)].max())


RIGHT: dict[str, Any] = {
    "1.1": convolve,
    "1.2": MATRIX,
    "1.3": 26 * 26 * 9,
    "1.4": [[0, 0, 0], [1, 0, 0], [0, 0, 0]],
    "2.1": output_size,
    "2.2": 6,
    "2.3": torch.tensor(4),
    "2.4": 27.0,
    "2.5": nn.Conv2d(3, 8, 3, stride=2, padding=1),
    "3.1": input_gradient,
    "3.2": weight_gradient(padding=1),
    "3.3": 1,
    "3.4": nn.ConvTranspose1d(1, 1, 5, stride=3, padding=1)(torch.zeros(1, 1, 7)).shape[2],
    "3.5": even_kernels(3),
    "4.1": nn.Conv2d(64, 128, 3, bias=False).weight.numel() * 56**2,
    "4.2": F.unfold(torch.zeros(1, 1, 401, 401), 3, stride=2).numel() / 400**2,
    "4.3": winograd,
    "4.4": 16 * 9 / 36,
    "4.5": F.conv1d(torch.zeros(1, 1, 160), torch.zeros(1, 1, 31)).shape[2],
    "4.6": 49 / (4 / 2),
    "5.1": lambda image, size: tiles(image, size).amax(2),
    "5.2": OVERLAPPING,
    "5.3": 0.667,
    "5.4": [1] * 6,
    "5.5": 88.9,
    "6.1": sum(parameter.numel() for parameter in nn.Conv2d(6, 16, 5).parameters()),
    "6.2": sum(parameter.numel() for parameter in nn.Linear(1024, 120).parameters()),
    "6.3": -4 * DIFFERENT,
    "6.4": [0.0784, 0.784],
    "6.5": repair,
    "7.1": 6.91,
    "7.2": momentum_step,
    "7.3": 0.25,
    "7.4": WHO,
    "7.5": train_step,
    "7.6": 0.0146,
    "8.1": strongest,
    "8.2": seen_rows(),
    "8.3": [2, 0, 0, 0, 0, 3],
    "8.4": ["cross", "triangle", "square", "circle"],
    "8.5": len(range(0, 224 - 32 + 1, 16)) ** 2,
    "9.1": nearest_mean,
    "9.2": sum(parameter.numel() for parameter in nn.Linear(1280, 2).parameters()),
    "9.3": 20 * (1 + 2),
    "9.4": freeze,
    "9.5": ["head", "all", "scratch"],
    "10.1": torch.zeros(448, 672).unfold(0, 224, 32).unfold(1, 224, 32)[..., 0, 0].numel(),
    "10.2": as_convolution,
    "10.3": 225 * 28**2 / 84**2,
    "10.4": 3,
    "10.5": smallest_power(),
    "11.1": sum(sign * nn.Conv2d(256, 256, side, bias=False).weight.numel() for sign, side in ((1, 7), (-3, 3))),
    "11.2": pointwise,
    "11.3": 28**2 * sum(nn.Conv2d(*sizes, bias=False).weight.numel() for sizes in ((192, 16, 1), (16, 32, 5))),
    "11.4": math.exp(50 * math.log(0.8)),
    "11.5": residual_block,
    "12.1": top_k_error,
    "12.2": wilson_upper_end(50),
    "12.3": 7300,
    "12.4": sum(math.comb(20, k) for k in (*range(5), *range(16, 21))) / 2**20,
    "12.5": float(np.random.default_rng(1).binomial(100, 0.5, (2000, 20)).max(1).mean()),
    "12.6": int(np.argmax([0.48 + 0.47 + 0.9, 0.5 + 0.51 + 0.05, 0.02 + 0.02 + 0.05])),
}
WRONG: list[tuple[str, Any, str]] = [
    ("1.1", lambda image, kernel: convolve(image, kernel.flip(0, 1)), "turns the kernel by 180°"),
    ("1.1", lambda image, kernel: F.conv2d(image[None, None], kernel[None, None]), r"has the shape \(1, 1, 3, 3\)"),
    ("1.1", lambda image, kernel: None, "is None. The function has to return it"),
    ("1.1", 3, "A function of an image and a kernel"),
    ("1.1", lambda image, kernel: image.nothing, "It fails with AttributeError"),
    ("1.2", torch.tensor(MATRIX).T, "This is the transposed matrix"),
    ("1.2", [[1, 2, 3, 4, 0, 0, 0, 0, 0], *MATRIX[1:]], r"has 3 at \(0, 2\), counted from 0.*3 of 36 values are wrong"),
    ("1.2", [np.roll([1, 2, 3, 4, 0, 0, 0, 0, 0], shift) for shift in range(4)], "three places later"),
    ("1.2", [np.roll(MATRIX[0], shift) for shift in range(4)], "begins at pixel 3"),
    ("1.2", [row[::-1] for row in MATRIX[::-1]], "by 180°"),
    ("1.3", 28 * 28 * 9, "fewer outputs than pixels"),
    ("1.3", 5, "5 is too small"),
    ("1.3", "many", "of type str"),
    ("1.4", [[0, 0, 0], [0, 0, 1], [0, 0, 0]], "moves the image to the left"),
    ("1.4", [[0, 0, 0], [0, 1, 0], [0, 0, 0]], "does not move"),
    ("1.4", [[0, 1, 0], [0, 0, 0], [0, 0, 0]], "moves the image down"),
    ("1.4", [[0, 0, 0], [0, 0, 0], [0, 0, 1]], "up and sideways"),
    ("1.4", [[1, 0, 0]] * 3, "this one has 3"),
    ("1.4", [[1.0]], r"has the shape \(1, 1\)"),
    ("2.1", lambda size, kernel, stride, padding, dilation: size, "there are"),
    ("2.2", 3, "seven weights span 13 pixels"),
    ("2.2", 12, "both sides together"),
    ("2.3", 6, "6 pixels are read"),
    ("2.3", 1, "behind the last window"),
    ("2.4", 7, "without dilation"),
    ("2.4", True, "of type bool"),
    ("2.5", nn.Conv2d(3, 8, 3, stride=2), "32 pixels become 15"),
    ("2.5", nn.Conv2d(3, 8, 3, padding=1), "With stride 1"),
    ("2.5", nn.Conv2d(3, 8, 3, stride=2, padding=2), "list of output sizes"),
    ("2.5", nn.Conv2d(3, 8, 2, stride=2), "Its kernel is 2×2"),
    ("2.5", nn.Linear(3, 8), "An nn.Conv2d is asked for"),
    ("3.1", lambda g, k: input_gradient(g, k, turned=False), "turned by 180°"),
    ("3.1", lambda g, k: input_gradient(g, k.flip(0)), "Only the columns are turned"),
    ("3.1", lambda g, k: input_gradient(g, k.flip(1)), "Only the rows are turned"),
    ("3.1", lambda g, k: input_gradient(g, k.flip(0, 1).T, turned=True), "kernel is transposed"),
    ("3.1", square_gradient, "takes the last axis"),
    ("3.1", lambda g, k: g, "The image was larger: pad the gradient"),
    ("3.2", weight_gradient(padding=0), "9 is right without padding"),
    ("3.2", torch.full((3, 3), 25), "meets the zeros of the padding"),
    ("3.2", [16, 20, 16], "has the shape"),
    ("3.2", weight_gradient(padding=1).mul(math.nan), r"has nan at \(0, 0\).*9 of 9 values are wrong"),
    ("3.2", "sixteen", "is not an array of numbers"),
    ("3.2", [[1], [2, 3]], "is not an array of numbers"),
    ("3.2", weight_gradient(padding=1) + 1j, "is not an array of numbers"),
    ("3.2", torch.full((3, 3), 9.0, requires_grad=True), "9 is right without padding"),
    ("3.3", 1e-10, "largest rounding error"),
    ("3.3", 1e-5, "does not bend"),
    ("3.4", 23, "on both sides"),
    ("3.4", 26, "the last one at 6 · 3"),
    ("3.5", [4, 6, 8], "right for stride 2"),
    ("3.5", [6, 9], "nothing overlaps"),
    ("3.5", [3, 6], "One is missing"),
    ("3.5", [3, 5, 6, 9], "5 does not belong"),
    ("3.5", 3, "A list is asked for"),
    ("4.1", 2 * 231_211_008, "counts once"),
    ("4.1", 64 * 128 * 56**2, "a kernel of 9"),
    ("4.2", 9, "every fourth pixel"),
    ("4.3", direct, "multiplies 6 times. Use m1 to m4"),
    ("4.3", twice_winograd, "multiplies 8 times"),
    ("4.3", lambda d, g: [d[0], d[1]], r"it should be \[32.0, 43.0\]"),
    ("4.3", lambda d, g: None, "a list of two outputs"),
    ("4.3", lambda d, g: winograd(d, g)[::-1], "second one first"),
    ("4.3", lambda d, g: torch.tensor(d), "not with tensors"),
    ("4.4", 0.25, "the other way round"),
    ("4.4", 2.25, "tiles of 4×4"),
    ("4.5", 100, "the other end of the row"),
    ("4.5", 129, "the first and the last"),
    ("4.5", 161, "a smaller one is enough"),
    ("4.6", 49, "complex multiplication for a real one"),
    ("4.6", 12.25, "half of the frequencies"),
    ("5.1", lambda image, size: tiles(image, size).mean(2), "means of the tiles"),
    ("5.1", lambda image, size: F.max_pool2d(image[None], size, stride=1)[0], "windows overlap"),
    ("5.1", lambda image, size: tiles(image, size).amin(2), "minima"),
    (
        "5.1",
        lambda image, size: image.reshape(*(side // size for side in image.shape), size**2).amax(2),
        "stay together here",
    ),
    ("5.2", (torch.tensor(OVERLAPPING) > 0).int(), "gradients of both add up"),
    ("5.2", F.one_hot(torch.tensor([1, 2, 1, 2]), 4), "for tiles of 2×2"),
    ("5.2", [[0, 9, 0, 0], [0] * 4, [0] * 4, [0, 0, 8, 0]], "These are the maxima"),
    ("5.2", [[0, 2, 0, 0], [0] * 4, [0] * 4, [0, 0, 3, 0]], r"has 3 at \(3, 2\).*1 of 16 values is wrong"),
    ("5.3", 66.7, "in per cent"),
    ("5.3", 1 / 3, "that it leaves its tile"),
    ("5.4", [0, 1, 0, 1, 0, 1], "before the shift"),
    ("5.4", [0.5] * 6, "means of the pairs"),
    ("5.5", 11.1, "share of right guesses"),
    ("6.1", 2400, "a bias, too"),
    ("6.1", 1516, "LeCun's connections"),
    ("6.2", 784 * 120 + 120, "32×32"),
    ("6.3", -DIFFERENT, "not 1"),
    ("6.3", 4 * DIFFERENT, "negative squared"),
    ("6.4", [0.784, 0.0784], "The mean comes first"),
    ("6.4", [0.1, 1.275], "0 becomes −0.08"),
    ("6.4", [0.1307, 0.3081], "0 becomes -0.424 and 1 becomes 2.82"),
    ("6.4", [0.1, 0], "the std is not 0"),
    ("6.5", lambda scans: scans, "as they came"),
    ("6.5", lambda scans: 255 - scans, "something else is wrong"),
    ("6.5", lambda scans: scans.transpose(0, 2, 1), "Look at their brightness"),
    ("6.5", lambda scans: np.rot90(255 - scans, 1, (1, 2)), "mirror"),
    ("6.5", lambda scans: (255 - scans)[:, ::-1], "on their side"),
    ("6.5", lambda scans: (255 - scans)[:, ::-1, ::-1], "along the other one"),
    ("6.5", lambda scans: 255 - scans.T, "All axes but the last two stay"),
    ("6.5", lambda scans: None, "returns None"),
    ("6.5", lambda scans: repair(scans) / 255, "images are bytes"),
    ("7.1", math.log2(1000), "bits"),
    ("7.1", math.log(10), "10 classes"),
    ("7.2", lambda w, g, v, rate, m: (w - rate * v, m * v + g), "old velocity"),
    ("7.2", lambda w, g, v, rate, m: (w - rate * (m * v + 0.2 * g), m * v + 0.2 * g), "weighted with 1 − m"),
    ("7.2", lambda w, g, v, rate, m: (w - rate * g, v), "without momentum"),
    ("7.2", lambda w, g, v, rate, m: (w + rate * (m * v + g), m * v + g), "the loss grows"),
    ("7.2", lambda w, g, v, rate, m: w, "two numbers"),
    ("7.2", lambda *numbers: momentum_step(*numbers)[::-1], "The new weight comes first"),
    ("7.2", lambda w, g, v, rate, m: (w - rate * (m * v + g), v), "returns the old velocity"),
    ("7.2", lambda w, g, v, rate, m: (w - (m * v + g), m * v + g), "multiplied by the learning rate"),
    ("7.3", 0.125, "one step leads to the minimum"),
    ("7.3", 0.2, "-0.6 in each step, so it shrinks"),
    ("7.3", 1, "-7 in each step. It grows"),
    ("7.4", WHO | {"A": "few images", "D": "shuffled labels"}, "2 are wrong. A is not 'few images'"),
    ("7.4", WHO | {"B": ...}, "B is still to be filled in"),
    ("7.4", WHO | {"B": "luck"}, "luck is not one of"),
    ("7.4", ["right"], "keys A to E"),
    ("7.5", faulty_step, "Both faults"),
    ("7.5", accumulating_step, "adds to the gradients"),
    ("7.5", lambda *arguments: train_step(*arguments, softmax=True), "takes scores"),
    ("7.5", lambda *arguments: None, "do not change"),
    ("7.5", late_step, "in this order"),
    ("7.5", lambda *arguments: summed_step(F.cross_entropy, *arguments), "not their sum"),
    ("7.6", -0.0707, "not negative"),
    ("7.6", 0.025, "straight line"),
    ("8.1", lambda maps, unit: int(maps[:, unit].argmax()), "counted through"),
    ("8.1", lambda maps, unit: [strongest(maps, unit)[place] for place in (0, 2, 1)], "row comes before"),
    ("8.1", lambda maps, unit: None, "returns None"),
    ("8.1", lambda maps, unit: [unit, *np.unravel_index(int(maps[unit].amax(0).argmax()), (4, 7))], "of one unit"),
    ("8.2", [4, 6], "Two layers are left"),
    ("8.2", [16, 29], r"has 29 at 1, counted from 0.*1 of 2 values is wrong"),
    ("8.2", [20, 34], "is padded"),
    ("8.2", [16, 31], "one too many"),
    ("8.3", [2, 0, 0, -1, 0, 3], "This is the gradient"),
    ("8.3", [2, 2, 0, 0, 3, 3], "maximum of its pair only"),
    ("8.3", [2, 0, 3], "values of three pairs"),
    ("8.4", ["triangle", "cross", "square", "circle"], "Unit 0 does not look for a triangle"),
    ("8.4", ["star", "cross", "square", "circle"], "star is not one of"),
    ("8.4", "cross", "four words"),
    ("8.5", 196, "begins at 192"),
    ("9.1", nearest_image, "nearest image"),
    ("9.1", lambda features, labels, queries: torch.cdist(queries, features), "has the shape"),
    ("9.1", nearest_sum, "sums the features"),
    ("9.2", 2560, "a bias, too"),
    ("9.3", 20, "backward pass, too"),
    ("9.4", freeze_gradients, "still in training mode"),
    ("9.4", freeze_but_dropout, "dropout is still"),
    ("9.4", freeze_convolutions, "scale and shift"),
    ("9.4", lambda network: network.eval(), "weights of the convolution"),
    ("9.4", lambda network: network.requires_grad_(False).eval(), "last layer has not changed"),
    ("9.5", ["all", "head", "scratch"], "destroys the features"),
    ("9.5", ["scratch", "head", "all"], "far too few"),
    ("9.5", ["head"], "A list of the three words"),
    ("10.1", 98, "very start"),
    ("10.2", wrong_order, "rows, columns, channels"),
    ("10.2", transposed_kernels, "Rows and columns of the kernel"),
    ("10.2", without_bias, "The bias"),
    ("10.2", lambda linear, channels, side: nn.Conv2d(channels, 1, side), "weights of the convolution have the shape"),
    ("10.2", lambda linear, channels, side: linear, "an nn.Conv2d is asked for"),
    ("10.3", 225, "more pixels"),
    ("10.3", 1 / 25, "the other way round"),
    ("10.4", 9, "not three"),
    ("10.4", 1, "right for one convolution"),
    ("10.5", 4, "it is close"),
    ("10.5", 7, "so already before"),
    ("10.5", 4.2, "A whole number"),
    ("11.1", 27 * 256**2, "what the three have"),
    ("11.1", 22, "one channel in and out"),
    ("11.2", lambda maps, weight: pointwise(maps, weight).movedim(1, -1), "The channels are the last axis"),
    ("11.2", lambda maps, weight: pointwise(maps, weight.T if len(weight) == maps.shape[1] else weight), "transposed"),
    ("11.2", reshaped_pointwise, "mixes pixels"),
    ("11.3", 2 * 12_443_648, "These are operations"),
    ("11.3", 28**2 * 192 * 16, "1×1 convolution alone"),
    ("11.4", 40, "multiply, they do not add"),
    ("11.5", lambda x, first, second: x + second(first(x).relu()), "ReLU after the sum"),
    ("11.5", lambda x, first, second: x + second(first(x).relu()).relu(), "comes before the sum"),
    ("11.5", lambda x, first, second: second(first(x).relu()).relu(), "connection is missing"),
    ("11.5", lambda x, first, second: (x + second(first(x))).relu(), "after the first convolution is missing"),
    ("11.5", lambda x, first, second: second(first(x).relu()), "add x, and then"),
    ("11.5", lambda x, first, second: (x + first(second(x).relu())).relu(), "are swapped"),
    ("11.5", lambda x, first, second: nn.ReLU(x + second(first(x).relu())), "returns a module"),
    ("11.5", in_place_block, "in place"),
    ("12.1", lambda scores, labels, k: 1 - top_k_error(scores, labels, k), "This is the accuracy"),
    ("12.1", lambda scores, labels, k: top_k_error(scores, labels, 1), "top-1 error for every k"),
    ("12.1", lambda scores, labels, k: top_k_error(scores, labels, k + 1), "One class too many"),
    ("12.1", lambda scores, labels, k: top_k_error(-scores, labels, k), "k lowest"),
    ("12.1", lambda scores, labels, k: top_k_error(scores, labels, 5), "top-5 error for every k"),
    ("12.1", lambda scores, labels, k: 1 - (1 - top_k_error(scores, labels, k)) / k, "one of them is"),
    ("12.1", lambda scores, labels, k: 0.5, "For k = 1 it returns 0.5000, and"),
    ("12.1", lambda scores, labels, k: None, "returns None"),
    ("12.2", 0, "easily overlooked"),
    ("12.2", 6, "rule of three"),
    ("12.3", 1900, "one standard deviation"),
    ("12.3", 38_000, "50 %, the worst case"),
    ("12.4", 0.0059, "one direction"),
    ("12.4", 2 * math.comb(20, 16) / 2**20, "exactly 16"),
    ("12.4", 1.18, "in per cent"),
    ("12.4", 2 * sum(math.comb(20, k) for k in range(17, 21)) / 2**20, "16 heads count"),
    ("12.5", 0.6, "per cent are asked for"),
    ("12.5", 68, "hardly ever"),
    ("12.5", 50, "was lucky"),
    ("12.5", torch.tensor(55.0), "one standard deviation above"),
    ("12.5", 63, "63 is too large"),
    ("12.5", math.nan, "nan is not a finite number"),
    ("12.5", 59.5j, "of type complex"),
    ("12.6", "cat", "number of the class"),
    ("12.6", 1, "averaged, not the answers"),
]
