"""Map of images in the plane on which those of similar features are close: t-SNE."""

import numpy as np

from svertka.transfer.image_features import scale_to_unit_length
from svertka.transfer.logistic_and_nearest_mean_heads import Floats

FEWEST, MOST = 10, 5000  # images; of more, t-SNE takes minutes
COMPONENTS = 50  # principal components of the features that are kept, as van der Maaten & Hinton do
PERPLEXITY = 30.0


def place_on_map(features: Floats, seed: int = 0) -> Floats | None:
    """Place images in the unit square, so that images of similar features are close.

    Args:
        features: Features (N, D) float32; they are scaled to unit length.
        seed: Seed of the optimization.

    Returns:
        Positions (N, 2) float32, each coordinate from 0 to 1; None unless N is from 10 to 5,000.

    Source: van der Maaten & Hinton 2008, "Visualizing data using t-SNE".
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = len(features)
    if not FEWEST <= count <= MOST:
        return None
    unit = scale_to_unit_length(features)
    # Without variance, as of images that are all alike, the positions would be NaN.
    unit = unit + np.random.default_rng(seed).normal(scale=1e-6, size=unit.shape).astype(np.float32)
    reduced = PCA(min(COMPONENTS, *unit.shape), random_state=seed).fit_transform(unit)
    found = TSNE(perplexity=min(PERPLEXITY, (count - 1) / 3), init="pca", random_state=seed).fit_transform(reduced)
    low, high = found.min(0), found.max(0)
    return np.asarray((found - low) / np.maximum(high - low, 1e-12), np.float32)
