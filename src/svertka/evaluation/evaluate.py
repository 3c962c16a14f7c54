"""evaluate(): one run or several over labelled pictures, in the crops that are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path

import torch
from torch import Tensor

from svertka import distributed
from svertka.classifier import Classifier
from svertka.data.dataset import Dataset
from svertka.data.image_io import Decoding
from svertka.data.sources import open_source
from svertka.device import choose_device, keeps_settings, set_threads
from svertka.errors import UsageError
from svertka.evaluation.crop_protocols import Protocol, protocol
from svertka.evaluation.eval_loop import with_names_of
from svertka.evaluation.evaluated_images import Scope
from svertka.evaluation.held_out import select
from svertka.evaluation.metrics import Evaluation, Tally
from svertka.evaluation.predictor import Judge, mean_probability
from svertka.evaluation.report_page import SHOWN_SIDE, Report, write_report
from svertka.evaluation.slices import conditions
from svertka.output_paths import HTML, output_file
from svertka.progress import progress
from svertka.run import boxes_of, columns_of
from svertka.type_checking import check_types

Source = str | PathLike[str]


@check_types
@keeps_settings
def evaluate(
    run: Source | Sequence[Source],
    source: Source,
    *,
    crops: str | int = "1",
    scales: Sequence[int] | None = None,
    part: str | None = None,
    include_training: bool = False,
    output: Source | None = None,
    overwrite: bool = False,
    columns: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: int | None = None,
    max_pixels: int | None = None,
) -> Evaluation:
    """How the classifier of `run`, or the mean of several, does on the pictures of `source`.

    `run`: a run folder, or a network with its weights, as for `Classifier.load`; or a list of them, whose probabilities
    are averaged. `crops`, `scales`: "1", "10", "144" or "dense" crops of a picture at each length of its shorter side,
    as `crops.protocol` says. `part`: "train", "val", "test" or "all"; None is the test part where there is one, then
    the val part, then all. What the run was trained on is known by content, wherever the images are now: those images
    are left out, unless `include_training`, or `part` is "train"; `Evaluation.scope` counts them. `output`: an HTML
    file to write a report into; `overwrite`: in place of one that svertka did not make, too. `columns`: as for
    `data.sources.open_source`; None: as the run was trained with, if on the same source. `max_pixels`: of a picture
    that is read; None: `images.PIXEL_LIMIT`.

    Raises:
        DataError: the source holds classes that the run does not know.
        RunError: the run is missing or damaged, or what it was trained on cannot be known any more.
        UsageError: the source has no such part, or nothing but training images; there are no such weights or crops, or
            the runs know different classes; `output` is there already. StorageError: it cannot be written.
    """
    file = None if output is None else output_file(output, HTML, overwrite=overwrite)
    judgement = judge(
        run, source, crops, scales, part, include_training, device, threads, cache_limit, max_pixels, columns
    )
    if file is not None:
        write_report(file, judgement.report())
    return judgement.total


@dataclass(frozen=True, eq=False)
class Judgement:
    """What `runs` did on the same pictures of `dataset`, which `scope` names: each by itself; `total`, the mean."""

    runs: tuple[str, ...]
    dataset: Dataset
    scope: Scope
    classifiers: tuple[Classifier, ...]
    protocols: tuple[Protocol, ...]
    each: tuple[Evaluation, ...]
    total: Evaluation

    @property
    def part(self) -> str:
        """Which part of the data set it was, as `Scope` says."""
        return self.scope.part

    def report(self) -> Report:
        """The report on `total`; some of the pictures are read again."""
        pictures, how = self.dataset.pictures, self.protocols[0]
        scales = f" at {', '.join(map(str, how.scales))} pixels"
        shown = {"1": "the centre", "dense": "all positions"}.get(how.crops, f"{how.crops} crops") + scales
        facts = [
            ("data", f"{self.dataset.source}, {self.part}"),
            *(("judged", remark) for remark in self.scope.remarks),
            ("network" if len(self.runs) == 1 else "networks, their probabilities averaged", ", ".join(self.runs)),
            ("seen", shown),
        ]
        models = dict.fromkeys(one.config.model for one in self.classifiers)
        return Report(
            name=" + ".join(Path(run).name for run in self.runs),
            network=" and ".join(models) if len(self.runs) > 1 else self.runs[0],
            source=self.dataset.source,
            facts=facts,
            history=(),
            part=self.part,
            evaluation=self.total,
            picture=lambda index: pictures.read(index, SHOWN_SIDE),
            picture_name=pictures.name,
            conditions=conditions(self.total, pictures.read, torch.get_num_threads()),
        )


@torch.inference_mode()
def judge(
    run: Source | Sequence[Source],
    source: Source,
    crops: str | int = "1",
    scales: Sequence[int] | None = None,
    part: str | None = None,
    include_training: bool = False,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: int | None = None,
    max_pixels: int | None = None,
    meanings: str | None = None,
) -> Judgement:
    """As `evaluate`, with all that it knows."""
    runs = [run] if isinstance(run, str | PathLike) else list(run)
    if not runs:
        raise UsageError("there is no run to evaluate; name one")
    place, count = choose_device(device), set_threads(threads)
    classifiers = [Classifier.load(one, place) for one in runs]
    names = classifiers[0].names
    columns = [
        _columns(names, one.names, fspath(runs[0]), fspath(name)) for one, name in zip(classifiers, runs, strict=True)
    ]
    meanings = meanings or columns_of(runs[0], source)
    opened = open_source(fspath(source), to_train=False, columns=meanings, boxes=boxes_of(runs[0], source))
    opened = opened.decoded_as(Decoding.up_to(max_pixels))
    dataset = with_names_of(names, opened)
    selection = select(
        runs,
        dataset,
        classifiers[0].preprocess,
        part,
        include_training=include_training,
        threads=count,
        cache_limit=cache_limit,
    )
    chosen = selection.indices
    protocols = [protocol(crops, scales, one.preprocess) for one in classifiers]
    judges = [
        Judge(one, dataset, how, only=chosen, device=place, threads=count, cache_limit=cache_limit)
        for one, how in zip(classifiers, protocols, strict=True)
    ]
    size = min(one.batch_size for one in judges) * distributed.world()
    batches = [
        chosen[start : start + size][distributed.rank() :: distributed.world()] for start in range(0, len(chosen), size)
    ]
    tallies = [Tally(len(names)) for _ in judges]
    whole = Tally(len(names)) if len(judges) > 1 else tallies[0]
    with progress("evaluating", len(chosen)) as shown:
        for indices, *said in zip(batches, *(one.over(batches) for one in judges), strict=True):
            where, labels = torch.from_numpy(indices), torch.from_numpy(dataset.labels[indices])
            ordered = [one[:, order] for one, order in zip(said, columns, strict=True)]
            for tally, one in zip(tallies, ordered, strict=True):
                tally.update(one, labels, where)
            if whole is not tallies[0]:
                whole.update(mean_probability(torch.stack(ordered), 0), labels, where)
            shown.advance(len(indices) * distributed.world())
    each = tuple(replace(tally.total().result(names), scope=selection.scope) for tally in tallies)
    return Judgement(
        tuple(fspath(one) for one in runs),
        dataset.seen_by(classifiers[0].preprocess.intensity_range),
        selection.scope,
        tuple(classifiers),
        tuple(protocols),
        each,
        replace(whole.total().result(names), scope=selection.scope) if whole is not tallies[0] else each[0],
    )


def _columns(names: tuple[str, ...], theirs: tuple[str, ...], first: str, other: str) -> Tensor:
    """Where each of `names` stands among `theirs`, (K,) int64."""
    if set(names) != set(theirs):
        only = [
            f"{', '.join(sorted(here - there)[:3])} only in {run}"
            for run, here, there in ((first, set(names), set(theirs)), (other, set(theirs), set(names)))
            if here - there
        ]
        raise UsageError(
            f"{first} and {other} know different classes ({'; '.join(only)}); judged together, runs must have the same"
        )
    place = {name: number for number, name in enumerate(theirs)}
    return torch.tensor([place[name] for name in names])
