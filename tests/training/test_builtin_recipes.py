import pytest

from svertka.data.builtin import NAMES
from svertka.errors import UsageError
from svertka.models.published_weights import BACKBONE
from svertka.models.registry import MODELS
from svertka.training.builtin_recipes import DEFAULTS, RECIPES, default_recipe, find_recipe_by_name
from svertka.training.lr_schedule import learning_rate
from svertka.training.training_loop import count_total_and_warmup_steps


def test_every_recipe_names_its_source() -> None:
    assert all(recipe.source for recipe in RECIPES.values())


def test_every_source_has_a_network_and_a_recipe() -> None:
    assert set(DEFAULTS) == {*NAMES}
    for source, (model, recipe) in DEFAULTS.items():
        assert model in MODELS
        assert recipe in RECIPES
        assert default_recipe(source, model) == recipe


def test_trained_weights_are_frozen_but_for_what_is_to_learn() -> None:
    for unfreeze, recipe in ((None, "frozen"), ("head", "frozen"), ("last", "fine-tuning"), ("all", "fine-tuning")):
        assert default_recipe("/photos", BACKBONE[0], unfreeze=unfreeze, trained=True) == recipe


@pytest.mark.sample(30)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("source", [*NAMES, "/photos"])
def test_every_network_has_a_recipe_on_every_source(source: str, model: str) -> None:
    assert default_recipe(source, model) in RECIPES


def test_an_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(UsageError, match="recipe=fast is not known; use one of: plain, "):
        find_recipe_by_name("fast")


def rates(recipe: str, steps_per_epoch: int, steps: list[int], val_errors: list[float] | None = None) -> list[float]:
    chosen = find_recipe_by_name(recipe)
    total, warmup = count_total_and_warmup_steps(chosen, steps_per_epoch)
    return [
        learning_rate(
            chosen.schedule,
            chosen.lr,
            step=step,
            total=total,
            warmup=warmup,
            warmup_rate=chosen.warmup_rate,
            val_errors=val_errors or (),
        )
        for step in steps
    ]


def test_googlenet_s_rate_falls_by_four_per_cent_every_eight_epochs() -> None:
    found = rates("googlenet", 100, [0, 799, 800, 1600, 23_999])
    assert found == pytest.approx([0.01, 0.01, 0.01 * 0.96, 0.01 * 0.96**2, 0.01 * 0.96**29])


def test_the_110_layers_warm_up_for_400_steps() -> None:
    found = rates("resnet-cifar-110", 352, [0, 399, 400, 28_863, 28_865])
    assert found == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("recipe", ["alexnet", "vgg", "resnet"])
def test_those_of_the_challenge_divide_by_ten_when_the_val_error_stalls(recipe: str) -> None:
    base = find_recipe_by_name(recipe).lr
    stalled = [0.5, *[0.6] * 5]
    assert rates(recipe, 100, [700], stalled[:-1]) == [base]
    assert rates(recipe, 100, [700], stalled) == pytest.approx([base / 10])


def test_cifar10_fast_is_airbench_s_triangle() -> None:
    found = rates("cifar10-fast", 96, [0, 287, 288, 1152])
    assert found == pytest.approx([0.75 / 288, 0.75, 0.75, 0.75 * 0.07])


def test_stages_name_networks() -> None:
    assert find_recipe_by_name("vgg").start == "vgg11"
    assert all(recipe.start is None or recipe.start in MODELS for recipe in RECIPES.values())


def test_networks_of_others_with_fresh_weights_have_a_higher_rate() -> None:
    assert default_recipe("/photos", "my.net", draws_weights=True) == "modern-batch-norm"
    assert default_recipe("/photos", "my.net") == "modern"
    assert default_recipe("/photos", "my.net", trained=True, draws_weights=True) == "frozen"
    assert RECIPES["modern-batch-norm"].lr > RECIPES["modern"].lr
