"""The links of the documentation lead somewhere, the files and names in its code exist, and its examples are right."""

import doctest
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "svertka"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = {"bench", "docs", "experiments", "native", "src", "tests"}
PACKAGES = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
EXAMPLES = [
    path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


def name_of(page: Path) -> str:
    """The path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def parsed(page: Path) -> Iterator[Token]:
    """The tokens of a Markdown page, inline ones included."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        yield token
        yield from token.children or ()


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    seen, found = Counter[str](), set()
    for opening, heading in pairwise(parsed(page)):
        if opening.type != "heading_open":
            continue
        text = "".join(one.content for one in heading.children or () if one.type in ("text", "code_inline"))
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken_links(page: Path) -> list[str]:
    """The relative links of a page to files or headings that do not exist."""
    broken = []
    for token in parsed(page):
        link = str(token.attrs.get("href") or token.attrs.get("src") or "")
        if not link or ":" in link:
            continue
        path, _, anchor = unquote(link).partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def in_code(page: Path, pattern: str) -> list[str]:
    """What matches `pattern` in the code spans and code blocks of a page."""
    kinds = ("code_inline", "fence", "code_block")
    return [found for token in parsed(page) if token.type in kinds for found in re.findall(pattern, token.content)]


def missing_files(page: Path) -> list[str]:
    """The files and folders of this repository that code on a page names and that do not exist."""
    paths = in_code(page, r"(?<![\w./-])\w+/[\w./-]*")
    named = [path for path in paths if path.partition("/")[0] in FOLDERS | PACKAGES]
    return [path for path in named if not (ROOT / path).exists() and not (PACKAGE / path).exists()]


def missing_names(page: Path) -> list[str]:
    """The modules, functions and classes of svertka that code on a page names and that do not exist."""
    missing = []
    for name in in_code(page, r"(?<![\w./-])svertka(?:\.[A-Za-z_]\w*)+"):
        try:
            resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    return missing


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


@every_page
def test_the_files_it_names_exist(page: Path) -> None:
    assert missing_files(page) == []


@every_page
def test_the_names_in_its_code_exist(page: Path) -> None:
    assert missing_names(page) == []


def facts(page: Path) -> dict[str, list[Any]]:
    """What a page and its translation share: code, links, numbers of each section, and the levels of headings."""
    text = re.sub(
        r"(?s)<!--.*?-->|^\[[^]]*\]\(lecture(?:\.ru)?\.md\)$", "", page.read_text(encoding="utf-8"), flags=re.M
    )
    if page.name.endswith(".ru.md"):
        text = re.sub(r"`[^`]*`|(?<=\d),(?=\d)", lambda one: one[0] if "`" in one[0] else ".", text)  # decimal commas
    sections = re.split(r"^## ", text, flags=re.M)
    levels = [token.tag for token in parsed(page) if token.type == "heading_open"]
    return {
        "headings": levels,
        "code": [re.findall(r"`([^`]+)`", one) for one in sections],
        "links": [re.findall(r"\]\(([^)]+)\)", one) for one in sections],
        "numbers": [Counter(re.findall(r"\d+(?:\.\d+)?", re.sub(r"`[^`]*`|\]\([^)]*\)", "", one))) for one in sections],
    }


def test_the_lecture_is_the_same_in_both_languages() -> None:
    english, russian = (facts(ROOT / "docs" / name) for name in ("lecture.md", "lecture.ru.md"))
    for kind, found in english.items():
        for section, (one, other) in enumerate(zip(found, russian[kind], strict=True)):
            assert one == other, f"{kind}, part {section}"


def test_what_does_not_exist_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = """
# Of 3×3, `code` & more
[a](#of-33-code--more) [b](#of-3) [c](other.md) ![d](figures/one.png) [e](https://example.org/none)

`bench/nothing.py` `bench/conv.py` `python bench/other.py photos/cat.jpg` `conv/api/`
`svertka.conv.conv2d(x)` `svertka.conv.none(x)` `svertka.nothing`

    native/no.h runs/demo/
"""
    page.write_text(text, encoding="utf-8")
    assert broken_links(page) == ["#of-3", "other.md", "figures/one.png"]
    assert missing_files(page) == ["bench/nothing.py", "bench/other.py", "conv/api/", "native/no.h"]
    assert missing_names(page) == ["svertka.conv.none", "svertka.nothing"]


def test_the_tree_of_the_design_names_every_module() -> None:
    tree = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("```")[1]
    found, folder = set(), ""
    for line in tree.strip("\n").split("\n"):
        if line.startswith(" "):
            found |= {f"{folder}{name}" for name in line.split()}
        else:
            folder = line.split()[0].removeprefix("./")
    modules = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")}
    assert found == {module for module in modules if not module.rpartition("/")[2].startswith("__")}


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_in_docstrings_are_right(module: str) -> None:
    assert doctest.testmod(import_module(module)).failed == 0
