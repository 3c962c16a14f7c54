"""optimized.safetensors, the optimized network in a run folder, and whether it fits the weights of the run."""

import hashlib
import os
from pathlib import Path

import torch

from svertka.compiler.optimize import Optimized
from svertka.conv import native_support
from svertka.errors import RunError, UsageError
from svertka.escaping import format_command
from svertka.files import read_regular_file
from svertka.progress import say
from svertka.tensor_files import machine_memory, unreadable_file_error

OPTIMIZED = "optimized.safetensors"


def hash_weights(path: Path) -> str:
    """Return the content hash of a file of weights.

    Raises:
        RunError: It is missing or cannot be read.
    """
    try:
        return hashlib.blake2b(read_regular_file(path, machine_memory()), digest_size=16).hexdigest()
    except (OSError, ValueError) as error:
        raise unreadable_file_error(path, error) from error


def read_optimized(folder: Path, weights: Path, shape: tuple[int, int, int], classes: int) -> Optimized | None:
    """Return the optimized network of a run; None if there is none, or it was made from other weights.

    Args:
        folder: The run folder.
        weights: Its file of weights.
        shape: The shape of the images that the network of the run takes, (C, H, W).
        classes: Its classes.

    Raises:
        RunError: The file is damaged, or the network in it takes other images or gives something else than scores.
    """
    path = folder / OPTIMIZED
    if not os.path.lexists(path):
        return None
    optimized = Optimized.load(path)
    again = format_command("optimize", folder)
    if optimized.info.weights_hash != hash_weights(weights):
        say(f"{path} was made from other weights than {weights.name} and is not used; make it again: {again}")
        return None
    if optimized.info.example[1:] != shape or not _gives_scores(optimized, shape, classes):
        raise RunError(f"{path} does not fit the run; make it again: {again}, or delete the file")
    here = "" if native_support.why_not() else native_support.selected_instruction_set()
    if optimized.info.instructions != here:
        say(
            f"{path} was made for {optimized.info.instructions or 'a CPU without kernels'} and this CPU uses "
            f"{here or 'no kernels'}, so other precisions may be faster here; make it again: {again}"
        )
    say(f"{folder} computes with {path.name}, {optimized.precision}; --precision fp32 does without")
    return optimized


def list_float_layers(folder: Path, weights: Path) -> frozenset[str]:
    """Return the layers that the optimized network of a run, chosen by `precision="auto"`, does not compute in int8.

    Args:
        folder: The run folder.
        weights: Its file of weights.

    Returns:
        Paths of modules; none if there is no such network, or it was made from other weights.

    Raises:
        RunError: The file is damaged.
    """
    path = folder / OPTIMIZED
    if not os.path.lexists(path):
        return frozenset()
    optimized = Optimized.load(path)
    if optimized.info.precision != "auto" or optimized.info.weights_hash != hash_weights(weights):
        return frozenset()
    return frozenset(layer.name for layer in optimized.layers if layer.precision != "int8")


def _gives_scores(optimized: Optimized, shape: tuple[int, int, int], classes: int) -> bool:
    """Return whether a network maps images of `shape` to as many scores as there are classes."""
    batch_size = max(1, optimized.info.least)
    try:
        scores = optimized(torch.zeros(batch_size, *shape))
    except UsageError:
        return False
    return isinstance(scores, torch.Tensor) and scores.shape == (batch_size, classes)
