"""Batch norm over two processes against one process with the whole batch, and the options of the gradients."""

import json

import pytest
import torch
from torch import nn

from ranks import run_ranks
from svertka.training.synchronized_batch_norm import batch_norm, synchronized_batch_norm

STEPS = """
import json, os, sys
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from svertka import distributed
from svertka.conv.accelerate import accelerate
from svertka.data.loader import Batch
from svertka.training.recipe import Recipe
from svertka.training.synchronized_batch_norm import synchronized_batch_norm
from svertka.training.training_loop import Loss, make_optimizer, take_step

class WithActivation(nn.BatchNorm2d):  # as timm's BatchNormAct2d: `forward` of its own
    def forward(self, x):
        shared = (self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps)
        return F.relu(F.batch_norm(x, *shared))

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), WithActivation(16),
        nn.Conv2d(16, 4, 3), nn.BatchNorm2d(4, affine=False, momentum=None),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(16, eps=1e-3), nn.Linear(16, 5),
    ).train()

def draw(count):
    torch.manual_seed(count)
    scale = torch.linspace(0.5, 3, count).view(-1, 1, 1, 1)  # shares of the batch differ
    return (2 + torch.randn(count, 3, 20, 20)) * scale, torch.arange(count) % 5

def state(network):
    return {name: value.double() for name, value in network.state_dict().items()}

def difference(network, other):
    others = state(other)
    return max(float((one - others[name]).norm() / others[name].norm()) for name, one in state(network).items())

def steps(network, counts, recipe, rank, world, replica=None):
    os.environ["WORLD_SIZE"] = str(world)
    optimizer, seen = make_optimizer(network, recipe), []
    for count in counts:
        images, labels = draw(count)
        batch = Batch(images[rank::world], labels[rank::world], None, count)
        seen.append(take_step(replica or network, optimizer, batch, Loss(recipe), recipe))
    os.environ["WORLD_SIZE"] = "2"
    return distributed.all_reduce(torch.stack(seen)) if world > 1 else torch.stack(seen)

found = {}
counts = [16, 7, 3, 2, 1]  # the last ones leave one image, or none, for the second process; a single one fails alone
recipe = Recipe(lr=0.05)
alone = build()
alone_seen = steps(alone, counts[:-1], recipe, 0, 1)

with distributed.process_group(torch.device("cpu")):
    rank = distributed.rank()
    for accelerated in (False, True):
        network = accelerate(build()) if accelerated else build()
        with synchronized_batch_norm(network):
            seen = steps(network, counts[:-1], recipe, rank, 2, distributed.data_parallel(network))
        found[f"accelerated {accelerated}"] = difference(network, alone)
        found[f"losses {accelerated}"] = float((seen - alone_seen).abs().max())
    unsynchronized = build()
    steps(unsynchronized, counts[:-1], recipe, rank, 2, distributed.data_parallel(unsynchronized))
    found["not synchronized"] = difference(unsynchronized, alone)

    # One image in the whole batch: its pixels are the statistics, and the second process adds nothing.
    several = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(1200, 5)).train()
    expected = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(1200, 5)).train()
    several.load_state_dict(expected.state_dict())
    distributed.broadcast_buffers(several)
    torch.manual_seed(0)
    for network in (several, expected):
        with torch.no_grad():
            network[2].weight.copy_(torch.linspace(-1, 1, 6000).view(5, 1200)), network[2].bias.zero_()
    with synchronized_batch_norm(several):
        steps(several, [1], recipe, rank, 2, distributed.data_parallel(several))
    steps(expected, [1], recipe, 0, 1)
    found["one image"] = difference(several, expected)

    # Gradients: parts of a batch are summed before they are sent, once for each bucket.
    sent = []
    reduce = dist.all_reduce
    def counted(tensor, *arguments, **named):
        sent.append(tensor.dtype)
        return reduce(tensor, *arguments, **named)
    plain = lambda: nn.Sequential(nn.Flatten(), nn.Linear(1200, 5))
    networks = []
    for accumulate, bfloat16 in ((1, False), (4, False), (4, True)):
        torch.manual_seed(0)
        networks.append(plain())
        recipe = Recipe(lr=1e-4, accumulate=accumulate)
        replica = distributed.data_parallel(networks[-1], bfloat16=bfloat16)
        dist.all_reduce = counted
        steps(networks[-1], [16, 11], recipe, rank, 2, replica)
        dist.all_reduce = reduce
    found["accumulated"] = difference(networks[0], networks[1])
    found["bfloat16"] = difference(networks[0], networks[2])
    found["moved"] = difference(networks[0], plain())
    found["sent in bfloat16"] = sent.count(torch.bfloat16)
    grads = [parameter.grad for parameter in networks[2].parameters()]
    found["same in both"] = all(bool((one == other).all()) for one, other in zip(*distributed.all_gather(grads)))
if rank == 0:
    with open(sys.argv[1], "w") as file:
        json.dump(found, file)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(STEPS, folder, str(folder / "found.json"))
    found: dict[str, float] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.large
def test_two_processes_normalize_as_one_does(found: dict[str, float]) -> None:
    for accelerated in (False, True):
        # Sums of float32 in another order; differences grow over four steps.
        assert found[f"accelerated {accelerated}"] < 1e-3
        assert found[f"losses {accelerated}"] < 1e-4
    assert found["one image"] < 1e-4
    assert found["not synchronized"] > 0.01


@pytest.mark.large
def test_gradients_of_parts_are_sent_once(found: dict[str, float]) -> None:
    assert found["accumulated"] < 1e-6
    assert 0 < found["bfloat16"] < 0.01 * found["moved"]
    assert found["sent in bfloat16"] == 2  # a step each
    assert found["same in both"]


def test_alone_it_is_pytorchs() -> None:
    torch.manual_seed(0)
    x, layer, theirs = torch.randn(6, 3, 4, 4), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    with synchronized_batch_norm(layer):
        assert "forward" not in vars(layer)
    ours, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    assert layer.running_mean is not None
    result = batch_norm(ours, layer.running_mean, layer.running_var, layer.weight, layer.bias, training=True)
    upstream = torch.randn_like(result)
    result.backward(upstream)
    theirs(expected).backward(upstream)
    torch.testing.assert_close(result, theirs(x))
    torch.testing.assert_close(ours.grad, expected.grad)
    torch.testing.assert_close(layer.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(layer.bias.grad, theirs.bias.grad)


def test_a_single_value_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm(torch.ones(1, 3), None, None, training=True)
