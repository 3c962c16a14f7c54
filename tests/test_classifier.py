import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import svertka
from svertka.classifier import Classifier, Config, predict, read_config
from svertka.compiler import optimize
from svertka.conv import native_support
from svertka.data.preprocessing import Preprocess
from svertka.errors import RunError, SvertkaError, UsageError
from svertka.models.published_weights import CIFAR10
from svertka.models.registry import MODELS


def classifier(names: tuple[str, ...] = ("a", "b", "c"), model: str = "mlp", channels: int = 1) -> Classifier:
    torch.manual_seed(0)
    preprocess = Preprocess(size=16, resize=16, mean=(0.5,) * channels, std=(0.25,) * channels)
    config = Config(model=model, names=names, preprocess=preprocess)
    return Classifier(config.build().eval(), config)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "run"
    classifier().save(folder)
    return folder


def test_loaded_classifier_equals_the_saved_one(saved: Path) -> None:
    before, after = classifier(), Classifier.load(saved)
    assert after.config == before.config
    picture = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    assert after.predict(picture) == before.predict(picture)
    assert not after.network.training


def test_predictions_are_ranked_probabilities(saved: Path) -> None:
    picture = Image.effect_noise((20, 20), 90)
    named = Classifier.load(saved).predict(picture)
    assert {name for name, _ in named} == {"a", "b", "c"}
    assert sum(probability for _, probability in named) == pytest.approx(1, abs=1e-6)
    assert [probability for _, probability in named] == sorted((p for _, p in named), reverse=True)
    assert Classifier.load(saved).predict(picture, top=1) == named[:1]


@given(st.lists(st.text(max_size=30), min_size=1, max_size=5, unique=True))
def test_any_class_names_survive_saving(names: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        classifier(tuple(names)).save(folder)
        assert Classifier.load(folder).names == tuple(names)


@pytest.mark.parametrize("target", ["config.json", "model.safetensors"])
def test_damaged_runs_are_refused_or_correct(
    saved: Path, tmp_path: Path, target: str, large_count: Callable[[int, int], int]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(saved, copy)
    whole = (saved / target).read_bytes()
    random = np.random.default_rng(1)
    right = Classifier.load(saved)
    picture = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    refused = 0
    for _ in range(large_count(150, 5_000)):
        mutant = bytearray(whole)
        match random.integers(4):
            case 0:
                mutant[random.integers(len(mutant))] = random.integers(256)
            case 1:
                del mutant[random.integers(len(mutant)) :]
            case 2:
                start = random.integers(len(mutant))
                mutant[start:start] = mutant[start : start + 40]
            case 3:
                digits = [place for place, byte in enumerate(mutant) if 48 <= byte < 58] or [0]
                place = random.choice(digits)
                mutant[place : place + 1] = b"999999999"
        (copy / target).write_bytes(mutant)
        try:
            loaded = Classifier.load(copy)
        except RunError as error:
            refused += "\n" not in str(error)
            continue
        if loaded.config == right.config:
            assert loaded.predict(picture) == right.predict(picture)
    assert refused > 50


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 4}, "made by a newer svertka .format 4, this one reads 3.; upgrade svertka"),
        ({"model": "resnet21"}, "is damaged .model=resnet21 is not known"),
        ({"names": []}, "is damaged"),
        ({"names": ["a", "b"]}, r"does not fit mlp with 2 classes \(2 tensors differ: output.bias \(3,\)"),
        ({"extra": 1}, "is damaged"),
        # Asks for 2 million weights where there are 76 thousand: refused before they are made.
        ({"preprocess": {"size": 4096, "resize": 4096, "mean": [0.5], "std": [0.5]}}, "does not fit mlp"),
        ({"preprocess": {"size": 16, "resize": 16, "mean": [0.5], "std": [0.0]}}, "is damaged .*std=0.0"),
    ],
)
def test_config_that_does_not_fit_the_weights_is_refused(
    saved: Path, tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    shutil.copytree(saved, tmp_path / "run")
    config = json.loads((saved / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(RunError, match=sentence):
        Classifier.load(tmp_path / "run")


def test_weights_of_another_network_are_refused(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "run")
    tensors = load_file(saved / "model.safetensors")
    del tensors["output.bias"]
    save_file(tensors, tmp_path / "run" / "model.safetensors")
    with pytest.raises(RunError, match=r"\(1 tensors differ: output.bias missing\); copy both files from the same run"):
        Classifier.load(tmp_path / "run")


@pytest.mark.parametrize(("name", "sentence"), [("nowhere", "is not a run folder; name one"), (".", "holds no config")])
def test_missing_run_is_an_error(tmp_path: Path, name: str, sentence: str) -> None:
    with pytest.raises(RunError, match=sentence):
        read_config(tmp_path / name)


def test_predict_accepts_images_folders_and_arrays(saved: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "album" / "deep").mkdir(parents=True)
    (tmp_path / "album" / ".hidden").mkdir()
    for name in ("a.png", "deep/b.jpg", ".hidden/c.png"):
        Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "album" / name)
    (tmp_path / "album" / "bad.png").write_bytes(b"no picture")
    (tmp_path / "album" / "notes.txt").write_text("ignored")
    arrays = random.integers(0, 256, (2, 9, 9), dtype=np.uint8)
    np.save(tmp_path / "arrays.npy", arrays)

    found = predict(saved, str(tmp_path / "album"), tmp_path / "arrays.npy", arrays[0], tmp_path / "gone.png", top=2)

    assert [one["path"].removeprefix(str(tmp_path) + "/") for one in found] == [
        *("album/a.png", "album/bad.png", "album/deep/b.jpg", "arrays.npy[0]", "arrays.npy[1]", "#2", "gone.png")
    ]
    errors = {one["path"].rpartition("/")[2]: one["error"] for one in found if "error" in one}
    assert errors == {
        "bad.png": "not an image (JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, HEIC, JPEG 2000, PNM)",
        "gone.png": "no such file or directory",
    }
    assert all(len(one["labels"]) == (0 if "error" in one else 2) for one in found)
    # A float32 product rounds by the row's place in its batch: 1e-6.
    alone = Classifier.load(saved)
    for one, picture in ((found[0], tmp_path / "album" / "a.png"), (found[3], arrays[0]), (found[5], arrays[0])):
        names, probabilities = zip(*alone.predict(picture, top=2), strict=True)
        assert tuple(label["name"] for label in one["labels"]) == names
        assert [label["probability"] for label in one["labels"]] == pytest.approx(probabilities, abs=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_array_of_one_image_is_one_image(saved: Path, tmp_path: Path, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    np.save(tmp_path / "one.npy", pixels)
    np.save(tmp_path / "many.npy", pixels[None])
    (one,), (same,) = predict(saved, tmp_path / "one.npy"), predict(saved, tmp_path / "many.npy")
    (expected,) = predict(saved, pixels)
    assert one["path"] == f"{tmp_path / 'one.npy'}[0]"
    assert one["labels"] == same["labels"] == expected["labels"]


def test_predictions_do_not_depend_on_the_batch(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "MIN_NUM_VALUES", 64 * 16 * 16)
    pixels = np.random.default_rng(1).integers(0, 256, (70, 12, 12, 3), dtype=np.uint8)
    many, rest = svertka.predict(saved, *pixels), svertka.predict(saved, *pixels[:3])
    for one, other in zip(many, rest, strict=False):
        for ours, theirs in zip(one["labels"], other["labels"], strict=True):
            # Of 64 and more the network is optimized, which rounds otherwise.
            assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-5)
    classifier = svertka.Classifier.load(saved)
    assert classifier.optimized_for(63).network is classifier.network
    if native_support.why_not() is None:
        assert isinstance(classifier.optimized_for(64).network, svertka.Optimized)


def test_predict_names_unreadable_images(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no image among the inputs"):
        predict(saved, tmp_path)
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    with pytest.raises(UsageError, match=r"holds float64 \(2, 3\); it needs uint8 \(N, H, W\)"):
        predict(saved, tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object))
    with pytest.raises(UsageError, match="cannot be read as an array"):
        predict(saved, tmp_path / "x.npy")
    with pytest.raises(SvertkaError, match="device=tpu"):
        predict(saved, tmp_path / "x.npy", device="tpu")


def test_pretrained_networks_are_accepted_in_place_of_runs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = MODELS["resnet20"].build().eval()
    save_file(network.state_dict(), tmp_path / "x.safetensors")
    loaded = Classifier.load(f"resnet20:{tmp_path}/x.safetensors")
    assert loaded.names == CIFAR10
    assert not loaded.network.training
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    given = ((torch.from_numpy(picture) / 255 - mean) / std).permute(2, 0, 1)[None]
    expected = network(given).detach().softmax(1)[0]
    assert dict(loaded.predict(picture, top=10)) == pytest.approx(
        dict(zip(CIFAR10, expected.tolist(), strict=True)), abs=1e-5
    )
    (found,) = predict(f"resnet20:{tmp_path}/x.safetensors", picture, top=1)
    assert found["labels"][0]["name"] == CIFAR10[int(expected.argmax())]

    loaded.save(tmp_path / "run")
    assert Classifier.load(tmp_path / "run").config == loaded.config


def test_unnamed_classes_are_numbered(tmp_path: Path) -> None:
    save_file(MODELS["resnet20"].build(3).state_dict(), tmp_path / "x.safetensors")
    assert Classifier.load(f"resnet20:{tmp_path}/x.safetensors").names == ("0", "1", "2")


def test_bundled_network_classifies_a_photograph(shared_data: Path) -> None:
    picture = shared_data / "imagenet-samples" / "n01560419_bulbul.JPEG"
    (best, *_) = Classifier.load("efficientnet_lite0:bundled").predict(picture)
    assert best[0] == "bulbul"
    assert best[1] > 0.3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("resnet51:imagenet", r"model=resnet51 is not known; use .*resnet50"),
        ("resnet50:imagnet", "weights=imagnet is neither a file nor published for resnet50; use imagenet"),
        ("resnet50", "resnet50 is a network without weights; name some as in resnet50:imagenet or resnet50:FILE"),
        ("resnet20:/nowhere.pth", "weights=/nowhere.pth is neither a file nor published for resnet20"),
    ],
)
def test_unknown_networks_and_weights_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        Classifier.load(text)
    assert "\n" not in str(caught.value)


def test_folder_named_like_pretrained_weights_is_a_run(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, "resnet50:imagenet")
    assert Classifier.load("resnet50:imagenet").config.model == "mlp"


def test_predict_accepts_a_run_object(digit_folder: Path, tmp_path: Path) -> None:
    run = svertka.train(digit_folder, model="mlp", size=8, epochs=30, output=tmp_path / "run", threads=1)
    (one,) = svertka.predict(run, digit_folder / "one" / "05.png", top=1)
    assert one["labels"][0]["name"] == "one"


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("bits", "is_said"), [(8, False), (10, True), (12, False), (16, True)])
def test_other_16_bit_ranges_than_the_run_are_reported(
    bits: int, is_said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draws = np.random.default_rng(0)
    values = draws.integers(0, 256, (6, 24, 24)).astype(np.uint16) * (257 if bits == 16 else 2 ** max(bits - 8, 0))
    for number, one in enumerate(values):
        Image.fromarray(one.astype(np.uint8) if bits == 8 else one).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"x")
    made = classifier(channels=1)
    known = made.preprocess.model_copy(update={"intensity_range": (0, 4095)})
    predict(Classifier(made.network, made.config.model_copy(update={"preprocess": known})), tmp_path)
    said = [line for line in capsys.readouterr().err.splitlines() if "16-bit images" in line]
    assert len(said) == is_said
    assert all("while to the network 0 is black and 4,095 is white: they look darker or" in line for line in said)


def test_folder_of_several_runs_is_an_error_that_names_them(saved: Path, tmp_path: Path) -> None:
    for number in range(2):
        shutil.copytree(saved, tmp_path / "several" / str(number))
    with pytest.raises(RunError, match=r"several holds several runs, 0, 1; name one of them, as .*several/0"):
        Classifier.load(tmp_path / "several")


BAD_IMAGES = {
    "other channels": [torch.rand(1, 16, 16), torch.rand(3, 16, 16)],
    "another size": [torch.rand(1, 7, 5)],
    "no pixels": [torch.rand(1, 0, 0)],
    "bytes": [torch.zeros(1, 16, 16, dtype=torch.uint8)],
    "booleans": [torch.ones(1, 16, 16, dtype=torch.bool)],
    "complex": [torch.rand(1, 16, 16) * 1j],
    "double": [torch.rand(1, 16, 16).double()],
    "meta": [torch.rand(1, 16, 16, device="meta")],
    "sparse": [torch.rand(1, 16, 16).to_sparse()],
}


@pytest.mark.parametrize("images", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_tensors_that_preprocessing_does_not_give_are_refused(images: list[torch.Tensor]) -> None:
    with pytest.raises(
        UsageError, match=r"a tensor of images is .*; probabilities\(\) needs dense ones of \(1, 16, 16\)"
    ):
        classifier().probabilities(images)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_invalid_probability_tensors_are_refused() -> None:
    for function in (classifier().rank, classifier().require_finite):
        for wrong in (None, "x", [0.1, 0.9]):
            with pytest.raises(SvertkaError, match="probabilities"):
                function(wrong)  # type: ignore[operator]
    nested = torch.nested.nested_tensor([torch.rand(3)])
    with pytest.raises(UsageError, match="nested, quantized or meta tensor"):
        classifier().rank(nested)
    with pytest.raises(UsageError, match="sparse, nested, quantized or meta"):
        classifier().probabilities([nested])
    with pytest.raises(SvertkaError, match="config"):
        Classifier(torch.nn.Identity(), None)  # type: ignore[arg-type]
