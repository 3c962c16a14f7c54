import re

import torch

from svertka.evaluation.calibration import CalibrationAccumulator
from svertka.evaluation.reliability_diagram import reliability_html


def test_sentence_contains_confidence_and_accuracy() -> None:
    counted = CalibrationAccumulator()
    logits = torch.tensor([[2.0, 0.0]]).repeat(400, 1)  # 88.1 % sure
    right = torch.arange(400) % 4 > 0  # and 75 % right
    counted.update(logits, (~right).long(), right, torch.arange(400) // 4)
    shown = reliability_html(counted.result()).replace("\u00a0", " ")
    assert "On average, the network is 88.1 % confident and 75.0 % right: overconfident." in shown
    # The temperature of least loss makes it 75 % sure: 2 / log 3 = 1.82, in steps of 6 %.
    assert re.search(
        r"The expected calibration error is 13\.1 %, or 0\.\d % after scaling with a temperature of 1\.78", shown
    )


def test_diagram_without_images_is_empty() -> None:
    assert reliability_html(CalibrationAccumulator().result()) == ""
