"""What a network predicts of an image: one class, several labels, or a number."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Targets = npt.NDArray[Any]  # of a data set: one row for each image
Ints = npt.NDArray[np.int64]

SEPARATOR = "|"  # of several labels in one text


def split_labels(text: str) -> list[str]:
    """Return the labels in a text of several."""
    return [name for name in text.split(SEPARATOR) if name]


# Of a number to predict. Squares of larger ones, and in float32 the numbers themselves, overflow.
LARGEST_NUMBER = 1e30
THRESHOLD = 0.5  # probability from which a label is predicted, unless the validation images say otherwise
BINS = 10  # of equally many images, in which numbers are divided evenly among the parts


class _Task(BaseModel):
    """What the tasks share: an image has one output for each name, and the network is trained on one target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def is_single_label(self) -> bool:
        """Whether each image has one class."""
        return False

    def normalize(self, outputs: Tensor) -> Tensor:
        """Return outputs (N, K) in the form in which `average` takes them."""
        return outputs

    def fit(self, targets: Targets) -> Any:
        """Return the task with the statistics of the targets of the training set."""
        return self

    def initial_bias(self, targets: Targets) -> Tensor | None:
        """Return the biases (K,) of an untrained head that predicts the mean of the targets; None for zeros."""
        return None

    def format_error(self, error: float, digits: int = 2) -> str:
        """Return an error, a share, as text with so many digits after the point of its percentage."""
        return f"{error:.{digits}%}"

    def format_cell(self, text: str) -> str:
        """Return a target in words (see `text`) as a cell of a table, from which the same target is read."""
        return text

    def describe_names(self, names: tuple[str, ...]) -> str:
        """Return what is predicted in words, such as "3 classes"."""
        return f"{len(names)} classes"


class SingleLabel(_Task):
    """Classification: each image has one of K classes, and its target is the class, int64."""

    kind: Literal["single-label"] = "single-label"

    phrase: ClassVar[str] = "one class an image"
    targets: ClassVar[str] = "the class"
    curvature: ClassVar[float] = 0.5  # largest second derivative of the loss by an output (Böhning 1992, §2)

    @property
    def is_single_label(self) -> bool:
        """Whether each image has one class: True."""
        return True

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
        """Return the cross-entropy summed over a batch, nats, a scalar.

        Args:
            outputs: Logits (B, K).
            targets: Classes (B,) int64.
            weights: Weight of each image (B,). None: all 1.
            smoothing: Label smoothing, 0 to 1.
        """
        if weights is None:
            return F.cross_entropy(outputs, targets, label_smoothing=smoothing, reduction="sum")
        return weights @ F.cross_entropy(outputs, targets, label_smoothing=smoothing, reduction="none")

    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return whether each image is wrong, (B,)."""
        return outputs.argmax(1) != targets

    def activate(self, outputs: Tensor) -> Tensor:
        """Return class probabilities (N, K)."""
        return outputs.softmax(1)

    def normalize(self, outputs: Tensor) -> Tensor:
        """Return log probabilities (N, K)."""
        return outputs.log_softmax(1)

    def average(self, outputs: Tensor, dim: int) -> Tensor:
        """Return the logarithm of the mean probability along `dim`, without underflow."""
        return outputs.logsumexp(dim) - math.log(outputs.shape[dim])

    def counts(self, targets: Targets, names: int) -> Ints:
        """Return the number of images of each of the classes, (K,)."""
        return np.bincount(targets, minlength=names).astype(np.int64)

    def strata(self, targets: Targets) -> Ints:
        """Return the class of each image, by which a split is stratified, (N,) int64."""
        return targets

    def text(self, target: Any, names: tuple[str, ...]) -> str:
        """Return a target in words: the class name."""
        return names[int(target)]


class MultiLabel(_Task):
    """Multi-label classification: each image has any of K labels, and its target is 0 or 1 for each, float32.

    Attributes:
        thresholds: Probability from which each label is predicted, K of them. Empty: 0.5.
    """

    kind: Literal["multi-label"] = "multi-label"
    thresholds: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()

    phrase: ClassVar[str] = "several labels an image"
    targets: ClassVar[str] = "the labels"
    curvature: ClassVar[float] = 0.25

    def describe_names(self, names: tuple[str, ...]) -> str:
        """Return what is predicted in words, such as "3 labels, several an image"."""
        return f"{len(names)} labels, several an image"

    def format_cell(self, text: str) -> str:
        """Return labels joined by |; a single one is followed by |, by which its column is one of several labels."""
        return text if SEPARATOR in text else text + SEPARATOR

    def threshold(self, label: int) -> float:
        """Return the probability from which a label is predicted."""
        return self.thresholds[label] if self.thresholds else THRESHOLD

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
        """Return the binary cross-entropy summed over the labels and a batch, nats, a scalar.

        Args:
            outputs: Logits (B, K).
            targets: 0 or 1, (B, K) float32.
            weights: Weight of each image (B,). None: all 1.
            smoothing: Label smoothing, 0 to 1: 0 and 1 are moved toward 0.5 by this share.
        """
        wanted = targets * (1 - smoothing) + smoothing / 2 if smoothing else targets
        losses = F.binary_cross_entropy_with_logits(outputs.float(), wanted, reduction="none").sum(1)
        return losses.sum() if weights is None else weights @ losses

    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the share of wrong labels of each image, (B,)."""
        return ((outputs > 0) != (targets > 0.5)).double().mean(1)

    def activate(self, outputs: Tensor) -> Tensor:
        """Return the probability of each label, (N, K)."""
        return outputs.sigmoid()

    def average(self, outputs: Tensor, dim: int) -> Tensor:
        """Return the logits of the mean probability along `dim`."""
        return outputs.squeeze(dim) if outputs.shape[dim] == 1 else outputs.double().sigmoid().mean(dim).logit().float()

    def initial_bias(self, targets: Targets) -> Tensor:
        """Return the log-odds of each label, (K,) float32; half an image more of each kind keeps them finite."""
        positive = targets.sum(0)
        odds = (positive + 0.5) / (len(targets) - positive + 0.5)
        return torch.from_numpy(np.log(odds).astype(np.float32))

    def counts(self, targets: Targets, names: int) -> Ints:
        """Return the number of images with each label, (K,)."""
        counts: Ints = np.rint(targets.sum(0)).astype(np.int64)
        return counts

    def strata(self, targets: Targets) -> Ints:
        """Return the rarest label of each image, by which a split is stratified, (N,) int64; K without labels.

        Source: the order of Sechidis et al. 2011, "On the stratification of multi-label data", §3.
        """
        present = targets > 0.5
        rarity = np.where(present, present.sum(0), len(targets) + 1)
        strata: Ints = np.where(present.any(1), rarity.argmin(1), targets.shape[1]).astype(np.int64)
        return strata

    def text(self, target: Any, names: tuple[str, ...]) -> str:
        """Return a target in words: the labels, joined by |."""
        return SEPARATOR.join(name for name, has in zip(names, target.tolist(), strict=True) if has > 0.5)


class Regression(_Task):
    """Regression: each image has a number, float64. The network computes it standardized.

    Attributes:
        mean: Mean of the numbers of the training set.
        std: Their standard deviation.
    """

    kind: Literal["regression"] = "regression"
    mean: float = Field(default=0.0, allow_inf_nan=False)
    std: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    phrase: ClassVar[str] = "a number for an image"
    targets: ClassVar[str] = "the number"
    curvature: ClassVar[float] = 1.0

    def fit(self, targets: Targets) -> "Regression":
        """Return the task with the mean and the standard deviation of the numbers of the training set."""
        return Regression(mean=float(targets.mean()), std=float(targets.std()) or 1.0)

    def format_error(self, error: float, digits: int = 2) -> str:
        """Return an absolute error as text with two more digits than `digits`."""
        return f"{error:.{digits + 2}g}"

    def describe_names(self, names: tuple[str, ...]) -> str:
        """Return what is predicted in words, such as "the number age"."""
        return f"the number {names[0]}"

    def standardize(self, targets: Tensor) -> Tensor:
        """Return numbers (N,) as the network computes them, (N, 1) float32."""
        return ((targets.double() - self.mean) / self.std).float()[:, None]

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
        """Return the Huber loss of the standardized numbers, summed over a batch, a scalar.

        Args:
            outputs: Outputs (B, 1).
            targets: Numbers (B,).
            weights: Weight of each image (B,). None: all 1.
            smoothing: Has no effect.
        """
        losses = F.huber_loss(outputs.float(), self.standardize(targets), reduction="none").sum(1)
        return losses.sum() if weights is None else weights @ losses

    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the absolute error of each image, (B,), in the unit of the numbers."""
        return (self.activate(outputs)[:, 0] - targets).abs()

    def activate(self, outputs: Tensor) -> Tensor:
        """Return the numbers, (N, 1) float64."""
        return outputs.double() * self.std + self.mean

    def average(self, outputs: Tensor, dim: int) -> Tensor:
        """Return the mean along `dim`."""
        return outputs.mean(dim)

    def counts(self, targets: Targets, names: int) -> Ints:
        """Return the number of images, (1,)."""
        return np.array([len(targets)], dtype=np.int64)

    def strata(self, targets: Targets) -> Ints:
        """Return the quantile bin of each image's number, by which a split is stratified, (N,) int64."""
        edges = np.unique(np.quantile(targets, np.linspace(0, 1, BINS + 1)[1:-1])) if len(targets) else targets
        strata: Ints = np.searchsorted(edges, targets, side="right").astype(np.int64)
        return strata

    def text(self, target: Any, names: tuple[str, ...]) -> str:
        """Return a target in words: the number."""
        return format_number(float(target))


AnyTask = SingleLabel | MultiLabel | Regression
Task = Annotated[AnyTask, Field(discriminator="kind")]
SINGLE_LABEL = SingleLabel()


def format_number(number: float) -> str:
    """Return the shortest text that is read as the same number, such as "37" or "0.1"."""
    return repr(number).removesuffix(".0")


def reorder_task(task: AnyTask, order: Sequence[int]) -> AnyTask:
    """Return the task of a network whose outputs are put in another order.

    Args:
        task: The task of its outputs as they are.
        order: Place of each output among them, K numbers.
    """
    if not isinstance(task, MultiLabel) or not task.thresholds:
        return task
    return MultiLabel(thresholds=tuple(task.thresholds[place] for place in order))


def average_tasks(tasks: Sequence[AnyTask]) -> AnyTask:
    """Return the task of the mean of several networks, with outputs in the same order: the mean of their thresholds."""
    first = tasks[0]
    if not isinstance(first, MultiLabel):
        return first
    labels = [one for one in tasks if isinstance(one, MultiLabel)]
    count = max(len(one.thresholds) for one in labels)
    return MultiLabel(thresholds=tuple(sum(one.threshold(k) for one in labels) / len(labels) for k in range(count)))


def convert_outputs(outputs: Tensor, task: AnyTask, other: AnyTask) -> Tensor:
    """Return outputs of `task` in the form of those of `other`, which standardizes numbers in its own way."""
    if not (isinstance(task, Regression) and isinstance(other, Regression)):
        return outputs
    return (task.activate(outputs) - other.mean) / other.std
