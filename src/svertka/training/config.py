"""The content of training.json: all settings of a training, and the data that it was started with."""

import platform
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from svertka.errors import RunError, UsageError
from svertka.evaluation.cross_validation import CrossValidation
from svertka.package_version import VERSION
from svertka.run import FORMAT, Run
from svertka.text_width import shorten
from svertka.training.recipe import MANY, Recipe, first_validation_error

MAX_SEED = 2**63 - 1  # PyTorch's limit
MAX_SIDE = 3072  # pixels of a network's input; it is cut out of squares of up to 4096


def get_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return {"svertka": VERSION, "torch": torch.__version__, "python": platform.python_version()}


def check_range(name: str, value: int | None, least: int, most: int) -> None:
    """Raise UsageError unless `value` is None or from `least` to `most`."""
    if value is not None and not least <= value <= most:
        raise UsageError(f"{name}={shorten(str(value))} must be from {least} to {most}")


class FeatureCacheSettings(BaseModel):
    """How the features of frozen layers are stored.

    Attributes:
        variants: Augmented variants of each image.
        half: Whether features are float16 instead of float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    variants: int = Field(ge=1, le=MANY)
    half: bool


class RunSettings(BaseModel):
    """All that a resume needs besides the checkpoint; written before the first step."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: int = FORMAT
    source: str
    fingerprint: str = Field(description="hash of the contents, labels and parts of the images")
    parts: dict[str, NonNegativeInt] = Field(description="images in each part")
    bad: list[dict[str, str]] = Field(description="path and reason of each unreadable image")
    account: dict[str, Any] = Field(
        default_factory=dict, description="files of the source that are not used, with reasons"
    )
    job: str | None = Field(
        default=None,
        description="hash of torchrun's --rdzv-id and of the options; a restart of the job continues the run",
    )
    columns: str | None = Field(default=None, description="the option columns")
    names: list[str] | None = Field(default=None, description="class names that shards were given by the option names")
    group: str | None = Field(default=None, description="the option group")
    val: float = Field(ge=0, lt=1)
    test: float = Field(ge=0, lt=1)
    turn: int = Field(default=0, ge=0, lt=2**32, description="the option split_seed")
    model: str
    weights: str | None = Field(default=None, description="the option weights; None: fresh weights")
    boxes: str | None = Field(default=None, description="the option boxes")
    unknown: str | None = Field(default=None, description="the option unknown")
    recipe_name: str
    recipe: Recipe
    stored_side: int = Field(ge=1, le=16384, description="side of the squares that random crops are taken from, pixels")
    seed: int = Field(ge=0, le=MAX_SEED)
    # mps: runs of earlier versions, which resume on another device.
    device: str = Field(pattern=r"^(cpu|mps|cuda(:[0-9]{1,3})?)$")
    threads: int = Field(ge=1)
    hardware: str | None = Field(default=None, max_length=200, description="CPU threads or GPU that computed, in words")
    memory_format: str = Field(pattern="^(contiguous_format|channels_last)$")
    accelerate: bool = Field(default=False, description="whether svertka.accelerate was used")
    prefetch: bool
    cache: FeatureCacheSettings | None = Field(
        default=None, description="stored features; None: frozen layers run in every step"
    )
    feature_store: str | None = Field(default=None, description="the option feature_store")
    cache_limit: int | None = Field(ge=0, description="bytes; None: a share of the free disk")
    gpu_decode: bool = Field(default=False, description="whether JPEGs of the training set are decoded on the GPU")
    max_pixels: int | None = Field(default=None, ge=1, description="the option max_pixels")
    cross_validation: CrossValidation | None = Field(
        default=None, description="of the head, on few images; added after the first checkpoint. None: there is none"
    )
    versions: dict[str, str] = Field(default_factory=get_versions)

    @classmethod
    def of(cls, run: Run) -> "RunSettings":
        """Return the settings of an existing run.

        Raises:
            RunError: training.json is missing, damaged or written by a newer version.
        """
        content: dict[str, Any] = run.settings()
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise RunError(
                f"{run.training} is damaged ({first_validation_error(error)}); copy it back or train again"
            ) from error

    @property
    def layout(self) -> torch.memory_format:
        """The memory format as a PyTorch constant."""
        return torch.channels_last if self.memory_format == "channels_last" else torch.contiguous_format
