"""Rules of docs/style.md that no linter knows, as part of `make lint`: names of modules, and the width of pages."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")])


def banned_names() -> set[str]:
    """Return the module names that docs/style.md rules out."""
    text = (ROOT / "docs" / "style.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(\w+)`", text.partition("No module may be named")[2]))
    assert len(names) > 50
    return names


def test_no_module_has_a_name_that_says_too_little() -> None:
    modules = [path for folder in ("src", "bench", "experiments") for path in (ROOT / folder).rglob("*.py")]
    assert len(modules) > 150
    banned = banned_names()
    assert [str(path.relative_to(ROOT)) for path in modules if path.stem in banned] == []


def test_no_line_of_documentation_is_over_100_columns() -> None:
    found = [
        f"{page.relative_to(ROOT)}:{number}: {len(line)} columns"
        for page in PAGES
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > 100
    ]
    assert found == []
