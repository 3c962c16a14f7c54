"""The pages of the API reference list every public name, each once, and nothing else."""

import importlib
import re
from pathlib import Path

import pytest

import svertka
import svertka.conv
import svertka.inspection
import svertka.plot
from test_public_api import RESULTS, exported

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
NAMES = {
    "svertka": {f"svertka.{name}" for name in svertka.__all__},
    "conv": {f"svertka.conv.{name}" for name, _ in exported(svertka.conv)},
    "inspection": {f"svertka.inspection.{name}" for name, _ in exported(svertka.inspection)},
    "plot": {f"svertka.plot.{name}" for name, _ in exported(svertka.plot)},
    "results": {f"{one.__module__}.{one.__name__}" for one in RESULTS},
}


@pytest.mark.parametrize("page", NAMES)
def test_a_page_lists_every_public_name(page: str) -> None:
    listed = re.findall(r"^::: (\S+)$", (FOLDER / f"{page}.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == NAMES[page]
    for name in listed:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (FOLDER.parents[1] / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(FOLDER.parent).as_posix() for path in FOLDER.parent.rglob("*.md")}
    named = set(re.findall(r": ([\w./]+\.md)$", navigation, re.MULTILINE))
    assert named == {page for page in pages if not page.startswith("decisions/")}  # navigation.py adds those
