import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import svertka
from svertka.classifier import Classifier
from svertka.exporters.hub_folder import render_card, write_hub_folder


def test_the_folder_is_a_run_that_computes_the_same(made: Callable[..., Classifier], tmp_path: Path) -> None:
    classifier = made("resnet20", 32, 40, names=("cat", "dog\n---", "имя"))
    write_hub_folder(tmp_path / "hub", classifier, "resnet20:imagenet")
    assert {path.name for path in (tmp_path / "hub").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["label_names"] == ["cat", "dog\n---", "имя"]
    assert config["architecture"] == "resnet20"
    again = Classifier.load(tmp_path / "hub")
    assert again.config == classifier.config
    weights = classifier.network.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.network.state_dict().items())


def test_the_card_of_a_run_says_what_it_was_trained_on_and_what_came_of_it(
    digit_folder: Path, tmp_path: Path, quiet: None
) -> None:
    run = svertka.train(digit_folder, model="mlp", size=8, epochs=2, output=tmp_path / "run")
    text = render_card(run.classifier(), str(run.folder), "digits")
    front, _, body = text.removeprefix("---\n").partition("---\n")
    assert "library_name: svertka" in front
    assert "pipeline_tag: image-classification" in front
    assert [line for line in body.splitlines() if line.startswith("#")] == [
        "# mlp, 4 classes", "## Data and recipe", "## Results", "## Limits", "## How to run it",
    ]  # fmt: skip
    assert f"| val | {100 * run.result()['val_error']:.1f} % |" in body
    assert "240" not in body.split("## Results")[1]
    assert f"{digit_folder.name}: " in body
    assert str(digit_folder) not in body  # where it lay is nobody's business
    assert 'svertka.Classifier.load("digits/")' in body
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)  # as on another machine
        assert render_card(run.classifier(), str(run.folder), "digits") == text
    finally:
        torch.set_num_threads(threads)


def test_a_card_reads_no_markdown_in_names(made: Callable[..., Classifier]) -> None:
    text = render_card(made("resnet20", 32, 40, names=("```\n# no", "<script>", "| a |")), "resnet20:imagenet", "x")
    for name in ("```\n# no", "<script>", "| a |"):
        assert f"\n    {json.dumps(name)}\n" in text
    assert "Not measured" in text


@pytest.mark.parametrize("number", [1, 2])
def test_one_class_is_one_class(made: Callable[..., Classifier], number: int) -> None:
    text = render_card(made("resnet20", 32, 40, names=("a", "b")[:number]), "resnet20:x", "x")
    assert ("# resnet20, 1 class\n" in text) is (number == 1)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("multi-label", "Its labels, in the order of `label_names` in config.json:"),
        ("regression", "The name of the number, from `label_names` in config.json:"),
    ],
)
def test_the_card_names_what_is_predicted(kind: str, sentence: str, task_runs: dict[str, svertka.Run]) -> None:
    assert sentence in render_card(task_runs[kind].classifier(), str(task_runs[kind].folder), "run")
