import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, log_loss, precision_score, recall_score, top_k_accuracy_score

from fork_server import DISTRIBUTED, Python
from ranks import PATIENCE, rendezvous
from svertka.errors import UsageError
from svertka.evaluation.metrics import (
    EXAMPLES_PER_CLASS,
    MISTAKES_KEPT,
    MISTAKES_PER_PAIR,
    PRUNE_AT,
    Evaluation,
    MetricAccumulator,
    Mistake,
)


def names(classes: int) -> list[str]:
    return [f"class {k}" for k in range(classes)]


def tally(logits: torch.Tensor, labels: torch.Tensor, batch: int) -> MetricAccumulator:
    one = MetricAccumulator(logits.shape[1])
    for start in range(0, len(labels), batch):
        part = slice(start, start + batch)
        one.update(logits[part], labels[part], torch.arange(len(labels))[part])
    return one


def evaluate(logits: torch.Tensor, labels: torch.Tensor, batch: int = 64) -> Evaluation:
    return tally(logits, labels, batch).result(names(logits.shape[1]))


def draw(images: int, classes: int, seed: int, distinct: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that lean to the right class; `distinct`: on that many values only, so that ties abound."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=images)
    logits = rng.normal(size=(images, classes)) * 2
    logits[np.arange(images), labels] += 1.5
    if distinct:
        logits = rng.integers(distinct, size=(images, classes)).astype(np.float64)
    return torch.from_numpy(logits).float(), torch.from_numpy(labels)


def oracle(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Picture by picture, from the sentence in the docstring of `MetricAccumulator`."""
    wrong = {1: 0, 5: 0}
    loss = 0.0
    for scores, label in zip(logits.astype(np.float64).tolist(), labels.tolist(), strict=True):
        rivals = [score for k, score in enumerate(scores) if k != label and score >= scores[label]]
        for k in wrong:
            wrong[k] += len(rivals) >= k or any(math.isnan(score) for score in scores)
        peak = max(scores)
        loss += peak + math.log(sum(math.exp(score - peak) for score in scores)) - scores[label]
    return {"top1": wrong[1] / len(labels), "top5": wrong[5] / len(labels), "loss": loss / len(labels)}


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 80),
    classes=st.integers(2, 12),
    seed=st.integers(0, 10**6),
    distinct=st.sampled_from([None, 1, 2, 5]),
    batch=st.sampled_from([1, 7, 100]),
)
def test_errors_and_loss_match_a_loop_over_images(
    images: int, classes: int, seed: int, distinct: int | None, batch: int
) -> None:
    logits, labels = draw(images, classes, seed, distinct)
    found, expected = evaluate(logits, labels, batch), oracle(logits.numpy(), labels.numpy())
    assert found.images == images
    assert found.top1_error == pytest.approx(expected["top1"], abs=1e-12)
    assert found.top5_error == (pytest.approx(expected["top5"], abs=1e-12) if classes >= 6 else None)
    assert found.loss == pytest.approx(expected["loss"], rel=1e-5, abs=1e-6)  # float32 softmax against float64
    # The matrix says the same as the error, ties included.
    assert found.confusion.sum() == images
    assert 1 - found.confusion.trace() / images == pytest.approx(found.top1_error, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_metrics_without_ties_match_scikit_learn(classes: int) -> None:
    logits, labels = draw(2000, classes, seed=classes)
    found = evaluate(logits, labels)
    predicted, every = logits.argmax(1).numpy(), list(range(classes))
    assert np.array_equal(found.confusion, confusion_matrix(labels, predicted, labels=every))
    recall = recall_score(labels, predicted, labels=every, average=None)
    precision = precision_score(labels, predicted, labels=every, average=None, zero_division=0)
    for k, one in enumerate(found.per_class):
        assert (one.name, one.images) == (f"class {k}", int((labels == k).sum()))
        assert one.error == pytest.approx(1 - recall[k], abs=1e-12)
        assert one.precision == (pytest.approx(precision[k], abs=1e-12) if (predicted == k).any() else None)
    assert found.loss == pytest.approx(log_loss(labels, logits.double().softmax(1), labels=every), rel=1e-5)
    if classes >= 6:
        top5 = top_k_accuracy_score(labels, logits.numpy(), k=5, labels=every)
        assert found.top5_error == pytest.approx(1 - top5, abs=1e-12)


def test_a_tie_counts_as_wrong() -> None:
    """All scores alike: wrong about everything, not right for class 0."""
    labels = torch.arange(8)
    found = evaluate(torch.zeros(8, 8), labels)
    assert (found.top1_error, found.top5_error) == (1.0, 1.0)
    assert found.confusion.trace() == 0


def test_nan_and_infinity_count_as_wrong() -> None:
    logits = torch.zeros(5, 7)
    logits[:, 2] = 9
    logits[0] = math.nan  # nothing is known
    logits[1, 2] = math.nan  # of the right class
    logits[2, 4] = math.nan  # of another class
    logits[3, 4] = math.inf  # a rival beyond measure
    found = evaluate(logits, torch.full((5,), 2))
    assert found.top1_error == 4 / 5  # only the last is sound
    assert found.top5_error == 3 / 5  # beside an infinite rival the right class is still the second guess
    assert found.confusion[2, 2] == 1
    assert found.confusion.sum() == 5
    written = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(written)["loss"] is None
    assert all(0 <= mistake.probability <= 1 for mistake in found.mistakes)


def test_worst_mistakes_match_a_full_sort() -> None:
    logits, labels = draw(3000, 12, seed=3)
    probability = logits.softmax(1).numpy()
    rows = [
        (-float(scores[scores.argmax()]), index, label, int(scores.argmax()))
        for index, (scores, label) in enumerate(zip(probability, labels.tolist(), strict=True))
        if scores.argmax() != label
    ]
    rows.sort()
    found = evaluate(logits, labels)
    assert [(m.index, m.label, m.predicted) for m in found.mistakes[:MISTAKES_KEPT]] == [
        row[1:] for row in rows[:MISTAKES_KEPT]
    ]
    assert [m.probability for m in found.mistakes[:MISTAKES_KEPT]] == pytest.approx(
        [-row[0] for row in rows[:MISTAKES_KEPT]]
    )
    for label in range(12):
        for predicted in range(12):
            of_pair = [row[1] for row in rows if row[2:] == (label, predicted)]
            kept = [m.index for m in found.mistakes if (m.label, m.predicted) == (label, predicted)]
            assert kept[:MISTAKES_PER_PAIR] == of_pair[:MISTAKES_PER_PAIR]


def test_near_misses_match_a_full_sort() -> None:
    logits, labels = draw(3000, 12, seed=4)
    probability = logits.softmax(1).double().numpy()
    rows = sorted(
        (float(scores.max() - scores[label]), index, label, int(scores.argmax()))
        for index, (scores, label) in enumerate(zip(probability, labels.tolist(), strict=True))
        if scores.argmax() != label
    )
    found = evaluate(logits, labels).near_misses
    assert [(m.index, m.label, m.predicted) for m in found] == [row[1:] for row in rows[:MISTAKES_KEPT]]
    assert [m.probability - m.own for m in found] == pytest.approx([row[0] for row in rows[:MISTAKES_KEPT]], abs=1e-6)


def test_wrong_flags_match_each_image() -> None:
    logits, labels = draw(500, 5, seed=6)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(3))
    shuffled = MetricAccumulator(5)
    for part in order.split(64):
        shuffled.update(logits[part], labels[part], part)
    found = shuffled.result(names(5))
    assert found.indices.tolist() == list(range(500))
    assert found.wrong.tolist() == (logits.argmax(1) != labels).tolist()


def test_memory_is_bounded_without_losing_needed_mistakes() -> None:
    """Twelve batches of mistakes only, more than are ever kept: the same as from one sort of them all."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(4000, 3, generator=generator) for _ in range(12)]
    labels = [logits.argmin(1) for logits in batches]
    streamed = MetricAccumulator(3)
    for number, (logits, truth) in enumerate(zip(batches, labels, strict=True)):
        streamed.update(logits, truth, torch.arange(4000) + 4000 * number)
        assert len(streamed._mistakes) <= PRUNE_AT + 4000
    found = streamed.result(names(3))
    everything = torch.cat(batches).softmax(1).amax(1).sort(descending=True, stable=True).indices
    assert [m.index for m in found.mistakes[:MISTAKES_KEPT]] == everything[:MISTAKES_KEPT].tolist()
    assert len(found.mistakes) <= MISTAKES_KEPT + 6 * MISTAKES_PER_PAIR


def test_ties_between_mistakes_are_ordered_by_index() -> None:
    logits = torch.zeros(50, 4)
    logits[:, 1] = 3
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    shuffled = MetricAccumulator(4)
    shuffled.update(logits, torch.zeros(50, dtype=torch.int64), order)
    assert [m.index for m in shuffled.result(names(4)).mistakes] == list(range(MISTAKES_KEPT))


def test_examples_are_the_first_of_each_class_whatever_the_order() -> None:
    labels = torch.arange(100) % 3
    order = torch.randperm(100, generator=torch.Generator().manual_seed(2))
    shuffled = MetricAccumulator(3)
    for part in order.split(9):
        shuffled.update(torch.zeros(len(part), 3), labels[part], part)
    for k, one in enumerate(shuffled.result(names(3)).per_class):
        assert one.examples == tuple(range(k, 3 * EXAMPLES_PER_CLASS, 3))


def test_bfloat16_and_empty_batches_are_accepted() -> None:
    one = MetricAccumulator(10)
    one.update(torch.zeros(0, 10), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    one.update(torch.eye(10, dtype=torch.bfloat16), torch.arange(10), torch.arange(10))
    assert one.result(names(10)).top1_error == 0


def test_metrics_without_images_are_null() -> None:
    found = MetricAccumulator(3).result(names(3))
    assert found.to_dict() == {
        "images": 0,
        "top1_error": None,
        "top1_interval": None,
        "top5_error": None,
        "top5_interval": None,
        "loss": None,
        "calibration_error": None,
        "temperature": None,
        "unknown_images": None,
        "unknown_share": None,
        "at_chance": None,
        "never_predicted": [],
        "per_class": [
            {"name": f"class {k}", "images": 0, "error": None, "recall": None, "precision": None} for k in range(3)
        ],
    }


def test_the_json_keys() -> None:
    found = evaluate(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])).to_dict()
    assert found["images"] == 2
    assert found["top1_error"] == 0.5
    assert found["top5_error"] is None
    assert found["loss"] == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(2))) / 2)
    assert found["per_class"] == [
        {"name": "class 0", "images": 1, "error": 0.0, "recall": 1.0, "precision": 0.5},
        {"name": "class 1", "images": 1, "error": 1.0, "recall": 0.0, "precision": None},
    ]


def test_wrong_number_of_classes_is_refused() -> None:
    with pytest.raises(UsageError, match="10 scores per image, but the data have 3 classes"):
        MetricAccumulator(3).update(
            torch.zeros(1, 10), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        )


def test_all_reduce_of_one_process_is_idempotent() -> None:
    one = tally(*draw(500, 7, seed=5), batch=50)
    first, second, plain = one.all_reduce().result(names(7)), one.all_reduce().result(names(7)), one.result(names(7))
    assert first.to_dict() == second.to_dict() == plain.to_dict()
    assert first.mistakes == second.mistakes == plain.mistakes


WORKER = """
import json, sys, torch
from svertka import distributed
from svertka.evaluation.metrics import MetricAccumulator
logits, labels = torch.load(sys.argv[1])
with distributed.process_group(torch.device("cpu")):
    # Uneven on purpose: the last process has no picture at all.
    mine = torch.arange(len(labels))[distributed.rank()::2] if distributed.rank() < 2 else torch.arange(0)
    tally = MetricAccumulator(logits.shape[1])
    for part in mine.split(37):
        tally.update(logits[part], labels[part], part)
    found = tally.all_reduce().result([f"class {k}" for k in range(logits.shape[1])])
    print(json.dumps([found.to_dict(), found.confusion.tolist(), [vars(m) for m in found.mistakes],
                      [one.examples for one in found.per_class], [one.index for one in found.near_misses],
                      found.indices[found.wrong].tolist()]))
"""


def test_two_processes_with_uneven_shards_count_every_image_once(tmp_path: Path) -> None:
    logits, labels = draw(301, 8, seed=9)
    torch.save((logits, labels), tmp_path / "scores.pt")
    command = ["-c", WORKER, str(tmp_path / "scores.pt")]
    with rendezvous(2) as found:
        workers = [
            Python(command, modules=DISTRIBUTED, env=os.environ | variables, stdout=subprocess.PIPE, text=True)
            for variables in found
        ]
        alone = evaluate(logits, labels)
        answers = [worker.communicate(timeout=PATIENCE)[0] for worker in workers]
    for written in answers:
        figures, confusion, mistakes, examples, doubtful, wrong = json.loads(written)
        told = alone.to_dict()
        for key in ("loss", "calibration_error"):  # summed in another order
            assert figures.pop(key) == pytest.approx(told.pop(key), rel=1e-12)
        assert figures == told
        assert [sorted(doubtful), sorted(wrong)] == [
            sorted(one.index for one in alone.near_misses),
            alone.indices[alone.wrong].tolist(),
        ]
        assert confusion == alone.confusion.tolist()
        assert tuple(Mistake(**one) for one in mistakes) == alone.mistakes
        assert [tuple(one) for one in examples] == [one.examples for one in alone.per_class]


def test_never_predicted_classes_and_chance_accuracy_are_warned_of() -> None:
    logits = torch.zeros(40, 4)
    logits[:, 2] = 1.0
    found = evaluate(logits, torch.arange(40) % 4)
    assert found.never_predicted == ("class 0", "class 1", "class 3")
    assert found.at_chance
    assert found.warnings == (
        "It is no better than guessing: 25.0% of 40 are right, and 25.0% would be by chance.",
        "It never predicts class 0, class 1, class 3, of which there are images.",
    )
    assert found.to_dict()["never_predicted"] == ["class 0", "class 1", "class 3"]
    right = evaluate(5 * torch.eye(4).repeat(10, 1), torch.arange(40) % 4)
    assert (right.warnings, right.at_chance, right.never_predicted) == ((), False, ())


@pytest.mark.parametrize(
    ("labels", "answers", "at_chance", "right"),
    [
        ([0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 1, 0, 1], True, "71.4% of 7 are right, and 51.0% would be by chance"),
        ([0, 1], [0, 1], None, "100.0% of 2 are right, and 50.0% would be by chance"),  # more it could not be
    ],
)
def test_chance_warning_is_weaker_for_few_images(
    labels: list[int], answers: list[int], at_chance: bool | None, right: str
) -> None:
    found = evaluate(5 * torch.eye(2)[answers], torch.tensor(labels))
    assert found.at_chance is at_chance
    assert found.warnings == (f"With so few images it is not significantly better than guessing: {right}.",)
