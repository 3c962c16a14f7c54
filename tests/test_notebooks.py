"""The notebooks run as a student finds them, were executed when they were stored, and have all exercises."""

import json
import re
import resource
from pathlib import Path
from typing import Any

import pytest

from svertka import lessons

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
FIGURES = {"image/png", "image/jpeg"}
CPU_SECONDS = 360  # 3 minutes of 2 cores; the clock would depend on what else runs
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_every_exercise_is_in_one_notebook() -> None:
    sources = ["".join(cell["source"]) for path in NOTEBOOKS for cell in code_cells(path)]
    asked = [number for source in sources for number in re.findall(r'lessons\.check\("([\d.]+)"', source)]
    assert asked == list(lessons.EXERCISES)


@every_notebook
def test_it_is_stored_with_its_results(path: Path) -> None:
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum(not FIGURES.isdisjoint(output.get("data", {})) for output in outputs) >= 2
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@every_notebook
def test_its_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https:)([^)#]+)", path.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # matplotlib reads tensors
@pytest.mark.parametrize(
    ("notebook", "exercise", "name"),
    [
        ("02_stride_padding_dilation", "2.1", "output_size"),
        ("03_gradients_and_transposed_convolution", "3.1", "input_gradient"),
    ],
)
def test_a_notebook_runs_without_jupyter(notebook: str, exercise: str, name: str) -> None:
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    for cell in code_cells(FOLDER / f"{notebook}.ipynb"):
        exec("".join(cell["source"]), names)
    plt.close("all")
    assert "The function" in lessons.check(exercise, names[name]).reason


@pytest.mark.large
@every_notebook
def test_it_needs_at_most_three_minutes_of_two_cores(path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    NotebookClient(nbformat.read(path, as_version=4), timeout=3000, resources={"metadata": {"path": FOLDER}}).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # the kernel and its children have ended
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < CPU_SECONDS


@pytest.mark.large
@pytest.mark.parametrize("notebook", ["08_what_units_look_for", "09_transfer_and_freezing", "10_sliding_patches"])
def test_a_notebook_on_photographs_runs_without_them(notebook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("Agg")
    monkeypatch.delenv("SVERTKA_DATA", raising=False)
    names: dict[str, Any] = {}
    for cell in code_cells(FOLDER / f"{notebook}.ipynb"):
        exec("".join(cell["source"]), names)
        plt.close("all")
