"""The experiments' scripts run, and draw the figures in docs/ from the numbers that are kept beside them."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "experiments"
TEXTS = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("*.py"))}
SCRIPTS = [path for path, text in TEXTS.items() if "__main__" in text]
DRAWN = [path for path in SCRIPTS if "--draw" in TEXTS[path]]
KEPT = [
    path for path in DRAWN if path.stem == "ilsvrc_depth_vs_error" or (ROOT / "metrics" / f"{path.stem}.jsonl").exists()
]
# Their figures show photographs, which are not stored: only the table can be printed again.
OF_PICTURES = ("unit_visualization",)


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(ROOT))
    import harness

    monkeypatch.setattr(harness, "FIGURES", tmp_path)
    return tmp_path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_explains_itself(
    script: Path, figures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(script), run_name="__main__")
    assert f"python experiments/{script.name}" in capsys.readouterr().out


@pytest.mark.parametrize("script", KEPT, ids=lambda path: path.stem)
def test_draws_from_what_is_kept(
    script: Path, figures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--draw"])
    runpy.run_path(str(script), run_name="__main__")
    if script.stem not in OF_PICTURES:
        assert (figures / f"{script.stem}.png").stat().st_size > 10_000
    assert "|---|" in capsys.readouterr().out
