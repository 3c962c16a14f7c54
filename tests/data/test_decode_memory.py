"""What decoding takes is known before, and no more is taken; what takes more than the limit is refused at once."""

import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from svertka.data.decode_memory import STRIP_BYTES, DecodingBudget, count_jpeg_scans
from svertka.data.image_io import DecodingOptions, decode_to_pixels, estimate_memory
from svertka.errors import ImageTooLargeError

MEASURE = """
import sys
from pathlib import Path
from svertka.data.image_io import DecodingOptions, decode_to_pixels, estimate_memory

def now(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

data, side = Path(sys.argv[1]).read_bytes(), int(sys.argv[2]) or None
decoding = DecodingOptions.up_to(10**9)
needed = estimate_memory(data, side, decoding)
open("/proc/self/clear_refs", "w").write("5")  # the highest mark begins anew
before = now("VmRSS")
shape = decode_to_pixels(data, side, decoding).shape
print(needed, now("VmHWM") - before, *shape)
"""

FORMATS = {
    "palette.png": lambda image: (image.quantize(16), {}),
    "one_bit.png": lambda image: (image.convert("1"), {}),
    "color.png": lambda image: (image, {"compress_level": 1}),
    "alpha.png": lambda image: (image.convert("RGBA"), {"compress_level": 1}),
    "lossy.webp": lambda image: (image, {"method": 0}),
    "plain.jpg": lambda image: (image, {}),
    "progressive.jpg": lambda image: (image, {"progressive": True, "subsampling": 0}),
    "cmyk.jpg": lambda image: (image.convert("CMYK"), {}),
    "deflated.tif": lambda image: (image, {"compression": "tiff_adobe_deflate"}),
    "animated.gif": lambda image: (image.quantize(16), {}),
    "wavelet.jp2": lambda image: (image, {}),
    "some.avif": lambda image: (image, {"speed": 10}),
}


def make_image(side: int) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def measured(path: Path, side: int) -> tuple[int, int, tuple[int, ...]]:
    """Bytes expected and bytes taken, in a process of its own; the shape."""
    command = [sys.executable, "-c", MEASURE, str(path), str(side)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250)
    needed, taken, *shape = map(int, answer.stdout.split())
    return needed, taken, tuple(shape)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
def test_no_more_memory_is_taken_than_was_expected(tmp_path, large_count):
    names = list(FORMATS)[:: large_count(6, 1)]
    image = make_image(large_count(1500, 4000))
    for name in names:
        made, options = FORMATS[name](image)
        made.save(tmp_path / name, **options)
        for side in (0, 64):
            needed, taken, _ = measured(tmp_path / name, side)
            assert taken <= needed + 2**23, (name, side)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", ["palette.png", "one_bit.png"])
def test_a_very_large_image_takes_little_more_than_its_own_pixels(tmp_path, large_count, name):
    side = large_count(5000, 10_000)
    made, _ = FORMATS[name](Image.new("RGB", (side, side), (200, 30, 60)))
    made.save(tmp_path / name)
    needed, taken, shape = measured(tmp_path / name, 224)
    assert taken <= needed < 1.3 * side * side + STRIP_BYTES  # a byte a pixel, not eleven
    assert shape == (side // 4, side // 4, 3) if side == 5000 else (side // 8, side // 8, 3)


def saved(image: Image.Image, format_name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


@pytest.mark.parametrize("format_name", ["PNG", "WebP", "TIFF", "JPEG2000", "AVIF", "BMP", "GIF", "PPM"])
def test_more_than_the_memory_limit_is_refused_before_it_is_decoded(format_name):
    data = saved(make_image(300), format_name)
    needed = estimate_memory(data)
    assert decode_to_pixels(data, decoding=DecodingOptions(max_memory=max(needed, 2 * STRIP_BYTES))).shape == (
        300,
        300,
        3,
    )
    with pytest.raises(ImageTooLargeError, match="of memory to decode, more than the limit of .*--max-pixels"):
        decode_to_pixels(data, decoding=DecodingOptions(max_memory=300 * 300))


def test_a_jpeg_above_the_pixel_limit_is_decoded_reduced():
    data = saved(make_image(1200), "JPEG")
    decoding = DecodingOptions(max_pixels=100_000)
    assert decode_to_pixels(data, 40, decoding).shape == (150, 150, 3)
    for side in (None, 200):  # all of it is wanted, or too much
        with pytest.raises(
            ImageTooLargeError,
            match=r"^1.4 megapixels, more than the limit of 0.1; make it smaller or raise --max-pixels to 2M$",
        ):
            decode_to_pixels(data, side, decoding)
    assert decode_to_pixels(data, 200, DecodingOptions.up_to(2_000_000)).shape == (600, 600, 3)


def test_no_higher_limit_is_advised_where_it_would_not_help():
    data = b"P3 5000 4000 255\n" + b"0 " * 100
    with pytest.raises(ImageTooLargeError, match=r"^20 megapixels, more than the limit of 17; save it as PNG$"):
        decode_to_pixels(data, decoding=DecodingOptions.up_to(200_000_000))


def test_large_images_are_reduced_to_the_mean_of_their_pixels(monkeypatch):
    monkeypatch.setattr("svertka.data.image_io.REDUCED_ABOVE", 10_000)
    image = make_image(401)
    exact = np.asarray(image).astype(float)
    small = decode_to_pixels(saved(image, "PNG"), 30)
    assert small.shape == (101, 101, 3)
    means = exact[:400, :400].reshape(100, 4, 100, 4, 3).mean(axis=(1, 3))
    assert np.abs(small[:100, :100] - means).max() <= 0.51
    np.testing.assert_array_equal(decode_to_pixels(saved(image, "PNG")), np.asarray(image))


def test_scans_are_counted_and_limited():
    plain, progressive = saved(make_image(64), "JPEG"), saved(make_image(64), "JPEG", progressive=True)
    assert count_jpeg_scans(plain) == 1
    assert 5 < count_jpeg_scans(progressive) < 20
    assert count_jpeg_scans(plain + b"\xff\xda" * 500) == 1  # what follows the end does not count
    assert decode_to_pixels(plain + b"\xff\xda" * 500).shape == (64, 64, 3)
    start = progressive.rindex(b"\xff\xda")
    bomb = progressive[:start] + progressive[start:-2] * 300 + b"\xff\xd9"
    with pytest.raises(ImageTooLargeError.__mro__[1], match="scans, more than the limit"):
        decode_to_pixels(bomb)


def test_threads_wait_for_memory_and_never_for_ever():
    memory = DecodingBudget(3 * 2**26)
    most, waiting = 0, threading.Barrier(6)

    def decode(count: int) -> None:
        nonlocal most
        waiting.wait(120)
        with memory.reserve(count):
            most = max(most, memory.taken)
            time.sleep(0.02)

    counts = [2**26, 2**26, 2**27, 2**27, 2**30, 5]  # one is more than all, and runs alone; one need not wait
    threads = [threading.Thread(target=decode, args=(count,)) for count in counts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert memory.taken == 0
    assert most <= 2**30


def test_heic_is_turned_once():
    image = make_image(40).resize((40, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, exif=exif.tobytes(), quality=95)
    assert decode_to_pixels(file.getvalue()).shape[:2] in ((40, 24), (24, 40))
    opened = pillow_heif.open_heif(file.getvalue())
    assert decode_to_pixels(file.getvalue()).shape[:2] == opened.size[::-1]
