"""The server as a process of its own."""

import contextlib
import io
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import svertka
from fork_server import SERVING, Python
from svertka.cli.app import main
from svertka.errors import UsageError

pytest.importorskip("uvicorn")
from svertka.serving.uvicorn_server import bind_socket


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[tuple[Any, subprocess.Popen[str]]]:
    command = ["-m", "svertka", "serve", *arguments, "--port", "0", "--threads", "1", "--json"]
    started = Python(command, modules=SERVING, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            line = started.stdout.readline()
            assert line, started.stderr.read() if started.stderr else ""
            text += line
        yield json.loads(text), started
    finally:
        started.kill()
        started.wait()
        for stream in (started.stdout, started.stderr):
            if stream is not None:
                stream.close()


def test_it_says_where_it_is_answers_and_ends_in_peace(small_run: Path, jpeg: bytes) -> None:
    with process(str(small_run)) as (said, server):
        assert said["runs"] == ["small"]
        assert said["token"] is None
        assert said["url"].startswith("http://127.0.0.1:")
        with urllib.request.urlopen(urllib.request.Request(said["url"] + "predict", jpeg), timeout=120) as answer:
            (entry,) = json.load(answer)
        assert entry["labels"][0]["name"] == svertka.predict(small_run, _saved(jpeg, small_run))[0]["labels"][0]["name"]
        # Connections on which nothing is going on do not keep it.
        port = int(said["url"].rstrip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)) as kept:
            kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert kept.recv(100).startswith(b"HTTP/1.1 200")
            server.send_signal(signal.SIGINT)
            assert server.wait(200) == 0
        assert server.stderr is not None
        assert server.stderr.read() == ""


def _saved(content: bytes, beside: Path) -> Path:
    path = beside.parent / "picture.jpg"
    path.write_bytes(content)
    return path


def test_beyond_this_machine_it_needs_a_token_and_a_killed_server_leaves_no_process(small_run: Path) -> None:
    with process(str(small_run), "--host", "0.0.0.0") as (said, server):
        assert len(said["token"]) >= 32
        assert said["url"].endswith(f"?token={said['token']}")
        port = int(said["url"].partition("?")[0].rstrip("/").rpartition(":")[2])
        request = urllib.request.Request(f"http://127.0.0.1:{port}/health")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=120)
        assert refused.value.code == 401
        refused.value.close()
        request.add_header("Authorization", f"Bearer {said['token']}")
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert json.load(answer)["status"] == "ok"
        children = _children(server.pid)  # which decode
        server.kill()
        server.wait()
        for _ in range(1200):
            if not any(_is_running(pid) for pid in children):
                break
            time.sleep(0.1)
        assert children
        assert not any(_is_running(pid) for pid in children)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"host": "192.0.2.1"}, "host=192.0.2.1 is not an address of this machine; use 127.0.0.1"),
        ({"host": "no.such.host.invalid"}, "host=no.such.host.invalid is not an address of this machine"),
        ({"port": "TAKEN"}, r"port=\d+ is taken; choose another --port, or 0 for any that is free"),
    ],
)
def test_a_place_that_cannot_be_is_one_sentence(small_run: Path, options: dict[str, Any], sentence: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        if options.get("port") == "TAKEN":
            options = {"port": taken.getsockname()[1]}
        with pytest.raises(UsageError, match=sentence):
            svertka.serve(small_run, **options)


def test_a_place_that_cannot_be_is_said_before_runs_are_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="port=-1 must be 1 to 65535"):
        svertka.serve(tmp_path / "no run", port=-1)


def test_no_run_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="name a RUN to serve"):
        svertka.serve()
    assert main(["serve", "/nowhere"]) == 1
    assert capsys.readouterr().err.startswith("svertka: /nowhere is not a run folder")


def test_a_missing_package_is_one_sentence(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("uvicorn"):
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return real(name, *rest, **more)

    for name in list(sys.modules):
        if name.startswith(("svertka.serving", "svertka.exporters")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    serve: Callable[..., None] = svertka.serve  # asked for again, its modules are imported again
    with pytest.raises(UsageError, match=r"uvicorn is not installed; pip install 'svertka\[serve\]'"):
        serve(small_run)


def test_a_terminal_that_is_gone_ends_it_in_peace_while_decoders_are_busy(small_run: Path) -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((3000, 3000)).convert("RGB").save(buffer, "JPEG", progressive=True, quality=30)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    slow = content[:last] + content[last:-2] * 30 + content[-2:]
    with process(str(small_run)) as (said, server):
        children = _children(server.pid)
        port = int(said["url"].rstrip("/").rpartition(":")[2])
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(slow)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", port), timeout=200) as sock:
            sock.sendall(head + slow)
            while len(_children(server.pid)) == len(children):  # until the process for slow ones has begun
                time.sleep(0.05)
            children = _children(server.pid)
            server.send_signal(signal.SIGHUP)
            answer = sock.recv(100)
        # What has begun is finished; a busy machine may take longer than a stop waits.
        is_late = answer.startswith(b"HTTP/1.1 503")
        assert is_late or answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 413"))
        assert server.wait(200) == 0
        assert server.stderr is not None
        printed = server.stderr.read()
        assert printed == "" or (is_late and printed.startswith("Cancel 1 running task(s)"))
        assert printed.count("\n") <= 1
        assert children
        assert not any(_is_running(pid) for pid in children)


def _children(pid: int) -> set[int]:
    found = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found |= set(map(int, path.read_text().split()))
    return found


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_loopback_address_of_ipv6(small_run: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("needs IPv6 on the loopback interface")
    with process(str(small_run), "--host", "[::1]") as (said, _):
        assert said["url"].startswith("http://[::1]:")
        assert said["token"] is None
        with urllib.request.urlopen(f"{said['url']}health", timeout=120) as answer:
            assert json.load(answer)["status"] == "ok"


def test_of_two_that_start_at_once_on_one_port_one_says_so(small_run: Path) -> None:
    first = bind_socket("127.0.0.1", 0)  # before it answers
    try:
        with pytest.raises(UsageError, match=r"port=\d+ is taken"):
            bind_socket("127.0.0.1", first.getsockname()[1])
    finally:
        first.close()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"host": ""}, "host= is not an address"),
        ({"host": "a\0b"}, "is not an address"),
        ({"host": "x" * 300}, "is not an address"),
        ({"host": "\udcff"}, "is not an address"),
        ({"host": "[::1"}, "is not an address"),
        ({"host": "256.1.1.1"}, "is not an address"),
        ({"port": 65536}, "port=65536 must be 1 to 65535, or 0"),
        ({"port": -1}, "port=-1 must be 1 to 65535, or 0"),
        ({"port": 10**30}, "must be 1 to 65535, or 0"),
        ({"root_path": "/a//b"}, "root_path=/a//b is not a URL path"),
        ({"root_path": "/a?b"}, "is not a URL path"),
        ({"root_path": "/имя"}, "is not a URL path"),
        ({"allow_host": ["a/b"]}, "allow_host=a/b is not a host name"),
        ({"allow_host": "a b"}, "allow_host=a b is not a host name"),
        ({"allow_host": ["*"]}, "is not a host name"),
        ({"allow_host": [""]}, "is not a host name"),
    ],
)
def test_places_that_cannot_be(small_run: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        svertka.serve(small_run, **options)
