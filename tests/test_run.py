import json
from pathlib import Path

import pytest

from svertka.errors import RunError
from svertka.run import Run, columns_of_training, read_training_boxes


def test_creating_a_run_does_not_touch_the_disk(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert run.name == "run"
    assert run.history() == []
    assert not run.folder.exists()


def test_a_loop_of_links_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert Run(tmp_path / "loop").name == "loop"


def test_history_leaves_out_a_line_that_a_crash_cut_short(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.metrics.write_text('{"kind": "step", "step": 1}\n{"kind": "ste')
    assert run.history() == [{"kind": "step", "step": 1}]
    with pytest.raises(RunError, match="has not finished; continue it with: svertka train --resume"):
        run.result()


def ways_to(source: Path, tmp_path: Path) -> list[Path]:
    """The same source as it is, through a link to it, through one to its folder, and with .. in its path."""
    linked, around = tmp_path / source.name.replace("photos", "link"), tmp_path / "around"
    linked.symlink_to(source)
    around.symlink_to(source.parent)
    return [source, linked, around / source.name, source.parent / ".." / source.parent.name / source.name]


@pytest.mark.parametrize("way", range(4))
def test_columns_and_boxes_are_found_for_any_path_to_the_source(way: int, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    source = tmp_path / "data" / "photos.csv"
    source.parent.mkdir()
    source.write_text("img,digit\n")
    said = {"source": str(source), "columns": "path=img,label=digit", "boxes": "boxes.csv"}
    run.training.write_text(json.dumps(said))
    path = ways_to(source, tmp_path)[way]
    assert (columns_of_training(run, path), read_training_boxes(run, path)) == (said["columns"], said["boxes"])
    other = tmp_path / "other.csv"
    other.write_text("img,digit\n")
    assert columns_of_training(run, other) is None
