"""What learns and what does not: a network cut below the stages that learn."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from svertka.compiler.optimize import fastest
from svertka.errors import UsageError
from svertka.graph.cut import Cuts, Stage

HEAD, LAST, ALL = "head", "last", "all"


class FrozenPrefix(nn.Module):
    """What does not learn: it stays in inference, whatever it is told, and gives its outputs without a gradient.

    So batch norm normalises by its running statistics and keeps them, dropout does nothing, and a backward pass ends
    here; no memory is kept for one.
    """

    def __init__(self, prefix: nn.Module) -> None:
        super().__init__()
        self.prefix = prefix
        self.optimized: nn.Module | None = None
        self.train(False)

    def optimize(self, shape: tuple[int, ...], pictures: int) -> None:
        """From now on compute as `optimize` does, if so many `pictures` of `shape`, (C, H, W), pay for that.

        The weights are those of now: nothing in here learns.
        """
        if self.optimized is None:
            found = fastest(self.prefix, shape, pictures)
            self.optimized = None if found is self.prefix else found

    def train(self, mode: bool = True) -> "FrozenPrefix":
        """Itself, in inference."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """The features (B, …) of pictures (B, C, H, W)."""
        features: Tensor = (self.prefix if self.optimized is None else self.optimized)(inputs)
        return features


class PartiallyFrozen(nn.Module):
    """A network of which only the upper part learns, as one module: `frozen`, then `learning`.

    Both hold the modules of the network itself, so that what is learnt here is learnt there. `shape`: of the features
    that flow from one to the other, for one picture. `begins`: the name of the lowest stage that learns.
    """

    def __init__(
        self, frozen: FrozenPrefix, trainable: nn.Module, shape: tuple[int, ...], first_trainable: str
    ) -> None:
        super().__init__()
        self.frozen, self.trainable, self.shape, self.first_trainable = frozen, trainable, shape, first_trainable

    def forward(self, inputs: Tensor) -> Tensor:
        """Class scores (B, K) of pictures (B, C, H, W)."""
        scores: Tensor = self.trainable(self.frozen(inputs))
        return scores


def first_trainable_stage(found: Sequence[Stage], unfreeze: str) -> str | None:
    """The name of the first stage of `found` that learns; None: all do.

    `unfreeze`: "head", the last stage alone; "last", the stage below too; a number of stages below the head; "all"; or
    the name of the lowest stage that learns.

    Raises:
        UsageError: there is no such stage, or there are not so many.
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
            f"the lowest stage that is to learn: {', '.join(names)}"
        )
    return None if below == len(names) - 1 else names[-1 - below]


def split_at_frozen(network: nn.Module, unfreeze: str, shape: tuple[int, ...]) -> PartiallyFrozen | None:
    """`network`, whose inputs are of `shape`, as what learns upon what does not; None: all of it learns.

    Nothing is changed: see `freeze`.

    Raises:
        UsageError: as for `beginning`, or the network cannot be cut.
    """
    if unfreeze == ALL:
        return None
    cuts = Cuts(network, shape)
    before = first_trainable_stage(cuts.stages, unfreeze)
    if before is None:
        return None
    halves = cuts.at(before)
    return (
        None
        if halves.prefix is None
        else PartiallyFrozen(FrozenPrefix(halves.prefix), halves.rest, halves.shape, before)
    )


def freeze(network: nn.Module, unfreeze: str, shape: tuple[int, ...]) -> PartiallyFrozen | None:
    """As `divide`; what does not learn, auxiliary classifiers included, asks for no gradient from now on.

    Raises:
        UsageError: as for `divide`.
    """
    made = split_at_frozen(network, unfreeze, shape)
    if made is not None:
        learning = {id(parameter) for parameter in made.trainable.parameters()}
        for parameter in network.parameters():
            parameter.requires_grad_(id(parameter) in learning)
    return made


def stage_depths(network: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """How many stages each parameter of `network` lies below the head, by its name; the head's are at 0.

    Raises:
        UsageError: the network cannot be cut.
    """
    cuts = Cuts(network, shape)
    below: dict[int, int] = {}
    for depth, stage in enumerate(reversed(cuts.stages)):
        for parameter in cuts.at(stage.name).rest.parameters():
            below.setdefault(id(parameter), depth)
    return {name: below[id(one)] for name, one in network.named_parameters() if id(one) in below}
