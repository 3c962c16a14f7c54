"""What differs on a GPU: batches, precision, memory formats, random state, inspection and the process group.

Skipped without one. SVERTKA_TEST_DEVICE=cpu runs them on the CPU instead, which checks the tests themselves.
"""

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import svertka
from svertka import distributed
from svertka.classifier import Classifier
from svertka.data.augmentation import Flip, PadCrop
from svertka.data.loader import BatchLoader
from svertka.data.mixup_and_cutmix import MixupAndCutmix
from svertka.data.preprocessing import Preprocess
from svertka.device import autocast, choose_device, describe_device
from svertka.errors import Interrupted
from svertka.inspection import top_patches
from svertka.models.registry import MODELS
from svertka.run import Run
from svertka.training.lr_finder import find_learning_rate
from svertka.training.recipe import Recipe
from svertka.training.run_recorder import Recorder
from svertka.training.synchronized_batch_norm import batch_norm
from svertka.training.training_loop import Loss, make_optimizer, take_step

DEVICE = os.environ.get("SVERTKA_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.usefixtures("quiet"),
]
OPTIONS: dict[str, Any] = {"model": "resnet20", "size": 16, "epochs": 2, "batch_size": 32, "device": DEVICE}
BFLOAT16 = 0.02  # relative: 8 bits of mantissa, through 20 layers
PRECISION = 1e-5 if DEVICE == "cpu" else BFLOAT16


@pytest.fixture
def device() -> torch.device:
    return choose_device(DEVICE)


def loader(device: torch.device, **options: Any) -> BatchLoader:
    rows = np.random.default_rng(0).integers(0, 256, (24, 20, 20, 3), np.uint8)
    preprocess = Preprocess(size=16, resize=20, mean=(0.5,) * 3, std=(0.25,) * 3)
    labels = np.arange(24) % 10
    return BatchLoader(rows, labels, np.arange(24), preprocess, batch_size=8, seed=1, device=device, **options)


@pytest.mark.parametrize("prefetch", [False, True])
def test_batches_on_the_device_are_those_of_the_cpu(device: torch.device, prefetch: bool) -> None:
    options: dict[str, Any] = {"shuffle": True, "augmentations": (PadCrop(), Flip()), "prefetch": prefetch}
    options |= {"mixing": MixupAndCutmix(mixup=0.4, cutmix=1.0), "memory_format": torch.channels_last}
    there, here = (loader(one, **options).epoch(1) for one in (device, torch.device("cpu")))
    for one, other in zip(there, here, strict=True):
        assert one.images.device.type == one.labels.device.type == device.type
        assert one.images.is_contiguous(memory_format=torch.channels_last)
        assert one.labels.tolist() == other.labels.tolist()
        torch.testing.assert_close(one.images.cpu(), other.images, rtol=1e-5, atol=1e-5)


def test_products_are_in_bfloat16_on_a_gpu(device: torch.device) -> None:
    with autocast(device):
        product = torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)
    assert product.dtype == (torch.bfloat16 if device.type == "cuda" else torch.float32)
    assert ("bfloat16" in describe_device(device)) == (device.type == "cuda")


def test_a_step_computes_what_the_cpu_does(device: torch.device) -> None:
    recipe, networks, seen = Recipe(lr=0.01, accumulate=2, clip=1.0), [], []
    for place in (device, torch.device("cpu")):
        torch.manual_seed(0)
        network = MODELS["resnet20"].build(size=16).to(place).train()
        batch = next(loader(place).epoch(0))
        seen.append(take_step(network, make_optimizer(network, recipe), batch, Loss(recipe), recipe).tolist())
        networks.append(network)
    assert seen[0][0] == pytest.approx(seen[1][0], rel=PRECISION)
    for mine, theirs in zip(*(one.parameters() for one in networks), strict=True):
        assert float((mine.detach().cpu() - theirs.detach()).norm()) <= 2 * PRECISION * float(theirs.detach().norm())


def test_statistics_of_batch_norm_are_those_of_pytorch(device: torch.device) -> None:
    torch.manual_seed(0)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.03)):
        x = torch.randn(8, 6, 5, 5, device=device, dtype=dtype)
        ours, expected = x.clone().requires_grad_(), x.float().requires_grad_()
        weight, bias = torch.rand(6, device=device) + 0.5, torch.rand(6, device=device)
        result = batch_norm(ours, None, None, weight, bias, training=True)
        theirs = nn.functional.batch_norm(expected, None, None, weight, bias, training=True)
        upstream = torch.randn(theirs.shape, device=device)
        result.backward(upstream.to(result.dtype))
        theirs.backward(upstream)
        torch.testing.assert_close(result.float(), theirs, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(ours.grad.float(), expected.grad, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def run(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return svertka.train(digit_folder, output=tmp_path_factory.mktemp("runs") / "run", test=0.2, **OPTIONS)


def test_a_run_is_evaluated_and_predicted_on_its_device_and_on_the_cpu(run: Run, digit_folder: Path) -> None:
    assert run.settings()["device"].startswith(DEVICE)
    there, here = (svertka.evaluate(run, digit_folder, device=one) for one in (DEVICE, "cpu"))
    assert there.images == here.images
    assert there.top1_error == pytest.approx(here.top1_error, abs=0.05)
    classifiers = [Classifier.load(run.folder, choose_device(one)) for one in (DEVICE, "cpu")]
    first, second = (svertka.predict(one, digit_folder / "two") for one in classifiers)
    for one, other in zip(first, second, strict=True):
        shares = {label["name"]: label["probability"] for label in other["labels"]}
        top = one["labels"][0]
        assert top["probability"] == pytest.approx(shares.get(top["name"], 0), abs=0.05)


def test_a_stopped_training_continues_bit_for_bit(
    run: Run, digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "wants_stop", lambda self: calls.append(1) or len(calls) == 7)
        with pytest.raises(Interrupted, match="continue with"):
            svertka.train(digit_folder, output=tmp_path / "run", test=0.2, **OPTIONS)
    resumed = svertka.resume(tmp_path / "run")
    weights, expected = (one.classifier().network.state_dict() for one in (resumed, run))
    assert all(torch.equal(weights[name].cpu(), expected[name].cpu()) for name in expected)


def test_frozen_features_are_computed_on_the_device(run: Run, digit_folder: Path, tmp_path: Path) -> None:
    options = {"weights": run.folder, "unfreeze": "last", "epochs": 1, "batch_size": 32, "device": DEVICE}
    tuned = svertka.train(digit_folder, output=tmp_path / "run", test=0.2, **options)
    assert tuned.settings()["cache"] is not None
    assert tuned.result()["test_error"] <= 1


def test_top_patches_are_those_of_the_cpu(device: torch.device) -> None:
    torch.manual_seed(0)
    network, images = MODELS["resnet20"].build(size=16).eval(), torch.randn(12, 3, 16, 16)
    here = top_patches(network, images, count=2)
    there = top_patches(network.to(device), images.to(device), count=2)
    for name, patches in here.items():
        torch.testing.assert_close(there[name].values.cpu(), patches.values, rtol=1e-2, atol=1e-2, equal_nan=True)


def test_the_random_state_of_the_device_survives_a_range_test(device: torch.device) -> None:
    torch.manual_seed(0)
    network = MODELS["resnet20"].build(size=16).to(device)
    before = torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)
    find_learning_rate(network, loader(device, shuffle=True), Recipe(lr=0.1, batch_size=8))
    after = torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)
    assert torch.equal(before, after)


def test_a_process_group_of_one_gpu_averages_gradients(device: torch.device) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        found = []
        for bfloat16 in (False, True):
            torch.manual_seed(0)
            network = MODELS["resnet20"].build(size=16).to(device).train()
            replica = distributed.data_parallel(network, bfloat16=bfloat16)
            recipe = Recipe(lr=0.01)
            batch = next(loader(device).epoch(0))
            found.append(take_step(replica, make_optimizer(network, recipe), batch, Loss(recipe), recipe).tolist())
            assert all(parameter.grad is not None for parameter in network.parameters())
        assert found[0] == pytest.approx(found[1], rel=PRECISION)
        assert distributed.all_reduce(torch.ones(2)).tolist() == [1, 1]  # of the CPU, also with NCCL
        assert distributed.all_gather({"rank": 0}) == [{"rank": 0}]
    finally:
        torch.distributed.destroy_process_group()
