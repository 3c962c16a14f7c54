"""Experiment: whether ResNet-56 ends with a lower error than ResNet-20 (He et al. 2015, figure 6).

Both networks are trained on CIFAR-10 with the settings of the paper's §4.2 (recipe `resnet-cifar`, bfloat16 products,
one thread). The paper's 64,000 steps are 182 epochs of 352 steps: of one seed, they take ResNet-56 about 13 hours and
ResNet-20 about 5 hours of one core. With fewer `--epochs`, the learning rate falls after the same shares of the steps:
one half and three quarters. The script trains for `--minutes` and stops; called again, it resumes. In turns, the
network with fewer steps is trained, so that both can be compared at any time. The claim to show: at the end, the test
error of ResNet-56 is lower than that of ResNet-20. With `--identity`, each block of both networks is the identity at
first (identity_blocks.py); all else is the same.

    SVERTKA_DATA=… python experiments/depth_and_steps.py [--epochs 182] [--minutes 60] [--seed 0] [--identity]
    python experiments/depth_and_steps.py --draw      # the figure and the table, from the stored results
"""

import argparse
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from harness import COLORS, ROOT, RUNS, figure, print_table, read_metrics, read_others, write_metrics

from svertka.run import Run

NETWORKS = ("resnet20", "resnet56")
NAME = "depth_and_steps"
SETTINGS = ("--recipe", "resnet-cifar", "--bfloat16", "--threads", "1")
TURN = 10.0  # minutes
MARKED = (1, 2, 5, 10, 20, 50, 91, 137, 182)  # epochs in the table, besides the last


@dataclass(frozen=True)
class Training:
    """What the trainings of both networks have in common."""

    epochs: int
    seed: int
    identity: bool  # each block is the identity at first

    def run_of(self, network: str) -> Run:
        """Return the run of a network, which may not exist yet."""
        return Run(RUNS / f"depth-{network}-{self.epochs}-{self.seed}{'-identity' * self.identity}")

    def model_of(self, network: str) -> str:
        """Return what the command line calls the network."""
        return f"{ROOT / 'identity_blocks.py'}:{network}" if self.identity else network

    @property
    def start(self) -> str:
        """What the blocks are at first."""
        return "identity first" if self.identity else "as in the paper"

    @property
    def keys(self) -> dict[str, Any]:
        """The keys of its rows."""
        return {"epochs": self.epochs, "seed": self.seed, "identity": self.identity}


def steps(run: Run) -> int:
    """Return how many steps are recorded."""
    return max((int(line["step"]) for line in run.history() if line["kind"] in ("step", "epoch")), default=0)


def advance(network: str, training: Training, seconds: float) -> None:
    """Begin or resume a training, and stop it after some seconds; it saves its state. Exit if it fails."""
    run = training.run_of(network)
    command = [sys.executable, "-m", "svertka", "train"]
    if run.checkpoint.exists():
        command += ["--resume", str(run.folder), *["--trust-builder"] * training.identity]
    else:
        command += ["cifar10", "--model", training.model_of(network), *SETTINGS]
        command += ["--epochs", str(training.epochs), "--seed", str(training.seed), "--output", str(run.folder)]
    with subprocess.Popen(command) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
        code = process.wait()
    if code not in (0, 128 + signal.SIGTERM):
        sys.exit(code)  # the training has said why


def train(training: Training, minutes: float) -> None:
    """Train for some minutes, in turns the network with fewer steps that is not finished."""
    ends = time.monotonic() + 60 * minutes
    while (left := ends - time.monotonic()) > 0:
        unfinished = [network for network in NETWORKS if not training.run_of(network).is_finished]
        if not unfinished:
            return
        network = min(unfinished, key=lambda one: steps(training.run_of(one)))
        advance(network, training, min(left, 60 * TURN))


def measure(training: Training) -> list[dict[str, Any]]:
    """Return the epochs and results of both networks."""
    rows = []
    for network in NETWORKS:
        run = training.run_of(network)
        own = {"network": network, **training.keys}
        for line in run.history():
            if line["kind"] in ("epoch", "result"):
                keys = {"kind", "epoch", "step", "train_error", "val_error", "test_error"} & line.keys()
                rows.append(own | {key: line[key] for key in sorted(keys)})
        rows.append(own | {"kind": "steps", "step": steps(run)})
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw the figure and print the table."""
    trainings = {training_of(row): None for row in rows}
    drawn = [(training, network) for training in trainings for network in NETWORKS]
    own = {one: [row for row in rows if (training_of(row), row["network"]) == one] for one in drawn}
    table = []
    with figure(NAME, panels=2) as (_, panels):
        for training, network in drawn:
            epochs = [row for row in own[training, network] if row["kind"] == "epoch"]
            color, dashes = COLORS[NETWORKS.index(network)], "-" if training.identity else "--"
            for axes, key in zip(panels, ("train_error", "val_error"), strict=True):
                errors = [100 * row[key] for row in epochs]
                axes.plot([row["epoch"] for row in epochs], errors, "o", ms=2, lw=1, ls=dashes, color=color,
                          label=f"{network}, {training.start}")  # fmt: skip
            for row in epochs:
                if row["epoch"] in (*MARKED, training.epochs):
                    percents = (f"{100 * row[key]:.1f}" for key in ("train_error", "val_error"))
                    epoch = f"{row['epoch']} of {training.epochs}"
                    table.append([network, training.start, training.seed, epoch, row["step"], *percents])
        for axes, title in zip(panels, ("training", "validation"), strict=True):
            axes.set(xlabel="epoch", ylabel=f"{title} error, %", ylim=(0, None))
            axes.legend()
    print_table(["network", "blocks", "seed", "epoch", "steps", "training error, %", "validation error, %"], table)
    for (training, network), lines in own.items():
        name = f"{network}, {training.start}, {training.epochs} epochs, seed {training.seed}"
        for row in lines:
            if row["kind"] == "steps":
                print(f"{name}: {row['step']:,} of about {352 * training.epochs:,} steps")
            elif row["kind"] == "result":
                print(f"{name}: finished, test error {row['test_error']:.2%}")


def training_of(row: dict[str, Any]) -> Training:
    """Return the training of a stored row."""
    return Training(row["epochs"], row["seed"], row["identity"])


def main() -> None:
    """Train for some minutes, store the numbers and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=182, help="passes over the training images (default: 182)")
    parser.add_argument("--minutes", type=float, default=60, help="how long to train now (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--identity", action="store_true", help="begin with blocks that are the identity")
    parser.add_argument("--draw", action="store_true", help="draw the stored results without training")
    options = parser.parse_args()
    if not options.draw:
        training = Training(options.epochs, options.seed, options.identity)
        train(training, options.minutes)
        others = read_others(NAME, lambda row: training.keys.items() <= row.items())
        write_metrics(NAME, [*others, *measure(training)])
    draw(read_metrics(NAME))


if __name__ == "__main__":
    main()
