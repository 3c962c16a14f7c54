"""What a server has to bear: named abuse, and requests that nobody would send on purpose."""

import base64
import io
import json
import resource
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from svertka.classifier import Classifier
from svertka.data.image_io import decode_to_pixels
from svertka.errors import ImageError

pytest.importorskip("fastapi")
from svertka.serving import connection_limits, request_batching, request_body_limits
from svertka.serving.request_body_limits import MAX_BODY_BYTES
from svertka.serving.served_model import ServedModel

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(small_run: Path, live: Callable[..., Any]) -> Iterator[Any]:
    with live(ServedModel(small_run, torch.device("cpu"))) as running:
        yield running


@pytest.fixture(autouse=True)
def still_serving(server: Any, jpeg: bytes) -> Iterator[None]:
    """After each case it is as it was before."""
    yield
    assert server.ask("POST", "/predict", jpeg).status == 200
    deadline = time.monotonic() + 120
    while server.ask("GET", "/health").json()["waiting"]:  # for as long as one takes to stop whose client is gone
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert server.bytes_held() == 0


@pytest.fixture
def impatient(still_serving: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of half a second for headers and bodies."""
    monkeypatch.setattr(request_body_limits, "BODY_SECONDS", 0.5)
    monkeypatch.setattr(connection_limits, "HEADER_SECONDS", 0.5)


def png(width: int, height: int) -> bytes:
    """One that is small in bytes, and of one color."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeezed = zlib.compressobj(9)
    line = b"\0" * (width // 8 + 2)
    content = b"".join(squeezed.compress(line) for _ in range(height)) + squeezed.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def lying_png() -> bytes:
    """One that says that it is 100,000 pixels wide and high."""
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def many_scans() -> bytes:
    """A progressive JPEG whose last scan comes a thousand times."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * 1000 + content[-2:]


RAW = {
    "no HTTP": (b"hello\r\n\r\n", (400,)),
    "a TLS handshake": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), (400,)),
    "nothing at all": (b"", (0,)),
    "HTTP/0.9": (b"GET /\r\n\r\n", (400,)),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (421,)),
    "a header without end": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000, (431,)),
    "a hundred thousand headers": (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 100_000, (431,)),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", (400,)),
    "no Host in HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", (421,)),
    "two Hosts": (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", (400,)),
    "a line break in a header": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\rb\0c\r\n\r\n", (400,)),
    "a negative length": (b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", (400,)),
    "two lengths": (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        (400,),
    ),
    "a smuggled request": (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        (400,),
    ),
    "an unknown transfer encoding": (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        (400, 501),
    ),
    "chunks of no size": (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        (400,),
    ),
    "a chunk of all memory": (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\nabc",
        (408,),
    ),
    "a body that breaks off": (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc",
        (408,),
    ),
    "a proxy request": (b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", (404,)),
    "a tunnel": (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", (404,)),
    "a websocket": (
        b"GET /predict HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n",
        (405,),
    ),
}


@pytest.mark.parametrize("name", RAW)
def test_raw(server: Any, name: str, request: pytest.FixtureRequest) -> None:
    content, statuses = RAW[name]
    if statuses[0] in (0, 408):
        request.getfixturevalue("impatient")
    assert server.raw(content, keep=True).status in statuses


def deep(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


ASKED: dict[str, tuple[str, str, Callable[[], bytes], dict[str, str], int]] = {
    "another name (DNS rebinding)": ("GET", "/", bytes, {"Host": "evil.example"}, 421),
    "a name that begins like ours": ("GET", "/", bytes, {"Host": "127.0.0.1.evil.example"}, 421),
    "a name with a user": ("GET", "/", bytes, {"Host": "127.0.0.1@evil.example"}, 421),
    "a foreign page": ("POST", "/predict", bytes, {"Origin": "http://evil.example"}, 403),
    "a page without origin": ("POST", "/predict", bytes, {"Origin": "null"}, 403),
    "a page of another port": ("POST", "/predict", bytes, {"Origin": "http://127.0.0.1:1"}, 403),
    "a foreign picture element": ("GET", "/health", bytes, {"Sec-Fetch-Site": "cross-site"}, 403),
    "a neighbor's page": ("GET", "/health", bytes, {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),
    "a foreign form": ("POST", "/predict", bytes, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
    "a verb that is not there": ("DELETE", "/predict", bytes, {}, 405),
    "an echo": ("TRACE", "/", bytes, {}, 405),
    "a preflight": ("OPTIONS", "/predict", bytes, {"Origin": "http://evil.example"}, 403),
    "nowhere": ("GET", "/admin", bytes, {}, 404),
    "up and out": ("GET", "/../../etc/passwd", bytes, {}, 404),
    "up and out, written otherwise": ("GET", "/files/%2e%2e/%2e%2e/etc/passwd", bytes, {}, 404),
    "files without the secret": ("GET", "/files/x/small/report.html", bytes, {}, 404),
    "no bytes": ("POST", "/predict", bytes, {}, 400),
    "a text": ("POST", "/predict", lambda: b"hello" * 99, {}, 415),
    "a drawing that is a program": ("POST", "/predict", lambda: b"<svg onload='alert(1)'/>", {}, 415),
    "an archive": ("POST", "/predict", lambda: b"PK\3\4" + bytes(99), {}, 415),
    "PostScript": ("POST", "/predict", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", {"Content-Type": "image/png"}, 415),
    "a form of nothing": ("POST", "/predict", bytes, {"Content-Type": "multipart/form-data; boundary=x"}, 400),
    "a compressed body": ("POST", "/predict", lambda: zlib.compress(b""), {"Content-Encoding": "gzip"}, 415),
    "a type that is none": ("POST", "/predict", bytes, {"Content-Type": "text/html" * 50}, 415),
    "too many bytes": ("POST", "/predict", lambda: bytes(MAX_BODY_BYTES + 1), {}, 413),
    "a bomb of pixels": ("POST", "/predict", lambda: png(20_000, 3_000), {}, 413),
    "a header that lies": ("POST", "/predict", lying_png, {}, 413),
    "a thousand scans": ("POST", "/predict", many_scans, {}, 400),
    "half a picture": ("POST", "/predict", lambda: png(3_000, 3_000)[:400], {}, 400),
    "no JSON": ("POST", "/predict", lambda: b"{", JSON, 400),
    "JSON of another kind": ("POST", "/predict", lambda: b'{"picture": ""}', JSON, 400),
    "a list of numbers": ("POST", "/predict", lambda: b"[1, 2]", JSON, 400),
    "an empty list": ("POST", "/predict", lambda: b"[]", JSON, 400),
    "a number of a million digits": ("POST", "/predict", lambda: b"[" + b"9" * 1_000_000 + b"]", JSON, 400),
    "a list that is too long": ("POST", "/predict", lambda: json.dumps([""] * 65).encode(), JSON, 413),
    "JSON a million deep": ("POST", "/predict", lambda: deep(1_000_000), JSON, 400),
    "JSON that is not UTF-8": ("POST", "/predict", lambda: b'["\xff\xfe"]', JSON, 400),
    "a list where one picture is meant": ("POST", "/explain", lambda: b'[""]', JSON, 415),
    "no such run": ("POST", "/predict?run=../small", bytes, {}, 404),
    "no such class": ("POST", "/explain?label=%00", bytes, {}, 404),
    "no names": ("POST", "/predict?top=0", bytes, {}, 400),
    "all names there are": ("POST", "/predict?top=99999999999999999999", bytes, {}, 400),
    "digits that are not": ("POST", "/predict?top=%D9%A3", bytes, {}, 400),
    "the same twice": ("POST", "/predict?top=1&top=2", bytes, {}, 400),
    "what is not asked": ("POST", "/predict?shell=ls", bytes, {}, 400),
    "a query that is not UTF-8": ("POST", "/predict?run=%ff", bytes, {}, 400),
    "a thousand questions": ("POST", "/predict?" + "top=1&" * 1000, bytes, {}, 400),
}


@pytest.mark.parametrize("name", ASKED)
def test_asked(server: Any, name: str) -> None:
    verb, path, body, headers, status = ASKED[name]
    answer = server.ask(verb, path, body(), headers)
    assert answer.status == status
    if verb != "TRACE":
        assert set(answer.json()) == {"error"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_there_are_forty_cases_at_least() -> None:
    assert len(RAW) + len(ASKED) >= 40


def test_a_bad_picture_in_a_list_spoils_no_other(server: Any, jpeg: bytes) -> None:
    pictures = [jpeg, png(20_000, 3_000), b"", many_scans()]
    body = json.dumps([base64.b64encode(one).decode() for one in pictures]).encode()
    entries = server.ask("POST", "/predict", body, JSON).json()
    assert ["error" in entry for entry in entries] == [False, True, True, True]


def test_a_body_in_chunks_is_counted_as_it_comes(server: Any) -> None:
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert server.raw(head + chunk * (MAX_BODY_BYTES // 65536 + 1) + b"0\r\n\r\n").status == 413


def test_a_client_that_asks_first_need_not_send_in_vain(server: Any) -> None:
    head = (
        f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n"
        "Expect: 100-continue\r\n\r\n"
    )
    assert server.raw(head.encode(), keep=True).status == 413  # 408 if the server had waited for the body


@pytest.mark.usefixtures("impatient")
def test_slow_headers_end(server: Any) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as sock:
        began = time.monotonic()
        ended = False
        while time.monotonic() - began < 120 and not ended:
            try:
                sock.sendall(b"G")
                sock.settimeout(0.1)
                ended = sock.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                ended = True
        assert ended


@pytest.mark.usefixtures("impatient")
def test_a_slow_body_ends(server: Any) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as sock:
        sock.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.05):
                try:
                    sock.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        answer = server.read(sock)
        stop.set()
        thread.join()
    assert answer.status == 408


def test_a_client_that_goes_away_leaves_nothing_behind(server: Any, jpeg: bytes) -> None:
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
    for cut in (len(head), len(head) + len(jpeg) // 2, len(head) + len(jpeg)):
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall((head + jpeg)[:cut])


def test_many_idle_connections_shut_nobody_out_and_are_closed(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=120) for _ in range(300)]
    try:
        server.wait_for_connection(idle[-1])
        assert server.ask("GET", "/health").status == 200
        monkeypatch.setattr(connection_limits, "HEADER_SECONDS", 0.5)  # of those who come now
        idle += [socket.create_connection(("127.0.0.1", server.port), timeout=120) for _ in range(30)]
        assert server.read(idle[300]).status == server.read(idle[-1]).status == 0
        monkeypatch.undo()
        assert server.ask("GET", "/health").status == 200
    finally:
        for one in idle:
            one.close()


def test_requests_in_a_row_on_one_connection_are_all_answered(server: Any, jpeg: bytes) -> None:
    one = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode() + jpeg
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as sock:
        sock.sendall(one * 3)
        with sock.makefile("rb") as stream:
            for _ in range(3):
                assert stream.readline().split()[1] == b"200"
                length = 0
                while line := stream.readline().strip():
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                json.loads(stream.read(length))


def test_a_full_queue_says_when_to_come_again(server: Any, jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_batching, "MAX_PENDING_IMAGES", 3)
    body = json.dumps([base64.b64encode(jpeg).decode()] * 4).encode()
    answer = server.ask("POST", "/predict", body, JSON)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1


def test_bodies_at_a_time_are_bounded(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body_limits, "MAX_TOTAL_BYTES", 100_000)
    answer = server.ask("POST", "/predict", bytes(200_000))
    assert answer.status == 503
    assert answer.headers["retry-after"]


def test_an_error_of_ours_is_an_error_and_no_end(
    server: Any, jpeg: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(server.api.service.batchers["small"], "_compute", broken)
        assert server.ask("POST", "/predict", jpeg).status == 500
    assert server.ask("POST", "/predict", jpeg).status == 200


def test_mutated_pictures_are_refused_or_named_right(
    server: Any, small_run: Path, kinds: dict[str, Path], large_count: Callable[[int, int], int]
) -> None:
    random = np.random.default_rng(0)
    classifier = Classifier.load(small_run)
    preprocess = classifier.preprocess
    files = [path.read_bytes() for path in kinds.values()]
    named = refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(large_count(150, 5_000)):
        mutant = mutated(files[number % len(files)], random)
        answer = server.ask("POST", "/predict", mutant)
        try:
            wanted = preprocess(Image.fromarray(decode_to_pixels(mutant, min_side=preprocess.resize)))
        except ImageError:
            assert answer.status in (400, 413, 415)
            refused += 1
            continue
        assert answer.status == 200
        probabilities = {one["name"]: one["probability"] for one in answer.json()[0]["labels"]}
        row = classifier.probabilities([wanted])[0].tolist()
        assert probabilities == pytest.approx(dict(zip(classifier.names, row, strict=True)), abs=1e-4)
        named += 1
    assert named > 20
    assert refused > 20
    # In kB. A picture may take 150 MB while it is decoded; nothing may stay.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000


def test_mutated_requests_get_an_answer_or_a_refusal(
    server: Any, jpeg: bytes, large_count: Callable[[int, int], int]
) -> None:
    random = np.random.default_rng(1)
    encoded = json.dumps([base64.b64encode(jpeg[:500]).decode()]).encode()
    requests = [
        f"POST /predict?top=2 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode() + jpeg,
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(encoded)}\r\n\r\n".encode()
        + encoded,
        b"POST /explain HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nCookie: a=b; c\r\n\r\n",
        b"GET /health?token=x HTTP/1.1\r\nHost: [::1]:80\r\nAuthorization: Bearer x\r\nExpect: 100-continue\r\n\r\n",
        *spelled(jpeg[:500]),
    ]
    seen: dict[int, int] = {}
    for number in range(large_count(150, 10_000)):
        request = requests[number % len(requests)]
        head, gap, body = request.partition(b"\r\n\r\n")
        # The head is where the server's own reading is; of pictures the other test has enough.
        mutant = mutated(head, random) + gap + body if random.random() < 0.6 else mutated(request, random)
        answer = server.raw(mutant)
        status = answer.status
        assert status == 0 or status == 200 or 400 <= status < 500 or status == 501
        assert b"NaN" not in answer.body
        assert b"Traceback" not in answer.body
        seen[status] = seen.get(status, 0) + 1
    assert len(seen) >= 5


def spelled(picture: bytes) -> list[bytes]:
    """Requests in which a picture is spelled in every way, and addressed in every way."""
    encoded = base64.b64encode(picture).decode()
    lists = [f"data:image/jpeg;base64,{encoded}", base64.encodebytes(picture).decode(), encoded.rstrip("=")]
    bodies = [(b"application/json", json.dumps([one]).replace("/", "\\/").encode()) for one in lists]
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    field = b'--x\r\nContent-Disposition: form-data; name="top"\r\n\r\n2\r\n'
    bodies.append(
        (b"multipart/form-data; boundary=x", part + picture + b"\r\n" + part + b"\r\n" + field + b"--x--\r\n")
    )
    return [
        b"POST http://localhost/predict HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nContent-Type: "
        + kind
        + f"\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
        for kind, body in bodies
    ]


def mutated(whole: bytes, random: np.random.Generator) -> bytes:
    """`whole` with a few bytes changed, cut off, doubled or swapped."""
    mutant = bytearray(whole)
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(len(mutant) or 1))
        match random.integers(6):
            case 0 | 1:
                mutant[place : place + 1] = bytes([random.integers(256)])
            case 2:
                del mutant[place : place + int(random.integers(1, 20))]
            case 3:
                mutant[place:place] = mutant[place : place + 40]
            case 4:
                mutant[place : place + 1] = random.choice(
                    [b"\0", b"\r\n", b"%00", b"\xff\xff", b"-1", b"999999999", b":"]
                )
            case 5:
                if random.random() < 0.2:
                    del mutant[place:]
    return bytes(mutant)
