"""The score that a classifier gives a class, before any sigmoid or softmax, and the probability that it stands for."""

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from svertka.errors import UsageError
from svertka.inspection.forward_pass import run_network

ClassIndices = int | Sequence[int] | npt.NDArray[np.integer] | Tensor


class OutputActivation(Enum):
    """What makes probabilities of scores; NONE: they are probabilities already, and what made them is not seen."""

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
    "sigmoid_": OutputActivation.NONE,  # in place: what it was given is gone
    "hardsigmoid": OutputActivation.NONE,
}


class ClassScores(NamedTuple):
    """`values` (N, K) for N images and K classes, and the `activation` that makes probabilities of them."""

    values: Tensor
    activation: OutputActivation

    def of(self, classes: Tensor) -> Tensor:
        """The score of each image's class, (N,)."""
        return _pick(self.values, classes)

    def probabilities(self, classes: Tensor) -> Tensor:
        """The probability of each image's class, (N,), float32 or, where the network computes in it, float64."""
        values = self.values.to(torch.promote_types(self.values.dtype, torch.float32))
        if self.activation is OutputActivation.SOFTMAX:
            values = values.softmax(1)
        elif self.activation is OutputActivation.SIGMOID:
            values = values.sigmoid()
        return _pick(values, classes)


def compute_class_scores(network: nn.Module, images: Tensor, classes: Tensor, multilabel: bool = False) -> ClassScores:
    """The scores that `network` gives N images, `classes` (N,) among them.

    Where it ends in a sigmoid or a softmax, they are what that is given. Otherwise they become probabilities by a
    sigmoid if there is one score alone, or `multilabel`; else by a softmax.

    Raises:
        UsageError: it does not give (N, K) scores, or NaN, or has no such class.
    """
    with _LastActivation() as last:
        output = run_network(network, images)
    scores: ClassScores = last.scores(_as_matrix(network, output, len(images)), multilabel)
    count = scores.values.shape[1]
    wrong = classes[(classes < 0) | (classes >= count)]
    if len(wrong):
        allowed = f"0 to {count - 1}" if count > 1 else "0, the one it scores"
        raise UsageError(f"class={int(wrong[0])} is not among the {count} of the network; use {allowed}")
    bad = scores.values.detach().isnan().any(1)
    if bad.any():
        raise UsageError(
            f"{type(network).__name__} gives NaN for image {int(bad.nonzero()[0])} of the batch; "
            "look for NaN or inf in its weights and in the image"
        )
    return scores


def parse_class_indices(classes: ClassIndices, count: int) -> Tensor:
    """`classes`, one for all or one for each of `count` images, as (count,) int64.

    Raises:
        UsageError: they are no integers, or of another number.
    """
    try:
        with torch.inference_mode(False):  # autograd keeps them
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
        raise UsageError(f"{len(given)} classes for {count} pictures; give one for each, or one for all")
    return given.long().expand(count)


class _LastActivation(TorchFunctionMode):
    """Remembers the last sigmoid or softmax that ran, and what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self._kind: OutputActivation | None = None
        self._given: Tensor | None = None
        self._made: Tensor | None = None

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        kind = ACTIVATION_FUNCTIONS.get(getattr(function, "__name__", ""))
        given = args[0] if args else (kwargs or {}).get("input")
        if kind is not None and isinstance(made, Tensor) and isinstance(given, Tensor):
            self._kind, self._given, self._made = kind, given, made
        return made

    def scores(self, output: Tensor, multilabel: bool) -> ClassScores:
        """The scores behind `output` (N, K)."""
        if self._kind is not None and self._given is not None and _share_memory(output, self._made):
            if self._kind is not OutputActivation.NONE and self._given.numel() == output.numel():
                return ClassScores(self._given.reshape(output.shape), self._kind)
            return ClassScores(output, OutputActivation.NONE)
        if _are_probabilities(output, of_activation=self._made is not None and self._made.numel() == output.numel()):
            return ClassScores(output, OutputActivation.NONE)
        alone = multilabel or output.shape[1] == 1
        return ClassScores(output, OutputActivation.SIGMOID if alone else OutputActivation.SOFTMAX)


def _as_matrix(network: nn.Module, output: Any, count: int) -> Tensor:
    """`output` as (N, K): (N,) is one score for each, and trailing axes of one place are left out."""
    if isinstance(output, Tensor) and output.ndim and len(output) == count:
        if output.ndim == 1:
            return output[:, None]
        if output.ndim > 1 and all(size == 1 for size in output.shape[2:]) and output.shape[1]:
            return output.flatten(1) if count else output.reshape(0, output.shape[1])
    shape = "×".join(map(str, output.shape[1:])) if isinstance(output, Tensor) and output.ndim else ""
    given = shape or type(output).__name__
    raise UsageError(
        f"{type(network).__name__} gives {given} for a picture, not one score for each class; "
        "give a module that returns the scores alone, (N, K)"
    )


def _share_memory(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _are_probabilities(output: Tensor, of_activation: bool) -> bool:
    """Whether `output` (N, K) can only be probabilities, though something came after what made them.

    They lie within 0 and 1, and sum up to 1 or, `of_activation`, are as many as a sigmoid or softmax gave.
    """
    values = output.detach().double()
    if not values.numel() or not bool(((values >= 0) & (values <= 1)).all()):
        return False
    sums_to_one = values.shape[1] > 1 and bool(((values.sum(1) - 1).abs() < 1e-3).all())
    return sums_to_one or of_activation


def _pick(values: Tensor, classes: Tensor) -> Tensor:
    return values.gather(1, classes[:, None].to(values.device))[:, 0]
