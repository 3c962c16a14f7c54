"""A trained network with its class names and preprocessing, and predictions for images."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self, SupportsIndex, overload

import torch
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from svertka.calibration_file import CalibrationRecord, RunCalibration, read_calibration
from svertka.compiler.optimize import Optimized, optimize_if_worthwhile
from svertka.conformal_sets import check_coverage, count_in_set
from svertka.data import imagenet
from svertka.data.band_ranges import describe_band_mismatch
from svertka.data.image_io import DEFAULT, DecodingOptions
from svertka.data.pixel_statistics import describe_intensity_mismatch
from svertka.data.prediction_inputs import (
    Input,
    describe_files,
    list_inputs,
    sample_intensity_ranges,
    sample_shares_outside,
)
from svertka.data.preprocessing import LARGEST_SIZE, ImageLike, Preprocess, load_rgb_image
from svertka.device import (
    choose_device,
    find_device,
    is_dense_with_values,
    meta_device,
    network_device,
    set_threads,
    with_preserved_settings,
)
from svertka.errors import ImageError, RunError, SvertkaError, UsageError
from svertka.escaping import format_command, join_first
from svertka.files import os_error_to_storage_error, parse_path, read_json, write_json
from svertka.graph.network_copy import copy_sharing_parameters
from svertka.models import external, published_weights, registry, weights
from svertka.models.external_builder import GRAPH, PACKAGES, BuilderRecord
from svertka.models.graph_file import write_graph
from svertka.models.head_kinds import NATIVE_HEADS, HeadKind, head_path, set_head_kind
from svertka.models.timm_and_torchvision import PRETRAINED
from svertka.models.weights import LoadedWeights
from svertka.optimized_file import read_optimized
from svertka.pages.notebook_block import THUMBNAIL_SIDE, NotebookBlock, Thumbnail, thumbnail_uri
from svertka.progress import progress, say, show_spinner
from svertka.tasks import SINGLE_LABEL, MultiLabel, Regression, Task
from svertka.tensor_files import (
    describe_nonfinite,
    read_tensor_shapes,
    read_tensors_and_header,
    unreadable_file_error,
    write_tensors,
)
from svertka.text_width import shorten
from svertka.type_checking import check_types
from svertka.unknown_score import ScoredNetwork, add_unknown_score

FORMAT = 3  # of config.json of bands; a reader refuses what is newer
CALIBRATED_FORMAT = 2  # with a calibration; without one it is 1
BATCH_SIZE = 64  # images
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Config(BaseModel):
    """The content of config.json, from which the network is rebuilt.

    `model` and `names` may also have their names on the Hugging Face hub, `architecture` and `label_names`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    model: str = Field(validation_alias=AliasChoices("model", "architecture"))
    names: tuple[str, ...] = Field(
        min_length=1, max_length=1_000_000, validation_alias=AliasChoices("names", "label_names")
    )
    preprocess: Preprocess
    builder: BuilderRecord | None = Field(
        default=None, description="what builds the network, if svertka has no network called `model`"
    )
    head: HeadKind = "linear"
    patches_only: tuple[str, ...] = Field(
        default=(), description="the last of names, which only patches of images show: no whole image is named so"
    )
    calibration: CalibrationRecord | None = Field(
        default=None, description="what calibration.safetensors is for, if there is one"
    )

    task: Task = Field(default=SINGLE_LABEL, description="what the network predicts of an image")

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit `builder`, `calibration` and `task` if they say nothing, so that earlier versions read the file, too."""
        fields: dict[str, Any] = dump(self)
        if self.preprocess.bands is not None:
            fields["format"] = FORMAT
        unsaid = {"builder": None, "calibration": None, "task": SINGLE_LABEL.model_dump()}
        return {name: value for name, value in fields.items() if name not in unsaid or value != unsaid[name]}

    @model_validator(mode="after")
    def _has_outputs_of_task(self) -> Self:
        if isinstance(self.task, MultiLabel) and self.task.thresholds and len(self.task.thresholds) != len(self.names):
            raise ValueError("thresholds of task must be as many as names")
        if isinstance(self.task, Regression) and len(self.names) != 1:
            raise ValueError("names must be the one of the number")
        return self

    @model_validator(mode="after")
    def _ends_in_patches_only(self) -> Self:
        if self.patches_only and (
            self.names[-len(self.patches_only) :] != self.patches_only or len(self.names) == len(self.patches_only)
        ):
            raise ValueError("patches_only must be the last of names, and not all of them")
        return self

    def of_whole_images(self) -> Self:
        """Return the config without the classes that occur in patches only."""
        return self.model_copy(
            update={"names": self.names[: len(self.names) - len(self.patches_only)], "patches_only": ()}
        )

    def with_calibration(self, record: CalibrationRecord | None) -> Self:
        """Return the config with another calibration, or without one."""
        return self.model_copy(update={"calibration": record, "format": 1 if record is None else CALIBRATED_FORMAT})

    def find_model(self, folder: Path, *, trust_builder: bool = False) -> registry.Model:
        """Return the model that builds the network of a run in `folder`.

        Raises:
            UsageError: There is none, or its builder needs consent (`trust_builder`), or cannot be imported.
            RunError: The exported graph of the run is missing or damaged.
        """
        if self.builder is None:
            return registry.find_model(self.model)
        size, channels = self.preprocess.size, self.preprocess.channels
        model = external.open_model_of_run(
            self.builder, folder, trust_builder=trust_builder, size=size, channels=channels, classes=len(self.names)
        )
        return replace(model, name=self.model)

    def build(self, model: registry.Model | None = None) -> torch.nn.Module:
        """Return the network with fresh weights.

        Args:
            model: As `find_model` returns it. None: a network of the registry.
        """
        size, channels = self.preprocess.size, self.preprocess.channels
        model = model or registry.find_model(self.model)
        network = model.build(classes=len(self.names), channels=channels, size=size)
        if not model.is_exported:
            set_head_kind(network, model, self.head, len(self.names))
        return network


class Classifier:
    """A network with its class names and preprocessing.

    Args:
        network: Maps preprocessed images (B, C, H, W) float32 to logits (B, K).
        config: The model, the K class names and the preprocessing.
        model: What built the network. None: the network of the registry that `config` names.
        origin: The run folder or "model:weights" that it was loaded from. None: it was made in memory.

    Attributes:
        network: As given.
        config: As given.
        names: The K class names or labels, in the order of the logits; or the name of a number.
        task: What the network predicts: one class, several labels, or a number.
        preprocess: Maps an image to a tensor (C, H, W) float32.
        origin: As given, or the name of the model in angle brackets. Commands find the training images by it.
        optimized: The optimized network in the run folder, which computes predictions instead of `network`; or None.
        calibration: What tells unknown images from those of the classes, and gives prediction sets; or None.

    Raises:
        UsageError: An argument has another type.
    """

    @check_types
    def __init__(
        self, network: torch.nn.Module, config: Config, model: registry.Model | None = None, origin: str | None = None
    ) -> None:
        self.network, self.config = network, config
        self.names, self.preprocess, self.task = config.names, config.preprocess, config.task
        self._model = model
        self.origin = origin or f"<{config.model}>"
        self.optimized: Optimized | None = None
        self.calibration: RunCalibration | None = None
        self._scored: tuple[torch.nn.Module, ScoredNetwork] | None = None  # a network, and the same with its score

    @property
    def model(self) -> registry.Model:
        """The model that built the network.

        Raises:
            UsageError: It is unknown.
        """
        return self._model or registry.find_model(self.config.model)

    @classmethod
    @check_types
    @show_spinner("loading the network")
    def load(
        cls,
        path: str | PathLike[str],
        device: torch.device | str = "cpu",
        *,
        of_patches: bool = False,
        trust_builder: bool = False,
        model: registry.Model | None = None,
        with_calibration: bool = True,
    ) -> Self:
        """Load a run or pretrained weights for inference.

        Args:
            path: A run folder, or "model:weights" such as "resnet50:imagenet", "efficientnet_lite0:bundled" or
                "resnet20:file.safetensors"; see `svertka models` for names. "timm:NAME" and "torchvision:NAME" have
                the weights that their package publishes.
            device: Device of the network.
            of_patches: Whether to keep the classes that occur in patches only, such as the background of a run trained
                with boxes; `locate` needs them.
            trust_builder: Whether the run may import the code that builds its network, or read an exported graph, if
                the network is not one of svertka's, timm's or torchvision's.
            model: What builds the network of a run, if that is known already. None: what its config.json says.
            with_calibration: Whether to read the calibration of a run, too, if it has one.

        Returns:
            The classifier, in evaluation mode.

        Raises:
            RunError: The folder does not exist, or a file in it is missing, damaged or made by a newer version.
            UsageError: There is no such model, weights or device.
            FetchError: The weights cannot be downloaded.
        """
        folder, device = parse_path(path), find_device(str(device))
        name, colon, text = fspath(path).partition(":")
        if not folder.is_dir():
            if name in PACKAGES:
                return cls._load_pretrained(external.open_model(fspath(path)), PRETRAINED, device)
            if colon and "/" not in name:
                return cls._load_pretrained(registry.find_model(name), text, device)
            if name in registry.MODELS:
                raise UsageError(f"{name} is a network without weights; name some as in {_with_weights(name)}")
        config = read_config(folder)
        weights = folder / WEIGHTS
        model = model or config.find_model(folder, trust_builder=trust_builder)
        # Shapes are compared on a meta network: a damaged config must not allocate terabytes.
        with meta_device():
            expected = {name: tuple(tensor.shape) for name, tensor in config.build(model).state_dict().items()}
        found = read_tensor_shapes(weights)
        if expected != found:
            different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            listed = ", ".join(f"{name} {found.get(name, 'missing')}" for name in different[:3])
            advice = "copy both files from the same run"
            if model.is_builder_changed:
                advice = f"restore the code of {config.model} as it was when {folder} was trained"
            raise RunError(
                f"{weights} does not fit {config.model} with {len(config.names)} classes "
                f"({len(different)} tensors differ: {listed}); {advice}"
            )
        tensors = _finite(weights, read_tensors_and_header(weights)[0])
        used = config if of_patches else config.of_whole_images()
        network = used.build(model)
        # Classes that are left out are the last rows of the output layer.
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        network.load_state_dict(
            {name: one if one.shape == shapes[name] else one[: shapes[name][0]] for name, one in tensors.items()}
        )
        classifier = cls(network.to(device).eval(), used, model, fspath(path))
        if with_calibration and config.calibration is not None and not of_patches:
            classifier.calibration = read_calibration(folder, config.calibration, weights, len(used.names))
        return classifier

    @classmethod
    def _load_pretrained(cls, model: registry.Model, text: str, device: torch.device | str) -> Self:
        trained = weights.read_pretrained_weights(model, text)
        config = Config(
            model=model.name, names=trained.names_or_numbers, preprocess=trained.preprocess, builder=model.reference
        )
        network = config.build(model)
        trained.load_into(network, config.names)
        return cls(network.to(device).eval(), config, model, f"{model.name}:{text}")

    @classmethod
    @check_types
    def wrap(
        cls,
        network: torch.nn.Module,
        names: Sequence[str] | None = None,
        preprocess: Preprocess | None = None,
        *,
        size: int | None = None,
    ) -> Self:
        """Return a classifier of a network in memory; the network is not changed, and its parameters are shared.

        Args:
            network: Maps images (B, C, H, W) float32 to logits (B, K).
            names: The K class names. None: ImageNet's for 1000 classes, else "0", "1", …
            preprocess: Preprocessing of the images. None: that of the network's `pretrained_cfg`, as timm's have; else
                the mean and standard deviation of ImageNet.
            size: Height and width of the images, pixels. None: that of the preprocessing; else the first of 224, 32,
                28, 64, 96, 128, 160, 192, 256, 299, 384 and 512 that the network takes.

        Returns:
            The classifier, in evaluation mode.

        Raises:
            UsageError: The network does not compute such logits, cannot be copied, or does not take images of `size`;
                the names are not K; or `preprocess` has another size than `size`.
        """
        if size is not None and not 1 <= size <= LARGEST_SIZE:
            raise UsageError(f"size={size} must be 1 to {LARGEST_SIZE} pixels")
        if size is not None and preprocess is not None and size != preprocess.size:
            raise UsageError(f"size={size} differs from size={preprocess.size} of preprocess; give one of them")
        network = external.unwrap_network(network)
        sizes = [one for one in (size, None if preprocess is None else preprocess.size) if one is not None]
        model = external.open_model(network, sizes=sizes)
        if size is not None and model.size != size:
            raise UsageError(
                f"{model.name} takes images of {model.size}×{model.size} pixels, but not of size={size}; give another "
                "size, or leave it out"
            )
        if model.channels not in (1, 3) and (preprocess is None or preprocess.bands is None):
            raise UsageError(
                f"{model.name} takes images of {model.channels} channels; give a preprocess whose intensity_range is "
                f"BandRanges of {model.channels} bands"
            )
        if model.classes < 2:
            raise UsageError(f"{model.name} computes one score; svertka needs one for each class, two or more")
        if names is None:
            names = imagenet.NAMES if model.classes == len(imagenet.NAMES) else tuple(map(str, range(model.classes)))
        if len(names) != model.classes:
            raise UsageError(f"{model.name} computes scores for {model.classes} classes; {len(names)} names are given")
        if preprocess is None:
            preprocess = model.preprocess or weights.default_preprocess(model, model.name)
            if size is not None:
                preprocess = preprocess.model_copy(update={"size": size, "resize": size})
        config = Config(
            model=model.name,
            names=tuple(names),
            preprocess=preprocess,
            builder=model.reference,
        )
        return cls(copy_sharing_parameters(network), config, model)

    @classmethod
    def open(
        cls,
        run: "str | PathLike[str] | Classifier | torch.nn.Module",
        device: torch.device | str = "cpu",
        *,
        of_patches: bool = False,
        trust_builder: bool = False,
        precision: str | None = "fp32",
        size: int | None = None,
    ) -> "Classifier":
        """Return the classifier that the argument `run` of a command means.

        Args:
            run: A run folder or "model:weights", as for `load`; a Classifier, which stays on its device; or a network,
                as for `wrap`.
            device: As for `load`.
            of_patches: As for `load`.
            trust_builder: As for `load`.
            precision: "fp32", or None to use the optimized network of a run folder, if there is one, on the CPU.
            size: As for `wrap`. Only for a network.

        Returns:
            The classifier, in evaluation mode.

        Raises:
            UsageError: `precision` is neither; `run` is not a network and `size` is given; or as `load` and `wrap`.
            RunError, FetchError: As `load`; or the file of the optimized network is damaged.
        """
        if precision not in (None, "fp32"):
            raise UsageError(f"precision={shorten(str(precision))} is not known; use fp32, or leave it out")
        if isinstance(run, torch.nn.Module):
            return cls.wrap(run, size=size)
        if size is not None:
            raise UsageError(f"size={size} is only for an nn.Module; a run takes images of the size it was trained on")
        if isinstance(run, Classifier):
            return run
        classifier = cls.load(run, device, of_patches=of_patches, trust_builder=trust_builder)
        here = network_device(classifier.network) in (None, torch.device("cpu"))
        if precision is None and here and (folder := parse_path(run)).is_dir():
            shape = classifier.preprocess.input_shape[1:]
            # Classes that occur in patches only have no scores in it.
            count = len(classifier.names) - len(classifier.config.patches_only)
            classifier.optimized = read_optimized(folder, folder / WEIGHTS, shape, count)
            if classifier.optimized is not None and classifier.calibration is not None:
                say(f"{folder}: the optimized network does not say which images are unknown; --precision fp32 does")
        return classifier

    def require_single_label(self, what: str, to_do: str = "use evaluate, predict, export or serve") -> None:
        """Raise UsageError unless the network predicts one class an image.

        Args:
            what: The command or option that needs it.
            to_do: The advice.

        Raises:
            UsageError: The network predicts several labels or a number.
        """
        if not self.task.is_single_label:
            raise UsageError(
                f"{what} works with runs of one class an image, and {self.origin} predicts {self.task.phrase}; {to_do}"
            )

    def require_names(self, what: str) -> None:
        """Raise UsageError if the network predicts a number, which has no place in an image and no names.

        Args:
            what: The command that needs classes or labels.

        Raises:
            UsageError: The network predicts a number.
        """
        if isinstance(self.task, Regression):
            raise UsageError(
                f"{what} needs classes or labels, and {self.origin} predicts {self.task.phrase}; use evaluate, predict "
                "or look"
            )

    @property
    def precision(self) -> str:
        """The precision of predictions: "fp32", or that of the optimized network."""
        return "fp32" if self.optimized is None else self.optimized.precision

    @check_types
    def save(self, path: str | PathLike[str]) -> None:
        """Write config.json and model.safetensors into a folder.

        Args:
            path: The folder; created if absent.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        folder = parse_path(path)
        with os_error_to_storage_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if self.config.builder is not None and self.config.builder.is_graph and not (folder / GRAPH).exists():
            write_graph(folder / GRAPH, self.network, self.preprocess.input_shape)
        write_tensors(folder / WEIGHTS, self.network.state_dict())
        record = None if self.calibration is None else self.calibration.write(folder, folder / WEIGHTS)
        write_json(folder / CONFIG, self.config.with_calibration(record).model_dump())

    @check_types
    def optimized_for(self, num_images: int) -> Self:
        """Return a classifier for inference only, optimized if that pays off for the number of images.

        Outputs differ by rounding only, unless it computes with the optimized network of a run, which gives no unknown
        score.

        Args:
            num_images: Number of images that will be classified.

        Returns:
            A classifier with the same class names and preprocessing.

        Raises:
            UsageError: `num_images` is not an integer.
        """
        shape = self.preprocess.input_shape[1:]
        scored = self.scored_network()
        if scored is not None:
            network: torch.nn.Module = scored.optimized_for(shape, num_images)
        else:
            network = self.optimized or optimize_if_worthwhile(self.network, shape, num_images)
        made = type(self)(network, self.config, self._model, self.origin)
        made.calibration = None if scored is None else self.calibration
        return made

    def scored_network(self) -> ScoredNetwork | None:
        """Return the network with the unknown score; None if the run has no calibration, or an optimized network.

        Returns:
            A module that maps images (N, C, H, W) to logits and unknown scores, or None.

        Raises:
            RunError: The network cannot be split before its last layer, as it was for the calibration.
        """
        if self.calibration is None or self.optimized is not None:
            return None
        if isinstance(self.network, ScoredNetwork):
            return self.network
        if self._scored is None or self._scored[0] is not self.network:  # the attribute may have been replaced
            score = self.calibration.score.to(network_device(self.network) or "cpu")
            made = add_unknown_score(self.network, self.model, self.preprocess.input_shape, score)
            self._scored = self.network, made
        return self._scored[1]

    @check_types
    def predict(self, image: ImageLike, top: int = 5) -> list[tuple[str, float]]:
        """Return the most probable classes of one image.

        Args:
            image: A path, a PIL image, or an array (H, W) or (H, W, 3) uint8.
            top: Number of classes, at least 1.

        Returns:
            Pairs of class name and probability (0 to 1), most probable first.

        Raises:
            ImageError: The image cannot be read.
            UsageError: `top` is below 1.
            RunError: The network gives NaN.
        """
        return self.rank(self.probabilities([self.preprocess(image)])[0], top)

    @check_types
    def rank(self, probabilities: torch.Tensor, top: int = 5) -> list[tuple[str, float]]:
        """Return the most probable classes with their names.

        Args:
            probabilities: Probabilities (K,), floating point, dense.
            top: Number of classes, at least 1.

        Returns:
            Pairs of class name and probability, most probable first.

        Raises:
            UsageError: `probabilities` has another shape or type, or `top` is below 1.
        """
        if not is_dense_with_values(probabilities):
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

    @check_types
    def describe(
        self,
        probabilities: torch.Tensor,
        top: int = 5,
        *,
        unknown_score: float | None = None,
        set_quantile: float | None = None,
    ) -> dict[str, Any]:
        """Return what is predicted of one image as JSON values, with the keys of `svertka predict --json`.

        Args:
            probabilities: A row of what `probabilities` returns, (K,) float32.
            top: Number of classes, at least 1; labels are all listed.
            unknown_score: The unknown score of the image, any finite number; None without a calibration.
            set_quantile: What the method `set_quantile` returns, to list the prediction set. None: no set.

        Returns:
            `labels`, a list of dicts with `name` and `probability`, most probable first; if an image has several
            labels, also `predicted`, whether the probability reaches the threshold of the label. Or no labels, and
            `number`, a dict with `name` and `value`. With an unknown score also `unknown`, `unknown_score` and
            `unknown_threshold`; with a quantile `set`, the class names of the prediction set.

        Raises:
            UsageError: As `rank`.
            RunError: The unknown score is NaN or infinite.
        """
        if isinstance(self.task, Regression):
            ((name, value),) = self.rank(probabilities, 1)
            return {"labels": [], "number": {"name": name, "value": value}}
        if isinstance(self.task, MultiLabel):
            place = {name: label for label, name in enumerate(self.names)}
            return {
                "labels": [
                    {"name": name, "probability": share, "predicted": share >= self.task.threshold(place[name])}
                    for name, share in self.rank(probabilities, len(self.names))
                ]
            }
        ranked = self.rank(probabilities, top)
        answer: dict[str, Any] = {"labels": [{"name": name, "probability": share} for name, share in ranked]}
        if unknown_score is not None and self.calibration is not None:
            self.require_finite(torch.tensor(unknown_score) * 0)  # infinity times 0 is NaN
            threshold = self.calibration.threshold
            answer |= {
                "unknown": unknown_score > threshold,
                "unknown_score": unknown_score,
                "unknown_threshold": threshold,
            }
        if set_quantile is not None:
            count = count_in_set(probabilities, set_quantile)
            answer["set"] = [name for name, _ in self.rank(probabilities, max(count, 1))][:count]
        return answer

    @torch.inference_mode()
    @check_types
    def probabilities(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return class probabilities of preprocessed images, or what else the network predicts.

        Args:
            images: N tensors (C, H, W) float32, as `preprocess` returns them.

        Returns:
            Probabilities (N, K) of the classes or labels, float32 on the CPU; or the number, (N, 1) float64.

        Raises:
            UsageError: A tensor has another shape, type or layout.
            RunError: The network gives NaN.
        """
        if not images:
            return torch.empty(0, len(self.names))
        logits: torch.Tensor = self.network(self._stack(images))
        return self.require_finite(self.task.activate(logits.float()).cpu())

    @torch.inference_mode()
    @check_types
    def probabilities_and_unknown_scores(
        self, images: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return class probabilities of preprocessed images, and how unlike the training images they are.

        An image whose score exceeds `calibration.threshold` is called unknown.

        Args:
            images: N tensors (C, H, W) float32, as `preprocess` returns them.

        Returns:
            Probabilities (N, K) float32, and scores (N,) float32, both on the CPU; None instead of scores without a
            calibration, or with an optimized network.

        Raises:
            UsageError: A tensor has another shape, type or layout.
            RunError: The network gives NaN, or cannot be split for its features.
        """
        scored = self.scored_network()
        if scored is None:
            return self.probabilities(images), None
        if not images:
            return torch.empty(0, len(self.names)), torch.empty(0)
        logits, scores = scored.logits_and_scores(self._stack(images))
        return self.require_finite(self.task.activate(logits.float()).cpu()), self.require_finite(scores.cpu())

    def _stack(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return preprocessed images as one batch on the device of the network.

        Raises:
            UsageError: A tensor has another shape, type or layout.
        """
        shape = self.preprocess.channels, self.preprocess.size, self.preprocess.size
        for image in images:
            if not (is_dense_with_values(image) and image.dtype == torch.float32 and image.shape == shape):
                kind = (
                    f"{tuple(image.shape)} {image.dtype}"
                    if is_dense_with_values(image)
                    else "sparse, nested, quantized or meta"
                )
                raise UsageError(
                    f"a tensor of images is {kind}; probabilities() needs dense ones of {shape} {torch.float32}, which "
                    "preprocess gives"
                )
        return torch.stack(list(images)).to(network_device(self.network) or "cpu")

    @check_types
    def set_quantile(self, coverage: float) -> float:
        """Return the quantile of the calibration images by which prediction sets have a coverage.

        Args:
            coverage: 0 to 1.

        Returns:
            The quantile, 0 to 1, which `describe` takes.

        Raises:
            UsageError: `coverage` is not between 0 and 1, the run does not predict one class an image, or has too few
                calibration images, or computes with an optimized network, for which none were measured.
        """
        self.require_single_label(f"sets={coverage:g}", "leave it out")
        check_coverage(coverage)
        if self.optimized is not None:
            raise UsageError(
                f"sets={coverage:g}: {self.origin} computes with its optimized network, and prediction sets are "
                "calibrated for its own; use precision fp32"
            )
        if self.calibration is None:
            raise UsageError(
                f"sets={coverage:g}: {self.origin} has no calibration; make one: "
                f"{format_command('calibrate', Path(self.origin))}"
            )
        return self.calibration.set_quantile(coverage, self.origin)

    @check_types
    def require_finite(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return the probabilities unchanged, or raise an error if one is NaN.

        Args:
            probabilities: Probabilities or their logarithms, dense, any shape, any float dtype.

        Returns:
            `probabilities` itself.

        Raises:
            RunError: One is NaN.
            UsageError: The tensor is not dense.
        """
        if not is_dense_with_values(probabilities):
            raise UsageError(
                "probabilities are a sparse, nested, quantized or meta tensor; require_finite() needs a dense one"
            )
        if probabilities.isnan().any():
            raise RunError(
                f"{self.config.model} gives scores that are NaN or infinite, which are not probabilities; its weights, "
                "or the mean and std of its preprocessing, are too large or too small; use another run"
            )
        return probabilities


@check_types
@with_preserved_settings
def predict(
    run: str | PathLike[str] | Classifier | torch.nn.Module,
    *images: ImageLike,
    top: int = 5,
    device: str = "auto",
    threads: int | None = None,
    max_pixels: int | None = None,
    trust_builder: bool = False,
    precision: str | None = None,
    sets: float | None = None,
) -> "Predictions":
    """Classify images and return the most probable classes of each.

    Args:
        run: A run folder, a network with weights as for `Classifier.load`, a Classifier or an nn.Module.
        images: Images: paths of image files, of folders (all images in them, at any depth) or of .npy files,
            (N, H, W) or (N, H, W, 3) uint8; PIL images; arrays (H, W) or (H, W, 3) uint8, RGB.
        top: Classes per image, at least 1.
        device: "auto", "cpu", "cuda" or "cuda:1"; a Classifier stays on its own device.
        threads: CPU threads, at least 1. None: all cores.
        max_pixels: Largest image that is decoded, pixels. None: `data.image_io.PIXEL_LIMIT`.
        trust_builder: As for `Classifier.load`.
        precision: "fp32" to use the weights of a run even if it has an optimized network, which is used on the CPU
            otherwise.
        sets: Coverage of prediction sets, such as 0.95: the `set` of an image lists the classes, most probable first,
            among which its true class is with at least this probability, if images are drawn like those of the
            calibration. An empty set: no class is probable enough. None: no sets.

    Returns:
        A list of dicts, one per image in the order given: `path`, and `labels`, a list of dicts with `name` and
        `probability` (0 to 1), most probable first. If an image has several labels, all are listed, with `predicted`;
        if the network predicts a number, there are no labels, and `number` has its `name` and `value`. With a
        calibrated run also `unknown`, whether the image resembles the training images of no class: whether
        `unknown_score` exceeds `unknown_threshold`. An image that cannot be read has no labels, and the reason as
        `error`.

    Raises:
        UsageError: There is no image, `top` is below 1, the network, weights or device do not exist, or the run has too
            few calibration images for `sets`.
        RunError: The run is missing or damaged, or gives NaN.
        FetchError: The weights cannot be downloaded.
    """
    torch_device, workers = choose_device(device), set_threads(threads)
    classifier = Classifier.open(run, torch_device, trust_builder=trust_builder, precision=precision)
    inputs, decoding = list_inputs(images, classifier.preprocess.bands), DecodingOptions.up_to(max_pixels)
    batches = _predict_batches(classifier, inputs, decoding, workers, top, sets)
    shown = decoding.with_intensity_range(classifier.preprocess.intensity_range)
    return Predictions([one for batch in batches for one in batch], [image for _, image in inputs], shown)


class Predictions(list[dict[str, Any]]):
    """The predictions for some images: a list of dicts, which a notebook shows with thumbnails.

    Args:
        predictions: For each image its `path` and `labels`, and `error` if it cannot be read.
        images: The images themselves, in the same order.
        decoding: Limits for reading them.
    """

    MAX_THUMBNAILS = 24

    def __init__(
        self,
        predictions: Sequence[dict[str, Any]] = (),
        images: Sequence[Input] = (),
        decoding: DecodingOptions = DEFAULT,
    ) -> None:
        super().__init__(predictions)
        self._images, self._decoding = list(images), decoding

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice, /) -> "Predictions": ...

    def __getitem__(self, index: SupportsIndex | slice, /) -> "dict[str, Any] | Predictions":
        if isinstance(index, slice):
            return Predictions(super().__getitem__(index), self._images[index], self._decoding)
        return super().__getitem__(index)

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the JSON value that `svertka predict --json` prints, a plain list of dicts.

        Returns:
            A dict for each image, as `svertka.predict` describes.
        """
        return list(self)

    def _repr_html_(self) -> str:
        shown = list(self)[: self.MAX_THUMBNAILS]
        # Elements may have been added or removed: then no image belongs to a prediction for certain.
        images = self._images if len(self._images) == len(self) else [ImageError("")] * len(self)
        thumbnails = [
            Thumbnail(_thumbnail_address(image, self._decoding), (one["path"], *_label_lines(one)))
            for one, image in zip(shown, images, strict=False)
        ]
        hidden = len(self) - len(shown)
        return NotebookBlock(
            f"{len(self):,} image{'' if len(self) == 1 else 's'}",
            thumbnails=thumbnails,
            omitted=f"{hidden:,} more images" if hidden else "",
        ).render()


def _label_lines(prediction: dict[str, Any]) -> list[str]:
    if "error" in prediction:
        return [f"cannot be read: {prediction['error']}"]
    return [*(["unknown"] if prediction.get("unknown") else []), *describe_prediction(prediction)]


def describe_prediction(prediction: dict[str, Any]) -> list[str]:
    """Return what is predicted of an image in words: its most probable classes, its labels, or its number."""
    if "number" in prediction:
        return [f"{prediction['number']['name']} {prediction['number']['value']:.6g}"]
    labels = [label for label in prediction["labels"] if label.get("predicted", True)]
    return [f"{label['name']} {label['probability']:.1%}" for label in labels] or ["no label"]


def _thumbnail_address(image: Input, decoding: DecodingOptions) -> str | None:
    try:
        return None if isinstance(image, ImageError) else thumbnail_uri(load_rgb_image(image, THUMBNAIL_SIDE, decoding))
    except SvertkaError:
        return None


def iter_predictions(
    run: str | PathLike[str] | Classifier | torch.nn.Module,
    *images: ImageLike,
    top: int = 5,
    device: str = "auto",
    threads: int | None = None,
    max_pixels: int | None = None,
    trust_builder: bool = False,
    precision: str | None = None,
    sets: float | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Yield what `predict` returns, batch by batch as they are computed, with progress on stderr.

    Arguments and errors are those of `predict`; errors are raised before the first batch.
    """
    torch_device, workers = choose_device(device), set_threads(threads)
    classifier = Classifier.open(run, torch_device, trust_builder=trust_builder, precision=precision)
    inputs, decoding = list_inputs(images, classifier.preprocess.bands), DecodingOptions.up_to(max_pixels)
    yield from _predict_batches(classifier, inputs, decoding, workers, top, sets)


def _predict_batches(
    classifier: Classifier,
    inputs: Sequence[tuple[str, Input]],
    decoding: DecodingOptions,
    workers: int,
    top: int,
    sets: float | None,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the predictions for images with their paths, `BATCH_SIZE` at a time."""
    quantile = None if sets is None else classifier.set_quantile(sets)
    precision = {} if classifier.optimized is None else {"precision": classifier.precision}
    classifier = classifier.optimized_for(len(inputs))
    with ThreadPoolExecutor(workers) as pool, progress("predicting", len(inputs), "images") as shown:
        for start in range(0, len(inputs), BATCH_SIZE):
            some = inputs[start : start + BATCH_SIZE]
            tensors = list(
                pool.map(partial(_preprocess_or_error, classifier.preprocess, decoding), (image for _, image in some))
            )
            good = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
            probabilities, scores = classifier.probabilities_and_unknown_scores(good)
            unknown = [None] * len(good) if scores is None else scores.tolist()
            described = iter(
                classifier.describe(row, top, unknown_score=score, set_quantile=quantile)
                for row, score in zip(probabilities, unknown, strict=True)
            )
            batch: list[dict[str, Any]] = []
            for (path, _), tensor in zip(some, tensors, strict=True):
                if isinstance(tensor, str):
                    batch.append({"path": path, "labels": [], "error": tensor})
                else:
                    batch.append({"path": path, **next(described), **precision})
            yield batch
            shown.advance(len(batch))
    decoding = decoding.with_intensity_range(classifier.preprocess.intensity_range)
    for note in describe_files((image for _, image in inputs), decoding):
        say(note)
    ranges = sample_intensity_ranges((image for _, image in inputs), decoding)
    if sentence := describe_intensity_mismatch(ranges, classifier.preprocess.deep_range):
        say(f"16-bit images {sentence}")
    if classifier.preprocess.bands is not None and (
        sentence := describe_band_mismatch(sample_shares_outside((image for _, image in inputs), decoding))
    ):
        say(sentence)


def _preprocess_or_error(preprocess: Preprocess, decoding: DecodingOptions, image: Input) -> torch.Tensor | str:
    """Return the input of the network, (C, H, W) float32, or why the image cannot be read."""
    try:
        return str(image) if isinstance(image, ImageError) else preprocess(image, decoding)
    except ImageError as error:
        return str(error)


def read_initial_weights(model: registry.Model, text: str) -> LoadedWeights:
    """Return pretrained weights for a model.

    Args:
        model: The model to initialize.
        text: The name of published weights, a run folder or a weight file, tried in this order.

    Raises:
        RunError: The run is damaged.
        UsageError: There are no such weights, or the run is of another network.
        FetchError: The weights cannot be downloaded.
    """
    if not _is_run(text):
        return weights.read_pretrained_weights(model, text)
    folder = parse_path(text)
    config = read_config(folder)
    tensors = _finite(folder / WEIGHTS, read_tensors_and_header(folder / WEIGHTS)[0])
    if config.head not in NATIVE_HEADS and config.model == model.name:  # the backbone fits any head
        path = head_path(model)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{path}.")}
        return LoadedWeights(model, tensors, config.preprocess, None, text, partial=True)
    if config.model == model.name:
        return LoadedWeights(model, tensors, config.preprocess, config.names, text)
    other = registry.MODELS.get(config.model)
    if other is None or model.warm_start is None or other.warm_start is not model.warm_start:
        raise UsageError(f"weights={text} are of {config.model}, not {model.name}; give --model {config.model}")
    shape = len(config.names), config.preprocess.channels, config.preprocess.size
    with meta_device():
        theirs, ours = other.build(*shape), model.build(*shape)
    theirs.load_state_dict(tensors, assign=True)
    note = f"{model.name} starts from some layers of {config.model}, as its paper says"
    return LoadedWeights(
        model, model.warm_start(theirs, ours), config.preprocess, config.names, text, note, partial=True
    )


def _finite(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return `tensors` unchanged.

    Raises:
        RunError: One of them contains NaN or infinity.
    """
    bad = describe_nonfinite(tensors)
    if bad:
        raise RunError(
            f"{path} contains NaN or infinity (in {bad}), so it cannot predict: its training diverged, or the file was "
            "changed; use another run, or train again with a lower learning rate"
        )
    return tensors


def read_model_of_run(text: str, *, trust_builder: bool = False) -> registry.Model | None:
    """Return the model that a run was trained with; None if `text` names no run.

    Args:
        text: A run folder, or anything else that names weights.
        trust_builder: As for `Classifier.load`.

    Raises:
        RunError: The run is damaged.
        UsageError: The network is built by code that is neither svertka's nor trusted.
    """
    return (
        read_config(parse_path(text)).find_model(parse_path(text), trust_builder=trust_builder)
        if _is_run(text)
        else None
    )


def is_classifier_name(text: str) -> bool:
    """Return whether `text` is meant for `Classifier.load`: a run folder or "model:weights"."""
    name, colon, _ = text.partition(":")
    if parse_path(text).is_dir():
        return (parse_path(text) / CONFIG).exists()
    return name in registry.MODELS or (bool(colon) and "/" not in name)


def _is_run(text: str) -> bool:
    return text not in published_weights.WEIGHT_NAMES and parse_path(text).is_dir()


def _with_weights(model: str) -> str:
    return " or ".join(f"{model}:{text}" for text in [*published_weights.PRETRAINED.get(model, {}), "FILE"])


def read_config(folder: Path) -> Config:
    """Read the Config of a run folder.

    Raises:
        RunError: The folder does not exist, or config.json is missing, damaged or made by a newer version.
    """
    path = folder / CONFIG
    if not folder.is_dir():
        raise RunError(f"{folder} is not a run folder; name one that `svertka train` made, such as runs/digits-lenet5")
    runs = sorted(one.parent.name for one in folder.glob(f"*/{CONFIG}"))
    if runs and not path.exists():
        raise RunError(f"{folder} holds several runs, {join_first(runs)}; name one of them, as {folder / runs[0]}")
    try:
        content: Any = read_json(path)
    except FileNotFoundError as error:
        raise RunError(
            f"{folder} holds no {CONFIG}, so it is not a run; name a folder that `svertka train` made"
        ) from error
    except (ValueError, OSError) as error:
        raise unreadable_file_error(path, error) from error
    check_format_version(path, content, FORMAT)
    try:
        config = Config.model_validate(content)
        if config.builder is None:
            registry.find_model(config.model)
    except (ValidationError, ValueError) as error:
        reason = error.errors(include_input=False)[0]["msg"] if isinstance(error, ValidationError) else error
        raise RunError(f"{path} is damaged ({reason}); copy it back or train again") from error
    return config


def check_format_version(path: Path, content: Any, newest: int) -> None:
    """Raise RunError if `content`, read from `path`, has a format newer than `newest`."""
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version > newest:
        raise RunError(
            f"{path} was made by a newer svertka (format {version}, this one reads {newest}); upgrade svertka"
        )
