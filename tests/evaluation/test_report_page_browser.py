"""The report as a person meets it: in a browser, from a file, with no network."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from svertka.evaluation.metrics import Evaluation
from svertka.evaluation.report_page import Report, write_report

Opened = Callable[..., AbstractContextManager[Any]]
Reloaded = Callable[[Any, Callable[[], Any]], Any]
Contrasts = Callable[[Any, str], list[tuple[float, bool, str]]]

HOSTILE = (
    "<script>window.broken = true</script><img src=x onerror='window.broken = true'>\" onmouseover=\"window.broken=1"
)


def history() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for k in range(1, 21):
        common = {"step": 10 * k, "learning_rate": 0.1 * 0.5 ** (k // 7), "images_per_second": 4e3, "seconds": 0.6 * k}
        lines.append({"kind": "step", "epoch": float(k), "loss": 2.2 / k, "error": 0.8 / k} | common)
        validated = {"val_loss": 2 / k + 0.02 * k, "val_error": abs(k - 14) / 100 + 0.01, "kept": k <= 14}
        lines.append({"kind": "epoch", "epoch": k, "train_loss": 2.3 / k, "train_error": 0.9 / k} | validated | common)
    lines.append({"kind": "health", "epoch": 9, "step": 90, "finding": "dead", "sentence": "A third of conv1 is dead."})
    return lines


@pytest.fixture(scope="module")
def pages(
    tmp_path_factory: pytest.TempPathFactory,
    nearest_centre: Callable[[Sequence[str]], Evaluation],
    digit_pictures: npt.NDArray[np.uint8],
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    kinds = {
        "two": nearest_centre(["even", "odd"]),
        "digits": nearest_centre([str(k) for k in range(10)]),
        "long": nearest_centre([f"greater sulphur-crested cockatoo, Kakatoe galerita {k}" for k in range(100)]),
        "hostile": nearest_centre([f"{HOSTILE} قطة 👩‍🔬 {k}" * 8 for k in range(10)]),
        "many": nearest_centre([f"{HOSTILE} {k}" for k in range(25)]),  # more than a table of confusions has
    }
    for name, evaluation in kinds.items():
        album = "album/holidays of the year 2024/" if name == "long" else ""
        write_report(
            folder / f"{name}.html",
            Report(
                name=name,
                network="centers",
                source="digits",
                facts=[("Device", "cpu, 2 threads")],
                history=history(),
                part="test",
                evaluation=evaluation,
                read_image=lambda index: digit_pictures[index],
                image_name=lambda index, album=album: f"{album}digit {index}",
            ),
        )
    return {name: folder / f"{name}.html" for name in kinds}


@pytest.mark.parametrize("name", ["digits", "hostile", "many"])
@pytest.mark.parametrize("width", [360, 1100])
def test_it_opens_without_complaint_and_fits(opened: Opened, pages: dict[str, Path], name: str, width: int) -> None:
    with opened(pages[name], viewport={"width": width, "height": 800}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("window.broken") is None
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        wide = """[...document.querySelectorAll('main *')].filter(element => !element.closest('.scroll, svg')
            && element.getBoundingClientRect().right > innerWidth + 1).map(element => element.outerHTML.slice(0, 80))"""
        assert page.evaluate(wide) == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), pytest.param(1280, "light", marks=pytest.mark.large)])
def test_axe_finds_no_violation(
    opened: Opened, axe_violations: Callable[[Any], list[str]], pages: dict[str, Path], scheme: str, width: int
) -> None:
    for name in ("hostile", "many"):  # one with a table of confusions, one with a matrix
        with opened(pages[name], viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
            for summary in page.locator("summary").all():
                summary.click()
            assert axe_violations(page) == []


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_or_overlaps(
    opened: Opened, layout_faults: Callable[[Any], list[str]], pages: dict[str, Path], width: int
) -> None:
    for name in ("two", "digits", "long", "hostile"):
        with opened(pages[name], viewport={"width": width, "height": 800}) as page:
            assert layout_faults(page) == []


def test_a_long_name_is_shown_whole_when_it_is_focused(opened: Opened, pages: dict[str, Path]) -> None:
    with opened(pages["hostile"], viewport={"width": 390, "height": 800}) as page:
        name = page.locator("#classes .cut").first
        short, whole = name.locator("bdi").all()
        assert short.inner_text().startswith("<script>window")
        assert "…" in short.inner_text()
        assert len(whole.text_content()) > 800
        name.focus()
        assert not short.is_visible()
        assert whole.bounding_box()["height"] > 100


def test_long_tables_are_shown_whole_on_demand(opened: Opened, pages: dict[str, Path]) -> None:
    with opened(pages["long"]) as page:
        rows = page.locator("#classes tbody tr:visible")
        assert rows.count() == 20
        page.get_by_role("button", name="Show all 100 classes").press("Enter")
        assert rows.count() == 100


def test_a_table_wider_than_the_page_says_so(opened: Opened, pages: dict[str, Path]) -> None:
    cue = """new Promise(done => new ResizeObserver(() =>  // after the one of the page
        done(getComputedStyle(document.querySelector('#classes .scrollable'), '::before').content))
        .observe(document.querySelector('#classes .scroll')))"""
    for width, said in ((390, '"more columns: scroll →"'), (1280, "none")):
        with opened(pages["digits"], viewport={"width": width, "height": 800}) as page:
            assert page.evaluate(cue) == said


def test_contents_lead_to_every_section(opened: Opened, pages: dict[str, Path]) -> None:
    with opened(pages["many"]) as page:
        sections = page.locator("main section[id]").evaluate_all("all => all.map(one => '#' + one.id)")
        assert page.locator(".contents a").evaluate_all("all => all.map(one => one.hash)") == sections
        page.get_by_role("link", name="Classes", exact=True).press("Enter")
        assert abs(page.locator("#classes").bounding_box()["y"]) < 100


def test_paths_of_mistakes_can_be_copied(opened: Opened, pages: dict[str, Path]) -> None:
    expect = pytest.importorskip("playwright.sync_api").expect
    with opened(pages["long"]) as page:
        shown = page.locator("#mistakes .wall figure").count()
        page.locator("#mistakes summary").click()
        assert page.locator("#mistakes .paths li").count() == shown
        page.locator("#mistakes .copy").press("Enter")
        page.get_by_role("button", name="Copied").wait_for()
        page.locator("#mistakes .paths ol").evaluate("list => { list.before(document.createElement('textarea')) }")
        page.locator("#mistakes textarea").press("Control+V")
        paths = page.locator("#mistakes .paths li").all_text_contents()
        expect(page.locator("#mistakes textarea")).to_have_value("\n".join(paths), timeout=120_000)  # milliseconds
        assert (
            page.locator("#mistakes .paths li").first.inner_text().startswith("album/holidays of the year 2024/digit ")
        )


@pytest.mark.parametrize("name", ["digits", "many"])
def test_it_is_painted_within_a_second_and_nothing_moves(
    opened: Opened,
    first_paint: Callable[[Any], float],
    pages: dict[str, Path],
    name: str,
    large_count: Callable[[int, int], int],
) -> None:
    with opened(pages[name]) as page:
        assert first_paint(page) < large_count(120_000, 1000)  # without --large the machine may be busy
        page.mouse.move(500, 400)
        page.mouse.move(700, 400)
        shifts = """new Promise(done => { new PerformanceObserver(list =>
            done(list.getEntries().map(entry => entry.value))).observe({type: 'layout-shift', buffered: true});
            setTimeout(() => done([]), 300) })"""
        assert sum(page.evaluate(shifts)) < 0.001


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_system_and_the_switch_is_remembered(
    opened: Opened, reloaded: Reloaded, pages: dict[str, Path], scheme: str
) -> None:
    grounds = {"light": "rgb(250, 250, 250)", "dark": "rgb(20, 20, 20)"}
    other = {"light": "dark", "dark": "light"}[scheme]
    ground = "getComputedStyle(document.body).backgroundColor"
    with opened(pages["digits"], color_scheme=scheme) as page:
        assert page.evaluate(ground) == grounds[scheme]
        page.get_by_role("button", name=f"Switch to {other} colors").press("Enter")
        assert page.evaluate(ground) == grounds[other]
        assert reloaded(page, lambda: page.evaluate(ground) == grounds[other])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["digits", "many"])
def test_text_can_be_read_on_its_ground(
    opened: Opened, contrasts: Contrasts, pages: dict[str, Path], scheme: str, name: str
) -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5 to 1, measured for every text that is not in a drawing."""
    with opened(pages[name], color_scheme=scheme) as page:
        found = contrasts(page, "main *")
        assert len(found) > 50
        assert [text for contrast, _, text in found if contrast < 4.5] == []


def test_the_curves_are_read_out_by_keyboard_and_by_pointer(opened: Opened, pages: dict[str, Path]) -> None:
    with opened(pages["digits"]) as page:
        slider = page.locator("#curves").get_by_role("slider")
        first = page.locator(".curves output").first
        assert first.text_content().startswith("epoch\u00a014 · train")
        slider.focus()
        page.keyboard.press("ArrowRight")
        assert first.text_content() == "epoch\u00a015 · train 0.153, val 0.433"
        assert "Top-1 error" in slider.get_attribute("aria-valuetext")
        page.keyboard.press("Home")
        assert first.text_content() == "epoch\u00a01 · train 2.30, val 2.02"
        cursor = "getComputedStyle(document.querySelector('.curves line.cursor')).visibility"
        assert page.evaluate(cursor) == "visible"
        box = page.locator(".curves svg").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 7.1 / 20, box["y"] + 40)
        assert first.text_content().startswith("epoch\u00a07 ·")
        page.mouse.move(5, 5)
        assert first.text_content().startswith("epoch\u00a014 ·")


def test_the_matrix_is_read_out_by_keyboard_and_by_pointer(opened: Opened, pages: dict[str, Path]) -> None:
    with opened(pages["many"]) as page:
        output = page.locator(".reading output")
        darkest = output.text_content()
        page.locator(".matrix").focus()
        page.keyboard.press("ArrowRight")
        assert output.text_content() != darkest
        page.keyboard.press("Home")
        assert output.text_content() == darkest
        cursor = page.locator(".matrix .cursor").bounding_box()
        page.keyboard.press("End")
        page.mouse.move(cursor["x"] + cursor["width"] / 2, cursor["y"] + cursor["height"] / 2)
        assert output.text_content() == darkest


def test_the_classes_are_sorted_by_any_column(opened: Opened, pages: dict[str, Path]) -> None:
    with opened(pages["digits"]) as page:
        names = page.locator("#classes tbody th .called")
        head = page.locator("#classes thead th").first
        head.get_by_role("button").press("Enter")
        assert names.all_text_contents() == [str(k) for k in range(9, -1, -1)]
        head.get_by_role("button").click()
        assert names.all_text_contents() == [str(k) for k in range(10)]
        assert head.get_attribute("aria-sort") == "ascending"


def test_without_scripts_the_same_pictures_and_numbers_are_there(opened: Opened, pages: dict[str, Path]) -> None:
    with opened(pages["digits"], java_script_enabled=False) as page:
        assert page.locator("img").count() == 58
        assert page.locator(".confusion td.right").count() == 10
        assert page.locator("#curves path.dashed").count() == 2
        assert page.locator(".curves output").first.text_content().startswith("epoch\u00a014 · train")
        assert not page.locator("#scheme").is_visible()


def test_small_pictures_stay_crisp_and_whole(opened: Opened, pages: dict[str, Path]) -> None:
    with opened(pages["digits"]) as page:
        shown = page.evaluate("""[...document.querySelectorAll('.wall img')].map(image =>
            [image.getBoundingClientRect().width / image.naturalWidth, getComputedStyle(image).imageRendering])""")
        assert shown == [[16, "pixelated"]] * 48


def test_print_is_dark_on_white_and_as_wide_as_the_paper(opened: Opened, pages: dict[str, Path]) -> None:
    with opened(pages["digits"], viewport={"width": 680, "height": 900}, color_scheme="dark") as page:
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(26, 26, 26)"
        assert page.evaluate("document.documentElement.scrollWidth") == 680
        assert not page.locator("#scheme").is_visible()
