"""Names of any origin, wherever svertka writes them: nothing in them is obeyed by what reads it."""

import csv
import io
import json
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from hostile import TEXTS
from svertka.classifier import Classifier, Config
from svertka.cli.app import main
from svertka.data.preprocessing import Preprocess
from svertka.exporters.hub_folder import write_hub_folder
from svertka.pages.templates import escape
from svertka.pages.truncated_name import truncate_name
from svertka.progress import progress, say

FORBIDDEN = {"Cc", "Cs", "Zl", "Zp"}  # kinds of characters that move a cursor, end a line or are no text


def saved(folder: Path) -> Classifier:
    """A classifier whose classes have all the hostile names."""
    torch.manual_seed(0)
    preprocess = Preprocess(size=8, resize=8, mean=(0.5,), std=(0.25,))
    names = tuple(text.encode("utf-8", "backslashreplace").decode() for text in TEXTS.values())
    config = Config(model="mlp", names=names, preprocess=preprocess)
    classifier = Classifier(config.build().eval(), config)
    classifier.save(folder)
    return classifier


def harmless(text: str) -> bool:
    """Whether each line of `text` can be shown on a terminal."""
    return not {unicodedata.category(letter) for letter in text.replace("\n", "")} & FORBIDDEN and not re.search(
        "[\u202a-\u202e\u2066-\u2069]", text
    )


@pytest.mark.parametrize("form", ["terminal", "--csv", "--json"])
def test_class_names_and_paths_of_predict(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "run")
    images = [f"{text[:200]}.png" for text in TEXTS.values()]
    for image in images:
        Image.new("RGB", (8, 8)).save(image, "PNG")
    options = [] if form == "terminal" else [form]
    assert main(["predict", "run", "--top", "99", *options, "--", *images]) == 0
    out, err = capsys.readouterr()
    assert harmless(out + err)
    out.encode()
    if form == "terminal":
        assert len(out.splitlines()) == len(images)
    elif form == "--json":
        assert out.isascii()
        assert len(json.loads(out)) == len(images)
    else:
        rows = list(csv.reader(io.StringIO(out, newline="")))
        assert len(rows) == 1 + len(images) * len(TEXTS)
        assert not any(cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows for cell in row)


class Page(HTMLParser):
    """The tags in a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))


@pytest.mark.parametrize("text", TEXTS.values())
def test_html(text: str) -> None:
    page = f'<p title="{escape(text)}">{truncate_name(text)}</p>'
    assert harmless(page)
    page.encode()
    tags = Page(page).tags
    assert [tag for tag, _ in tags] in (["p", "bdi"], ["p", "span", "bdi", "bdi"])
    assert [name for name, _ in tags[0][1]] == ["title"]


def test_the_model_card(tmp_path: Path) -> None:
    folder = tmp_path / "it's a `folder`\n---\n- x"
    folder.mkdir()
    write_hub_folder(folder, saved(tmp_path / "run"), str(tmp_path / "run"))
    card = (folder / "README.md").read_text()
    assert harmless(card)
    front, _, body = card.removeprefix("---\n").partition("---\n")
    assert re.fullmatch(r"(library_name: svertka|pipeline_tag: image-classification|tags:|- [a-z-]+|\n)*", front)
    assert "\n---" not in body
    # Names are in lines that Markdown takes as they are.
    marked = [line for line in body.splitlines() if "javascript" in line or "<script" in line or "reboot" in line]
    assert marked
    assert all(line.startswith("    ") for line in marked)


def test_onnx_metadata(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'svertka[onnx]'")
    from svertka.exporters.onnx import write_metadata

    classifier, model = saved(tmp_path / "run"), onnx.ModelProto()
    write_metadata(model, classifier, preprocessing=False)
    metadata = {one.key: one.value for one in model.metadata_props}
    assert json.loads(metadata["names"]) == list(classifier.names)
    assert all(value.isprintable() for value in metadata.values())


@pytest.mark.parametrize("text", TEXTS.values())
def test_what_is_said_meanwhile(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(text)
    with progress(text, 3) as shown:
        shown.say(text)
    err = capsys.readouterr().err
    assert harmless(err)
    assert err.count("\n") == 2  # a line each


@pytest.mark.parametrize("text", TEXTS.values())
def test_errors(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--", f"nowhere/{text}"]) == 2
    err = capsys.readouterr().err
    assert harmless(err)
    assert err.count("\n") == 1
