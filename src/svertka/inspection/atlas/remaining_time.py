"""An estimate of the time left to build an atlas, from the duration of the pass over the images."""

from collections.abc import Callable, Sequence

from svertka.graph.summary import Trace
from svertka.inspection.atlas.image_data import AtlasImages, num_overlay_passes
from svertka.inspection.atlas.layer_data import AtlasLayer
from svertka.inspection.atlas.resumable_folder import ResumableFolder
from svertka.progress import Progress

SECONDS_PER_TILE = 1.5e-3  # for cropping, scaling and compressing a patch and its projection
PROJECTION_COST = 1.6  # a projection through the whole network, in forward passes
CROP_MARGIN = 1.4  # side of the crop computed for a unit, relative to its receptive field


class RemainingTime:
    """The expected duration of each part of an atlas.

    Args:
        trace: Trace of the network.
        layers: Layers of the atlas.
        images: Images of the atlas.
        seconds_per_image: Duration of the pass over the images, seconds per image.
        size: Side of the images, pixels.
    """

    def __init__(
        self, trace: Trace, layers: Sequence[AtlasLayer], images: AtlasImages, seconds_per_image: float, size: int
    ) -> None:
        self._seconds_per_unit: dict[str, float] = {}
        total, before = max(1, trace.multiply_adds), 0
        share_up_to = {}
        for layer in trace.layers:
            before += layer.multiply_adds
            share_up_to[layer.name] = before / total
        for one in layers:
            crop_area = min(1.0, CROP_MARGIN * max(one.extent) / size) ** 2
            per_tile = SECONDS_PER_TILE + PROJECTION_COST * seconds_per_image * share_up_to[one.layer.name] * crop_area
            self._seconds_per_unit[one.key] = one.patches.images.shape[1] * per_tile
        self._layers, self._images = layers, images
        self._seconds_per_image = seconds_per_image + SECONDS_PER_TILE
        self._seconds_per_overlay_image = num_overlay_passes(size) * seconds_per_image
        self._total = self._done = 0.0

    def estimate(self, folder: ResumableFolder) -> float:
        """Return the expected seconds for all files missing in `folder`; they become 100 % of the progress."""
        units = sum(self._seconds_per_unit[one.key] * one.num_units for one in self._layers if one.script not in folder)
        images = self._seconds_per_image * len(self._images.indices)
        self._total = units + images + self._seconds_per_overlay_image * len(self._images.with_overlays)
        return self._total

    def advance_units(self, shown: Progress, layer: AtlasLayer) -> Callable[[int], None]:
        """Return a function that advances `shown`, a bar from 0 to 100, by a number of finished units."""
        return lambda count: self._advance(shown, count * self._seconds_per_unit[layer.key], layer.layer.name)

    def advance_images(self, shown: Progress) -> Callable[[int, int], None]:
        """Return a function that advances `shown`, a bar from 0 to 100.

        It takes the number of finished images, and the number of those with overlays.
        """

        def advance(images: int, overlays: int) -> None:
            seconds = images * self._seconds_per_image + overlays * self._seconds_per_overlay_image
            self._advance(shown, seconds, "images")

        return advance

    def _advance(self, shown: Progress, seconds: float, note: str) -> None:
        self._done += seconds
        shown.advance(min(100, round(100 * self._done / max(self._total, 1e-9))) - shown.done, note)
