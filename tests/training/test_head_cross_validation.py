"""The head of a fold is trained like the deployed one; and what is not cross-validated says why."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import svertka
from svertka.classifier import Classifier, Config, read_config
from svertka.data.preprocessing import Preprocess
from svertka.data.split_manifest import Manifest
from svertka.errors import RunError
from svertka.evaluation import cross_validation
from svertka.models.registry import MODELS
from svertka.run import Run
from svertka.tasks import AnyTask, MultiLabel, SingleLabel
from svertka.tensor_files import read_tensors_and_header
from svertka.training import head_cross_validation, resume, single_run
from svertka.training.builtin_recipes import find_recipe_by_name
from svertka.training.computed_initial_head import FITTED_IMAGES, fits_default_head
from svertka.training.data_splits import DataSplits
from svertka.training.head_cross_validation import cross_validate_head, pool_images, why_not_cross_validated

FEW: dict[str, Any] = {"model": "resnet20", "recipe": "frozen", "size": 8, "epochs": 4, "lr": 0.05, "threads": 1}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "x.pth"
    network = MODELS["resnet20"].build().train()
    for _ in range(50):  # so that batch norm fits the random weights
        network(torch.randn(32, 3, 8, 8))
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def spied(digit_folder: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A training, its images, and what the head of a fold predicts whose training images are those of train."""
    seen: dict[str, Any] = {}

    def spy(partial: Any, settings: Any, parts: DataSplits, preprocess: Any, device: Any, task: Any) -> Any:
        pooled = pool_images(parts)
        features = head_cross_validation._FoldFeatures(partial, settings, parts, pooled, preprocess, device)
        outside, inside = (np.flatnonzero(np.isin(pooled, parts.indices[part])) for part in ("train", "val"))
        scores = head_cross_validation._score_by_steps(partial, features, task)(outside, inside)
        seen["predicted"] = scores.argmax(1)
        seen["features"], seen["parts"] = features.values[torch.from_numpy(inside)], parts
        seen["found"] = cross_validate_head(partial, settings, parts, preprocess, device, task)
        return seen["found"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "cross_validate_head", spy)
        patch.setattr(cross_validation, "REPEATS", 3)
        output = tmp_path_factory.mktemp("runs") / "run"
        seen["run"] = svertka.train(digit_folder, weights=weights, output=output, **FEW)
    return seen


def test_a_fold_trains_the_head_that_is_deployed(spied: dict[str, Any]) -> None:
    tensors, _ = read_tensors_and_header(spied["run"].checkpoint)  # of the last epoch
    scores = spied["features"].flatten(1) @ tensors["network.linear.weight"].T + tensors["network.linear.bias"]
    assert len(set(spied["predicted"].tolist())) > 1
    assert scores.argmax(1).tolist() == spied["predicted"].tolist()


def test_the_result_is_in_the_run(spied: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run, found = spied["run"], spied["found"]
    assert run.cross_validation() == found.model_dump(mode="json")
    assert (found.images, found.parts, found.folds, found.repeats) == (240, "train and val", 10, 3)
    assert f"cross_validated_error={found.error:.4f} (" in repr(run)
    from svertka.cli.train import _print_run

    _print_run(run)
    assert capsys.readouterr().out.splitlines()[-1] == found.sentence


def test_cross_validation_changes_nothing_of_the_training(
    spied: dict[str, Any], digit_folder: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "why_not_cross_validated", lambda *_, **__: "")
    without = svertka.train(digit_folder, weights=weights, output=tmp_path / "run", **FEW)
    assert without.cross_validation() is None
    kept = [run.classifier().network.state_dict() for run in (spied["run"], without)]
    assert all(kept[0][name].equal(kept[1][name]) for name in kept[0])


@pytest.mark.parametrize(("changes", "reason"), [
    ({}, None),
    ({"unfreeze": "last"}, ""),
    ({"early_stop": 3}, "the recipe stops early, or lowers the learning rate, by the validation error"),
    ({"schedule": "plateau"}, "the recipe stops early, or lowers the learning rate, by the validation error"),
    ({"computed_first": True}, "the recipe computes the head first"),
])  # fmt: skip
def test_what_is_not_cross_validated_says_why(
    spied: dict[str, Any], changes: dict[str, Any], reason: str | None
) -> None:
    recipe = find_recipe_by_name("frozen").with_changes(**changes)
    assert why_not_cross_validated(recipe, spied["parts"], stored=True) == reason


def test_neither_unstored_features_nor_images_known_before_are_cross_validated(spied: dict[str, Any]) -> None:
    parts, recipe = spied["parts"], find_recipe_by_name("frozen")
    assert why_not_cross_validated(recipe, parts, stored=False) == "the features are not stored"
    inherited = replace(parts.manifest, inherited=frozenset(parts.digests[:3]))
    known = why_not_cross_validated(recipe, replace(parts, manifest=inherited), stored=True)
    assert known == "the weights that it starts from were trained on 3 of the images"


def test_a_new_head_on_few_images_is_fitted_by_logistic_regression(
    digit_folder: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    large_count: Callable[[int, int], int],
) -> None:
    options: dict[str, Any] = {"model": "resnet20", "weights": weights, "unfreeze": "head", "size": 8, "threads": 1}
    heads = (None, "logistic")[: large_count(1, 2)]
    runs = [svertka.train(digit_folder, output=tmp_path / str(head), head=head, **options) for head in heads]
    assert capsys.readouterr().err.count("the head is fitted by logistic regression (--head logistic)") == 1
    assert {run.settings()["recipe"]["head"] for run in runs} == {"logistic"}
    kept = [run.classifier().network.state_dict() for run in runs]
    assert all(kept[0][name].equal(kept[-1][name]) for name in kept[0])
    parts, record = Manifest.read(runs[0].manifest).parts, read_config(runs[0].folder).calibration
    assert record is not None
    assert record.unknown.images == len(parts["train"]) + len(parts["val"])  # few images count, each by the others
    # A classifier's own head is trained further.
    again = svertka.train(digit_folder, output=tmp_path / "again", **(options | {"weights": runs[0].folder}))
    assert again.settings()["recipe"]["head"] == "linear"


@pytest.mark.parametrize(("changes", "is_open"), [
    ({}, True),
    ({"unfreeze": "head"}, True),
    ({"unfreeze": "last"}, False),
    ({"head": "linear"}, False),
    ({"recipe": "frozen"}, False),
    ({"epochs": 2}, False),
    ({"lr": "find"}, False),
    ({"time": 60}, False),
    ({"auto_augment": "rand"}, False),
])  # fmt: skip
def test_an_option_of_steps_trains_the_head_in_steps(
    digit_folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], *, is_open: bool
) -> None:
    monkeypatch.setattr("svertka.training.train.train_run", single_run.resolve_options)
    resolved: Any = svertka.train(digit_folder, model="resnet20", weights=weights, size=8, threads=1, **changes)
    assert single_run._leaves_head_open(resolved) == is_open


def test_a_head_is_fitted_for_one_class_an_image_and_not_for_too_many() -> None:
    def classifier(task: AnyTask) -> Classifier:
        network = MODELS["resnet20"].build()
        for parameter in network.linear.parameters():  # as a new head
            torch.nn.init.zeros_(parameter)
        preprocess = Preprocess(size=8, resize=8, mean=(0.0,) * 3, std=(1.0,) * 3)
        names = tuple(map(str, range(10)))
        config = Config(model="resnet20", names=names, preprocess=preprocess, task=task)
        return Classifier(network, config, MODELS["resnet20"])

    recipe, single = find_recipe_by_name("frozen"), classifier(SingleLabel())
    assert fits_default_head(single, recipe, FITTED_IMAGES)
    assert not fits_default_head(single, recipe, FITTED_IMAGES + 1)
    assert not fits_default_head(classifier(MultiLabel()), recipe, 100)
    torch.nn.init.ones_(single.network.linear.weight)
    assert not fits_default_head(single, recipe, 100)


def test_a_damaged_result_is_one_sentence(spied: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text('{"source": "x", "format": 1, "cross_validation": {"error": 0.1}}')
    with pytest.raises(RunError, match="its cross_validation lacks numbers"):
        Run(tmp_path).cross_validation()
