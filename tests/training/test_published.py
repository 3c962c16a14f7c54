import pytest

from svertka.data.published import NAMES
from svertka.errors import UsageError
from svertka.models.zoo import MODELS
from svertka.training.published import DEFAULTS, RECIPES, find_recipe, recipe_for


def test_every_recipe_names_its_source() -> None:
    assert all(recipe.source for recipe in RECIPES.values())


def test_every_source_has_a_network_and_a_recipe() -> None:
    assert set(DEFAULTS) == {*NAMES, ""}
    for source, (model, recipe) in DEFAULTS.items():
        assert model in MODELS
        assert recipe in RECIPES
        assert recipe_for(source, model) == recipe


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("source", [*NAMES, "/photos"])
def test_every_network_has_a_recipe_on_every_source(source: str, model: str) -> None:
    assert recipe_for(source, model) in RECIPES


def test_an_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(UsageError, match="recipe=fast is not known; use one of: plain, "):
        find_recipe("fast")
