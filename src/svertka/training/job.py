"""train(): the one place that knows the whole order, from a source of pictures to a finished run folder."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svertka import distributed
from svertka.classifier import Classifier, Config, find_weights, model_of_weights, read_config
from svertka.conv.accelerate import accelerate as accelerated
from svertka.data.preprocess import Preprocess
from svertka.data.sources import open_source
from svertka.data.split import VAL_SHARE
from svertka.device import choose_device, in_layout, set_threads
from svertka.errors import Interrupted, RunError, TrainingError, UsageError
from svertka.evaluation.scoring import score
from svertka.files import storage, sync_folder, write_json
from svertka.models import zoo
from svertka.models.initial import initialise
from svertka.progress import progress, say
from svertka.run import Run, new_folder
from svertka.training import checkpoint, plan, summary
from svertka.training.log import Log
from svertka.training.loop import State, fit, make_optimizer, steps_of
from svertka.training.parts import Parts, divide, measured, natural_input, stored_side
from svertka.training.published import DEFAULTS, find_recipe, recipe_for
from svertka.training.range_test import RangeTest, find_learning_rate
from svertka.training.recorder import Recorder
from svertka.training.settings import Settings

PREPARED_WITH = 5000  # training pictures, for networks that want to see some before their first step


def train(
    source: str | PathLike[str],
    *,
    model: str | None = None,
    weights: str | PathLike[str] | None = None,
    recipe: str | None = None,
    output: str | PathLike[str] | None = None,
    time_budget: str | None = None,
    lr: float | str | None = None,
    augment: bool = True,
    size: int | None = None,
    val: float = VAL_SHARE,
    test: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    accelerate: bool = True,
    prefetch: bool | None = None,
    cache_limit: int | None = None,
    tensorboard: bool = False,
    **changes: Any,
) -> Run:
    """The finished run of a network trained on `source`: a published data set's name, a folder, or a CSV file.

    `model`: a name from `models.zoo.MODELS`; `recipe`: one from `training.published.RECIPES`; None: what suits the
    source. `weights`: what to start from, with the preprocessing that goes with it: "imagenet" or "bundled" where
    `models.published.PUBLISHED` has them, a run (whose network is then the model), or a file; None: fresh weights.
    `output`: the run folder; None: a free name under runs/. `time_budget`: "10m"; the epochs are then those
    that fit. `lr`: the highest learning rate, or "find". `augment`: False leaves the recipe's augmentations out.
    `size`: side of the input, pixels. `val`, `test`: shares taken from the training pictures where the source has
    no such part. `accelerate`: on the CPU, let `svertka.conv` compute the convolutions. `prefetch`: prepare batches
    ahead in a thread; None: where it pays. `cache_limit`: bytes of decoded pictures on disk. `changes`: settings of the
    recipe, such as epochs=5.

    Raises:
        UsageError: a value that cannot be; the run folder exists.
        DataError: the pictures do not allow it.
        TrainingError: the loss diverged, or a worker was lost. Interrupted: Ctrl-C or SIGTERM; the run is saved.
    """
    asked = {name: value for name, value in locals().items() if name not in ("source", "changes")} | changes
    began = time.monotonic()
    place, thread_count = choose_device(device), set_threads(threads)
    dataset = open_source(fspath(source))
    start_from = None if weights is None else fspath(weights)
    known = None if start_from is None else model_of_weights(start_from)
    facts = zoo.find(model or known or DEFAULTS.get(dataset.source, DEFAULTS[""])[0])
    recipe_name = recipe or recipe_for(dataset.source, facts.name)
    if not augment:
        changes["augmentations"] = ()
    planned = find_recipe(recipe_name).with_changes(lr=_number(lr), **changes)
    budget = None if time_budget is None else plan.parse_time(time_budget)
    folder = new_folder(dataset.source, facts.name, output)
    if planned.start not in (None, facts.name) and start_from is None:
        start_from = str(_first_stage(source, planned.start, recipe_name, folder, asked).folder)
    start = None if start_from is None else find_weights(facts, start_from)
    given = None if start is None else start.preprocess
    side, resize, channels = natural_input(dataset, facts, size, given)
    with torch.device("meta"):  # says at once where the size is too small, or the weights are another network's
        unmade = facts.build(len(dataset.names), channels, side)
    if start is not None:
        start.check(unmade)

    with distributed.group(place):
        unmeasured = Preprocess(size=side, resize=resize, mean=(0.0,) * channels, std=(1.0,) * channels)
        stored = stored_side(unmeasured, planned.augmentations)
        parts = divide(dataset, unmeasured, stored, val, test, threads=thread_count, limit=cache_limit)
        if "batch_size" not in changes:
            planned = planned.with_changes(batch_size=min(planned.batch_size, len(parts.indices["train"])))
        preprocess, planned = measured(parts, unmeasured, facts, planned, given)

        torch.manual_seed(seed)
        config = Config(model=facts.name, names=dataset.names, preprocess=preprocess)
        classifier = Classifier(config.build().to(place), config)
        if planned.initial is not None:
            initialise(classifier.network, planned.initial)
        if facts.prepare is not None:
            facts.prepare(classifier.network, parts.sample(preprocess, PREPARED_WITH).to(place))
        started = []
        if start is not None:
            started = [start.note, start.put_into(classifier.network, dataset.names)]
            del start  # the network holds its own tensors now
        accelerate = accelerate and place.type == "cpu"
        if accelerate:
            accelerated(classifier.network)
        batches = parts.training_batches(preprocess, planned, seed, place)
        label = f"{facts.name}, accelerated" if accelerate else facts.name
        timing = plan.time_steps(classifier.network, next(batches.epoch(0)), planned, label)
        one_epoch = plan.epoch_seconds(timing, batches.steps, planned.batch_size, len(parts.indices["val"]))
        found = find_learning_rate(classifier.network, batches, planned) if lr == "find" else None
        if found is not None:
            planned = planned.with_changes(lr=distributed.of_first(found.chosen))
        if budget is not None:
            epochs = plan.fit_epochs(budget - (time.monotonic() - began), one_epoch)
            planned = planned.with_changes(epochs=distributed.of_first(epochs))
        settings = Settings(
            source=dataset.source,
            fingerprint=parts.fingerprint,
            parts=parts.sizes(),
            bad=parts.bad,
            val=val,
            test=test,
            model=facts.name,
            weights=start_from,
            recipe_name=recipe_name,
            recipe=planned,
            stored_side=stored,
            seed=seed,
            device=place.type if distributed.world() > 1 else str(place),
            threads=thread_count,
            memory_format=timing.memory_format,
            accelerate=accelerate,
            prefetch=_pays(parts, place) if prefetch is None else prefetch,
            cache_limit=cache_limit,
        )
        say(plan.table(summary.facts(classifier, settings, one_epoch * planned.epochs)))
        for sentence in filter(None, (*started, parts.unstored)):
            say(sentence)
        run = Run(folder)
        if distributed.is_first():
            _create(run, classifier, settings, found)
        distributed.barrier()
        return _carry_out(run, settings, parts, place, tensorboard=tensorboard)


def resume(folder: str | PathLike[str], *, tensorboard: bool = False) -> Run:
    """The finished run that was interrupted in `folder`; bit for bit what it would have been, if nothing else changed.

    Raises:
        RunError: it is no run, is damaged, or its pictures have changed.
        TrainingError: as for `train`.
    """
    run = Run(folder)
    settings, preprocess = Settings.of(run), read_config(run.folder).preprocess
    place = choose_device(settings.device)
    set_threads(settings.threads)
    dataset = open_source(settings.source)
    shares = settings.val, settings.test
    with distributed.group(place):
        parts = divide(
            dataset, preprocess, settings.stored_side, *shares, threads=settings.threads, limit=settings.cache_limit
        )
        if parts.fingerprint != settings.fingerprint:
            raise RunError(
                f"the pictures of {settings.source} are not those that {run.folder} was begun with "
                f"({sum(parts.sizes().values())} now, {sum(settings.parts.values())} then); put them back or train anew"
            )
        return _carry_out(run, settings, parts, place, tensorboard=tensorboard)


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
    finished = any(line["kind"] == "result" for line in run.history())
    return run if finished else resume(run)


def _carry_out(run: Run, settings: Settings, parts: Parts, place: torch.device, *, tensorboard: bool) -> Run:
    """From the checkpoint in `run`, be it of step 0, to the end."""
    classifier = Classifier.load(run.folder, place)
    network = in_layout(classifier.network, settings.layout)
    if settings.accelerate:
        accelerated(network)
    optimizer = make_optimizer(network, settings.recipe)
    state, extra = checkpoint.load(run.checkpoint, network, optimizer)
    batches = parts.training_batches(
        classifier.preprocess, settings.recipe, settings.seed, place, settings.layout, prefetch=settings.prefetch
    )
    shown_as = classifier.preprocess, place, settings.layout
    val = parts.batches("val", *shown_as) if len(parts.indices["val"]) else None
    log = Log(run.metrics, int(extra["log"]), tensorboard=tensorboard) if distributed.is_first() else None
    parallel = nn.parallel.DistributedDataParallel(network) if distributed.world() > 1 else network
    weights = _class_weights(parts).to(place) if settings.recipe.class_weights else None
    with progress(f"training {run.folder}", steps_of(settings.recipe, batches.steps)[0]) as shown:
        shown.advance(state.step)
        recorder = Recorder(run, classifier, optimizer, settings.recipe, state, log, batches, val, shown)
        with recorder.stoppable(), _explained(run, settings, parts, state, log):
            fit(parallel, optimizer, batches, settings.recipe, state, recorder, class_weights=weights)
        recorder.save()
    distributed.barrier()  # the first process has now written the weights that all load

    part = next(name for name in ("test", "val", "train") if len(parts.indices[name]))
    kept = Classifier.load(run.folder, place)
    network = in_layout(kept.network, settings.layout)
    judged = score(network, parts.batches(part, *shown_as), kept.names, f"scoring {part}")
    if log:
        log.write(
            "result",
            val_error=state.val_errors[state.kept_epoch - 1] if state.val_errors else None,
            test_error=judged.top1_error if part == "test" else None,
            epochs=state.step / batches.steps,
            seconds=state.seconds,
            images_per_second=state.pictures / max(state.learning_seconds, 1e-9),
        )
        log.close()
        summary.write(run, settings, parts, judged, part)
    distributed.barrier()
    return run


def _create(run: Run, classifier: Classifier, settings: Settings, found: RangeTest | None) -> None:
    """Make the run folder, whole from its first moment: untrained weights, settings, a checkpoint of step 0."""
    with storage(run.folder):
        run.folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Run(run.folder.with_name(f".{run.folder.name}.{os.getpid()}.tmp"))
    try:
        with storage(run.folder):
            draft.folder.mkdir()
        classifier.save(draft.folder)
        write_json(draft.training, settings.model_dump())
        log = Log(draft.metrics)
        if found is not None:
            log.write("range_test", learning_rate=found.rates, loss=found.losses, chosen=found.chosen)
        optimizer = make_optimizer(classifier.network, settings.recipe)
        checkpoint.save(draft.checkpoint, classifier.network, optimizer, State(), log=log.offset)
        with storage(run.folder):
            draft.folder.rename(run.folder)
            sync_folder(run.folder.parent)
    except BaseException:
        shutil.rmtree(draft.folder, ignore_errors=True)
        raise


def _class_weights(parts: Parts) -> torch.Tensor:
    """Each class's weight, inverse to its frequency; 1 on average over the training pictures. (classes,) float32."""
    counts = torch.from_numpy(parts.counts("train")).float()
    return counts.sum() / (len(counts) * counts)


def _pays(parts: Parts, place: torch.device) -> bool:
    """Whether preparing batches ahead pays: not where the thread that does it takes a core from the network."""
    return place.type != "cpu" or parts.unstored is not None


def _number(lr: float | str | None) -> float | None:
    """`lr` where it is a number.

    Raises:
        UsageError: it is text, but not "find".
    """
    if isinstance(lr, str) and lr != "find":
        try:
            return float(lr)
        except ValueError:
            raise UsageError(f"lr={lr} is neither a number nor find; write --lr 0.01 or --lr find") from None
    return lr if isinstance(lr, float | int) else None


@contextmanager
def _explained(run: Run, settings: Settings, parts: Parts, state: State, log: Log | None) -> Iterator[None]:
    """Say of a training that broke off what is kept and what to try, here and in the report."""
    try:
        yield
    except Interrupted:
        raise
    except TrainingError as error:
        kept = f"the weights of epoch {state.kept_epoch}" if state.kept_epoch else "the weights that it began with"
        advice = f"try a lower learning rate (--lr {settings.recipe.lr / 10:.2g}), --warmup 1 or --clip 1"
        sentence = f"training diverged: {error}; {kept} are in {run.folder}; {advice}"
        if log:
            log.write("health", epoch=None, step=state.step, finding="diverged", sentence=sentence)
            summary.write(run, settings, parts, None, "val")
        raise TrainingError(sentence) from error
    except RuntimeError as error:
        if distributed.world() == 1:
            raise
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"a worker process was lost at step {state.step} ({reason}); "
            f"continue from the last checkpoint with the same torchrun command and: train --resume {run.folder}"
        ) from error
