"""Benchmark of whole networks on the CPU: `svertka.optimize` against other inference engines, with the error of each.

    pip install openvino ncnn pnnx MNN onnxruntime
    python bench/networks_vs_engines.py [--only vgg16 resnet18] [--batch 1 16] [--peers onnxruntime ncnn]
        [--rounds 15] [--json]
    python bench/networks_vs_engines.py --precision bf16
    pip install onnx; python bench/networks_vs_engines.py --precision int8

Engines run in float32 and take turns. With `--precision bf16` they may compute in bfloat16: PyTorch under autocast,
OpenVINO and ncnn, compared also with svertka in float32 and with only the weights of dense layers in bfloat16. With
`--precision int8`, ONNX Runtime and OpenVINO run the same network, quantized by ONNX Runtime: 8-bit weights with a
scale for each channel, 8-bit maps with the ranges of the same random images that svertka calibrates on. Weights and
images are random; images have the size of each network, and differ in their colors as photographs do.

Times are milliseconds of a whole batch, the best and the median. `ratio` is the peer's best time divided by svertka's:
above 1, svertka is faster. The error is the largest difference from the original network in float64, relative to the
largest value; svertka's check of it is switched off, because it refuses networks whose classes change, and those of
random weights are nearly equal. Each engine receives images in its preferred memory order, converted before the
measurement. ncnn processes images one by one. With one thread, times are CPU time. `of the bound` is the lower bound of
bench/bounds.py divided by the best time. With `--json`, each network and batch size is a line.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import svertka
from bounds import milliseconds_at_least
from svertka.device import cpu_name, set_memory_format, set_threads
from svertka.models.registry import find_model
from turns import finite, seconds

NETWORKS = ("alexnet_owt", "vgg16", "googlenet_bn", "resnet18", "resnet50", "squeezenet1_1", "efficientnet_lite0")
Run = Callable[[], Any]  # one run, which returns the scores as a tensor or an array
Maker = Callable[[nn.Module, Tensor, Path], Run]
AsOnnx = Callable[[nn.Module, Tensor, Path], Path]
NUM_CALIBRATION = 16  # random images


def unchecked() -> AbstractContextManager[Any]:
    """Return a context in which `svertka.optimize` refuses no network for its error."""
    return patch("svertka.compiler.optimize._check_accuracy", return_value=0.0)


def ours(network: nn.Module, images: Tensor, _: Path, precision: str = "fp32", dense: str | None = None) -> Run:
    """`svertka.optimize` in these precisions."""
    images = images.contiguous(memory_format=torch.channels_last)
    with unchecked():
        optimized = svertka.optimize(network, images, precision=precision, dense=dense)
    return lambda: optimized(images)


def ours_int8(network: nn.Module, images: Tensor, _: Path) -> Run:
    """`svertka.optimize` in int8."""
    images = images.contiguous(memory_format=torch.channels_last)
    with unchecked(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are few images
        optimized = svertka.optimize(network, images, precision="int8", calibration=calibration_images(images))
    return lambda: optimized(images)


def random_images(count: int, channels: int, height: int, width: int, seed: int) -> Tensor:
    """Return images of large spots of color with noise, (count, channels, height, width)."""
    source = torch.Generator().manual_seed(seed)
    spots = F.interpolate(torch.randn(count, channels, 4, 4, generator=source), size=(height, width), mode="bilinear")
    return spots + 0.5 * torch.randn(count, channels, height, width, generator=source)


def calibration_images(images: Tensor) -> Tensor:
    """Return images like those of the benchmark, but others."""
    _, channels, height, width = images.shape
    return random_images(NUM_CALIBRATION, channels, height, width, seed=2)


def eager(network: nn.Module, images: Tensor, _: Path) -> Run:
    """PyTorch in eager mode."""
    return lambda: network(images)


def channels_last(network: nn.Module, images: Tensor, _: Path) -> Run:
    """PyTorch with channels-last tensors."""
    twin = set_memory_format(copy.deepcopy(network), torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    return lambda: twin(images)


def autocast(network: nn.Module, images: Tensor, folder: Path) -> Run:
    """PyTorch with channels-last tensors under autocast."""
    run = channels_last(network, images, folder)

    def under() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return run().float()

    return under


def compiled(network: nn.Module, images: Tensor, _: Path) -> Run:
    """`torch.compile` with frozen weights."""
    import torch._inductor.config

    torch._inductor.config.freezing = True
    torch._dynamo.reset()
    twin = torch.compile(copy.deepcopy(network))

    def run() -> Any:
        with torch.no_grad():  # weights are not frozen in inference mode
            return twin(images)

    with torch.inference_mode(False):
        run()
    return run


def _as_onnx(network: nn.Module, images: Tensor, folder: Path) -> Path:
    path = folder / "network.onnx"
    if not path.exists():
        torch.backends.mha.set_fastpath_enabled(False)  # ONNX has no such operator
        with torch.inference_mode(False):
            torch.onnx.export(network, (images,), path, input_names=["x"], output_names=["y"], dynamo=False)
        torch.backends.mha.set_fastpath_enabled(True)
    return path


def _as_int8_onnx(network: nn.Module, images: Tensor, folder: Path) -> Path:
    """Quantize the network by ONNX Runtime, after batch norm is folded."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path, folded = folder / "int8.onnx", folder / "folded.onnx"
    if path.exists():
        return path
    batches = iter(torch.split(calibration_images(images), len(images)))

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # its types are not known
        def get_next(self) -> Any:
            batch = next(batches, None)
            return None if batch is None or len(batch) < len(images) else {"x": batch.numpy()}

    quant_pre_process(str(_as_onnx(network, images, folder)), str(folded))
    quantize_static(
        str(folded), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return path


def onnxruntime(network: nn.Module, images: Tensor, folder: Path, as_onnx: AsOnnx = _as_onnx) -> Run:
    """ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    path = as_onnx(network, images, folder)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    array = images.numpy()
    return lambda: session.run(None, {"x": array})[0]


def openvino(network: nn.Module, images: Tensor, folder: Path, hint: str = "f32", as_onnx: AsOnnx = _as_onnx) -> Run:
    """OpenVINO in float32, or with the precision `hint`."""
    import openvino as ov

    core = ov.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = core.compile_model(core.read_model(as_onnx(network, images, folder)), "CPU", settings)
    request, array = model.create_infer_request(), images.numpy()
    return lambda: request.infer({0: array})[model.output(0)]


def ncnn(network: nn.Module, images: Tensor, folder: Path, bfloat16: bool = False) -> Run:
    """Tencent's ncnn with a network converted by pnnx, in float32 or with bfloat16 storage."""
    import ncnn as library

    with torch.inference_mode(False):
        torch.jit.trace(network, images[:1]).save(str(folder / "one.pt"))  # type: ignore[no-untyped-call]
    sizes = ",".join(map(str, (1, *images.shape[1:])))
    _call(["pnnx", "one.pt", f"inputshape=[{sizes}]", "fp16=0"], folder)
    net = library.Net()
    net.opt.num_threads = torch.get_num_threads()
    net.opt.use_fp16_storage = net.opt.use_fp16_packed = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = bfloat16
    net.load_param(str(folder / "one.ncnn.param"))
    net.load_model(str(folder / "one.ncnn.bin"))
    arrays = [np.ascontiguousarray(image) for image in images.numpy()]

    def run() -> Any:
        found = []
        for array in arrays:
            extractor = net.create_extractor()
            extractor.input("in0", library.Mat(array))
            found.append(np.array(extractor.extract("out0")[1]))
        return np.stack(found)

    return run


def mnn(network: nn.Module, images: Tensor, folder: Path) -> Run:
    """Alibaba's MNN in float32."""
    import MNN.expr
    import MNN.nn

    source, target = _as_onnx(network, images, folder), folder / "network.mnn"
    _call(["mnnconvert", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target)], folder)
    settings = ({"backend": 0, "numThread": torch.get_num_threads(), "precision": "high"},)
    manager = MNN.nn.create_runtime_manager(settings)
    module = MNN.nn.load_module_from_file(str(target), ["x"], ["y"], runtime_manager=manager)
    given = MNN.expr.const(images.numpy(), list(images.shape), MNN.expr.NCHW)
    given = MNN.expr.convert(given, MNN.expr.NC4HW4)
    return lambda: np.array(module.forward(given).read())


def _call(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-300:]}")


FLOAT32: dict[str, Maker] = {
    "ours": ours,
    "pytorch": eager,
    "channels-last": channels_last,
    "compile": compiled,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "ncnn": ncnn,
    "mnn": mnn,
}
BFLOAT16: dict[str, Maker] = {
    "ours": partial(ours, precision="bf16"),
    "ours-fp32": ours,
    "ours-dense": partial(ours, dense="bf16"),
    "autocast": autocast,
    "openvino": partial(openvino, hint="bf16"),
    "ncnn": partial(ncnn, bfloat16=True),
}
INT8: dict[str, Maker] = {
    "ours": ours_int8,
    "ours-fp32": ours,
    "onnxruntime": partial(onnxruntime, as_onnx=_as_int8_onnx),
    "openvino": partial(openvino, as_onnx=_as_int8_onnx),
}
SIDES = {"fp32": FLOAT32, "bf16": BFLOAT16, "int8": INT8}


@torch.inference_mode()
def compare(
    name: str, batch: int, rounds: int, makers: dict[str, Maker], size: int | None = None
) -> dict[str, dict[str, float]]:
    """Return `ms`, `ms_median` and `error` for each side, and for peers `ratio`, their best time over svertka's.

    `size`: size of the images, if it is not the network's.
    """
    torch.manual_seed(1)
    model = find_model(name)
    with torch.inference_mode(False):
        network = model.build().eval().requires_grad_(False)
        channels, height, width = model.input_shape
        images = random_images(batch, channels, size or height, size or width, seed=1)
    exact = copy.deepcopy(network).double()(images[:1].double())
    with tempfile.TemporaryDirectory() as folder:
        sides = {side: maker(network, images, Path(folder)) for side, maker in makers.items()}
        found = {side: {"error": measure_error(side, run(), exact)} for side, run in sides.items()}
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        for side, seconds in in_turns(sides, rounds, max(1, 5 // batch), clock).items():
            found[side] |= {"ms": 1e3 * min(seconds), "ms_median": 1e3 * statistics.median(seconds)}
    for side in found:
        found[side]["ratio"] = found[side]["ms"] / found["ours"]["ms"]
    return found


def in_turns(
    sides: dict[str, Run], rounds: int, runs: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds of `rounds` times `runs` runs of each side.

    Before each turn, threads of the others come to rest, and a run that is not timed fills the caches with the weights.
    """
    times: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in list(sides)[:: 1 if number % 2 else -1]:
            time.sleep(0.05)
            sides[side]()
            times[side] += [seconds(sides[side], clock) for _ in range(runs)]
    return times


def measure_error(side: str, scores: Any, exact: Tensor) -> float:
    """Return the largest difference of a side's scores from `exact`, over the largest value, for the first image."""
    first = finite(side, torch.as_tensor(np.asarray(scores))).double().reshape(-1, exact.shape[1])[:1]
    return float((first - exact).abs().max() / exact.abs().max())


def main() -> None:
    """Compare, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--precision", choices=SIDES, default="fp32")
    parser.add_argument("--peers", nargs="+", choices=list(FLOAT32 | BFLOAT16)[1:])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(set_threads(options.threads))
    every = SIDES[options.precision]
    makers = {side: maker for side, maker in every.items() if side in ("ours", *(options.peers or every))}
    machine = {"processor": cpu_name(), "threads": options.threads, "precision": options.precision}
    for name in options.only:
        for batch in options.batch:
            found = compare(name, batch, options.rounds, makers)
            model = find_model(name)
            bound = milliseconds_at_least(
                model.build().eval(), (batch, *model.input_shape), options.precision, options.threads
            )
            if options.json:
                print(json.dumps(machine | {"network": name, "batch": batch, "bound": bound} | found), flush=True)
                continue
            for side, one in found.items():
                print(
                    f"{name:18} {batch:2} {side:14} {one['ms']:9.2f} ms (median {one['ms_median']:.2f})  "
                    f"{one['ratio']:5.2f}×  error {one['error']:.1e}  {bound / one['ms']:.0%} of the bound",
                    flush=True,
                )


if __name__ == "__main__":
    main()
