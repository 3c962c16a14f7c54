"""What is reported of the networks: whole, plausible, and in agreement with what else we hold of it."""

import pytest

from svertka.evaluation.crops import CROPS
from svertka.models.figures import FIGURES, IMAGENET, Figure, figures
from svertka.models.imagenet import CHALLENGE
from svertka.models.published import PUBLISHED
from svertka.models.zoo import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_each_says_how_it_was_measured(name: str) -> None:
    for figure in figures(name):
        assert figure.source
        assert figure.crops in {*CROPS, "", "6", "12", "dense"}
        assert all(MODELS[name].size <= scale <= 640 for scale in figure.scales)
        errors = figure.top1_error, figure.top5_error
        assert errors != (None, None)
        if None not in errors:
            assert 1.9 < figure.top1_error / figure.top5_error < 5  # what lies between them on ImageNet


def test_they_are_of_networks_that_are_here_and_hold_what_comes_with_weights() -> None:
    assert FIGURES.keys() <= MODELS.keys()
    for name, some in PUBLISHED.items():
        errors = [(one.top1_error, one.top5_error) for one in figures(name)]
        assert {(one.top1_error, one.top5_error) for one in some.values()} <= set(errors)


def test_looking_oftener_or_with_more_networks_is_reported_to_help() -> None:
    """In every paper, on the same pictures."""

    def work(figure: Figure) -> tuple[int, int, int]:
        return figure.networks, {"dense": 1000, "": 1}.get(figure.crops) or int(figure.crops), len(figure.scales)

    compared = 0
    for some in FIGURES.values():
        for one in some:
            for other in some:
                more = all(a <= b for a, b in zip(work(one), work(other), strict=True)) and work(one) != work(other)
                if more and one.pictures == other.pictures and None not in (one.top5_error, other.top5_error):
                    assert other.top5_error < one.top5_error
                    compared += 1
    assert compared > 25


def test_the_winners_of_the_challenge_are_these_networks() -> None:
    """On its test pictures within 0.2 points of the validation pictures, as their papers observe."""
    best = {name: min(one.top5_error for one in FIGURES[name]) for name in ("alexnet", "googlenet")}
    won = {entry.name.lower(): entry.top5_error for entry in CHALLENGE}
    assert best == pytest.approx({name: won[name] for name in best}, abs=0.2)
    assert all(one.pictures == IMAGENET for name in best for one in FIGURES[name])
