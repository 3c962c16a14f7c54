"""The routes of the page Collect, and hostile requests to all routes."""

import io
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svertka.studio.collect_page import CollectPage
from svertka.studio.image_marks import ImageMarks


def upload(client: Any, data: bytes, label: str = "cat", name: str = "x.jpg", to: str = "add") -> Any:
    return client.post(to, params={"label": label, "name": name}, content=data)


def test_images_are_added_or_the_reason_is_said(client: Any, photos: Path, photograph: Callable[..., bytes]) -> None:
    assert upload(client, photograph(64, 20), "bird", "a.jpg").json() == {"path": "bird/a.jpg", "note": ""}
    again = upload(client, photograph(64, 20), "bird", "b.jpg").json()
    assert again == {"path": "", "note": "already there as bird/a.jpg"}
    other = upload(client, photograph(64, 20), "cat", "b.jpg").json()
    assert other == {"path": "cat/b.jpg", "note": "the same file as bird/a.jpg"}
    cut = upload(client, photograph(64, 21)[:400]).json()
    assert not cut["path"]
    assert cut["note"]
    assert "not an image" in upload(client, b"<html>").json()["note"]
    rows = {row[0]: row[2:] for row in client.get("images", params={"label": "cat"}).json()["images"]}
    assert rows["b.jpg"] == ["copy", "the same file as bird/a.jpg"]
    refused = upload(client, photograph(64, 22), "../x")
    assert refused.status_code == 400
    assert sorted(path.name for path in photos.iterdir()) == ["bird", "cat", "dog"]


def test_files_that_were_there_are_marked(client: Any, photos: Path, photograph: Callable[..., bytes]) -> None:
    (photos / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    (photos / "dog" / "copy.jpg").write_bytes((photos / "cat" / "0.jpg").read_bytes())
    while (answer := client.get("images", params={"label": "cat"}).json())["reading"]:
        pass
    rows = {row[0]: row[2:] for row in answer["images"]}
    assert rows["broken.jpg"][0] == "bad"
    assert rows["0.jpg"] == ["copy", "the same file as dog/copy.jpg"]
    assert rows["1.jpg"] == []


def test_marks_that_come_while_an_answer_is_made_are_asked_for_again(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_rows, reading = CollectPage._rows, [True]

    def make_rows_while_reading_ends(page: CollectPage, label: str) -> list[list[str]]:
        rows = make_rows(page, label)
        reading[0] = False
        return rows

    monkeypatch.setattr(ImageMarks, "is_reading", property(lambda _: reading[0]))
    monkeypatch.setattr(CollectPage, "_rows", make_rows_while_reading_ends)
    assert [client.get("images", params={"label": "cat"}).json()["reading"] for _ in range(2)] == [True, False]


def add_zip(client: Any, data: bytes) -> Any:
    """What became of a zip file for the class dog."""
    key = upload(client, data, "dog", "set.zip", "add-zip").json()["zip"]
    while not (answer := client.get("zip-progress", params={"zip": key}).json())["done"]:
        time.sleep(0.01)
    return answer


def test_a_zip_file_is_taken_apart(client: Any, photos: Path, photograph: Callable[..., bytes]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("set/bird/1.jpg", photograph(40, 30))
        file.writestr("2.jpg", photograph(40, 31))
        file.writestr("3.jpg", b"no image")
    answer = add_zip(client, buffer.getvalue())
    assert answer["paths"] == ["bird/1.jpg", "dog/2.jpg"]
    assert answer["left_out"] == 1
    assert answer["notes"][0].startswith("3.jpg: not an image")
    assert "not a zip archive" in add_zip(client, b"PK no")["error"]
    assert not [path for path in (photos / ".svertka-trash").iterdir() if path.suffix == ".zip"]


def test_thumbnails_are_small_and_kept_by_the_browser(client: Any) -> None:
    answer = client.get("thumbnail", params={"path": "cat/0.jpg", "v": "1"})
    assert answer.headers["content-type"] == "image/webp"
    assert "immutable" in answer.headers["cache-control"]
    assert client.get("thumbnail", params={"path": "../secret.jpg", "v": "1"}).status_code == 409


def test_the_page_has_a_strict_policy_and_escapes_names(client: Any, photos: Path) -> None:
    (photos / "<script>alert(1)<").mkdir()
    answer = client.get("collect")
    assert "<script>alert" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert client.post("add-class", data={"label": "x"}, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("collect", headers={"Host": "evil.example"}).status_code == 421


VALUES = (
    "cat", "dog", "../x", "", "a" * 300, "cat/0.jpg", "dog/3.jpg", "/etc/passwd", "cat/../../secret.jpg", "\0",
    "\\ud800", "\ud800", "💥", "0", "-1", "1e999", "<b>", "%2e%2e%2f", "None", "con", "192", "1024",
)  # fmt: skip


def test_hostile_requests_get_a_4xx_or_are_right(
    client: Any,
    photos: Path,
    large_count: Callable[[int, int], int],
    photograph: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from svertka.studio.background_jobs import BackgroundJobs
    from svertka.studio.training_process import TrainingProcesses

    for kind, name in (
        (TrainingProcesses, "_launch"),
        (BackgroundJobs, "start"),
    ):  # processes, of which some would last
        monkeypatch.setattr(kind, name, lambda *_, **__: None)
    rng = random.Random(0)
    secret = (photos.parent / "secret.jpg").read_bytes()
    routes = [route for route in client.app.routes if getattr(route, "path", "").startswith("/photos/")]
    names = ["label", "to", "path", "name", "key", "count", "v", "side", "x", "zip", "job", "data_set", "run", "other"]
    bodies = [b"", photograph(16, 1), b"PK\x03\x04" + bytes(40), bytes(rng.randbytes(500)), b"a=b&a=b", b"\xff=%ff"]
    for _ in range(large_count(150, 2000)):
        route = rng.choice(routes)
        method = rng.choice([*route.methods, "GET", "POST", "PUT", "HEAD"])
        fields = [(rng.choice(names), rng.choice(VALUES)) for _ in range(rng.randrange(4))]
        fields = [(name, value.encode("utf-8", "surrogatepass")) for name, value in fields]
        sent = {"params": fields} if rng.random() < 0.5 else {"data": dict(fields)}
        if rng.random() < 0.3:
            sent = {"params": fields, "content": rng.choice(bodies)}
        answer = client.request(method, route.path.format(run="x", name="y"), **sent)
        assert answer.status_code < 500, (method, route.path, sent, answer.text)
        if answer.status_code >= 400 and method != "HEAD":
            assert set(answer.json()) == {"error"}, answer.text
    assert (photos.parent / "secret.jpg").read_bytes() == secret
    others = {"secret.jpg", "runs"}
    assert len([path for path in photos.parent.iterdir() if path.name not in others]) == 1  # it may be renamed


def test_a_full_disk_is_said_and_nothing_is_lost(
    client: Any, photos: Path, photograph: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from svertka.errors import StorageError
    from svertka.studio import collection

    def full(path: Path, content: bytes) -> None:
        raise StorageError(f"cannot write {path}: no space left on device; free space or choose another folder")

    monkeypatch.setattr(collection, "write_atomic", full)
    answer = upload(client, photograph(64, 40))
    assert answer.status_code == 507
    assert "free space" in answer.json()["error"]
    assert sorted(path.name for path in (photos / "cat").iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]
