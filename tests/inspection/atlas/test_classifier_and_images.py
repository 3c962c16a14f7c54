"""Classifier and images of an atlas, from all kinds of sources."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from svertka.classifier import Classifier
from svertka.errors import DataError, UsageError
from svertka.inspection.atlas.classifier_and_images import AtlasInputs, open_atlas_inputs


def opened(run: Path, source: Path | str | None, pictures: int | None = None) -> AtlasInputs:
    return open_atlas_inputs(run, source, images=pictures, device=torch.device("cpu"), threads=1, cache_limit=None)


def test_pixels_and_network_inputs_match_the_preprocessing(squeezenet_run: Path, photographs: Path) -> None:
    inputs, preprocess = opened(squeezenet_run, photographs), Classifier.load(squeezenet_run).preprocess
    assert len(inputs) == 24
    assert inputs.training_source is None
    for index in (0, 5, 23):
        path = photographs / inputs.image_name(index)
        expected = preprocess.square(np.asarray(Image.open(path)))
        assert np.array_equal(inputs.pixels(np.array([index]))[0], expected)
        assert torch.equal(inputs.network_inputs(np.array([index]))[0], preprocess(path))
    seen = torch.cat([batch.images for batch in inputs.batches(np.array([5, 2])).epoch(0)])
    assert torch.equal(seen, inputs.network_inputs(np.array([5, 2])))


def test_classes_need_not_be_those_of_the_network(squeezenet_run: Path, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "n01440764").symlink_to(photographs / "flower")
    (tmp_path / "other").symlink_to(photographs / "china")
    assert opened(squeezenet_run, tmp_path).dataset.names == ("tench", "other")


def test_random_subset_is_reproducible(squeezenet_run: Path, photographs: Path) -> None:
    some, again = (opened(squeezenet_run, photographs, 8) for _ in range(2))
    assert np.array_equal(some.indices, again.indices)
    assert len(some) == len(some.dataset) == len(some.digests) == 8
    assert set(some.dataset.labels) == {0, 1}
    assert len(opened(squeezenet_run, photographs, 100)) == 24


def test_unreadable_files_are_left_out(squeezenet_run: Path, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bad.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match="no image can be read"):
        opened(squeezenet_run, tmp_path)
    (tmp_path / "a" / "good.png").symlink_to(photographs / "china" / "00.png")
    assert [opened(squeezenet_run, tmp_path).image_name(0)] == ["a/good.png"]


def test_pretrained_model_needs_a_source(squeezenet_run: Path) -> None:
    with pytest.raises(UsageError, match="has no images of its own; name a source: svertka look .* SOURCE"):
        opened(squeezenet_run, None)


def test_fingerprint_depends_on_weights_images_labels_and_options(
    squeezenet_run: Path, photographs: Path, tmp_path: Path
) -> None:
    first = opened(squeezenet_run, photographs)
    same = first.fingerprint(1, ["a"])
    assert opened(squeezenet_run, photographs).fingerprint(1, ["a"]) == same
    others = [first.fingerprint(1, ["b"]), opened(squeezenet_run, photographs, 8).fingerprint(1, ["a"])]
    (tmp_path / "x").symlink_to(photographs / "flower")
    (tmp_path / "y").symlink_to(photographs / "china")
    others.append(opened(squeezenet_run, tmp_path).fingerprint(1, ["a"]))
    with torch.no_grad():
        next(first.classifier.network.parameters()).view(-1)[0] += 1
    others.append(first.fingerprint(1, ["a"]))
    assert len({same, *others}) == 5
