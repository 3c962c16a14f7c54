"""The settings of a training, apart from the data: a value with a name that can be stored and repeated."""

from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from svertka.data.augmentation import Augmentation
from svertka.data.mixup_and_cutmix import MixupAndCutmix
from svertka.errors import UsageError
from svertka.models.head_kinds import HeadKind
from svertka.models.initialization import InitScheme
from svertka.text_width import shorten
from svertka.training.lr_schedule import Cosine, Schedule
from svertka.transfer.freeze import ALL, HEAD
from svertka.transfer.logistic_and_nearest_mean_heads import SOLVERS

HeadWay = Literal["linear", "cosine", "adaptation", "logistic", "nearest-mean"]

SHOULD_BE = "Input should be "  # how pydantic begins most sentences
COMPARISONS = {
    "greater than or equal to": "at least",
    "greater than": "above",
    "less than or equal to": "at most",
    "less than": "below",
}
MANY = 1_000_000  # larger values are typing errors, or come from a file that was changed


class Recipe(BaseModel):
    """The settings of stochastic gradient descent, from the weights to start from to the normalization.

    The loss is the cross-entropy, in nats, averaged over a batch. Fields are checked when a recipe is made; a value out
    of range raises pydantic's ValidationError, which is a ValueError.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str = Field(default="", description="paper and section, or who chose the values and why")
    start: str | None = Field(
        default=None, description="network that is trained first, whose weights this one starts from"
    )
    initial: InitScheme | None = Field(default=None, description="weight initialization; None: the network's own")
    unfreeze: str = Field(
        default=ALL,
        description="layers to train: head, last, a number of stages below the head, a stage's name, or all",
    )
    head: HeadWay = Field(
        default="linear",
        description="last layer: linear, cosine or adaptation; or logistic or nearest-mean, fitted to the features",
    )
    batch_size: int = Field(default=128, ge=1, le=MANY, description="images per step, over all processes")
    epochs: float = Field(
        default=30, gt=0, le=MANY, description="passes over the training set; the last may be partial"
    )
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="optimizer")
    lr: float = Field(default=0.1, gt=0, le=MANY, description="highest learning rate")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum; for adamw its β₁")
    nesterov: bool = Field(default=False, description="use Nesterov momentum")
    weight_decay: float = Field(
        default=0.0, ge=0, le=MANY, description="weight decay, as PyTorch's optimizers define it"
    )
    schedule: Schedule = Field(default=Cosine(), description="learning rate schedule")
    warmup: float = Field(default=0.0, ge=0, le=MANY, description="warm-up, epochs")
    warmup_rate: float | None = Field(
        default=None, gt=0, le=MANY, description="learning rate during warm-up; None: rises linearly to lr"
    )
    bias_rate: float = Field(
        default=1.0, gt=0, le=MANY, description="factor of the learning rate of batch norm's biases"
    )
    computed_first: bool = Field(
        default=False, description="compute the head from the features before the first step of training"
    )
    stage_rate: float = Field(
        default=1.0, gt=0, le=1, description="factor of the learning rate for each stage further below the head"
    )
    gradual: bool = Field(default=False, description="unfreeze one more stage each epoch, from the head down")
    ema: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share that an exponential moving average of the weights keeps at each step, such as 0.999; the "
        "average is validated and saved. 0 or None: the weights themselves",
    )
    mixup: float = Field(
        default=0.0, ge=0, le=100, description="mix pairs of images, with weights from Beta(mixup, mixup); 0: do not"
    )
    cutmix: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="paste a rectangle of another image, of an area from Beta(cutmix, cutmix); 0: do not",
    )
    lookahead: int | None = Field(default=None, ge=1, le=MANY, description="steps between updates of averaged weights")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="label smoothing")
    auxiliary: float = Field(default=0.3, ge=0, le=MANY, description="weight of each auxiliary classifier's loss")
    rubbish: float | None = Field(default=None, gt=0, le=MANY, description="the constant j of LeCun et al. 1998, eq. 9")
    bfloat16: bool = Field(default=False, description="multiply in bfloat16 on CPUs with AVX512-BF16; CUDA always does")
    clip: float | None = Field(default=None, gt=0, le=MANY, description="largest norm of the gradient")
    accumulate: int = Field(
        default=1, ge=1, le=MANY, description="number of parts in which a batch is computed, to save memory"
    )
    sync_batch_norm: bool = Field(
        default=False, description="normalize by the statistics of the whole batch, over all processes"
    )
    bfloat16_gradients: bool = Field(default=False, description="send gradients between processes in bfloat16")
    class_weights: bool = Field(default=False, description="weight classes by inverse frequency")
    early_stop: int | None = Field(
        default=None, ge=1, le=MANY, description="stop after this many epochs without a lower validation error"
    )
    augmentations: tuple[Augmentation, ...] = Field(default=(), description="random augmentations, in order")
    normalize: Literal["mean", "mean-std"] = Field(
        default="mean-std", description="statistics of the training set to normalize by, if the network names none"
    )

    @property
    def is_computed(self) -> bool:
        """Whether the head is fitted directly to the features and nothing else is trained: there are no steps."""
        return self.unfreeze == HEAD and self.head in SOLVERS

    @property
    def averages_weights(self) -> bool:
        """Whether the moving average of the weights is validated and saved instead of them."""
        return bool(self.ema) and not self.is_computed

    @property
    def mixing(self) -> MixupAndCutmix:
        """How images are mixed in pairs; not at all if batches hold one image, or the head is fitted directly."""
        return MixupAndCutmix() if self.is_computed or self.batch_size == 1 else MixupAndCutmix(self.mixup, self.cutmix)

    @property
    def head_kind(self) -> HeadKind:
        """The kind of the last layer."""
        return "linear" if self.head in SOLVERS else cast(HeadKind, self.head)

    def with_changes(self, **changes: Any) -> "Recipe":
        """Return a copy with other settings.

        Args:
            changes: Values by field; None keeps the value of this recipe. `schedule` may be a name, such as "cosine".

        Returns:
            The changed recipe.

        Raises:
            UsageError: A value is out of range, or there is no such field.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        if isinstance(changes.get("schedule"), str):
            changes["schedule"] = {"kind": changes["schedule"]}
        try:
            return Recipe.model_validate(self.model_dump() | changes)
        except ValidationError as error:
            raise UsageError(first_validation_error(error)) from error


def first_validation_error(error: ValidationError) -> str:
    """Return the first error of a validation, such as "lr=-1 must be above 0"."""
    fault = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in fault["loc"]) or "value"
    value, needed = fault["input"], fault["msg"]
    given = "" if isinstance(value, dict) else f"={shorten(f'{value:g}' if isinstance(value, float) else repr(value))}"
    if not needed.startswith(SHOULD_BE):
        return f"{name}{given}: {needed[0].lower()}{needed[1:]}"
    needed = needed.removeprefix(SHOULD_BE)
    for comparison, words in COMPARISONS.items():
        needed = needed.replace(comparison, words)
    return f"{name}{given} must be {needed}"
