import re

import torch

from svertka.evaluation.calibration import CalibrationAccumulator
from svertka.evaluation.reliability_diagram import reliability_html


def test_the_sentence_says_how_sure_and_how_often_right() -> None:
    counted = CalibrationAccumulator()
    logits = torch.tensor([[2.0, 0.0]]).repeat(400, 1)  # 88.1 % sure
    right = torch.arange(400) % 4 > 0  # and 75 % right
    counted.update(logits, (~right).long(), right, torch.arange(400) // 4)
    shown = reliability_html(counted.result()).replace("\u00a0", " ")
    assert "On average it is 88.1 % sure and 75.0 % right: too sure of itself." in shown
    # The temperature of least loss makes it 75 % sure: 2 / log 3 = 1.82, in steps of 6 %.
    assert re.search(r"Expected calibration error 13\.1 %; with a temperature of 1\.78 it is 0\.\d %", shown)


def test_there_is_nothing_to_say_of_nothing() -> None:
    assert reliability_html(CalibrationAccumulator().result()) == ""
