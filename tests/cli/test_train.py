from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svertka.cli.app import main

SOURCE = """
from torch import nn

def build(classes):
    return nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, name in enumerate("ab"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for image in range(6):
            pixels = np.full((32, 32, 3), 20 * image + 100 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{image}.png")
    return tmp_path / "photos"


def test_a_network_of_a_file_is_trained_and_used_from_the_command_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(SOURCE)
    train = ["train", str(photos), "--model", "own.py:build", "--epochs", "1", "--size", "32", "--val", "0.3"]
    assert main([*train, "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    run = "runs/photos-own.py-build"
    assert f"next: svertka predict {run} --trust-builder IMAGE..." in printed
    assert "trained for 1 epoch at " in printed
    assert f"next: svertka look {run} --trust-builder\n" in printed
    image = str(photos / "a" / "0.png")
    assert main(["predict", run, image]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{run} builds its network with {tmp_path.resolve()}/own.py:build, whose code is run when it is" in error
    assert main(["predict", run, "--trust-builder", image]) == 0
    Path("own.py").unlink()
    assert main(["predict", run, "--trust-builder", image]) == 2
    assert "cannot be imported: there is no file" in capsys.readouterr().err


def test_a_builder_is_printed_layer_by_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(SOURCE)
    assert main(["models", "own.py:build"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("own.py:build on 3×224×224 pixels: ")
    assert any(line.split()[:2] == ["4", "Linear"] for line in lines)


def test_an_unknown_builder_is_one_sentence(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("nowhere.py:build", "no_such_module:build", "timm:", "own.py:", ":", "a:b:c"):
        assert main(["train", str(photos), "--model", model]) == 2
        assert capsys.readouterr().err.count("\n") == 1
