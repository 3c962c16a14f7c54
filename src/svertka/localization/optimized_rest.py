"""The last layers of the optimized network of a run, which `locate` applies to the feature maps of patches."""

import math
from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter

import torch
from torch import Tensor, nn

from svertka.compiler.bfloat16_maps import drop_unsupported_bfloat16
from svertka.compiler.fusion import FusedNetwork, select_read_tensors
from svertka.compiler.ir import UNBOUNDED, Elementwise, FusedConvolution, Step, step_output_numbers
from svertka.compiler.optimize import Optimized
from svertka.compiler.reference import run_reference
from svertka.graph.operation_and_value_types import Value
from svertka.graph.shared_crops import SharedCrops

MAX_ERROR = 0.2  # of scores, relative to how they differ among images; what the rounding of weights causes is less
CHECKED = 8  # images


def optimized_rest(optimized: Optimized, crops: SharedCrops, classes: int) -> nn.Module | None:
    """Return the layers of an optimized network that compute what the rest of `crops` computes, in their precisions.

    Where the two networks begin with the same feature maps is found by comparing their scores on random images. If the
    optimized network lacks the last classes, those that occur in patches only, its last layer is that of `crops`.

    Args:
        optimized: The optimized network of a run.
        crops: The float network of the run, cut in two.
        classes: The number of its scores.

    Returns:
        A module that maps the feature maps at the cut to scores; None if the optimized network has no such layers.
    """
    fused: FusedNetwork | None = _with_tensors(optimized)
    head: nn.Module = nn.Identity()
    if fused is None or fused.batch_size is not None or optimized.info.least > 1:
        return None
    with torch.inference_mode():
        images = torch.randn(CHECKED, *optimized.info.example[1:], generator=torch.Generator().manual_seed(0))
        maps = crops.first(images)
        expected = crops.rest(maps.clone())  # which may change them
        if optimized(images).shape[1] != classes:
            fused, head = _without_last_layer(fused, crops.rest)
            if fused is None:
                return None
        found = [(_error(rest, head, maps, expected), rest) for rest in _list_rests(fused, crops)]
    error, closest = min(found, key=itemgetter(0), default=(math.inf, fused))
    if error > MAX_ERROR:
        return None
    info = replace(optimized.info, example=(optimized.info.example[0], *crops.shape), accuracy=None)
    return nn.Sequential(Optimized([(closest, info, None)]), head).eval()


def _with_tensors(optimized: Optimized) -> FusedNetwork:
    """Return the steps of an optimized network for images of its first size, with all of their weights."""
    compiled = optimized.compiled[0]
    weights = {name: compiled.read_weight(name) for name in compiled.packed}
    return replace(compiled.fused, tensors={**compiled.fused.tensors, **weights})


def _without_last_layer(fused: FusedNetwork, rest: nn.Module) -> tuple[FusedNetwork | None, nn.Module]:
    """Return the network up to the input of its last layer, and this layer of `rest`; None if it is not dense."""
    last = fused.steps[-1]
    if not isinstance(last, FusedConvolution) or fused.output.leaves != (Value(last.result),):
        return None, nn.Identity()
    head = dict(rest.named_modules()).get(last.place)
    if not isinstance(head, nn.Linear) or tuple(fused.tensors[last.weight].shape[1:]) != (head.in_features, 1, 1):
        return None, nn.Identity()
    features = max(fused.shapes) + 1
    steps = [*fused.steps[:-1], Elementwise(last.x, features)]
    return replace(
        fused,
        steps=tuple(steps),
        shapes={**fused.shapes, features: fused.shapes[last.x]},
        dtypes={**fused.dtypes, features: torch.float32},
        output=fused.output.map_leaves(lambda _: Value(features)),
    ), nn.Sequential(nn.Flatten(), head)


def _list_rests(fused: FusedNetwork, crops: SharedCrops) -> Iterator[FusedNetwork]:
    """Yield the network after each value of the shape at the cut on which alone all later steps depend."""
    if isinstance(crops.first, nn.Identity):
        yield replace(fused, tensors=select_read_tensors(fused.tensors, fused.steps, fused.output))
        return
    for step in fused.steps:
        for value in step_output_numbers(step):
            if fused.shapes[value][1:] == crops.shape and (steps := _steps_after(fused, value)):
                # The float network may be cut before the ReLU of the step, which changes nothing after it.
                begin = Elementwise(0, value, bounds=getattr(step, "bounds", UNBOUNDED))
                yield _network_of(fused, [begin, *steps])
                if isinstance(step, FusedConvolution | Elementwise) and step.activation != "NONE":
                    activated = replace(begin, activation=step.activation, slope=step.slope)
                    yield _network_of(fused, [activated, *steps])


def _steps_after(fused: FusedNetwork, value: int) -> list[Step]:
    """Return the steps that compute the output from `value`; none if they need other values, too."""
    needed = {leaf.number for leaf in fused.output.leaves if isinstance(leaf, Value)}
    steps: list[Step] = []
    for step in reversed(fused.steps):
        made = needed.intersection(step_output_numbers(step)) - {value}
        if made:
            steps.insert(0, step)
            needed = (needed - made) | set(step.inputs)
    return steps if needed == {value} else []


def _network_of(fused: FusedNetwork, steps: list[Step]) -> FusedNetwork:
    """Return the network of `steps`, of which the first reads the images, floats of the shape of its result."""
    (value,) = step_output_numbers(steps[0])
    numbers = {number for step in steps for number in (*step.inputs, *step_output_numbers(step))}
    shapes = {number: fused.shapes[number] for number in numbers}
    dtypes = {number: fused.dtypes[number] for number in numbers}
    return drop_unsupported_bfloat16(
        replace(
            fused,
            steps=tuple(steps),
            shapes=shapes | {0: fused.shapes[value]},
            dtypes=dtypes | {0: torch.float32},
            tensors=select_read_tensors(fused.tensors, steps, fused.output),
            quantizations={number: one for number, one in fused.quantizations.items() if number in numbers},
        )
    )


def _error(rest: FusedNetwork, head: nn.Module, maps: Tensor, expected: Tensor) -> float:
    """Return the error of a network, without the rounding of its maps, relative to how `expected` scores differ."""
    floats = replace(rest, quantizations={}, dtypes=dict.fromkeys(rest.dtypes, torch.float32))
    scores = head(run_reference(floats, lambda name: rest.tensors[name].float(), maps))
    error = float((scores - expected).norm() / (expected - expected.mean(0)).norm())
    return error if math.isfinite(error) else math.inf
