"""resume(): continue an interrupted training. A new training is one that is continued from step 0."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from os import PathLike, fspath
from typing import Any

import torch
from torch import nn

from svertka import distributed
from svertka.classifier import Classifier, Config, read_config
from svertka.conv import autotune
from svertka.conv.accelerate import accelerate
from svertka.data.dataset import Dataset, Ints
from svertka.data.deduplicated_split import DatasetSplit, split_by_content_as_before
from svertka.data.image_io import DecodingOptions
from svertka.data.in_memory_sources import IN_MEMORY
from svertka.data.source_opener import Source, is_path, open_source, source_word
from svertka.device import choose_device, set_memory_format, set_threads, with_preserved_settings
from svertka.errors import DataError, Interrupted, RunError, TrainingError, UsageError
from svertka.escaping import format_command, join_first
from svertka.evaluation.evaluate import evaluate_network
from svertka.evaluation.held_out import read_manifest
from svertka.evaluation.metrics import Evaluation
from svertka.evaluation.multi_label_metrics import MultiLabelEvaluation, choose_thresholds
from svertka.evaluation.task_metrics import AnyEvaluation
from svertka.files import write_json
from svertka.models.external import open_model
from svertka.models.registry import Model
from svertka.progress import progress, say
from svertka.run import Run
from svertka.signals import Stopped, StopRequest
from svertka.tasks import MultiLabel
from svertka.training import checkpoint, health, training_report
from svertka.training.computed_initial_head import compute_head, needs_computed_head
from svertka.training.config import RunSettings
from svertka.training.data_splits import DataSplits, decode_and_split, replace_images_by_patches
from svertka.training.final_calibration import calibrate_finished_run
from svertka.training.head_cross_validation import cross_validate_head, why_not_cross_validated
from svertka.training.metrics_log import MetricsLog
from svertka.training.run_lock import lock_run
from svertka.training.run_recorder import Recorder
from svertka.training.synchronized_batch_norm import synchronized_batch_norm
from svertka.training.trained_part_and_batches import (
    build_optimizer,
    build_training_inputs,
    freeze_classifier,
    measure_val_error,
    prepare_evaluation_network_and_batches,
)
from svertka.training.training_loop import TrainingProgress, count_total_and_warmup_steps, fit
from svertka.training.weight_average import WeightAverage
from svertka.transfer.freeze import PartiallyFrozen
from svertka.type_checking import check_types


@check_types
@with_preserved_settings
def resume(
    folder: str | PathLike[str],
    source: Source | None = None,
    *,
    boxes: str | PathLike[str] | None = None,
    tensorboard: bool = False,
    model: nn.Module | Callable[..., nn.Module] | None = None,
    trust_builder: bool = False,
) -> Run:
    """Continue the interrupted run in `folder` and return it once it is finished.

    The result is the same, bit for bit, as that of an uninterrupted training on the same machine. A finished run is
    returned as it is.

    Args:
        folder: The run folder.
        source: Where the images are now, if they have moved; or the images in memory that the run was trained on.
        boxes: Where the bounding boxes are now, if they have moved.
        tensorboard: Also write TensorBoard logs.
        model: The module or the function that the run was trained with, if its config.json names no importable builder.
        trust_builder: Whether the run may import the code that builds its network, if it is not svertka's, timm's or
            torchvision's.

    Returns:
        The finished run.

    Raises:
        RunError: `folder` is not a run or is damaged, its images have changed, or another process trains it.
        UsageError: The images are not there.
        TrainingError: The loss diverged, or a worker process was lost.
        Interrupted: Ctrl-C or SIGTERM; the run is saved.
    """
    run = Run(folder)
    settings = RunSettings.of(run)
    config = read_config(run.folder)
    known = None if model is None else _given_model(model, config)
    if known is None and config.builder is not None and config.builder.is_graph and not run.is_finished:
        raise UsageError(
            f"{run.folder} was trained from a {config.model} that has no importable builder, and its exported graph is "
            f"for inference only; pass the same: svertka.resume({str(run.folder)!r}, model=…)"
        )
    if run.is_finished:
        run.classifier(trust_builder=trust_builder)  # which says what is damaged
        now = fspath(source) if source is not None and is_path(source) else settings.source
        say(f"{run.folder} has finished already; {_further(run, now)}")
        return run
    place = _device_of(run, settings)
    set_threads(settings.threads)
    with distributed.process_group(place), lock_run(run), name_resume_command_on_interrupt(run):
        moved = settings if boxes is None else settings.model_copy(update={"boxes": fspath(boxes)})
        dataset = _open(run, moved, source)
        if source is not None:
            moved = moved.model_copy(update={"source": dataset.source})
        parts = _split_as_before(run, moved, dataset)
        if parts.fingerprint != settings.fingerprint:
            new = join_first([name for name in dataset.names if name not in config.names])
            raise RunError(
                f"the images of {moved.source} are not those that {run.folder} was started with "
                f"({sum(parts.sizes().values())} now, {sum(settings.parts.values())} then"
                f"{f'; new classes: {new}' if new else ''}); put them back, or "
                f"{_further(run, moved.source)}"
            )
        if settings.gpu_decode and place.type == "cuda":
            parts = parts.with_gpu_decoding(place)
        if read_manifest(run) is None and distributed.is_first():
            parts.manifest.write(run.manifest)
        if moved != settings and distributed.is_first():
            write_json(run.training, moved.model_dump())  # where `evaluate` and `look` will find them
        return train_from_checkpoint(
            run, moved, parts, place, tensorboard=tensorboard, model=known, trust_builder=trust_builder
        )


def _given_model(model: nn.Module | Callable[..., nn.Module], config: Config) -> Model:
    """Return the model of the network that is passed again to a run with `config`."""
    head_layer = None if config.builder is None else config.builder.head_layer
    return replace(open_model(model, head_layer=head_layer, sizes=(config.preprocess.size,)), reference=config.builder)


def train_from_checkpoint(
    run: Run,
    settings: RunSettings,
    parts: DataSplits,
    place: torch.device,
    *,
    tensorboard: bool,
    classifier: Classifier | None = None,
    frozen: PartiallyFrozen | None = None,
    model: Model | None = None,
    trust_builder: bool = False,
    is_repeated: bool = False,
) -> Run:
    """Train from the checkpoint in `run` to the last epoch, score the kept weights and write the report.

    Args:
        run: The run folder, with a checkpoint of step 0 or later.
        settings: The content of training.json.
        parts: The images, split into parts.
        place: The device.
        tensorboard: Also write TensorBoard logs.
        classifier: The run's classifier in any state, accelerated if the settings say so. None: loaded from the run.
        frozen: Its frozen part, from `freeze_classifier`, if it has any. Only with `classifier`.
        model: Without `classifier`, what builds the network. None: what config.json says.
        trust_builder: Without `classifier`, whether config.json may name code that is not svertka's.
        is_repeated: Whether this is one of several splits, which need no cross-validation.

    Returns:
        The finished run.
    """
    if classifier is None:
        classifier = Classifier.load(run.folder, place, of_patches=True, trust_builder=trust_builder, model=model)
        frozen = freeze_classifier(classifier, settings.recipe)
        if settings.accelerate:
            accelerate(classifier.network)
    set_memory_format(classifier.network, settings.layout)
    recipe = settings.recipe
    optimizer = build_optimizer(classifier, recipe)
    average = None
    if recipe.averages_weights:
        assert recipe.ema is not None
        average = WeightAverage(classifier.network, recipe.ema)
    state, extra = checkpoint.load(run.checkpoint, classifier.network, optimizer, average)
    with autotune.pin_choices(extra["convolutions"]):
        if state.step == 0 and needs_computed_head(classifier, recipe):
            compute_head(classifier, settings, parts, place, frozen)
            if average is not None:
                average.restart()
        inputs = build_training_inputs(classifier, frozen, settings, parts, place)
        batches = inputs.batches
        if state.step == 0 and frozen is not None and not is_repeated:
            settings = _add_cross_validation(run, settings, parts, classifier, frozen, place)
        log = MetricsLog(run.metrics, extra.get("log", 0), tensorboard=tensorboard) if distributed.is_first() else None
        total = count_total_and_warmup_steps(recipe, batches.steps)[0]
        with progress("training", total, "steps", done=state.step) as shown:
            recorder = Recorder(run, classifier, inputs, optimizer, recipe, state, log, shown, average)
            with recorder.stoppable(), _explained(run, classifier.model, settings, parts, state, log):
                if recipe.is_computed:
                    if not state.step:  # else it was interrupted afterwards
                        recorder.on_head_computed()
                elif not recorder.is_out_of_patience():
                    with synchronized_batch_norm(inputs.network) if recipe.sync_batch_norm else nullcontext():
                        fit(inputs.network, optimizer, batches, recipe, state, recorder, average, classifier.task)
            recorder.save()
        if summary := recorder.summary():
            say(summary)
        distributed.barrier()  # the first process has now written the weights that all load

        part = parts.final_part
        kept = Classifier.load(run.folder, place, model=classifier.model, with_calibration=False)
        images = parts.whole_images()
        kept = _choose_thresholds(run, kept, settings, images, place)
        judged = evaluate_network(
            *prepare_evaluation_network_and_batches(kept, settings, images, part, place),
            kept.names,
            f"scoring {part}",
            kept.task,
        )
        if isinstance(judged, MultiLabelEvaluation):
            judged = replace(judged, chose_thresholds=part == "val")
        last = state.val_errors[state.kept_epoch - 1] if state.val_errors else None
        val_error = last
        if parts.patches is not None and last is not None:  # that was of patches
            val_error = judged.error if part == "val" else measure_val_error(kept, settings, images, place)
        if log:
            log.write(
                "result",
                val_error=val_error,
                **({} if parts.patches is None else {"patch_val_error": last}),
                test_error=judged.error if part == "test" else None,
                part=part,
                images=judged.images,
                epochs=state.step / batches.steps,
                seconds=state.seconds,
                images_per_second=state.pictures / max(state.learning_seconds, 1e-9),
                at_chance=judged.at_chance,
                never_predicted=list(judged.never_predicted),
                **(
                    {} if isinstance(judged, Evaluation) else {"sentence": judged.sentence, "metrics": judged.numbers()}
                ),
            )
            log.close()
            for sentence in judged.warnings:
                say(sentence)
            calibrate_finished_run(run, kept, settings, images)
            training_report.write_training_report(run, classifier.model, settings, images, judged, part)
        distributed.barrier()
        return run


def _describe_metrics(judged: AnyEvaluation) -> dict[str, Any]:
    """Return what the log's result has besides the errors, for several labels and for a number."""
    return {} if isinstance(judged, Evaluation) else {"sentence": judged.sentence, "metrics": judged.numbers()}


def _choose_thresholds(
    run: Run, kept: Classifier, settings: RunSettings, images: DataSplits, place: torch.device
) -> Classifier:
    """Choose the threshold of each label on the validation set, and add them to config.json.

    Args:
        run: The run.
        kept: Its finished classifier.
        settings: Its settings.
        images: The images.
        place: The device.

    Returns:
        The classifier with its thresholds; `kept` itself if it does not predict labels, or without validation set.
    """
    if not isinstance(kept.task, MultiLabel) or not len(images.indices["val"]):
        return kept
    evaluated = prepare_evaluation_network_and_batches(kept, settings, images, "val", place)
    found = evaluate_network(*evaluated, kept.names, "choosing thresholds", kept.task)
    assert isinstance(found, MultiLabelEvaluation)
    task = MultiLabel(thresholds=choose_thresholds(found.probabilities, found.targets))
    config = kept.config.model_copy(update={"task": task})
    if distributed.is_first():
        write_json(run.config, config.model_dump())
    distributed.barrier()
    return Classifier(kept.network, config, kept.model, kept.origin)


def _add_cross_validation(
    run: Run,
    settings: RunSettings,
    parts: DataSplits,
    classifier: Classifier,
    frozen: PartiallyFrozen,
    place: torch.device,
) -> RunSettings:
    """Cross-validate the head before its first step, if there are few images, and add the result to training.json."""
    why_not = why_not_cross_validated(settings.recipe, parts, stored=settings.cache is not None)
    if why_not is not None:
        if why_not:
            say(f"not cross-validated: {why_not}")
        return settings
    found = cross_validate_head(frozen, settings, parts, classifier.preprocess, place, classifier.task)
    settings = settings.model_copy(update={"cross_validation": found})
    write_json(run.training, settings.model_dump())
    return settings


@contextmanager
def name_resume_command_on_interrupt(run: Run) -> Iterator[None]:
    """Turn an interruption of the body into Interrupted, with the command that continues `run`."""
    try:
        yield
    except KeyboardInterrupt as error:
        if not run.training.exists():
            raise
        request = StopRequest(error.number) if isinstance(error, Stopped) else StopRequest()
        raise Interrupted(
            f"stopped; the state saved last is kept; continue with: {run.resume_command}", request.exit_code
        ) from error


@contextmanager
def _explained(
    run: Run, model: Model, settings: RunSettings, parts: DataSplits, state: TrainingProgress, log: MetricsLog | None
) -> Iterator[None]:
    """Add to the errors of the body what is kept and what to try, also in the report."""
    try:
        yield
    except Interrupted:
        raise
    except TrainingError as error:
        kept = f"the weights of epoch {state.kept_epoch}" if state.kept_epoch else "the weights that it began with"
        advice = health.divergence_advice(settings.recipe)
        sentence = f"training diverged: {error}; {kept} are in {run.folder}; {advice}"
        if log:
            log.write("health", epoch=None, step=state.step, finding="diverged", sentence=sentence)
            training_report.write_training_report(run, model, settings, parts, None, "val")
        raise TrainingError(sentence) from error
    except RuntimeError as error:
        if distributed.world_size() == 1 or not distributed.is_peer_lost(error):
            raise
        raise distributed.PeerLostError(
            f"training stopped at step {state.step}; continue it from the last checkpoint, with as many processes or "
            f"fewer: torchrun … {run.resume_command}"
        ) from error


def _device_of(run: Run, settings: RunSettings) -> torch.device:
    """Return the device of `run`, or another one, with a message, if this machine has no such device."""
    try:
        return choose_device(settings.device)
    except UsageError:
        place = choose_device("auto")
        if settings.device == "mps":  # of an earlier version
            say(
                f"{run.folder} was started on mps, which svertka no longer supports; it continues on {place}, with "
                "slightly different numbers. To compute all numbers on one device, train again: "
                f"{format_command('train', source_word(settings.source), '--device', str(place))}"
            )
        else:
            say(f"{run.folder} was started on {settings.device}, which is not on this machine; it continues on {place}")
        return place


def _open(run: Run, settings: RunSettings, source: Source | None) -> Dataset:
    """Open `source`, or the images that `run` was trained on.

    Raises:
        UsageError, DataError: They are not there, or were in memory and `source` is None.
    """
    if source is None and settings.source in IN_MEMORY:
        raise UsageError(
            f"{run.folder} was trained on images in memory; pass them again in Python: {run.resume_command}"
        )
    named = settings.source if source is None else source
    try:
        dataset = open_source(named, columns=settings.columns, boxes=settings.boxes, names=settings.names)
    except (UsageError, DataError) as error:
        if not is_path(named):
            raise
        again = format_command("train", "--resume", run.folder)
        raise type(error)(f"{error}; if the images were moved, say where they are now: {again} SOURCE") from error
    return dataset.with_decoding(DecodingOptions.up_to(settings.max_pixels))


def _split_as_before(run: Run, settings: RunSettings, dataset: Dataset) -> DataSplits:
    """Split the images of `dataset` as when `run` was started."""
    preprocess, manifest = read_config(run.folder).preprocess, read_manifest(run)

    def resplit(digests: list[bytes], good: Ints) -> DatasetSplit:
        if manifest is None:  # it was begun before runs recorded their images
            return split_by_content_as_before(dataset, digests, good, settings.val, settings.test, turn=settings.turn)
        return DatasetSplit(manifest.indices(digests, dataset.parts, good))

    parts = decode_and_split(
        dataset,
        preprocess,
        settings.stored_side,
        settings.val,
        settings.test,
        threads=settings.threads,
        limit=settings.cache_limit,
        resplit=resplit,
    )
    if settings.boxes is None:
        return parts
    return replace_images_by_patches(parts, settings.boxes, preprocess, seed=settings.seed, threads=settings.threads)


def _further(run: Run, source: str) -> str:
    """Return the advice on how to train further from a run that cannot be continued."""
    again = format_command("train", source_word(source), "--weights", run.folder)
    if source in IN_MEMORY:
        again = f"svertka.train(source, weights={str(run.folder)!r})"
    return f"to train further, also on other images, start a new run from its weights: {again}"
