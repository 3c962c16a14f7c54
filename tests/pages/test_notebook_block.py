"""Results in terminals and notebooks: short, escaped and self-contained."""

import json
import math
import pickle
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import svertka
from hostile import TEXTS
from svertka.classifier import Classifier, Config
from svertka.data.preprocessing import Preprocess
from svertka.pages.notebook_block import MAX_ROWS, Curve, NotebookBlock, Thumbnail, thumbnail_uri

NAMES = {kind: text for kind, text in TEXTS.items() if text not in (" ", "...")}
ELEMENTS = {
    "div", "b", "bdi", "svg", "path", "polyline", "title", "table", "thead", "tbody", "tr", "th", "td", "figure",
    "img", "figcaption",
}  # fmt: skip


class Reader(HTMLParser):
    """The elements, attributes and text that a browser would see."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[str] = []
        self.open: list[str] = []
        self.attributes: set[str] = set()
        self.sources: list[str] = []
        self.text = ""
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        if tag not in ("img", "path"):
            self.open.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert tag == "path" or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(document: str) -> Reader:
    """Parse a block, and check that it holds nothing that runs or loads."""
    found = Reader(document)
    assert set(found.elements) <= ELEMENTS
    assert not {name for name in found.attributes if name.startswith("on")}
    assert all(source.startswith("data:image/") for source in found.sources)
    assert found.open == []
    document.encode("utf-8")
    return found


@pytest.mark.parametrize("kind", TEXTS)
def test_hostile_text_stays_text_everywhere_in_a_block(kind: str) -> None:
    text = TEXTS[kind]
    pixels = np.zeros((4, 4, 3), np.uint8)
    thumbnails = [Thumbnail(thumbnail_uri(pixels), (text, text)), Thumbnail(None, (text,))]
    curves = [Curve(text, [1, 2], [0.5, 0.25])]
    block = NotebookBlock(text, (text,), curves, (text, text), (text,), [(text,)], thumbnails=thumbnails, omitted=text)
    plain_thumbnails = [Thumbnail(thumbnail_uri(pixels), ("x", "x")), Thumbnail(None, ("x",))]
    plain_curves = [Curve("x", [1, 2], [0.5, 0.25])]
    like = NotebookBlock(
        "x", ("x",), plain_curves, ("x", "x"), ("x",), [("x",)], thumbnails=plain_thumbnails, omitted="x"
    )
    plain = read(like.render())
    found = read(block.render())
    assert found.elements == plain.elements
    assert found.attributes == plain.attributes
    for bad in "\u202e\u2069\u2066\x1b\x07":
        assert bad not in found.text


def test_a_table_is_cut_and_says_so() -> None:
    found = read(NotebookBlock("x", header=("n",), rows=[(str(n),) for n in range(MAX_ROWS + 5)]).render())
    assert found.elements.count("td") == MAX_ROWS
    assert "5 more rows" in found.text


def test_a_chart_leaves_out_what_is_not_finite() -> None:
    assert "svg" not in read(NotebookBlock("x", curves=[Curve("a", [1.0], [math.nan])]).render()).elements
    found = read(
        NotebookBlock("x", curves=[Curve("a", [1, 2, 3], [0.2, math.inf, 0.1])], axes=("epoch", "error")).render()
    )
    assert found.elements.count("polyline") == 1
    assert "error 0 to 0.2" in found.text


@pytest.fixture(scope="module")
def run(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> svertka.Run:
    folder = tmp_path_factory.mktemp("runs") / "<b>run"
    return svertka.train(digit_folder, model="mlp", size=8, epochs=2, output=folder, threads=1, test=0.2)


def test_a_run_shows_its_errors_and_curves(run: svertka.Run, tmp_path: Path) -> None:
    result = run.result()
    said = f"val_error={result['val_error']:.4f}, test_error={result['test_error']:.4f}, epochs=2"
    assert repr(run) == f"Run({str(run.folder)!r}, {said})"
    found = read(run._repr_html_())
    assert found.elements.count("polyline") == 2
    assert "validation error" in found.text
    assert json.loads(json.dumps(run.to_dict()))["val_error"] == result["val_error"]
    assert repr(svertka.Run(tmp_path / "none")) == f"Run({str(tmp_path / 'none')!r})"
    assert "not finished" in read(svertka.Run(tmp_path / "none")._repr_html_()).text
    (tmp_path / "metrics.jsonl").mkdir()
    assert "cannot be read" in read(svertka.Run(tmp_path)._repr_html_()).text
    assert repr(svertka.Run(tmp_path)) == f"Run({str(tmp_path)!r})"


def test_evaluations_and_comparisons_show_errors(run: svertka.Run, digit_folder: Path, tmp_path: Path) -> None:
    other = svertka.train(digit_folder, model="mlp", size=8, epochs=1, output=tmp_path / "b", threads=1, test=0.2)
    evaluation = svertka.evaluate(run, digit_folder, threads=1)
    assert repr(evaluation) == f"Evaluation({evaluation.sentence})"
    found = read(evaluation._repr_html_())
    assert found.elements.count("tr") == 1 + len(evaluation.per_class)
    comparison = svertka.compare([run, other], threads=1)
    assert repr(comparison) == f"Comparison({comparison.sentence})"
    assert str(run.folder) in read(comparison._repr_html_()).text
    difference = comparison.runs[1].difference
    assert difference is not None
    assert repr(difference) == f"Difference({difference.sentence})"
    assert difference.sentence in read(difference._repr_html_()).text
    assert "top-1 error" in repr(comparison.runs[0])


def test_findings_of_a_check_are_short_in_a_terminal_and_a_table_in_a_notebook(digit_folder: Path) -> None:
    findings = svertka.check(digit_folder)
    assert repr(findings).startswith(f"Findings({str(digit_folder)!r}: 240 images, ")
    assert "\n" not in repr(findings)
    found = read(findings._repr_html_())
    assert found.elements.count("tr") == 1 + len(findings.classes)


def test_an_optimized_network_shows_its_layers_and_error() -> None:
    layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 5)
    fast = svertka.optimize(torch.nn.Sequential(*layers), torch.rand(2, 3, 8, 8))
    assert [(one.name, one.shape) for one in fast.layers] == [("0", (8, 3, 3, 3)), ("3", (5, 8, 6, 6))]
    assert repr(fast).startswith("Optimized(2\u00a0layers for 3×8×8 images, fp32; largest error ")
    assert read(fast._repr_html_()).elements.count("tr") == 1 + 2
    shown = json.loads(json.dumps(fast.to_dict()))
    assert shown["error"] == fast.error <= 1e-3
    assert [one["name"] for one in shown["layers"]] == ["0", "3"]


def test_an_export_shows_its_files_and_an_atlas_its_size(run: svertka.Run, tmp_path: Path) -> None:
    exported = svertka.export(run, tmp_path / "hub/")
    assert "config.json" in read(exported._repr_html_()).text
    assert sum(one.stat().st_size for one in exported.files) == exported.bytes
    assert repr(exported).startswith(f"Export({str(tmp_path / 'hub')!r}, ")
    with_convolution = svertka.train("digits", epochs=1, output=tmp_path / "run", threads=1)
    atlas = svertka.look(with_convolution, images=20, units=2, threads=1)
    assert f"{atlas.units:,}\u00a0units" in repr(atlas)
    assert str(atlas.page) in read(atlas._repr_html_()).text


def network(names: tuple[str, ...]) -> Classifier:
    config = Config(model="mlp", names=names, preprocess=Preprocess(size=8, resize=8, mean=(0.5,), std=(0.25,)))
    return Classifier(config.build().eval(), config)


def test_predictions_are_a_list_with_thumbnails(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    array = np.full((9, 9), 128, np.uint8)
    found = svertka.predict(network(("x", "y")), tmp_path, array, Image.new("L", (8, 8)), top=1)
    assert isinstance(found, list)
    assert [set(one) for one in found] == [{"path", "labels"}, {"path", "labels", "error"}, *[{"path", "labels"}] * 2]
    assert found == found.to_dict() == json.loads(json.dumps(found)) == pickle.loads(pickle.dumps(found))
    assert type(found.to_dict()) is list
    shown = read(found._repr_html_())
    assert (shown.elements.count("figure"), shown.elements.count("img")) == (4, 3)
    assert "cannot be read" in shown.text
    assert read(found[2:]._repr_html_()).elements.count("img") == 2
    (tmp_path / "a.png").unlink()
    assert read(found[:1]._repr_html_()).elements.count("img") == 0
    found.pop()
    assert read(found._repr_html_()).elements.count("img") == 0  # which image is whose is no longer known
    many = svertka.predict(network(("x", "y")), *[array] * 30)
    assert "6 more images" in read(many._repr_html_()).text


def test_hostile_class_names_are_text_in_every_result(tmp_path: Path) -> None:
    names = tuple(NAMES.values())
    array = np.random.default_rng(0).integers(0, 256, (len(names), 8, 8), dtype=np.uint8)
    classifier = network(names)
    shown = read(svertka.predict(classifier, *array, top=len(names))._repr_html_())
    assert shown.elements.count("script") == 0
    classifier.save(tmp_path / "run")
    data = tmp_path / "data"
    for number, name in enumerate(names[:8]):
        try:
            (data / name).mkdir(parents=True)
        except (OSError, ValueError):
            continue
        Image.fromarray(array[number]).save(data / name / "1.png")
    assert read(svertka.check(data)._repr_html_()).elements.count("td") >= 4
    evaluation = svertka.evaluate(tmp_path / "run", data, threads=1)
    assert read(evaluation._repr_html_()).elements.count("td") >= 4
    classifier.save(tmp_path / "<img src=x onerror=alert(1)>")
    comparison = svertka.compare([tmp_path / "run", tmp_path / "<img src=x onerror=alert(1)>"], data, threads=1)
    assert "<img src=x" in read(comparison._repr_html_()).text
