"""(network, batches) → weights. Everything else about a training happens around this file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from svertka import distributed
from svertka.data.loader import Batch, BatchLoader
from svertka.device import autocast
from svertka.errors import TrainingError
from svertka.training.lr_schedule import learning_rate
from svertka.training.recipe import Recipe

LOG_EVERY = 20  # steps between two looks at the loss; each look waits for the device
WARMUP_SHARE = 0.25  # of all steps, at most, over which the rate rises
DIVERGED = 10.0  # times the loss of the first look


@dataclass
class State:
    """How far a training is; with the network and the optimizer, all that a resume needs.

    `sums` and `recent` are (loss, wrong, pictures) summed over this epoch up to the last look, and since then.
    `looked`: the step of that look. `seconds` count validation too, `learning_seconds` do not; `pictures` were learnt
    from in the latter. `kept_epoch`: whose weights the run holds, from 1; 0 are those that it began with.
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
class Look:
    """What was seen at step `step`: mean loss (nats) and error (0 to 1) of the pictures of the last `steps` steps."""

    step: int
    steps: int
    loss: float
    error: float
    learning_rate: float
    pictures: int


class Observer:
    """Told what happens, and asked what else to do; the methods of this one do nothing."""

    def looked(self, look: Look) -> None:
        """Every LOG_EVERY steps and at the end of an epoch."""

    def epoch_ended(self, epoch: int, loss: float, error: float) -> bool:
        """After each pass (or the part of one that ends the training); True ends the training here.

        `loss`, `error`: means over the pass, while the network was learning.
        """
        return False

    def between_steps(self, agreed_stop: bool) -> None:
        """After each look, and when asked to stop, which all processes agree on; may save, may raise Interrupted."""

    def wants_stop(self) -> bool:
        """Whether this process was asked to stop."""
        return False


def fit(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: BatchLoader,
    recipe: Recipe,
    state: State,
    observer: Observer,
) -> None:
    """Train `network` in place from `state.step` to the end of `recipe`.

    Of several processes each calls this; gradients are then means over them.

    Raises:
        TrainingError: the loss diverged; the message names the steps between which it happened.
    """
    loss_of = Loss(recipe)
    total, warmup = steps_of(recipe, batches.steps)
    recent = torch.tensor(state.recent, dtype=torch.float64, device=batches.device)
    network.train()
    replica = None
    while state.step < total:
        epoch, first = divmod(state.step, batches.steps)
        if thaw(optimizer, epoch) or replica is None:
            replica = distributed.data_parallel(network)
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
            set_rate(optimizer, rate)
            recent += take_step(replica, optimizer, batch, loss_of, recipe)
            state.step += 1
            if recipe.lookahead and (state.step % recipe.lookahead == 0 or state.step == total):
                look_ahead(optimizer, state.step / total, recipe.lookahead)
            epoch_over = state.step % batches.steps == 0 or state.step == total
            look_due = epoch_over or state.step % LOG_EVERY == 0
            stop = observer.wants_stop()
            if look_due:
                *seen, stops = distributed.all_reduce(torch.cat([recent, recent.new_tensor([stop])])).tolist()
                recent.zero_()
                stop = stops > 0
                _look(state, seen, rate, observer)
            elif distributed.world_size() > 1:
                stop = False  # the other processes do not know of it before the next look
            if epoch_over:
                loss, wrong, count = state.sums
                state.sums = [0.0, 0.0, 0.0]
                if observer.epoch_ended(epoch + 1, loss / count, wrong / count):
                    return
                network.train()
            if look_due or stop:
                state.recent = recent.tolist()
                observer.between_steps(stop)
            if state.step == total:
                return


class Loss(nn.Module):
    """The sum over a batch of the cross-entropy that `recipe` asks for, nats.

    With `recipe.rubbish` = j the classes have one more beside them, of constant logit −j, which no picture is of:
    logits that are distances then have to be small, not only smaller than the others.

    Source: LeCun et al. 1998, eq. 9, for the latter.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.rubbish, self.smoothing = recipe.rubbish, recipe.label_smoothing
        self.plain = self.rubbish is None and not self.smoothing

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """A scalar, for `logits` (B, K) and `labels` (B,); `weights`: what each row counts, (B,)."""
        if self.rubbish is not None:
            logits = F.pad(logits, (0, 1), value=-self.rubbish)
        if weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.smoothing, reduction="sum")
        return weights @ F.cross_entropy(logits, labels, label_smoothing=self.smoothing, reduction="none")

    def shown(
        self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, *, weighted: bool = False
    ) -> torch.Tensor:
        """What to show of a batch with this `loss`: the plain cross-entropy, which val's can be held against."""
        if self.plain and not weighted:
            return loss.detach()
        return F.cross_entropy(logits.detach().float(), labels, reduction="sum")


def steps_of(recipe: Recipe, steps_per_epoch: int) -> tuple[int, int]:
    """Steps of the whole training, and of its warm-up, which is a quarter of a short training at most."""
    total = max(1, round(recipe.epochs * steps_per_epoch))
    return total, min(round(recipe.warmup * steps_per_epoch), round(WARMUP_SHARE * total))


def take_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, loss_of: Loss, recipe: Recipe
) -> torch.Tensor:
    """One step of the optimizer on `batch`; returns (cross-entropy, wrong, pictures) of this process, (3,) float64."""
    optimizer.zero_grad(set_to_none=True)
    images, labels, row_weights = batch.images, batch.labels, batch.weights
    weight = distributed.world_size() / batch.count
    if not len(labels):  # this process has no picture left, but the others wait for its gradient
        images, labels, row_weights, weight = images.new_zeros(2, *images.shape[1:]), labels.new_zeros(2), None, 0.0
    copies = 2 if len(labels) == 1 and distributed.world_size() > 1 else 1
    if copies > 1:  # batch norm may find only one value per channel in one picture
        images, labels, weight = images.repeat(2, *[1] * (images.dim() - 1)), labels.repeat(2), weight / 2
        row_weights = None if row_weights is None else row_weights.repeat(2)
    seen = []
    parts = min(recipe.accumulate, max(1, len(images) // 2))  # of two pictures at least, for the sake of batch norm
    split_weights = [None] * parts if row_weights is None else row_weights.tensor_split(parts)
    for some_images, some_labels, some_weights in zip(
        images.tensor_split(parts), labels.tensor_split(parts), split_weights, strict=True
    ):
        with autocast(images.device, bfloat16=recipe.bfloat16):
            outputs = network(some_images)
            logits, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
            main_loss = loss_of(logits, some_labels, some_weights)
            loss = main_loss + recipe.auxiliary * sum(loss_of(one, some_labels, some_weights) for one in auxiliary)
        (loss * weight).backward()
        wrong = (logits.detach().argmax(1) != some_labels).sum()
        shown = loss_of.shown(main_loss, logits, some_labels, weighted=some_weights is not None)
        seen.append(torch.stack([shown.double(), wrong.double(), wrong.new_tensor(len(some_labels)).double()]))
    if recipe.clip is not None:
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
    optimizer.step()
    return torch.stack(seen).sum(0) * (weight > 0) / copies


def gradient_ratios(network: nn.Module) -> dict[str, float]:
    """Root mean square of the gradient over that of the weight, for each weight tensor with a gradient, in order."""
    return {
        name: float(weight.grad.norm() / weight.detach().norm().clamp_min(1e-12))
        for name, weight in network.named_parameters()
        if weight.grad is not None and weight.dim() > 1
    }


def make_optimizer(
    network: nn.Module, recipe: Recipe, depths: Mapping[str, int] | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that learn.

    The biases of batch norm, groups of their own where `recipe.bias_rate` is not 1, learn so much faster, but are
    not pulled towards zero faster: their weight decay is as much smaller (Jordan 2024 §3.4). `depths`: how many stages
    each parameter lies below the head, for `recipe.stage_rate` and `recipe.gradual` (Howard & Ruder 2018, "Universal
    language model fine-tuning", §3.2, §3.3).
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
        return torch.optim.AdamW(groups, betas=(recipe.momentum, 0.999), **options)
    return torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.nesterov, **options)


def thaw(optimizer: torch.optim.Optimizer, epoch: int) -> bool:
    """Let those parameters learn whose time has come by `epoch`, from 0, and no others; whether that changes any."""
    changed = False
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            changed |= parameter.requires_grad != (group["begins"] <= epoch)
            parameter.requires_grad_(group["begins"] <= epoch)
    return changed


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next steps be taken at the learning rate `rate`, times each group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


@torch.no_grad()
def look_ahead(optimizer: torch.optim.Optimizer, progress: float, steps: int) -> None:
    """Draw the weights and their slow copies together, in place; at progress 1 the weights become the slow ones.

    The slow ones keep a share of 0.95^`steps` · `progress`³ of themselves and take the rest from the weights, which go
    on from there. They lie with the optimizer's state.

    Source: Zhang et al. 2019, "Lookahead optimizer", algorithm 1; the share is Jordan's (2024, §3.4).
    """
    share = 0.95**steps * progress**3
    for group in optimizer.param_groups:
        for weights in group["params"]:
            slow = optimizer.state[weights].setdefault("slow", weights.detach().clone())
            slow.lerp_(weights, 1 - share)
            weights.copy_(slow)


def _look(state: State, seen: list[float], rate: float, observer: Observer) -> None:
    loss, wrong, count = seen
    mean = loss / count
    if state.first_loss is None:
        state.first_loss = mean
    if not math.isfinite(mean) or mean > DIVERGED * max(state.first_loss, 1.0):
        what = f"rose to {mean:.3g}" if math.isfinite(mean) else "became infinite or NaN"
        raise TrainingError(
            f"the loss {what} between steps {state.looked} and {state.step}, at learning rate {rate:.3g}"
        )
    state.sums = [a + b for a, b in zip(state.sums, seen, strict=True)]
    state.pictures += round(count)
    steps, state.looked = state.step - state.looked, state.step
    observer.looked(Look(state.step, steps, mean, wrong / count, rate, round(count)))
