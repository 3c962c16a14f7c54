"""Choices between algorithms, kept on disk: by what all times depend on, then by a convolution's description."""

from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any

import torch

from svertka.device import processor
from svertka.errors import StorageError
from svertka.files import cache_folder, locked, read_json, write_json
from svertka.progress import say

FORMAT = 2  # of the file; what another version wrote is timed anew
FILE = "convolutions.json"  # in the cache folder


def here(names: Iterable[str]) -> str:
    """What all times depend on beside the shape: the machine, PyTorch, and the algorithms that there are."""
    return f"{processor()}, torch {torch.__version__}, algorithms {', '.join(names)}"


@cache
def remembered(place: str) -> dict[str, str]:
    """The choices on disk that hold at `place`, as they were when this process first asked; `remember` adds to them."""
    return _of(place, _read())


def remember(place: str, written: str, name: str) -> None:
    """Keep one choice in memory and, if it can be written, on disk, beside those of other processes."""
    remembered(place)[written] = name
    with suppress(StorageError):  # then the next process times it again
        path = cache_folder() / FILE
        with locked(path.with_suffix(".lock")):
            everything = _read()
            everything[place] = _of(place, everything) | {written: name}
            write_json(path, {"format": FORMAT, "choices": everything})


def _of(place: str, everything: dict[str, Any]) -> dict[str, str]:
    mine = everything.get(place)
    return {str(key): str(value) for key, value in mine.items()} if isinstance(mine, dict) else {}


def _read() -> dict[str, Any]:
    """All choices on disk, by place; none, and said, if the file is damaged."""
    try:
        path = cache_folder() / FILE
        content: Any = read_json(path)
    except (FileNotFoundError, StorageError):
        return {}
    except (OSError, ValueError):
        content = None
    choices = content.get("choices") if isinstance(content, dict) else None
    if not isinstance(choices, dict):
        say(f"{path} is damaged; convolutions are timed anew")
        return {}
    return choices if content.get("format") == FORMAT else {}
