"""Benchmark of depthwise and grouped convolutions of common networks against PyTorch, ONNX Runtime and OpenVINO.

    python bench/grouped.py [--batch 1] [--threads 1] [--rounds 40] [--only resnext mixnet] [--json]

Speeds are in GFLOP/s of the fastest of several interleaved runs. Images are channels-last for svertka and PyTorch. ONNX
Runtime and OpenVINO are included if they are installed.
"""

import argparse
import io
import json
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from svertka import optimize
from svertka.conv import native_support
from svertka.device import cpu_name, set_threads
from turns import in_turns

# (input channels, output channels, groups, side of the maps, taps in y and x, stride)
LAYERS: dict[str, list[tuple[int, int, int, int, tuple[int, int], int]]] = {
    "resnext": [
        (128, 128, 32, 56, (3, 3), 1),
        (256, 256, 32, 56, (3, 3), 2),
        (256, 256, 32, 28, (3, 3), 1),
        (512, 512, 32, 28, (3, 3), 2),
        (512, 512, 32, 14, (3, 3), 1),
        (1024, 1024, 32, 14, (3, 3), 2),
        (1024, 1024, 32, 7, (3, 3), 1),
    ],
    "regnet": [
        (32, 32, 2, 112, (3, 3), 2),
        (64, 64, 4, 28, (3, 3), 1),
        (400, 400, 25, 7, (3, 3), 1),
        (56, 56, 7, 56, (3, 3), 2),
        (152, 152, 19, 14, (3, 3), 1),
        (368, 368, 46, 7, (3, 3), 1),
        (48, 48, 2, 56, (3, 3), 1),
        (336, 336, 14, 14, (3, 3), 1),
    ],
    "resnest": [(64, 128, 2, 56, (3, 3), 1), (256, 512, 2, 28, (3, 3), 1), (512, 1024, 2, 14, (3, 3), 1)],
    "bat": [(64, 64, 2, 64, (3, 3), 1), (128, 128, 4, 64, (3, 3), 2), (256, 256, 8, 16, (3, 3), 1)],
    "mixnet": [
        (16, 16, 16, 112, (3, 3), 1),
        (48, 48, 48, 56, (7, 7), 2),
        (120, 120, 120, 28, (5, 5), 1),
        (160, 160, 160, 14, (7, 7), 1),
        (90, 90, 90, 14, (9, 9), 1),
        (144, 144, 144, 14, (11, 11), 2),
        (300, 300, 300, 7, (9, 9), 1),
    ],
    "inception": [
        (12, 12, 12, 56, (3, 3), 1),
        (24, 24, 24, 28, (1, 11), 1),
        (24, 24, 24, 28, (11, 1), 1),
        (96, 96, 96, 7, (1, 11), 1),
        (96, 96, 96, 7, (11, 1), 1),
    ],
    "convnext": [(40, 40, 40, 56, (7, 7), 1), (160, 160, 160, 14, (7, 7), 1), (320, 320, 320, 7, (7, 7), 1)],
    "convmixer": [(768, 768, 768, 32, (7, 7), 1)],
    "ghostnet": [(8, 8, 8, 112, (3, 3), 1), (72, 72, 72, 56, (5, 5), 2), (100, 100, 100, 14, (3, 3), 1)],
    "rexnet": [(162, 162, 162, 56, (3, 3), 1), (228, 228, 228, 56, (3, 3), 2), (906, 906, 906, 7, (3, 3), 1)],
    "multiplier": [(64, 128, 64, 28, (3, 3), 1), (32, 96, 32, 28, (5, 5), 1), (64, 128, 64, 28, (7, 7), 2)],
}


def ours(network: nn.Module, x: Tensor) -> Callable[[], Any]:
    """Return a call of the kernels that compute `network` for `x`, channels-last, without the executor's overhead."""
    optimized = optimize(network, x)
    torch.testing.assert_close(optimized(x), network(x), rtol=1e-4, atol=1e-4)
    plan, threads = optimized.compiled[0].plan(len(x)), torch.get_num_threads()
    memories = [plan._arena(), x.permute(0, 2, 3, 1), None]
    return lambda: plan.program.run(memories, 0, len(plan.program), threads)


def peers(network: nn.Module, x: Tensor, *, engines: bool) -> dict[str, Callable[[], Any]]:
    """Return calls of the other engines; those of other packages only with `engines`."""
    calls: dict[str, Callable[[], Any]] = {"pytorch": lambda: network(x)}
    if not engines:
        return calls
    threads, image = torch.get_num_threads(), x.contiguous().numpy()
    try:
        import onnxruntime
        import openvino
    except ImportError:
        return calls
    file = io.BytesIO()
    torch.onnx.export(network, (x,), file, dynamo=False, input_names=["x"])  # type: ignore[arg-type]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    request = core.compile_model(core.read_model(io.BytesIO(file.getvalue())), "CPU", settings).create_infer_request()
    calls["onnxruntime"] = lambda: session.run(None, {"x": image})
    calls["openvino"] = lambda: request.infer({0: image}, share_inputs=True, share_outputs=True)
    return calls


def main() -> None:
    """Compare, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--without-engines", action="store_true", help="compare with PyTorch only")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    set_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for family in args.only:
        for ins, outs, groups, side, taps, stride in LAYERS[family]:
            padding = (taps[0] // 2, taps[1] // 2)
            layer = nn.Conv2d(ins, outs, taps, stride, padding, groups=groups)
            network = nn.Sequential(layer, nn.ReLU(inplace=True)).eval()
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            x = torch.randn(args.batch, ins, side, side).contiguous(memory_format=torch.channels_last)
            with torch.inference_mode():
                calls = {"ours": ours(network, x)} | peers(network, x, engines=not args.without_engines)
                seconds = {key: min(times) for key, times in in_turns(calls, args.rounds).items()}
            sums = args.batch * (-(-side // stride)) ** 2 * outs * (ins // groups) * taps[0] * taps[1]
            name = f"{ins}→{outs}@{side} ×{groups}, {taps[0]}×{taps[1]}" + (f"/{stride}" if stride > 1 else "")
            speeds = {key: 2e-9 * sums / s for key, s in seconds.items()}
            rows.append({"network": family, "layer": name, "gflops": speeds})
            if not args.json:
                listed = "  ".join(f"{key} {speed:6.1f}" for key, speed in speeds.items())
                best = min(s for key, s in seconds.items() if key != "ours")
                print(f"{family:11} {name:30} {listed}   {best / seconds['ours']:.2f}", flush=True)
    if args.json:
        print(
            json.dumps(
                {"cpu": cpu_name(), "instructions": native_support.instruction_sets()[0], "rows": rows}, indent=1
            )
        )


if __name__ == "__main__":
    main()
