"""Thumbnails of the images of a data set, decoded in the server's decoder processes and kept in memory."""

from collections import OrderedDict
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from svertka.data.dataset import Pixels
from svertka.errors import ImageError, ImageTooLargeError
from svertka.pages.inline_images import encode_webp, shrink
from svertka.serving.decoder_pool import DecoderPool, RequestDecoding
from svertka.serving.decoder_process import DecodingSettings
from svertka.serving.request_body_limits import MAX_BODY_BYTES
from svertka.serving.served_model import MAX_PIXELS

SIDES = (192, 1024)  # pixels: in the grid, as a central square; and of one image, as a whole
QUALITY = 80  # of WebP
MAX_BYTES = 96 << 20  # of all thumbnails in memory, about 15,000 small ones


class Thumbnails:
    """WebP files by image and side; the one unused longest is dropped first.

    Args:
        decoders: The processes that decode.
    """

    def __init__(self, decoders: DecoderPool) -> None:
        self._decoders = decoders
        self._kept: OrderedDict[tuple[Path, str, int], bytes] = OrderedDict()
        self._bytes = 0

    async def of_file(self, file: Path, stamp: str, side: int) -> bytes:
        """Return the thumbnail of `file` with `side` pixels, one of SIDES; `stamp` names the state of the file.

        Raises:
            ImageError: The image cannot be read. HTTPError: 503, too many large images are waiting.
        """
        key = file, stamp, side
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        content = await self.encode(await run_in_threadpool(_read, file), side)
        self.keep(file, stamp, side, content)
        return content

    async def encode(self, data: bytes | bytearray, side: int) -> bytes:
        """Return the thumbnail of the image in `data`; raises as `of_file`."""

        def encode(pixels: Pixels) -> bytes:
            small = shrink(pixels, side)
            return encode_webp(small, exact=max(small.shape[:2]) <= side // 4, quality=QUALITY)

        settings = DecodingSettings(side, MAX_PIXELS, square=side == SIDES[0])
        return await self._decoders.decode(data, settings, RequestDecoding(), encode)

    def keep(self, file: Path, stamp: str, side: int, content: bytes) -> None:
        """Keep the thumbnail of a file."""
        key = file, stamp, side
        self._bytes += len(content) - len(self._kept.pop(key, b""))
        self._kept[key] = content
        while self._bytes > MAX_BYTES:
            self._bytes -= len(self._kept.popitem(last=False)[1])


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BODY_BYTES + 1)
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error
    if len(data) > MAX_BODY_BYTES:
        raise ImageTooLargeError(f"larger than {MAX_BODY_BYTES >> 20} MiB")
    return data
