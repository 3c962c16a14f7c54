"""The harness of the experiments: their command line, a table on the terminal, and numbers and figures as files."""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

import svertka
from svertka.errors import SvertkaError
from svertka.run import Run

ROOT = Path(__file__).parent
FIGURES = ROOT.parent / "docs" / "figures"
METRICS = ROOT / "metrics"
RUNS = ROOT.parent / "runs"

# Colors that color-blind people can tell apart, also in print: Okabe & Ito 2008.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@contextmanager
def figure(name: str, panels: int = 1, height: float = 3.4, rows: int = 1) -> Iterator[tuple[Figure, Any]]:
    """Yield a figure with a row of axes for each of `rows`, and write it to docs/figures/NAME at the end.

    `name` ends in .webp if the figure consists of photographs, which then takes less space; otherwise it is a .png.
    """
    style = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.axisbelow": True,
        "axes.prop_cycle": plt.cycler(color=COLORS),
        "figure.constrained_layout.use": True,
    }
    with plt.rc_context(style):
        drawn, axes = plt.subplots(rows, panels, figsize=(4.6 * panels, height * rows))
        yield drawn, axes
        FIGURES.mkdir(parents=True, exist_ok=True)
        drawn.savefig(FIGURES / (name if "." in name else f"{name}.png"), dpi=150)
        plt.close(drawn)


def write_metrics(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows`, the numbers behind a figure, to experiments/metrics/NAME.jsonl, one per line."""
    METRICS.mkdir(exist_ok=True)
    (METRICS / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(name: str) -> list[dict[str, Any]]:
    """Return the rows that `write_metrics` wrote."""
    return [json.loads(line) for line in (METRICS / f"{name}.jsonl").read_text().splitlines()]


def read_others(name: str, is_own: Callable[[Mapping[str, Any]], bool]) -> list[dict[str, Any]]:
    """Return the stored rows that are not a measurement's own; none if nothing is stored."""
    stored = read_metrics(name) if (METRICS / f"{name}.jsonl").exists() else []
    return [row for row in stored if not is_own(row)]


def write_seeds(name: str, seeds: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows`, all of `seeds`, by `write_metrics`, and keep the stored rows of other seeds."""
    others = read_others(name, lambda row: row["seed"] in seeds)
    write_metrics(name, sorted([*others, *rows], key=lambda row: row["seed"]))


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table in Markdown."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


def trained(name: str, source: Path | str, **settings: Any) -> Run:
    """Return the run runs/NAME; train it by `svertka.train(source, **settings)` if it does not exist."""
    run = Run(RUNS / name)
    if not run.report.exists():
        shutil.rmtree(run.folder, ignore_errors=True)
        svertka.train(source, output=run.folder, **settings)
    return run


def main(
    text: str | None,
    name: str,
    measure: Callable[..., list[dict[str, Any]]],
    draw: Callable[[list[dict[str, Any]]], None],
    seeds: Sequence[int] = (),
) -> None:
    """Run the command line of the experiment `name`: `measure` on one thread, store the rows, and `draw` them.

    `text` is the text of --help. `measure` is called once for each of `seeds`, or once if there are none. The stored
    rows of other seeds are kept. With --draw, nothing is measured, and the stored rows are drawn.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    if seeds:
        parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--draw", action="store_true", help="draw the stored results without measuring")
    options = parser.parse_args()
    if not options.draw:
        torch.set_num_threads(1)
        rows: list[dict[str, Any]] = []
        try:
            for number, seed in enumerate(options.seeds if seeds else (), start=1):
                rows += measure(seed)
                write_seeds(name, options.seeds[:number], rows)
            if not seeds:
                write_metrics(name, measure())
        except SvertkaError as error:
            parser.exit(error.exit_code, f"{parser.prog}: {error}\n")
    draw(read_metrics(name))
