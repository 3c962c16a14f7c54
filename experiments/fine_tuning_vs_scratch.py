"""Experiment: fine-tuning against training from scratch, with one network, four ways to train it and the same time.

EfficientNet-Lite0 on the 1,399 photographs of `cats-dogs`, with 30 % for testing and 10 % for validation. Each training
takes 40 seconds on 2 threads, including planning and the computation of features. From scratch, it uses recipe
`photos`. The others start from the bundled ImageNet weights: with everything frozen but the head (`frozen`), with the
last stage trained, too, and with all layers trained (`fine-tuning`, with learning rates that halve from stage to
stage). Each chooses its epoch on the validation set and is scored on the test set once. 3 seeds, each with its own
split, about fourteen minutes.

    SVERTKA_DATA=… python experiments/fine_tuning_vs_scratch.py [--seeds 0 1 2]
    python experiments/fine_tuning_vs_scratch.py --draw      # the figure and the table, from the stored results
"""

from typing import Any

from harness import COLORS, figure, main, print_table, trained
from training_helpers import per_cent

from svertka.data.builtin import data_folder

SEEDS = (0, 1, 2)
BUDGET = "40s"
WAYS: dict[str, dict[str, Any]] = {
    "from scratch": {"recipe": "photos"},
    "frozen": {"weights": "bundled"},
    "last stage unfrozen": {"weights": "bundled", "unfreeze": "last"},
    "all unfrozen": {"weights": "bundled", "unfreeze": "all"},
}


def measure(seed: int) -> list[dict[str, Any]]:
    """Return the results of all four ways."""
    source = data_folder() / "cats-dogs"
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
    """Draw the figure and print the table."""
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
        axes.set_yscale("symlog", linthresh=1)  # some errors reach zero
        axes.set(xlabel="seconds of learning", ylabel="val error, %")
        axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.9))
    print_table(["", "passes in 40 s", "test error"], table)


if __name__ == "__main__":
    main(__doc__, "fine_tuning_vs_scratch", measure, draw, SEEDS)
