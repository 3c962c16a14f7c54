"""`svertka train`."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svertka.cli.option_types import (
    COMPUTE,
    DATA,
    OUTPUT,
    AsJson,
    CacheLimit,
    ClassNames,
    Columns,
    Device,
    Group,
    MaxPixels,
    Test,
    Threads,
    TrustBuilder,
    Val,
    parse_pixel_count,
)
from svertka.cli.printing import print_json, print_line, show_import_spinner
from svertka.confidence_intervals import error_interval
from svertka.errors import UsageError
from svertka.escaping import format_command

if TYPE_CHECKING:
    from svertka.run import Run

MODEL, OPTIMIZATION = "Model and weights", "Optimization"


def train(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="digits, mnist, fashion-mnist, cifar10, cifar100, a folder of images, a table of image paths and "
            "labels, or shards (a folder or URL of .tar files, or train-{000..012}.tar).",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Network to train; svertka models lists the names. Also possible: auto (of the pretrained networks "
            "on this machine, the best on your images), timm:NAME, torchvision:NAME, package.module:function or "
            "file.py:function. The function takes the number of classes and returns a network.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    head_layer: Annotated[
        str | None,
        typer.Option(
            help="Name of the layer that computes the class scores; only for networks that svertka does not list "
            "(default: detected).",
            rich_help_panel=MODEL,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights to start from: imagenet, bundled, pretrained (for timm and torchvision), a run folder, or a "
            ".safetensors or .pth file.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Name of a recipe, a set of training settings (default: the recipe for SOURCE).",
            rich_help_panel=MODEL,
        ),
    ] = None,
    unfreeze: Annotated[
        str | None,
        typer.Option(
            help="Layers to train when starting from weights: head, last (the head and the last stage), a number of "
            "stages below the head, the name of the lowest stage to train, or all.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="Type of the last layer: linear, cosine or adaptation (trained step by step), or logistic or "
            "nearest-mean (fitted directly to the features). Default: logistic for a new head of classes on frozen "
            "layers, with at most 4,000 training images and no option of steps, such as --epochs; else linear.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    initial: Annotated[
        str | None,
        typer.Option(
            help="Weight initialization: gaussian, glorot or he (default: the network's own).", rich_help_panel=MODEL
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Height and width of the network's input, in pixels.", rich_help_panel=MODEL)
    ] = None,
    boxes: Annotated[
        str | None,
        typer.Option(
            help="Bounding boxes: a folder of VOC .xml files, a COCO .json or a .csv. The network is then trained on "
            "patches of the images.",
            rich_help_panel=DATA,
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            help="How to make images square: crop, pad or squeeze (default: as the weights expect, else crop).",
            rich_help_panel=DATA,
        ),
    ] = None,
    augment: Annotated[
        bool, typer.Option(help="Apply the recipe's random augmentations.", rich_help_panel=DATA)
    ] = True,
    auto_augment: Annotated[
        str | None,
        typer.Option(
            help="Additional random operations on each image: rand (RandAugment), trivial (TrivialAugment) or none "
            "(default: the recipe's).",
            rich_help_panel=DATA,
        ),
    ] = None,
    random_erasing: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Fraction of the images in which a random rectangle is replaced with noise.",
            rich_help_panel=DATA,
        ),
    ] = None,
    mixup: Annotated[
        float | None,
        typer.Option(
            metavar="ALPHA",
            help="Mix pairs of images and their labels; the mixing weights are drawn from Beta(ALPHA, ALPHA). A "
            "typical ALPHA is 0.2.",
            rich_help_panel=DATA,
        ),
    ] = None,
    cutmix: Annotated[
        float | None,
        typer.Option(
            metavar="ALPHA",
            help="Replace a rectangle of each image with the same rectangle of another image; the area is drawn from "
            "Beta(ALPHA, ALPHA). A typical ALPHA is 1.",
            rich_help_panel=DATA,
        ),
    ] = None,
    val: Val = 0.1,
    test: Test = 0.0,
    repeats: Annotated[
        int | None,
        typer.Option(
            help="Train on this many random splits and report a confidence interval of the error.", rich_help_panel=DATA
        ),
    ] = None,
    split_seed: Annotated[
        int | None, typer.Option(help="Seed of the random split into train, val and test.", rich_help_panel=DATA)
    ] = None,
    group: Group = None,
    unknown: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Images of none of the classes, to choose the threshold above which an image is called unknown "
            "(default: 95 % of the validation images are below it).",
            rich_help_panel=DATA,
        ),
    ] = None,
    columns: Columns = None,
    names: ClassNames = None,
    max_pixels: MaxPixels = None,
    epochs: Annotated[
        float | None, typer.Option(help="Number of passes over the training set.", rich_help_panel=OPTIMIZATION)
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            help="Train for as many epochs as fit into this time, such as 90s, 10m or 1.5h.",
            rich_help_panel=OPTIMIZATION,
        ),
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(
            help="Highest learning rate, or 'find' to determine it with a range test.", rich_help_panel=OPTIMIZATION
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.", rich_help_panel=OPTIMIZATION)] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="Optimizer: sgd or adamw.", rich_help_panel=OPTIMIZATION)
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Learning rate schedule: constant, step, plateau, cosine or polynomial.", rich_help_panel=OPTIMIZATION
        ),
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Length of the warm-up, in epochs.", rich_help_panel=OPTIMIZATION)
    ] = None,
    momentum: Annotated[
        float | None, typer.Option(help="Momentum, at least 0 and below 1.", rich_help_panel=OPTIMIZATION)
    ] = None,
    nesterov: Annotated[bool | None, typer.Option(help="Use Nesterov momentum.", rich_help_panel=OPTIMIZATION)] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.", rich_help_panel=OPTIMIZATION)] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Label smoothing, at least 0 and below 1.", rich_help_panel=OPTIMIZATION)
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(
            metavar="DECAY",
            help="Decay of an exponential moving average of the weights, which is validated and saved instead of the "
            "weights. A typical value is 0.999; 0 switches off the average of a recipe.",
            rich_help_panel=OPTIMIZATION,
        ),
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Norm to which gradients are clipped.", rich_help_panel=OPTIMIZATION)
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            help="Number of parts in which each batch is computed, to save memory.", rich_help_panel=OPTIMIZATION
        ),
    ] = None,
    sync_batch_norm: Annotated[
        bool | None,
        typer.Option(
            help="With torchrun: normalize by the mean and variance of the whole batch instead of those of each "
            "process's share.",
            rich_help_panel=OPTIMIZATION,
        ),
    ] = None,
    bfloat16_gradients: Annotated[
        bool | None,
        typer.Option(
            help="With torchrun: send gradients between processes in bfloat16, which halves the traffic.",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    class_weights: Annotated[
        bool | None, typer.Option(help="Weight classes by inverse frequency.", rich_help_panel=OPTIMIZATION)
    ] = None,
    early_stop: Annotated[
        int | None,
        typer.Option(
            help="Stop after this many epochs without a lower validation error.", rich_help_panel=OPTIMIZATION
        ),
    ] = None,
    stage_rate: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of a stage relative to that of the next stage toward the head, above 0 and at most 1.",
            rich_help_panel=OPTIMIZATION,
        ),
    ] = None,
    gradual: Annotated[
        bool | None,
        typer.Option(help="Unfreeze one more stage each epoch, from the head down.", rich_help_panel=OPTIMIZATION),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed for initial weights, image order and augmentation.", rich_help_panel=OPTIMIZATION)
    ] = 0,
    device: Device = "auto",
    threads: Threads = None,
    accelerate: Annotated[
        bool,
        typer.Option(help="On the CPU, use the fastest algorithm for each convolution.", rich_help_panel=COMPUTE),
    ] = True,
    bfloat16: Annotated[
        bool | None,
        typer.Option(
            help="Multiply in bfloat16 on CPUs with AVX512-BF16, which is faster but less precise.",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    prefetch: Annotated[
        bool | None,
        typer.Option(
            help="Prepare batches in a background thread (default: if that is faster).", rich_help_panel=COMPUTE
        ),
    ] = None,
    cache: Annotated[
        bool, typer.Option(help="Compute the features of frozen layers once and store them.", rich_help_panel=COMPUTE)
    ] = True,
    variants: Annotated[
        int | None,
        typer.Option(
            help="Number of augmented variants of each image whose features are stored (default: chosen to save time).",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    half_features: Annotated[
        bool, typer.Option("--half-features", help="Store features as float16.", rich_help_panel=COMPUTE)
    ] = False,
    feature_store: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder or URL, such as s3://bucket/features, through which several machines, and later trainings, "
            "share the features of frozen layers.",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    gpu_decode: Annotated[
        bool,
        typer.Option(
            "--gpu-decode",
            help="Decode the JPEGs of the training set on the GPU, if images are decoded at each read; needs "
            "torchvision.",
            rich_help_panel=COMPUTE,
        ),
    ] = False,
    cache_limit: CacheLimit = None,
    output: Annotated[
        str | None,
        typer.Option(help="Run folder to create (default: a new folder under runs/).", rich_help_panel=OUTPUT),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Run folder to continue. SOURCE is then needed only if the images have moved.", rich_help_panel=OUTPUT
        ),
    ] = None,
    trust_builder: TrustBuilder = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard logs.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a network and write a run folder with its weights, history and report.

    Example: svertka train photos/ --time 10m
    """
    given = locals()
    if source is None and resume is None:
        raise UsageError("name a SOURCE to train on, or --resume RUN to continue a run; see svertka train --help")
    if resume is not None:
        changed = [name for name, value in given.items() if name not in RESUMABLE and value != DEFAULTS[name]]
        if changed:
            option = "--" + changed[0].replace("_", "-")
            anew = format_command("train", Path(source or "SOURCE"), "--weights", Path(resume))
            raise UsageError(
                f"{option} cannot be given with --resume: the run continues with its own settings; leave it out, or "
                f"start a new run from its weights: {anew} …"
            )
        with show_import_spinner():
            from svertka.training.resume import resume as continue_run

        run = continue_run(resume, source, boxes=boxes, tensorboard=tensorboard, trust_builder=trust_builder)
    else:
        with show_import_spinner():
            from svertka.training.train import train as train_run

        options = {name: value for name, value in given.items() if name not in NOT_FOR_TRAIN}
        run = train_run(str(source), **options | {"max_pixels": parse_pixel_count(max_pixels)})
    from svertka import distributed
    from svertka.training.repeated_splits import Repeats

    if not distributed.is_first():
        return
    if as_json:
        print_json(run.to_dict())
    elif isinstance(run, Repeats):
        print_line(run.sentence)
        print_line(f"the runs are in {run.folder}")
    else:
        _print_run(run)


def _print_run(run: "Run") -> None:
    """Print warnings about a finished run, what to do next, and its errors, the one to rely on last."""
    from svertka.training.recipe import Recipe

    result, settings = run.result(), run.settings()
    unit = "features" if settings["cache"] else "images"  # stored features of frozen layers
    speed = f"{result['images_per_second']:,.0f} {unit}/s"
    epochs = f"{result['epochs']:g} epoch{'' if result['epochs'] == 1 else 's'}"
    is_computed = Recipe.model_validate(settings["recipe"]).is_computed
    print_line(f"fitted the {settings['recipe']['head']} head" if is_computed else f"trained for {epochs} at {speed}")
    for warning in settings["account"].get("warnings", ()):
        print_line(f"warning: {warning}")
    print_line(f"the run is in {run.folder}; open {run.report}")
    for verb, argument in {"predict": " IMAGE...", "look": "", "serve": ""}.items():
        print_line(f"next: {format_command(verb, run.folder, *run.consent)}{argument}")
    for sentence in _describe_errors(run):
        print_line(sentence)


def _describe_errors(run: "Run") -> list[str]:
    """Return the errors of a finished run with their intervals and numbers of images, the one to rely on last."""
    from svertka.evaluation.cross_validation import CrossValidation

    result, settings = run.result(), run.settings()
    validated = run.cross_validation()
    of_folds = [] if validated is None else [CrossValidation.model_validate(validated).sentence]
    if (sentence := result.get("sentence")) is not None:  # several labels, or a number
        return [f"{result['part']}: {sentence}", *of_folds]
    # Counts in training.json are of patches, if the network was trained on these.
    counts = {} if settings.get("boxes") else dict(settings.get("parts", {}))
    counts |= {result.get("part"): result.get("images")}
    errors = {part: result[key] for part, key in PARTS.items() if result[key] is not None}
    sentences = [_describe_error(part, error, counts.get(part)) for part, error in errors.items()]
    sentences += of_folds
    return sentences or ["the error on new images is not known: no image was held out; see --val and --test"]


def _describe_error(part: str, error: float, images: int | None) -> str:
    """Return the error on a part of the images in words."""
    if not images:
        return f"{part} error {error:.2%}"
    low, high = error_interval(error, images)
    return f"{part} error {error:.2%}, 95 % interval {low:.2%} to {high:.2%}, on {images:,} images of {part}"


PARTS = {"val": "val_error", "test": "test_error"}
RESUMABLE = ("source", "resume", "boxes", "tensorboard", "trust_builder", "as_json")
NOT_FOR_TRAIN = {"source", "resume", "as_json"}
DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
