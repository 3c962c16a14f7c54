"""Optimized networks in safetensors files, with the steps as JSON in the header. Loading runs no code from the file."""

import dataclasses
import json
import math
from collections import OrderedDict, deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from svertka.compiler import reference
from svertka.compiler.accuracy_bound import MixedPrecisionReport
from svertka.compiler.bfloat16_maps import find_supported_bfloat16, list_bfloat16_maps
from svertka.compiler.fusion import FusedNetwork
from svertka.compiler.ir import (
    ACTIVATIONS,
    COMBINATIONS,
    FUNCTIONS,
    LARGEST_BYTE,
    POOLINGS,
    STATISTICS,
    BatchDependentSize,
    Concatenation,
    Elementwise,
    FusedConvolution,
    Interpolation,
    KernelStep,
    MatrixProduct,
    Normalization,
    Padding,
    Pool,
    Quantization,
    Reduction,
    Softmax,
    Step,
    TensorStep,
    step_output_numbers,
)
from svertka.compiler.output_structure import OutputStructure
from svertka.compiler.packing import DTYPES, is_linear_layer
from svertka.compiler.repeatable_capture import READS_MEMORY
from svertka.compiler.step_checks import check_step_quantization
from svertka.errors import RunError, UsageError
from svertka.graph.capture import READS_VALUES
from svertka.graph.operation_and_value_types import Constant, Operation, Value, find_operator_by_name
from svertka.tensor_files import read_tensors_and_header, write_tensors

FORMAT = 7  # from 7 on, maps may be bfloat16
# Names of steps and leaves in files. They belong to the format and do not follow class names.
STEP_KINDS: dict[str, Any] = {
    "Convolution": FusedConvolution,
    "Pool": Pool,
    "Elementwise": Elementwise,
    "Normalization": Normalization,
    "MatrixProduct": MatrixProduct,
    "Softmax": Softmax,
    "Reduction": Reduction,
    "Interpolation": Interpolation,
    "Padding": Padding,
    "Concatenation": Concatenation,
    "Operation": Operation,
}
LEAF_KINDS: dict[str, Any] = {"Value": Value, "Constant": Constant, "Size": BatchDependentSize}
KIND_NAMES = {kind: name for name, kind in (STEP_KINDS | LEAF_KINDS).items()}
# Fields of steps that name a tensor or a module.
NAMES = {"weight", "place", "row_indices", "row_weights", "column_indices", "column_weights"}
NAMED = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}  # attributes of torch
LONGEST_TEXT = 200
LARGEST = 1 << 40  # largest number passed to a kernel
# Operations that create a tensor from numbers only.
MAKERS = {"zeros", "ones", "full", "arange", "linspace", "logspace", "eye", "scalar_tensor", "empty", "range"}
MAKERS |= {"tril_indices", "triu_indices", "hann_window", "hamming_window", "bartlett_window", "blackman_window"}
# Private operations of PyTorch that networks use.
INNER = {"_to_copy", "_softmax", "_log_softmax", "_unsafe_view", "_adaptive_avg_pool2d", "_reshape_alias"}
# Errors caused by a damaged or modified header.
ERRORS = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
)


@dataclass(frozen=True)
class OptimizationRecord:
    """The settings with which a network was optimized, and its error.

    Attributes:
        example: The shape of the example images.
        precision: Precision of convolutions, "fp32", "bf16", "int8" or, if it differs from layer to layer, "auto".
        dense: Precision of dense layers, the same.
        error: The largest difference from the original on the example, relative to the largest value.
        strict: As for `optimize`.
        least: The smallest batch size that the network can run.
        accuracy: The loss of accuracy and the speed; None if they were not measured.
        instructions: The instruction set that was used when the network was optimized; "" without kernels.
        weights_hash: Content hash of the file of weights that it was made from; "" if it was not made from one.
    """

    example: tuple[int, ...]
    precision: str
    dense: str
    error: float = math.nan
    strict: bool = False
    least: int = 0
    accuracy: MixedPrecisionReport | None = None
    instructions: str = ""
    weights_hash: str = ""


def write_networks(path: Path, networks: Sequence[tuple[FusedNetwork, OptimizationRecord]]) -> None:
    """Write networks compiled for several image sizes, with unpacked weights, to a file.

    A tensor that is the same object in several networks is written once.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
        UsageError: An operation or the output cannot be stored in a file so that `read_networks` restores it.
    """
    stored: dict[str, torch.Tensor] = {}
    names: dict[int, str] = {}  # identity of a tensor -> its name in the file
    headers = []
    for fused, info in networks:
        for name, tensor in fused.tensors.items():
            if id(tensor) not in names:
                names[id(tensor)] = name if name not in stored else f"{name} for {'×'.join(map(str, info.example[2:]))}"
                stored[names[id(tensor)]] = tensor.clone(memory_format=torch.contiguous_format)
        headers.append(_encode_network(fused, info, {name: names[id(one)] for name, one in fused.tensors.items()}))
    for (fused, _), header in zip(networks, headers, strict=True):
        try:
            again = _decode_network(json.loads(json.dumps(header)), stored)
        except ERRORS as error:
            raise UsageError(f"this network cannot be written to a file: {_reason(error)}") from error
        if again[0].steps != fused.steps:
            raise UsageError("this network has settings that a file does not keep; optimize it where it runs")
    write_tensors(path, stored, {"optimized": {"format": FORMAT, "sizes": headers}})


def read_networks(path: Path) -> list[tuple[FusedNetwork, OptimizationRecord]]:
    """Return the networks that `write_networks` wrote, after checking all sizes that kernels rely on.

    Raises:
        RunError: The file is missing, damaged, from a newer version, or not an optimized network.
    """
    tensors, header = read_tensors_and_header(path, "optimize the network again")
    content = header.get("optimized")
    if not isinstance(content, dict):
        raise RunError(f"{path} is not an optimized network; name a file that `Optimized.save` wrote")
    if content.get("format") not in range(1, FORMAT + 1):
        raise RunError(f"{path} was made by a newer version of svertka; optimize the network again")
    try:
        whole = {"tensors": {name: name for name in tensors}}  # until format 5, which had one size
        written = content["sizes"] if content["format"] > 5 else [whole | content]
        networks = [_decode_network(one, tensors) for one in written]
        if len({info.example[1:] for _, info in networks}) != len(written) or not written:
            raise ValueError("its image sizes do not differ")
    except ERRORS as error:
        raise RunError(f"{path} is damaged ({_reason(error)}); copy it again or optimize the network again") from error
    return networks


def _encode_network(fused: FusedNetwork, info: OptimizationRecord, names: Mapping[str, str]) -> dict[str, Any]:
    """Return a network as JSON, with the names that its tensors have in the file."""
    for step in fused.steps:
        if isinstance(step, Operation):
            _check_operation(step.name)
    return {
        "pictures": fused.batch_size,
        "tensors": dict(names),
        "steps": [{"step": KIND_NAMES[type(step)]} | _encode(vars(step)) for step in fused.steps],
        "shapes": {str(value): _encode(list(shape)) for value, shape in fused.shapes.items()},
        "dtypes": {str(value): _encode(dtype) for value, dtype in fused.dtypes.items()},
        "quantizations": {str(value): vars(one) for value, one in fused.quantizations.items()},
        "output": _encode_output(fused.output),
        **vars(info),
        "accuracy": info.accuracy and vars(info.accuracy),
    }


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _decode_network(
    content: dict[str, Any], stored: dict[str, torch.Tensor]
) -> tuple[FusedNetwork, OptimizationRecord]:
    """Return the network described by a header, checked, with its tensors from all that are `stored` in the file."""
    tensors = {name: stored[place] for name, place in content["tensors"].items()}
    info = OptimizationRecord(
        tuple(int(side) for side in content["example"]),
        content.get("precision", "fp32"),  # the only precision of format 1
        content.get("dense", "fp32"),
        float(content["error"]),
        bool(content.get("strict", False)),
        int(content.get("least", 0)),
        _decode_accuracy(content.get("accuracy")),  # from format 6 on, as what follows
        _text(content.get("instructions", "")),
        _text(content.get("weights_hash", "")),
    )
    steps = tuple(_decode_step(written) for written in content["steps"])
    shapes = {int(value): tuple(_decode(shape)) for value, shape in content["shapes"].items()}
    dtypes = {int(value): _decode(dtype) for value, dtype in content["dtypes"].items()}
    written = content.get("quantizations", {})  # from format 5 on
    quantizations = {int(value): Quantization(**one) for value, one in written.items()}
    leaves: list[Any] = []
    output = OutputStructure(_decode_template(content["output"], leaves), tuple(leaves))
    fused = FusedNetwork(steps, shapes, dtypes, tensors, output, content.get("pictures"), quantizations)
    _check(fused, info)
    return fused, info


def _text(written: Any) -> str:
    if not isinstance(written, str) or len(written) > LONGEST_TEXT:
        raise ValueError("the instruction set or the hash of the weights is no short text")
    return written


def _decode_accuracy(written: Any) -> MixedPrecisionReport | None:
    """Return a stored report, checked, so that it cannot state an impossible accuracy."""
    if written is None:
        return None
    report = MixedPrecisionReport(**written)
    sizes = report.images, report.threads, report.batch_size
    counts = *sizes, report.right, report.only_float, report.only_mixed, report.untried
    numbers = (0.0 if report.max_loss is None else report.max_loss), report.float_seconds, report.seconds
    good = all(map(_is_size, counts)) and all(isinstance(one, float) and one >= 0 for one in numbers)
    good = good and math.isfinite(sum(numbers)) and report.images > 0
    good = good and report.only_float <= report.right <= report.images - report.only_mixed
    if not good:
        raise ValueError(f"the accuracy is {report}")
    return report


def _encode_output(output: OutputStructure) -> Any:
    """Return an output structure as JSON.

    Raises:
        UsageError: It has a type that only code could restore.
    """
    parts = iter(output.leaves)

    def encoded(template: Any) -> Any:
        kind = type(template)
        if kind in (dict, OrderedDict):
            if not all(key is None or isinstance(key, str | int) for key in template):
                raise UsageError("an output whose keys are neither strings nor whole numbers cannot be written")
            return {"is": kind.__name__, "of": [[key, encoded(part)] for key, part in template.items()]}
        if kind in (list, tuple, torch.Size):
            return {"is": kind.__name__, "of": [encoded(part) for part in template]}
        if isinstance(template, dict | list | tuple | deque) or dataclasses.is_dataclass(template):
            raise UsageError(
                f"an output of type {kind.__name__} cannot be written to a file, which holds no code; return a dict or "
                "a tuple, or optimize the network where it runs"
            )
        return _encode(next(parts))

    return encoded(output.template)


def _decode_template(written: Any, leaves: list[Any]) -> Any:
    """Return the template of a stored output; append its leaves to `leaves`."""
    kind = written.get("is") if isinstance(written, dict) else None
    if kind in ("dict", "OrderedDict"):
        made: dict[Any, Any] = {} if kind == "dict" else OrderedDict()
        for key, part in written["of"]:
            made[key] = _decode_template(part, leaves)
        return made
    if isinstance(written, dict) and kind is None:  # formats 1 and 2
        return {key: _decode_template(part, leaves) for key, part in written.items()}
    if kind in ("list", "tuple", "Size") and "of" in written:
        parts = [_decode_template(part, leaves) for part in written["of"]]
        return torch.Size([0] * len(parts)) if kind == "Size" else {"list": list, "tuple": tuple}[kind](parts)
    if isinstance(written, list):
        return [_decode_template(part, leaves) for part in written]
    leaves.append(_decode(written))
    return None


def _encode(structure: Any) -> Any:
    if isinstance(structure, dict):
        return {key: _encode(part) for key, part in structure.items()}
    if isinstance(structure, list):
        return [_encode(part) for part in structure]
    if isinstance(structure, tuple):
        return {"is": "tuple", "of": [_encode(part) for part in structure]}
    if isinstance(structure, Value | Constant | BatchDependentSize):
        return {"is": KIND_NAMES[type(structure)]} | vars(structure)
    for name, kind in NAMED.items():
        if isinstance(structure, kind):
            return {"is": name, "of": str(structure).removeprefix("torch.")}
    if isinstance(structure, torch.device):
        return {"is": "device"}
    if structure is None or isinstance(structure, bool | int | float | str):
        return structure
    raise UsageError(f"{type(structure).__name__} among the arguments of an operation cannot be written to a file")


def _decode(written: Any) -> Any:
    if isinstance(written, list):
        return [_decode(part) for part in written]
    if not isinstance(written, dict):
        return written
    kind = written.get("is")
    if kind is None:
        return {key: _decode(part) for key, part in written.items()}
    if kind in LEAF_KINDS:
        leaf = LEAF_KINDS[kind](**{key: part for key, part in written.items() if key != "is"})
        parts = vars(leaf).values()
        if not all(isinstance(part, str) if kind == "Constant" else _is_number(part) for part in parts):
            raise ValueError(f"{leaf} is not a possible value")
        return leaf
    if kind == "tuple":
        return tuple(_decode(part) for part in written["of"])
    if kind == "device":
        return torch.device("cpu")
    value = getattr(torch, written["of"])
    if not isinstance(value, NAMED[kind]):
        raise ValueError(f"{written['of']} is no {kind}")
    return value


def _check_operation(name: str) -> None:
    """Raise UsageError unless the operation only computes; it must not read files or write memory."""
    try:
        schema = find_operator_by_name(name)._schema
    except (AttributeError, ValueError) as error:
        raise UsageError(f"there is no operation {name} here") from error
    packet = name.split(".")[0]
    if "::" in name:
        raise UsageError(f"{name} is not an operation of PyTorch; optimize the network where it runs")
    reads = any("Tensor" in str(argument.type) for argument in schema.arguments)
    changes = any(argument.is_write for argument in schema.arguments)
    inner = packet.startswith("_") and packet not in INNER
    if changes or inner or packet in READS_MEMORY | READS_VALUES or not (reads or packet in MAKERS):
        raise UsageError(f"{name} cannot be in the file of an optimized network; optimize the network where it runs")


def _decode_step(written: dict[str, Any]) -> Step:
    fields = {key: _decode(part) for key, part in written.items() if key != "step"}
    if written["step"] == "Sum":  # until format 3
        kind, fields["combination"] = Elementwise, "FIRST" if fields["y"] is None else "ADD"
    else:
        kind = STEP_KINDS[written["step"]]
    step: Step = kind(**fields)
    if isinstance(step, Operation):
        _check_operation(step.name)
    else:
        _check_types(step)
    return step


def _check_types(step: KernelStep) -> None:
    """Raise ValueError unless the fields of a step have the types that kernels rely on."""
    for name, value in vars(step).items():
        if name in ("stride", "padding", "dilation", "kernel"):
            good = isinstance(value, tuple) and len(value) == 2 and all(map(_is_size, value))
        elif name == "bounds":
            good = isinstance(value, tuple) and len(value) == 2 and all(isinstance(one, float) for one in value)
            good = good and not any(map(math.isnan, value))
        elif name in ("inputs", "axes", "before", "after"):
            good = isinstance(value, tuple) and all(map(_is_size, value))
        elif name == "kind":
            good = value in POOLINGS
        elif name == "activation":
            good = value in ACTIVATIONS
        elif name == "combination":
            good = value in (FUNCTIONS if step.y is None else COMBINATIONS)  # type: ignore[union-attr]
        elif name == "statistic":
            good = value in STATISTICS
        elif name in ("slope", "epsilon", "scale", "correction"):
            good = isinstance(value, float) and math.isfinite(value)
        elif name == "value":
            good = isinstance(value, float)
        elif name in NAMES or (name in ("bias", "weight_scale") and value is not None):
            good = isinstance(value, str) or (value is None and isinstance(step, Normalization))
        elif name in ("ceil", "multiply", "residual_last", "keep"):
            good = isinstance(value, bool)
        elif isinstance(value, Constant):
            good = isinstance(step, Elementwise) or (name == "y" and isinstance(step, Softmax))
        else:
            good = _is_size(value) and not (name == "y" and isinstance(step, Softmax))
            good = good or (value is None and name in ("y", "residual", "bias", "groups", "gate", "weight_scale"))
        if not good:
            raise ValueError(f"{name} of a step is {value!r}")


def _is_number(value: Any) -> bool:
    return type(value) is int and abs(value) < LARGEST


def _is_size(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _check(fused: FusedNetwork, info: OptimizationRecord) -> None:
    """Raise ValueError unless all steps fit one another and have the types that kernels expect.

    Sizes are checked for the batch size of the example; an execution plan checks them again for its own.
    """
    batch_size, example = fused.batch_size, info.example
    if batch_size not in (None, example[0]) or len(example) != 4 or not all(0 < side < LARGEST for side in example):
        raise ValueError("the example does not fit the input of the network")
    made = [value for step in fused.steps for value in step_output_numbers(step)]
    if 0 in made or len(made) != len(set(made)):
        raise ValueError("two steps give the same value")
    _check_quantizations(fused)
    narrow = list_bfloat16_maps(fused)
    if find_supported_bfloat16(fused, narrow) != narrow:
        raise ValueError("a kernel would read or write bfloat16, which it does not support")
    for step in fused.steps:
        if not isinstance(step, Operation):
            _check_floats(fused, step, narrow)
        check_step_quantization(step, fused.quantizations)
    for step in fused.steps:
        if isinstance(step, FusedConvolution):
            precision = info.dense if is_linear_layer(fused, step) else info.precision
            _check_weights(fused, step, DTYPES["bf16" if precision == "auto" else precision])
    sides = [side.of(example[0]) if isinstance(side, BatchDependentSize) else side for side in fused.shapes[0]]
    if tuple(sides) != example or fused.dtypes[0] != torch.float32:
        raise ValueError("the example does not fit the input of the network")
    without = {name: tensor.to("meta") for name, tensor in fused.tensors.items()}
    empty = FusedNetwork(fused.steps, fused.shapes, fused.dtypes, without, fused.output)
    reference.run_reference(empty, without.__getitem__, torch.empty(example, device="meta", dtype=torch.float32))


def _check_floats(fused: FusedNetwork, step: KernelStep, narrow: Container[int]) -> None:
    operands = step.operands if isinstance(step, TensorStep) else ()
    names = [operand.name for operand in operands if isinstance(operand, Constant)]
    indices = {step.row_indices, step.column_indices} if isinstance(step, Interpolation) else set()
    dtypes = [fused.tensors[name].dtype for name in names if name not in indices]
    others = [value for value in (*step.inputs, step.result) if value not in narrow]
    dtypes += [fused.dtypes[value] for value in others if value not in fused.quantizations]
    if any(dtype != torch.float32 for dtype in dtypes) or any(
        fused.tensors[name].dtype != torch.int64 for name in indices
    ):
        raise ValueError("a kernel would read values that are not float32")


def _check_weights(fused: FusedNetwork, step: FusedConvolution, dtype: torch.dtype) -> None:
    weight = fused.tensors[step.weight]
    dtypes = (torch.float32, dtype) if step.weight_scale is None else (torch.int8,)
    if weight.dtype not in dtypes or weight.dim() != 4 or (step.weight_scale is None and weight.dtype == torch.int8):
        raise ValueError(f"the weights {step.weight} do not fit")
    for name in (step.bias, step.weight_scale):
        if name is not None and (
            fused.tensors[name].shape != weight.shape[:1] or fused.tensors[name].dtype != torch.float32
        ):
            raise ValueError(f"{name}, a number for each channel, does not fit")


def _check_quantizations(fused: FusedNetwork) -> None:
    """Raise ValueError unless the values of 8 bits are maps with a quantization that kernels can compute with."""
    for value, one in fused.quantizations.items():
        scale = one.scale
        if not isinstance(scale, float) or not 0 < scale < math.inf or type(one.zero_point) is not int:
            raise ValueError(f"the quantization of a value is {one}")
        if not 0 <= one.zero_point <= LARGEST_BYTE:
            raise ValueError(f"the quantization of a value is {one}")
        if fused.dtypes[value] != torch.uint8 or value == 0 or len(fused.shapes[value]) not in (2, 4):
            raise ValueError("an 8-bit value is not a map")
    read = [leaf.number for leaf in fused.output.leaves if isinstance(leaf, Value)]
    if fused.quantizations.keys() & set(read):
        raise ValueError("the network returns 8-bit numbers")
