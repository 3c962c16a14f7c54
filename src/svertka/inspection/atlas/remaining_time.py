"""How long the drawing of an atlas takes: expected from what the pass over the pictures took, told as it goes on."""

from collections.abc import Callable, Sequence

from svertka.graph.summary import Trace
from svertka.inspection.atlas.image_data import AtlasImages, num_overlay_passes
from svertka.inspection.atlas.layer_data import AtlasLayer
from svertka.inspection.atlas.resumable_folder import ResumableFolder
from svertka.progress import Progress

DRAWING = 1.5e-3  # seconds to cut, scale and compress a patch and its projection
BACK = 1.6  # times what the pass took for a picture, of a projection through the whole network
AROUND = 1.4  # times the side of what a unit sees is that of the window which has to be computed for it


class RemainingTime:
    """The seconds that each part of an atlas is expected to take."""

    def __init__(
        self, trace: Trace, rooms: Sequence[AtlasLayer], portraits: AtlasImages, per_picture: float, size: int
    ) -> None:
        self._units: dict[str, float] = {}
        total, before = max(1, trace.multiply_adds), 0
        reached = {}
        for layer in trace.layers:
            before += layer.multiply_adds
            reached[layer.name] = before / total
        for room in rooms:
            window = min(1.0, AROUND * max(room.extent) / size) ** 2
            each = DRAWING + BACK * per_picture * reached[room.layer.name] * window
            self._units[room.data] = room.found.images.shape[1] * each
        self._rooms = rooms
        self._pictures = per_picture + DRAWING
        self._maps = num_overlay_passes(size) * per_picture
        self._portraits = portraits
        self._done = 0.0

    def left(self, parts: ResumableFolder) -> float:
        """Seconds that what is missing in `parts` is expected to take."""
        rooms = sum(self._units[room.data] * room.units for room in self._rooms if room.script not in parts)
        self._left = rooms + self._pictures * len(self._portraits.shown) + self._maps * len(self._portraits.featured)
        return self._left

    def units(self, shown: Progress, room: AtlasLayer) -> Callable[[int], None]:
        """What tells `shown`, which counts to 100, that some units of `room` are done."""
        return lambda count: self._advance(shown, count * self._units[room.data], room.layer.name)

    def pictures(self, shown: Progress) -> Callable[[int], None]:
        """What tells `shown` that some pictures are done."""
        share = len(self._portraits.featured) / max(1, len(self._portraits.shown))
        return lambda count: self._advance(shown, count * (self._pictures + share * self._maps), "pictures")

    def _advance(self, shown: Progress, seconds: float, note: str) -> None:
        self._done += seconds
        shown.advance(min(100, round(100 * self._done / max(self._left, 1e-9))) - shown.done, note)
