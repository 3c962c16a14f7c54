"""compare(): several runs on the same pictures, side by side."""

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from svertka.classifier import is_classifier
from svertka.data.builtin import NAMES
from svertka.data.sources import same_place
from svertka.device import choose_device, describe, keeps_settings
from svertka.errors import UsageError
from svertka.escaping import command
from svertka.evaluation.comparison_page import write_comparison
from svertka.evaluation.evaluate import judge
from svertka.evaluation.held_out import manifest_of
from svertka.evaluation.inference_speed import speeds
from svertka.evaluation.significance import Comparison, Contender, Difference
from svertka.graph.summary import trace
from svertka.output_paths import HTML, output_file
from svertka.run import Run
from svertka.type_checking import check_types

Source = str | PathLike[str]


@check_types
@keeps_settings
def compare(
    runs: Sequence[Source],
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
    cache_limit: int | None = None,
    max_pixels: int | None = None,
) -> Comparison:
    """How the classifiers of `runs` do on the pictures of `source`, and whether they differ from the first of them.

    `runs`: two and more, run folders or networks with weights, as for `Classifier.load`. `source`: None is what all of
    them were trained on. `crops`, `scales`, `part`, `include_training`, `device`, `threads`, `max_pixels`: as for
    `evaluate`; the speed is measured, too. `output`: an HTML file to write the comparison into; `overwrite`: in place
    of one that svertka did not make, too.

    Raises:
        DataError: the source holds classes that the runs do not know.
        RunError: a run is missing or damaged.
        UsageError: fewer than two runs, or one twice; they know different classes, or were trained on different sources
            and none is given, or on different parts of this one; no such part or crops; `output` is there already.
        StorageError: `output` cannot be written.
    """
    names = [fspath(one) for one in runs]
    _refuse_few(names)
    file = None if output is None else output_file(output, HTML, overwrite=overwrite)
    given = fspath(source) if source is not None else _common_source(names)
    judgement = judge(names, given, crops, scales, part, include_training, device, threads, cache_limit, max_pixels)
    place = choose_device(device)
    timed = speeds(judgement.classifiers, place)
    contenders = []
    for number, (name, classifier) in enumerate(zip(names, judgement.classifiers, strict=True)):
        layers = trace(classifier.network, classifier.preprocess.input_shape)
        contenders.append(
            Contender(
                letter=ascii_uppercase[number],
                run=name,
                network=classifier.config.model,
                evaluation=judgement.each[number],
                parameters=layers.parameters,
                multiply_adds=layers.multiply_adds,
                speed=timed[number],
                history=Run(name).history(),
                settings=_settings(name),
                difference=Difference.of(judgement.each[number], judgement.each[0]) if number else None,
            )
        )
    comparison = Comparison(tuple(contenders), judgement, describe(place))
    if file is not None:
        write_comparison(file, comparison)
    return comparison


def runs_and_source(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """`RUN RUN... [SOURCE]` taken apart: the last one is a source where it is no run."""
    *runs, last = arguments
    if not runs or is_classifier(last) or Run(last).training.exists():
        return [*runs, last], None
    return runs, last


def _refuse_few(runs: Sequence[str]) -> None:
    if len(runs) < 2:
        raise UsageError(f"{' '.join(runs) or 'nothing'} has nothing to be compared with; name two runs or more")
    if len(runs) > len(ascii_uppercase):
        raise UsageError(f"{len(runs)} runs are too many to compare at once; name at most {len(ascii_uppercase)}")
    twice = next((run for run in runs if runs.count(run) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is named twice; name each run once")


def _common_source(runs: Sequence[str]) -> str:
    """What all of `runs` were trained on."""
    sources = []
    for run in runs:
        source = _settings(run).get("source")
        if source is None:
            raise UsageError(f"{run} does not say what it was trained on; name a SOURCE after the runs")
        sources.append(source)
    for run, source in zip(runs, sources, strict=True):
        if not (same_place(source, sources[0]) or _same_images(run, runs[0])):
            raise UsageError(
                f"{runs[0]} was trained on {sources[0]} and {run} on {source}; name the SOURCE to compare them on"
            )
    source = str(sources[0])
    if source not in NAMES and not Path(source).exists():
        raise UsageError(
            f"the pictures that {' and '.join(runs)} were trained on are not in {source} any more; "
            f"say where they are now: {command('compare', *runs)} SOURCE"
        )
    return source


def _same_images(run: str, other: str) -> bool:
    """Whether both were made of images of the same contents, wherever these were then."""
    one, two = manifest_of(run), manifest_of(other)
    return one is not None and two is not None and one.contents == two.contents


def _settings(run: str) -> dict[str, Any]:
    """What training.json says; nothing where there is none: a network of the zoo, or a classifier saved by itself."""
    return Run(run).settings() if Run(run).training.exists() else {}
