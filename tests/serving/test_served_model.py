import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from svertka.classifier import Classifier
from svertka.data.image_io import decode_to_pixels
from svertka.serving.served_model import BATCH_SIZES, ServedModel

CPU = torch.device("cpu")


def test_any_number_of_pictures_is_computed_as_by_the_plain_network(small_run: Path) -> None:
    served, plain = ServedModel(small_run, CPU), Classifier.load(small_run)
    torch.manual_seed(1)
    pictures = list(torch.randn(23, 3, 32, 32))
    for count in (1, 3, 4, 8, 23):
        found, wanted = (
            torch.stack([row for row, _ in served.answer(pictures[:count])]),
            plain.probabilities(pictures[:count]),
        )
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)  # other algorithms, another order of sums


def test_few_sizes_of_batches_are_run(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = ServedModel(small_run, CPU)
    sizes: list[int] = []
    served._fast.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    served.warm_up()
    served.answer([torch.zeros(3, 32, 32)] * 16 + [torch.zeros(3, 32, 32)] * 6)
    assert set(sizes) == set(BATCH_SIZES)


def test_every_run_has_a_key_that_an_address_can_hold(small_run: Path, tmp_path: Path) -> None:
    taken: list[str] = []
    for name in ("small", "имя", "a b", "x/small", "a?b", "..."):
        folder = tmp_path / name
        shutil.copytree(small_run, folder, symlinks=True)
        served = ServedModel(folder, CPU, taken)
        assert served.name == folder.name
        taken.append(served.key)
    assert taken == ["small", "___", "a_b", "small-2", "a_b-2", "run"]


def test_a_network_without_maps_looks_nowhere(made: Callable[..., Classifier], tmp_path: Path) -> None:
    made("mlp", 16, 16, 1).save(tmp_path)
    picture = tmp_path / "picture.png"
    Image.effect_noise((30, 20), 90).save(picture)
    said = ServedModel(tmp_path, CPU).explain(decode_to_pixels(picture.read_bytes()), None)
    assert said["heatmap"] is None
    assert said["units"] == []
    assert said["pixelated"]


def test_the_plain_network_stays_as_it_was(small_run: Path, jpeg: bytes) -> None:
    served = ServedModel(small_run, CPU)
    before = {name: tensor.clone() for name, tensor in served.classifier.network.state_dict().items()}
    served.explain(decode_to_pixels(jpeg), 1)
    after = served.classifier.network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not served.classifier.network.training


def test_what_is_seen_is_the_middle_of_the_square(small_run: Path, tmp_path: Path) -> None:
    import base64
    import io

    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[4:36, 14:46] = 255  # what a network of 32 pixels sees of a square of 40
    Image.fromarray(pixels).save(tmp_path / "x.png")
    said = ServedModel(small_run, CPU).explain(decode_to_pixels((tmp_path / "x.png").read_bytes()), 0)
    seen = Image.open(io.BytesIO(base64.b64decode(said["image"].partition(",")[2])))
    assert seen.size == (32, 32)
    assert np.asarray(seen.convert("L")).min() == 255
