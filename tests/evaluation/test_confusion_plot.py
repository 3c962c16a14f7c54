import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from svertka.evaluation.confusion_plot import MAX_PAIRS, confusion_html, shade_level
from svertka.evaluation.metrics import Evaluation


@pytest.mark.parametrize(
    ("share", "level"),
    [(0.0, 0), (1e-9, 1), (0.01, 1), (0.011, 2), (0.05, 3), (0.1, 4), (0.2, 5), (0.21, 6), (1.0, 6)],
)
def test_shades_match_the_legend(share: float, level: int) -> None:
    assert shade_level(share) == level


def test_matrix_image_has_the_shades_of_the_counts(nearest_centre: Callable[[Sequence[str]], Evaluation]) -> None:
    evaluation = nearest_centre([f"class {k}" for k in range(50)])
    drawn = confusion_html(evaluation, lambda indices, alt: "")
    found = np.zeros((50, 50), int)
    for level, cells in re.findall(r'<path class="s(\d)" d="([^"]*)"', drawn):
        for column, row in re.findall(r"M(\d+) (\d+)h", cells):
            found[int(row), int(column)] = int(level)
    shares = evaluation.confusion / evaluation.confusion.sum(1, keepdims=True)
    np.fill_diagonal(shares, 0)
    assert found.tolist() == [[shade_level(share) for share in row] for row in shares.tolist()]


def test_rows_are_the_most_confused_pairs(
    nearest_centre: Callable[[Sequence[str]], Evaluation],
) -> None:
    evaluation = nearest_centre([f"class {k}" for k in range(50)])
    shown: list[list[int]] = []
    drawn = confusion_html(evaluation, lambda indices, alt: shown.append(indices) or "")
    off = evaluation.confusion - np.diag(evaluation.confusion.diagonal())
    counts = [int(number) for number in re.findall(r"<td>(\d+)<br>of", drawn)]
    assert counts == sorted(off.ravel().tolist(), reverse=True)[:MAX_PAIRS]
    by_index = {one.index: (one.label, one.predicted) for one in evaluation.mistakes}
    pairs = [{by_index[index] for index in indices} for indices in shown]
    assert all(len(pair) == 1 for pair in pairs)
    assert [off[next(iter(pair))] for pair in pairs] == counts
    assert [len(indices) for indices in shown] == [min(8, number) for number in counts]
