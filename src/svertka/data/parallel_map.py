"""Ordered map over threads that works one chunk ahead, so that memory does not grow with the number of items."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_chunks(
    function: Callable[[T], R], items: Sequence[T], threads: int, chunk: int, at_once: int = 1
) -> Iterator[list[R]]:
    """Map a function over items in threads and yield the results in order, a chunk at a time.

    While the caller uses a chunk, the threads work on the next one. Closing the iterator drops what has not begun.

    Args:
        function: Function of one item.
        items: The items.
        threads: Number of threads.
        chunk: Items per chunk.
        at_once: Items that a thread takes at once. Several are faster if the function takes less than about a
            millisecond.

    Yields:
        The results of each chunk.

    Raises:
        Exception: Whatever `function` raises.
    """
    coming: deque[list[Future[list[R]]]] = deque()

    def run(some: Sequence[T]) -> list[R]:
        return [function(item) for item in some]

    pool = ThreadPoolExecutor(threads, thread_name_prefix="map_chunks")
    try:
        for start in range(0, len(items), chunk):
            stop = min(start + chunk, len(items))
            coming.append(
                [pool.submit(run, items[first : min(first + at_once, stop)]) for first in range(start, stop, at_once)]
            )
            if len(coming) == 2:
                yield [result for future in coming.popleft() for result in future.result()]
        while coming:
            yield [result for future in coming.popleft() for result in future.result()]
    finally:
        pool.shutdown(cancel_futures=True)
