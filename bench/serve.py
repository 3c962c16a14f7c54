"""A server under load against LitServe, a plain FastAPI handler, and the network's own speed with nothing around it.

    python bench/serve.py [--seconds 10] [--rounds 3] [--soak 0] [--json]

`resnet18` with fresh weights, photographs of about 110 kB, loopback, 16 clients that each send the next picture when
they have the answer to the last (closed loop). Each server is a process of its own with the same threads, the clients
are another; the sides take turns. `network`: batches of 16 in memory, no decoding, PyTorch's own and the optimised.
`pip install litserve fastapi` for these two; what is not installed is left out. `--soak`: seconds of full load at the
end, with the memory at its begin and end. Photographs: SVERTKA_DATA.
"""

import argparse
import contextlib
import http.client
import io
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from svertka.classifier import Classifier, Config
from svertka.graph.optimize import optimize
from svertka.models.imagenet import NAMES
from svertka.models.published import MEAN, STD

CLIENTS, BATCH, BYTES = 16, 16, 110_000
MODEL, SIZE, RESIZE = "resnet18", 224, 256

# What people write: open, resize, crop, normalise, one picture at a time.
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
import litserve
from fastapi import Request

class Api(litserve.LitAPI):
    def setup(self, device):
        torch.set_num_threads(int(sys.argv[3]))

    async def decode_request(self, request: Request):
        return prepared(await request.body())

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


def photographs(count: int = 64) -> list[bytes]:
    """Real ones, as JPEG files of about BYTES each."""
    found = []
    for path in sorted((Path(os.environ["SVERTKA_DATA"]) / "imagenet-samples").glob("*.JPEG"))[:count]:
        image = Image.open(path).convert("RGB")
        image = image.resize((500, round(500 * image.height / image.width)))
        for quality in (98, 96, 94, 92, 90, 85, 80, 70):
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality)
            if buffer.tell() <= 1.2 * BYTES:
                break
        found.append(buffer.getvalue())
    return found


def free_port() -> int:
    """One on which nobody listens now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def served(command: Callable[[int], list[str]]) -> Iterator[tuple[int, int]]:
    """The port and the process of a server while the block runs."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = subprocess.Popen(
        command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, process_group=0
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                ask(port, PROBE)
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit(f"{command(port)[:4]} does not answer") from None
                time.sleep(0.2)
        yield port, process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def ask(port: int, body: bytes) -> None:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", body, {"Content-Type": "application/octet-stream"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status != 200:
        raise OSError(answer.status)


def load(port: int, seconds: float, pictures: Sequence[bytes], clients: int, rate: float | None = None) -> list[float]:
    """Latencies, seconds, of all answers that came within `seconds`; `rate`: requests a second, None: closed loop."""
    latencies: list[float] = []
    failures: list[int] = []
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        choose = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        due = time.perf_counter() + (choose.expovariate(rate / clients) if rate else 0)
        while due < end:
            time.sleep(max(0, due - time.perf_counter()))
            began = due if rate else time.perf_counter()  # what waits for its turn waits, too
            connection.request(
                "POST", "/predict", choose.choice(pictures), {"Content-Type": "application/octet-stream"}
            )
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                failures.append(answer.status)
            latencies.append(time.perf_counter() - began)
            due = due + choose.expovariate(rate / clients) if rate else time.perf_counter()
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"{len(failures)} requests failed, the first with {failures[0]}")
    return latencies


def alone(run: Path, seconds: float) -> dict[str, float]:
    """Pictures a second of the network itself, in batches, in this process: PyTorch's own, and optimised."""
    network = Classifier.load(run).network
    images = torch.randn(BATCH, 3, SIZE, SIZE)
    speeds = {}
    for name, one in (("network", network), ("network optimised", optimize(network, images))):
        with torch.inference_mode():
            one(images)
            done, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds:
                one(images)
                done += BATCH
        speeds[name] = done / (time.perf_counter() - began)
    return speeds


def resident(pid: int) -> float:
    """Memory of a process, MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))


PROBE = b""


def main() -> None:
    """Run it and print it."""
    global PROBE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of full load at the end")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="*", help="of the servers: svertka, fastapi, litserve")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    pictures = photographs()
    PROBE = pictures[0]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        preprocess = {"size": SIZE, "resize": RESIZE, "mean": MEAN, "std": STD}
        config = Config.model_validate({"model": MODEL, "names": NAMES, "preprocess": preprocess})
        Classifier(config.build(), config).save(run)
        results = compare(run, pictures, options)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for name, value in results.items():
        print(f"{name:<40} {value if isinstance(value, str) else json.dumps(value)}")


def compare(run: Path, pictures: Sequence[bytes], options: argparse.Namespace) -> dict[str, Any]:
    """All sides in turns."""
    threads = str(options.threads)

    def python(program: str) -> Callable[[int], list[str]]:
        path = run.parent / f"{abs(hash(program))}.py"
        path.write_text(program)
        return lambda port: [sys.executable, str(path), str(run), str(port), threads]

    sides: dict[str, Callable[[int], list[str]]] = {
        "svertka": lambda port: [
            *(sys.executable, "-m", "svertka", "serve", str(run), "--port", str(port), "--threads", threads)
        ]
    }
    if find_spec("fastapi"):
        sides["fastapi"] = python(FASTAPI)
    if find_spec("litserve"):
        sides["litserve"] = python(LITSERVE)
    if options.only:
        sides = {name: side for name, side in sides.items() if name in options.only}
    speeds: dict[str, list[float]] = {}
    latency: dict[str, list[float]] = {"single, median": [], "half load, p99": []}
    for number in range(options.rounds):
        for name, speed in alone(run, options.seconds / 2).items():
            speeds.setdefault(name, []).append(speed)
        for name in list(sides)[:: 1 if number % 2 else -1]:
            with served(sides[name]) as (port, _):
                load(port, 2, pictures, CLIENTS)
                answers = load(port, options.seconds, pictures, CLIENTS)
                speeds.setdefault(name, []).append(len(answers) / options.seconds)
                if name == "svertka":
                    single = load(port, options.seconds / 2, pictures, 1)
                    half = load(port, options.seconds, pictures, CLIENTS, rate=speeds[name][-1] / 2)
                    latency["single, median"].append(1000 * statistics.median(single))
                    latency["half load, p99"].append(1000 * statistics.quantiles(half, n=100)[98])
    results: dict[str, Any] = {
        "threads": options.threads,
        "picture, kB": round(statistics.mean(map(len, pictures)) / 1000),
        "pictures a second": {
            name: {"median": round(statistics.median(values), 1), "least": round(min(values), 1)}
            for name, values in speeds.items()
        },
        "milliseconds": {name: round(statistics.median(values), 1) for name, values in latency.items() if values},
    }
    for other in speeds:
        if other != "svertka" and "svertka" in speeds:
            ratios = [ours / theirs for ours, theirs in zip(speeds["svertka"], speeds[other], strict=True)]
            results[f"svertka over {other}"] = {
                "median": round(statistics.median(ratios), 2),
                "least": round(min(ratios), 2),
            }
    if latency["single, median"]:
        ratios = [b / a for a, b in zip(latency["single, median"], latency["half load, p99"], strict=True)]
        results["p99 at half load over a single one"] = {
            "median": round(statistics.median(ratios), 2),
            "most": round(max(ratios), 2),
        }
    if options.soak:
        with served(sides["svertka"]) as (port, pid):
            load(port, 20, pictures, CLIENTS)
            before = resident(pid)
            answers = load(port, options.soak, pictures, CLIENTS)
            results["soak"] = {
                "seconds": options.soak,
                "answers": len(answers),
                "memory before, MB": round(before),
                "memory after, MB": round(resident(pid)),
            }
    return results


if __name__ == "__main__":
    main()
