"""evaluate(): the error of one run, or of the mean of several, on labeled images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from svertka import distributed
from svertka.classifier import Classifier
from svertka.data.dataset import Dataset, Ints
from svertka.data.folder_layout import normalize_class_name
from svertka.data.image_io import DecodingOptions
from svertka.data.imagenet import find_class_name
from svertka.data.in_memory_sources import IN_MEMORY
from svertka.data.loader import BatchLoader
from svertka.data.sharded_images import ClassNames
from svertka.data.source_opener import Source
from svertka.device import autocast, choose_device, network_device, set_threads, with_preserved_settings
from svertka.errors import DataError, UsageError
from svertka.escaping import join_first
from svertka.evaluation.crop_protocols import CropProtocol, get_crop_protocol
from svertka.evaluation.error_by_image_property import errors_by_property
from svertka.evaluation.evaluation_scope import EvaluationScope
from svertka.evaluation.held_out import select_held_out_images
from svertka.evaluation.metrics import Evaluation
from svertka.evaluation.multi_label_metrics import MultiLabelEvaluation
from svertka.evaluation.predictor import Predictor
from svertka.evaluation.report_page import SHOWN_SIDE, Report, write_report
from svertka.evaluation.task_metrics import Accumulator, AnyEvaluation, make_accumulator
from svertka.files import parse_cache_limit_option
from svertka.output_paths import HTML, prepare_output_file
from svertka.progress import progress
from svertka.run import open_source_as_in_training
from svertka.tasks import SINGLE_LABEL, AnyTask, Regression, average_tasks, convert_outputs, reorder_task
from svertka.type_checking import check_types

RunPath = str | PathLike[str]
RunLike = RunPath | Classifier | nn.Module

CLASSES_IN_ERROR = 5  # class names listed in an error message


@check_types
@with_preserved_settings
def evaluate(
    run: RunLike | Sequence[RunLike],
    source: Source,
    *,
    crops: str | int = "1",
    scales: Sequence[int] | None = None,
    part: str | None = None,
    include_training: bool = False,
    output: RunPath | None = None,
    overwrite: bool = False,
    columns: str | None = None,
    names: ClassNames | None = None,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: float | None = None,
    max_pixels: int | None = None,
    trust_builder: bool = False,
    precision: str | None = None,
    size: int | None = None,
) -> AnyEvaluation:
    """Measure the error of a run, or of the mean of several, on labeled images.

    Training images are recognized by content, wherever the files are now, and are left out unless asked for.
    `Evaluation.scope` counts them.

    Args:
        run: A run folder or a network with weights, as for `Classifier.load`; a Classifier or an nn.Module; or a list
            of them, whose probabilities, or predicted numbers, are averaged; so are the thresholds of labels.
        source: Labeled images, as for `train`: a folder, a table, the name of a built-in data set, or images in memory.
            In memory, integers may number the outputs of an nn.Module.
        crops: Crops of each image: "1", "10", "144" or "dense"; see `evaluation.crop_protocols`.
        scales: Lengths of the shorter side of the image at which crops are taken, pixels. None: those of the
            protocol's paper.
        part: "train", "val", "test" or "all". None: the test images and all images new to the run; without test
            images, the validation images and new ones; without these, all.
        include_training: Whether to evaluate on images that the run was trained on, too.
        output: HTML file for a report. None: no report.
        overwrite: Whether `output` may replace a file that svertka did not write.
        columns: Which columns of a table hold paths and labels, such as "path=file,label=class". None: as in the
            training of the run if it used the same source, else detected.
        names: Class names of shards whose labels are numbers: a list, or a text file with one class per line.
            None: as in the training of the run if it used the same source.
        device: "auto", "cpu", "cuda" or "cuda:1".
        threads: CPU threads, at least 1. None: all cores.
        cache_limit: Size limit of the image cache, GB (10⁹ bytes). None: a share of the free disk.
        max_pixels: Largest image that is decoded, pixels. None: `data.image_io.PIXEL_LIMIT`.
        trust_builder: As for `Classifier.load`.
        precision: "fp32" to use the weights of a run even if it has an optimized network, which is used on the CPU
            otherwise.
        size: Height and width of the images that an nn.Module takes, pixels. None: as for `Classifier.wrap`.

    Returns:
        Errors, confusion matrix, calibration and mistakes; for several labels or a number, their metrics.

    Raises:
        DataError: The source cannot be read or holds classes that the run does not know.
        RunError: The run is missing or damaged, or its training images are no longer known.
        UsageError: The source has no such part or only training images; the weights, crops or scales do not exist;
            the runs know different classes; or `output` exists.
        FetchError: The weights or the data set cannot be downloaded.
        StorageError: `output` or the cache cannot be written.
    """
    file = None if output is None else prepare_output_file(output, HTML, overwrite=overwrite)
    limit = parse_cache_limit_option(cache_limit)
    joint = evaluate_jointly(
        run,
        source,
        crops,
        scales,
        part,
        include_training,
        device,
        threads,
        limit,
        max_pixels,
        columns,
        class_names=names,
        trust_builder=trust_builder,
        precision=precision,
        size=size,
    )
    if file is not None:
        write_report(file, joint.report())
    return joint.ensemble


@dataclass(frozen=True, eq=False)
class JointEvaluation:
    """The evaluations of several runs on the same images.

    Attributes:
        runs: The runs as they were named, R of them.
        dataset: The data set that holds the images.
        scope: Which of its images were evaluated.
        classifiers: The R networks.
        protocols: The crops that each of them saw.
        per_run: The R evaluations.
        ensemble: The evaluation of the mean of their probabilities or numbers; that of a single run.
    """

    runs: tuple[str, ...]
    dataset: Dataset
    scope: EvaluationScope
    classifiers: tuple[Classifier, ...]
    protocols: tuple[CropProtocol, ...]
    per_run: tuple[AnyEvaluation, ...]
    ensemble: AnyEvaluation

    @property
    def part(self) -> str:
        """The part of the data set, as in `EvaluationScope`."""
        return self.scope.part

    def report(self) -> Report:
        """Return the report on the ensemble; its images are read again."""
        pictures, protocol = self.dataset.images, self.protocols[0]
        scales = f" at {', '.join(map(str, protocol.scales))} pixels"
        crops = {"1": "the center", "dense": "all positions"}.get(protocol.crops, f"{protocol.crops} crops") + scales
        facts = [
            ("data", f"{self.dataset.source}, {self.part}"),
            *(("judged", remark) for remark in self.scope.remarks),
            ("network" if len(self.runs) == 1 else "networks, their probabilities averaged", ", ".join(self.runs)),
            ("seen", crops),
        ]
        models = dict.fromkeys(one.config.model for one in self.classifiers)
        return Report(
            name=" + ".join(Path(run).name for run in self.runs),
            network=" and ".join(models) if len(self.runs) > 1 else self.runs[0],
            source=self.dataset.source,
            facts=facts,
            history=(),
            part=self.part,
            evaluation=self.ensemble,
            read_image=lambda index: pictures.read(index, SHOWN_SIDE),
            image_name=pictures.name,
            slices=errors_by_property(self.ensemble, pictures.read, torch.get_num_threads())
            if isinstance(self.ensemble, Evaluation)
            else (),
            task=self.classifiers[0].task,
        )


@torch.inference_mode()
def evaluate_jointly(
    run: RunLike | Sequence[RunLike],
    source: Source,
    crops: str | int = "1",
    scales: Sequence[int] | None = None,
    part: str | None = None,
    include_training: bool = False,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: int | None = None,
    max_pixels: int | None = None,
    columns: str | None = None,
    *,
    class_names: ClassNames | None = None,
    trust_builder: bool = False,
    precision: str | None = None,
    size: int | None = None,
) -> JointEvaluation:
    """Evaluate runs on the same images, each by itself and their mean; see `evaluate` for arguments and errors."""
    given = [run] if isinstance(run, str | PathLike | Classifier | nn.Module) else list(run)
    if not given:
        raise UsageError("there is no run to evaluate; name one")
    torch_device, num_threads = choose_device(device), set_threads(threads)
    classifiers = [
        Classifier.open(one, torch_device, trust_builder=trust_builder, precision=precision, size=size) for one in given
    ]
    torch_device = network_device(classifiers[0].network) or torch_device
    runs, task = [one.origin for one in classifiers], classifiers[0].task
    for one in classifiers[1:]:
        if one.task.kind != task.kind:
            raise UsageError(
                f"{runs[0]} predicts {task.phrase}, and {one.origin} predicts {one.task.phrase}; name runs that "
                "predict the same"
            )
    names = classifiers[0].names
    orders = [_class_order(names, one.names, runs[0], name) for one, name in zip(classifiers, runs, strict=True)]
    opened = open_source_as_in_training(runs[0], source, columns=columns, names=class_names)
    opened = opened.with_decoding(DecodingOptions.up_to(max_pixels))
    if opened.task.kind != task.kind:
        raise DataError(
            f"{runs[0]} predicts {task.phrase}, and {opened.source} has {opened.task.phrase}; give images labeled in "
            "the same way, or say how to read the table with --columns"
        )
    if isinstance(given[0], nn.Module):
        opened = _name_numbered_classes(names, opened)
    dataset = renumber_labels_by_class_names(names, opened)
    selection = select_held_out_images(
        runs,
        dataset,
        classifiers[0].preprocess,
        part,
        include_training=include_training,
        threads=num_threads,
        cache_limit=cache_limit,
    )
    indices = selection.indices
    protocols = [get_crop_protocol(crops, scales, one.preprocess) for one in classifiers]
    scope = replace(selection.scope, optimized=_describe_optimized(classifiers, protocols))
    predictors = [
        Predictor(
            one, dataset, protocol, only=indices, device=torch_device, threads=num_threads, cache_limit=cache_limit
        )
        for one, protocol in zip(classifiers, protocols, strict=True)
    ]
    per_run, ensemble = _accumulate(
        predictors,
        orders,
        dataset,
        indices,
        [reorder_task(one.task, order.tolist()) for one, order in zip(classifiers, orders, strict=True)],
    )
    found = [replace(one.result(names), scope=scope) for one in per_run]
    found = [_mark_thresholds(one) for one in found]
    unknown = [_count_unknown(predictor) for predictor in predictors]
    found = [
        replace(one, unknown_images=count) if isinstance(one, Evaluation) else one
        for one, count in zip(found, unknown, strict=True)
    ]
    return JointEvaluation(
        runs=tuple(runs),
        dataset=dataset.with_intensity_range(classifiers[0].preprocess.intensity_range),
        scope=scope,
        classifiers=tuple(classifiers),
        protocols=tuple(protocols),
        per_run=tuple(found),
        ensemble=found[0] if ensemble is None else _mark_thresholds(replace(ensemble.result(names), scope=scope)),
    )


def _mark_thresholds(evaluation: AnyEvaluation) -> AnyEvaluation:
    """Return the evaluation, marked if the thresholds of labels were chosen on its images: those of val."""
    if not isinstance(evaluation, MultiLabelEvaluation) or evaluation.scope is None:
        return evaluation
    return replace(evaluation, chose_thresholds=evaluation.scope.part == "val" and bool(evaluation.task.thresholds))


def _count_unknown(predictor: Predictor) -> int | None:
    """Return how many images the runs of `predictor` in all processes called unknown; None if they do not say."""
    counts = [count for count in distributed.all_gather(predictor.unknown_images) if count is not None]
    return sum(counts) if counts else None


def _describe_optimized(classifiers: Sequence[Classifier], protocols: Sequence[CropProtocol]) -> tuple[str, ...]:
    """Return a sentence for each run that computes with its optimized network; "dense" needs the weights themselves."""
    return tuple(
        f"{one.origin} computes with its optimized network, {one.precision}"
        for one, protocol in zip(classifiers, protocols, strict=True)
        if one.optimized is not None and protocol.crops != "dense"
    )


def _accumulate(
    predictors: Sequence[Predictor],
    orders: Sequence[Tensor],
    dataset: Dataset,
    indices: Ints,
    tasks: Sequence[AnyTask],
) -> tuple[list[Accumulator], Accumulator | None]:
    """Predict the images at `indices` on all processes and accumulate the metrics.

    Args:
        predictors: One for each run.
        orders: For each run, the index of each class among its outputs.
        dataset: The images and labels.
        indices: Those to predict, (N,).
        tasks: What each run predicts, with its outputs in the order of the classes.

    Returns:
        The metrics of each run, and those of the mean of their probabilities or numbers; None for a single run.
    """
    size = min(one.batch_size for one in predictors) * distributed.world_size()
    batches = [
        indices[start : start + size][distributed.rank() :: distributed.world_size()]
        for start in range(0, len(indices), size)
    ]
    num_names, mean_task = len(dataset.names), average_tasks(tasks)
    per_run = [make_accumulator(one, num_names) for one in tasks]
    ensemble = make_accumulator(mean_task, num_names) if len(predictors) > 1 else None
    with progress("evaluating", len(indices), "images") as shown:
        for batch, *outputs in zip(batches, *(one.predict_batches(batches) for one in predictors), strict=True):
            where, labels = torch.from_numpy(batch), torch.from_numpy(dataset.labels[batch])
            ordered = [one[:, order] for one, order in zip(outputs, orders, strict=True)]
            for accumulator, one in zip(per_run, ordered, strict=True):
                accumulator.update(one, labels, where)
            if ensemble is not None:
                converted = [convert_outputs(one, task, mean_task) for one, task in zip(ordered, tasks, strict=True)]
                ensemble.update(mean_task.average(torch.stack(converted), 0), labels, where)
            shown.advance(len(batch) * distributed.world_size())
    return [one.all_reduce() for one in per_run], None if ensemble is None else ensemble.all_reduce()


@torch.inference_mode()
def evaluate_network(
    network: nn.Module,
    batches: BatchLoader,
    names: tuple[str, ...],
    title: str = "scoring",
    task: AnyTask = SINGLE_LABEL,
) -> AnyEvaluation:
    """Evaluate a network on batches, in all processes together, and leave it in evaluation mode.

    Args:
        network: Maps images (B, C, H, W) to logits (B, K).
        batches: Images and labels; this process has its share of them.
        names: The K class names, in the order of the logits.
        title: Title of the progress bar.
        task: What the network predicts.

    Returns:
        The evaluation of the images of all processes.
    """
    network.eval()
    metrics = make_accumulator(task, len(names))
    with progress(title, batches.steps, "batches") as shown:
        for batch in batches.epoch(0):
            if len(batch.labels):  # the last batch may be too small for every process to get a share
                with autocast(batch.images.device):
                    logits = network(batch.images)
                metrics.update(logits, batch.labels, torch.from_numpy(batch.indices))
            shown.advance()
    result: AnyEvaluation = metrics.all_reduce().result(names)
    return result


def _name_numbered_classes(names: tuple[str, ...], dataset: Dataset) -> Dataset:
    """Return `dataset` with its classes 0, 1, … called as the outputs of a network in memory that have these numbers.

    Datasets of PyTorch number their classes so. The data set is returned as it is if the network itself knows a class
    of such a name, or if other classes are in it.

    Args:
        names: The K class names of the network.
        dataset: Images in memory; others have names.

    Raises:
        DataError: A number is K or more.
    """
    is_numbered = dataset.task.is_single_label and all(name.isdecimal() for name in dataset.names)
    if dataset.source not in IN_MEMORY or not is_numbered or set(dataset.names) & set(names):
        return dataset
    numbers = np.array([int(name) for name in dataset.names], dtype=np.int64)
    if numbers.max() >= len(names):
        raise DataError(
            f"{dataset.source} holds the class {numbers.max()}; the network has scores for {len(names):,} classes, so "
            f"labels are 0 to {len(names) - 1}"
        )
    return replace(dataset, names=names, labels=numbers[dataset.labels])


def renumber_labels_by_class_names(names: tuple[str, ...], dataset: Dataset) -> Dataset:
    """Return `dataset` with its labels renumbered in the order of `names`.

    An ImageNet class may be called by its name or by its WordNet id. A class that differs from one of `names` only in
    case, spaces or dashes is matched, and a note in `account` says so.

    Args:
        names: The K class names or labels of a network.
        dataset: The data set; its images stay in place.

    Raises:
        DataError: A class or label that has images is not among `names`.
    """
    if isinstance(dataset.task, Regression):
        return replace(dataset, names=names)
    place = {find_class_name(name): index for index, name in enumerate(names)}
    place |= {name: index for index, name in enumerate(names)}
    place |= {
        name: place[find_class_name(name)]
        for name in dataset.names
        if name not in place and find_class_name(name) in place
    }
    simplified = [normalize_class_name(name) for name in names]
    inexact = {
        name: simplified.index(normalize_class_name(name))
        for name in dataset.names
        if name not in place and simplified.count(normalize_class_name(name)) == 1
    }
    place |= inexact
    counts = dataset.counts()
    unknown = [name for name, count in zip(dataset.names, counts, strict=True) if count and name not in place]
    if unknown:
        noun = "classes" if dataset.task.is_single_label else "labels"
        raise DataError(
            f"{dataset.source} holds {noun} that the run does not know: "
            f"{join_first([*map(_with_meaning, unknown)], CLASSES_IN_ERROR)}; "
            f"it knows {join_first([*map(_with_meaning, names)], CLASSES_IN_ERROR)}; leave out or rename the others, "
            "or add them to the run with svertka extend"
        )
    places = np.array([place.get(name, 0) for name in dataset.names], dtype=np.int64)
    if dataset.task.is_single_label:
        labels = places[dataset.labels]
    else:
        known = counts > 0
        labels = np.zeros((len(dataset), len(names)), np.float32)
        labels[:, places[known]] = dataset.labels[:, known]
    notes = [f"the class {name} is taken for {names[index]}" for name, index in inexact.items()]
    account = replace(dataset.account, notes=(*dataset.account.notes, *notes))
    return replace(dataset, names=names, labels=labels, account=account)


def _with_meaning(name: str) -> str:
    """Return the class `name`; a WordNet id is followed by the English name."""
    meaning = find_class_name(name)
    return name if meaning == name else f"{name} ({meaning})"


def _class_order(names: tuple[str, ...], theirs: tuple[str, ...], first: str, other: str) -> Tensor:
    """Return the position of each of `names` in `theirs`, (K,) int64.

    Raises:
        UsageError: The runs `first` and `other`, whose classes these are, know different classes.
    """
    if set(names) != set(theirs):
        only = [
            f"{', '.join(sorted(here - there)[:3])} only in {run}"
            for run, here, there in ((first, set(names), set(theirs)), (other, set(theirs), set(names)))
            if here - there
        ]
        raise UsageError(
            f"{first} and {other} know different classes ({'; '.join(only)}); runs that are evaluated together must "
            "have the same"
        )
    place = {name: number for number, name in enumerate(theirs)}
    return torch.tensor([place[name] for name in names])
