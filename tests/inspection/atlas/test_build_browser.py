"""The atlas in a browser, opened from disk without a network connection."""

import io
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from svertka.inspection.atlas import image_data
from svertka.inspection.atlas.build import look

Opened = Callable[..., AbstractContextManager[Any]]
Contrasts = Callable[[Any, str], list[tuple[float, bool, str]]]

LAYERS = ("features.0", "features.3.expand3x3", "features.6.expand3x3")
VIEWS = {
    "network": "#/",
    "layer": "#/layer/features.6.expand3x3",
    "unit": "#/unit/features.6.expand3x3/5",
    "dead": "#/unit/features.0/3",
    "pictures": "#/pictures",
    "picture": "#/picture/0",
}
HOSTILE = "<script>window.broken = true</script><img src=x onerror='window.broken = true'>\" onmouseover=\"broken=1"


@pytest.fixture(scope="module")
def atlas(photographs: Path, squeezenet_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an atlas of a few layers and units; one class name contains HTML."""
    source = tmp_path_factory.mktemp("pictures")
    shutil.copytree(photographs / "china", source / "china")
    shutil.copytree(photographs / "flower", source / HOSTILE.replace("/", "∕"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_data, "MAX_OVERLAY_IMAGES", 4)
        return look(
            squeezenet_run, source, layers=LAYERS, units=40, output=source.parent / "an atlas #1", threads=1
        ).page


@pytest.fixture
def opened(opened: Opened) -> Opened:
    """Open a page, by default at the network view, and wait for the view."""

    @contextmanager
    def settled_tab(page: Path, address: str = "#/", **settings: Any) -> Iterator[Any]:
        with opened(page, address, **settings) as tab:
            settled(tab)
            yield tab

    return settled_tab


def settled(tab: Any) -> None:
    """Wait until the first view is shown; its images may still be loading."""
    tab.locator("main h1:visible").wait_for()


def show_view(tab: Any, address: str) -> None:
    """Go to another view, and wait for it: the address of a page changes before the page does."""
    before = headline(tab)
    tab.goto(tab.url.partition("#")[0] + address)
    tab.locator("main h1:visible", has_not_text=before).wait_for()


def seen(place: Any) -> npt.NDArray[np.uint8]:
    """Return the first screenshot of an element that is not blank, or the last one after two minutes."""
    end = time.monotonic() + 120
    while True:
        with Image.open(io.BytesIO(place.screenshot())) as file:
            pixels = np.asarray(file.convert("RGB"))
        if pixels.std() > 5 or time.monotonic() > end:
            return pixels


def headline(tab: Any) -> str:
    return str(tab.locator("main h1:visible").text_content())


@pytest.mark.sample(4)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("width", [360, 1200])
def test_every_view_opens_without_errors_and_fits(opened: Opened, atlas: Path, view: str, width: int) -> None:
    with opened(atlas, VIEWS[view], viewport={"width": width, "height": 800}) as tab:
        tab.wait_for_load_state("networkidle")  # so that failed requests are known
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert tab.evaluate("window.broken") is None
        assert tab.evaluate("[...document.images].every(one => one.loading === 'lazy' || one.naturalWidth > 0)")
        assert "undefined" not in tab.locator("main").text_content()


@pytest.mark.sample(4)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_axe_finds_no_violation(
    opened: Opened, axe_violations: Callable[[Any], list[str]], atlas: Path, view: str, scheme: str, width: int
) -> None:
    with opened(atlas, VIEWS[view], viewport={"width": width, "height": 800}, color_scheme=scheme) as tab:
        assert axe_violations(tab) == []


def test_layers_can_be_opened_on_a_phone(
    opened: Opened, axe_violations: Callable[[Any], list[str]], atlas: Path
) -> None:
    with opened(atlas, VIEWS["unit"], viewport={"width": 390, "height": 800}) as tab:
        drawer = tab.get_by_role("button", name="Layers")
        assert drawer.get_attribute("aria-expanded") == "false"
        drawer.press("Enter")
        assert drawer.get_attribute("aria-expanded") == "true"
        assert axe_violations(tab) == []
        tab.locator("#side").get_by_role("link", name="Pictures").click()
        tab.locator(".pictures").wait_for()
        assert drawer.get_attribute("aria-expanded") == "false"


@pytest.mark.parametrize("width", [390, 1280])
def test_names_of_usual_length_are_shown_whole(
    opened: Opened, layout_faults: Callable[[Any], list[str]], atlas: Path, width: int
) -> None:
    with opened(atlas, viewport={"width": width, "height": 800}) as tab:
        for view in VIEWS.values():
            if view != "#/":
                show_view(tab, view)
            assert layout_faults(tab) == []


@pytest.mark.large
def test_first_paint_takes_less_than_a_second(opened: Opened, first_paint: Callable[[Any], float], atlas: Path) -> None:
    with opened(atlas) as tab:
        assert first_paint(tab) < 1000


@pytest.mark.parametrize("view", ["layer", "unit", "pictures", "picture"])
def test_pictures_are_not_blank(opened: Opened, atlas: Path, view: str) -> None:
    """Checked on a screenshot of the first images."""
    with opened(atlas, VIEWS[view]) as tab:
        shown = tab.locator("#stage .mosaic:visible, #stage .crop:visible, #stage .whole:visible").first
        assert seen(shown).std() > 5


def test_navigation_from_the_network_to_a_unit_and_back(opened: Opened, atlas: Path) -> None:
    with opened(atlas, "") as tab:  # as a reader opens the file
        assert headline(tab).startswith("squeezenet1_1: 3\u00a0layers with 120\u00a0units, ")
        tab.locator(".layer-list a").nth(2).click()
        tab.get_by_text("Layer features.6.expand3x3").wait_for()
        assert tab.evaluate("document.activeElement.localName") == "h1"
        units = r"Layer features.6.expand3x3 of squeezenet1_1: 40\sunits \(of 128\), \d dead. "
        said = units + "Each sees 47×47 pixels of a picture."
        assert re.fullmatch(said, headline(tab))
        tab.locator('a.card[data-unit="7"]').click()
        tab.get_by_text("Unit 7 of").wait_for()
        assert tab.url.endswith("#/unit/features.6.expand3x3/7")
        assert tab.locator(".pair").count() == 9
        tab.keyboard.press("ArrowRight")
        tab.get_by_text("Unit 8 of").wait_for()
        tab.go_back()
        tab.get_by_text("Unit 7 of").wait_for()
        tab.keyboard.press("Escape")
        tab.get_by_text("Layer features.6.expand3x3").wait_for()
        assert tab.evaluate("document.activeElement.dataset.unit") == "7"
        tab.keyboard.press("Escape")
        tab.locator("#network h1:visible").wait_for()


def test_arrow_keys_move_in_the_grid_and_enter_opens_a_unit(opened: Opened, atlas: Path) -> None:
    with opened(atlas, VIEWS["layer"]) as tab:
        tab.locator("h1:visible").focus()
        tab.keyboard.press("ArrowDown")
        at = "Number(document.activeElement.dataset.unit)"
        assert tab.evaluate(at) == 0
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("ArrowRight")
        assert tab.evaluate(at) == 2
        columns = tab.evaluate(
            "getComputedStyle(document.querySelector('.units')).gridTemplateColumns.split(' ').length"
        )
        tab.keyboard.press("ArrowDown")
        assert tab.evaluate(at) == 2 + columns
        tab.keyboard.press("ArrowUp")
        tab.keyboard.press("ArrowLeft")
        assert tab.evaluate(at) == 1
        tab.keyboard.press("Enter")
        tab.get_by_text("Unit 1 of").wait_for()


def test_p_key_switches_to_projections_without_moving_the_grid(opened: Opened, atlas: Path) -> None:
    boxes = """[...document.querySelectorAll('.card')].map(card => card.getBoundingClientRect())
        .map(box => [box.x, box.y + scrollY])"""
    with opened(atlas, VIEWS["layer"]) as tab:
        before = tab.evaluate(boxes)
        patches = seen(tab.locator(".mosaic.patches").first)
        tab.keyboard.press("p")
        assert tab.get_by_role("button", name="Projections").get_attribute("aria-pressed") == "true"
        assert tab.evaluate(boxes) == before
        projections = seen(tab.locator(".mosaic.projections").first)
        assert not np.array_equal(projections, patches)
        assert projections.std() > 5
        tab.keyboard.press("p")
        assert tab.locator(".mosaic.patches:visible").count() > 0
        assert tab.locator(".mosaic.projections:visible").count() == 0


def test_first_layer_shows_its_filters(opened: Opened, atlas: Path) -> None:
    with opened(atlas, "#/layer/features.0") as tab:
        tab.keyboard.press("f")
        tab.locator(".mosaic.filters:visible").nth(5).wait_for()  # cards are filled as they come into view
        assert tab.get_by_role("button", name="Filters").get_attribute("aria-pressed") == "true"


def test_units_are_filtered_and_sorted(opened: Opened, atlas: Path) -> None:
    units = "[...document.querySelectorAll('.units .card')].map(card => Number(card.dataset.unit))"
    with opened(atlas, "#/layer/features.0") as tab:
        tab.keyboard.press("/")
        tab.keyboard.type("dead")
        assert tab.evaluate(units) == [3]
        assert tab.get_by_text("dead", exact=True).is_visible()
        tab.keyboard.press("Escape")
        assert len(tab.evaluate(units)) == 40
        tab.keyboard.type("china")
        preferring = tab.evaluate(units)
        assert 0 < len(preferring) < 40
        tab.keyboard.press("Escape")
        tab.get_by_label("Order of the units").select_option("sparsity")
        active = tab.evaluate(
            "[...document.querySelectorAll('.units .card')].map(card => "
            "parseFloat(card.querySelector('.caption span').textContent.split('·')[1]))"
        )
        assert active[:-1] == sorted(active[:-1])
        assert tab.evaluate(units)[-1] == 3  # the dead one comes last
        for order in ("class", "similarity", "number"):
            tab.get_by_label("Order of the units").select_option(order)
            assert sorted(tab.evaluate(units)) == list(range(40))
            assert tab.evaluate(units)[-1] == (3 if order != "number" else 39)


def test_search_finds_layers_and_units(opened: Opened, atlas: Path) -> None:
    with opened(atlas) as tab:
        tab.keyboard.press("/")
        tab.keyboard.type("expand3x3")
        assert tab.locator("#found a").all_text_contents() == ["features.3.expand3x3", "features.6.expand3x3"]
        tab.keyboard.press("Escape")
        tab.keyboard.type("6.exp 12")
        tab.keyboard.press("Enter")
        tab.get_by_text("Unit 12 of").wait_for()


def test_patch_is_framed_in_its_whole_picture(opened: Opened, atlas: Path) -> None:
    with opened(atlas, VIEWS["unit"]) as tab:
        pairs = tab.locator(".pair")
        pairs.nth(4).focus()
        assert tab.locator(".source .caption b").text_content() == "5"
        frame, picture = tab.locator(".frame-line").bounding_box(), tab.locator(".whole").bounding_box()
        scale = picture["width"] / 96
        assert frame["width"] == pytest.approx(47 * scale + 4, abs=1) or frame["width"] < 47 * scale
        assert picture["x"] - 3 <= frame["x"]
        assert frame["x"] + frame["width"] <= picture["x"] + picture["width"] + 3
        assert "rows" in pairs.nth(4).get_attribute("aria-label")
        pairs.nth(4).press("Enter")
        tab.get_by_text("Predictions").wait_for()


def test_picture_shows_predictions_and_overlays(opened: Opened, atlas: Path) -> None:
    with opened(atlas, "#/pictures") as tab:
        tab.locator(".pictures a.card").first.click()
        tab.get_by_text("Predictions").wait_for()
        for kind in ("Saliency", "Occlusion", "Grad-CAM"):
            tab.keyboard.press("p")
            assert tab.get_by_role("button", name=kind).get_attribute("aria-pressed") == "true"
            shown = "(async () => { const one = document.querySelector('.overlay'); await one.decode(); return one })()"
            assert tab.evaluate(f"{shown}.then(one => one.naturalWidth)") == 96
        assert tab.locator(".layer-row").count() == 3
        tab.locator(".layer-row .part").first.hover()
        tab.locator(".frame-line").wait_for()


@pytest.mark.parametrize("address", ["#/layer/nothing", "#/unit/features.0/99", "#/unit/features.0/x", "#/picture/-1"])
def test_unknown_addresses_show_an_error(opened: Opened, atlas: Path, address: str) -> None:
    with opened(atlas, address) as tab:
        assert headline(tab).startswith("There is no ")
        tab.keyboard.press("Escape")
        tab.locator("#network h1:visible").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", ["network", "layer", "unit", "picture"])
def test_text_has_sufficient_contrast(
    opened: Opened, contrasts: Contrasts, atlas: Path, scheme: str, view: str
) -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5 to 1."""
    with opened(atlas, VIEWS[view], color_scheme=scheme) as tab:
        found = [one for one in contrasts(tab, "main *, nav *") if one[1]]
        assert len(found) > 30
        assert [text for contrast, _, text in found if contrast < 4.5] == []


def test_every_control_has_an_accessible_name(opened: Opened, atlas: Path) -> None:
    unnamed = """[...document.querySelectorAll('a, button, input, select, [role=img]')]
        .filter(one => one.checkVisibility() && !(one.getAttribute('aria-label') || one.textContent.trim()))
        .map(one => one.outerHTML.slice(0, 80))"""
    with opened(atlas) as tab:
        for view in VIEWS.values():
            if view != "#/":
                show_view(tab, view)
            assert tab.evaluate(unnamed) == []
            assert tab.locator("h1:visible").count() == 1
            assert tab.title().endswith("squeezenet1_1 – svertka")


def test_layers_and_sheets_are_shown_without_scripts(opened: Opened, atlas: Path) -> None:
    with opened(atlas, java_script_enabled=False) as tab:
        assert tab.locator(".rail .node").count() > 30
        assert tab.locator(".layer-list img").count() == 3
        sheets = tab.locator("noscript section img")
        assert sheets.count() == 2 * 2 * 3
        assert (
            sheets.first.get_attribute("alt") == "patches of units 0 to 31, one row per unit, the strongest at the left"
        )
        tab.locator(".layer-list a").nth(1).click()
        assert tab.evaluate("document.querySelector(':target h2').textContent") == "features.3.expand3x3"


def test_navigation_is_a_drawer_on_narrow_screens(opened: Opened, atlas: Path) -> None:
    with opened(atlas, VIEWS["layer"], viewport={"width": 360, "height": 740}) as tab:
        assert not tab.locator("#side").is_visible()
        tab.get_by_role("button", name="Layers").click()
        tab.locator(".rail a", has_text="features.3.expand3x3").click()
        tab.get_by_text("Layer features.3.expand3x3").wait_for()
        assert not tab.locator("#side").is_visible()


def test_printed_layer_contains_all_units(opened: Opened, atlas: Path) -> None:
    with opened(atlas, VIEWS["layer"], viewport={"width": 680, "height": 900}, color_scheme="dark") as tab:
        tab.emulate_media(media="print", color_scheme="dark")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        tab.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert tab.locator(".mosaic.patches").count() + tab.locator(".card .dead").count() == 40
        assert not tab.locator("#side").is_visible()
