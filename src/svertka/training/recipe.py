"""How a network is trained, apart from the data: one value that can be named, written down and repeated."""

from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from svertka.data.augmentation import Augmentation
from svertka.errors import UsageError
from svertka.files import shorten
from svertka.models.heads import HeadKind
from svertka.models.initialization import InitScheme
from svertka.training.lr_schedule import Cosine, Schedule
from svertka.transfer.closed_form_heads import SOLVERS
from svertka.transfer.freeze import ALL, HEAD

HeadWay = Literal["linear", "cosine", "adaptation", "logistic", "nearest-mean"]

MANY = 1_000_000  # more of anything is a slip of the pen, or a file that somebody changed


class Recipe(BaseModel):
    """Settings of stochastic gradient descent, in the order in which one would explain them.

    The loss is cross-entropy, the mean over a batch, in nats.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str = Field(default="", description="paper and section, or who chose it and why")
    start: str | None = Field(default=None, description="the network that is trained first, to start this one from")
    initial: InitScheme | None = Field(default=None, description="first weights; unset: the network's own")
    unfreeze: str = Field(default=ALL, description="what learns: head, last, a number of stages below it, a stage, all")
    head: HeadWay = Field(default="linear", description="the last layer, and whether it is computed or learnt")
    batch_size: int = Field(default=128, ge=1, le=MANY, description="pictures a step, over all processes")
    epochs: float = Field(default=30, gt=0, le=MANY, description="passes over the training part; may end within one")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.1, gt=0, le=MANY, description="the highest learning rate")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="adamw: its β₁")
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0, le=MANY, description="as PyTorch's optimizers define it")
    schedule: Schedule = Cosine()
    warmup: float = Field(default=0.0, ge=0, le=MANY, description="epochs")
    warmup_rate: float | None = Field(default=None, gt=0, le=MANY, description="in warm-up; unset: it rises to lr")
    bias_rate: float = Field(default=1.0, gt=0, le=MANY, description="times lr, for the biases of batch norm")
    computed_first: bool = Field(default=False, description="before all else, the head is computed from the features")
    stage_rate: float = Field(default=1.0, gt=0, le=1, description="times lr, for each stage further below the head")
    gradual: bool = Field(default=False, description="begin with the head; each epoch the next stage below learns too")
    lookahead: int | None = Field(default=None, ge=1, le=MANY, description="steps between two averages of the weights")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    auxiliary: float = Field(default=0.3, ge=0, le=MANY, description="weight of each auxiliary classifier's loss")
    rubbish: float | None = Field(default=None, gt=0, le=MANY, description="the constant j of LeCun et al. 1998, eq. 9")
    bfloat16: bool = Field(default=False, description="products in bfloat16 on a CPU that has it; cuda: always")
    clip: float | None = Field(default=None, gt=0, le=MANY, description="largest norm of the whole gradient")
    accumulate: int = Field(default=1, ge=1, le=MANY, description="parts in which a batch is computed, to save memory")
    class_weights: bool = Field(default=False, description="weigh classes by the inverse of their frequency")
    early_stop: int | None = Field(default=None, ge=1, le=MANY, description="epochs without a better val error")
    augmentations: tuple[Augmentation, ...] = ()
    normalise: Literal["mean", "mean-std"] = Field(default="mean-std", description="where the network names no own way")

    @property
    def is_computed(self) -> bool:
        """Whether nothing is learnt step by step: all that learns is a head that is computed from the features."""
        return self.unfreeze == HEAD and self.head in SOLVERS

    @property
    def head_kind(self) -> HeadKind:
        """Of what kind the last layer is."""
        return "linear" if self.head in SOLVERS else cast(HeadKind, self.head)

    def with_changes(self, **changes: Any) -> "Recipe":
        """This recipe with the settings that are not None changed; a schedule may be given by its kind alone.

        Raises:
            UsageError: a value that a setting does not take.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        if isinstance(changes.get("schedule"), str):
            changes["schedule"] = {"kind": changes["schedule"]}
        try:
            return Recipe.model_validate(self.model_dump() | changes)
        except ValidationError as error:
            raise UsageError(first_fault(error)) from error


def first_fault(error: ValidationError) -> str:
    """The first thing wrong, as "name=value: what was needed"."""
    fault = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in fault["loc"]) or "value"
    needed = fault["msg"][0].lower() + fault["msg"][1:]
    given = "" if isinstance(fault["input"], dict) else f"={shorten(repr(fault['input']))}"
    return f"{name}{given}: {needed}"
