import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import svertka.download as fetching
from svertka.download import download_file
from svertka.errors import FetchError, StorageError

CONTENT = np.random.default_rng(0).bytes(2_500_000)
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Site:
    """What a server on this machine has and how it misbehaves; `asked` are the Range headers it got."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.ranges = True
        self.cut_after: int | None = None
        self.status = 200
        self.shift = 0
        self.silence = 0.0
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked: list[str | None] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self.server.server_port}/file.bin"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers["Range"]
                site.asked.append(wanted)
                time.sleep(site.silence)
                is_late = not site.may_answer.is_set()
                site.may_answer.wait(120)
                start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and site.ranges else 0
                if is_late:
                    return  # it hangs up
                if site.status != 200 or start >= len(site.content):
                    self.send_error(site.status if site.status != 200 else 416)
                    return
                body = site.content[start:]
                self.send_response(206 if start else 200)
                if start:
                    first = start + site.shift
                    self.send_header("Content-Range", f"bytes {first}-{len(site.content) - 1}/{len(site.content)}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(ConnectionError):  # the one who asked may have left
                    self.wfile.write(body[: site.cut_after])

            def log_message(self, *args: object) -> None: ...

        return Handler


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site = Site()
    with site.server:
        thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield site
        site.server.shutdown()
        thread.join()


@pytest.mark.parametrize("checksum", [MD5, SHA256, SHA256[:15]])
def test_brings_the_file_whole_and_leaves_nothing_else(site: Site, tmp_path: Path, checksum: str) -> None:
    path = download_file([site.url], tmp_path / "new" / "file.bin", checksum)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir() if not file.name.startswith(".")] == ["file.bin"]
    assert site.asked == [None]


def test_a_file_that_is_there_is_not_asked_for(site: Site, tmp_path: Path) -> None:
    download_file([site.url], tmp_path / "file.bin", MD5)
    download_file([site.url], tmp_path / "file.bin", MD5)
    assert len(site.asked) == 1


def test_a_cut_connection_is_taken_up_where_it_was_cut(site: Site, tmp_path: Path) -> None:
    site.cut_after = 1_000_000
    assert download_file([site.url], tmp_path / "file.bin", MD5).read_bytes() == CONTENT
    assert site.asked == [None, "bytes=1000000-", "bytes=2000000-"]


def test_a_later_call_goes_on_from_the_part(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:2_000_000])
    assert download_file([site.url], tmp_path / "file.bin", MD5).read_bytes() == CONTENT
    assert site.asked == ["bytes=2000000-"]


def test_a_part_that_is_already_whole_is_only_checked(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert download_file([site.url], tmp_path / "file.bin", MD5).read_bytes() == CONTENT
    assert site.asked == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("part", [b"x" * 1000, CONTENT + b"x", b"x" * 3_000_000])
def test_a_part_of_something_else_is_thrown_away_once(site: Site, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "file.bin.part").write_bytes(part)
    assert download_file([site.url], tmp_path / "file.bin", MD5).read_bytes() == CONTENT
    assert site.asked == [f"bytes={len(part)}-", None]


def test_a_server_without_ranges_starts_again(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:2_000_000])
    assert download_file([site.url], tmp_path / "file.bin", MD5).read_bytes() == CONTENT


def test_a_server_that_always_cuts_at_the_same_byte_is_given_up(site: Site, tmp_path: Path) -> None:
    site.ranges, site.cut_after = False, 1_000_000
    with pytest.raises(FetchError, match="closed the connection 1500000 bytes before the end"):
        download_file([site.url], tmp_path / "file.bin", MD5)
    assert len(site.asked) == 2


def test_another_range_than_asked_for_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    site.shift = 1
    with pytest.raises(FetchError, match="another range"):
        download_file([site.url], tmp_path / "file.bin", MD5)


def test_a_wrong_checksum_leaves_no_file(site: Site, tmp_path: Path) -> None:
    site.content = CONTENT[:-1] + b"?"
    with pytest.raises(FetchError, match=rf"cannot fetch file.bin .*sent a file with checksum md5:\w+, not {MD5}"):
        download_file([site.url], tmp_path / "file.bin", MD5)
    assert [file.name for file in tmp_path.iterdir()] == [".file.bin.lock"]


def test_the_next_address_is_tried(site: Site, tmp_path: Path) -> None:
    refused = f"http://127.0.0.1:{_closed_port()}/file.bin"
    assert download_file([refused, site.url], tmp_path / "file.bin", MD5).read_bytes() == CONTENT


def test_the_message_names_the_file_each_reason_and_where_to_put_it(site: Site, tmp_path: Path) -> None:
    site.status = 404
    refused = f"http://127.0.0.1:{_closed_port()}/file.bin"
    with pytest.raises(FetchError) as caught:
        download_file([refused, site.url], tmp_path / "file.bin", MD5)
    message = str(caught.value)
    assert "cannot fetch file.bin" in message
    assert "connection refused" in message
    assert "answered 404" in message
    assert message.endswith(f"put it at {tmp_path / 'file.bin'}")
    assert "\n" not in message
    with pytest.raises(FetchError, match=r"and ask a friend$"):
        download_file([site.url], tmp_path / "file.bin", MD5, instead="ask a friend")


def test_a_server_that_says_nothing_is_left(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT", 0.1)
    site.may_answer.clear()
    try:
        with pytest.raises(FetchError, match="did not answer within"):
            download_file([site.url], tmp_path / "file.bin", MD5)
    finally:
        site.may_answer.set()


def test_a_name_that_nobody_knows_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(FetchError, match=r"cannot fetch file.bin \(nowhere.invalid "):
        download_file(["http://nowhere.invalid/file.bin"], tmp_path / "file.bin", MD5)


def test_of_two_that_want_it_one_downloads(site: Site, tmp_path: Path) -> None:
    site.silence = 0.1
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: download_file([site.url], tmp_path / "file.bin", MD5), range(2)))
    assert paths == [tmp_path / "file.bin"] * 2
    assert site.asked == [None]


def test_a_folder_that_cannot_be_made_is_no_fault_of_the_network(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError):
        download_file([site.url], tmp_path / "file" / "file.bin", MD5)


def test_a_disk_that_fills_is_no_fault_of_the_network(site: Site, tmp_path: Path, small_disk) -> None:
    with small_disk(1_000_000), pytest.raises(StorageError):
        download_file([site.url], tmp_path / "file.bin", MD5)
    assert download_file([site.url], tmp_path / "file.bin", MD5).read_bytes() == CONTENT


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
