import json
from pathlib import Path

import pytest
import torch

from svertka.errors import RunError
from svertka.run import Run
from svertka.training.builtin_recipes import RECIPES
from svertka.training.config import RunSettings, get_versions

SETTINGS = RunSettings(
    source="digits", fingerprint="ab", parts={"train": 3}, bad=[], val=0.1, test=0.0, model="mlp", recipe_name="photos",
    recipe=RECIPES["photos"], stored_side=8, seed=0, device="cpu", threads=2, memory_format="channels_last",
    prefetch=True, cache_limit=None,
)  # fmt: skip


def test_training_json_survives(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.training.write_text(SETTINGS.model_dump_json())
    assert RunSettings.of(run) == SETTINGS
    assert RunSettings.of(run).layout == torch.channels_last
    assert set(get_versions()) == {"svertka", "torch", "python"}


@pytest.mark.parametrize(
    "change", [{"threads": "many"}, {"memory_format": "sparse"}, {"extra": 1}, {"recipe": {"lr": 0}}]
)
def test_a_value_that_cannot_be_is_one_sentence(tmp_path: Path, change: dict[str, object]) -> None:
    run = Run(tmp_path)
    run.training.write_text(json.dumps(json.loads(SETTINGS.model_dump_json()) | change))
    with pytest.raises(RunError, match=f"training.json is damaged .*{next(iter(change))}") as caught:
        RunSettings.of(run)
    assert "\n" not in str(caught.value)
