import json

import pytest

from svertka.errors import UsageError
from svertka.training.builtin_recipes import RECIPES
from svertka.training.lr_schedule import Step
from svertka.training.recipe import Recipe


def test_a_recipe_survives_json() -> None:
    for recipe in RECIPES.values():
        assert Recipe.model_validate(json.loads(recipe.model_dump_json())) == recipe


def test_changes_leave_the_rest() -> None:
    changed = RECIPES["resnet-cifar"].with_changes(lr=0.05, epochs=None, schedule="step")
    assert changed.lr == 0.05
    assert changed.epochs == RECIPES["resnet-cifar"].epochs
    assert changed.schedule == Step()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lr": -1}, "lr=-1 must be above 0"),
        ({"lr": float("nan")}, "lr=nan must be a finite number"),
        ({"mixup": -1.0}, "mixup=-1 must be at least 0"),
        ({"cutmix": float("inf")}, "cutmix=inf must be a finite number"),
        ({"ema": 1.0}, "ema=1 must be below 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"optimizer": "adam"}, "optimizer='adam' must be 'sgd' or 'adamw'"),
        ({"schedule": "linear"}, "schedule.*'constant', 'step', 'plateau', 'cosine'"),
        ({"momentum": 1}, "momentum=1"),
        ({"color": "red"}, "color"),
    ],
)
def test_a_value_that_cannot_be_is_one_sentence(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        Recipe().with_changes(**change)
    assert "\n" not in str(caught.value)


def test_a_decay_of_0_switches_off_the_average_of_a_recipe() -> None:
    modern = RECIPES["modern"]
    assert modern.averages_weights
    assert not modern.with_changes(ema=0).averages_weights
