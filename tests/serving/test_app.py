import asyncio
import base64
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from svertka.classifier import Classifier, predict
from svertka.errors import RunError

pytest.importorskip("fastapi")
from svertka.serving import request_batching, uvicorn_server
from svertka.serving.schemas import Explanation, Health, ImageLabels, Unit
from svertka.serving.served_model import ServedModel


@pytest.fixture(scope="module")
def server(small_run: Path, live: Callable[..., Any]) -> Iterator[Any]:
    one = ServedModel(small_run, torch.device("cpu"))
    two = ServedModel(small_run, torch.device("cpu"), [one.key])
    with live(one, two) as running:
        yield running


def close(labels: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    return [one["name"] for one in labels] == [one["name"] for one in wanted] and all(
        abs(one["probability"] - other["probability"]) < 1e-4 for one, other in zip(labels, wanted, strict=True)
    )


def test_one_picture_is_named_as_predict_names_it(server: Any, small_run: Path, kinds: dict[str, Path]) -> None:
    for path in kinds.values():
        answer = server.ask("POST", "/predict?top=2", path.read_bytes())
        assert answer.status == 200
        (entry,) = answer.json()
        (wanted,) = predict(small_run, path, top=2)
        assert entry["path"] == "#0"
        assert close(entry["labels"], wanted["labels"])


def test_a_list_has_an_entry_for_each_and_names_what_is_wrong(
    server: Any, small_run: Path, kinds: dict[str, Path]
) -> None:
    bodies = [path.read_bytes() for path in kinds.values()]
    pictures = [base64.b64encode(one).decode() for one in [*bodies, b"no picture"]] + ["***"]
    answer = server.ask("POST", "/predict", json.dumps(pictures).encode(), {"Content-Type": "application/json"})
    assert answer.status == 200
    entries = answer.json()
    assert [entry["path"] for entry in entries] == [f"#{number}" for number in range(len(pictures))]
    for entry, wanted in zip(entries, predict(small_run, *kinds.values()), strict=False):
        assert close(entry["labels"], wanted["labels"])
    assert entries[-2]["error"].startswith("not an image (JPEG")
    assert entries[-1] == {"path": f"#{len(pictures) - 1}", "labels": [], "error": "not base64"}


def test_names_survive_whatever_they_hold(server: Any, jpeg: bytes) -> None:
    labels = server.ask("POST", "/predict", jpeg).json()[0]["labels"]
    assert {one["name"] for one in labels} == {"cat", "dog", 'имя "x"\n<b>'}


def test_health_and_the_interface_say_what_is_there(server: Any) -> None:
    said = server.ask("GET", "/health").json()
    assert said["status"] == "ok"
    assert said["runs"] == ["small", "small-2"]
    assert said["waiting"] == 0
    document = server.ask("GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    predict, explain = (document["paths"][path]["post"] for path in ("/predict", "/explain"))
    assert [one["name"] for one in predict["parameters"]] == ["run", "top"]
    assert [one["name"] for one in explain["parameters"]] == ["run", "label"]
    assert predict["parameters"][0]["schema"]["enum"] == ["small", "small-2"]
    assert {"200", "400", "401", "403", "413", "415", "421", "422", "503"} <= predict["responses"].keys()
    assert {"image/jpeg", "multipart/form-data", "application/json"} <= predict["requestBody"]["content"].keys()
    assert "application/json" not in explain["requestBody"]["content"]
    for path, verbs in document["paths"].items():
        for verb in verbs:
            assert server.ask(verb.upper(), path).status in (200, 400)  # it is there; the body of a POST was empty
    assert server.ask("HEAD", "/health").status == 200


def test_answers_have_the_documented_keys(server: Any, jpeg: bytes) -> None:
    for model, path in ((Explanation, "/explain"), (Health, "/health")):
        answer = server.ask("GET" if path == "/health" else "POST", path, b"" if path == "/health" else jpeg).json()
        assert answer.keys() == model.model_fields.keys()
        model.model_validate(answer, strict=True)
    for unit in server.ask("POST", "/explain", jpeg).json()["units"]:
        assert unit.keys() == Unit.model_fields.keys()
    (entry,) = server.ask("POST", "/predict", jpeg).json()
    assert entry.keys() <= ImageLabels.model_fields.keys()
    ImageLabels.model_validate(entry, strict=True)


def test_the_docs_page_names_every_path_and_asks_nobody_else(server: Any) -> None:
    page = server.ask("GET", "/docs")
    assert page.status == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    document = server.ask("GET", "/openapi.json").json()
    text = page.body.decode()
    assert all(f" {path}</code>" in text for path in document["paths"])
    assert all(f'href="#{name}"' in text for name in ("ImageLabels", "Explanation", "Health", "ErrorMessage"))
    links = re.findall(r'(?:href|src)="([^"]*)"', text)
    assert [link for link in links if not link.startswith("#")] == ["data:,", "openapi.json"]
    assert {link[1:] for link in links if link.startswith("#")} <= set(re.findall(r'id="([^"]*)"', text))


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("top=0", "top=0 should be greater than or equal to 1"),
        ("top=x", "top=x should be a valid integer, unable to parse string as an integer"),
        ("shell=ls", "there is no option shell"),
        ("label=cat", "there is no option label"),
        ("top=1&top=2", "the query has top 2 times; give it once"),
        ("run=%ff", "the query cannot be read"),
    ],
)
def test_a_wrong_option_is_one_sentence(server: Any, jpeg: bytes, query: str, sentence: str) -> None:
    answer = server.ask("POST", f"/predict?{query}", jpeg)
    assert (answer.status, answer.json()) == (400, {"error": sentence})


def test_every_run_answers_under_its_key(server: Any, jpeg: bytes) -> None:
    first = server.ask("POST", "/predict", jpeg).json()
    assert server.ask("POST", "/predict?run=small-2", jpeg).json() == first
    assert server.ask("POST", "/predict?run=other", jpeg).status == 404


def test_what_it_saw_and_what_fired(server: Any, small_run: Path, jpeg: bytes) -> None:
    said = server.ask("POST", "/explain", jpeg).json()
    best = Classifier.load(small_run)
    assert said["label"] in best.names
    assert said["image"].startswith("data:image/webp;base64,")
    assert said["heatmap"].startswith("data:image/webp;base64,")
    assert {one["layer"] for one in said["units"]} >= {"conv1", "layer1.0.conv1"}
    for one in said["units"]:
        top, left, bottom, right = one["box"]
        assert 0 <= top < bottom <= 32
        assert 0 <= left < right <= 32
    other = next(name for name in best.names if name != said["label"])
    from urllib.parse import quote

    assert server.ask("POST", f"/explain?label={quote(other)}", jpeg).json()["label"] == other


def test_the_page_links_to_what_is_there_and_nothing_else_is_read(server: Any) -> None:
    page = server.ask("GET", "/")
    assert page.status == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    facts = json.loads(page.body.split(b'id="facts">')[1].split(b"</script>")[0])
    first = facts["runs"][0]
    report, atlas = (server.ask("GET", f"/{first[name]}") for name in ("report", "atlas"))
    assert (report.status, report.body) == (200, b"<h1>report</h1>")
    assert (atlas.status, atlas.body) == (200, b"<h1>atlas</h1>")
    assert report.headers["content-security-policy"].startswith("sandbox allow-scripts")
    assert "same-origin" not in report.headers["content-security-policy"]
    start = first["report"].removesuffix("report.html")
    for name in ("config.json", "model.safetensors", "atlas", "atlas/", "..", "", "atlas/none", "atlas/../config.json"):
        assert server.ask("GET", f"/{start}{name}").status == 404
    for name in ("atlas/link.txt", "atlas/ring", "atlas/%2e%2e/%2e%2e/secret.txt", "%00", "/etc/passwd", "a" * 5000):
        assert server.ask("GET", f"/{start}{name}").status == 404


def test_those_who_come_together_are_answered_together(
    server: Any, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    batcher = server.api.service.batchers["small"]
    compute = batcher._compute

    def wait_for_all(pictures: Any) -> Any:
        sizes.append(len(pictures))
        deadline = time.monotonic() + 120
        while len(sizes) == 1 and batcher.open < 24:  # meanwhile no other image is decoded
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return compute(pictures)

    monkeypatch.setattr(batcher, "_compute", wait_for_all)
    monkeypatch.setattr(request_batching, "BATCH_WAIT_SECONDS", 2.0)  # longer than decoding takes on a busy machine
    threads = [threading.Thread(target=server.ask, args=("POST", "/predict", jpeg)) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(sizes) == 24
    assert max(sizes) == request_batching.MAX_BATCH


def answer_while_stopping(
    run: Path, live: Callable[..., Any], image: bytes, is_over: Callable[[Any, list[Any]], bool]
) -> Any:
    """Return the answer to a request during which the server stops; its image is computed until `is_over`."""
    answers: list[Any] = []
    served = ServedModel(run, torch.device("cpu"))
    begun = threading.Event()

    def slow(pictures: Any) -> Any:
        begun.set()
        deadline = time.monotonic() + 120
        while not is_over(server, answers):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return ServedModel.answer(served, pictures)

    served.answer = slow  # type: ignore[method-assign]
    with live(served) as server:
        thread = threading.Thread(target=lambda: answers.append(server.ask("POST", "/predict", image)))
        thread.start()
        assert begun.wait(120)
    thread.join()
    (answer,) = answers
    return answer


def test_a_stop_finishes_what_has_begun(small_run: Path, live: Callable[..., Any], jpeg: bytes) -> None:
    assert answer_while_stopping(small_run, live, jpeg, lambda server, _: server.is_stopping).status == 200


def test_a_stop_that_waits_too_long_answers_what_has_begun(
    small_run: Path,
    live: Callable[..., Any],
    jpeg: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(uvicorn_server, "STOP_SECONDS", 1)
    answer = answer_while_stopping(small_run, live, jpeg, lambda _, answers: len(answers) == 1)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert not any(record.exc_info for record in caplog.records)


def test_files_of_a_form_are_named_as_they_came(server: Any, kinds: dict[str, Path]) -> None:
    names = ["plain.jpg", "gray.png", "lossy.webp"]
    body = b"".join(
        f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        + kinds[name].read_bytes()
        + b"\r\n"
        for name in names
    )
    body += b'--x\r\nContent-Disposition: form-data; name="top"\r\n\r\n1\r\n--x--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    entries = server.ask("POST", "/predict", body, kind).json()
    assert [entry["name"] for entry in entries] == names
    for name, entry in zip(names, entries, strict=True):
        (alone,) = server.ask("POST", "/predict?top=1", kinds[name].read_bytes()).json()
        assert close(entry["labels"], alone["labels"])
    assert server.ask("POST", "/predict?top=1", body, kind).status == 400  # said twice
    assert server.ask("POST", "/predict", body.replace(b'"top"', b'"shell"'), kind).status == 400
    assert server.ask("POST", "/explain", body, kind).status == 400
    one = body.replace(b'name="top"', b'name="label"').replace(b"\r\n1\r\n", b"\r\ncat\r\n")
    start = one.index(b"--x", 10)
    assert server.ask("POST", "/explain", one[:start] + one[one.rindex(b"--x\r\n") :], kind).json()["label"] == "cat"


@pytest.mark.parametrize(
    "kind",
    [
        "image/jpg",
        "image/pjpeg",
        "image/x-png",
        "IMAGE/JPEG; q=1",
        "application/octet-stream",
        "binary/octet-stream",
        "",
    ],
)
def test_the_content_says_what_it_is(server: Any, jpeg: bytes, kind: str) -> None:
    assert server.ask("POST", "/predict", jpeg, {"Content-Type": kind}).status == 200


def test_formats_are_those_of_predict(server: Any, small_run: Path, tmp_path: Path) -> None:
    picture = Image.fromarray(load_sample_image("china.jpg")).resize((160, 107))
    for suffix in (".avif", ".jp2", ".ppm", ".heic"):
        path = tmp_path / f"picture{suffix}"
        if suffix == ".heic":
            pillow_heif = pytest.importorskip("pillow_heif")
            pillow_heif.from_pillow(picture).save(path)
        else:
            picture.save(path)
        (wanted,) = predict(small_run, path)
        (found,) = server.ask("POST", "/predict", path.read_bytes()).json()
        assert close(found["labels"], wanted["labels"])


def test_a_network_that_gives_nan_is_refused_where_it_is_loaded(small_run: Path) -> None:
    served = ServedModel(small_run, torch.device("cpu"))
    served._fast.network = lambda images: torch.full((len(images), 3), torch.nan)  # type: ignore[assignment]
    with pytest.raises(RunError, match="gives scores that are NaN"):
        served.warm_up()


def test_nan_is_no_error_of_the_server(small_run: Path, live: Callable[..., Any], jpeg: bytes) -> None:
    served = ServedModel(small_run, torch.device("cpu"))
    served._fast.network = lambda images: torch.full((len(images), 3), torch.nan)  # type: ignore[assignment]
    with torch.no_grad():
        for parameter in served.classifier.network.parameters():
            parameter.fill_(torch.nan)
    with live(served) as running:
        answer = running.ask("POST", "/predict", jpeg)
        assert answer.status == 422
        assert "gives scores that are NaN" in answer.json()["error"]
        body = json.dumps([base64.b64encode(jpeg).decode()] * 2).encode()
        entries = running.ask("POST", "/predict", body, {"Content-Type": "application/json"}).json()
        assert all("gives scores that are NaN" in entry["error"] for entry in entries)
        assert running.ask("POST", "/explain", jpeg).status == 422


def test_json_never_holds_nan() -> None:
    from svertka.serving.json_responses import ASCIIJSONResponse

    content = {"a": [1.0, float("nan"), (float("inf"),)], "b": -float("inf"), "c": "NaN"}
    assert json.loads(ASCIIJSONResponse(content).body) == {"a": [1.0, None, [None]], "b": None, "c": "NaN"}


def test_a_request_whose_client_is_gone_is_given_up(server: Any, jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def never(*_: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with monkeypatch.context() as patch:
        patch.setattr(server.api.service.decoders, "decode", never)
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            sock.sendall(head.encode() + jpeg)
            assert begun.wait(120)
        assert ended.wait(120)
    assert server.ask("POST", "/predict", jpeg).status == 200
    assert server.ask("GET", "/health").json()["waiting"] == 0
