"""A training from its options to the finished run: resolve the options, prepare the data, measure, train.

Each step takes the result of the one before. Nothing is written to the run folder before the last one.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svertka import distributed
from svertka.classifier import Classifier, read_initial_weights, read_model_of_run
from svertka.conv.accelerate import accelerate
from svertka.data.augmentation import RandAugment, TrivialAugment, merge_augmentations
from svertka.data.band_detection import find_bands
from svertka.data.band_ranges import BandRanges
from svertka.data.dataset import ArrayImages, Dataset
from svertka.data.gpu_jpeg import check_gpu_decoding
from svertka.data.groups_by_filename_regex import assign_groups
from svertka.data.image_io import DecodingOptions
from svertka.data.loader import BatchLoader
from svertka.data.preprocessing import Fit, Preprocess, parse_fit_mode
from svertka.data.shard_storage import open_location
from svertka.data.source_opener import Source, is_path, open_source
from svertka.device import choose_device, describe_device, meta_device, set_memory_format, set_threads
from svertka.errors import UsageError
from svertka.evaluation.cross_validation import FOLDS, REPEATS
from svertka.evaluation.held_out import read_manifest
from svertka.graph.output_layer import count_classes
from svertka.models import registry
from svertka.models.external import open_model
from svertka.models.published_weights import BACKBONE
from svertka.models.registry import Model
from svertka.pages.number_format import count_with_noun
from svertka.progress import say, say_table, show_spinner
from svertka.run import Run
from svertka.training import time_estimate, training_report
from svertka.training.automatic_backbone import AUTO, choose_backbone
from svertka.training.builtin_recipes import DEFAULTS, default_recipe, find_recipe_by_name
from svertka.training.computed_initial_head import estimate_head_seconds, fits_default_head, lower_diverging_rate
from svertka.training.config import MAX_SEED, MAX_SIDE, FeatureCacheSettings, RunSettings, check_range
from svertka.training.data_splits import (
    DataSplits,
    add_training_statistics,
    choose_input_size_and_channels,
    decode_and_split,
    replace_images_by_patches,
    stored_side_for_crops,
)
from svertka.training.final_calibration import check_unknown_option, count_calibrated_images
from svertka.training.head_cross_validation import estimate_epoch_seconds, why_not_cross_validated
from svertka.training.initial_classifier import (
    build_initial_classifier,
    check_frozen_layers_and_boxes,
    check_patch_augmentation,
    describe_ignored_settings,
    write_new_run,
)
from svertka.training.lr_finder import RangeTest, find_learning_rate
from svertka.training.recipe import Recipe
from svertka.training.resume import name_resume_command_on_interrupt, resume, train_from_checkpoint
from svertka.training.run_lock import claim_run_folder
from svertka.training.task_options import check_task_options, check_task_outputs, describe_left_out, keep_targets
from svertka.training.trained_part_and_batches import (
    count_missing_features,
    estimate_final_evaluation_seconds,
    freeze_classifier,
    optimize_frozen,
)
from svertka.transfer.feature_cache import available_cache_bytes, feature_bytes_per_image
from svertka.transfer.freeze import HEAD, PartiallyFrozen

PATCHES_TIMED = 64  # patches in a timed batch: each is cut from an image of its own
CUSTOM = "custom"  # name of a recipe that is given as an object
DEFAULT_HEAD_NOTE = (
    "the head is fitted by logistic regression (--head logistic), which errs less on so few images; it is trained in "
    "steps with --head linear, or with an option of steps, such as --epochs"
)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options of `svertka.train`, without `repeats`.

    Attributes:
        changes: The options that are settings of the recipe, where they are not None.
        cache_limit: In bytes.
        is_repeated: Whether this is one of several splits.
    """

    source: Source
    model: str | nn.Module | Callable[..., nn.Module] | None
    head_layer: str | None
    trust_builder: bool
    weights: str | None
    recipe: str | Recipe | None
    changes: Mapping[str, Any]
    boxes: str | None
    output: str | Path | None
    time: str | float | None
    lr: float | str | None
    augment: bool
    auto_augment: str | None
    random_erasing: float | None
    size: int | None
    fit: str | None
    val: float
    test: float
    seed: int
    device: str
    threads: int | None
    accelerate: bool
    prefetch: bool | None
    cache: bool
    variants: int | None
    half_features: bool
    feature_store: str | None
    gpu_decode: bool
    cache_limit: int | None
    max_pixels: int | None
    split_seed: int | None
    columns: str | None
    names: tuple[str, ...] | None
    group: str | None
    unknown: str | None
    tensorboard: bool
    is_repeated: bool = False


@dataclass(frozen=True, kw_only=True)
class ResolvedOptions:
    """What is trained on what: the options with their defaults filled in, checked against one another.

    Attributes:
        began: `time.monotonic()` at the start.
        start_from: The weights to start from. None: fresh weights.
        fit: The option, checked. None: not given.
        budget: Seconds to train for. None: not given.
        notes: Sentences about the recipe.
    """

    options: TrainingOptions
    began: float
    device: torch.device
    threads: int
    dataset: Dataset
    model: Model
    start_from: str | None
    recipe_name: str
    recipe: Recipe
    fit: Fit | None
    budget: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PreparedTraining:
    """The divided images and the network with its first weights.

    Attributes:
        recipe: The recipe with everything that depends on the images.
        stored_side: Side of the squares from which random crops are drawn, pixels.
        frozen: The classifier's network in two parts; None if all of it is trained.
        notes: Sentences about the weights.
    """

    parts: DataSplits
    preprocess: Preprocess
    recipe: Recipe
    stored_side: int
    classifier: Classifier
    frozen: PartiallyFrozen | None
    batches: BatchLoader
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class MeasuredTrainingPlan:
    """How the training will run, decided by timing it.

    Attributes:
        recipe: The recipe with the measured learning rate and the number of epochs that fit into the time.
        seconds: Estimate of the whole training, from here to the report.
        found: The learning rate range test, if there was one.
    """

    recipe: Recipe
    memory_format: str
    accelerate: bool
    cache: FeatureCacheSettings | None
    seconds: float
    found: RangeTest | None
    notes: list[str]


def train_run(options: TrainingOptions) -> Run:
    """Train as `options` say and return the finished run.

    Raises:
        UsageError, DataError, TrainingError, Interrupted: As `svertka.train`.
    """
    job = _hash_job(options)
    if job is not None and options.output is not None and _was_started_by(job, Run(options.output)):
        say(f"{options.output} was started by this job; it is continued")
        source = None if is_path(options.source) else options.source
        run: Run = resume(options.output, source, tensorboard=options.tensorboard, trust_builder=options.trust_builder)
        return run
    with show_spinner("reading the dataset"):
        resolved = resolve_options(options)
    place = resolved.device
    with (
        distributed.process_group(place),
        claim_run_folder(resolved.dataset.source, resolved.model.name, options.output) as folder,
    ):
        if resolved.recipe.start not in (None, resolved.model.name) and resolved.start_from is None:
            resolved = replace(resolved, start_from=str(_first_stage(resolved, folder).folder))
        with show_spinner("preparing the data and the network"):
            prepared = prepare_images_and_network(resolved)
        with show_spinner("timing the training"):
            measurement = plan_by_timing(resolved, prepared, folder.parent)
        settings = _settings(resolved, prepared, measurement)
        parts, run = prepared.parts, Run(folder)
        lines = training_report.describe_training(prepared.classifier, settings, measurement.seconds)
        say_table([*lines, *parts.describe_fit(prepared.preprocess)])
        warning = parts.small_class_warning(is_repeated=options.is_repeated)
        notes = (*prepared.notes, *measurement.notes)
        for sentence in filter(None, (*parts.notes(), parts.describe_misnamed(), *notes, warning, parts.unstored)):
            say(sentence)
        with name_resume_command_on_interrupt(run):
            if distributed.is_first():
                write_new_run(run, prepared.classifier, settings, parts.manifest, measurement.found)
            distributed.barrier()
            return train_from_checkpoint(
                run,
                settings,
                parts,
                place,
                tensorboard=options.tensorboard,
                classifier=prepared.classifier,
                frozen=prepared.frozen,
                is_repeated=options.is_repeated,
            )


def _hash_job(options: TrainingOptions) -> str | None:
    """Return a hash of torchrun's job and of the options; None if torchrun was given no name for its job."""
    job = distributed.job_id()
    if job is None:
        return None
    described = json.dumps([job, vars(options)], default=lambda one: str(one) if isinstance(one, Path | Recipe) else "")
    return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


def _was_started_by(job: str, run: Run) -> bool:
    """Return whether `run` was started by `job`, with the same options."""
    return run.training.exists() and RunSettings.of(run).job == job


def resolve_options(options: TrainingOptions) -> ResolvedOptions:
    """Open the source, fill in what `options` leave open and check them against one another.

    Raises:
        UsageError: An option has an impossible value, or contradicts another one.
        DataError: The source cannot be read.
    """
    began = time.monotonic()
    place, threads = choose_device(options.device), set_threads(options.threads)
    if options.gpu_decode:
        check_gpu_decoding(place)
    dataset = open_source(options.source, columns=options.columns, boxes=options.boxes, names=options.names)
    dataset = dataset.with_decoding(DecodingOptions.up_to(options.max_pixels))
    fit = parse_fit_mode(options.fit, options.boxes is not None)
    if options.group is not None:
        dataset = assign_groups(dataset, options.group)
    model, start_from = options.model, options.weights
    budget = None if options.time is None else time_estimate.parse_time(options.time)
    if model == AUTO:
        model, start_from = _choose_backbone(options, dataset, threads, budget)
    if dataset.source not in DEFAULTS and model is None and start_from is None and options.recipe is None:
        model, start_from = BACKBONE
    known = None if start_from is None else read_model_of_run(start_from, trust_builder=options.trust_builder)
    default = known or DEFAULTS.get(dataset.source, BACKBONE)[0]
    found = _find_model(options, dataset, default if model is None else model)
    # The weights that a network comes with may be pretrained or not: all of it is trained by default.
    trained = start_from is not None or (found.has_own_weights and options.changes.get("unfreeze") is not None)
    recipe_name, recipe, notes = _recipe(options, dataset, found, trained=trained)
    check_frozen_layers_and_boxes(recipe, options.boxes, trained=trained or found.has_own_weights)
    check_task_options(dataset, recipe, options.boxes, options.unknown)
    if options.boxes is not None:
        check_patch_augmentation(recipe)
    if options.feature_store is not None:
        open_location(options.feature_store, is_folder=True)  # fails before anything is computed
    check_range("seed", options.seed, 0, MAX_SEED)
    check_range("size", options.size, 1, MAX_SIDE)
    if options.variants is not None and options.variants < 1:
        raise UsageError(f"variants={options.variants} must be at least 1; leave it out to store as many as save time")
    check_range("split_seed", options.split_seed, 0, 2**32 - 1)
    if budget is not None and options.changes.get("epochs") is not None:
        raise UsageError(
            f"time={options.time} and epochs={options.changes['epochs']} each say how long to train; leave one of them "
            "out"
        )
    return ResolvedOptions(
        options=options,
        began=began,
        device=place,
        threads=threads,
        dataset=dataset,
        model=found,
        start_from=start_from,
        recipe_name=recipe_name,
        recipe=recipe,
        fit=fit,
        budget=budget,
        notes=notes,
    )


def _choose_backbone(options: TrainingOptions, dataset: Dataset, threads: int, budget: float | None) -> tuple[str, str]:
    """Return network and weights for the model "auto".

    Raises:
        UsageError: Another option contradicts it.
        DataError: There are too few usable images.
    """
    given = {"weights": options.weights, "size": options.size, "boxes": options.boxes, "head_layer": options.head_layer}
    contradicted = [f"{name}={value}" for name, value in given.items() if value is not None]
    if contradicted:
        raise UsageError(
            f"model=auto compares pretrained networks as they are, and {contradicted[0]} asks for another; leave "
            "out one of the two"
        )
    if (bands := find_bands(dataset)) is not None:
        raise UsageError(
            f"model=auto compares networks on RGB images, and {dataset.source} has {bands.describe()}; leave it out, "
            "or name a network"
        )
    weights = read_initial_weights(registry.find_model(BACKBONE[0]), BACKBONE[1])
    parts = decode_and_split(
        dataset,
        weights.preprocess,
        weights.preprocess.side,
        options.val,
        options.test,
        threads=threads,
        limit=options.cache_limit,
        turn=options.split_seed or 0,
    )
    return choose_backbone(
        dataset, parts, budget, device=options.device, threads=threads, cache_limit=options.cache_limit
    )


def _find_model(
    options: TrainingOptions, dataset: Dataset, model: str | nn.Module | Callable[..., nn.Module] | Model
) -> Model:
    """Return the network that is trained; a function may be called, and a builder imported."""
    if isinstance(model, Model):
        return model
    array = dataset.images.array if isinstance(dataset.images, ArrayImages) else None
    sizes = [options.size] if options.size is not None else [] if array is None else [array.shape[1]]
    return open_model(model, head_layer=options.head_layer, sizes=sizes)


def _recipe(
    options: TrainingOptions, dataset: Dataset, model: Model, *, trained: bool
) -> tuple[str, Recipe, tuple[str, ...]]:
    """Return the name of the recipe, the recipe with the changes that the options ask for, and notes on others.

    Without a recipe in the options, augmentations that may change the labels or the number of an image are left out.
    """
    changes, task = dict(options.changes), dataset.task
    if isinstance(options.recipe, Recipe):
        name, recipe = CUSTOM, options.recipe
    else:
        default = default_recipe(
            dataset.source,
            model.name,
            unfreeze=changes.get("unfreeze"),
            trained=trained,
            draws_weights=model.draws_weights,
        )
        name = options.recipe or (default if options.boxes is None else "patches")
        recipe = find_recipe_by_name(name)
    augmentations = recipe.augmentations
    if not options.augment or options.boxes is not None:  # patches overlap, which is augmentation enough
        augmentations = ()
        changes = {"mixup": 0.0, "cutmix": 0.0} | changes
    elif options.recipe is None and not task.is_single_label:
        augmentations = keep_targets(task, augmentations)
        changes = {"mixup": 0.0, "cutmix": 0.0} | changes
    changes["augmentations"] = merge_augmentations(
        augmentations, auto_augment=options.auto_augment, random_erasing=options.random_erasing
    )
    used = recipe.with_changes(lr=time_estimate.parse_learning_rate(options.lr), **changes)
    left_out = describe_left_out(task, recipe, used, name) if options.augment else []
    return name, used, tuple(left_out)


def prepare_images_and_network(resolved: ResolvedOptions) -> PreparedTraining:
    """Decode and divide the images and build the network with its first weights.

    Raises:
        UsageError: The weights are of another network, or the size is too small for it.
        DataError: There are too few usable images.
    """
    options, model, place, threads = resolved.options, resolved.model, resolved.device, resolved.threads
    dataset, boxes = resolved.dataset, options.boxes
    start = None if resolved.start_from is None else read_initial_weights(model, resolved.start_from)
    given = model.preprocess if start is None else start.preprocess
    fit = resolved.fit or ("crop" if given is None or boxes is not None else given.fit)
    bands = _find_bands(dataset, given, model, boxes)
    if bands is not None:
        resolved = _without_rgb_augmentations(resolved, bands)
    side, resize, channels = choose_input_size_and_channels(dataset, model, options.size, given, fit, bands)
    with meta_device():  # fails early if the size is too small, or if the weights are another network's
        unmade = model.build(len(dataset.names), channels, side)
    check_task_outputs(dataset, unmade, model.name)
    if model.reference is not None:
        _check_classes(unmade, model, dataset, (1, channels, side, side))
    if start is not None:
        start = start.with_channels(channels)
        start.check(unmade)
    unmeasured = Preprocess(
        size=side,
        resize=resize,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        fit=fit,
        interpolation="bilinear" if given is None else given.interpolation,
        intensity_range=bands,
    )
    stored = stored_side_for_crops(unmeasured, resolved.recipe.augmentations)
    parts = decode_and_split(
        dataset,
        unmeasured,
        stored,
        options.val,
        options.test,
        threads=threads,
        limit=options.cache_limit,
        turn=options.split_seed or 0,
        survey=given is None or given.bands is None,
        boxed=boxes is not None,
        inherited=_trained_on_before(resolved.start_from),
    )
    if options.gpu_decode:
        parts = parts.with_gpu_decoding(place)
    if options.unknown is not None:
        check_unknown_option(options.unknown, parts.manifest, unmeasured)
    preprocess, recipe = add_training_statistics(parts, unmeasured, model, resolved.recipe, given, options.seed)
    if boxes is not None:
        parts = replace_images_by_patches(parts, boxes, preprocess, seed=options.seed, threads=threads)
    train_count = len(parts.indices["train"])
    if "batch_size" not in options.changes and not isinstance(options.recipe, Recipe):
        recipe = recipe.with_changes(batch_size=min(recipe.batch_size, train_count))
    time_estimate.check_images_per_process(recipe.batch_size, train_count)
    classifier, notes = build_initial_classifier(
        model, start, parts, preprocess, recipe, options.seed, place, may_reinitialize=options.recipe is None
    )
    if _leaves_head_open(resolved) and fits_default_head(classifier, recipe, train_count):
        recipe = recipe.with_changes(head="logistic")
        notes = [*notes, DEFAULT_HEAD_NOTE]
    frozen = freeze_classifier(classifier, recipe)
    if not recipe.is_computed and not any(parameter.requires_grad for parameter in classifier.network.parameters()):
        raise UsageError(f"{model.name} has no parameter to train; call requires_grad_() on those that are to be")
    return PreparedTraining(
        parts=parts,
        preprocess=preprocess,
        recipe=recipe,
        stored_side=stored,
        classifier=classifier,
        frozen=frozen,
        batches=parts.training_batches(preprocess, recipe, options.seed, place),
        notes=[
            *resolved.notes,
            *notes,
            *describe_ignored_settings(
                recipe, boxes, options.feature_store, is_frozen=frozen is not None, is_cached=options.cache
            ),
        ],
    )


def _find_bands(dataset: Dataset, given: Preprocess | None, model: Model, boxes: str | None) -> BandRanges | None:
    """Return the bands of the images, with the ranges that the weights expect, if they are of bands; None for RGB.

    Raises:
        UsageError: The weights are of other bands, the network is of bands and the images are not, or the training
            needs RGB.
    """
    bands = find_bands(dataset)
    expected = None if given is None else given.bands
    if expected is not None and (bands is None or (bands.dtype, len(bands)) != (expected.dtype, len(expected))):
        found = "gray or RGB" if bands is None else bands.describe()
        raise UsageError(
            f"the weights are of images with {expected.describe()}, and those of {dataset.source} are {found}; start "
            "from other weights"
        )
    if bands is None and model.channels not in (1, 3):
        raise UsageError(
            f"{model.name} takes images of {model.channels} channels, and those of {dataset.source} are gray or RGB; "
            "give a network of 1 or 3 channels"
        )
    if bands is not None and boxes is not None:
        raise UsageError(f"boxes={boxes} needs RGB images, and {dataset.source} has {bands.describe()}; leave it out")
    return bands if expected is None else expected


def _without_rgb_augmentations(resolved: ResolvedOptions, bands: BandRanges) -> ResolvedOptions:
    """Leave out the augmentations of the default recipe that change RGB images, with a note.

    Raises:
        UsageError: The options ask for one.
    """
    options, recipe = resolved.options, resolved.recipe
    kept = tuple(one for one in recipe.augmentations if not isinstance(one, RandAugment | TrivialAugment))
    left_out = [one.kind for one in recipe.augmentations if one not in kept]
    if not left_out:
        return resolved
    why = f"{left_out[0]} changes RGB images, and {resolved.dataset.source} has {bands.describe()}"
    if options.recipe is not None or options.auto_augment is not None:
        raise UsageError(f"augmentation {why}; give --auto-augment none")
    notes = (*resolved.notes, f"left out: augmentation {why}")
    return replace(resolved, recipe=recipe.with_changes(augmentations=kept), notes=notes)


def _leaves_head_open(resolved: ResolvedOptions) -> bool:
    """Return whether the recipe is the default one for frozen layers, and no option is about its steps."""
    options = resolved.options
    others = (options.recipe, options.boxes, options.lr, options.time, options.auto_augment, options.random_erasing)
    is_default = resolved.recipe_name == "frozen" and set(options.changes) <= {"unfreeze"}
    return is_default and all(option is None for option in others)


def _check_classes(network: nn.Module, model: Model, dataset: Dataset, shape: tuple[int, ...]) -> None:
    """Raise UsageError unless `network` computes a score for each class of `dataset` from images of `shape`."""
    found = count_classes(network, shape)
    if found != len(dataset.names):
        raise UsageError(
            f"{model.name} computes {count_with_noun(found, 'class score')}, and {dataset.source} has "
            f"{len(dataset.names)} classes; name its last linear layer with --head-layer (in Python head_layer=), or "
            "give a function of the number of classes"
        )


def plan_by_timing(resolved: ResolvedOptions, prepared: PreparedTraining, folder: Path) -> MeasuredTrainingPlan:
    """Time the training on the real network, and decide what depends on it.

    `folder` is on the disk of the run.

    The network is accelerated, and its frozen part optimized, as the training will use them; its weights stay as they
    are.

    Raises:
        UsageError: The time is too short for any training.
    """
    options, place, recipe, parts = resolved.options, resolved.device, prepared.recipe, prepared.parts
    classifier, frozen, batches = prepared.classifier, prepared.frozen, prepared.batches
    notes: list[str] = []
    timed = recipe if options.boxes is None else recipe.with_changes(batch_size=min(recipe.batch_size, PATCHES_TIMED))
    batch = next(parts.training_batches(prepared.preprocess, timed, options.seed, place).epoch(0))
    has_rate = options.lr is not None or isinstance(options.recipe, Recipe)
    if resolved.start_from is not None and not recipe.is_computed and not has_rate:
        recipe, notes = lower_diverging_rate(classifier, recipe, batch.images)
    accelerated = options.accelerate and place.type == "cpu"
    if accelerated:
        accelerate(classifier.network)
    label = f"{resolved.model.name}, accelerated" if accelerated else resolved.model.name
    a_picture = optimizing = 0.0
    if frozen is not None:
        label = f"{label} above {recipe.unfreeze}"
        set_memory_format(classifier.network, torch.channels_last)
        if accelerated:
            optimized_from = time.monotonic()
            optimize_frozen(frozen, classifier, parts)
            optimizing = time.monotonic() - optimized_from
        a_picture, batch = time_estimate.time_frozen_layers(frozen, batch, torch.channels_last)
        batch = time_estimate.tile_batch(batch, max(1, round(recipe.batch_size / timed.batch_size)))
    trained = classifier.network if frozen is None else frozen.trainable
    task = classifier.task
    timing = time_estimate.time_training_steps(trained, batch, recipe, label, task)
    sizes = len(parts.indices["train"]), len(parts.indices["val"])
    one_epoch = batches.steps * timing.step
    val = parts.eval_batches("val", prepared.preprocess, place, torch.contiguous_format)
    if frozen is None:
        one_epoch += time_estimate.estimate_validation_seconds(timing, recipe.batch_size, sizes[1])
    elif sizes[1]:
        one_epoch += time_estimate.time_head_validation(trained, batch.images, val, classifier.names, task)
    one_epoch += time_estimate.time_epoch_end(classifier.network, trained, batch, folder)
    cache, once = None, 0.0
    if frozen is not None:
        frozen_cost = time_estimate.FrozenLayersCost(
            a_picture, *sizes, feature_bytes_per_image(frozen.shape, half=options.half_features)
        )
        if options.cache:
            allowed, is_timed = available_cache_bytes(options.cache_limit), resolved.budget is not None
            cache, why = frozen_cost.plan_cache(
                recipe, one_epoch, options.variants, options.half_features, allowed, is_timed=is_timed
            )
            notes = [*notes, why]
        if cache is None:
            one_epoch += frozen_cost.each_epoch
        else:
            limit = options.cache_limit
            missing = [count_missing_features(frozen, cache, limit, parts, some) for some in (batches, val)]
            once = a_picture * sum(missing)
    validating, fits = 0.0, 1  # seconds of cross-validation for each epoch, or fits of a computed head with it
    if not options.is_repeated and why_not_cross_validated(recipe, parts, stored=cache is not None) is None:
        if recipe.is_computed:
            fits += REPEATS * FOLDS
        else:
            validating = estimate_epoch_seconds(timing.step, sum(sizes), recipe.batch_size)
    found = None
    if options.lr == "find":
        found = find_learning_rate(frozen or classifier.network, batches, recipe, task)
    if found is not None:
        recipe = recipe.with_changes(lr=distributed.broadcast(found.chosen))
    forward = a_picture + time_estimate.estimate_forward_seconds(timing, len(batch.labels))
    around = once + estimate_head_seconds(
        classifier, recipe, parts, forward, stored=cache is not None, optimizing=optimizing, fits=fits
    )
    around += estimate_final_evaluation_seconds(parts.whole_images(), forward) + optimizing  # which is done again
    is_stored = recipe.unfreeze == HEAD and cache is not None and not cache.half and not recipe.augmentations
    around += forward * count_calibrated_images(parts.whole_images(), stored=is_stored)
    if resolved.budget is not None:
        spent = time.monotonic() - resolved.began
        epochs = time_estimate.count_epochs_within_time(resolved.budget, spent, around, one_epoch + validating)
        recipe = recipe.with_changes(epochs=distributed.broadcast(epochs))
    return MeasuredTrainingPlan(
        recipe=recipe,
        memory_format=timing.memory_format,
        accelerate=accelerated,
        cache=cache,
        seconds=around + (0 if recipe.is_computed else (one_epoch + validating) * recipe.epochs),
        found=found,
        notes=notes,
    )


def _settings(resolved: ResolvedOptions, prepared: PreparedTraining, measurement: MeasuredTrainingPlan) -> RunSettings:
    """Collect the content of training.json."""
    options, parts, place = resolved.options, prepared.parts, resolved.device
    return RunSettings(
        source=resolved.dataset.source,
        fingerprint=parts.fingerprint,
        parts=parts.sizes(),
        bad=parts.bad,
        account=parts.dataset.account.to_dict(),
        job=_hash_job(options),
        columns=options.columns,
        names=None if options.names is None else list(options.names),
        val=options.val,
        test=options.test,
        model=resolved.model.name,
        weights=resolved.start_from,
        boxes=options.boxes,
        recipe_name=resolved.recipe_name,
        recipe=measurement.recipe,
        stored_side=prepared.stored_side,
        seed=options.seed,
        device=place.type if distributed.world_size() > 1 else str(place),
        threads=resolved.threads,
        hardware=describe_device(place, bfloat16=measurement.recipe.bfloat16),
        memory_format=measurement.memory_format,
        accelerate=measurement.accelerate,
        prefetch=_prefetch_pays(parts, place) if options.prefetch is None else options.prefetch,
        cache=measurement.cache,
        feature_store=options.feature_store,
        gpu_decode=options.gpu_decode,
        cache_limit=options.cache_limit,
        max_pixels=options.max_pixels,
        turn=options.split_seed or 0,
        group=options.group,
        unknown=options.unknown,
    )


def _prefetch_pays(parts: DataSplits, place: torch.device) -> bool:
    """Return whether to prepare batches in a thread: not if that thread takes a core from the network."""
    return place.type != "cpu" or parts.unstored is not None


def _trained_on_before(weights: str | None) -> frozenset[bytes]:
    """Return the digests of the images that the run `weights` was trained on; none if it is not a run."""
    manifest = None if weights is None else read_manifest(weights)
    if manifest is not None:
        return manifest.trained_on
    if weights is not None and Run(weights).training.exists():
        say(f"{weights} does not record which images it was trained on; if some of these are, val and test err too low")
    return frozenset()


def _first_stage(resolved: ResolvedOptions, folder: Path) -> Run:
    """Return the finished run of the network that the recipe starts from: trained, resumed or found beside `folder`."""
    options, model = resolved.options, str(resolved.recipe.start)
    if options.time is not None:
        raise UsageError(
            f"recipe={resolved.recipe_name} trains {model} first, so --time cannot be planned; give --epochs instead"
        )
    run = Run(folder.with_name(f"{folder.name}.{model}"))
    say(f"first {model}, in {run.folder}")
    if not run.folder.exists():
        recipe = options.recipe or resolved.recipe_name
        return train_run(replace(options, model=model, recipe=recipe, output=run.folder))
    settings = RunSettings.of(run)
    expected = resolved.dataset.source, resolved.recipe_name, options.seed
    if (settings.source, settings.recipe_name, settings.seed) != expected:
        raise UsageError(f"{run.folder} belongs to another training; remove it, or choose another --output")
    return run if run.is_finished else resume(run, None if is_path(options.source) else options.source)
