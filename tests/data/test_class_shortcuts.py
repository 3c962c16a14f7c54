from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import svertka
from svertka.curation.dataset_findings import describe_findings
from svertka.data.class_shortcuts import FileProperties, describe_shortcuts

PLAIN = FileProperties("JPEG", 8, (100, 80))
Draw = Callable[[np.random.Generator], Image.Image]


def scenes(root: Path, classes: dict[str, tuple[str, Draw]], count: int = 12) -> Path:
    """A folder of `count` different images in each class, drawn and saved under a suffix as `classes` says."""
    rng = np.random.default_rng(0)
    for name, (suffix, draw) in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            draw(rng).save(root / name / f"{number}{suffix}")
    return root


def noise(side: int = 24, *, deep: bool = False) -> Draw:
    def draw(rng: np.random.Generator) -> Image.Image:
        values = rng.integers(0, 65536 if deep else 256, (side, side))
        return Image.fromarray(values.astype(np.uint16 if deep else np.uint8))

    return draw


KINDS: dict[str, tuple[dict[str, tuple[str, Draw]], str]] = {
    "format": (
        {"cat": (".png", noise()), "dog": (".jpg", noise())},
        "the file format tells the class (JPEG: dog; PNG: cat)",
    ),
    "bits": (
        {"cat": (".png", noise(deep=True)), "dog": (".png", noise())},
        "the bit depth tells the class (16 bits: cat; 8 bits: dog)",
    ),
    "size": (
        {"cat": (".png", noise(24)), "dog": (".png", noise(30)), "owl": (".png", noise(30))},
        "the size tells the class (24×24 pixels: cat; 30×30 pixels: dog, owl)",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_check_and_train_warn_of_files_that_tell_the_class(tmp_path: Path, kind: str, quiet: None) -> None:
    classes, sentence = KINDS[kind]
    source = scenes(tmp_path / "source", classes)
    findings = svertka.check(source)
    assert any(warning.startswith(sentence) for warning in findings.to_dict()["warnings"])
    assert any(line.startswith(f"warning: {sentence}") for line in describe_findings(findings))
    run = svertka.train(source, model="mlp", size=8, epochs=1, output=tmp_path / "run", threads=1)
    assert any(warning.startswith(sentence) for warning in run.settings()["account"]["warnings"])
    assert sentence.partition(" (")[0] in run.report.read_text()


def test_images_that_differ_within_their_classes_tell_nothing(tmp_path: Path, digit_folder: Path) -> None:
    assert not any("tells the class" in warning for warning in svertka.check(digit_folder).to_dict()["warnings"])
    rng = np.random.default_rng(1)
    files = [FileProperties(str(rng.choice(["JPEG", "PNG"])), 8, (int(rng.integers(50, 90)), 60)) for _ in range(400)]
    assert describe_shortcuts(["a", "b"], rng.integers(0, 2, 400).tolist(), files) == []


def test_too_few_images_are_alike_by_chance() -> None:
    files = [PLAIN] * 4 + [FileProperties("PNG", 8, (10, 10))] * 30
    assert describe_shortcuts(["a", "b"], [0] * 4 + [1] * 30, files) == []


def test_a_few_exceptions_do_not_hide_it() -> None:
    files = [PLAIN] * 19 + [FileProperties("PNG", 8, (100, 80))] * 21
    (sentence,) = describe_shortcuts(["a", "b"], [0] * 20 + [1] * 20, files)
    assert sentence.startswith("the file format tells the class (JPEG: a; PNG: b)")


@pytest.mark.parametrize(("side", "word"), [(20, "smaller"), (2000, "larger")])
def test_one_class_of_other_sizes(side: int, word: str) -> None:
    rng = np.random.default_rng(2)
    sides = [*(side + rng.integers(0, 9, 30)), *rng.integers(200, 900, 60)]
    files = [FileProperties("JPEG", 8, (int(one), int(one))) for one in sides]
    (sentence,) = describe_shortcuts(["a", "b", "c"], [0] * 30 + [1, 2] * 30, files)
    assert sentence.startswith(f"the images of a are {word} than all others")
