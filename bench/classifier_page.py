"""Check of the page that `svertka export --to page.html` writes, in Chromium without a network.

    python bench/classifier_page.py [RUN] [--precision int16] [--images FOLDER] [--json]

RUN (default: efficientnet_lite0:bundled) is exported, and the page is opened from the disk. Of all images of the folder
(default: the 63 photographs of SVERTKA_DATA/imagenet-samples), the probabilities of the page are compared with those of
PyTorch on the same files. `float16` is the largest difference if the weights were rounded to float16 instead. Times are
of one thread, in the page: decoding, resizing and the network. CPU time is that of Chromium's renderer process.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto, numpy_helper
from playwright.sync_api import Browser, sync_playwright

import svertka
from shared_data import data_folder
from svertka.classifier import Classifier
from svertka.exporters.classifier_page import convert_for_page

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
# The worker's answers, as the page gets them.
RECORD = """const Plain = Worker; self.answers = []; self.Worker = class extends Plain { constructor(...given) {
    super(...given); this.addEventListener("message", ({ data }) => self.answers.push(data)); } };"""
READ = """() => self.answers.filter((one) => one.found).map(({ id, found, seconds }) =>
    ({ id, probabilities: [...found.probabilities.data], seconds }))"""


def run_page(browser: Browser, page: Path, images: list[Path]) -> tuple[list[dict[str, Any]], float, float]:
    """Return the answers of the page, in the order of the images, and seconds until it is ready and of CPU an image."""
    context = browser.new_context(offline=True)
    context.add_init_script(RECORD)
    tab = context.new_page()
    devtools = browser.new_browser_cdp_session()

    def cpu_seconds() -> float:
        found = devtools.send("SystemInfo.getProcessInfo")["processInfo"]
        return float(sum(one["cpuTime"] for one in found if one["type"] == "renderer"))

    began = time.perf_counter()
    tab.goto(page.as_uri())
    tab.locator("#ask:not([hidden])").wait_for()
    ready, used = time.perf_counter() - began, cpu_seconds()
    tab.set_input_files("#drop input", [str(path) for path in images])
    tab.get_by_text(f"{len(images)}\u00a0pictures classified.").wait_for(timeout=600_000)
    used = cpu_seconds() - used
    answers = sorted(tab.evaluate(READ), key=lambda answer: int(answer["id"]))
    context.close()
    return answers, ready, used / len(images)


def round_to_float16(model: ModelProto) -> ModelProto:
    """Return `model` with its weights rounded to float16."""
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.ndim > 1:
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16).astype(np.float32), weight.name))
    return model


def main() -> None:
    """Print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="efficientnet_lite0:bundled")
    parser.add_argument("--precision", default="int16")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = sorted((options.images or data_folder() / "imagenet-samples").iterdir())
    classifier = Classifier.load(options.run)
    tensors = [classifier.preprocess(path) for path in images]
    wanted = np.concatenate([classifier.probabilities([one]).numpy() for one in tensors])
    halved = onnxruntime.InferenceSession(round_to_float16(convert_for_page(classifier, "fp32")).SerializeToString())
    rounded = np.concatenate([halved.run(["probabilities"], {"images": one[None].numpy()})[0] for one in tensors])
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page = svertka.export(options.run, Path(folder) / "page.html", images=images, precision=options.precision)
        with driver.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS) as browser:
            answers, ready, cpu = run_page(browser, page.path, images)
    found = np.array([answer["probabilities"] for answer in answers])
    differences = np.abs(found - wanted).max(1)
    result = {
        "images": len(images),
        "megabytes": page.bytes / 1e6,
        "largest difference": float(differences.max()),
        "mean of the largest of an image": float(differences.mean()),
        "same class": int((found.argmax(1) == wanted.argmax(1)).sum()),
        "float16": float(np.abs(rounded - wanted).max()),
        "seconds until ready": ready,
        "milliseconds an image": 1000 * statistics.median(answer["seconds"] for answer in answers),
        "fastest": 1000 * min(answer["seconds"] for answer in answers),
        "CPU milliseconds an image": 1000 * cpu,
    }
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:32} {value:.4g}")


if __name__ == "__main__":
    main()
