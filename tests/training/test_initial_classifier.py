"""What is frozen has to have been trained."""

import re
from pathlib import Path
from typing import Any

import pytest

import svertka
from svertka.data.augmentation import AUTO_AUGMENTATIONS, RandomErasing
from svertka.errors import UsageError
from svertka.training.builtin_recipes import RECIPES
from svertka.training.initial_classifier import (
    check_frozen_layers_and_boxes,
    check_patch_augmentation,
    describe_ignored_settings,
)
from svertka.training.recipe import Recipe


@pytest.mark.parametrize("unfreeze", ["head", "last", "2", "layer3"])
def test_fresh_weights_are_not_frozen(unfreeze: str) -> None:
    recipe = RECIPES["photos"].with_changes(unfreeze=unfreeze)
    sentence = f"unfreeze={unfreeze} freezes layers with random weights; give --weights"
    with pytest.raises(UsageError, match=re.escape(sentence)):
        check_frozen_layers_and_boxes(recipe, None, trained=False)
    check_frozen_layers_and_boxes(recipe, None, trained=True)
    check_frozen_layers_and_boxes(recipe.with_changes(unfreeze="all"), None, trained=False)


@pytest.mark.parametrize(("unfreeze", "trained"), [("head", False), ("last", True), ("all", True), ("all", False)])
def test_boxes_train_a_head_on_what_is_trained(unfreeze: str, trained: bool) -> None:
    recipe = RECIPES["patches"].with_changes(unfreeze=unfreeze)
    with pytest.raises(UsageError, match="boxes=b.csv trains only a head, on pretrained weights"):
        check_frozen_layers_and_boxes(recipe, "b.csv", trained=trained)
    check_frozen_layers_and_boxes(RECIPES["patches"], "b.csv", trained=True)


@pytest.mark.parametrize("options", [
    {"source": "digits", "unfreeze": "last"},
    {"source": "photos", "model": "resnet20", "unfreeze": "head"},
    {"source": "photos", "recipe": "frozen"},
])  # fmt: skip
def test_a_training_says_so_before_anything_else(options: dict[str, Any], digit_folder: Path, tmp_path: Path) -> None:
    source = options.pop("source").replace("photos", str(digit_folder))
    with pytest.raises(UsageError, match="freezes layers with random weights"):
        svertka.train(source, output=tmp_path / "run", **options)
    assert not list(tmp_path.iterdir())


def test_what_changes_nothing_is_said() -> None:
    head = RECIPES["patches"]
    assert describe_ignored_settings(head, "b.csv") == []
    assert describe_ignored_settings(head.with_changes(gradual=True, unfreeze="all"), None) == []
    (sentence,) = describe_ignored_settings(head.with_changes(gradual=True), "b.csv")
    assert sentence == "--gradual changes nothing: with --boxes only the head is trained"
    (sentence,) = describe_ignored_settings(head.with_changes(gradual=True, stage_rate=0.5), None)
    assert sentence.startswith(
        "--gradual and --stage-rate change nothing: only the head is trained; give --unfreeze all"
    )


def test_batches_of_one_image_are_not_mixed_which_is_said() -> None:
    alone = RECIPES["photos"].with_changes(batch_size=1, mixup=0.2, cutmix=1)
    assert describe_ignored_settings(alone, None) == [
        "--mixup and --cutmix change nothing: batches of one image hold no pair to mix; give --batch-size 2 or more"
    ]
    assert not alone.mixing
    assert describe_ignored_settings(alone.with_changes(batch_size=2), None) == []
    assert alone.with_changes(batch_size=2).mixing


@pytest.mark.parametrize(
    ("recipe", "option"),
    [
        (Recipe(mixup=0.2), "--mixup 0.2"),
        (Recipe(augmentations=AUTO_AUGMENTATIONS["rand"]), "--auto-augment rand"),
        (Recipe(augmentations=AUTO_AUGMENTATIONS["trivial"]), "--auto-augment trivial"),
        (Recipe(augmentations=(RandomErasing(probability=0.3),)), "--random-erasing 0.3"),
    ],
)
def test_what_patches_exclude_is_named_by_its_option(recipe: Recipe, option: str) -> None:
    with pytest.raises(UsageError, match=f"^{option} cannot be combined with --boxes"):
        check_patch_augmentation(recipe)
