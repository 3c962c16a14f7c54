"""The page of `svertka export --to page.html`: what is in it, and what it answers in a browser without a network."""

import base64
import gzip
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn

import svertka
from hostile import TEXTS
from svertka.classifier import Classifier, Config
from svertka.data.preprocessing import Preprocess
from svertka.errors import ExportMismatchError, UsageError
from svertka.tasks import MultiLabel, Regression

pytest.importorskip("onnxruntime")
import onnxruntime

from svertka.exporters import classifier_page, integer_weights

# The messages of the worker, as the page gets them.
RECORD = """const Plain = Worker; self.answers = []; self.Worker = class extends Plain { constructor(...given) {
    super(...given); this.addEventListener("message", ({ data }) => self.answers.push(data)); } };"""


@pytest.fixture(scope="module")
def page(averaging: Classifier, kinds: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    made = svertka.export(averaging, path, images=[kinds["plain.jpg"], kinds["gray.png"]])
    assert made.images == 2
    assert 0 < made.difference < 1e-3
    assert made.bytes == path.stat().st_size < 8e6
    assert made.sentence.endswith(", 100.0% keep the class of the network")
    return path


@pytest.fixture
def tab(browser: Any, page: Path) -> Iterator[Any]:
    """The page, without a network; it must not complain, nor ask for anything."""
    context = browser.new_context(offline=True, viewport={"width": 390, "height": 844}, color_scheme="dark")
    context.add_init_script(RECORD)
    tab = context.new_page()
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda one: None if one.url.startswith(("data:", "blob:")) else complaints.append(one.url))
    tab.goto(page.as_uri())
    tab.locator("#ask:not([hidden])").wait_for()
    yield tab
    assert complaints == [page.as_uri()]
    context.close()


def answers_of(tab: Any) -> list[dict[str, Any]]:
    """The answers of the worker in the order of the requests: probabilities, and what the network saw."""
    script = """() => self.answers.filter((one) => one.found).sort((a, b) => a.id - b.id).map(({ found, square }) =>
        ({ probabilities: [...found.probabilities.data], square: [...square] }))"""
    found: list[dict[str, Any]] = tab.evaluate(script)
    return found


def test_answers_are_those_of_pytorch(
    tab: Any,
    averaging: Classifier,
    kinds: dict[str, Path],
    axe_violations: Callable[[Any], list[str]],
    layout_faults: Callable[[Any], list[str]],
) -> None:
    read = ["plain.jpg", "turned.jpg", "gray.png", "cmyk.jpg", "deep.png", "alpha.png", "palette.gif", "plain.bmp"]
    paths = [kinds[name] for name in [*read, "one_bit.tif"]]
    tab.set_input_files("#drop input", [str(path) for path in paths])
    tab.get_by_text("9\u00a0pictures classified.").wait_for()
    answers = answers_of(tab)
    assert len(answers) == len(read)
    for name, answer in zip(read, answers, strict=True):
        wanted = averaging.probabilities([averaging.preprocess(kinds[name])])[0].numpy()
        assert np.abs(np.array(answer["probabilities"]) - wanted).max() < 1e-3, name
    items = tab.locator("#answers > li")
    best, probability = averaging.predict(kinds["plain.jpg"], top=1)[0]
    title = f"plain.jpg: {best} with {100 * probability:.1f}\u00a0%."
    assert items.first.locator("h2").evaluate("title => title.textContent") == title
    assert items.last.locator(".wrong").inner_text() == "This browser cannot read it as a picture."
    assert tab.locator("script").count() == 4  # no name became one
    items.first.get_by_text("Where it looked").focus()
    tab.keyboard.press("Enter")
    assert items.first.locator(".stage canvas").nth(1).is_visible()
    assert "Grad-CAM" in items.first.locator(".explained").inner_text()
    assert layout_faults(tab) == []
    assert axe_violations(tab) == []


def test_the_camera_is_classified_live_and_a_frame_can_be_kept(
    tab: Any, averaging: Classifier, axe_violations: Callable[[Any], list[str]]
) -> None:
    tab.locator("#camera-switch").focus()
    tab.keyboard.press("Enter")
    tab.locator("#rate").get_by_text("answers a second").wait_for()
    assert axe_violations(tab) == []
    tab.locator("#keep").click()
    tab.get_by_text("1\u00a0picture classified.").wait_for()
    tab.locator("#camera-switch").click()
    assert not tab.locator("#camera").is_visible()
    for answer in answers_of(tab)[-3:]:
        square = np.array(answer["square"], np.uint8).reshape(32, 32, 4)[..., :3]
        image = averaging.preprocess.normalize(torch.from_numpy(square.copy()).permute(2, 0, 1)[None])
        wanted = averaging.probabilities([image[0]])[0].numpy()
        assert np.abs(np.array(answer["probabilities"]) - wanted).max() < 1e-3


def test_unknown_images_are_called_so(
    browser: Any, calibrated: Callable[..., Classifier], tmp_path: Path, kinds: dict[str, Path]
) -> None:
    classifier = calibrated("lenet5", 32, 32)
    page = svertka.export(classifier, tmp_path / "page.html", images=[kinds["plain.jpg"]]).path
    rng = np.random.default_rng(0)
    photograph = load_sample_image("china.jpg")
    shown = [photograph[50 * k : 50 * k + 90, :120] for k in range(4)]
    shown.append(rng.integers(0, 256, (90, 120, 3), np.uint8))
    paths = [tmp_path / f"{number}.png" for number in range(len(shown))]
    for path, pixels in zip(paths, shown, strict=True):
        Image.fromarray(pixels).save(path)
    wanted = [one["unknown"] for one in svertka.predict(classifier, *paths, threads=1)]
    assert set(wanted) == {False, True}
    context = browser.new_context(offline=True)
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.locator("#ask:not([hidden])").wait_for()
    tab.set_input_files("#drop input", [str(path) for path in paths])
    tab.get_by_text("5\u00a0pictures classified.").wait_for()
    assert [": unknown, closest to " in title for title in tab.locator("#answers h2").all_inner_texts()] == wanted
    assert tab.get_by_text("it may show none of the classes").count() == sum(wanted)
    tab.locator("#answers").get_by_text("Where it looked").first.click()
    assert "There is no heat map" in tab.locator("#answers .explained").first.inner_text()
    context.close()


@pytest.mark.parametrize("task", [MultiLabel(thresholds=(0.2, 0.5, 0.9)), Regression(mean=40.0, std=12.5)])
def test_labels_and_numbers_are_those_of_svertka(
    task: MultiLabel | Regression, browser: Any, tmp_path: Path, axe_violations: Callable[[Any], list[str]]
) -> None:
    names = ("cat", "dog", "fox") if isinstance(task, MultiLabel) else ("age",)
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    network.append(nn.Linear(16, len(names)))
    with torch.no_grad():
        network[-1].weight.mul_(20)
    preprocess = Preprocess(size=32, resize=32, mean=(0.5,) * 3, std=(0.2,) * 3)
    classifier = Classifier(network, Config(model="resnet20", names=names, preprocess=preprocess, task=task))
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 64 * (number + 1), (32, 32, 3), np.uint8)).save(path)
    made = svertka.export(classifier, tmp_path / "page.html", images=paths)
    assert made.difference < 1e-3
    wanted: list[Any] = []
    for answer in svertka.predict(classifier, *paths, threads=1):
        said = [one["name"] for one in answer["labels"] if one["predicted"]]
        number = answer.get("number", {}).get("value", 0)
        wanted.append(number if "number" in answer else f"{', '.join(said) or 'none of the labels'}.")
    assert len(set(wanted)) > 1
    context = browser.new_context(offline=True)
    tab = context.new_page()
    tab.goto(made.path.as_uri())
    tab.locator("#ask:not([hidden])").wait_for()
    tab.set_input_files("#drop input", [str(path) for path in paths])
    tab.get_by_text("4\u00a0pictures classified.").wait_for()
    titles = tab.locator("#answers h2").all_inner_texts()
    found: list[Any] = [title.partition(": ")[2] for title in titles]
    if isinstance(task, Regression):  # the weights of the page have 16 bits
        found = [float(text.removeprefix("age ").removesuffix(".")) for text in found]
        wanted = [pytest.approx(number, rel=1e-3, abs=1e-2) for number in wanted]
    assert found == wanted
    assert axe_violations(tab) == []
    page = tab.locator("#answers").inner_text()
    assert ("Said from a probability of: " in page) is isinstance(task, MultiLabel)
    context.close()


def test_a_browser_that_changes_pixels_is_refused(browser: Any, page: Path) -> None:
    # Before the worker's source: what protections against fingerprinting do.
    noise = """const Plain = Blob; self.Blob = class extends Plain { constructor(parts, options) { super([`{
        const context = OffscreenCanvasRenderingContext2D.prototype, read = context.getImageData;
        context.getImageData = function (...given) {
            const found = read.apply(this, given);
            found.data[8] ^= 1;
            return found;
        };
    }`, ...parts], options); } };"""
    context = browser.new_context(offline=True)
    context.add_init_script(noise)
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.locator("#state").get_by_text("changes the pixels that a page reads").wait_for()
    assert not tab.locator("#ask").is_visible()
    context.close()


def test_pixels_are_resized_as_by_pytorch(browser: Any, large_count: Callable[[int, int], int]) -> None:
    rng = np.random.default_rng(0)
    context = browser.new_context()
    tab = context.new_page()
    source = files("svertka.pages").joinpath("static", "classifier-worker.js").read_text("utf-8")
    tab.add_script_tag(content=source)
    run = """([given, width, height, encoded]) => { settings = given; const letters = atob(encoded);
        const data = Uint8ClampedArray.from(letters, (letter) => letter.charCodeAt(0));
        return [...makeSquare({ data, width, height })]; }"""
    for number in range(large_count(24, 1000)):
        fit = ("crop", "pad", "squeeze")[number % 3]
        channels = 1 if number % 4 == 3 else 3
        size, resize = (int(side) for side in rng.integers(1, 40, 2))
        preprocess = Preprocess(
            size=size,
            resize=resize,
            mean=(0.5,) * channels,
            std=(0.25,) * channels,
            fit=fit,
            interpolation="bicubic" if number % 2 else "bilinear",
        )
        height, width = (int(side) for side in rng.integers(1, 120, 2))
        if fit == "crop":
            width = height  # the page cuts the square out when it decodes
        pixels = rng.integers(0, 256, (height, width, 4), np.uint8)
        settings = preprocess.model_dump() | {"fit": fit, "interpolation": preprocess.interpolation}
        encoded = base64.b64encode(pixels.tobytes()).decode()
        found = np.array(tab.evaluate(run, [settings, width, height, encoded]), np.uint8).reshape(size, size, 4)
        square = preprocess.square(pixels[..., :3])
        first = (len(square) - size) // 2
        wanted = square[first : first + size, first : first + size]
        np.testing.assert_array_equal(found[..., :channels], wanted, err_msg=f"{preprocess!r} {width}×{height}")
    context.close()


def test_nothing_may_be_connected_and_nothing_is_left_open(page: Path, averaging: Classifier) -> None:
    text = page.read_text("utf-8")
    policy = re.search('Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy[1].split("; ")}
    assert rules["default-src"] == ["'none'"]
    assert "connect-src" not in rules
    assert rules["worker-src"] == ["blob:"]
    assert len(rules["script-src"]) == 2
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert "{{" not in re.sub("<script.*?</script>", "", text, flags=re.DOTALL)
    facts = re.search('<script type="application/json" id="facts">(.*?)</script>', text)
    assert facts is not None
    assert tuple(json.loads(facts[1])["names"]) == averaging.config.names
    assert "Copyright (c) Microsoft Corporation" in text


def test_every_name_is_in_the_page_as_text(made: Callable[..., Classifier]) -> None:
    names = tuple(text.encode("utf-8", "backslashreplace").decode() for text in TEXTS.values())
    classifier = made("mlp", 8, 8, names=names)
    model = classifier_page.convert_for_page(classifier, "fp32")
    assert [output.name for output in model.graph.output] == ["probabilities"]
    text = classifier_page.render_classifier_page(classifier, model, "fp32").decode()
    facts = re.search('<script type="application/json" id="facts">(.*?)</script>', text)
    assert facts is not None
    assert tuple(json.loads(facts[1])["names"]) == names
    assert text.count("<script") == 4  # one that runs, and three with data


def test_a_page_that_is_too_large_or_inexact_is_refused(
    averaging: Classifier, page_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier_page, "MAX_BYTES", 1_000_000)
    sentence = (
        r"^the page would have 5\.\d* MB, of which the network in int16 takes .* kB, more than the limit of 1 MB; "
    )
    with pytest.raises(UsageError, match=f"{sentence}use --precision int8, or a smaller network$"):
        classifier_page.render_classifier_page(averaging, page_model, "int16")
    monkeypatch.setattr(classifier_page, "TOLERANCE", 0.0)
    with pytest.raises(ExportMismatchError, match=r"differs by .*, more than 0; no file was written; use --precision"):
        classifier_page.check_page_model(page_model, averaging, torch.full((1, 3, 32, 32), 0.3), "int16")


def test_in_int8_what_the_weights_change_is_measured_and_said(
    averaging: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integer_weights, "SMALLEST_IN_8_BITS", integer_weights.SMALLEST)
    images = list(np.random.default_rng(0).integers(0, 256, (20, 40, 40, 3), np.uint8))
    made = svertka.export(averaging, tmp_path / "page.html", precision="int8", images=images)
    text = made.path.read_text("utf-8")
    network = re.search('<script type="text/plain" id="network">(.*?)</script>', text)
    assert network is not None
    content = gzip.decompress(base64.b64decode(network[1]))
    session = onnxruntime.InferenceSession(content)
    assert [output.name for output in session.get_outputs()] == ["probabilities", "classes", "maps"]
    tensors = torch.stack([averaging.preprocess(image) for image in images])
    found = np.concatenate([session.run(["probabilities"], {"images": one[None].numpy()})[0] for one in tensors])
    wanted = averaging.probabilities([*tensors]).numpy()
    difference, kept = (
        np.abs(found - wanted).max(),
        f"{(found.argmax(1) == wanted.argmax(1)).mean():.1%} keep the class",
    )
    assert made.page is not None
    assert made.difference == made.page.difference == pytest.approx(difference, abs=1e-6)
    assert difference > 1e-4
    shown = classifier_page.format_difference(made.difference)
    assert (
        made.sentence == f"checked in ONNX Runtime on 20\xa0images: probabilities within {shown}, {kept} of the network"
    )
    assert f"on 20\xa0pictures, probabilities within {shown}, and {kept}." in text
    monkeypatch.setattr(classifier_page, "LEAST_AGREEMENT", 1.1)
    with pytest.raises(ExportMismatchError, match=r"^with weights in int8 only .*% of 20.images keep the class"):
        svertka.export(averaging, tmp_path / "other.html", precision="int8", images=images)
    assert not (tmp_path / "other.html").exists()


@pytest.mark.large  # fp32 pages and int8 files with unknown images: above, and test_unknown_parity.py
def test_in_int8_a_calibrated_run_calls_images_unknown(
    calibrated: Callable[..., Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integer_weights, "SMALLEST_IN_8_BITS", integer_weights.SMALLEST)
    classifier = calibrated("lenet5", 32, 32)
    assert classifier.calibration is not None
    rng = np.random.default_rng(0)
    photograph = load_sample_image("china.jpg")
    shown = [photograph[50 * k : 50 * k + 90, :120] for k in range(4)]
    shown.append(rng.integers(0, 256, (90, 120, 3), np.uint8))
    images = torch.stack([classifier.preprocess(one) for one in shown])
    model = classifier_page.convert_for_page(classifier, "int8")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = [bool(session.run(["unknown"], {"images": one[None].numpy()})[0][0]) for one in images]
    assert found == [one["unknown"] for one in svertka.predict(classifier, *shown, threads=1)]
    assert set(found) == {False, True}
    assert classifier_page.check_page_model(model, classifier, images, "int8").images == 5
    # A page that disagrees about it is refused.
    unknown = classifier.calibration.record.unknown.model_copy(update={"threshold": -1e6})
    record = classifier.calibration.record.model_copy(update={"unknown": unknown})
    other = Classifier(classifier.network, classifier.config)
    other.calibration = replace(classifier.calibration, record=record)
    model = classifier_page.convert_for_page(other, "int8")
    with pytest.raises(ExportMismatchError, match=r"only .*% of 5\xa0images are called known or unknown as"):
        classifier_page.check_page_model(model, classifier, images, "int8")


def test_differences_are_not_rounded_down() -> None:
    given = {0.0: "0", 0.0601: "0.061", 0.06: "0.06", 1.21e-7: "1.3e-07", 0.995: "1"}
    assert {one: classifier_page.format_difference(one) for one in given} == given


def test_16_bit_images_are_refused(made: Callable[..., Classifier], tmp_path: Path) -> None:
    deep = made("mlp", 8, 8)
    preprocess = deep.preprocess.model_copy(update={"intensity_range": (0, 4095)})
    other = Classifier(deep.network, deep.config.model_copy(update={"preprocess": preprocess}))
    with pytest.raises(UsageError, match="reads 16-bit images, of which browsers give pages 8 bits"):
        svertka.export(other, tmp_path / "page.html", images=[Image.new("RGB", (8, 8))])


def test_the_runtime_is_the_version_that_is_named() -> None:
    folder = files("svertka.pages").joinpath("vendor", "onnxruntime-web")
    source = folder.joinpath("ort.wasm.bundle.min.mjs").read_text("utf-8")
    assert f"ONNX Runtime Web v{classifier_page.RUNTIME_VERSION}" in source
    assert classifier_page.RUNTIME_VERSION in folder.joinpath("README.md").read_text("utf-8")
    assert gzip.decompress(folder.joinpath("ort-wasm-simd-threaded.wasm.gz").read_bytes()).startswith(b"\0asm")
    assert b"protobuf" in gzip.decompress(folder.joinpath("ThirdPartyNotices.txt.gz").read_bytes()).lower()


@pytest.mark.large
def test_photographs(shared_data: Path, browser: Any, tmp_path: Path) -> None:
    images = sorted((shared_data / "imagenet-samples").iterdir())
    page = svertka.export("efficientnet_lite0:bundled", tmp_path / "page.html", images=images).path
    assert page.stat().st_size <= 20e6
    context = browser.new_context(offline=True)
    context.add_init_script(RECORD)
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.locator("#ask:not([hidden])").wait_for()
    tab.set_input_files("#drop input", [os.fspath(path) for path in images])
    tab.get_by_text(f"{len(images)}\u00a0pictures classified.").wait_for(timeout=600_000)
    classifier = Classifier.load("efficientnet_lite0:bundled")
    for path, answer in zip(images, answers_of(tab), strict=True):
        wanted = classifier.probabilities([classifier.preprocess(path)])[0].numpy()
        assert np.abs(np.array(answer["probabilities"]) - wanted).max() < 1e-3
    context.close()
