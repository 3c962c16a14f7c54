"""Navigation of the site: one entry for each notebook and each decision record, and the links of notebooks."""

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]


def on_config(config: Any) -> Any:
    """Fill the sections "Notebooks" and "Decisions" of the navigation."""
    pages = {
        "Notebooks": [{_title_of_notebook(path): _address(path)} for path in sorted(DOCS.glob("notebooks/*.ipynb"))],
        "Decisions": [_address(path) for path in sorted(DOCS.glob("decisions/*.md"))],
    }
    for section in config.nav:
        for entries in section.values():
            for entry in entries if isinstance(entries, list) else ():
                for name in entry.keys() & pages.keys():
                    entry[name] = pages[name]
    return config


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Let the links of notebooks to Markdown pages, which work on GitHub, lead to the pages of the site."""
    if not page.file.src_uri.endswith(".ipynb"):
        return output
    return re.sub(r'href="([^":#]+)\.md(#[^"]*)?"', r'href="\1.html\2"', output)


def _title_of_notebook(path: Path) -> str:
    """Return the text of the first heading."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = "".join(cells[0]["source"]).splitlines()
    return next(line.removeprefix("# ") for line in lines if line.startswith("# "))


def _address(path: Path) -> str:
    return path.relative_to(DOCS).as_posix()
