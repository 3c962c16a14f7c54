from pathlib import Path

import pytest

from svertka.errors import RunError, UsageError
from svertka.run import Run, new_folder


def test_making_one_touches_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert run.name == "run"
    assert run.history() == []
    assert not run.folder.exists()


def test_history_leaves_out_a_line_that_a_crash_cut_short(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.metrics.write_text('{"kind": "step", "step": 1}\n{"kind": "ste')
    assert run.history() == [{"kind": "step", "step": 1}]
    with pytest.raises(RunError, match="has not finished; continue it with `svertka train --resume"):
        run.result()


def test_a_new_folder_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_folder("digits", "lenet5", None) == Path("runs/digits-lenet5")
    Path("runs/digits-lenet5").mkdir(parents=True)
    assert new_folder("digits", "lenet5", None) == Path("runs/digits-lenet5-2")
    Path("photos.d").mkdir()
    assert new_folder(str(tmp_path / "photos.d"), "resnet20", None) == Path("runs/photos.d-resnet20")
    assert new_folder("digits", "lenet5", "here") == Path("here")
    with pytest.raises(UsageError, match=r"runs exists already; continue it \(svertka train --resume runs\)"):
        new_folder("digits", "lenet5", "runs")
