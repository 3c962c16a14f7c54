"""MixUp and CutMix: each image of a batch is mixed with another one, and so is its label."""

from dataclasses import dataclass

import torch

from svertka.data.per_image_random_numbers import PerImageRandomNumbers

PLACE = 1_000_000  # of the random numbers, behind those of all augmentations


@dataclass(frozen=True)
class MixupAndCutmix:
    """How the images of a batch are mixed in pairs; with both methods, one of them at random for each image.

    Attributes:
        mixup: α of MixUp, the weighted mean of two images, with weights from Beta(α, α); 0: no MixUp.
        cutmix: α of CutMix, a rectangle of one image in another, with areas from Beta(α, α); 0: no CutMix.

    Source: Zhang et al. 2018, "mixup: Beyond empirical risk minimization", §2; Yun et al. 2019, "CutMix:
    Regularization strategy to train strong classifiers with localizable features", §3.1. Weights are drawn for each
    image, as in both papers' equations, not for each batch, as in their code.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.mixup or self.cutmix)

    def mix(
        self, images: torch.Tensor, others: torch.Tensor, draws: PerImageRandomNumbers
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix `images` with `others`.

        Args:
            images: (B, C, H, W) float32.
            others: The second image of each pair, (B, C, H, W).
            draws: Random numbers of `images`.

        Returns:
            The mixed images, and the share of each label that is the label of `images`, (B,) float32 in 0 to 1.
        """
        draws = draws.for_augmentation(PLACE)
        cut = draws.uniform(0) < (0.5 if self.mixup and self.cutmix else float(self.cutmix > 0))
        chosen = draws.uniform(1)
        shares = torch.where(cut, _beta_quantile(chosen, self.cutmix), _beta_quantile(chosen, self.mixup))
        inside, areas = _rectangles(shares, images.shape[-2], images.shape[-1], draws)
        shares = torch.where(cut, 1 - areas, shares)
        weights = torch.where(cut[:, None, None], 1 - inside.double(), shares[:, None, None])
        weights = weights[:, None].to(images)
        return weights * images + (1 - weights) * others, shares.to(images.device, torch.float32)


def _beta_quantile(probabilities: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return the quantiles of Beta(α, α), (B,) float64; 1 for α = 0."""
    if not alpha:
        return torch.ones_like(probabilities)
    from scipy import special

    return torch.from_numpy(special.betaincinv(alpha, alpha, probabilities.numpy()))


def _rectangles(
    shares: torch.Tensor, height: int, width: int, draws: PerImageRandomNumbers
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which pixels a rectangle covers, (B, H, W) bool, and their share of the image, (B,) float64.

    A rectangle of the shape of the image has the area 1 − `shares`, and is clipped where it extends beyond the image.
    Its center is uniform.
    """
    covered = []
    for stream, side in ((2, height), (3, width)):
        length = ((1 - shares).sqrt() * side).long()
        first = draws.below(stream, side) - length // 2
        places = torch.arange(side)
        covered.append((places >= first[:, None]) & (places < (first + length)[:, None]))
    rows, columns = covered
    return rows[:, :, None] & columns[:, None, :], rows.double().mean(1) * columns.double().mean(1)
