"""Every image is decoded once, whatever the disk, the limit and the processes do, and its square is the right one."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from fork_server import DISTRIBUTED, Python
from ranks import rendezvous, wait_for_end
from svertka.data import dataset as dataset_module
from svertka.data import image_disk_cache, image_io
from svertka.data.dataset import ArrayImages, Dataset, FileImages
from svertka.data.disk_cache import INDEX_ENTRY
from svertka.data.image_disk_cache import find_images_with_unused_parts, prepare_images
from svertka.data.image_io import DecodedImage, DecodingOptions, decode_image
from svertka.data.packed_image import HEAD
from svertka.data.preprocessing import resize_central_square
from svertka.errors import DataError
from svertka.files import cache_folder

SIDE = 24
ROW = SIDE * SIDE * 3 + HEAD.size
COST = ROW + INDEX_ENTRY.itemsize


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "svertka"


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The first bytes of every image that is decoded."""
    calls: list[str] = []

    def counted(data: bytes, *options: object) -> DecodedImage:
        calls.append(data[:4].hex())
        return decode_image(data, *options)

    monkeypatch.setattr(dataset_module, "decode_image", counted)
    return calls


def jpeg(number: int) -> bytes:
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((60, 48), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def folder_of(root: Path, count: int, first: int = 0) -> Dataset:
    root.mkdir(exist_ok=True)
    for number in range(first, first + count):
        (root / f"{number}.jpg").write_bytes(jpeg(number))
    return dataset_of(root, [f"{number}.jpg" for number in range(first, first + count)])


def dataset_of(root: Path, paths: list[str]) -> Dataset:
    labels = np.arange(len(paths)) % 2
    return Dataset(str(root), ("a", "b"), FileImages(root, paths), labels, np.full(len(paths), ""))


def expected(dataset: Dataset, resize: int = SIDE, channels: int = 3, pad_to: int = 0) -> np.ndarray:
    decoded = [dataset.images.read(index, min_side=resize) for index in range(len(dataset))]
    return np.stack([resize_central_square(image, resize, channels, pad_to) for image in decoded])


def everything(rows, seed: int = 0) -> np.ndarray:
    """All rows, asked for in random batches."""
    order = np.random.default_rng(seed).permutation(len(rows))
    batches = [rows[order[start : start + 7]] for start in range(0, len(rows), 7)]
    return np.concatenate(batches)[np.argsort(order)]


@pytest.mark.parametrize(("resize", "channels", "pad_to"), [(SIDE, 3, 0), (SIDE, 1, 0), (20, 3, 32), (100, 3, 0)])
def test_rows_are_the_central_squares(tmp_path, resize, channels, pad_to):
    dataset = folder_of(tmp_path / "photos", 20)
    for _ in range(2):
        prepared = prepare_images(dataset, resize, channels, pad_to, threads=2)
        rows = everything(prepared.rows)
        assert rows.dtype == np.uint8
        np.testing.assert_array_equal(rows, expected(dataset, resize, channels, pad_to))
        assert (prepared.stored, prepared.bad, prepared.unstored) == (20, {}, None)
        assert prepared.digests == [dataset.images.digest(index) for index in range(20)]
        assert len(prepared.rows) == 20
        assert prepared.rows[np.zeros(0, np.int64)].shape[0] == 0


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photo.tif", "photo.webp", "deep.png"])
def test_a_stored_image_is_refused_under_a_lower_limit(tmp_path: Path, name: str) -> None:
    """As it would be if it were decoded: JPEGs count at the size to which they are reduced."""
    (tmp_path / "photos").mkdir()
    rgb = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    image = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257 if name.startswith("deep") else rgb)
    for copy in (f"0{name}", f"1{name}"):  # one alone would be stored nowhere
        image.save(tmp_path / "photos" / copy)
        image = image.transpose(Image.Transpose.ROTATE_180)
    dataset = dataset_of(tmp_path / "photos", [f"0{name}", f"1{name}"])
    assert prepare_images(dataset, SIDE, 3, threads=1).stored == 2
    pixels = 100 * 150 if name.endswith("jpg") else 200 * 300
    for limit, refused in ((pixels, 0), (pixels - 1, 2), (pixels, 0)):
        some = dataset.with_decoding(DecodingOptions.up_to(limit))
        prepared = prepare_images(some, SIDE, 3, threads=1)
        assert len(prepared.bad) == refused
        assert all("megapixels, more than the limit" in reason for reason in prepared.bad.values())


def test_a_stored_image_that_took_more_memory_than_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_io, "MEMORY_LIMIT", 1_000_000)
    (tmp_path / "photos").mkdir()
    for name, shade in (("a.webp", 10), ("b.webp", 200)):
        Image.new("RGB", (300, 300), (shade, 0, 0)).save(tmp_path / "photos" / name)  # 1.5 MB to decode
    dataset = dataset_of(tmp_path / "photos", ["a.webp", "b.webp"])
    low, high = DecodingOptions(10**8, 10**6), DecodingOptions(10**9, 10**8)
    for decoding, refused in ((low, 2), (high, 0), (low, 2)):
        assert len(prepare_images(dataset.with_decoding(decoding), SIDE, 3, threads=1).bad) == refused


def test_files_with_further_pages_are_known_also_when_they_are_stored(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    pages = [Image.new("L", (40, 30), shade) for shade in (10, 90, 200)]
    pages[0].save(tmp_path / "photos" / "many.tif", save_all=True, append_images=pages[1:])
    pages[1].save(tmp_path / "photos" / "one.tif")
    dataset = dataset_of(tmp_path / "photos", ["many.tif", "one.tif"])
    for _ in range(2):
        prepared = prepare_images(dataset, SIDE, 3, threads=1)
        assert find_images_with_unused_parts(dataset.images, prepared.info) == [str(tmp_path / "photos" / "many.tif")]


def test_photographs_are_decoded_once(shared_data, opened):
    paths = sorted(path.name for path in (shared_data / "cats-dogs" / "cat").iterdir())[:60]
    dataset = dataset_of(shared_data / "cats-dogs" / "cat", paths)
    first = prepare_images(dataset, 64, 3, threads=2)
    assert first.decoded == len(opened) == len(paths)
    epochs = [everything(first.rows, seed) for seed in range(3)]
    again = prepare_images(dataset, 64, 3, threads=2)
    epochs.append(everything(again.rows))
    assert again.decoded == 0
    assert len(opened) == len(paths)  # in no epoch, and at no other start, was one opened
    opened.clear()
    for epoch in epochs:
        np.testing.assert_array_equal(epoch, expected(dataset, 64))


def test_other_settings_decode_again_and_copies_do_not(tmp_path, opened):
    dataset = folder_of(tmp_path / "photos", 5)
    for number in range(5):
        shutil.copy(tmp_path / "photos" / f"{number}.jpg", tmp_path / "photos" / f"copy{number}.jpeg")
    both = dataset_of(tmp_path / "photos", [*dataset.images.paths, *(f"copy{number}.jpeg" for number in range(5))])
    prepared = prepare_images(both, SIDE, 3, threads=2)
    assert len(opened) == 5
    assert prepared.stored == 10
    np.testing.assert_array_equal(prepared.rows[np.arange(5)], prepared.rows[np.arange(5, 10)])
    prepare_images(both, SIDE, 1, threads=2)
    prepare_images(both, SIDE + 1, 3, threads=2)
    prepare_images(both, SIDE, 3, SIDE + 1, threads=2)
    assert len(opened) == 20
    (tmp_path / "photos").rename(tmp_path / "moved")
    prepare_images(dataset_of(tmp_path / "moved", both.images.paths), SIDE, 3, threads=2)
    assert len(opened) == 20


def test_new_and_changed_images_are_decoded_and_no_other(tmp_path, opened):
    folder_of(tmp_path / "photos", 6)
    prepare_images(folder_of(tmp_path / "photos", 6), SIDE, 3, threads=2)
    opened.clear()
    dataset = folder_of(tmp_path / "photos", 8)
    (tmp_path / "photos" / "3.jpg").write_bytes(jpeg(99))
    prepared = prepare_images(dataset, SIDE, 3, threads=2)
    assert len(opened) == 3
    np.testing.assert_array_equal(everything(prepared.rows), expected(dataset))


def bad_folder(root: Path) -> Dataset:
    folder_of(root, 10)
    (root / "1.jpg").write_bytes(jpeg(1)[:500])
    (root / "2.jpg").write_bytes(b"")
    (root / "3.jpg").write_bytes(b"hello")
    shutil.copy(root / "4.jpg", root / "4.png")
    paths = [f"{number}.jpg" for number in range(10)]
    return dataset_of(root, [*paths, "4.png", "absent.jpg"])


BAD = {
    1: "truncated",
    2: "empty file",
    3: "not an image (JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, HEIC, JPEG 2000, PNM)",
    11: "no such file or directory",
}


def test_unreadable_images_are_remembered_with_their_reason(tmp_path, opened):
    dataset = bad_folder(tmp_path / "photos")
    good = [index for index in range(len(dataset)) if index not in BAD]
    for start in range(3):
        prepared = prepare_images(dataset, SIDE, 3, threads=2)
        assert prepared.bad == BAD
        assert prepared.stored == 8
        assert prepared.info[10].format == "JPEG"  # though it is named .png
        assert len(opened) == 10, start  # all but the absent one, once; one is a copy
        right = dataset.take(np.array(good))
        opened_before = len(opened)
        np.testing.assert_array_equal(prepared.rows[np.array(good)], expected(right))
        del opened[opened_before:]
    with pytest.raises(DataError, match=r"1.jpg cannot be read: truncated; fix or remove"):
        prepared.rows[np.array([0, 1])]


def test_a_mended_image_is_good_again(tmp_path):
    dataset = bad_folder(tmp_path / "photos")
    prepare_images(dataset, SIDE, 3, threads=2)
    (tmp_path / "photos" / "1.jpg").write_bytes(jpeg(1))
    (tmp_path / "photos" / "absent.jpg").write_bytes(jpeg(50))
    assert prepare_images(dataset, SIDE, 3, threads=2).bad.keys() == {2, 3}


def test_another_decoder_tries_bad_images_again(tmp_path, opened, monkeypatch):
    dataset = bad_folder(tmp_path / "photos")
    prepare_images(dataset, SIDE, 3, threads=2)
    opened.clear()
    monkeypatch.setattr(PIL, "__version__", "0")
    assert prepare_images(dataset, SIDE, 3, threads=2).bad == BAD
    assert len(opened) == 3
    assert prepare_images(dataset.with_decoding(DecodingOptions(10**9)), SIDE, 3, threads=2).bad == BAD
    assert len(opened) == 6
    for content in (b"{", b"[]", b'{"header": 1}', b"\xff"):
        (cache_folder("pictures") / "bad.json").write_bytes(content)
        assert prepare_images(dataset, SIDE, 3, threads=2).bad == BAD


def test_rows_beyond_the_limit_are_decoded_at_each_read(tmp_path, opened):
    dataset = folder_of(tmp_path / "photos", 30)
    prepared = prepare_images(dataset, SIDE, 3, threads=2, cache_limit=12 * COST)
    assert prepared.stored == 12
    assert prepared.unstored.startswith("18 images are decoded at each read: they exceed the")
    opened.clear()
    rows = everything(prepared.rows)
    assert len(opened) == 18
    np.testing.assert_array_equal(rows, expected(dataset))
    opened.clear()
    assert prepare_images(dataset, SIDE, 3, threads=2, cache_limit=12 * COST).stored == 12
    assert len(opened) == 18


def test_nothing_fits(tmp_path):
    dataset = folder_of(tmp_path / "photos", 8)
    prepared = prepare_images(dataset, SIDE, 3, threads=2, cache_limit=0)
    assert prepared.stored == 0
    np.testing.assert_array_equal(everything(prepared.rows), expected(dataset))


def test_images_of_another_data_set_make_room(tmp_path, cache):
    prepare_images(folder_of(tmp_path / "other", 12, first=100), SIDE, 3, threads=2, cache_limit=15 * COST)
    dataset = folder_of(tmp_path / "photos", 15)
    prepared = prepare_images(dataset, SIDE, 3, threads=2, cache_limit=15 * COST)
    assert prepared.stored == 15
    np.testing.assert_array_equal(everything(prepared.rows), expected(dataset))
    gray = prepare_images(
        dataset, SIDE, 1, threads=2, cache_limit=15 * COST
    )  # there is room left beside: gray is a third
    assert gray.stored == 0  # the color ones are still in use, and fill it
    del prepared
    assert prepare_images(dataset, SIDE, 1, threads=2, cache_limit=15 * COST).stored == 15
    assert len(list((cache / "pictures").glob("squares-*"))) == 1


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, opened):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    dataset = bad_folder(tmp_path / "photos")
    prepared = prepare_images(dataset, SIDE, 3, threads=2)
    assert prepared.bad == BAD
    assert prepared.stored == 0
    assert "cannot write" in prepared.unstored
    good = np.array([index for index in range(len(dataset)) if index not in BAD])
    np.testing.assert_array_equal(prepared.rows[good], expected(dataset.take(good)))
    assert prepared.rows[good[:0]].shape == (0, SIDE, SIDE, 3)


def test_a_disk_that_fills_while_storing(tmp_path, monkeypatch):
    dataset = folder_of(tmp_path / "photos", 40)
    monkeypatch.setattr(image_disk_cache, "CHUNK", 10)
    real = os.pwrite

    def full(file: int, data: memoryview, offset: int) -> int:
        if offset + len(data) > 25 * COST:
            raise OSError(28, "No space left on device")
        return real(file, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    prepared = prepare_images(dataset, SIDE, 3, threads=2)
    assert prepared.stored == 20
    assert "no space left on device" in prepared.unstored
    np.testing.assert_array_equal(everything(prepared.rows), expected(dataset))


def test_damaged_rows_are_decoded_again(tmp_path, cache, opened):
    dataset = folder_of(tmp_path / "photos", 10)
    prepare_images(dataset, SIDE, 3, threads=2)
    (rows,) = cache.glob("pictures/*/rows")
    content = bytearray(rows.read_bytes())
    content[3 * ROW + HEAD.size + 5] ^= 64
    rows.write_bytes(content)
    opened.clear()
    prepared = prepare_images(dataset, SIDE, 3, threads=2)
    assert len(opened) == 1
    np.testing.assert_array_equal(everything(prepared.rows), expected(dataset))


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_stay_in_memory(channels, cache):
    array = np.random.default_rng(1).integers(0, 256, (50, 28, 28, channels)).astype(np.uint8)
    whole = Dataset("d", ("a", "b"), ArrayImages(array, "d"), np.zeros(50, np.int64), np.full(50, ""))
    chosen = np.array([7, 3, 40, 3])
    for dataset, right in ((whole, array), (whole.take(chosen), array[chosen])):
        same = prepare_images(dataset, 28, channels, 28, threads=2)
        np.testing.assert_array_equal(everything(same.rows), right)
        assert same.rows.array is array
        for resize, wanted, pad_to in ((28, channels, 32), (14, channels, 0), (28, 4 - channels, 0), (40, 3, 0)):
            other = prepare_images(dataset, resize, wanted, pad_to, threads=2)
            np.testing.assert_array_equal(everything(other.rows), expected(dataset, resize, wanted, pad_to))
        assert same.digests == [dataset.images.digest(index) for index in range(len(dataset))]
    assert not (cache / "pictures").exists()


def test_large_squares_of_arrays_are_made_when_needed_and_never_stored(monkeypatch, cache):
    monkeypatch.setattr(image_disk_cache, "IN_MEMORY", 10 * 40 * 40 * 3 - 1)
    array = np.random.default_rng(1).integers(0, 256, (10, 28, 28, 3)).astype(np.uint8)
    dataset = Dataset("d", ("a", "b"), ArrayImages(array, "d"), np.zeros(10, np.int64), np.full(10, ""))
    prepared = prepare_images(dataset, 40, 3, threads=2)
    assert (prepared.stored, prepared.unstored) == (0, None)
    np.testing.assert_array_equal(everything(prepared.rows), expected(dataset, 40))
    assert not (cache / "pictures").exists()


def run_python(code: str, cache: Path, **environment: str) -> subprocess.Popen:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    variables = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(cache.parent), **environment}
    modules = DISTRIBUTED if "RANK" in environment else ()
    return Python(["-c", code], modules=modules, env=variables, stdout=subprocess.PIPE, text=True)


PREPARE = """
import sys
from pathlib import Path
import numpy as np
from svertka.data import image_disk_cache, image_io
from svertka.data.dataset import Dataset, FileImages
image_disk_cache.CHUNK = 4
root = Path({root!r})
paths = sorted(path.name for path in root.iterdir())
labels = np.zeros(len(paths), np.int64)
dataset = Dataset("d", ("a",), FileImages(root, paths), labels, np.full(len(paths), ""))
print("ready", flush=True)
prepared = image_disk_cache.prepare_images(dataset, 24, 3, threads=2)
print(prepared.stored, prepared.decoded, len(prepared.bad))
"""


def test_a_killed_preparation_is_resumed(tmp_path, cache, large_count):
    dataset = folder_of(tmp_path / "photos", 300)
    rng = np.random.default_rng(3)
    decoded = []
    for number in range(large_count(1, 30)):
        with run_python(PREPARE.format(root=str(tmp_path / "photos")), cache) as process:
            assert process.stdout.readline() == "ready\n"
            while number == 0 and not any(keys.stat().st_size for keys in cache.glob("pictures/*/keys")):
                time.sleep(0.001)  # a busy machine may take long to store the first
            time.sleep(rng.uniform(0.05, 0.4) * (number > 0))
            process.send_signal(signal.SIGKILL)
        prepared = prepare_images(dataset, SIDE, 3, threads=2)
        decoded.append(prepared.decoded)
        assert prepared.stored == 300
        np.testing.assert_array_equal(everything(prepared.rows), expected(dataset))
        del prepared
        shutil.rmtree(cache / "pictures")
    assert min(decoded) < 300


def test_two_processes_prepare_at_once(tmp_path, cache):
    dataset = bad_folder(tmp_path / "photos")
    for number in range(100, 250):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg(number))
    code = PREPARE.format(root=str(tmp_path / "photos"))
    with run_python(code, cache) as one, run_python(code, cache) as two:
        results = [process.communicate()[0].split() for process in (one, two)]
    for _, stored, _, bad in results:
        assert (int(stored), int(bad)) == (158, 3)
    (rows,) = cache.glob("pictures/*/rows")
    assert rows.stat().st_size == 157 * ROW  # nothing twice
    assert prepare_images(dataset, SIDE, 3, threads=1).decoded == 0


RANK = """
import torch
from svertka import distributed
with distributed.process_group(torch.device("cpu")):
    exec({code!r})
    from test_image_disk_cache import everything, expected
    good = np.array([i for i in range(len(dataset)) if i not in prepared.bad])
    assert (prepared.rows[good] == expected(dataset.take(good))).all()
    print(sorted(prepared.bad.items()), flush=True)
"""


@pytest.mark.parametrize("writable", [True, pytest.param(False, marks=pytest.mark.large)])
def test_processes_of_one_job_share_the_work(tmp_path, cache, writable):
    bad_folder(tmp_path / "photos")
    for number in range(100, 130):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg(number))
    if not writable:
        (tmp_path / "file").touch()
        cache = tmp_path / "file" / "svertka"
    code = RANK.format(code=PREPARE.format(root=str(tmp_path / "photos")))
    with (
        rendezvous(2) as (first, second),
        run_python(code, cache, **first) as one,
        run_python(code, cache, **second) as two,
    ):
        results = [wait_for_end(process)[0].splitlines() for process in (one, two)]
    assert [process.returncode for process in (one, two)] == [0, 0]
    facts = [[int(value) for value in result[1].split()] for result in results]
    assert facts[0][0] == facts[1][0] == (38 if writable else 0)
    assert facts[0][1] + facts[1][1] == 40
    assert min(facts[0][1], facts[1][1]) >= 20
    assert results[0][2] == results[1][2]
    assert facts[0][2] == 3


PEAK = """
import resource
for code in {codes!r}:
    exec(code)
    for start in range(0, len(paths), 64):
        prepared.rows[np.arange(start, min(start + 64, len(paths)))]
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_data_set(tmp_path, cache, large_count):
    few = large_count(100, 1400)
    codes = []
    for count in (few, 10 * few):
        root = tmp_path / f"photos{count}"
        root.mkdir()
        base = jpeg(1)
        for number in range(count):  # other contents, same image: a comment in front of the end
            comment = f"{count:06}{number:06}".encode()
            (root / f"{number}.jpg").write_bytes(base[:2] + b"\xff\xfe\0\x0e" + comment + base[2:])
        codes.append(PREPARE.replace("24, 3", "96, 3").format(root=str(root)))
    with run_python(PEAK.format(codes=codes), cache) as process:
        lines = process.communicate()[0].splitlines()
    assert [lines[1], lines[4]] == [f"{count} {count} 0" for count in (few, 10 * few)]
    assert int(lines[5]) < 1.2 * int(lines[2])


def test_several_threads_may_ask_for_rows(tmp_path):
    dataset = folder_of(tmp_path / "photos", 20)
    prepared = prepare_images(dataset, SIDE, 3, threads=2, cache_limit=10 * COST)
    right = expected(dataset)
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(lambda seed: everything(prepared.rows, seed), range(8)):
            np.testing.assert_array_equal(rows, right)


def test_a_row_that_is_damaged_while_it_is_used_is_decoded_again(tmp_path, cache, opened, capsys):
    dataset = folder_of(tmp_path / "photos", 10)
    prepared = prepare_images(dataset, SIDE, 3, threads=2)
    (rows,) = cache.glob("pictures/*/rows")
    with rows.open("r+b") as file:
        file.seek(4 * ROW + HEAD.size + 7)
        file.write(b"\xff" * 40)
    opened.clear()
    np.testing.assert_array_equal(everything(prepared.rows), expected(dataset))
    assert "4.jpg is damaged in" in capsys.readouterr().err
    rows.write_bytes(rows.read_bytes()[: 7 * ROW])  # and now it ends too early
    np.testing.assert_array_equal(everything(prepared.rows), expected(dataset))
    assert prepare_images(dataset, SIDE, 3, threads=2).stored == 10


def test_small_images_are_stored_as_they_are_and_announced(tmp_path, cache, capsys):
    dataset = folder_of(tmp_path / "photos", 30)  # of 60 × 48 pixels
    prepared = prepare_images(dataset, 224, 3, threads=2)
    (rows,) = cache.glob("pictures/*/rows")
    assert rows.stat().st_size == 30 * (48 * 48 * 3 + HEAD.size)
    np.testing.assert_array_equal(everything(prepared.rows), expected(dataset, 224))
    prepare_images(dataset, 448, 1, threads=2, cache_limit=10**9)
    assert capsys.readouterr().err == ""  # a few hundred kilobytes
    prepare_images(folder_of(tmp_path / "more", 160, first=200), 224, 3, threads=2)
    assert "decoded images will take about 1.11 MB in" in capsys.readouterr().err


def deep_folder(root: Path, top: int) -> Dataset:
    """Images of 16 bits whose values go up to `top`, between those of 8 bits."""
    dataset = folder_of(root, 8)
    paths = list(dataset.images.paths)
    for number in range(0, 8, 2):
        gray = np.asarray(Image.open(root / paths[number]).convert("L")).astype(np.float64)
        gray -= gray.min()
        paths[number] = f"{number}.png"
        Image.fromarray((gray / gray.max() * top).astype(np.uint16)).save(root / paths[number])
    return dataset_of(root, paths)


def test_16_bits_are_surveyed_once_and_stored_by_their_range(tmp_path, opened):
    dataset = deep_folder(tmp_path / "photos", 1023)
    for _ in range(2):
        surveyed = prepare_images(dataset, SIDE, 3, threads=2, survey=True)
        found = [fact.intensities for fact in surveyed.info.values()]
        assert [one is not None for one in found] == [True, False] * 4
        assert all(one[0] < 10 < 1000 < one[1] <= 1023 for one in found[::2])
    assert len(opened) == 4  # those of 8 bits, which serve every range
    for used in ((0, 1023), None, (0, 4095)):
        seen = dataset.with_intensity_range(used)
        prepared = prepare_images(seen, SIDE, 3, threads=2)
        np.testing.assert_array_equal(everything(prepared.rows), expected(seen))
        opened.clear()
        np.testing.assert_array_equal(
            everything(prepare_images(seen, SIDE, 3, threads=2).rows), everything(prepared.rows)
        )
        assert not opened
    dark, right = (expected(dataset.with_intensity_range(used))[0].mean() for used in (None, (0, 1023)))
    assert right > 30 * dark


def test_very_many_files_are_decoded_only_when_they_are_read(tmp_path, monkeypatch, opened):
    monkeypatch.setattr(image_disk_cache, "STREAMED_ABOVE", 20)
    dataset, read = folder_of(tmp_path / "many", 30), []
    whole, name = FileImages.read_bytes_and_status, "read_bytes_and_status"
    monkeypatch.setattr(FileImages, name, lambda self, index: read.append(index) or whole(self, index))
    prepared = prepare_images(dataset, SIDE, 3, threads=2)
    assert opened == []
    larger = prepared.with_resize(2 * SIDE)
    assert sorted(read) == list(range(30))  # each once, for its hash and its header
    assert (everything(larger.rows) == expected(dataset, 2 * SIDE)).all()
    assert (prepared.stored, prepared.bad) == (0, {})
    assert {info.size for info in prepared.info.values()} == {(48, 60)}
    assert (everything(prepared.rows) == expected(dataset)).all()
    few = prepare_images(dataset, SIDE, 3, only=np.arange(20), threads=2)
    assert few.stored == 20


def test_files_that_are_cut_off_or_no_images_are_found_without_decoding_the_others(tmp_path, monkeypatch, opened):
    monkeypatch.setattr(image_disk_cache, "STREAMED_ABOVE", 20)
    dataset = folder_of(tmp_path / "many", 30)
    whole = (tmp_path / "many" / "3.jpg").read_bytes()
    (tmp_path / "many" / "3.jpg").write_bytes(whole[:-100])
    (tmp_path / "many" / "4.jpg").write_bytes(b"no image")
    (tmp_path / "many" / "5.jpg").unlink()
    (tmp_path / "many" / "6.jpg").write_bytes(whole + bytes(5000))  # whole, with something after its end
    prepared = prepare_images(dataset, SIDE, 3, threads=2)
    assert set(prepared.bad) == {3, 4, 5}
    assert len(opened) == 2
    (tmp_path / "many" / "7.jpg").write_bytes(whole)
    assert (prepared.rows[np.array([6])] == prepared.rows[np.array([7])]).all()


def test_the_facts_of_very_many_files_are_those_of_decoded_ones(tmp_path, monkeypatch):
    folder = tmp_path / "many"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        exif = Image.Exif()
        exif[274] = number + 1  # orientation
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / f"{number}.jpg", exif=exif)
        Image.fromarray(rng.integers(0, 65536, (10, 12), np.uint16)).save(folder / f"{number}.png")
    dataset = dataset_of(folder, sorted(path.name for path in folder.iterdir()))
    decoded = prepare_images(dataset, SIDE, 3, threads=2)
    monkeypatch.setattr(image_disk_cache, "STREAMED_ABOVE", 4)
    read = prepare_images(dataset, SIDE, 3, threads=2)
    of_headers, of_pixels = (
        {index: info._replace(pixel_limit=0) for index, info in one.info.items()} for one in (read, decoded)
    )
    assert of_headers == of_pixels
    assert (everything(read.rows) == everything(decoded.rows)).all()
    surveyed = prepare_images(dataset, SIDE, 3, threads=2, survey=True)
    assert sum(info.intensities is not None for info in surveyed.info.values()) == 8
