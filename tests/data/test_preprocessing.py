"""Squares against a filter written down in NumPy; a path, a PIL image and an array give a network the same."""

import io
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from svertka.data.preprocessing import (
    FITS,
    INTERPOLATIONS,
    Preprocess,
    discarded_share,
    load_rgb_image,
    parse_fit_mode,
    resize_central_square,
)
from svertka.errors import ImageError, ImageTooLargeError, UsageError


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3)).astype(np.uint8)


def triangle(before: int, after: int) -> np.ndarray:
    """Weights (after, before) of a resize with a triangle as wide as the reduction, at least one pixel to each side."""
    scale = max(before / after, 1.0)
    centers = (np.arange(after) + 0.5) * before / after
    distance = np.abs(centers[:, None] - (np.arange(before) + 0.5)) / scale
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("resize", [1, 7, 24, 64, 224])
@pytest.mark.parametrize("shape", [(60, 48), (31, 90), (300, 200), (25, 25), (1, 5)], ids=str)
def test_square_is_the_triangle_filter_of_the_central_square(shape, resize):
    rgb = image(*shape)
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    center = rgb[top : top + side, left : left + side].astype(np.float64)
    weights = triangle(side, resize)
    expected = np.einsum(
        "ah,hbc->abc", weights, np.einsum("hwc,bw->hbc", center, weights, optimize=True), optimize=True
    )
    square = resize_central_square(rgb, resize, 3)
    assert square.shape == (resize, resize, 3)
    assert square.dtype == np.uint8
    assert np.abs(square - expected).max() <= 1 + 1e-9  # two passes round to a whole level each
    if resize > 1:
        assert abs((square - expected).mean()) < 0.15  # halves are rounded up


def test_without_resizing_every_pixel_is_itself():
    rgb = image(40, 41)
    np.testing.assert_array_equal(resize_central_square(rgb, 40, 3), rgb[:, :40])
    gray = np.broadcast_to(image(28, 28)[:, :, :1], (28, 28, 3))
    np.testing.assert_array_equal(resize_central_square(gray, 28, 1), gray[:, :, :1])


@pytest.mark.parametrize("resize", [20, 32])
def test_gray_is_luma(resize):
    rgb = image(32, 32)
    square = resize_central_square(rgb, resize, 3)
    luma = resize_central_square(rgb, resize, 1)
    assert luma.shape == (resize, resize, 1)
    assert np.abs(luma[..., 0] - square @ [0.299, 0.587, 0.114]).max() < 0.51


def test_zeros_surround_a_padded_square():
    rgb = image(28, 28)
    for side, before in ((32, 2), (33, 2), (29, 0)):
        square = resize_central_square(rgb, 28, 3, pad_to=side)
        assert square.shape == (side, side, 3)
        np.testing.assert_array_equal(square[before : before + 28, before : before + 28], rgb)
        square[before : before + 28, before : before + 28] = 0
        assert not square.any()
    np.testing.assert_array_equal(resize_central_square(rgb, 28, 3, pad_to=20), rgb)


def test_what_lies_outside_the_square_does_not_matter():
    rgb = image(40, 60)
    other = rgb.copy()
    other[:, :10] = other[:, 50:] = 255
    np.testing.assert_array_equal(resize_central_square(rgb, 24, 3), resize_central_square(other, 24, 3))


def test_any_memory_layout_and_any_thread_give_the_same_and_leave_the_image():
    rgb = image(50, 70)
    right = resize_central_square(rgb, 32, 3)
    fixed = rgb.copy()
    fixed.flags.writeable = False
    turned = np.ascontiguousarray(rgb.swapaxes(0, 1)).swapaxes(0, 1)
    wide = np.repeat(rgb, 2, axis=1)[:, ::2]
    backwards = np.ascontiguousarray(rgb[::-1, ::-1])[::-1, ::-1]
    for layout in (fixed, turned, wide, backwards):
        np.testing.assert_array_equal(resize_central_square(layout, 32, 3), right)
        np.testing.assert_array_equal(resize_central_square(layout, 50, 3), rgb[:, 10:60])
    with ThreadPoolExecutor(4) as pool:
        for square in pool.map(lambda _: resize_central_square(rgb, 32, 3), range(50)):
            np.testing.assert_array_equal(square, right)
    np.testing.assert_array_equal(rgb, image(50, 70))


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(("size", "stored"), [(24, 24), (24, 32), (24, 27), (1, 4)])
def test_normalize_takes_the_center_and_units_of_full_scale(size, stored):
    preprocess = Preprocess(size=size, resize=stored, mean=MEAN, std=STD)
    squares = torch.from_numpy(np.stack([image(stored, stored) for _ in range(3)])).permute(0, 3, 1, 2)
    offset = (stored - size) // 2
    center = squares[:, :, offset : offset + size, offset : offset + size].double()
    expected = (center / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    before = squares.clone()
    formats = (torch.preserve_format, torch.contiguous_format, torch.channels_last)
    for given, memory_format in itertools.product((squares, squares.contiguous(), squares.float()), formats):
        got = preprocess.normalize(given, memory_format)
        assert got.dtype == torch.float32
        if memory_format != torch.preserve_format:
            assert got.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=2e-6)  # float32 of values up to 2.7
    torch.testing.assert_close(squares, before, rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "resize"), [(32, 32), (24, 30), (40, 30)])
def test_path_image_and_array_give_the_same(tmp_path, channels, size, resize):
    preprocess = Preprocess(size=size, resize=resize, mean=MEAN[:channels], std=STD[:channels])
    rgb = image(50, 60)
    path = tmp_path / "one.png"
    Image.fromarray(rgb).save(path)
    got = preprocess(path)
    assert got.shape == (channels, size, size)
    assert got.dtype == torch.float32
    for same in (str(path), Image.open(path), rgb, np.dstack([rgb, np.full((50, 60), 255, np.uint8)])):
        torch.testing.assert_close(preprocess(same), got, rtol=0, atol=0)
    square = torch.from_numpy(preprocess.square(rgb)).permute(2, 0, 1)[None]
    assert square.shape[-1] == preprocess.side == max(size, resize)
    torch.testing.assert_close(preprocess.normalize(square)[0], got, rtol=0, atol=0)


def test_images_in_memory_have_the_pixel_limit_of_files():
    preprocess = Preprocess(size=8, resize=8, mean=MEAN, std=STD)
    view = np.broadcast_to(np.uint8(0), (20_000, 20_000, 3))
    for huge in (view, view[..., 0], Image.new("1", (20_000, 20_000))):
        with pytest.raises(ImageTooLargeError, match="400 megapixels, more than the limit of 100; .* raise max_pixels"):
            preprocess(huge)
    assert load_rgb_image(view[:9000, :9000]).shape == (9000, 9000, 3)


@pytest.mark.parametrize("value", [None, 3.5, [1, 2], object()])
def test_what_is_no_image_is_one_sentence(value):
    for read in (load_rgb_image, Preprocess(size=8, resize=8, mean=MEAN, std=STD)):
        with pytest.raises((ImageError, TypeError), match=r"which is no image; give a path|image"):
            read(value)


def test_orientation_is_applied(tmp_path):
    rgb = np.asarray(Image.fromarray(image(4, 4)).resize((48, 40)))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=95, exif=exif)
    path = tmp_path / "turned.jpg"
    path.write_bytes(file.getvalue())
    preprocess = Preprocess(size=40, resize=40, mean=(0.0,), std=(1.0,))
    upright = preprocess(np.rot90(np.asarray(Image.open(path).convert("RGB")), -1))
    torch.testing.assert_close(preprocess(path), upright, rtol=0, atol=0)


def used_part(rgb: np.ndarray, side: int, fit: str, interpolation: str) -> np.ndarray:
    """The square by Pillow, an oracle of its own: its filters round otherwise by a level or so."""
    kind = Image.Resampling[interpolation.upper()]
    height, width = rgb.shape[:2]
    image = Image.fromarray(rgb)
    if fit == "squeeze":
        return np.asarray(image.resize((side, side), kind))
    if fit == "pad":
        longer = max(height, width)
        tall, wide = (max(1, int(side * one / longer + 0.5)) for one in (height, width))
        square = Image.new("RGB", (side, side))
        square.paste(image.resize((wide, tall), kind), ((side - wide) // 2, (side - tall) // 2))
        return np.asarray(square)
    shorter = min(height, width)
    left, top = (width - shorter) // 2, (height - shorter) // 2
    cut = image.crop((left, top, left + shorter, top + shorter))
    return np.asarray(cut.resize((side, side), kind))


@pytest.mark.parametrize("shape", [(30, 90), (90, 30), (64, 64), (7, 50), (1, 40), (300, 200)], ids=str)
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_way_to_a_square(shape, fit, interpolation):
    rgb = image(*shape) // 2 + 64  # nothing overshoots, which Pillow may clip in another order
    settings = {"resize": 40, "mean": MEAN, "std": STD, "fit": fit, "interpolation": interpolation}
    square = Preprocess(size=40, **settings).square(rgb)
    assert square.shape == (40, 40, 3)
    assert np.abs(square.astype(int) - used_part(rgb, 40, fit, interpolation)).max() <= 2
    small = Preprocess(size=60, **settings).square(rgb)
    np.testing.assert_array_equal(small[10:50, 10:50], square)
    assert not small[:10].any()
    assert not small[:, 50:].any()


@pytest.mark.parametrize("fit", ["pad", "squeeze"])
def test_nothing_is_left_out_but_by_the_crop(fit):
    for shape in ((30, 90), (90, 30)):
        rgb = np.zeros((*shape, 3), np.uint8)
        rgb[:6, :6] = rgb[-6:, -6:] = 255  # what stands in the corners alone
        assert Preprocess(size=30, resize=30, mean=MEAN, std=STD, fit=fit).square(rgb).any()
        assert not Preprocess(size=30, resize=30, mean=MEAN, std=STD).square(rgb).any()


def test_the_share_that_is_left_out():
    assert discarded_share(30, 90) == pytest.approx(2 / 3)
    assert discarded_share(50, 50) == 0
    assert discarded_share(50, 50, 224 / 256) == pytest.approx(1 - (224 / 256) ** 2)


def test_what_came_later_is_written_only_where_it_changes_something():
    plain = Preprocess(size=8, resize=8, mean=(0.5,), std=(0.5,))
    assert set(plain.model_dump()) == {"size", "resize", "mean", "std"}
    assert Preprocess.model_validate_json(plain.model_dump_json()) == plain
    rich = Preprocess(size=8, resize=8, mean=(0.5,), std=(0.5,), fit="pad", intensity_range=(0, 1023))
    assert Preprocess.model_validate_json(rich.model_dump_json()) == rich
    assert rich.model_dump()["intensity_range"] == (0, 1023)


@pytest.mark.parametrize("top", [255, 1023, 4095, 65535])
def test_16_bits_look_the_same_however_many_are_used(tmp_path, top):
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    deep = Image.fromarray((gray / 255 * top).astype(np.uint16))
    deep.save(tmp_path / "deep.png")
    Image.fromarray(gray).save(tmp_path / "flat.png")
    values = None if top == 65535 else (0, top)
    preprocess = Preprocess(size=16, resize=16, mean=(0.5,), std=(0.5,), intensity_range=values)
    wanted = preprocess(tmp_path / "flat.png")  # 8 bits stay what they are
    for same in (tmp_path / "deep.png", Image.open(tmp_path / "deep.png"), np.asarray(deep)):
        torch.testing.assert_close(preprocess(same), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("fit", [None, *FITS, "stretch", ""])
@pytest.mark.parametrize("boxed", [False, True])
def test_only_known_ways_are_asked_for(fit, boxed):
    if fit in ("stretch", "") or (boxed and fit in ("pad", "squeeze")):
        with pytest.raises(UsageError, match=f"fit={fit}"):
            parse_fit_mode(fit, boxed)
    else:
        assert parse_fit_mode(fit, boxed) == fit


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"resize": 5000},
        {"mean": (0.5, 0.5)},
        {"std": (0.5,)},
        {"std": (0.5, 0.0, 0.5)},
        {"mean": (0.5, float("nan"), 0.5)},
        {"color": "bgr"},
        {"fit": "stretch"},
        {"intensity_range": (5, 5)},
        {"intensity_range": (0, 70000)},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong):
    right = {"size": 32, "resize": 32, "mean": MEAN, "std": STD}
    Preprocess(**right)
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Preprocess(**(right | wrong))


def test_whole_images_are_resized_with_the_filter_of_the_network():
    rgb = image(90, 60)
    for interpolation in INTERPOLATIONS:
        preprocess = Preprocess(size=40, resize=40, mean=MEAN, std=STD, interpolation=interpolation)
        found = preprocess.resize_whole(rgb, 40).astype(int)
        expected = Image.fromarray(rgb).resize((40, 60), Image.Resampling[interpolation.upper()])
        assert np.abs(found - np.asarray(expected)).max() <= 2
