"""Figures of runs and networks that are damaged, unusual or not for this figure: right, or refused with a sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import svertka
from svertka import inspection, plot
from svertka.errors import RunError, UsageError
from svertka.evaluation.training_curves import TrainingCurves
from svertka.run import Run

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def make_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 2))


def write_history(folder: Path, task: dict[str, Any], lines: list[dict[str, Any]]) -> Path:
    """Write what the figures of a training read: the task and metrics.jsonl."""
    config = {
        "format": 1, "model": "lenet5", "names": ["size"] if task["kind"] == "regression" else ["a", "b"],
        "preprocess": {"size": 28, "resize": 28, "mean": [0.5], "std": [0.5]}, "task": task,
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


EPOCH = {"kind": "epoch", "epoch": 1, "train_loss": 0.5, "val_loss": 8.0, "train_error": 0.25, "val_error": 6.5}


@pytest.mark.parametrize(
    ("task", "loss", "error", "drawn"),
    [
        ({"kind": "single-label"}, "loss, nats", "top-1 error, %", 650),
        ({"kind": "multi-label"}, "loss, nats", "wrong labels, %", 650),
        ({"kind": "regression", "mean": 1.0, "std": 2.0}, "loss", "mean absolute error", 6.5),
    ],
)
def test_learning_curves_have_the_unit_of_the_task(
    tmp_path: Path, task: dict[str, Any], loss: str, error: str, drawn: float
) -> None:
    finder = {"kind": "range_test", "learning_rate": [0.1, 1.0], "loss": [2.0, 1.0], "chosen": 0.5}
    run = write_history(tmp_path / "run", task, [finder, EPOCH])
    figure = plot.learning_curves(run)
    assert [axis.get_title(loc="left") for axis in figure.axes] == [loss, error, "learning rate"]
    assert [list(line.get_ydata()) for line in figure.axes[1].lines][-1] == [drawn]
    assert plot.lr_finder(run).axes[0].get_ylabel() == loss


@pytest.mark.parametrize(
    "finder",
    [
        {"learning_rate": 3, "loss": "abc"},
        {"learning_rate": [-1.0, 0.0, 2.0], "loss": [1.0, 1.0, 1.0]},
        {"learning_rate": [1.0, 2.0], "loss": [None, 1.0]},
        {"learning_rate": ["a", 2.0], "loss": [1.0, 1.0]},
        {},
    ],
)
def test_a_curve_of_the_finder_without_two_points_is_refused(tmp_path: Path, finder: dict[str, Any]) -> None:
    run = write_history(tmp_path / "run", {"kind": "single-label"}, [{"kind": "range_test", **finder}, EPOCH])
    with pytest.raises(UsageError, match="has no curve of the learning-rate finder"):
        plot.lr_finder(run)
    assert "NaN" not in TrainingCurves(Run(run).history()).lr_finder_html()


def test_points_of_the_finder_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    finder = {"kind": "range_test", "learning_rate": [0.1, "a", -1, 0.2, 0.4], "loss": [2.0, 1.0, 1.0, None, 3.0]}
    run = write_history(tmp_path / "run", {"kind": "single-label"}, [finder])
    assert plot.lr_finder(run).axes[0].lines[0].get_xydata().tolist() == [[0.1, 2.0], [0.4, 3.0]]


def test_a_training_without_numbers_is_refused_and_losses_of_zero_are_drawn(tmp_path: Path) -> None:
    empty = {"kind": "epoch", "epoch": 1, "train_loss": None, "val_error": "high"}
    run = write_history(tmp_path / "empty", {"kind": "single-label"}, [empty])
    with pytest.raises(UsageError, match="has no recorded epoch or step yet"):
        plot.learning_curves(run)
    zero = EPOCH | {"train_loss": 0.0, "val_loss": 0.0}
    figure = plot.learning_curves(write_history(tmp_path / "zero", {"kind": "single-label"}, [zero]))
    assert figure.axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("function", [plot.learning_curves, plot.lr_finder, plot.show_batch, plot.layer_table])
def test_a_folder_that_is_no_run_is_called_so(function: Callable[..., Figure], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder; name one that `svertka train` made"):
        function(tmp_path / "nowhere")


def test_a_batch_shows_labels_and_numbers_in_words(run: Run, tmp_path: Path, digit_folder: Path) -> None:
    files = sorted(digit_folder.rglob("*.png"))[:6]
    for name, column, values in (
        ("labels", "labels", ["round|thin", "thin", "", "round", "thin", "round|thin"]),
        ("numbers", "target", ["0.1", "1.5", "2.5", "3.5", "4.5", "5.5"]),
    ):
        table = tmp_path / f"{name}.csv"
        rows = (f"{path},{value}" for path, value in zip(files, values, strict=True))
        table.write_text("\n".join(["path,what", *rows]))
        folder = tmp_path / name
        shutil.copytree(run.folder, folder)
        settings = json.loads((folder / "training.json").read_text())
        settings |= {"source": str(table), "columns": f"path=path,{column}=what"}
        (folder / "training.json").write_text(json.dumps(settings))
        (folder / "manifest.safetensors").unlink()
        shown = plot.show_batch(folder, count=6, draws=1).axes[:6]
        assert [axis.get_title() for axis in shown] == values


@pytest.mark.parametrize(
    ("change", "function", "message"),
    [
        (lambda network: network[0].weight.data.fill_(torch.nan), plot.first_layer_filters, "complex, NaN or infinite"),
        (lambda network: network[0].weight.data.fill_(torch.inf), plot.first_layer_filters, "complex, NaN or infinite"),
        (lambda network: network[0].bias.data.fill_(torch.nan), plot.feature_maps, "layer=0 gives values that are NaN"),
        (lambda network: network[0].bias.data.fill_(torch.inf), plot.feature_maps, "layer=0 gives values that are NaN"),
        (lambda network: network[0].weight.data.fill_(torch.nan), plot.top_patches, "layer=0 gives NaN"),
        (lambda network: network[0].weight.data.fill_(torch.nan), plot.projections, "layer=0 gives NaN"),
        (lambda network: network.to("meta"), plot.feature_maps, "weights on the meta device"),
        (lambda network: network.to("meta"), plot.top_patches, "weights on the meta device"),
    ],
)
def test_weights_without_finite_values_are_refused(
    change: Callable[[nn.Module], Any], function: Callable[..., Figure], message: str
) -> None:
    network = make_network()
    change(network)
    arguments = () if function is plot.first_layer_filters else (IMAGES, "0")
    with pytest.raises(UsageError, match=message):
        function(network, *arguments)


@pytest.mark.parametrize(
    "function",
    [
        plot.first_layer_filters,
        lambda network: plot.feature_maps(network, IMAGES, "0"),
        lambda network: plot.top_patches(network, IMAGES),
        lambda network: plot.projections(network, IMAGES),
        lambda network: plot.saliency(network, IMAGES),
        lambda network: plot.receptive_fields(network, 16),
        lambda network: plot.layer_table(network, 16),
        lambda network: svertka.summary(network, 16),
        lambda network: inspection.layer_outputs(network, IMAGES, ["0"]),
        lambda network: inspection.guided_backpropagation(network, IMAGES, 0),
        inspection.get_first_layer_filters,
    ],
)
def test_lazy_layers_are_refused_and_stay_lazy(function: Callable[[nn.Module], Any]) -> None:
    network = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(UsageError, match=r"Sequential has a lazy layer \(0.weight\), which has no weights yet"):
        function(network)
    assert isinstance(network[0], nn.LazyConv2d)


@pytest.mark.parametrize("function", [plot.feature_maps, plot.top_patches, plot.projections])
def test_no_units_are_refused(function: Callable[..., Figure]) -> None:
    with pytest.raises(UsageError, match="units is empty; name at least one of the layer's 4"):
        function(make_network(), IMAGES, "0", units=[])
