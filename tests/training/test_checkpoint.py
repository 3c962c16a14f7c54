from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import nn

from svertka.conv import autotune
from svertka.errors import RunError, StorageError
from svertka.models.registry import MODELS
from svertka.training import checkpoint
from svertka.training.recipe import Recipe
from svertka.training.training_loop import TrainingProgress, make_optimizer


def trained(optimizer: str, layout: torch.memory_format) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = MODELS["resnet20"].build(size=8).to(memory_format=layout)
    optim = make_optimizer(network, Recipe(optimizer=optimizer, lr=0.01))
    for _ in range(2):
        nn.functional.cross_entropy(network(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
        optim.step()
    return network, optim


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_everything_comes_back_exactly(tmp_path: Path, name: str, layout: torch.memory_format) -> None:
    network, optimizer = trained(name, layout)
    state = TrainingProgress(step=7, sums=[0.1, 2.0, 3.0], val_errors=[0.1 + 0.2], first_loss=2.3, seconds=1.5)
    checkpoint.save(tmp_path / "checkpoint" / "state.safetensors", network, optimizer, state, log=12)
    random = torch.rand(3)

    fresh = MODELS["resnet20"].build(size=8).to(memory_format=layout)
    other = make_optimizer(fresh, Recipe(optimizer=name, lr=0.5))
    back, extra = checkpoint.load(tmp_path / "checkpoint" / "state.safetensors", fresh, other)

    assert (back, extra) == (state, {"log": 12, "convolutions": autotune.get_choices_of_process()})
    assert torch.equal(torch.rand(3), random)
    for mine, theirs in zip(network.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    for old, new in zip(network.parameters(), fresh.parameters(), strict=True):
        mine, theirs = optimizer.state[old], other.state[new]
        assert mine.keys() == theirs.keys()
        for slot in mine:
            assert torch.equal(mine[slot], theirs[slot])
            assert mine[slot].stride() == theirs[slot].stride()


def test_a_checkpoint_of_another_network_is_one_sentence(tmp_path: Path) -> None:
    network, optimizer = trained("sgd", torch.contiguous_format)
    checkpoint.save(tmp_path / "state.safetensors", network, optimizer, TrainingProgress())
    other = MODELS["lenet5"].build()
    with pytest.raises(RunError, match="does not fit this run") as caught:
        checkpoint.load(tmp_path / "state.safetensors", other, make_optimizer(other, Recipe()))
    assert "\n" not in str(caught.value)


def test_a_disk_that_fills_leaves_the_checkpoint_before(
    tmp_path: Path, small_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "state.safetensors"
    network, optimizer = trained("sgd", torch.contiguous_format)
    checkpoint.save(path, network, optimizer, TrainingProgress(step=1))
    with small_disk(100_000), pytest.raises(StorageError, match="free space or choose another folder"):
        checkpoint.save(path, network, optimizer, TrainingProgress(step=2))
    assert checkpoint.load(path, network, optimizer)[0].step == 1


def test_algorithm_names_of_earlier_versions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    network, optimizer = trained("sgd", torch.contiguous_format)
    monkeypatch.setattr(
        autotune, "get_choices_of_process", lambda: {"one": "direct", "two": "native_pairs", "three": "fft"}
    )
    checkpoint.save(path, network, optimizer, TrainingProgress())
    choices = checkpoint.load(path, network, optimizer)[1]["convolutions"]
    assert choices == {"one": "aten", "two": "native_winograd_bf16", "three": "fft"}
    monkeypatch.setattr(autotune, "get_choices_of_process", lambda: {"one": "strassen"})
    checkpoint.save(path, network, optimizer, TrainingProgress())
    with pytest.raises(RunError, match="convolutions by 'strassen'"):
        checkpoint.load(path, network, optimizer)
