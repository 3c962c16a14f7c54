"""PatchDataset as images of their own, and a head that learns from them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import svertka
from ranks import start_torchrun, wait_for_end
from svertka.classifier import Classifier
from svertka.data.box_annotations import Annotation, Box, match_to_images, read_boxes
from svertka.data.image_disk_cache import prepare_images
from svertka.data.preprocessing import Preprocess
from svertka.data.source_opener import open_source
from svertka.errors import DataError, UsageError
from svertka.localization.box_labeled_patches import PatchDataset, cut_training_patches
from svertka.localization.patch_labels import label_patches
from svertka.localization.patch_pyramid import pyramid_levels
from svertka.run import Run

Maker = Callable[..., Classifier]
Scenes = tuple[Path, Path]  # the folder of pictures, and the file of boxes


@pytest.fixture
def patches(scenes: Scenes, bright_or_dark: Maker) -> PatchDataset:
    """Those of every image, for a network that sees 16×16 pixels."""
    dataset, preprocess = open_source(scenes[0]), bright_or_dark().preprocess
    found = match_to_images(read_boxes(scenes[1]), [dataset.images.name(index) for index in range(len(dataset))])
    del found[3], found[40]  # of these nobody knows where the digit is
    every = np.arange(len(dataset))
    squares = prepare_images(dataset, 16, 1, threads=1).rows
    return cut_training_patches(dataset, every, found, squares, preprocess, seed=0, threads=1)


def test_a_row_is_what_the_classifier_would_see_of_the_patch_as_an_image(patches: PatchDataset) -> None:
    """Pillow's filter is the oracle: it differs by rounding."""
    indices = np.random.default_rng(0).permutation(np.flatnonzero(~patches.is_whole))[:40]
    rows = patches[indices]
    assert rows.shape == (40, 16, 16, 1)
    for row, index in zip(rows, indices.tolist(), strict=True):
        left, top, right, bottom = edges = patches.edges(index)
        crop = Image.fromarray(patches.images.read(int(patches.places[index, 0]))).crop(edges)
        assert np.array_equal(np.asarray(crop), patches.read(index))
        expected = np.asarray(crop.resize((16, 16), Image.Resampling.BILINEAR).convert("L")).astype(int)
        assert np.abs(row[..., 0] - expected).max() <= 2
        assert patches.size(index) == (bottom - top, right - left)
        assert patches.name(index) == f"{patches.images.name(int(patches.places[index, 0]))} {edges}"


def test_large_images_are_decoded_reduced(tmp_path: Path) -> None:
    """A JPEG of 1600×1200 pixels is decoded smaller for patches of 16 pixels, which stay where they are."""
    ramp = np.linspace(0, 255, 1600).astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (1200, 1600, 3))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "ramp.jpg", quality=95)
    dataset, preprocess = open_source(tmp_path), Preprocess(size=16, resize=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    found = {0: Annotation("ramp.jpg", "boxes.csv", None, (Box("one", 0, 0, 400, 300),))}
    squares = prepare_images(dataset, 16, 3, threads=1).rows
    patches = cut_training_patches(dataset, np.arange(2), found, squares, preprocess, seed=0, threads=1)
    assert patches._decoded(0).shape[0] < 1200
    indices = np.flatnonzero(~patches.is_whole)
    for row, index in zip(patches[indices], indices.tolist(), strict=True):
        left, _, right, _ = patches.edges(index)
        assert row.mean() == pytest.approx(ramp[left:right].mean(), abs=3)


def test_labels_are_those_of_the_boxes(patches: PatchDataset, scenes: Scenes) -> None:
    boxes = {annotation.image: annotation.boxes for annotation in read_boxes(scenes[1])}
    for index in range(0, len(patches), 7):
        picture, number, row, column = patches.places[index].tolist()
        level = pyramid_levels(48, 64, (16, 16), (1, 1))[number]
        if picture not in (3, 40) and not patches.is_whole[index]:
            of_picture = boxes[Path(patches.images.name(picture)).name]
            edges = level.edges(np.array([(row, column)]))
            assert patches.labels[index] == label_patches(edges, of_picture, ["one", "two"])[0]
    # Of pictures without boxes only what shows most of them, with the label that they have.
    assert set(patches.labels[patches.places[:, 0] == 3].tolist()) == {0}
    assert set(patches.labels[patches.places[:, 0] == 40].tolist()) == {1}
    assert 1 <= (patches.places[:, 0] == 3).sum() < 40


def test_a_tenth_of_the_background_is_kept(patches: PatchDataset) -> None:
    background = int((patches.labels == 2).sum())
    every = sum(len(level.places) for level in pyramid_levels(48, 64, (16, 16), (1, 1)))
    others = int((patches.labels != 2).sum())
    # 46 pictures with boxes; drawn one by one with a share of a tenth
    assert background == pytest.approx((46 * every - others) / 10, rel=0.07)


def test_patches_differ_by_their_place(patches: PatchDataset) -> None:
    assert len({patches.digest(index) for index in range(300)}) == 300
    content = patches.images.digest(int(patches.places[5, 0]))
    assert patches.digest_in(content, 5) == patches.digest(5)


FEW: dict[str, Any] = {"size": 16, "epochs": 6, "batch_size": 64, "threads": 1}


@pytest.fixture(scope="module")
def backbone(
    digit_folder: Path, tmp_path_factory: pytest.TempPathFactory, large_count: Callable[[int, int], int]
) -> Run:
    """What is carried over: learned from "one", "two", "three" and "four"."""
    output = tmp_path_factory.mktemp("runs") / "run"
    return svertka.train(digit_folder, output=output, model="resnet20", **(FEW | {"epochs": large_count(1, 4)}))


@pytest.fixture(scope="module")
def boxed_run(
    backbone: Run, scenes: Scenes, tmp_path_factory: pytest.TempPathFactory, large_count: Callable[[int, int], int]
) -> Run:
    """A head trained on the patches of the scenes."""
    output = tmp_path_factory.mktemp("boxed") / "run"
    epochs = large_count(1, FEW["epochs"])
    return svertka.train(scenes[0], output=output, weights=backbone, boxes=scenes[1], **(FEW | {"epochs": epochs}))


@pytest.mark.large
@pytest.mark.usefixtures("quiet")
def test_a_head_learns_where_digits_are(boxed_run: Run, scenes: Scenes) -> None:
    run = boxed_run
    classifier = run.classifier()
    assert classifier.names == ("one", "two")  # no whole image shows background alone
    assert classifier.config.head == "adaptation"
    of_patches = Classifier.load(run.folder, of_patches=True)
    assert of_patches.names == ("one", "two", "background")
    images = torch.rand(3, *classifier.preprocess.input_shape[1:])
    with torch.inference_mode():  # the same scores
        assert torch.equal(classifier.network(images), of_patches.network(images)[:, :2])
    assert run.settings()["boxes"] == str(scenes[1])
    result = run.result()
    assert result["patch_val_error"] < 0.3
    assert result["val_error"] == svertka.evaluate(run, scenes[0], part="val").top1_error  # both of whole images
    assert svertka.resume(run.folder).result() == run.result()  # the same patches are cut again
    judgement = svertka.locate(run, scenes[0], boxes=scenes[1]).judgement
    assert judgement is not None
    assert judgement["hits"] > 0.8  # of pictures of which a digit covers a twelfth
    assert judgement["classes"]["one"]["average_precision"] > 0.8


@pytest.mark.large
@pytest.mark.usefixtures("quiet")
def test_two_processes_learn_what_one_does(backbone: Run, scenes: Scenes, tmp_path: Path) -> None:
    """The same patches in the same batches, each shared by both; only sums are added up in another order."""
    options = FEW | {"epochs": 1, "head": "linear"}  # dropout would draw other units in each process
    alone = svertka.train(scenes[0], output=tmp_path / "alone", weights=backbone, boxes=scenes[1], **options)
    given = {"weights": backbone.folder, "boxes": scenes[1], "output": tmp_path / "both", **options}
    arguments = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    process = start_torchrun("-m", "svertka", "train", str(scenes[0]), *arguments)
    _, stderr = wait_for_end(process)
    assert process.returncode == 0, stderr
    both = Run(tmp_path / "both")
    assert both.settings()["fingerprint"] == alone.settings()["fingerprint"]
    assert both.result()["val_error"] == alone.result()["val_error"]
    expected = Classifier.load(alone.folder, of_patches=True).network.state_dict()
    found = Classifier.load(both.folder, of_patches=True).network.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "rows", "error", "message"),
    [
        (
            {"unfreeze": "last"},
            "",
            UsageError,
            "trains only a head, on pretrained weights; give --weights, and leave out",
        ),
        ({}, "one-0.png,six,0,0,1,1", DataError, "has a box of class six, but the classes are one, two; rename"),
        ({}, "one-0.png,one,0,0,65,1", DataError, "lies outside one-0.png, which has 64×48 pixels"),
    ],
)
@pytest.mark.usefixtures("quiet")
def test_what_cannot_be_learned_is_told(
    changes: dict[str, Any],
    rows: str,
    error: type[Exception],
    message: str,
    backbone: Run,
    scenes: Scenes,
    tmp_path: Path,
) -> None:
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(scenes[1].read_text() + rows)
    with pytest.raises(error, match=message):
        svertka.train(scenes[0], weights=backbone, boxes=boxes, output=tmp_path / "run", **(FEW | changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("quiet")
def test_one_class_is_learned_against_background(backbone: Run, scenes: Scenes, tmp_path: Path) -> None:
    images = tmp_path / "data" / "images"
    shutil.copytree(scenes[0] / "one", images)
    rows = [row for row in scenes[1].read_text().splitlines() if ",two," not in row]
    boxes = tmp_path / "data" / "boxes.csv"
    boxes.write_text("\n".join([*rows, "gone.png,one,0,0,9,9"]) + "\n")
    run = svertka.train(images.parent, output=tmp_path / "run", weights=backbone, boxes=boxes, **(FEW | {"epochs": 1}))
    assert run.classifier().names == ("one", "background")
    account = run.settings()["account"]
    assert "labels are read from boxes: 24 images of one" in account["notes"]
    assert "not used: 1 of 25 annotations match no image (gone.png)" in account["notes"]
    evaluation = svertka.evaluate(run, images.parent, include_training=True)  # labeled as they were for training
    assert evaluation.images == 24
    others = tmp_path / "others"
    shutil.copytree(scenes[0] / "one", others / "one")  # a class folder needs no boxes
    assert svertka.evaluate(run, others, include_training=True).top1_error == evaluation.top1_error


def test_each_picture_is_a_patch_of_its_own_class(patches: PatchDataset, scenes: Scenes) -> None:
    whole = np.flatnonzero(patches.is_whole)
    dataset = open_source(scenes[0])
    assert patches.places[whole, 0].tolist() == list(range(len(dataset)))
    assert patches.labels[whole].tolist() == dataset.labels.tolist()
    for index in whole[::7].tolist():
        rgb = patches.images.read(int(patches.places[index, 0]))
        assert np.array_equal(patches[np.array([index])][0], patches.preprocess.square(rgb))
        assert patches.edges(index) == (8, 0, 56, 48)
        assert patches.name(index) == patches.images.name(int(patches.places[index, 0]))


@pytest.mark.usefixtures("quiet")
def test_no_whole_image_is_named_background(
    boxed_run: Run, scenes: Scenes, tmp_path: Path, large_count: Callable[[int, int], int]
) -> None:
    """Even where the network is sure of it: predict, evaluate, a server and ONNX files agree on the other classes."""
    pytest.importorskip("onnx")
    import onnxruntime

    from svertka.exporters.onnx import PROBABILITY_TOLERANCE
    from svertka.serving.served_model import ServedModel

    of_patches = Classifier.load(boxed_run.folder, of_patches=True)
    *_, last = (layer for layer in of_patches.network.modules() if isinstance(layer, torch.nn.Linear))
    with torch.no_grad():
        last.bias[2] += 100
    certain = tmp_path / "certain"
    of_patches.save(certain)

    paths = sorted(scenes[0].rglob("*.png"))
    predictions = svertka.predict(certain, *paths, threads=1)
    of_classes = [{label["name"]: label["probability"] for label in one["labels"]} for one in predictions]
    assert all(set(one) == {"one", "two"} for one in of_classes)
    expected = np.array([[one["one"], one["two"]] for one in of_classes])
    plain = svertka.predict(boxed_run.folder, *paths, threads=1)
    assert [one["labels"] for one in plain] == [one["labels"] for one in predictions]  # background counts for nothing

    wrong = [
        max(one, key=lambda name: one[name]) != path.parent.name for one, path in zip(of_classes, paths, strict=True)
    ]
    evaluation = svertka.evaluate(certain, scenes[0], include_training=True, threads=1)
    assert evaluation.top1_error == np.mean(wrong)
    assert [one.name for one in evaluation.per_class] == ["one", "two"]

    preprocess = Classifier.load(certain).preprocess
    images = torch.stack([preprocess(path) for path in paths])
    answers = ServedModel(certain, torch.device("cpu")).answer(list(images))
    np.testing.assert_allclose(torch.stack([row for row, _ in answers]), expected, atol=1e-5)
    for preprocessing in (True, False)[: large_count(1, 2)]:
        path = svertka.export(certain, tmp_path / "m.onnx", images=paths, preprocessing=preprocessing).path
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        if preprocessing:
            given = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
            (found,) = session.run(["probabilities"], {"pictures": given})
        else:
            (logits,) = session.run(None, {"images": images.numpy()})
            found = torch.from_numpy(logits).softmax(1).numpy()
        # The resize of ONNX Runtime rounds one pixel in 500 to the next of 255 values. How much that changes depends on
        # the weights; the limit is that of the exporter.
        np.testing.assert_allclose(found, expected, atol=PROBABILITY_TOLERANCE if preprocessing else 1e-5)


@pytest.mark.large
def test_boxes_of_photographs_take_a_gigabyte_and_a_minute_of_two_cores(tmp_path: Path, shared_data: Path) -> None:
    """119 photographs of one class, as data sets with boxes have them. All patches at once would take 5.8 GB."""
    for name in ("images", "annotations"):
        (tmp_path / "raccoons" / name).mkdir(parents=True)
    for boxes in sorted((shared_data / "raccoons" / "annotations").glob("*.xml"))[:119]:
        shutil.copy(boxes, tmp_path / "raccoons" / "annotations")
        (image,) = (shared_data / "raccoons" / "images").glob(f"{boxes.stem}.*")
        (tmp_path / "raccoons" / "images" / image.name).symlink_to(image)
    options = ["--boxes", "raccoons/annotations", "--output", "run", "--threads", "1"]
    with (tmp_path / "said").open("wb") as said:
        command = [sys.executable, "-m", "svertka", "train", "raccoons", *options]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
    assert status == 0, (tmp_path / "said").read_text()
    assert used.ru_maxrss < 10**6  # kB
    assert used.ru_utime + used.ru_stime < 120


@pytest.mark.large
@pytest.mark.usefixtures("quiet")
def test_boxes_do_not_make_whole_images_err_more(tmp_path: Path, shared_data: Path) -> None:
    """20 raccoons and 20 cats to learn from; 160 others of both to be judged by. One image in eighty is noise."""
    raccoons, cats = (sorted((shared_data / folder).iterdir())[:100] for folder in ("raccoons/images", "cats-dogs/cat"))
    for part, some in (("learned", slice(20)), ("asked", slice(20, None))):
        for name, paths in (("raccoon", raccoons), ("cat", cats)):
            (tmp_path / part / name).mkdir(parents=True)
            for path in paths[some]:
                (tmp_path / part / name / path.name).symlink_to(path)
    wrong = {}
    for name, boxes in (("with", shared_data / "raccoons" / "annotations"), ("without", None)):
        run = svertka.train(tmp_path / "learned", output=tmp_path / name, boxes=boxes, val=0.2, threads=1)
        wrong[name] = svertka.evaluate(run, tmp_path / "asked").top1_error
    assert wrong["with"] <= wrong["without"] + 1 / 80
    assert wrong["with"] < 0.05
