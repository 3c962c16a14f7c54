import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from svertka.data.imagenet import CLASSES, DEVKIT, GROUND_TRUTH, NAMES, SENSES, find_class_name
from svertka.data.source_opener import open_source
from svertka.errors import DataError
from svertka.evaluation.evaluate import evaluate

WORDNET = [one.wordnet for one in CLASSES]
# As the devkit does: numbers that are in no order of the ids. Here the classes backwards, and an inner node.
DEVKIT_NUMBER = {wordnet: 1000 - index for index, wordnet in enumerate(WORDNET)}


def flat(folder: Path, count: int = 5) -> list[str]:
    """Empty files, named as the images are; and the ids of classes that are said to be on them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        (folder / f"ILSVRC2012_val_{number:08}.JPEG").touch()
    return [WORDNET[(37 * number) % 1000] for number in range(1, count + 1)]


def found(folder: Path) -> list[str]:
    """The classes in the order of the images' names."""
    dataset = open_source(folder, to_train=False)
    pairs = [(dataset.images.name(k), dataset.names[dataset.labels[k]]) for k in range(len(dataset))]
    return [label for _, label in sorted(pairs)]


def devkit(folder: Path, ids: list[str]) -> Path:
    """The ground truth and meta.mat, as the devkit's are made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / GROUND_TRUTH).write_text("".join(f"{DEVKIT_NUMBER[wordnet]}\n" for wordnet in ids))
    kind = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    rows = [(number, wordnet, find_class_name(wordnet), 0) for wordnet, number in DEVKIT_NUMBER.items()]
    rows.append((1001, "n00001740", "entity", 82))
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kind)[:, None]})
    return folder


def test_the_classes_are_in_the_order_of_the_published_networks() -> None:
    assert len(CLASSES) == len(set(NAMES)) == len(set(WORDNET)) == 1000
    # Indices and names as everybody who has used such a network knows them.
    known = {0: ("n01440764", "tench"), 1: ("n01443537", "goldfish"), 207: ("n02099601", "golden retriever")}
    known |= {281: ("n02123045", "tabby"), 388: ("n02510455", "giant panda"), 999: ("n15075141", "toilet tissue")}
    assert {index: (CLASSES[index].wordnet, CLASSES[index].name) for index in known} == known
    assert sorted(WORDNET) == WORDNET


def test_a_wordnet_id_is_its_class_and_other_words_are_themselves() -> None:
    assert find_class_name("n01440764") == "tench"
    assert find_class_name("tench") == "tench"
    assert find_class_name("n00000000") == "n00000000"
    assert {find_class_name("n02012849"), find_class_name("n03126707")} == {"crane (bird)", "crane (machine)"}


def test_the_names_are_the_published_ones_and_those_of_the_images(shared_data: Path) -> None:
    lines = (shared_data / "imagenet-classes.tsv").read_text().splitlines()
    published = [tuple(line.split("\t")) for line in lines]
    ours = [(one.wordnet, one.name.partition(" (")[0] if one.wordnet in SENSES else one.name) for one in CLASSES]
    assert ours == published
    images = sorted((shared_data / "imagenet-samples").glob("*.JPEG"))
    assert len(images) == 63
    for image in images:
        wordnet, _, name = image.stem.partition("_")
        assert find_class_name(wordnet).partition(" (")[0].replace(" ", "_") == name


@pytest.mark.parametrize("place", [Path("val"), Path(), Path("val") / DEVKIT, DEVKIT])
def test_the_ground_truth_is_in_the_devkit_s_order(tmp_path: Path, place: Path) -> None:
    ids = flat(tmp_path / "val")
    devkit(tmp_path / place, ids)
    assert found(tmp_path / "val") == ids


def test_the_devkit_s_order_may_come_as_text(tmp_path: Path) -> None:
    ids = flat(tmp_path)
    devkit(tmp_path, ids)
    (tmp_path / "meta.mat").unlink()
    with pytest.raises(DataError, match=r"own order, not that of the WordNet ids; put the devkit's meta\.mat beside"):
        open_source(tmp_path)
    (tmp_path / "map_clsloc.txt").write_text("".join(f"{one} {DEVKIT_NUMBER[one]} some_name\n" for one in WORDNET))
    assert found(tmp_path) == ids


@pytest.mark.parametrize("ending", ["", ".JPEG"])
@pytest.mark.parametrize("by_index", [False, True])
def test_lines_of_name_and_class(tmp_path: Path, ending: str, by_index: bool) -> None:
    ids = flat(tmp_path)
    said = [str(WORDNET.index(one)) if by_index else one for one in ids]
    lines = [f"ILSVRC2012_val_{number:08}{ending} {one}\n" for number, one in enumerate(said, start=1)]
    (tmp_path / "val.txt").write_text("".join(reversed(lines)))
    assert found(tmp_path) == ids


def test_ids_in_the_order_of_the_images_and_a_part_of_the_images(tmp_path: Path) -> None:
    ids = flat(tmp_path)
    (tmp_path / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(ids))
    (tmp_path / "ILSVRC2012_val_00000002.JPEG").unlink()
    assert found(tmp_path) == [ids[0], *ids[2:]]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("val.txt", "", "val.txt is empty; it needs one line per image"),
        (
            "val.txt",
            "ILSVRC2012_val_00000001 1\n7",
            "mixes lines with and without an image name; use one format for all lines",
        ),
        ("val.txt", "ILSVRC2012_val_00000001 1000", "line 1 of .* has the index 1000; indices range from 0 to 999"),
        (
            "val.txt",
            "ILSVRC2012_val_00000001 cat",
            "line 1 of .* has the class cat; use a WordNet id such as n01440764",
        ),
        ("val.txt", "ILSVRC2012_val_00000001 5", "has no line for ILSVRC2012_val_00000002.JPEG; add it or remove"),
        ("val.txt", "5", "has no line for ILSVRC2012_val_00000002.JPEG"),
        (GROUND_TRUTH, "1\n2\n3\n4\n5000", "line 5 of .* has the class 5000, which is not in the devkit"),
    ],
)
def test_invalid_label_files_are_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    devkit(tmp_path, flat(tmp_path))
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        open_source(tmp_path)


def test_images_without_numbers_need_names(tmp_path: Path) -> None:
    ids = flat(tmp_path)
    (tmp_path / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(ids))
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(DataError, match=r"has no image names, so holiday\.jpg must have its original name"):
        open_source(tmp_path)


def test_damaged_files_of_the_devkit_are_named(tmp_path: Path) -> None:
    devkit(tmp_path, flat(tmp_path))
    (tmp_path / "meta.mat").write_bytes(b"\0" * 600)
    with pytest.raises(DataError, match=r"meta\.mat cannot be read .*; copy it from the devkit again"):
        open_source(tmp_path)
    (tmp_path / "map_clsloc.txt").write_text("nothing\n")
    with pytest.raises(DataError, match=r"map_clsloc\.txt holds no classes"):
        open_source(tmp_path)


def test_all_layouts_are_judged_alike(shared_data: Path, tmp_path: Path) -> None:
    images = sorted((shared_data / "imagenet-samples").glob("*.JPEG"))[::8]
    ids = [image.name.partition("_")[0] for image in images]
    for number, (image, wordnet) in enumerate(zip(images, ids, strict=True), start=1):
        folder = tmp_path / "folders" / wordnet
        folder.mkdir(parents=True)
        (folder / image.name).symlink_to(image)
        flat(tmp_path / "flat", 0)
        (tmp_path / "flat" / f"ILSVRC2012_val_{number:08}.JPEG").symlink_to(image)
    shutil.copytree(tmp_path / "flat", tmp_path / "other" / "val", symlinks=True)
    devkit(tmp_path / "flat", ids)
    (tmp_path / "other" / "val.txt").write_text(
        "".join(f"ILSVRC2012_val_{number:08}.JPEG {WORDNET.index(one)}\n" for number, one in enumerate(ids, start=1))
    )
    network = "efficientnet_lite0:bundled"
    judged = [evaluate(network, tmp_path / place) for place in ("folders", "flat", "other/val")]
    assert judged[0].images == 8
    assert judged[0].top1_error < 0.3
    told = [one.to_dict() for one in judged]
    for one in told:  # where they lie, and the label files beside them
        del one["source"], one["not_images"]
    assert told[0] == told[1] == told[2]
