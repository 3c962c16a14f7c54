"""Ordered map over threads that works one chunk ahead, so that memory does not grow with the number of items."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_chunks(function: Callable[[T], R], items: Sequence[T], threads: int, chunk: int) -> Iterator[list[R]]:
    """Map a function over items in threads and yield the results in order, a chunk at a time.

    While the caller uses a chunk, the threads work on the next one. Closing the iterator drops what has not begun.

    Args:
        function: Function of one item.
        items: The items.
        threads: Number of threads.
        chunk: Items per chunk.

    Yields:
        The results of each chunk.

    Raises:
        Exception: Whatever `function` raises.
    """
    coming: deque[list[Future[R]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="map_chunks")
    try:
        for start in range(0, len(items), chunk):
            coming.append([pool.submit(function, item) for item in items[start : start + chunk]])
            if len(coming) == 2:
                yield [future.result() for future in coming.popleft()]
        while coming:
            yield [future.result() for future in coming.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)
