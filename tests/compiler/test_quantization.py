"""Networks in 8 bits, compared with rounding in float64 and with the float network."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.compiler.activation_ranges import observe_activations
from svertka.compiler.capture_at_several_batch_sizes import capture_graph
from svertka.compiler.fusion import fuse
from svertka.compiler.ir import Concatenation, FusedConvolution, Pool
from svertka.compiler.optimize import Optimized, optimize
from svertka.compiler.quantization import quantize_network, quantize_weights
from svertka.compiler.reference import run_reference
from svertka.conv import native_support
from svertka.errors import RunError, UsageError
from svertka.tensor_files import read_tensors_and_header, write_tensors


class Branches(nn.Module):
    """What 8-bit steps there are: concatenations, pools, residual connections, depthwise and grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.left, self.right = nn.Conv2d(32, 20, 1), nn.Conv2d(32, 28, 3, padding=1)
        self.depthwise = nn.Conv2d(48, 48, 5, padding=2, groups=48)
        self.grouped = nn.Conv2d(48, 64, 3, padding=1, groups=2)
        self.back, self.head = nn.Conv2d(64, 48, 1), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        x = torch.cat([self.left(x).relu(), self.right(x).relu()], 1)
        x = F.avg_pool2d(x + F.silu(self.depthwise(x)), 3, 1, 1)
        gate = self.back(self.grouped(x).relu()).sigmoid()
        scores: Tensor = self.head((x * gate).mean((2, 3)))
        return scores


def images(count: int, size: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    blocks = F.interpolate(torch.randn(count, 3, size // 4, size // 4, generator=generator), scale_factor=4.0)
    return blocks + 0.3 * torch.randn(count, 3, size, size, generator=generator)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Branches().eval()


@pytest.fixture(scope="module")
def optimized(network: nn.Module) -> Optimized:
    return optimize(network, images(2), precision="int8", calibration=images(128))


def exact(optimized: Optimized, x: Tensor) -> Tensor:
    """The same steps in float64, each result rounded to the numbers that can be stored."""
    with torch.no_grad():
        result: Tensor = run_reference(optimized.compiled[0].fused, optimized.compiled[0].read_weight, x.double())
    return result


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("threads", [1, 3])
def test_kernels_compute_what_rounding_in_float64_gives(optimized: Optimized, count: int, threads: int) -> None:
    x, before = images(count), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, expected = optimized(x), exact(optimized, x)
    finally:
        torch.set_num_threads(before)
    # A tie that is rounded otherwise changes a number by a step.
    assert (found - expected).abs().max() <= 0.02 * expected.abs().max()
    assert ((found - expected).square().mean() / expected.square().mean()).sqrt() < 0.005


def test_the_error_is_small_and_said(network: nn.Module, optimized: Optimized) -> None:
    x = images(64)
    with torch.no_grad():
        expected = network(x)
    error = ((optimized(x) - expected).square().mean() / expected.square().mean()).sqrt()
    assert 0 < error < 0.05
    assert 0 < optimized.error < 0.2
    assert "int8; largest error" in optimized.sentence
    assert {layer.precision for layer in optimized.layers} == {"int8"}


@pytest.mark.skipif(bool(native_support.why_not()), reason="no kernels here")
def test_all_maps_between_convolutions_have_8_bits(optimized: Optimized) -> None:
    steps, quantizations = optimized.compiled[0].fused.steps, optimized.compiled[0].fused.quantizations
    assert [layer.kernel for layer in optimized.layers].count("int8-depthwise") == 1
    for step in steps:
        if isinstance(step, FusedConvolution | Pool | Concatenation):
            assert all(value in quantizations for value in step.inputs)
    (concatenation,) = (step for step in steps if isinstance(step, Concatenation))
    assert len({quantizations[value] for value in (*concatenation.inputs, concatenation.result)}) == 1
    floats = [step.result for step in steps if step.result not in quantizations]
    assert floats == [steps[-1].result]  # the scores


def test_a_gate_of_squeeze_and_excitation_has_8_bits() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.squeeze, self.last = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.silu(self.first(x))
            found: Tensor = self.last(x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid())
            return found

    torch.manual_seed(0)
    network, x = Gated().eval(), images(5)
    gated = optimize(network, images(2), precision="int8", calibration=images(100))
    assert {layer.precision for layer in gated.layers} == {"int8"}
    assert (gated(x) - exact(gated, x)).abs().max() <= 0.01 * exact(gated, x).abs().max()
    with torch.no_grad():
        assert ((gated(x) - network(x)).square().mean() / network(x).square().mean()).sqrt() < 0.03


def test_weights_have_a_scale_for_each_channel() -> None:
    weight = torch.randn(5, 4, 3, 3) * torch.tensor([1.0, 1e-3, 0.0, 50.0, 1.0])[:, None, None, None]
    numbers, scale = quantize_weights(weight)
    assert numbers.dtype == torch.int8
    assert numbers[[0, 1, 3, 4]].flatten(1).abs().amax(1).tolist() == [127] * 4
    steps = scale[:, None, None, None]
    assert bool(((numbers * steps - weight).abs() <= 0.5001 * steps).all())


def test_biases_are_corrected_for_the_mean_error_of_weights() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(16, 8, 1), torch.randn(32, 16, 6, 6) + 3
    fused = fuse(capture_graph(layer, (2, 16, 6, 6)))
    with torch.no_grad():
        quantized = quantize_network(fused, observe_activations([fused], [x])[0], {fused.steps[0].result})
        error = (run_reference(quantized, quantized.tensors.__getitem__, x) - layer(x)).mean((0, 2, 3))
        without = quantized.tensors[next(name for name in quantized.tensors if name.endswith("int8.1.bias"))]
    assert error.abs().max() < 0.3 * (without - layer.bias).abs().max()


def test_layers_that_8_bits_do_not_support_stay_floats() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=8), nn.Softplus(), nn.Conv2d(16, 8, 1),
        nn.Flatten(), nn.Linear(8 * 20 * 20, 4),
    ).eval()  # fmt: skip
    optimized = optimize(network, images(2), precision="int8", dense="fp32", calibration=images(100))
    assert [layer.precision for layer in optimized.layers] == ["int8", "fp32", "int8", "fp32"]
    with torch.no_grad():
        expected = network(images(5))
    assert ((optimized(images(5)) - expected).square().mean() / expected.square().mean()).sqrt() < 0.05


def test_a_file_keeps_8_bits(optimized: Optimized, network: nn.Module, tmp_path: Path) -> None:
    path, x = tmp_path / "network.safetensors", images(3)
    optimized.save(path)
    loaded = Optimized.load(path)
    assert torch.equal(loaded(x), optimized(x))
    assert loaded.layers == optimized.layers
    optimize(network, images(2)).save(tmp_path / "float.safetensors")
    assert path.stat().st_size < 0.6 * (tmp_path / "float.safetensors").stat().st_size


@pytest.mark.parametrize("change", ["zero point", "scale", "missing", "input", "output", "weights", "shared"])
def test_a_file_that_somebody_has_changed_is_refused(optimized: Optimized, tmp_path: Path, change: str) -> None:
    path = tmp_path / "network.safetensors"
    optimized.save(path)
    tensors, header = read_tensors_and_header(path)
    whole: Any = json.loads(json.dumps(header["optimized"]))
    (content,) = whole["sizes"]
    written = content["quantizations"]
    concatenation = next(step for step in content["steps"] if step["step"] == "Concatenation")
    if change == "zero point":
        next(iter(written.values()))["zero_point"] = 256
    elif change == "scale":
        next(iter(written.values()))["scale"] = -1.0
    elif change == "missing":
        del written[str(concatenation["result"])]
    elif change == "input":
        written["0"] = {"scale": 1.0, "zero_point": 0}
    elif change == "output":
        written[str(content["output"]["number"])] = {"scale": 1.0, "zero_point": 0}
    elif change == "weights":
        name = next(name for name, tensor in tensors.items() if tensor.dtype == torch.int8)
        tensors[name] = tensors[name].float()
    else:
        written[str(concatenation["result"])] = {"scale": 1.0, "zero_point": 3}
    write_tensors(path, tensors, {"optimized": whole})
    with pytest.raises(RunError, match=r"network.safetensors is damaged \("):
        Optimized.load(path)


def test_without_kernels_it_gives_nearly_the_same(optimized: Optimized, monkeypatch: pytest.MonkeyPatch) -> None:
    x, expected = images(4), optimized(images(4))
    steps = optimized.compiled[0].fused
    whole = {name: optimized.compiled[0].read_weight(name) for name in optimized.compiled[0].packed}
    monkeypatch.setattr(native_support, "MISSING", "there are none")
    steps = replace(steps, tensors={**steps.tensors, **whole})
    plain = Optimized([(steps, optimized.info, None)])
    assert not plain.compiled[0].packed
    torch.testing.assert_close(plain(x), expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_precision_and_calibration_belong_together(network: nn.Module) -> None:
    for option in ("precision", "dense"):
        with pytest.raises(UsageError, match=f"^{option}='int8' needs calibration=, some hundred typical images"):
            optimize(network, images(2), **{option: "int8"})
    with pytest.raises(UsageError, match="^calibration= is read only with precision='int8', precision='auto' or dense"):
        optimize(network, images(2), calibration=images(100))


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_images_that_are_not_finite_are_refused(optimized: Optimized, number: float) -> None:
    x = images(3)
    x[1, 0, 0, 0] = number
    with pytest.raises(UsageError, match="^some images contain NaN or infinity, which 8 bits cannot represent; "):
        optimized(x)
    x = torch.full((1, 3, 24, 24), 3e38)  # only the sum is infinite
    assert optimized(x).isfinite().all()


def test_a_network_without_layers_that_8_bits_support_says_so() -> None:
    with pytest.warns(
        UserWarning, match="^Softplus has no layer that int8 supports, so its feature maps stay float32; use"
    ):
        optimized = optimize(nn.Softplus(), images(2), precision="int8", calibration=images(100))
    assert "fp32" in optimized.sentence
    assert "int8" not in optimized.sentence


def test_calibration_images_of_another_scale_are_refused() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    x = torch.rand(100, 3, 16, 16)
    sentence = (
        r"too inaccurate on the example: .* the example has values from \S+ to 1 and the calibration images from \S+ "
        "to 255"
    )
    with pytest.raises(UsageError, match=sentence):
        optimize(network, x[:8], precision="int8", calibration=x * 255)
    optimize(network, x[:8], precision="int8", calibration=x)


def test_a_concatenation_of_parts_with_very_different_ranges_stays_floats() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.box, self.score = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1), nn.Conv2d(16, 5, 1)
            self.last = nn.Conv2d(9, 9, 3, groups=9, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            found: Tensor = self.last(torch.cat([self.box(x) * 640, self.score(x) * 3], 1))
            return found

    torch.manual_seed(0)
    network, x = Detector().eval(), images(100)
    optimized = optimize(network, x[:2], precision="int8", calibration=x)
    assert [layer.precision for layer in optimized.layers] == ["int8", "int8", "int8", "fp32"]
    with torch.no_grad():
        expected, found = network(x), optimized(x)
    error = (found - expected).square().mean((0, 2, 3)).sqrt() / expected.std((0, 2, 3))
    assert error.max() < 0.1


@pytest.mark.parametrize("joins", [False, True])
def test_a_layer_whose_results_are_always_zero_is_quantized(joins: bool) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(16 if joins else 8, 4, 1)
            self.zero = nn.Conv2d(8, 8, 3, padding=1)
            nn.init.zeros_(self.zero.weight)
            nn.init.zeros_(self.zero.bias)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            x = torch.cat([x, self.zero(x)], 1) if joins else x + self.zero(x)
            found: Tensor = self.last(x)
            return found

    torch.manual_seed(0)
    network, x = Residual().eval(), images(100)
    optimized = optimize(network, x[:2], precision="int8", calibration=x)
    assert {layer.precision for layer in optimized.layers} == {"int8"}
    with torch.no_grad():
        expected = network(x)
    assert ((optimized(x) - expected).square().mean() / expected.square().mean()).sqrt() < 0.02


def test_a_network_that_8_bits_spoil_is_refused() -> None:
    """One channel is so large that the others, which alone are used, are rounded to 0."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        network[0].weight[0] *= 1e4
        network[1].weight[:, 0] = 0
    with pytest.raises(UsageError, match=r"^in int8 Sequential is too inaccurate: the error is [\d.]+% of the values"):
        optimize(network, images(2), precision="int8", calibration=images(100))


def test_a_network_with_masked_attention_is_quantized() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 32, 4, 4)
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            later = torch.ones(16, 16, dtype=torch.bool).triu(1)
            return self.attention(tokens, tokens, tokens, attn_mask=later)[0].flatten(1)

    torch.manual_seed(0)
    network, images = Attention().eval(), torch.randn(100, 3, 16, 16)
    quantized = optimize(network, images[:2], precision="int8", calibration=images)
    with torch.no_grad():
        expected = network(images)
    found = quantized(images)
    assert float((found - expected).square().mean() / expected.square().mean()) < 0.01
    assert "int8" in {layer.precision for layer in quantized.layers}
