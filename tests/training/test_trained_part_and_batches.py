"""Trainings of a part of a network: what stays, that storing features changes nothing, and that stopping does not."""

import copy
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module

import svertka
from svertka.errors import Interrupted, UsageError
from svertka.models.published_weights import BACKBONE
from svertka.models.registry import MODELS
from svertka.run import Run
from svertka.training.builtin_recipes import find_recipe_by_name
from svertka.training.computed_initial_head import estimate_head_seconds
from svertka.training.recipe import Recipe
from svertka.transfer import freeze, logistic_and_nearest_mean_heads

FEW: dict[str, Any] = {"epochs": 2, "batch_size": 32, "threads": 1}


@pytest.fixture(scope="module")
def trained(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What is carried over: learned from "one", "two", "three" and "four"."""
    return svertka.train(
        digit_folder,
        output=tmp_path_factory.mktemp("runs") / "run",
        model="resnet20",
        size=8,
        epochs=5,
        batch_size=32,
        threads=1,
    )


def weights(run: Run) -> dict[str, Tensor]:
    return run.classifier().network.state_dict()


@pytest.mark.sample(2)
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("options", "learns"), [
    ({}, ("linear.",)),
    ({"unfreeze": "last"}, ("linear.", "layer3.")),
    ({"unfreeze": "2", "gradual": True, "epochs": 3}, ("linear.", "layer3.", "layer2.")),
    ({"head": "logistic"}, ("linear.",)),
    pytest.param({"head": "cosine"}, ("linear.",), marks=pytest.mark.large),
    pytest.param({"head": "adaptation"}, ("linear.",), marks=pytest.mark.large),
])  # fmt: skip
def test_what_is_frozen_stays_to_the_bit(
    trained: Run, digit_folder: Path, tmp_path: Path, options: dict[str, Any], learns: tuple[str, ...]
) -> None:
    run = svertka.train(digit_folder, weights=trained, output=tmp_path / "run", **(FEW | options))
    before, after = weights(trained), weights(run)
    frozen = [name for name in before if not name.startswith(learns)]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert any(name not in before or not torch.equal(before[name], after[name]) for name in after)
    assert run.settings()["recipe"]["unfreeze"] == options.get("unfreeze", "head")
    assert run.result()["val_error"] is not None


@pytest.mark.usefixtures("quiet")
def test_frozen_layers_are_compiled_once_for_their_timing_the_computed_head_and_training(
    trained: Run, digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Module] = []

    def compile_counted(network: Module, shape: tuple[int, ...], images: int) -> Module:
        compiled.append(network)
        return copy.deepcopy(network)

    monkeypatch.setattr(freeze, "optimize_if_worthwhile", compile_counted)
    options: dict[str, Any] = {"head": "logistic", "unfreeze": "head", "cache": False, "threads": 1}
    run = svertka.train(digit_folder, weights=trained, output=tmp_path / "run", **options)
    assert len(compiled) == 1
    assert run.settings()["recipe"]["head"] == "logistic"


@pytest.mark.sample(1)
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("cache", [True, False])
def test_dead_units_are_those_of_trained_layers(trained: Run, digit_folder: Path, tmp_path: Path, cache: bool) -> None:
    run = svertka.train(
        digit_folder, weights=trained, output=tmp_path / "run", unfreeze="last", val=0, cache=cache, **FEW
    )
    shares = [entry["dead"] for entry in run.history() if entry["kind"] == "epoch"]
    relus = {name for name, module in run.classifier().network.named_modules() if isinstance(module, torch.nn.ReLU)}
    assert all(set(one) == {name for name in relus if name.startswith("layer3.")} for one in shares)


@pytest.mark.sample(1)
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("options", [
    {"unfreeze": "head"},
    {
        "unfreeze": "last",
        "augment": False,
        "recipe": find_recipe_by_name("fine-tuning").with_changes(computed_first=False),
    },
    {"head": "nearest-mean"},
])  # fmt: skip
def test_stored_features_learn_what_pictures_would(
    trained: Run, digit_folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    options = FEW | options | {"weights": trained, "accelerate": False}
    stored = svertka.train(digit_folder, output=tmp_path / "stored", **options)
    computed = svertka.train(digit_folder, output=tmp_path / "computed", cache=False, **options)
    assert stored.settings()["cache"] is not None
    assert computed.settings()["cache"] is None
    after, expected = weights(stored), weights(computed)
    for name, tensor in expected.items():
        if tensor.is_floating_point():
            # 1e-5 of a feature's rounding, over the steps of two epochs
            assert (after[name] - tensor).abs().max() <= 1e-4 * tensor.abs().max(), name


@pytest.mark.sample(1)
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("options", [{}, {"unfreeze": "last", "gradual": True}, {"unfreeze": "last", "cache": False}])
def test_it_resumes_to_the_bit(
    trained: Run,
    digit_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    stop_at: Callable[[pytest.MonkeyPatch, int], None],
    digest: Callable[[Run], str],
) -> None:
    options = FEW | {"weights": trained} | options
    whole = svertka.train(digit_folder, output=tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        stop_at(patch, 9)
        with pytest.raises(Interrupted):
            svertka.train(digit_folder, output=tmp_path / "run", **options)
    assert digest(svertka.resume(tmp_path / "run")) == digest(whole)


def test_the_plan_says_what_is_frozen(
    trained: Run, digit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    svertka.train(digit_folder, weights=trained, output=tmp_path / "run", **FEW)
    said = capsys.readouterr().err
    assert "frozen   all layers below linear; 260 parameters are trained" in said
    assert re.search(r"features are computed once and stored, [\d.]+ kB: a pass", said)
    svertka.train(digit_folder, weights=trained, output=tmp_path / "again", **(FEW | {"unfreeze": "all"}))
    assert "frozen" not in capsys.readouterr().err


@pytest.mark.parametrize(("options", "sentence"), [
    ({"unfreeze": "layer9"}, "unfreeze=layer9 is not a part of this network; use head, last, a number below 4, all"),
    ({"head": "forest"}, "head='forest'"),
    ({"variants": 0}, "variants=0 must be at least 1; leave it out"),
    ({"variants": -1}, "variants=-1 must be at least 1; leave it out"),
])  # fmt: skip
def test_what_cannot_be_is_one_sentence(
    trained: Run, digit_folder: Path, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        svertka.train(digit_folder, output=tmp_path / "run", **(FEW | {"weights": trained} | options))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_pictures_of_one_s_own_start_from_the_bundled_backbone(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for picture in sorted((shared_data / "cats-dogs" / name).glob("*.jpg"))[:6]:
            shutil.copy(picture, tmp_path / "photos" / name)
    run = svertka.train(tmp_path / "photos", output=tmp_path / "run", epochs=20)
    assert (run.settings()["model"], run.settings()["weights"]) == BACKBONE
    assert run.result()["val_error"] == 0
    assert re.search(r"(cat|dog) has \d training images: the result depends", capsys.readouterr().err)
    validated = run.cross_validation()
    assert validated is not None
    assert (validated["images"], validated["parts"], validated["folds"]) == (12, "train and val", 6)
    assert validated["interval"][0] <= validated["error"] <= validated["interval"][1]
    assert list(run.to_dict())[:2] == ["run", "cross_validation"]
    assert repr(run).split(", ")[1].startswith(f"cross_validated_error={validated['error']:.4f} (")
    assert "of 12 pictures wrong in cross-validation" in run.report.read_text().replace("\xa0", " ")


CACHED: dict[str, Any] = {"model": "resnet20", "recipe": "frozen", "size": 8, "epochs": 2, "threads": 1}


@pytest.fixture(scope="module")
def trained_with_cache(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, Path]:
    """Return a run whose features were stored, the weights that it started from, and the cache."""
    folder = tmp_path_factory.mktemp("cached")
    torch.manual_seed(0)
    torch.save(MODELS["resnet20"].build().state_dict(), folder / "x.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        run = svertka.train(digit_folder, output=folder / "whole", weights=folder / "x.pth", **CACHED)
    assert run.settings()["cache"] is not None
    return run, folder / "x.pth", folder / "cache"


@pytest.mark.sample(1)
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("kind", ["below a file", "no home", "full", "hostile"])
def test_a_cache_that_cannot_be_written_is_a_warning(
    digit_folder: Path,
    tmp_path: Path,
    kind: str,
    trained_with_cache: tuple[Run, Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever is wrong with it, the same is learned."""
    whole, start, cache = trained_with_cache
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reason = "cannot write"
    if kind == "below a file":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    elif kind == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr("pwd.getpwuid", lambda _: {}[0])
        reason = "there is no home folder for the cache; set HOME, or XDG_CACHE_HOME"
    elif kind == "full":

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("svertka.data.disk_cache._write", full)
        reason = "no space left on device"
    else:
        oddities: list[Callable[[Path], object]] = [Path.mkdir, lambda path: path.symlink_to(path.name), os.mkfifo]
        shutil.copytree(cache, tmp_path / "cache")
        files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        for number, path in enumerate(files):
            path.unlink()
            oddities[number % 3](path)
        reason = ""
    capsys.readouterr()
    run = svertka.train(digit_folder, output=tmp_path / "run", weights=start, **CACHED)
    assert reason in capsys.readouterr().err
    assert run.result()["val_error"] == whole.result()["val_error"]
    kept, expected = run.classifier().network.state_dict(), whole.classifier().network.state_dict()
    assert all(kept[name].equal(expected[name]) for name in kept)


@pytest.mark.usefixtures("quiet")
def test_a_last_layer_without_biases_is_not_computed(digit_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    place = tmp_path / "weights.pth"
    torch.save(MODELS["airbench"].build(classes=4, channels=3, size=9).state_dict(), place)
    given: dict[str, Any] = {"model": "airbench", "weights": place, "size": 9, **FEW}
    for head in ("logistic", "nearest-mean"):
        with pytest.raises(UsageError, match=f"head={head} computes a dense layer with biases, and airbench"):
            svertka.train(digit_folder, output=tmp_path / head, head=head, **given)
    run = svertka.train(digit_folder, output=tmp_path / "tuned", unfreeze="all", **(given | {"epochs": 0.3}))
    assert run.result()["val_error"] is not None  # its head is learned from the start


@pytest.mark.parametrize(("unfreeze", "again"), [("head", 0.0), ("last", 100.0)])
def test_the_time_of_a_head_counts_that_the_network_is_made_fast_once_more(
    unfreeze: str, again: float, trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logistic_and_nearest_mean_heads, "estimate_fit_seconds", lambda *_: 7.0)
    parts: Any = SimpleNamespace(indices={"train": range(50)})
    recipe = Recipe(unfreeze=unfreeze, head="logistic")
    known = estimate_head_seconds(trained.classifier(), recipe, parts, 0.5, stored=False, optimizing=100.0)
    assert known == 7 + 50 * 0.5 + again
