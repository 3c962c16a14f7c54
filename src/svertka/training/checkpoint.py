"""Everything that a bit-exact resume needs, in one file that is whole or absent: tensors and JSON, no pickle."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svertka import distributed
from svertka.conv import choose
from svertka.errors import RunError
from svertka.tensors import read_tensors, write_tensors
from svertka.training.loop import State


def save(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, state: State, **extra: Any) -> None:
    """Write network, optimizer, random state, `state` and the JSON values `extra` to `path`, atomically.

    Raises:
        StorageError: the disk is full or the folder cannot be written; the former file is then untouched.
    """
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    numbers: dict[str, Any] = {}
    for index, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{slot}"] = value
            elif value is not None:
                numbers[f"{index}.{slot}"] = value
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    path.parent.mkdir(exist_ok=True)
    header = {"state": asdict(state), "optimizer": numbers, "convolutions": choose.choices()}
    write_tensors(path, tensors, header | extra)


def load(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[State, dict[str, Any]]:
    """Put what `save` wrote back into `network`, `optimizer` and the random state; returns the State and the extras.

    Raises:
        RunError: the file is missing, damaged, or of another network.
    """
    tensors, header = read_tensors(path)
    try:
        state = State(**header.pop("state"))
        numbers: Mapping[str, Any] = header.pop("optimizer")
        choose.repeat(header.pop("convolutions", {}))  # another algorithm would round otherwise
        network.load_state_dict(_under("network.", tensors))
        _restore_optimizer(optimizer, _under("optimizer.", tensors) | dict(numbers))
        if distributed.is_first():
            torch.set_rng_state(tensors["random.cpu"])
            if torch.cuda.is_available() and "random.cuda" in tensors:
                torch.cuda.set_rng_state(tensors["random.cuda"])
        else:  # the file holds the first process's; the others only need to differ from it
            torch.manual_seed(state.step * distributed.world() + distributed.rank())
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{path} does not fit this run ({reason}); copy the run's files back together") from error
    return state, header


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore_optimizer(optimizer: torch.optim.Optimizer, slots: Mapping[str, Any]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    whole: dict[int, dict[str, Any]] = {}
    for name, value in slots.items():
        index, _, slot = name.partition(".")
        parameter = parameters[int(index)]
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
            # In the parameter's own memory order, which a file does not keep and fused updates rely on.
            value = torch.empty_like(parameter).copy_(value)
        whole.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": whole, "param_groups": optimizer.state_dict()["param_groups"]})
