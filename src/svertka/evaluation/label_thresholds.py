"""The thresholds of the labels of a run, chosen again on its validation images or on new ones."""

from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from svertka.classifier import CONFIG, Classifier, read_config
from svertka.data.dataset import Dataset
from svertka.errors import UsageError
from svertka.escaping import join_first
from svertka.evaluation.evaluate import evaluate
from svertka.evaluation.multi_label_metrics import MIN_IMAGES, MultiLabelEvaluation, choose_thresholds
from svertka.files import write_json
from svertka.pages.notebook_block import NotebookBlock
from svertka.pages.number_format import count_with_noun
from svertka.tasks import MultiLabel

LISTED = 20  # labels in a sentence


@dataclass(frozen=True, eq=False, repr=False)
class LabelThresholds:
    """The thresholds of a run of several labels.

    Attributes:
        run: The run folder.
        names: The labels.
        thresholds: Probability from which each is predicted.
        before: The thresholds that the run had.
        kept: Labels that keep their threshold, because fewer than 10 images have them, or lack them.
        images: Images that they were chosen on.
        part: What these are: "validation" or "new".
    """

    run: Path
    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    before: tuple[float, ...]
    kept: tuple[str, ...]
    images: int
    part: str

    @property
    def sentences(self) -> tuple[str, ...]:
        """The thresholds in words."""
        listed = [
            f"{name} {new:.3g} (was {old:.3g})"
            for name, new, old in zip(self.names, self.thresholds, self.before, strict=True)
        ]
        said = (
            f"thresholds with the highest F1 on {count_with_noun(self.images, f'{self.part} image')}: "
            f"{join_first(listed, LISTED)}"
        )
        few = f"fewer than {MIN_IMAGES} images have or lack these labels, which keep their thresholds: "
        return (said, few + join_first(self.kept, LISTED)) if self.kept else (said,)

    def __repr__(self) -> str:
        return f"LabelThresholds({str(self.run)!r}, {'; '.join(self.sentences)})"

    def _repr_html_(self) -> str:
        return NotebookBlock(str(self.run), self.sentences).render()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `svertka calibrate --json` prints them.

        Returns:
            The keys run, thresholds, before, kept, images and part.
        """
        return {
            "run": str(self.run),
            "thresholds": dict(zip(self.names, self.thresholds, strict=True)),
            "before": dict(zip(self.names, self.before, strict=True)),
            "kept": list(self.kept),
            "images": self.images,
            "part": self.part,
        }


def choose_label_thresholds(
    folder: Path, classifier: Classifier, images: Dataset, part: str, **options: Any
) -> LabelThresholds:
    """Choose the threshold of each label with the highest F1, and write them into config.json of a run.

    Args:
        folder: The run folder.
        classifier: Its classifier.
        images: The images of its training, or new ones.
        part: "val", for its validation images, or "all", for those that it has not seen.
        options: Further arguments of `evaluate`: device, threads, cache_limit, max_pixels, trust_builder.

    Raises:
        UsageError: There are no such images.
        StorageError: The run cannot be written.
    """
    task = classifier.task
    assert isinstance(task, MultiLabel)
    found = evaluate(folder, images, part=part, precision="fp32", **options)
    assert isinstance(found, MultiLabelEvaluation)
    if not found.images:
        raise UsageError(f"{folder} has no images to choose thresholds on; give some that are new to it with --new")
    has = found.targets.sum(0)
    few = np.minimum(has, found.images - has) < MIN_IMAGES
    before = tuple(task.threshold(label) for label in range(len(classifier.names)))
    chosen = choose_thresholds(found.probabilities, found.targets)
    thresholds = tuple(old if keep else new for old, new, keep in zip(before, chosen, few.tolist(), strict=True))
    changed = read_config(folder).model_copy(update={"task": MultiLabel(thresholds=thresholds)})
    write_json(folder / CONFIG, changed.model_dump())
    kept = tuple(compress(classifier.names, few.tolist()))
    named = "validation" if part == "val" else "new"
    return LabelThresholds(folder, classifier.names, thresholds, before, kept, found.images, named)
