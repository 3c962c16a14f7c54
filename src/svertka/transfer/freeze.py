"""Frozen and trainable parts of a network, cut between two stages."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from svertka.compiler.optimize import optimize_if_worthwhile
from svertka.errors import UsageError
from svertka.graph.cut import CuttableGraph, SameShapeStage

HEAD, LAST, ALL = "head", "last", "all"


class FrozenPrefix(nn.Module):
    """The frozen part of a network, always in evaluation mode and without gradients.

    Batch norm uses and keeps its running statistics, dropout is off, and no memory is kept for a backward pass.

    Args:
        prefix: The lower stages of the network.
    """

    def __init__(self, prefix: nn.Module) -> None:
        super().__init__()
        self.prefix = prefix
        self.optimized: nn.Module | None = None
        self.train(False)

    def optimize(self, shape: tuple[int, ...], images: int) -> None:
        """Optimize the forward pass with the present weights, if that pays off.

        Args:
            shape: Shape of an image (C, H, W).
            images: Number of images that will be computed.
        """
        if self.optimized is None:
            found = optimize_if_worthwhile(self.prefix, shape, images)
            self.optimized = None if found is self.prefix else found

    def train(self, mode: bool = True) -> "FrozenPrefix":
        """Return itself in evaluation mode, whatever `mode` is."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features (B, …) of images (B, C, H, W)."""
        features: Tensor = (self.prefix if self.optimized is None else self.optimized)(inputs)
        return features


class PartiallyFrozen(nn.Module):
    """A network as a frozen part followed by a trainable part.

    Both hold the modules of the network itself, so that training them trains the network.

    Args:
        frozen: The frozen part.
        trainable: The trainable part.
        shape: Shape of the features between them, for one image.
        first_trainable: Name of the lowest trainable stage.
    """

    def __init__(
        self, frozen: FrozenPrefix, trainable: nn.Module, shape: tuple[int, ...], first_trainable: str
    ) -> None:
        super().__init__()
        self.frozen, self.trainable, self.shape, self.first_trainable = frozen, trainable, shape, first_trainable

    def forward(self, inputs: Tensor) -> Tensor:
        """Return class scores (B, K) of images (B, C, H, W)."""
        scores: Tensor = self.trainable(self.frozen(inputs))
        return scores


def parse_unfreeze(found: Sequence[SameShapeStage], unfreeze: str) -> str | None:
    """Return the name of the lowest trainable stage; None if all are trainable.

    Args:
        found: The stages of the network, from input to output.
        unfreeze: "head" (the last stage), "last" (the stage below, too), a number of stages below the head, "all", or
            the name of the lowest trainable stage.

    Raises:
        UsageError: There is no such stage, or not that many.
    """
    if unfreeze == ALL:
        return None
    below = {HEAD: 0, LAST: 1}.get(unfreeze, int(unfreeze) if unfreeze.isdigit() else None)
    names = [stage.name for stage in found]
    if below is None and unfreeze in names:
        below = len(names) - 1 - names.index(unfreeze)
    if below is None or below >= len(names):
        raise UsageError(
            f"unfreeze={unfreeze} is not a part of this network; use head, last, a number below {len(names)}, all, or "
            f"the lowest stage to train: {', '.join(names)}"
        )
    return None if below == len(names) - 1 else names[-1 - below]


def split_at_frozen(network: nn.Module, unfreeze: str, shape: tuple[int, ...]) -> PartiallyFrozen | None:
    """Split a network into a frozen and a trainable part, without changing it; None if all of it is trainable.

    Args:
        network: The network.
        unfreeze: As for `parse_unfreeze`, or the name of any module, such as a block of a transformer.
        shape: Shape of its input.

    Raises:
        UsageError: There is no such stage, or the network cannot be cut.
    """
    if unfreeze == ALL:
        return None
    cuts = CuttableGraph(network, shape)
    is_stage = unfreeze.isdigit() or unfreeze in {HEAD, LAST, *(stage.name for stage in cuts.stages)}
    is_module = not is_stage and unfreeze in dict(network.named_modules())
    before = unfreeze if is_module else parse_unfreeze(cuts.stages, unfreeze)
    if before is None:
        return None
    halves = cuts.at(before)
    return (
        None
        if halves.prefix is None
        else PartiallyFrozen(FrozenPrefix(halves.prefix), halves.rest, halves.shape, before)
    )


def split_before_head(network: nn.Module, head: str, shape: tuple[int, ...]) -> PartiallyFrozen | None:
    """Split a network before its last stage, or right before its head if that stage computes more than the head.

    That is so if dropout precedes pooling.

    Args:
        network: The network; it is not changed.
        head: Path of its head, a module.
        shape: Shape of its input.

    Returns:
        Both parts; None if the network cannot be split.
    """
    partial, layer = split_at_frozen(network, HEAD, shape), network.get_submodule(head)
    if partial is None or not isinstance(layer, nn.Linear) or math.prod(partial.shape) == layer.in_features:
        return partial
    halves = CuttableGraph(network, shape).before_module(head)
    assert halves.prefix is not None
    return PartiallyFrozen(FrozenPrefix(halves.prefix), halves.rest, halves.shape, head)


def freeze_and_split(network: nn.Module, unfreeze: str, shape: tuple[int, ...]) -> PartiallyFrozen | None:
    """Split a network as `split_at_frozen`, and turn off the gradients of everything that is not trainable.

    Auxiliary classifiers are frozen, too.

    Raises:
        UsageError: There is no such stage, or the network cannot be cut.
    """
    made = split_at_frozen(network, unfreeze, shape)
    if made is not None:
        learning = {id(parameter) for parameter in made.trainable.parameters()}
        for parameter in network.parameters():
            parameter.requires_grad_(id(parameter) in learning)
    return made


def parameter_stage_depths(network: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Return for each parameter, by name, how many stages its stage lies below the head; 0 in the head.

    Raises:
        UsageError: The network cannot be cut.
    """
    cuts = CuttableGraph(network, shape)
    below: dict[int, int] = {}
    for depth, stage in enumerate(reversed(cuts.stages)):
        for parameter in cuts.at(stage.name).rest.parameters():
            below.setdefault(id(parameter), depth)
    return {name: below[id(one)] for name, one in network.named_parameters() if id(one) in below}
