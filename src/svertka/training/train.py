"""train(): the one place that knows the whole order, from a source of pictures to a finished run folder."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svertka import distributed
from svertka.classifier import Classifier, load_initial_weights, model_of_run_weights, read_config
from svertka.conv import autotune
from svertka.conv.accelerate import accelerate as accelerated
from svertka.data.dataset import Ints
from svertka.data.deduplicated_split import Division, divided_by_content
from svertka.data.filename_groups import grouped_by
from svertka.data.image_io import Decoding
from svertka.data.preprocessing import Preprocess, checked_fit
from svertka.data.sources import open_source
from svertka.data.split import VAL_SHARE
from svertka.device import choose_device, in_layout, keeps_settings, set_threads
from svertka.errors import DataError, Interrupted, RunError, TrainingError, UsageError
from svertka.escaping import command
from svertka.evaluation.evaluate import evaluate_network
from svertka.evaluation.held_out import read_manifest
from svertka.files import write_json
from svertka.models import registry
from svertka.progress import progress, say, working
from svertka.run import Run
from svertka.signals import Request, Stopped
from svertka.training import artifacts, checkpoint, health, time_estimate
from svertka.training.builtin_recipes import BACKBONE, DEFAULTS, find_recipe, recipe_for
from svertka.training.callbacks import Recorder
from svertka.training.config import LARGEST_SIDE, MOST_SEED, Settings, refuse_out_of_range
from svertka.training.data_splits import Parts, divide, in_patches, measured, natural_input, stored_side
from svertka.training.lr_finder import find_learning_rate
from svertka.training.metrics_log import Log
from svertka.training.run_lock import claimed, in_use
from svertka.training.setup import begin, create, refuse_untrained
from svertka.training.train_inputs import (
    at_a_stable_rate,
    compute_head,
    computes_head,
    freeze_for,
    head_seconds,
    judged_by,
    learner,
    optimize_frozen,
    optimizer_for,
    scoring_seconds,
    val_error_of,
)
from svertka.training.training_loop import State, fit, steps_of
from svertka.transfer.feature_cache import available_bytes, row_bytes
from svertka.type_checking import check_types

PLANNED_BY = 64  # patches by which a training is planned: each has to be cut from an image of its own


@check_types
@keeps_settings
def train(
    source: str | PathLike[str],
    *,
    model: str | None = None,
    weights: str | PathLike[str] | None = None,
    recipe: str | None = None,
    boxes: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None,
    time_budget: str | None = None,
    lr: float | str | None = None,
    augment: bool = True,
    size: int | None = None,
    fit: str | None = None,
    val: float = VAL_SHARE,
    test: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    accelerate: bool = True,
    prefetch: bool | None = None,
    cache: bool = True,
    variants: int | None = None,
    half_features: bool = False,
    cache_limit: int | None = None,
    max_pixels: int | None = None,
    turn: int | None = None,
    columns: str | None = None,
    group: str | None = None,
    tensorboard: bool = False,
    **changes: Any,
) -> Run:
    """The finished run of a network trained on `source`: a published data set's name, a folder, or a CSV file.

    `model`: a name from `models.zoo.MODELS`; `recipe`: one from `training.published.RECIPES`; None: what suits the
    source. `weights`: what to start from, with the preprocessing that goes with it: "imagenet" or "bundled" where
    `models.published.PRETRAINED` has them, a run (whose network is then the model), or a file; None: fresh weights, but
    for pictures of one's own and no `model` those of `published.BACKBONE`. What starts from weights is frozen but for
    its head, unless `unfreeze` says otherwise: "head", "last", a number of stages, a stage's name, or "all". `boxes`:
    where objects are, as for `data.boxes.read_boxes`; the head then learns from patches, and knows background, too.
    `output`: the run folder; None: a free name under runs/. `time_budget`: "10m"; the epochs are then those
    that fit. `lr`: the highest learning rate, or "find". `augment`: False leaves the recipe's augmentations out.
    `size`: side of the input, pixels. `fit`: how pictures become square, as `data.preprocess.Preprocess` says: "crop",
    "pad" or "squeeze"; None: as the weights had it, or "crop". `val`, `test`: shares taken from the training pictures
    where the source has no such part. `accelerate`: on the CPU, let `svertka.conv` compute the convolutions.
    `prefetch`: prepare batches ahead in a thread; None: where it pays. `cache`: store what the frozen part gives, where
    that pays; `variants`: so many of each augmented picture, None: as `plan.Passes.cache` says; `half_features`: in
    float16. `cache_limit`: bytes of decoded pictures on disk, and of features. `max_pixels`: of a picture; larger ones
    are left out, but for JPEGs that can be decoded reduced. `turn`: which of several divisions into parts this is, from
    0; None: the only one, which is the first. `columns`: what the
    columns of a table mean, as for `data.sources.open_source`. `group`: a regular expression; images in whose file
    names it finds the same are kept in one part. `changes`: settings of the recipe, such as epochs=5 or
    unfreeze="last".

    Raises:
        UsageError: a value that cannot be; the run folder exists.
        DataError: the pictures do not allow it.
        TrainingError: the loss diverged, or a worker was lost. Interrupted: Ctrl-C or SIGTERM; the run is saved.
    """
    asked = {name: value for name, value in locals().items() if name not in ("source", "changes")} | changes
    began = time.monotonic()
    place, thread_count = choose_device(device), set_threads(threads)
    dataset = open_source(fspath(source), columns=columns, boxes=None if boxes is None else fspath(boxes))
    dataset = dataset.decoded_as(Decoding.up_to(max_pixels))
    asked_fit = checked_fit(fit, boxes is not None)
    if group is not None:
        dataset = grouped_by(dataset, group)
    start_from = None if weights is None else fspath(weights)
    own_pictures = dataset.source not in DEFAULTS
    if own_pictures and model is None and start_from is None and recipe is None:
        model, start_from = BACKBONE
    known = None if start_from is None else model_of_run_weights(start_from)
    facts = registry.find_model(model or known or DEFAULTS.get(dataset.source, BACKBONE)[0])
    trained = start_from is not None
    by_default = recipe_for(dataset.source, facts.name, unfreeze=changes.get("unfreeze"), trained=trained)
    recipe_name = recipe or (by_default if boxes is None else "patches")
    if not augment or boxes is not None:  # patches overlap, which is enough
        changes["augmentations"] = ()
    planned = find_recipe(recipe_name).with_changes(lr=time_estimate.parse_rate(lr), **changes)
    refuse_untrained(planned, None if boxes is None else fspath(boxes), trained=trained)
    refuse_out_of_range("seed", seed, 0, MOST_SEED - 1)
    refuse_out_of_range("size", size, 1, LARGEST_SIDE)
    if variants is not None and variants < 1:
        raise UsageError(f"variants={variants} must be at least 1; leave it out to store as many as pay")
    refuse_out_of_range("turn", turn, 0, 2**32 - 1)
    is_repeated, turn = turn is not None, turn or 0
    budget = None if time_budget is None else time_estimate.parse_time(time_budget)
    if budget is not None and changes.get("epochs") is not None:
        raise UsageError(
            f"time={time_budget} and epochs={changes['epochs']} each say how long to train; leave one of them out"
        )
    with distributed.group(place), claimed(dataset.source, facts.name, output) as folder:
        if planned.start not in (None, facts.name) and start_from is None:
            start_from = str(_first_stage(source, planned.start, recipe_name, folder, asked).folder)
        start = None if start_from is None else load_initial_weights(facts, start_from)
        given = None if start is None else start.preprocess
        how = asked_fit or ("crop" if given is None or boxes is not None else given.fit)
        side, resize, channels = natural_input(dataset, facts, size, given, how)
        with torch.device("meta"):  # says at once where the size is too small, or the weights are another network's
            unmade = facts.build(len(dataset.names), channels, side)
        if start is not None:
            start.check(unmade)
        unmeasured = Preprocess(size=side, resize=resize, mean=(0.0,) * channels, std=(1.0,) * channels, fit=how)
        stored = stored_side(unmeasured, planned.augmentations)
        parts = divide(
            dataset,
            unmeasured,
            stored,
            val,
            test,
            threads=thread_count,
            limit=cache_limit,
            turn=turn,
            survey=True,
            boxed=boxes is not None,
            inherited=_trained_on_before(start_from),
        )
        preprocess, planned = measured(parts, unmeasured, facts, planned, given)
        if boxes is not None:
            parts = in_patches(parts, fspath(boxes), preprocess, seed=seed, threads=thread_count)
        if "batch_size" not in changes:
            planned = planned.with_changes(batch_size=min(planned.batch_size, len(parts.indices["train"])))

        time_estimate.need_pictures_for_all(planned.batch_size, len(parts.indices["train"]))
        classifier, started = begin(facts, start, parts, preprocess, planned, seed, place, may_redraw=recipe is None)
        del start  # the network holds its own tensors now
        made = freeze_for(classifier, planned)
        batches = parts.training_batches(preprocess, planned, seed, place)
        some = planned if boxes is None else planned.with_changes(batch_size=min(planned.batch_size, PLANNED_BY))
        batch = next(parts.training_batches(preprocess, some, seed, place).epoch(0))
        learning, optimizing = classifier.network, 0.0
        if trained and lr is None and not planned.is_computed:
            planned, slower = at_a_stable_rate(classifier, planned, batch.images)
            started += slower
        accelerate = accelerate and place.type == "cpu"
        if accelerate:
            accelerated(classifier.network)
        label = f"{facts.name}, accelerated" if accelerate else facts.name
        if made is not None:
            label, learning = f"{label} above {planned.unfreeze}", made.trainable
            in_layout(classifier.network, torch.channels_last)
            if accelerate:
                optimized_from = time.monotonic()
                optimize_frozen(made, classifier, parts)
                optimizing = time.monotonic() - optimized_from
            a_picture, batch = time_estimate.time_frozen(made, batch, torch.channels_last)
            batch = time_estimate.repeated(batch, max(1, round(planned.batch_size / some.batch_size)))
        timing = time_estimate.time_steps(learning, batch, planned, label)
        sizes = len(parts.indices["train"]), len(parts.indices["val"])
        one_epoch = time_estimate.epoch_seconds(timing, batches.steps, planned.batch_size, sizes[1])
        kept, once = None, 0.0
        if made is not None:
            passes = time_estimate.Passes(a_picture, *sizes, row_bytes(made.shape, half=half_features))
            if cache:
                allowed = available_bytes(cache_limit)
                kept, why = passes.cache(
                    planned, one_epoch, variants, half_features, allowed, is_timed=budget is not None
                )
                started.append(why)
            once, each = passes.cost(kept)
            one_epoch += each
        found = find_learning_rate(made or classifier.network, batches, planned) if lr == "find" else None
        if found is not None:
            planned = planned.with_changes(lr=distributed.of_first(found.chosen))
        forward = (a_picture if made is not None else 0.0) + time_estimate.forward_seconds(timing, len(batch.labels))
        around = once + head_seconds(
            classifier, planned, parts, forward, stored=kept is not None, optimizing=optimizing
        )
        around += scoring_seconds(parts.of_whole_images(), forward)
        if budget is not None:
            epochs = time_estimate.fit_epochs(budget, time.monotonic() - began, around, one_epoch)
            planned = planned.with_changes(epochs=distributed.of_first(epochs))
        settings = Settings(
            source=dataset.source,
            fingerprint=parts.fingerprint,
            parts=parts.sizes(),
            bad=parts.bad,
            account=parts.dataset.account.to_dict(),
            columns=columns,
            val=val,
            test=test,
            model=facts.name,
            weights=start_from,
            boxes=None if boxes is None else fspath(boxes),
            recipe_name=recipe_name,
            recipe=planned,
            stored_side=stored,
            seed=seed,
            device=place.type if distributed.world() > 1 else str(place),
            threads=thread_count,
            memory_format=timing.memory_format,
            accelerate=accelerate,
            prefetch=_pays(parts, place) if prefetch is None else prefetch,
            cache=kept,
            cache_limit=cache_limit,
            max_pixels=max_pixels,
            turn=turn,
            group=group,
        )
        learning_seconds = 0 if planned.is_computed else one_epoch * planned.epochs
        lines = artifacts.facts(classifier, settings, around + learning_seconds)
        say(time_estimate.table([*lines, *parts.shown_part(preprocess)]))
        for sentence in filter(
            None, (*parts.not_used(), parts.misnamed(), *started, parts.few(is_repeated=is_repeated), parts.unstored)
        ):
            say(sentence)
        run = Run(folder)
        with _continuable(run):
            if distributed.is_first():
                create(run, classifier, settings, parts.manifest, found)
            distributed.barrier()
            hastened = made.frozen.optimized if made else None
            return _carry_out(run, settings, parts, place, tensorboard=tensorboard, hastened=hastened)


@check_types
@keeps_settings
def resume(
    folder: str | PathLike[str],
    source: str | PathLike[str] | None = None,
    *,
    boxes: str | PathLike[str] | None = None,
    tensorboard: bool = False,
) -> Run:
    """The finished run that was interrupted in `folder`; bit for bit what it would have been, if nothing else changed.

    `source`, `boxes`: where the pictures and the boxes are now, if they were moved. A run that has finished is left as
    it is.

    Raises:
        RunError: it is no run, is damaged, its pictures have changed, or another process trains it.
        UsageError: the pictures are not there. TrainingError: as for `train`.
    """
    run = Run(folder)
    settings = Settings.of(run)
    if run.is_finished:
        run.classifier()  # which says what is damaged
        now = settings.source if source is None else fspath(source)
        say(f"{run.folder} has finished already; {_further(run, settings.model_copy(update={'source': now}))}")
        return run
    place = _device_of(run, settings)
    set_threads(settings.threads)
    with distributed.group(place), in_use(run), _continuable(run):
        moved = settings.model_copy(
            update={name: fspath(path) for name, path in (("source", source), ("boxes", boxes)) if path is not None}
        )
        parts = _parts_of(run, moved)
        if parts.fingerprint != settings.fingerprint:
            raise RunError(
                f"the pictures of {moved.source} are not those that {run.folder} was begun with "
                f"({sum(parts.sizes().values())} now, {sum(settings.parts.values())} then); put them back, or "
                f"{_further(run, moved)}"
            )
        if read_manifest(run) is None and distributed.is_first():
            parts.manifest.write(run.manifest)
        if moved != settings and distributed.is_first():
            write_json(run.training, moved.model_dump())  # where `evaluate` and `look` will find them
        return _carry_out(run, moved, parts, place, tensorboard=tensorboard)


@contextmanager
def _continuable(run: Run) -> Iterator[None]:
    """Say how `run` goes on, if the body is interrupted at a moment when it had nothing to save."""
    try:
        yield
    except KeyboardInterrupt as error:
        if not run.training.exists():
            raise
        request = Request(error.number) if isinstance(error, Stopped) else Request()
        raise Interrupted(
            f"stopped; what was saved before stays, continue with: {run.resume_command}", request.exit_code
        ) from error


def _device_of(run: Run, settings: Settings) -> torch.device:
    """Where `run` was begun; another device of this machine if it has none such, which is said."""
    try:
        return choose_device(settings.device)
    except UsageError:
        place = choose_device("auto")
        if settings.device == "mps":  # of an earlier version
            say(
                f"{run.folder} was begun on mps, which svertka no longer trains on; it goes on on {place}, with other "
                "last digits. To have all numbers from one device, train anew: "
                f"{command('train', Path(settings.source), '--device', str(place))}"
            )
        else:
            say(f"{run.folder} was begun on {settings.device}, which is not on this machine; it goes on on {place}")
        return place


def _parts_of(run: Run, settings: Settings) -> Parts:
    """The pictures of `settings`, divided as for the training that `run` was begun with."""
    try:
        dataset = open_source(settings.source, columns=settings.columns, boxes=settings.boxes)
        dataset = dataset.decoded_as(Decoding.up_to(settings.max_pixels))
    except (UsageError, DataError) as error:
        again = command("train", "--resume", run.folder)
        raise type(error)(f"{error}; if the pictures were moved, say where they are now: {again} SOURCE") from error
    preprocess, manifest = read_config(run.folder).preprocess, read_manifest(run)

    def as_divided(digests: list[bytes], good: Ints) -> Division:
        if manifest is None:  # it was begun before runs recorded their images
            return divided_by_content(dataset, digests, good, settings.val, settings.test, turn=settings.turn)
        return Division(manifest.indices(digests, dataset.parts, good))

    parts = divide(
        dataset,
        preprocess,
        settings.stored_side,
        settings.val,
        settings.test,
        threads=settings.threads,
        limit=settings.cache_limit,
        as_divided=as_divided,
    )
    if settings.boxes is None:
        return parts
    return in_patches(parts, settings.boxes, preprocess, seed=settings.seed, threads=settings.threads)


def _further(run: Run, settings: Settings) -> str:
    """How training goes on from a run that cannot be continued."""
    again = command("train", Path(settings.source), "--weights", run.folder)
    return f"to train further, also on other pictures, start a new run from its weights: {again}"


def _trained_on_before(weights: str | None) -> frozenset[bytes]:
    """Digests of the images that the run `weights` was trained on; none of weights that are no run's."""
    manifest = None if weights is None else read_manifest(weights)
    if manifest is not None:
        return manifest.trained_on
    if weights is not None and Run(weights).training.exists():
        say(f"{weights} does not record which images it was trained on; if some of these are, val and test err too low")
    return frozenset()


def _first_stage(source: str | PathLike[str], model: str, recipe: str, folder: Path, asked: dict[str, Any]) -> Run:
    """The finished run of `model`, from which that in `folder` starts: trained as `asked`, gone on with, or found."""
    if asked["time_budget"] is not None:
        raise UsageError(f"recipe={recipe} trains {model} first, so that --time is not known; give --epochs instead")
    run = Run(folder.with_name(f"{folder.name}.{model}"))
    say(f"first {model}, in {run.folder}")
    if not run.folder.exists():
        return train(source, **(asked | {"model": model, "recipe": recipe, "output": run.folder}))
    settings = Settings.of(run)
    if (settings.source, settings.recipe_name, settings.seed) != (fspath(source), recipe, asked["seed"]):
        raise UsageError(f"{run.folder} is of another training; remove it, or choose another --output")
    return run if run.is_finished else resume(run)


def _carry_out(
    run: Run,
    settings: Settings,
    parts: Parts,
    place: torch.device,
    *,
    tensorboard: bool,
    hastened: nn.Module | None = None,
) -> Run:
    """From the checkpoint in `run`, be it of step 0, to the end; with what is there of the frozen part, `hastened`."""
    classifier = Classifier.load(run.folder, place, of_patches=True)
    in_layout(classifier.network, settings.layout)
    made = freeze_for(classifier, settings.recipe)
    if made is not None:
        made.frozen.optimized = hastened
    if settings.accelerate:
        accelerated(classifier.network)
    optimizer = optimizer_for(classifier, settings.recipe)
    state, extra = checkpoint.load(run.checkpoint, classifier.network, optimizer)
    with autotune.repeating(extra["convolutions"]):
        if state.step == 0 and computes_head(classifier, settings.recipe):
            compute_head(classifier, settings, parts, place)
        learning = learner(classifier, made, settings, parts, place)
        batches = learning.batches
        log = Log(run.metrics, extra.get("log", 0), tensorboard=tensorboard) if distributed.is_first() else None
        with progress(f"training {run.folder}", steps_of(settings.recipe, batches.steps)[0]) as shown:
            shown.advance(state.step)
            recorder = Recorder(run, classifier, learning, optimizer, settings.recipe, state, log, shown)
            with recorder.stoppable(), _explained(run, settings, parts, state, log):
                if settings.recipe.is_computed:
                    if not state.step:  # else it was interrupted afterwards
                        recorder.computed()
                elif not recorder.out_of_patience():
                    fit(learning.network, optimizer, batches, settings.recipe, state, recorder)
            recorder.save()
        distributed.barrier()  # the first process has now written the weights that all load

        part = parts.judged
        kept, images = Classifier.load(run.folder, place), parts.of_whole_images()
        judged = evaluate_network(*judged_by(kept, settings, images, part, place), kept.names, f"scoring {part}")
        last = state.val_errors[state.kept_epoch - 1] if state.val_errors else None
        val_error = last
        if parts.patches is not None and last is not None:  # that was of patches
            val_error = judged.top1_error if part == "val" else val_error_of(kept, settings, images, place)
        if log:
            log.write(
                "result",
                val_error=val_error,
                **({} if parts.patches is None else {"patch_val_error": last}),
                test_error=judged.top1_error if part == "test" else None,
                epochs=state.step / batches.steps,
                seconds=state.seconds,
                images_per_second=state.pictures / max(state.learning_seconds, 1e-9),
                at_chance=judged.at_chance,
                never_predicted=list(judged.never_predicted),
            )
            log.close()
            for sentence in judged.warnings:
                say(sentence)
            with working("writing the report"):
                artifacts.write(run, settings, images, judged, part)
        distributed.barrier()
        return run


def _pays(parts: Parts, place: torch.device) -> bool:
    """Whether preparing batches ahead pays: not where the thread that does it takes a core from the network."""
    return place.type != "cpu" or parts.unstored is not None


@contextmanager
def _explained(run: Run, settings: Settings, parts: Parts, state: State, log: Log | None) -> Iterator[None]:
    """Say of a training that broke off what is kept and what to try, here and in the report."""
    try:
        yield
    except Interrupted:
        raise
    except TrainingError as error:
        kept = f"the weights of epoch {state.kept_epoch}" if state.kept_epoch else "the weights that it began with"
        advice = health.against_divergence(settings.recipe)
        sentence = f"training diverged: {error}; {kept} are in {run.folder}; {advice}"
        if log:
            log.write("health", epoch=None, step=state.step, finding="diverged", sentence=sentence)
            artifacts.write(run, settings, parts, None, "val")
        raise TrainingError(sentence) from error
    except RuntimeError as error:
        if distributed.world() == 1 or not distributed.is_lost(error):
            raise
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"a worker process was lost at step {state.step} ({reason}); "
            f"continue from the last checkpoint, with the same torchrun command, as: {run.resume_command}"
        ) from error
