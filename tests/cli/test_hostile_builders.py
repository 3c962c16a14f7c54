"""Run folders of strangers in every command: what config.json names is imported or read only with --trust-builder."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import svertka
from svertka.classifier import Classifier
from svertka.cli.app import main
from svertka.errors import UsageError
from svertka.models.external_builder import GRAPH


def small(classes: int = 2) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


class Payload:
    """An object that makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def of_stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a run of a tiny network, which was interrupted before its report."""
    folder, random = tmp_path_factory.mktemp("stranger"), np.random.default_rng(0)
    for number, name in enumerate("ab"):
        (folder / "photos" / name).mkdir(parents=True)
        for image in range(6):
            pixels = (random.random((16, 16, 3)) * 100 + 100 * number).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{image}.png")
    svertka.train(folder / "photos", model=small, output=folder / "run", epochs=1, size=16, val=0.34, threads=1)
    (folder / "run" / "report.html").unlink()
    return folder


TARGETS = ("os:system", "evil:build", "{folder}/evil.py:build", GRAPH)
COMMANDS = {
    "predict": ["predict", "RUN", "IMAGE"],
    "evaluate": ["evaluate", "RUN", "PHOTOS"],
    "evaluate its validation images": ["evaluate", "RUN", "PHOTOS", "--part", "val"],
    "look": ["look", "RUN", "PHOTOS", "--units", "1", "--images", "2", "--output", "NEW"],
    "locate": ["locate", "RUN", "IMAGE"],
    "export to ONNX": ["export", "RUN", "--to", "NEW.onnx"],
    "export to the hub": ["export", "RUN", "--to", "NEW/"],
    "serve": ["serve", "RUN", "--port", "0"],
    "compare": ["compare", "RUN", "TWIN", "PHOTOS"],
    "train from its weights": ["train", "PHOTOS", "--weights", "RUN", "--epochs", "1", "--output", "NEW"],
    "resume": ["train", "--resume", "RUN"],
}


def place_run(folder: Path, of_stranger: Path, target: str) -> dict[str, str]:
    """Copy the run into `folder` with another builder, beside code that leaves a mark; return the arguments."""
    mark = folder / "mark"
    for code in ("evil.py", "timm.py"):
        (folder / code).write_text(f"import pathlib; pathlib.Path({str(mark)!r}).touch()\ndef build(classes): ...\n")
    for name in ("run", "twin"):
        (folder / name / "checkpoint").mkdir(parents=True)
        for file in (of_stranger / "run").rglob("*"):
            if file.is_file():
                (folder / name / file.relative_to(of_stranger / "run")).write_bytes(file.read_bytes())
        config = json.loads((folder / name / "config.json").read_text())
        config["builder"] = {"target": target.format(folder=folder)}
        (folder / name / "config.json").write_text(json.dumps(config))
        (folder / name / GRAPH).write_bytes(pickle.dumps(Payload(mark)))
    photos = of_stranger / "photos"
    places = {"RUN": folder / "run", "TWIN": folder / "twin", "PHOTOS": photos, "IMAGE": photos / "a" / "0.png"}
    return {name: str(path) for name, path in places.items()}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_command_runs_no_code_of_strangers(
    command: str,
    target: str,
    of_stranger: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = place_run(tmp_path, of_stranger, target)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.export, "load", lambda *_: (tmp_path / "mark").touch())
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    before = set(sys.modules)
    code = main([places.get(word, word.replace("NEW", str(tmp_path / "new"))) for word in COMMANDS[command]])
    printed = capsys.readouterr()
    (sentence,) = printed.err.splitlines()
    assert (code, printed.out) == (2, ""), printed.err
    if (command, target) == ("resume", GRAPH):
        assert "has no importable builder, and its exported graph is for inference only" in sentence
    else:
        assert "run builds its network" in sentence
        assert sentence.endswith("if you trust it, give --trust-builder (trust_builder=True)")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept
    assert not {"evil", "timm", "timm.evil"} & (set(sys.modules) - before)


def test_python_runs_no_code_of_strangers(of_stranger: Path, tmp_path: Path) -> None:
    run = place_run(tmp_path, of_stranger, "{folder}/evil.py:build")["RUN"]
    for call in (Classifier.load, Classifier.open, svertka.resume, lambda path: svertka.Run(path).classifier()):
        with pytest.raises(UsageError, match="--trust-builder"):
            call(run)
    assert not (tmp_path / "mark").exists()


def test_code_of_strangers_runs_with_consent(of_stranger: Path, tmp_path: Path) -> None:
    """Without it, the mark would prove nothing."""
    run = place_run(tmp_path, of_stranger, "{folder}/evil.py:build")["RUN"]
    with pytest.raises(UsageError, match=r"evil.py:build returns None"):
        Classifier.load(run, trust_builder=True)
    assert (tmp_path / "mark").exists()
