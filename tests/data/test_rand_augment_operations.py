import numpy as np
import pytest
from PIL import Image

from svertka.data.rand_augment_operations import LEVELS, OPERATIONS, RAND_AUGMENT, TRIVIAL_AUGMENT, apply_operation

BY_NAME = {operation.name: operation for operation in OPERATIONS}


def make_image(mode):
    random = np.random.default_rng(7)
    rows, columns = np.mgrid[:24, :24]
    smooth = np.stack([8 * rows, 9 * columns, 4 * (rows + columns)], 2) + random.integers(0, 40, (24, 24, 3))
    return Image.fromarray(smooth.astype(np.uint8)).convert(mode)


# What torchvision 0.29.1 makes of these images: the sum of the pixels, and their sum weighted by (place mod 251).
# torchvision.transforms.autoaugment._apply_op(image, name, ±magnitudes[level], BILINEAR, None)
TORCHVISION = {
    RAND_AUGMENT: (
        ("ShearX", 30, 1, "RGB", 175747, 21629806),
        ("ShearX", 9, -1, "RGB", 185199, 23393930),
        ("ShearX", 17, 1, "L", 64580, 7532271),
        ("ShearY", 30, 1, "RGB", 174767, 21369579),
        ("ShearY", 9, -1, "RGB", 185244, 23640707),
        ("ShearY", 17, 1, "L", 62540, 7808426),
        ("TranslateX", 30, 1, "RGB", 94841, 12147755),
        ("TranslateX", 9, -1, "RGB", 184286, 23044207),
        ("TranslateX", 17, 1, "L", 43624, 5082971),
        ("TranslateY", 30, 1, "RGB", 96660, 12278185),
        ("TranslateY", 9, -1, "RGB", 183832, 23352784),
        ("TranslateY", 17, 1, "L", 47371, 5920127),
        ("Rotate", 30, 1, "RGB", 168303, 21131742),
        ("Rotate", 9, -1, "RGB", 185110, 23371030),
        ("Rotate", 17, 1, "L", 60219, 7245343),
        ("Brightness", 30, 1, "RGB", 331162, 41544660),
        ("Brightness", 9, -1, "RGB", 145009, 18276129),
        ("Brightness", 17, 1, "L", 100196, 11608731),
        ("Color", 30, 1, "RGB", 197392, 24846325),
        ("Color", 9, -1, "RGB", 200144, 25218986),
        ("Color", 17, 1, "L", 68092, 7885464),
        ("Contrast", 30, 1, "RGB", 200115, 25473379),
        ("Contrast", 9, -1, "RGB", 200065, 25054076),
        ("Contrast", 17, 1, "L", 68054, 7944090),
        ("Sharpness", 30, 1, "RGB", 199122, 25098809),
        ("Sharpness", 9, -1, "RGB", 199090, 25084999),
        ("Sharpness", 17, 1, "L", 67848, 7855834),
        ("Posterize", 30, 1, "RGB", 186688, 23565088),
        ("Posterize", 9, -1, "RGB", 198928, 25070362),
        ("Posterize", 17, 1, "L", 67236, 7785984),
        ("Solarize", 30, 1, "RGB", 240856, 29084576),
        ("Solarize", 9, -1, "RGB", 162409, 20206317),
        ("Solarize", 17, 1, "L", 52780, 6048695),
        ("AutoContrast", 30, 1, "RGB", 221684, 27968403),
        ("Equalize", 30, 1, "RGB", 244327, 30911416),
    ),
    TRIVIAL_AUGMENT: (
        ("ShearX", 30, 1, "RGB", 106126, 12713444),
        ("ShearX", 9, -1, "RGB", 154810, 19601530),
        ("ShearX", 17, 1, "L", 53801, 6145847),
        ("ShearY", 30, 1, "RGB", 104090, 12291539),
        ("ShearY", 9, -1, "RGB", 155281, 19997315),
        ("ShearY", 17, 1, "L", 48474, 5477913),
        ("TranslateX", 30, 1, "RGB", 0, 0),
        ("TranslateX", 9, -1, "RGB", 145657, 17702620),
        ("TranslateX", 17, 1, "L", 9680, 1127988),
        ("TranslateY", 30, 1, "RGB", 0, 0),
        ("TranslateY", 9, -1, "RGB", 144122, 17333527),
        ("TranslateY", 17, 1, "L", 13320, 1606168),
        ("Rotate", 30, 1, "RGB", 160043, 19759689),
        ("Rotate", 9, -1, "RGB", 165634, 21004867),
        ("Rotate", 17, 1, "L", 62137, 7197400),
        ("Brightness", 30, 1, "RGB", 338707, 42477201),
        ("Brightness", 9, -1, "RGB", 139570, 17588999),
        ("Brightness", 17, 1, "L", 102755, 11901039),
        ("Color", 30, 1, "RGB", 197316, 24834235),
        ("Color", 9, -1, "RGB", 200280, 25234557),
        ("Color", 17, 1, "L", 68092, 7885464),
        ("Contrast", 30, 1, "RGB", 200366, 25516179),
        ("Contrast", 9, -1, "RGB", 200148, 25048296),
        ("Contrast", 17, 1, "L", 68128, 7958542),
        ("Sharpness", 30, 1, "RGB", 199067, 25092410),
        ("Sharpness", 9, -1, "RGB", 199104, 25085171),
        ("Sharpness", 17, 1, "L", 67853, 7856582),
        ("Posterize", 30, 1, "RGB", 144000, 18266368),
        ("Posterize", 9, -1, "RGB", 197168, 24849316),
        ("Posterize", 17, 1, "L", 66208, 7666208),
        ("Solarize", 30, 1, "RGB", 240856, 29084576),
        ("Solarize", 9, -1, "RGB", 162409, 20206317),
        ("Solarize", 17, 1, "L", 52780, 6048695),
        ("AutoContrast", 30, 1, "RGB", 221684, 27968403),
        ("Equalize", 30, 1, "RGB", 244327, 30911416),
    ),
}


@pytest.mark.parametrize("magnitudes", TORCHVISION, ids=["rand", "trivial"])
def test_operations_are_those_of_torchvision(magnitudes):
    for name, level, sign, mode, total, weighted in TORCHVISION[magnitudes]:
        changed = apply_operation(make_image(mode), BY_NAME[name], level, sign, magnitudes)
        pixels = np.asarray(changed).astype(np.int64).ravel()
        assert changed.mode == mode
        found = pixels.sum(), (pixels * (np.arange(pixels.size) % 251)).sum()
        # torchvision's magnitudes are float32, which rounds other pixels that lie halfway.
        assert found == pytest.approx((total, weighted), rel=2e-3), (name, level)


@pytest.mark.parametrize("magnitudes", [RAND_AUGMENT, TRIVIAL_AUGMENT], ids=["rand", "trivial"])
def test_level_0_changes_nothing_and_higher_levels_change_more(magnitudes):
    image = make_image("RGB")
    original = np.asarray(image).astype(int)
    for operation in OPERATIONS:
        changes = [
            np.abs(np.asarray(apply_operation(image, operation, level, 1, magnitudes)).astype(int) - original).mean()
            for level in (0, LEVELS // 2, LEVELS - 1)
        ]
        if operation.name in ("AutoContrast", "Equalize"):  # without a magnitude
            assert changes[0] == changes[1] == changes[2] > 0
        else:
            assert changes[0] == 0, operation.name
            assert (changes[2] > changes[1] > 0) == (operation.name != "Identity"), operation.name
