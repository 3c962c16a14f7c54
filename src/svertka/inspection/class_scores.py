"""Class scores of a classifier before its final sigmoid or softmax, and the probabilities computed from them."""

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from svertka.errors import UsageError
from svertka.inspection.checked_forward_pass import call_network

ClassIndices = int | Sequence[int] | npt.NDArray[np.integer] | Tensor


class OutputActivation(Enum):
    """The function that turns scores into probabilities. NONE: the values are probabilities already."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    NONE = "none"


ACTIVATION_FUNCTIONS = {
    "softmax": OutputActivation.SOFTMAX,
    "log_softmax": OutputActivation.SOFTMAX,
    "special_softmax": OutputActivation.SOFTMAX,
    "special_log_softmax": OutputActivation.SOFTMAX,
    "sigmoid": OutputActivation.SIGMOID,
    "special_expit": OutputActivation.SIGMOID,
    "logsigmoid": OutputActivation.SIGMOID,
    "log_sigmoid": OutputActivation.SIGMOID,
    "sigmoid_": OutputActivation.NONE,  # in place: its input is overwritten
    "hardsigmoid": OutputActivation.NONE,
}


class ClassScores(NamedTuple):
    """`values` (N, K) for N images and K classes, and the `activation` that turns them into probabilities."""

    values: Tensor
    activation: OutputActivation

    def select(self, classes: Tensor) -> Tensor:
        """Return the score of each image's class, (N,)."""
        return _pick(self.values, classes)

    def probabilities(self, classes: Tensor) -> Tensor:
        """Return the probability of each image's class, (N,), float32, or float64 if the network computes in it."""
        values = self.values.to(torch.promote_types(self.values.dtype, torch.float32))
        if self.activation is OutputActivation.SOFTMAX:
            values = values.softmax(1)
        elif self.activation is OutputActivation.SIGMOID:
            values = values.sigmoid()
        return _pick(values, classes)


def compute_class_scores(network: nn.Module, images: Tensor, classes: Tensor, multilabel: bool = False) -> ClassScores:
    """Return the scores of `network` before a final sigmoid or softmax.

    If the network does not end in such a function, probabilities are the sigmoid of the scores if there is only one
    score or with `multilabel`, and their softmax otherwise.

    Args:
        network: Any classifier.
        images: (N, C, H, W).
        classes: (N,) int64, checked against the number of scores.
        multilabel: Whether an image may have several classes.

    Raises:
        UsageError: The output is not (N, K) scores, contains NaN, or has no such class.
    """
    with _LastActivation() as last:
        output = call_network(network, images)
    scores: ClassScores = last.scores(_as_matrix(network, output, len(images)), multilabel)
    count = scores.values.shape[1]
    wrong = classes[(classes < 0) | (classes >= count)]
    if len(wrong):
        raise UsageError(
            f"class={int(wrong[0])} is out of range; the network has "
            + (f"{count} classes: use 0 to {count - 1}" if count > 1 else "one score: use 0")
        )
    bad = scores.values.detach().isnan().any(1)
    if bad.any():
        raise UsageError(
            f"{type(network).__name__} gives NaN for image {int(bad.nonzero()[0])} of the batch; "
            "check its weights and the image for NaN and inf"
        )
    return scores


def parse_class_indices(classes: ClassIndices, count: int) -> Tensor:
    """Convert `classes`, one for all or one for each of `count` images, to (count,) int64.

    Raises:
        UsageError: They are not integers, or not as many as images.
    """
    try:
        with torch.inference_mode(False):  # autograd saves them for the backward pass
            given = torch.as_tensor(classes).clone()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UsageError(f"classes={str(classes)[:60]} must be integers") from error
    if given.is_floating_point() and not given.numel():
        given = given.long()  # an empty list
    if given.dtype == torch.bool or given.is_floating_point() or given.is_complex():
        raise UsageError(f"classes of {given.dtype} must be integers, the indices of classes")
    if given.ndim > 1:
        raise UsageError(f"classes of shape {tuple(given.shape)} must be one integer, or one for each image")
    if given.ndim and len(given) not in (1, count):
        raise UsageError(f"{len(given)} classes for {count} images; give one for each, or one for all")
    return given.long().expand(count)


class _LastActivation(TorchFunctionMode):
    """Record the last sigmoid or softmax that ran, with its input."""

    def __init__(self) -> None:
        super().__init__()
        self._kind: OutputActivation | None = None
        self._input: Tensor | None = None
        self._output: Tensor | None = None

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        kind = ACTIVATION_FUNCTIONS.get(getattr(function, "__name__", ""))
        given = args[0] if args else (kwargs or {}).get("input")
        if kind is not None and isinstance(output, Tensor) and isinstance(given, Tensor):
            self._kind, self._input, self._output = kind, given, output
        return output

    def scores(self, output: Tensor, multilabel: bool) -> ClassScores:
        """Return the scores that the network's `output` (N, K) was computed from."""
        if self._kind is not None and self._input is not None and _share_memory(output, self._output):
            if self._kind is not OutputActivation.NONE and self._input.numel() == output.numel():
                return ClassScores(self._input.reshape(output.shape), self._kind)
            return ClassScores(output, OutputActivation.NONE)
        if _are_probabilities(
            output, of_activation=self._output is not None and self._output.numel() == output.numel()
        ):
            return ClassScores(output, OutputActivation.NONE)
        independent = multilabel or output.shape[1] == 1
        return ClassScores(output, OutputActivation.SIGMOID if independent else OutputActivation.SOFTMAX)


def _as_matrix(network: nn.Module, output: Any, count: int) -> Tensor:
    """Reshape `output` to (N, K): (N,) is one score for each image; trailing axes of size 1 are dropped."""
    if isinstance(output, Tensor) and output.ndim and len(output) == count:
        if output.ndim == 1:
            return output[:, None]
        if output.ndim > 1 and all(size == 1 for size in output.shape[2:]) and output.shape[1]:
            return output.flatten(1) if count else output.reshape(0, output.shape[1])
    shape = "×".join(map(str, output.shape[1:])) if isinstance(output, Tensor) and output.ndim else ""
    given = shape or type(output).__name__
    raise UsageError(
        f"{type(network).__name__} gives {given} for an image, not one score for each class; "
        "give a module that returns only the scores, (N, K)"
    )


def _share_memory(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _are_probabilities(output: Tensor, of_activation: bool) -> bool:
    """Return whether `output` (N, K) can only be probabilities, although operations followed the activation.

    All values lie in 0 to 1, and they sum to 1 or, with `of_activation`, are as many as a sigmoid or softmax returned.
    """
    values = output.detach().double()
    if not values.numel() or not bool(((values >= 0) & (values <= 1)).all()):
        return False
    sums_to_one = values.shape[1] > 1 and bool(((values.sum(1) - 1).abs() < 1e-3).all())
    return sums_to_one or of_activation


def _pick(values: Tensor, classes: Tensor) -> Tensor:
    return values.gather(1, classes[:, None].to(values.device))[:, 0]
