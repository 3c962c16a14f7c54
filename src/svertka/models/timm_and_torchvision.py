"""Networks of timm and torchvision by name: how they are built, what their inputs are and their published weights."""

import importlib
import math
import urllib.error
import urllib.request
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from svertka.data.preprocessing import INTERPOLATIONS, Preprocess
from svertka.errors import FetchError, UsageError
from svertka.files import cache_folder, error_reason
from svertka.models.checkpoint_files import read_state_dict
from svertka.models.external_builder import Argument
from svertka.text_width import shorten

TIMEOUT = 20.0  # seconds without an answer before a server counts as gone
PRETRAINED = "pretrained"  # the name of the weights that a package publishes for a network
RESIZE = 256 / 224  # of networks whose package names no size before the crop


def builder_arguments(package: str, name: str, size: int | None, channels: int) -> dict[str, Argument]:
    """Return the keyword arguments with which `name` is built for other images than the package's own.

    Args:
        package: "timm" or "torchvision".
        name: Name of the network.
        size: Height and width of the image, pixels. None: the package's.
        channels: Channels of the image.
    """
    arguments: dict[str, Argument] = {}
    if package == "timm":
        if channels != 3:
            arguments["in_chans"] = channels
        if size is not None and _timm_config(name).fixed_input_size:
            arguments["img_size"] = size
    else:
        if channels != 3:
            arguments["channels"] = channels
        if size is not None and name.startswith("vit_"):
            arguments["image_size"] = size
    return arguments


def get_network_builder(package: str, name: str) -> Callable[..., nn.Module]:
    """Return the function (classes, **arguments) → the network `name` of `package`, with fresh weights.

    Raises:
        UsageError: The package is not installed, or has no such network.
    """
    return partial(_build_timm if package == "timm" else _build_torchvision, name)


def _build_timm(name: str, classes: int, **arguments: Any) -> nn.Module:
    _timm_config(name)
    network: nn.Module = _package("timm").create_model(name, pretrained=False, num_classes=classes, **arguments)
    return network


def _build_torchvision(name: str, classes: int, channels: int = 3, **arguments: Any) -> nn.Module:
    _torchvision_weights(name)
    if name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = True  # without it they warn, and do the same
    network: nn.Module = _package("torchvision.models").get_model(name, weights=None, num_classes=classes, **arguments)
    if channels != 3:
        _change_input_channels(network, name, channels)
    return network


def _change_input_channels(network: nn.Module, name: str, channels: int) -> None:
    """Let the first convolution of `network`, which reads RGB, read `channels`, with fresh weights, in place.

    The variance of its outputs stays what it was.
    """
    first = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or first.in_channels != 3 or first.groups != 1:
        raise UsageError(
            f"torchvision:{name} has no first convolution of RGB that could read {channels} channels; use another "
            "network, such as resnet18"
        )
    weight = first.weight.detach()
    fresh = weight.new_empty(first.out_channels, channels, *first.kernel_size).normal_(0.0, math.sqrt(3 / channels))
    first.in_channels, first.weight = channels, nn.Parameter(fresh * weight.std())


def published_preprocess(package: str, name: str) -> Preprocess:
    """Return the preprocessing that `package` publishes for its network `name`.

    Raises:
        UsageError: The package is not installed, or has no such network, or its images are not square.
    """
    if package == "timm":
        found = timm_preprocess(_timm_config(name).to_dict())
        assert found is not None
        return found
    weights = _torchvision_weights(name)
    transforms = weights.transforms()
    (size,), (resize,) = transforms.crop_size, transforms.resize_size
    return Preprocess(
        size=size,
        resize=resize,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )


def timm_preprocess(config: Any) -> Preprocess | None:
    """Return the preprocessing of timm's `pretrained_cfg`; None if it does not name one.

    Raises:
        UsageError: Its images are not square.
    """
    if not isinstance(config, dict) or not {"input_size", "mean", "std"} <= config.keys():
        return None
    channels, height, width = config["input_size"]
    if height != width:
        raise UsageError(
            f"the network takes images of {height}×{width} pixels, but svertka supports only square images; use "
            "another network"
        )
    interpolation = config.get("interpolation") or "bilinear"
    if interpolation not in INTERPOLATIONS:
        raise UsageError(
            f"the network expects images resized with interpolation={shorten(str(interpolation))}, and svertka has "
            f"{' and '.join(INTERPOLATIONS)}; change it in the network's pretrained_cfg"
        )
    is_squeezed = config.get("crop_mode") == "squash"
    resize = height if is_squeezed else int(height / (config.get("crop_pct") or 1 / RESIZE))
    try:
        return Preprocess(
            size=height,
            resize=resize,
            mean=tuple(config["mean"])[:channels],
            std=tuple(config["std"])[:channels],
            fit="squeeze" if is_squeezed else "crop",
            interpolation=interpolation,
        )
    except ValidationError:
        return None


def load_published_state_dict(package: str, name: str) -> dict[str, torch.Tensor]:
    """Return the published weights of `name`, from the local cache of its package or fetched.

    Raises:
        UsageError: The package publishes none for it.
        FetchError: They are in no cache, and cannot be fetched.
    """
    return _timm_weights(name) if package == "timm" else read_state_dict(_torchvision_file(name))


def _timm_weights(name: str) -> dict[str, torch.Tensor]:
    config = _timm_config(name)
    own = cache_folder("weights") / f"timm-{name}.safetensors"
    if own.is_file():
        return read_state_dict(own)
    if not config.hf_hub_id:
        raise UsageError(f"timm publishes no weights for {name}; leave out --weights, or give a file")
    repository = config.hf_hub_id
    if "/" not in repository:
        repository = f"timm/{repository}"
    file = config.hf_hub_filename or "model.safetensors"
    hub = _package("huggingface_hub")
    if not isinstance(hub.try_to_load_from_cache(repository, file), str):
        # The hub's client retries for a minute where there is no network; ask once.
        _reach(f"https://huggingface.co/{repository}/resolve/main/{file}", file, own)
    path: str = hub.hf_hub_download(repository, file)
    if path.endswith(".safetensors"):
        return read_state_dict(Path(path))
    network: nn.Module = _package("timm").create_model(name, pretrained=True)
    return network.state_dict()


def _torchvision_file(name: str) -> Path:
    url = str(_torchvision_weights(name).url)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        _reach(url, path.name, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2], progress=False)
    return path


def _reach(url: str, file: str, place: Path) -> None:
    """Raise FetchError unless the server answers."""
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "svertka"})
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT).close()
    except (OSError, urllib.error.HTTPError) as error:
        reason = getattr(error, "reason", error)
        reason = error_reason(reason) if isinstance(reason, Exception) else str(reason).lower()
        raise FetchError(
            f"cannot fetch {file} ({shorten(reason, 100)}); get it another way, from {url}, and put it at {place}"
        ) from error


def _timm_config(name: str) -> Any:
    timm = _package("timm")
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        known = timm.list_models()
        similar = get_close_matches(architecture, known, 5) or [one for one in known if architecture in one]
        raise UsageError(_unknown("timm", name, similar if architecture else []))
    try:
        config = _package("timm.models").get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:  # there is no such tag
        config = None
    if config is None:
        raise UsageError(_unknown("timm", name, timm.list_pretrained(f"{architecture}.*")))
    return config


def _torchvision_weights(name: str) -> Any:
    models = _package("torchvision.models")
    known = models.list_models(module=models)
    if name not in known:
        raise UsageError(_unknown("torchvision", name, get_close_matches(name, known, 5)))
    return models.get_model_weights(name).DEFAULT


def _unknown(package: str, name: str, similar: list[str]) -> str:
    listed = f"; it has {', '.join(similar[:5])}" if similar else ""
    return f"model={package}:{shorten(name, 100)} is not a network of {package}{listed}; see {package}'s list_models()"


def _package(name: str) -> Any:
    """Import a package, or one of its modules.

    Raises:
        UsageError: It is not installed, or does not import beside this PyTorch.
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise UsageError(f"{package} is not installed; pip install 'svertka[{package}]'") from error
        raise UsageError(f"{package} cannot be imported ({error}); install what it needs") from error
    except (ImportError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{package} cannot be imported with PyTorch {torch.__version__} ({shorten(reason, 150)}); install "
            "compatible versions"
        ) from error
