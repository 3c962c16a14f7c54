"""compare() against `evaluate` and `predict`, which know nothing of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import binomtest

import svertka
from svertka.classifier import Classifier
from svertka.cli.app import main
from svertka.confidence_intervals import paired_difference_interval
from svertka.data.folder_and_table_sources import open_folder
from svertka.errors import RunError, UsageError
from svertka.evaluation.compare import compare, separate_runs_and_source
from svertka.models.registry import describe_model, find_model

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def trained(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two networks that learned the same digits, one of them hardly."""
    folder = tmp_path_factory.mktemp("trained")
    for name, epochs in (("long", 8), ("short", 1)):
        svertka.train(digit_folder, model="mlp", size=8, epochs=epochs, output=folder / name, threads=1, test=0.3)
    return [folder / "long", folder / "short"]


def test_differences_match_predictions_image_by_image(photographs: Path, fresh_run: Make) -> None:
    """Of runs that want other sizes of picture, and have the same classes in another order."""
    runs = [
        fresh_run("resnet20", 32, 40, seed=1),
        fresh_run("mlp", 16, 20, seed=3, names=("flower", "china")),
        fresh_run("resnet20", 24, 24, seed=2),
    ]
    dataset = open_folder(photographs)
    paths = [photographs / dataset.images.name(index) for index in range(len(dataset))]
    wrong = [[Classifier.load(run).predict(path)[0][0] != path.parent.name for path in paths] for run in runs]
    assert len({tuple(one) for one in wrong}) == 3  # otherwise it would prove nothing
    compared = compare(runs, photographs)
    for compared_run, flags in zip(compared.runs, wrong, strict=True):
        assert compared_run.evaluation.wrong.tolist() == flags
        assert compared_run.evaluation.top1_error == sum(flags) / 12
    assert compared.runs[0].difference is None
    for compared_run, flags in list(zip(compared.runs, wrong, strict=True))[1:]:
        here = sum(one and not other for one, other in zip(flags, wrong[0], strict=True))
        first = sum(other and not one for one, other in zip(flags, wrong[0], strict=True))
        found = compared_run.difference
        assert found is not None
        assert (found.only_here, found.only_first) == (here, first)
        assert found.top1_error == pytest.approx((sum(flags) - sum(wrong[0])) / 12)
        assert found.interval == paired_difference_interval(here, first, 12)
        assert found.p == pytest.approx(binomtest(here, here + first).pvalue)
    together = svertka.evaluate(runs, photographs)
    assert compared.ensemble.wrong.tolist() == together.wrong.tolist()
    assert compared.ensemble.loss == pytest.approx(together.loss, rel=1e-6)


def test_size_and_speed_of_each_run(photographs: Path, fresh_run: Make) -> None:
    runs = [fresh_run("resnet20", 32, 40, seed=1, names=("china", "flower")), fresh_run("resnet56", 32, 32, seed=1)]
    small, large = compare(runs, photographs, threads=1).runs
    assert (small.letter, large.letter, large.network) == ("A", "B", "resnet56")
    # The head is of two classes, where the paper's is of ten.
    assert small.parameters == describe_model(find_model("resnet20"))["parameters"] - 8 * 65
    assert large.multiply_adds == describe_model(find_model("resnet56"))["multiply_adds"] - 8 * 64
    assert min(small.speed.seconds, large.speed.seconds, small.speed.per_second, large.speed.per_second) > 0


def test_runs_are_compared_on_their_common_source(trained: list[Path], digit_folder: Path) -> None:
    compared = svertka.compare(trained)
    assert compared.joint.dataset.source == str(digit_folder)
    assert compared.joint.part == "test"
    assert 65 < compared.ensemble.images < 79
    long, short = compared.runs
    assert long.evaluation.top1_error == svertka.Run(trained[0]).result()["test_error"]
    assert [len(one.history) > 2 for one in (long, short)] == [True, True]
    assert short.difference is not None
    assert short.difference.top1_error > 0.1
    assert "B errs more, by +" in compared.sentence
    assert "test\u00a0pictures" not in compared.sentence


def test_command_prints_and_writes_the_comparison(
    trained: list[Path], digit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "comparison.html"
    arguments = ["compare", *map(str, trained), str(digit_folder), "--threads", "1"]
    assert main([*arguments, "--output", str(page)]) == 0
    first, judged, header, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("A gets ")
    assert judged.startswith(f"judged: {digit_folder}, test images")
    assert header.split()[:2] == ["run", "top-1"]
    assert [row.split()[0] for row in rows] == ["A", "B", "ensemble"]
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {key: told[key] for key in ("source", "part")} == {"source": str(digit_folder), "part": "test"}
    long, short = told["runs"]
    assert long["difference_from_first"] is None
    difference = short["difference_from_first"]
    assert difference["top1_error"] == pytest.approx(short["top1_error"] - long["top1_error"])
    assert difference["interval"][0] < difference["top1_error"] < difference["interval"][1]
    assert set(short) == {
        "run", "model", "precision", "optimized", "parameters", "multiply_adds", "seconds_per_image",
        "images_per_second", "top1_error", "top1_interval", "top5_error", "top5_interval", "loss", "calibration_error",
        "temperature", "unknown_images", "unknown_share", "per_class", "difference_from_first", "at_chance",
        "never_predicted",
    }  # fmt: skip
    assert told["together"]["top1_error"] <= short["top1_error"]


def test_runs_that_cannot_be_compared_are_refused(
    trained: list[Path], photographs: Path, fresh_run: Make, tmp_path: Path
) -> None:
    one, other = fresh_run("mlp", 16, 16, seed=1), fresh_run("mlp", 16, 16, seed=2, names=("china", "tulip"))
    with pytest.raises(UsageError, match="know different classes .flower only in"):
        compare([one, other], photographs)
    with pytest.raises(UsageError, match="mlp-1 has nothing to be compared with; name two runs or more"):
        compare([one], photographs)
    with pytest.raises(UsageError, match="nothing has nothing to be compared"):
        compare([], photographs)
    with pytest.raises(UsageError, match="mlp-1 is named twice"):
        compare([one, one], photographs)
    with pytest.raises(UsageError, match="27 runs are too many"):
        compare([tmp_path / str(number) for number in range(27)], photographs)
    with pytest.raises(UsageError, match="mlp-1 does not say what it was trained on; name a SOURCE"):
        compare([trained[0], one])
    elsewhere = tmp_path / "elsewhere"
    svertka.train("digits", model="mlp", epochs=0.1, output=elsewhere, threads=1)
    with pytest.raises(UsageError, match="long was trained on /.* and .*elsewhere on digits; name the SOURCE"):
        compare([trained[0], elsewhere])
    with pytest.raises(RunError, match="nowhere is not a run folder"):
        compare([one, tmp_path / "nowhere"], photographs)
    (elsewhere / "training.json").write_text("{")
    with pytest.raises(RunError, match=r"training.json is damaged"):
        compare([elsewhere, trained[0]])


def test_last_argument_is_a_source_unless_it_is_a_run(trained: list[Path], digit_folder: Path, tmp_path: Path) -> None:
    long, short = map(str, trained)
    assert separate_runs_and_source([long, short]) == ([long, short], None)
    assert separate_runs_and_source([long, "resnet50:imagenet"]) == ([long, "resnet50:imagenet"], None)
    for source in ("digits", str(digit_folder), str(tmp_path / "pictures.csv"), "data/a:b"):
        assert separate_runs_and_source([long, short, source]) == ([long, short], source)
    assert separate_runs_and_source([long]) == ([long], None)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "training.json").write_text("{}")
    assert separate_runs_and_source([long, str(unfinished)]) == ([long, str(unfinished)], None)


@pytest.mark.usefixtures("quiet")
def test_moved_source_is_an_error_that_asks_for_it(digit_folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(digit_folder, tmp_path / "data"))
    runs = [
        svertka.train(data, model="mlp", size=8, epochs=1, output=tmp_path / name, threads=1).folder for name in "ab"
    ]
    data.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=r"no longer in .*/data; name their folder: svertka compare .*/a .*/b SOURCE"):
        compare(runs, threads=1)
    assert compare(runs, tmp_path / "moved", threads=1).joint.part == "val"
