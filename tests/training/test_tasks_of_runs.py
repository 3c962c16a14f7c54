"""Runs of several labels and of a number, through the verbs that support them; the others refuse them."""

import csv
import html
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import bootstrap

import svertka
from svertka.classifier import Classifier, Config
from svertka.cli.app import main
from svertka.curation.dataset_findings import describe_findings
from svertka.data.preprocessing import Preprocess
from svertka.data.source_opener import open_source
from svertka.errors import DataError, UsageError
from svertka.evaluation import optimize_run as optimize_module
from svertka.evaluation.metric_difference import MetricDifference
from svertka.evaluation.multi_label_metrics import MultiLabelEvaluation
from svertka.evaluation.regression_metrics import RegressionEvaluation
from svertka.run import Run
from svertka.tasks import MultiLabel, Regression
from svertka.training.repeated_splits import Repeats

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
    (found,) = session.run(None, {"pictures": np.asarray(Image.open(image).convert("RGB"))[None]})
    classifier = task_runs[kind].classifier()
    wanted = classifier.probabilities([classifier.preprocess(str(image))])[0]
    scale = classifier.task.std if isinstance(classifier.task, Regression) else 1.0
    np.testing.assert_allclose(found[0], wanted, atol=1e-4 * scale)
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
    assert ("Training loss, nats" in text) == ("gets wrong" in text) == (kind == "multi-label")
    assert ("predicts less well" in text) == (kind == "regression")


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


@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_suggested_images_are_copied_with_a_table_of_predictions(
    kind: str, task_runs: Runs, task_tables: Tables, tmp_path: Path
) -> None:
    run, new = task_runs[kind], tmp_path / "new"
    new.mkdir()
    for number in range(4):  # mirrored, so that the run does not know them
        with Image.open(task_tables[kind].parent / f"{number}.png") as opened:
            opened.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(new / f"{number}.png")
    found = svertka.suggest(run, new, count=2, sort_into=tmp_path / "review", threads=1)
    table = tmp_path / "review" / "labels.csv"
    assert found.table == str(table)
    header, *rows = table.read_text().splitlines()
    assert header == {"multi-label": "path,label", "regression": "path,target"}[kind]
    for line, one in zip(rows, found.suggestions, strict=True):
        name, _, text = line.partition(",")
        assert one.copy == str(tmp_path / "review" / name)
        assert Path(str(one.copy)).read_bytes() == (new / name).read_bytes()
        (predicted,) = svertka.predict(run, new / name, threads=1)
        if kind == "multi-label":
            wanted = {label["name"] for label in predicted["labels"] if label["predicted"]}
            assert set(text.split("|")) - {""} == wanted
        else:
            assert float(text) == pytest.approx(predicted["number"]["value"], rel=1e-4)
    read = open_source(str(tmp_path / "review"))
    assert (read.task.kind, len(read)) == (kind, 2)

    table.write_text(f"{header}\n{rows[0].partition(',')[0]},{'luck|' if kind == 'multi-label' else '1.5'}")
    svertka.suggest(run, new, count=4, sort_into=tmp_path / "review", threads=1)
    after = table.read_text().splitlines()
    assert after[:2] == [header, f"{rows[0].partition(',')[0]},{'luck|' if kind == 'multi-label' else '1.5'}"]
    assert sorted(line.partition(",")[0] for line in after[1:]) == ["0.png", "1.png", "2.png", "3.png"]
    table.write_text("path,part\n")
    with pytest.raises(UsageError, match=f"has other columns than {header}, to which rows would be added; name anot"):
        svertka.suggest(run, new, sort_into=tmp_path / "review", threads=1)


@pytest.mark.filterwarnings("ignore:.*calibration images")
@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_int8_files_keep_labels_and_numbers(kind: str, task_runs: Runs, task_tables: Tables, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run, image = task_runs[kind], task_tables[kind].parent / "0.png"
    made = svertka.export(run, tmp_path / "model.onnx", precision="int8", preprocessing=True)
    assert made.int8 is not None
    assert made.int8.float_agreement >= 0.9
    assert {"multi-label": "keep the labels of", "regression": "the number of"}[kind] in made.sentence
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {"pictures": np.asarray(Image.open(image).convert("RGB"))[None]})
    classifier = run.classifier()
    wanted = classifier.probabilities([classifier.preprocess(str(image))])[0]
    scale = classifier.task.std if isinstance(classifier.task, Regression) else 1.0
    np.testing.assert_allclose(found[0], wanted, atol=0.15 * scale)


@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_a_folder_for_the_hub_predicts_the_same(
    kind: str, task_runs: Runs, task_tables: Tables, tmp_path: Path
) -> None:
    run, image = task_runs[kind], str(task_tables[kind].parent / "0.png")
    svertka.export(run, tmp_path / "hub")
    assert svertka.predict(tmp_path / "hub", image, threads=1) == svertka.predict(run, image, threads=1)
    card = (tmp_path / "hub" / "README.md").read_text()
    assert run.result()["sentence"] in card
    assert "class" not in card.split("---")[2]


def test_labels_are_located_and_a_number_is_not(task_runs: Runs, tmp_path: Path) -> None:
    pixels = np.full((48, 48), 40, np.uint8)
    pixels[:24] = 210
    (found,) = svertka.locate(task_runs["multi-label"], pixels, top=3, threads=1).images
    scores = {one.name: one.score for one in found.classes}
    assert set(scores) == {"top", "left", "luck"}
    assert all(0 <= score <= 1 for score in scores.values())
    assert scores["top"] > scores["left"]
    with pytest.raises(UsageError, match="locate needs classes or labels, and .* predicts a number for an image"):
        svertka.locate(task_runs["regression"], pixels)


def test_labels_and_numbers_are_checked(task_tables: Tables, tmp_path: Path) -> None:
    found = svertka.check(str(task_tables["multi-label"]), threads=1)
    rows = list(csv.DictReader(task_tables["multi-label"].read_text().splitlines()))
    assert (found.images, found.parts["train"] + found.parts["val"]) == (200, 200)
    assert found.classes == {
        name: sum(name in row["label"].split("|") for row in rows) for name in ("left", "luck", "top")
    }
    assert describe_findings(found)[0].endswith("200 images, 3 labels, several an image")
    folder = tmp_path / "copies"
    folder.mkdir()
    for number in range(12):
        shutil.copy(task_tables["regression"].parent / f"{number % 11}.png", folder / f"{number}.png")
    (folder / "numbers.csv").write_text("path,target\n" + "".join(f"{n}.png,{n + 0.5}\n" for n in range(12)))
    found = svertka.check(str(folder / "numbers.csv"), threads=1)
    assert found.to_dict()["numbers"] == {"smallest": 0.5, "median": 6.0, "largest": 11.5}
    assert found.imbalance is None
    (copies,) = found.duplicates
    assert copies.classes == ("0.5", "11.5")
    assert any("across numbers (0.5, 11.5)" in line for line in describe_findings(found))


def test_what_to_label_next_is_suggested(task_runs: Runs, task_tables: Tables, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for number in range(6):
        half = np.full((12, 12), 40, np.uint8)
        half[:6] += 80 if number % 2 else 20 + number  # unsure
        Image.fromarray(half + rng.integers(0, 3, (12, 12), np.uint8)).save(tmp_path / f"new{number}.png")
    shutil.copy(task_tables["multi-label"].parent / "0.png", tmp_path)
    for kind in ("multi-label", "regression"):
        found = svertka.suggest(task_runs[kind], tmp_path, count=4, threads=1)
        assert (found.compared, found.known, len(found.suggestions)) == (6, 1, 4)
        scores = [one.score for one in found.suggestions]
        assert scores == sorted(scores, reverse=True)
        first, run = found.suggestions[0], task_runs[kind]
        (answer,) = svertka.predict(run, first.path, threads=1)
        if kind == "regression":
            assert first.number == pytest.approx(answer["number"]["value"], rel=1e-5)
            assert first.classes == ()
        else:
            shares = [label["probability"] for label in answer["labels"]]
            assert first.score == pytest.approx(np.mean([1 - abs(2 * share - 1) for share in shares]), abs=1e-4)


def test_suggestions_of_a_run_of_a_number_fail_before_anything_is_computed(
    task_runs: Runs, task_tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(task_runs["regression"].folder, tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "training.json").read_text())
    (tmp_path / "run" / "training.json").write_text(json.dumps(settings | {"source": str(tmp_path / "moved.csv")}))
    monkeypatch.setattr("svertka.curation.suggest.compute_features", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(UsageError, match="cannot open them"):
        svertka.suggest(tmp_path / "run", task_tables["regression"].parent, threads=1)


def test_the_reason_that_no_precision_is_good_enough_is_that_of_those_that_were_measured(
    task_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if int8 was refused before, for another reason."""
    shutil.copytree(task_runs["regression"].folder, tmp_path / "run")
    whole = optimize_module.optimize

    def without_int8(*arguments: Any, **options: Any) -> Any:
        if options.get("precision") == "int8":
            raise UsageError("int8 is off by half")
        return whole(*arguments, **options)

    monkeypatch.setattr(optimize_module, "optimize", without_int8)
    monkeypatch.setattr(optimize_module.PrecisionReport, "is_within_bound", False)
    with pytest.raises(UsageError, match=r"mean absolute error of .* loses .*, and more than max_loss=0.005 in every"):
        svertka.optimize_run(tmp_path / "run", threads=1)


@pytest.mark.parametrize("precision", ["auto", "bf16"])
@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_runs_are_optimized_by_the_metric_of_their_task(
    kind: str, precision: str, task_runs: Runs, task_tables: Tables, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(task_runs[kind].folder, folder)
    made = svertka.optimize_run(folder, precision=precision, threads=1)
    found = svertka.evaluate(folder, str(task_tables[kind]), part="val", threads=1)
    told = made.to_dict()["accuracy"]
    if isinstance(found, MultiLabelEvaluation):
        assert told["mean_average_precision_after"] == pytest.approx(found.mean_average_precision, abs=1e-6)
        assert made.sentence.split(": ")[1].startswith("mAP ")
    elif isinstance(found, RegressionEvaluation):
        assert told["mean_absolute_error_after"] == pytest.approx(found.error, rel=1e-4)
    assert precision == "bf16" or told["loss"] <= 0.005


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_the_atlas_shows_labels_and_numbers(kind: str, task_tables: Tables, tmp_path: Path) -> None:
    table = task_tables[kind]
    run = svertka.train(
        str(table), model="resnet20", output=str(tmp_path / "run"), test=0.3, epochs=0.1, size=12, threads=1
    )
    found = svertka.look(run, str(table), layers=["conv1"], units=3, images=12, threads=1)
    text = (found.page.parent / "data/pictures.js").read_text()
    names = json.loads(text.split("]=", 1)[1].removesuffix(";\n"))["names"]
    facts = json.loads(html.unescape(found.page.read_text().split('id="facts">')[1].split("</script>")[0]))
    truths = dict(line.split(",") for line in table.read_text().splitlines()[1:])
    assert len(names) > 3
    for name, label, guess in names:
        file = Path(name).name
        (answer,) = svertka.predict(run, str(table.parent / file), threads=1)
        if kind == "regression":
            assert float(facts["classes"][label]) == float(truths[file])
            assert float(guess) == pytest.approx(answer["number"]["value"], rel=2e-3)
        else:
            assert set(facts["classes"][label].split("|")) == set((truths[file] or "no label").split("|"))
            assert facts["predicted"][guess] == answer["labels"][0]["name"]


@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_arrays_with_labels_and_numbers(kind: str, task_tables: Tables, tmp_path: Path) -> None:
    rows = list(csv.DictReader(task_tables[kind].read_text().splitlines()))
    images = np.stack([np.asarray(Image.open(task_tables[kind].parent / row["path"])) for row in rows])
    if kind == "regression":
        labels: Any = np.array([float(row["target"]) for row in rows])
    else:
        labels = np.array([[name in row["label"].split("|") for name in ("top", "left", "luck")] for row in rows])
    run = svertka.train((images, labels), model="mlp", output=str(tmp_path / "run"), epochs=1, size=12, threads=1)
    classifier = run.classifier()
    assert (classifier.task.kind, classifier.names) == (
        kind, ("target",) if kind == "regression" else ("0", "1", "2")
    )  # fmt: skip
    found = svertka.evaluate(run, (images, labels), part="val", threads=1)
    assert found.images == run.settings()["parts"]["val"]


@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_repeats_state_the_metric_of_the_task(kind: str, task_tables: Tables, tmp_path: Path) -> None:
    found = svertka.train(
        str(task_tables[kind]), model="mlp", repeats=2, test=0.3, output=str(tmp_path / "runs"), epochs=1, size=12,
        threads=1,
    )  # fmt: skip
    assert isinstance(found, Repeats)
    name = "mean_average_precision" if kind == "multi-label" else "mean_absolute_error"
    assert list(found.errors) == [run.result()["metrics"][name] for run in found.runs]
    assert found.interval[0] <= found.mean <= found.interval[1]
    assert f"test {'mAP' if kind == 'multi-label' else 'mean absolute error'} " in found.sentence


@pytest.mark.parametrize(
    ("options", "said"),
    [
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
    with pytest.raises(DataError, match="predicts a number for an image, and .* has several labels an image"):
        svertka.look(task_runs["regression"], str(task_tables["multi-label"]), layers=["0"])


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("kind", "metric", "least"), [("multi-label", "mean_average_precision", 0.6), ("regression", "r2", 0.5)]
)
def test_computed_heads(kind: str, metric: str, least: float, task_tables: Tables, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "efficientnet_lite0", "weights": "bundled", "head": "logistic", "size": 32}
    run = svertka.train(str(task_tables[kind]), output=str(tmp_path / "run"), threads=1, test=0.3, **options)
    assert run.result()["metrics"][metric] > least


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_few_images_are_cross_validated(kind: str, task_tables: Tables, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "efficientnet_lite0", "weights": "bundled", "size": 32, "epochs": 4, "lr": 0.1}
    run = svertka.train(str(task_tables[kind]), output=str(tmp_path / "run"), threads=1, test=0.3, **options)
    validated, metrics = run.cross_validation(), run.result()["metrics"]
    assert validated is not None
    name = "mean_average_precision" if kind == "multi-label" else "mean_absolute_error"
    assert validated["metric"] == name.replace("_", " ").replace("mean average precision", "mAP")
    low, high = validated["interval"]
    assert low < validated["error"] < high
    # Both estimate the same, on other images.
    assert low < metrics[f"{name}_high"]
    assert high > metrics[f"{name}_low"]
    assert f"cross-validated {validated['metric']} " in run.report.read_text()


def test_one_class_an_image_is_stored_as_before() -> None:
    config = Config(
        model="lenet5", names=("cat", "dog"), preprocess=Preprocess(size=8, resize=8, mean=(0.5,), std=(0.5,))
    )
    assert "task" not in config.model_dump()
    assert Config.model_validate(config.model_dump()) == config
    with pytest.raises(ValueError, match="thresholds of task must be as many as names"):
        Config.model_validate(config.model_dump() | {"task": {"kind": "multi-label", "thresholds": [0.5]}})
