"""A server under load against LitServe, a plain FastAPI handler, and the network's own speed with nothing around it.

    make bench-peers  # then use .venv-bench/bin/python
    python bench/serve.py [--seconds 10] [--rounds 3] [--only svertka fastapi] [--soak 0] [--json]

`resnet18` with fresh weights, photographs of about 110 kB, loopback, 16 clients that each send the next image when
they have the answer to the last (closed loop). Each server is a process of its own with the same threads, the clients
are another on the same cores; the sides take turns. `network`: batches of 16 in memory, PyTorch's own and optimized;
`decoding and network`: the same files decoded by as many threads, then the optimized network, in turns.
Latency at half of the load that svertka took: requests evenly spaced, as wrk2 and k6 send them, and at random moments
(Poisson), where even a server that never waits for anything has a queue: `ideal` is the 99th percentile of M/D/1.
What is not installed is left out. `--soak`: seconds of full load at the end, with the memory at its begin and end.
Photographs: SVERTKA_DATA.
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
from svertka.data.image_io import read_image
from svertka.data.imagenet import NAMES
from svertka.models.published_weights import MEAN, STD

CLIENTS, BATCH, BYTES = 16, 16, 110_000
MODEL, SIZE, RESIZE = "resnet18", 224, 256
IDEAL = 4.33  # services: 99th percentile of waiting and service in M/D/1 that is busy half of the time

Command = Callable[[int], list[str]]

# What people write: open, resize, crop, normalize, one image at a time.
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
    """Images a second of the network itself, in batches, in this process: PyTorch's own, optimized, with decoding."""
    classifier = Classifier.load(run)
    images = torch.randn(BATCH, 3, SIZE, SIZE)
    fast = optimize(classifier.network, images)

    def prepare(data: bytes) -> torch.Tensor:
        return classifier.preprocess(read_image(data, min_side=RESIZE))

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
    """Runs a second."""
    way()
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        way()
        done += 1
    return done / (time.perf_counter() - began)


def main() -> None:
    """Run it and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement; of latency three times that")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of full load at the end")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="*", help="of the servers: svertka, fastapi, litserve")
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
    """What starts each of the servers on a port."""

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
    """All sides in turns: speeds, ratios to svertka's, latencies, and where the time of the processor goes."""
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
    """Seconds: of a single prediction, and the 99th percentiles at half of `speed`, images a second."""
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
    """Full load for a long time: what fails ends the run."""
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
