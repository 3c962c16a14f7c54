"""Training on two machines, by the commands of docs/several_machines.md: network namespaces stand for the machines."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import svertka
from machines import Machine, two_machines
from svertka.data.shard import shard
from svertka.run import Run

PAGE = Path(__file__).parents[1] / "docs" / "several_machines.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
SBATCH = next(text for kind, text in BLOCKS if kind == "bash")
MANIFEST = next(text for kind, text in BLOCKS if kind == "yaml")
OPTIONS = {"model": "resnet20", "size": 8, "batch_size": 24, "lr": 0.005, "seed": 3, "threads": 1}
EPOCHS = 8  # of 8 steps
TOLERANCE = 2e-3  # relative, of the loss of the first epoch: float32 sums in another order
DRIFT = 0.05  # of later ones: one process that sums each batch in another order differs by up to 0.021
# Loaded by each process: writes which images each step is of, and lets a checkpoint be written at each reading.
RECORDER = """
import json, os
if "RANK" in os.environ:
    from svertka.training import resume, run_recorder, single_run, training_loop  # single_run also times steps
    run_recorder.CHECKPOINT_EVERY = run_recorder.CHECKPOINT_COST = 0.0
    def write(*line):
        with open(os.path.join(os.environ["STEPS"], os.environ["RANK"]), "a") as file:
            file.write(json.dumps([__import__("time").time(), *line]) + "\\n")
    fit, take_step = training_loop.fit, training_loop.take_step
    def recorded_fit(network, optimizer, batches, recipe, state, *rest):
        write("from", state.step)
        return fit(network, optimizer, batches, recipe, state, *rest)
    def recorded_step(network, optimizer, batch, *rest):
        write("images", batch.indices.tolist())
        __import__("time").sleep(0.02)
        return take_step(network, optimizer, batch, *rest)
    resume.fit, training_loop.take_step = recorded_fit, recorded_step
"""


@pytest.fixture(scope="module")
def shards(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "digits"
    shard(digit_folder, folder, val=0.2, shard_size=0.02, threads=1)
    return folder


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same training by one process."""
    return svertka.train(shards, output=tmp_path_factory.mktemp("alone") / "run", epochs=EPOCHS, **OPTIONS)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "steps").mkdir()
    (tmp_path / "sitecustomize.py").write_text(RECORDER)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{path}",
        "PYTHONPATH": str(tmp_path),
        "STEPS": str(tmp_path / "steps"),
        "OMP_NUM_THREADS": "1",
    }


def as_here(text: str, shards: Path, run: Path, epochs: int) -> str:
    """The example of the page with the images, the network and the number of processes of this test."""
    options = OPTIONS | {"epochs": epochs}
    for wrong, right in {
        "s3://bucket/flowers": str(shards),
        "/shared/runs/flowers": str(run),
        "/runs/flowers": str(run),
        "--nproc-per-node=4": "--nproc-per-node=1",
    }.items():
        text = text.replace(wrong, right)
    text = re.sub(
        r"--model resnet50 --batch-size \d+", " ".join(f"--{k.replace('_', '-')} {v}" for k, v in options.items()), text
    )
    lines = (f"            - --{name.replace('_', '-')}={value}" for name, value in options.items())
    return re.sub(r" +- --model=resnet50\n +- --batch-size=\d+", "\n".join(lines), text)


def losses(run: Run) -> list[float]:
    """The loss of each reading, once."""
    rows = {entry["step"]: entry["loss"] for entry in run.history() if entry["kind"] == "step"}
    return [rows[step] for step in sorted(rows)]


def check_same_losses(run: Run, alone: Run) -> None:
    assert losses(run)[0] == pytest.approx(losses(alone)[0], rel=TOLERANCE)
    assert losses(run) == pytest.approx(losses(alone), rel=DRIFT)


def effective_steps(folder: Path) -> list[list[int]]:
    """The images of each step that led to the last checkpoint: what a resumed training repeats is taken back."""
    lines = sorted(
        (*json.loads(line), path.name) for path in folder.iterdir() for line in path.read_text().splitlines()
    )
    steps: dict[int, dict[str, list[int]]] = defaultdict(dict)
    at: dict[str, int] = {}
    for _, kind, value, rank in lines:
        if kind == "from":
            for step in [step for step in steps if step >= value and (rank == "0" or rank in steps[step])]:
                steps[step].pop(rank, None) if rank != "0" else steps.pop(step)
            at[rank] = value
        else:
            steps[at[rank]][rank] = value
            at[rank] += 1
    return [sorted(image for share in steps[step].values() for image in share) for step in sorted(steps)]


def check_each_image_once(folder: Path, run: Run) -> None:
    steps = effective_steps(folder)
    train = run.settings()["parts"]["train"]
    per_epoch = -(-train // OPTIONS["batch_size"])
    assert len(steps) % per_epoch == 0
    assert len(steps) >= 2 * per_epoch
    for first in range(0, len(steps), per_epoch):
        seen = [image for step in steps[first : first + per_epoch] for image in step]
        assert len(seen) == len(set(seen)) == train


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()


def wait_until(condition: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def count_steps(folder: Path) -> int:
    return sum(path.read_text().count("images") for path in folder.iterdir())


def kill_rank(rank: int, steps: Path) -> None:
    """Kill the process of `rank` whose steps are written to the folder `steps`."""
    wanted = {f"RANK={rank}".encode(), f"STEPS={steps}".encode()}
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted <= set(path.read_bytes().split(b"\0")):
                found.append(int(path.parent.name))
        except OSError:
            continue
    assert len(found) == 1
    os.kill(found[0], signal.SIGKILL)


def test_the_examples_are_well_formed(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(SBATCH)
    subprocess.run(["bash", "-n", str(tmp_path / "job.sh")], check=True)
    service, job = yaml.safe_load_all(MANIFEST)
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    assert f"--rdzv-endpoint={name}-0.{pod['subdomain']}:29500" in container["command"]
    assert f"--nnodes={job['spec']['completions']}" in container["command"]
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}


@pytest.mark.large
def test_the_slurm_script_trains_as_one_process_and_survives_a_killed_rank(
    shards: Path, alone: Run, tmp_path: Path, environment: dict[str, str], started: list[subprocess.Popen[str]]
) -> None:
    run = Run(tmp_path / "run")
    with two_machines(("node-a", "node-b")) as machines:
        script = tmp_path / "job.sh"
        script.write_text(as_here(SBATCH, shards, run.folder, EPOCHS))
        (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'node-a\\nnode-b\\n'\n")
        ran = [" ".join(f"'{word}'" for word in machine.prefix) + ' "$@"' for machine in machines]
        (tmp_path / "srun").write_text(f"#!/bin/bash\n{ran[0]} & one=$!\n{ran[1]} & two=$!\nwait $one && wait $two\n")
        for tool in ("scontrol", "srun"):
            (tmp_path / tool).chmod(0o755)
        slurm = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "4711"}
        job = subprocess.Popen(
            ["bash", str(script)], env=environment | slurm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(job)
        wait_until(lambda: job.poll() is not None or count_steps(tmp_path / "steps") > 60)
        kill_rank(1, tmp_path / "steps")
        printed, _ = job.communicate(timeout=600)
    assert job.returncode == 0, printed
    assert f"{run.folder} was started by this job; it is continued" in printed
    assert run.result()["epochs"] == EPOCHS
    check_each_image_once(tmp_path / "steps", run)
    check_same_losses(run, alone)


@pytest.mark.large
def test_the_kubernetes_job_trains_as_one_process(
    shards: Path, alone: Run, tmp_path: Path, environment: dict[str, str], started: list[subprocess.Popen[str]]
) -> None:
    run = Run(tmp_path / "run")
    _, job = yaml.safe_load_all(as_here(MANIFEST, shards, run.folder, EPOCHS))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    with two_machines(("flowers-0", "flowers-1"), aliases="flowers-0.flowers") as machines:
        variables = {one["name"]: one["value"] for one in container["env"]}
        together = {"env": environment | variables, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started += [machine.start(container["command"], **together) for machine in machines]
        printed = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    check_each_image_once(tmp_path / "steps", run)
    check_same_losses(run, alone)


@pytest.mark.large
def test_a_killed_rank_is_named_and_one_process_continues_without_it(
    shards: Path, tmp_path: Path, environment: dict[str, str], started: list[subprocess.Popen[str]]
) -> None:
    run = Run(tmp_path / "run")

    def start(machine: Machine, nodes: int, *arguments: str) -> subprocess.Popen[str]:
        command = ["torchrun", f"--nnodes={nodes}", "--nproc-per-node=1", "--rdzv-backend=c10d"]
        command += ["--rdzv-endpoint=node-a:29500", "--module", "svertka", "train", *arguments]
        started.append(machine.start(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        return started[-1]

    options = [f"--{name.replace('_', '-')}={value}" for name, value in (OPTIONS | {"epochs": EPOCHS}).items()]
    with two_machines(("node-a", "node-b")) as machines:
        jobs = [start(machine, 2, str(shards), f"--output={run.folder}", *options) for machine in machines]
        wait_until(lambda: any(job.poll() is not None for job in jobs) or count_steps(tmp_path / "steps") > 60)
        kill_rank(1, tmp_path / "steps")
        printed, others = (job.communicate(timeout=300)[0] for job in jobs)
        assert jobs[0].returncode != 0, printed
        lines = [line for line in printed.splitlines() if "was lost" in line]
        assert len(lines) == 1, printed + others
        assert re.search(r"process 1 of 2, on node-b, was lost \([^\[].*\); training stopped at step", lines[0])
        assert f"svertka train --resume {run.folder}" in lines[0]
        assert "internal error" not in printed
        rest = start(machines[0], 1, "--resume", str(run.folder))
        printed, _ = rest.communicate(timeout=600)
    assert rest.returncode == 0, printed
    check_each_image_once(tmp_path / "steps", run)
