"""Figure: layers and top-5 error of the ImageNet challenge's winners, the lecture's "revolution of depth".

Nothing is measured: the numbers are those that the papers report, from `svertka.models.ilsvrc_winners`.

    python experiments/ilsvrc_depth_vs_error.py
"""

import argparse

from harness import COLORS, figure, print_table

from svertka.models.ilsvrc_winners import ILSVRC_RESULTS


def draw() -> None:
    """Draw the figure and print the table."""
    places = range(len(ILSVRC_RESULTS))
    with figure("ilsvrc_depth_vs_error", panels=2, height=3) as (_, (errors, layers)):
        bars = errors.barh(places, [one.top5_error for one in ILSVRC_RESULTS], 0.65, color=COLORS[0])
        errors.bar_label(bars, [f"{one.top5_error:g} %" for one in ILSVRC_RESULTS], padding=3)
        errors.set_yticks(places, [f"{one.name}, {one.year}" for one in ILSVRC_RESULTS])
        errors.set(xlabel="top-5 error, %", xlim=(0, 33))
        bars = layers.barh(places, [one.layers or 0 for one in ILSVRC_RESULTS], 0.65, color=COLORS[1])
        layers.bar_label(bars, [str(one.layers or "shallow") for one in ILSVRC_RESULTS], padding=3)
        layers.set_yticks(places, [""] * len(ILSVRC_RESULTS))
        layers.set(xlabel="layers with weights", xlim=(0, 172))
        for axes in (errors, layers):
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
    rows = [
        [one.year, one.name, one.layers or "shallow", f"{one.top5_error:g} %", one.source] for one in ILSVRC_RESULTS
    ]
    print_table(["year", "entry", "layers", "top-5 error", "source"], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="no effect: nothing is trained")
    parser.parse_args()
    draw()
