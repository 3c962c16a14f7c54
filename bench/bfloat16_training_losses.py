"""Comparison of training losses with different roundings of convolutions, for ResNet-20 on CIFAR-10.

    SVERTKA_DATA=… python bench/bfloat16_training_losses.py [--steps 200] [--seeds 3] [--threads 2] [--json]

It compares float32 with autocast to bfloat16, in which 3×3 convolutions with stride 1 use one of: PyTorch's algorithm
(in float32 on upcast tensors if the CPU emulates bfloat16), Winograd with float32 products, or Winograd with bfloat16
products. A seed draws the initial weights and the batches of 64. The loss is the mean over the last 20 steps.
"""

import argparse
import json
import statistics
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from svertka.conv import native_support
from svertka.conv.api import conv2d
from svertka.data.builtin import open_builtin
from svertka.data.dataset import ArrayImages
from svertka.device import cpu_name, has_bfloat16, set_memory_format, set_threads
from svertka.models.registry import MODELS

LAST, BATCH = 20, 64
OWN = "aten" if has_bfloat16() else "upcast"
WAYS = ("float32", OWN, "native_winograd", "native_winograd_bf16")


def convolve(layer: nn.Conv2d, algorithm: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the output of `layer`, computed by `algorithm`."""
    return conv2d(x, weight, bias, layer.stride[0], layer.padding, algorithm=algorithm)  # type: ignore[arg-type]


def loss(way: str, seed: int, steps: int, pictures: Tensor, labels: Tensor) -> float:
    """Return the mean cross-entropy of the last steps."""
    torch.manual_seed(seed)
    network = set_memory_format(MODELS["resnet20"].build(), torch.channels_last)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            winograd = way.startswith("native") and layer.kernel_size == (3, 3) and layer.stride == (1, 1)
            algorithm = way if winograd else "aten" if way == "float32" else OWN
            setattr(layer, "_conv_forward", partial(convolve, layer, algorithm))  # noqa: B010
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    found: list[float] = []
    for _ in range(steps):
        chosen = torch.randint(len(labels), (BATCH,))
        images = (pictures[chosen].float() / 255 - 0.47) / 0.25
        with torch.autocast("cpu", torch.bfloat16, enabled=way != "float32"):
            one: Any = nn.functional.cross_entropy(network(images), labels[chosen])
        optimizer.zero_grad()
        one.backward()
        optimizer.step()
        found.append(one.item())
    return statistics.mean(found[-LAST:])


def main() -> None:
    """Train in each way from each seed, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    threads = set_threads(options.threads)
    cifar = open_builtin("cifar10")
    some = slice(0, 20_000)
    assert isinstance(cifar.images, ArrayImages)
    pictures = torch.from_numpy(cifar.images.array[some]).permute(0, 3, 1, 2)  # channels-last in memory
    labels = torch.from_numpy(cifar.labels[some]).long()
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in range(1, options.seeds + 1):
        for way, losses in found.items():
            losses.append(loss(way, seed, options.steps, pictures, labels))
            if not options.json:
                print(f"seed {seed}  {way:16} {losses[-1]:.4f}", flush=True)
    if options.json:
        here = {
            "processor": cpu_name(),
            "threads": threads,
            "instructions": native_support.selected_instruction_set(),
            "torch": torch.__version__,
        }
        print(json.dumps(here | {"steps": options.steps, "losses": found}))


if __name__ == "__main__":
    main()
