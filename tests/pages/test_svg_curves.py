import json
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from svertka.pages.axes import Scale
from svertka.pages.number_format import format_brief
from svertka.pages.svg_curves import LABEL_HEIGHT, WIDTH, CursorReadout, Line, Panel, XAxis, render_curves

AXIS = XAxis("epoch", Scale("linear", 0, 10), [0, 5, 10])


def panel(*lines: Line, height: int = 200) -> Panel:
    return Panel("Loss, nats", Scale("linear", 0, 4), lines, format_brief, height)


def draw(*panels: Panel, readings: list[CursorReadout] | None = None, mark: int | None = None) -> ElementTree.Element:
    figure = ElementTree.fromstring(render_curves(panels, AXIS, readings or [], mark, "best <b>"))
    drawn = figure.find("./div[@class='curves']")
    assert drawn is not None
    assert figure.find("figcaption") is not None
    return drawn


def path(figure: ElementTree.Element, style: str) -> str:
    return figure.find(f".//path[@class='{style}']").get("d")


def points(drawn: str) -> list[list[tuple[float, float]]]:
    return [[tuple(map(float, pair.split())) for pair in run.split("L")] for run in drawn.removeprefix("M").split("M")]


def test_points_follow_the_axes() -> None:
    drawn = path(draw(panel(Line("train", [0, 5, 10], [4, 2, 0], "solid"))), "solid")
    assert points(drawn) == [[(0, 0), (WIDTH / 2, 100), (WIDTH, 200)]]


def test_missing_value_interrupts_the_curve_and_single_points_are_dots() -> None:
    figure = draw(panel(Line("val", [1, 2, 3, 4, 5, 6], [1, 1, math.nan, 2, math.inf, math.nan], "dashed")))
    assert points(path(figure, "dashed")) == [[(100, 150), (200, 150)]]
    dot = figure.find(".//circle")
    assert (dot.get("cx"), dot.get("cy")) == ("40.00%", "100.0")


def test_steps_keep_a_value_until_the_next() -> None:
    drawn = path(draw(panel(Line("", [0, 5, 10], [4, 2, 2], "steps"))), "steps")
    assert drawn == "M0.0 0.0H500.0V100.0H1000.0V100.0"


@pytest.mark.parametrize("last", [(0.0, 0.0), (0.01, 0.0), (2.0, 2.05), (4.0, 4.0), (0.0, 4.0)])
def test_end_labels_do_not_overlap_and_stay_beside_the_plot(last: tuple[float, float]) -> None:
    figure = draw(panel(*(Line(name, [0, 10], [1, y], "solid") for name, y in zip("ab", last, strict=True))))
    heights = sorted(float(label.get("y")) for label in figure.findall(".//text[@class='name']"))
    assert heights[1] - heights[0] >= LABEL_HEIGHT
    assert heights[0] >= 0
    assert heights[1] <= 205


def test_mark_is_drawn_in_every_panel() -> None:
    readings = [CursorReadout(x, f"epoch {x}", [f"loss {x}", f"rate {x}"]) for x in (2, 4)]
    line = Line("val", [2, 4], [3, 1], "solid")
    figure = draw(panel(line), panel(line, height=72), readings=readings, mark=1)
    assert [mark.get("x1") for mark in figure.findall(".//line[@class='mark']")] == ["40.00%", "40.00%"]
    assert [dot.get("cy") for dot in figure.findall(".//circle[@class='mark']")] == ["150.0", "54.0"]
    assert [output.text for output in figure.findall(".//output")] == ["epoch 4 · loss 4", "rate 4"]
    assert figure.find(".//text[@class='mark']").text == "best <b>"


def test_readings_are_passed_to_the_script() -> None:
    readings = [CursorReadout(2, 'a "b" <c>', ["1"]), CursorReadout(10, "d", ["2"])]
    data = json.loads(draw(panel(Line("", [2, 10], [1, 2], "solid")), readings=readings).get("data-readings"))
    assert data == {"places": [0.2, 1.0], "names": ['a "b" <c>', "d"], "texts": [["1"], ["2"]], "rest": 1}


def test_x_ticks_are_below_the_last_panel_only() -> None:
    line = Line("", [0, 10], [1, 2], "solid")
    first, last = draw(panel(line), panel(line)).findall("./div")
    below = [text.text for text in last.findall(".//text") if text.get("y") == "220"]
    assert below == ["0", "5", "10", "epoch"]
    assert not [text for text in first.findall(".//text") if text.get("y") == "220"]


def test_no_inline_styles_that_the_policy_forbids() -> None:
    assert not re.search(r"\sstyle=", render_curves([panel(Line("", [0, 10], [1, 2], "solid"))], AXIS, [], None, ""))
