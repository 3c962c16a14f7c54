import json
import os
import py_compile
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import svertka
from svertka.classifier import Classifier
from svertka.errors import RunError, SvertkaError, UsageError
from svertka.models.external_builder import GRAPH, import_function
from svertka.serving.served_model import ServedModel
from svertka.tensor_files import read_tensors_and_header

SOURCE = """
import pathlib
pathlib.Path(__file__).with_name("imported").touch()
from torch import nn

def build(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes),
    )
"""


def own_network() -> nn.Module:
    """Return the network of SOURCE with ten classes."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 30 images of two classes that differ in brightness."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number, name in enumerate("ab"):
        (folder / name).mkdir()
        for image in range(15):
            pixels = (random.random((40, 40, 3)) * 100 + 100 * number).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{image}.png")
    return folder


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a network and return the run folder."""

    def train(model: Any, name: str, **options: Any) -> Path:
        run = tmp_path_factory.mktemp("runs") / name
        svertka.train(photos, model=model, output=run, size=64, epochs=2, val=0.3, threads=1, **options)
        return run

    return train


@pytest.fixture(scope="module")
def of_module(trained: Callable[..., Path]) -> Path:
    """A run of a module without an importable builder."""
    torch.manual_seed(0)
    return trained(own_network(), "module")


@pytest.fixture(scope="module")
def of_file(trained: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a function in a file."""
    file = tmp_path_factory.mktemp("code") / "own.py"
    file.write_text(SOURCE)
    return trained(f"{file}:build", "file")


def forget(run: Path) -> Path:
    """Forget that the builder of `run` was imported; return the file that importing it writes."""
    target = json.loads((run / "config.json").read_text())["builder"]["target"]
    for name in [name for name in sys.modules if name.startswith("svertka_builder_")]:
        del sys.modules[name]
    mark = Path(target.rpartition(":")[0]).with_name("imported")
    mark.unlink(missing_ok=True)
    return mark


COMMANDS: dict[str, Callable[..., Any]] = {
    "evaluate": lambda run, photos, folder, **consent: svertka.evaluate(run, photos, threads=1, **consent),
    "predict": lambda run, photos, folder, **consent: svertka.predict(
        run, photos / "a" / "0.png", threads=1, **consent
    ),
    "locate": lambda run, photos, folder, **consent: svertka.locate(run, photos / "a" / "0.png", threads=1, **consent),
    "look": lambda run, photos, folder, **consent: svertka.look(
        run, photos, units=1, images=4, output=folder / "atlas", threads=1, **consent
    ),
    "export": lambda run, photos, folder, **consent: svertka.export(
        run, folder / "model.onnx", images=[photos / "a" / "0.png"], **consent
    ),
    "compare": lambda run, photos, folder, **consent: svertka.compare(
        [run, "efficientnet_lite0:bundled"] if not consent else [run, run.parent / run.name],
        photos,
        threads=1,
        **consent,
    ),
    "serve": lambda run, photos, folder, **consent: ServedModel(run, torch.device("cpu"), **consent).warm_up(),
    "train": lambda run, photos, folder, **consent: svertka.train(
        photos, weights=run, epochs=1, output=folder / "next", threads=1, **consent
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["of_module", "of_file"])
def test_nothing_is_imported_without_consent(
    command: str, kind: str, photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(kind)
    mark = forget(run) if kind == "of_file" else tmp_path / "none"
    with pytest.raises(UsageError, match=r"builds its network .*; if you trust it, give --trust-builder \(trust_"):
        COMMANDS[command](run, photos, tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("compare", "train")])
@pytest.mark.parametrize("kind", ["of_module", "of_file"])
def test_every_command_runs_with_consent(
    command: str, kind: str, photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    COMMANDS[command](request.getfixturevalue(kind), photos, tmp_path, trust_builder=True)


def test_a_run_of_a_file_is_the_start_of_another(of_file: Path, photos: Path, tmp_path: Path) -> None:
    COMMANDS["train"](of_file, photos, tmp_path, trust_builder=True)
    assert Classifier.load(tmp_path / "next", trust_builder=True).config.model == "own.py:build"


HOSTILE = ["os:system", "timm.x:build", "subprocess:check_output", "builtins:exec", "../evil.py:build", "evil:build"]


@pytest.mark.parametrize("target", HOSTILE)
def test_a_hostile_config_imports_nothing(of_file: Path, tmp_path: Path, target: str) -> None:
    marker = f"import pathlib; pathlib.Path({str(tmp_path / 'imported')!r}).touch()"
    for name in ("evil.py", "timm.py"):
        (tmp_path / name).write_text(marker)
    (tmp_path / "run").mkdir()
    config = json.loads((of_file / "config.json").read_text())
    config["builder"]["target"] = target
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    (tmp_path / "run" / "model.safetensors").write_bytes((of_file / "model.safetensors").read_bytes())
    before = set(sys.modules)
    with pytest.raises(UsageError, match=re.escape(f"builds its network with {target}, whose code is run")):
        Classifier.load(tmp_path / "run")
    assert not (tmp_path / "imported").exists()
    assert set(sys.modules) <= before | {name for name in sys.modules if name.startswith(("svertka", "torch"))}


def test_a_graph_that_is_no_graph_is_damaged(of_module: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "run" / name).write_bytes((of_module / name).read_bytes())
    with pytest.raises(SvertkaError, match=r"graph.pt2 cannot be read \(no such file or directory\)"):
        Classifier.load(tmp_path / "run", trust_builder=True)
    (tmp_path / "run" / GRAPH).write_bytes(b"no graph")
    with pytest.raises(SvertkaError, match=r"graph.pt2 is damaged \(.*\); copy it back from the run"):
        Classifier.load(tmp_path / "run", trust_builder=True)


def test_a_loaded_graph_computes_what_the_module_does(of_module: Path) -> None:
    """The oracle is the module itself with the weights of the run."""
    classifier, images = Classifier.load(of_module, trust_builder=True), torch.rand(5, 3, 64, 64)
    network = own_network()
    network[8] = nn.Linear(16, 2)  # type: ignore[operator]
    network.load_state_dict(classifier.network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(classifier.network(images), network.eval()(images), rtol=0, atol=1e-6)
    assert (of_module / GRAPH).stat().st_size < 200_000  # without weights


def test_a_changed_builder_is_a_warning(of_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(json.loads((of_file / "config.json").read_text())["builder"]["target"].rpartition(":")[0])
    Classifier.load(of_file, trust_builder=True)
    assert "has changed" not in capsys.readouterr().err
    try:
        file.write_text(SOURCE + "# another line\n")
        Classifier.load(of_file, trust_builder=True)
    finally:
        file.write_text(SOURCE)
    assert f"own.py:build or a layer that it uses has changed since {of_file} was trained" in capsys.readouterr().err


def test_a_builder_that_no_longer_fits_the_weights_is_to_be_restored(of_file: Path) -> None:
    file = Path(json.loads((of_file / "config.json").read_text())["builder"]["target"].rpartition(":")[0])
    try:
        file.write_text(SOURCE.replace("16", "24"))
        with pytest.raises(RunError, match=r"tensors differ: .*; restore the code of .*own.py:build as it was when"):
            Classifier.load(of_file, trust_builder=True)
    finally:
        file.write_text(SOURCE)


def test_a_builder_is_not_read_from_a_compiled_copy_that_looks_current(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    for channels in ("16", "24"):
        file.write_text(SOURCE.replace("16", channels))  # of the same size
        os.utime(file, (1e9, 1e9))
        if channels == "16":
            py_compile.compile(str(file))
    assert import_function(f"{file}:build")(2)[3].out_channels == 24


@pytest.mark.parametrize(("unfreeze", "frozen"), [("head", "0. 1. 3."), ("last", "0. 1."), ("2", "")])
def test_layers_below_the_cut_keep_their_weights(trained: Callable[..., Path], unfreeze: str, frozen: str) -> None:
    network = own_network()
    kept = Classifier.load(trained(network, unfreeze, unfreeze=unfreeze), trust_builder=True).network.state_dict()
    for name, tensor in network.state_dict().items():
        if name[:2] != "8.":
            assert torch.equal(kept[name], tensor) == (name[:2] in frozen.split()), name


def test_a_module_is_not_changed_by_training(trained: Callable[..., Path]) -> None:
    network = own_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trained(network, "unchanged")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert len(network) == 9  # type: ignore[arg-type]


def test_an_interrupted_run_of_a_module_continues_with_the_module(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, options = own_network(), {"size": 64, "epochs": 2, "val": 0.3, "threads": 1}
    whole = svertka.train(photos, model=network, output=tmp_path / "whole", **options)
    run = svertka.train(photos, model=network, output=tmp_path / "run", **options)
    run.report.unlink()
    with pytest.raises(UsageError, match=r"has no importable builder.*svertka.resume\(.*, model=…\)"):
        svertka.resume(run)
    svertka.resume(run, model=network)
    ours, theirs = read_tensors_and_header(run.weights)[0], read_tensors_and_header(whole.weights)[0]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_commands_take_a_classifier_or_a_module(of_module: Path, photos: Path, tmp_path: Path) -> None:
    classifier = Classifier.load(of_module, trust_builder=True)
    by_path = svertka.evaluate(of_module, photos, threads=1, trust_builder=True)
    by_object = svertka.evaluate(classifier, photos, threads=1)
    assert by_object.to_dict() == by_path.to_dict()  # training images are left out, too
    network = own_network().eval()
    (prediction,) = svertka.predict(network, photos / "a" / "0.png", top=10, threads=1)
    assert sorted(label["name"] for label in prediction["labels"]) == [str(one) for one in range(10)]
    both = svertka.compare([classifier, Classifier.load(of_module, trust_builder=True)], photos, threads=1)
    assert both.runs[1].difference is not None
    ServedModel(network, torch.device("cpu")).warm_up()
    svertka.export(classifier, tmp_path / "classifier.onnx", images=[photos / "a" / "0.png"])
    with pytest.raises(UsageError, match=r"<Sequential> has no images of its own"):
        svertka.look(network, units=1)


def test_a_wrapped_network_shares_weights_and_is_not_changed(photos: Path) -> None:
    network = own_network().train()
    classifier = Classifier.wrap(network, names=list("abcdefghij"))
    before = classifier.predict(str(photos / "a" / "0.png"), top=1)
    assert network.training
    with torch.no_grad():
        network[8].bias[3] += 100  # type: ignore[index, union-attr, operator]
    assert before[0][0] in "abcdefghij"
    assert classifier.predict(str(photos / "a" / "0.png"), top=1)[0][0] == "d"
    with pytest.raises(UsageError, match="Sequential computes scores for 10 classes; 2 names are given"):
        Classifier.wrap(network, names=["a", "b"])


def test_a_published_folder_has_a_graph_and_no_path(of_file: Path, tmp_path: Path) -> None:
    svertka.export(of_file, tmp_path / "hub/", trust_builder=True)
    text = (tmp_path / "hub" / "config.json").read_text()
    assert json.loads(text)["builder"]["target"] == GRAPH
    assert str(of_file.parent.parent) not in text
    there, here = (Classifier.load(folder, trust_builder=True).network for folder in (tmp_path / "hub", of_file))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(there(images), here(images), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def of_bicubic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of a network whose `pretrained_cfg` names bicubic resizing, and its images, larger than its input."""
    folder, random = tmp_path_factory.mktemp("bicubic"), np.random.default_rng(3)
    for number, name in enumerate("ab"):
        (folder / "photos" / name).mkdir(parents=True)
        for image in range(12):
            coarse = (random.random((30, 40, 3)) * 100 + 100 * number).astype(np.uint8)
            large = Image.fromarray(coarse).resize((120, 90), Image.Resampling.NEAREST)
            large.save(folder / "photos" / name / f"{image}.png")
    torch.manual_seed(1)
    network = own_network()
    settings = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.2,) * 3, "crop_pct": 0.8}
    network.pretrained_cfg = settings | {"interpolation": "bicubic"}  # type: ignore[assignment]
    run = folder / "run"
    svertka.train(folder / "photos", model=network, output=run, epochs=3, val=0.3, threads=1)
    return run, folder / "photos"


def test_every_command_resizes_as_the_network_expects(of_bicubic: tuple[Path, Path], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run, photos = of_bicubic
    classifier = Classifier.load(run, trust_builder=True)
    preprocess = classifier.preprocess
    assert (preprocess.interpolation, preprocess.size, preprocess.resize) == ("bicubic", 64, 80)
    assert json.loads((run / "config.json").read_text())["preprocess"]["interpolation"] == "bicubic"
    image = photos / "a" / "3.png"
    # Pillow's own bicubic filter, and the crop by hand
    square = Image.open(image).crop((15, 0, 105, 90)).resize((80, 80), Image.Resampling.BICUBIC).crop((8, 8, 72, 72))
    pixels = torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1).float()
    with torch.no_grad():
        expected = classifier.network((pixels / 255 - 0.5)[None] / 0.2).softmax(1)[0]
    other = classifier.config.model_copy(
        update={"preprocess": preprocess.model_copy(update={"interpolation": "bilinear"})}
    )
    plain = Classifier(classifier.network, other, classifier.model)

    def scores(answer: Any) -> list[float]:
        found = {label["name"]: label["probability"] for label in answer[0]["labels"]}
        return [found["a"], found["b"]]

    predicted = scores(svertka.predict(classifier, image, threads=1))
    assert predicted == pytest.approx(expected.tolist(), abs=2e-3)
    assert abs(predicted[0] - scores(svertka.predict(plain, image, threads=1))[0]) > 1e-4
    served = ServedModel(classifier, torch.device("cpu"))
    of_server, _ = served.answer([served.prepared(np.asarray(Image.open(image)))])[0]
    assert of_server.tolist() == pytest.approx(predicted, abs=1e-5)
    only = tmp_path / "only"
    for name in "ab":
        (only / name).mkdir(parents=True)
    (only / "a" / "3.png").write_bytes(image.read_bytes())
    (only / "b" / "3.png").write_bytes((photos / "b" / "3.png").read_bytes())
    judged = svertka.evaluate(classifier, only, threads=1, include_training=True)
    second = scores(svertka.predict(classifier, photos / "b" / "3.png", threads=1))
    assert judged.loss == pytest.approx(-np.log([predicted[0], second[1]]).mean(), abs=1e-5)
    svertka.export(classifier, tmp_path / "model.onnx", preprocessing=True, images=[image])
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (of_graph,) = session.run(["probabilities"], {session.get_inputs()[0].name: np.asarray(Image.open(image))[None]})
    assert of_graph[0].tolist() == pytest.approx(predicted, abs=2e-3)


def test_a_network_without_a_builder_is_trained_with_boxes(tmp_path: Path) -> None:
    random, rows = np.random.default_rng(0), ["path,label,xmin,ymin,xmax,ymax"]
    for number, name in enumerate("ab"):
        (tmp_path / "scenes" / name).mkdir(parents=True)
        for image in range(6):
            pixels = (random.random((80, 80, 3)) * 60).astype(np.uint8)
            pixels[20:60, 20:60, number] += 180
            Image.fromarray(pixels).save(tmp_path / "scenes" / name / f"{image}.png")
            rows.append(f"{name}/{image}.png,{name},20,20,60,60")
    (tmp_path / "boxes.csv").write_text("\n".join(rows))
    torch.manual_seed(0)
    options: dict[str, Any] = {"model": own_network(), "size": 48, "unfreeze": "head", "epochs": 2, "val": 0.3}
    run = tmp_path / "run"
    svertka.train(tmp_path / "scenes", boxes=tmp_path / "boxes.csv", output=run, threads=1, **options)
    of_patches = Classifier.load(run, of_patches=True, trust_builder=True)
    whole = Classifier.load(run, trust_builder=True)
    assert (of_patches.names, whole.names) == (("a", "b", "background"), ("a", "b"))
    images = torch.randn(3, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(whole.network(images), of_patches.network(images)[:, :2])
    judged = svertka.evaluate(run, tmp_path / "scenes", part="val", threads=1, trust_builder=True)
    assert judged.top1_error == json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["val_error"]
    located = svertka.locate(run, tmp_path / "scenes" / "a" / "0.png", threads=1, trust_builder=True)
    assert located
