import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import svertka
from hostile import TEXTS, files
from svertka.data.file_accounting import LISTED_ALREADY, NO_CLASS, NO_LABEL, NO_PART
from svertka.data.file_tree import FileTree, is_image_content, list_tree
from svertka.data.folder_and_table_sources import list_folder, open_folder
from svertka.data.folder_layout import detect_layout
from svertka.data.prediction_inputs import expand_inputs
from svertka.errors import DataError, SvertkaError

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c63600000000200014898e2a50000000049454e44ae426082"
)


def make(root: Path, *paths: str) -> Path:
    """Images at `paths` under `root`; files that end otherwise hold text."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(PNG if path.endswith((".png", ".jpg")) else b"some text")
    return root


def others(tree: FileTree) -> list[str]:
    return [folder.inside(name) for folder in tree.root.walk() for name in folder.other] + tree.hidden_others


def test_npy_files_are_images_where_they_are_more_than_other_images(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/2.png")
    for path, shape in {
        "a/mask.npy": (8, 8),
        "b/x.npy": (8, 8, 5),
        "features.npy": (9,),
        "all.npy": (2, 8, 8, 3),
    }.items():
        np.save(tmp_path / path, np.zeros(shape, np.uint8))
    tree = list_tree(tmp_path)
    assert tree.images() == ["a/1.png", "b/2.png"]
    assert others(tree) == ["all.npy", "features.npy", "a/mask.npy", "b/x.npy"]
    np.save(tmp_path / "a" / "0.npy", np.zeros((8, 8, 5), np.uint8))
    tree = list_tree(tmp_path)
    assert tree.images() == ["a/0.npy", "a/1.png", "a/mask.npy", "b/2.png", "b/x.npy"]
    assert others(tree) == ["all.npy", "features.npy"]


def test_files_without_suffix_are_recognized_by_content(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "a/2", "b/3.PNG", "b/4.txt", "b/note")
    for name in ("a/photo", "b/5.dat", "b/6.txt"):
        (tmp_path / name).write_bytes(PNG)
    listing = list_folder(tmp_path)
    assert [entry.path for entry in listing.entries] == ["a/1.png", "a/photo", "b/3.PNG", "b/5.dat", "b/6.txt"]
    assert listing.account.notes == (
        "used, although their names lack the suffix of an image: a/photo, b/5.dat, b/6.txt",
    )
    assert dict(listing.account.not_images) == {".txt": 1, "no suffix": 2}


def test_words_are_no_bitmap() -> None:
    assert not is_image_content(b"BMW and others are makers of cars")
    assert is_image_content(b"BM\x9a\x00\x00\x00\x00\x00\x00\x00\x36\x00\x00\x00\x28\x00\x00\x00")


def test_a_raw_photograph_is_not_taken_for_the_thumbnail_in_it(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a" / "2.nef").write_bytes(b"II*\0" + bytes(60))
    listing = list_folder(tmp_path)
    assert [(one.path, one.reason) for one in listing.account.left_out] == [("a/2.nef", "unsupported format")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in class folders, and whatever svertka makes there."""
    root = tmp_path_factory.mktemp("made") / "photos"
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    before = Path.cwd()
    os.chdir(root)
    try:
        run = svertka.train(".", model="lenet5", epochs=1, threads=1)
        svertka.look(run, threads=1, images=2)
        svertka.look(run, "a/..", threads=1, images=2, output="atlas of mine")
        svertka.locate(run.folder, "a", output="a/found", threads=1)
        svertka.export(run.folder, "a/exported/")
    finally:
        os.chdir(before)
    return root


def test_outputs_of_svertka_are_not_data(made: Path) -> None:
    listing = list_folder(made)
    assert listing.names() == ("a", "b")
    assert len(listing.entries) == 12
    assert listing.problems() == []
    assert {one.reason for one in listing.account.left_out} == {"made by svertka"}
    assert len(listing.account.left_out) > 6
    assert len([name for name, _ in expand_inputs([made])]) == 12


def test_moved_and_renamed_it_is_none_either(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "copy")
    shutil.move(tmp_path / "copy" / "runs", tmp_path / "copy" / "b" / "old results")
    shutil.move(tmp_path / "copy" / "atlas of mine", tmp_path / "copy" / "c")
    listing = list_folder(tmp_path / "copy")
    assert listing.names() == ("a", "b")
    assert len(listing.entries) == 12
    with pytest.raises(SvertkaError, match="an atlas that svertka wrote"):
        open_folder(tmp_path / "copy" / "c")


def test_a_training_that_is_being_prepared_is_none(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/1.png", "runs/x/.lock")
    assert list_folder(tmp_path).problems() == []


def test_links_lead_to_each_folder_once(tmp_path: Path) -> None:
    root = make(tmp_path / "photos", "all/cat/1.png", "all/dog/1.png", "train/x.txt", "test/x.txt")
    for part, name in (("train", "cat"), ("train", "dog"), ("test", "cat")):
        (root / part / name).symlink_to(root / "all" / name)
    (root / "train" / "above").symlink_to(tmp_path)
    (root / "train" / "round").symlink_to(root / "train")
    listing = list_folder(root)
    # What is trained on must not be tested on, too.
    used = [(entry.path, entry.part) for entry in listing.entries]
    assert used == [("test/cat/1.png", "test"), ("train/dog/1.png", "train")]
    reasons = {one.path: one.reason for one in listing.account.left_out}
    assert reasons["train/cat/"] == LISTED_ALREADY
    assert reasons["train/above/"] == reasons["train/round/"] == "a link to a folder that contains it"


def test_the_folder_itself_goes_before_a_link_to_it(tmp_path: Path) -> None:
    root = make(tmp_path, "cat/1.png", "dog/1.png")
    (root / "dog" / "more").symlink_to(root / "cat")
    listing = list_folder(root)
    assert [(entry.path, entry.label) for entry in listing.entries] == [("cat/1.png", "cat"), ("dog/1.png", "dog")]
    assert [(one.path, one.reason) for one in listing.account.left_out] == [("dog/more/1.png", LISTED_ALREADY)]


def test_many_links_between_folders_end(tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(12)]
    make(tmp_path, *(f"{name}/1.png" for name in names))
    for name in names:
        for other in names:
            (tmp_path / name / f"to {other}").symlink_to(tmp_path / other)
    assert len(list_folder(tmp_path).entries) == 12


def test_what_is_no_file_is_an_image_only_where_reading_says_why_not(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/1.png")
    odd = files(tmp_path / "a" / "odd", ".jpg")
    listing = list_folder(tmp_path)
    left_out = {Path(one.path).name: one.reason for one in listing.account.left_out}
    assert left_out == {"pipe.jpg": "not a regular file", "endless-device.jpg": "not a regular file"}
    dataset = listing.dataset()
    named = {Path(dataset.images.name(index)).name for index in range(len(dataset))}
    assert named == {"1.png", *(path.name for path in odd.values())} - {*left_out, "folder.jpg", "absent.jpg"}
    for index in range(len(dataset)):
        if "odd" in dataset.images.name(index):
            with pytest.raises(DataError):
                dataset.images.read(index)


FOLDERS = ["a", "b", "A", "train", "Training", "test", "val", "valid", "images", "data", "seg_train", "runs", "café"]
FOLDERS += ["__MACOSX", ".hidden", "lost+found", "annotations", "overlays", "cafe\u0301", *TEXTS.values()]
FILES = ["1.png", "2.png", "3.jpg", "4.JPG", "x.txt", "y.psd", "z.nef", "no suffix", "Thumbs.db", ".x.png", "w.gif"]
FILES += ["config.json", "model.safetensors", "atlas.json", "metadata.csv", "train.csv", "words.txt", "val.txt"]
TABLES = [
    "path,label\n1.png,cat\n2.png,dog\n",
    "id,label\n1,x\n2,y\n",
    "file_name;label\n1.png;1\n",
    "\0",
    "a,b\n1,2\n",
]


def random_tree(root: Path, seed: int) -> None:
    """Folders, images, junk, links, pipes and tables under `root`, up to four levels deep."""
    generator = random.Random(seed)
    folders = [root]
    root.mkdir()
    few = generator.sample(FOLDERS, 5)  # so that names meet again
    for _ in range(generator.randrange(14)):
        folder = generator.choice(folders) / generator.choice(few)
        if len(folder.relative_to(root).parts) < 5 and not folder.exists():
            folder.mkdir()
            folders.append(folder)
    for folder in folders:
        for name in generator.sample(FILES, generator.choice((0, 1, 3, 6))):
            _put(folder / name, generator)
        if generator.random() < 0.2:
            _link(folder / f"link{generator.choice(('', '.png'))}", generator.choice(folders), generator)


def _put(path: Path, generator: random.Random) -> None:
    kind = generator.random()
    if kind < 0.03:
        os.mkfifo(path)
    elif path.suffix == ".csv":
        path.write_text(generator.choice(TABLES))
    else:
        path.write_bytes(PNG if kind < 0.85 else generator.choice((b"", b"text", PNG[:30])))


def _link(path: Path, target: Path, generator: random.Random) -> None:
    path.symlink_to(generator.choice((target, target / "1.png", Path("nowhere"), Path(path.name), Path("/dev/null"))))


def test_every_file_of_any_tree_is_used_or_left_out_or_no_image(
    tmp_path: Path, large_count: Callable[[int, int], int]
) -> None:
    used = 0
    for seed in range(large_count(60, 10_000)):
        root = tmp_path / "tree"
        random_tree(root, seed)
        try:
            used += _check_account(root)
        finally:
            shutil.rmtree(root)
    assert used > 10


def _check_account(root: Path) -> int:
    there = {str((Path(folder) / name).relative_to(root)) for folder, _, names in os.walk(root) for name in names}
    tree = list_tree(root)
    try:
        layout = detect_layout(tree)
        listing = list_folder(root)
    except SvertkaError:
        return 0
    entries = [entry.path for entry in listing.entries]
    left_out = [one.path for one in {*tree.left_out, *layout.left_out} if not one.path.endswith("/")]
    count = Counter([*entries, *left_out, *others(tree)])
    assert [path for path, number in count.items() if number > 1] == []
    absent = {path for path in entries if not os.path.lexists(root / path)}  # named by a table
    linked = {path for path in count if any((root / place).is_symlink() for place in Path(path).parents)}
    real = count.keys() - absent - linked
    assert real == there
    assert sum(number for _, number in listing.account.not_images) == len(others(tree))

    predicted = {os.path.realpath(path) for _, path in expand_inputs([root]) if isinstance(path, Path)}
    unlabeled = (NO_CLASS, NO_PART, NO_LABEL, LISTED_ALREADY)
    could = {os.path.realpath(root / one.path) for one in listing.account.left_out if one.reason in unlabeled}
    learned = {os.path.realpath(root / path) for path in entries}
    assert learned - {os.path.realpath(root / path) for path in absent} <= predicted <= learned | could
    if entries:
        assert len(open_folder(root, to_train=False)) == len(entries)
    if not listing.problems():
        assert len(open_folder(root)) == len(entries)
        return 1
    return 0
