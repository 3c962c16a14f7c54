import builtins
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import svertka
from svertka import Run
from svertka.classifier import Classifier
from svertka.cli.app import main
from svertka.errors import DataError, ExportMismatchError, StorageError, UsageError

onnxruntime: Any = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def source(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "digits"
    shutil.copytree(digit_folder, folder)
    return folder


@pytest.fixture(scope="module")
def run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return svertka.train(
        source, model="mlp", size=8, epochs=3, threads=1, output=tmp_path_factory.mktemp("runs") / "run"
    )


def test_a_run_checks_itself_on_what_it_was_trained_on(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / "model.onnx"
    assert main(["export", str(run.folder), "--to", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["path"] == str(path)
    assert said["images"] == 32
    assert said["bytes"] == path.stat().st_size
    assert 0 <= said["difference"] < 1e-4
    assert main(["export", str(run.folder), "--to", str(path), "--preprocessing"]) == 0
    out, err = capsys.readouterr()
    assert "checked in ONNX Runtime on 32 images: probabilities within" in out
    assert err == ""


def test_a_page_in_int8_is_checked_on_validation_images(
    run: Run, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run.folder), "--to", str(tmp_path / "page.html"), "--precision", "int8", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    validation = svertka.evaluate(run, source, part="val", threads=1).images
    assert said["images"] == said["page"]["images"] == min(validation, 128)


def test_the_file_alone_names_what_is_in_a_picture(run: Run, source: Path, tmp_path: Path) -> None:
    path = svertka.export(run, tmp_path / "model.onnx", preprocessing=True).path
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = json.loads(session.get_modelmeta().custom_metadata_map["names"])
    for picture in sorted(source.rglob("*.png"))[::40]:
        pixels = np.asarray(Image.open(picture).convert("RGB"))
        (probabilities,) = session.run(["probabilities"], {"pictures": pixels[None]})
        best, probability = run.classifier().predict(picture, top=1)[0]
        assert names[probabilities[0].argmax()] == best
        assert probabilities.max() == pytest.approx(probability, abs=1e-5)


@pytest.mark.filterwarnings("ignore:calibration= has")
def test_int8_is_calibrated_on_the_training_images(
    run: Run, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    assert main(["export", str(run.folder), "--to", str(path), "--precision", "int8", "--preprocessing"]) == 0
    out, _ = capsys.readouterr()
    assert "2 of 2\xa0layers int8; checked in ONNX Runtime on" in out
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    pictures = sorted(source.rglob("*.png"))[::5]
    pixels = [np.asarray(Image.open(picture).convert("RGB")) for picture in pictures]
    found = [session.run(None, {"pictures": one[None]})[0].argmax() for one in pixels]
    names = run.classifier().names
    wanted = [names.index(run.classifier().predict(picture, top=1)[0][0]) for picture in pictures]
    assert np.mean(np.array(found) == wanted) >= 0.9
    given = svertka.export(run, tmp_path / "given.onnx", precision="int8", calibration=[source], images=pictures[:9])
    assert given.int8 is not None
    assert (given.images, given.int8.int8_layers) == (9, 2)
    assert given.int8.float_agreement >= 0.9


def test_given_pictures_are_checked_instead(run: Run, kinds: dict[str, Path], tmp_path: Path) -> None:
    folder = next(iter(kinds.values())).parent
    assert svertka.export(run, tmp_path / "a.onnx", images=[folder]).images == len(kinds)
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"can be read \(.*bad.png: not an image"):
        svertka.export(run, tmp_path / "b.onnx", images=[tmp_path / "bad.png"])
    with pytest.raises(DataError, match="nowhere.png: no such file"):
        svertka.export(run, tmp_path / "b.onnx", images=[tmp_path / "nowhere.png"])
    assert not (tmp_path / "b.onnx").exists()


def test_a_file_that_differs_is_not_left_behind(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an older one")
    from svertka.exporters import onnx

    monkeypatch.setattr(onnx, "LOGIT_TOLERANCE", 0.0)
    with pytest.raises(ExportMismatchError, match="no file was written"):
        svertka.export(run, path, overwrite=True)
    assert path.read_bytes() == b"an older one"
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]


def test_a_full_disk_leaves_nothing(
    run: Run, tmp_path: Path, small_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    with small_disk(1000), pytest.raises(StorageError):
        svertka.export(run, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_for_publishing(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run.folder), "--to", f"{tmp_path}/v1.0/"]) == 0
    assert capsys.readouterr().out.startswith(str(tmp_path / "v1.0"))
    published, own = Classifier.load(tmp_path / "v1.0").config, run.classifier().config
    assert published.with_calibration(None) == own.with_calibration(None)
    # The metadata of a safetensors file are in no fixed order, and so neither is the hash of the weights.
    assert published.calibration is not None
    assert own.calibration is not None
    assert published.calibration.model_dump(exclude={"weights_hash"}) == own.calibration.model_dump(
        exclude={"weights_hash"}
    )
    assert main(["export", str(run.folder), "--to", f"{tmp_path}/v1.0"]) == 0  # again, the same
    assert main(["export", f"{tmp_path}/v1.0", "--to", f"{tmp_path}/v2/"]) == 0
    assert main(["predict", f"{tmp_path}/v2", str(next(Path(run.settings()["source"]).rglob("*.png")))]) == 0


@pytest.mark.parametrize(
    ("to", "options", "sentence"),
    [
        ("model.pt", {}, "model.pt is no ONNX file, page or folder; end it in .onnx, .html or /"),
        ("x/", {"preprocessing": True}, "x/ is a folder, which has weights and no graph to check or to extend"),
        ("RUN", {}, "is a run itself; choose another folder"),
        (
            "x/",
            {"precision": "int8"},
            "x/ is a folder, which has float weights; for int8 name a file that ends",
        ),
        ("x.onnx", {"precision": "bf16"}, "an ONNX file cannot have precision=bf16; use fp32 or int8"),
        ("x.onnx", {"precision": "int16"}, "an ONNX file cannot have precision=int16; use fp32 or int8"),
        ("x.html", {"precision": "bf16"}, "a page cannot have precision=bf16; use int16, fp32 or int8"),
        ("x.html", {"preprocessing": True}, "x.html is a page, which always includes the preprocessing; leave it out"),
        ("x.onnx", {"calibration": ["a.png"]}, "calibration= is read only for an ONNX file in int8; leave it out"),
    ],
)
def test_what_cannot_be_is_one_sentence(run: Run, to: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        svertka.export(run, str(run.folder) if to == "RUN" else to, **options)


def test_without_pictures_it_asks_for_some(run: Run, tmp_path: Path) -> None:
    svertka.export(run, tmp_path / "alone/")
    with pytest.raises(UsageError, match=r"name images to check the file on: svertka export .*alone IMAGE\.\.\. --to"):
        svertka.export(tmp_path / "alone", tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="^int8 is calibrated on images, and .*alone is no run whose training images"):
        svertka.export(tmp_path / "alone", tmp_path / "model.onnx", precision="int8")
    with pytest.raises(DataError, match="^none of the calibration images can be read .*gone.png: no such file"):
        svertka.export(run, tmp_path / "model.onnx", precision="int8", calibration=[tmp_path / "gone.png"])
    shutil.copytree(run.folder, tmp_path / "moved")
    settings = json.loads((tmp_path / "moved" / "training.json").read_text())
    (tmp_path / "moved" / "training.json").write_text(json.dumps(settings | {"source": str(tmp_path / "gone")}))
    with pytest.raises(DataError, match=r"was trained on are gone \(there is no folder .*gone.*\); name others"):
        svertka.export(tmp_path / "moved", tmp_path / "model.onnx")


def test_a_missing_package_is_one_sentence(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
        return real(name, *rest, **more)

    monkeypatch.delitem(sys.modules, "svertka.exporters.onnx", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"onnxruntime is not installed; pip install 'svertka\[onnx\]'"):
        svertka.export(run, tmp_path / "model.onnx")
