"""The built-in recipes, each with its source, and the default recipe for a source and a network."""

from functools import cache

from torch import nn

from svertka.data.augmentation import (
    AreaCrop,
    Flip,
    PadCrop,
    PCAColor,
    RandomCrop,
    RandomErasing,
    ScaleJitter,
    TrivialAugment,
)
from svertka.device import meta_device
from svertka.errors import UsageError
from svertka.models.registry import MODELS
from svertka.training.lr_schedule import Cosine, Plateau, Polynomial, Step
from svertka.training.recipe import Recipe
from svertka.transfer.freeze import HEAD

LENET5 = Recipe(
    source="LeCun et al. 1998 §III.B: a falling learning rate, no distortions. Momentum and a cosine replace its "
    "second-order step sizes; clipping and label smoothing keep logits, which are distances of 100 and more, "
    "bounded, as the constant in its eq. 9 does. Values chosen on the validation set",
    batch_size=64,
    epochs=30,
    lr=0.03,
    weight_decay=3e-4,
    schedule=Cosine(),
    warmup=1,
    label_smoothing=0.02,
    clip=1,
)

RESNET_CIFAR = Recipe(
    source="He et al. 2015 §4.2: learning rate 0.1, ÷10 at 32k and 48k of 64k steps, pad-4 crops and flips",
    batch_size=128,
    epochs=164,
    lr=0.1,
    weight_decay=1e-4,
    schedule=Step(at=(0.5, 0.75)),
    augmentations=(PadCrop(pixels=4), Flip()),
    normalize="mean",
)

GOOGLENET = Recipe(
    source="Szegedy et al. 2014 §5, §6: auxiliary losses at 0.3, crops of 8 to 100 % of the area, a learning rate 4 % "
    "lower every 8 epochs; 0.01, weight decay and batch size, which it does not name, are those of Caffe's GoogLeNet",
    batch_size=32,
    epochs=240,
    lr=0.01,
    weight_decay=2e-4,
    schedule=Step(at=tuple(k / 30 for k in range(1, 30)), factor=0.96),
    auxiliary=0.3,
    augmentations=(AreaCrop(), Flip(), PCAColor()),
    normalize="mean",
)

PHOTOS = Recipe(
    source="svertka: He et al. 2015 §4.2 with a cosine, fewer epochs and Goyal et al.'s warm-up, for small folders",
    batch_size=64,
    epochs=30,
    lr=0.05,
    weight_decay=5e-4,
    schedule=Cosine(),
    warmup=2,
    nesterov=True,
    augmentations=(PadCrop(pixels=8), Flip()),
)

FROZEN = Recipe(
    source="svertka: all layers frozen but the head, from trained weights. Values chosen on the validation set",
    unfreeze="head",
    batch_size=64,
    epochs=30,
    lr=0.02,
    weight_decay=5e-4,
    schedule=Cosine(),
)

PLAIN = Recipe(
    source="svertka: settings that suit most data; no augmentation, which would assume something about the images",
    batch_size=64,
    epochs=20,
    lr=0.02,
    weight_decay=5e-4,
    schedule=Cosine(),
    warmup=1,
)

MODERN = Recipe(
    source="Touvron et al. 2021 (DeiT) table 9 and Liu et al. 2022 (ConvNeXt) appendix A: AdamW, cosine, label "
    "smoothing 0.1, weight decay 0.05, a rate of 5e-4 per 512 images rounded up for batches of 64; TrivialAugment, "
    "random erasing 0.1, MixUp 0.2, CutMix 1 and averaged weights of Vryniotis 2021 (torchvision's recipe), "
    "averaged over fewer steps; clipped, and fewer epochs, for small folders",
    batch_size=64,
    epochs=30,
    optimizer="adamw",
    lr=5e-4,
    weight_decay=0.05,
    schedule=Cosine(),
    warmup=2,
    label_smoothing=0.1,
    clip=1,
    ema=0.999,
    mixup=0.2,
    cutmix=1,
    augmentations=(AreaCrop(), Flip(), TrivialAugment(), RandomErasing(probability=0.1)),
)

RECIPES = {
    "plain": PLAIN,
    "plain-no-batch-norm": PLAIN.with_changes(
        source="svertka: as plain, clipped, for networks of many layers without batch norm",
        clip=1,
    ),
    "frozen": FROZEN,
    "fine-tuning": FROZEN.with_changes(
        source="svertka: the head is computed first (Kumar et al. 2022), then trained with the stages below it at a "
        "low learning rate, which is lower for stages further below (Howard & Ruder 2018)",
        unfreeze="last",
        computed_first=True,
        batch_size=32,
        epochs=10,
        lr=0.01,
        schedule=Cosine(),
        warmup=1,
        stage_rate=0.5,
        augmentations=(Flip(),),
    ),
    "patches": FROZEN.with_changes(
        source="Oquab et al. 2014 §3.1: two adaptation layers on patches, all else frozen. Learning rate: svertka's",
        head="adaptation",
        batch_size=256,
        epochs=10,
        class_weights=True,
    ),
    "lenet5-mnist": LENET5,
    "lenet5-digits": LENET5.with_changes(
        source="svertka: as for MNIST, with shifts and more passes over fewer images. Values chosen by "
        "cross-validation on the training and validation sets",
        batch_size=32,
        epochs=100,
        augmentations=(PadCrop(pixels=2),),
    ),
    "photos": PHOTOS,
    "photos-no-batch-norm": PHOTOS.with_changes(
        source="svertka: as photos, at the learning rate of AlexNet, VGG and GoogLeNet, and clipped",
        lr=0.01,
        clip=1,
    ),
    "alexnet": Recipe(
        source="Krizhevsky et al. 2012 §4.1, §5: crops, flips, PCA color; 0.01, ÷10 when the validation error stalls",
        batch_size=128,
        epochs=90,
        lr=0.01,
        weight_decay=5e-4,
        schedule=Plateau(patience=5),
        augmentations=(RandomCrop(), Flip(), PCAColor()),
        normalize="mean",
    ),
    "vgg": Recipe(
        source="Simonyan & Zisserman 2014 §3.1: net A from N(0, 0.01), the deeper ones from its first four "
        "convolutions and its dense layers; scales 256 to 512; 0.01, ÷10 when the validation error stalls; 74 epochs",
        start="vgg11",
        initial="gaussian",
        batch_size=256,
        epochs=74,
        lr=0.01,
        weight_decay=5e-4,
        schedule=Plateau(patience=5),
        augmentations=(ScaleJitter(), Flip(), PCAColor()),
        normalize="mean",
    ),
    "googlenet": GOOGLENET,
    "googlenet-quick": GOOGLENET.with_changes(
        source="Caffe's GoogLeNet of 2014: learning rate falling as the square root of the remaining share of 60 "
        "epochs, random crops; the rest as Szegedy et al. 2014",
        epochs=60,
        schedule=Polynomial(power=0.5),
        augmentations=(RandomCrop(), Flip()),
    ),
    "resnet": Recipe(
        source="He et al. 2015 §3.4: scales 256 to 480, flips, PCA color; 0.1, ÷10 when the validation error stalls; "
        "600,000 steps of 256 images are 120 epochs",
        batch_size=256,
        epochs=120,
        lr=0.1,
        weight_decay=1e-4,
        schedule=Plateau(patience=5),
        augmentations=(ScaleJitter(high=480 / 224), Flip(), PCAColor()),
        normalize="mean",
    ),
    "resnet-cifar": RESNET_CIFAR,
    "resnet-cifar-110": RESNET_CIFAR.with_changes(
        source="He et al. 2015 §4.2: for 110 layers, 0.01 during the first 400 steps; then as the others",
        warmup=400 / 352,  # 45,000 images are 352 steps
        warmup_rate=0.01,
    ),
    "modern": MODERN,
    "modern-batch-norm": MODERN.with_changes(
        source="svertka: as modern, at the learning rate of fastai's learners, which suits networks with batch norm "
        "and fresh weights. Chosen on labels and numbers of images composed of digits",
        lr=3e-3,
    ),
    "cifar10-fast": Recipe(
        source="Jordan 2024, 94% on CIFAR-10 in 3.29 seconds on a single GPU, table 1 and §3: its learning "
        "rates for batches of 1024 halved for 512, which suits a CPU's caches; 12 epochs instead of 9.9",
        batch_size=512,
        epochs=12,
        lr=0.75,
        momentum=0.85,
        nesterov=True,
        weight_decay=0.00133,
        schedule=Polynomial(end=0.07),
        warmup=3,
        bias_rate=64,
        lookahead=5,
        label_smoothing=0.2,
        bfloat16=True,
        augmentations=(PadCrop(pixels=2, outside="reflection"), Flip(in_turns=True)),
    ),
}

# Default model and recipe of each built-in data set, from fresh weights.
DEFAULTS = {
    "digits": ("lenet5", "lenet5-digits"),
    "mnist": ("lenet5", "lenet5-mnist"),
    "fashion-mnist": ("lenet5", "lenet5-mnist"),
    "cifar10": ("resnet20", "resnet-cifar"),
    "cifar100": ("resnet20", "resnet-cifar"),
}

# Networks for 32×32 images with a recipe of their own on CIFAR.
SMALL_NETWORK_RECIPES = {"airbench": "cifar10-fast", "resnet110": "resnet-cifar-110", "plain110": "resnet-cifar-110"}


def default_recipe(
    source: str, model: str, *, unfreeze: str | None = None, trained: bool = False, draws_weights: bool = False
) -> str:
    """Return the name of the default recipe.

    Args:
        source: The source of the images.
        model: Name of the network, of the registry or not.
        unfreeze: Layers to train if it starts from trained weights. None: the head.
        trained: Whether it starts from trained weights.
        draws_weights: Whether it has batch norm and is built with fresh weights, as `Model.draws_weights`.
    """
    if trained:
        return "frozen" if unfreeze in (None, HEAD) else "fine-tuning"
    if model not in MODELS:
        return "modern-batch-norm" if draws_weights else "modern"
    default_model, recipe = DEFAULTS.get(source, ("", ""))
    if model == default_model:
        return recipe
    if model in ("mlp", "lenet5"):
        return "plain"
    if source in ("digits", "mnist", "fashion-mnist"):
        return "plain" if _has_batch_norm(model) else "plain-no-batch-norm"
    if source in ("cifar10", "cifar100") and MODELS[model].size == 32:
        return SMALL_NETWORK_RECIPES.get(model, "resnet-cifar")
    return "photos" if _has_batch_norm(model) else "photos-no-batch-norm"


@cache
def _has_batch_norm(model: str) -> bool:
    with meta_device():
        return any(isinstance(layer, nn.BatchNorm2d) for layer in MODELS[model].build().modules())


def find_recipe_by_name(name: str) -> Recipe:
    """Return the recipe called `name`.

    Raises:
        UsageError: There is none.
    """
    if name not in RECIPES:
        raise UsageError(f"recipe={name} is not known; use one of: {', '.join(RECIPES)}")
    return RECIPES[name]
