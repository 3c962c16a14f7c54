"""Rows come back as they were stored, whatever happens to the process or the disk; never wrong data."""

import gc
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fork_server import Python, run_python
from svertka.data.disk_cache import INDEX_ENTRY, LIMIT, ArrayStore
from svertka.errors import StorageError

SHAPE = (8, 8, 3)
COST = 8 * 8 * 3 + INDEX_ENTRY.itemsize


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def keys(*numbers: int) -> list[bytes]:
    return [key(number) for number in numbers]


def rows_of(*numbers: int, shape: tuple[int, ...] = SHAPE, dtype: type = np.uint8) -> np.ndarray:
    """What belongs under each key: made from its number, so that a mix-up shows."""
    return np.stack([np.random.default_rng(number).integers(0, 256, shape).astype(dtype) for number in numbers])


def check(store: ArrayStore, *numbers: int) -> None:
    positions = store.find(keys(*numbers))
    assert (positions >= 0).all()
    if not numbers:
        return
    np.testing.assert_array_equal(store.gather(positions), rows_of(*numbers))


def test_rows_come_back_in_any_order_and_after_reopening(tmp_path):
    store = ArrayStore(tmp_path / "store", SHAPE, np.uint8)
    assert store.find(keys(1, 2)).tolist() == [-1, -1]
    assert store.append(keys(1, 2, 3), rows_of(1, 2, 3)).tolist() == [0, 1, 2]
    assert store.append(keys(4), rows_of(4)).tolist() == [3]
    check(store, 4, 1, 1, 3)
    again = ArrayStore(tmp_path / "store", SHAPE, np.uint8)
    check(again, 2, 4, 3, 1)
    assert len(again) == 4
    assert again.find(keys(5, 1)).tolist() == [-1, 0]
    assert again.gather(np.zeros(0, np.int64)).shape == (0, *SHAPE)
    with pytest.raises(IndexError, match="not stored"):
        again.gather(np.array([0, -1]))


@pytest.mark.parametrize(
    ("shape", "dtype"), [((3,), np.float16), ((), np.float32), ((2, 5), np.int64), ((1000,), np.float16)]
)
def test_any_shape_and_type(tmp_path, shape, dtype):
    store = ArrayStore(tmp_path / "store", shape, dtype)
    store.append(keys(1, 2), rows_of(1, 2, shape=shape, dtype=dtype))
    again = ArrayStore(tmp_path / "store", shape, dtype)
    got = again.gather(again.find(keys(2, 1)))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, rows_of(2, 1, shape=shape, dtype=dtype))


def test_a_key_is_stored_once(tmp_path):
    store = ArrayStore(tmp_path / "store", SHAPE, np.uint8)
    store.append(keys(1, 2, 1), rows_of(1, 2, 1))
    store.append(keys(2, 3), rows_of(2, 3))
    assert len(store) == 3
    check(store, 1, 2, 3)


def test_two_stores_open_at_once_see_each_other_and_store_nothing_twice(tmp_path):
    one, two = (ArrayStore(tmp_path / "store", SHAPE, np.uint8) for _ in range(2))
    one.append(keys(1, 2), rows_of(1, 2))
    two.append(keys(2, 3), rows_of(2, 3))
    one.append(keys(3, 1), rows_of(3, 1))
    for store in (one, two):
        check(store, 1, 2, 3)
        assert len(store) == 3


def test_another_format_or_version_is_begun_anew(tmp_path):
    ArrayStore(tmp_path / "store", SHAPE, np.uint8).append(keys(1), rows_of(1))
    for shape, dtype in (((8, 8, 1), np.uint8), (SHAPE, np.float16), (SHAPE, np.uint8)):
        store = ArrayStore(tmp_path / "store", shape, dtype)
        assert len(store) == 0
        store.append(keys(1), rows_of(1, shape=shape, dtype=dtype))
    header = tmp_path / "store" / "format.json"
    for content in (header.read_bytes().replace(b'"version": 2', b'"version": 1'), b"{", b"[]", b""):
        header.write_bytes(content)
        store = ArrayStore(tmp_path / "store", SHAPE, np.uint8)
        assert len(store) == 0
        store.append(keys(1), rows_of(1))
        check(store, 1)


def test_a_damaged_row_is_missing_and_written_again(tmp_path):
    ArrayStore(tmp_path / "store", SHAPE, np.uint8).append(keys(1, 2, 3), rows_of(1, 2, 3))
    with (tmp_path / "store" / "rows").open("r+b") as file:
        file.seek(8 * 8 * 3 + 17)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    first, second = (ArrayStore(tmp_path / "store", SHAPE, np.uint8) for _ in range(2))
    assert first.find(keys(1, 2, 3)).tolist() == [0, -1, 2]
    assert second.find(keys(2)).tolist() == [-1]
    assert first.append(keys(1, 2), rows_of(1, 2)).tolist() == [0, 3]
    check(first, 1, 2, 3)
    assert second.append(keys(2), rows_of(2)).tolist() == [3]  # mended by the other meanwhile
    again = ArrayStore(tmp_path / "store", SHAPE, np.uint8)
    assert len(again) == 4
    check(again, 1, 2, 3)


def test_every_flipped_byte_and_every_cut_gives_right_rows_or_none(tmp_path, large_count):
    store = ArrayStore(tmp_path / "store", SHAPE, np.uint8)
    store.append(keys(*range(1, 6)), rows_of(*range(1, 6)))
    whole = {name: (tmp_path / "store" / name).read_bytes() for name in ("keys", "rows", "format.json")}
    rng = np.random.default_rng(5)
    lost = 0
    for _ in range(large_count(60, 2000)):
        for name, content in whole.items():
            (tmp_path / "store" / name).write_bytes(content)
        name = rng.choice(list(whole))
        content = bytearray(whole[name])
        if rng.random() < 0.5:
            content = content[: rng.integers(len(content))]
        else:
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        (tmp_path / "store" / name).write_bytes(content)
        mended = ArrayStore(tmp_path / "store", SHAPE, np.uint8)
        found = mended.find(keys(*range(1, 6)))
        here = [number for number, position in zip(range(1, 6), found, strict=True) if position >= 0]
        lost += len(here) < 5
        if here:
            check(mended, *here)
        mended.append(keys(*range(1, 8)), rows_of(*range(1, 8)))
        check(mended, *range(1, 8))
        check(ArrayStore(tmp_path / "store", SHAPE, np.uint8), *range(1, 8))
    assert lost > 20


WRITER = """
import sys
import numpy as np
sys.path[:0] = {path!r}
from test_disk_cache import *
store = ArrayStore(Path(sys.argv[1]), SHAPE, np.uint8)
print("ready", flush=True)
for start in range(1, 4001, 4):
    numbers = range(start, start + 4)
    store.append(keys(*numbers), rows_of(*numbers))
"""


def writer(folder: Path) -> subprocess.Popen:
    code = WRITER.format(path=[str(Path(__file__).parent), *sys.path])
    process = Python(["-c", code, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


def wait_for_records(folder: Path, count: int) -> None:
    """Wait until a writer has stored `count` arrays, or all that it stores."""
    deadline = time.monotonic() + 120
    while (folder / "keys").stat().st_size < count * INDEX_ENTRY.itemsize:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_killed_while_appending_it_still_works(tmp_path, large_count):
    rng = np.random.default_rng(9)
    total = 0
    for _ in range(large_count(1, 30)):
        with writer(tmp_path / "store") as process:
            wait_for_records(tmp_path / "store", int(rng.integers(1, 200)))
            process.send_signal(signal.SIGKILL)
        store = ArrayStore(tmp_path / "store", SHAPE, np.uint8)
        stored = len(store)
        total += stored
        check(store, *range(1, stored + 1))
        store.append(keys(5000), rows_of(5000))
        check(store, 5000, *range(1, stored + 1))
        assert store.clear()
    assert total > 0


def test_two_processes_append_the_same_at_once(tmp_path):
    with writer(tmp_path / "store") as one, writer(tmp_path / "store") as two:
        wait_for_records(tmp_path / "store", 100)
        one.kill()
        two.kill()
    store = ArrayStore(tmp_path / "store", SHAPE, np.uint8)
    assert len(store) > 8
    records = np.fromfile(tmp_path / "store" / "keys", INDEX_ENTRY, count=len(store))
    assert len({bytes(one) for one in records["key"]}) == len(store)
    check(store, *range(1, len(store) + 1))


def test_the_limit_is_kept_and_what_fits_is_stored(tmp_path):
    store = ArrayStore(tmp_path / "store", SHAPE, np.uint8, limit=10 * COST + COST // 2)
    assert store.room() == 10
    assert (store.append(keys(*range(1, 9)), rows_of(*range(1, 9))) >= 0).all()
    assert store.append(keys(*range(9, 13)), rows_of(*range(9, 13))).tolist() == [8, 9, -1, -1]
    assert store.room() == 0
    assert store.append(keys(20, 3), rows_of(20, 3)).tolist() == [-1, 2]
    check(store, *range(1, 11))
    assert sum((tmp_path / "store" / name).stat().st_size for name in ("rows", "keys")) <= 10.5 * COST


def test_the_default_limit_is_a_quarter_of_what_is_free(tmp_path):
    store = ArrayStore(tmp_path / "store", SHAPE, np.uint8)
    status = os.statvfs(tmp_path)
    assert store.limit == LIMIT or abs(store.limit - status.f_bavail * status.f_frsize / 4) < 2**30


def test_the_least_recently_opened_neighbor_makes_room(tmp_path):
    limit = 10 * COST
    for number, name in enumerate(("oldest", "middle", "newest")):
        store = ArrayStore(tmp_path / name, SHAPE, np.uint8, limit)
        store.append(keys(1, 2, 3), rows_of(1, 2, 3))
        os.utime(tmp_path / name / "use", (number, number))
    del store
    gc.collect()
    in_use = ArrayStore(tmp_path / "oldest", SHAPE, np.uint8, limit)
    os.utime(tmp_path / "oldest" / "use", (0, 0))
    mine = ArrayStore(tmp_path / "mine", SHAPE, np.uint8, limit)
    assert mine.room() == 7
    assert (mine.append(keys(1, 2, 3, 4), rows_of(1, 2, 3, 4)) >= 0).all()
    assert not (tmp_path / "middle").exists()  # the oldest is open
    check(in_use, 1, 2, 3)
    check(ArrayStore(tmp_path / "newest", SHAPE, np.uint8, limit), 1, 2, 3)
    gc.collect()
    assert (mine.append(keys(5, 6, 7, 8), rows_of(5, 6, 7, 8)) >= 0).tolist() == [True, True, True, False]
    assert not (tmp_path / "newest").exists()
    check(mine, *range(1, 8))
    check(in_use, 1, 2, 3)


def test_clear_only_when_nobody_else_has_it_open(tmp_path):
    one, two = (ArrayStore(tmp_path / "store", SHAPE, np.uint8) for _ in range(2))
    one.append(keys(1, 2), rows_of(1, 2))
    assert not one.clear()
    check(two, 1, 2)
    del two
    gc.collect()
    assert one.clear()
    assert len(one) == 0
    assert one.find(keys(1)).tolist() == [-1]
    one.append(keys(3, 1), rows_of(3, 1))
    check(one, 1, 3)
    check(ArrayStore(tmp_path / "store", SHAPE, np.uint8), 1, 3)


def call_here(name: str, *arguments: object) -> str:
    """Return, as text, what a function of this file returns for `arguments` in a process of its own."""
    code = (
        "import sys; from pathlib import *; sys.path[:0] = {}; import test_disk_cache; print(test_disk_cache.{}(*{}))"
    )
    path = [str(Path(__file__).parent), *sys.path]
    return str(run_python(["-c", code.format(path, name, arguments)], text=True, check=True).stdout)


def _fill(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    store = ArrayStore(folder, SHAPE, np.uint8)
    store.append(keys(1, 2), rows_of(1, 2))
    for _ in range(2):
        with pytest.raises(StorageError, match=r"cannot write .*free space or choose another folder"):
            store.append(keys(*range(3, 13)), rows_of(*range(3, 13)))
        check(store, 1, 2)
    store.append(keys(3), rows_of(3))
    check(store, 1, 2, 3)


def test_a_disk_that_fills_leaves_what_is_stored(tmp_path):
    call_here("_fill", tmp_path / "store")  # the limit is that of the process
    store = ArrayStore(tmp_path / "store", SHAPE, np.uint8)
    assert len(store) == 3
    check(store, 1, 2, 3)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        ArrayStore(tmp_path / "file" / "store", SHAPE, np.uint8)


def test_threads_gather_at_once(tmp_path):
    shape = (64, 64, 3)
    store = ArrayStore(tmp_path / "store", shape, np.uint8)
    rows = rows_of(*range(1500), shape=shape)
    store.append(keys(*range(1500)), rows)

    def right(seed: int) -> bool:
        positions = np.random.default_rng(seed).permutation(1500)[:200]
        return bool(np.array_equal(store.gather(positions), rows[positions]))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(right, range(40)))


def _resident(folder: Path, rows: int) -> int:
    """Megabytes that this process grows by while all stored rows are read, in random order."""
    store = ArrayStore(folder, (64, 64, 3), np.uint8)

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

    before = resident()
    positions = store.find(keys(*range(rows)))
    most = resident()
    order = np.random.default_rng(0).permutation(positions)
    for start in range(0, rows, 64):
        store.gather(order[start : start + 64])
        most = max(most, resident())
    return most - before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_reading_all_rows_keeps_few_in_memory(tmp_path):
    rows = 4000  # 49 MB
    store = ArrayStore(tmp_path / "store", (64, 64, 3), np.uint8)
    for start in range(0, rows, 500):
        store.append(keys(*range(start, start + 500)), np.zeros((500, 64, 64, 3), np.uint8))
    del store
    assert int(call_here("_resident", tmp_path / "store", rows)) < 20  # megabytes
