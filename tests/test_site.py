"""The site of make docs: complete, without dead links, and independent of every server."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import svertka
import svertka.conv
import svertka.inspection
import svertka.plot
from test_public_api import exported

ROOT = Path(__file__).parents[1]
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
KINDS = ("index", "lecture.ru", "gallery", "notebooks/01_convolution_as_a_matrix", "reference/svertka", "benchmarks")
LISTS = {"stylesheet", "icon", "preload", "modulepreload", "preconnect"}

pytestmark = pytest.mark.large  # building takes half a minute; make docs runs these tests, too


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True, timeout=600)
    return folder


class Page(HTMLParser):
    """The links, the identifiers and what a page loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.identifiers: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.identifiers |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADED and (tag != "link" or LISTS & set(given.get("rel", "").split())):
            self.loads.append(given.get(LOADED[tag], ""))


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def broken(pages: dict[Path, Page]) -> Iterator[str]:
    """The links inside the site that lead to no file, or to no place in one."""
    for path, page in pages.items():
        for link in page.links + page.loads:
            address, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", address) or link == "" or path.name == "404.html":
                continue
            target = path.parent / address.partition("?")[0] if address else path
            target = target.resolve()
            if target.is_dir():
                target /= "index.html"
            known = pages.get(target)
            # Text fragments of interactive pages name a state of the page, "#network=vgg16".
            if not target.exists() or (anchor and known and "=" not in anchor and anchor not in known.identifiers):
                yield f"{path.name}: {link}"


def test_every_link_leads_somewhere(pages: dict[Path, Page]) -> None:
    assert len(pages) > 40
    assert list(broken(pages)) == []


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    loads = [load for page in pages.values() for load in page.loads]
    assert [load for load in loads if re.match(r"(https?:)?//", load)] == []
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert [found for style in styles for found in re.findall(r"url\(['\"]?(?:https?:)?//[^)]*", style)] == []


def test_every_public_name_has_an_entry(site: Path, pages: dict[Path, Page]) -> None:
    names = {f"svertka.{name}" for name in svertka.__all__}
    for module in (svertka.conv, svertka.inspection, svertka.plot):
        names |= {f"{module.__name__}.{name}" for name, _ in exported(module)}
    entries = {found for path in site.glob("reference/*.html") for found in pages[path.resolve()].identifiers}
    assert names - entries == set()


def test_every_notebook_and_decision_is_in_the_navigation(pages: dict[Path, Page], site: Path) -> None:
    (start,) = (page for path, page in pages.items() if path == (site / "index.html"))
    sources = [*ROOT.glob("docs/notebooks/*.ipynb"), *ROOT.glob("docs/decisions/*.md")]
    expected = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in sources}
    assert expected - set(start.links) == set()


def test_dialogs_and_headers_have_names(pages: dict[Path, Page]) -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in pages}
    found = {path.name: re.findall(r'<[^>]*role="dialog"[^>]*>|<th[^>]*></th>', text) for path, text in texts.items()}
    assert {name: [one for one in tags if "aria-label" not in one] for name, tags in found.items()} == {
        name: [] for name in found
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("kind", KINDS)
def test_it_opens_from_the_disk(
    site: Path, browser: Any, kind: str, width: int, scheme: str, axe_violations: Callable[[Any], list[str]]
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab, complaints = context.new_page(), []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("console", lambda one: complaints.append(one.text) if one.type == "error" else None)
    tab.on("request", lambda one: None if one.url.startswith((site.as_uri(), "data:")) else complaints.append(one.url))
    tab.goto((site / f"{kind}.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("h1").first.is_visible()
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 20, 20)"
    assert dark == (scheme == "dark")
    assert axe_violations(tab) == []
    context.close()
    assert complaints == []


def test_the_search_finds_a_function_offline(site: Path, browser: Any) -> None:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    tab = context.new_page()
    tab.goto((site / "index.html").as_uri())
    tab.locator(".md-search__input").fill("grad_cam")
    tab.locator(".md-search-result__link").first.wait_for()
    assert "inspection" in " ".join(tab.locator(".md-search-result__link").all_text_contents())
    context.close()
