import json
from pathlib import Path

from svertka.training.metrics_log import MetricsLog


def test_lines_are_json_and_what_is_not_a_number_is_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("step", step=1, loss=float("nan"), error=0.5)
    log.write("health", sentence="naïve ☃")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"kind": "step", "step": 1, "loss": None, "error": 0.5}, {"kind": "health", "sentence": "naïve ☃"}]


def test_a_resume_cuts_off_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("step", step=1)
    offset = log.offset
    log.write("step", step=2)
    MetricsLog(tmp_path / "metrics.jsonl", offset).write("step", step=3)
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 3]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path / "metrics.jsonl", tensorboard=True)
    log.write("step", step=20, loss=0.25)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("step/loss")] == [(20, 0.25)]
