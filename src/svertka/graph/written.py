"""Optimized networks in files of safetensors, with the steps as JSON in the header: to load one runs no code of its."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from svertka.errors import RunError, UsageError
from svertka.graph import plain
from svertka.graph.fusion import Fused
from svertka.graph.operations import Constant, Operation, Size, Value
from svertka.graph.packing import DTYPES, is_dense
from svertka.graph.steps import Concatenation, Convolution, Pool, Step, Sum
from svertka.tensors import read_tensors, write_tensors

FORMAT = 2
KINDS = {kind.__name__: kind for kind in (Convolution, Pool, Sum, Concatenation, Operation)}
LEAVES = {kind.__name__: kind for kind in (Value, Constant, Size)}
NAMED = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}  # attributes of torch
MAKERS = {"new_zeros", "new_ones", "new_full", "new_empty", "zeros", "ones", "full", "arange", "scalar_tensor", "empty"}


@dataclass(frozen=True)
class About:
    """What is known of an optimized network beside its steps.

    `example`: the shape of the pictures that it was made with. `precision`, `dense`: of its layers, and of dense ones,
    "fp32" or "bf16". `error`: the largest difference to the original on the example, over the largest value.
    """

    example: tuple[int, ...]
    precision: str
    dense: str
    error: float = math.nan


def write(path: Path, fused: Fused, about: About) -> None:
    """Write `fused`, its weights as they are in networks, and what is known of it.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
        UsageError: an operation has an argument that cannot be written.
    """
    header = {
        "format": FORMAT,
        "steps": [{"step": type(step).__name__} | _encoded(vars(step)) for step in fused.steps],
        "shapes": {str(value): _encoded(list(shape)) for value, shape in fused.shapes.items()},
        "dtypes": {str(value): _encoded(dtype) for value, dtype in fused.dtypes.items()},
        "output": _encoded(fused.output),
        **vars(about),
    }
    write_tensors(path, fused.tensors, {"optimized": header})


def read(path: Path) -> tuple[Fused, About]:
    """What `write` has written. It is checked that all sizes fit one another, since kernels trust them.

    Raises:
        RunError: the file is missing, damaged, made by a newer version, or something else.
    """
    tensors, header = read_tensors(path)
    content = header.get("optimized")
    if not isinstance(content, dict):
        raise RunError(f"{path} is not an optimized network; name a file that `Optimized.save` wrote")
    if content.get("format") not in (1, FORMAT):
        raise RunError(f"{path} was made by a newer version of svertka; optimize the network again")
    try:
        about = About(
            tuple(int(side) for side in content["example"]),
            content.get("precision", "fp32"),  # format 1 knew no other
            content.get("dense", "fp32"),
            float(content["error"]),
        )
        steps = tuple(_step(written) for written in content["steps"])
        shapes = {int(value): tuple(_decoded(shape)) for value, shape in content["shapes"].items()}
        dtypes = {int(value): _decoded(dtype) for value, dtype in content["dtypes"].items()}
        fused = Fused(steps, shapes, dtypes, tensors, _decoded(content["output"]))
        _check(fused, about)
        return fused, about
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path} is damaged ({reason}); copy it again or optimize the network again") from error


def _encoded(structure: Any) -> Any:
    if isinstance(structure, dict):
        return {key: _encoded(part) for key, part in structure.items()}
    if isinstance(structure, list):
        return [_encoded(part) for part in structure]
    if isinstance(structure, tuple):
        return {"is": "tuple", "of": [_encoded(part) for part in structure]}
    if isinstance(structure, Value | Constant | Size):
        return {"is": type(structure).__name__} | vars(structure)
    for name, kind in NAMED.items():
        if isinstance(structure, kind):
            return {"is": name, "of": str(structure).removeprefix("torch.")}
    if isinstance(structure, torch.device):
        return {"is": "device"}
    if structure is None or isinstance(structure, bool | int | float | str):
        return structure
    raise UsageError(f"{type(structure).__name__} among the arguments of an operation cannot be written to a file")


def _decoded(written: Any) -> Any:
    if isinstance(written, list):
        return [_decoded(part) for part in written]
    if not isinstance(written, dict):
        return written
    kind = written.get("is")
    if kind is None:
        return {key: _decoded(part) for key, part in written.items()}
    if kind in LEAVES:
        return LEAVES[kind](**{key: part for key, part in written.items() if key != "is"})
    if kind == "tuple":
        return tuple(_decoded(part) for part in written["of"])
    if kind == "device":
        return torch.device("cpu")
    value = getattr(torch, written["of"])
    if not isinstance(value, NAMED[kind]):
        raise ValueError(f"{written['of']} is no {kind}")
    return value


def _step(written: dict[str, Any]) -> Step:
    kind = KINDS[written["step"]]
    fields = {key: _decoded(part) for key, part in written.items() if key != "step"}
    if kind is Operation:
        packet, overload = fields["name"].split(".")
        schema = getattr(getattr(torch.ops.aten, packet), overload)._schema
        reads = any("Tensor" in str(argument.type) for argument in schema.arguments)
        if any(argument.is_write for argument in schema.arguments) or not (reads or packet in MAKERS):
            raise ValueError(f"{fields['name']} does not compute")
    step: Step = kind(**fields)
    if {field.name for field in dataclasses.fields(step)} != fields.keys():
        raise ValueError("a step is not whole")
    return step


def _check(fused: Fused, about: About) -> None:
    """That no weights are of another precision, and that every step can do its work on what the others give.

    For the example's number of pictures.
    """
    if any(math.isnan(bound) for step in fused.steps if isinstance(step, Convolution | Sum) for bound in step.bounds):
        raise ValueError("a bound is not a number")
    if any(min(step.padding) < 0 for step in fused.steps if isinstance(step, Convolution | Pool)):
        raise ValueError("a padding is negative")
    for name, step in ((step.weight, step) for step in fused.steps if isinstance(step, Convolution)):
        weight, bias = fused.tensors[name], None if step.bias is None else fused.tensors[step.bias]
        kinds = torch.float32, DTYPES[about.dense if is_dense(fused, step) else about.precision]
        if weight.dtype not in kinds or weight.dim() != 4 or (bias is not None and bias.shape != weight.shape[:1]):
            raise ValueError(f"the weights {name} do not fit")
    example = about.example
    sides = [*example[:1], *(side.of(example[0]) if isinstance(side, Size) else side for side in fused.shapes[0][1:])]
    if tuple(sides) != example:
        raise ValueError("the example is not what the network takes")
    without = {name: tensor.to("meta") for name, tensor in fused.tensors.items()}
    empty = Fused(fused.steps, fused.shapes, fused.dtypes, without, fused.output)
    plain.run(empty, without.__getitem__, torch.empty(example, device="meta"))
