"""Experiment: whether ResNet-56 ends with a lower error than ResNet-20 (He et al. 2015, figure 6).

Both networks are trained on CIFAR-10 with the settings of the paper's §4.2 (recipe `resnet-cifar`, bfloat16 products,
one thread). The paper's 64,000 steps are 182 epochs of 352 steps: of one seed, they take ResNet-56 about 13 hours and
ResNet-20 about 5 hours of one core. With fewer `--epochs`, the learning rate falls after the same shares of the steps:
one half and three quarters. The script trains for `--minutes` and stops; called again, it resumes. In turns, the
network with fewer steps is trained, so that both can be compared at any time. The claim to show: at the end, the test
error of ResNet-56 is lower than that of ResNet-20.

    SVERTKA_DATA=… python experiments/depth_and_steps.py [--epochs 182] [--minutes 60] [--seed 0]
    python experiments/depth_and_steps.py --draw      # the figure and the table, from the stored results
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
NAME = "depth_and_steps"
SETTINGS = ("--recipe", "resnet-cifar", "--bfloat16", "--threads", "1")
TURN = 10.0  # minutes
MARKED = (1, 2, 5, 10, 20, 50, 91, 137, 182)  # epochs in the table, besides the last


def run_of(network: str, epochs: int, seed: int) -> Run:
    """Return the run of a network, which may not exist yet."""
    return Run(RUNS / f"depth-{network}-{epochs}-{seed}")


def steps(run: Run) -> int:
    """Return how many steps are recorded."""
    return max((int(line["step"]) for line in run.history() if line["kind"] in ("step", "epoch")), default=0)


def advance(network: str, epochs: int, seed: int, seconds: float) -> None:
    """Begin or resume a training, and stop it after some seconds; it saves its state. Exit if it fails."""
    run = run_of(network, epochs, seed)
    command = [sys.executable, "-m", "svertka", "train"]
    if run.checkpoint.exists():
        command += ["--resume", str(run.folder)]
    else:
        command += ["cifar10", "--model", network, "--epochs", str(epochs), "--seed", str(seed), *SETTINGS]
        command += ["--output", str(run.folder)]
    with subprocess.Popen(command) as training:
        try:
            training.wait(seconds)
        except subprocess.TimeoutExpired:
            training.send_signal(signal.SIGTERM)
        code = training.wait()
    if code not in (0, 128 + signal.SIGTERM):
        sys.exit(code)  # the training has said why


def train(minutes: float, epochs: int, seed: int) -> None:
    """Train for some minutes, in turns the network with fewer steps that is not finished."""
    ends = time.monotonic() + 60 * minutes
    while (left := ends - time.monotonic()) > 0:
        unfinished = [one for one in NETWORKS if not run_of(one, epochs, seed).is_finished]
        if not unfinished:
            return
        network = min(unfinished, key=lambda one: steps(run_of(one, epochs, seed)))
        advance(network, epochs, seed, min(left, 60 * TURN))


def measure(epochs: int, seed: int) -> list[dict[str, Any]]:
    """Return the epochs and results of both networks, with the other trainings that are stored already."""
    others = read_metrics(NAME) if (METRICS / f"{NAME}.jsonl").exists() else []
    rows = [row for row in others if (row["epochs"], row["seed"]) != (epochs, seed)]
    for network in NETWORKS:
        run = run_of(network, epochs, seed)
        own = {"network": network, "epochs": epochs, "seed": seed}
        for line in run.history():
            if line["kind"] in ("epoch", "result"):
                keys = {"kind", "epoch", "step", "train_error", "val_error", "test_error"} & line.keys()
                rows.append(own | {key: line[key] for key in sorted(keys)})
        rows.append(own | {"kind": "steps", "step": steps(run)})
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw the figure and print the table."""
    epochs = [row for row in rows if row["kind"] == "epoch"]
    trainings = sorted({(row["epochs"], row["seed"]) for row in rows})
    with figure(NAME, panels=2) as (_, panels):
        for axes, key, title in zip(panels, ("train_error", "val_error"), ("training", "validation"), strict=True):
            for color, network in zip(COLORS, NETWORKS, strict=False):
                for number, training in enumerate(trainings):
                    own = [
                        row for row in epochs if (row["network"], row["epochs"], row["seed"]) == (network, *training)
                    ]
                    label = None if number else network
                    axes.plot(
                        [row["epoch"] for row in own], [100 * row[key] for row in own], "o-", ms=2, lw=1,
                        color=color, label=label,
                    )  # fmt: skip
            axes.set(xlabel="epoch", ylabel=f"{title} error, %", ylim=(0, None))
            axes.legend()
    table = []
    for row in sorted(epochs, key=lambda row: (row["epochs"], row["seed"], row["epoch"], row["network"])):
        if row["epoch"] in (*MARKED, row["epochs"]):
            errors = (f"{100 * row[key]:.1f}" for key in ("train_error", "val_error"))
            table.append([row["network"], row["seed"], f"{row['epoch']} of {row['epochs']}", row["step"], *errors])
    print_table(["network", "seed", "epoch", "steps", "training error, %", "validation error, %"], table)
    for row in rows:
        name = f"{row['network']}, {row['epochs']} epochs, seed {row['seed']}"
        if row["kind"] == "steps":
            print(f"{name}: {row['step']:,} of about {352 * row['epochs']:,} steps")
        elif row["kind"] == "result":
            print(f"{name}: finished, test error {row['test_error']:.2%}")


def main() -> None:
    """Train for some minutes, store the numbers and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=182, help="passes over the training images (default: 182)")
    parser.add_argument("--minutes", type=float, default=60, help="how long to train now (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draw", action="store_true", help="draw the stored results without training")
    options = parser.parse_args()
    if not options.draw:
        train(options.minutes, options.epochs, options.seed)
        write_metrics(NAME, measure(options.epochs, options.seed))
    draw(read_metrics(NAME))


if __name__ == "__main__":
    main()
