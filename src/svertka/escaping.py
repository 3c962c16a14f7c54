"""Escaping of text of unknown origin (paths, class names, options) for terminals, CSV cells and command lines.

HTML is escaped by the templates of `pages.templates`, JSON by `cli.printing.print_json`.
"""

import os
import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path

JOINERS = "\u200c\u200d"  # invisible, but part of words and emoji; other invisible characters may deceive
# Embeddings, overrides and isolates: <bdi> does not contain what closes it.
BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
FORMULA = tuple("=+-@\t\r＝＋－＠")  # first characters of a formula in a spreadsheet


def to_printable(text: str) -> str:
    r"""Return `text` on one line, with control, bidirectional and other invisible characters as escapes.

    >>> to_printable("a\nb\x1b[31m")
    'a\\nb\\x1b[31m'
    """
    if text.isprintable() and text.isascii():
        return text
    return "".join(letter if _is_visible(letter) else _escaped(letter) for letter in text)


def escape_undecodable(text: str) -> str:
    """Return `text` with bytes that are not UTF-8, as names of files may have, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def join_first(names: Sequence[str], shown: int = 3, separator: str = ", ") -> str:
    """Return the first `shown` of `names`, and how many more there are.

    >>> join_first(["cat", "dog", "fox", "owl", "rat"])
    'cat, dog, fox and 2 more'
    """
    more = len(names) - shown
    return separator.join(names[:shown]) + (f" and {more:,} more" if more > 0 else "")


def replace_forbidden_characters(text: str) -> str:
    """Return `text` with � in place of each character that HTML or UTF-8 forbids or that reorders text."""
    if text.isprintable() and text.isascii():
        return text
    return "".join("\ufffd" if _is_forbidden(letter) else letter for letter in text)


def _is_forbidden(letter: str) -> bool:
    return letter in BIDI_CONTROLS or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


def escape_csv_cell(text: str) -> str:
    """Return `text` as a CSV cell on one line, with an apostrophe before what a spreadsheet takes for a formula.

    Source: OWASP, "CSV injection".
    """
    shown = to_printable(text)
    return f"'{shown}" if text.lstrip(" ").startswith(FORMULA) else shown


def escape_csv_path(path: str) -> str:
    """Return `path` as a CSV cell; "./" before what a spreadsheet takes for a formula keeps it a path."""
    return f"./{to_printable(path)}" if path.lstrip(" ").startswith(FORMULA) else to_printable(path)


def format_command(*words: str | os.PathLike[str]) -> str:
    """Return the command line `svertka WORDS`, quoted for a shell; a Path that begins with a dash gets "./".

    >>> format_command("train", "--resume", Path("my runs/1"))
    "svertka train --resume 'my runs/1'"
    """
    return shell_quote("svertka", *words)


def shell_quote(*words: str | os.PathLike[str]) -> str:
    """Return the words of a command line, quoted for a shell."""
    return " ".join(map(_shell_word, words))


def _shell_word(word: str | os.PathLike[str]) -> str:
    text = os.fspath(word)
    if isinstance(word, Path) and text.startswith("-"):
        text = f"./{text}"
    if to_printable(text) == text:
        return shlex.quote(text)
    # Invisible characters as bytes in $'…', which bash, zsh and POSIX 2024 read.
    return f"$'{''.join(map(_ansi_c, text))}'"


def _ansi_c(letter: str) -> str:
    if letter in "'\\":
        return f"\\{letter}"
    if _is_visible(letter):
        return letter
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))


def _is_visible(letter: str) -> bool:
    category = unicodedata.category(letter)
    return letter in JOINERS or category not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
