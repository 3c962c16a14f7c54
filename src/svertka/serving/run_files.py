"""The report and the atlas of a run, as files that a browser shows without trusting them."""

from pathlib import Path

from starlette.responses import FileResponse, Response

from svertka.serving.http_error import HTTPError

POLICY = (
    "sandbox allow-scripts allow-popups; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A sandboxed page has no origin: the files beside it count as another site's.
HEADERS = {"Content-Security-Policy": POLICY, "Cross-Origin-Resource-Policy": "cross-origin"}


def find_run_file(folder: Path | None, name: str) -> Path | None:
    """Return the path of report.html or of a file of the atlas in a run folder; None for any other name."""
    if folder is None:
        return None
    try:
        folder = folder.resolve(strict=True)
        path = (folder / name).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # no such file, a NUL in its name, a loop of links
        return None
    allowed = path == folder / "report.html" or path.is_relative_to(folder / "atlas")
    return path if allowed and path.is_file() else None


def respond_with_run_file(path: Path | None) -> Response:
    """Return the file at `path`, sandboxed.

    Raises:
        HTTPError: 404, `path` is None.
    """
    if path is None:
        raise HTTPError(404, "no such file")
    return FileResponse(path, headers=HEADERS)
