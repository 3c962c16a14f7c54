"""Connections: crowds of them, slow ones and strange ones, each of which is answered or ended."""

import inspect
import json
import socket
import struct
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

pytest.importorskip("fastapi")
from svertka.serving import access_control, connection_limits
from svertka.serving.served_model import ServedModel


@pytest.fixture(scope="module")
def server(small_run: Path, live: Callable[..., Any]) -> Iterator[Any]:
    with live(ServedModel(small_run, torch.device("cpu"))) as running:
        yield running


@pytest.fixture(autouse=True)
def still_serving(server: Any, jpeg: bytes) -> Iterator[None]:
    """After each case it is as it was before."""
    yield
    assert server.ask("POST", "/predict", jpeg).status == 200


def opened(server: Any, count: int, content: bytes = b"") -> list[socket.socket]:
    sockets = [socket.create_connection(("127.0.0.1", server.port), timeout=120) for _ in range(count)]
    for one in sockets:
        one.sendall(content)
    return sockets


def answers(work: Callable[[], Any], count: int) -> list[Any]:
    """What `count` clients at once are answered."""
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(work())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_slow_headers_make_room_for_others(server: Any, jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "MAX_IDLE_CONNECTIONS", 20)
    monkeypatch.setattr(connection_limits, "MIN_IDLE_SECONDS", 0.0)
    slow = opened(server, 20, b"POST /predict HTTP/1.1\r\nHost: local")
    server.wait_for_connection(slow[-1])
    slow += opened(server, 40, b"POST /predict HTTP/1.1\r\nHost: local")
    try:
        assert all(server.ask("POST", "/predict", jpeg).status == 200 for _ in range(5))
        assert server.read(slow[0]).status == 503  # the first that came has waited longest
        slow[-1].sendall(b"host\r\nContent-Length: 0\r\n\r\n")  # the last may still go on
        assert server.read(slow[-1]).status == 400
    finally:
        for one in slow:
            one.close()


def test_whoever_makes_room_is_answered(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "MAX_IDLE_CONNECTIONS", 5)
    monkeypatch.setattr(connection_limits, "MIN_IDLE_SECONDS", 0.0)
    waiting = opened(server, 12)
    server.wait_for_connection(waiting[-1])
    for one in waiting:
        one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    found = [server.read(one) for one in waiting]
    assert Counter(answer.status for answer in found) == {200: 5, 503: 7}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in found if answer.status == 503)
    for one in waiting:
        one.close()


def test_those_who_have_just_come_are_not_sent_away(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "MAX_IDLE_CONNECTIONS", 5)
    monkeypatch.setattr(connection_limits, "MIN_IDLE_SECONDS", 60.0)
    waiting = opened(server, 40)
    for one in waiting:
        one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert server.read(one).status == 200
        one.close()


def test_too_many_connections_are_told_to_come_again(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "MAX_CONNECTIONS", 10)
    waiting = opened(server, 10)
    try:
        server.wait_for_connection(waiting[-1])
        for answer in answers(lambda: server.ask("GET", "/health"), 20):
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) > 0
            assert set(answer.json()) == {"error"}
    finally:
        for one in waiting:
            one.close()


@pytest.mark.parametrize("limit", ["MAX_REQUESTS", "MAX_REQUESTS_PER_ADDRESS"])
def test_everybody_in_a_crowd_is_answered(
    server: Any, jpeg: bytes, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_control, limit, 4)
    found = Counter(answer.status for answer in answers(lambda: server.ask("POST", "/predict", jpeg), 60))
    assert found.keys() <= {200, 503}
    assert found[200] >= 4


def test_three_hundred_at_once_are_all_answered(server: Any, jpeg: bytes) -> None:
    found = answers(lambda: server.ask("POST", "/predict", jpeg), 300)
    assert {answer.status for answer in found} <= {200, 503}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in found if answer.status == 503)
    assert sum(answer.status == 200 for answer in found) >= 100


def test_a_request_without_end_is_answered(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "REQUEST_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as sock:
        sock.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
        answer = server.read(sock)
    assert answer.status == 503
    assert answer.headers["retry-after"]


def test_a_slow_but_steady_request_is_not_cut_and_a_stalled_one_is(
    server: Any, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limits, "REQUEST_SECONDS", 0.3)
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
    # Of the steady client no bytes are required: on a busy machine it may stall.
    for cut, least, seconds, status in ((0, 0, 120.0, 200), (len(jpeg) // 2, len(jpeg), 0.3, 503)):
        monkeypatch.setattr(connection_limits, "STEADY_BYTES", least)
        monkeypatch.setattr(connection_limits, "STEADY_SECONDS", seconds)
        with socket.create_connection(("127.0.0.1", server.port), timeout=120) as sock:
            sock.sendall(head)
            step = len(jpeg) // 20
            for at in range(0, len(jpeg) - cut, step):  # 0.4 s in all
                sock.sendall(jpeg[at : min(at + step, len(jpeg) - cut)])
                time.sleep(0.02)
            assert server.read(sock).status == status


@pytest.mark.parametrize("size", [20_000, 200_000, 2_000_000])
@pytest.mark.parametrize("name", ["Cookie", "X-Anything", "Origin", "Authorization", "Accept"])
def test_headers_that_are_too_long_are_answered(server: Any, name: str, size: int) -> None:
    text = f"GET /health HTTP/1.1\r\nHost: localhost\r\n{name}: ".encode() + b"\\" * size + b"\r\n\r\n"
    assert server.raw(text, keep=True).status == 431


def test_a_path_that_is_too_long_is_answered(server: Any) -> None:
    for path in ("/" + "a" * 10_000, "/health?" + "a" * 10_000, "/%41" * 2600):
        assert server.ask("GET", path).status == 414


STRANGE = {
    "absolute form": (b"GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
    "absolute form with a query": (
        b"POST http://localhost/predict?top=0 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        400,
    ),
    "absolute form of another": (b"GET http://other/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "absolute form of nothing": (b"GET http:// HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "absolute form of a bracket": (b"GET http://[/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "https": (b"GET https://localhost/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "an asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "an invented method": (b"FROBNICATE /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    "a long method": (b"G" * 10_000 + b" /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    "HTTP/1.0": (b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
    "HTTP/1.0, kept": (b"GET /health HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n", 200),
    "HTTP/1.2": (b"GET /health HTTP/1.2\r\nHost: localhost\r\n\r\n", 200),
    "expecting miracles": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nExpect: miracles\r\n\r\n", 417),
    "expecting twice": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nExpect: x\r\n\r\n", 417),
    "an origin of a bracket": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[\r\n\r\n", 403),
    "an origin of a port": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost:x\r\n\r\n", 403),
    "an origin of nothing": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: \r\n\r\n", 403),
    "a host of a bracket": (b"GET /health HTTP/1.1\r\nHost: [\r\n\r\n", 421),
    "a host of nothing": (b"GET /health HTTP/1.1\r\nHost: \r\n\r\n", 421),
    "a host of a port": (b"GET /health HTTP/1.1\r\nHost: localhost:99999999\r\n\r\n", 400),
    "a host with letters": (b"GET /health HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", 421),
    "a chunk with an extension": (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n",
        415,
    ),
    "a chunk of a negative size": (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
        400,
    ),
    "chunks with trailers": (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n",
        400,
    ),
    "a length in words": (b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: ten\r\n\r\n", 400),
    "a length of 5000 digits": (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        400,
    ),
    "a length of 19 digits": (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: "
        + b"9" * 19
        + b"\r\n\r\n",
        413,
    ),
    "bytes after a request that ends the connection": (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n\x00\x00",
        200,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_strange_requests_are_answered(server: Any, name: str) -> None:
    request, status = STRANGE[name]
    assert server.raw(request, keep=True).status == status


def test_a_thousand_in_a_row_on_one_connection(server: Any) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
        with sock.makefile("rb") as stream:
            for _ in range(1000):
                assert stream.readline().split()[1] == b"200"
                while line := stream.readline().strip():
                    length = int(line.split(b":")[1]) if line.lower().startswith(b"content-length") else 0
                    if length:
                        size = length
                assert json.loads(stream.read(size))["status"] == "ok"


def test_a_client_that_breaks_off_is_no_error_of_the_server(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    for content in (
        b"\0" * 100,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000,
        b"POST /predict HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # it resets
                sock.sendall(content)
    time.sleep(0.2)
    assert server.ask("GET", "/health").status == 200
    assert not caplog.records


def test_uvicorn_has_the_internals_that_are_used() -> None:
    """`LimitedConnection` overrides methods and reads attributes that uvicorn documents nowhere."""
    from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

    parameters = {
        "connection_made": ["transport"],
        "connection_lost": ["exc"],
        "data_received": ["data"],
        "handle_events": [],
        "on_response_complete": [],
        "resume_writing": [],
        "send_400_response": ["msg"],
        "shutdown": [],
        "_unset_keepalive_if_required": [],
    }
    for name, wanted in parameters.items():
        assert list(inspect.signature(getattr(H11Protocol, name)).parameters) == ["self", *wanted], name
    used = connection_limits.LimitedConnection.__dict__.keys() & vars(H11Protocol).keys()
    assert {name for name in used if not name.startswith("__")} == parameters.keys() - {"_unset_keepalive_if_required"}
    made = inspect.getsource(H11Protocol.__init__)
    assert all(
        f"self.{name}" in made for name in ("conn", "connections", "loop", "transport", "flow", "client", "cycle")
    )
    cycle = inspect.getsource(RequestResponseCycle.__init__)
    for name in ("disconnected", "message_event", "response_started", "response_complete"):
        assert f"self.{name}" in cycle


def test_uvicorn_is_of_the_declared_range() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = map(Requirement, project["optional-dependencies"]["serve"])
    (uvicorn,) = [one for one in declared if one.name == "uvicorn"]
    assert any(bound.operator == "<" for bound in uvicorn.specifier)
    assert uvicorn.specifier.contains(version("uvicorn"))
