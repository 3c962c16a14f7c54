"""What is compared: runs on the same pictures, what each gets wrong and needs, and how sure it is that they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from svertka.evaluation.confidence_intervals import Interval, mcnemar, paired_difference
from svertka.evaluation.evaluate import Judgement
from svertka.evaluation.evaluated_images import CALLED
from svertka.evaluation.inference_speed import Speed
from svertka.evaluation.metrics import Evaluation
from svertka.pages.html_page import count, percent

SURE = 0.05  # a difference that would be as large by chance in less than this share of cases is called one


@dataclass(frozen=True)
class Difference:
    """The error of one run minus that of the first, on the same pictures.

    `only_here`, `only_first`: pictures that this run alone, and the first alone, has wrong. `points`: the difference of
    the shares, −1 to 1, with its 95 % `interval`. `p`: how probable so unequal a split is if both are equally good.
    """

    only_here: int
    only_first: int
    points: float
    interval: Interval
    p: float

    @classmethod
    def of(cls, here: Evaluation, first: Evaluation) -> "Difference":
        """The difference of two that judged the same pictures."""
        only_here, only_first = int((here.wrong & ~first.wrong).sum()), int((first.wrong & ~here.wrong).sum())
        return cls(
            only_here,
            only_first,
            (only_here - only_first) / here.images,
            paired_difference(only_here, only_first, here.images),
            mcnemar(only_here, only_first),
        )


@dataclass(frozen=True, eq=False)
class Contender:
    """One of the runs that are compared.

    `letter`: what it is called for short, "A" the first. `network`: the zoo's name. `parameters`, `multiply_adds`: of
    the network as it is. `speed`: here. `history`: the lines of metrics.jsonl, none where it was not trained here.
    `settings`: what training.json says, empty likewise. `difference`: from the first; None for the first.
    """

    letter: str
    run: str
    network: str
    evaluation: Evaluation
    parameters: int
    multiply_adds: int
    speed: Speed
    history: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    difference: Difference | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs on the same pictures of `judgement.dataset`, `device` in words; `together`: the mean of all of them."""

    contenders: tuple[Contender, ...]
    judgement: Judgement
    device: str

    @property
    def together(self) -> Evaluation:
        """The mean of their probabilities."""
        return self.judgement.total

    @property
    def sentence(self) -> str:
        """What came out, with the first run as the measure of the others."""
        first, *others = self.contenders
        judged = count(self.together.images, f"{CALLED[self.judgement.part]}picture")
        wrong = f"A gets {percent(first.evaluation.top1_error)} of {judged} of {self.judgement.dataset.source} wrong"
        against = "; ".join(f"{one.letter} {_against(one.difference)}" for one in others if one.difference)
        return " ".join(f"{sentence}." for sentence in (f"{wrong}; {against}", *self.judgement.scope.remarks))

    def to_dict(self) -> dict[str, Any]:
        """What `svertka compare --json` prints."""
        return {
            **self.judgement.scope.to_dict(),
            "images": self.together.images,
            "device": self.device,
            "runs": [_as_json(one) for one in self.contenders],
            "together": _figures(self.together),
        }


def _against(difference: Difference) -> str:
    """What a run does against the first."""
    low, high = map(signed, difference.interval)
    by = f"{signed(difference.points)} points ({low} to {high}, p {called_p(difference.p)})"
    if difference.p >= SURE:
        return f"cannot be told from it, {by}"
    return f"errs {'less' if difference.points < 0 else 'more'}, by {by}"


def signed(share: float) -> str:
    """`share` in points, with a sign that is as wide as a plus: "−1.3", "+0.4", "0.0"."""
    text = f"{100 * share:+.1f}".replace("-", "−")
    return text[1:] if text in ("+0.0", "−0.0") else text


def called_p(p: float) -> str:
    """ "= 0.03" and "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.01 else f"= {p:.2f}"


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    """What differs between runs that judge the same images."""
    return {key: value for key, value in replace(evaluation, scope=None).to_dict().items() if key != "images"}


def _as_json(one: Contender) -> dict[str, Any]:
    difference = one.difference and {
        "only_here_wrong": one.difference.only_here,
        "only_first_wrong": one.difference.only_first,
        "top1_error": one.difference.points,
        "interval": list(one.difference.interval),
        "p": one.difference.p,
    }
    return {
        "run": one.run,
        "model": one.network,
        "parameters": one.parameters,
        "multiply_adds": one.multiply_adds,
        "seconds_per_image": one.speed.seconds,
        "images_per_second": one.speed.per_second,
        **_figures(one.evaluation),
        "difference_from_first": difference,
    }
