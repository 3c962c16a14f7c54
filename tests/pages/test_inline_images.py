import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from svertka.pages.inline_images import (
    PIXEL_DENSITY,
    Pixels,
    contact_sheet,
    crop_central_square,
    enlarge,
    render_image,
    render_strip,
    shrink,
    to_data_uri,
)


@pytest.fixture(scope="module")
def digit() -> Pixels:
    return (load_digits().images[0] * 255 / 16).astype(np.uint8)[..., None]


@pytest.fixture(scope="module")
def photograph() -> Pixels:
    return np.asarray(load_sample_images().images[0])  # (427, 640, 3)


def decode(source: str) -> Pixels:
    kind, _, data = source.partition(";base64,")
    assert kind == "data:image/webp"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def attributes(tag: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="([^"]*)"', tag))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_exact_encoding_is_lossless(channels: int, digit: Pixels, photograph: Pixels) -> None:
    picture = {1: digit, 3: photograph[:40, :50], 4: np.dstack([photograph[:40, :50], photograph[:40, :50, 0] | 1])}
    decoded = decode(to_data_uri(picture[channels], exact=True))
    assert np.array_equal(decoded[..., :channels], np.broadcast_to(picture[channels], decoded[..., :channels].shape))


def test_lossy_photograph_is_smaller_and_close_to_the_original(photograph: Pixels) -> None:
    source = to_data_uri(photograph, exact=False)
    error = np.square(decode(source).astype(float) - photograph).mean()
    assert 10 * np.log10(255**2 / error) > 30  # dB; 34 here
    assert len(source) < photograph.size / 8


def test_small_image_is_enlarged_by_a_whole_factor(digit: Pixels) -> None:
    tag = attributes(render_image(digit, 100, "a zero"))
    assert (tag["width"], tag["height"], tag["class"], tag["alt"]) == ("96", "96", "crisp", "a zero")
    assert np.array_equal(decode(tag["src"])[..., 0], digit[..., 0])


def test_photograph_keeps_its_proportions_and_pixels_for_dense_screens(photograph: Pixels) -> None:
    tag = attributes(render_image(photograph, 128, ""))
    assert (tag["width"], tag["height"], tag["class"]) == ("128", "85", "smooth")
    assert decode(tag["src"]).shape == (171, 128 * PIXEL_DENSITY, 3)


def test_image_of_the_size_shown_keeps_its_size(photograph: Pixels) -> None:
    tag = attributes(render_image(photograph[:100, :90], 128, ""))
    assert (tag["width"], tag["height"]) == ("90", "100")
    assert decode(tag["src"]).shape == (100, 90, 3)


def test_alternative_text_is_escaped(digit: Pixels) -> None:
    assert '"><script>' not in render_image(digit, 32, '"><script>')


def test_enlarge_repeats_pixels_and_shrink_keeps_proportions(digit: Pixels, photograph: Pixels) -> None:
    large = enlarge(digit, 30)
    assert large.shape == (24, 24, 1)
    assert np.array_equal(large[1::3, 2::3], digit)
    assert shrink(photograph, 64).shape == (43, 64, 3)
    assert shrink(digit, 64) is digit
    extreme = np.zeros((1, 4000, 3), np.uint8)
    assert shrink(extreme, 64).shape == (1, 64, 3)
    assert crop_central_square(photograph).shape == (427, 427, 3)


def test_contact_sheet_has_transparent_gaps(digit: Pixels, photograph: Pixels) -> None:
    pictures = [digit, photograph[:6, :4], photograph[:8, :8]]
    sheet = contact_sheet(pictures, 2, gap=1)
    assert sheet.shape == (17, 17, 4)
    assert np.array_equal(sheet[:8, :8, :3], np.repeat(digit, 3, 2))
    assert np.array_equal(sheet[1:7, 11:15, :3], photograph[:6, :4])
    assert np.array_equal(sheet[9:, :8, :3], photograph[:8, :8])
    opaque = sheet[..., 3] == 255
    assert opaque.sum() == 64 + 24 + 64
    assert not sheet[~opaque].any()


def test_strip_of_photographs_is_square_and_of_digits_crisp(digit: Pixels, photograph: Pixels) -> None:
    tag = attributes(render_strip([photograph] * 3, 32, "three"))
    assert (tag["width"], tag["height"], tag["class"]) == (str(3 * 33 - 1), "32", "smooth")
    tag = attributes(render_strip([digit] * 3, 30, "three"))
    assert (tag["width"], tag["height"], tag["class"]) == (str(3 * 25 - 1), "24", "crisp")
    assert np.array_equal(decode(tag["src"])[::3, :24:3, 0], digit[..., 0])


def test_images_of_real_files(shared_data: Path) -> None:
    for path in sorted((shared_data / "imagenet-samples").glob("*.JPEG"))[:8]:
        tag = attributes(render_image(np.asarray(Image.open(path).convert("RGB")), 128, path.name))
        assert max(int(tag["width"]), int(tag["height"])) == 128
        assert len(tag["src"]) < 40_000
