"""Runs of several labels and of a number, through the verbs that support them; the others refuse them."""

import csv
import html
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

import svertka
from svertka.classifier import Classifier, Config
from svertka.cli.app import main
from svertka.data.preprocessing import Preprocess
from svertka.errors import DataError, SvertkaError, UsageError
from svertka.evaluation.metric_difference import MetricDifference
from svertka.evaluation.multi_label_metrics import MultiLabelEvaluation
from svertka.evaluation.regression_metrics import RegressionEvaluation
from svertka.run import Run
from svertka.tasks import MultiLabel, Regression

Runs, Tables = dict[str, Run], dict[str, Path]


def test_labels_are_learned_and_thresholds_come_from_val(task_runs: Runs, task_tables: Tables) -> None:
    run = task_runs["multi-label"]
    task = run.classifier().task
    assert isinstance(task, MultiLabel)
    assert len(task.thresholds) == 3
    result = run.result()
    assert result["part"] == "test"
    found = svertka.evaluate(run, str(task_tables["multi-label"]), threads=1)
    assert isinstance(found, MultiLabelEvaluation)
    assert found.images == result["images"]
    assert found.mean_average_precision == pytest.approx(result["metrics"]["mean_average_precision"], abs=1e-6)
    of_label = {one.name: one.average_precision for one in found.per_label}
    assert min(of_label["top"] or 0, of_label["left"] or 0) > 0.95
    assert "thresholds were chosen on these images" not in found.sentence
    on_val = svertka.evaluate(run, str(task_tables["multi-label"]), part="val", threads=1)
    assert "thresholds were chosen on these images" in on_val.sentence
    report = run.report.read_text()
    assert "mAP" in report
    assert "Thresholds were chosen on validation pictures alone." in report


def test_a_number_is_learned(task_runs: Runs, task_tables: Tables) -> None:
    run = task_runs["regression"]
    task = run.classifier().task
    assert isinstance(task, Regression)
    assert 50 < task.mean < 160
    found = svertka.evaluate(run, str(task_tables["regression"]), threads=1)
    assert isinstance(found, RegressionEvaluation)
    assert found.r2 > 0.8
    assert found.error == pytest.approx(run.result()["test_error"], rel=1e-5)
    assert "Predicted against true" in run.report.read_text()


def test_strata_of_the_split_are_even(task_runs: Runs, task_tables: Tables) -> None:
    settings = task_runs["multi-label"].settings()
    assert settings["parts"]["test"] == pytest.approx(60, abs=3)
    assert settings["parts"]["val"] == pytest.approx(20, abs=3)


def test_predictions_of_labels(task_runs: Runs, task_tables: Tables, capsys: pytest.CaptureFixture[str]) -> None:
    run, image = task_runs["multi-label"], task_tables["multi-label"].parent / "0.png"
    (one,) = svertka.predict(run, str(image), threads=1)
    shares = [label["probability"] for label in one["labels"]]
    assert shares == sorted(shares, reverse=True)
    task = run.classifier().task
    assert isinstance(task, MultiLabel)
    thresholds = dict(zip(run.classifier().names, task.thresholds, strict=True))
    assert [label["predicted"] for label in one["labels"]] == [
        label["probability"] >= thresholds[label["name"]] for label in one["labels"]
    ]
    assert main(["predict", str(run.folder), str(image), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    wanted = [label["name"] for label in one["labels"] if label["predicted"]]
    assert [row["name"] for row in rows] == wanted or [""]


def test_predictions_of_a_number(task_runs: Runs, task_tables: Tables, capsys: pytest.CaptureFixture[str]) -> None:
    run, image = task_runs["regression"], task_tables["regression"].parent / "0.png"
    assert main(["predict", str(run.folder), str(image), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["labels"], one["number"]["name"]) == ([], "target")
    assert main(["predict", str(run.folder), str(image), "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert float(row["value"]) == one["number"]["value"]
    assert main(["predict", str(run.folder), str(image)]) == 0
    assert f"target {one['number']['value']:.6g}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_onnx_with_preprocessing_predicts_the_same(
    kind: str, task_runs: Runs, task_tables: Tables, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    image = task_tables[kind].parent / "0.png"
    svertka.export(task_runs[kind], tmp_path / "model.onnx", images=[str(image)], preprocessing=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    from PIL import Image

    (found,) = session.run(None, {"pictures": np.asarray(Image.open(image).convert("RGB"))[None]})
    classifier = task_runs[kind].classifier()
    wanted = classifier.probabilities([classifier.preprocess(str(image))])[0]
    scale = classifier.task.std if isinstance(classifier.task, Regression) else 1.0
    np.testing.assert_allclose(found[0], wanted, atol=0.01 * scale)
    task = json.loads(session.get_modelmeta().custom_metadata_map["task"])
    assert task == json.loads(classifier.task.model_dump_json())


def _with_other_weights(run: Run) -> Classifier:
    """Return the classifier of a run with noise on its weights, which is worse than the run."""
    classifier, noise = run.classifier(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in classifier.network.parameters():
            weight += 0.3 * weight.abs().mean() * torch.randn(weight.shape, generator=noise)
    return classifier


@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_runs_are_compared_by_the_metric_of_their_task(
    kind: str, task_runs: Runs, task_tables: Tables, tmp_path: Path
) -> None:
    run, source = task_runs[kind], str(task_tables[kind])
    page = tmp_path / "comparison.html"
    other = _with_other_weights(run)
    found = svertka.compare([run, other], source, output=str(page), threads=1)
    one, two = (svertka.evaluate(some, source, threads=1) for some in (run, other))
    difference = found.runs[1].difference
    assert isinstance(difference, MetricDifference)
    assert difference.to_dict()["interval"] == difference.interval
    if isinstance(one, RegressionEvaluation) and isinstance(two, RegressionEvaluation):
        assert difference.value == pytest.approx(two.error - one.error)
        of_images = np.abs(two.predicted - two.targets) - np.abs(one.predicted - one.targets)
        wanted = bootstrap((of_images,), np.mean, method="percentile", n_resamples=4000, rng=0).confidence_interval
        assert difference.interval == pytest.approx(wanted, abs=0.1 * (wanted[1] - wanted[0]))
        assert "is worse, by +" in found.sentence
    elif isinstance(one, MultiLabelEvaluation) and isinstance(two, MultiLabelEvaluation):
        assert difference.value == pytest.approx(two.mean_average_precision - one.mean_average_precision)
        assert difference.interval[0] <= difference.value <= difference.interval[1]
    text = page.read_text()
    assert found.sentence in html.unescape(text)
    assert ("Average precision of each run" in text) == (kind == "multi-label")


@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_an_ensemble_averages_probabilities_or_numbers(kind: str, task_runs: Runs, task_tables: Tables) -> None:
    run, source = task_runs[kind], str(task_tables[kind])
    other = _with_other_weights(run)
    if isinstance(other.task, Regression):  # as if it had been trained on other numbers
        other.config = other.config.model_copy(
            update={"task": Regression(mean=other.task.mean + 3, std=other.task.std)}
        )
    alone = [svertka.evaluate(some, source, threads=1) for some in (run, other)]
    found = svertka.evaluate([run, other], source, threads=1)
    for name in ("predicted",) if kind == "regression" else ("probabilities",):
        mean = np.mean([getattr(one, name) for one in alone], axis=0)
        np.testing.assert_allclose(getattr(found, name), mean, rtol=1e-4, atol=1e-5)


def test_runs_of_different_tasks_are_not_compared(task_runs: Runs, task_tables: Tables) -> None:
    with pytest.raises(UsageError, match="predicts several labels an image, and .* predicts a number for an image"):
        svertka.compare([task_runs["multi-label"], task_runs["regression"]], str(task_tables["multi-label"]))


REFUSING: dict[str, Callable[[Run, str, Path], Any]] = {
    "look": lambda run, table, to: svertka.look(run, table, output=str(to)),
    "locate": lambda run, table, to: svertka.locate(run, table.replace("labels.csv", "0.png")),
    "optimize": lambda run, table, to: svertka.optimize_run(run),
    "suggest": lambda run, table, to: svertka.suggest(run, str(Path(table).parent)),
    "extend": lambda run, table, to: svertka.extend(run, table),
    "int8": lambda run, table, to: svertka.export(run, to / "model.onnx", precision="int8"),
    "a folder": lambda run, table, to: svertka.export(run, to / "hub"),
}


@pytest.mark.parametrize("verb", REFUSING)
@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_other_verbs_refuse_the_run(kind: str, verb: str, task_runs: Runs, task_tables: Tables, tmp_path: Path) -> None:
    with pytest.raises(SvertkaError, match="with runs of one class an image, and .* predicts (several|a number)"):
        REFUSING[verb](task_runs[kind], str(task_tables[kind]), tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repeats": 3, "test": 0.3}, "--repeats works with one class an image"),
        ({"model": "auto"}, "model=auto works with one class an image"),
        ({"class_weights": True}, "class_weights needs one class an image, and .* has several labels an image"),
        ({"head": "nearest-mean"}, "head=nearest-mean needs one class an image"),
        ({"model": "lenet5"}, "lenet5 computes distances to the codes of classes, .* use another network"),
    ],
)
def test_options_of_one_class_are_refused(
    options: dict[str, Any], said: str, task_tables: Tables, tmp_path: Path
) -> None:
    with pytest.raises((UsageError, DataError), match=said):
        svertka.train(str(task_tables["multi-label"]), output=str(tmp_path / "run"), **options)


def test_images_labeled_in_another_way_are_refused(task_runs: Runs, task_tables: Tables, digit_folder: Path) -> None:
    with pytest.raises(DataError, match="predicts several labels an image, and .* has a number for an image"):
        svertka.evaluate(task_runs["multi-label"], str(task_tables["regression"]))
    with pytest.raises(DataError, match="predicts a number for an image, and .* has one class an image"):
        svertka.evaluate(task_runs["regression"], str(digit_folder))
    with pytest.raises(DataError, match="check works with one class an image"):
        svertka.check(str(task_tables["multi-label"]))


@pytest.mark.parametrize(
    ("kind", "metric", "least"), [("multi-label", "mean_average_precision", 0.6), ("regression", "r2", 0.5)]
)
def test_computed_heads(kind: str, metric: str, least: float, task_tables: Tables, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "efficientnet_lite0", "weights": "bundled", "head": "logistic", "size": 32}
    run = svertka.train(str(task_tables[kind]), output=str(tmp_path / "run"), threads=1, test=0.3, **options)
    assert run.result()["metrics"][metric] > least


def test_one_class_an_image_is_stored_as_before() -> None:
    config = Config(
        model="lenet5", names=("cat", "dog"), preprocess=Preprocess(size=8, resize=8, mean=(0.5,), std=(0.5,))
    )
    assert "task" not in config.model_dump()
    assert Config.model_validate(config.model_dump()) == config
    with pytest.raises(ValueError, match="thresholds of task must be as many as names"):
        Config.model_validate(config.model_dump() | {"task": {"kind": "multi-label", "thresholds": [0.5]}})
