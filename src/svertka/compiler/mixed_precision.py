"""The choice of a precision for each layer: the fastest mixture whose loss of accuracy stays within a bound.

The time of each layer in each precision is measured. The search begins with the fastest precision of every layer. While
the loss exceeds the bound, layers move to a slower, more precise one, in the order of error saved for each second lost
(the greedy solution of a knapsack of choices). The error of a layer is that of the network's output on calibration
images if this layer alone has the lower precision; errors of independent layers add up. The number of moves is found
by bisection, with the accuracy on the validation images measured at each step; on a sample of them if there are many.

A time limit ends the search early. What it left untried keeps a higher precision, and is counted.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.accuracy_bound import MixedPrecisionReport, Network, ValidationImages, count_needed_images
from svertka.compiler.activation_ranges import ActivationHistogram
from svertka.compiler.bfloat16_maps import store_maps_in_bfloat16
from svertka.compiler.executor import ExecutionPlan
from svertka.compiler.fusion import FusedNetwork
from svertka.compiler.ir import ConvolutionChain, FusedConvolution
from svertka.compiler.packing import DTYPES, choose_precisions, convert_weight_precision, is_linear_layer
from svertka.compiler.quantization import quantize_network, unfuse_gates
from svertka.compiler.shared_weights import pack_layer
from svertka.errors import UsageError
from svertka.progress import show_spinner

Precisions = Mapping[int, str]  # of each layer, by the number of its result
TIMING_SECONDS = 2.0  # for the times of all layers in all precisions
COMPARING_SECONDS = 2.0  # for the times of whole networks
ERROR_SECONDS = 5.0  # for the errors of all layers
SEARCH_SECONDS = 100.0  # for the errors of all layers and the accuracy of mixtures
PASSES = 12  # over the sample of the validation images, which the bisection and its result may take
TIMED_ROUNDS = range(5, 200)
ERROR_IMAGES = range(4, 33)
WORTH = 0.95  # a lower precision takes at most this share of the time of a higher one, or noise would choose it


@dataclass(frozen=True)
class MixedNetwork:
    """The network of the chosen mixture, with its converted weights, and its loss and speed."""

    fused: FusedNetwork
    report: MixedPrecisionReport


def apply_layer_precisions(
    fused: FusedNetwork, observed: Mapping[int, ActivationHistogram], precisions: Precisions
) -> FusedNetwork:
    """Return the network with the weights of each layer in its precision.

    Args:
        fused: The network in float32.
        observed: The numbers of its values on calibration images, with all of its gates unfused.
        precisions: The precision of each layer; the same for layers that share a weight. Layers that "int8" or "bf16"
            does not support stay float32.
    """
    layers = {result for result, precision in precisions.items() if precision == "int8"}
    quantized = quantize_network(unfuse_gates(fused, layers), observed, layers) if layers else fused
    return store_maps_in_bfloat16(convert_weight_precision(quantized, precisions))


class MixedPrecisionSearch:
    """The search for the precisions of one network.

    Args:
        fused: The network in float32.
        observed: The numbers of its values on calibration images, with all of its gates unfused.
        images: Calibration images, (N, C, H, W), on which errors are measured.
        validation: The images that bound the loss.
        right: Which of them the original network classifies correctly, (N) bool.
        require_usable: Raises UsageError if the outputs of a variant with some precisions differ too much from those of
            the original.
        strict: Whether to exclude Winograd kernels.
        batch_size: The batch for which times are measured.
    """

    def __init__(
        self,
        fused: FusedNetwork,
        observed: Mapping[int, ActivationHistogram],
        images: Tensor,
        validation: ValidationImages,
        right: Tensor,
        require_usable: Callable[[Network, set[str]], object],
        *,
        strict: bool,
        batch_size: int,
    ) -> None:
        self.fused, self.observed, self.images, self.validation = fused, observed, images, validation
        self.right, self.require_usable, self.strict, self.batch_size = right, require_usable, strict, batch_size
        self.unmeasured: set[tuple[int, ...]] = set()
        self._packed: dict[Any, Any] = {}
        self._reports: dict[tuple[tuple[str, ...], bool], MixedPrecisionReport | UsageError] = {}
        self._sample = torch.arange(len(validation), device="cpu")  # validation images that decide the steps
        layers = [step for step in fused.steps if isinstance(step, FusedConvolution)]
        shared: dict[str, list[int]] = {}
        for step in layers:
            shared.setdefault(step.weight, []).append(step.result)
        self.groups = [tuple(results) for results in shared.values()]  # layers with one weight have one precision
        self.uniform = {one: self._mix(choose_precisions(fused, one, one)) for one in DTYPES}
        self.options = {
            group: [
                one
                for one, network in self.uniform.items()
                if all(_stored_precision(network, result) == one for result in group)
            ]
            for group in self.groups
        }

    def find(self) -> MixedNetwork:
        """Return the fastest mixture found whose loss is within the bound.

        Raises:
            UsageError: The outputs in float32 differ too much from those of the original.
        """
        with show_spinner("choosing precisions"):
            deadline = time.perf_counter() + SEARCH_SECONDS
            seconds = self._measure_layers()
            self._drop_useless_options(seconds)
            began, fastest = time.perf_counter(), self._choose_lowest()
            choices = [fastest]
            if not self._is_within_bound(fastest):
                whole = time.perf_counter() - began
                errors = self._measure_errors(seconds, (deadline + time.perf_counter()) / 2)
                choices = self._list_choices(self._choose_lowest(), seconds, errors)
                self._draw_sample((deadline - time.perf_counter()) / (PASSES * whole))
            first, last = self._bisect(choices, deadline)
            untried = {group for group in self.groups if choices[first][group] != choices[last][group]}
            untried |= self.unmeasured
            return self._choose_fastest(choices[last], sum(map(len, untried)))

    def _bisect(self, choices: Sequence[Mapping[tuple[int, ...], str]], deadline: float) -> tuple[int, int]:
        """Return the numbers of the first choice that is not known to exceed the bound, and of one that keeps it.

        The last choice, float32, is taken to keep it. The steps are decided on the sample, the result on all images.
        """
        first, last = 0, len(choices) - 1
        while first < last and time.perf_counter() < deadline:
            middle = (first + last) // 2
            within = self._is_within_bound(choices[middle], of_sample=True)
            first, last = (first, middle) if within else (middle + 1, last)
        step = 1
        while last < len(choices) - 1 and not self._is_within_bound(choices[last]):
            further = last + step if time.perf_counter() < deadline else len(choices) - 1
            first, last, step = last + 1, min(further, len(choices) - 1), 2 * step
        return first, last

    def _draw_sample(self, share: float) -> None:
        """Set the sample to this share of the validation images, evenly spread, but not too few for the bound."""
        count = len(self.validation)
        fewest = count_needed_images(self.validation.max_loss)
        self._sample = torch.linspace(0, count - 1, min(max(int(share * count), fewest), count), device="cpu").long()

    def _choose_lowest(self) -> dict[tuple[int, ...], str]:
        """Return the lowest precision of each group that is still an option."""
        return {group: max(self.options[group], key=_order) for group in self.groups}

    def _choose_fastest(self, found: Mapping[tuple[int, ...], str], untried: int) -> MixedNetwork:
        """Return the mixture `found`, or a network of one precision that is faster and within the bound, too."""
        networks = [self._mix(_spread(found)), *self.uniform.values()]
        times = self._compare(networks)
        float_seconds = times[1 + list(self.uniform).index("fp32")]
        for seconds, network in sorted(zip(times, networks, strict=True), key=lambda pair: pair[0]):
            report = self._report(network)
            if isinstance(report, MixedPrecisionReport) and report.is_within_bound:
                made = replace(
                    report,
                    float_seconds=float_seconds,
                    seconds=seconds,
                    threads=torch.get_num_threads(),
                    batch_size=self.batch_size,
                    untried=untried,
                )
                return MixedNetwork(network, made)
        reason = self._report(self.uniform["fp32"])
        if isinstance(reason, UsageError):
            raise reason
        raise UsageError(
            f"rounding alone changes the class of more validation images than max_loss={reason.max_loss:g} allows "
            f"({reason.sentence}); allow a larger loss, or run the network as it is"
        )

    def _mix(self, precisions: Precisions) -> FusedNetwork:
        return apply_layer_precisions(self.fused, self.observed, precisions)

    def _plan(self, fused: FusedNetwork, batch_size: int) -> ExecutionPlan:
        packed = {}
        for step in fused.steps:
            if isinstance(step, FusedConvolution):
                weight, dense = fused.tensors[step.weight], is_linear_layer(fused, step)
                key = step.weight, weight.dtype
                if key not in self._packed:
                    self._packed[key] = pack_layer(step, weight, dense=dense, strict=self.strict)
                packed[step.weight] = self._packed[key]
        return ExecutionPlan(fused, packed, batch_size)

    def _network(self, fused: FusedNetwork) -> Network:
        """Return a function that runs the network on batches of any size."""
        plans: dict[int, ExecutionPlan] = {}

        def run(x: Tensor) -> Any:
            if len(x) not in plans:
                plans[len(x)] = self._plan(fused, len(x))
            return plans[len(x)].run(x.contiguous(memory_format=torch.channels_last))

        return run

    def _measure_layers(self) -> dict[str, dict[int, float]]:
        """Return the shortest time of each layer in each network of one precision, measured in turns."""
        x = self._batch(self.batch_size)
        plans = {one: self._plan(network, self.batch_size) for one, network in self.uniform.items()}
        shortest: dict[str, list[float]] = {}
        for _ in iter_timing_rounds(TIMING_SECONDS):
            for one, plan in plans.items():
                found: list[float] = []
                plan.run(x, seconds=found)
                shortest[one] = found if one not in shortest else list(map(min, found, shortest[one]))
        return {one: _time_layers(plan, shortest[one]) for one, plan in plans.items()}

    def _compare(self, networks: Sequence[FusedNetwork]) -> list[float]:
        """Return the median time of each network for a batch, measured in turns."""
        x = self._batch(self.batch_size)
        plans = [self._plan(network, self.batch_size) for network in networks]
        return measure_median_seconds([plan.run for plan in plans], x, COMPARING_SECONDS)

    def _batch(self, batch_size: int) -> Tensor:
        chosen = self.images[torch.arange(batch_size, device="cpu") % len(self.images)]
        return chosen.contiguous(memory_format=torch.channels_last)

    def _drop_useless_options(self, seconds: Mapping[str, Mapping[int, float]]) -> None:
        """Drop the options that are less precise than another one, and hardly faster."""
        for group, options in self.options.items():
            kept: list[str] = []
            for one in sorted(options, key=_order):
                time_of = sum(seconds[one][result] for result in group)
                if not kept or time_of < WORTH * sum(seconds[kept[-1]][result] for result in group):
                    kept.append(one)
            self.options[group] = kept

    def _measure_errors(
        self, seconds: Mapping[str, Mapping[int, float]], deadline: float
    ) -> dict[tuple[tuple[int, ...], str], float]:
        """Return the mean square error of the output if one group alone has one of its options.

        The options that save most time come first. Those that are left at the `deadline` are options no longer, and
        their groups are added to `unmeasured`.
        """
        cases = [(group, one) for group, options in self.options.items() for one in options if one != "fp32"]
        cases.sort(key=lambda case: sum(seconds[case[1]][result] - seconds["fp32"][result] for result in case[0]))
        run = self._network(self.uniform["fp32"])
        x = self._batch(self.fused.batch_size or ERROR_IMAGES.start)
        run(x)  # so that its plan is made
        began = time.perf_counter()
        run(x)
        per_image = (time.perf_counter() - began) / len(x)
        count = int(ERROR_SECONDS / (max(per_image, 1e-6) * max(len(cases), 1)))
        count = self.fused.batch_size or min(max(count, ERROR_IMAGES.start), ERROR_IMAGES.stop - 1)
        x, errors = self._batch(count), {}
        expected = _center(run(x))
        base = dict.fromkeys(self.groups, "fp32")
        for number, (group, one) in enumerate(cases):
            if number and time.perf_counter() >= deadline:
                for left, precision in cases[number:]:
                    self.options[left].remove(precision)
                    self.unmeasured.add(left)
                break
            found = _center(self._network(self._mix(_spread(base | {group: one})))(x))
            error = float((found - expected).square().mean())
            errors[group, one] = error if error == error else float("inf")
        return errors

    def _list_choices(
        self,
        fastest: Mapping[tuple[int, ...], str],
        seconds: Mapping[str, Mapping[int, float]],
        errors: Mapping[tuple[tuple[int, ...], str], float],
    ) -> list[dict[tuple[int, ...], str]]:
        """Return choices from the fastest to the most precise, each with one group more precise than the one before."""

        def gain(group: tuple[int, ...], old: str, new: str) -> float:
            """Return the error that a move saves for each second that it costs."""
            saved = errors.get((group, old), 0.0) - errors.get((group, new), 0.0)
            return saved / sum(seconds[new][result] - seconds[old][result] for result in group)

        choices = [dict(fastest)]
        while True:
            now = choices[-1]
            moves = [
                (gain(group, now[group], one), group, one)
                for group, options in self.options.items()
                for one in options
                if _order(one) < _order(now[group])
            ]
            if not moves:
                return choices
            _, group, one = max(moves)
            choices.append(now | {group: one})

    def _is_within_bound(self, choice: Mapping[tuple[int, ...], str], *, of_sample: bool = False) -> bool:
        report = self._report(self._mix(_spread(choice)), of_sample=of_sample)
        return isinstance(report, MixedPrecisionReport) and report.is_within_bound

    def _report(self, fused: FusedNetwork, *, of_sample: bool = False) -> MixedPrecisionReport | UsageError:
        """Return the accuracy of a network, or why its outputs are not usable; measured once for each mixture."""
        chosen = self._sample if of_sample and len(self._sample) < len(self.validation) else None
        key = tuple(_stored_precision(fused, group[0]) for group in self.groups)
        known = key, chosen is not None
        if known not in self._reports:
            run = self._network(fused)
            try:
                self.require_usable(run, set(key))
                right, _ = self.validation.find_right(run, self.fused.batch_size, chosen)
                before = self.right if chosen is None else self.right[chosen]
                self._reports[known] = self.validation.report(before, right)
            except UsageError as reason:
                self._reports[known] = reason
        return self._reports[known]


def iter_timing_rounds(seconds: float) -> Iterator[int]:
    """Yield the numbers of rounds until `seconds` have passed, between the ends of `TIMED_ROUNDS`."""
    began = time.perf_counter()
    for number in range(TIMED_ROUNDS.stop):
        if number >= TIMED_ROUNDS.start and time.perf_counter() - began >= seconds:
            return
        yield number


def measure_median_seconds(networks: Sequence[Network], x: Tensor, seconds: float) -> list[float]:
    """Return the median time of each network for the batch `x`, measured in turns for `seconds`."""
    times: list[list[float]] = [[] for _ in networks]
    for _ in iter_timing_rounds(seconds):
        for network, some in zip(networks, times, strict=True):
            began = time.perf_counter()
            network(x)
            some.append(time.perf_counter() - began)
    return [statistics.median(some) for some in times]


def _order(precision: str) -> int:
    """Return the place of a precision, the most precise first."""
    return list(DTYPES).index(precision)


def _spread(choice: Mapping[tuple[int, ...], str]) -> dict[int, str]:
    """Return the precision of each layer, given that of each group."""
    return {result: one for group, one in choice.items() for result in group}


def _stored_precision(fused: FusedNetwork, result: int) -> str:
    """Return the precision of the weights of the layer that computes the value `result`."""
    step = next(one for one in fused.steps if isinstance(one, FusedConvolution) and one.result == result)
    dtype = fused.tensors[step.weight].dtype
    return next(name for name, other in DTYPES.items() if other == dtype)


def _time_layers(plan: ExecutionPlan, seconds: Sequence[float]) -> dict[int, float]:
    """Return the time of each convolution, given that of each step; chains share theirs in the ratio of products."""
    found: dict[int, float] = {}
    for step, places in plan.ranges:
        total = sum(seconds[place] for place in places)
        layers = [
            one
            for one in (step.steps if isinstance(step, ConvolutionChain) else (step,))
            if isinstance(one, FusedConvolution)
        ]
        products = [plan.weights[one.weight].numbers.numel() * plan.maps[one.result].pixels for one in layers]
        for one, count in zip(layers, products, strict=True):
            found[one.result] = total * count / sum(products)
    return found


def _center(scores: Tensor) -> Tensor:
    """Return scores, (N, K), minus their mean for each image, which changes no class, in float64."""
    wide = scores.double()
    return wide - wide.mean(1, keepdim=True)
