"""Complete atlases of small networks: built, interrupted, resumed, rejected."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import svertka
from svertka.cli.app import main
from svertka.errors import DataError, Interrupted, RunError, StorageError, UsageError
from svertka.inspection import top_patches
from svertka.inspection.atlas import image_data
from svertka.inspection.atlas.build import Atlas, look
from svertka.inspection.atlas.resumable_folder import ResumableFolder
from svertka.run import Run


@pytest.fixture(scope="module", autouse=True)
def _few_maps() -> Iterator[None]:
    """Limit overlays to four images, since each takes a few hundred forward passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_data, "MAX_OVERLAY_IMAGES", 4)
        yield


@pytest.fixture(scope="module")
def run(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return svertka.train(digit_folder, model="lenet5", epochs=4, lr=0.002, output=folder, test=0.25, threads=1)


@pytest.fixture(scope="module")
def atlas(run: Run) -> Atlas:
    return look(run, all=True, threads=1)


def data(atlas: Atlas, name: str) -> Any:
    text = (atlas.page.parent / "data" / f"{name}.js").read_text(encoding="ascii")
    return json.loads(text.split("=", 2)[2].rstrip(";\n"))


def facts(atlas: Atlas) -> Any:
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', atlas.page.read_text())
    assert found is not None
    return json.loads(found[1])


def test_atlas_contains_every_unit_of_every_convolution(run: Run, atlas: Atlas) -> None:
    assert atlas.page == run.folder / "atlas-all" / "index.html"
    assert atlas.left_out is None
    assert (atlas.network, atlas.layers, atlas.units, atlas.images) == ("lenet5", 3, 6 + 16 + 120, 60)
    layers = facts(atlas)["layers"]
    assert [(one["name"], one["units"], one["sees"]) for one in layers] == [
        ("c1", 6, "5×5 pixels"), ("c3", 16, "14×14 pixels"), ("c5", 120, "the whole picture"),
    ]  # fmt: skip
    assert sum(len(one["dead"]) for one in layers) == atlas.dead
    assert atlas.bytes <= sum(path.stat().st_size for path in atlas.page.parent.rglob("*") if path.is_file())
    assert sorted(path.name for path in atlas.page.parent.iterdir()) == [
        "atlas.json", "data", "index.html", "layers", "overlays", "pictures",
    ]  # fmt: skip


def test_tiles_show_the_receptive_field_in_the_original_image(run: Run, atlas: Atlas) -> None:
    """Crops of the original test images are compared with the tiles of the sprite sheet."""
    layer, found, names = facts(atlas)["layers"][1], data(atlas, "layer-1"), data(atlas, "pictures")["names"]
    classifier = run.classifier()
    side = layer["tile"]["kept"]
    with Image.open(atlas.page.parent / layer["folder"] / "patches-0.webp") as file:
        tiles = np.asarray(file.convert("RGBA"))
    source = Path(run.settings()["source"])
    for unit, place in [(0, 0), (3, 1), (15, 8)]:
        name = names[found["pictures"][unit][place]][0]
        image = classifier.preprocess(source / name)
        square = classifier.preprocess.square(np.array(Image.open(source / name).convert("RGB")))
        (top, bottom), (left, right) = (
            layer[axis][found[axis][unit][place]] for axis in ("rows", "columns")
        )  # the first and the last pixel
        tile = tiles[unit * side : (unit + 1) * side, place * side : (place + 1) * side]
        assert np.array_equal(
            tile[: bottom + 1 - top, : right + 1 - left, :1], square[top : bottom + 1, left : right + 1]
        )
        best = top_patches(classifier.network, image[None], "c3")["c3"]
        assert best.values[unit, 0] == pytest.approx(found["values"][unit][place], rel=1e-3)
        assert best.positions[unit, 0].tolist() == [found[axis][unit][place] for axis in ("rows", "columns")]


def test_predictions_match_the_classifier(run: Run, atlas: Atlas) -> None:
    names, rows = data(atlas, "pictures")["names"], data(atlas, "pictures-0")
    classifier, source = run.classifier(), Path(run.settings()["source"])
    for (name, label, guess), row in list(zip(names, rows, strict=False))[:5]:
        best, probability = classifier.predict(source / name, top=1)[0]
        assert facts(atlas)["predicted"][guess] == best
        assert row["best"][0] == [guess, pytest.approx(probability, abs=1e-3)]
        assert facts(atlas)["classes"][label] == Path(name).parent.name


def test_strongest_units_are_closest_to_their_own_maximum(run: Run, atlas: Atlas) -> None:
    found, row = data(atlas, "layer-1"), data(atlas, "pictures-0")[0]
    name = data(atlas, "pictures")["names"][0][0]
    image = run.classifier().preprocess(Path(run.settings()["source"]) / name)
    alone = top_patches(run.classifier().network, image[None], "c3", count=1)["c3"]
    largest = np.array([row[0] for row in found["values"]], float)
    shares = np.nan_to_num(alone.values[:, 0] / np.where(largest > 0, largest, np.nan), nan=-1)
    order = np.argsort(-shares)[:6]
    order = order[shares[order] > 0]
    assert len(order)
    assert [one[0] for one in row["strongest"][1]] == order.tolist()
    assert [one[1] for one in row["strongest"][1]] == pytest.approx(shares[order], abs=2e-3)
    assert [one[2:] for one in row["strongest"][1]] == alone.positions[order, 0].tolist()


def test_finished_atlas_is_not_rebuilt(run: Run, atlas: Atlas, capsys: pytest.CaptureFixture[str]) -> None:
    written = atlas.page.stat().st_mtime_ns
    assert main(["look", str(run.folder), "--all", "--threads", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == atlas.to_dict() | {"seconds": said["seconds"]}
    assert atlas.page.stat().st_mtime_ns == written


def test_interrupted_build_resumes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after 8 files, after 16 more, and so on, the folder equals that of an uninterrupted build."""
    atlas = look(run, layers=["c1", "c5"], units=24, output=tmp_path / "undisturbed", threads=1)
    real, left, made, said = ResumableFolder.write, [0], [], []

    def write(self: ResumableFolder, name: str, content: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        made.append(name)
        real(self, name, content)

    monkeypatch.setattr(ResumableFolder, "write", write)
    for times in range(1, 20):
        left[0] = 8 * times
        try:
            again = look(run, layers=["c1", "c5"], units=24, output=tmp_path / "atlas", threads=1)
            break
        except Interrupted as error:
            said.append(str(error))
            assert not (tmp_path / "atlas" / "index.html").exists()
    assert len(said) > 1
    assert all("run the same command again to resume" in one for one in said)
    assert made.count("layers/1/patches-0.webp") == 1
    here, there = atlas.page.parent, again.page.parent
    files = sorted(path.relative_to(here) for path in here.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(there) for path in there.rglob("*") if path.is_file())
    assert [str(path) for path in files if (here / path).read_bytes() != (there / path).read_bytes()] in (
        [],
        ["atlas.json"],
    )


def test_options_limit_layers_units_and_images(run: Run, tmp_path: Path) -> None:
    some = look(run, layers=["c5", "c3"], units=4, images=20, output=tmp_path / "some", threads=1)
    assert (some.layers, some.units, some.images) == (2, 8, 20)
    assert [one["name"] for one in facts(some)["layers"]] == ["c3", "c5"]  # as they run
    assert [one["all"] for one in facts(some)["layers"]] == [16, 120]
    assert some.left_out == (
        "8 of 142 units are shown, the first 4 of each named layer; svertka look --all without --layers and --units "
        "shows every unit"
    )
    named = look(run, layers=["c3"], all=True, images=4, output=tmp_path / "named", threads=1)
    assert named.left_out == (
        "16 of 142 units are shown, those of the named layers; svertka look --all without --layers shows every unit"
    )
    with pytest.raises(UsageError, match="is an atlas of other weights, images or options"):
        look(run, layers=["c3"], output=tmp_path / "some", threads=1)


def test_by_default_it_shows_twelve_units_of_the_last_layer_of_each_stage(
    squeezenet_run: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "a"
    assert main(["look", str(squeezenet_run), str(photographs), "--output", str(made), "--threads", "1"]) == 0
    sentence = "38 of 2,946 units are shown, by default the first 12 of the last layer of each stage"
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == f"{sentence}; svertka look --all shows every unit"
    page = (made / "index.html").read_text(encoding="utf-8")
    assert sentence in page
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', page)
    assert found is not None
    layers = json.loads(found[1])["layers"]
    assert [one["name"] for one in layers] == [
        "features.0", "features.4.expand3x3", "features.7.expand3x3", "classifier.1",
    ]  # fmt: skip
    assert [one["units"] for one in layers] == [12, 12, 12, 2]
    assert len(json.loads(found[1])["featured"]) == 4


def test_all_of_a_source_is_shown_unless_a_part_is_named(
    run: Run, digit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, images, sentence in (
        ([str(digit_folder)], 240, f"shown: {digit_folder}, all images"),
        ([str(digit_folder), "--part", "test"], 60, f"shown: {digit_folder}, test images"),
        ([], 60, f"shown: {digit_folder}, test images; 156 images that trained the network left out"),
    ):
        output = ["--output", str(tmp_path / str(len(arguments))), "--layers", "c1", "--threads", "1", "--json"]
        assert main(["look", str(run.folder), *arguments, *output]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["images"] == images
        assert sentence in printed.err


def test_any_module_has_an_atlas(digit_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 4),
    )  # fmt: skip
    made = look(network, digit_folder, output=tmp_path / "a", threads=1)
    assert (made.network, made.layers, made.units, made.images) == ("Sequential", 2, 18, 240)


def test_invalid_arguments_are_rejected(run: Run, tmp_path: Path, digit_folder: Path) -> None:
    for asked, sentence in [
        ({"layers": ["c33"]}, "c33.*c3"),
        ({"layers": ["f6"]}, "tanh6 has outputs of shape 84"),
        ({"units": 0}, "units=0 must be at least 1"),
        ({"images": 0}, "images=0 must be at least 1"),
        ({"source": tmp_path / "nowhere"}, "there is no folder"),
    ]:
        with pytest.raises(UsageError, match=sentence):
            look(run, output=tmp_path / "never", threads=1, **asked)
    assert not (tmp_path / "never" / "index.html").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        look(run, tmp_path / "empty", output=tmp_path / "never", threads=1)
    with pytest.raises(RunError, match="is not a run folder"):
        look(tmp_path / "nothing", digit_folder, output=tmp_path / "never", threads=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="mine exists and is not an atlas"):
        look(run, output=tmp_path / "mine", threads=1)


def test_run_whose_source_is_gone_needs_another_source(run: Run, tmp_path: Path, digit_folder: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("atlas"))
    training = tmp_path / "run" / "training.json"
    training.write_text(training.read_text().replace(str(digit_folder), str(tmp_path / "gone")))
    with pytest.raises(DataError, match=r"was trained on \(there is no folder .*name another source: svertka look"):
        look(tmp_path / "run", threads=1)
    others = look(tmp_path / "run", digit_folder / "one" / "..", layers=["c1"], images=9, threads=1)
    assert (others.page.parent, others.images) == (tmp_path / "run" / "atlas", 9)


def test_pretrained_model_needs_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["look", "efficientnet_lite0:bundled"]) == 2
    assert main(["look", "efficientnet_lite0"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_reported_and_finished_files_are_reused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: ResumableFolder, name: str, content: bytes) -> None:
        raise StorageError(f"cannot write {name}: no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ResumableFolder, "write", write)
        with pytest.raises(StorageError, match="no space left"):
            look(run, layers=["c1"], output=tmp_path / "atlas", threads=1)
    monkeypatch.setattr(
        "svertka.inspection.atlas.dataset_pass.top_patches", lambda *_: pytest.fail("it was looked again")
    )
    assert look(run, layers=["c1"], output=tmp_path / "atlas", threads=1).units == 6


def test_atlas_of_photographs_with_a_dead_unit(photographs: Path, squeezenet_run: Path, tmp_path: Path) -> None:
    made = look(
        squeezenet_run,
        photographs,
        layers=["features.0", "features.6.expand3x3"],
        units=8,
        output=tmp_path / "a",
        threads=1,
    )
    first, later = facts(made)["layers"]
    assert first["dead"] == [3]
    assert first["filters"]
    assert first["tile"]["crisp"]
    assert not later["tile"]["crisp"]
    assert data(made, "layer-0")["pictures"][3] == [-1] * 9
    with Image.open(made.page.parent / first["folder"] / "patches-0.webp") as file:
        tiles = np.asarray(file.convert("RGBA"))
    assert tiles[9:12, :, 3].max() == 0
    assert tiles[:9, :, 3].min() == 255
    with Image.open(made.page.parent / later["folder"] / "projections-0.webp") as file:
        seen = np.asarray(file.convert("RGBA"))
    assert seen[seen[..., 3] > 128][:, :3].std() > 4  # not blank
