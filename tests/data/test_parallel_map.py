"""Threads keep the order, stay a bounded way ahead, and stop when they are no longer needed."""

import threading
import time

import pytest

from svertka.data.parallel_map import map_chunks


@pytest.mark.parametrize("at_once", [1, 3, 20])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 100])
def test_results_come_in_order_chunk_by_chunk(count, at_once):
    def late(number: int) -> int:
        time.sleep(0.001 * (number % 3))
        return number * number

    chunks = list(map_chunks(late, range(count), 4, 8, at_once))
    assert [number for chunk in chunks for number in chunk] == [number * number for number in range(count)]
    assert [len(chunk) for chunk in chunks[:-1]] == [8] * (len(chunks) - 1)


def test_no_more_than_two_chunks_are_begun():
    begun = []
    chunks = map_chunks(begun.append, range(1000), threads=2, chunk=10)
    for number in range(1, 20):
        next(chunks)
        time.sleep(0.002)
        assert 10 * number <= len(begun) <= 10 * (number + 1)
    chunks.close()


def test_an_exception_comes_through_and_the_rest_is_dropped():
    begun = []

    def fail(number: int) -> None:
        begun.append(number)
        raise ValueError(str(number))

    with pytest.raises(ValueError, match=r"^0$"):
        list(map_chunks(fail, range(1000), threads=2, chunk=100))
    assert len(begun) < 300


def test_closing_ends_the_threads():
    before = set(threading.enumerate())  # those of other tests may end meanwhile
    chunks = map_chunks(lambda number: time.sleep(0.001), range(1000), threads=4, chunk=10)
    next(chunks)
    assert set(threading.enumerate()) - before
    chunks.close()
    assert not set(threading.enumerate()) - before
