"""Measurement of training and inspection on a GPU, in under 8 minutes, as JSON on stdout.

    python bench/gpu.py [--only cifar10 steps input top_patches resume ddp] [--device cpu --tiny]

- `cifar10`: `svertka train cifar10` with the recipe cifar10-fast, from the start of the call to its end: seconds and
  test error, which must be at most 6 %. Needs SVERTKA_DATA.
- `steps`: training images per second of ResNet-18 and ResNet-50 at 224 × 224 in bfloat16, svertka's step against a
  plain PyTorch loop with channels-last and torch.compile, in turns.
- `input`: images per second from JPEGs of 110 kB in shards to normalized batches on the device, without a network.
- `top_patches`: images per second of `inspection.top_patches` over all convolutions of ResNet-18, and of the network
  alone.
- `resume`: whether a training that is stopped in an epoch and continued ends with the same weights, bit for bit, as one
  that is not stopped.
- `ddp`: images per second of ResNet-18 in DistributedDataParallel with one process, NCCL on a GPU, and of the same
  steps without it.

`--tiny` makes everything so small that a CPU runs it in seconds: it checks the script and measures nothing.
"""

import argparse
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import svertka
from scale import make_jpegs, write_shards
from svertka import distributed
from svertka.data.image_disk_cache import prepare_images
from svertka.data.loader import Batch, BatchLoader
from svertka.data.preprocessing import Preprocess
from svertka.data.sharded_images import LANES, find_shards, open_shards
from svertka.device import autocast, choose_device, describe_device, set_memory_format
from svertka.errors import Interrupted, UsageError
from svertka.inspection import top_patches
from svertka.models.registry import find_model
from svertka.training.recipe import Recipe
from svertka.training.run_recorder import Recorder
from svertka.training.training_loop import Loss, make_optimizer, take_step
from turns import in_turns, ratios

ERROR = 0.06  # of 94 %


class Sizes:
    """How much is measured.

    Args:
        tiny: Whether only the script is checked.
    """

    def __init__(self, *, tiny: bool) -> None:
        self.tiny = tiny
        self.networks = {"resnet20": 4} if tiny else {"resnet18": 256, "resnet50": 128}
        self.side = 32 if tiny else 224
        self.rounds, self.steps = (1, 1) if tiny else (5, 20)
        self.jpegs = 32 if tiny else 4000
        self.jpeg_side = (60, 50) if tiny else (400, 500)
        self.inspected = 8 if tiny else 2048

    def build(self, name: str) -> nn.Module:
        """Return a network with random weights."""
        torch.manual_seed(0)
        model = find_model(name)
        return model.build(size=self.side) if self.tiny else model.build()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_batch(sizes: Sizes, count: int, classes: int, device: torch.device) -> Batch:
    """Return random images and labels on the device, channels-last."""
    images = torch.randn(count, 3, sizes.side, sizes.side, device=device)
    labels = torch.randint(classes, (count,), device=device)
    return Batch(images.contiguous(memory_format=torch.channels_last), labels, np.arange(count), count)


def cifar10(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Train cifar10-fast, or in tiny an MLP on digits."""
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"recipe": "cifar10-fast", "model": "airbench"}
        if sizes.tiny:
            options = {"model": "mlp", "epochs": 0.2}
        began = time.perf_counter()
        run = svertka.train(
            "digits" if sizes.tiny else "cifar10", output=Path(folder) / "run", device=str(device), **options
        )
        result = run.result()
    error = result["test_error"] if result["test_error"] is not None else result["val_error"]
    return {
        "seconds": time.perf_counter() - began,
        "training_seconds": result["seconds"],
        "error": error,
        "reached": error is not None and error <= ERROR,
    }


def plain_loop(network: nn.Module, batch: Batch, device: torch.device, *, is_compiled: bool) -> Callable[[], Tensor]:
    """Return a step of a plain PyTorch loop: channels-last, bfloat16 autocast and torch.compile."""
    network = set_memory_format(network.to(device), torch.channels_last).train()
    compiled = torch.compile(network) if is_compiled else network
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device):
            loss = F.cross_entropy(compiled(batch.images), batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


def svertka_loop(
    network: nn.Module, batch: Batch, device: torch.device, wrap: Callable[[nn.Module], nn.Module] = lambda one: one
) -> Callable[[], Tensor]:
    """Return a step of svertka's training loop."""
    network = set_memory_format(network.to(device), torch.channels_last).train()
    recipe = Recipe(lr=1e-3)
    optimizer, loss_of, trained = make_optimizer(network, recipe), Loss(recipe), wrap(network)
    return lambda: take_step(trained, optimizer, batch, loss_of, recipe)


def repeated(step: Callable[[], Tensor], count: int, device: torch.device) -> Callable[[], None]:
    """Return a function that takes `count` steps and waits for them."""

    def run() -> None:
        for _ in range(count):
            step()
        synchronize(device)

    return run


def steps(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Compare training steps with a plain loop."""
    found: dict[str, Any] = {}
    for name, count in sizes.networks.items():
        batch = random_batch(sizes, count, 10, device)
        ways = {
            "svertka": svertka_loop(sizes.build(name), batch, device),
            "plain": plain_loop(sizes.build(name), batch, device, is_compiled=not sizes.tiny),
        }
        times = in_turns({way: repeated(step, sizes.steps, device) for way, step in ways.items()}, sizes.rounds)
        speeds = {way: count * sizes.steps / median(some) for way, some in times.items()}
        found[name] = {"images_per_second": speeds} | ratios(times["plain"], times["svertka"])
    return found


def input_pipeline(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Read shards into batches on the device, in the second epoch."""
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        write_shards(shards, make_jpegs(min(sizes.jpegs, 200), sizes.jpeg_side, 88, 3), sizes.jpegs, 64)
        dataset = open_shards(shards)
        images = find_shards(dataset.images)
        assert images is not None
        threads = torch.get_num_threads()
        rows = prepare_images(dataset, sizes.side * 8 // 7, 3, threads=threads).rows
        preprocess = Preprocess(size=sizes.side, resize=sizes.side * 8 // 7, mean=(0.5,) * 3, std=(0.25,) * 3)
        loader = BatchLoader(
            rows, dataset.labels, np.arange(len(dataset)), preprocess, batch_size=min(128, sizes.jpegs // 2),
            shuffle=True, prefetch=True, permute=images.shuffle, lanes=LANES, request=images.request, device=device,
            memory_format=torch.channels_last,
        )  # fmt: skip
        for _ in loader.epoch(0):  # in which the images are compared with their digests
            pass
        began = time.perf_counter()
        count = sum(len(batch.labels) for batch in loader.epoch(1))
        synchronize(device)
    return {"threads": threads, "images_per_second": count / (time.perf_counter() - began)}


def patches(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Find the top patches of a network, and run it alone."""
    name = next(iter(sizes.networks))
    network = set_memory_format(sizes.build(name).to(device), torch.channels_last).eval()
    count = min(sizes.inspected, 32)
    some = [random_batch(sizes, count, 10, device).images for _ in range(sizes.inspected // count)]

    def alone() -> None:
        with torch.inference_mode():
            for images in some:
                network(images)
        synchronize(device)

    times = in_turns({"top_patches": lambda: top_patches(network, some), "alone": alone}, sizes.rounds)
    return {way: sizes.inspected / median(taken) for way, taken in times.items()}


def resume(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Compare a training that was stopped within an epoch with one that was not."""
    options: dict[str, Any] = {"model": "resnet20", "epochs": 2, "batch_size": 64, "device": str(device)}
    if sizes.tiny:
        options |= {"model": "mlp", "size": 8}
    calls: list[int] = []
    wants_stop = Recorder.wants_stop

    def stop_once(self: Recorder) -> bool:
        calls.append(1)
        return len(calls) == 30  # the second epoch of 1,617 images

    with tempfile.TemporaryDirectory() as folder:
        whole = svertka.train("digits", output=Path(folder) / "whole", **options)
        Recorder.wants_stop = stop_once  # type: ignore[method-assign]
        try:
            svertka.train("digits", output=Path(folder) / "stopped", **options)
        except Interrupted:
            pass
        finally:
            Recorder.wants_stop = wants_stop  # type: ignore[method-assign]
        stopped = svertka.resume(Path(folder) / "stopped")
        weights = [run.classifier().network.state_dict() for run in (whole, stopped)]
        differences = [
            float((one.double() - weights[1][name].double()).abs().max()) for name, one in weights[0].items()
        ]
    return {"stopped": len(calls) >= 30, "is_exact": max(differences) == 0, "largest_difference": max(differences)}


@contextmanager
def group_of_one(device: torch.device) -> Iterator[None]:
    """Form a process group of this process alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=address, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def ddp(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Compare steps in DistributedDataParallel with one process with steps without it."""
    name, count = next(iter(sizes.networks.items()))
    batch = random_batch(sizes, count, 10, device)
    with group_of_one(device):
        ways = {
            "ddp": svertka_loop(sizes.build(name), batch, device, distributed.data_parallel),
            "alone": svertka_loop(sizes.build(name), batch, device),
        }
        losses = {way: [float(step()[0]) for _ in range(3)] for way, step in ways.items()}
        times = in_turns({way: repeated(step, sizes.steps, device) for way, step in ways.items()}, sizes.rounds)
    speeds = {way: count * sizes.steps / median(some) for way, some in times.items()}
    return {"network": name, "losses": losses, "images_per_second": speeds}


PARTS: dict[str, Callable[[Sizes, torch.device], dict[str, Any]]] = {
    "cifar10": cifar10,
    "steps": steps,
    "input": input_pipeline,
    "top_patches": patches,
    "resume": resume,
    "ddp": ddp,
}


def main() -> None:
    """Measure the parts that the options name and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="check the script; the numbers mean nothing")
    options = parser.parse_args()
    try:
        device = choose_device(options.device)
    except UsageError as error:
        sys.exit(f"{error}; --device cpu --tiny checks the script without a GPU")
    sizes = Sizes(tiny=options.tiny)
    began = time.perf_counter()
    found: dict[str, Any] = {"device": describe_device(device), "torch": torch.__version__, "tiny": sizes.tiny}
    for name in options.only:
        started = time.perf_counter()
        found[name] = PARTS[name](sizes, device)
        print(f"{name}: {time.perf_counter() - started:.0f} s, {found[name]}", file=sys.stderr, flush=True)
    print(json.dumps(found | {"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
