import re

import pytest

from svertka.models.efficientnet_lite import bundled_weights_path
from svertka.models.published_weights import CIFAR_RESNETS, PRETRAINED, STATE_DICT_FORMATS, WEIGHT_NAMES
from svertka.models.registry import MODELS


def test_published_weights_are_of_known_models() -> None:
    assert PRETRAINED.keys() | STATE_DICT_FORMATS.keys() | set(CIFAR_RESNETS) <= MODELS.keys()
    assert WEIGHT_NAMES == ("imagenet", "bundled")


@pytest.mark.parametrize(("model", "name"), [(model, name) for model, some in PRETRAINED.items() for name in some])
def test_every_entry_is_complete(model: str, name: str) -> None:
    published = PRETRAINED[model][name]
    assert re.fullmatch(r"sha256:[0-9a-f]{8}", published.checksum)
    assert published.checksum.removeprefix("sha256:") in published.file
    assert all(re.match("https://.*/" + re.escape(published.file) + "$", url) for url in published.urls)
    facts = MODELS[model]
    assert published.preprocess.size == facts.size
    assert published.preprocess.size < published.preprocess.resize
    assert published.preprocess.channels == facts.channels
    assert len(published.names) == facts.classes == 1000
    assert 15 < published.top1_error < 45
    assert published.top5_error is None or published.top5_error < published.top1_error / 2
    assert published.source


def test_google_s_networks_expect_values_from_minus_one_to_one() -> None:
    for model in ("googlenet_bn", "inception_v3", "inception_v4", "inception_resnet_v2"):
        published = PRETRAINED[model]["imagenet"]
        assert (published.preprocess.mean, published.preprocess.std) == ((0.5,) * 3, (0.5,) * 3)
        assert "from −1 to 1" in published.note


def test_the_bundled_file_has_its_published_checksum() -> None:
    import hashlib

    published = PRETRAINED["efficientnet_lite0"]["bundled"]
    assert published.path() == bundled_weights_path()
    assert published.checksum == f"sha256:{hashlib.sha256(bundled_weights_path().read_bytes()).hexdigest()[:8]}"
