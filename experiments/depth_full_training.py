"""Experiment: whether ResNet-56 ends with a lower error than ResNet-20 (He et al. 2015, figure 6), trained in full.

Both networks are trained on CIFAR-10 with all settings of the paper's §4.2 and all of its 64,000 steps (182 epochs of
352 steps; recipe `resnet-cifar`, bfloat16 products, one thread). Of one seed, this takes ResNet-56 about 13 hours and
ResNet-20 about 5 hours of one core, so the script trains for `--minutes` and stops; called again, it resumes. In turns,
the network with fewer steps is trained, so that both can be compared at any time. The claim to show: after 64,000
steps, the test error of ResNet-56 is lower than that of ResNet-20, for each seed.

    SVERTKA_DATA=… python experiments/depth_full_training.py [--minutes 60] [--seed 0]
    python experiments/depth_full_training.py --draw      # the figure and the table, from the stored results
"""

import argparse
import signal
import subprocess
import sys
import time
from typing import Any

from harness import COLORS, METRICS, RUNS, figure, print_table, read_metrics, write_metrics

from svertka.run import Run

NETWORKS = ("resnet20", "resnet56")
NAME = "depth_full_training"
EPOCHS = 182
SETTINGS = ("--recipe", "resnet-cifar", "--epochs", str(EPOCHS), "--bfloat16", "--threads", "1")
TURN = 10.0  # minutes
MARKED = (1, 2, 5, 10, 20, 50, 91, 137, 182)  # epochs in the table; the learning rate falls after 91 and 137


def run_of(network: str, seed: int) -> Run:
    """Return the run of a network, which may not exist yet."""
    return Run(RUNS / f"depth-full-{network}-{seed}")


def steps(run: Run) -> int:
    """Return how many steps are recorded."""
    return max((int(line["step"]) for line in run.history() if line["kind"] in ("step", "epoch")), default=0)


def advance(network: str, seed: int, seconds: float) -> None:
    """Begin or resume a training, and stop it after some seconds; it saves its state. Exit if it fails."""
    run = run_of(network, seed)
    command = [sys.executable, "-m", "svertka", "train"]
    if run.checkpoint.exists():
        command += ["--resume", str(run.folder)]
    else:
        command += ["cifar10", "--model", network, "--seed", str(seed), *SETTINGS, "--output", str(run.folder)]
    with subprocess.Popen(command) as training:
        try:
            training.wait(seconds)
        except subprocess.TimeoutExpired:
            training.send_signal(signal.SIGTERM)
        code = training.wait()
    if code not in (0, 128 + signal.SIGTERM):
        sys.exit(code)  # the training has said why


def train(minutes: float, seed: int) -> None:
    """Train for some minutes, in turns the network with fewer steps that is not finished."""
    ends = time.monotonic() + 60 * minutes
    while (left := ends - time.monotonic()) > 0:
        unfinished = [one for one in NETWORKS if not run_of(one, seed).is_finished]
        if not unfinished:
            return
        advance(min(unfinished, key=lambda one: steps(run_of(one, seed))), seed, min(left, 60 * TURN))


def measure(seed: int) -> list[dict[str, Any]]:
    """Return the epochs and results of both networks, with those of other seeds that are stored already."""
    others = read_metrics(NAME) if (METRICS / f"{NAME}.jsonl").exists() else []
    rows = [row for row in others if row["seed"] != seed]
    for network in NETWORKS:
        run = run_of(network, seed)
        for line in run.history():
            if line["kind"] in ("epoch", "result"):
                keys = {"kind", "epoch", "step", "train_error", "val_error", "test_error"} & line.keys()
                rows.append({"network": network, "seed": seed} | {key: line[key] for key in sorted(keys)})
        rows.append({"network": network, "seed": seed, "kind": "steps", "step": steps(run)})
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw the figure and print the table."""
    epochs = [row for row in rows if row["kind"] == "epoch"]
    with figure(NAME, panels=2) as (_, panels):
        for axes, key, title in zip(panels, ("train_error", "val_error"), ("training", "validation"), strict=True):
            for color, network in zip(COLORS, NETWORKS, strict=False):
                for number, seed in enumerate(sorted({row["seed"] for row in epochs})):
                    own = [row for row in epochs if (row["network"], row["seed"]) == (network, seed)]
                    label = None if number else network
                    axes.plot(
                        [row["epoch"] for row in own], [100 * row[key] for row in own], "o-", ms=2, lw=1,
                        color=color, label=label,
                    )  # fmt: skip
            axes.set(xlabel="epoch", ylabel=f"{title} error, %", ylim=(0, None))
            if epochs:
                axes.legend()
    table = []
    for row in epochs:
        if row["epoch"] in MARKED:
            errors = (f"{100 * row[key]:.1f}" for key in ("train_error", "val_error"))
            table.append([row["network"], row["seed"], row["epoch"], row["step"], *errors])
    table.sort(key=lambda row: (row[1], row[2], row[0]))
    print_table(["network", "seed", "epoch", "steps", "training error, %", "validation error, %"], table)
    for row in rows:
        if row["kind"] == "steps":
            print(f"{row['network']}, seed {row['seed']}: {row['step']:,} of about 64,000 steps")
        elif row["kind"] == "result":
            print(f"{row['network']}, seed {row['seed']}: finished, test error {row['test_error']:.2%}")


def main() -> None:
    """Train for some minutes, store the numbers and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="how long to train now (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draw", action="store_true", help="draw the stored results without training")
    options = parser.parse_args()
    if not options.draw:
        train(options.minutes, options.seed)
        write_metrics(NAME, measure(options.seed))
    draw(read_metrics(NAME))


if __name__ == "__main__":
    main()
