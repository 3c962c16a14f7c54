"""The training log metrics.jsonl, one JSON object per line, and TensorBoard logs of the same numbers."""

import json
import math
import os
from pathlib import Path
from typing import Any

from svertka.errors import UsageError
from svertka.files import os_error_to_storage_error


class MetricsLog:
    """A log that is appended to.

    Args:
        path: The file.
        offset: Bytes to keep of an existing file; the rest is cut off.
        tensorboard: Also write TensorBoard logs, into the folder tensorboard/ beside the file.

    Raises:
        StorageError: The file cannot be written.
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, path: Path, offset: int = 0, *, tensorboard: bool = False) -> None:
        self.path = path
        with os_error_to_storage_error(path):
            path.touch()
            os.truncate(path, min(offset, path.stat().st_size))
        self._board = _open_tensorboard(path.parent / "tensorboard") if tensorboard else None

    @property
    def offset(self) -> int:
        """Bytes written so far; the `offset` of a resumed training."""
        return self.path.stat().st_size

    def write(self, kind: str, **values: Any) -> None:
        """Append a line; NaN and infinity become null."""
        line = {"kind": kind} | {name: _finite(value) for name, value in values.items()}
        with os_error_to_storage_error(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        if self._board is not None and "step" in values:
            for name, value in line.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, values["step"])

    def close(self) -> None:
        """Flush and close the TensorBoard logs."""
        if self._board is not None:
            self._board.close()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "--tensorboard needs a package that is not installed; run pip install 'svertka[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder))
