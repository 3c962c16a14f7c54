"""Trained weights: found by name or in a file, and put into a network."""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn

from svertka.data.preprocess import Preprocess
from svertka.errors import UsageError
from svertka.files import given_path
from svertka.models import imagenet, state_dict
from svertka.models.published import CIFAR10, CIFAR_RESNETS, LAYOUTS, MEAN, PUBLISHED, STD
from svertka.models.zoo import Model
from svertka.progress import say
from svertka.quoting import few


@dataclass(frozen=True, eq=False)
class Weights:
    """Trained values for the tensors of `model`, and what goes with them.

    `names`: the classes in order, None where nothing says them. `title`: what to call the weights in a sentence.
    `note`: what they expect beyond the paper's network, or "". `partial`: they are for some of the network's tensors;
    the others keep their fresh values.
    """

    model: Model
    tensors: dict[str, torch.Tensor]
    preprocess: Preprocess
    names: tuple[str, ...] | None
    title: str
    note: str = ""
    partial: bool = False

    @property
    def all_names(self) -> tuple[str, ...]:
        """`names`, or "0", "1", … for as many classes as the head has.

        Raises:
            UsageError: they have no head.
        """
        return self.names or tuple(map(str, range(self.classes)))

    @property
    def classes(self) -> int:
        """Of how many classes the head and those of auxiliaries give scores.

        Raises:
            UsageError: they have no head, or heads that do not agree.
        """
        heads = head_of(self.model)
        rows = {len(tensor) if tensor.dim() else 0 for name, tensor in self.tensors.items() if name in heads}
        if len(rows) != 1 or 0 in rows:
            what = "these disagree about the number of classes" if rows else "they hold none of these"
            raise UsageError(
                f"weights={self.title} do not fit {self.model.name}, whose scores come from "
                f"{', '.join(sorted(heads))}: {what}; give weights of {self.model.name} in PyTorch's names"
            )
        return rows.pop()

    def check(self, network: nn.Module) -> None:
        """Nothing, if these are weights of `network`, whatever its classes; it may be on the meta device.

        Raises:
            UsageError: names or shapes differ.
        """
        own = network.state_dict()
        difference = state_dict.misfit(own, self._given(network), head_of(self.model))
        if difference:
            raise UsageError(
                f"weights={self.title} do not fit {self.model.name} ({difference}); "
                f"give weights of {self.model.name} in PyTorch's names, for such a size and so many channels"
            )
        if self.names is not None and self.classes != len(self.names):
            raise UsageError(
                f"weights={self.title} give scores of {self.classes} classes and names of {len(self.names)}; "
                "copy both files from the same run"
            )

    def put_into(self, network: nn.Module, names: tuple[str, ...]) -> str:
        """Load them into `network`, which has a score for each of `names`; returns what to say of its heads, or "".

        A class takes the rows of the head that have its name, if there are any, and fresh ones otherwise. Where the
        weights have no names, all rows are taken if they are as many as the classes, and none if not.

        Raises:
            UsageError: names or shapes differ.
        """
        self.check(network)
        own = network.state_dict()
        given = self._given(network)
        fresh = {name: _fresh(network, name, own[name]) for name in head_of(self.model) & given.keys()}
        if head_of(self.model).isdisjoint(self.tensors):
            network.load_state_dict(given | fresh)
            return "the head starts from fresh weights"
        theirs = [imagenet.name_of(name) for name in self.all_names]
        ours = [imagenet.name_of(name) for name in names]
        if self.names is None:
            ours = theirs if len(ours) == len(theirs) else [""] * len(ours)
        row_of = {name: row for row, name in enumerate(theirs)}
        pairs = [(row, row_of[name]) for row, name in enumerate(ours) if name in row_of]
        for name, rows in fresh.items():
            if pairs:
                to, since = (list(side) for side in zip(*pairs, strict=True))
                rows[to] = given[name][since].to(rows)
            given[name] = rows
        network.load_state_dict(given)
        said = [self._said(len(names), len(theirs), [names[row] for row, _ in pairs])]
        if any(_is_auxiliary(network, name) and name not in self.tensors for name in own):
            said.append("the auxiliary classifiers start from fresh weights")
        return "; ".join(filter(None, said))

    def _given(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """All that `network` may be loaded with: the tensors, and its own where they may lack one.

        A head is a dense layer here and a 1×1 convolution there: the same numbers.
        """
        own = network.state_dict()
        heads = {
            name: _in_shape(self.tensors[name], own[name])
            for name in head_of(self.model) & self.tensors.keys() & own.keys()
        }
        return (own if self.partial else _optional(network)) | self.tensors | heads

    def _said(self, wanted: int, had: int, kept: list[str]) -> str:
        if len(kept) == wanted == had:
            return "" if self.names else f"{self.title} names no classes; its head is taken as it is, class by class"
        replaced = f"the head of {had:,} classes is replaced by one of {wanted:,}"
        if not kept:
            return f"{replaced}, which starts from fresh weights"
        return f"{replaced}; {len(kept):,} of them go on from the weights of the same name ({few(kept)})"


def _in_shape(given: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """`given`, of any number of classes, in the shape of `own`, if that holds as many numbers for each class."""
    fits = given.dim() > 0 and given[0].numel() == own[0].numel()
    return given.reshape(len(given), *own.shape[1:]) if fits else given


def _fresh(network: nn.Module, name: str, own: torch.Tensor) -> torch.Tensor:
    """What the tensor of a head begins with: zeros in a dense layer, its own elsewhere (zeros under ReLU never learn).

    Random rows over features that know something would first have to be unlearnt: from 100 pictures of cats and of
    dogs and frozen features, error 4.0 % with them, 1.4 % without.
    """
    return (
        torch.zeros_like(own) if isinstance(network.get_submodule(name.rpartition(".")[0]), nn.Linear) else own.clone()
    )


def find(model: Model, text: str) -> Weights:
    """The weights of `model` that `text` names: some of `PUBLISHED`, fetched if need be, or a file.

    A file's class names and preprocessing are those of the published weights with as many classes.

    Raises:
        UsageError: there are none of that name, or the file is damaged, or would run code when read.
        FetchError: they have to be fetched and cannot be.
    """
    published = PUBLISHED.get(model.name, {})
    known = published.get(text) or next(iter(published.values()), None)
    if known and text in published:
        path = known.path()
        title, note = f"{text} ({path.name})", known.note
    else:
        path, title, note = given_path(text), text, ""
        if not path.is_file():
            raise UsageError(_unknown(model, text))
    tensors = state_dict.read(path)
    layout = LAYOUTS.get(model.name)
    preprocess = known.preprocess if known else _customary(model, title)
    if layout and layout.sign in tensors:
        tensors, preprocess = layout.renamed(tensors), layout.preprocess or preprocess
    found = Weights(model, tensors, preprocess, None, title, note)
    return _named(found, known.names if known else imagenet.NAMES)


@cache
def head_of(model: Model) -> frozenset[str]:
    """The tensors of `model` whose first axis has an entry for each class: the head, and those of auxiliaries."""
    with torch.device("meta"):
        few, more = (model.build(classes).state_dict() for classes in (2, 3))
    return frozenset(name for name in few if few[name].shape != more[name].shape)


def _named(found: Weights, names: tuple[str, ...]) -> Weights:
    """`found` with the class names that their number allows: `names`, ImageNet's, CIFAR-10's or none.

    TensorFlow's networks count a background class before ImageNet's; it is left out.
    """
    if found.classes == len(names) + 1 == 1001:
        heads = head_of(found.model)
        kept = {name: tensor[1:] if name in heads else tensor for name, tensor in found.tensors.items()}
        found = replace(found, tensors=kept)
    by_number = {len(imagenet.NAMES): imagenet.NAMES, len(names): names}
    if found.model.name in CIFAR_RESNETS:
        by_number[len(CIFAR10)] = CIFAR10
    return replace(found, names=by_number.get(found.classes))


def _customary(model: Model, title: str) -> Preprocess:
    """The preprocessing of a file of weights for a network that has none published."""
    if model.mean is not None and model.std is not None:
        mean, std = (model.mean,) * model.channels, (model.std,) * model.channels
    else:
        mean, std = (MEAN, STD) if model.channels == 3 else ((0.0,), (1.0,))
        if model.name not in CIFAR_RESNETS:
            say(f"nothing says how {title} wants its pictures; they are normalised with mean {mean} and std {std}")
    return Preprocess(size=model.size, resize=model.resize, mean=mean, std=std)


def _optional(network: nn.Module) -> dict[str, torch.Tensor]:
    """What a file may lack: batch norm's counters, which older PyTorch did not write, and auxiliary classifiers."""
    return {
        name: tensor
        for name, tensor in network.state_dict().items()
        if name.endswith("num_batches_tracked") or _is_auxiliary(network, name)
    }


def _is_auxiliary(network: nn.Module, name: str) -> bool:
    return name.partition(".")[0] in getattr(network, "auxiliaries", ())


def _unknown(model: Model, text: str) -> str:
    there = ", ".join(PUBLISHED.get(model.name, {})) or "none"
    elsewhere = [name for name, published in PUBLISHED.items() if text in published]
    others = f" ({text} is there for {', '.join(elsewhere)})" if elsewhere else ""
    return (
        f"weights={text} are not among those published for {model.name}, {there}{others}, and there is no such file; "
        f"give {' or '.join([*PUBLISHED.get(model.name, {}), 'a run folder'])}, or a file in .safetensors or .pth"
    )
