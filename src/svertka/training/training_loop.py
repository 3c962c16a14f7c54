"""The training loop: steps of the optimizer over batches; callbacks do everything else."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from svertka import distributed
from svertka.data.loader import Batch, BatchLoader
from svertka.device import autocast
from svertka.errors import TrainingError
from svertka.tasks import SINGLE_LABEL, AnyTask
from svertka.training.batch_norm_momentum import BatchNormMomentum
from svertka.training.eager_optimizers import EagerAdamW, EagerSGD
from svertka.training.lr_schedule import learning_rate
from svertka.training.recipe import Recipe
from svertka.training.synchronized_batch_norm import count_images_as
from svertka.training.weight_average import WeightAverage

LOG_EVERY = 20  # steps between two readings of the loss; each waits for the device
WARMUP_SHARE = 0.25  # largest share of all steps that the warm-up takes
DIVERGED = 10.0  # loss relative to the first reading


@dataclass
class TrainingProgress:
    """Progress of a training; with the network and the optimizer, all that a resume needs.

    Attributes:
        step: Number of steps done.
        looked: The step at which the loss was last read.
        sums: Sums of loss (nats), wrong images and images over this epoch, up to the last reading.
        recent: The same since the last reading.
        first_loss: Mean loss at the first reading.
        val_errors: Validation error after each epoch.
        val_losses: Validation loss after each epoch, nats.
        kept_epoch: The epoch, from 1, whose weights the run holds; 0 for the weights at the start.
        seconds: Time of training and validation.
        learning_seconds: Time of training alone.
        pictures: Images trained on in that time.
    """

    step: int = 0
    looked: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    recent: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    first_loss: float | None = None
    val_errors: list[float] = field(default_factory=list)
    val_losses: list[float] = field(default_factory=list)
    kept_epoch: int = 0
    seconds: float = 0.0
    learning_seconds: float = 0.0
    pictures: int = 0


@dataclass(frozen=True)
class StepMetrics:
    """Means over the images of the last steps.

    Attributes:
        step: Number of steps done.
        steps: Number of steps that the means are over.
        loss: Mean loss, nats.
        error: Error, 0 to 1.
        learning_rate: Learning rate of the last step.
        images: Number of images.
    """

    step: int
    steps: int
    loss: float
    error: float
    learning_rate: float
    images: int


class Callback:
    """What the training loop calls; the methods of this class do nothing."""

    def on_metrics(self, metrics: StepMetrics) -> None:
        """Handle the metrics of the last steps: every LOG_EVERY steps and at the end of an epoch."""

    def on_epoch_end(self, epoch: int, loss: float, error: float) -> bool:
        """Handle the end of an epoch, or of the part of one that ends the training.

        Args:
            epoch: Number of the epoch, from 1.
            loss: Mean training loss over the epoch, nats.
            error: Training error over the epoch, 0 to 1.

        Returns:
            Whether to end the training.
        """
        return False

    def save_or_stop(self, *, stop: bool) -> None:
        """Save the training if it is time; called after each reading of the loss and before a stop.

        Args:
            stop: Whether any process was asked to stop; the same in all processes. Then raise Interrupted.
        """

    def wants_stop(self) -> bool:
        """Return whether this process was asked to stop."""
        return False


def fit(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: BatchLoader,
    recipe: Recipe,
    state: TrainingProgress,
    callback: Callback,
    average: WeightAverage | None = None,
    task: AnyTask = SINGLE_LABEL,
) -> None:
    """Train a network in place, from `state.step` to the end of the recipe.

    In a distributed training every process calls this; gradients are averaged.

    Args:
        network: The network.
        optimizer: Its optimizer.
        batches: The training set.
        recipe: The recipe.
        state: Progress of the training, updated in place.
        callback: Called during the training.
        average: Moving average of the weights, updated in place.
        task: What the network predicts.

    Raises:
        TrainingError: The loss diverged; the message names the steps between which it happened.
    """
    loss_of = Loss(recipe, task)
    total, warmup = count_total_and_warmup_steps(recipe, batches.steps)
    recent = torch.tensor(state.recent, dtype=torch.float64, device=batches.device)
    network.train()
    momentum = BatchNormMomentum(network)
    replica = None
    while state.step < total:
        epoch, first = divmod(state.step, batches.steps)
        if unfreeze_scheduled(optimizer, epoch) or replica is None:
            replica = distributed.data_parallel(network, bfloat16=recipe.bfloat16_gradients)
        for batch in batches.epoch(epoch, first):
            rate = learning_rate(
                recipe.schedule,
                recipe.lr,
                step=state.step,
                total=total,
                warmup=warmup,
                warmup_rate=recipe.warmup_rate,
                val_errors=state.val_errors,
            )
            set_learning_rate(optimizer, rate)
            with momentum.raised():
                recent += take_step(replica, optimizer, batch, loss_of, recipe)
            state.step += 1
            if recipe.lookahead and (state.step % recipe.lookahead == 0 or state.step == total):
                update_lookahead(optimizer, state.step / total, recipe.lookahead)
            if average is not None:
                average.update(state.step)
            epoch_over = state.step % batches.steps == 0 or state.step == total
            reading_due = epoch_over or state.step % LOG_EVERY == 0
            stop = callback.wants_stop()
            if reading_due:
                *seen, stops = distributed.all_reduce(torch.cat([recent, recent.new_tensor([stop])])).tolist()
                recent.zero_()
                stop = stops > 0
                _read_metrics(state, seen, rate, callback)
            elif distributed.world_size() > 1:
                stop = False  # other processes learn of it at the next reading
            if epoch_over:
                loss, wrong, count = state.sums
                state.sums = [0.0, 0.0, 0.0]
                if callback.on_epoch_end(epoch + 1, loss / count, wrong / count):
                    return
                network.train()
            if reading_due or stop:
                state.recent = recent.tolist()
                callback.save_or_stop(stop=stop)
            if state.step == total:
                return


class Loss(nn.Module):
    """Loss of a task, such as the cross-entropy, as in a recipe, summed over a batch, nats.

    With `recipe.rubbish` = j there is one more class, of constant logit −j, that no image belongs to. Logits that are
    distances then have to be small, not only smaller than those of other classes.

    Args:
        recipe: The recipe.
        task: What the network predicts.

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", eq. 9, for the rubbish class.
    """

    def __init__(self, recipe: Recipe, task: AnyTask = SINGLE_LABEL) -> None:
        super().__init__()
        self.task = task
        self.rubbish, self.smoothing = recipe.rubbish, recipe.label_smoothing
        self.plain = self.rubbish is None and not self.smoothing

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss, a scalar.

        Args:
            logits: Logits (B, K).
            labels: Targets of the task, (B, …).
            weights: Weight of each row (B,). None: all 1.
        """
        if self.rubbish is not None:
            logits = F.pad(logits, (0, 1), value=-self.rubbish)
        return self.task.loss(logits, labels, weights, self.smoothing)

    def of_batch(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss of a batch, a scalar; that of a mixed image is the mean over both of its labels.

        Args:
            logits: Logits (B, K).
            batch: The batch.
        """
        mixed = batch.mixed
        if mixed is None:
            loss: torch.Tensor = self(logits, batch.labels, batch.weights)
            return loss
        own = mixed.shares if batch.weights is None else mixed.shares * batch.weights
        other = 1 - mixed.shares if mixed.weights is None else (1 - mixed.shares) * mixed.weights
        both: torch.Tensor = self(logits, batch.labels, own) + self(logits, mixed.labels, other)
        return both

    def shown(self, loss: torch.Tensor, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the plain loss (nats), the sum of the errors of the images, and the number of images, (3,) float64.

        The plain loss is comparable with the validation loss. For a mixed image it is the mean over both of its labels,
        and the error is that of the label with the larger share.

        Args:
            loss: What `of_batch` returned.
            logits: Logits (B, K), without gradient.
            batch: The batch.
        """
        labels, mixed = batch.labels, batch.mixed
        if mixed is not None:
            scores = logits.float()
            loss = self.task.loss(scores, labels, mixed.shares) + self.task.loss(scores, mixed.labels, 1 - mixed.shares)
            is_other = (mixed.shares < 0.5).view(-1, *[1] * (labels.dim() - 1))
            labels = torch.where(is_other, mixed.labels, labels)
        elif not self.plain or batch.weights is not None:
            loss = self.task.loss(logits.float(), labels)
        wrong = self.task.errors(logits, labels).sum()
        return torch.stack([loss.detach().double(), wrong.double(), wrong.new_tensor(len(labels)).double()])


def count_total_and_warmup_steps(recipe: Recipe, steps_per_epoch: int) -> tuple[int, int]:
    """Return the number of steps of a training, and of its warm-up, which takes at most a quarter of them."""
    total = max(1, round(recipe.epochs * steps_per_epoch))
    return total, min(round(recipe.warmup * steps_per_epoch), round(WARMUP_SHARE * total))


def take_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, loss_of: Loss, recipe: Recipe
) -> torch.Tensor:
    """Take a step of the optimizer.

    Args:
        network: The network.
        optimizer: Its optimizer.
        batch: The share of this process of a batch; it may be empty.
        loss_of: The loss.
        recipe: The recipe.

    Returns:
        Loss (nats), sum of the errors of the images and number of images of this process, (3,) float64.
    """
    optimizer.zero_grad(set_to_none=True)
    world, weight = distributed.world_size(), distributed.world_size() / batch.count
    # As many parts in every process, of two images for batch norm; others may be unreadable, or with other processes.
    smallest = len(batch.labels) if world == 1 else batch.count // world
    count = min(recipe.accumulate, max(1, smallest // 2))
    needed = 1 if batch.count == 1 and world == 1 else 2 * count
    if not len(batch.labels):  # no image is left for this process, but the others wait for its gradient
        images, labels = (
            batch.images.new_zeros(needed, *batch.images.shape[1:]),
            batch.labels.new_zeros(needed, *batch.labels.shape[1:]),
        )
        batch, weight = Batch(images, labels, batch.indices, batch.count), 0.0
    copies = math.ceil(needed / len(batch.labels))
    if copies > 1:  # batch norm needs more than one value per channel
        batch, weight = batch.repeat(copies), weight / copies
    parts = batch.split(count)
    seen = []
    for number, part in enumerate(parts, 1):
        is_last = number == len(parts)
        with nullcontext() if is_last else distributed.without_gradient_sync(network):
            with autocast(part.images.device, bfloat16=recipe.bfloat16), count_images_as((weight > 0) / copies):
                outputs = network(part.images)
                logits, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
                main_loss = loss_of.of_batch(logits, part)
                loss: Any = main_loss + recipe.auxiliary * sum(loss_of.of_batch(one, part) for one in auxiliary)
            (loss * weight).backward()
        seen.append(loss_of.shown(main_loss, logits.detach(), part))
    if recipe.clip is not None:
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
    optimizer.step()
    return torch.stack(seen).sum(0) * (weight > 0) / copies


def gradient_to_weight_ratios(network: nn.Module) -> dict[str, float]:
    """Return the norm of the gradient divided by that of the weights, for each weight tensor, by name."""
    return {
        name: float(weight.grad.norm() / weight.detach().norm().clamp_min(1e-12))
        for name, weight in network.named_parameters()
        if weight.grad is not None and weight.dim() > 1
    }


def make_optimizer(
    network: nn.Module, recipe: Recipe, depths: Mapping[str, int] | None = None
) -> torch.optim.Optimizer:
    """Return the recipe's optimizer of the parameters that require gradients.

    With `recipe.bias_rate` the biases of batch norm have a higher learning rate, and a weight decay that is lower by
    the same factor.

    Args:
        network: The network.
        recipe: The recipe.
        depths: Number of stages that each parameter lies below the head, by name, for `recipe.stage_rate` and
            `recipe.gradual`. None: 0.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", §3.4 (biases); Howard & Ruder 2018,
        "Universal language model fine-tuning", §3.2, §3.3 (stages).
    """
    biases = {
        id(layer.bias)
        for layer in network.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and recipe.bias_rate != 1
    }
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            depth = (depths or {}).get(name, 0)
            members.setdefault((depth, id(parameter) in biases), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for (depth, is_bias), parameters in sorted(members.items(), key=lambda item: item[0]):
        faster = recipe.bias_rate if is_bias else 1.0
        groups.append(
            {
                "params": parameters,
                "rate_factor": faster * recipe.stage_rate**depth,
                "begins": depth if recipe.gradual else 0,
                "weight_decay": recipe.weight_decay / faster,
            }
        )
    options: dict[str, Any] = {"lr": recipe.lr, "fused": True}
    if recipe.optimizer == "adamw":
        return EagerAdamW(groups, betas=(recipe.momentum, 0.999), **options)
    return EagerSGD(groups, momentum=recipe.momentum, nesterov=recipe.nesterov, **options)


def unfreeze_scheduled(optimizer: torch.optim.Optimizer, epoch: int) -> bool:
    """Train only the parameter groups scheduled up to `epoch`, from 0; return whether any group changed."""
    changed = False
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            changed |= parameter.requires_grad != (group["begins"] <= epoch)
            parameter.requires_grad_(group["begins"] <= epoch)
    return changed


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of each parameter group to `rate` times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


@torch.no_grad()
def update_lookahead(optimizer: torch.optim.Optimizer, progress: float, steps: int) -> None:
    """Average the weights with their slow copies, in place, and continue from the average.

    The slow copies keep a share of 0.95^steps · progress³ of themselves. They are part of the optimizer's state.

    Args:
        optimizer: The optimizer.
        progress: Share of the training that is done, 0 to 1.
        steps: Number of steps since the last update.

    Source: Zhang et al. 2019, "Lookahead optimizer", algorithm 1; the share is from Jordan 2024, §3.4.
    """
    share = 0.95**steps * progress**3
    for group in optimizer.param_groups:
        for weights in group["params"]:
            slow = optimizer.state[weights].setdefault("slow", weights.detach().clone())
            slow.lerp_(weights, 1 - share)
            weights.copy_(slow)


def _read_metrics(state: TrainingProgress, sums: list[float], rate: float, callback: Callback) -> None:
    """Check the loss of the last steps, add it to the sums of the epoch and pass the metrics on.

    Raises:
        TrainingError: The loss diverged.
    """
    loss, wrong, count = sums
    mean = loss / count
    if state.first_loss is None:
        state.first_loss = mean
    if not math.isfinite(mean) or mean > DIVERGED * max(state.first_loss, 1.0):
        change = f"rose to {mean:.3g}" if math.isfinite(mean) else "became infinite or NaN"
        raise TrainingError(
            f"the loss {change} between steps {state.looked} and {state.step}, at learning rate {rate:.3g}"
        )
    state.sums = [a + b for a, b in zip(state.sums, sums, strict=True)]
    state.pictures += round(count)
    steps, state.looked = state.step - state.looked, state.step
    callback.on_metrics(StepMetrics(state.step, steps, mean, wrong / count, rate, round(count)))
