"""Decoding on a GPU, with a stand-in for torchvision's decoder where no GPU is."""

import sys
import types
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from svertka.data import gpu_jpeg
from svertka.data.gpu_jpeg import check_gpu_decoding
from svertka.data.image_disk_cache import decode_on_gpu, prepare_images
from svertka.data.loader import BatchLoader
from svertka.data.preprocessing import Preprocess
from svertka.data.shard import shard
from svertka.data.sharded_images import open_shards
from svertka.errors import UsageError

CPU = torch.device("cpu")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each call of torchvision's decoder, which decodes on the CPU here."""
    calls: list[int] = []

    def decode_jpeg(contents: Sequence[torch.Tensor], mode: str, device: torch.device) -> list[torch.Tensor]:
        calls.append(len(contents))
        assert (mode, device) == ("RGB", CPU)
        found = []
        for content in contents:
            try:
                pixels = simplejpeg.decode_jpeg(bytes(content.numpy()), colorspace="RGB")
            except ValueError as error:
                raise RuntimeError("nvjpegDecode failed") from error
            found.append(torch.from_numpy(pixels).permute(2, 0, 1))
        return found

    module = types.ModuleType("torchvision.io")
    module.decode_jpeg = decode_jpeg  # type: ignore[attr-defined]
    module.ImageReadMode = types.SimpleNamespace(RGB="RGB")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.io", module)
    return calls


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Shards of JPEGs in color and gray, a rotated one, a CMYK one and a PNG."""
    random = np.random.default_rng(0)
    for number in range(12):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
        image = coarse.resize((50, 40), Image.Resampling.BICUBIC)
        path = tmp_path / "files" / f"class{number % 2}" / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number == 3:
            turned = Image.Exif()
            turned[0x0112] = 6
            image.save(path, exif=turned, quality=95)
        elif number == 5:
            image.convert("CMYK").save(path, quality=95)
        elif number == 7:
            image.save(path.with_suffix(".png"))
        else:
            image.convert("L" if number == 9 else "RGB").save(path, quality=95)
    shard(tmp_path / "files", tmp_path / "shards", val=0.2, threads=1)
    return tmp_path / "shards"


@pytest.mark.usefixtures("quiet")
def test_squares_are_those_of_the_cpu(shards: Path, decoded: list[int]) -> None:
    dataset = open_shards(shards)
    rows = prepare_images(dataset, 24, 3, threads=2).rows
    on_gpu = decode_on_gpu(rows, CPU)
    indices = np.arange(len(dataset))
    preprocess = Preprocess(size=24, resize=24, mean=(0.0,) * 3, std=(1.0,) * 3)
    loaders = [BatchLoader(some, dataset.labels, indices, preprocess, batch_size=5) for some in (on_gpu, rows)]
    for ours, theirs in zip(*(one.epoch(0) for one in loaders), strict=True):
        assert ours.images.shape == theirs.images.shape
        difference = (ours.images - theirs.images).abs() * 255
        assert float(difference.mean()) < 0.5
        assert float(difference.max()) < 8  # the CPU may decode at reduced size
    assert sum(decoded) == len(dataset) - 3  # not the rotated one, CMYK and PNG
    assert (on_gpu[indices] == rows[indices]).all()


@pytest.mark.usefixtures("quiet")
def test_a_batch_with_an_image_that_the_gpu_cannot_decode_is_left_to_the_cpu(
    shards: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_shards(shards)
    rows = prepare_images(dataset, 24, 3, threads=2).rows

    def fails(*arguments: object, **named: object) -> None:
        raise RuntimeError("nvjpegDecode failed")

    monkeypatch.setattr(sys.modules["torchvision.io"], "decode_jpeg", fails)
    on_gpu = decode_on_gpu(rows, CPU)
    assert isinstance(on_gpu, gpu_jpeg.GpuDecodedSquares)
    indices = np.arange(len(dataset))
    assert torch.equal(on_gpu.on_device(indices), torch.from_numpy(rows[indices]))


def test_without_a_gpu_or_torchvision_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--gpu-decode needs a GPU, and device=cpu; leave it out"):
        check_gpu_decoding(CPU)
    monkeypatch.setattr(gpu_jpeg, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install 'svertka\\[torchvision\\]'"):
        check_gpu_decoding(torch.device("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nvjpeg_gives_the_pixels_of_the_cpu(shards: Path) -> None:
    pytest.importorskip("torchvision")
    dataset = open_shards(shards)
    rows, indices = prepare_images(dataset, 24, 3, threads=2).rows, np.arange(len(dataset))
    on_gpu = decode_on_gpu(rows, torch.device("cuda"))
    assert isinstance(on_gpu, gpu_jpeg.GpuDecodedSquares)
    difference = on_gpu.on_device(indices).cpu().int() - torch.from_numpy(rows[indices]).int()
    assert float(difference.abs().float().mean()) < 2
