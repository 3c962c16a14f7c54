"""ablate(): how the accuracy of a run on each class changes if a unit is removed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from torch import Tensor, nn

from svertka.classifier import Classifier
from svertka.confidence_intervals import Interval, format_percentage_points, percent_with_interval
from svertka.device import choose_device, set_threads, with_preserved_settings
from svertka.errors import UsageError
from svertka.evaluation.evaluate import renumber_labels_by_class_names
from svertka.evaluation.evaluation_scope import EvaluationScope, format_image_count
from svertka.files import parse_cache_limit_option
from svertka.inspection.atlas.classifier_and_images import open_atlas_inputs
from svertka.inspection.unit_ablation import Ablation, Mode, ablate_units
from svertka.pages.notebook_block import NotebookBlock
from svertka.pages.number_format import count_with_noun
from svertka.progress import progress, say
from svertka.type_checking import check_types

HEADER = ("layer", "unit", "class", "replaced by", "accuracy", "change, points", "95 % interval")


@dataclass(frozen=True)
class UnitEffect:
    """How the accuracy on a class changes if a unit is removed.

    Attributes:
        layer: Name of the convolution.
        unit: Index of its channel.
        label: Name of the class.
        mode: What replaces the unit's feature map: "zero", or "mean", its mean over images and positions.
        accuracy: Accuracy on the class with the whole network, 0 to 1.
        change: Change of this accuracy without the unit, −1 to 1.
        interval: 95 % interval of `change`.
    """

    layer: str
    unit: int
    label: str
    mode: Mode
    accuracy: float
    change: float
    interval: Interval

    @property
    def row(self) -> tuple[str, ...]:
        """The cells of a table."""
        low, high = (format_percentage_points(one) for one in self.interval)
        cells = (self.layer, str(self.unit), self.label, self.mode, f"{self.accuracy:.1%}")
        return (*cells, format_percentage_points(self.change), f"{low} to {high}")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        Returns:
            The attributes by name.
        """
        return vars(self) | {"interval": list(self.interval)}


@dataclass(frozen=True, repr=False)
class AblatedRun:
    """The effects of the units of a run.

    Attributes:
        network: Name of the model.
        effects: The largest effects, the largest first; of each unit and class, the larger of both modes.
        units: Number of units that were removed, one at a time.
        images: Number of images.
        ablation: All counts, for every unit, class and mode.
        scope: Which images of which source were used.
    """

    network: str
    effects: Sequence[UnitEffect]
    units: int
    images: int
    ablation: Ablation
    scope: EvaluationScope

    def sentences(self) -> list[str]:
        """Return what was computed, a sentence each.

        Returns:
            The counts, and how often the estimates are wrong.
        """
        one = self.ablation
        part = f"the {one.computed / max(1, one.pairs):.1%} with the least certain estimates"
        which = "all were computed" if one.computed == one.pairs else f"{part} were computed, the others estimated"
        found = [
            f"{count_with_noun(self.units, 'unit')} {'was' if self.units == 1 else 'were'} removed one at a time, "
            f"replaced by 0 and by the mean, on {format_image_count(self.images)}; of the {one.pairs:,} predictions "
            f"without a unit, {which}"
        ]
        if not self.effects:
            found.insert(0, "no removal changed the accuracy of a class")
        for check, text in (
            (one.unchanged, "to change nothing"),
            (one.changed, "to change whether an image is right"),
        ):
            if check.sampled:
                share = percent_with_interval(check.wrong / check.sampled, check.interval)
                found.append(
                    f"of {check.sampled:,} others, drawn at random, that are estimated {text}, {share} are wrong"
                )
        if len(self.effects) > 1:
            found.append("each interval is that of one effect by itself; the largest of many are partly due to chance")
        return found

    def __repr__(self) -> str:
        return f"AblatedRun({self.network!r}: {self.sentences()[0]})"

    def _repr_html_(self) -> str:
        rows = [effect.row for effect in self.effects]
        block = NotebookBlock(
            f"Effects of the units of {self.network}", self.sentences(), header=HEADER, rows=rows, right=(1, 4, 5, 6)
        )
        return block.render()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `svertka ablate --json` prints them.

        Returns:
            The keys network, units, images, computed, removals, estimated, unchanged, changed and effects, and the
            scope of the images.
        """
        one = self.ablation
        return {
            "network": self.network,
            "units": self.units,
            "images": self.images,
            "computed": one.computed,
            "removals": one.pairs,
            "estimated": one.estimated,
            "unchanged": vars(one.unchanged),
            "changed": vars(one.changed),
            "effects": [effect.to_dict() for effect in self.effects],
            **self.scope.to_dict(),
        }


@check_types
@with_preserved_settings
def ablate(
    run: str | PathLike[str] | Classifier | nn.Module,
    source: str | PathLike[str] | None = None,
    *,
    layers: Sequence[str] | None = None,
    images: int | None = None,
    count: int = 20,
    part: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: float | None = None,
    max_pixels: int | None = None,
    trust_builder: bool = False,
) -> AblatedRun:
    """Measure how the accuracy on each class changes if a unit is removed.

    A unit of a convolution is removed by replacing its feature map, after the activation function, with 0 and with its
    mean over the images and positions. A change that is negative says that the network needs the unit for the class; a
    change that is positive, that the unit misleads it.

    Args:
        run: A run folder, or a network with weights, as for `Classifier.load`; a Classifier or an nn.Module.
        source: Images, as for `train`; all of them are used. None: the test set of the run.
        layers: Names of convolutions. None: all.
        images: Number of images, drawn at random. None: all.
        count: Number of effects to return, the largest.
        part: "train", "val", "test" or "all": the images of `source` that are used. None: all, if `source` is given.
        device: "auto", "cpu", "cuda" or "cuda:1".
        threads: CPU threads, at least 1. None: all cores.
        cache_limit: Size limit of the image cache, GB (10⁹ bytes). None: a share of the free disk.
        max_pixels: Largest image that is decoded, pixels. None: `image_io.PIXEL_LIMIT`.
        trust_builder: As for `Classifier.load`.

    Returns:
        The largest effects, and the counts of all.

    Raises:
        UsageError: A layer is not a convolution of the network, the network makes decisions based on values or cannot
            be computed again from a layer, `count` is below 1, or the run predicts several labels or a number.
        DataError: There are no images, the source of the run no longer exists, or the source has other classes than the
            network.
        RunError: The run is missing or damaged.
    """
    if count < 1:
        raise UsageError(f"count={count} must be at least 1")
    inputs = open_atlas_inputs(
        run,
        source,
        images=images,
        part=part,
        device=choose_device(device),
        threads=set_threads(threads),
        cache_limit=parse_cache_limit_option(cache_limit),
        max_pixels=max_pixels,
        trust_builder=trust_builder,
    )
    inputs.classifier.require_single_label("ablate", "use look or compare-units")
    dataset = renumber_labels_by_class_names(inputs.classifier.names, inputs.dataset)
    inputs = replace(inputs, dataset=dataset)
    say("; ".join((inputs.shown, *dataset.account.notes)))
    with progress("removing units", 2 * len(inputs), "images") as shown:

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in inputs.batches().epoch(0):
                yield batch.images, batch.labels.cpu()

        names = inputs.classifier.names
        found = ablate_units(inputs.classifier.network, batches, len(names), layers, advance=shown.advance)
    effects = [
        UnitEffect(
            layer=found.layers[layer].layer,
            unit=unit,
            label=names[label],
            mode=mode,
            accuracy=float(found.right[label] / found.images[label]),
            change=found.change(layer, unit, label, mode),
            interval=found.interval(layer, unit, label, mode),
        )
        for layer, unit, label, mode in found.strongest(count)
    ]
    return AblatedRun(
        network=inputs.classifier.config.model,
        effects=effects,
        units=sum(one.lost.shape[1] for one in found.layers),
        images=len(inputs),
        ablation=found,
        scope=inputs.scope,
    )
