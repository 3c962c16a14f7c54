"""The stored pass over the images."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from svertka.inspection.atlas import dataset_pass as dataset_pass
from svertka.inspection.atlas.classifier_and_images import open_atlas_inputs
from svertka.inspection.atlas.dataset_pass import PASS_FILE, run_dataset_pass
from svertka.inspection.atlas.resumable_folder import ResumableFolder


def test_pass_runs_once_and_again_if_its_file_is_damaged(
    squeezenet_run: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, passes = torch.device("cpu"), [0]
    inputs = open_atlas_inputs(squeezenet_run, photographs, images=6, device=place, threads=1, cache_limit=None)
    real = dataset_pass.top_patches

    def counted(*arguments: object) -> object:
        passes[0] += 1
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset_pass, "top_patches", counted)
    layers = ["features.0", "features.3.squeeze"]
    folder = ResumableFolder(tmp_path, "a")
    first, again = (
        run_dataset_pass(inputs, folder, layers),
        run_dataset_pass(inputs, ResumableFolder(tmp_path, "a"), layers),
    )
    assert passes == [1]
    assert again.seconds_per_image == first.seconds_per_image > 0
    for name in layers:
        for field in fields(first.patches[name]):
            one, other = (getattr(each.patches[name], field.name) for each in (first, again))
            np.testing.assert_array_equal(one, other)
            assert type(one) is type(other)
    assert first.patches["features.0"].images.max() < 6  # as the inputs counts
    (tmp_path / PASS_FILE).write_bytes((tmp_path / PASS_FILE).read_bytes()[:-9])
    run_dataset_pass(inputs, ResumableFolder(tmp_path, "a"), layers)
    assert passes == [2]
