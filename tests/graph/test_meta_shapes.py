"""Shapes of operations on meta tensors are those that PyTorch finds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from svertka.graph.meta_shapes import ELEMENTWISE, FastMetaShapes, run_on_meta

ATEN = torch.ops.aten
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "with gaps": lambda x: x[:, :, ::2, 1:],
    "expanded": lambda x: x[:, :1].expand(-1, 3, -1, -1),
}


def made(layout: str, dtype: torch.dtype) -> Tensor:
    return LAYOUTS[layout](torch.empty(2, 3, 6, 4, device="meta", dtype=dtype))


def facts(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.stride(), tensor.device.type, tensor.is_inference()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_elementwise_operations_have_the_results_that_pytorch_has(name: str, layout: str) -> None:
    operation, arguments = getattr(ATEN, name).default, (0, 6) if name == "clamp" else ()
    with torch.inference_mode():
        x = made(layout, torch.bfloat16)
        assert facts(run_on_meta(operation, x, *arguments)) == facts(operation(x, *arguments))
        if hasattr(ATEN, f"{name}_"):
            assert run_on_meta(getattr(ATEN, f"{name}_").default, x, *arguments) is x


def test_integers_are_left_to_pytorch() -> None:
    whole = torch.empty(2, 3, device="meta", dtype=torch.int64)
    assert run_on_meta(ATEN.clamp.default, whole, 0.5, 6).dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_norm_has_the_result_that_pytorch_has(layout: str) -> None:
    with torch.inference_mode():
        x, numbers = made(layout, torch.float32), torch.empty(3, device="meta")
        settings = (False, 0.1, 1e-5, True)
        for given in ((numbers,) * 4, (None, None, numbers, numbers)):
            expected = ATEN.batch_norm.default(x, *given, *settings)
            assert facts(run_on_meta(ATEN.batch_norm.default, x, *given, *settings)) == facts(expected)
        with pytest.raises(RuntimeError, match="should contain 3 elements"):
            run_on_meta(ATEN.batch_norm.default, x, *[torch.empty(5, device="meta")] * 4, *settings)


def test_a_limit_that_is_a_tensor_is_broadcast() -> None:
    x, limit = torch.empty(3, device="meta"), torch.empty(2, 1, device="meta")
    assert run_on_meta(ATEN.clamp.Tensor, x, limit).shape == (2, 3)


def test_modules_run_on_meta_tensors_as_on_others() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.ReLU6()).eval()
    with torch.inference_mode(), FastMetaShapes():
        assert network.to("meta")(torch.empty(2, 3, 8, 8, device="meta")).shape == (2, 5, 6, 6)
