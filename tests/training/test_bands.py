"""Training on images of several bands, and predictions of the run."""

import json
import re
from functools import partial

import numpy as np
import pytest
import torch

import svertka
from svertka.classifier import Classifier
from svertka.data.band_detection import find_bands
from svertka.data.band_ranges import BandRanges
from svertka.data.preprocessing import Preprocess
from svertka.data.source_opener import open_source
from svertka.errors import UsageError
from svertka.models.published_weights import BACKBONE
from svertka.models.registry import find_model
from svertka.models.weights import read_pretrained_weights

tifffile = pytest.importorskip("tifffile")

COUNT, SIDE = 5, 28


def write_tiff(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig", metadata=None, compression="zlib")


def multispectral_folder(root, images=12, seed=2):
    """Two classes that differ in band 3 alone, 5 bands of 16 bits."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(("bare", "green")):
        for number in range(images):
            values = rng.normal(3000, 200, (SIDE, SIDE, COUNT))
            values[..., 3] += 2000 * label
            write_tiff(root / name / f"{number:02}.tif", values.astype(np.uint16))
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = multispectral_folder(tmp_path_factory.mktemp("bands") / "set")
    write_tiff(folder / "green" / "odd.tif", np.ones((SIDE, SIDE, 4), np.uint16))
    output = tmp_path_factory.mktemp("bands") / "run"
    run = svertka.train(folder, model="lenet5", size=32, epochs=3, val=0.25, output=output, threads=1, seed=1)
    return run, folder


def test_the_number_of_bands_and_their_ranges_are_stored_with_the_run(trained):
    run, folder = trained
    config = json.loads((run.folder / "config.json").read_text())
    preprocess = config["preprocess"]
    assert config["format"] == 3  # earlier versions refuse it
    assert len(preprocess["mean"]) == len(preprocess["std"]) == COUNT
    assert preprocess["intensity_range"]["dtype"] == "uint16"
    usual = np.concatenate([tifffile.imread(path).reshape(-1, COUNT) for path in folder.glob("*/[0-9]*.tif")])
    for band, (low, high) in enumerate(preprocess["intensity_range"]["bands"]):
        assert np.quantile(usual[:, band], 0.001) < low < np.quantile(usual[:, band], 0.02)
        assert np.quantile(usual[:, band], 0.98) < high < np.quantile(usual[:, band], 0.999)


def test_a_file_with_other_bands_is_left_out_by_name(trained):
    (bad,) = json.loads((trained[0].folder / "training.json").read_text())["bad"]
    assert bad["path"].endswith("odd.tif")
    assert bad["reason"] == (
        "4 bands of 16-bit unsigned integers, where 5 bands of uint16 are expected; remove it or save it like the "
        "training images"
    )


def test_predictions_are_those_of_the_network_on_the_scaled_bands(trained):
    run, folder = trained
    classifier = Classifier.load(run.folder)
    preprocess = classifier.preprocess
    paths = [folder / "bare" / "01.tif", folder / "green" / "02.tif"]
    found = svertka.predict(run.folder, *paths, precision="fp32", threads=1)
    low, high = np.array(preprocess.intensity_range.bands).T
    for path, one in zip(paths, found, strict=True):
        values = tifffile.imread(path)
        pixels = np.rint(np.clip((values - low) / (high - low) * 255, 0, 255)).astype(np.uint8)
        square = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        resized = torch.nn.functional.interpolate(square, (preprocess.resize,) * 2, mode="bilinear", antialias=True)
        pad = (preprocess.size - preprocess.resize) // 2
        mean, std = (torch.tensor(some).view(1, -1, 1, 1) for some in (preprocess.mean, preprocess.std))
        inputs = (torch.nn.functional.pad(resized, (pad,) * 4) / 255 - mean) / std
        with torch.inference_mode():
            wanted = classifier.network(inputs).softmax(1)[0]
        by_name = {label["name"]: label["probability"] for label in one["labels"]}
        assert [by_name[name] for name in classifier.names] == pytest.approx(wanted.tolist(), abs=0.02)
        in_memory = svertka.predict(run.folder, values, precision="fp32", threads=1)[0]
        assert in_memory["labels"] == one["labels"]


def test_images_in_other_units_are_told(trained, tmp_path, capsys):
    run, folder = trained
    path = tmp_path / "scaled.tif"
    write_tiff(path, tifffile.imread(folder / "bare" / "01.tif") * 10)
    svertka.predict(run.folder, path, threads=1)
    assert "100% of the values of the bands lie outside of the ranges of the training images" in capsys.readouterr().err


def test_the_run_is_evaluated_and_refuses_other_images(trained, tmp_path):
    run, _ = trained
    new = multispectral_folder(tmp_path / "new", images=3, seed=3)
    assert svertka.evaluate(run.folder, new, threads=1).images == 6
    with pytest.raises(UsageError, match=r"cannot be used by a network of 5 bands, 16 bit; give \(H, W, 5\) of dtype"):
        svertka.predict(run.folder, np.zeros((8, 8, 3), np.uint8), threads=1)


def test_units_of_networks_that_read_other_images_are_not_compared(trained, made):
    reads = re.escape(f"{trained[0].folder} reads 5 bands, 16 bit and <lenet5> reads ")
    with pytest.raises(UsageError, match=f"^{reads}.*; compare networks that read the same kind of images$"):
        svertka.compare_units(trained[0].folder, made("lenet5", 32, 32), trained[1], threads=1)


def own_network(classes, channels=COUNT):
    layers = torch.nn.Conv2d(channels, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    return torch.nn.Sequential(*layers, torch.nn.Linear(4, classes))


def test_networks_of_bands_are_trained_without_the_augmentations_of_rgb(tmp_path, capsys):
    folder = multispectral_folder(tmp_path / "set", images=4)
    run = svertka.train(folder, model=own_network, size=16, epochs=1, output=tmp_path / "run", threads=1)
    assert [one["kind"] for one in run.settings()["recipe"]["augmentations"]] == ["area_crop", "flip", "random_erasing"]
    assert "left out: augmentation trivial_augment changes RGB images, and" in capsys.readouterr().err
    with pytest.raises(UsageError, match="Invalid channel dimensions"):
        svertka.train(folder, model=partial(own_network, channels=4), size=16, output=tmp_path / "other", threads=1)


def test_networks_of_bands_refuse_rgb(tmp_path):
    pixels, labels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8), [0, 0, 0, 1, 1, 1]
    with pytest.raises(UsageError, match="own_network takes images of 5 channels, and those of .* are gray or RGB"):
        svertka.train((pixels, labels), model=own_network, output=tmp_path / "run", threads=1)
    with pytest.raises(UsageError, match="takes images of 5 channels; give a preprocess whose intensity_range is Band"):
        Classifier.wrap(own_network(3))
    ranges = BandRanges("uint16", ((0.0, 100.0),) * COUNT)
    preprocess = Preprocess(size=8, resize=8, mean=(0.5,) * COUNT, std=(0.2,) * COUNT, intensity_range=ranges)
    wrapped = Classifier.wrap(own_network(3), preprocess=preprocess)
    values = np.random.default_rng(0).integers(0, 100, (8, 8, COUNT)).astype(np.uint16)
    assert len(wrapped.predict(values)) == 3


def test_npy_files_are_trained_on_and_predicted_as_images_of_bands(tmp_path, capsys):
    folder = multispectral_folder(tmp_path / "set", images=6)
    for path in [*folder.glob("*/*.tif")]:
        np.save(path.with_suffix(".npy"), np.asfortranarray(tifffile.imread(path)))
        path.unlink()
    np.save(folder / "bare" / "features.npy", np.zeros(7))  # one axis: no image
    np.save(folder / "green" / "first.npy", np.zeros((COUNT, SIDE, SIDE), np.uint16))
    none_of_these = multispectral_folder(tmp_path / "none", images=1, seed=5) / "bare"
    options = {"model": own_network, "size": 16, "epochs": 1, "threads": 1, "unknown": none_of_these, "val": 0.25}
    run = svertka.train(folder, output=tmp_path / "run", **options)
    (bad,) = json.loads((run.folder / "training.json").read_text())["bad"]
    assert bad["path"].endswith("first.npy")
    assert "in an array (5, 28, 28), whose last axis is that of the bands" in bad["reason"]
    bands = Classifier.load(run.folder, trust_builder=True).preprocess.bands
    assert (bands.dtype, len(bands)) == ("uint16", COUNT)
    values = [np.load(folder / "green" / f"{number:02}.npy") for number in range(6)]
    np.save(tmp_path / "stack.npy", np.stack(values))
    predict = partial(svertka.predict, run.folder, threads=1, trust_builder=True)
    wanted = [one["labels"] for one in predict(*values)]
    assert [one["labels"] for one in predict(tmp_path / "stack.npy")] == wanted
    assert [one["labels"] for one in predict(*[folder / "green" / f"{n:02}.npy" for n in range(6)])] == wanted
    found = {one["path"]: one for one in predict(folder / "green")}
    assert [found[str(folder / "green" / f"{n:02}.npy")]["labels"] for n in range(6)] == wanted
    assert "whose last axis" in found[str(folder / "green" / "first.npy")]["error"]
    np.save(tmp_path / "other.npy", np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(UsageError, match=r"holds uint8 \(2, 8, 8, 3\); it needs uint16 \(H, W, 5\) or \(N, H, W, 5\)"):
        predict(tmp_path / "other.npy")
    svertka.shard(folder, tmp_path / "shards", threads=1)
    stored = open_source(tmp_path / "shards").with_intensity_range(bands)
    read = {stored.images.digest(index): stored.images.read(index).tobytes() for index in range(len(stored))}
    files = open_source(folder).with_intensity_range(bands)
    usual = [index for index in range(len(files)) if "first" not in files.images.name(index)]
    assert read == {files.images.digest(index): files.images.read(index).tobytes() for index in usual}


def test_shards_keep_the_values_of_bands(tmp_path):
    folder = multispectral_folder(tmp_path / "set", images=4)
    svertka.shard(folder, tmp_path / "shards", threads=1)
    written, stored = open_source(folder), open_source(tmp_path / "shards")
    bands = find_bands(stored)
    assert (bands.dtype, len(bands)) == ("uint16", COUNT)
    written, stored = written.with_intensity_range(bands), stored.with_intensity_range(bands)
    wanted = {written.images.digest(index): written.images.read(index) for index in range(len(written))}
    assert len(stored) == len(wanted) == 8
    for index in range(len(stored)):
        assert np.array_equal(stored.images.read(index), wanted[stored.images.digest(index)])


def test_what_needs_rgb_is_refused(trained):
    run, folder = trained
    with pytest.raises(UsageError, match=r"model=auto compares networks on RGB images, and .* has 5 bands, 16 bit"):
        svertka.train(folder, model="auto", output=folder / "run", threads=1)
    with pytest.raises(UsageError, match=r"rand_augment changes RGB images, and .* has 5 bands, 16 bit; give --auto"):
        svertka.train(folder, model="lenet5", auto_augment="rand", output=folder / "run", threads=1)
    with pytest.raises(UsageError, match=r"reads images of 5 bands, 16 bit, which browsers cannot read; export it"):
        svertka.export(run.folder, folder / "page.html")


def test_a_folder_of_gray_or_rgb_tiff_files_has_no_bands(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        write_tiff(tmp_path / name / "deep.tif", rng.integers(0, 65536, (8, 8)).astype(np.uint16))
        tifffile.imwrite(tmp_path / name / "rgb.tif", rng.integers(0, 256, (8, 8, 3), np.uint8), photometric="rgb")
    assert find_bands(open_source(tmp_path)) is None


def test_pretrained_weights_are_adapted_to_bands_alike():
    weights = read_pretrained_weights(find_model(BACKBONE[0]), BACKBONE[1])
    adapted = weights.with_channels(6)
    (name,) = [name for name in weights.tensors if weights.tensors[name].shape != adapted.tensors[name].shape]
    gray = torch.rand(1, 1, 16, 16)
    wanted = torch.nn.functional.conv2d(gray.expand(1, 3, 16, 16), weights.tensors[name].float())
    found = torch.nn.functional.conv2d(gray.expand(1, 6, 16, 16), adapted.tensors[name].float())
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert "adapted from 3 channels to 6" in adapted.note
