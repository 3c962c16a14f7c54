"""Benchmark of whole training steps with svertka's convolutions against PyTorch's, channels-last, in turns.

    python bench/train_step.py [--only resnet18 vgg16 resnet20 alexnet_owt airbench lenet | families]
        [--precision fp32 | bf16] [--threads 2] [--rounds 7] [--cpu-time] [--json]
    python bench/train_step.py --first [--only …] [--threads 2] [--rounds 7]

A step is forward, cross-entropy, backward and SGD with momentum on random images. Speeds are PyTorch's time divided by
svertka's: above 1, svertka is faster. The algorithms of all shapes are timed before the measurement, without the limit
of 2 s for a process, as after several trainings. Non-finite gradients end the benchmark with exit code 1.

`airbench` is also compared in bfloat16, which its recipe uses. `lenet` is that of bench/train.py on MNIST. `families`
are 14 networks of torchvision and timm, which must be installed, on 8 images of 160 × 160; they are also compared with
PyTorch's contiguous format. With `--precision bf16`, both sides run under torch.autocast("cpu", torch.bfloat16), also
on CPUs that emulate bfloat16. The table then includes the float32 steps of both, and the root mean square error of the
gradients of one step relative to svertka's step in float32.

With `--first`, the time of the first two steps of a process in float32 is measured: without stored choices of
algorithms, then with those that the process before has stored.
"""

import argparse
import copy
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import svertka
from svertka.conv import autotune
from svertka.device import cpu_name, has_bfloat16, set_memory_format, set_threads
from svertka.malloc import keep_freed_memory
from svertka.models.registry import find_model
from train import lenet
from turns import Way, finite, in_turns, ratios, seconds

Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """A network and its input: `image`, (channels, height, width), and `steps`, the number of steps timed together."""

    build: Callable[[], nn.Module]
    batch: int
    image: tuple[int, int, int]
    classes: int
    steps: int = 1
    bfloat16: bool = False
    contiguous: bool = False


def published(name: str, batch: int, *, bfloat16: bool = False) -> Case:
    """Return the network called `name`, as in its paper."""
    model = find_model(name)
    return Case(model.build, batch, model.input_shape, model.classes, bfloat16=bfloat16)


CASES = {
    "resnet18": published("resnet18", 16),
    "vgg16": published("vgg16", 8),
    "resnet20": published("resnet20", 128),
    "alexnet_owt": published("alexnet_owt", 16),
    "airbench": published("airbench", 512, bfloat16=True),
    "lenet": Case(lenet, 64, (1, 28, 28), 10, steps=50),
}


OWN = list(CASES)
FAMILIES = {
    "torchvision": (
        *("resnet18", "vgg11", "efficientnet_b0", "regnet_y_400mf", "mobilenet_v3_large", "densenet121"),
        *("convnext_tiny", "shufflenet_v2_x1_0", "squeezenet1_1", "resnext50_32x4d", "googlenet", "mnasnet1_0"),
    ),
    "timm": ("nf_regnet_b0", "mixnet_s"),
}


def other(library: str, name: str) -> Case:
    """Return the network `name` of torchvision or timm, untrained and without auxiliary classifiers."""

    def build() -> nn.Module:
        settings: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        models: Any = importlib.import_module("timm" if library == "timm" else "torchvision.models")
        make = models.create_model if library == "timm" else models.get_model
        network: nn.Module = make(name, **settings)
        return network

    return Case(build, 8, (3, 160, 160), 1000, contiguous=True)


CASES |= {f"{library}:{name}": other(library, name) for library, names in FAMILIES.items() for name in names}


def training(network: nn.Module, images: Tensor, classes: int = 1000, *, bfloat16: bool = False) -> Step:
    """Return a function that runs one training step, with auxiliary classifiers; `bfloat16`: under autocast."""
    network.train()
    labels = torch.arange(len(images)) % classes
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-9, momentum=0.9)  # so small that weights hardly change

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            outputs = network(images)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            loss: Any = sum(nn.functional.cross_entropy(one, labels) for one in outputs)
        loss.backward()
        optimizer.step()

    return step


def compare(
    case: Case, rounds: int, *, bfloat16: bool = False, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """Return milliseconds per step, and the ratio of each other side to svertka."""
    torch.manual_seed(1)
    network = set_memory_format(case.build(), torch.channels_last)
    images = torch.randn(case.batch, *case.image).contiguous(memory_format=torch.channels_last)
    accelerated = svertka.accelerate(copy.deepcopy(network))
    once = {
        "ours": training(accelerated, images, case.classes, bfloat16=bfloat16),
        "pytorch": training(network, images, case.classes, bfloat16=bfloat16),
    }
    networks, errors = {"ours": accelerated, "pytorch": network}, {}
    if case.contiguous and not bfloat16:
        networks["pytorch, contiguous"] = set_memory_format(copy.deepcopy(network), torch.contiguous_format)
        once["pytorch, contiguous"] = training(networks["pytorch, contiguous"], images.contiguous(), case.classes)
    if bfloat16:
        networks["ours, float32"] = copy.deepcopy(accelerated)
        once["ours, float32"] = training(networks["ours, float32"], images, case.classes)
    gradients = {
        side: finite(f"the gradients of {side}", gradient(networks[side], step)) for side, step in once.items()
    }
    if bfloat16:
        of = gradients.pop("ours, float32")
        errors = {side: float((one - of).norm() / of.norm()) for side, one in gradients.items()}
        once["pytorch, float32"] = training(copy.deepcopy(network), images, case.classes)
    elif case.bfloat16 and has_bfloat16():
        once["pytorch, bfloat16"] = training(copy.deepcopy(network), images, case.classes, bfloat16=True)
    times = in_turns({side: repeated(step, case.steps) for side, step in once.items()}, rounds, clock)
    found: dict[str, Any] = {}
    for side, durations in times.items():
        a_step = 1e3 / case.steps
        found[side] = {"ms": a_step * min(durations), "ms_median": a_step * statistics.median(durations)}
        if side in errors:
            found[side]["gradient_error"] = errors[side]
        if side != "ours":
            found[side] |= ratios(durations, times["ours"])
    return found


def print_first_steps(name: str, threads: int) -> None:
    """Print the seconds of two steps with svertka, which should be the first of the process."""
    set_threads(threads)
    keep_freed_memory()
    case = CASES[name]
    network = svertka.accelerate(set_memory_format(case.build(), torch.channels_last))
    images = torch.randn(case.batch, *case.image).contiguous(memory_format=torch.channels_last)
    step = training(network, images, case.classes)
    print(seconds(repeated(step, 2)))


def first_steps(name: str, threads: int) -> tuple[float, float]:
    """Return the seconds of the first two steps of a process without stored choices of algorithms, and of the next."""
    code = "import sys, train_step; train_step.print_first_steps(sys.argv[1], int(sys.argv[2]))"
    command = [sys.executable, "-c", code, name, str(threads)]
    folder = Path(__file__).parent
    with TemporaryDirectory() as cache:
        environment = os.environ | {"XDG_CACHE_HOME": cache}
        first, later = (
            subprocess.run(command, text=True, check=True, stdout=subprocess.PIPE, cwd=folder, env=environment)
            for _ in range(2)
        )
    return float(first.stdout), float(later.stdout)


def compare_first_steps(names: list[str], rounds: int, threads: int) -> None:
    """Print the best (median) seconds of the first two steps for each network."""
    for name in names:
        for kind, found in zip(
            ("without stored choices", "with stored choices"),
            zip(*(first_steps(name, threads) for _ in range(rounds)), strict=True),
            strict=True,
        ):
            print(
                f"{name:30} two steps {kind:22} {min(found):5.2f} s (median {statistics.median(found):.2f})", flush=True
            )


def gradient(network: nn.Module, step: Step) -> Tensor:
    """Return the gradients of all parameters of `network` as one vector, after one `step` with fixed dropout."""
    torch.manual_seed(2)
    step()
    return torch.cat([one.grad.flatten() for one in network.parameters() if one.grad is not None])


def repeated(step: Step, count: int) -> Way:
    """Return a function that runs `count` steps."""

    def run() -> None:
        for _ in range(count):
            step()

    return run


def main() -> None:
    """Compare, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*CASES, "families"], default=OWN)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu-time", action="store_true", help="of the process, in which other programs do not count")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--first", action="store_true", help="the first two steps of a process, with autotuning")
    options = parser.parse_args()
    threads = set_threads(options.threads)
    if options.first:
        compare_first_steps(options.only, options.rounds, threads)
        return
    keep_freed_memory()  # as svertka's command line does
    autotune.TOTAL_BUDGET = math.inf
    clock = time.process_time if options.cpu_time else time.perf_counter
    rows = []
    families = [name for name in CASES if name not in OWN]
    for name in families if "families" in options.only else options.only:
        found = compare(CASES[name], options.rounds, bfloat16=options.precision == "bf16", clock=clock)
        rows.append({"network": name, "batch": CASES[name].batch, "precision": options.precision} | found)
        for side, one in found.items():
            if not options.json:
                line = f"{name:30} {side:19} {one['ms']:8.1f} ms (median {one['ms_median']:.1f})"
                if side != "ours":
                    line += "  {ratio_of_best:5.2f}× (median {ratio_median:.2f}, least {ratio_least:.2f})".format(**one)
                if "gradient_error" in one:
                    line += f"  gradient {one['gradient_error']:.2%} off"
                print(line, flush=True)
    if options.json:
        print(json.dumps({"processor": cpu_name(), "threads": threads, "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
