"""Test that inspection reads every layer of torchvision's and timm's networks and leaves the networks bit-identical.

    python -m venv parity && parity/bin/pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 .
    parity/bin/python bench/inspection_leaves_networks_unchanged.py [--only NAME…]

It needs its own environment, because torchvision pins torch. Nothing is downloaded: it uses the smallest network of
each family of classifiers in torchvision and 22 networks of timm, with random weights. Each network is in training
mode, with one module in evaluation mode, one frozen parameter, a hook and a gradient. The outputs of all layers are
read: they must equal those that plain hooks receive, and their shapes must equal those of the trace. Then one layer
raises an exception. After both runs, parameters, buffers, gradients, flags, hooks, attributes of all modules and the
state of PyTorch's random number generator must be unchanged. The exit code is 1 if a network fails.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Callable
from typing import Any

import timm  # type: ignore[import-not-found, unused-ignore]
import torch
import torchvision  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor, nn

from svertka.inspection.activations import convolution_names, hook_layers, layer_outputs, list_layers

TORCHVISION = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn"),
    *("vit_b_32", "wide_resnet50_2"),
)
TIMM = (
    *("convnextv2_atto", "coatnet_nano_rw_224", "cspresnet50", "deit_tiny_patch16_224", "dpn48b", "edgenext_xx_small"),
    *("efficientformer_l1", "ghostnet_050", "hrnet_w18_small", "inception_next_tiny", "lcnet_035", "levit_128s"),
    *("mixer_s32_224", "mobilevit_xxs", "nf_regnet_b0", "poolformer_s12", "rexnet_100", "seresnet50", "skresnet18"),
    *("tf_efficientnet_b0", "vgg11", "xception41"),
)
SIZES = {"inception_v3": 299, "swin_v2_t": 256, "mobilevit_xxs": 256}


def built(name: str) -> nn.Module:
    """Return the network called `name`, from torchvision if it has one of that name."""
    network: nn.Module
    if name in TORCHVISION:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}  # SciPy draws them slowly
        network = torchvision.models.get_model(name, weights=None, **options)
    else:
        network = timm.create_model(name)
    return network


def used(network: nn.Module) -> nn.Module:
    """Return the network in the state of an unfinished training."""
    network.train()
    modules, parameters = list(network.modules()), list(network.parameters())
    modules[len(modules) // 2].eval()
    modules[-1].register_forward_hook(lambda *_: None)
    parameters[0].requires_grad_(False)
    parameters[-1].grad = torch.ones_like(parameters[-1])
    return network


def state(network: nn.Module) -> dict[str, Any]:
    """Return everything that a run could change."""
    modules = dict(network.named_modules())
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {
        "attributes": {path: {key: id(value) for key, value in vars(one).items()} for path, one in modules.items()},
        "hooks": {
            path: {key: dict(value) for key, value in vars(one).items() if key.endswith("hooks")}
            for path, one in modules.items()
        },
        "training": {path: one.training for path, one in modules.items()},
        "values": {name: digest(tensor) for name, tensor in tensors.items()},
        "writes": {name: tensor._version for name, tensor in tensors.items()},
        "frozen": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "gradients": {name: tensor.grad is not None and digest(tensor.grad) for name, tensor in tensors.items()},
        "random": digest(torch.get_rng_state()),
    }


def digest(tensor: Tensor) -> bytes:
    """Return a hash of the values, exact to the bit."""
    return hashlib.blake2b(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data).digest()


def plainly(network: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return the outputs of modules without children, by path; of repeated calls the first, tensors only."""
    torch.backends.mha.set_fastpath_enabled(False)  # hooks disable it, and it rounds differently
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found.setdefault(path, output.clone())

        return hook

    own = {path: one for path, one in network.named_modules() if next(one.children(), None) is None}
    handles = [module.register_forward_hook(keep(path)) for path, module in own.items()]
    network(image)
    for handle in handles:
        handle.remove()
    return found


def problems(name: str) -> tuple[int, int, list[str]]:
    """Return the number of layers and convolutions of a network, and its problems."""
    network = used(built(name))
    image = torch.randn(2, 3, *[SIZES.get(name, 224)] * 2)
    wrong: list[str] = []
    before = state(network)
    known = list_layers(network, tuple(image.shape))
    with torch.no_grad():
        found = layer_outputs(network, image, [layer.name for layer in known])
    wrong += [f"{what} changed" for what, value in state(network).items() if value != before[what]]

    def fail(_: Tensor) -> None:
        raise KeyError(name)

    try:
        with torch.no_grad(), hook_layers(network, known, {known[len(known) // 2].name: fail}):
            network(image)
        wrong.append("no exception came through")
    except KeyError:
        after = state(network)
        wrong += [f"{what} changed by an exception" for what, value in after.items() if value != before[what]]

    wrong += [f"{layer.name} has the shape of another" for layer in known if found[layer.name].shape != layer.shape]
    with torch.no_grad():
        expected = plainly(network.eval(), image)
    for path in sorted(expected.keys() & found.keys()):
        if not torch.equal(found[path], expected[path]):
            wrong.append(f"{path} gives something else")
    missing = expected.keys() - found.keys()
    if missing:
        wrong.append(f"{len(missing)} modules are not among the layers: {', '.join(sorted(missing)[:3])}")
    return len(known), len(convolution_names(known)), wrong


def main() -> int:
    """Test every network and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=(*TORCHVISION, *TIMM))
    options = parser.parse_args()
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}")
    failed = 0
    for name in options.only:
        torch.manual_seed(1)
        began = time.perf_counter()
        count, multiplying, wrong = problems(name)
        failed += bool(wrong)
        took = time.perf_counter() - began
        told = f"{count:>5} layers {multiplying:>4} convolutions {took:>6.1f} s"
        print(f"{name:<24}{told}  {'; '.join(wrong[:4]) or 'as it was'}", flush=True)
    print(f"{len(options.only) - failed} of {len(options.only)} as they were")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
