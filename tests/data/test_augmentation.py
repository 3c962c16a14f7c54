import math

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from svertka.data.augmentation import (
    AreaCrop,
    Augmentation,
    Flip,
    PadCrop,
    PCAColor,
    RandAugment,
    RandomCrop,
    RandomErasing,
    ScaleJitter,
    TrivialAugment,
    augment,
    merge_augmentations,
)
from svertka.data.per_image_random_numbers import PerImageRandomNumbers
from svertka.data.pixel_statistics import Statistics
from svertka.data.preprocessing import INTERPOLATIONS, Preprocess
from svertka.data.rand_augment_operations import OPERATIONS, TRIVIAL_AUGMENT, apply_operation
from svertka.errors import UsageError

COVARIANCE = ((0.06, 0.05, 0.04), (0.05, 0.07, 0.05), (0.04, 0.05, 0.08))
STATISTICS = Statistics(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), covariance=COVARIANCE)
ALL = [
    *(PadCrop(), RandomCrop(), Flip(), PCAColor().fit(STATISTICS, "bilinear"), ScaleJitter(), AreaCrop()),
    *(RandAugment(), TrivialAugment(), RandomErasing(probability=0.5)),
]
KINDS = [augmentation.kind for augmentation in ALL]


def random_images(count, side, channels=3):
    """Noise as the rows give it: (B, C, S, S) uint8, the channels last in memory."""
    values = np.random.default_rng(0).integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    return torch.from_numpy(values).permute(0, 3, 1, 2)


def draws(count, epoch=0):
    return PerImageRandomNumbers(11, epoch, np.arange(count))


@pytest.mark.parametrize("augmentation", ALL, ids=KINDS)
def test_an_image_is_changed_alike_in_any_batch_and_memory_order(augmentation):
    images, order = random_images(12, 40), np.random.default_rng(1).permutation(12)
    whole = augmentation(images, draws(12), 32)
    for some in np.array_split(order, 5):
        part = augmentation(images[some].contiguous(), PerImageRandomNumbers(11, 0, some), 32)
        assert torch.equal(part, whole[some])
    assert not torch.equal(augmentation(images, draws(12, epoch=1), 32), whole)


@pytest.mark.parametrize("augmentation", ALL, ids=KINDS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_shapes_and_dtypes(augmentation, channels, count):
    if augmentation.kind == "pca_colour":
        one = Statistics(mean=(0.5,), std=(0.2,), covariance=((0.04,),))
        augmentation = augmentation.fit(STATISTICS if channels == 3 else one, "bilinear")
    images = random_images(count, 40, channels)
    result = augmentation(images, draws(count), 32)
    side = 32 if augmentation.kind in ("random_crop", "scale_jitter", "area_crop") else 40
    assert result.shape == (count, channels, side, side)
    assert result.dtype == (torch.float32 if augmentation.kind == "pca_colour" else torch.uint8)
    assert augmentation(images.float(), draws(count), 32).dtype == torch.float32


@pytest.mark.parametrize(
    ("augmentation", "side", "size"),
    [(PadCrop(pixels=3), 12, 12), (PadCrop(pixels=3, outside="reflection"), 12, 12), (RandomCrop(), 18, 12)],
)
def test_crops_come_from_everywhere_equally_often(augmentation, side, size):
    count, room = 3000, 7
    images = random_images(1, side).expand(count, -1, -1, -1)
    results = augmentation(images, draws(count), size).numpy()
    source = images[0].numpy()
    if augmentation.kind == "pad_crop":
        mode = "reflect" if augmentation.outside == "reflection" else "constant"
        source = np.pad(source, ((0, 0), (3, 3), (3, 3)), mode=mode)
    found = np.zeros((room, room), int)
    for top, left in np.ndindex(room, room):
        window = source[:, top : top + size, left : left + size]
        found[top, left] = (results == window).all(axis=(1, 2, 3)).sum()
    assert found.sum() == count  # each is a window, and noise has no two that are alike
    assert stats.chisquare(found.ravel()).pvalue > 1e-4


def test_half_of_the_images_are_mirrored():
    images = random_images(2000, 6)
    results = Flip()(images, draws(2000), 6).numpy()
    mirrored = (results == images.numpy()[..., ::-1]).all(axis=(1, 2, 3))
    same = (results == images.numpy()).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert stats.binomtest(int(mirrored.sum()), 2000).pvalue > 1e-4


def test_colors_shift_along_the_covariance_of_the_training_images():
    count = 20_000
    images = torch.full((count, 3, 2, 2), 100, dtype=torch.uint8)
    shifts = PCAColor(deviation=0.1).fit(STATISTICS, "bilinear")(images, draws(count), 2) - 100
    assert torch.equal(shifts, shifts[:, :, :1, :1].expand_as(shifts))  # one for all pixels of a image
    # A sample of 20,000 knows a covariance to about 1 %.
    measured = np.cov((shifts[:, :, 0, 0].double() / 255).T)
    assert np.allclose(measured, 0.1**2 * np.asarray(COVARIANCE), rtol=0.05)
    assert abs(float(shifts.mean())) < 0.1


def test_pca_color_needs_statistics():
    with pytest.raises(UsageError, match="call fit"):
        PCAColor()(random_images(1, 4), draws(1), 4)


def windows(augmentation, side, count):
    """Where each window lay, (count, 4) as left, top, width, height: read off a image of its own coordinates.

    The results are as large as the image, so that windows are enlarged: that keeps a straight line exact.
    """
    ramp = torch.arange(side, dtype=torch.float32)
    image = torch.stack((ramp.expand(side, side), ramp[:, None].expand(side, side)))
    first, last = side // 4, side - side // 4  # away from the edges, where the line is cut off
    boxes = []
    for some in np.array_split(np.arange(count), -(-count // 50)):
        results = augmentation(image.expand(len(some), -1, -1, -1), PerImageRandomNumbers(11, 0, some), side).double()
        for values in (results[:, 0, first, [first, last]], results[:, 1, [first, last], first]):
            slope = (values[:, 1] - values[:, 0]) / (last - first)
            boxes.append(torch.stack((values[:, 0] + 0.5 - slope * (first + 0.5), slope * side)))
    (left, width), (top, height) = torch.cat(boxes[::2], dim=1), torch.cat(boxes[1::2], dim=1)
    exact = torch.stack((left, top, width, height), dim=1)
    rounded = exact.round()
    assert (exact - rounded).abs().max() < 0.01  # whole pixels of the stored square
    return rounded.long().numpy()


@pytest.mark.parametrize("augmentation", [ScaleJitter(), AreaCrop()], ids=["scale_jitter", "area_crop"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_windows_are_resized_as_images_elsewhere(augmentation, interpolation):
    count, side, size = 40, 96, 48
    augmentation = augmentation.fit(STATISTICS, interpolation)
    images = random_images(count, side) // 2 + 64  # nothing overshoots, which Pillow may clip in another order
    results = augmentation(images, draws(count), size)
    boxes = windows(augmentation, side, count)
    for image, result, (left, top, width, height) in zip(images, results, boxes, strict=True):
        box = (left, top, left + width, top + height)
        cut = Image.fromarray(image.permute(1, 2, 0).numpy()).crop(box)
        expected = np.asarray(cut.resize((size, size), Image.Resampling[interpolation.upper()])).transpose(2, 0, 1)
        # Both round their weights and twice their sums.
        assert np.abs(result.numpy().astype(int) - expected).max() <= 2


def test_scales_are_those_of_vgg_and_lie_evenly():
    side = 128
    boxes = windows(ScaleJitter(), side, 2000)
    assert (boxes[:, 2] == boxes[:, 3]).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= side).all()
    scales = side / boxes[:, 2]
    # Windows have whole pixels: 56 of them at scale 128 / 56 are known to 1 %.
    assert scales.min() == pytest.approx(256 / 224, rel=0.01)
    assert scales.max() == pytest.approx(512 / 224, rel=0.01)
    assert scales.mean() == pytest.approx(384 / 224, rel=0.01)
    for axis in (0, 1):
        assert stats.kstest((boxes[:, axis] + 0.5) / (side - boxes[:, 2] + 1), "uniform").pvalue > 1e-4


def test_areas_and_aspects_are_those_of_googlenet():
    side = 128
    boxes = windows(AreaCrop(), side, 2000)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= side).all()
    area, aspect = boxes[:, 2] * boxes[:, 3] / side**2, boxes[:, 2] / boxes[:, 3]
    assert area.min() == pytest.approx(0.08, rel=0.05)
    assert 0.95 < area.max() <= 1
    # Only where neither side can have been cut to the image's is the law the paper's.
    free = area < 0.7
    assert stats.kstest((area[free] - 0.08) / 0.62, "uniform").pvalue > 1e-4
    assert stats.kstest(np.log(aspect[free]) / (2 * math.log(4 / 3)) + 0.5, "uniform").pvalue > 1e-4


def test_stored_sides():
    preprocess = Preprocess(size=224, resize=256, mean=(0.5,) * 3, std=(0.2,) * 3)
    assert {augmentation.kind: augmentation.stored_side(preprocess) for augmentation in ALL} == {
        "pad_crop": 256, "random_crop": 256, "flip": 256, "pca_colour": 256, "scale_jitter": 512, "area_crop": 256,
        "rand_augment": 256, "trivial_augment": 256, "random_erasing": 256,
    }  # fmt: skip


def test_two_of_a_kind_in_a_row_draw_numbers_of_their_own():
    images = random_images(400, 4)
    once = augment(images, [Flip()], draws(400), 4)
    twice = augment(images, [Flip(), Flip()], draws(400), 4)
    changed = (once != images).flatten(1).any(dim=1), (twice != once).flatten(1).any(dim=1)
    assert 0.4 < (changed[0] == changed[1]).float().mean() < 0.6
    assert torch.equal(augment(images, [], draws(400), 4), images)


def test_they_are_written_and_read_as_json():
    adapter = TypeAdapter(tuple[Augmentation, ...])
    assert adapter.validate_json(adapter.dump_json(tuple(ALL))) == tuple(ALL)
    for wrong in ({"kind": "rotate"}, {"kind": "flip", "degrees": 3}, {"kind": "pad_crop", "pixels": 0}):
        with pytest.raises(ValidationError):
            adapter.validate_python([wrong])


def test_flips_in_turns_show_every_image_both_ways():
    images, flip = random_images(400, 8), Flip(in_turns=True)
    first, second, third = (flip(images, draws(400, epoch), 8) for epoch in range(3))
    assert torch.equal(second, first.flip(3))
    assert torch.equal(third, first)
    mirrored = int((first == images.flip(3)).all(dim=(1, 2, 3)).sum())
    assert abs(mirrored - 200) < 4 * 10  # four standard deviations of 400 coins


def test_trivial_augment_applies_one_operation_of_a_random_level_and_direction():
    images = random_images(30, 16)
    results = TrivialAugment()(images, draws(30), 16)
    found = []
    for before, after in zip(images.permute(0, 2, 3, 1).numpy(), results.permute(0, 2, 3, 1).numpy(), strict=True):
        possible = {
            (operation.name, level, sign)
            for operation in OPERATIONS
            for level in range(31)
            for sign in (1, -1)
            if np.array_equal(apply_operation(Image.fromarray(before), operation, level, sign, TRIVIAL_AUGMENT), after)
        }
        assert possible
        found.append(possible)
    assert len({name for possible in found for name, _, _ in possible if len(possible) <= 2}) > 6


def test_rand_augment_of_level_0_changes_only_colors_without_a_level():
    images = random_images(80, 16)
    results = RandAugment(operations=1, magnitude=0)(images, draws(80), 16)
    changed = (results != images).flatten(1).any(1)
    assert 0 < changed.sum() < 40  # 2 of 14 operations have no level
    assert not torch.equal(RandAugment(operations=1, magnitude=30)(images, draws(80), 16), results)


def test_random_erasing_replaces_a_rectangle_of_the_given_areas_in_the_given_share_of_images():
    images = torch.full((600, 3, 40, 40), 300.0)  # no noise has this value
    results = RandomErasing(probability=0.3)(images, draws(600), 40)
    erased = (results != images).any(1)
    changed = erased.flatten(1).any(1)
    assert 140 < changed.sum() < 220
    areas = erased[changed].double().mean((1, 2))
    assert areas.min() > 0.01
    assert areas.max() < 0.37
    assert abs(areas.mean() - (0.02 + 1 / 3) / 2) < 0.02  # torchvision's mean for these settings is 0.17
    for one in erased[changed]:
        assert torch.equal(one, one.any(1)[:, None] & one.any(0)[None])
    noise = results[(results != images)]
    assert stats.kstest(noise.numpy(), stats.randint(0, 256).cdf).statistic < 0.01


def test_options_add_augmentations_in_place_of_those_of_the_recipe():
    recipe = (AreaCrop(), Flip(), PCAColor())
    assert merge_augmentations(recipe, auto_augment=None, random_erasing=None) == recipe
    both = merge_augmentations(recipe, auto_augment="trivial", random_erasing=0.1)
    assert both == (AreaCrop(), Flip(), TrivialAugment(), PCAColor(), RandomErasing(probability=0.1))
    assert merge_augmentations(both, auto_augment="rand", random_erasing=0) == (*recipe[:2], RandAugment(), PCAColor())
    assert merge_augmentations(both, auto_augment="none", random_erasing=0) == recipe
    with pytest.raises(UsageError, match="auto_augment=auto is not known; use rand, trivial or none"):
        merge_augmentations(recipe, auto_augment="auto", random_erasing=None)
    for share in (2, -0.5, 10**400):
        with pytest.raises(UsageError, match="random_erasing=.* must be from 0 to 1, the share of images"):
            merge_augmentations(recipe, auto_augment=None, random_erasing=share)
