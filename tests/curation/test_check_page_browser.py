"""The page of svertka check in a browser: decisions by keyboard and mouse, and the file that they are saved as."""

import csv
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from svertka.curation.check_page import write_check_page
from svertka.curation.dataset_check import check
from svertka.curation.dataset_findings import DuplicateGroup, Findings
from svertka.curation.label_check import AmbiguousPair, GlobalOutlier, LabelError, LabelFindings, Neighbor
from svertka.data.dataset import Dataset
from svertka.data.folder_and_table_sources import open_folder

Opened = Callable[..., AbstractContextManager[Any]]
Reloaded = Callable[[Any, Callable[[], Any]], Any]
HOSTILE = "<script>window.broken = true</script>"


def findings_of(folder: Path, dataset: Dataset) -> Findings:
    """Findings about invented errors: what the page shows does not depend on how they were found."""
    from dataclasses import replace

    def path(index: int) -> str:
        return dataset.images.name(index)

    def label(index: int) -> str:
        return dataset.names[dataset.labels[index]]

    near = tuple(Neighbor(path(index), label(index), 0.9 - index / 100, index) for index in range(5, 10))
    wrong = [LabelError(path(i), label(i), dataset.names[-1], 0.9 - i / 100, near, i) for i in range(6)]
    labels = LabelFindings(
        len(dataset), 0.125, (0.1, 0.15), "efficientnet_lite0:bundled", tuple(wrong),
        (GlobalOutlier(path(7), label(7), 3.2, near[:3], 7),),
        (AmbiguousPair((dataset.names[0], dataset.names[1]), 5, 20, (0.1, 0.4), (path(8),), (8,)),),
        map=(np.arange(12), np.random.default_rng(0).random((12, 2)).astype(np.float32)),
    )  # fmt: skip
    copies = DuplicateGroup((path(0), path(len(dataset) - 1)), (label(0), label(len(dataset) - 1)), ("train", "train"))
    return replace(check(folder), labels=labels, near_duplicates=(copies,))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, found = tmp_path_factory.mktemp("check"), {}
    kinds = {"two": ["cat", "dog"], "many": [f"greater sulphur-crested cockatoo {k}" for k in range(12)]}
    kinds["hostile"] = [f"{HOSTILE} قطة {k}".replace("/", "∕") for k in range(3)]
    for name, classes in kinds.items():
        for number, label in enumerate(classes):
            (root / name / label).mkdir(parents=True)
            for place in range(10 if name == "two" else 4):
                pixels = np.random.default_rng(100 * number + place).integers(0, 256, (60, 40 + 9 * place, 3), np.uint8)
                Image.fromarray(pixels).save(root / name / label / f"=a, {place}.png")
        dataset = open_folder(root / name)
        found[name] = root / f"{name}.html"
        write_check_page(found[name], dataset, findings_of(root / name, dataset), threads=1)
    return found


@pytest.mark.sample(1)
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light"), (360, "light")])
def test_it_fits_and_axe_finds_no_violation(
    opened: Opened,
    axe_violations: Callable[[Any], list[str]],
    layout_faults: Callable[[Any], list[str]],
    pages: dict[str, Path],
    width: int,
    scheme: str,
) -> None:
    for page in pages.values():
        with opened(page, viewport={"width": width, "height": 800}, color_scheme=scheme) as tab:
            tab.locator(".card summary").first.click()
            assert axe_violations(tab) == []
            assert layout_faults(tab) == []
            assert tab.evaluate("window.broken") is None
            assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_the_map_shows_the_picture_that_the_keys_or_the_pointer_reach(
    opened: Opened, axe_violations: Callable[[Any], list[str]], pages: dict[str, Path]
) -> None:
    caption = "document.querySelector('#shown-point figcaption').textContent"
    with opened(pages["two"]) as tab:
        points = tab.locator("#points circle")
        assert points.count() == 12
        assert not tab.locator("#shown-point").is_visible()
        tab.focus("#points")
        tab.keyboard.press("ArrowRight")
        assert tab.locator("#shown-point").is_visible()
        seen = {tab.evaluate(caption)}
        for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown"):
            tab.keyboard.press(key)
            seen.add(tab.evaluate(caption))
        assert len(seen) > 2
        assert all(text.startswith(("cat: =a, ", "dog: =a, ")) for text in seen)
        one = tab.locator('#points circle[data-index="3"]')
        box = one.bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert tab.evaluate(caption) == one.locator("title").text_content()
        columns = int(tab.locator("#shown-point svg").get_attribute("data-columns"))
        expected = f"{96 * (3 % columns)} {96 * (3 // columns)} 96 96"
        assert tab.locator("#shown-point svg").get_attribute("viewBox") == expected
        assert axe_violations(tab) == []
        tab.locator("#to-card").click()
        assert tab.evaluate("document.activeElement.dataset.index") == "3"
        legend = tab.locator("#legend button").first
        legend.click()
        chosen = legend.get_attribute("data-label")
        dimmed = tab.evaluate("[...document.querySelectorAll('#points .dim')].map(one => one.dataset.label)")
        assert dimmed
        assert chosen not in dimmed
        legend.click()
        assert tab.locator("#points .dim").count() == 0


def pressed(tab: Any) -> list[str]:
    """The classes chosen on the cards of the first section, in order; "" where none is."""
    return tab.evaluate("""[...document.querySelectorAll('#errors .card')].map(card =>
        card.querySelector('[aria-pressed=true] bdi')?.textContent || '')""")


def test_decisions_by_keyboard_are_undone_kept_and_saved(
    opened: Opened, reloaded: Reloaded, pages: dict[str, Path]
) -> None:
    with opened(pages["two"], accept_downloads=True) as tab:
        tab.locator("#errors .card").first.focus()
        tab.keyboard.press("Enter")  # the suggestion
        tab.keyboard.press("1")  # its label
        tab.keyboard.press("Space")  # its label
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("2")
        assert pressed(tab) == ["dog", "cat", "cat", "", "dog", ""]
        tab.keyboard.press("u")
        assert pressed(tab) == ["dog", "cat", "cat", "", "", ""]
        assert tab.locator("#progress").text_content().startswith("3 of 9\u00a0pictures decided, 1 corrected")
        assert reloaded(tab, lambda: pressed(tab) == ["dog", "cat", "cat", "", "", ""])
        with tab.expect_download() as saved:
            tab.keyboard.press("s")
        assert saved.value.suggested_filename == "fixes.csv"
        rows = list(csv.reader(Path(saved.value.path()).read_text(encoding="utf-8").splitlines()))
        assert rows[0] == ["path", "label", "corrected"]
        assert rows[1] == ["cat/=a, 0.png", "cat", "dog"]
        assert [row[2] for row in rows[2:]] == ["cat", "cat"]
        for _ in range(4):
            tab.keyboard.press("Control+z")
        assert pressed(tab) == [""] * 6
        assert tab.locator("#save").is_disabled()


def test_arrows_move_by_rows_and_columns(opened: Opened, pages: dict[str, Path]) -> None:
    current = "[...document.querySelectorAll('.card')].indexOf(document.activeElement)"
    with opened(pages["two"], viewport={"width": 390, "height": 800}) as tab:  # two columns
        tab.locator(".card").first.focus()
        for key, place in (("ArrowRight", 1), ("ArrowDown", 3), ("ArrowLeft", 2), ("ArrowUp", 0), ("ArrowUp", 0)):
            tab.keyboard.press(key)
            assert tab.evaluate(current) == place


def test_a_picture_in_two_sections_is_decided_once(opened: Opened, pages: dict[str, Path]) -> None:
    with opened(pages["two"]) as tab:
        tab.locator("#conflicts .card").first.get_by_role("button", name="2 dog").click()
        assert pressed(tab)[0] == "dog"


def test_any_of_many_classes_can_be_chosen(opened: Opened, pages: dict[str, Path]) -> None:
    with opened(pages["many"]) as tab:
        card = tab.locator("#errors .card").first
        assert card.get_by_role("button").count() == 2
        card.locator("select").focus()
        card.locator("select").select_option("5")
        assert tab.locator("#progress").text_content().startswith("1 of")
        assert card.locator("select").input_value() == "5"


def test_what_is_stored_of_another_check_is_ignored(opened: Opened, reloaded: Reloaded, pages: dict[str, Path]) -> None:
    with opened(pages["two"]) as tab:
        tab.evaluate("""localStorage.setItem(JSON.parse(document.getElementById('facts').textContent).key,
            JSON.stringify([['gone.png', 0], ['cat/=a, 0.png', 99], 7, ['cat/=a, 1.png', 1]]))""")
        assert reloaded(tab, lambda: pressed(tab) == ["", "dog", "", "", "", ""])


def test_without_scripts_the_pictures_and_reasons_are_there(opened: Opened, pages: dict[str, Path]) -> None:
    with opened(pages["two"], java_script_enabled=False) as tab:
        assert tab.locator(".card .frame img").count() == 10
        assert not tab.locator("#tools").is_visible()
        assert "most similar pictures are labeled dog" in tab.locator(".card").first.inner_text()
