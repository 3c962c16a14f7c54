"""An HTTP server on this machine that sends byte ranges of the files in a folder, and misbehaves when told to.

Its folders are also the buckets of an S3 store, as far as reading needs one.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class RangeServer(ThreadingHTTPServer):
    """Sends the files of `folder`; `fault` may name the status for a path and a request number instead."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.is_away = False  # connections are closed without an answer
        self.folder = folder
        self.fault: Callable[[str, int], int | None] = lambda path, number: None
        self.requests: list[tuple[str, str, str | None]] = []  # method, path and range

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: RangeServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.command, self.path, wanted))
        if self.server.is_away:
            self.close_connection = True
            return
        status = self.server.fault(self.path, len(self.server.requests))
        if status is not None:
            self._send(status, b"", with_body=with_body)
            return
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        if "list-type" in query:
            self._list(parts.path.strip("/"), query.get("prefix", [""])[0], with_body=with_body)
            return
        path = self.server.folder / parts.path.lstrip("/")
        if path.is_dir():
            links = "".join(f'<a href="{one.name}">{one.name}</a>\n' for one in sorted(path.iterdir()))
            self._send(200, links.encode(), with_body=with_body, kind="text/html")
        elif not path.exists():
            self._send(404, b"", with_body=with_body)
        elif wanted:
            start, stop = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
            content = path.read_bytes()
            some = content[int(start) : int(stop) + 1 if stop else None]
            self._send(
                206, some, with_body=with_body, place=f"bytes {start}-{int(start) + len(some) - 1}/{len(content)}"
            )
        else:
            self._send(200, path.read_bytes(), with_body=with_body)

    def _list(self, bucket: str, prefix: str, *, with_body: bool) -> None:
        """Answer S3's ListObjectsV2."""
        folder = self.server.folder / bucket
        found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [name for path in found if (name := path.relative_to(folder).as_posix()).startswith(prefix)]
        entries = "".join(
            f"<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>0</ETag>"
            f"<Size>{(folder / name).stat().st_size}</Size></Contents>"
            for name in names
        )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        self._send(200, text.encode(), with_body=with_body, kind="application/xml")

    def _send(
        self, status: int, content: bytes, *, with_body: bool, kind: str = "application/octet-stream", place: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", kind)
        self.send_header("Accept-Ranges", "bytes")
        if place:
            self.send_header("Content-Range", place)
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    """Serve `folder` during the body."""
    server = RangeServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
