"""Reported errors are complete, plausible and consistent with each other."""

import pytest

from svertka.evaluation.crop_protocols import CROPS
from svertka.models.ilsvrc_winners import ILSVRC_RESULTS
from svertka.models.published_weights import PRETRAINED
from svertka.models.reference_results import IMAGENET_VAL, REFERENCE_RESULTS, ReferenceResult, reference_results
from svertka.models.registry import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_every_result_says_how_it_was_measured(name: str) -> None:
    for figure in reference_results(name):
        assert figure.source
        assert figure.crops in {*CROPS, "", "6", "12", "dense"}
        assert all(MODELS[name].size <= scale <= 640 for scale in figure.scales)
        errors = figure.top1_error, figure.top5_error
        assert errors != (None, None)
        if None not in errors:
            assert 1.9 < figure.top1_error / figure.top5_error < 5  # the usual ratio on ImageNet


def test_results_are_of_known_models_and_include_those_of_their_weights() -> None:
    assert REFERENCE_RESULTS.keys() <= MODELS.keys()
    for name, some in PRETRAINED.items():
        errors = [(one.top1_error, one.top5_error) for one in reference_results(name)]
        assert {(one.top1_error, one.top5_error) for one in some.values()} <= set(errors)


def test_more_crops_scales_or_networks_reduce_the_error() -> None:
    """In every paper, on the same images."""

    def work(figure: ReferenceResult) -> tuple[int, int, int]:
        return figure.networks, {"dense": 1000, "": 1}.get(figure.crops) or int(figure.crops), len(figure.scales)

    compared = 0
    for some in REFERENCE_RESULTS.values():
        for one in some:
            for other in some:
                more = all(a <= b for a, b in zip(work(one), work(other), strict=True)) and work(one) != work(other)
                if more and one.dataset == other.dataset and None not in (one.top5_error, other.top5_error):
                    assert other.top5_error < one.top5_error
                    compared += 1
    assert compared > 25


def test_ensembles_agree_with_the_challenge_results() -> None:
    """The papers report validation errors within 0.2 points of the challenge's test errors."""
    best = {name: min(one.top5_error for one in REFERENCE_RESULTS[name]) for name in ("alexnet", "googlenet")}
    won = {entry.name.lower(): entry.top5_error for entry in ILSVRC_RESULTS}
    assert best == pytest.approx({name: won[name] for name in best}, abs=0.2)
    assert all(one.dataset == IMAGENET_VAL for name in best for one in REFERENCE_RESULTS[name])
