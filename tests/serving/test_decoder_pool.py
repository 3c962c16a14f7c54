"""Processes that decode: they give what is decoded here, and what is hostile holds up nobody and leaves nothing."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
from svertka.data.decode_memory import STRIP_BYTES, estimate_decoding_bytes
from svertka.data.image_io import DECODERS, decode_to_pixels
from svertka.data.preprocessing import select_used_region
from svertka.errors import ImageError, ImageFormatError, ImageTooLargeError
from svertka.serving import decoder_pool as module
from svertka.serving.decoder_pool import MAX_LARGE_WAITING, DecoderPool, RequestDecoding
from svertka.serving.decoder_process import IMAGE_MEMORY, DecodingSettings
from svertka.serving.http_error import HTTPError

SETTINGS = DecodingSettings(min_side=40, max_pixels=50_000_000)


def itself(pixels: Any) -> Any:
    return pixels


def run(work: Callable[[DecoderPool], Any], processes: int = 1) -> Any:
    """What the coroutine function `work` gives with decoders that run; afterwards no process is left."""

    async def all_of_it() -> Any:
        decoders = DecoderPool(processes)
        decoders.start()
        seen = set(decoders.pids)
        try:
            async with asyncio.timeout(200):
                return await work(decoders)
        finally:
            seen |= set(decoders.pids)
            decoders.stop()
            assert not any(Path(f"/proc/{pid}").exists() for pid in seen)

    with ThreadPoolExecutor(1) as elsewhere:  # in this thread a browser's loop may be left running
        return elsewhere.submit(asyncio.run, all_of_it()).result()


def scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan, of a few bytes, comes `count` times."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(buffer, "JPEG", progressive=True, quality=30)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def saved(width: int, height: int, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (10, 200, 30)).save(buffer, kind, **options)
    return buffer.getvalue()


def test_pixels_are_those_that_are_decoded_here(kinds: dict[str, Path]) -> None:
    async def all_of_them(decoders: DecoderPool) -> list[Any]:
        return await asyncio.gather(
            *(decoders.decode(path.read_bytes(), SETTINGS, RequestDecoding(), itself) for path in kinds.values()),
            decoders.decode(
                kinds["plain.jpg"].read_bytes(), SETTINGS._replace(square=False), RequestDecoding(), itself
            ),
        )

    *found, whole = run(all_of_them, processes=2)
    for path, pixels in zip(kinds.values(), found, strict=True):
        assert np.array_equal(pixels, select_used_region(decode_to_pixels(path.read_bytes(), 40), "crop"))
    assert np.array_equal(whole, decode_to_pixels(kinds["plain.jpg"].read_bytes(), 40))


@pytest.mark.parametrize(
    ("data", "error", "sentence"),
    [
        (b"", ImageError, "empty file"),
        (b"hello" * 20, ImageFormatError, "not an image"),
        (saved(30, 20, "PNG")[:60], ImageError, "truncated|damaged"),
        ((8000, 7000, "PNG"), ImageTooLargeError, "56 megapixels, more than the limit of 50; make it smaller$"),
        ((8192, 8192, "WEBP"), ImageTooLargeError, "67 megapixels of WebP .*make it smaller$"),
        (scans(64, 1000), ImageError, "scans, more than the limit"),
    ],
)
def test_what_cannot_be_read_says_why(
    data: bytes | tuple[int, int, str], error: type[Exception], sentence: str
) -> None:
    if isinstance(data, tuple):  # not made where tests are collected: it takes long
        data = saved(*data, **({"lossless": True} if data[2] == "WEBP" else {"compress_level": 1}))
    with pytest.raises(error, match=sentence):
        run(lambda decoders: decoders.decode(data, SETTINGS, RequestDecoding(), itself))


def test_an_image_above_the_memory_of_the_server_is_refused_by_its_header() -> None:
    """Five WebPs of 49 megapixels, 34 bytes each, would take 833 MB each; no process for large images is started."""
    image = saved(7000, 7000, "WEBP", lossless=True)

    async def crowd(decoders: DecoderPool) -> tuple[list[Any], bool]:
        before = set(decoders.pids)
        some = (decoders.decode(image, SETTINGS, RequestDecoding(), itself) for _ in range(5))
        return await asyncio.gather(*some, return_exceptions=True), set(decoders.pids) == before

    refused, same = run(crowd)
    assert all(isinstance(one, ImageTooLargeError) for one in refused)
    assert str(refused[0]).startswith("49 megapixels of WebP take 833 MB of memory to decode, more than the")
    assert same


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "AVIF"])
def test_a_photograph_of_48_megapixels_is_within_the_memory_of_the_server(name: str) -> None:
    small = saved(8064 // 64, 6048 // 64, name)
    cost = estimate_decoding_bytes(DECODERS[name][1](io.BytesIO(small)), 8, scans=1, deep=False)
    assert STRIP_BYTES + (cost - STRIP_BYTES) * 64**2 < IMAGE_MEMORY


def test_a_large_image_is_decoded_by_the_one_process_for_such() -> None:
    async def one(decoders: DecoderPool) -> Any:
        first = set(decoders.pids)
        pixels = await decoders.decode(saved(2600, 2500, "WEBP", lossless=True), SETTINGS, RequestDecoding(), itself)
        return pixels, len(set(decoders.pids) - first)

    pixels, more = run(one)
    assert pixels.shape[0] == pixels.shape[1] >= 120
    assert np.abs(pixels.astype(int) - (10, 200, 30)).max() <= 1
    assert more == 1


def test_slow_images_hold_up_no_others(jpeg: bytes) -> None:
    slow = scans(1500, 60)

    async def beside(decoders: DecoderPool) -> tuple[int, int]:
        hostile = RequestDecoding()
        waiting = [asyncio.create_task(decoders.decode(slow, SETTINGS, hostile, itself)) for _ in range(40)]
        await asyncio.sleep(0)
        for _ in range(20):
            await decoders.decode(jpeg, SETTINGS, RequestDecoding(), itself)
        done = sum(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await decoders.decode(slow, SETTINGS, RequestDecoding(), itself)  # there is room again
        return done, hostile.running

    done, running = run(beside)
    assert done < 40
    assert running == 0


def test_what_takes_too_long_ends_and_the_next_one_is_decoded(jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ORDINARY_LIMITS", module.ORDINARY_LIMITS._replace(seconds=0.05, work=sys.maxsize))
    monkeypatch.setattr(module, "LARGE_LIMITS", module.LARGE_LIMITS._replace(seconds=0.05))

    async def slow_then_quick(decoders: DecoderPool) -> None:
        before = decoders.pids
        with pytest.raises(ImageTooLargeError, match="takes more than .* seconds to decode"):
            await decoders.decode(scans(3000, 90), SETTINGS, RequestDecoding(), itself)
        await decoders.decode(saved(20, 20, "PNG"), SETTINGS, RequestDecoding(), itself)
        assert not set(decoders.pids) & set(before)

    run(slow_then_quick)


def test_a_process_that_is_killed_is_replaced(jpeg: bytes) -> None:
    async def killed(decoders: DecoderPool) -> None:
        for _ in range(3):
            (pid,) = decoders.pids[:1]
            os.kill(pid, signal.SIGKILL)
            await decoders.decode(jpeg, SETTINGS, RequestDecoding(), itself)

    run(killed)


def test_whoever_gives_up_leaves_nothing(jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ABANDONED_SECONDS", 0.0)
    slow = scans(3000, 90)

    async def abandoned(decoders: DecoderPool) -> float:
        tasks = [asyncio.create_task(decoders.decode(slow, SETTINGS, RequestDecoding(), itself)) for _ in range(6)]
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        began = time.monotonic()
        await asyncio.gather(*(decoders.decode(jpeg, SETTINGS, RequestDecoding(), itself) for _ in range(4)))
        await decoders.decode(saved(2600, 2500, "WEBP", lossless=True), SETTINGS, RequestDecoding(), itself)
        return time.monotonic() - began

    run(abandoned)


def test_a_request_may_not_take_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.0)

    async def two(decoders: DecoderPool) -> None:
        account = RequestDecoding()
        await decoders.decode(saved(20, 20, "PNG"), SETTINGS, account, itself)
        with pytest.raises(ImageTooLargeError, match="the images of this request took more than 0 seconds"):
            await decoders.decode(saved(20, 20, "PNG"), SETTINGS, account, itself)
        await decoders.decode(saved(20, 20, "PNG"), SETTINGS, RequestDecoding(), itself)

    run(two)


def test_too_many_large_images_are_told_to_come_again() -> None:
    slow = scans(1500, 60)

    async def crowd(decoders: DecoderPool) -> list[Any]:
        tasks = [
            asyncio.create_task(decoders.decode(slow, SETTINGS, RequestDecoding(), itself))
            for _ in range(MAX_LARGE_WAITING + 4)
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        refused = [task.exception() for task in tasks if task.done() and not task.cancelled() and task.exception()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return refused

    (first, *_) = run(crowd)
    assert isinstance(first, HTTPError)
    assert first.status == 503
    assert int(first.headers["Retry-After"]) > 0


def test_large_images_of_one_request_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LARGE_WAITING", 1)
    many = [saved(2450, 2450, "WEBP", lossless=True)] * 4

    async def all_of_them(decoders: DecoderPool) -> int:
        account = RequestDecoding()
        return len(await asyncio.gather(*(decoders.decode(one, SETTINGS, account, itself) for one in many)))

    assert run(all_of_them) == len(many)


def test_a_process_ends_with_its_server_and_imports_little() -> None:
    code = (
        "import json, sys; sys.argv = ['', json.dumps([10**9, 5.0, 10**9])];"
        "import runpy; runpy.run_module('svertka.serving.decoder_process', run_name='__main__');"
        "sys.stderr.write(str(sorted({'torch', 'starlette', 'pydantic'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"", capture_output=True, timeout=240, check=True)
    assert done.stderr == b"[]"
    assert done.stdout == b""


def test_a_process_that_does_not_start_is_said(jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def one(decoders: DecoderPool) -> None:
        with pytest.raises(HTTPError, match="the decoder process exited with status 1"):
            await decoders.decode(jpeg, SETTINGS, RequestDecoding(), itself)

    monkeypatch.setattr(module, "ORDINARY_LIMITS", module.ORDINARY_LIMITS._replace(memory="none"))
    run(one)


def test_turns_of_those_who_give_up_go_to_others(jpeg: bytes) -> None:
    async def hurried(decoders: DecoderPool) -> int:
        for _ in range(30):
            tasks = [asyncio.create_task(decoders.decode(jpeg, SETTINGS, RequestDecoding(), itself)) for _ in range(6)]
            await asyncio.sleep(0.003)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks[1::2])
            await asyncio.gather(*tasks, return_exceptions=True)
        return len(decoders.pids)

    assert run(hurried, processes=2) == 2
