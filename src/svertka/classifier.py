"""A trained network with its class names and its preprocessing: what every verb after training takes."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from svertka.compiler.optimize import fastest
from svertka.data.image_inputs import Input, all_of, intensities_of, misnamed_files
from svertka.data.image_io import Decoding, misnamed_sentence
from svertka.data.pixel_statistics import other_intensities
from svertka.data.preprocessing import Picture, Preprocess
from svertka.device import choose_device, device_of, has_values, keeps_settings, set_threads
from svertka.errors import PictureError, RunError, UsageError
from svertka.escaping import few
from svertka.files import given_path, read_json, storage, write_json
from svertka.models import pretrained, registry, weights
from svertka.models.heads import NATIVE_HEADS, HeadKind, head_path, replace_head
from svertka.models.weights import Weights
from svertka.progress import progress, say
from svertka.tensor_files import not_finite, read_tensors, tensor_shapes, write_tensors
from svertka.type_checking import check_types

FORMAT = 1  # of config.json; a reader refuses what is newer
BATCH_SIZE = 64  # pictures
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Config(BaseModel):
    """The content of config.json; it alone rebuilds the network, since all it names lives in `models/`.

    `model` and `names` are also read under the names that they have on Hugging Face's hub.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    model: str = Field(validation_alias=AliasChoices("model", "architecture"))
    names: tuple[str, ...] = Field(
        min_length=1, max_length=1_000_000, validation_alias=AliasChoices("names", "label_names")
    )
    preprocess: Preprocess
    head: HeadKind = "linear"
    patches_only: tuple[str, ...] = Field(
        default=(), description="the last of names, which only patches of images show: no whole image is named so"
    )

    @model_validator(mode="after")
    def _ends_in_patches_only(self) -> Self:
        if self.patches_only and (
            self.names[-len(self.patches_only) :] != self.patches_only or len(self.names) == len(self.patches_only)
        ):
            raise ValueError("patches_only must be the last of names, and not all of them")
        return self

    def of_whole_images(self) -> Self:
        """The same without the classes that only patches show."""
        return self.model_copy(
            update={"names": self.names[: len(self.names) - len(self.patches_only)], "patches_only": ()}
        )

    def build(self) -> torch.nn.Module:
        """The network with fresh weights."""
        size, channels = self.preprocess.size, self.preprocess.channels
        model = registry.find_model(self.model)
        network = model.build(classes=len(self.names), channels=channels, size=size)
        replace_head(network, model, self.head, len(self.names))
        return network


class Classifier:
    """`network` gives logits (B, K) for what `preprocess` gives; `names` are the K classes in order."""

    @check_types
    def __init__(self, network: torch.nn.Module, config: Config) -> None:
        self.network, self.config = network, config
        self.names, self.preprocess = config.names, config.preprocess

    @classmethod
    @check_types
    def load(cls, path: str | PathLike[str], device: torch.device | str = "cpu", *, of_patches: bool = False) -> Self:
        """The classifier in a folder, or a network of the zoo with weights that fit it, ready to predict.

        `path`: a run folder, or "resnet50:imagenet", "efficientnet_lite0:bundled", "resnet20:file.safetensors": a name
        of `zoo.MODELS`, a colon, and what `models.weights.load_pretrained` takes. `of_patches`: with the classes that
        only patches of images show (background, of a run that was trained with boxes), as `locate` needs it.

        Raises:
            RunError: no such folder, or a file in it is missing, damaged or made by a newer version.
            UsageError: no such network, weights or device. FetchError: they have to be fetched and cannot be.
        """
        folder, device = given_path(path), choose_device(str(device))
        name, colon, text = fspath(path).partition(":")
        if not folder.is_dir():
            if colon and "/" not in name:
                return cls._load_pretrained(registry.find_model(name), text, device)
            if name in registry.MODELS:
                raise UsageError(f"{name} is a network without weights; name some as in {_with_weights(name)}")
        config = read_config(folder)
        weights = folder / WEIGHTS
        # Shapes first, on a network without memory: a damaged config must not ask for terabytes.
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in config.build().state_dict().items()}
        found = tensor_shapes(weights)
        if expected != found:
            odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            few = ", ".join(f"{name} {found.get(name, 'missing')}" for name in odd[:3])
            raise RunError(
                f"{weights} does not fit {config.model} with {len(config.names)} classes ({len(odd)} tensors differ: "
                f"{few}); copy both files from the same run"
            )
        tensors = _finite(weights, read_tensors(weights)[0])
        used = config if of_patches else config.of_whole_images()
        network = used.build()
        # Of the layer that gives the scores, the rows of classes that are left out are the last.
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        network.load_state_dict(
            {name: one if one.shape == shapes[name] else one[: shapes[name][0]] for name, one in tensors.items()}
        )
        return cls(network.to(device).eval(), used)

    @classmethod
    def _load_pretrained(cls, model: registry.Model, text: str, device: torch.device | str) -> Self:
        trained = weights.load_pretrained(model, text)
        config = Config(model=model.name, names=trained.names_or_numbers, preprocess=trained.preprocess)
        network = config.build()
        trained.load_into(network, config.names)
        return cls(network.to(device).eval(), config)

    @check_types
    def save(self, path: str | PathLike[str]) -> None:
        """Write config.json and model.safetensors into the folder `path`, made if absent.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        folder = given_path(path)
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / WEIGHTS, self.network.state_dict())
        write_json(folder / CONFIG, self.config.model_dump())

    @check_types
    def optimized_for(self, num_images: int) -> Self:
        """The same for inference alone, optimized if so many pictures pay for that: only rounding differs."""
        shape = self.preprocess.channels, self.preprocess.size, self.preprocess.size
        return type(self)(fastest(self.network, shape, num_images), self.config)

    @check_types
    def predict(self, picture: Picture, top: int = 5) -> list[tuple[str, float]]:
        """The `top` most probable classes of one picture, best first, as (name, probability in 0 to 1).

        `picture`: a path, a PIL image, or an array (H, W), (H, W, 3) uint8.

        Raises:
            PictureError: it cannot be read.
        """
        return self.rank(self.probabilities([self.preprocess(picture)])[0], top)

    @check_types
    def rank(self, probabilities: torch.Tensor, top: int = 5) -> list[tuple[str, float]]:
        """The `top` best of `probabilities`, (K,) floating point, with their names.

        Raises:
            UsageError: there is not one number for each class, or `top` is below 1.
        """
        if not has_values(probabilities):
            raise UsageError("probabilities are a sparse, nested, quantized or meta tensor; rank() needs a dense one")
        if probabilities.shape != (len(self.names),) or not probabilities.is_floating_point():
            raise UsageError(
                f"probabilities are {tuple(probabilities.shape)} {probabilities.dtype}; rank() needs a floating-point "
                f"number for each of {len(self.names)} classes"
            )
        if top < 1:
            raise UsageError(f"top={top} must be at least 1")
        best = probabilities.topk(min(top, len(self.names)))
        return [(self.names[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    @torch.inference_mode()
    @check_types
    def probabilities(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        """Class probabilities (N, K) float32 of what `preprocess` gave for N pictures.

        Raises:
            UsageError: a tensor is not what `preprocess` gives.
            RunError: they are NaN.
        """
        if not pictures:
            return torch.empty(0, len(self.names))
        shape = self.preprocess.channels, self.preprocess.size, self.preprocess.size
        for picture in pictures:
            if not (has_values(picture) and picture.dtype == torch.float32 and picture.shape == shape):
                kind = (
                    f"{tuple(picture.shape)} {picture.dtype}"
                    if has_values(picture)
                    else "sparse, nested, quantized or meta"
                )
                raise UsageError(
                    f"a tensor of images is {kind}; probabilities() needs dense ones of {shape} {torch.float32}, which "
                    "preprocess gives"
                )
        images = torch.stack(list(pictures)).to(device_of(self.network) or "cpu")
        logits: torch.Tensor = self.network(images)
        return self.require_finite(logits.float().softmax(1).cpu())

    @check_types
    def require_finite(self, probabilities: torch.Tensor) -> torch.Tensor:
        """`probabilities`, or their logarithms, that the network gave.

        Raises:
            RunError: there is NaN among them. UsageError: they are no dense tensor.
        """
        if not has_values(probabilities):
            raise UsageError("probabilities are a sparse, nested, quantized or meta tensor; sound() needs a dense one")
        if probabilities.isnan().any():
            raise RunError(
                f"{self.config.model} gives scores that are NaN or infinite, which are no probabilities; its weights, "
                "or the mean and std of its preprocessing, are too large or too small; use another run"
            )
        return probabilities


@check_types
@keeps_settings
def predict(
    run: str | PathLike[str] | Classifier,
    *pictures: Picture,
    top: int = 5,
    device: str = "auto",
    threads: int | None = None,
    max_pixels: int | None = None,
) -> list[dict[str, Any]]:
    """For each picture `path` and `labels`, the `top` most probable names, best first, with their probabilities.

    `run`: a run folder, or a network with its weights, as for `Classifier.load`.
    `pictures`: paths of pictures, of folders (all pictures in them, at any depth) or of .npy files, (N, H, W[, 3])
    uint8; PIL images; arrays (H, W[, 3]) uint8. A picture that cannot be read has no labels, and its reason as `error`.
    `max_pixels`: of a picture that is read; None: `images.PIXEL_LIMIT`.

    Raises:
        UsageError: no picture is there, or no such weights.
        RunError: the run is missing or damaged.
    """
    batches = predict_in_batches(run, *pictures, top=top, device=device, threads=threads, max_pixels=max_pixels)
    return [one for batch in batches for one in batch]


def predict_in_batches(
    run: str | PathLike[str] | Classifier,
    *pictures: Picture,
    top: int = 5,
    device: str = "auto",
    threads: int | None = None,
    max_pixels: int | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """As `predict`, batch by batch as they are computed, with progress on stderr.

    Raises:
        UsageError, RunError: as `predict`, before the first batch.
    """
    place, workers = choose_device(device), set_threads(threads)
    classifier = run if isinstance(run, Classifier) else Classifier.load(run, place)
    everything, decoding = all_of(pictures), Decoding.up_to(max_pixels)
    classifier = classifier.optimized_for(len(everything))
    with ThreadPoolExecutor(workers) as pool, progress("predicting", len(everything)) as shown:
        for start in range(0, len(everything), BATCH_SIZE):
            some = everything[start : start + BATCH_SIZE]
            tensors = list(
                pool.map(
                    partial(_preprocess_or_error, classifier.preprocess, decoding), (picture for _, picture in some)
                )
            )
            good = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
            ranked = iter(classifier.rank(row, top) for row in classifier.probabilities(good))
            batch: list[dict[str, Any]] = []
            for (path, _), tensor in zip(some, tensors, strict=True):
                if isinstance(tensor, str):
                    batch.append({"path": path, "labels": [], "error": tensor})
                else:
                    labels = [{"name": name, "probability": probability} for name, probability in next(ranked)]
                    batch.append({"path": path, "labels": labels})
            yield batch
            shown.advance(len(batch))
    if sentence := misnamed_sentence(misnamed_files(picture for _, picture in everything)):
        say(sentence)
    ranges = intensities_of((picture for _, picture in everything), decoding)
    if sentence := other_intensities(ranges, classifier.preprocess.intensity_range):
        say(f"16-bit images {sentence}")


def _preprocess_or_error(preprocess: Preprocess, decoding: Decoding, picture: Input) -> torch.Tensor | str:
    try:
        return str(picture) if isinstance(picture, PictureError) else preprocess(picture, decoding)
    except PictureError as error:
        return str(error)


def load_initial_weights(model: registry.Model, text: str) -> Weights:
    """The weights for `model` that `text` names: a published name, a run folder or a file, looked for in this order.

    Raises:
        RunError: the run is damaged.
        UsageError, FetchError: as `models.weights.load_pretrained`; or the run is of another network.
    """
    if not _is_run(text):
        return weights.load_pretrained(model, text)
    folder = given_path(text)
    config = read_config(folder)
    tensors = _finite(folder / WEIGHTS, read_tensors(folder / WEIGHTS)[0])
    if config.head not in NATIVE_HEADS and config.model == model.name:  # what comes before it is a start for any head
        path = head_path(model)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{path}.")}
        return Weights(model, tensors, config.preprocess, None, text, partial=True)
    if config.model == model.name:
        return Weights(model, tensors, config.preprocess, config.names, text)
    other = registry.find_model(config.model)
    if model.warm_start is None or other.warm_start is not model.warm_start:
        raise UsageError(f"weights={text} are of {config.model}, not {model.name}; give --model {config.model}")
    shape = len(config.names), config.preprocess.channels, config.preprocess.size
    with torch.device("meta"):
        theirs, ours = other.build(*shape), model.build(*shape)
    theirs.load_state_dict(tensors, assign=True)
    note = f"{model.name} starts from some layers of {config.model}, as its paper says"
    return Weights(model, model.warm_start(theirs, ours), config.preprocess, config.names, text, note, partial=True)


def _finite(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors`, which a network may compute with.

    Raises:
        RunError: there is NaN or infinity among them.
    """
    bad = not_finite(tensors)
    if bad:
        raise RunError(
            f"{path} holds NaN or infinity (in {bad}), so that it predicts nothing: its training diverged, or the file "
            "was changed; use another run, or train again with a lower learning rate"
        )
    return tensors


def model_of_run_weights(text: str) -> str | None:
    """The name of the network that the weights `text` are of, if they are a run's.

    Raises:
        RunError: the run is damaged.
    """
    return read_config(given_path(text)).model if _is_run(text) else None


def is_classifier(text: str) -> bool:
    """Whether `text` is meant for `Classifier.load`: a folder with a config.json, or a network of the zoo."""
    name, colon, _ = text.partition(":")
    if given_path(text).is_dir():
        return (given_path(text) / CONFIG).exists()
    return name in registry.MODELS or (bool(colon) and "/" not in name)


def _is_run(text: str) -> bool:
    return text not in pretrained.WEIGHT_NAMES and given_path(text).is_dir()


def _with_weights(model: str) -> str:
    return " or ".join(f"{model}:{text}" for text in [*pretrained.PRETRAINED.get(model, {}), "FILE"])


def read_config(folder: Path) -> Config:
    """The Config of a folder.

    Raises:
        RunError: no such folder, or config.json is missing, damaged or made by a newer version.
    """
    path = folder / CONFIG
    if not folder.is_dir():
        raise RunError(f"{folder} is not a run folder; name one that `svertka train` made, such as runs/digits-lenet5")
    runs = sorted(one.parent.name for one in folder.glob(f"*/{CONFIG}"))
    if runs and not path.exists():
        raise RunError(f"{folder} holds several runs, {few(runs)}; name one of them, as {folder / runs[0]}")
    try:
        content: Any = read_json(path)
    except FileNotFoundError as error:
        raise RunError(
            f"{folder} holds no {CONFIG}, so it is not a run; name a folder that `svertka train` made"
        ) from error
    except (ValueError, OSError) as error:
        raise RunError(f"{path} is damaged ({error}); copy it back or train again") from error
    check_format_version(path, content, FORMAT)
    try:
        config = Config.model_validate(content)
        registry.find_model(config.model)
    except (ValidationError, ValueError) as error:
        reason = error.errors(include_input=False)[0]["msg"] if isinstance(error, ValidationError) else error
        raise RunError(f"{path} is damaged ({reason}); copy it back or train again") from error
    return config


def check_format_version(path: Path, content: Any, newest: int) -> None:
    """Raise RunError if `content`, read from `path`, says that its format is newer than `newest`."""
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version > newest:
        raise RunError(
            f"{path} was made by a newer svertka (format {version}, this one reads {newest}); upgrade svertka"
        )
