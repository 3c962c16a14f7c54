"""Every protocol against a plain loop over crops, one picture and one crop at a time."""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from svertka.classifier import Classifier
from svertka.data.preprocessing import Preprocess
from svertka.data.source_opener import open_source
from svertka.errors import DataError
from svertka.evaluation.crop_protocols import get_crop_protocol
from svertka.evaluation.evaluate import evaluate
from svertka.evaluation.predictor import Predictor

SIZE, RESIZE = 32, 40
# Scores of these fresh weights are up to 40, of which float32 keeps 1e-6; many crops at once round otherwise than one.
TOLERANCE = 1e-5


def filtered(pixels: Tensor, height: int, width: int) -> Tensor:
    """(3, H, W) uint8 at another size."""
    return F.interpolate(pixels[None], (height, width), mode="bilinear", antialias=True)[0]


def whole(pixels: Tensor, scale: int) -> Tensor:
    height, width = pixels.shape[1:]
    short = min(height, width)
    return filtered(pixels, round(height * scale / short), round(width * scale / short))


def normalized(preprocess: Preprocess, pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(one)[:, None, None] for one in (preprocess.mean, preprocess.std))
    return (pixels / 255 - mean) / std


def five(pixels: Tensor) -> Iterator[Tensor]:
    height, width = pixels.shape[1:]
    for y, x in ((0, 0), (0, width - SIZE), (height - SIZE, 0), (height - SIZE, width - SIZE)):
        yield pixels[:, y : y + SIZE, x : x + SIZE]
    y, x = (height - SIZE) // 2, (width - SIZE) // 2
    yield pixels[:, y : y + SIZE, x : x + SIZE]


def crops_1(pixels: Tensor) -> Iterator[Tensor]:
    height, width = pixels.shape[1:]
    side = min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    yield list(five(filtered(pixels[:, y : y + side, x : x + side].contiguous(), RESIZE, RESIZE)))[-1]


def crops_10(pixels: Tensor) -> Iterator[Tensor]:
    height, width = pixels.shape[1:]
    side = min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    for crop in five(filtered(pixels[:, y : y + side, x : x + side].contiguous(), RESIZE, RESIZE)):
        yield crop
        yield crop.flip(2)


def crops_144(pixels: Tensor) -> Iterator[Tensor]:
    for scale in (37, 41, 46, 50):
        picture = whole(pixels, scale)
        height, width = picture.shape[1:]
        for place in (0, 0.5, 1):
            y, x = int((height - scale) * place), int((width - scale) * place)
            square = picture[:, y : y + scale, x : x + scale]
            for crop in (*five(square), filtered(square.contiguous(), SIZE, SIZE)):
                yield crop
                yield crop.flip(2)


@pytest.mark.parametrize(
    ("crops", "model", "loop", "views"),
    [("1", "resnet20", crops_1, 1), ("10", "resnet20", crops_10, 10), ("144", "mlp", crops_144, 144)],
)
def test_crops_match_a_plain_loop(
    photographs: Path,
    fresh_run: Callable[..., Path],
    crops: str,
    model: str,
    loop: Callable[[Tensor], Iterator[Tensor]],
    views: int,
) -> None:
    run = fresh_run(model, SIZE, RESIZE, seed=1)
    classifier = Classifier.load(run)
    expected, wrong = [], []
    for path in sorted(photographs.rglob("*.png")):
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        said = []
        for crop in loop(pixels):
            with torch.no_grad():
                said.append(classifier.network(normalized(classifier.preprocess, crop)[None])[0].double().softmax(0))
        assert len(said) == views
        expected.append(torch.stack(said).mean(0))
        wrong.append(int(expected[-1].argmax()) != classifier.names.index(path.parent.name))
    assert 0 < sum(wrong) < len(wrong)

    dataset = open_source(photographs)
    how = get_crop_protocol(crops, None, classifier.preprocess)
    predictor = Predictor(classifier, dataset, how, device=torch.device("cpu"), threads=2)
    found = torch.cat(list(predictor.predict_batches(list(np.arange(12).reshape(-1, 3)))))
    assert (found.exp() - torch.stack(expected)).abs().max() < TOLERANCE

    judged = evaluate(run, photographs, crops=crops)
    assert judged.wrong.tolist() == wrong
    own = [-np.log(float(p[label])) for p, label in zip(expected, dataset.labels, strict=True)]
    assert judged.loss == pytest.approx(np.mean(own), rel=1e-5)


def positions(network: nn.Module, picture: Tensor, stride: int) -> Tensor:
    """Scores (K,): the mean over the crops at every `stride`-th pixel, one after the other."""
    height, width = picture.shape[1:]
    places = product(range(0, height - SIZE + 1, stride), range(0, width - SIZE + 1, stride))
    return torch.stack([network(picture[None, :, y : y + SIZE, x : x + SIZE])[0] for y, x in places]).mean(0)


def maps(network: nn.Module, picture: Tensor, stride: int) -> Tensor:
    """The same where maps are padded, so that a crop is not a window: ResNet's layers, and means over all windows."""
    x = network.relu(network.bn1(network.conv1(picture[None])))
    x = network.layer3(network.layer2(network.layer1(x)))[0]
    side = SIZE // stride
    places = product(range(x.shape[1] - side + 1), range(x.shape[2] - side + 1))
    return torch.stack([network.linear(x[:, i : i + side, j : j + side].mean((1, 2))) for i, j in places]).mean(0)


@pytest.mark.parametrize(
    ("model", "loop", "stride"), [("mlp", positions, 1), ("lenet5", positions, 4), ("resnet20", maps, 4)]
)
def test_dense_evaluation_matches_a_loop_over_positions(
    photographs: Path,
    fresh_run: Callable[..., Path],
    model: str,
    loop: Callable[[nn.Module, Tensor, int], Tensor],
    stride: int,
) -> None:
    run = fresh_run(model, SIZE, RESIZE, seed=1)
    classifier = Classifier.load(run)
    expected = []
    for path in sorted(photographs.rglob("*.png")):
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        said = []
        for scale in (33, 37):
            picture = normalized(classifier.preprocess, whole(pixels, scale))
            with torch.no_grad():
                scores = [loop(classifier.network, one, stride) for one in (picture, picture.flip(2))]
            said += [one.double().softmax(0) for one in scores]
        expected.append(torch.stack(said).mean(0).log())
    dataset = open_source(photographs)
    how = get_crop_protocol("dense", [33, 37], classifier.preprocess)
    predictor = Predictor(classifier, dataset, how, device=torch.device("cpu"), threads=2)
    found = torch.cat(list(predictor.predict_batches(list(np.arange(12).reshape(-1, 3)))))
    assert found.numpy() == pytest.approx(torch.stack(expected).numpy(), rel=TOLERANCE, abs=TOLERANCE)
    assert found.std(0).max() > 100 * TOLERANCE  # pictures are told apart

    judged = evaluate(run, photographs, crops="dense", scales=[33, 37])
    own = [-float(one[label]) for one, label in zip(expected, dataset.labels, strict=True)]
    assert judged.loss == pytest.approx(np.mean(own), rel=1e-5)


def test_several_scales_are_averaged(photographs: Path, fresh_run: Callable[..., Path]) -> None:
    run = fresh_run("resnet20", SIZE, RESIZE, seed=1)
    classifier, dataset = Classifier.load(run), open_source(photographs)

    def said(scales: list[int]) -> Tensor:
        how = get_crop_protocol("10", scales, classifier.preprocess)
        predictor = Predictor(classifier, dataset, how, device=torch.device("cpu"), threads=1)
        return torch.cat(list(predictor.predict_batches([np.arange(12)]))).exp()

    assert (said([40, 48]) - (said([40]) + said([48])) / 2).abs().max() < TOLERANCE


def test_missing_image_is_named_in_the_error(photographs: Path, fresh_run: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("china", "flower"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "00.png").write_bytes((photographs / name / "00.png").read_bytes())
    classifier, dataset = Classifier.load(fresh_run("resnet20", SIZE, RESIZE, seed=1)), open_source(tmp_path)
    how = get_crop_protocol("144", None, classifier.preprocess)
    predictor = Predictor(classifier, dataset, how, device=torch.device("cpu"), threads=1)
    (tmp_path / "flower" / "00.png").unlink()
    with pytest.raises(DataError, match=r"flower/00\.png cannot be read"):
        list(predictor.predict_batches([np.arange(2)]))
