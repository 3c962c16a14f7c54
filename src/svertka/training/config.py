"""What a training was asked to do, and on what: the content of training.json."""

import platform
from importlib.metadata import version
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from svertka.errors import RunError, UsageError
from svertka.files import shorten
from svertka.run import FORMAT, Run
from svertka.training.recipe import MANY, Recipe, first_fault

MOST_SEED = 2**63  # as PyTorch takes them
LARGEST_SIDE = 3072  # pixels of an input; what it is cut out of is larger by up to a third, and 4096 are stored


def versions() -> dict[str, str]:
    """The versions that results depend on."""
    return {"svertka": version("svertka"), "torch": torch.__version__, "python": platform.python_version()}


def refuse_out_of_range(name: str, value: int | None, least: int, most: int) -> None:
    """Raise UsageError unless `value` is None or from `least` to `most`."""
    if value is not None and not least <= value <= most:
        raise UsageError(f"{name}={shorten(str(value))} must be from {least} to {most}")


class Cache(BaseModel):
    """That features of the frozen part are stored: in how many `variants` of each picture, and whether in `half` the
    bytes, as float16."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variants: int = Field(ge=1, le=MANY)
    half: bool


class Settings(BaseModel):
    """All that a resume needs to know apart from the checkpoint; written once, before the first step."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: int = FORMAT
    source: str
    fingerprint: str = Field(description="of the contents, labels and parts of the pictures used")
    parts: dict[str, NonNegativeInt] = Field(description="pictures in each part")
    bad: list[dict[str, str]] = Field(description="pictures left out, as path and reason")
    account: dict[str, Any] = Field(default_factory=dict, description="files of the source that are not used, and why")
    columns: str | None = Field(default=None, description="what the columns of the source mean, as it was asked for")
    group: str | None = Field(default=None, description="regular expression that finds the group in a file name")
    val: float = Field(ge=0, lt=1)
    test: float = Field(ge=0, lt=1)
    turn: int = Field(default=0, ge=0, lt=2**32, description="which of several divisions into parts this is")
    model: str
    weights: str | None = Field(default=None, description="what it started from, as it was asked for; None: fresh")
    boxes: str | None = Field(default=None, description="where objects are; what is learnt from are then patches")
    recipe_name: str
    recipe: Recipe
    stored_side: int = Field(
        ge=1, le=16384, description="side of the squares that training draws its crops from, pixels"
    )
    seed: int = Field(ge=0, lt=MOST_SEED)
    # mps: of runs begun when it was offered, which go on on another device.
    device: str = Field(pattern=r"^(cpu|mps|cuda(:[0-9]{1,3})?)$")
    threads: int = Field(ge=1)
    memory_format: str = Field(pattern="^(contiguous_format|channels_last)$")
    accelerate: bool = Field(default=False, description="whether svertka.conv computes the convolutions")
    prefetch: bool
    cache: Cache | None = Field(default=None, description="of what does not learn; None: it runs in every step")
    cache_limit: int | None = Field(ge=0)
    max_pixels: int | None = Field(default=None, ge=1, description="of a picture; None: the usual limit")
    versions: dict[str, str] = Field(default_factory=versions)

    @classmethod
    def of(cls, run: Run) -> "Settings":
        """The settings of an existing run.

        Raises:
            RunError: training.json is missing, damaged or made by a newer version.
        """
        content: dict[str, Any] = run.settings()
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise RunError(f"{run.training} is damaged ({first_fault(error)}); copy it back or train again") from error

    @property
    def layout(self) -> torch.memory_format:
        """`memory_format` as PyTorch's."""
        return torch.channels_last if self.memory_format == "channels_last" else torch.contiguous_format
