"""comparison.html in a browser, and what it says."""

import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import svertka
from svertka.evaluation import comparison_page as module
from svertka.evaluation.compare import compare
from svertka.evaluation.comparison import Comparison
from svertka.evaluation.comparison_page import MAX_DISAGREEMENTS
from svertka.pages.number_format import MISSING, NBSP

Opened = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, fresh_run: Callable[..., Path]) -> tuple[Path, Comparison]:
    """Three runs on digits: two with a history, one with none."""
    folder = tmp_path_factory.mktemp("compared")
    for name, epochs, lr in (("long <b>&", 3, 0.02), ("short", 1, 0.002)):
        svertka.train("digits", model="mlp", epochs=epochs, lr=lr, output=folder / name, threads=1)
    names = [str(digit) for digit in range(10)]
    runs = [folder / "long <b>&", folder / "short", fresh_run("mlp", 28, 28, seed=1, names=names)]
    page = folder / "comparison.html"
    return page, compare(runs, "digits", part="all", output=page, threads=1)


@pytest.mark.parametrize("width", [360, 1100])
def test_it_opens_without_complaint_and_fits(opened: Opened, drawn: tuple[Path, Comparison], width: int) -> None:
    with opened(drawn[0], viewport={"width": width, "height": 800}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        wide = """[...document.querySelectorAll('main *')].filter(element => !element.closest('.scroll, svg')
            && element.getBoundingClientRect().right > innerWidth + 1).map(element => element.outerHTML.slice(0, 80))"""
        assert page.evaluate(wide) == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_axe_finds_no_violation(
    opened: Opened,
    axe_violations: Callable[[Any], list[str]],
    layout_faults: Callable[[Any], list[str]],
    drawn: tuple[Path, Comparison],
    scheme: str,
    width: int,
) -> None:
    with opened(drawn[0], viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        assert axe_violations(page) == []
        assert layout_faults(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_its_ground(
    opened: Opened, contrasts: Callable[[Any, str], list[Any]], drawn: tuple[Path, Comparison], scheme: str
) -> None:
    with opened(drawn[0], color_scheme=scheme) as page:
        found = contrasts(page, "main *")
        assert len(found) > 50
        assert [text for contrast, _, text in found if contrast < 4.5] == []


def test_page_contains_the_errors_and_sizes(opened: Opened, drawn: tuple[Path, Comparison]) -> None:
    path, compared = drawn
    with opened(path) as page:
        assert page.locator("h1").text_content() == compared.sentence
        assert page.locator("header b").first.text_content().startswith("A\u00a0is long <b>&, B\u00a0is short, C")
        errors = [row.split() for row in page.locator("#errors tbody tr").all_inner_texts()]
        for compared_run, row in zip(compared.runs, errors, strict=False):
            assert row[0] == compared_run.letter
            assert f"{100 * compared_run.evaluation.top1_error:.1f}" in row
        assert errors[3][:2] == ["ensemble", f"{100 * compared.ensemble.top1_error:.1f}"]
        costs = page.locator("#costs tbody tr").all_inner_texts()
        assert all(f"{one.multiply_adds:,}" in row for one, row in zip(compared.runs, costs, strict=True))
        differing = page.locator("#made tbody th").all_text_contents()
        assert {"recipe.lr", "recipe.epochs"} <= set(differing)
        assert "source" not in differing


def test_disagreements_are_images_that_one_run_gets_wrong(opened: Opened, drawn: tuple[Path, Comparison]) -> None:
    path, compared = drawn
    first, second, third = (one.evaluation for one in compared.runs)
    pairs = [(second, first), (first, second), (third, first), (first, third)]
    with opened(path) as page:
        titles = page.locator("#disagree h3").all_text_contents()
        walls = page.evaluate("""[...document.querySelectorAll('#disagree h3')].map(title => {
            const wall = title.nextElementSibling;
            return wall?.matches('.wall') ? [...wall.querySelectorAll('.quiet')].map(one => one.title) : [] })""")
    for (wrong, right), title, wall in zip(pairs, titles, walls, strict=True):
        these = set(wrong.indices[wrong.wrong & ~right.wrong].tolist())
        assert f": {len(these):,}\u00a0picture" in title
        shown = {int(re.sub(r"\D", "", name)) for name in wall}
        assert shown <= these
        assert len(shown) == min(MAX_DISAGREEMENTS, len(these))
    assert sum(map(len, walls)) > MAX_DISAGREEMENTS


def test_curves_have_a_line_per_trained_run(opened: Opened, drawn: tuple[Path, Comparison]) -> None:
    with opened(drawn[0]) as page:
        assert "No history: C." in page.locator("#curves .how").text_content()
        assert sorted(page.locator("#curves text.name").all_text_contents()) == ["A", "A", "B", "B"]
        page.locator("#curves").get_by_role("slider").focus()
        page.keyboard.press("Home")
        read = page.locator("#curves output").first.text_content()
        history = {one.letter: one.history for one in drawn[1].runs}
        for letter in "AB":
            line = next(line for line in history[letter] if line["kind"] == "epoch")
            assert f"{letter} {100 * line['val_error']:.1f}\u00a0%" in read


def test_classes_are_sorted_by_difference(opened: Opened, drawn: tuple[Path, Comparison]) -> None:
    compared = drawn[1]
    shares = [[one.evaluation.per_class[k].recall or 0 for one in compared.runs] for k in range(10)]
    order = sorted(range(10), key=lambda k: max(shares[k]) - min(shares[k]), reverse=True)
    with opened(drawn[0]) as page:
        assert page.locator("#classes tbody th").all_text_contents() == [str(k) for k in order]
        page.locator("#classes thead button").first.click()
        assert page.locator("#classes tbody th").all_text_contents() == [str(k) for k in range(9, -1, -1)]


def test_an_interval_that_is_not_known_has_no_bar() -> None:
    assert module._bar((math.nan, math.nan), 0.5, (0.0, 1.0), str) == MISSING
    assert module._bar((0.25, 0.75), 0.5, (0.0, 1.0), str) == {
        "zero": "0.00%", "low": "25.00%", "width": "50.00%", "estimate": "50.00%", "text": f"0.25{NBSP}to{NBSP}0.75"
    }  # fmt: skip
