"""The optimized network of a run on patches, held against the float network on the same patches."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import svertka
from svertka.classifier import WEIGHTS, Classifier
from svertka.compiler.optimize import Optimized, optimize
from svertka.localization.score_maps import PatchScorer
from svertka.optimized_file import OPTIMIZED, hash_weights

Maker = Callable[..., Classifier]
NAMES = ("a", "b", "background")
SIZE = 16


def images(count: int, side: int) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def optimized(classifier: Classifier, precision: str, count: int = len(NAMES)) -> Optimized:
    """What `optimize_run` makes, of the first `count` classes."""
    config = classifier.config.model_copy(update={"names": NAMES[:count]})
    network = config.build().eval()
    state = classifier.network.state_dict()
    rows = {name: tensor[:count] for name, tensor in state.items() if name.startswith("linear.")}
    network.load_state_dict(state | rows)
    calibration = images(100, SIZE) if precision == "int8" else None
    return optimize(network, (3, SIZE, SIZE), precision=precision, calibration=calibration)


def logits_of_patches(classifier: Classifier) -> tuple[Tensor, torch.nn.Module]:
    """Logits (9, 3) of patches of a larger image, and what computed them from shared maps."""
    network = PatchScorer(classifier).network
    places = torch.cartesian_prod(torch.arange(3), torch.arange(3)).numpy()
    with torch.inference_mode():
        return network(images(1, 2 * SIZE), places), network.rest


@pytest.fixture(scope="module")
def classifier(made: Maker) -> Classifier:
    return made("resnet20", SIZE, SIZE, names=NAMES)


@pytest.fixture(scope="module")
def expected(classifier: Classifier) -> Tensor:
    return logits_of_patches(classifier)[0]


@pytest.mark.parametrize(
    ("precision", "count", "least", "largest"),
    [("fp32", 3, 0, 1e-5), ("int8", 3, 1e-3, 0.2), ("int8", 2, 1e-3, 0.2)],
)
def test_logits_of_patches_are_those_of_the_float_network(
    precision: str, count: int, least: float, largest: float, classifier: Classifier, expected: Tensor
) -> None:
    fast = Classifier(classifier.network, classifier.config)
    fast.optimized = optimized(classifier, precision, count)
    found, rest = logits_of_patches(fast)
    (used,) = (one for one in rest.modules() if isinstance(one, Optimized))
    assert 5 < len(used.layers) < len(fast.optimized.layers)
    assert {one.precision for one in used.layers} == {precision}
    error = float((found - expected).norm() / (expected - expected.mean(0)).norm())
    assert least <= error < largest


def test_a_run_locates_with_its_optimized_network(
    bright_or_dark: Maker, lamp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    classifier = bright_or_dark()
    classifier.save(run)

    def located(factor: float, precision: str | None = None) -> tuple[dict[str, float], str]:
        """The scores, and what is said, with a file of weights that are `factor` times the run's."""
        network = classifier.config.build()
        network.load_state_dict({name: factor * one for name, one in classifier.network.state_dict().items()})
        calibration = torch.linspace(-1, 1, 100)[:, None, None, None].expand(-1, 1, 16, 16)
        fast = optimize(network, (1, 16, 16), precision="int8", calibration=calibration)
        fast.compiled[0].info = replace(fast.info, weights_hash=hash_weights(run / WEIGHTS))
        fast.save(run / OPTIMIZED)
        (image,) = svertka.locate(run, lamp, top=2, precision=precision).images
        return {one.name: one.score for one in image.classes}, capsys.readouterr().err

    floats, said = located(1, "fp32")
    assert said == ""
    found, said = located(1)
    assert "computes with optimized.safetensors, int8; --precision fp32 does without" in said
    assert "cannot be applied" not in said
    assert found != floats
    assert found == pytest.approx(floats, abs=0.02)
    found, said = located(3)  # a file whose layers compute something else
    assert "the optimized network cannot be applied to patches; they are computed in fp32" in said
    assert found == floats
