import copy
import json
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import svertka
from svertka.compiler import accuracy_check
from svertka.compiler.ir import FusedConvolution
from svertka.compiler.optimize import Optimized, optimize
from svertka.conv import native_support
from svertka.conv.accelerate import accelerate
from svertka.errors import RunError, UsageError
from svertka.graph.operation_and_value_types import Operation
from svertka.models.registry import MODELS
from svertka.tensor_files import read_tensors_and_header, write_tensors

# Of the largest value, between an optimized network and the same in float64: rounding of float32 through up to a
# hundred layers. The largest of the zoo was 4e-6.
TOLERANCE = 2e-5


@pytest.fixture(params=("avx512bf16", "avx512", "avx2", "baseline"))
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that the kernels are built for and that the processor has, in use meanwhile."""
    if request.param not in native_support.instruction_sets():
        pytest.skip(f"no {request.param} here")
    threads = torch.get_num_threads()
    native_support.select_instruction_set(request.param)
    yield request.param
    native_support.select_instruction_set(native_support.instruction_sets()[0])
    torch.set_num_threads(threads)


def with_statistics(network: nn.Module, seed: int = 0) -> nn.Module:
    """`network` in inference with batch-norm statistics, weights and biases as after some training."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            layer.bias.data.normal_(0, 0.2, generator=generator)
    return network.eval()


def error(ours: Tensor, network: nn.Module, x: Tensor) -> float:
    """Of `ours` against `network` in float64, over the largest value."""
    with torch.inference_mode():
        exact = copy.deepcopy(network).double()(x.double())
    assert ours.shape == exact.shape
    return float((ours - exact).abs().max() / exact.abs().max())


def kinds(network: Optimized) -> dict[str, int]:
    names = [type(step).__name__ for step in network.compiled[0].fused.steps]
    return {name: names.count(name) for name in set(names)}


# One of each family, on images as small as it takes; the others are made of the same layers.
SMALL = {
    "mlp": 28, "lenet5": 32, "alexnet_owt": 63, "alexnet": 67, "googlenet_bn": 33, "inception_v3": 75,
    "inception_resnet_v2": 75, "resnet18": 33, "resnet50": 40, "resnet20": 32, "plain20": 32, "squeezenet1_1": 35,
    "efficientnet_lite0": 40, "airbench": 32, "vgg11_bn": 32,
}  # fmt: skip
LONG = ("inception_resnet_v2", "resnet50")


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", [name for name in SMALL if name not in LONG])
def test_networks_of_the_zoo_give_what_they_give_in_float64(name: str) -> None:
    gives_what_it_gives_in_float64(name, SMALL[name])


@pytest.mark.large
@pytest.mark.parametrize("name", [*LONG, *sorted(MODELS.keys() - SMALL.keys())])
def test_all_networks_of_the_zoo_give_what_they_give_in_float64(name: str) -> None:
    gives_what_it_gives_in_float64(name, SMALL.get(name, MODELS[name].size))


def gives_what_it_gives_in_float64(name: str, size: int) -> None:
    model = MODELS[name]
    torch.manual_seed(1)
    network = with_statistics(model.build(classes=None if name == "lenet5" else 10, size=size))
    x = torch.randn(2, model.input_shape[0], size, size)
    optimized = optimize(network, x)
    assert optimized.error < TOLERANCE
    more = torch.randn(3, *x.shape[1:])
    assert error(optimized(more), network, more) < TOLERANCE
    assert torch.equal(optimized(more), optimized(more.contiguous(memory_format=torch.channels_last)))


def test_a_residual_network_is_convolutions_and_two_poolings() -> None:
    network = with_statistics(MODELS["resnet50"].build(classes=10))
    optimized = optimize(network, torch.randn(1, 3, 40, 40))
    assert kinds(optimized) == {"FusedConvolution": 54, "Pool": 2}
    convolutions = [step for step in optimized.compiled[0].fused.steps if isinstance(step, FusedConvolution)]
    assert sum(step.residual is not None for step in convolutions) == 16
    assert sum(step.bounds == (0, torch.inf) for step in convolutions) == 49  # all but shortcuts and the dense layer


def test_branches_are_computed_where_they_are_joined() -> None:
    network = with_statistics(MODELS["googlenet_bn"].build(classes=10))
    optimized = optimize(network, torch.randn(1, 3, 64, 64))
    assert kinds(optimized) == {"FusedConvolution": 58, "Pool": 14, "Concatenation": 9}
    if native_support.why_not() is None:
        assert len(optimized.compiled[0].plan(1).program) == 58 + 14  # nothing is copied


def test_the_network_stays_as_it_was() -> None:
    network = with_statistics(MODELS["resnet20"].build()).train()
    network.layer1.eval()
    calls = []
    network.conv1.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(network)
    optimized = optimize(network, torch.randn(2, 3, 32, 32))
    assert not calls
    assert [layer.training for layer in network.modules()] == [layer.training for layer in before.modules()]
    for name, tensor in before.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    expected = optimized(x := torch.randn(1, 3, 32, 32))
    network.conv1.weight.data.zero_()
    assert torch.equal(optimized(x), expected)


@pytest.mark.sample(2)
@pytest.mark.parametrize("multiplied", [False, True])
@pytest.mark.parametrize("name", ["alexnet_owt", "googlenet_bn", "resnet18", "efficientnet_lite0", "vgg11_bn"])
def test_networks_in_bfloat16_stay_near(monkeypatch: pytest.MonkeyPatch, name: str, multiplied: bool) -> None:
    monkeypatch.setattr(native_support, "multiplies_bfloat16", lambda: multiplied)  # what kernels do with it anywhere
    model, size = MODELS[name], SMALL[name]
    torch.manual_seed(1)
    network = with_statistics(model.build(classes=10, size=size))
    x = torch.randn(2, *model.input_shape[:1], size, size)
    optimized = optimize(network, x, precision="bf16")
    assert 1e-4 < optimized.error < 0.03  # the largest, that of efficientnet_lite0, is 2.6 %
    assert error(optimized(x), network, x) < 0.025


def test_dense_layers_alone_are_stored_narrower() -> None:
    torch.manual_seed(1)
    network = with_statistics(MODELS["alexnet_owt"].build(classes=10, size=63))
    x = torch.randn(2, 3, 63, 63)
    optimized = optimize(network, x, dense="bf16")
    kinds = [packed.numbers.dtype for packed in optimized.compiled[0].packed.values()]
    assert kinds == [torch.float32] * 5 + [torch.bfloat16] * 3
    assert TOLERANCE < error(optimized(x), network, x) < 0.01


def test_precisions_that_there_are_not_are_refused() -> None:
    for precisions in ({"precision": "fp16"}, {"dense": "int4"}):
        with pytest.raises(UsageError, match=r"^there is no precision '\w+'; use one of fp32, bf16, int8, auto$"):
            optimize(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), **precisions)


def test_each_network_is_checked_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy_check, "TOLERANCE", 1e-12)
    monkeypatch.setattr(accuracy_check, "TIMES", 0)  # nor as exact as PyTorch itself
    network = with_statistics(MODELS["resnet20"].build())
    with pytest.raises(UsageError, match="computes something else on the example: the largest difference is"):
        optimize(network, torch.randn(1, 3, 32, 32))


class Every(nn.Module):
    """All that can be joined, and what cannot, in one network."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, 20, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(20)
        self.grouped = nn.Conv2d(20, 24, 3, groups=4, padding=1, stride=2)
        self.wide = nn.Conv2d(24, 24, (1, 5), padding=(0, 2), groups=24)
        self.dilated = nn.Conv2d(24, 24, 3, padding=2, dilation=2)
        self.multiplied = nn.Conv2d(24, 48, 3, groups=24, padding=1)
        self.last = nn.Linear(48 * 2 * 2, 7)
        self.register_buffer("scale", torch.tensor(0.3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = F.relu_(self.norm(self.first(x)))
        y = F.hardswish(self.grouped(y)).clamp(-0.5, 2)
        z = self.wide(y).mul(0.5) + y  # a factor and a sum
        z = torch.cat([z, y, self.dilated(z).clamp_(min=-1), z], 1)  # a part twice, another read elsewhere
        z = F.avg_pool2d(z, 3, 2, 1) + F.avg_pool2d(z, 3, 2, 1, count_include_pad=False) * self.scale
        z = F.max_pool2d(F.pad(z[:, ::4], (0, 1, 1, 0)), 3, 1, 1) - 1
        w = self.multiplied(z)
        w = w + w.mean((2, 3), keepdim=True)
        return {"maps": w, "scores": self.last(F.adaptive_avg_pool2d(w, 2).flatten(1)), "mean": w.mean((2, 3))}


def test_whatever_a_network_does_it_gives_the_same() -> None:
    network = with_statistics(Every(3))
    x = torch.randn(2, 3, 19, 23)
    optimized = optimize(network, x)
    names = {step.name for step in optimized.compiled[0].fused.steps if isinstance(step, Operation)}
    assert names == {"slice.Tensor"}
    for batch in (2, 1, 5):
        x = torch.randn(batch, 3, 19, 23)
        ours, theirs = optimized(x), copy.deepcopy(network).double()(x.double())
        assert ours.keys() == theirs.keys()
        for name, exact in theirs.items():
            assert (ours[name] - exact).abs().max() < TOLERANCE * exact.abs().max()


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Conv2d, tuple[int, ...]]:
    """Convolutions with channels around the widths of vectors and register blocks, and inputs they take."""
    channels = st.one_of(st.integers(1, 40), st.sampled_from((48, 64, 65, 130)))
    groups = draw(st.sampled_from((1, 1, 1, 2, 3)))
    ins, outs = draw(channels) * groups, draw(channels) * groups
    if draw(st.integers(0, 3)) == 0:
        groups = outs = ins  # each channel by itself
    pair = lambda low, high: draw(st.tuples(st.integers(low, high), st.integers(low, high)))  # noqa: E731
    square = draw(st.sampled_from((1, 3, 3, 5, 7)))
    kernel = draw(st.sampled_from(((square, square), pair(1, 6))))
    stride, dilation, padding = draw(st.sampled_from(((1, 1), (2, 2), (1, 3)))), pair(1, 2), pair(0, 4)
    sides = [
        max(1, d * (k - 1) + 1 - 2 * p) + draw(st.integers(0, 20))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    layer = nn.Conv2d(ins, outs, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))
    return layer, (draw(st.integers(1, 4)), ins, *sides)


def test_random_convolutions_agree_with_float64(instructions: str, large_count: Callable[[int, int], int]) -> None:
    @settings(max_examples=large_count(8, 2000), deadline=None)
    @given(drawn=layers(), seed=st.integers(0, 2**32), threads=st.sampled_from((1, 2, 3)))
    def checked(drawn: tuple[nn.Conv2d, tuple[int, ...]], seed: int, threads: int) -> None:
        torch.set_num_threads(threads)
        layer, shape = drawn
        torch.manual_seed(seed)
        nn.init.normal_(layer.weight)
        network, x = nn.Sequential(layer, nn.ReLU6()), torch.randn(shape)
        size = layer.weight[0].numel() ** 0.5  # root mean square of the sums
        with torch.inference_mode():
            exact = copy.deepcopy(network).double()(x.double())
            assert (optimize(network, x)(x) - exact).abs().max() < 3e-5 * max(size, 1)  # as for Winograd's kernels

    checked()


@pytest.mark.sample(2)
def test_random_poolings_are_those_of_pytorch(instructions: str, large_count: Callable[[int, int], int]) -> None:
    @settings(max_examples=large_count(15, 2000), deadline=None)
    @given(data=st.data())
    def checked(data: st.DataObject) -> None:
        kernel = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
        stride = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
        padding = tuple(data.draw(st.integers(0, side // 2)) for side in kernel)
        ceil, inside = data.draw(st.booleans()), data.draw(st.booleans())
        pools = (
            nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil),
            nn.AvgPool2d(kernel, stride, padding, ceil, inside),
        )
        sides = data.draw(st.tuples(st.integers(5, 20), st.integers(5, 20)))
        x = torch.randn(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40)), *sides)
        for pool in pools:
            torch.testing.assert_close(optimize(pool, x)(x), pool(x), atol=1e-6, rtol=1e-6)

    checked()


@pytest.mark.parametrize("network", [nn.ReLU(), nn.MaxPool2d(3, 1), nn.Conv2d(16, 16, 1)])
def test_what_is_no_number_stays_none(network: nn.Module) -> None:
    x = torch.randn(1, 16, 6, 6)
    optimized = optimize(network, x)
    x[0, :, 2, 3] = torch.nan
    with torch.inference_mode():
        assert torch.equal(optimized(x).isnan(), network(x).isnan())


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True), nn.Dropout2d()])
def test_a_layer_in_training_mode_of_a_network_in_evaluation_mode_is_refused(layer: nn.Module) -> None:
    """The network itself would compute with it; one in training mode as a whole is optimized for evaluation."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(layer)).eval()
    layer.train()
    with pytest.raises(
        UsageError, match=rf"^1\.0 \({type(layer).__name__}\) is in training mode and the network is not"
    ):
        optimize(network, (3, 8, 8))
    assert optimize(network.train(), (3, 8, 8)) is not None


def test_layers_that_compute_the_same_in_both_modes_may_be_in_either() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    network.append(nn.Conv2d(4, 5, 1))
    network[1].train()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(optimize(network, x)(x), network(x).detach())


COPIES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda y: y.to(memory_format=torch.channels_last),
    lambda y: y.to("cpu", torch.float64, memory_format=torch.channels_last).float(),
    lambda y: y.clone(memory_format=torch.channels_last),
    lambda y: torch.empty_like(y, memory_format=torch.channels_last).copy_(y),
    lambda y: y.new_zeros(y.shape) + y.cpu(),
)


@pytest.mark.parametrize("copied", COPIES)
def test_maps_may_be_copied_in_another_layout(copied: Callable[[Tensor], Tensor]) -> None:
    class Copying(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return copied(x).relu()

    network, x = nn.Sequential(nn.Conv2d(3, 4, 3), Copying(), nn.Conv2d(4, 5, 1)).eval(), torch.randn(3, 3, 9, 8)
    torch.testing.assert_close(optimize(network, x)(x), network(x).detach())


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Overwriting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y.unfold(3, 2, 1)[..., 0] = 1
        return y


@pytest.mark.parametrize(
    ("inner", "sentence"),
    [
        (Deciding(), "1.0 depends on the values of a tensor (is_nonzero), which may differ for each image"),
        (Overwriting(), "1.0 writes into a part or another view of a tensor that is read later"),
        (nn.Conv2d(5, 5, 1), "1.0 says: Invalid channel dimensions"),
    ],
)
def test_what_cannot_be_followed_is_named(inner: nn.Module, sentence: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(inner))
    with pytest.raises(UsageError, match="^[^\n]*$") as caught:
        optimize(network, torch.randn(1, 3, 8, 8))
    assert sentence in str(caught.value)


def test_other_inputs_are_refused() -> None:
    optimized = optimize(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8))
    with pytest.raises(UsageError, match="the images are 3×9×8 and this network was optimized for 3×8×8"):
        optimized(torch.randn(1, 3, 9, 8))
    with pytest.raises(UsageError, match="the images are 1×8×8 and this .* for 3×8×8; convert them, or"):
        optimized(torch.randn(1, 1, 8, 8))
    with pytest.raises(UsageError, match="float64 on cpu; an optimized network takes"):
        optimized(torch.randn(1, 3, 8, 8, dtype=torch.float64))


def test_threads_do_not_meet() -> None:
    network = with_statistics(MODELS["resnet20"].build())
    images = torch.randn(8, 1, 3, 32, 32)
    optimized = optimize(network, images[0])
    expected = [optimized(image) for image in images]
    found: dict[int, list[Tensor]] = {}

    def work(number: int) -> None:
        found[number] = [optimized(images[number]) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, results in found.items():
        assert len(results) == 20
        assert all(torch.equal(result, expected[number]) for result in results)


def test_it_is_saved_and_loaded(tmp_path) -> None:
    x = torch.randn(2, 3, 19, 23)
    for network in (with_statistics(Every(1)), nn.Conv2d(3, 70, 3, padding=1)):
        optimized = optimize(network, x)
        optimized.save(tmp_path / "network.safetensors")
        loaded = Optimized.load(tmp_path / "network.safetensors")
        assert loaded.error == optimized.error
        once, again, copied = optimized(x), loaded(x), copy.deepcopy(optimized)(x)
        for other in (again, copied):
            torch.testing.assert_close(other, once, atol=0, rtol=0)


def test_files_keep_the_precision(tmp_path) -> None:
    x, sizes = torch.randn(2, 3, 19, 23), {}
    for precision, dense in (("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "bf16"), ("bf16", "fp32")):
        path = tmp_path / f"{precision} {dense}.safetensors"
        optimized = optimize(with_statistics(Every(1)), x, precision=precision, dense=dense)
        optimized.save(path)
        loaded = Optimized.load(path)
        assert (loaded.info.precision, loaded.info.dense) == (precision, dense)
        assert [one.numbers.dtype for one in loaded.compiled[0].packed.values()] == [
            one.numbers.dtype for one in optimized.compiled[0].packed.values()
        ]
        for other in (loaded(x), copy.deepcopy(loaded)(x)):
            torch.testing.assert_close(other, optimized(x), atol=0, rtol=0)
        sizes[precision, dense] = path.stat().st_size
    assert sizes["bf16", "bf16"] < sizes["fp32", "bf16"] < sizes["fp32", "fp32"]


def test_an_accelerated_network_can_be_optimized() -> None:
    network, x = with_statistics(Every(1)), torch.randn(2, 3, 19, 23)
    with torch.inference_mode():
        expected = network(x)
    torch.testing.assert_close(optimize(accelerate(network), x)(x), expected, rtol=1e-4, atol=1e-5)


def test_under_autocast_it_computes_as_without() -> None:
    network, x = with_statistics(Every(1)), torch.randn(2, 3, 19, 23)
    expected = optimize(network, x)(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(optimize(network, x)(x), expected, rtol=0, atol=0)


def test_files_of_the_first_format_are_of_float32(tmp_path) -> None:
    path, x = tmp_path / "network.safetensors", torch.randn(2, 3, 19, 23)
    optimized = optimize(with_statistics(Every(1)), x)
    optimized.save(path)
    tensors, header = read_tensors_and_header(path)
    (content,) = header["optimized"]["sizes"]
    content = {key: part for key, part in content.items() if key not in ("precision", "dense", "tensors")}
    write_tensors(path, tensors, {"optimized": content | {"format": 1}})
    loaded = Optimized.load(path)
    assert loaded.info == optimized.info
    torch.testing.assert_close(loaded(x), optimized(x), atol=0, rtol=0)


def tampered(header: dict, change: str) -> None:
    steps = header["steps"]
    convolutions = [step for step in steps if step["step"] == "Convolution"]
    pools = [step for step in steps if step["step"] == "Pool"]
    operations = [step for step in steps if step["step"] == "Operation"]
    if change == "operation":
        operations[0]["name"] = "from_file.default"
    elif change == "function":
        operations[0]["name"] = "load.default"
    elif change == "size":
        header["shapes"][str(pools[0]["result"])][2] = 1000
    elif change == "groups":
        convolutions[1]["groups"] = 1
    elif change == "kind":
        steps[0]["step"] = "Exec"
    elif change == "pooling":
        pools[0]["kind"] = "MEDIAN"
    elif change == "side":
        header["shapes"][str(pools[0]["result"])][0] = {"is": "Size", "each": 1, "more": [0]}
    elif change == "name":
        operations[0]["arguments"]["self"] = {"is": "Constant", "name": 3}
    elif change == "value":
        convolutions[1]["x"] = 400
    elif change == "padding":
        convolutions[0]["padding"]["of"][1] = -1
    elif change == "precision":
        header["precision"] = "fp32"
    elif change == "unknown precision":
        header["dense"] = "int4"


@pytest.mark.parametrize(
    "change",
    ["operation", "function", "size", "groups", "kind", "pooling", "side", "name", "value", "padding", "precision",
     "unknown precision"],
)  # fmt: skip
def test_a_file_that_somebody_has_changed_is_refused(tmp_path, change: str) -> None:
    path = tmp_path / "network.safetensors"
    optimize(with_statistics(Every(1)), torch.randn(2, 3, 19, 23), precision="bf16").save(path)
    tensors, header = read_tensors_and_header(path)
    header = json.loads(json.dumps(header))
    tampered(header["optimized"]["sizes"][0], change)
    write_tensors(path, tensors, header)
    with pytest.raises(RunError, match=r"network.safetensors is damaged \("):
        Optimized.load(path)


def test_another_file_is_refused(tmp_path) -> None:
    write_tensors(tmp_path / "weights.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(RunError, match="is not an optimized network"):
        svertka.Optimized.load(tmp_path / "weights.safetensors")


def test_without_kernels_pytorch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_support, "MISSING", "there are none")
    network = with_statistics(Every(2))
    x = torch.randn(2, 3, 19, 23)
    optimized = optimize(network, x)
    with torch.inference_mode():
        assert torch.allclose(optimized(x)["scores"], network(x)["scores"], atol=1e-5)


@pytest.mark.parametrize("after", [nn.Identity(), nn.ReLU(), nn.AvgPool2d(2), nn.Upsample(scale_factor=2)])
def test_outputs_are_in_the_memory_format_of_the_input(after: nn.Module) -> None:
    network, images = nn.Sequential(nn.Conv2d(3, 4, 3), after).eval(), torch.randn(2, 3, 8, 8)
    optimized = optimize(network, images)
    found = optimized(images)
    assert found.is_contiguous()
    torch.testing.assert_close(found.view(2, -1), network(images).view(2, -1), rtol=1e-4, atol=1e-5)
    expected = network(images.contiguous(memory_format=torch.channels_last))
    found = optimized(images.contiguous(memory_format=torch.channels_last))
    assert found.stride() == expected.stride()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_example_may_be_a_shape() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    images = torch.randn(2, 3, 9, 8)
    for shape in ((3, 9, 8), [2, 3, 9, 8], torch.Size((1, 3, 9, 8))):
        torch.testing.assert_close(optimize(network, shape)(images), network(images), rtol=1e-5, atol=1e-5)
    for wrong in ((9, 8), (3, 9, 0), (3, 9, 8.0), ("3", 9, 8), ()):
        with pytest.raises(UsageError, match="is not a shape; give .C, H, W."):
            optimize(network, wrong)
    with pytest.raises(UsageError, match=r"^example is a tuple of 2\xa0tensors, and .*; wrap .* as one tensor$"):
        optimize(network, (images, images))
    with pytest.raises(UsageError, match="needs more memory than this machine has"):
        optimize(network, (10**6, 10**6, 10**6))


def test_a_result_of_another_shape_than_captured_is_refused_with_advice() -> None:
    class Embedded(nn.Module):
        """PyTorch's embedding_bag returns more values than its shape inference says."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.bag = nn.Conv2d(3, 4, 3), nn.EmbeddingBag(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).mean((2, 3)) + self.bag(torch.tensor([[1, 2, 3]]))

    with pytest.raises(UsageError, match=r"bag \(embedding_bag.*; optimize the parts before and after it$"):
        optimize(Embedded().eval(), torch.rand(2, 3, 8, 8))
