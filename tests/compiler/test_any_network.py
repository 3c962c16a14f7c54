"""Unusual networks: optimized, they return the same values and types, or a one-line error says why not."""

import copy
import dataclasses
import pickle
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from svertka.compiler.accuracy_check import max_relative_channel_error
from svertka.compiler.optimize import Optimized, optimize
from svertka.compiler.output_structure import iter_output_tensors
from svertka.errors import RunError, UsageError

TOLERANCE = 2e-5  # of the largest value, rounding of float32


class Layer(nn.Module):
    """A convolution, and `after(self, maps)`."""

    def __init__(self, after: Callable[["Layer", Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.after = nn.Conv2d(3, 8, 3, padding=1), after
        self.register_buffer("anchors", torch.rand(16, 4))

    def forward(self, x: Tensor) -> Any:
        return self.after(self, self.conv(x))


def images(count: int) -> Tensor:
    return torch.randn(
        count, 3, 16, 16, generator=torch.Generator().manual_seed(count), dtype=torch.float32, device="cpu"
    )


def same(ours: Any, theirs: Any) -> bool:
    """Whether two outputs have the same types and, but for rounding, the same numbers."""
    pairs = list(zip(iter_output_tensors(ours), iter_output_tensors(theirs), strict=True))
    return type(ours) is type(theirs) and all(
        max_relative_channel_error(a, b) < TOLERANCE and a.dtype == b.dtype for a, b in pairs
    )


def gives_the_same(network: nn.Module, sizes: tuple[int, ...] = (2, 1, 3, 5, 0), **settings: Any) -> Optimized:
    """`network`, optimized: for batches of all these sizes it gives the same, or refuses what the original cannot."""
    optimized = optimize(network, images(2), **settings)
    for size in sizes:
        try:
            with torch.no_grad():
                expected = network.eval()(images(size))
        except (RuntimeError, IndexError):
            with pytest.raises(UsageError):
                optimized(images(size))
        else:
            assert same(optimized(images(size)), expected), size
    return optimized


class Pair(NamedTuple):
    maps: Tensor
    more: Any


@dataclasses.dataclass(frozen=True)
class Found:
    maps: Tensor
    more: Any = None


class ModelOutput(OrderedDict):
    """A dict whose items are attributes, too, as those of Hugging Face's libraries."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


OUTPUTS: dict[str, Callable[[Layer, Tensor], Any]] = {
    "a named tuple": lambda _, y: Pair(y, (None, y.mean())),
    "a dataclass": lambda _, y: Found(y, [y[0], 3]),
    "a model output": lambda _, y: ModelOutput(logits=y.mean((2, 3)), hidden=None),
    "an ordered dict": lambda _, y: OrderedDict(b=y, a=[y.relu(), (y, "text")]),
    "a default dict": lambda _, y: defaultdict(list, a=y),
    "what max gives": lambda _, y: y.max(1),
    "a size": lambda _, y: (y, y.shape),
    "the number of images": lambda _, y: {"maps": y, "count": y.shape[0]},
    "nothing": lambda _, __: None,
    "a number": lambda _, __: -float("inf"),
    "minus infinity": lambda _, y: y.masked_fill(y < 0, -float("inf")),
    "a constant": lambda net, y: (y.flatten(2), net.anchors * 32, net.anchors),
    "a weight": lambda net, y: (y, net.conv.weight, net.conv.bias),
    "other types": lambda _, y: (y.double(), y.bfloat16(), y.argmax(1), y > 0, torch.fft.rfft2(y)),
    "a view": lambda _, y: (y[:, ::2], y.permute(2, 0, 3, 1)),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_keep_their_types(name: str) -> None:
    gives_the_same(Layer(OUTPUTS[name]))


def test_the_input_is_returned_as_a_copy() -> None:
    x = images(1)
    given = optimize(nn.Identity(), x)(x)
    assert torch.equal(given, x)
    assert given.data_ptr() != x.data_ptr()


def attention(net: Layer, y: Tensor) -> Tensor:
    batch, channels, height, width = y.shape
    split = lambda maps: maps.reshape(batch * 2, channels // 2, height * width)  # noqa: E731
    weight, bias = net.conv.weight.repeat(1, 3, 1, 1)[:, :8], net.conv.bias
    q, k, v = (split(F.conv2d(y.roll(shift, 1), weight, bias, padding=1)) for shift in range(3))
    a = (q.transpose(1, 2) @ k).softmax(-1)
    return (v @ a.transpose(1, 2)).reshape(batch, channels, height, width)


def slope(net: Layer, y: Tensor) -> Tensor:
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.conv_transpose2d(y, net.conv.weight).sin().sum(), y)
    return gradient


USES: dict[str, Callable[[Layer, Tensor], Any]] = {
    "attention": attention,
    "a view of the first map at the end": lambda net, y: (
        F.conv2d(
            y.flatten(2).transpose(1, 2)[:, :, :3].transpose(1, 2).reshape(-1, 3, 16, 16), net.conv.weight, padding=1
        )
        + y
    ),
    "one weight with other settings": lambda net, y: (
        net.conv(y[:, :3]).mean()
        + F.conv2d(y[:, :3], net.conv.weight, net.conv.bias, 2, 0, 2).mean()
        + F.conv_transpose2d(y, net.conv.weight, stride=2).mean()
        + net.conv.weight.square().sum()
    ),
    "a strided bias": lambda net, y: F.conv2d(y, net.conv.weight.repeat(1, 3, 1, 1)[:4, :8], net.conv.bias[::2]),
    "one bias for all": lambda net, y: F.conv2d(
        y, net.conv.weight.repeat(1, 3, 1, 1)[:, :8], net.anchors[0, :1].expand(8)
    ),
    "numbers of Python": lambda _, y: (
        y * torch.tensor([0.5]) + y.new_tensor(2.0) + torch.as_tensor([1], device=y.device)
    ),
    "a list of channels": lambda _, y: y[:, [2, 0, 1]] + y[:, [3, 4, 5]][:, torch.tensor([1, 0, 2])],
    "channels by their values": lambda _, y: y.flatten(1)[:, y.flatten(1)[0].argsort()[:4]],
    "values of a parameter": lambda net, y: y * net.conv.bias[0].item() + float(net.conv.weight.max()),
    "the number of images": lambda _, y: y / y.shape[0] + torch.arange(len(y))[:, None, None, None],
    "masks and positions": lambda _, y: (y + torch.linspace(-1, 1, 16)).masked_fill(torch.ones(16, 16).triu(1) > 0, 0),
    "its own gradient": slope,
    "in place": lambda _, y: y.mul_(2).add_(1).relu_(),
    "in place through a view": lambda _, y: (y[:, :4].relu_(), y)[1],
    "in place of another dtype": lambda net, y: (y.mul_(net.anchors.double()[:, :1]), y[:, :2].gt_(0), y)[2],
    "batch statistics": lambda _, y: F.instance_norm(y) + F.group_norm(y, 2),
    "half precision inside": lambda _, y: y.double().mean((2, 3), keepdim=True).float() + y,
    "switched off dropout": lambda net, y: F.dropout(y, 0.5, net.training) + F.dropout(y, 0.0),
    "scaled by a computed weight": lambda _, y: F.batch_norm(
        y, torch.zeros(8), torch.ones(8), weight=y.mean((0, 2, 3)), bias=y.amax((0, 2, 3))
    ),
    "windows that lie in order for one image": lambda _, y: (
        y.view(len(y), 8, 4, 4, 1, 16).transpose(3, 4).reshape(-1, 8, 4, 16).transpose(0, 1).contiguous().relu()
    ),
    "a copy that is written into": lambda _, y: (
        y.clone().mul_(2),
        y.contiguous() - 1,
        y.clone()[:, :3].zero_() + y[:, 3:6],
    ),
    "a batch in the channels": lambda _, y: y.reshape(1, -1, 16, 16).relu().mean((2, 3)),
    "a batch in the rows": lambda _, y: F.max_pool2d(y.transpose(0, 2).relu(), (1, 2)),
}


@pytest.mark.parametrize("name", USES)
def test_what_networks_do_is_done(name: str) -> None:
    gives_the_same(Layer(USES[name]))


class Stateful(nn.Module):
    """`after(self, maps)` may keep something in `kept`, `seen` and `number`."""

    def __init__(self, after: Callable[["Stateful", Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.after, self.kept, self.seen = nn.Conv2d(3, 8, 3, padding=1), after, None, {}
        self.register_buffer("number", torch.ones(1))

    def forward(self, x: Tensor) -> Any:
        return self.after(self, self.conv(x))


def counted(net: Stateful, y: Tensor) -> Tensor:
    net.seen["calls"] = net.seen.get("calls", 0) + 1
    return y * net.seen["calls"]


def remembered(net: Stateful, y: Tensor) -> Tensor:
    net.kept = y if net.kept is None or net.kept.shape != y.shape else net.kept * 0.5 + y
    return net.kept


def cached(net: Stateful, y: Tensor) -> Tensor:
    if "positions" not in net.seen:
        net.seen["positions"] = torch.linspace(0, 1, 16)
    net.kept = y.softmax(1)  # to look at, as transformers keep their attention
    return y + net.seen["positions"]


def test_what_is_made_once_and_kept_is_no_state() -> None:
    network = Stateful(cached).eval()
    gives_the_same(network)
    network(images(1))
    gives_the_same(network)


class Two(nn.Module):
    """It takes two batches."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "counts": (Stateful(counted), "computes something else each time it runs"),
    "remembers": (Stateful(remembered), "reads what the previous run computed from its images"),
    "writes a buffer": (Stateful(lambda net, y: y * net.number.add_(1)), r"writes into number \(add_\)"),
    "draws": (Layer(lambda _, y: y + torch.rand(1)), r"draws random numbers \(rand\)"),
    "drops": (Layer(lambda _, y: F.dropout(y)), "draws random numbers .*training=self.training"),
    "selects": (Layer(lambda _, y: y[y > 0]), r"depends on the values of a tensor \(index\)"),
    "leaves PyTorch": (Layer(lambda _, y: torch.from_numpy(y.numpy())), "to numpy.* with operations of PyTorch"),
    "returns an object": (Layer(lambda _, y: {y}), "returns an object of type set"),
    "writes through windows": (
        Layer(lambda _, y: (y.unfold(3, 2, 1).relu_(), y)[1]),
        "writes into a part or another view",
    ),
    "has double weights": (nn.Conv2d(3, 4, 1).double(), r"its parameters are float64: call .float\(\) on it"),
    "has half weights": (nn.Conv2d(3, 4, 1).half(), r"its parameters are float16: call .float\(\) on it"),
    "is spread": (nn.DataParallel(nn.Conv2d(3, 4, 1)), "optimize its .module"),
    "is lazy": (nn.LazyConv2d(8, 3), "weight is not initialized yet; run the network once"),
    "has no values": (nn.Conv2d(3, 4, 1, device="meta"), "weight is on the meta device"),
    "takes two": (Two(), r"missing 1 required .*; it needs inputs other than images \(y\); wrap it in a module"),
    "other channels": (
        nn.Sequential(nn.Conv2d(5, 4, 1)),
        r"0 says: Invalid channel dimensions; .* use an example such that network\(example\) runs",
    ),
    "cannot be copied": (Stateful(lambda net, y: y), "cannot be copied"),
}
REFUSED["cannot be copied"][0].lock = threading.Lock()  # type: ignore[assignment]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused(name: str) -> None:
    network, sentence = REFUSED[name]
    with pytest.raises(UsageError, match=sentence) as caught:
        optimize(network, images(2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", [None, 3, nn.Conv2d, lambda x: x, torch.zeros(1)])
def test_what_is_no_network_is_refused(what: Any) -> None:
    with pytest.raises(UsageError, match="is not a torch.nn.Module"):
        optimize(what, images(1))


FIXED: dict[str, tuple[Callable[[Layer, Tensor], Any], tuple[int, ...]]] = {
    "a view of so many": (lambda _, y: y.view(2, 2048), (1, 3, 4)),
    "rows that are counted": (lambda _, y: torch.stack([image * number for number, image in enumerate(y)]), (1, 3)),
    "another way for few": (lambda _, y: -y if len(y) < 2 else y, (0, 1)),
    "another way for many": (lambda _, y: -y if len(y) > 40 else y, (41, 64)),
    "another way for seven": (lambda _, y: -y if len(y) == 7 else y, (7,)),
    "squeezed": (lambda _, y: F.adaptive_avg_pool2d(y, 1).squeeze(), (1,)),
    "not as many times as many": (lambda _, y: y.repeat(len(y), 1, 1, 1), (1, 3, 5)),
}


@pytest.mark.parametrize("name", FIXED)
def test_batches_for_which_a_network_does_something_else_are_refused(name: str) -> None:
    after, others = FIXED[name]
    network = Layer(after)
    optimized = optimize(network, images(2))
    assert same(optimized(images(2)), network(images(2)).detach())
    for size in others:
        with pytest.raises(
            UsageError, match=rf"with an example of {size}\s(image|images)$|cannot be traced with an input of"
        ):
            optimized(images(size))
        if name != "a view of so many" and size:
            with torch.no_grad():
                assert same(optimize(network, images(size))(images(size)), network(images(size)))


def test_a_file_refuses_the_batches_that_the_network_refuses(tmp_path) -> None:
    path = tmp_path / "network.safetensors"
    optimize(Layer(FIXED["squeezed"][0]), images(2)).save(path)
    loaded = Optimized.load(path)
    with pytest.raises(UsageError, match=r"the batch has 1\simage, and this network"):
        loaded(images(1))
    optimize(Layer(FIXED["a view of so many"][0]), images(2)).save(path)
    with pytest.raises(UsageError, match="optimized for 2 at a time"):
        Optimized.load(path)(images(3))
    with pytest.raises(UsageError, match="cannot be stored in a file or pickle"):
        optimize(Layer(FIXED["another way for many"][0]), images(2)).save(path)


def hooked(kind: str, hook: Callable[..., Any]) -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    getattr(network[0], kind)(hook)
    return network


def test_hooks_are_part_of_a_network() -> None:
    gives_the_same(hooked("register_forward_hook", lambda _, __, output: output * 2))
    gives_the_same(hooked("register_forward_pre_hook", lambda _, given: (given[0] + 1,)))


def test_images_are_only_read() -> None:
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 8, 3))
    x = images(2)
    gives_the_same(network)
    optimize(network, x)(x)
    assert torch.equal(x, images(2))


def test_who_only_watches_is_not_called() -> None:
    seen: list[Any] = []
    network = hooked("register_forward_hook", lambda _, __, output: seen.append(output.mean().item()))
    optimize(network, images(2))
    assert not seen
    with pytest.raises(UsageError, match="computes something else"):
        optimize(hooked("register_forward_hook", lambda _, __, output: output * float(output.mean())), images(2))


@pytest.mark.filterwarnings("ignore:.*is deprecated.*:FutureWarning")
@pytest.mark.parametrize(
    "norm",
    [nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm,
     nn.utils.parametrizations.spectral_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)],
)  # fmt: skip
def test_weights_are_those_that_the_next_run_would_compute(norm: Callable[[nn.Module], nn.Module]) -> None:
    trained, network = (nn.Sequential(norm(nn.Conv2d(3, 8, 3)), norm(nn.Conv2d(8, 8, 3))).eval() for _ in range(2))
    network.load_state_dict(trained.state_dict())
    gives_the_same(network)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("made", ["script", "trace", "fx", "optimized", "module.compile"])
def test_networks_in_other_forms(made: str) -> None:
    network: nn.Module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    if made == "script":
        network = torch.jit.script(network)
    elif made == "trace":
        network = torch.jit.trace(network, images(2))
    elif made == "fx":
        network = torch.fx.symbolic_trace(network)
    elif made == "optimized":
        network = nn.Sequential(optimize(network, images(1)), nn.Conv2d(8, 4, 1))
    else:
        network.compile()
        optimize(network, images(2))
        return
    gives_the_same(network, (2, 1, 3))


def test_an_optimized_network_is_optimized_already() -> None:
    optimized = optimize(nn.Conv2d(3, 4, 3), images(1))
    assert optimize(optimized, images(2)) is optimized
    with pytest.raises(UsageError, match="is already optimized"):
        optimize(optimized, images(1), precision="bf16")


def test_the_network_may_go_on_learning() -> None:
    network = Layer(lambda net, y: y * net.anchors[0, 0] + net.conv.bias[0]).eval()
    optimized, x = optimize(network, images(1)), images(1)
    before = optimized(x)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.add_(1)
    assert torch.equal(optimized(x), before)


class Subclass(Tensor):
    pass


INPUTS: dict[str, Tensor] = {
    "every second row": torch.randn(2, 3, 32, 16)[:, :, ::2],
    "expanded": torch.randn(1, 3, 1, 16).expand(5, 3, 16, 16),
    "overlapping": torch.randn(800).as_strided((4, 3, 16, 16), (1, 256, 16, 1)),
    "with gradient": torch.randn(2, 3, 16, 16, requires_grad=True),
    "negative": torch._neg_view(torch.randn(2, 3, 16, 16)),
    "channels-last": torch.randn(2, 16, 16, 3).permute(0, 3, 1, 2),
    "backwards": torch.randn(16, 16, 3, 2).permute(3, 2, 0, 1),
    "a parameter": nn.Parameter(torch.randn(2, 3, 16, 16)),
    "a subclass": torch.randn(2, 3, 16, 16).as_subclass(Subclass),
    "none": torch.randn(2, 3, 16, 16)[torch.tensor([False, False])],
}


@pytest.mark.parametrize("name", INPUTS)
def test_images_come_in_any_memory(name: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.MaxPool2d(2), nn.Flatten()).eval()
    x = INPUTS[name]
    with torch.no_grad():
        expected = network(x.detach().as_subclass(Tensor).clone())
    ours = optimize(network, images(1))(x)
    assert type(ours) is Tensor
    assert not ours.requires_grad
    assert same(ours, expected)


@pytest.mark.parametrize(
    "x",
    [None, [1.0], images(1).numpy(), images(1)[0], images(1).double(), images(1).bfloat16(), images(1).int(),
     images(1)[:, :2], images(1).to_sparse(), images(1).expand(10**12, 3, 16, 16), torch.zeros(1, 0, 16, 16)],
)  # fmt: skip
def test_other_inputs_are_refused_in_one_sentence(x: Any) -> None:
    network = nn.Conv2d(3, 8, 3)
    optimized = optimize(network, images(1))
    for call in (lambda: optimized(x), lambda: optimize(network, x)):
        with pytest.raises(UsageError, match=r"^[^\n]+$"):
            call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_defaults_of_pytorch_change_nothing(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Conv2d(3, 20, 3), nn.GELU(), nn.Conv2d(20, 8, 1)).eval()
    with torch.no_grad():
        expected = network(images(3))
    before = optimize(network, images(2))
    torch.set_default_dtype(dtype)
    try:
        assert same(before(images(3)), expected)
        assert same(optimize(network, images(2))(images(3)), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert same(before(images(3)), expected)


def test_threads_with_batches_of_other_sizes_do_not_meet() -> None:
    network = Layer(attention).eval()
    optimized = optimize(network, images(2))
    expected = {size: optimized(images(size)) for size in range(1, 15)}  # more sizes than plans are kept
    wrong: list[Any] = []

    def work(seed: int) -> None:
        try:
            sizes = torch.randint(1, 15, (25,), generator=torch.Generator().manual_seed(seed)).tolist()
            wrong.extend(size for size in sizes if not torch.equal(optimized(images(size)), expected[size]))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_copies_and_pickles_compute_the_same() -> None:
    optimized = gives_the_same(Layer(attention))
    expected = optimized(images(3))
    for other in (copy.copy(optimized), copy.deepcopy(optimized), pickle.loads(pickle.dumps(optimized))):
        assert torch.equal(other(images(3)), expected)


SAVED = {name: OUTPUTS[name] for name in OUTPUTS.keys() - {"a named tuple", "a dataclass", "a model output",
                                                           "a default dict", "what max gives"}} | USES  # fmt: skip


@pytest.mark.parametrize("name", sorted(SAVED))
def test_what_is_saved_is_loaded(tmp_path, name: str) -> None:
    optimized = optimize(Layer(SAVED[name]), images(2))
    optimized.save(tmp_path / "network.safetensors")
    ours, again = optimized(images(3)), Optimized.load(tmp_path / "network.safetensors")(images(3))
    assert type(ours) is type(again)
    assert all(torch.equal(a, b) for a, b in zip(iter_output_tensors(ours), iter_output_tensors(again), strict=True))


@pytest.mark.parametrize("name", ["a named tuple", "a dataclass", "a model output", "a default dict", "what max gives"])
def test_outputs_that_take_code_are_not_saved(tmp_path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be written to a file, which holds no code"):
        optimize(Layer(OUTPUTS[name]), images(2)).save(tmp_path / "network.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.sample(20)
@pytest.mark.parametrize("step", range(40))
def test_damaged_files_are_refused(tmp_path, step: int) -> None:
    """Truncated, or with bytes that are others: an error, or, where they do not matter, the same numbers."""
    path = tmp_path / "network.safetensors"
    optimized = optimize(Layer(attention), images(2))
    optimized.save(path)
    content, generator = bytearray(path.read_bytes()), torch.Generator().manual_seed(step)
    place = int(torch.randint(len(content) if step % 4 else 5000, (1,), generator=generator))
    path.write_bytes(content[:place] if step % 3 == 0 else content[:place] + bytes([content[place] ^ 1 << step % 8])
                     + content[place + 1 :])  # fmt: skip
    try:
        loaded = Optimized.load(path)
    except RunError:
        return
    assert same(loaded(images(3)), optimized(images(3)))


def test_nothing_spreads_where_it_must_not() -> None:
    for taps in (3, 5):
        network = nn.Sequential(nn.Conv2d(16, 16, taps, padding=taps // 2), nn.ReLU()).eval()
        x = torch.randn(1, 16, 16, 16)
        assert optimize(network, x).winograd_layers == ("0",)
        strict = optimize(network, x, strict=True)
        assert strict.winograd_layers == ()
        for bad in (float("nan"), float("inf"), 1e20):
            x[0, 1, 5, 5] = bad
            with torch.no_grad():
                expected, ours = network(x), strict(x)
            assert torch.equal(ours.isnan(), expected.isnan())
            assert torch.equal(ours.isinf(), expected.isinf())
            far = torch.ones(16, 16, dtype=torch.bool)
            far[5 - taps // 2 : 6 + taps // 2, 5 - taps // 2 : 6 + taps // 2] = False
            assert max_relative_channel_error(ours[:, :, far], expected[:, :, far]) < TOLERANCE


def test_only_without_strict_values_near_the_largest_number_overflow() -> None:
    for taps in (3, 5):
        layer, x = nn.Conv2d(16, 16, taps, padding=taps // 2, bias=False), torch.rand(1, 16, 16, 16) * 2 - 1
        with torch.no_grad():
            layer.weight /= layer.weight.abs().sum((1, 2, 3), keepdim=True)  # no sum is larger than an input
            expected = layer(x)
            tiled, strict = optimize(layer, x), optimize(layer, x, strict=True)
            assert max_relative_channel_error(tiled(x * 1e30) / 1e30, expected) < TOLERANCE
            assert max_relative_channel_error(strict(x * 2.9e38) / 2.9e38, expected) < TOLERANCE
            assert not tiled(x * 2.9e38).isfinite().all()


def test_bfloat16_is_refused_where_it_gives_another_class() -> None:
    head = nn.Linear(48, 2)
    with torch.no_grad():  # two classes that differ in what bfloat16 does not keep
        head.weight[1] = head.weight[0] * (1 + 1e-4)
        head.bias[1] = head.bias[0]
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), head).eval()
    with pytest.raises(UsageError, match=r"gives another class for [\d.]+% of the example's images, more than 1%"):
        optimize(network, images(64), precision="bf16")


@pytest.mark.filterwarnings("ignore")
def test_optimized_networks_are_traced_as_operations_of_pytorch() -> None:
    network = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 20, 3), nn.AdaptiveAvgPool2d(1)).eval()
    optimized, x = optimize(network, images(2)), images(2)
    expected = optimized(x)
    assert same(torch.jit.trace(optimized, x)(x), expected)
    assert same(torch.func.vmap(optimized)(x[None].repeat(3, 1, 1, 1, 1))[1], expected)


@pytest.mark.large
@pytest.mark.filterwarnings("ignore")
def test_optimized_networks_are_exported_and_compiled() -> None:
    network = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 20, 3), nn.AdaptiveAvgPool2d(1)).eval()
    optimized = optimize(network, images(2))
    exported = torch.export.export(
        optimized, (images(2),), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=100)},), strict=False
    )
    for size in (1, 5):
        assert same(exported.module()(images(size)), optimized(images(size)))
        assert same(torch.compile(optimized, backend="eager")(images(size)), optimized(images(size)))
    gives_the_same(torch.compile(network, backend="eager"), (2, 1, 3))
    gives_the_same(exported.module(), (2, 1, 3))
