"""A folder whose files are written one by one, so that an interrupted build can be resumed."""

import json
from pathlib import Path
from typing import Any

from svertka.errors import UsageError
from svertka.files import os_error_to_storage_error, read_json, write_atomic, write_json

STATE_FILE = "atlas.json"  # marks a folder as an atlas


class ResumableFolder:
    """A folder in which every file is either complete or absent.

    Args:
        path: Path of the folder; created if it does not exist.
        fingerprint: Hash of everything that the files are made from. Files made from something else are refused.

    Attributes:
        summary: The summary passed to `finish`; None while the folder is incomplete.

    Raises:
        UsageError: The folder holds other files, or files made from something else.
        StorageError: The folder cannot be written.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self._fingerprint = path, fingerprint
        state = _read_state(path)
        self.summary: dict[str, Any] | None = None if state is None else state.get("summary")
        if state is None:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise UsageError(f"{path} exists and is not an atlas; choose another --output")
            with os_error_to_storage_error(path):
                path.mkdir(parents=True, exist_ok=True)
            write_json(path / STATE_FILE, {"identity": fingerprint})
        elif state["identity"] != fingerprint:
            raise UsageError(
                f"{path} is an atlas of other weights, images or options; remove it or choose another --output"
            )

    def __contains__(self, name: str) -> bool:
        return (self.path / name).exists()

    def write(self, name: str, content: bytes) -> None:
        """Write the file `name` and create its folder.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        path = self.path / name
        with os_error_to_storage_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)

    def write_script(self, name: str, key: str, value: object) -> None:
        """Write a script that assigns `value` to `atlasData[key]`; pages opened from disk cannot load JSON."""
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII, for any encoding
        self.write(name, f"(self.atlasData??={{}})[{json.dumps(key)}]={text};\n".encode())

    def num_bytes(self, exclude: str) -> int:
        """Return the size of all files but one."""
        files = (path for path in self.path.rglob("*") if path.is_file() and path != self.path / exclude)
        return sum(path.stat().st_size for path in files)

    def finish(self, summary: dict[str, Any], temporary: str) -> None:
        """Mark the folder as complete and remove the file `temporary`."""
        write_json(self.path / STATE_FILE, {"identity": self._fingerprint, "summary": summary})
        self.summary = summary
        (self.path / temporary).unlink(missing_ok=True)


def _read_state(path: Path) -> dict[str, Any] | None:
    """Return the content of the state file; None if there is none."""
    try:
        content = read_json(path / STATE_FILE)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("identity"), str) else None
