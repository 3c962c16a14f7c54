"""The page in a real browser."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import svertka

pytest.importorskip("fastapi")
from svertka.serving.served_model import ServedModel


@pytest.fixture(scope="module")
def server(
    digit_folder: Path, small_run: Path, live: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    svertka.train(digit_folder, model="lenet5", epochs=1, threads=1, output=folder)
    svertka.look(folder, images=40, layers=["c1"], threads=1)
    bare = folder.parent / "bare"
    shutil.copytree(small_run, bare, symlinks=True)
    shutil.rmtree(bare / "atlas")
    with live(ServedModel(folder, torch.device("cpu")), ServedModel(bare, torch.device("cpu"))) as running:
        yield running


@pytest.fixture
def tab(browser: Any, server: Any) -> Iterator[Any]:
    """A tab with the page; nothing may complain, and nothing may be asked of anybody else."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    tab = context.new_page()
    complaints: list[str] = []
    origin = f"http://127.0.0.1:{server.port}/"
    context.on("console", lambda message: complaints.append(message.text))
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    context.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    context.on(
        "request",
        lambda one: None if one.url.startswith((origin, "data:", f"blob:{origin}")) else complaints.append(one.url),
    )
    tab.goto(origin)
    yield tab
    assert complaints == []
    context.close()


def given(tab: Any, *paths: Path) -> Any:
    tab.set_input_files("#drop input", [str(path) for path in paths])
    answers = tab.locator("#answers > li")
    answers.nth(len(paths) - 1).wait_for()
    return answers


def test_a_picture_is_named_and_shown_with_where_and_which_units(tab: Any, digit_folder: Path) -> None:
    picture = digit_folder / "three" / "05.png"
    answers = given(tab, picture)
    answers.locator("details:not([hidden])").wait_for()
    title = answers.locator("h2").inner_text()
    assert title.startswith("05.png: ")
    assert title.endswith("%.")
    assert answers.locator(".bars li").count() == 4
    overlay = answers.locator(".overlay")
    assert not overlay.is_visible()
    tab.keyboard.press("h")
    overlay.wait_for()
    assert "Grad-CAM" in answers.locator(".explained").inner_text()
    answers.get_by_text("Picture", exact=True).click()
    assert not overlay.is_visible()
    answers.locator("summary").click()
    units = answers.locator("a.part")
    assert units.count() > 0
    units.first.hover()
    answers.locator(".frame-line").wait_for()


def test_a_unit_leads_to_the_atlas_which_works_in_its_sandbox(tab: Any, digit_folder: Path) -> None:
    answers = given(tab, digit_folder / "one" / "01.png")
    answers.locator("details:not([hidden])").wait_for()
    answers.locator("summary").click()
    with tab.context.expect_page() as opened:
        answers.locator("a.part").first.click()
    atlas = opened.value
    atlas.locator("#stage h1").wait_for()
    assert "of c1" in atlas.locator("#stage h1").inner_text()
    assert atlas.evaluate("document.querySelectorAll('.pair').length") == 9
    # In it nothing of the server can be asked.
    assert atlas.evaluate("self.origin") == "null"
    tab.locator("#report").click()
    tab.wait_for_url("**/files/**")  # a click returns before the old page is gone
    assert tab.evaluate("self.origin") == "null"
    tab.go_back()
    tab.locator("#drop").wait_for()


def test_another_class_can_be_asked_about(tab: Any, digit_folder: Path) -> None:
    answers = given(tab, digit_folder / "one" / "01.png")
    answers.locator("details:not([hidden])").wait_for()
    other = answers.locator(".bars button").nth(2)
    other.focus()
    tab.keyboard.press("Enter")
    tab.locator('.bars button[aria-pressed="true"]').nth(0).wait_for()
    answers.locator(".bars li:nth-child(3) button[aria-pressed='true']").wait_for()


def test_a_file_that_is_no_picture_says_so(
    tab: Any, tmp_path: Path, browser: Any, axe_violations: Callable[[Any], list[str]]
) -> None:
    path = tmp_path / "<b>notes.txt"
    path.write_text("no picture")
    # A refusal is a line in the console of every browser; here it is meant.
    context = browser.new_context()
    page = context.new_page()
    page.goto(tab.url)
    answers = given(page, path)
    answers.locator(".wrong").wait_for()
    assert answers.locator("h2").inner_text() == "<b>notes.txt"
    assert "not an image" in answers.locator(".wrong").inner_text()
    assert answers.locator("img").count() == 0
    assert not answers.locator("figure").is_visible()
    assert axe_violations(page) == []
    context.close()


def test_runs_can_be_chosen_and_kept_in_the_address(tab: Any) -> None:
    assert tab.locator("h1").inner_text().startswith("lenet5, trained on ")
    tab.locator("#run").select_option("bare")
    tab.wait_for_url("**/#/bare")
    tab.locator("h1", has_text="resnet20: 3 classes").wait_for()
    assert tab.locator("#report").is_visible()
    assert not tab.locator("#atlas").is_visible()
    tab.go_back()
    tab.locator("h1", has_text="lenet5").wait_for()
    tab.goto(f"{tab.url.partition('#')[0]}#/bare")
    tab.locator("h1", has_text="resnet20: 3 classes").wait_for()
    assert tab.locator("#run").input_value() == "bare"


def test_a_pasted_and_a_dropped_picture_are_taken(tab: Any, digit_folder: Path) -> None:
    import base64

    encoded = base64.b64encode((digit_folder / "two" / "03.png").read_bytes()).decode()
    for kind, place in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        tab.evaluate(
            """([encoded, kind, place]) => {
                const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
                const transfer = new DataTransfer();
                transfer.items.add(new File([bytes], `${kind}.png`, {type: 'image/png'}));
                const event = kind === 'paste' ? new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true})
                    : new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true});
                document.body.dispatchEvent(event);
            }""",
            [encoded, kind, place],
        )
        tab.locator("#answers h2", has_text=f"{kind}.png: ").wait_for()
    tab.locator("#answers details:not([hidden])").nth(1).wait_for()


@pytest.mark.sample(1)
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_axe_finds_no_violation(
    browser: Any,
    server: Any,
    digit_folder: Path,
    axe_violations: Callable[[Any], list[str]],
    layout_faults: Callable[[Any], list[str]],
    scheme: str,
    width: int,
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(f"http://127.0.0.1:{server.port}/docs")
    assert axe_violations(tab) == []
    tab.goto(f"http://127.0.0.1:{server.port}/")
    assert axe_violations(tab) == []
    answers = given(tab, digit_folder / "one" / "01.png")
    for run in ("digits", "bare"):  # units that link to an atlas, and units that do not
        tab.locator("#run").select_option(run)
        answers = given(tab, digit_folder / "two" / "01.png")
        answers.first.locator("details:not([hidden])").wait_for()
        answers.first.locator("summary").click()
    assert axe_violations(tab) == []
    assert layout_faults(tab) == []
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_reads_well_on_a_telephone(
    browser: Any, server: Any, digit_folder: Path, scheme: str, contrasts: Callable[[Any, str], Any]
) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(f"http://127.0.0.1:{server.port}/")
    answers = given(tab, digit_folder / "one" / "01.png")
    answers.locator("details:not([hidden])").wait_for()
    answers.locator("summary").click()
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    seen = contrasts(tab, "main *")
    assert len(seen) > 20
    assert min(contrast for contrast, visible, _ in seen if visible) >= 4.5
    context.close()


def test_without_scripts_it_says_what_is_possible(browser: Any, server: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"http://127.0.0.1:{server.port}/")
    assert tab.locator("noscript p").is_visible()
    assert tab.locator("pre").inner_text().startswith("curl --data-binary @picture.jpg")
    assert tab.locator("#report").is_visible()
    context.close()


def test_behind_a_proxy_the_page_works_under_its_path(
    browser: Any, small_run: Path, live: Callable[..., Any], digit_folder: Path
) -> None:
    with live(ServedModel(small_run, torch.device("cpu")), root="/svertka") as running:
        context = browser.new_context()
        tab = context.new_page()
        failed: list[str] = []
        tab.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
        tab.goto(f"http://127.0.0.1:{running.port}/svertka")  # without its slash
        assert tab.url.endswith("/svertka/")
        assert f"http://127.0.0.1:{running.port}/svertka/predict" in tab.locator("pre").inner_text()
        answers = given(tab, digit_folder / "one" / "01.png")
        answers.locator("details:not([hidden])").wait_for()
        assert answers.locator("h2").inner_text().startswith("01.png: ")
        tab.locator("#report").click()
        tab.wait_for_url("**/files/**")
        assert "/svertka/files/" in tab.url
        assert failed == []
        context.close()
