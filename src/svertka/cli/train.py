"""`svertka train`."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from svertka.cli.option_types import Columns, Group, MaxPixels, gigabytes, pixel_count
from svertka.cli.printing import print_json, print_line
from svertka.errors import UsageError
from svertka.escaping import command


def train(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="digits, mnist, fashion-mnist, cifar10, cifar100, a folder of pictures, or a CSV file",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="a network; see: svertka models")] = None,
    weights: Annotated[
        str | None, typer.Option(help="to start from: imagenet, bundled, a run folder, or a .safetensors or .pth file")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="a named recipe; unset: what suits the source")] = None,
    boxes: Annotated[
        str | None,
        typer.Option(help="where objects are (a folder of VOC .xml, COCO .json, .csv): learn from patches"),
    ] = None,
    output: Annotated[str | None, typer.Option(help="the run folder; unset: a free name under runs/")] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="a run folder to continue; SOURCE is then only needed if its pictures were moved"),
    ] = None,
    unfreeze: Annotated[
        str | None,
        typer.Option(help="what learns of trained weights: head, last, a number of stages below it, a stage, or all"),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="the last layer: linear, cosine or adaptation; computed: logistic, nearest-mean")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="passes over the training pictures")] = None,
    time: Annotated[str | None, typer.Option(help="as many epochs as fit into 90s, 10m or 1.5h")] = None,
    lr: Annotated[str | None, typer.Option(help="the highest learning rate, or: find")] = None,
    batch_size: Annotated[int | None, typer.Option(help="pictures a step")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd or adamw")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, step, plateau, cosine or polynomial")] = None,
    warmup: Annotated[float | None, typer.Option(help="epochs over which the rate rises")] = None,
    momentum: Annotated[float | None, typer.Option(help="0 to below 1")] = None,
    nesterov: Annotated[bool | None, typer.Option(help="Nesterov's momentum")] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="0 to below 1")] = None,
    clip: Annotated[float | None, typer.Option(help="largest norm of the gradient")] = None,
    accumulate: Annotated[int | None, typer.Option(help="parts in which a batch is computed, to save memory")] = None,
    class_weights: Annotated[bool | None, typer.Option(help="weigh rare classes more")] = None,
    early_stop: Annotated[int | None, typer.Option(help="stop after so many epochs without a better val error")] = None,
    augment: Annotated[bool, typer.Option(help="change the training pictures at random, as the recipe says")] = True,
    stage_rate: Annotated[float | None, typer.Option(help="times lr, for each stage further below the head")] = None,
    gradual: Annotated[bool | None, typer.Option(help="one more stage learns each epoch, from the head down")] = None,
    initial: Annotated[
        str | None, typer.Option(help="first weights: gaussian, glorot or he; unset: the network's own")
    ] = None,
    bfloat16: Annotated[
        bool | None, typer.Option(help="on the processor, if it multiplies bfloat16 itself: faster, less exact")
    ] = None,
    size: Annotated[int | None, typer.Option(help="side of the network's input, pixels")] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            help="how pictures become square: crop (to the centre), pad or squeeze; unset: as the weights, or crop"
        ),
    ] = None,
    val: Annotated[float, typer.Option(help="share taken for val where the source has no val part")] = 0.1,
    test: Annotated[float, typer.Option(help="share taken for test where the source has no test part")] = 0.0,
    group: Group = None,
    seed: Annotated[int, typer.Option(help="of weights, order and augmentation")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int | None, typer.Option(help="of the processor; unset: all cores")] = None,
    accelerate: Annotated[
        bool, typer.Option(help="compute convolutions with the fastest algorithm for each, on the processor")
    ] = True,
    prefetch: Annotated[
        bool | None, typer.Option(help="prepare batches ahead in a thread; unset: where it pays")
    ] = None,
    cache: Annotated[bool, typer.Option(help="compute what is frozen once, and store it")] = True,
    variants: Annotated[
        int | None, typer.Option(help="of each augmented picture that are stored; unset: as many as pay")
    ] = None,
    half_features: Annotated[bool, typer.Option("--half-features", help="store features as float16")] = False,
    cache_limit: Annotated[
        float | None, typer.Option(help="decoded pictures kept on disk, and features, each, GB")
    ] = None,
    max_pixels: MaxPixels = None,
    repeats: Annotated[
        int | None, typer.Option(help="train on so many divisions of the pictures, for a confidence interval")
    ] = None,
    columns: Columns = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="write for TensorBoard too")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Train a network on pictures and leave a run folder with its report.

    Example: svertka train photos/ --time 10m
    """
    given = locals()
    if source is None and resume is None:
        raise UsageError("name a SOURCE to train on, or --resume RUN to continue a run; see svertka train --help")
    from svertka.training import train as job

    if resume is not None:
        changed = [name for name, value in given.items() if name not in RESUMABLE and value != DEFAULTS[name]]
        if changed:
            option = "--" + changed[0].replace("_", "-")
            anew = command("train", Path(source or "SOURCE"), "--weights", Path(resume))
            raise UsageError(
                f"{option} cannot be given with --resume: the run goes on with its own settings; leave it out, or "
                f"start a new run from its weights: {anew} …"
            )
        run = job.resume(resume, source, boxes=boxes, tensorboard=tensorboard)
    else:
        changes = {
            "unfreeze": unfreeze,
            "head": head,
            "epochs": epochs,
            "batch_size": batch_size,
            "optimizer": optimizer,
            "schedule": schedule,
            "warmup": warmup,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "label_smoothing": label_smoothing,
            "clip": clip,
            "accumulate": accumulate,
            "class_weights": class_weights,
            "early_stop": early_stop,
            "stage_rate": stage_rate,
            "gradual": gradual,
            "initial": initial,
            "bfloat16": bfloat16,
        }
        options: dict[str, Any] = dict(
            model=model,
            weights=weights,
            recipe=recipe,
            boxes=boxes,
            output=output,
            time_budget=time,
            lr=lr,
            augment=augment,
            size=size,
            fit=fit,
            val=val,
            test=test,
            group=group,
            seed=seed,
            device=device,
            threads=threads,
            accelerate=accelerate,
            prefetch=prefetch,
            cache=cache,
            variants=variants,
            half_features=half_features,
            cache_limit=gigabytes("--cache-limit", cache_limit),
            columns=columns,
            max_pixels=pixel_count(max_pixels),
            tensorboard=tensorboard,
            **{name: value for name, value in changes.items() if value is not None},
        )
        if repeats is not None:
            _repeat(str(source), repeats, options, as_json=as_json)
            return
        run = job.train(str(source), **options)
    from svertka import distributed

    if not distributed.is_first():
        return
    result = run.result()
    if as_json:
        settings = run.settings()
        print_json(result | {"findings": run.findings(), "bad": settings["bad"]} | settings["account"])
        return
    errors = [f"{part} error {result[key]:.2%}" for part, key in PARTS.items() if result[key] is not None]
    speed = f"{result['images_per_second']:,.0f} images/s"
    print_line(f"{', '.join(errors) or 'trained'} after {result['epochs']:g} epochs, {speed}")
    for warning in run.settings()["account"].get("warnings", ()):
        print_line(f"warning: {warning}")
    print_line(f"the run is in {run.folder}; open {run.report}")


def _repeat(source: str, repeats: int, options: dict[str, Any], *, as_json: bool) -> None:
    from svertka import distributed
    from svertka.training.repeated_splits import repeat

    made = repeat(source, repeats, **options)
    if not distributed.is_first():
        return
    if as_json:
        print_json(made.summary())
        return
    print_line(made.sentence)
    print_line(f"the runs are in {made.folder}")


PARTS = {"val": "val_error", "test": "test_error"}
RESUMABLE = ("source", "resume", "boxes", "tensorboard", "as_json")
DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
