from pathlib import Path

import pytest

from svertka.errors import RunError
from svertka.run import Run


def test_making_one_touches_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert run.name == "run"
    assert run.history() == []
    assert not run.folder.exists()


def test_history_leaves_out_a_line_that_a_crash_cut_short(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.metrics.write_text('{"kind": "step", "step": 1}\n{"kind": "ste')
    assert run.history() == [{"kind": "step", "step": 1}]
    with pytest.raises(RunError, match="has not finished; continue it with: svertka train --resume"):
        run.result()
