from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import svertka
from svertka.classifier import Classifier
from svertka.data.loader import BatchLoader
from svertka.models.registry import MODELS
from svertka.tensor_files import read_tensors_and_header
from svertka.training.recipe import Recipe
from svertka.training.training_loop import Callback, TrainingProgress, fit, make_optimizer
from svertka.training.weight_average import WeightAverage


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return MODELS["resnet20"].build(size=8, channels=1)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_average_is_the_weighted_sum_of_all_steps(digit_batches: Callable[..., BatchLoader], decay: float) -> None:
    network, recipe = resnet(), Recipe(epochs=1, lr=0.05, batch_size=64)
    average = WeightAverage(network, decay)
    history: list[dict[str, torch.Tensor]] = [{name: one.clone() for name, one in network.state_dict().items()}]
    update = average.update

    def remembered(step: int) -> None:
        history.append({name: one.clone() for name, one in network.state_dict().items()})
        update(step)

    average.update = remembered  # type: ignore[method-assign]
    fit(network, make_optimizer(network, recipe), digit_batches(), recipe, TrainingProgress(), Callback(), average)
    shares = torch.ones(len(history), dtype=torch.float64)
    for step in range(1, len(history)):
        kept = min(decay, (1 + step) / (10 + step))
        shares[:step] *= kept
        shares[step] *= 1 - kept
    assert float(shares.sum()) == pytest.approx(1)
    assert average.values.keys() == {name for name in history[0] if not name.endswith("num_batches_tracked")}
    for name, value in average.values.items():
        expected = sum(share * one[name].double() for share, one in zip(shares, history, strict=True))
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("quiet")
def test_the_statistics_of_batch_norm_are_those_of_the_averaged_weights(
    digit_batches: Callable[..., BatchLoader],
) -> None:
    network, recipe, batches = resnet(), Recipe(epochs=4, lr=0.05, batch_size=64), digit_batches()
    average = WeightAverage(network, 0.95)
    fit(network, make_optimizer(network, recipe), batches, recipe, TrainingProgress(), Callback(), average)
    live = {name: one.clone() for name, one in network.state_dict().items()}
    images = torch.cat([batch.images for batch in batches.epoch(0)])
    with average.applied(), torch.no_grad():
        averaged = network.eval()(images).log_softmax(1)
        measured_anew = resnet()
        measured_anew.load_state_dict(network.state_dict())
    update_bn([images], measured_anew)  # PyTorch's: from a pass over the images
    with torch.no_grad():
        expected = measured_anew.eval()(images).log_softmax(1)
    assert (averaged.argmax(1) == expected.argmax(1)).double().mean() > 0.99
    assert float((averaged.exp() - expected.exp()).abs().mean()) < 0.01
    for name, value in network.state_dict().items():
        assert torch.equal(value, live[name]), name


@pytest.mark.usefixtures("quiet")
def test_a_run_holds_the_averaged_weights_and_its_errors_are_theirs(digit_folder: Path, tmp_path: Path) -> None:
    options = {"model": "resnet20", "size": 8, "epochs": 2, "batch_size": 16, "threads": 1, "lr": 0.05}
    run = svertka.train(digit_folder, output=tmp_path / "run", ema=0.95, **options)
    tensors, _ = read_tensors_and_header(run.checkpoint)
    saved = Classifier.load(run.folder).network.state_dict()
    names = [name for name in saved if f"average.{name}" in tensors]
    assert len(names) > 50
    if run.history()[-2]["epoch"] == 2 and run.history()[-2]["kept"]:
        for name in names:
            assert torch.equal(saved[name], tensors[f"average.{name}"])
    assert any(not torch.equal(saved[name], tensors[f"network.{name}"]) for name in names)
    judged = svertka.evaluate(run.folder, digit_folder, part="val", threads=1)
    assert judged.top1_error == run.result()["val_error"]
    report = run.report.read_text()
    assert "EMA 0.95" in report


def test_frozen_layers_are_not_averaged() -> None:
    network = resnet()
    parameters = dict(network.named_parameters())
    head = set(list(parameters)[-2:])
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in head)
    average = WeightAverage(network, 0.9)
    assert {name for name in average.values if name in parameters} == head


def test_an_average_of_another_network_is_refused() -> None:
    average = WeightAverage(resnet(), 0.9)
    name = list(average.values)[-1]
    with pytest.raises(ValueError, match=f"the averaged weights differ in {name}"):
        average.load(average.values | {name: torch.zeros(3, 3)})
