"""Measurement of training on shards: time to the first step, peak memory, and images per second of the input.

    python bench/scale.py --first-step 13000 130000 [--shard-megabytes 64]
    python bench/scale.py --input 2000 --rounds 3 [--peers PYTHON]
    python bench/scale.py --folder 100000

`--first-step` writes synthetic JPEGs of 2 kB, all different, to shards in a local S3 server (moto), and starts a
training of ResNet-20 for each count. The time is from the start of the command to the end of its first step, without a
cache.

`--input` reads JPEGs of 110 kB from shards, with two threads or processes, as 224×224 batches: decoding alone (from
memory), svertka, a PyTorch DataLoader over a folder of the same files with Pillow, and, with `--peers` naming a Python
that has them, webdataset on the same shards and litdata on its own copy. It prints images per second of CPU time as
well, which other programs on the machine disturb less.

`--folder` starts a training on a folder of so many JPEGs of 2 kB.
"""

import argparse
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

CLASSES = 10
FIRST_STEP = """
import resource, sys, time
began = float(sys.argv[1])
from svertka.training import training_loop
step = training_loop.take_step
def first(*arguments):
    seen = step(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("FIRST", time.time() - began, time.process_time(), peak, flush=True)
    training_loop.take_step = step
    raise KeyboardInterrupt
training_loop.take_step = first
from svertka.cli.app import main
main(sys.argv[2:])
"""
PORT = 5123
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
}
WORKERS, BATCH, SIDE, RESIZED = 2, 64, 224, 256


def make_jpegs(count: int, side: tuple[int, int], quality: int, detail: int) -> list[bytes]:
    """Return so many JPEGs of smooth noise, (height, width) pixels."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (side[0] // detail, side[1] // detail, 3), np.uint8))
        fine = np.asarray(coarse.resize(side[::-1], Image.Resampling.BICUBIC), np.int16)
        pixels = np.clip(fine + rng.integers(-12, 13, fine.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        found.append(file.getvalue())
    return found


def numbered(jpeg: bytes, number: int) -> bytes:
    """Return a JPEG with a comment, so that its content differs from that of others."""
    text = f"{number:09d}".encode()
    return jpeg[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + jpeg[2:]


def write_shards(folder: Path, jpegs: list[bytes], count: int, megabytes: int) -> None:
    """Write shards with `count` images and their index, without checking the images again."""
    import tarfile

    from svertka.data.dataset import hash_content
    from svertka.data.shard_index import FILE, ShardEntry, ShardIndex, merge_indexes

    folder.mkdir(parents=True)
    size = Image.open(io.BytesIO(jpegs[0])).size[::-1]
    names = tuple(f"class {number}" for number in range(CLASSES))
    indexes = []
    for part, share in (("train", 0.9), ("val", 0.1)):
        number, left, shard = 0, round(count * share), 0
        while left:
            offsets, lengths, labels, digests = [], [], [], []
            path = folder / f"{part}-{shard:06d}.tar"
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
                while left and archive.offset < megabytes * 10**6:
                    content = numbered(jpegs[number % len(jpegs)], number if part == "train" else 10**8 + number)
                    for suffix, some in (("jpg", content), ("cls", str(number % CLASSES).encode())):
                        header = tarfile.TarInfo(f"{number:09d}.{suffix}")
                        header.size = len(some)
                        if suffix == "jpg":
                            offsets.append(archive.offset + 512)
                        archive.addfile(header, io.BytesIO(some))
                    lengths.append(len(content))
                    labels.append(number % CLASSES)
                    digests.append(hash_content(content))
                    number, left = number + 1, left - 1
            entry = ShardEntry(path.name, path.stat().st_size, len(offsets), part)
            columns = (np.array(one, np.int64) for one in (offsets, lengths, labels, [size] * len(offsets)))
            found = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
            offsets_, lengths_, labels_, sizes_ = columns
            indexes.append(ShardIndex(names, (entry,), offsets_, lengths_, labels_, sizes_, found))
            shard += 1
    merge_indexes(indexes, names).write(folder / FILE)


@contextmanager
def s3_server(folder: Path) -> Iterator[None]:
    """Run moto's S3 server during the body."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(PORT)]
    with (folder / "moto.log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(folder)}, stdout=log, stderr=log)
    try:
        time.sleep(5)
        yield
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def upload(folder: Path, bucket: str) -> None:
    """Copy a folder of shards to a bucket."""
    os.environ |= ENVIRONMENT
    import s3fs

    system = s3fs.S3FileSystem()
    system.mkdir(bucket)
    for path in sorted(folder.iterdir()):
        system.put_file(str(path), f"{bucket}/{path.name}")


def first_step(source: str, folder: Path) -> dict[str, float]:
    """Return the seconds to the end of the first step of a training, its CPU time, and its peak memory in bytes."""
    environment = os.environ | ENVIRONMENT | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    shutil.rmtree(folder / "cache", ignore_errors=True)
    shutil.rmtree(folder / "run", ignore_errors=True)
    options = [
        "--model",
        "resnet20",
        "--size",
        "32",
        "--epochs",
        "1",
        "--threads",
        "2",
        "--output",
        str(folder / "run"),
    ]
    command = [sys.executable, "-c", FIRST_STEP, str(time.time()), "train", source, *options]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    line = next(line for line in done.stdout.splitlines() if line.startswith("FIRST"))
    return dict(zip(("seconds", "cpu_seconds", "peak_bytes"), map(float, line.split()[1:]), strict=True))


def describe(found: dict[str, float]) -> str:
    """Return the result of `first_step` as text."""
    seconds = f"{found['seconds']:.1f} s ({found['cpu_seconds']:.1f} s of CPU time)"
    return f"first step after {seconds}, peak {found['peak_bytes'] / 1e6:,.0f} MB"


def measure_first_step(counts: list[int], megabytes: int) -> list[dict[str, Any]]:
    """Return seconds and peak memory for each number of images in shards on a local S3 server."""
    jpegs, rows = make_jpegs(300, (48, 48), 80, 4), []
    print(f"JPEGs of {np.mean([len(one) for one in jpegs]):,.0f} bytes", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name, s3_server(Path(name)):
        folder = Path(name)
        for count in counts:
            write_shards(folder / "shards", jpegs, count, megabytes)
            upload(folder / "shards", f"bench-{count}")
            shutil.rmtree(folder / "shards")
            found = first_step(f"s3://bench-{count}", folder)
            rows.append({"images": count} | found)
            print(f"{count:>9,} images: {describe(found)}", flush=True)
    return rows


def measure_folder(count: int) -> dict[str, Any]:
    """Return seconds and peak memory up to the first step on a folder of class folders."""
    jpegs = make_jpegs(300, (48, 48), 80, 4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(count):
            path = folder / "images" / f"class {number % CLASSES}" / f"{number:07d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(numbered(jpegs[number % len(jpegs)], number))
        found = first_step(str(folder / "images"), folder)
        print(f"{count:>9,} files: {describe(found)}", flush=True)
    return {"files": count} | found


def decoding_alone(folder: Path) -> Iterable[int]:
    """Decode and resize the images in memory, in two threads; yield the size of each batch."""
    from svertka.data.image_io import decode_to_pixels
    from svertka.data.preprocessing import resize_to_square

    contents = [path.read_bytes() for path in sorted((folder / "files").glob("*/*.jpg"))]

    def decode(content: bytes) -> None:
        pixels = decode_to_pixels(content, RESIZED)
        side = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        resize_to_square(pixels[top : top + side, left : left + side], RESIZED, 3, RESIZED)

    with ThreadPoolExecutor(WORKERS) as pool:
        yield 0
        yield sum(1 for _ in pool.map(decode, contents, chunksize=8))


def svertka_loader(folder: Path) -> Iterable[int]:
    """Read the shards as training does, in the second epoch."""
    from svertka.malloc import keep_freed_memory

    keep_freed_memory()
    from svertka.data.image_disk_cache import prepare_images
    from svertka.data.loader import BatchLoader
    from svertka.data.preprocessing import Preprocess
    from svertka.data.sharded_images import find_shards, open_shards

    dataset = open_shards(folder / "shards")
    images = find_shards(dataset.images)
    assert images is not None
    rows = prepare_images(dataset, RESIZED, 3, threads=WORKERS).rows
    preprocess = Preprocess(size=SIDE, resize=RESIZED, mean=(0.5,) * 3, std=(0.25,) * 3)
    loader = BatchLoader(
        rows, dataset.labels, np.arange(len(dataset)), preprocess, batch_size=BATCH, shuffle=True, prefetch=True,
        permute=images.shuffle, request=images.request,
    )  # fmt: skip
    for _ in loader.epoch(0):  # in which the images are compared with their digests
        pass
    yield 0
    for batch in loader.epoch(1):
        yield len(batch.labels)


def to_tensor(image: Image.Image) -> Any:
    """Return an image as torchvision's Resize(256), CenterCrop(224), ToTensor and Normalize give it."""
    import torch

    scale = RESIZED / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + SIDE, top + SIDE)))).permute(2, 0, 1)
    return (pixels.contiguous().float() / 255 - 0.5) / 0.25


def torch_loader(folder: Path) -> Iterable[int]:
    """Read a folder of the same files with a DataLoader and Pillow."""
    from torch.utils.data import DataLoader, Dataset

    class Files(Dataset[Any]):
        def __init__(self) -> None:
            self.paths = sorted((folder / "files").glob("*/*.jpg"))

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> Any:
            with self.paths[index].open("rb") as file:
                return to_tensor(Image.open(file).convert("RGB")), 0

    yield 0
    for images, _ in DataLoader(Files(), BATCH, shuffle=True, num_workers=WORKERS):
        yield len(images)


def webdataset_loader(folder: Path) -> Iterable[int]:
    """Read the shards with webdataset's own recipe."""
    import webdataset as wds
    from torch.utils.data import DataLoader

    urls = sorted(map(str, (folder / "shards").glob("*.tar")))
    dataset = (
        wds.WebDataset(urls, shardshuffle=len(urls), nodesplitter=None)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(to_tensor, int)
        .batched(BATCH)
    )
    yield 0
    for images, _ in DataLoader(dataset, batch_size=None, num_workers=WORKERS):
        yield len(images)


def litdata_loader(folder: Path) -> Iterable[int]:
    """Read litdata's own copy of the images."""
    import litdata

    class Images(litdata.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            return to_tensor(Image.open(io.BytesIO(super().__getitem__(index)["jpg"])).convert("RGB"))

    copy = folder / "litdata"
    if not copy.exists():
        writer = litdata.streaming.writer.BinaryWriter(str(copy), chunk_bytes=64 * 10**6)
        for number, path in enumerate(sorted((folder / "files").glob("*/*.jpg"))):
            writer[number] = {"jpg": path.read_bytes()}
        writer.done()
        writer.merge(1)
    dataset = Images(str(copy), shuffle=True)
    yield 0
    for images in litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS):
        yield len(images)


LOADERS: dict[str, Callable[[Path], Iterable[int]]] = {
    "decoding alone": decoding_alone,
    "svertka": svertka_loader,
    "DataLoader": torch_loader,
    "webdataset": webdataset_loader,
    "litdata": litdata_loader,
}
PEERS = ("webdataset", "litdata")


def run_loader(name: str, folder: Path) -> None:
    """Read all images once with one loader; print images, and seconds of wall-clock and CPU time."""
    import torch

    torch.set_num_threads(1)
    batches = iter(LOADERS[name](folder))
    next(batches)
    began, cpu = time.perf_counter(), _cpu_seconds()
    count = sum(batches)
    wall = time.perf_counter() - began
    print("READ", count, wall, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of the processes that it has waited for, seconds."""
    both = [resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def measure_input(count: int, rounds: int, peers: str | None) -> list[dict[str, Any]]:
    """Return images per second of each loader, the median over the rounds."""
    jpegs = make_jpegs(min(count, 200), (400, 500), 88, 3)
    print(f"JPEGs of {np.mean([len(one) for one in jpegs]):,.0f} bytes", file=sys.stderr)
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in LOADERS if peers or name not in PEERS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "shards", jpegs, count, 64)
        for number in range(count):
            path = folder / "files" / f"class {number % CLASSES}" / f"{number:07d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(numbered(jpegs[number % len(jpegs)], number))
        for _ in range(rounds):
            for loader in speeds:
                python = peers if peers and loader in PEERS else sys.executable
                command = [python, __file__, "--loader", loader, str(folder)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                read, wall, cpu = next(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("READ"))
                speeds[loader].append((int(read) / float(wall), int(read) / float(cpu)))
                print(loader, *(f"{one:.0f}" for one in speeds[loader][-1]), file=sys.stderr)
    rows = []
    for loader, some in speeds.items():
        by_wall, by_cpu = (median(column) for column in zip(*some, strict=True))
        rows.append({"loader": loader, "images_per_second": by_wall, "images_per_cpu_second": by_cpu})
        print(f"{loader:<16}{by_wall:>8.0f} images/s {by_cpu:>8.0f} images per CPU second")
    return rows


def main() -> None:
    """Measure what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first-step", type=int, nargs="+", metavar="IMAGES")
    parser.add_argument("--shard-megabytes", type=int, default=64)
    parser.add_argument("--input", type=int, metavar="IMAGES")
    parser.add_argument("--folder", type=int, metavar="FILES")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--loader", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loader:
        run_loader(options.loader[0], Path(options.loader[1]))
        return
    found: dict[str, Any] = {}
    if options.first_step:
        found["first_step"] = measure_first_step(options.first_step, options.shard_megabytes)
    if options.input:
        found["input"] = measure_input(options.input, options.rounds, options.peers)
    if options.folder:
        found["folder"] = measure_folder(options.folder)
    if options.json:
        Path(options.json).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
