"""The progress of a training as server-sent events: a part of the page, whenever the files of the run change."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from starlette.concurrency import run_in_threadpool

from svertka.errors import SvertkaError
from svertka.evaluation.cross_validation import CrossValidation
from svertka.evaluation.training_curves import TrainingCurves, read_metric
from svertka.pages.number_format import NBSP, format_percent
from svertka.pages.templates import render_template
from svertka.progress import format_duration
from svertka.run import Run
from svertka.studio.run_list import RunList
from svertka.studio.training_process import State, TrainingProcesses

EVERY = 0.4  # seconds between two looks at the files
STREAM_SECONDS = 40.0  # of one response; the browser then asks again, since the server limits the time of requests
RETRY_MILLISECONDS = 500  # until it does


@dataclass(frozen=True)
class RunProgress:
    """The state of a run, for a page.

    Attributes:
        name: Its name.
        state: Its state.
        values: What the template shows of it.
    """

    name: str
    state: State
    values: dict[str, Any]

    @property
    def html(self) -> Markup:
        """The part of the page."""
        return render_template("studio_progress.html", run_name=self.name, state=self.state, **self.values)


def read_progress(runs: RunList, processes: TrainingProcesses, name: str) -> RunProgress:
    """Read the state of the run `name` from its files."""
    run, state, log = Run(runs.folder / name), processes.state(name), processes.log(name)
    curves, problem = TrainingCurves([]), ""
    if run.config.exists():  # written before the first line of metrics.jsonl
        try:
            curves = TrainingCurves.of_run(run)
        except SvertkaError as error:
            problem = str(error)
    total = _epoch_count(run)
    marks = curves.epochs or curves.steps
    done = max((read_metric(line, "epoch") for line in (*curves.epochs, *curves.steps)), default=0.0)
    left = curves.seconds / done * (total - done) if total and marks and 0 < done < total else None
    return RunProgress(
        name,
        state,
        {
            "plan": log.plan,
            "notes": log.notes,
            "working": log.working if not marks else "",
            "error": problem or (log.error if state in ("failed", "stopped") else ""),
            "findings": [sentence for _, sentence in curves.findings()],
            "curves": curves.curves_html() if marks else Markup(),
            "is_fitted": curves.is_fitted,
            "share": min(1.0, done / total) if total else 0.0,
            "epochs": f"{done:.0f} of {total:g}" if total else "",
            "left": format_duration(left) if left is not None and state == "training" else "",
            "errors": describe_errors(run) if state == "finished" else [],
        },
    )


def describe_errors(run: Run) -> list[str]:
    """Return the errors of a finished run in words, the one to rely on first."""
    try:
        result, validated = run.result(), run.cross_validation()
    except SvertkaError:
        return []
    sentences = []
    if "sentence" in result:  # several labels, or a number
        sentences = [f"{result['part']}: {result['sentence']}"]
        return sentences if validated is None else [CrossValidation.model_validate(validated).sentence, *sentences]
    if validated is not None:
        error, low, high = map(format_percent, (validated["error"], *validated["interval"]))
        sentences.append(
            f"{error} of new pictures are expected to be wrong (95{NBSP}% interval {low} to {high}, from "
            "cross-validation)"
        )
    for key, part in (("test_error", "test"), ("val_error", "validation")):
        if result[key] is not None:
            sentences.append(f"{format_percent(result[key])} of the {part} pictures are wrong")
    return sentences


async def stream_progress(
    runs: RunList, processes: TrainingProcesses, name: str, seen: str, stopping: asyncio.Event
) -> AsyncIterator[str]:
    """Yield server-sent events until the training or the server stops: "progress" with HTML, and "end".

    Args:
        runs: The runs.
        processes: Their trainings.
        name: Name of the run.
        seen: Id of the last event that the browser has.
        stopping: Set when the server stops.
    """
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    ends = time.monotonic() + STREAM_SECONDS
    while time.monotonic() < ends and not stopping.is_set():
        key = await run_in_threadpool(_state_key, runs, processes, name)
        if key != seen:
            seen, progress = key, await run_in_threadpool(read_progress, runs, processes, name)
            yield _event("progress", str(progress.html), key)
            if progress.state not in ("preparing", "training"):
                yield _event("end", progress.state, key)
                return
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), EVERY)


def _event(kind: str, text: str, key: str) -> str:
    lines = "".join(f"data: {line}\n" for line in text.splitlines() or [""])
    return f"id: {key}\nevent: {kind}\n{lines}\n"


def _state_key(runs: RunList, processes: TrainingProcesses, name: str) -> str:
    """Return a text that changes whenever the progress does."""
    run, sizes = Run(runs.folder / name), []
    for file in (run.metrics, runs.log_file(name), run.report):
        try:
            sizes.append(file.stat().st_size)
        except OSError:
            sizes.append(-1)
    return f"{processes.state(name)}-{'-'.join(map(str, sizes))}"


def _epoch_count(run: Run) -> float:
    """Return the number of epochs of a training; 0 if it is not known yet."""
    try:
        epochs = run.settings()["recipe"]["epochs"]
    except (SvertkaError, KeyError, TypeError):
        return 0.0
    return float(epochs) if isinstance(epochs, int | float) else 0.0
