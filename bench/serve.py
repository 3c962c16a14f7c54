"""Load test of the server against LitServe, a plain FastAPI handler and the network alone.

    make bench-peers  # then use .venv-bench/bin/python
    python bench/serve.py [--seconds 10] [--rounds 3] [--only svertka fastapi] [--soak 0] [--json]

The network is `resnet18` with random weights. 16 clients on loopback send photographs of about 110 kB, the next one
when they have the response to the last (closed loop). Each server is a process with the same number of threads; the
clients are another process on the same cores. The sides take turns. `network` is batches of 16 in memory, with PyTorch
and with the optimized network; `decoding and network` decodes the same files with as many threads, then runs the
optimized network, in turns. Latencies are measured at half of the load that svertka sustained, with evenly spaced
requests, as wrk2 and k6 send them, and at random times (Poisson), for which even an ideal server has a queue: `ideal`
is the 99th percentile of M/D/1. Servers that are not installed are skipped. `--soak` is the duration of a final full
load, in seconds, before and after which memory is measured. Needs SVERTKA_DATA.
"""

import argparse
import base64
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from load_generator import load, photographs, resident, served, spent
from svertka.classifier import Classifier, Config
from svertka.compiler.optimize import optimize
from svertka.data.image_io import decode_to_pixels
from svertka.data.imagenet import NAMES
from svertka.models.published_weights import MEAN, STD

CLIENTS, BATCH, BYTES = 16, 16, 110_000
MODEL, SIZE, RESIZE = "resnet18", 224, 256
IDEAL = 4.33  # service times: 99th percentile of the response time in M/D/1 at half load

Command = Callable[[int], list[str]]

# The usual handler: open, resize, crop, normalize, one image at a time.
HANDLER = """
import io, sys, torch, numpy
from PIL import Image
from svertka.classifier import Classifier

torch.set_num_threads(int(sys.argv[3]))
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

def prepared(data):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = numpy.asarray(image.crop((left, top, left + 224, top + 224)))
    return (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div(255) - MEAN) / STD

classifier = Classifier.load(sys.argv[1])
network, names = classifier.network, classifier.names

def ranked(row):
    best = row.softmax(0).topk(5)
    return [{"name": names[i], "probability": p} for p, i in zip(best.values.tolist(), best.indices.tolist())]
"""
FASTAPI = (
    HANDLER
    + """
import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

app = FastAPI()

def answer(data):
    with torch.inference_mode():
        return ranked(network(prepared(data)[None])[0])

@app.post("/predict")
async def predict(request: Request):
    return await run_in_threadpool(answer, await request.body())

uvicorn.run(app, port=int(sys.argv[2]), log_level="error", access_log=False)
"""
)
LITSERVE = (
    HANDLER
    + """
import base64, litserve

class Api(litserve.LitAPI):
    def setup(self, device):
        torch.set_num_threads(int(sys.argv[3]))

    def decode_request(self, request):  # what it is given by default is JSON
        return prepared(base64.b64decode(request["image"]))

    def batch(self, inputs):
        return torch.stack(list(inputs))

    def predict(self, images):
        with torch.inference_mode():
            return network(images)

    def unbatch(self, output):
        return list(output)

    def encode_response(self, row):
        return ranked(row)

if __name__ == "__main__":
    api = Api(max_batch_size=16, batch_timeout=0.005)
    litserve.LitServer(api, accelerator="cpu").run(port=int(sys.argv[2]), generate_client_file=False, log_level="error")
"""
)


def alone(run: Path, pictures: Sequence[bytes], seconds: float) -> dict[str, float]:
    """Return the images per second of the network in this process: PyTorch, optimized, and with decoding."""
    classifier = Classifier.load(run)
    images = torch.randn(BATCH, 3, SIZE, SIZE)
    fast = optimize(classifier.network, images)

    def prepare(data: bytes) -> torch.Tensor:
        return classifier.preprocess(decode_to_pixels(data, min_side=RESIZE))

    with ThreadPoolExecutor(torch.get_num_threads()) as readers, torch.inference_mode():

        def decoded() -> None:
            fast(torch.stack(list(readers.map(prepare, pictures[:BATCH]))))

        ways: dict[str, Callable[[], object]] = {
            "network": lambda: classifier.network(images),
            "network optimized": lambda: fast(images),
            "decoding and network": decoded,
        }
        return {name: _batches(way, seconds) * BATCH for name, way in ways.items()}


def _batches(way: Callable[[], object], seconds: float) -> float:
    """Return runs per second."""
    way()
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        way()
        done += 1
    return done / (time.perf_counter() - began)


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement; latencies: 3×")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of full load at the end (default: 0)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="*", help="servers to test: svertka, fastapi, litserve")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    pictures = photographs(BYTES)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        preprocess = {"size": SIZE, "resize": RESIZE, "mean": MEAN, "std": STD}
        config = Config.model_validate({"model": MODEL, "names": NAMES, "preprocess": preprocess})
        Classifier(config.build(), config).save(run)
        servers = commands(run, options.threads)
        results = {
            "threads": options.threads,
            "image, kB": round(statistics.mean(map(len, pictures)) / 1000),
            **compare(run, {name: servers[name] for name in options.only or servers}, pictures, options),
        }
        if options.soak:
            results["soak"] = soak(servers["svertka"], pictures, options.soak)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for name, value in results.items():
        print(f"{name:<40} {value if isinstance(value, str) else json.dumps(value)}")


def commands(run: Path, threads: int) -> dict[str, Command]:
    """Return the command that starts each server on a port."""

    def python(program: str) -> Command:
        path = run.parent / f"{abs(hash(program))}.py"
        path.write_text(program)
        return lambda port: [sys.executable, str(path), str(run), str(port), str(threads)]

    ours = (sys.executable, "-m", "svertka", "serve", str(run), "--threads", str(threads))
    found: dict[str, Command] = {"svertka": lambda port: [*ours, "--port", str(port)]}
    if find_spec("fastapi"):
        found["fastapi"] = python(FASTAPI)
    if find_spec("litserve"):
        found["litserve"] = python(LITSERVE)
    return found


def compare(
    run: Path, servers: dict[str, Command], pictures: Sequence[bytes], options: argparse.Namespace
) -> dict[str, Any]:
    """Compare all sides in turns: speeds, ratios to svertka, latencies, and CPU time by thread."""
    speeds: dict[str, list[float]] = {}
    waits: dict[str, list[float]] = {}
    shares: dict[str, Any] = {}
    for number in range(options.rounds):
        for name, speed in alone(run, pictures, options.seconds / 2).items():
            speeds.setdefault(name, []).append(speed)
        for name in list(servers)[:: 1 if number % 2 else -1]:
            bodies = [_in_json(image) for image in pictures] if name == "litserve" else pictures
            with served(servers[name], bodies[0]) as (port, pid):
                load(port, 2, bodies, CLIENTS)
                before, began = spent(pid), time.perf_counter()
                answers = len(load(port, options.seconds, bodies, CLIENTS))
                speeds.setdefault(name, []).append(answers / (time.perf_counter() - began))
                if name == "svertka":
                    shares = {
                        thread: round(1000 * (after - before.get(thread, 0)) / answers, 2)
                        for thread, after in spent(pid).items()
                        if after - before.get(thread, 0) > 0.02 * options.seconds
                    }
                    for what, wait in latencies(port, pictures, options.seconds, speeds[name][-1]).items():
                        waits.setdefault(what, []).append(1000 * wait)
    results: dict[str, Any] = {
        "images a second": {name: _told(values, min) for name, values in speeds.items()},
        "milliseconds": {name: _told(values, max) for name, values in waits.items()},
        "ms of processor an image, by thread": shares,
    }
    for name, values in speeds.items():
        if name != "svertka" and "svertka" in speeds:
            ratios = [ours / theirs for ours, theirs in zip(speeds["svertka"], values, strict=True)]
            results[f"svertka over {name}"] = _told(ratios, min)
    for name, values in waits.items():
        if name != "single, median":
            ratios = [wait / single for wait, single in zip(values, waits["single, median"], strict=True)]
            results[f"{name}, over single"] = _told(ratios, max)
    return results


def latencies(port: int, pictures: Sequence[bytes], seconds: float, speed: float) -> dict[str, float]:
    """Return the latency of a single prediction and the 99th percentiles at half of `speed`, in seconds."""
    single = load(port, seconds, pictures, 1)
    even = load(port, 3 * seconds, pictures, CLIENTS, speed / 2, even=True)
    random = load(port, 3 * seconds, pictures, CLIENTS, speed / 2)
    return {
        "single, median": statistics.median(single),
        "half load, even, p99": statistics.quantiles(even, n=100)[98],
        "half load, random, p99": statistics.quantiles(random, n=100)[98],
        "half load, random, ideal": IDEAL / speed,
    }


def soak(server: Command, pictures: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Run at full load for a long time; a failed request ends the benchmark."""
    with served(server, pictures[0]) as (port, pid):
        load(port, 20, pictures, CLIENTS)
        before = resident(pid)
        answers = load(port, seconds, pictures, CLIENTS)
        return {
            "seconds": seconds,
            "answers": len(answers),
            "memory before, MB": round(before),
            "memory after, MB": round(resident(pid)),
        }


def _in_json(image: bytes) -> bytes:
    return json.dumps({"image": base64.b64encode(image).decode()}).encode()


def _told(values: Sequence[float], worst: Callable[[Sequence[float]], float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "worst": round(worst(values), 2)}


if __name__ == "__main__":
    main()
