"""Comparison of `svertka.summary` with torchinfo on 40 networks of torchvision and timm.

    python -m venv peers && peers/bin/pip install torchinfo torch==2.13.0 torchvision==0.29.1 timm==1.0.31 .
    peers/bin/python bench/summary_vs_torchinfo.py [--only NAME…]

Compared are the parameters, those that are trainable, the output shape of every call of a layer without children, and
the multiply-adds of every such convolution and linear layer. torchinfo adds a bias to the multiply-adds, and counts a
linear layer once for each image, whatever number of tokens it is applied to; both are corrected for here. The table
gives torchinfo's own sum in per cent of svertka's: it leaves out products of matrices outside layers, as in attention.
The exit code is 1 if anything differs. About two minutes on one core.
"""

import argparse
import math
import sys
import time
from collections import Counter
from typing import Any

import timm  # type: ignore[import-not-found, unused-ignore]
import torch
import torchinfo  # type: ignore[import-not-found, unused-ignore]
import torchvision  # type: ignore[import-not-found, unused-ignore]
from torch import nn

import svertka

TORCHVISION = (
    "alexnet", "vgg16", "vgg19_bn", "googlenet", "inception_v3", "resnet18", "resnet50", "resnext50_32x4d",
    "wide_resnet50_2", "densenet121", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0",
    "shufflenet_v2_x1_0", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "swin_t", "vit_b_16",
)  # fmt: skip
TIMM = (
    "cspresnet50", "dla34", "dpn68", "ecaresnet50t", "efficientnet_lite0", "ghostnet_100", "hardcorenas_a",
    "hrnet_w18_small", "legacy_seresnet18", "mixer_s16_224", "mobilevit_xxs", "nf_resnet50", "regnetx_002",
    "repvgg_a0", "res2net50_26w_4s", "resmlp_12_224", "rexnet_100", "selecsls42b", "skresnet18", "xcit_nano_12_p16_224",
)  # fmt: skip
HEADER = ("network", "parameters", "calls", "shapes", "multiply-adds", "torchinfo's sum, %", "s", "torchinfo, s")


def build(name: str) -> nn.Module:
    """Return a network with random weights."""
    if name in TIMM:
        network: nn.Module = timm.create_model(name)
    else:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        network = torchvision.models.get_model(name, weights=None, **options)
    return network.eval()


def compare(name: str) -> tuple[list[str], list[str]]:
    """Return a row of the table, and a sentence for each difference."""
    network = build(name)
    size = 299 if name == "inception_v3" else 224
    began = time.process_time()
    ours = svertka.summary(network, (3, size, size))
    between = time.process_time()
    theirs = torchinfo.summary(network, (1, 3, size, size), verbose=0, depth=99)
    ended = time.process_time()
    layers = {layer.call: layer for layer in ours.trace.layers}
    names = {id(module): path for path, module in network.named_modules()}
    differences = []
    if ours.size.parameters != theirs.total_params or ours.size.trainable != theirs.trainable_params:
        differences.append(f"{name}: {ours.size} and {theirs.total_params} parameters")
    calls, shapes, counted = Counter[str](), 0, 0
    for info in theirs.summary_list:
        if not info.is_leaf_layer or not info.executed:
            continue
        path = names[id(info.module)]
        calls[path] += 1
        layer = layers.get((path, calls[path]))
        if layer is None or not info.output_size:
            continue
        shapes += 1
        if tuple(info.output_size) != layer.shape:
            differences.append(f"{name}: {path} has the outputs {layer.shape} and {tuple(info.output_size)}")
        if isinstance(info.module, nn.Conv2d | nn.Linear):
            counted += 1
            if layer.multiply_adds != (expected := corrected(info)):
                differences.append(f"{name}: {path} has {layer.multiply_adds} and {expected} multiply-adds")
    share = 100 * theirs.total_mult_adds / ours.size.multiply_adds
    row = [
        name,
        f"{ours.size.parameters:,}",
        str(sum(calls.values())),
        str(shapes),
        f"{counted} layers",
        f"{share:.1f}",
    ]
    return [*row, f"{between - began:.2f}", f"{ended - between:.2f}"], differences


def corrected(info: Any) -> int:
    """Return torchinfo's multiply-adds of a layer without the bias, and for all tokens."""
    module, shape = info.module, info.output_size
    if isinstance(module, nn.Conv2d):
        positions: int = math.prod(shape) // module.out_channels
        bias = positions * (0 if module.bias is None else module.out_channels)
        return int(info.macs) - bias
    tokens: int = math.prod(shape[1:-1])
    bias = int(shape[0]) * (0 if module.bias is None else module.out_features)
    return (int(info.macs) - bias) * tokens


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=(*TORCHVISION, *TIMM))
    torch.manual_seed(0)
    torch.set_num_threads(1)
    differences: list[str] = []
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
    for name in parser.parse_args().only:
        row, found = compare(name)
        differences += found
        print(f"| {' | '.join(row)} |", flush=True)
    print("\n".join([f"{len(differences)} differences", *differences]))
    sys.exit(bool(differences))


if __name__ == "__main__":
    main()
