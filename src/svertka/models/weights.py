"""Pretrained weights: found by name or in a file, and loaded into a network, whose head may have other classes."""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn

from svertka.data import imagenet
from svertka.data.preprocessing import Preprocess
from svertka.device import meta_device
from svertka.errors import UsageError
from svertka.escaping import join_first
from svertka.files import parse_path
from svertka.models import checkpoint_files, timm_and_torchvision
from svertka.models.published_weights import CIFAR10, CIFAR_RESNETS, MEAN, PRETRAINED, STATE_DICT_FORMATS, STD
from svertka.models.registry import Model
from svertka.progress import say


@dataclass(frozen=True, eq=False)
class LoadedWeights:
    """Pretrained weights of a model, and what predictions with them need.

    Attributes:
        tensors: The state_dict.
        names: Class names in order; None if unknown.
        title: What messages call the weights.
        note: How the weights depart from the paper's network, or "".
        partial: The state_dict may lack tensors, which keep their initial values.
    """

    model: Model
    tensors: dict[str, torch.Tensor]
    preprocess: Preprocess
    names: tuple[str, ...] | None
    title: str
    note: str = ""
    partial: bool = False

    @property
    def names_or_numbers(self) -> tuple[str, ...]:
        """`names`, or "0", "1", … if they are unknown.

        Raises:
            UsageError: As for `classes`.
        """
        return self.names or tuple(map(str, range(self.classes)))

    @property
    def classes(self) -> int:
        """The number of classes of the head and of the auxiliary classifiers' heads.

        Raises:
            UsageError: There is no head, or the heads disagree.
        """
        heads = head_tensor_names(self.model)
        rows = {len(tensor) if tensor.dim() else 0 for name, tensor in self.tensors.items() if name in heads}
        if len(rows) != 1 or 0 in rows:
            problem = "which disagree about the number of classes" if rows else "which are missing"
            raise UsageError(
                f"weights={self.title} does not fit {self.model.name}, whose head is {', '.join(sorted(heads))}, "
                f"{problem}; use weights of {self.model.name} under PyTorch's parameter names"
            )
        return rows.pop()

    def with_channels(self, channels: int) -> "LoadedWeights":
        """Return the weights for images of `channels` channels.

        The first convolution gets for each channel the mean of its weights over the channels that it has, scaled so
        that channels that are all alike give the same outputs.

        Raises:
            UsageError: The network does not begin with one convolution of the image.
        """
        own = self.preprocess.channels
        if channels == own:
            return self
        with meta_device():
            before, after = (self.model.build(2, count).state_dict() for count in (own, channels))
        changed = [name for name in before if before[name].shape != after[name].shape and name in self.tensors]
        shapes = [self.tensors[name].shape for name in changed]
        if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != own:
            raise UsageError(
                f"weights={self.title} are of {own} channels, and {self.model.name} does not begin with one "
                f"convolution that could be adapted to {channels}; leave out the weights, or take another network"
            )
        first = self.tensors[changed[0]]
        adapted = (first.float().mean(1, keepdim=True) * (own / channels)).to(first.dtype).repeat(1, channels, 1, 1)
        note = (
            f"the first convolution is adapted from {own} channels to {channels}: each gets the mean of its weights "
            f"over the {own}, times {own}/{channels}"
        )
        note = "; ".join(filter(None, [self.note, note]))
        return replace(self, tensors=self.tensors | {changed[0]: adapted}, note=note)

    def check(self, network: nn.Module) -> None:
        """Check that the weights fit `network`, except for its number of classes; it may be on the meta device.

        Raises:
            UsageError: Names or shapes differ, or floats are expected and there are integers.
        """
        own = network.state_dict()
        difference = checkpoint_files.describe_mismatch(own, self._complete(network), head_tensor_names(self.model))
        if difference:
            raise UsageError(
                f"weights={self.title} does not fit {self.model.name} ({difference}); use weights of "
                f"{self.model.name} under PyTorch's parameter names, for the same image size and channels"
            )
        if self.names is not None and self.classes != len(self.names):
            raise UsageError(
                f"weights={self.title} has a head of {self.classes} classes and {len(self.names)} class names; "
                "copy both files from the same run"
            )

    def load_into(self, network: nn.Module, names: tuple[str, ...]) -> str:
        """Load the weights into `network`, whose classes are `names`; return a message about its head, or "".

        A class keeps the rows of the head that belong to a class of the same name; other rows are newly initialized.
        If the names of the weights' classes are unknown, all rows are kept if their number is that of `names`, and none
        otherwise.

        Raises:
            UsageError: Names or shapes differ.
        """
        self.check(network)
        heads = head_tensor_names(self.model)
        initial, tensors = network.state_dict(), self._complete(network)
        new_heads = {name: _initial_head(network, name, initial[name]) for name in heads & tensors.keys()}
        if heads.isdisjoint(self.tensors):
            network.load_state_dict(tensors | new_heads)
            return "the head is newly initialized"
        old_names = [imagenet.find_class_name(name) for name in self.names_or_numbers]
        new_names = [imagenet.find_class_name(name) for name in names]
        if self.names is None:
            new_names = old_names if len(new_names) == len(old_names) else [""] * len(new_names)
        old_row = {name: row for row, name in enumerate(old_names)}
        kept = {row: old_row[name] for row, name in enumerate(new_names) if name in old_row}
        for name, head in new_heads.items():
            if kept:
                head[list(kept)] = tensors[name][list(kept.values())].to(head)
            tensors[name] = head
        network.load_state_dict(tensors)
        messages = [self._head_message(len(names), len(old_names), [names[row] for row in kept])]
        if any(_is_auxiliary(network, name) and name not in self.tensors for name in initial):
            messages.append("the auxiliary classifiers are newly initialized")
        return "; ".join(filter(None, messages))

    def _complete(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """Return the state_dict to load into `network`: the weights, and its own tensors that the weights may lack.

        The weights of a head may be those of a fully connected layer or of a 1×1 convolution: they are reshaped.
        """
        own = network.state_dict()
        heads = {
            name: _reshaped(self.tensors[name], own[name])
            for name in head_tensor_names(self.model) & self.tensors.keys() & own.keys()
        }
        return (own if self.partial else _optional(network)) | self.tensors | heads

    def _head_message(self, new_count: int, old_count: int, kept: list[str]) -> str:
        if len(kept) == new_count == old_count:
            return "" if self.names else f"{self.title} has no class names; its head is used as it is"
        replaced = f"the head of {old_count:,} classes is replaced by one of {new_count:,}"
        if not kept:
            return f"{replaced}, newly initialized"
        keep = "keeps" if len(kept) == 1 else "keep"
        return (
            f"{replaced}; {len(kept):,} of them {keep} the weights of the class of the same name ({join_first(kept)})"
        )


def _reshaped(head: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return `head`, for any number of classes, in the shape of `like`, if both have as many elements per class."""
    fits = head.dim() > 0 and len(head) > 0 and head[0].numel() == like[0].numel()
    return head.reshape(len(head), *like.shape[1:]) if fits else head


def _initial_head(network: nn.Module, name: str, initial: torch.Tensor) -> torch.Tensor:
    """Return the tensor of a new head called `name`: zeros in a fully connected layer, elsewhere `initial`.

    Random weights on pretrained features have to be unlearned first: with frozen features and 100 images of cats and
    dogs, the error is 4.0 % with them and 1.4 % with zeros. A convolution before a ReLU would never learn from zeros.
    """
    layer = network.get_submodule(name.rpartition(".")[0])
    return torch.zeros_like(initial) if isinstance(layer, nn.Linear) else initial.clone()


def read_pretrained_weights(model: Model, text: str) -> LoadedWeights:
    """Read the weights of `model` that `text` names: a key of PRETRAINED, downloaded if needed, or a file.

    A file gets the class names and the preprocessing of the published weights with the same number of classes.

    Raises:
        UsageError: There are no weights of that name; or the file is damaged, or would run code when read.
        FetchError: The download failed.
    """
    if model.reference is not None and model.reference.package is not None and text == timm_and_torchvision.PRETRAINED:
        return _published_by_package(model, model.reference.package)
    published = PRETRAINED.get(model.name, {})
    known = published.get(text) or next(iter(published.values()), None)
    if known and text in published:
        path = known.path()
        title, note = f"{text} ({path.name})", known.note
    else:
        path, title, note = parse_path(text), text, ""
        if not path.is_file():
            raise UsageError(_unknown(model, text))
    tensors = checkpoint_files.read_state_dict(path)
    other_format = STATE_DICT_FORMATS.get(model.name)
    preprocess = known.preprocess if known else model.preprocess or default_preprocess(model, title)
    if other_format and other_format.marker in tensors:
        tensors, preprocess = other_format.convert(tensors), other_format.preprocess or preprocess
    found = LoadedWeights(model, tensors, preprocess, None, title, note)
    return _with_class_names(found, known.names if known else imagenet.NAMES)


def _published_by_package(model: Model, package: str) -> LoadedWeights:
    """Return the weights that timm or torchvision publishes for a network of theirs."""
    name = model.name.partition(":")[2]
    tensors = timm_and_torchvision.load_published_state_dict(package, name)
    assert model.preprocess is not None
    found = LoadedWeights(model, tensors, model.preprocess, None, f"{timm_and_torchvision.PRETRAINED} ({model.name})")
    return _with_class_names(found, imagenet.NAMES)


@cache
def head_tensor_names(model: Model) -> frozenset[str]:
    """Return the names of the tensors whose first dimension is the number of classes: the heads of `model`."""
    with meta_device():
        two, three = (model.build(classes).state_dict() for classes in (2, 3))
    return frozenset(name for name in two if two[name].shape != three[name].shape)


def _with_class_names(found: LoadedWeights, names: tuple[str, ...]) -> LoadedWeights:
    """Return `found` with the class names that fit their number: `names`, ImageNet's, CIFAR-10's or None.

    Networks from TensorFlow have a background class before ImageNet's, which is removed.
    """
    if found.classes == len(names) + 1 == 1001:
        heads = head_tensor_names(found.model)
        kept = {name: tensor[1:] if name in heads else tensor for name, tensor in found.tensors.items()}
        found = replace(found, tensors=kept)
    by_number = {len(imagenet.NAMES): imagenet.NAMES, len(names): names}
    if found.model.name in CIFAR_RESNETS:
        by_number[len(CIFAR10)] = CIFAR10
    return replace(found, names=by_number.get(found.classes))


def default_preprocess(model: Model, title: str) -> Preprocess:
    """Return the preprocessing for a weights file of a model without published weights."""
    if model.mean is not None and model.std is not None:
        mean, std = (model.mean,) * model.channels, (model.std,) * model.channels
    else:
        mean, std = (MEAN, STD) if model.channels == 3 else ((0.0,), (1.0,))
        if model.name not in CIFAR_RESNETS:
            say(f"{title} does not say how images are normalized; using mean {mean} and std {std}")
    return Preprocess(size=model.size, resize=model.resize, mean=mean, std=std)


def _optional(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors that a file may lack: counters of batch normalization, and auxiliary classifiers."""
    return {
        name: tensor
        for name, tensor in network.state_dict().items()
        if name.endswith("num_batches_tracked") or _is_auxiliary(network, name)
    }


def _is_auxiliary(network: nn.Module, name: str) -> bool:
    return name.partition(".")[0] in getattr(network, "auxiliaries", ())


def _unknown(model: Model, text: str) -> str:
    elsewhere = [name for name, published in PRETRAINED.items() if text in published]
    others = f" ({text} exists for {join_first(elsewhere)})" if elsewhere else ""
    package = [timm_and_torchvision.PRETRAINED] if model.reference is not None and model.reference.package else []
    known = ", ".join([*package, *PRETRAINED.get(model.name, {}), "a run folder"])
    return (
        f"weights={text} is neither a file nor published for {model.name}{others}; use {known}, or a .safetensors or "
        ".pth file"
    )
