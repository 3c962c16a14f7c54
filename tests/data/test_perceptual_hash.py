import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from svertka.data.image_io import decode_to_pixels
from svertka.data.perceptual_hash import SIDE, compute_perceptual_hashes, group_look_alikes, make_thumbnail


def large(count: int) -> np.ndarray:
    return np.zeros(count, bool)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


CHANGES = {
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "thumbnail": lambda image: image.resize((64, 64)),
    "quality 10": lambda image: jpeg(image, 10),
    "lighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "trimmed": lambda image: image.crop((4, 4, image.width - 4, image.height - 4)),
}


def test_changed_photographs_are_found_and_others_are_not(shared_data) -> None:
    paths = sorted((shared_data / "imagenet-samples").glob("*.JPEG"))
    images = [Image.fromarray(decode_to_pixels(path.read_bytes(), min_side=128)) for path in paths]
    originals = np.stack([make_thumbnail(np.asarray(image)) for image in images])
    assert group_look_alikes(originals, large(len(originals))) == []
    for name, change in CHANGES.items():
        changed = np.stack([make_thumbnail(np.asarray(change(image))) for image in images])
        groups = group_look_alikes(np.concatenate([originals, changed]), large(2 * len(images)))
        wanted = [[index, index + len(images)] for index in range(len(images))]
        assert all(group in wanted for group in groups), name
        assert len(groups) >= 0.95 * len(images), name


def test_groups_are_the_same_as_by_comparing_all_with_all() -> None:
    draws = np.random.default_rng(1)
    few = draws.integers(0, 256, (40, 4, 4), dtype=np.uint8)
    noisy = few[draws.integers(0, 40, 400)].repeat(8, 1).repeat(8, 2) + draws.integers(0, 12, (400, SIDE, SIDE))
    thumbnails = noisy.clip(0, 255).astype(np.uint8)
    hashes = compute_perceptual_hashes(thumbnails)
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1).astype(int)
    near = (bits[:, None] != bits[None]).sum(axis=2) <= 6
    flat = thumbnails.reshape(400, -1).astype(float)
    near &= np.corrcoef(flat) > 0.9
    # What hangs together: by powers of the adjacency.
    reached = np.linalg.matrix_power(near.astype(float), 64) > 0
    wanted = sorted({tuple(np.flatnonzero(row).tolist()) for row in reached if row.sum() > 1})
    assert [tuple(group) for group in group_look_alikes(thumbnails, large(400))] == wanted
    assert len(wanted) > 20


def test_hash_by_the_formula() -> None:
    image = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    x = np.arange(SIDE)
    spectrum = [
        sum(
            image[a, b] * np.cos(np.pi * k * (2 * a + 1) / 64) * np.cos(np.pi * m * (2 * b + 1) / 64)
            for a in x
            for b in x
        )
        for k in range(8)
        for m in range(8)
    ]
    wanted = [value > np.median(spectrum[1:]) for value in spectrum]
    wanted[0] = False
    found = np.unpackbits(compute_perceptual_hashes(image[None]).view(np.uint8))
    assert found.tolist() == wanted


def test_small_images_have_stricter_bounds() -> None:
    draws = np.random.default_rng(3)
    image = draws.integers(0, 256, (SIDE, SIDE), dtype=np.uint8).astype(float)
    changed = image + draws.normal(0, 0.2 * image.std(), image.shape)
    pair = np.stack([image, changed]).clip(0, 255).astype(np.uint8)
    assert group_look_alikes(pair, large(2)) == [[0, 1]]
    assert group_look_alikes(pair, ~large(2)) == []
    assert group_look_alikes(np.stack([pair[0], pair[0]]), ~large(2)) == [[0, 1]]


def test_frames_of_a_film_are_one_group() -> None:
    draws = np.random.default_rng(4)
    scene = draws.integers(0, 256, (8, 8), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    frames = (scene + draws.integers(0, 8, (3000, SIDE, SIDE))).clip(0, 255).astype(np.uint8)
    assert group_look_alikes(frames, large(3000)) == [list(range(3000))]


def test_single_colors_are_like_nothing() -> None:
    flat = np.full((3, SIDE, SIDE), 200, np.uint8)
    assert group_look_alikes(flat, large(3)) == []


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare(count: int) -> None:
    assert group_look_alikes(np.zeros((count, SIDE, SIDE), np.uint8), large(count)) == []


@pytest.mark.parametrize("shape", [(1, 1, 3), (8, 8, 1), (31, 500, 3), (400, 300, 3), (32, 32, 1)])
def test_thumbnails_of_any_shape(shape: tuple[int, int, int]) -> None:
    small = make_thumbnail(np.full(shape, 77, np.uint8))
    assert small.shape == (SIDE, SIDE)
    assert (small == 77).all()
