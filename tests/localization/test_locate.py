"""Where things are, from a classifier that never saw a place: the answer is known."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import svertka
from svertka.classifier import Classifier
from svertka.cli.app import main
from svertka.data.box_annotations import Box
from svertka.errors import DataError, UsageError

Maker = Callable[..., Classifier]

LAMP = Box("bright", 70, 30, 110, 60)
CSV = "path,label,xmin,ymin,xmax,ymax\nlamp.png,bright,70,30,110,60\n"


def test_what_is_bright_is_found(lamp: Path, bright_or_dark: Maker) -> None:
    (found,) = svertka.locate(bright_or_dark(), lamp, top=2).images
    assert [one.name for one in found.classes] == ["dark", "bright"]  # most of the picture is dark
    bright = found.classes[1]
    assert LAMP.contains(*bright.region.peak)
    assert bright.region.box.contains(*bright.region.peak)
    assert bright.region.box.area < 4 * LAMP.area


def test_background_is_no_answer(lamp: Path, bright_or_dark: Maker) -> None:
    (found,) = svertka.locate(bright_or_dark(("bright", "background")), lamp).images
    assert [one.name for one in found.classes] == ["bright"]


def test_boxes_judge(lamp: Path, bright_or_dark: Maker) -> None:
    boxes = lamp.with_name("boxes.csv")
    boxes.write_text(CSV + "another.png,bright,0,0,1,1\n")  # of a picture that is not asked about
    located = svertka.locate(bright_or_dark(), lamp, np.zeros((40, 50, 3), np.uint8), boxes=boxes, top=1)
    assert located.judgement is not None
    assert located.judgement["judged"] == 1
    assert located.judgement["hits"] == 1.0
    assert located.judgement["centre_hits"] == 0.0
    assert located.judgement["small"]["covered"] == pytest.approx(LAMP.area / (160 * 120))
    assert located.judgement["classes"]["bright"]["average_precision"] is None  # with one picture there is no ranking


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (CSV.replace(",110,", ",161,"), DataError, "lies outside lamp.png, which has 160×120 pixels; correct the box"),
        (CSV.replace("bright", "red"), DataError, "a box of class red, but the classes are bright, dark; rename"),
        (
            CSV.replace("lamp", "sun"),
            DataError,
            "belong to none of the images, such as .*lamp.png; check",
        ),
    ],
)
def test_bad_boxes_are_told(rows: str, error: type[Exception], message: str, lamp: Path, bright_or_dark: Maker) -> None:
    boxes = lamp.with_name("boxes.csv")
    boxes.write_text(rows)
    with pytest.raises(error, match=message):
        svertka.locate(bright_or_dark(), lamp, boxes=boxes)


def test_the_result_shows_itself(lamp: Path, bright_or_dark: Maker) -> None:
    located = svertka.locate(
        bright_or_dark(), lamp, np.zeros((3, 3, 3), np.uint8), top=2, output=lamp.with_name("shown")
    )
    page = lamp.with_name("shown") / "index.html"
    assert repr(located) == f"LocatedImages(2\u00a0images, 1 of them not processed; open {page})"
    html = located._repr_html_()
    assert html.count("<img") == 1
    assert html.count("<tr>") == 1 + 2  # the header and a row for each class


def test_no_picture_is_told(tmp_path: Path, bright_or_dark: Maker) -> None:
    with pytest.raises(UsageError, match="no image among the inputs"):
        svertka.locate(bright_or_dark(), tmp_path)


def test_the_command_says_the_same(lamp: Path, bright_or_dark: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    run, album = lamp.with_name("run"), lamp.with_name("album")
    bright_or_dark().save(run)
    boxes = lamp.with_name("boxes.csv")
    boxes.write_text(CSV)
    arguments = ["locate", str(run), str(lamp), "--boxes", str(boxes), "--top", "2"]
    assert main([*arguments, "--output", str(album), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    located = svertka.locate(run, lamp, boxes=boxes, top=2, output=album)
    assert said == json.loads(json.dumps(located.to_dict()))
    assert said["page"] == str(album / "index.html")
    assert main(arguments) == 0
    assert "the point lies in a box in 100.0\u00a0% of 1 cases" in capsys.readouterr().out
    with Image.open(said["images"][0]["overlay"]) as overlay:
        assert overlay.size == (160, 120)


def test_pictures_that_cannot_be_looked_at_are_told(
    lamp: Path, bright_or_dark: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    run, small, broken = (lamp.with_name(name) for name in ("run", "small.png", "broken.png"))
    bright_or_dark().save(run)
    Image.new("RGB", (40, 31)).save(small)
    broken.write_bytes(b"\x89PNG")
    assert main(["locate", str(run), str(small), str(broken), str(lamp), "--json"]) == 1
    shown = capsys.readouterr()
    assert "small.png: 40×31 pixels, too few for patches; it needs 32 a side or more" in shown.err
    assert "broken.png: not an image" in shown.err
    assert [bool(one["classes"]) for one in json.loads(shown.out)["images"]] == [False, False, True]
