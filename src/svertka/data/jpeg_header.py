"""Size of a JPEG from its header, without a decoder, for headers that all decoders read alike."""

SCAN = 0xDA  # its start is the end of the header
TABLES = 0xDB  # of quantization
FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive, Huffman-coded
# Tables, restart interval, comment, JFIF, ICC profile and Adobe's color transform, with the bytes that Pillow needs
# in them. Not APP1, in which EXIF and XMP may turn the image.
PLAIN = {0xC4: 0, TABLES: 0, 0xDD: 0, 0xFE: 0, 0xE0: 14, 0xE2: 14, 0xEE: 12}
TABLE_BYTES = 65  # of a quantization table of 8-bit values, which begins with its number
MOST_NUMBER = 15  # above it, the values of a quantization table have 16 bits


def read_plain_jpeg_size(jpeg: bytes) -> tuple[int, int] | None:
    """Return the width and height of a JPEG, pixels; None if its header is unusual or may turn the image.

    Where it returns a size, Pillow opens the file, with this size, 8 bits per value and orientation 1.

    Args:
        jpeg: The file, from its first byte to beyond the header.
    """
    at, size = 2, None
    if jpeg[:3] != b"\xff\xd8\xff":
        return None
    try:
        while True:
            marker, length = jpeg[at + 1], jpeg[at + 2] << 8 | jpeg[at + 3]
            end = at + 2 + length
            if jpeg[at] != 0xFF or length < 2 or end > len(jpeg):
                return None
            if marker == SCAN:
                return size
            if marker in FRAMES:
                size = None if size else _read_frame(jpeg[at + 4 : end])
                if size is None:
                    return None
            elif length - 2 < PLAIN.get(marker, length) or (marker == TABLES and _is_unusual(jpeg[at + 4 : end])):
                return None
            at = end
    except IndexError:
        return None


def _read_frame(segment: bytes) -> tuple[int, int] | None:
    """Return the width and height in the content of a frame's segment; None if it is unusual."""
    bits, height, width, layers = segment[0], *divmod(int.from_bytes(segment[1:5]), 1 << 16), segment[5]
    is_usual = bits == 8 and layers in (1, 3, 4) and len(segment) == 6 + 3 * layers and width and height
    return (width, height) if is_usual else None


def _is_unusual(tables: bytes) -> bool:
    """Return whether quantization tables, the content of a segment, are cut off or have 16-bit values."""
    return len(tables) % TABLE_BYTES != 0 or max(tables[::TABLE_BYTES], default=0) > MOST_NUMBER
