"""Comparison of svertka's networks with torchvision's and timm's: outputs with the same weights, and speed.

    python -m venv parity && parity/bin/pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 .
    parity/bin/python bench/parity.py [--only NAME…] [--no-speed] [--threads 2] [--rounds 5] [--json]

It needs its own environment, because torchvision pins torch. Nothing is downloaded: both networks load the same random
weights and batch-norm statistics, strictly. The difference is that of the outputs in inference, relative to the largest
value. Speeds are their time divided by svertka's: 1.03 means 3 % faster. The two take turns, and the first alternates.
On a busy machine, compare the ratio of the best times. The exit code is 1 if a difference is above 1e-5.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import timm  # type: ignore[import-not-found, unused-ignore]
import torch
import torchvision  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor, nn

from svertka.models.inception_v4_and_resnet import convert_timm_state_dict
from svertka.models.registry import find_model
from train_step import training
from turns import in_turns, ratios, seconds

TOLERANCE = 1e-5
LEAST, MOST = 0.1, 2.0  # seconds; the batch size is chosen so that a step takes as long
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}

# svertka's name → torchvision's
TORCHVISION = {
    "alexnet_owt": "alexnet",
    **{f"vgg{layers}{end}": f"vgg{layers}{end}" for layers in (11, 13, 16, 19) for end in ("", "_bn")},
    "googlenet_bn": "googlenet",
    "inception_v3": "inception_v3",
    **{f"resnet{layers}": f"resnet{layers}" for layers in (18, 34, 50, 101, 152)},
    "squeezenet1_1": "squeezenet1_1",
}
TIMM = ("inception_v4", "inception_resnet_v2")
SLOW_FIRST_VALUES = ("googlenet", "inception_v3")  # torchvision initializes them with SciPy, which is slow


def theirs(name: str) -> nn.Module:
    """Return the peer of the network called `name`."""
    network: nn.Module
    if name in TIMM:
        network = timm.create_model(name)
    else:
        options = {"init_weights": False} if TORCHVISION[name] in SLOW_FIRST_VALUES else {}
        network = torchvision.models.get_model(TORCHVISION[name], weights=None, **options)
    return network


def random_values(expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state_dict with the same names and shapes: scales of He et al., batch-norm statistics near 0 and 1."""
    generator = torch.Generator().manual_seed(1)

    def draw(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
            return torch.rand(tensor.shape, generator=generator) + 0.5
        scale = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.1
        return torch.randn(tensor.shape, generator=generator) * scale

    return {name: draw(name, tensor) for name, tensor in expected.items()}


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Return svertka's network and its peer with the same weights."""
    our, their = find_model(name).build(), theirs(name)
    values = random_values(their.state_dict())
    their.load_state_dict(values, strict=True)
    renamed = convert_timm_state_dict(values) if name in TIMM else values
    our.load_state_dict(renamed, strict=True)
    return our, their


@torch.inference_mode()
def difference(our: nn.Module, their: nn.Module, images: Tensor) -> float:
    """Return the largest difference of the outputs in inference, relative to the largest value of the peer."""
    expected = their.eval()(images)
    return float((our.eval()(images) - expected).abs().max() / expected.abs().max())


def forward(network: nn.Module, images: Tensor) -> Callable[[], None]:
    """Run one pass in inference."""
    network.eval()

    def step() -> None:
        with torch.inference_mode():
            network(images)

    return step


def speeds(
    make: Callable[[nn.Module, Tensor], Callable[[], None]],
    networks: tuple[nn.Module, nn.Module],
    size: int,
    rounds: int,
) -> dict[str, dict[str, float]]:
    """Return svertka's images per second, and the ratios to the peer's, for each memory format."""
    result = {}
    for name, layout in FORMATS.items():
        our, their = (network.to(memory_format=layout) for network in networks)  # type: ignore[call-overload]
        batch = 8
        while True:
            images = torch.randn(batch, 3, size, size).contiguous(memory_format=layout)
            steps = make(our, images), make(their, images)
            for step in steps:
                step()
            took = seconds(steps[0])
            if took > MOST and batch > 2:  # batch norm cannot train on a single value
                batch //= 2
            elif took < LEAST:
                batch *= 2
            else:
                break
        times = in_turns({"our": steps[0], "their": steps[1]}, rounds)
        ratio = ratios(times["their"], times["our"])
        result[name] = {
            "batch": batch,
            "images_per_second": batch / statistics.median(times["our"]),
            "median": ratio["ratio_median"],
            "least": ratio["ratio_least"],
            "best": ratio["ratio_of_best"],
        }
    return result


def compare(name: str, rounds: int) -> dict[str, Any]:
    """Return all results for one network; without `rounds`, no speeds."""
    size = find_model(name).size
    networks = pair(name)
    found: dict[str, Any] = {"difference": difference(*networks, torch.randn(2, 3, size, size))}
    if rounds:
        found["forward"] = speeds(forward, networks, size, rounds)
        found["training"] = speeds(training, networks, size, rounds)
    return found


def line(name: str, found: dict[str, Any]) -> str:
    """Return one row of the table."""
    cells = [f"{name:<20} {found['difference']:>10.1e}"]
    for what in ("forward", "training"):
        for layout in FORMATS:
            if what in found:
                speed = found[what][layout]
                ratios = (f"{speed[ratio]:>5.2f}" for ratio in ("median", "least", "best"))
                cells.append(f"{speed['images_per_second']:>7.1f} {' '.join(ratios)}")
    return "  ".join(cells)


def main() -> int:
    """Compare the networks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = (*TORCHVISION, *TIMM)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=everything, default=everything)
    parser.add_argument("--no-speed", action="store_true", help="compare only outputs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5, help="runs of each network")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    if not options.json:
        print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}, ", end="")
        print(
            f"{options.threads} threads; {', '.join(FORMATS)}: images/s, the ratio's median, least, of the best times"
        )
        print(f"{'network':<20} {'difference':>10}" + ("" if options.no_speed else f"{'forward':^56}{'training':^56}"))
    for name in options.only:
        torch.manual_seed(1)
        results[name] = compare(name, rounds=0 if options.no_speed else options.rounds)
        if not options.json:
            print(line(name, results[name]), flush=True)
    if options.json:
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}
        print(json.dumps({**versions, "threads": options.threads, "networks": results}, indent=2))
    return int(not all(found["difference"] <= TOLERANCE for found in results.values()))  # also false for NaN


if __name__ == "__main__":
    sys.exit(main())
