"""Measurement of training on shards and large folders: time to the first step, memory, and images per second.

    python bench/scale.py --first-step 13000 130000 [--shard-megabytes 64]
    python bench/scale.py --input 1500 --rounds 3 --peers
    python bench/scale.py --folder 100000
    python bench/scale.py --list 1300000

`--first-step` writes synthetic JPEGs of 2 kB, all different, to shards in a local S3 server (moto), and starts a
training of ResNet-20 for each count. The time is from the start of the command to the end of its first step, without a
cache.

`--input` reads JPEGs of 110 kB with two threads or processes as 224×224 batches: decoding alone (from memory),
svertka on shards, a PyTorch DataLoader over a folder of the same files with Pillow, and, with `--peers`, webdataset's
own recipe on the same shards and litdata on its own copy; both are installed into a temporary folder. Each loader reads
two epochs in one process: in the first it starts its workers and checks what it checks once, in the second all of that
is done. Both are printed, as the median over the rounds, with images per second of CPU time, which other programs on
the machine disturb less.

`--folder` starts a training on a folder of so many JPEGs of 2 kB, and resumes it; it prints what the cache takes.

`--list` lists a folder of so many hard links in 1,000 class folders.
"""

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = 10
FIRST_STEP = """
import os, resource, sys, time
began, run = float(sys.argv[1]), sys.argv[2]
from svertka.training import training_loop
step = training_loop.take_step
def first(*arguments):
    seen = step(*arguments)
    if not os.path.exists(f"{run}/training.json"):  # a step that is only timed
        return seen
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("FIRST", time.time() - began, time.process_time(), peak, flush=True)
    training_loop.take_step = step
    raise KeyboardInterrupt
training_loop.take_step = first
from svertka.cli.app import main
main(sys.argv[3:])
"""
PORT = 5123
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
}
Epoch = Callable[[int], Iterable[int]]  # number of an epoch -> sizes of its batches
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
    """Return the seconds to the end of the first step of a training, its CPU time, and its peak memory in bytes.

    Args:
        source: Its source; "--resume" to continue the last one.
        folder: Where its run and its cache are.
    """
    environment = os.environ | ENVIRONMENT | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
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
    given = [source, *options]
    if source == "--resume":
        given = [source, str(folder / "run")]
    else:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        shutil.rmtree(folder / "run", ignore_errors=True)
    command = [sys.executable, "-c", FIRST_STEP, str(time.time()), str(folder / "run"), "train", *given]
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
    """Return seconds and peak memory up to the first step on a folder of class folders, of a resume, and the cache."""
    jpegs = make_jpegs(300, (48, 48), 80, 4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(count):
            path = folder / "images" / f"class {number % CLASSES}" / f"{number:07d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(numbered(jpegs[number % len(jpegs)], number))
        found = first_step(str(folder / "images"), folder)
        print(f"{count:>9,} files: {describe(found)}", flush=True)
        resumed = first_step("--resume", folder)
        cached = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
        print(f"{'resumed':>15}: {describe(resumed)}; cache of {cached / 1e6:,.0f} MB", flush=True)
    return {"files": count, "cache_bytes": cached, "resumed": resumed} | found


def measure_listing(count: int, classes: int = 1000) -> dict[str, float]:
    """Return the seconds that listing so many hard links takes, and its CPU time."""
    from svertka.data.folder_and_table_sources import open_folder

    jpegs = make_jpegs(300, (48, 48), 80, 4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, jpeg in enumerate(jpegs):
            (folder / f"{number}.jpg").write_bytes(jpeg)
        for number in range(classes):
            (folder / "images" / f"n{number:08d}").mkdir(parents=True)
        for number in range(count):
            place = folder / "images" / f"n{number % classes:08d}" / f"{number:07d}.jpg"
            os.link(folder / f"{number % len(jpegs)}.jpg", place)
        began, cpu = time.perf_counter(), time.process_time()
        assert len(open_folder(folder / "images")) == count
        found = {"files": count, "seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
        print(f"{count:>9,} files listed in {found['seconds']:.1f} s ({found['cpu_seconds']:.1f} s of CPU time)")
        shutil.rmtree(folder / "images")
    return found


def decoding_alone(folder: Path) -> Epoch:
    """Decode and resize the images in memory, in two threads."""
    from svertka.data.image_io import decode_to_pixels
    from svertka.data.preprocessing import resize_to_square

    contents = [path.read_bytes() for path in sorted((folder / "files").glob("*/*.jpg"))]

    def decode(content: bytes) -> None:
        pixels = decode_to_pixels(content, RESIZED)
        side = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        resize_to_square(pixels[top : top + side, left : left + side], RESIZED, 3, RESIZED)

    pool = ThreadPoolExecutor(WORKERS)
    return lambda number: [sum(1 for _ in pool.map(decode, contents, chunksize=8))]


def svertka_loader(folder: Path) -> Epoch:
    """Read the shards as training does; in the first epoch, images are compared with their digests."""
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
    return lambda number: (len(batch.labels) for batch in loader.epoch(number))


def to_tensor(image: Image.Image) -> Any:
    """Return an image as torchvision's Resize(256), CenterCrop(224), ToTensor and Normalize give it."""
    import torch

    scale = RESIZED / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + SIDE, top + SIDE)))).permute(2, 0, 1)
    return (pixels.contiguous().float() / 255 - 0.5) / 0.25


def torch_loader(folder: Path) -> Epoch:
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

    loader = DataLoader(Files(), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    return lambda number: (len(images) for images, _ in loader)


def webdataset_loader(folder: Path) -> Epoch:
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
    loader = DataLoader(dataset, batch_size=None, num_workers=WORKERS, persistent_workers=True)
    return lambda number: (len(images) for images, _ in loader)


def litdata_loader(folder: Path) -> Epoch:
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
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)
    return lambda number: (len(images) for images in loader)


LOADERS: dict[str, Callable[[Path], Epoch]] = {
    "decoding alone": decoding_alone,
    "svertka": svertka_loader,
    "DataLoader": torch_loader,
    "webdataset": webdataset_loader,
    "litdata": litdata_loader,
}
PEERS = ("webdataset", "litdata")


def run_loader(name: str, folder: Path) -> None:
    """Read all images twice with one loader; print for each epoch images, and seconds of wall-clock and CPU time."""
    import torch

    torch.set_num_threads(1)
    read = LOADERS[name](folder)
    for number in range(2):
        began, cpu = time.perf_counter(), _cpu_seconds()
        count = sum(read(number))
        print("READ", count, time.perf_counter() - began, _cpu_seconds() - cpu, flush=True)


def _cpu_seconds() -> float:
    """Return the CPU time of this process, of its workers, and of the processes that it has waited for, seconds."""
    ticks, waiting = 0, [os.getpid()]
    while waiting:
        process = waiting.pop()
        with suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
            for children in Path(f"/proc/{process}/task").glob("*/children"):
                waiting += map(int, children.read_text().split())
    return ticks / os.sysconf("SC_CLK_TCK")


def install_peers(folder: Path) -> dict[str, str]:
    """Install webdataset and litdata into `folder`; return the environment in which they are imported."""
    packages = ["webdataset", "braceexpand", "litdata", "lightning-utilities"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
    subprocess.run(command, check=True)
    return os.environ | {"PYTHONPATH": str(folder)}


def measure_input(count: int, rounds: int, *, peers: bool) -> list[dict[str, Any]]:
    """Return images per second of each loader in its first and its second epoch, the median over the rounds."""
    jpegs = make_jpegs(min(count, 200), (400, 500), 88, 3)
    print(f"JPEGs of {np.mean([len(one) for one in jpegs]):,.0f} bytes", file=sys.stderr)
    speeds: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in LOADERS if peers or name not in PEERS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = install_peers(folder / "packages") if peers else dict(os.environ)
        write_shards(folder / "shards", jpegs, count, 64)
        for number in range(count):
            path = folder / "files" / f"class {number % CLASSES}" / f"{number:07d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(numbered(jpegs[number % len(jpegs)], number))
        for _ in range(rounds):
            for loader in speeds:
                command = [sys.executable, __file__, "--loader", loader, str(folder)]
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                read = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("READ")]
                speeds[loader].append([(int(n) / float(wall), int(n) / float(cpu)) for n, wall, cpu in read])
                print(loader, *(f"{wall:.0f}/{cpu:.0f}" for wall, cpu in speeds[loader][-1]), file=sys.stderr)
    medians = {loader: np.median(np.array(some), 0) for loader, some in speeds.items()}
    rows: list[dict[str, Any]] = [{"loader": loader} for loader in medians]
    for epoch, title in enumerate(("first", "second")):
        print(f"{title} epoch   images/s (svertka is)  per CPU second (svertka is)")
        for row, (loader, speed) in zip(rows, medians.items(), strict=True):
            (wall, cpu), (of_wall, of_cpu) = speed[epoch], (medians["svertka"] / speed)[epoch]
            print(f"{loader:<16}{wall:>6.0f}      {of_wall:>8.2f} ×{cpu:>15.0f}     {of_cpu:>8.2f} ×")
            row[title] = {"per_second": wall, "svertka_is": of_wall, "per_cpu_second": cpu, "by_cpu": of_cpu}
    return rows


def main() -> None:
    """Measure what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first-step", type=int, nargs="+", metavar="IMAGES")
    parser.add_argument("--shard-megabytes", type=int, default=64)
    parser.add_argument("--input", type=int, metavar="IMAGES")
    parser.add_argument("--folder", type=int, metavar="FILES")
    parser.add_argument("--list", type=int, metavar="FILES")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true")
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
        found["input"] = measure_input(options.input, options.rounds, peers=options.peers)
    if options.folder:
        found["folder"] = measure_folder(options.folder)
    if options.list:
        found["list"] = measure_listing(options.list)
    if options.json:
        Path(options.json).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
