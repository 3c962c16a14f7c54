"""Benchmark of torchvision's and timm's networks on the CPU: `svertka.optimize` against other engines, in turns.

torchvision pins torch, so the benchmark needs its own environment:

    python3.11 -m venv .venv-zoo
    .venv-zoo/bin/pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 openvino onnxruntime onnx .
    .venv-zoo/bin/python bench/torchvision_and_timm_vs_engines.py [--only resnet18 timm:lcnet_050] [--batch 1 16]
                                                                [--threads 1] [--peers openvino] [--json]

It covers every family of classifiers of torchvision (23) and 48 networks of timm, in float32, with random weights and
random images of each network's size. Times are milliseconds of a whole batch, the best and the median. With one thread
they are CPU time, which other processes distort less, otherwise wall time. `ratio` is the time of the fastest peer
(PyTorch in either memory format, ONNX Runtime, OpenVINO) divided by svertka's: above 1, svertka is faster. The error is
the largest difference from the original network in float64, relative to the largest value.
"""

import argparse
import copy
import json
import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from networks_vs_engines import FLOAT32, Run, in_turns, measure_error, ours
from svertka.device import cpu_name, set_threads
from svertka.errors import SvertkaError

TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet1_0
    mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d
    shufflenet_v2_x1_0 squeezenet1_1 swin_t swin_v2_t vgg11 vit_b_16 wide_resnet50_2
"""
TIMM = """
    bat_resnext26ts convmixer_768_32 convnext_atto convnextv2_atto cs3darknet_m cspresnet50 darknet53 dla34 dpn68
    eca_resnet33ts edgenext_xx_small efficientnet_lite0 efficientvit_b0 ese_vovnet19b_dw fastvit_t8 fbnetc_100
    gcresnext26ts gernet_s ghostnet_100 hardcorenas_a hgnetv2_b0 hrnet_w18_small inception_next_tiny
    inception_resnet_v2 lcnet_050 levit_128s mixnet_s mobilenetv1_100 mobilenetv4_conv_small mobileone_s0
    mobilevit_xxs nf_regnet_b0 poolformer_s12 regnety_002 repghostnet_050 repvgg_a0 res2net50_14w_8s resnest14d
    resnetv2_50 rexnet_100 selecsls42b seresnext26d_32x4d skresnet18 starnet_s1 tf_efficientnetv2_b0 tinynet_e
    tresnet_m xception41
"""
NETWORKS = [f"torchvision:{name}" for name in TORCHVISION.split()] + [f"timm:{name}" for name in TIMM.split()]
ATTENTION = {"maxvit_t", "swin_t", "swin_v2_t", "vit_b_16", "levit_128s"}  # not counted as convolutional
PEERS = {side: FLOAT32[side] for side in ("pytorch", "channels-last", "onnxruntime", "openvino")}


def build(name: str) -> tuple[nn.Module, int]:
    """Return a network in inference mode, and the side of its input images."""
    torch.manual_seed(0)
    package, model = name.split(":")
    if package == "timm":
        import timm

        network = timm.create_model(model, pretrained=False)
        return network.eval(), network.pretrained_cfg["input_size"][-1]
    import torchvision

    more = {"init_weights": True} if model in ("googlenet", "inception_v3") else {}
    network = getattr(torchvision.models, model)(weights=None, **more)
    for layer in network.modules():
        if isinstance(layer, nn.Linear) and not bool(layer.weight.any()):  # vit_b_16 is initialized with scores of zero
            nn.init.normal_(layer.weight, std=0.02)
    return network.eval(), 299 if model == "inception_v3" else 224


def compare(name: str, batch: int, threads: int, rounds: int, peers: list[str]) -> dict[str, Any]:
    """Return a row of the table: `ms`, `ms_median` and `error` of each side, and the `ratio` to the fastest of `peers`.

    Raises:
        SvertkaError: `optimize` refuses the network.
    """
    network, size = build(name)
    network.requires_grad_(False)
    images = torch.randn(batch, 3, size, size)
    clock: Callable[[], float] = time.process_time if threads == 1 else time.perf_counter
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        exact = copy.deepcopy(network).double()(images[:1].double())
        began = time.perf_counter()
        sides: dict[str, Run] = {"ours": ours(network, images, Path(folder))}
        row: dict[str, Any] = {"network": name, "batch": batch, "seconds_to_optimize": time.perf_counter() - began}
        for side in peers:
            try:
                sides[side] = PEERS[side](network, images, Path(folder))
            except Exception as reason:  # an engine may not support a network
                row[side] = {"refused": f"{type(reason).__name__}: {str(reason).splitlines()[0][:100]}"}
        for side, run in sides.items():
            row[side] = {"error": measure_error(side, run(), exact)}
        times = in_turns(sides, rounds, 1, clock)
    for side, seconds in times.items():
        row[side] |= {"ms": 1e3 * min(seconds), "ms_median": 1e3 * statistics.median(seconds)}
    row["fastest_peer"] = min((side for side in sides if side != "ours"), key=lambda side: row[side]["ms"])
    row["ratio"] = row[row["fastest_peer"]]["ms"] / row["ours"]["ms"]
    pytorch = [row[side]["ms"] for side in ("pytorch", "channels-last") if side in sides]
    row["ratio_to_pytorch"] = min(pytorch) / row["ours"]["ms"] if pytorch else None
    return row


def describe(row: dict[str, Any]) -> str:
    """Return a row of the table as one line."""
    mine, peer = row["ours"], row["fastest_peer"]
    return (
        f"{row['network']:36} {row['batch']:2}  ours {mine['ms']:8.2f} ms (median {mine['ms_median']:.2f}, error "
        f"{mine['error']:.0e})  {peer:13} {row[peer]['ms']:8.2f} ms  {row['ratio']:5.2f}×"
        + (f"  PyTorch {row['ratio_to_pytorch']:5.2f}×" if row["ratio_to_pytorch"] else "")
    )


def summarize(rows: list[dict[str, Any]]) -> str:
    """Return how often svertka is the fastest, and the geometric mean of the ratios, over convolutional networks."""
    counted = [row for row in rows if row["network"].split(":")[1] not in ATTENTION]
    if not counted:
        return "no convolutional network was compared"
    mean = math.exp(statistics.fmean(math.log(row["ratio"]) for row in counted))
    faster = sum(row["ratio"] > 1 for row in counted)
    to_pytorch = [row["ratio_to_pytorch"] for row in rows if row["ratio_to_pytorch"]]
    return (
        f"faster than the fastest peer on {faster} of {len(counted)} convolutional networks, geometric mean {mean:.2f};"
        f" slower than PyTorch on {sum(ratio < 1 for ratio in to_pytorch)} of {len(to_pytorch)} networks"
    )


def main() -> None:
    """Compare, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=NETWORKS, help="names, with or without torchvision: or timm:")
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ["OMP_NUM_THREADS"] = str(set_threads(options.threads))
    names = [name for name in NETWORKS if {name, name.split(":")[1]} & set(options.only)]
    rows, refused = [], {}
    for name in names:
        for batch in options.batch:
            try:
                row = compare(name, batch, options.threads, options.rounds, options.peers)
            except SvertkaError as reason:
                refused[name] = str(reason)
                print(f"{name:36} refused: {reason}", flush=True)
                continue
            rows.append(row)
            if not options.json:
                print(describe(row), flush=True)
    if options.json:
        about = {"processor": cpu_name(), "threads": options.threads, "rows": rows, "refused": refused}
        print(json.dumps(about))
    else:
        print(summarize(rows))


if __name__ == "__main__":
    main()
