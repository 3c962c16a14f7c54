import re
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from svertka.errors import ImageError, StorageError
from svertka.evaluation.metrics import Evaluation, MetricAccumulator
from svertka.evaluation.report_page import Pixels, Report, write_report

Judge = Callable[[Sequence[str]], Evaluation]
Maker = Callable[..., Report]
Writer = Callable[..., str]

AWKWARD = (
    "<script>alert(1)</script>",
    "\"quoted\" & 'so'",
    "👩‍🔬 scientist",
    "قطة",
    "a very long name " * 60,
    "\u202etxet desrever",
    " ",
    "</style></title>",
    "a\nb\0c",
    "%s {0} ${x}",
)


def epochs(count: int) -> list[dict[str, Any]]:
    return [
        {
            "kind": "epoch",
            "epoch": k,
            "step": 10 * k,
            "train_loss": 2.3 / k,
            "train_error": 0.9 / k,
            "val_loss": 2.3 / k + 0.01 * k,
            "val_error": 0.9 / k + 0.0001 * k,
            "learning_rate": 0.1,
            "images_per_second": 4321.0,
            "seconds": 0.6 * k,
        }
        for k in range(1, count + 1)
    ]


@pytest.fixture
def report(nearest_centre: Judge, digit_pictures: Pixels) -> Maker:
    """A report on the digits with some of its fields changed."""
    settings = {
        "name": "digits-centers",
        "network": "centers",
        "source": "digits",
        "facts": [("Device", "cpu, 2 threads")],
        "history": epochs(20),
        "part": "test",
        "evaluation": nearest_centre([str(k) for k in range(10)]),
        "read_image": lambda index: digit_pictures[index],
        "image_name": lambda index: f"digits #{index}",
    }
    return lambda **changes: Report(**settings | changes)


@pytest.fixture
def written(report: Maker, tmp_path: Path) -> Writer:
    """The same as the text of its file."""

    def write(**changes: Any) -> str:
        write_report(tmp_path / "report.html", report(**changes))
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Elements in order, text by element; complains about what is opened and not closed."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(document)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self) -> str:
        return " ".join("".join(data for tag, data in self.texts if tag not in ("style", "script")).split())

    def all(self, tag: str, kind: str = "") -> Iterator[dict[str, str]]:
        return (attrs for name, attrs in self.elements if name == tag and kind in [*attrs.get("class", "").split(), ""])


def test_sentence_contains_error_and_duration(written: Writer, report: Maker) -> None:
    one = report()
    wrong = 100 * one.evaluation.top1_error
    assert one.sentence == (
        f"centers on digits: {wrong:.1f}\u00a0% of 1,797\u00a0test pictures wrong after 20\u00a0epochs, 12 s."
    )
    assert " ".join(one.sentence.split()) in Reader(written()).text()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"history": [], "evaluation": None},
            "centers on digits: not evaluated yet before the end of the first epoch.",
        ),
        ({"history": epochs(1), "evaluation": None}, "centers on digits: not evaluated yet after 1 epoch, 0.6 s."),
    ],
)
def test_sentence_before_the_first_epoch(
    changes: dict[str, Any], sentence: str, written: Writer, report: Maker
) -> None:
    assert report(**changes).sentence.replace("\u00a0", " ") == sentence
    read = Reader(written(**changes))
    assert "Worst mistakes" not in read.text()


def test_images_have_alternative_text_and_nothing_is_loaded(written: Writer) -> None:
    read = Reader(written())
    images = list(read.all("img"))
    assert len(images) == 24 + 24 + 10
    assert all(image["alt"] for image in images)
    for tag, attributes in read.elements:
        assert "style" not in attributes, tag
        assert attributes.get("src", "data:").startswith("data:"), tag
        assert tag == "a" or attributes.get("href", "data:").startswith(("data:", "#"))


def test_confusion_table_contains_the_counts(written: Writer, report: Maker) -> None:
    evaluation = report().evaluation
    document = written()
    table = re.search(r'<table class="confusion.*?</table>', document, re.DOTALL)[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table)[1:]
    cells = [[int(cell or 0) for cell in re.findall(r"<td[^>]*>(\d*)</td>", row)] for row in rows]
    assert cells == evaluation.confusion.tolist()


def test_worst_mistakes_are_in_order_with_names_and_probability(written: Writer, report: Maker) -> None:
    evaluation = report().evaluation
    read = Reader(written())
    alts = [image["alt"] for image in read.all("img", "crisp")][:24]
    assert alts == [
        f"digits #{one.index}: {one.label}, predicted as {one.predicted} with {100 * one.probability:.1f}\u00a0%"
        for one in evaluation.mistakes[:24]
    ]


def test_the_class_table_is_worst_first(written: Writer) -> None:
    document = written()
    table = re.search(r'<table id="class-rows".*?</table>', document, re.DOTALL)[0]
    shares = [float(share) for share in re.findall(r'<td data-value="(\d\.\d+)">[^<]*<svg', table)]
    recalls = shares[::2]  # the precisions stand between them
    assert len(recalls) == 10
    assert recalls == sorted(recalls)


@pytest.mark.parametrize("classes", [2, 10, 20, 21, 100])
def test_any_number_of_classes(classes: int, written: Writer, nearest_centre: Judge) -> None:
    names = tuple(f"class {k}" for k in range(classes))
    document = written(evaluation=nearest_centre(names))
    read = Reader(document)
    assert bool(list(read.all("table", "confusion"))) == (classes <= 20)
    assert bool(list(read.all("div", "matrix"))) == (classes > 20)
    assert ("most confused pairs" in read.text()) == (classes > 20)
    assert len(document) < 2_000_000
    if classes > 20:
        evaluation = nearest_centre(names)
        off = evaluation.confusion - np.diag(evaluation.confusion.diagonal())
        drawn = re.findall(r"M(\d+) (\d+)h1v1h-1z", document)
        assert {(int(row), int(column)) for column, row in drawn} == set(
            zip(*map(np.ndarray.tolist, off.nonzero()), strict=True)
        )


def test_names_of_any_kind_are_text_and_nothing_else(written: Writer, nearest_centre: Judge) -> None:
    for names in (AWKWARD, AWKWARD * 3):
        evaluation = nearest_centre(names)
        document = written(
            evaluation=evaluation, name=AWKWARD[0], source=AWKWARD[1], facts=[(AWKWARD[0], AWKWARD[3])],
            image_name=lambda index: f"/a/{AWKWARD[0]}/{index}.png",
        )  # fmt: skip
        read = Reader(document)
        assert len(list(read.all("script"))) == 1
        assert len(list(read.all("style"))) == 1
        shown = read.text()
        for name in (AWKWARD[0], AWKWARD[1], AWKWARD[3], AWKWARD[7]):
            assert name in shown


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_any_number_of_epochs(count: int, written: Writer) -> None:
    document = written(history=epochs(count))
    assert len(document) < 400_000
    assert ("Training curves" in Reader(document).text()) == (count > 0)


def test_a_history_of_nothing_but_missing_values(written: Writer) -> None:
    history = [dict.fromkeys(line, None) | {"kind": "epoch", "epoch": line["epoch"]} for line in epochs(3)]
    assert "Training curves" in Reader(written(history=history)).text()


def test_findings_and_facts_are_shown(written: Writer) -> None:
    finding = {"kind": "health", "epoch": 12, "step": 120, "finding": "dead", "sentence": "A third of <conv1> is dead."}
    shown = Reader(written(history=[*epochs(12), finding])).text()
    assert "epoch 12 A third of <conv1> is dead." in shown
    assert "Device cpu, 2 threads" in shown.replace("Devicecpu", "Device cpu")


def test_a_perfect_classifier_has_no_mistakes_to_show(written: Writer) -> None:
    tally = MetricAccumulator(30)
    tally.update(torch.eye(30) * 9, torch.arange(30), torch.arange(30))
    shown = Reader(written(evaluation=tally.result([str(k) for k in range(30)]))).text()
    assert "There are none." in shown
    assert "most confused" not in shown


def test_a_class_without_pictures_has_dashes(written: Writer) -> None:
    tally = MetricAccumulator(3)
    tally.update(torch.eye(3)[:2] * 9, torch.arange(2), torch.arange(2))
    assert "–" in Reader(written(evaluation=tally.result("abc"))).text()


def test_missing_image_leaves_an_empty_frame(written: Writer) -> None:
    def gone(index: int) -> Pixels:
        raise ImageError("no such file or directory")

    read = Reader(written(read_image=gone))
    assert read.text().count("cannot be read") == 48
    assert not list(read.all("img"))


def test_missing_output_folder_is_an_error(report: Maker, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        write_report(tmp_path / "absent" / "report.html", report())
    assert not list(tmp_path.iterdir())


def test_the_same_report_gives_the_same_bytes(written: Writer) -> None:
    assert written() == written()
