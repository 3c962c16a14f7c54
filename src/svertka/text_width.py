"""Text in terminal columns: its width, and shortening that keeps both ends."""

from collections.abc import Sequence

ELLIPSIS = "…"
MAX_CHARACTERS_PER_COLUMN = 8  # a family emoji has 7


def text_width(text: str) -> int:
    """Return the terminal columns that `text` takes: 2 for CJK and emoji, 0 for combining characters.

    Terminals draw a sequence such as a family emoji as one sign or as its parts; the wider way counts, so that no row
    wraps.
    """
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return max(cell_len(text), sum(map(cell_len, text)))


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Return `text` filled with spaces to `width` columns, on its left if it is aligned right."""
    spaces = " " * (width - text_width(text))
    return spaces + text if right else text + spaces


def shorten(text: str, width: int = 60, ellipsis: str = ELLIPSIS, *, is_prose: bool = False) -> str:
    """Return `text` in at most `width` columns, with … in place of what is left out if it is longer.

    A name loses its middle and keeps both ends: names of one folder often differ at the end only. Prose loses its end.

    >>> shorten("album/holidays/2024/0001.jpg", 16)
    'album/…/0001.jpg'
    """
    # A million combining characters take no column.
    if len(text) <= MAX_CHARACTERS_PER_COLUMN * width and text_width(text) <= width:
        return text
    room = width - text_width(ellipsis)
    if room < 2:
        return text[: max(width, 0)] if text.isascii() else ellipsis[: max(width, 0)]
    if is_prose:
        return f"{_prefix(text, room).rstrip()}{ellipsis}"
    head = room * 2 // 5
    return f"{_prefix(text, head)}{ellipsis}{_suffix(text, room - head)}"


def join_items_that_fit(items: Sequence[str], width: int, separator: str = ", ") -> str:
    """Return the first of `items` that fit into `width` columns, joined; none is cut, so that no number is.

    >>> join_items_that_fit(["loss 0.25", "error 12.5%", "1,200 images/s"], 24)
    'loss 0.25, error 12.5%'
    """
    joined = ""
    for number, item in enumerate(items):
        longer = f"{joined}{separator}{item}" if number else item
        if text_width(longer) > width:
            break
        joined = longer
    return joined


def _prefix(text: str, width: int) -> str:
    """Return the longest beginning of `text` that takes at most `width` columns."""
    end = min(len(text), width)
    while text_width(text[:end]) > width:
        end -= 1
    return text[:end]


def _suffix(text: str, width: int) -> str:
    """Return the longest end of `text` that takes at most `width` columns."""
    start = max(len(text) - width, 0)
    while text_width(text[start:]) > width:
        start += 1
    return text[start:]
