"""Whatever a public function is given, it raises SvertkaError, TypeError or ValueError, or it works."""

import inspect
import itertools
import os
import pickle
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import svertka
from svertka import conv, inspection
from svertka.classifier import Classifier, Config
from svertka.data.preprocessing import Preprocess
from svertka.errors import SvertkaError
from svertka.models import registry

ALLOWED = (SvertkaError, TypeError, ValueError)
INPUTS = 300  # in `make test`; `make test-full` tries them all
SHARDS = 6  # so that processes share them

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, digit_folder: Path) -> Path:
    """A folder with two untrained runs "run" and "other", an image "image.png", and "photos", in which all goes on."""
    root = tmp_path_factory.mktemp("bad-input")
    names = ("one", "two", "three", "four")
    for seed, name in enumerate(("run", "other")):
        torch.manual_seed(seed)
        preprocess = Preprocess(size=28, resize=28, mean=(0.5,), std=(0.25,))
        Classifier(
            registry.find_model("lenet5").build(4, 1, 28), Config(model="lenet5", names=names, preprocess=preprocess)
        ).save(root / name)
    for name in names:
        (root / "photos" / name).mkdir(parents=True)
        for image in sorted((digit_folder / name).iterdir())[:6]:
            (root / "photos" / name / image.name).write_bytes(image.read_bytes())
    (root / "image.png").write_bytes(image.read_bytes())
    (root / "empty").mkdir()
    (root / "empty.png").touch()
    (root / "text.csv").write_text("nothing,of,this\n1,2,3\n")
    (root / "pickle.pth").write_bytes(pickle.dumps({"a": 1}))
    os.mkfifo(root / "pipe")
    (root / "loop").symlink_to("loop")
    # Links, so that nothing can put a file into the place of a device.
    (root / "zero").symlink_to("/dev/zero")
    (root / "full").symlink_to("/dev/full")
    return root


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3)
    ).eval()


def _stop_serving(_address: str) -> None:
    """Stop a server: other calls save runs under the names that `serve` is given."""
    signal.raise_signal(signal.SIGINT)


def public_calls(root: Path) -> dict[str, Call]:
    """Every public function and method with arguments that are right, by name."""
    run, photos, image = str(root / "run"), str(root / "photos"), str(root / "image.png")
    x, network = torch.rand(2, 3, 16, 16), _network()
    classifier, whole = svertka.Classifier.load(run), svertka.Run(run)
    optimized = svertka.optimize(network, x[:1])
    one = {"threads": 1}
    training = one | {"model": "lenet5", "epochs": 1, "size": 28, "batch_size": 8, "cache": False, "val": 0.3}
    calls: dict[str, Call] = {
        "accelerate": (svertka.accelerate, (network,), {}),
        "restore": (svertka.restore, (network,), {}),
        "check": (svertka.check, (photos,), {}),
        "compare": (svertka.compare, ([run, str(root / "other")], photos), one),
        "evaluate": (svertka.evaluate, (run, photos), one),
        "export": (svertka.export, (run, str(root / "model.onnx")), {}),
        "locate": (svertka.locate, (run, image), one),
        "look": (svertka.look, (run, photos), one | {"layers": ["features.0"], "units": 1, "images": 1}),
        "optimize": (svertka.optimize, (network, x), {}),
        "predict": (svertka.predict, (run, image), one),
        "resume": (svertka.resume, (run,), {}),
        "ablate": (svertka.ablate, (run, photos), one | {"layers": ["c1"], "images": 4}),
        "calibrate": (svertka.calibrate, (run,), one | {"new": photos}),
        "compare_units": (svertka.compare_units, (run, str(root / "other"), photos), one | {"images": 4}),
        "list_models": (svertka.list_models, ("lenet5",), {}),
        "optimize_run": (svertka.optimize_run, (run, photos), one),
        "summary": (svertka.summary, (network, 16), {}),
        "tune": (svertka.tune, (), one | {"shape": [1, 2, 4, 4], "weight": [2, 2, 3, 3]}),
        "Recipe": (svertka.Recipe, (), {"epochs": 2, "lr": 0.1}),
        "Recipe.with_changes": (svertka.Recipe().with_changes, (), {"epochs": 2, "lr": 0.1}),
        "serve": (svertka.serve, (str(root / "no-run-is-here"),), {"port": 0, "ready": _stop_serving} | one),
        "suggest": (svertka.suggest, (run, photos), one | {"count": 2}),
        "similar": (svertka.similar, (run, image, photos), one),
        "shard": (svertka.shard, (photos, str(root / "shards")), one),
        "extend": (svertka.extend, (run, photos), one | {"output": str(root / "extended")}),
        "train": (svertka.train, (photos,), training),
        "Run": (svertka.Run, (run,), {}),
        "Run.classifier": (whole.classifier, (), {}),
        "Run.settings": (whole.settings, (), {}),
        "Run.history": (whole.history, (), {}),
        "Run.result": (whole.result, (), {}),
        "Classifier.load": (svertka.Classifier.load, (run,), {}),
        "Classifier.wrap": (svertka.Classifier.wrap, (classifier.network,), {"preprocess": classifier.preprocess}),
        "Classifier.open": (svertka.Classifier.open, (run,), {}),
        "Classifier.require_single_label": (classifier.require_single_label, ("this",), {}),
        "Classifier.require_names": (classifier.require_names, ("this",), {}),
        "Classifier.describe": (classifier.describe, (torch.tensor([0.1, 0.2, 0.3, 0.4]),), {}),
        "Classifier.set_quantile": (classifier.set_quantile, (0.9,), {}),
        "Classifier.probabilities_and_unknown_scores": (
            classifier.probabilities_and_unknown_scores,
            ([torch.rand(1, 28, 28)],),
            {},
        ),
        "Classifier.save": (classifier.save, (str(root / "saved"),), {}),
        "Classifier.optimized_for": (classifier.optimized_for, (2,), {}),
        "Classifier.predict": (classifier.predict, (image,), {}),
        "Classifier.rank": (classifier.rank, (torch.tensor([0.1, 0.2, 0.3, 0.4]),), {}),
        "Classifier": (svertka.Classifier, (classifier.network, classifier.config), {}),
        "Classifier.require_finite": (classifier.require_finite, (torch.tensor([0.1, 0.2, 0.3, 0.4]),), {}),
        "Classifier.probabilities": (classifier.probabilities, ([torch.rand(1, 28, 28)],), {}),
        "Optimized": (optimized, (x[:1],), {}),
        "Optimized.save": (optimized.save, (str(root / "optimized.safetensors"),), {}),
        "Optimized.load": (svertka.Optimized.load, (str(root / "run" / "model.safetensors"),), {}),
        "conv2d": (conv.conv2d, (x, torch.rand(4, 3, 3, 3)), {}),
        "conv_transpose2d": (conv.conv_transpose2d, (x, torch.rand(3, 4, 3, 3)), {}),
        "inspection.list_layers": (inspection.list_layers, (network, (1, 3, 16, 16)), {}),
        "inspection.layer_outputs": (inspection.layer_outputs, (network, x, ["0"]), {}),
        "inspection.project": (inspection.project, (network, x, "3", 1), {}),
        "inspection.to_images": (inspection.to_images, (torch.rand(2, 3, 8, 8),), {}),
        "inspection.get_first_layer_filters": (inspection.get_first_layer_filters, (network,), {}),
        "inspection.top_patches": (inspection.top_patches, (network, x, ["0"]), {"count": 2}),
        "inspection.guided_backpropagation": (inspection.guided_backpropagation, (network, x, 1), {}),
        "inspection.grad_cam": (inspection.grad_cam, (network, x, 1), {}),
        "inspection.occlusion": (inspection.occlusion, (network, x, 1, 8, 8), {}),
    }
    return calls


# These are only raised or returned.
ELSEWHERE = {"SvertkaError", "Repeats"}


def names_with_arguments() -> set[str]:
    """Return the names of the public functions, classes and methods of the package, as keys of `public_calls`."""
    found = {name: getattr(svertka, name) for name in svertka.__all__ if name not in ELSEWHERE}
    found |= {f"inspection.{name}": getattr(inspection, name) for name in inspection.__all__}
    for cls in (svertka.Classifier, svertka.Optimized, svertka.Run, svertka.Recipe):
        found |= {f"{cls.__name__}.{name}": getattr(cls, name) for name in vars(cls) if not name.startswith("_")}
    for name, one in list(found.items()):
        if not callable(one) or not set(inspect.signature(one).parameters) - {"self"}:
            del found[name]
    return set(found) - {"Optimized.forward"}  # by calling it


def test_every_public_name_is_called_with_bad_values(workspace: Path) -> None:
    assert names_with_arguments() <= set(public_calls(workspace))


def bad_values(root: Path) -> dict[str, Any]:
    """Values that are wrong somewhere, by name: of other types, beyond ranges, paths that lead nowhere or are traps."""

    class Hostile(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("a network's own fault")

    return {
        "none": None,
        "object": object(),
        "true": True,
        "zero": 0,
        "minus one": -1,
        "one": 1,
        "huge": 10**400,
        "64 bits": 2**63,
        "nan": float("nan"),
        "inf": float("inf"),
        "float": 0.5,
        "complex": 1j,
        "empty": "",
        "word": "frobnicate",
        "nul": "a\0b",
        "no user": "~nosuchuser/x",
        "long name": "x" * 300,
        "long path": "x/" * 3000,
        "many digits": "9" * 5000,
        "surrogate": "caf\udce9",
        "escape": "\x1b[2J\n",
        "colon": "resnet18:nothing",
        "bytes": b"photos",
        "nothing": [],
        "no keys": {},
        "numbers": [1, -1, 10**30],
        "nested": [[["x"]]],
        "mixed": ["x", None, 3.5],
        "function": len,
        "class": nn.Conv2d,
        "module": Hostile().eval(),
        "empty module": nn.Sequential(),
        "missing": root / "missing" / "file.png",
        "folder": root / "empty",
        "empty file": root / "empty.png",
        "csv": root / "text.csv",
        "pickle": root / "pickle.pth",
        "pipe": root / "pipe",
        "loop": root / "loop",
        "device file": root / "zero",
        "full": root / "full",
        "beyond a file": root / "image.png" / "x",
        "scalar": torch.tensor(1.0),
        "no images": torch.rand(0, 3, 16, 16),
        "no channels": torch.rand(2, 0, 16, 16),
        "integers": torch.ones(2, 3, 16, 16, dtype=torch.int64),
        "half": torch.rand(2, 3, 16, 16).half(),
        "complex maps": torch.rand(2, 3, 16, 16) * 1j,
        "meta": torch.rand(2, 3, 16, 16, device="meta"),
        "sparse": torch.rand(2, 3, 16, 16).to_sparse(),
        "nested tensor": torch.nested.nested_tensor([torch.rand(3, 16, 16)]),
        "quantized": torch.quantize_per_tensor(torch.rand(2, 3, 16, 16), 0.1, 0, torch.quint8),
        "double": torch.rand(2, 3, 16, 16).double(),
        "tensors": [torch.rand(1, 28, 28), torch.rand(3, 28, 28)],
        "complex tensors": [torch.rand(1, 28, 28) * 1j],
        "bytes in tensors": [torch.zeros(1, 28, 28, dtype=torch.uint8)],
        "nan maps": torch.full((2, 3, 16, 16), float("nan")),
        "five axes": torch.rand(1, 2, 3, 4, 5),
        "vector": torch.rand(5),
        "expanded": torch.rand(1).expand(2, 3, 16, 16),
        "array": np.zeros((4, 4, 7), dtype=np.uint8),
        "objects": np.array([None, "x"], dtype=object),
        "text array": np.array(["a", "b"]),
        "no pixels": np.zeros((0, 0, 3), dtype=np.uint8),
    }


def bad_calls(root: Path) -> Iterator[tuple[str, Call]]:
    """Every public function with one argument, each in turn, exchanged for each bad value."""
    for name, (function, given, options) in public_calls(root).items():
        names = [
            one.name
            for one in inspect.signature(function).parameters.values()
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) and one.name != "ready"
        ]
        places: list[int | str] = [*range(len(given)), *(one for one in names[len(given) :])]
        if name == "Optimized":
            places = [0]
        for place, (title, value) in itertools.product(places, bad_values(root).items()):
            label = f"{name}, {names[place] if isinstance(place, int) and place < len(names) else place}: {title}"
            if isinstance(place, int):
                yield label, (function, (*given[:place], value, *given[place + 1 :]), options)
            else:
                yield label, (function, given, options | {place: value})


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.filterwarnings("ignore")  # of PyTorch, about what it is given
@pytest.mark.usefixtures("quiet")
def test_only_errors_that_say_what_is_wrong(
    shard: int,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    large_count: Callable[[int, int], int],
) -> None:
    monkeypatch.chdir(workspace)
    every = list(bad_calls(workspace))
    assert len(every) > 20 * INPUTS
    random.Random(19).shuffle(every)
    wrong = []
    for label, (function, given, options) in every[: large_count(INPUTS, len(every))][shard::SHARDS]:
        try:
            function(*given, **options)
        except ALLOWED:
            pass
        except Exception as error:
            wrong.append(f"{label}: {type(error).__name__}: {str(error)[:100]}")
    assert wrong == []
