"""What was trained is what is served: the same picture by every way there is."""

import base64
import io
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

import svertka
from svertka.classifier import Classifier, Config
from svertka.cli.app import main
from svertka.compiler.accuracy_check import TOLERANCE
from svertka.data.band_ranges import BandRanges, BandType
from svertka.data.image_io import decode_to_pixels
from svertka.data.preprocessing import Fit, Preprocess
from svertka.data.rgb_conversion import shades_to_16_bit
from svertka.inspection.atlas.classifier_and_images import open_atlas_inputs
from svertka.models import registry
from svertka.models.head_kinds import head_path

pytest.importorskip("onnxruntime")
pytest.importorskip("fastapi")
import onnxruntime
from onnx import TensorProto, helper

from svertka.exporters.onnx import LOGIT_TOLERANCE, convert_to_onnx, write_metadata
from svertka.serving.served_model import ServedModel

CPU = torch.device("cpu")
NAMES = ("cat", "dog", "имя", "a\nb", "<b>")
# One of each family, as small as it may be; the last ones take long to export.
FAMILIES = [
    ("resnet20", 32, 36, 3),
    ("lenet5", 32, 28, 1),
    ("squeezenet1_1", 48, 56, 3),
    ("mlp", 28, 28, 1),
    ("airbench", 32, 32, 3),
    ("alexnet", 67, 72, 3),
    ("alexnet_owt", 64, 72, 3),
    ("zfnet", 64, 72, 3),
    ("vgg11_lrn", 32, 36, 3),
    ("vgg11_bn", 32, 36, 3),
    ("googlenet", 64, 72, 3),
    ("googlenet_bn", 64, 72, 3),
    ("inception_v3", 75, 86, 3),
    ("inception_v4", 75, 86, 3),
    ("inception_resnet_v2", 75, 86, 3),
    ("resnet18", 64, 72, 3),
    ("resnet50", 64, 72, 3),
    ("plain18", 64, 72, 3),
    ("efficientnet_lite0", 64, 72, 3),
]
BY_DEFAULT = 1
ALIKE = ("lenet5", "squeezenet1_1", "alexnet", "alexnet_owt", "zfnet", "googlenet")  # take all pictures for one class


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, large_count: Callable[[int, int], int]) -> list[Path]:
    """Parts of real photographs in every kind: turned by EXIF, gray, CMYK, 16 bits, alpha, palette …"""
    random = np.random.default_rng(3)
    root = tmp_path_factory.mktemp("pictures")
    photographs = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    paths = []
    for number in range(large_count(20, 200)):
        width, height = random.integers(60, 300, 2).tolist()
        left, top = int(random.integers(640 - width)), int(random.integers(427 - height))
        part = photographs[number // 10 % 2].crop((left, top, left + width, top + height))
        turned = Image.Exif()
        turned[0x0112] = 2 + number // 10 % 7
        alpha = part.copy()
        alpha.putalpha(Image.linear_gradient("L").resize(part.size))
        deep = Image.fromarray(np.asarray(part.convert("L")).astype(np.uint16) * 257)
        ways: list[tuple[Image.Image, str, dict[str, Any]]] = [
            (part, "jpg", {"quality": 90}),
            (part, "jpg", {"exif": turned}),
            (part.convert("L"), "jpg", {}),
            (part.convert("CMYK"), "jpg", {}),
            (deep, "png", {}),
            (alpha, "png", {}),
            (part.convert("P"), "gif", {}),
            (part.convert("LA"), "png", {}),
            (part, "webp", {}),
            (part, "tif", {}),
        ]
        image, suffix, options = ways[number % 10]
        path = root / f"{number:03}.{suffix}"
        image.save(path, **options)
        paths.append(path)
    return paths


def spread_logits(classifier: Classifier, images: Sequence[torch.Tensor]) -> None:
    """Change the head so that these pictures are taken for several classes; as drawn, it has one for all of them.

    No more than float32 bears: what is nearly the same for all pictures cannot be spread without its rounding.
    """
    head = classifier.network.get_submodule(head_path(registry.find_model(classifier.config.model)))
    if not isinstance(head, torch.nn.Linear):
        return
    with torch.no_grad():
        logits = classifier.network(torch.stack(list(images)))
        scale = 2 / logits.std(0).clamp_min(1e-12)
        # Of all classes: the logits of one may be small since large terms cancel, and these are what is rounded.
        scale = torch.minimum(scale, 4 / logits.abs().amax()).clamp_max(100)
        head.weight.mul_(scale[:, None])
        if head.bias is None:
            return
        head.bias.copy_((head.bias - logits.mean(0)) * scale)


@pytest.mark.sample(1)
@pytest.mark.parametrize(("model", "size", "resize", "channels"), FAMILIES)
def test_a_picture_has_one_answer(
    made: Callable[..., Classifier],
    live: Callable[..., Any],
    pictures: list[Path],
    tmp_path: Path,
    large_count: Callable[[int, int], int],
    capsys: pytest.CaptureFixture[str],
    model: str,
    size: int,
    resize: int,
    channels: int,
) -> None:
    if model not in [name for name, *_ in FAMILIES][: large_count(BY_DEFAULT, len(FAMILIES))]:
        pytest.skip("all families: make test-full")
    classifier = made(model, size, resize, channels, NAMES)
    images = [classifier.preprocess(path) for path in pictures]
    spread_logits(classifier, images[:20])
    folder = tmp_path / "run"
    classifier.save(folder)

    with torch.inference_mode():
        logits = classifier.network(torch.stack(images)).numpy()
    unit = np.maximum(1, np.abs(logits).max(1))
    ordered = np.sort(logits, 1)
    margin = (ordered[:, -1] - ordered[:, -2]) / unit
    wanted = [NAMES[best] for best in logits.argmax(1)]
    assert len(set(wanted)) > 1 or model in ALIKE  # else nothing could be confused
    chances = torch.from_numpy(logits).softmax(1).numpy()

    # svertka predict
    assert main(["predict", str(folder), *map(str, pictures), "--json", "--top", "5", "--device", "cpu"]) == 0
    named = json.loads(capsys.readouterr().out)
    assert_same([entry["labels"] for entry in named], chances, wanted, margin, LOGIT_TOLERANCE)

    # the exported file, whole and with the preprocessing inside
    plain = onnxruntime.InferenceSession(
        convert_to_onnx(classifier).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = plain.run(None, {"images": torch.stack(images).numpy()})
    assert (np.abs(found - logits).max(1) <= LOGIT_TOLERANCE * unit).all()
    assert [NAMES[best] for best in found.argmax(1)] == wanted or margin.min() < LOGIT_TOLERANCE
    model = convert_to_onnx(classifier, preprocessing=True)
    seen = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", channels, size, size])
    model.graph.output.append(seen)
    inside = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    level = 1 / (255 * np.array(classifier.preprocess.std).reshape(-1, 1, 1))
    for path, image in zip(pictures, images, strict=True):
        # The same pixels: of a large JPEG svertka decodes a half or a quarter, as it is resized.
        (found, prepared) = inside.run(None, {"pictures": decode_to_pixels(path.read_bytes(), resize)[None]})
        # A network of chance may amplify what the resize rounds otherwise (test_entry.py); nothing else may differ.
        assert (np.abs(prepared[0] - image.numpy()) <= (2 + 1e-3) * level).all()
        with torch.inference_mode():
            expected = classifier.network(torch.from_numpy(prepared)).softmax(1).numpy()
        assert np.abs(found - expected).max() <= LOGIT_TOLERANCE

    # the server, which uses the optimized network
    with live(ServedModel(folder, CPU)) as server:
        entries = []
        for first in range(0, len(pictures), 50):
            some = [base64.b64encode(path.read_bytes()).decode() for path in pictures[first : first + 50]]
            answer = server.ask("POST", "/predict", json.dumps(some).encode(), {"Content-Type": "application/json"})
            entries += answer.json()
    assert_same([entry["labels"] for entry in entries], chances, wanted, margin, TOLERANCE)

    # svertka evaluate: each picture in the folder of what it was taken for; none may be wrong
    source = tmp_path / "source"
    for name, path, lead in zip(wanted, pictures, margin, strict=True):
        if lead > LOGIT_TOLERANCE:
            place = source / name.replace("\n", "_")
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    plainly = Classifier(
        classifier.network,
        classifier.config.model_copy(update={"names": tuple(one.replace("\n", "_") for one in NAMES)}),
    )
    plainly.save(folder)
    judged = svertka.evaluate(folder, source, device="cpu")
    assert judged.images > len(pictures) // 2
    assert judged.top1_error == 0


def assert_same(
    labels: list[list[dict[str, Any]]],
    chances: Any,
    wanted: list[str],
    margin: Any,
    tolerance: float,
) -> None:
    """Probabilities move by at most half of what logits do, and the best name only where it leads by less."""
    for given_, row, name, lead in zip(labels, chances, wanted, margin, strict=True):
        assert {one["name"]: one["probability"] for one in given_} == pytest.approx(
            dict(zip(NAMES, row.tolist(), strict=True)), abs=max(tolerance, 1e-6)
        )
        assert given_[0]["name"] == name or lead <= 2 * tolerance


WAYS = [("crop", (0, 1023)), ("pad", None), ("pad", (0, 4095)), ("squeeze", None), ("squeeze", (30_000, 31_000))]


@pytest.fixture(scope="module")
def wide_pictures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[int, int] | None], list[Path]]:
    """Wide and high parts of photographs, of 8 bits and of 16 that use the range."""

    def write(values: tuple[int, int] | None) -> list[Path]:
        root = tmp_path_factory.mktemp("wide")
        photograph = load_sample_image("china.jpg")
        low, high = values or (0, 65535)
        paths = []
        for number, (height, width) in enumerate([(40, 130), (130, 40), (50, 50), (20, 25), (60, 199), (90, 31)]):
            part = photograph[number * 30 :][:height, number * 40 :][:, :width]
            image = Image.fromarray(part)
            if number % 2 and values is not None:
                gray = np.asarray(image.convert("L")) / 255
                image = Image.fromarray((low + gray * (high - low)).astype(np.uint16))
            paths.append(root / f"{number}.png")
            image.save(paths[-1])
        return paths

    return write


@pytest.mark.sample(1)
@pytest.mark.parametrize(("fit", "values"), WAYS)
def test_every_way_to_a_square_and_to_8_bits_is_one(
    made: Callable[..., Classifier],
    live: Callable[..., Any],
    wide_pictures: Callable[[tuple[int, int] | None], list[Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fit: str,
    values: tuple[int, int] | None,
) -> None:
    made_of = made("mlp", 28, 28, 3, ("a", "b", "c"))
    preprocess = made_of.preprocess.model_copy(update={"fit": fit, "intensity_range": values})
    classifier = Classifier(made_of.network, made_of.config.model_copy(update={"preprocess": preprocess}))
    paths = wide_pictures(values)
    images = torch.stack([classifier.preprocess(path) for path in paths])
    spread_logits(classifier, list(images))
    folder = tmp_path / "run"
    classifier.save(folder)
    with torch.inference_mode():
        chances = classifier.network(images).softmax(1).numpy()
    wanted = [classifier.names[best] for best in chances.argmax(1)]
    assert len(set(wanted)) > 1

    def assert_right(found: Any, tolerance: float = LOGIT_TOLERANCE) -> None:
        rows = [{one["name"]: one["probability"] for one in entry["labels"]} for entry in found]
        got = np.array([[row[name] for name in classifier.names] for row in rows])
        assert np.abs(got - chances).max() <= max(tolerance, 1e-6)

    assert main(["predict", str(folder), *map(str, paths), "--json", "--device", "cpu"]) == 0
    assert_right(json.loads(capsys.readouterr().out))
    svertka.export(folder, tmp_path / "hub/")
    assert Classifier.load(tmp_path / "hub").preprocess == preprocess
    assert_right(svertka.predict(tmp_path / "hub", *paths, device="cpu"))

    session = onnxruntime.InferenceSession(convert_to_onnx(classifier, preprocessing=True).SerializeToString())
    for path, row in zip(paths, chances, strict=True):
        pixels = classifier.preprocess.read(path.read_bytes())
        (found,) = session.run(["probabilities"], {"pictures": shades_to_16_bit(pixels, values)[None]})
        assert np.abs(found[0] - row).max() < 0.05  # the resize may round otherwise by a level or two

    with live(ServedModel(folder, CPU)) as server:
        answers = [server.ask("POST", "/predict", path.read_bytes()).json() for path in paths]
    assert_right([entry for answer in answers for entry in answer], TOLERANCE)

    source = tmp_path / "source"
    for name, path in zip(wanted, paths, strict=True):
        (source / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, source / name)
    for _ in range(2):  # decoded, and then read from the disk
        judged = svertka.evaluate(folder, source, device="cpu")
        assert (judged.images, judged.top1_error) == (len(paths), 0)
    inputs = open_atlas_inputs(folder, source, images=None, device=CPU, threads=1, cache_limit=None)
    seen = {inputs.image_name(i).split("/")[-1]: inputs.network_inputs(np.array([i]))[0] for i in range(len(inputs))}
    for path, image in zip(paths, images, strict=True):
        torch.testing.assert_close(seen[path.name], image, rtol=0, atol=0)


class _Names:
    """A run, its file and its server, whose names change from case to case."""

    def __init__(self, made: Callable[..., Classifier]) -> None:
        self.classifier = made("mlp", 8, 8, 1, ("a",))
        self.file = convert_to_onnx(self.classifier)


@pytest.fixture(scope="module")
def mlp(made: Callable[..., Classifier]) -> _Names:
    return _Names(made)


def test_names_survive_every_way(
    mlp: _Names, large_count: Callable[[int, int], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import asyncio

    import httpx

    from svertka.serving.app import App

    picture = tmp_path / "picture.png"
    Image.effect_noise((9, 9), 90).save(picture)

    @settings(max_examples=large_count(6, 500), deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.text(max_size=40))
    def survives(name: str) -> None:
        classifier = Classifier(mlp.classifier.network, mlp.classifier.config.model_copy(update={"names": (name,)}))
        classifier.save(tmp_path / "run")
        # the command
        assert main(["predict", str(tmp_path / "run"), str(picture), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["labels"][0]["name"] == name
        # the file
        write_metadata(mlp.file, classifier, preprocessing=False)
        session = onnxruntime.InferenceSession(mlp.file.SerializeToString(), providers=["CPUExecutionProvider"])
        assert json.loads(session.get_modelmeta().custom_metadata_map["names"]) == [name]
        # the folder for the hub
        svertka.export(tmp_path / "run", tmp_path / "hub/")
        assert Classifier.load(tmp_path / "hub").names == (name,)
        assert json.loads((tmp_path / "hub" / "config.json").read_text())["label_names"] == [name]
        # the server
        served = ServedModel(tmp_path / "run", CPU)
        api = App([served], hosts=None, token=None, threads=1)

        async def ask() -> Any:
            transport = httpx.ASGITransport(app=api.asgi)
            async with api._lifespan(api.asgi), httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return (await client.post("/predict", content=picture.read_bytes())).json()

        assert elsewhere.submit(asyncio.run, ask()).result()[0]["labels"][0]["name"] == name

    # A thread of its own: in this one the browser of another test may have left its loop running.
    with ThreadPoolExecutor(1) as elsewhere:
        survives()


def test_the_pictures_are_of_every_kind(pictures: list[Path]) -> None:
    opened = [Image.open(io.BytesIO(path.read_bytes())) for path in pictures]
    assert {one.mode for one in opened} >= {"RGB", "L", "CMYK", "I;16", "RGBA", "P", "LA"}
    assert any(one.getexif().get(0x0112, 1) != 1 for one in opened)


@pytest.mark.sample(1)
@pytest.mark.parametrize(("dtype", "fit"), [("uint16", "crop"), ("float32", "pad"), ("uint8", "squeeze")])
def test_an_image_of_several_bands_has_one_answer(
    live: Callable[..., Any], tmp_path: Path, dtype: BandType, fit: Fit
) -> None:
    tifffile = pytest.importorskip("tifffile")
    random = np.random.default_rng(4)
    count, top = 5, {"uint8": 255, "uint16": 4000, "float32": 0.4}[dtype]
    ranges = BandRanges.of_bytes(count) if dtype == "uint8" else BandRanges(dtype, ((0.1 * top, 0.9 * top),) * count)
    preprocess = Preprocess(
        size=28, resize=28, mean=(0.4,) * count, std=(0.2,) * count, fit=fit, intensity_range=ranges
    )
    torch.manual_seed(0)
    config = Config(model="mlp", names=("a", "b", "c"), preprocess=preprocess)
    classifier = Classifier(config.build().eval(), config)
    paths, arrays = [], []
    for number, (height, width) in enumerate([(28, 28), (60, 40), (33, 90), (20, 25), (41, 41), (70, 30)]):
        arrays.append((random.random((height, width, count)) * top).astype(dtype))
        paths.append(tmp_path / f"{number}.tif")
        tifffile.imwrite(paths[-1], arrays[-1], photometric="minisblack", planarconfig="contig", metadata=None)
    images = torch.stack([classifier.preprocess(path) for path in paths])
    spread_logits(classifier, list(images))
    with torch.inference_mode():
        wanted = classifier.network(images).softmax(1).numpy()
    folder = tmp_path / "run"
    classifier.save(folder)

    def probabilities(found: Any) -> Any:
        rows = [{one["name"]: one["probability"] for one in entry["labels"]} for entry in found]
        return np.array([[row[name] for name in classifier.names] for row in rows])

    assert np.abs(probabilities(svertka.predict(folder, *paths, device="cpu")) - wanted).max() <= 1e-5
    assert np.abs(probabilities(svertka.predict(folder, *arrays, device="cpu")) - wanted).max() <= 1e-5
    session = onnxruntime.InferenceSession(convert_to_onnx(classifier, preprocessing=True).SerializeToString())
    for array, row in zip(arrays, wanted, strict=True):
        (found,) = session.run(["probabilities"], {"pictures": array[None]})
        assert np.abs(found[0] - row).max() <= 1e-3
    with live(ServedModel(folder, CPU)) as server:
        answers = [entry for path in paths for entry in server.ask("POST", "/predict", path.read_bytes()).json()]
        explained = server.ask("POST", "/explain", paths[0].read_bytes())
        refused = server.ask("POST", "/predict", b"\x89PNG\r\n\x1a\n" + bytes(60)).json()
    assert np.abs(probabilities(answers) - wanted).max() <= TOLERANCE
    assert explained.status == 200
    assert "no file of several bands" in json.dumps(refused)
