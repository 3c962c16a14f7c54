"""metrics.jsonl, one JSON object a line, and the same numbers for TensorBoard where it is wanted."""

import json
import math
import os
from pathlib import Path
from typing import Any

from svertka.errors import UsageError
from svertka.files import storage_errors


class Log:
    """Appends to `path`; `offset` bytes of an earlier training are kept, what follows them is cut off."""

    def __init__(self, path: Path, offset: int = 0, *, tensorboard: bool = False) -> None:
        self.path = path
        with storage_errors(path):
            path.touch()
            os.truncate(path, min(offset, path.stat().st_size))
        self._board = _board(path.parent / "tensorboard") if tensorboard else None

    @property
    def offset(self) -> int:
        """Bytes written so far; give it to the Log of a resume."""
        return self.path.stat().st_size

    def write(self, kind: str, **values: Any) -> None:
        """Append one line; NaN and infinity become null."""
        line = {"kind": kind} | {name: _plain(value) for name, value in values.items()}
        with storage_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        if self._board is not None and "step" in values:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, values["step"])

    def close(self) -> None:
        """Let TensorBoard's file go to disk."""
        if self._board is not None:
            self._board.close()


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "--tensorboard needs a package that is not installed: pip install 'svertka[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder))
