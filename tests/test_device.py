from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from svertka.device import (
    autocast,
    choose_device,
    cpu_name,
    describe_device,
    is_dense_with_values,
    meta_device,
    set_memory_format,
    set_threads,
)
from svertka.errors import UsageError


def test_auto_is_the_first_that_is_here() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device().type == expected
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "cuda:x", ""])
def test_a_device_that_is_not_here_is_one_sentence(name: str) -> None:
    with pytest.raises(UsageError, match=f"device={name} is not on this machine; use auto or one of: .*cpu"):
        choose_device(name)


def test_a_long_name_is_shortened_in_the_sentence() -> None:
    with pytest.raises(UsageError) as caught:
        choose_device("9" * 5000)
    assert len(str(caught.value)) < 200


def test_each_process_of_torchrun_takes_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cuda:0") == torch.device("cuda:0")


def test_threads_are_set_and_returned() -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(1) == torch.get_num_threads() == 1
        assert set_threads(None) == 1
    finally:
        torch.set_num_threads(before)


def test_the_cpu_computes_in_float32() -> None:
    with autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_layout_changes_strides_and_nothing_else() -> None:
    layer = torch.nn.Conv2d(3, 4, 3)
    before = layer.weight.detach().clone()
    set_memory_format(layer, torch.channels_last)
    assert layer.weight.stride(1) == 1
    assert torch.equal(layer.weight, before)


class Recorded(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


def test_no_random_numbers_are_drawn_for_a_network_on_the_meta_device() -> None:
    torch.manual_seed(0)
    with Recorded() as recorded, meta_device():
        layer = torch.nn.Linear(3, 4)
        assert torch.nn.init.normal_(layer.weight) is layer.weight
        assert torch.nn.init.trunc_normal_(layer.bias) is layer.bias
        torch.nn.init.kaiming_normal_(layer.weight)
    assert layer.weight.is_meta
    assert "aten.normal_.default" not in recorded.names
    with meta_device():
        drawn = torch.nn.init.normal_(torch.empty(3, device="cpu"))
    assert torch.equal(drawn, torch.empty(3).normal_(generator=torch.Generator().manual_seed(0)))


def test_descriptions_are_for_people() -> None:
    threads = torch.get_num_threads()
    assert describe_device(torch.device("cpu")) == f"cpu, {threads} thread{'s' * (threads != 1)}"
    assert cpu_name()


def test_bfloat16_is_for_processors_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for here, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("svertka.device.has_bfloat16", lambda here=here: here)
        with autocast(torch.device("cpu"), bfloat16=True):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
        said = describe_device(torch.device("cpu"), bfloat16=True)
        assert said.endswith(", bfloat16" if here else ", float32 for want of bfloat16")


def test_a_device_without_float64_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(UsageError, match="device=mps is not on this machine; use auto or one of: cpu"):
        choose_device("mps")


@pytest.mark.filterwarnings("ignore")  # of PyTorch, about such tensors
def test_only_dense_tensors_have_a_value_for_each_place() -> None:
    x = torch.rand(2, 3)
    for dense in (x, x.T, x.expand(4, 2, 3), x.half(), x.int(), torch.rand(0, 3)):
        assert is_dense_with_values(dense)
    quantized, nested = torch.quantize_per_tensor(x, 0.1, 0, torch.quint8), torch.nested.nested_tensor([x])
    for other in (x.to_sparse(), x.to_sparse_csr(), x.to("meta"), x.to_mkldnn(), quantized, nested):
        assert not is_dense_with_values(other)
