"""Counterparts of units: permuted networks share every unit, replaced units are new, and CKA equals its definition."""

import json
import shutil
from copy import deepcopy
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import svertka
from svertka.cli.app import main
from svertka.errors import DataError, UsageError
from svertka.evaluation.evaluation_scope import EvaluationScope
from svertka.inspection import run_ablation, top_patches
from svertka.inspection.run_ablation import AblatedRun
from svertka.inspection.unit_ablation import ablate_units
from svertka.inspection.unit_comparison import UnitComparison
from svertka.inspection.unit_matching import collect_activations, count_shared_by_chance, linear_cka, match_layers
from svertka.run import Run


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 2),
    ).eval()  # fmt: skip


def activations(one: nn.Module, images: torch.Tensor) -> dict[str, np.ndarray]:
    return collect_activations(one, (1, *images.shape[1:]), images.split(13))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(60, 3, 12, 12, generator=torch.Generator().manual_seed(5))


def test_activations_are_the_maxima_that_the_atlas_shows(images: torch.Tensor) -> None:
    found, patches = activations(network(), images), top_patches(network(), images)
    for name, values in found.items():
        assert np.allclose(values.max(0), patches[name].values[:, 0], rtol=1e-5)
        assert np.array_equal(values.argmax(0), patches[name].images[:, 0])


def test_units_of_a_permuted_network_have_their_counterparts(images: torch.Tensor) -> None:
    one, other = network(), network()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        other[0].weight.copy_(3 * one[0].weight[order])  # a positive factor does not change a correlation
        other[0].bias.copy_(3 * one[0].bias[order])
        other[2].weight.copy_(one[2].weight[:, order] / 3)
    first, second = match_layers(activations(one, images), activations(other, images))
    assert first.units.tolist() == order.tolist()
    assert first.num_shared == 8
    assert first.cka == pytest.approx(1)
    assert second.units.tolist() == list(range(12))
    assert len(first.new) == len(second.new) == 0


def test_replaced_units_are_new_and_dead_ones_have_no_counterpart(images: torch.Tensor) -> None:
    other = deepcopy(network())
    with torch.no_grad():
        other[2].weight[4] = torch.randn(8, 3, 3, generator=torch.Generator().manual_seed(2))
        other[2].weight[7], other[2].bias[7] = 0, -1
    layers = match_layers(activations(network(), images), activations(other, images))
    second = layers[1]
    assert set(second.new) <= {4}
    assert second.correlations[4] < 0.7
    assert second.units[7] == -1
    assert np.isnan(second.correlations[7])
    assert second.num_shared == 10
    compared = UnitComparison("A", "B", layers, len(images), None)
    _, _, units, shared, changed, new, constant, _ = compared.rows[1]
    assert (units, shared, int(changed) + int(new), constant) == ("12", "10", 1, "1")
    assert ", 1 is constant; 60 images" in compared.sentence
    assert compared.warning is None


def test_units_shared_by_chance_are_those_of_a_permutation_test() -> None:
    rng = np.random.default_rng(3)
    values, others = rng.exponential(size=(5, 1)), rng.exponential(size=(5, 300))
    orders = [np.array(order) for order in permutations(range(5))]
    expected = np.mean([np.corrcoef(values[order].T, others.T)[0, 1:] >= 0.7 for order in orders])
    first, second = {"here": values}, {"there": others}
    found = count_shared_by_chance(first, second, match_layers(first, second))
    assert found / 300 == pytest.approx(expected, rel=0.15)
    many = {"0": rng.normal(size=(100, 40))}
    assert count_shared_by_chance(many, many, match_layers(many, many)) == 0


def test_layers_that_are_named_are_compared_with_those_of_the_same_name(images: torch.Tensor) -> None:
    shape = (1, *images.shape[1:])
    first, second = (
        collect_activations(network(seed), shape, [images], layers, also)
        for seed, layers, also in ((0, None, ["1", "3", "6", "none"]), (1, ["1", "3"], ()))
    )
    assert list(first) == ["0", "2", "1", "3"]  # "6" has no feature maps
    assert [one.counterpart for one in match_layers(first, second)] == ["1", "3"]


def test_a_network_without_convolutions_is_refused(images: torch.Tensor) -> None:
    dense = nn.Sequential(nn.Flatten(), nn.Linear(432, 2))
    with pytest.raises(UsageError, match="Sequential has no convolution whose units can be compared"):
        collect_activations(dense, (1, 3, 12, 12), [images])


@pytest.mark.parametrize("count", [5, 200])
def test_cka_is_the_normalized_dependence_of_centered_kernels(count: int) -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(count, 7))
    second = first @ rng.normal(size=(7, 9)) + rng.normal(size=(count, 9))
    center = np.eye(count) - 1 / count
    kernels = [center @ one @ one.T @ center for one in (first, second)]
    expected = (kernels[0] * kernels[1]).sum() / np.linalg.norm(kernels[0]) / np.linalg.norm(kernels[1])
    assert linear_cka(first, second) == pytest.approx(expected)
    rotation = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    assert linear_cka(first, 2 * first @ rotation) == pytest.approx(1)
    assert linear_cka(first, np.ones((count, 2))) == 0


def test_the_command_prints_a_table_and_writes_a_page(
    digit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], opened: object
) -> None:
    runs = [str(tmp_path / name) for name in ("before", "after")]
    for run, seed in zip(runs, (0, 1), strict=True):
        svertka.train(digit_folder, model="lenet5", epochs=0.2, seed=seed, output=run, test=0.25, threads=1)
    capsys.readouterr()
    page = tmp_path / "units.html"
    asked = ["compare-units", *runs, str(digit_folder), "--images", "40", "--threads", "1"]
    assert main([*asked, "--output", str(page)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:3] == ["layer", "compared", "with"]
    assert [line.split()[0] for line in printed[1:4]] == ["c1", "c3", "c5"]
    assert printed[-3].startswith("of 142 units of B (after), A (before) shares ")
    assert printed[-2].startswith("40 images are too few: units also correlate by chance, and A (before) shares ")
    assert printed[-1] == f"open {page}"
    with opened(page, viewport={"width": 360, "height": 800}) as tab:  # type: ignore[operator]
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        assert tab.locator("h1").text_content() == f"Units: {printed[-3]}."
        assert tab.locator("h1 + p").text_content() == f"{printed[-2]}."
        assert tab.locator("h2").all_text_contents() == ["c1", "c3", "c5"]
        assert tab.locator("section img").count() >= 6
    assert main([*asked[:2], runs[0], *asked[3:], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["cka"] for one in found["layers"]] == pytest.approx([1, 1, 1])
    assert all(one["new"] == [] for one in found["layers"])
    page.write_text("mine")
    with pytest.raises(UsageError, match="was not written by svertka"):  # before anything is computed
        svertka.compare_units("no run", "none", output=page)
    with pytest.raises(DataError, match="give at least 2"):
        svertka.compare_units(*runs, digit_folder, images=1, threads=1)


def test_ablate_prints_the_largest_effects(
    digit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    svertka.train(digit_folder, model="lenet5", epochs=15, lr=0.002, output=run, test=0.25, threads=1)
    capsys.readouterr()
    assert main(["ablate", run, str(digit_folder), "--layers", "c1,c3", "--count", "3", "--threads", "1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed[1:4]) == 3
    assert all(line.split()[0] in ("c1", "c3") for line in printed[1:4])
    assert "on 240 images; of the 10,560 predictions without a unit, " in " ".join(printed)
    some = tmp_path / "some"
    for name, given in (("two", "Two"), ("four", "four")):  # in another order than the run's, and another case
        shutil.copytree(digit_folder / name, some / given)
    whole, part = (svertka.ablate(run, source, layers=["c1"], threads=1).ablation for source in (digit_folder, some))
    assert part.images.tolist() == [60, 0, 0, 60]
    assert part.right.tolist() == [whole.right[0], 0, 0, whole.right[3]]
    (some / "five").mkdir()
    shutil.copy(digit_folder / "one" / "00.png", some / "five")
    assert main(["ablate", run, str(some), "--threads", "1"]) == 1
    assert "holds classes that the run does not know: five" in capsys.readouterr().err
    assert main(["ablate", run, "--layers", "c1", "--json", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["units"], found["images"]) == (6, 60)
    for effect in found["effects"]:
        assert effect["interval"][0] <= effect["change"] <= effect["interval"][1]
        assert effect["label"] in ("one", "two", "three", "four")


def test_ablate_says_that_no_removal_changed_the_accuracy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, one = torch.randn(4, 3, 12, 12), network()
    with torch.no_grad():
        one[-1].weight.zero_()  # the bias alone decides
    counts = ablate_units(one, lambda: [(images, torch.tensor([0, 1, 0, 1]))], 2)
    found = AblatedRun("small", [], 20, 4, counts, EvaluationScope("folder", "test"))
    monkeypatch.setattr(run_ablation, "ablate", lambda *_, **__: found)
    assert main(["ablate", "run"]) == 0
    assert capsys.readouterr().out.replace("\u00a0", " ").splitlines() == [
        "no removal changed the accuracy of a class",
        "20 units were removed one at a time, replaced by 0 and by the mean, on 4 images; of the 160 predictions "
        "without a unit, all were computed",
    ]


@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_ablate_refuses_labels_and_numbers(task_runs: dict[str, Run], kind: str) -> None:
    with pytest.raises(UsageError, match="ablate works with runs of one class an image"):
        svertka.ablate(task_runs[kind].folder, threads=1)
