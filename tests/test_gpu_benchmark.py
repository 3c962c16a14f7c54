"""bench/gpu.py runs on a CPU with tiny sizes, so that it works when there is a GPU."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PARTS = ["steps", "ddp", "input", "top_patches", "resume", "cifar10"]


@pytest.mark.usefixtures("quiet")
def test_the_parts_run_and_print_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], large_count: Callable[[int, int], int]
) -> None:
    parts = PARTS[: large_count(1, len(PARTS))]
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--tiny", "--only", *parts])
    import gpu

    gpu.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(parts) < set(found)
    assert found["steps"]["resnet20"]["images_per_second"]["plain"] > 0
    if "resume" in parts:
        assert found["resume"] == {"stopped": True, "is_exact": True, "largest_difference": 0.0}
        assert found["ddp"]["losses"]["ddp"] == found["ddp"]["losses"]["alone"]


def test_a_missing_gpu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cuda:99"])
    import gpu

    with pytest.raises(SystemExit, match="cuda:99 is not on this machine.*--device cpu --tiny checks the script"):
        gpu.main()
