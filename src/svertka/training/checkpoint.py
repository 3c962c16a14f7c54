"""Checkpoints: all that a bit-exact resume needs, in one file of tensors and JSON, written atomically."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from svertka import distributed
from svertka.conv import autotune
from svertka.errors import RunError
from svertka.tensor_files import read_tensors_and_header, write_tensors
from svertka.text_width import shorten
from svertka.training.eager_optimizers import EagerAdamW, EagerSGD
from svertka.training.recipe import first_validation_error
from svertka.training.training_loop import TrainingProgress
from svertka.training.weight_average import WeightAverage

# A file of unknown origin is checked before anything is computed with it.
_STATE = TypeAdapter(TrainingProgress)
_NUMBERS = TypeAdapter(dict[str, float])
_CHOICES = TypeAdapter(dict[str, str])
ADAM = {"step", "exp_avg", "exp_avg_sq"}
SLOTS: dict[type, tuple[set[str], set[str]]] = {  # required and allowed state of a parameter
    EagerSGD: (set(), {"momentum_buffer"}),
    EagerAdamW: (ADAM, ADAM),
}
MAX_STEPS = 2**53


def save(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainingProgress,
    average: WeightAverage | None = None,
    **extra: Any,
) -> None:
    """Write a checkpoint, atomically.

    Args:
        path: The file.
        network: The network.
        optimizer: Its optimizer.
        state: Progress of the training.
        average: Moving average of its weights.
        extra: JSON values that `load` returns.

    Raises:
        StorageError: The disk is full or the folder cannot be written; the previous file is kept.
    """
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    numbers: dict[str, Any] = {}
    for index, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{slot}"] = value
            elif value is not None:
                numbers[f"{index}.{slot}"] = value
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.values.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    path.parent.mkdir(exist_ok=True)
    header = {"state": asdict(state), "optimizer": numbers, "convolutions": autotune.get_choices_of_process()}
    write_tensors(path, tensors, header | extra)


def load(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> tuple[TrainingProgress, dict[str, Any]]:
    """Restore a checkpoint into `network`, `optimizer`, `average` and PyTorch's random state.

    Returns:
        The progress of the training, and the extra values. Among these is `convolutions`, for `autotune.pin_choices`:
        other algorithms would round differently.

    Raises:
        RunError: The file is missing, damaged, or of another network.
    """
    tensors, header = read_tensors_and_header(path)
    try:
        state = _STATE.validate_python(header.pop("state"))
        numbers = _NUMBERS.validate_python(header.pop("optimizer"))
        choices = autotune.replace_former_algorithm_names(_CHOICES.validate_python(header.pop("convolutions", {})))
        _check_state(state, choices)
        network.load_state_dict(_select("network.", tensors))
        _restore_optimizer(optimizer, _select("optimizer.", tensors) | dict(numbers))
        if average is not None:
            average.load(_select("average.", tensors)) if state.step else average.restart()
        if distributed.is_first():
            torch.set_rng_state(tensors["random.cpu"])
            if torch.cuda.is_available() and "random.cuda" in tensors:
                torch.cuda.set_rng_state(tensors["random.cuda"])
        else:  # the file holds the state of the first process; the others only have to differ
            torch.manual_seed(state.step * distributed.world_size() + distributed.rank())
    except (LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        fault = first_validation_error(error) if isinstance(error, ValidationError) else str(error)
        reason = shorten(" ".join(fault.split()), 200)
        raise RunError(f"{path} does not fit this run ({reason}); copy the run's files back together") from error
    if not isinstance(header.get("log", 0), int) or header.get("log", 0) < 0:
        raise RunError(f"{path} does not fit this run (log={shorten(repr(header['log']))}); copy it back")
    return state, header | {"convolutions": choices}


def _check_state(state: TrainingProgress, choices: Mapping[str, str]) -> None:
    if unknown := set(choices.values()) - autotune.ALGORITHMS.keys():
        raise ValueError(f"convolutions by {unknown.pop()!r}")
    if len(state.sums) != 3 or len(state.recent) != 3 or state.step > MAX_STEPS:
        raise ValueError(f"step {state.step}, sums of {len(state.sums)} and {len(state.recent)} values")
    if not 0 <= state.looked <= state.step:
        raise ValueError(f"step {state.step} is before the last logged step, {state.looked}")
    if not 0 <= state.kept_epoch <= (len(state.val_errors) or state.kept_epoch):
        raise ValueError(f"epoch {state.kept_epoch} is kept of {len(state.val_errors)}")


def _select(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore_optimizer(optimizer: torch.optim.Optimizer, slots: Mapping[str, Any]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in slots.items():
        index, _, slot = name.partition(".")
        parameter = parameters[int(index)]
        if isinstance(value, torch.Tensor) and slot != "step":
            if value.shape != parameter.shape:  # a fused update would read out of bounds
                raise ValueError(f"optimizer.{name} is {tuple(value.shape)} in place of {tuple(parameter.shape)}")
            # Fused updates need the parameter's memory format, which a file does not keep.
            value = torch.empty_like(parameter).copy_(value)
        state.setdefault(int(index), {})[slot] = value
    needed, known = SLOTS[type(optimizer)]
    for number, found in state.items():
        if not needed <= found.keys() <= known | {"slow"} or np.shape(found.get("step", 0)) != ():
            raise ValueError(
                f"optimizer.{number} holds {', '.join(sorted(found))} instead of {', '.join(sorted(known))}"
            )
    _complete_momentum(optimizer, state)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _complete_momentum(optimizer: torch.optim.Optimizer, slots: dict[int, dict[str, Any]]) -> None:
    """Add zero momentum where it is missing in a group that has some: a fused step needs all or none."""
    first = 0
    for group in optimizer.param_groups:
        numbers = range(first, first + len(group["params"]))
        first += len(group["params"])
        if any("momentum_buffer" in slots.get(number, {}) for number in numbers):
            for number, parameter in zip(numbers, group["params"], strict=True):
                slots.setdefault(number, {}).setdefault("momentum_buffer", torch.zeros_like(parameter))
