"""Outputs for the images of a data set under a crop protocol, batch by batch."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from svertka.classifier import Classifier
from svertka.data.dataset import Dataset, Ints, Pixels
from svertka.data.image_disk_cache import PreparedImages, prepare_images
from svertka.data.parallel_map import map_chunks
from svertka.device import autocast
from svertka.errors import DataError, ImageError
from svertka.evaluation.crop_protocols import (
    CropProtocol,
    get_crop_protocol,
    make_1_or_10_crops,
    make_144_crops,
    to_normalized_batch,
)
from svertka.graph.fully_convolutional import make_fully_convolutional
from svertka.unknown_score import ScoredNetwork

CROPS_PER_BATCH = 64


class Predictor:
    """Applies a classifier to the images of a data set.

    Crops of the central square are read from the image cache. Whole images are decoded on the
    fly, ahead of the network.

    Args:
        classifier: The classifier.
        dataset: The data set.
        protocol: The crops.
        only: Indices of the images that will be classified. None: all.
        device: Device of the network.
        threads: Threads for decoding.
        cache_limit: Size limit of the image cache, bytes.

    Attributes:
        unknown_images: Images so far that a calibrated classifier calls unknown; None if it is not calibrated, or the
            protocol is not that of `predict`.
    """

    def __init__(
        self,
        classifier: Classifier,
        dataset: Dataset,
        protocol: CropProtocol,
        *,
        only: Ints | None = None,
        device: torch.device,
        threads: int,
        cache_limit: int | None = None,
    ) -> None:
        self.classifier, self.protocol, self.only = classifier, protocol, only
        self.dataset = dataset.with_intensity_range(classifier.preprocess.intensity_range)
        self.device, self.threads, self.cache_limit = device, threads, cache_limit
        self.preprocess = classifier.preprocess
        self._squares: list[PreparedImages] = []
        classifier.network.eval()
        self._network, self._sliding = classifier.network, None
        self._scored: ScoredNetwork | None = None
        if protocol.crops == "dense":
            self._sliding = make_fully_convolutional(classifier.network, self.preprocess.input_shape)
        else:
            num_images = len(dataset if only is None else only)
            optimized = classifier.optimized_for(num_images * protocol.num_views)
            self._network = optimized.network
            if protocol == get_crop_protocol("1", None, classifier.preprocess):
                self._scored = optimized.scored_network()
        self.unknown_images = None if self._scored is None else 0

    @property
    def batch_size(self) -> int:
        """Images per batch, so that a batch holds about 64 crops."""
        return max(1, CROPS_PER_BATCH // self.protocol.num_views)

    @torch.inference_mode()
    def predict_batches(self, batches: Sequence[Ints]) -> Iterator[Tensor]:
        """Yield outputs (B, K) float32 of the images at each of `batches` of indices (B,).

        They are log probabilities of classes, logits of labels, or a standardized number. Probabilities, not logits,
        are averaged over crops, as in the papers. Classes are in the classifier's order.

        Raises:
            DataError: An image cannot be read.
            RunError: The network gives NaN.
        """
        if self.protocol.uses_whole_image:
            yield from self._over_whole(batches)
            return
        if not self._squares:
            self._squares = [self._prepared(scale) for scale in self.protocol.scales]
        for indices in batches:
            squares = [torch.from_numpy(one.rows[indices]).permute(0, 3, 1, 2) for one in self._squares]
            shown = make_1_or_10_crops(self.protocol, self.preprocess, [one.to(self.device) for one in squares])
            outputs = self._outputs(shown.flatten(0, 1))
            yield self.classifier.task.average(outputs.view(*shown.shape[:2], -1), 1)

    def _over_whole(self, batches: Sequence[Ints]) -> Iterator[Tensor]:
        everything = [int(index) for indices in batches for index in indices]
        pictures = (one for some in map_chunks(self._read, everything, self.threads, self.threads) for one in some)
        for indices in batches:
            yield torch.stack([self._predict_whole(next(pictures)) for _ in indices])

    def _predict_whole(self, scales: list[Pixels]) -> Tensor:
        """Return the outputs (K,) of one whole image, given at every scale."""
        task = self.classifier.task
        if self._sliding is None:
            shown = make_144_crops(self.preprocess, scales).to(self.device)
            return task.average(self._outputs(shown), 0)
        scores = []
        for pixels in scales:
            picture = to_normalized_batch(self.preprocess, pixels).to(self.device)
            with autocast(self.device):
                maps = self._sliding(torch.cat([picture, picture.flip(-1)]))
            scores.append(maps.float().mean((2, 3)))
        return task.average(self.classifier.require_finite(task.normalize(torch.cat(scores)).cpu()), 0)

    def _prepared(self, scale: int) -> PreparedImages:
        size, channels = self.preprocess.size, self.preprocess.channels
        return prepare_images(
            self.dataset,
            scale,
            channels,
            pad_to=size,
            fit=self.preprocess.fit,
            interpolation=self.preprocess.interpolation,
            only=self.only,
            threads=self.threads,
            cache_limit=self.cache_limit,
        )

    def _read(self, index: int) -> list[Pixels]:
        """Return the whole image at every scale."""
        scales = self.protocol.scales
        try:
            rgb = self.dataset.images.read(index, max(scales))
        except ImageError as error:
            name = self.dataset.images.name(index)
            raise DataError(f"{name} cannot be read: {error}; fix or remove the file, and start again") from error
        return [self.preprocess.resize_whole(rgb, scale) for scale in scales]

    def _outputs(self, shown: Tensor) -> Tensor:
        """Return the outputs for crops (N, C, H, W), computed in chunks of about 64."""
        parts = shown.chunk(max(1, round(len(shown) / CROPS_PER_BATCH)))
        with autocast(self.device):
            if self._scored is None or self.classifier.calibration is None:
                logits = [self._network(part.contiguous()).float() for part in parts]
            else:
                outputs = [self._scored.logits_and_scores(part.contiguous()) for part in parts]
                logits = [one.float() for one, _ in outputs]
                scores = self.classifier.require_finite(torch.cat([one.float() for _, one in outputs]).cpu())
                self.unknown_images = (self.unknown_images or 0) + int(
                    (scores > self.classifier.calibration.threshold).sum()
                )
        return self.classifier.require_finite(self.classifier.task.normalize(torch.cat(logits)).cpu())
