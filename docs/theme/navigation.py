"""Navigation of the site: entries of notebooks and decisions, links of notebooks, and names for screen readers."""

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
    """Let links of notebooks to Markdown pages lead to those of the site, and name what the theme leaves unnamed."""
    output = _name_dialogs(output)
    output = re.sub(r"<th([^>]*)></th>", r"<td\1></td>", output)  # a header without text
    if not page.file.src_uri.endswith(".ipynb"):
        return output
    return re.sub(r'href="([^":#]+)\.md(#[^"]*)?"', r'href="\1.html\2"', output)


def on_post_template(output: str, *, template_name: str, config: Any) -> str:
    """Name what the theme leaves unnamed on the page for addresses that do not exist."""
    return _name_dialogs(output) if template_name == "404.html" else output


def _name_dialogs(output: str) -> str:
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def _title_of_notebook(path: Path) -> str:
    """Return the text of the first heading."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = "".join(cells[0]["source"]).splitlines()
    return next(line.removeprefix("# ") for line in lines if line.startswith("# "))


def _address(path: Path) -> str:
    return path.relative_to(DOCS).as_posix()
