"""Large tensors ask the system for large pages, and hold what is written to them."""

import gc
import mmap
from pathlib import Path

import pytest
import torch

from svertka import large_pages
from svertka.large_pages import LARGE_PAGE, empty_on_large_pages, stack_on_large_pages


def asks_for_large_pages(address: int) -> bool:
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        area, _, rest = line.partition(" ")
        if "-" in area and ":" not in area:
            begin, end = (int(one, 16) for one in area.split("-"))
            inside = begin <= address < end
        elif area == "VmFlags:" and inside:
            return "hg" in rest.split()
    raise AssertionError("no area has this address")


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the kernel has no large pages")
def test_tensors_that_fill_large_pages_ask_for_them() -> None:
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2), (torch.int8, 1)):
        tensor = empty_on_large_pages((5, LARGE_PAGE // size // 2 - 1), dtype)
        assert (tensor.shape, tensor.dtype) == ((5, LARGE_PAGE // size // 2 - 1), dtype)
        assert tensor.is_contiguous()
        begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        assert begin % LARGE_PAGE == 0
        assert asks_for_large_pages(begin)
        assert asks_for_large_pages(begin + 2 * LARGE_PAGE - 1)
        assert not asks_for_large_pages(end - 1)  # the rest would take a whole large page
        tensor.fill_(7)
        assert bool((tensor == 7).all())


def test_a_tensor_keeps_its_memory_and_frees_it() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("\n")

    if not Path("/proc/self/maps").exists():
        pytest.skip("the system has no list of mapped memory")
    parts = [torch.randn(3, LARGE_PAGE // 8, requires_grad=True) for _ in range(2)]
    stacked = stack_on_large_pages(parts)
    view = stacked[1, 2]
    expected = parts[1][2].detach().clone()
    del stacked
    gc.collect()
    assert torch.equal(view, expected)
    before = mapped()
    kept = [empty_on_large_pages((LARGE_PAGE,), torch.float32) for _ in range(20)]
    del kept
    gc.collect()
    assert mapped() <= before + 10  # twenty areas would be more


def test_small_and_empty_tensors_and_systems_without_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert empty_on_large_pages((0, 4), torch.float32).shape == (0, 4)
    assert empty_on_large_pages((), torch.float32).shape == ()

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(large_pages.mmap, "mmap", refuse)
    assert empty_on_large_pages((LARGE_PAGE,), torch.float32).shape == (LARGE_PAGE,)
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert torch.equal(stack_on_large_pages([torch.arange(LARGE_PAGE)])[0], torch.arange(LARGE_PAGE))
