"""train(): train a network on a source of labeled images."""

from collections.abc import Callable
from inspect import signature
from os import PathLike, fspath
from typing import Any

from torch import nn

from svertka.data.hash_split import VAL_SHARE
from svertka.data.sharded_images import ClassNames, read_class_names
from svertka.data.source_opener import Source, is_path
from svertka.device import with_preserved_settings
from svertka.files import parse_cache_limit_option
from svertka.run import Run
from svertka.training.recipe import Recipe
from svertka.training.repeated_splits import train_repeatedly
from svertka.training.single_run import TrainingOptions, train_run
from svertka.type_checking import check_types


@check_types
@with_preserved_settings
def train(
    source: Source,
    *,
    model: str | nn.Module | Callable[..., nn.Module] | None = None,
    head_layer: str | None = None,
    weights: str | PathLike[str] | None = None,
    recipe: str | Recipe | None = None,
    unfreeze: str | None = None,
    head: str | None = None,
    initial: str | None = None,
    size: int | None = None,
    boxes: str | PathLike[str] | None = None,
    fit: str | None = None,
    augment: bool = True,
    auto_augment: str | None = None,
    random_erasing: float | None = None,
    mixup: float | None = None,
    cutmix: float | None = None,
    val: float = VAL_SHARE,
    test: float = 0.0,
    split_seed: int | None = None,
    repeats: int | None = None,
    group: str | None = None,
    unknown: str | PathLike[str] | None = None,
    columns: str | None = None,
    names: ClassNames | None = None,
    max_pixels: int | None = None,
    epochs: float | None = None,
    time: str | float | None = None,
    lr: float | str | None = None,
    batch_size: int | None = None,
    optimizer: str | None = None,
    schedule: str | None = None,
    warmup: float | None = None,
    momentum: float | None = None,
    nesterov: bool | None = None,
    weight_decay: float | None = None,
    label_smoothing: float | None = None,
    ema: float | None = None,
    clip: float | None = None,
    accumulate: int | None = None,
    sync_batch_norm: bool | None = None,
    bfloat16_gradients: bool | None = None,
    class_weights: bool | None = None,
    early_stop: int | None = None,
    stage_rate: float | None = None,
    gradual: bool | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    accelerate: bool = True,
    bfloat16: bool | None = None,
    prefetch: bool | None = None,
    cache: bool = True,
    variants: int | None = None,
    half_features: bool = False,
    feature_store: str | PathLike[str] | None = None,
    gpu_decode: bool = False,
    cache_limit: float | None = None,
    output: str | PathLike[str] | None = None,
    tensorboard: bool = False,
    trust_builder: bool = False,
) -> Run | Any:  # a Repeats if `repeats` is given; as a union, every use of a Run would have to be narrowed
    """Train a network on `source` and return the finished run, or the runs if `repeats` is given.

    The options are those of `svertka train`. Settings of the recipe that are None keep the recipe's value. With fewer
    than 500 labeled images and all layers frozen but the head, the head is also cross-validated, on train and val:
    `Run.cross_validation` returns the error and its interval.

    Args:
        source: Labeled images, as one of
            digits, mnist, fashion-mnist, cifar10 or cifar100;
            the path of a folder of images, or of a table that labels images;
            a list of (path, label) pairs;
            a pair of arrays, images (N, H, W), (N, H, W, 3) or (N, 3, H, W) uint8 and labels (N,);
            a PyTorch Dataset of (image, label), the images as PIL images or uint8 arrays.
            Labels are integers or strings. The run records the content of the images, not the objects: pass them again
            to `resume`, `evaluate` and `check`.
        model: Name of a network, as `svertka models` lists them, "timm:NAME" or "torchvision:NAME"; an nn.Module, which
            is copied, and whose head is replaced if it has another number of classes; a function from the number of
            classes to an nn.Module, or its name, "package.module:function" or "file.py:function". Modules and functions
            start from the weights that they come with. "auto": of the networks whose pretrained weights are on this
            machine, the one whose frozen features have the lowest cross-validated error on training images; they are
            compared for at most 2 minutes, or a quarter of `time`. None: the one that suits `source`.
        head_layer: Path of the linear layer or 1×1 convolution that computes the class scores of a network that is not
            svertka's; None: found in a trace.
        weights: Weights to start from, with the preprocessing that belongs to them: "imagenet" or "bundled" if they are
            published for `model`, "pretrained" for those of timm and torchvision, a run folder, whose network is then
            the model, or a file. None: fresh weights; for a source of your own without `model`, the bundled
            EfficientNet-Lite0.
        recipe: A recipe, or the name of one. None: the one that suits `source`, `model` and `weights`.
        unfreeze: Layers to train when starting from weights: "head" (the default), "last", a number of stages below the
            head, the name of a stage, or "all".
        head: Last layer: "linear", "cosine" or "adaptation", trained step by step; or "logistic" or "nearest-mean",
            fitted directly to the features. None: that of the recipe. With the default recipe, a new dense layer on
            frozen layers is "logistic" for at most 4,000 training images of one class each, unless an option of steps
            is given, such as `epochs`, `lr` or `time`; it errs less than one that is trained in the recipe's few steps.
        initial: Weight initialization: "gaussian", "glorot" or "he". None: the network's own.
        size: Height and width of the network's input, in pixels. None: that of the weights, or of the images.
        boxes: Bounding boxes: a folder of VOC .xml files, a COCO .json or a .csv. The head is then trained on patches,
            with one more class for background.
        fit: How images are made square: "crop", "pad" or "squeeze". None: as the weights expect, else "crop".
        augment: Apply the recipe's random augmentations, and mix images if the recipe does.
        auto_augment: Further random operations on each image: "rand" (RandAugment) or "trivial" (TrivialAugment);
            "none" leaves out those of the recipe.
        random_erasing: Share of the images in which a random rectangle is replaced by noise, 0 to 1.
        mixup: Mix pairs of images and their labels; the mixing weights are drawn from Beta(mixup, mixup). A typical
            value is 0.2; 0: do not mix.
        cutmix: Replace a rectangle of each image by that of another one, and the label in proportion; areas are from
            Beta(cutmix, cutmix), such as 1; 0: do not. With `mixup`, one of both at random for each image. An
            image that is alone in its batch is not mixed.
        val: Share of the training images held out for validation if `source` has no val part, 0 to 1.
        test: Share held out for testing if `source` has no test part, 0 to 1.
        split_seed: Draws another random split into train, val and test for each number. None: the default split.
        repeats: Train on this many random splits, 2 to 1000, and return a `Repeats` with a confidence interval.
        group: Regular expression; images in whose file names it finds the same text stay in one part.
        unknown: A folder of images that show none of the classes. With it, the threshold above which the run calls an
            image unknown is the one that best separates them from the validation images; without it, 95 % of the
            validation images are below.
        columns: Columns of a table that contain paths and labels, such as "path=file,label=class"; "labels=tags" for
            several labels an image, "target=age" for a number.
        names: Class names of shards whose labels are numbers: a list, or a text file with one class per line.
        max_pixels: Largest image to read, pixels; larger JPEGs are decoded at reduced size. None: 100 million.
        epochs: Number of passes over the training set, above 0.
        time: Train for as many epochs as fit into "90s", "10m" or "1.5h"; a number is in seconds.
        lr: Highest learning rate, above 0, or "find" for a learning rate range test.
        batch_size: Number of images per step, over all processes, at least 1.
        optimizer: "sgd" or "adamw".
        schedule: Learning rate schedule: "constant", "step", "plateau", "cosine" or "polynomial".
        warmup: Epochs over which the learning rate rises.
        momentum: Momentum, at least 0 and below 1.
        nesterov: Use Nesterov momentum.
        weight_decay: Weight decay, as PyTorch's optimizers define it, at least 0.
        label_smoothing: Label smoothing, at least 0 and below 1.
        ema: Share that an exponential moving average of the weights keeps at each step, such as 0.999; the averaged
            weights are validated and saved. 0: no average, also where the recipe has one.
        clip: Norm to which gradients are clipped, above 0.
        accumulate: Number of parts in which each batch is computed, to save memory.
        sync_batch_norm: With several processes, normalize by the mean and variance of the whole batch instead of those
            of each process's share.
        bfloat16_gradients: With several processes, send gradients in bfloat16, which halves the traffic.
        class_weights: Weight classes by inverse frequency.
        early_stop: Stop after this many epochs without a lower validation error.
        stage_rate: Factor of the learning rate for each stage further below the head, above 0 and at most 1.
        gradual: Unfreeze one more stage each epoch, from the head down.
        seed: Seed for initial weights, image order and augmentation.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads, at least 1. None: all cores.
        accelerate: On the CPU, compute each convolution with the fastest algorithm.
        bfloat16: Multiply in bfloat16 on CPUs with AVX512-BF16.
        prefetch: Prepare batches in a background thread. None: if that is faster.
        cache: Compute the features of frozen layers once and store them, if that saves time.
        variants: Number of stored augmented variants of each image. None: as many as save time.
        half_features: Store features as float16.
        feature_store: Folder or URL, such as s3://bucket/features, through which several machines, and later trainings,
            share the features of frozen layers.
        gpu_decode: Decode the JPEGs of the training set on the GPU, if images are decoded at each read; needs
            torchvision.
        cache_limit: Disk space for decoded images, and for features, GB each (10⁹ bytes). None: a share of the free
            disk.
        output: Run folder, or with `repeats` the folder of the runs. None: a free name under runs/.
        tensorboard: Also write TensorBoard logs.
        trust_builder: Whether a run that is given as `weights` may import the code that builds its network, if it is
            not svertka's, timm's or torchvision's.

    Returns:
        The finished `Run`; with `repeats`, a `Repeats` with the runs, their errors and their confidence interval.

    Raises:
        UsageError: An option has an impossible value, or the run folder exists.
        DataError: The images do not allow the training.
        TrainingError: The loss diverged, or a worker process was lost.
        Interrupted: Ctrl-C or SIGTERM; the run is saved and can be resumed.
    """
    given = locals()
    given.pop("repeats")
    changes = {name: value for name in RECIPE_SETTINGS if (value := given.pop(name)) is not None}
    given |= {name: fspath(given[name]) for name in PATHS if given[name] is not None}
    given |= {
        "source": fspath(source) if is_path(source) else source,
        "cache_limit": parse_cache_limit_option(cache_limit),
        "names": None if names is None else read_class_names(names),
    }
    options = TrainingOptions(**given, changes=changes)
    return train_run(options) if repeats is None else train_repeatedly(options, repeats)


PATHS = ("weights", "boxes", "unknown", "feature_store", "output")
NOT_SETTINGS = ("source", "lr")  # options that are called as fields of Recipe, but handled otherwise
RECIPE_SETTINGS = tuple(
    name for name in signature(train).parameters if name in Recipe.model_fields and name not in NOT_SETTINGS
)
