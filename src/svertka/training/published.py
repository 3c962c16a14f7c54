"""The recipes by name, each with its source, and which one a network is trained with unless another is asked for."""

from svertka.data.augment import Flip, PadCrop, PCAColour, RandomCrop
from svertka.errors import UsageError
from svertka.training.recipe import Recipe
from svertka.training.schedule import Cosine, Plateau, Step

LENET5 = Recipe(
    source="LeCun et al. 1998 §III.B: a falling rate, no distortions. Momentum and a cosine stand for "
    "its second-order step sizes; clipping and smoothing tame logits that are distances of a hundred and "
    "more, as the constant in its eq. 9 does. Values chosen on val",
    batch_size=64,
    epochs=30,
    lr=0.03,
    weight_decay=3e-4,
    schedule=Cosine(),
    warmup=1,
    label_smoothing=0.02,
    clip=1,
)

RECIPES = {
    "plain": Recipe(
        source="svertka: settings that learn most things; no augmentation, so that nothing is assumed of the pictures",
        batch_size=64,
        epochs=20,
        lr=0.02,
        weight_decay=5e-4,
        schedule=Cosine(),
        warmup=1,
    ),
    "lenet5-mnist": LENET5,
    "lenet5-digits": LENET5.with_changes(
        source="svertka: as for MNIST, with shifts and more passes over fewer pictures. Values chosen by "
        "cross-validation on train and val",
        batch_size=32,
        epochs=100,
        augmentations=(PadCrop(pixels=2),),
    ),
    "resnet-cifar": Recipe(
        source="He et al. 2015 §4.2: rate 0.1, ÷10 at 32k and 48k of 64k steps, pad-4 crops and flips",
        batch_size=128,
        epochs=164,
        lr=0.1,
        weight_decay=1e-4,
        schedule=Step(at=(0.5, 0.75)),
        augmentations=(PadCrop(pixels=4), Flip()),
        normalise="mean",
    ),
    "photos": Recipe(
        source="svertka: He et al. 2015 §4.2 with a cosine, fewer epochs and Goyal et al.'s warm-up, for small folders",
        batch_size=64,
        epochs=30,
        lr=0.05,
        weight_decay=5e-4,
        schedule=Cosine(),
        warmup=2,
        nesterov=True,
        augmentations=(PadCrop(pixels=8), Flip()),
    ),
    "alexnet": Recipe(
        source="Krizhevsky et al. 2012 §4.1, §5: crops, flips, PCA colour; 0.01, ÷10 whenever the val error stalls",
        batch_size=128,
        epochs=90,
        lr=0.01,
        weight_decay=5e-4,
        schedule=Plateau(patience=5),
        augmentations=(RandomCrop(), Flip(), PCAColour()),
        normalise="mean",
    ),
}

# source → (model, recipe); a folder has the key "".
DEFAULTS = {
    "digits": ("lenet5", "lenet5-digits"),
    "mnist": ("lenet5", "lenet5-mnist"),
    "fashion-mnist": ("lenet5", "lenet5-mnist"),
    "cifar10": ("resnet20", "resnet-cifar"),
    "cifar100": ("resnet20", "resnet-cifar"),
    "": ("resnet20", "photos"),
}


def recipe_for(source: str, model: str) -> str:
    """The name of the recipe for training `model` on `source` where none is asked for."""
    default_model, recipe = DEFAULTS.get(source, DEFAULTS[""])
    return recipe if model == default_model else "plain" if model != "resnet20" else "photos"


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        UsageError: there is none.
    """
    if name not in RECIPES:
        raise UsageError(f"recipe={name} is not known; use one of: {', '.join(RECIPES)}")
    return RECIPES[name]
