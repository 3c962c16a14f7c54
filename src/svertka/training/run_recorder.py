"""The callback that records a run: validation, log, best weights, checkpoints, and stops on request."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from svertka import distributed
from svertka.classifier import Classifier
from svertka.errors import Interrupted
from svertka.evaluation.evaluate import evaluate_network
from svertka.graph.summary import Layer
from svertka.progress import Progress, format_duration
from svertka.run import Run
from svertka.signals import Stopped, StopRequest, record_stop
from svertka.standard_streams import stderr_failure
from svertka.tensor_files import write_tensors
from svertka.training import checkpoint, health
from svertka.training.metrics_log import MetricsLog
from svertka.training.recipe import Recipe
from svertka.training.trained_part_and_batches import TrainingInputs
from svertka.training.training_loop import Callback, StepMetrics, TrainingProgress, gradient_to_weight_ratios
from svertka.training.weight_average import WeightAverage
from svertka.transfer.freeze import PartiallyFrozen

CHECKPOINT_EVERY = 30.0  # seconds between checkpoints, or
CHECKPOINT_COST = 20.0  # times the duration of the last one, whichever is longer
RISEN = 1.05  # validation loss, relative to the lowest, that counts as overfitting
NORMALIZATIONS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
HUGE = 1e300  # nats; replaces an infinite loss, which JSON cannot hold


class Recorder(Callback):
    """Keeps a run folder up to date during training. Each process has one; only the first writes.

    Args:
        run: The run.
        classifier: Its classifier.
        inputs: The trained part of the network, and the data.
        optimizer: The optimizer.
        recipe: The recipe.
        state: Progress of the training.
        log: The training log; None in all processes but the first.
        progress: The progress bar.
        average: Moving average of the weights, which is validated and saved in their place.
    """

    def __init__(
        self,
        run: Run,
        classifier: Classifier,
        inputs: TrainingInputs,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        state: TrainingProgress,
        log: MetricsLog | None,
        progress: Progress,
        average: WeightAverage | None = None,
    ) -> None:
        self.run, self.classifier, self.optimizer, self.recipe = run, classifier, optimizer, recipe
        self.inputs, self.state, self.log, self.progress = inputs, state, log, progress
        self.average = average
        self._steps_per_epoch = inputs.batches.steps
        self._epoch_count = 1 if recipe.is_computed else math.ceil(recipe.epochs)
        self._request = StopRequest()
        before = run.history() if log else []
        self._epochs = [entry for entry in before if entry["kind"] == "epoch" and health.has_all_metrics(entry)]
        self._told = {str(entry.get("finding")) for entry in before if entry["kind"] == "health"}
        self._unreadable = {
            (str(entry.get("path")), str(entry.get("reason"))) for entry in before if entry["kind"] == "unreadable"
        }
        self._rate_was_found = any(entry["kind"] == "range_test" for entry in before)
        self._is_normalized = any(isinstance(layer, NORMALIZATIONS) for layer in classifier.network.modules())
        self._marked = self._saved = time.monotonic()
        self._save_time = 0.0
        self._checked_early = bool(self._epochs)  # scores may die within the first steps
        self._layers: list[Layer] | None = None  # of the network that is checked, once they are known

    @property
    def network(self) -> nn.Module:
        """The whole network, including frozen layers."""
        return self.classifier.network

    def on_metrics(self, metrics: StepMetrics) -> None:
        """Log the metrics and advance the progress bar."""
        elapsed = self._lap()
        self.state.learning_seconds += elapsed
        rate, task = metrics.images / max(elapsed, 1e-9), self.classifier.task
        self.progress.advance(
            metrics.steps,
            f"{rate:,.0f} {self.inputs.unit}/s, loss {metrics.loss:.3f}, error {task.format_error(metrics.error, 1)}",
        )
        if self.log:
            self.log.write(
                "step",
                step=metrics.step,
                epoch=metrics.step / self._steps_per_epoch,
                loss=metrics.loss,
                error=metrics.error,
                learning_rate=metrics.learning_rate,
                images_per_second=rate,
                seconds=self.state.seconds,
            )
            if metrics.step < self._steps_per_epoch and not self._checked_early:
                self._checked_early = True
                self._tell([self._check_first_scores()], None)

    def on_epoch_end(self, epoch: int, loss: float, error: float) -> bool:
        """Validate, keep the weights unless earlier ones are better, log the epoch, and report problems."""
        gradients = gradient_to_weight_ratios(self.network)
        distributed.broadcast_buffers(self.network)  # else each process would use its own
        with nullcontext() if self.average is None else self.average.applied():
            self._finish_epoch(epoch, loss, error, gradients)
        self._lap()
        return self.is_out_of_patience()

    def _finish_epoch(self, epoch: int, loss: float, error: float, gradients: dict[str, float]) -> None:
        """Validate the weights, keep them unless earlier ones are better, and log the epoch."""
        val = self.inputs.val
        validation, task = None, self.classifier.task
        if val:
            validation = evaluate_network(self.inputs.network, val, self.classifier.names, "scoring val", task)
        val_error = validation.error if validation else None
        errors, losses = self.state.val_errors, self.state.val_losses
        if validation is not None:
            errors.append(validation.error)
            losses.append(validation.loss if math.isfinite(validation.loss) else HUGE)
        if validation is None:
            kept = True
        elif task.is_single_label:
            kept = is_epoch_as_good(errors, losses, validation.images, self.state.kept_epoch)
        else:
            kept = losses[-1] <= min(losses)
        if kept:
            self.state.kept_epoch = epoch
        self._log_unreadable(epoch)
        if self.log:
            if kept:
                write_tensors(self.run.weights, self.network.state_dict())
            val_loss = validation.loss if validation else None
            self._write_epoch(epoch, loss, error, val_loss, val_error, kept, gradients)

    def summary(self) -> str:
        """Return the lowest val error, or loss, and the kept epoch in words; empty if fewer than two were validated."""
        errors, losses = self.state.val_errors, self.state.val_losses
        if len(errors) < 2:
            return ""
        if not self.classifier.task.is_single_label:
            return (
                f"{len(errors)} epochs in {format_duration(self.state.seconds)}: lowest val loss {min(losses):.4g}, "
                f"kept epoch {self.state.kept_epoch}"
            )
        best, kept = errors.index(min(errors)), self.state.kept_epoch
        why = "" if kept in (0, best + 1) else explain_kept_epoch(errors, self.state.val_losses, best, kept - 1)
        return (
            f"{len(errors)} epochs in {format_duration(self.state.seconds)}: lowest val error {min(errors):.2%} "
            f"(epoch {best + 1}), kept epoch {kept}{why}"
        )

    def is_out_of_patience(self) -> bool:
        """Return whether the validation error, or loss, has not improved for `recipe.early_stop` epochs."""
        is_single = self.classifier.task.is_single_label
        patience, errors = self.recipe.early_stop, self.state.val_errors if is_single else self.state.val_losses
        return patience is not None and bool(errors) and len(errors) - 1 - errors.index(min(errors)) >= patience

    def on_head_computed(self) -> None:
        """Evaluate a directly fitted head on the training set, as the end of the only epoch."""
        batches = self.inputs.batches
        judged = evaluate_network(
            self.inputs.network, batches, self.classifier.names, "scoring train", self.classifier.task
        )
        self.state.step = self.state.looked = batches.steps
        self.state.pictures = judged.images
        self.state.learning_seconds = self._lap()
        self.on_epoch_end(1, judged.loss, judged.error)

    def save_or_stop(self, *, stop: bool) -> None:
        """Save from time to time; on a stop, save and raise Interrupted."""
        due = time.monotonic() - self._saved > max(CHECKPOINT_EVERY, CHECKPOINT_COST * self._save_time)
        if stop or due:
            self.save()
        if stop:
            epoch = self.state.step / self._steps_per_epoch
            raise Interrupted(
                f"stopped after step {self.state.step} (epoch {epoch:.2f}) and saved; "
                f"continue with: {self.run.resume_command}",
                self._request.exit_code,
            )

    def wants_stop(self) -> bool:
        """Return whether Ctrl-C, SIGTERM or SIGHUP was received."""
        return self._request.number is not None

    def save(self) -> None:
        """Write a checkpoint."""
        if self.log:
            began = time.monotonic()
            checkpoint.save(
                self.run.checkpoint, self.network, self.optimizer, self.state, self.average, log=self.log.offset
            )
            self._save_time = time.monotonic() - began
        self._saved = time.monotonic()

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Turn Ctrl-C, SIGTERM and SIGHUP into a request to stop; a second Ctrl-C stops at once."""
        with record_stop() as self._request:
            yield
        if self._request.number is not None:  # after the last step
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
            "learning_rate": math.nan if self.recipe.is_computed else self.optimizer.param_groups[0]["lr"],
            "images_per_second": self.state.pictures / max(self.state.learning_seconds, 1e-9),
            "seconds": self.state.seconds,
            "gradients": {name: ratio for name, ratio in gradients.items() if math.isfinite(ratio)},
        } | self._unit_statistics()
        if self.recipe.is_computed:
            entry["fitted"] = True
        self.log.write("epoch", **entry)
        self._log_lost_messages(epoch)
        self._epochs.append(entry)
        task = self.classifier.task
        facts = [f"train error {task.format_error(error)}", f"train loss {loss:.4f}"]
        if val_error is not None:
            facts = [f"val error {task.format_error(val_error)}", facts[0], f"val loss {val_loss:.4f}", facts[1]]
        self.progress.update(f"epoch {epoch} of {self._epoch_count}: {', '.join(facts)}")
        self._tell(
            health.find_problems(
                self._epochs,
                len(self.classifier.names) if task.is_single_label else None,
                self.recipe,
                rate_was_found=self._rate_was_found,
                is_normalized=self._is_normalized,
            ),
            epoch,
        )

    def _tell(self, findings: Sequence[health.Finding | None], epoch: int | None) -> None:
        """Print and log the findings of a new kind."""
        assert self.log is not None
        for finding in findings:
            if finding is not None and finding.kind not in self._told:
                self._told.add(finding.kind)
                self.log.write(
                    "health", epoch=epoch, step=self.state.step, finding=finding.kind, sentence=finding.sentence
                )
                self.progress.say(finding.sentence)

    def _log_lost_messages(self, epoch: int) -> None:
        """Log, once, that stderr cannot be written."""
        reason = stderr_failure()
        if reason and "unseen" not in self._told and self.log:
            self._told.add("unseen")
            sentence = f"stderr cannot be written ({reason}), so that messages are lost; training continued."
            self.log.write("health", epoch=epoch, step=self.state.step, finding="unseen", sentence=sentence)

    def _log_unreadable(self, epoch: int) -> None:
        """Log the images that processes could not read in this epoch, each once."""
        loaders = [self.inputs.batches, *([self.inputs.val] if self.inputs.val else [])]
        own = {image for loader in loaders for image in loader.unreadable.values()}
        found = set().union(*distributed.all_gather(own)) - self._unreadable
        self._unreadable |= found
        if self.log is None:
            return
        for path, reason in sorted(found):
            self.log.write("unreadable", epoch=epoch, step=self.state.step, path=path, reason=reason)
            if (path, reason) not in own:  # another process met it
                self.progress.say(f"left out: {path} cannot be read: {reason}")

    def _unit_statistics(self) -> dict[str, Any]:
        """Return the share of dead units after each trained ReLU, and the classes whose scores are constant."""
        network, images = self._probe()
        if health.are_all_the_same(images):  # which says nothing about the network
            return {"dead": {}, "constant_scores": []}
        if self._layers is None:
            self._layers = health.list_measured_layers(network, images)
        dead = health.measure_dead_units(network, images, self._layers)
        if network is not self.network:  # the functions of a part have other names than those of the whole
            modules = dict(self.network.named_modules())
            dead = {name: share for name, share in dead.items() if name in modules}
        return {"dead": dead, "constant_scores": self._constant_scores(network, images)}

    def _check_first_scores(self) -> health.Finding | None:
        """Return the finding that images, or the scores of some classes, are the same; None if they differ."""
        network, images = self._probe()
        if health.are_all_the_same(images):
            return health.describe_same_images()
        return health.describe_constant_scores(self._constant_scores(network, images), self.recipe)

    @torch.no_grad()
    def _probe(self) -> tuple[nn.Module, torch.Tensor]:
        """Return the network, or its trainable part, and a sample of its inputs on which it is checked."""
        network, batches = self.inputs.network, self.inputs.val or self.inputs.batches
        # Images in order may all be of one class.
        places = np.linspace(0, len(batches.indices) - 1, min(len(batches.indices), batches.batch_size, health.PROBED))
        images, _ = batches.read(batches.indices[places.astype(np.int64)], 0)
        if isinstance(network, PartiallyFrozen):
            return network.trainable, network.frozen(images)
        return network, images

    def _constant_scores(self, network: nn.Module, images: torch.Tensor) -> list[str]:
        """Return the names of the classes whose score is the same for all of `images`."""
        names = self.classifier.names
        return [names[unit] for unit in health.find_constant_scores(network, images)]

    def _lap(self) -> float:
        """Return the seconds since the last call and add them to the total time."""
        now = time.monotonic()
        elapsed, self._marked = now - self._marked, now
        self.state.seconds += elapsed
        return elapsed


def explain_kept_epoch(errors: Sequence[float], losses: Sequence[float], best: int, kept: int) -> str:
    """Return why `is_epoch_as_good` kept epoch `kept`, not `best`, both from 0: the end of a line."""
    same = errors[kept] == errors[best]
    near = "whose error is the same" if same else f"whose error of {errors[kept]:.2%} is within one standard error"
    if kept > best:
        return f", {near}, after more training"
    return f", {near}, and whose loss is lower" if len(losses) > best and losses[kept] < losses[best] else f", {near}"


def is_epoch_as_good(val_errors: Sequence[float], val_losses: Sequence[float], images: int, kept_epoch: int) -> bool:
    """Return whether to keep the weights of the last epoch instead of those of `kept_epoch`.

    They are kept if the error is at most one standard error above the lowest, and the loss at most 5 % above the lowest
    loss of all epochs with such an error. The lowest of many noisy errors is low by chance, above all at a high
    learning rate. Among epochs that do not differ by more than noise the latest is kept, whose learning rate is lowest,
    unless its loss shows that it overfits. The standard error of a count of wrong images is its square root, at least
    one image.

    Args:
        val_errors: Validation error after each epoch, 0 to 1.
        val_losses: Validation loss after each epoch, nats; runs of earlier versions lack some.
        images: Number of validation images.
        kept_epoch: The epoch whose weights are kept, from 1; 0 for none.

    Source: the one-standard-error rule of Breiman et al. 1984, "Classification and regression trees", §3.4.3.
    """
    lowest = min(val_errors) * images
    limit = lowest + math.sqrt(max(lowest, 1.0)) + 1e-9
    alike = {epoch for epoch, error in enumerate(val_errors, start=1) if error * images <= limit}
    last = len(val_errors)
    if last not in alike or kept_epoch not in alike or len(val_losses) < last:
        return last in alike  # a run of an earlier version lacks the losses of its first epochs
    return val_losses[-1] <= RISEN * min(val_losses[epoch - 1] for epoch in alike)
