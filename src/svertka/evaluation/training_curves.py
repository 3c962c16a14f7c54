"""Training curves as HTML, from the lines of metrics.jsonl."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from markupsafe import Markup

from svertka.classifier import read_config
from svertka.pages.axes import Scale, fit_scale
from svertka.pages.number_format import MISSING, NBSP, format_brief, format_percent, format_three_digits
from svertka.pages.svg_curves import CursorReadout, Line, Panel, XAxis, render_curves
from svertka.pages.templates import render_template
from svertka.progress import format_duration
from svertka.run import Run
from svertka.tasks import SINGLE_LABEL, AnyTask, Regression

Entry = Mapping[str, Any]

MAX_POINTS = 400  # of a curve
FEW_RATES = 8  # up to so many rates they are a step schedule, drawn on a log axis
MAX_FINDINGS = 12  # sentences shown
HEIGHT, LOW_HEIGHT = 224, 72  # pixels
LOSS_UNIT = ", nats"
COLUMNS = (
    "epoch", "train loss, nats", "val loss, nats", "train error", "val error", "learning rate", "pictures/s", "time",
)  # fmt: skip


class TrainingCurves:
    """The training curves of a training.

    Args:
        lines: Lines of metrics.jsonl, oldest first; missing, null and NaN values are left out of the curves.
        task: What the network predicts.

    Attributes:
        epochs: Lines of the epochs; none if the head was fitted at once.
        is_fitted: Whether the head was fitted at once, without steps.
        steps: Lines of the steps.
        loss_unit: ", nats", or empty where the loss has no unit.
        error_title: What the errors of these lines are.
        is_share: Whether these errors are shares, 0 to 1.
    """

    def __init__(self, lines: Iterable[Entry], task: AnyTask = SINGLE_LABEL) -> None:
        self.loss_unit = "" if isinstance(task, Regression) else LOSS_UNIT
        self.is_share = not isinstance(task, Regression)
        self.error_title = {"single-label": "Top-1 error", "multi-label": "Wrong labels"}.get(
            task.kind, "Mean absolute error"
        )
        self._lines = [line for line in lines if isinstance(line.get("kind"), str)]
        epochs = [line for line in self._of("epoch") if math.isfinite(read_metric(line, "epoch"))]
        self.steps = [line for line in self._of("step") if math.isfinite(read_metric(line, "epoch"))]
        self.is_fitted = any(line.get("fitted") is True for line in epochs)
        self.epochs = [] if self.is_fitted else epochs

    @classmethod
    def of_run(cls, run: Run) -> "TrainingCurves":
        """Return the curves of a run, in the terms of its task.

        Raises:
            RunError: The run is missing or damaged.
        """
        return cls(run.history(), read_config(run.folder).task)

    @property
    def seconds(self) -> float:
        """Duration of the training, seconds; 0 before it began."""
        times = (read_metric(line, "seconds") for line in self.epochs + self.steps)
        return max((time for time in times if math.isfinite(time)), default=0.0)

    @property
    def best_epoch(self) -> Entry | None:
        """The epoch whose weights the run holds; None before the first epoch or without validation set."""
        chosen = [line for line in self.epochs if line.get("kept") and math.isfinite(read_metric(line, "val_error"))]
        return chosen[-1] if chosen else None

    def findings(self) -> list[tuple[str, str]]:
        """Return when each finding was made ("epoch 12") and its sentence, each sentence once."""
        said: dict[str, str] = {}
        for line in self._of("health"):
            said.setdefault(str(line.get("sentence", "")), format_epoch(read_metric(line, "epoch")))
        return [(when, sentence) for sentence, when in said.items()][:MAX_FINDINGS]

    def curves_html(self) -> Markup:
        """Return loss, top-1 error and learning rate by epoch as HTML; empty before the first step."""
        epochs = subsample_log_lines(self.epochs, keep=self.best_epoch)
        marks = epochs or subsample_log_lines(self.steps)
        if not marks:
            return Markup()
        rates = subsample_log_lines(self.steps) or epochs
        smooth = bucket_means(self.steps, ("epoch", "loss", "error"))
        panels = [
            _panel(f"Loss{self.loss_unit}", "loss", epochs, smooth, "log", format_brief),
            _panel(
                self.error_title,
                "error",
                epochs,
                smooth,
                "root",
                (lambda error: f"{100 * error:g}{NBSP}%") if self.is_share else format_brief,
            ),
            _rate_panel(rates),
        ]
        last = max(read_metric(line, "epoch") for line in (*epochs, *rates))
        scale = Scale("linear", 0.0, last or 1.0)
        axis = XAxis("epoch", scale, scale.ticks(5, whole=scale.high >= 2))
        readings = [self._reading(line) for line in marks]
        mark = marks.index(self.best_epoch) if self.best_epoch is not None else None
        label = f"kept: {format_epoch(read_metric(self.best_epoch, 'epoch'))}" if self.best_epoch is not None else ""
        return render_curves(panels, axis, readings, mark, label)

    def table_html(self) -> Markup:
        """Return the numbers of the curves as an HTML table; empty before the first epoch."""
        shown = subsample_log_lines(self.epochs, keep=self.best_epoch)
        if not shown:
            return Markup()
        title = "The numbers" if len(shown) == len(self.epochs) else f"The numbers of {len(shown)} of these epochs"
        rows = [
            (
                f"{read_metric(line, 'epoch'):g}",
                (
                    format_three_digits(read_metric(line, "train_loss")),
                    format_three_digits(read_metric(line, "val_loss")),
                    self._format_error(read_metric(line, "train_error")),
                    self._format_error(read_metric(line, "val_error")),
                    format_brief(read_metric(line, "learning_rate")),
                    _whole(read_metric(line, "images_per_second")),
                    _time(read_metric(line, "seconds")),
                ),
            )
            for line in shown
        ]
        columns = [name.replace(LOSS_UNIT, self.loss_unit) for name in COLUMNS]
        return render_template("epochs_table.html", title=title, columns=columns, rows=rows)

    def lr_finder_curve(self) -> tuple[list[tuple[float, float]], float]:
        """Return learning rates above 0 with their losses, as the finder measured them, and the rate that it chose.

        Losses and the chosen rate may be NaN. There are no points if the finder did not run.
        """
        line = next(reversed(self._of("range_test")), {})
        rates, losses = (
            values if isinstance(values := line.get(name), list) else [] for name in ("learning_rate", "loss")
        )
        points = [(_float(x), _float(y)) for x, y in zip(rates, losses, strict=False) if _float(x) > 0]
        return points, read_metric(line, "chosen")

    def lr_finder_html(self) -> Markup:
        """Return the curve of the learning-rate finder as HTML; empty if it did not run."""
        points, chosen = self.lr_finder_curve()
        if len(points) < 2:
            return Markup()
        rates, losses = [x for x, _ in points], [y for _, y in points]
        scale = Scale("log", min(rates), max(rates) * 1.001)
        panel = Panel(
            f"Loss{self.loss_unit}",
            fit_scale(losses, "log"),
            [Line("loss", rates, losses, "solid")],
            format_brief,
            HEIGHT,
        )
        readings = [CursorReadout(x, f"learning rate {format_brief(x)}", [format_three_digits(y)]) for x, y in points]
        nearest = min(range(len(rates)), key=lambda k: abs(math.log(rates[k] / chosen))) if chosen > 0 else None
        return render_curves(
            [panel], XAxis("rate", scale, scale.ticks(4)), readings, nearest, f"chosen: {format_brief(chosen)}"
        )

    def _format_error(self, error: float) -> str:
        return format_percent(error) if self.is_share else format_three_digits(error)

    def _of(self, kind: str) -> list[Entry]:
        return [line for line in self._lines if line["kind"] == kind]

    def _reading(self, line: Entry) -> CursorReadout:
        train_loss, train_error = ("loss", "error") if line["kind"] == "step" else ("train_loss", "train_error")
        return CursorReadout(
            read_metric(line, "epoch"),
            format_epoch(read_metric(line, "epoch")),
            [
                f"train {format_three_digits(read_metric(line, train_loss))}"
                + _also("val", format_three_digits(read_metric(line, "val_loss"))),
                f"train {self._format_error(read_metric(line, train_error))}"
                + _also("val", self._format_error(read_metric(line, "val_error"))),
                format_brief(read_metric(line, "learning_rate")),
            ],
        )


def read_metric(line: Entry, name: str) -> float:
    """Return the number called `name` in a line of metrics.jsonl; NaN if it is missing or null."""
    return _float(line.get(name))


def format_epoch(epoch: float) -> str:
    """Return "epoch 14", or "epoch 2.37" within an epoch; empty for NaN."""
    if not math.isfinite(epoch):
        return ""
    return f"epoch{NBSP}{epoch:.0f}" if f"{epoch:.2f}".endswith(".00") else f"epoch{NBSP}{epoch:.2f}"


def subsample_log_lines(lines: Sequence[Entry], keep: Entry | None = None) -> list[Entry]:
    """Return about 400 of `lines` at most, evenly spaced, with the last one and `keep` among them."""
    stride = math.ceil(len(lines) / MAX_POINTS)
    return [line for k, line in enumerate(lines) if (len(lines) - 1 - k) % stride == 0 or line is keep]


def bucket_means(lines: Sequence[Entry], names: Sequence[str]) -> dict[str, list[float]]:
    """Return the means of the values called `names` over 400 stretches of `lines`; NaN for an empty stretch."""
    ends = (
        [round(k * len(lines) / MAX_POINTS) for k in range(MAX_POINTS + 1)]
        if len(lines) > MAX_POINTS
        else range(len(lines) + 1)
    )
    means: dict[str, list[float]] = {name: [] for name in names}
    for start, end in pairwise(ends):
        for name in names:
            there = [x for line in lines[start:end] if math.isfinite(x := read_metric(line, name))]
            means[name].append(sum(there) / len(there) if there else math.nan)
    return means


def _panel(
    title: str,
    name: str,
    epochs: Sequence[Entry],
    smooth: Mapping[str, Sequence[float]],
    bent: Literal["log", "root"],
    text: Callable[[float], str],
) -> Panel:
    """Return the panel of `name` ("loss" or "error"): train and val by epoch over the faint curve of the steps."""
    x = [read_metric(line, "epoch") for line in epochs]
    train = [read_metric(line, f"train_{name}") for line in epochs]
    val = [read_metric(line, f"val_{name}") for line in epochs]
    steps = smooth[name]
    lines = [Line("train", x, train, "solid"), Line("val", x, val, "dashed")]
    if epochs:
        # The axis includes the highest step, not the lowest: a single lucky batch must not stretch it.
        values = [*train, *val, max((y for y in steps if math.isfinite(y)), default=math.nan)]
        lines.insert(0, Line("", smooth["epoch"], steps, "faint"))
    else:
        values = list(steps)
        lines = [Line("train", smooth["epoch"], steps, "solid")]
    return Panel(title, fit_scale(values, bent), lines, text, HEIGHT)


def _rate_panel(lines: Sequence[Entry]) -> Panel:
    rates = [read_metric(line, "learning_rate") for line in lines]
    finite = [rate for rate in rates if math.isfinite(rate)]
    scale = fit_scale(finite, "log") if len(set(finite)) <= FEW_RATES else Scale("linear", 0.0, max(finite))
    line = Line("", [read_metric(line, "epoch") for line in lines], rates, "steps")
    return Panel("Learning rate", scale, [line], format_brief, LOW_HEIGHT)


def _also(name: str, text: str) -> str:
    return "" if text == MISSING else f", {name} {text}"


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _whole(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else MISSING


def _time(seconds: float) -> str:
    return format_duration(seconds) if math.isfinite(seconds) else MISSING
