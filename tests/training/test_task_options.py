import pytest

from svertka.tasks import SINGLE_LABEL, AnyTask, MultiLabel, Regression
from svertka.training.builtin_recipes import RECIPES
from svertka.training.task_options import describe_left_out, keep_targets


@pytest.mark.parametrize(
    ("task", "kept", "said"),
    [
        (SINGLE_LABEL, ["area_crop", "flip", "trivial_augment", "random_erasing"], None),
        (
            MultiLabel(),
            ["flip"],
            "may change the labels: area crop, trivial augment, random erasing, mixup, cutmix; --rec",
        ),
        (
            Regression(),
            [],
            "may change the number: area crop, flip, trivial augment, random erasing, mixup, cutmix; --rec",
        ),
    ],
)
def test_augmentations_that_may_change_the_target_are_left_out(
    task: AnyTask, kept: list[str], said: str | None
) -> None:
    recipe = RECIPES["modern"]
    augmentations = keep_targets(task, recipe.augmentations)
    assert [one.kind for one in augmentations] == kept
    used = recipe.with_changes(augmentations=augmentations, mixup=0.0, cutmix=0.0)
    assert [said in one for one in describe_left_out(task, recipe, used, "modern") if said] == [True] * (
        said is not None
    )
    assert describe_left_out(task, RECIPES["frozen"], RECIPES["frozen"], "frozen") == []
