"""Work spread over threads, in order, and only so far ahead that memory does not grow with the amount of it."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_chunks(function: Callable[[T], R], items: Sequence[T], threads: int, chunk: int) -> Iterator[list[R]]:
    """`function` of every item, `chunk` items at a time; while one chunk is used, the next is worked on.

    An exception of `function` is raised here; what was not begun then is dropped, as when the iterator is closed.
    """
    coming: deque[list[Future[R]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
    try:
        for start in range(0, len(items), chunk):
            coming.append([pool.submit(function, item) for item in items[start : start + chunk]])
            if len(coming) == 2:
                yield [future.result() for future in coming.popleft()]
        while coming:
            yield [future.result() for future in coming.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)
