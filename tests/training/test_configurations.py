"""A training of any small configuration ends with finite numbers, which `evaluate` finds again, or with one sentence.

A configuration is drawn by its number: what is learned from, by which network, for how long.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from svertka.cli.app import main
from svertka.models.registry import MODELS
from svertka.run import Run
from svertka.training import lr_finder, resume, training_loop
from svertka.training.builtin_recipes import RECIPES
from svertka.training.config import RunSettings
from svertka.training.training_loop import count_total_and_warmup_steps

SHARDS, LARGE = 12, 600  # configurations: the first ones, one a test, or all under --large
SMALL = ("mlp", "lenet5", "resnet20", "plain20", "airbench", "squeezenet1_1")
ONE_STAGE = tuple(name for name, recipe in RECIPES.items() if recipe.start is None and name != "patches")
WRONG_TEXT = re.compile(r"(?<!infinite or )\b(nan|inf|infinity)\b|(?<![\w.])-\d[\d.]* (s|min|h)\b", re.IGNORECASE)


def pictures(random: Random, folder: Path) -> Path:
    """A folder of 2 to 5 classes, which differ in brightness, of 1 to 14 noisy pictures each."""
    noise = np.random.default_rng(random.randrange(2**32))
    most = random.choice((4, 8, 14))
    height, width = random.randint(6, 40), random.randint(6, 40)
    shape = (height, width, 3) if random.random() < 0.6 else (height, width)
    for label in range(random.randint(2, 5)):
        (folder / f"class {label}").mkdir(parents=True)
        for number in range(random.choice((most, most, most, max(most // 4, 1), random.randint(1, most)))):
            pixels = noise.integers(0, 130, shape) + 30 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"class {label}" / f"{number}.png")
    return folder


def weights_for(model: str, size: int, place: Path) -> Path:
    """A file of untrained weights, whose head is of other classes."""
    torch.manual_seed(size)
    torch.save(MODELS[model].build(classes=7, channels=MODELS[model].channels, size=size).state_dict(), place)
    return place


def options(random: Random, place: Path) -> list[str]:
    """Of `svertka train`: the network, what of it learns, and how long."""
    model = random.choice(SMALL)
    size = max(random.randint(8, 40), MODELS[model].min_size)
    given: dict[str, Any] = {"model": model, "size": size, "seed": random.randrange(100), "threads": 1}
    if random.random() < 0.5:
        given["weights"] = weights_for(model, size, place)
        given["unfreeze"] = random.choice((None, "head", "head", "last", 2, "all"))
        given["head"] = random.choice((None, "linear", "cosine", "adaptation", "logistic", "nearest-mean"))
        given["gradual"] = random.choice((None, True)) if given["unfreeze"] in ("last", 2, "all") else None
        given["variants"] = random.choice((None, None, 1, 3))
        given["stage-rate"] = random.choice((None, 0.5))
    else:
        given["recipe"] = random.choice((None, *ONE_STAGE))
        given["gradual"] = random.choice((None, None, True))
    if random.random() < 0.15:
        given["time"] = f"{random.choice((0.01, 1, 3, 8))}s"
    else:
        given["epochs"] = round(random.uniform(0.1, 3), 2)
    given |= {
        "batch-size": random.choice((None, 1, random.randint(2, 20))),
        "lr": random.choice((None, None, "find", 1e-4, 0.1, 3)),
        "val": random.choice((None, 0, 0.2, 0.5)),
        "test": random.choice((None, 0.2, 0.4)),
        "schedule": random.choice((None, None, "constant", "step", "plateau", "cosine", "polynomial")),
        "optimizer": random.choice((None, None, "sgd", "adamw")),
        "warmup": random.choice((None, None, 0, 0.3, 5)),
        "label-smoothing": random.choice((None, None, 0.1)),
        "accumulate": random.choice((None, None, 3)),
        "early-stop": random.choice((None, None, 1)),
        "fit": random.choice((None, "crop", "pad", "squeeze")),
    }
    switches = [
        name
        for name in ("--class-weights", "--no-augment", "--no-accelerate", "--no-cache", "--half-features")
        if random.random() < 0.25
    ]
    given |= {
        "ema": random.choice((None, None, 0.9)),
        "mixup": random.choice((None, None, 0.2)),
        "cutmix": random.choice((None, None, 1)),
        "auto-augment": random.choice((None, None, "rand", "trivial", "none")),
        "random-erasing": random.choice((None, None, 0.3)),
    }
    spelled = {f"--{name}": value for name, value in given.items() if value is not None}
    return [
        *(text for name, value in spelled.items() for text in ((name,) if value is True else (name, str(value)))),
        *switches,
    ]


def strictly(text: str) -> Any:
    """What the JSON `text` holds; NaN and infinity are none."""

    def refuse(number: str) -> Any:
        raise AssertionError(f"{number} in {text}")

    return json.loads(text, parse_constant=refuse)


def check_history(run: Run, rates: list[float]) -> None:
    """Everything that was written is a finite number, and the rate fell to its lowest after the warm-up."""
    lines = [strictly(line) for line in run.metrics.read_text().splitlines()]
    kinds = [line["kind"] for line in lines]
    assert kinds.count("result") == 1
    assert kinds.count("epoch") >= 1
    sizes = run.settings()["parts"]
    for line in lines:
        may_lack = {
            "epoch": ("val_loss", "val_error"),
            "health": ("epoch",),  # found before the first epoch ends, or after the last
            "result": ("val_error", "test_error", "at_chance"),
        }
        for name, value in line.items():
            if name == "learning_rate" and line.get("fitted"):
                assert value is None, line  # a fitted head has none
            elif value is None:
                assert name in may_lack.get(line["kind"], ()), line
                assert name == "at_chance" or not sizes.get(name.split("_")[0]), line
            if isinstance(value, float):
                assert math.isfinite(value), line
                assert value >= 0 or name == "learning_rate", line
    settings = RunSettings.of(run)
    if settings.recipe.is_computed:
        assert rates == []
        return
    count, batch_size = sizes["train"], settings.recipe.batch_size
    steps_per_epoch = -(-count // batch_size)
    if batch_size == 2 and count > 2:  # a last picture joins the pair before it
        steps_per_epoch = count // 2
    total, warmup = count_total_and_warmup_steps(settings.recipe, steps_per_epoch)
    if settings.recipe.early_stop is None:
        assert len(rates) == total
    after = rates[warmup:]
    assert not after or after[-1] == min(after), rates
    assert max(rates) <= max(settings.recipe.lr, settings.recipe.warmup_rate or 0) * (1 + 1e-9), rates


def check_judged(run: Run, source: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """`evaluate` finds on each part what the run says of it."""
    for part in ("val", "test"):
        if not run.settings()["parts"][part]:
            assert result[f"{part}_error"] is None
            continue
        assert main(["evaluate", str(run.folder), str(source), "--part", part, "--threads", "1", "--json"]) == 0
        judged = strictly(capsys.readouterr().out)
        assert judged["images"] == run.settings()["parts"][part]
        assert judged["top1_error"] == pytest.approx(result[f"{part}_error"], abs=1e-9), part


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of each step that trainings of this test take."""
    seen: list[float] = []
    set_learning_rate = training_loop.set_learning_rate

    def noting(optimizer: torch.optim.Optimizer, rate: float) -> None:
        seen.append(rate)
        set_learning_rate(optimizer, rate)

    monkeypatch.setattr(training_loop, "set_learning_rate", noting)
    cross_validate_head = resume.cross_validate_head

    def not_noting(*args: Any, **settings: Any) -> Any:
        noted = len(seen)
        estimate = cross_validate_head(*args, **settings)
        del seen[noted:]  # those of heads that are trained without a fold
        return estimate

    monkeypatch.setattr(resume, "cross_validate_head", not_noting)
    monkeypatch.setattr(lr_finder, "set_learning_rate", set_learning_rate)  # --lr find ends before the training begins
    return seen


def check(number: int, folder: Path, rates: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """Train by configuration `number`."""
    random = Random(number)
    source = pictures(random, folder / "pictures")
    asked = options(random, folder / "weights.pth")
    run = Run(folder / "run")
    print(f"configuration {number}: svertka train", *asked)
    code = main(["train", str(source), "--output", str(run.folder), "--json", *asked])
    printed = capsys.readouterr()
    assert not WRONG_TEXT.search(printed.err), printed
    if code:
        assert printed.err.strip().splitlines()[-1].startswith("svertka: "), printed
        assert printed.out.count("\n") == 1, printed  # what this test printed
        return
    result = strictly(printed.out.partition("\n")[2])
    strictly(run.training.read_text())
    check_history(run, rates)
    check_judged(run, source, result, capsys)


@pytest.mark.sample(3)
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("shard", range(SHARDS))
def test_any_configuration_ends_in_finite_numbers_or_one_sentence(
    shard: int,
    large_count: Callable[[int, int], int],
    tmp_path: Path,
    rates: list[float],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SVERTKA_TRACEBACK", "1")  # a fault of our own is raised, not said
    for number in range(shard, large_count(SHARDS, LARGE), SHARDS):
        rates.clear()
        check(number, tmp_path / str(number), rates, capsys)
