import torch
from torch import Tensor, nn

from svertka.compiler.capture_at_several_batch_sizes import capture_graph
from svertka.compiler.fusion import FusedNetwork, fuse
from svertka.compiler.optimize import optimize
from svertka.compiler.output_structure import OutputStructure
from svertka.compiler.packing import separate_shared_weights
from svertka.compiler.shared_weights import SharedTensors, pack_networks
from svertka.conv import native_support


def holding(**tensors: Tensor) -> FusedNetwork:
    return FusedNetwork((), {}, {}, tensors, OutputStructure(None, ()))


def test_equal_tensors_are_shared_whatever_their_names() -> None:
    torch.manual_seed(0)
    shared, one = SharedTensors(), torch.randn(4, 5)
    other, changed = one.clone(), one.clone()
    changed[3, 4] += 1
    first = shared.share(holding(a=one)).tensors
    second = shared.share(holding(b=other, a=changed)).tensors
    assert first["a"] is one
    assert second["b"] is one
    assert second["a"] is changed


def test_only_the_same_bytes_are_equal() -> None:
    zero, nan = torch.zeros(()), torch.full((3,), torch.nan)
    several = [zero, -zero, zero.double(), nan, torch.zeros(3, dtype=torch.bool), torch.zeros(0), torch.zeros(3, 2),
               torch.zeros(2, 3).t()]  # fmt: skip
    for tensor in several:
        shared = SharedTensors()
        shared.share(holding(**{str(number): one for number, one in enumerate(several) if one is not tensor}))
        assert shared.share(holding(a=tensor)).tensors["a"] is tensor
        assert shared.share(holding(a=tensor.clone())).tensors["a"] is tensor


def test_a_weight_that_kernels_read_in_two_ways_is_packed_in_both() -> None:
    if native_support.why_not():
        return
    layer = nn.Conv2d(32, 32, 3, padding=1)
    network = nn.Sequential(layer, nn.ReLU(), layer).eval()
    shared = SharedTensors()
    networks = [
        shared.share(separate_shared_weights(fuse(capture_graph(network, (1, 32, side, side))))) for side in (8, 9)
    ]
    (_, first), (_, second) = pack_networks(networks, strict=False)
    assert {id(one) for one in first.values()} == {id(one) for one in second.values()}
    assert len(set(map(id, first.values()))) == 1
    (_, strict), _ = pack_networks(networks, strict=True)
    assert {one.kernel for one in (*first.values(), *strict.values())} == {"winograd", "direct"}


def test_weights_that_are_trained_further_do_not_change_the_network() -> None:
    for layer in (nn.Conv2d(8, 8, 1, groups=8), nn.Conv2d(3, 8, 1), nn.Conv2d(4, 8, 3, groups=4), nn.PReLU(8)):
        channels = 8 if isinstance(layer, nn.PReLU) else layer.in_channels
        optimized = optimize(layer.eval(), (channels, 6, 6), sizes=[7])
        images = [torch.randn(1, channels, side, side) for side in (6, 7)]
        expected = [optimized(x) for x in images]
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(1)
        assert all(torch.equal(optimized(x), one) for x, one in zip(images, expected, strict=True))
