"""Whole training steps: with our convolutions against the same network with PyTorch's own, channels-last, in turns.

    python bench/train_step.py [--only resnet18 vgg16] [--threads 2] [--rounds 7] [--json]

A step is forward, cross-entropy, backward and SGD with momentum, float32, on random pictures of 224×224. Speeds are
ratios, PyTorch's seconds over ours: above 1 is faster than PyTorch. Algorithms are chosen before the clock runs. Both
sides keep the memory of freed tensors, as `accelerate` makes the whole process do; without it PyTorch is slower still.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import svertka
from svertka.device import in_layout, processor, set_threads
from svertka.models.zoo import find
from turns import in_turns, ratios

BATCHES = {"resnet18": 16, "vgg16": 8}


def training(network: nn.Module, pictures: Tensor) -> Callable[[], None]:
    """One step of training, auxiliary classifiers included."""
    network.train()
    labels = torch.arange(len(pictures)) % 1000
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-9, momentum=0.9)  # so small that no value runs away

    def step() -> None:
        optimizer.zero_grad()
        outputs = network(pictures)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss: Any = sum(nn.functional.cross_entropy(one, labels) for one in outputs)
        loss.backward()
        optimizer.step()

    return step


def compare(name: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step of the network of that `name`, and the ratios."""
    torch.manual_seed(1)
    facts, batch = find(name), BATCHES[name]
    network = in_layout(facts.build(), torch.channels_last)
    pictures = torch.randn(batch, 3, facts.size, facts.size).contiguous(memory_format=torch.channels_last)
    accelerated = svertka.accelerate(copy.deepcopy(network))
    times = in_turns({"ours": training(accelerated, pictures), "pytorch": training(network, pictures)}, rounds)
    found: dict[str, Any] = {"network": name, "batch": batch}
    for side, seconds in times.items():
        found[side] = {"ms": 1e3 * min(seconds), "ms_median": 1e3 * statistics.median(seconds)}
    return found | ratios(times["pytorch"], times["ours"])


def main() -> None:
    """Compare, print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(BATCHES), default=list(BATCHES))
    parser.add_argument("--threads", type=int, help="of the processor; unset: all cores")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    threads = set_threads(options.threads)
    rows = []
    for name in options.only:
        rows.append(compare(name, options.rounds))
        if not options.json:
            print("{network:10} batch {batch:3} {ours[ms]:8.1f} ms (median {ours[ms_median]:.1f})  "
                  "PyTorch {pytorch[ms]:8.1f} ms (median {pytorch[ms_median]:.1f})  {ratio_of_best:.2f}× "
                  "(median {ratio_median:.2f}, least {ratio_least:.2f})".format(**rows[-1]), flush=True)  # fmt: skip
    if options.json:
        print(json.dumps({"processor": processor(), "threads": threads, "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
