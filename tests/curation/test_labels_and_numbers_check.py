"""`check --labels` on several labels and on numbers with planted errors, and the corrections of what it finds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from svertka.curation import label_check
from svertka.curation.apply_corrections import apply_corrections
from svertka.curation.doubtful_labels_and_numbers import find_doubtful_labels, find_doubtful_numbers
from svertka.curation.label_check import LabelFindings, check_labels
from svertka.data.dataset import ArrayImages, Dataset
from svertka.data.source_opener import open_source
from svertka.errors import DataError
from svertka.tasks import AnyTask, MultiLabel, Regression
from svertka.transfer.backbone_features import BackboneFeatures

Checked = Callable[..., LabelFindings]
WRONG = [3, 40, 77, 118]


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Checked:
    """`checked(features, targets, task, names)`: the findings for images with these features."""

    def check(features: Any, targets: Any, task: AnyTask, names: tuple[str, ...]) -> LabelFindings:
        images = ArrayImages(np.zeros((len(targets), 1, 1, 1), np.uint8), "image")
        dataset = Dataset("photos", names, images, targets, np.full(len(targets), "", "<U5"), task=task)
        given = BackboneFeatures(np.arange(len(targets)), np.asarray(features, np.float32), "given")
        monkeypatch.setattr(label_check, "compute_backbone_features", lambda *_, **__: given)
        return check_labels(
            dataset, [number.to_bytes(4) for number in range(len(targets))], np.arange(len(targets)), []
        )

    return check


def test_flipped_labels_are_found_by_column(checked: Checked) -> None:
    rng = np.random.default_rng(0)
    has = rng.random((150, 3)) < 0.5
    features = np.concatenate([8 * has[:, :2] + rng.standard_normal((150, 2)), rng.standard_normal((150, 3))], 1)
    given = has.astype(np.float32)
    given[WRONG, 1] = 1 - given[WRONG, 1]
    found = checked(features, given, MultiLabel(), ("cat", "dog", "luck"))
    assert found.metric == "mAP"
    assert found.checked == 150
    assert {one.index for one in found.errors[:4]} == set(WRONG)
    for one in found.errors[:4]:
        assert set(one.label.split("|")) ^ set(one.suggested.split("|")) - {""} in ({"dog"}, {"dog", ""})
        assert one.because.endswith(" have dog")
    assert any("luck" in note and "guessing" in note for note in found.notes)
    assert found.sentences()[-2].startswith("labels of 150 images checked: ")


def test_wrong_numbers_are_found(checked: Checked) -> None:
    rng = np.random.default_rng(1)
    numbers = rng.uniform(20, 80, 150)
    features = np.stack([np.sin(numbers / 20), np.cos(numbers / 20), numbers / 40], 1) + rng.normal(0, 0.02, (150, 3))
    given = numbers.copy()
    given[WRONG] += np.array([60, -60, 60, -60])
    found = checked(features, given, Regression(), ("age",))
    assert found.metric == "mean absolute error"
    assert {one.index for one in found.errors[:4]} == set(WRONG)
    assert len(found.errors) <= 6
    assert all(abs(float(one.suggested) - numbers[one.index]) < 10 for one in found.errors[:4])
    assert found.errors[0].score == max(one.score for one in found.errors)
    assert found.sentences()[0].startswith("numbers of 150 images checked: ")
    assert "%" not in found.sentences()[0].replace("95 %", "")


def test_features_that_say_nothing_judge_nothing(checked: Checked) -> None:
    rng = np.random.default_rng(2)
    features, targets = rng.standard_normal((80, 4)), rng.standard_normal(80)
    numbers = checked(features, targets, Regression(), ("age",))
    assert (numbers.checked, numbers.errors) == (0, ())
    assert "numbers are not checked: the features do not predict them" in numbers.sentences()[0]
    labels = checked(features, (rng.random((80, 2)) < 0.5).astype(np.float32), MultiLabel(), ("cat", "dog"))
    assert (labels.checked, labels.errors) == (0, ())
    few = checked(features[:9], targets[:9], Regression(), ("age",))
    assert "numbers are not checked: 9 different images are too few" in few.notes
    few = checked(features[:10], targets[:10], Regression(), ("age",))  # one in each tenth
    assert "numbers are not checked: 10 different images are too few" in few.notes
    large = checked(features, targets * 1e300, Regression(), ("age",))
    assert "numbers are not checked: their range exceeds 1e+150" in large.notes
    bare = checked(features, np.zeros((80, 2), np.float32), MultiLabel(), ("cat", "dog"))
    assert (bare.error, bare.interval, bare.to_dict()["interval"]) == (None, None, None)


def test_an_image_is_listed_once_with_all_its_doubtful_labels() -> None:
    has = np.array([[True, False]] * 10 + [[False, True]] * 10)
    probabilities = np.where(has, 0.95, 0.05).astype(np.float32)
    probabilities[0] = 0.02, 0.97
    (found,) = find_doubtful_labels(has, probabilities, has[:, None].repeat(3, 1), [0, 1])
    assert (found.place, found.suggested.tolist(), found.column) == (0, [False, True], 0)
    assert find_doubtful_labels(has, probabilities, has[:, None].repeat(3, 1), []) == []


def test_a_number_between_prediction_and_neighbors_is_not_doubtful() -> None:
    rng = np.random.default_rng(3)
    numbers = rng.standard_normal(100)
    predicted, near = numbers + rng.normal(0, 0.1, 100), np.repeat(numbers[:, None], 3, 1)
    predicted[0], near[0] = numbers[0] + 50, numbers[0] - 50
    predicted[1], near[1] = numbers[1] + 50, numbers[1] + 40
    found = {one.place: one.suggested for one in find_doubtful_numbers(numbers, predicted, near)}
    assert 0 not in found
    assert found[1] == pytest.approx(numbers[1] + 40)


LABELED = {
    "labels.csv": ("path,label", "a.png,dog|cat", "b.png,", "c.png,fox"),
    "tags.csv": ("path,tags", "a.png,dog;cat", "b.png,", "c.png,fox"),
    "labels.jsonl": (
        '{"path": "a.png", "labels": ["dog", "cat"]}', '{"path": "b.png", "labels": []}',
        '{"path": "c.png", "labels": ["fox"]}',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LABELED))
def test_corrected_tables_have_the_new_labels(name: str, tmp_path: Path) -> None:
    for image in "abc":
        (tmp_path / f"{image}.png").write_bytes(b"")
    table = tmp_path / name
    table.write_text("\n".join(LABELED[name]))
    columns = "labels=tags" if name == "tags.csv" else None
    fixes = tmp_path / "fixes.txt"
    fixes.write_text("path,label,corrected\na.png,cat|dog,cat\nb.png,,fox|dog\nc.png,fox,\n")
    made = apply_corrections(table, fixes, write=True, columns=columns)
    assert made.relabeled == {"a.png": "cat", "b.png": "dog|fox", "c.png": ""}
    found = open_source(str(made.tables[0]), columns=columns)
    texts = {Path(found.images.name(index)).name: found.label_text(index) for index in range(3)}
    assert texts == {"a.png": "cat", "b.png": "dog|fox", "c.png": ""}
    fixes.write_text("path,label,corrected\na.png,cat|dog,cat|dgo\n")
    with pytest.raises(DataError, match=r"line 2 of .* has the labels cat\|dgo; did you mean dog\?"):
        apply_corrections(table, fixes, columns=columns)


@pytest.mark.parametrize("as_json", [False, True])
def test_corrected_numbers(as_json: bool, tmp_path: Path) -> None:
    rows = [(f"{place}.png", place / 2) for place in range(3)]
    for image, _ in rows:
        (tmp_path / image).write_bytes(b"")
    table = tmp_path / ("ages.jsonl" if as_json else "ages.csv")
    lines = (
        [json.dumps({"path": path, "target": value}) for path, value in rows]
        if as_json
        else ["path,target", *(f"{path},{value}" for path, value in rows)]
    )
    table.write_text("\n".join(lines))
    fixes = tmp_path / "fixes.txt"
    fixes.write_text("path,label,corrected\n1.png,0.5,'-7.25\n2.png,1,1\n")
    made = apply_corrections(table, fixes, write=True)
    assert (made.relabeled, made.confirmed) == ({"1.png": "-7.25"}, 1)
    found = open_source(str(made.tables[0]))
    assert sorted(found.labels.tolist()) == [-7.25, 0.0, 1.0]
    fixes.write_text("path,label,corrected\n1.png,0.5,many\n")
    with pytest.raises(DataError, match=r"line 2 of .* has the number many; write a finite number"):
        apply_corrections(table, fixes)


@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_the_page_offers_labels_and_numbers(kind: str, task_tables: dict[str, Path], tmp_path: Path) -> None:
    from svertka.curation.check_page import write_check_page
    from svertka.curation.dataset_check import check
    from svertka.curation.label_check import LabelError

    findings = check(str(task_tables[kind]), threads=1)
    dataset = open_source(str(task_tables[kind]))
    own = dataset.label_text(0)
    suggested = "left|top" if kind == "multi-label" else "12.25"
    error = LabelError(dataset.images.name(0), own, suggested, 3.5, (), 0, "3.5 times the usual error")
    places = np.random.default_rng(0).random((200, 2)).astype(np.float32)
    object.__setattr__(
        findings,
        "labels",
        LabelFindings(checked=200, metric="mAP" if kind == "multi-label" else "mean absolute error", errors=(error,),
                      map=(np.arange(200), places)),
    )  # fmt: skip
    columns = "path=file,labels=tags"
    write_check_page(tmp_path / "check.html", dataset, findings, threads=1, columns=columns)
    page = (tmp_path / "check.html").read_text().replace("\xa0", " ")
    assert f"--apply fixes.csv --columns {columns}" in page
    facts = json.loads(page.partition('id="facts">')[2].partition("</script>")[0])
    assert set(facts["csv"]) == {own, suggested}
    assert facts["names"][facts["csv"].index(suggested)] == suggested
    assert ("1 of 200 numbers looks wrong" in page) is (kind == "regression")
    assert ("1 of 200 pictures has labels that look wrong" in page) == (kind == "multi-label")
    assert page.count("<circle class=") > 200


def test_numbers_that_are_all_the_same_are_a_problem(task_tables: dict[str, Path], tmp_path: Path) -> None:
    from svertka.curation.dataset_check import check

    folder = task_tables["regression"].parent
    table = tmp_path / "same.csv"
    table.write_text("path,target\n" + "".join(f"{folder / f'{number}.png'},2.5\n" for number in range(12)))
    assert check(str(table), threads=1).problems == ("all images have the same target, 2.5; check its table",)
