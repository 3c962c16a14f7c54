"""The metrics of a network by its task: one class, several labels, or a number."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from svertka import distributed
from svertka.errors import UsageError
from svertka.evaluation.metrics import Evaluation, MetricAccumulator
from svertka.evaluation.multi_label_metrics import MultiLabelEvaluation
from svertka.evaluation.regression_metrics import RegressionEvaluation
from svertka.tasks import AnyTask, MultiLabel, Regression, SingleLabel

AnyEvaluation = Evaluation | MultiLabelEvaluation | RegressionEvaluation


class OutputAccumulator:
    """The outputs for all images, kept for metrics that need all of them.

    Memory grows by two numbers per image and label.

    Args:
        task: The task.
        outputs: K, the number of outputs per image.
    """

    def __init__(self, task: MultiLabel | Regression, outputs: int) -> None:
        self.task, self.outputs = task, outputs
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Add a batch.

        Args:
            logits: Outputs (B, K), floating point.
            labels: Targets of the task, (B, …).
            indices: Indices of the images (B,) int64.

        Raises:
            UsageError: `logits` have another number of outputs.
        """
        if logits.shape[1] != self.outputs:
            raise UsageError(
                f"the network has {logits.shape[1]} outputs per image, but the data have {self.outputs} labels; "
                "use the data set it was trained on"
            )
        self._kept.append((logits.detach().float().cpu(), labels.cpu(), indices.cpu()))

    def all_reduce(self) -> "OutputAccumulator":
        """Return the outputs of all processes; this accumulator does not change."""
        whole = OutputAccumulator(self.task, self.outputs)
        whole._kept = [one for share in distributed.all_gather(self._kept) for one in share]
        return whole

    def result(self, names: Sequence[str]) -> MultiLabelEvaluation | RegressionEvaluation:
        """Return the metrics; `names` are the K names in the order of the outputs."""
        empty = torch.empty(0, self.outputs), torch.empty(0, self.outputs), torch.empty(0, dtype=torch.int64)
        outputs, labels, indices = (torch.cat(some) for some in zip(*(self._kept or [empty]), strict=True))
        order = indices.argsort()
        outputs, labels, numbers = outputs[order], labels[order], indices[order].numpy()
        loss = float(self.task.loss(outputs, labels) / len(labels)) if len(labels) else float("nan")
        scores = self.task.activate(outputs.double()).numpy().astype(np.float64)
        if isinstance(self.task, Regression):
            targets = labels.double().numpy().reshape(-1)
            return RegressionEvaluation(names[0], numbers, scores[:, 0], targets, loss)
        return MultiLabelEvaluation(tuple(names), numbers, scores, labels.numpy() > 0.5, loss, self.task)


Accumulator = MetricAccumulator | OutputAccumulator


def make_accumulator(task: AnyTask, outputs: int) -> Accumulator:
    """Return what accumulates the metrics of a task with `outputs` classes or labels, or one number."""
    return MetricAccumulator(outputs) if isinstance(task, SingleLabel) else OutputAccumulator(task, outputs)
