"""The intermediate representation: operations run as in PyTorch."""

import torch

from svertka.compiler.ir import BatchDependentSize
from svertka.graph.operation_and_value_types import Constant, Operation, Value, iter_leaves, map_leaves


def test_an_operation_computes_what_pytorch_does() -> None:
    x, weight, bias = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(4)
    values = {Value(0): x, Constant("weight"): weight, Constant("bias"): bias}
    arguments = {"input": Value(0), "weight": Constant("weight"), "bias": Constant("bias"), "stride": [2, 2]}
    operation = Operation("conv2d.default", arguments, (1,), "body")
    (found,) = operation.run(lambda leaf: values.get(leaf, leaf) if isinstance(leaf, Value | Constant) else leaf)
    assert torch.equal(found, torch.nn.functional.conv2d(x, weight, bias, stride=2))


def test_several_results_and_keyword_only_arguments() -> None:
    x = torch.randn(2, 6)
    split = Operation("split.Tensor", {"self": Value(0), "split_size": 2, "dim": 1}, (1, 2, 3), "")
    assert [part.shape for part in split.run(lambda leaf: x if leaf == Value(0) else leaf)] == [(2, 2)] * 3
    add = Operation("add.Tensor", {"self": Value(0), "other": Value(0), "alpha": 3}, (1,), "")
    (found,) = add.run(lambda leaf: x if leaf == Value(0) else leaf)
    torch.testing.assert_close(found, 4 * x)


def test_sizes_depend_on_the_batch_size() -> None:
    shape = (BatchDependentSize(1, 0), 3, BatchDependentSize(49, 2))
    assert map_leaves(shape, lambda leaf: leaf.of(4) if isinstance(leaf, BatchDependentSize) else leaf) == (4, 3, 198)


def test_map_leaves_keeps_types() -> None:
    structure = {"a": [1, (2, 3)], "b": {"c": 4}}
    assert list(iter_leaves(structure)) == [1, 2, 3, 4]
    assert map_leaves(structure, lambda leaf: leaf * 10) == {"a": [10, (20, 30)], "b": {"c": 40}}
