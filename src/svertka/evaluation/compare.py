"""compare(): several runs on the same images, and whether their errors differ significantly."""

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
from torch import nn

from svertka.classifier import Classifier, is_classifier_name
from svertka.data.builtin import NAMES
from svertka.data.source_opener import is_same_source
from svertka.device import choose_device, describe_device, network_device, with_preserved_settings
from svertka.errors import UsageError
from svertka.escaping import format_command
from svertka.evaluation.comparison import ComparedRun, Comparison, difference_between
from svertka.evaluation.comparison_page import write_comparison
from svertka.evaluation.evaluate import evaluate_jointly
from svertka.evaluation.held_out import read_manifest
from svertka.evaluation.inference_speed import measure_speeds
from svertka.files import is_url, parse_cache_limit_option
from svertka.graph.summary import trace
from svertka.output_paths import HTML, prepare_output_file
from svertka.run import Run
from svertka.type_checking import check_types

Source = str | PathLike[str]


@check_types
@with_preserved_settings
def compare(
    runs: Sequence[Source | Classifier | nn.Module],
    source: Source | None = None,
    *,
    crops: str | int = "1",
    scales: Sequence[int] | None = None,
    part: str | None = None,
    include_training: bool = False,
    output: Source | None = None,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: float | None = None,
    max_pixels: int | None = None,
    trust_builder: bool = False,
    precision: str | None = None,
) -> Comparison:
    """Compare runs on the same labeled images: errors, their differences from the first run, and speed.

    Runs of several labels are compared by their mean average precision, those of a number by their mean absolute error.

    Args:
        runs: 2 to 26 run folders or networks with weights, as for `Classifier.load`, Classifiers or nn.Modules; or one
            run folder with an optimized network, which is compared with the weights of the run.
        source: Labeled images, as for `evaluate`. None: the source that all runs were trained on.
        crops: Crops of each image: "1", "10", "144" or "dense".
        scales: Lengths of the shorter side at which crops are taken, pixels. None: those of the protocol's paper.
        part: "train", "val", "test" or "all". None: as for `evaluate`.
        include_training: Whether to evaluate on images that a run was trained on, too.
        output: HTML file for the comparison. None: no file.
        overwrite: Whether `output` may replace a file that svertka did not write.
        device: "auto", "cpu", "cuda" or "cuda:1".
        threads: CPU threads, at least 1. None: all cores.
        cache_limit: Size limit of the image cache, GB (10⁹ bytes). None: a share of the free disk.
        max_pixels: Largest image that is decoded, pixels. None: `data.image_io.PIXEL_LIMIT`.
        trust_builder: As for `Classifier.load`.
        precision: "fp32" to use the weights of a run even if it has an optimized network, which is used on the CPU
            otherwise.

    Returns:
        The runs in the order given, each with its evaluation, size, speed and difference from the first.

    Raises:
        DataError: The source cannot be read or holds classes that the runs do not know.
        RunError: A run is missing or damaged.
        UsageError: There are fewer than 2 runs, more than 26, or one twice; they know different classes; they were
            trained on different sources and `source` is None, or on different parts of `source`; the part, crops or
            scales do not exist; or `output` exists.
        FetchError: Weights or the data set cannot be downloaded.
        StorageError: `output` or the cache cannot be written.
    """
    opened = [Classifier.wrap(one) if isinstance(one, nn.Module) else one for one in runs]
    if len(opened) == 1 and not isinstance(opened[0], Classifier):
        opened = _open_variants(opened[0], choose_device(device), trust_builder=trust_builder, precision=precision)
    names = [one.origin if isinstance(one, Classifier) else fspath(one) for one in opened]
    _check_runs(names, [name for name, one in zip(names, opened, strict=True) if not isinstance(one, Classifier)])
    file = None if output is None else prepare_output_file(output, HTML, overwrite=overwrite)
    given = fspath(source) if source is not None else _common_source(names)
    joint = evaluate_jointly(
        opened,
        given,
        crops,
        scales,
        part,
        include_training,
        device,
        threads,
        parse_cache_limit_option(cache_limit),
        max_pixels,
        trust_builder=trust_builder,
        precision=precision,
    )
    torch_device = network_device(joint.classifiers[0].network) or choose_device(device)
    speeds = measure_speeds(joint.classifiers, torch_device)
    compared = []
    for number, (name, classifier) in enumerate(zip(names, joint.classifiers, strict=True)):
        layers = trace(classifier.network, classifier.preprocess.input_shape)
        compared.append(
            ComparedRun(
                letter=ascii_uppercase[number],
                run=name,
                network=classifier.config.model,
                precision=classifier.precision,
                is_optimized=classifier.optimized is not None,
                evaluation=joint.per_run[number],
                parameters=layers.parameters,
                multiply_adds=layers.multiply_adds,
                speed=speeds[number],
                history=Run(name).history(),
                settings=_settings(name),
                difference=difference_between(joint.per_run[number], joint.per_run[0]) if number else None,
            )
        )
    comparison = Comparison(tuple(compared), joint, describe_device(torch_device))
    if file is not None:
        write_comparison(file, comparison)
    return comparison


def separate_runs_and_source(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Split the arguments `RUN RUN... [SOURCE]`: the last one is a source unless it is a run."""
    *runs, last = arguments
    if not runs or is_classifier_name(last) or Run(last).training.exists():
        return [*runs, last], None
    return runs, last


def _open_variants(
    run: Source, device: torch.device, *, trust_builder: bool, precision: str | None
) -> list[Source | Classifier]:
    """Return the network of a run in float32 and its optimized network; only the run if it has none."""
    optimized = Classifier.open(run, device, trust_builder=trust_builder, precision=precision)
    if optimized.optimized is None:
        return [run]
    return [Classifier.open(run, device, trust_builder=trust_builder), optimized]


def _check_runs(runs: Sequence[str], loaded: Sequence[str]) -> None:
    """Raise UsageError unless `runs` are 2 to 26 names, and those to be loaded, `loaded`, all differ."""
    if len(runs) < 2:
        raise UsageError(
            f"{' '.join(runs) or 'nothing'} has nothing to be compared with; name two runs or more, or one with an "
            "optimized network, which svertka optimize makes"
        )
    if len(runs) > len(ascii_uppercase):
        raise UsageError(f"{len(runs)} runs are too many to compare at once; name at most {len(ascii_uppercase)}")
    repeated = next((run for run in loaded if loaded.count(run) > 1), None)
    if repeated is not None:
        raise UsageError(f"{repeated} is named twice; name each run once")


def _common_source(runs: Sequence[str]) -> str:
    """Return the source that all of `runs` were trained on.

    Raises:
        UsageError: They were trained on different sources, do not record one, or it is no longer there.
    """
    sources = []
    for run in runs:
        source = _settings(run).get("source")
        if source is None:
            raise UsageError(f"{run} does not say what it was trained on; name a SOURCE after the runs")
        sources.append(source)
    for run, source in zip(runs, sources, strict=True):
        if not (is_same_source(source, sources[0]) or _have_same_images(run, runs[0])):
            raise UsageError(
                f"{runs[0]} was trained on {sources[0]} and {run} on {source}; name the SOURCE to compare them on"
            )
    source = str(sources[0])
    if source not in NAMES and not is_url(source) and not Path(source).exists():
        raise UsageError(
            f"the training images of {' and '.join(runs)} are no longer in {source}; "
            f"name their folder: {format_command('compare', *map(Path, runs))} SOURCE"
        )
    return source


def _have_same_images(run: str, other: str) -> bool:
    """Return whether both runs were trained on images of the same contents, wherever the files were."""
    one, two = read_manifest(run), read_manifest(other)
    return one is not None and two is not None and one.contents == two.contents


def _settings(run: str) -> dict[str, Any]:
    """Return the content of training.json; empty where the run has none, such as for pretrained weights."""
    return Run(run).settings() if Run(run).training.exists() else {}
