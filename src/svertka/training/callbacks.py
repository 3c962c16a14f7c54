"""What happens around the loop: validation, the log, the weights kept, checkpoints, and stopping when asked to."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from svertka import distributed
from svertka.classifier import Classifier
from svertka.errors import Interrupted
from svertka.evaluation.evaluate import evaluate_network
from svertka.progress import Progress
from svertka.run import Run
from svertka.signals import Stopped, StopRequest, defer_stop
from svertka.standard_streams import stderr_failure
from svertka.tensor_files import write_tensors
from svertka.training import checkpoint, health
from svertka.training.learner import Learner
from svertka.training.metrics_log import Log
from svertka.training.recipe import Recipe
from svertka.training.training_loop import Look, Observer, State, gradient_ratios

CHECKPOINT_EVERY = 30.0  # seconds between checkpoints, or
CHECKPOINT_COST = 20.0  # times what the last one took, if that is more
RISEN = 1.05  # times the lowest val loss: beyond it a network has begun to overfit
HUGE = 1e300  # nats, in place of an infinite loss, which JSON cannot hold
PROBED = 256  # pictures on which units are looked at


class Recorder(Observer):
    """Keeps `run` up to date while the loop runs; all processes have one, the first writes."""

    def __init__(
        self,
        run: Run,
        classifier: Classifier,
        learner: Learner,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        state: State,
        log: Log | None,
        progress: Progress,
    ) -> None:
        self.run, self.classifier, self.optimizer, self.recipe = run, classifier, optimizer, recipe
        self.learner, self.state, self.log, self.progress = learner, state, log, progress
        self._steps_per_epoch = learner.batches.steps
        self._request = StopRequest()
        before = run.history() if log else []
        self._epochs = [entry for entry in before if entry["kind"] == "epoch" and health.is_complete(entry)]
        self._told = {str(entry.get("finding")) for entry in before if entry["kind"] == "health"}
        self._rate_was_found = any(entry["kind"] == "range_test" for entry in before)
        self._marked = self._saved = time.monotonic()
        self._save_time = 0.0
        self._looked_early = bool(self._epochs)  # at the first batches, where scores die before an epoch is over

    @property
    def network(self) -> nn.Module:
        """The whole network, of which a part may learn."""
        return self.classifier.network

    def looked(self, look: Look) -> None:
        """Write a line and move the bar."""
        elapsed = self._lap()
        self.state.learning_seconds += elapsed
        rate = look.pictures / max(elapsed, 1e-9)
        self.progress.advance(look.steps, f"loss {look.loss:.3f}, error {look.error:.1%}, {rate:,.0f} images/s")
        if self.log:
            self.log.write(
                "step",
                step=look.step,
                epoch=look.step / self._steps_per_epoch,
                loss=look.loss,
                error=look.error,
                learning_rate=look.learning_rate,
                images_per_second=rate,
                seconds=self.state.seconds,
            )
            if look.step < self._steps_per_epoch and not self._looked_early:
                self._looked_early = True
                self._tell([health.describe_constant_scores(self._constant_scores(self._probe()), self.recipe)], None)

    def epoch_ended(self, epoch: int, loss: float, error: float) -> bool:
        """Validate, keep the weights if none are surely better, and say what can be said."""
        gradients = gradient_ratios(self.network)
        val = self.learner.val
        distributed.broadcast_buffers(self.network)  # else each process would validate with its own running statistics
        validation = evaluate_network(self.learner.network, val, self.classifier.names, "scoring val") if val else None
        val_error = validation.top1_error if validation else None
        errors, losses = self.state.val_errors, self.state.val_losses
        if validation is not None:
            errors.append(validation.top1_error)
            losses.append(validation.loss if math.isfinite(validation.loss) else HUGE)
        kept = validation is None or is_as_good(errors, losses, validation.images, self.state.kept_epoch)
        if kept:
            self.state.kept_epoch = epoch
        if self.log:
            if kept:
                write_tensors(self.run.weights, self.network.state_dict())
            val_loss = validation.loss if validation else None
            self._write_epoch(epoch, loss, error, val_loss, val_error, kept, gradients)
        self._lap()
        return self.out_of_patience()

    def out_of_patience(self) -> bool:
        """Whether the val error has not improved for as many epochs as the recipe waits."""
        patience, errors = self.recipe.early_stop, self.state.val_errors
        return patience is not None and bool(errors) and len(errors) - 1 - errors.index(min(errors)) >= patience

    def computed(self) -> None:
        """What is to be done when nothing learns step by step: one look at all pictures, and the end of an epoch."""
        batches = self.learner.batches
        judged = evaluate_network(self.learner.network, batches, self.classifier.names, "scoring train")
        self.state.step = self.state.looked = batches.steps
        self.state.pictures = judged.images
        self.state.learning_seconds = self._lap()
        self.epoch_ended(1, judged.loss, judged.top1_error)

    def between_steps(self, agreed_stop: bool) -> None:
        """Save from time to time; save and raise Interrupted when asked to stop."""
        due = time.monotonic() - self._saved > max(CHECKPOINT_EVERY, CHECKPOINT_COST * self._save_time)
        if agreed_stop or due:
            self.save()
        if agreed_stop:
            epoch = self.state.step / self._steps_per_epoch
            raise Interrupted(
                f"stopped after step {self.state.step} (epoch {epoch:.2f}) and saved; "
                f"continue with: {self.run.resume_command}",
                self._request.exit_code,
            )

    def wants_stop(self) -> bool:
        """Whether Ctrl-C, SIGTERM or SIGHUP came."""
        return self._request.number is not None

    def save(self) -> None:
        """Write the checkpoint."""
        if self.log:
            began = time.monotonic()
            checkpoint.save(self.run.checkpoint, self.network, self.optimizer, self.state, log=self.log.offset)
            self._save_time = time.monotonic() - began
        self._saved = time.monotonic()

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Let Ctrl-C, SIGTERM and SIGHUP ask for a stop during the body; a second Ctrl-C stops at once."""
        with defer_stop() as self._request:
            yield
        if self._request.number is not None:  # in its last moments
            self.save()
            raise Stopped(self._request.number)

    def _write_epoch(
        self,
        epoch: int,
        loss: float,
        error: float,
        val_loss: float | None,
        val_error: float | None,
        kept: bool,
        gradients: dict[str, float],
    ) -> None:
        assert self.log is not None
        entry = {
            "epoch": epoch,
            "step": self.state.step,
            "train_loss": loss,
            "train_error": error,
            "val_loss": val_loss,
            "val_error": val_error,
            "kept": kept,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "images_per_second": self.state.pictures / max(self.state.learning_seconds, 1e-9),
            "seconds": self.state.seconds,
            "gradients": {name: ratio for name, ratio in gradients.items() if math.isfinite(ratio)},
        } | self._looked_into()
        self.log.write("epoch", **entry)
        self._say_what_is_unseen(epoch)
        self._epochs.append(entry)
        seen = "" if val_error is None else f", val loss {val_loss:.4f}, val error {val_error:.2%}"
        self.progress.say(f"epoch {epoch}: loss {loss:.4f}, error {error:.2%}{seen}")
        self._tell(
            health.find_problems(
                self._epochs, len(self.classifier.names), self.recipe, rate_was_found=self._rate_was_found
            ),
            epoch,
        )

    def _tell(self, findings: Sequence[health.Finding | None], epoch: int | None) -> None:
        """Say and log those of `findings` that are of a new kind."""
        assert self.log is not None
        for finding in findings:
            if finding is not None and finding.kind not in self._told:
                self._told.add(finding.kind)
                self.log.write(
                    "health", epoch=epoch, step=self.state.step, finding=finding.kind, sentence=finding.sentence
                )
                self.progress.say(finding.sentence)

    def _say_what_is_unseen(self, epoch: int) -> None:
        """Write into the log, once, that messages are lost."""
        reason = stderr_failure()
        if reason and "unseen" not in self._told and self.log:
            self._told.add("unseen")
            sentence = f"Nothing more could be printed on stderr ({reason}); the training went on."
            self.log.write("health", epoch=epoch, step=self.state.step, finding="unseen", sentence=sentence)

    def _looked_into(self) -> dict[str, Any]:
        """The share of dead units behind each ReLU, and the classes whose score is the same for all of a batch."""
        images = self._probe()
        return {
            "dead": health.measure_dead_units(self.learner.network, images),
            "constant_scores": self._constant_scores(images),
        }

    def _probe(self) -> torch.Tensor:
        """Images, or their features, on which units and scores are looked at."""
        return next((self.learner.val or self.learner.batches).epoch(0)).images[:PROBED]

    def _constant_scores(self, images: torch.Tensor) -> list[str]:
        """The classes whose score is the same for all of `images`."""
        names = self.classifier.names
        return [names[unit] for unit in health.find_constant_scores(self.learner.network, images)]

    def _lap(self) -> float:
        """Seconds since the last call, which also count towards the whole."""
        now = time.monotonic()
        elapsed, self._marked = now - self._marked, now
        self.state.seconds += elapsed
        return elapsed


def is_as_good(val_errors: Sequence[float], val_losses: Sequence[float], pictures: int, kept_epoch: int) -> bool:
    """Whether the last epoch is to be kept in place of `kept_epoch`, from 1; 0: none is kept yet.

    Its error is at most one standard error above the lowest, and its loss has not risen: it is at most a twentieth
    above the lowest loss of all epochs with such an error. The lowest of many noisy errors is low by luck, above all
    where the rate is still high; of epochs that cannot be told apart by their errors the later is taken, whose rate
    has fallen further, unless it has begun to overfit, which the loss shows first. The standard error is that of a
    count of wrong pictures, √count, and one picture at least.

    Source: the one-standard-error rule of Breiman et al. 1984, "Classification and regression trees", §3.4.3.
    """
    lowest = min(val_errors) * pictures
    limit = lowest + math.sqrt(max(lowest, 1.0)) + 1e-9
    alike = {epoch for epoch, error in enumerate(val_errors, start=1) if error * pictures <= limit}
    last = len(val_errors)
    if last not in alike or kept_epoch not in alike or len(val_losses) < last:
        return last in alike  # a run of an older version has no losses of its first epochs
    return val_losses[-1] <= RISEN * min(val_losses[epoch - 1] for epoch in alike)
