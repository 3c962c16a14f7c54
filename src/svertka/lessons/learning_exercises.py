"""Exercises of the notebook "Is it learning?"."""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.lessons.answer_checks import check_function, check_number, to_number
from svertka.lessons.faulty_trainings import FEW, HIGH, LOW, RIGHT, SHUFFLED, WHO_DID_WHAT

# What in its curves tells each training.
SIGNS = {
    RIGHT: "both losses fall, and end low",
    HIGH: "the loss jumps up at the start and stays there, because every step leaps over the minimum",
    LOW: "both losses stay close to ln 10 = 2.3, and they are equal",
    FEW: "the training loss goes to 0, and the validation loss does not follow",
    SHUFFLED: "the training loss falls slowly, and the validation loss rises above ln 10",
}


def check_first_loss(answer: Any) -> str | None:
    """7.1: the first loss with 1000 classes."""
    hints = {
        math.log(10): "This is right for 10 classes.",
        math.log2(1000): "These are bits. The loss takes the natural logarithm.",
        3.0: "The loss takes the natural logarithm, not that of base 10.",
        0.001: "This is the probability of the true class. The loss is −ln of it.",
        -math.log(1000): "The loss is −ln p, and p is below 1, so it is positive.",
        1000.0: "The probability of the true class is 1 / 1000. The loss is −ln of it.",
        0.999: "This is the error, a share of images. The loss is −ln of the probability of the true class.",
        7.0: "This is close; give three digits.",
    }
    return check_number(answer, math.log(1000), hints, tolerance=0.005)


def _to_two_numbers(result: Any) -> tuple[float, float] | None:
    numbers = [to_number(one) for one in result] if isinstance(result, list | tuple) else []
    return None if len(numbers) != 2 or numbers[0] is None or numbers[1] is None else (numbers[0], numbers[1])


def check_momentum_step(answer: Any) -> str | None:
    """7.2: a function that takes a step of gradient descent with momentum."""
    if reason := check_function(answer, "weight, gradient, velocity, learning rate and momentum"):
        return reason
    gradients, rate, momentum = [1.0, -2.0, 0.5, 3.0], 0.1, 0.8
    old = 0.5  # a velocity from which one step tells mistakes apart that look alike from 0
    new = momentum * old + gradients[0]
    moved = 1 - rate * new
    step = _to_two_numbers(answer(1.0, gradients[0], old, rate, momentum))
    if step is None:
        return "It has to return two numbers, the new weight and the new velocity."
    if np.allclose(step, (new, moved)):
        return "The new weight comes first, then the new velocity."
    if np.allclose(step, (moved, old)):
        return "It returns the old velocity. The next step needs the new one."
    weight, velocity = 1.0, 0.0
    found = []
    for gradient in gradients:
        numbers = _to_two_numbers(answer(weight, gradient, velocity, rate, momentum))
        if numbers is None:
            return "It has to return two numbers, the new weight and the new velocity."
        weight, velocity = numbers
        found.append(weight)
    variants: dict[str, Callable[[float, float], tuple[float, float]]] = {
        "": lambda v, g: (momentum * v + g,) * 2,
        "The weight moves with the old velocity. Compute the new one first.": lambda v, g: (momentum * v + g, v),
        "The gradient is weighted with 1 − m here. In the formula above, and in PyTorch, it is not.": lambda v, g: (
            (momentum * v + (1 - momentum) * g,) * 2
        ),
        "This is without momentum: the weight moves with the gradient.": lambda v, g: (momentum * v + g, g),
        "This is Nesterov's variant.": lambda v, g: (momentum * v + g, momentum * (momentum * v + g) + g),
        "The weight moves along the gradient, and the loss grows. Go against it.": lambda v, g: (
            momentum * v + g,
            -(momentum * v + g),
        ),
    }
    variants["The velocity is to be multiplied by the learning rate before it is subtracted."] = lambda v, g: (
        momentum * v + g,
        (momentum * v + g) / rate,
    )
    for hint, variant in variants.items():
        weight, velocity = 1.0, 0.0
        path = []
        for gradient in gradients:
            velocity, move = variant(velocity, gradient)
            weight -= rate * move
            path.append(weight)
        if max(abs(one - other) for one, other in zip(found, path, strict=True)) < 1e-6:
            return hint or None
    return f"After four steps the weight is {found[-1]:g}, and torch.optim.SGD has another. Check the two formulas."


def check_largest_rate(answer: Any) -> str | None:
    """7.3: the learning rate above which ½ · 8 · w² diverges."""
    hints = {0.125: "With 1/8, one step leads to the minimum. Larger steps leap over it, but w may still shrink."}
    reason, value = check_number(answer, 0.25, hints, tolerance=0.01), to_number(answer)
    if reason is None or reason in hints.values() or value is None or not 0 < value < math.inf:
        return reason
    factor = f"A rate of {value:g} multiplies w by 1 − 8 · {value:g} = {1 - 8 * value:g} in each step"
    return f"{factor}, so it shrinks." if value < 0.25 else f"{factor}. It grows, but with some smaller rates, too."


def check_five_trainings(answer: Any) -> str | None:
    """7.4: who did what."""
    if not isinstance(answer, dict) or set(answer) != set(WHO_DID_WHAT):
        return "A dictionary with the keys A to E is asked for."
    for name, kind in answer.items():
        if kind is ...:
            return f"{name} is still to be filled in."
        if not isinstance(kind, str) or kind not in SIGNS:
            return f"{kind} is not one of {', '.join(SIGNS)}."
    wrong = [name for name, kind in answer.items() if kind != WHO_DID_WHAT[name]]
    if not wrong:
        return None
    name = wrong[0]
    count = f"{len(wrong)} are wrong" if len(wrong) > 1 else "One is wrong"
    return f"{count}. {name} is not '{answer[name]}': then {SIGNS[answer[name]]}."


def _network_after(step: Callable[..., Any], network: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Return the parameters after two steps."""
    copy = deepcopy(network)
    optimizer = torch.optim.SGD(copy.parameters(), lr=0.1)
    for half in (slice(0, 10), slice(10, 20)):
        step(copy, optimizer, images[half], labels[half])
    return [parameter.detach() for parameter in copy.parameters()]


def _train_step(
    *,
    cleared: bool = True,
    softmax: bool = False,
    stepped: bool = True,
    reduction: str = "mean",
    loss: Callable[..., Tensor] = F.cross_entropy,
) -> Callable[..., None]:
    def step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
        if cleared:
            optimizer.zero_grad()
        scores = network(images)
        found = loss(scores.softmax(1) if softmax else scores, labels, reduction=reduction)
        found.backward()  # type: ignore[no-untyped-call]
        if stepped:
            optimizer.step()

    return step


def check_train_step(answer: Any) -> str | None:
    """7.5: a training step without the two faults."""
    if reason := check_function(answer, "network, optimizer, images and labels"):
        return reason
    generator = torch.Generator().manual_seed(3)
    images, labels = torch.randn(20, 6, generator=generator), torch.randint(0, 4, (20,), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    found = _network_after(answer, network, images, labels)
    known = (
        ("", _train_step()),
        ("Both faults are still there.", _train_step(cleared=False, softmax=True)),
        ("cross_entropy takes scores and computes the softmax itself. One fault is left.", _train_step(softmax=True)),
        ("backward() adds to the gradients of the step before. One fault is left.", _train_step(cleared=False)),
        (
            "The weights do not change: zero_grad(), backward() and step() have to come in this order.",
            _train_step(stepped=False),
        ),
        ("The loss is the mean over the images, not their sum.", _train_step(reduction="sum")),
        (
            "nll_loss takes logarithms of probabilities. cross_entropy computes them from scores.",
            _train_step(loss=F.nll_loss),
        ),
    )
    for hint, step in known:
        expected = _network_after(step, network, images, labels)
        if all(torch.allclose(*pair, atol=1e-6) for pair in zip(found, expected, strict=True)):
            return hint or None
    return "After two steps the weights are not those of gradient descent on the cross-entropy."


def check_cosine(answer: Any) -> str | None:
    """7.6: the learning rate after three quarters of a cosine."""
    hints = {
        0.025: "This is right for a straight line.",
        0.05: "This is the rate after half of it.",
        0.1 * (1 + math.cos(math.pi / 4)) / 2: "This is the rate after one quarter.",
        0.1 * (1 + math.cos(math.radians(math.pi * 0.75))) / 2: "The angle is in radians.",
        0.146447: "This is the share of the first rate.",
        0.075: "This is three quarters of the rate.",
        0.1 * math.cos(0.75 * math.pi): "A rate is not negative: it is multiplied by (1 + cos) / 2.",
        0.1 * math.cos(0.75 * math.pi / 2): "The angle goes from 0 to π, and the rate is multiplied by (1 + cos) / 2.",
    }
    return check_number(answer, 0.1 * (1 + math.cos(0.75 * math.pi)) / 2, hints, tolerance=0.01)


EXERCISES = {
    "7.1": check_first_loss, "7.2": check_momentum_step, "7.3": check_largest_rate, "7.4": check_five_trainings,
    "7.5": check_train_step, "7.6": check_cosine,
}  # fmt: skip
