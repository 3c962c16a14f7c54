"""Training from scratch is long and hard, fine-tuning much easier: one network, four ways to train it, the same time.

EfficientNet-Lite0 on the 1,399 photographs of `cats-dogs`, three tenths of them test, a tenth val; 40 seconds for each
training, with the planning and the features that it takes; 2 threads. From scratch: recipe `photos`; the others start
from the bundled ImageNet weights: frozen but for the head (`frozen`), the last stage learning too, and all of it
(`fine-tuning`, for the last with rates that halve from stage to stage). Each picks its epoch on val and is scored on
test once. 3 seeds, each with its own division: about fourteen minutes.

    SVERTKA_DATA=… python experiments/fine_tuning_vs_scratch.py [--seeds 0 1 2]
    python experiments/fine_tuning_vs_scratch.py --draw      # the figure and the table from what is there
"""

import os
from pathlib import Path
from typing import Any

from record import COLORS, figure, main, print_table, trained
from shared_training import per_cent

SEEDS = (0, 1, 2)
BUDGET = "40s"
WAYS: dict[str, dict[str, Any]] = {
    "from scratch": {"recipe": "photos"},
    "frozen": {"weights": "bundled"},
    "last stage unfrozen": {"weights": "bundled", "unfreeze": "last"},
    "all unfrozen": {"weights": "bundled", "unfreeze": "all"},
}


def measure(seed: int) -> list[dict[str, Any]]:
    """All four ways."""
    source = Path(os.environ["SVERTKA_DATA"]).resolve() / "cats-dogs"
    rows = []
    for way, settings in WAYS.items():
        run = trained(
            f"carrying-over-{way.replace(' ', '-')}-{seed}",
            source,
            model="efficientnet_lite0",
            time=BUDGET,
            test=0.3,
            seed=seed,
            split_seed=seed,
            threads=2,
            **settings,
        )
        result = run.result()
        epochs = [entry for entry in run.history() if entry["kind"] == "epoch"]
        row = {
            "way": way,
            "seed": seed,
            "test_error": result["test_error"],
            "epochs": result["epochs"],
            "seconds": result["seconds"],
            "curve": [[round(entry["seconds"], 2), round(entry["val_error"], 4)] for entry in epochs],
        }
        print({name: value for name, value in row.items() if name != "curve"}, flush=True)
        rows.append(row)
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """The figure and the table."""
    table = []
    with figure("fine_tuning_vs_scratch") as (_, axes):
        for way, color in zip(WAYS, COLORS, strict=False):
            own = [row for row in rows if row["way"] == way]
            for place, row in enumerate(own):
                seconds, errors = zip(*row["curve"], strict=True)
                percent = [100 * error for error in errors]
                marker = "o" if len(percent) < 5 else None
                label = None if place else way
                axes.plot(seconds, percent, color=color, linewidth=1, marker=marker, markersize=3, label=label)
            epochs = ", ".join(f"{row['epochs']:.3g}" for row in own)
            table.append([way, epochs, per_cent([row["test_error"] for row in own])])
        axes.set_yscale("symlog", linthresh=1)  # some reach zero
        axes.set(xlabel="seconds of learning", ylabel="val error, %")
        axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.9))
    print_table(["", "passes in 40 s", "test error"], table)


if __name__ == "__main__":
    main(__doc__, "fine_tuning_vs_scratch", measure, draw, SEEDS)
