from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi")
from svertka.serving.served_model import ServedModel

TOKEN = "a-token-of-the-test"


@pytest.fixture(scope="module")
def server(small_run: Path, live: Callable[..., Any]) -> Iterator[Any]:
    with live(ServedModel(small_run, torch.device("cpu")), hosts=None, token=TOKEN) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/health", {}, 401),
        ("/", {}, 401),
        ("/openapi.json", {}, 401),
        ("/docs", {}, 401),
        ("/nowhere", {}, 401),  # a stranger does not even learn what is there
        ("/health", {"Authorization": f"Bearer {TOKEN}"}, 200),
        ("/health", {"Authorization": f"bearer  {TOKEN}"}, 200),
        ("/health", {"Authorization": f"Basic {TOKEN}"}, 401),
        ("/health", {"Authorization": f"Bearer {TOKEN}x"}, 401),
        ("/health", {"Authorization": "Bearer"}, 401),
        ("/health", {"Authorization": "Bearer \xff"}, 401),
        ("/health", {"Cookie": f"svertka-PORT={TOKEN}"}, 200),
        ("/health", {"Cookie": "svertka-PORT=x"}, 401),
        ("/health", {"Cookie": "=;;;\xff=\x01"}, 401),
        ("/?token=x", {}, 401),
        ("/?token=%ff", {}, 401),
        # With the token any name is ours: a machine has many.
        ("/health", {"Authorization": f"Bearer {TOKEN}", "Host": "machine.example:80"}, 200),
        ("/health", {"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.example"}, 403),
        ("/health", {"Authorization": f"Bearer {TOKEN}", "Origin": "http://["}, 403),
        ("/health", {"Authorization": f"Bearer {TOKEN}", "Host": "["}, 400),
        ("/", {"Authorization": f"Bearer {TOKEN}", "Host": "[::"}, 400),
        ("/health", {"Authorization": f"Bearer {TOKEN}", "Host": "a b"}, 400),
        ("/", {"Authorization": f"Bearer {TOKEN}", "Host": "[fe80::1]:80"}, 200),
        ("/health", {"Cookie": "\\" * 15_000}, 401),
        ("/health", {"Cookie": f"a={'x' * 9000}; svertka-PORT={TOKEN}"}, 200),
        ("/health", {"Cookie": f"svertka-PORT=x; svertka-PORT={TOKEN}"}, 200),
        ("/health", {"Cookie": f"svertka-PORT = {TOKEN}"}, 401),
    ],
)
def test_a_stranger_needs_the_token(server: Any, path: str, headers: dict[str, str], status: int) -> None:
    told = {name: value.replace("PORT", str(server.port)) for name, value in headers.items()}
    answer = server.ask("GET", path, headers=told)
    assert answer.status == status
    assert ("www-authenticate" in answer.headers) is (status == 401)


def test_a_visit_with_the_token_leaves_a_cookie_and_a_clean_address(server: Any) -> None:
    answer = server.ask("GET", f"/?token={TOKEN}")
    assert answer.status == 303
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert server.ask("GET", "/", headers={"Cookie": cookie.partition(";")[0]}).status == 200
    # Only a visit: what is posted shows its token in a header.
    assert server.ask("POST", f"/predict?token={TOKEN}", b"").status == 401


def test_files_are_known_by_their_address(server: Any) -> None:
    page = server.ask("GET", "/", headers={"Authorization": f"Bearer {TOKEN}"})
    report = page.body.split(b'"report": "')[1].split(b'"')[0].decode()
    # In its sandbox a page sends neither cookie nor origin.
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert server.ask("GET", f"/{report}", headers=headers).status == 200


@pytest.mark.parametrize("host", ["127.0.0.1:80", "LOCALHOST:8000", "localhost.", "[::1]:8000", "[::1]", "127.0.0.1"])
def test_the_loopback_address_has_three_names(small_run: Path, live: Callable[..., Any], host: str) -> None:
    with live(ServedModel(small_run, torch.device("cpu"))) as running:
        assert running.ask("GET", "/health", headers={"Host": host}).status == 200
        own = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert running.ask("GET", "/health", headers=own).status == 200


@pytest.fixture(scope="module")
def behind_a_proxy(small_run: Path, live: Callable[..., Any]) -> Iterator[Any]:
    served = ServedModel(small_run, torch.device("cpu"))
    with live(served, root="/svertka", allowed=frozenset({"photos.example.org"})) as running:
        yield running


@pytest.mark.parametrize("host", ["photos.example.org", "PHOTOS.example.org:443", "localhost"])
@pytest.mark.parametrize("root", ["", "/svertka"])
def test_a_proxy_may_leave_its_path_on_or_take_it_off(behind_a_proxy: Any, jpeg: bytes, root: str, host: str) -> None:
    headers = {"Host": host, "Origin": "https://photos.example.org"}
    assert behind_a_proxy.ask("GET", f"{root}/health", headers=headers).status == 200
    assert behind_a_proxy.ask("POST", f"{root}/predict?top=1", jpeg, headers).status == 200
    page = behind_a_proxy.ask("GET", f"{root}/", headers=headers)
    assert page.status == 200
    report = page.body.split(b'"report": "')[1].split(b'"')[0].decode()
    assert behind_a_proxy.ask("GET", f"{root}/{report}", headers=headers).status == 200
    assert behind_a_proxy.ask("GET", f"{root}/openapi.json", headers=headers).json()["servers"] == [{"url": "/svertka"}]


def test_the_path_of_a_proxy_without_its_slash_leads_to_the_page(behind_a_proxy: Any) -> None:
    answer = behind_a_proxy.ask("GET", "/svertka")
    assert answer.status == 307
    assert answer.headers["location"] == "/svertka/"
    assert behind_a_proxy.ask("GET", "/svertkax").status == 404


def test_a_name_that_is_not_allowed_is_told_how_it_could_be(behind_a_proxy: Any) -> None:
    answer = behind_a_proxy.ask("GET", "/health", headers={"Host": "other.example.org:8080"})
    assert answer.status == 421
    assert answer.json()["error"].endswith("to allow it, start the server with --allow-host other.example.org")
    assert "--allow-host" not in behind_a_proxy.ask("GET", "/health", headers={"Host": "$(reboot)"}).json()["error"]
    headers = {"Origin": "https://other.example.org"}
    answer = behind_a_proxy.ask("GET", "/health", headers=headers)
    assert answer.status == 403
    assert "--allow-host other.example.org" in answer.json()["error"]


def test_behind_a_proxy_the_token_leads_to_its_path(small_run: Path, live: Callable[..., Any]) -> None:
    served = ServedModel(small_run, torch.device("cpu"))
    with live(served, hosts=None, token=TOKEN, root="/svertka") as running:
        answer = running.ask("GET", f"/svertka/?token={TOKEN}")
        assert answer.status == 303
        assert answer.headers["location"] == "/svertka/"
        assert "Path=/svertka/" in answer.headers["set-cookie"]


def test_the_application_gets_no_cookies_to_parse(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI parses the cookies of each request, in time that is quadratic in their escapes."""
    from starlette import requests

    def parse(_: str) -> dict[str, str]:
        raise AssertionError

    monkeypatch.setattr(requests, "cookie_parser", parse)
    cookies = f'svertka-{server.port}={TOKEN}; a="' + '\\"' * 7000
    assert server.ask("GET", "/health", headers={"Cookie": cookies}).status == 200
