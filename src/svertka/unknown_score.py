"""How unlike the training images an image is: a score computed from a network's features, and networks with it."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.compiler.optimize import optimize_if_worthwhile
from svertka.errors import RunError, UsageError
from svertka.graph.cut import CuttableGraph
from svertka.models.head_kinds import has_head, head_path
from svertka.models.registry import Model

Method = Literal["mahalanobis+energy", "energy"]

MIN_VARIANCE = 1e-6  # added to the covariance, relative to its mean variance: features may be constant
MIN_SPREAD = 1e-3  # of distances and energies, relative to their mean: validation images may be few


class UnknownScore(nn.Module):
    """Maps the features and logits of images to scores (N,) float32; the higher, the less alike the training images.

    "mahalanobis+energy" is the sum of a distance and the energy, each standardized by the validation images. The
    distance is the smallest to the mean of a class, in units of the covariance that all classes share, of features
    scaled to length 1. The energy is the negative logsumexp of the logits; "energy", for networks without separate
    features, is the energy alone.

    Args:
        method: One of both.
        tensors: For "mahalanobis+energy": `center`, (D,), the mean of the features; `whitening`, (D, D); `means`,
            (K, D), the whitened means of the classes, without the center; and `scale`, (2, 2), mean and standard
            deviation of the distances and of the energies of validation images.

    Source:
        Lee et al. 2018, "A simple unified framework for detecting out-of-distribution samples and adversarial attacks",
        arXiv 1807.03888, §2.1; Mueller & Hein 2025, "Mahalanobis++", arXiv 2505.18032 (length 1); Liu et al. 2020,
        "Energy-based out-of-distribution detection", arXiv 2010.03759, eq. 4.
    """

    center: Tensor
    whitening: Tensor
    means: Tensor
    scale: Tensor

    def __init__(self, method: Method, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.method = method
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.eval()

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Return the scores (N,) of images with `features` (N, D) or (N, D, H, W), and `logits` (N, K)."""
        if self.method == "energy":
            return -logits.logsumexp(1)
        return self.standardize(self.components(features, logits))

    def components(self, features: Tensor, logits: Tensor) -> Tensor:
        """Return the distances and the energies of images, (N, 2)."""
        return torch.stack([self.distances(features), -logits.logsumexp(1)], 1)

    def standardize(self, components: Tensor) -> Tensor:
        """Return the scores (N,) of images with these distances and energies, (N, 2)."""
        return ((components - self.scale[:, 0]) / self.scale[:, 1]).sum(1)

    def set_scale(self, components: Tensor) -> None:
        """Standardize by the distances and energies of these images, (N, 2), from now on."""
        values = components.double()
        averages = values.mean(0)
        spreads = values.std(0, correction=0).maximum(MIN_SPREAD * averages.abs()).clamp(min=1e-6)
        self.scale.copy_(torch.stack([averages, spreads], 1))

    def distances(self, features: Tensor) -> Tensor:
        """Return the Mahalanobis distances (N,) of images with `features` (N, D) or (N, D, H, W)."""
        # Without the center, the squares below would be large and their differences rounded.
        whitened = (F.normalize(flatten_features(features)) - self.center) @ self.whitening
        # |a − b|² = |a|² − 2 a·b + |b|²: no tensor of N × K × D.
        products = whitened @ self.means.T
        squares = whitened.square().sum(1, keepdim=True) - 2 * products + self.means.square().sum(1)
        return squares.amin(1).clamp(min=0).sqrt()


def flatten_features(features: Tensor) -> Tensor:
    """Return features (N, D); those of a map (N, D, H, W) are averaged over its positions."""
    return features.mean((2, 3)) if features.dim() == 4 else features.flatten(1)


def ledoit_wolf_shrinkage(centered: npt.NDArray[np.float64], covariance: npt.NDArray[np.float64]) -> float:
    """Return the share of the identity in a covariance that has the least expected squared error, 0 to 1.

    scikit-learn has this function, too, but takes a second to import.

    Args:
        centered: Features without their mean, (N, D).
        covariance: Their covariance, (D, D).

    Source:
        Ledoit & Wolf 2004, section 3.2.
    """
    count, size = centered.shape
    square = float(np.square(covariance).sum())
    of_images = float(np.square(np.square(centered).sum(1)).mean())  # mean squared norm of x xᵀ
    distance = square - float(np.trace(covariance)) ** 2 / size  # d² of the paper, times D
    error = min((of_images - square) / count, distance)  # b²
    return error / distance if size > 1 and error > 0 else 0.0


def fit_unknown_score(
    features: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.int64], val_features: Tensor, val_logits: Tensor
) -> UnknownScore:
    """Return the score of distance and energy for the features of training and validation images.

    The covariance is shrunk to a multiple of the identity, by the share of Ledoit and Wolf, so that fewer images than
    features suffice.

    Args:
        features: (N, D), finite.
        labels: Their classes, (N,).
        val_features: Those of the validation images, (M, D).
        val_logits: Logits of the validation images, (M, K).

    Raises:
        UsageError: A feature is NaN or infinite.

    Source:
        Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices".
    """
    from scipy.linalg import solve_triangular

    if not np.isfinite(features).all():
        raise UsageError(
            f"{int((~np.isfinite(features)).any(1).sum()):,} of {len(features):,} training images have features that "
            "are NaN or infinite, so nothing can be compared with them; use another run"
        )
    directions = features.astype(np.float64)
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    classes, own = np.unique(labels, return_inverse=True)
    center = directions.mean(0)
    means = np.stack([directions[own == number].mean(0) for number in range(len(classes))])
    centered = directions - means[own]
    covariance = centered.T @ centered / len(centered)
    variance = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    shrinkage = ledoit_wolf_shrinkage(centered, covariance)
    covariance *= 1 - shrinkage
    covariance[np.diag_indices_from(covariance)] += (shrinkage + MIN_VARIANCE) * variance
    # With covariance = L Lᵀ, distances are lengths of L⁻¹ (x − mean).
    lower = np.linalg.cholesky(covariance)
    whitening = solve_triangular(lower, np.eye(len(lower)), lower=True).T
    arrays = {"center": center, "whitening": whitening, "means": (means - center) @ whitening}
    tensors = {name: torch.from_numpy(one).float() for name, one in arrays.items()}
    score = UnknownScore("mahalanobis+energy", tensors | {"scale": torch.tensor([[0.0, 1.0], [0.0, 1.0]])})
    score.set_scale(score.components(val_features, val_logits))
    return score


class FeaturesAndLogits(nn.Module):
    """A network that returns what its last layer reads as well as what it computes.

    Args:
        before: The layers before the last, from images (N, C, H, W) to features.
        last: The last layers, from features to logits.
        num_features: D, the features of an image.
    """

    def __init__(self, before: nn.Module, last: nn.Module, num_features: int) -> None:
        super().__init__()
        self.before, self.last, self.num_features = before, last, num_features
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, D) and logits (N, K)."""
        features = self.before(images)
        return flatten_features(features), self.last(features)


class LogitsTwice(nn.Module):
    """A network without separate features: the logits take their place.

    Args:
        network: Maps images (N, C, H, W) to logits (N, K).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (N, K) twice."""
        logits = self.network(images)
        return logits, logits


class ScoredNetwork(nn.Module):
    """A network for inference that also computes the unknown score.

    Args:
        network: Maps images to features and logits.
        score: Maps these to the score.
    """

    def __init__(self, network: nn.Module, score: UnknownScore) -> None:
        super().__init__()
        self.network, self.score = network, score
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of images (N, C, H, W)."""
        logits: Tensor = self.network(images)[1]
        return logits

    def logits_and_scores(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (N, K) and the unknown scores (N,) of images (N, C, H, W)."""
        features, logits = self.network(images)
        kind = images.device.type
        # Distances would lose the digits that a threshold needs.
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            return logits, self.score(features.float(), logits.float())

    def optimized_for(self, shape: tuple[int, ...], num_images: int) -> "ScoredNetwork":
        """Return it optimized if `num_images` images of `shape`, (C, H, W), justify it, otherwise itself."""
        network = optimize_if_worthwhile(self.network, shape, num_images)
        return self if network is self.network else ScoredNetwork(network, self.score)


def split_features_and_logits(network: nn.Module, model: Model, shape: tuple[int, ...]) -> FeaturesAndLogits | None:
    """Return `network` split before its last layer, with which it shares its modules; None if it cannot be split.

    Args:
        network: A network that `model` built.
        model: What knows its last layer.
        shape: Shape of the input, (1, C, H, W).
    """
    if not has_head(model):
        return None
    try:
        halves = CuttableGraph(network, shape).before_module(head_path(model))
    except UsageError:  # it cannot be traced, or more than one tensor flows into its last layer
        return None
    if halves.prefix is None:
        return None
    num_features = halves.shape[0] if len(halves.shape) == 3 else math.prod(halves.shape)
    return FeaturesAndLogits(halves.prefix, halves.rest, num_features)


def add_unknown_score(network: nn.Module, model: Model, shape: tuple[int, ...], score: UnknownScore) -> ScoredNetwork:
    """Return `network` with an unknown score; they share their modules.

    Args:
        network, model, shape: As for `split_features_and_logits`.
        score: The score, on the device of the network.

    Raises:
        RunError: The score needs features, and the network cannot be split or computes others.
    """
    if score.method == "energy":
        return ScoredNetwork(LogitsTwice(network), score)
    split = split_features_and_logits(network, model, shape)
    if split is None:
        raise RunError(
            f"{model.name} cannot be split before its last layer, whose input the unknown score of the run needs; "
            "calibrate the run again: svertka calibrate RUN"
        )
    if split.num_features != len(score.whitening):
        raise RunError(
            f"{model.name} computes {split.num_features:,} features, and the unknown score of the run needs "
            f"{len(score.whitening):,}; calibrate the run again: svertka calibrate RUN"
        )
    return ScoredNetwork(split, score)
