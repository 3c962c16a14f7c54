"""The experiments' scripts run, and draw the figures in docs/ from the numbers that are kept beside them."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "experiments"
TEXTS = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("*.py"))}
SCRIPTS = [path for path, text in TEXTS.items() if "__main__" in text]
DRAWN = [path for path in SCRIPTS if "--draw" in TEXTS[path]]
# The name of the stored numbers and of the figure; ilsvrc_depth_vs_error has no numbers of its own.
NAMES = {
    path: named[1] if (named := re.search(r'main\(__doc__, "(\w+)"', TEXTS[path])) else path.stem for path in DRAWN
}
KEPT = [
    path
    for path, name in NAMES.items()
    if name == "ilsvrc_depth_vs_error" or (ROOT / "metrics" / f"{name}.jsonl").exists()
]
# Their figures show photographs, which are not stored: only the table can be printed again.
OF_PICTURES = ("unit_visualization",)
OF_A_FOLDER = [path for path in SCRIPTS if "data_folder()" in TEXTS[path]]
DEAR = ("mlp_vs_convnet_overfitting",)  # it counts the parameters of large networks


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


@pytest.mark.parametrize(
    "script",
    [pytest.param(path, marks=pytest.mark.large if path.stem in DEAR else ()) for path in KEPT],
    ids=lambda path: path.stem,
)
def test_draws_from_what_is_kept(
    script: Path, figures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--draw"])
    runpy.run_path(str(script), run_name="__main__")
    if script.stem not in OF_PICTURES:
        assert (figures / f"{NAMES[script]}.png").stat().st_size > 10_000
    assert "|---|" in capsys.readouterr().out


@pytest.mark.parametrize("script", OF_A_FOLDER, ids=lambda path: path.stem)
def test_says_which_folder_is_missing(
    script: Path, figures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SVERTKA_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", [str(script)])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(script), run_name="__main__")
    assert "SVERTKA_DATA is not set; set it to the folder" in capsys.readouterr().err


def test_rows_of_other_seeds_are_kept(figures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import harness

    monkeypatch.setattr(harness, "METRICS", tmp_path)
    drawn: list[list[dict[str, int]]] = []
    for seeds, value in (((0, 2), 1), ((1, 2), 5)):
        monkeypatch.setattr(sys, "argv", ["script", "--seeds", *map(str, seeds)])
        harness.main("", "numbers", lambda seed, value=value: [{"seed": seed, "x": seed + value}], drawn.append, (0,))
    assert [[(row["seed"], row["x"]) for row in rows] for rows in drawn] == [[(0, 1), (2, 3)], [(0, 1), (1, 6), (2, 7)]]


def test_no_script_reads_the_folder_by_itself() -> None:
    assert len(OF_A_FOLDER) == 4
    benchmarks = {path: path.read_text() for path in ROOT.with_name("bench").glob("*.py")}
    assert len(benchmarks) > 30
    own = re.compile(r'environ(\.get\(|\[)"SVERTKA_DATA"')
    assert [path.name for path, text in (TEXTS | benchmarks).items() if own.search(text)] == []
