"""Work that is done in parts, each a file: interrupted and started again, it goes on where it was."""

import json
from pathlib import Path
from typing import Any

from svertka.errors import UsageError
from svertka.files import read_json, storage, write_atomic, write_json

STATE_FILE = "atlas.json"  # of a folder that is one of these


class ResumableFolder:
    """A folder whose files are made one by one, each whole or absent; `identity` is what they are made from.

    `summary`: what `finish` said of it; None while it is not done.

    Raises:
        UsageError: the folder holds something else, or what was made from something else.
        StorageError: it cannot be written.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self._identity = folder, identity
        found = _read_state(folder)
        self.summary: dict[str, Any] | None = None if found is None else found.get("summary")
        if found is None:
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UsageError(f"{folder} exists and is not an atlas; choose another --output")
            with storage(folder):
                folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / STATE_FILE, {"identity": identity})
        elif found["identity"] != identity:
            raise UsageError(
                f"{folder} is an atlas of other weights, pictures or options; remove it or choose another --output"
            )

    def __contains__(self, name: str) -> bool:
        return (self.folder / name).exists()

    def put(self, name: str, content: bytes) -> None:
        """Write the file `name`, and the folder for it.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        path = self.folder / name
        with storage(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)

    def put_script(self, name: str, place: str, value: object) -> None:
        """Write `value` as a script that assigns it to `atlasData[place]`: what a page from a file can load."""
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII, which any encoding reads alike
        self.put(name, f"(self.atlasData??={{}})[{json.dumps(place)}]={text};\n".encode())

    def bytes(self, without: str) -> int:
        """Of all files but one."""
        files = (path for path in self.folder.rglob("*") if path.is_file() and path != self.folder / without)
        return sum(path.stat().st_size for path in files)

    def finish(self, summary: dict[str, Any], temporary: str) -> None:
        """Say that all is done, and remove the file `temporary`, which nobody needs any more."""
        write_json(self.folder / STATE_FILE, {"identity": self._identity, "summary": summary})
        self.summary = summary
        (self.folder / temporary).unlink(missing_ok=True)


def _read_state(folder: Path) -> dict[str, Any] | None:
    """What the sign in `folder` says; None if there is none."""
    try:
        content = read_json(folder / STATE_FILE)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("identity"), str) else None
