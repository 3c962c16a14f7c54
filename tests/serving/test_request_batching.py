import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("fastapi")
from svertka.serving import request_batching as module
from svertka.serving.http_error import HTTPError
from svertka.serving.request_batching import MAX_BATCH, MAX_PENDING_IMAGES, Batcher


def twice(pictures: Sequence[Tensor]) -> Tensor:
    return 2 * torch.stack(list(pictures))


def awaited(
    coroutine: Coroutine[Any, Any, Any], new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
) -> Any:
    # A thread of its own: in this one the browser of another test may have left its loop running.
    def run_and_close() -> Any:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(coroutine)

    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(run_and_close).result()


class VirtualClock(asyncio.SelectorEventLoop):
    """An event loop that does not wait for its next timer: its clock jumps there."""

    _now = 0.0

    def __init__(self) -> None:
        super().__init__()
        self._wait, self._selector.select = self._selector.select, self._select  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now

    def _select(self, timeout: float | None) -> Any:
        found = self._wait(0 if timeout else timeout)
        self._now += 0 if found else timeout or 0
        return found


def run(count: int, compute: object = twice) -> list[Tensor | BaseException]:
    async def all_at_once() -> list[Tensor | BaseException]:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(compute, thread)  # type: ignore[arg-type]
            worker = asyncio.create_task(batcher.run())
            with batcher.reserve(count) as places:
                found = await asyncio.gather(
                    *(batcher.submit(torch.tensor([float(k)]), places) for k in range(count)), return_exceptions=True
                )
            worker.cancel()
            assert batcher.open == 0
            return found

    return awaited(all_at_once())


def test_each_gets_the_answer_to_its_own_question() -> None:
    assert [float(one) for one in run(50) if isinstance(one, Tensor)] == [2.0 * k for k in range(50)]


def test_no_batch_is_larger_than_allowed_and_the_first_does_not_go_alone() -> None:
    sizes: list[int] = []

    def counted(pictures: Sequence[Tensor]) -> Tensor:
        sizes.append(len(pictures))
        return twice(pictures)

    run(50, counted)
    assert sizes == [MAX_BATCH] * (50 // MAX_BATCH) + [50 % MAX_BATCH]


def test_a_mistake_reaches_whoever_asked_and_the_desk_goes_on() -> None:
    def wrong(pictures: Sequence[Tensor]) -> Tensor:
        raise ValueError("no")

    assert all(isinstance(one, ValueError) for one in run(20, wrong))


def test_one_too_many_is_told_to_come_again() -> None:
    with ThreadPoolExecutor(1) as thread:
        batcher = Batcher(twice, thread)
        with batcher.reserve(MAX_PENDING_IMAGES), pytest.raises(HTTPError) as refused, batcher.reserve(1):
            pass
        assert refused.value.status == 503
        assert int(refused.value.headers["Retry-After"]) >= 1
        with batcher.reserve(MAX_PENDING_IMAGES):
            pass


def test_who_is_alone_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_WAIT_SECONDS", 3600.0)
    assert len(run(1)) == 1  # it would wait an hour


def test_while_it_computes_it_says_so() -> None:
    async def seen() -> list[bool]:
        free = asyncio.Event()
        found: list[bool] = []

        def compute(pictures: Sequence[Tensor]) -> Tensor:
            found.append(free.is_set())
            if len(found) > 1:
                raise ValueError("no")
            return twice(pictures)

        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(compute, thread, free)
            free.set()
            worker = asyncio.create_task(batcher.run())
            for _ in range(2):
                with batcher.reserve(1) as places:
                    await asyncio.gather(batcher.submit(torch.ones(1), places), return_exceptions=True)
                found.append(free.is_set())  # also where computing failed
            worker.cancel()
        return found

    assert awaited(seen()) == [False, True, False, True]


def test_those_on_their_way_are_waited_for_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_WAIT_SECONDS", 1.0)
    sizes: list[int] = []

    def counted(pictures: Sequence[Tensor]) -> Tensor:
        sizes.append(len(pictures))
        return twice(pictures)

    async def one_by_one() -> None:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(counted, thread)
            worker = asyncio.create_task(batcher.run())

            async def later(seconds: float) -> None:
                await asyncio.sleep(seconds)
                await batcher.submit(torch.ones(1), places)

            with batcher.reserve(4) as places:  # the last one comes too late for the first, not for the one before
                await asyncio.gather(*(later(0.4 * k) for k in range(4)))
            worker.cancel()

    awaited(one_by_one(), VirtualClock)
    assert sizes == [4]


def test_who_waits_for_others_waits_no_longer_than_the_deadline() -> None:
    async def one_of_two() -> Tensor:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(twice, thread)
            worker = asyncio.create_task(batcher.run())
            with batcher.reserve(2) as places:  # the other one never comes
                found = await asyncio.wait_for(batcher.submit(torch.ones(1), places), 120)
            worker.cancel()
            return found

    assert float(awaited(one_of_two())) == 2


def test_what_nobody_waits_for_is_not_computed() -> None:
    sizes: list[int] = []

    def counted(pictures: Sequence[Tensor]) -> Tensor:
        sizes.append(len(pictures))
        return twice(pictures)

    async def one_of_three() -> None:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(counted, thread)
            with batcher.reserve(3) as places:
                tasks = [asyncio.create_task(batcher.submit(torch.ones(1), places)) for _ in range(3)]
                await asyncio.sleep(0)
                tasks[0].cancel()
                tasks[2].cancel()
                worker = asyncio.create_task(batcher.run())
                assert float(await tasks[1]) == 2
                await asyncio.gather(*tasks, return_exceptions=True)
            worker.cancel()

    awaited(one_of_three())
    assert sizes == [1]


@pytest.mark.parametrize("submitted", [True, False])
def test_images_that_are_answered_or_not_submitted_are_not_waited_for(
    submitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_WAIT_SECONDS", 3600.0)  # of a clock that jumps over what is waited for

    async def last_of_a_burst() -> float:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(twice, thread)
            worker = asyncio.create_task(batcher.run())
            with batcher.reserve(2, submitted=submitted) as others:
                if submitted:
                    await asyncio.gather(*(batcher.submit(torch.ones(1), others) for _ in range(2)))
                with batcher.reserve(1) as places:
                    await batcher.submit(torch.ones(1), places)
            worker.cancel()
            return asyncio.get_running_loop().time()

    assert awaited(last_of_a_burst(), VirtualClock) < 3600
