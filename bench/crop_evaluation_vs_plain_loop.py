"""Benchmark of evaluation in ten crops and in dense crops against the bare network and a plain loop.

    python bench/crop_evaluation_vs_plain_loop.py [--models resnet18 squeezenet1_1] [--images 64] [--dense 1]
        [--rounds 3] [--threads 2]

Ten crops: `svertka evaluate --crops 10` on photographs, from the cache of squares to the metrics, in crops per second,
compared with the network alone on as many crops in memory, in batches of the same size. A separate pass, timed by
itself, decodes the images into the cache.

Dense crops: `--crops dense` on whole photographs at 256, 384 and 512 pixels, including decoding, compared with a plain
loop over every crop at the network's stride, and its mirror image, in batches of 64 from images decoded in advance.
Both report the difference of their probabilities. It is not zero for a network that pads its maps, because a crop has
zeros around it where a window has the image.

The sides take turns. Weights are random. Needs SVERTKA_DATA.
"""

import argparse
import json
import os
import statistics
import tempfile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared_data import data_folder
from svertka.classifier import Classifier, Config
from svertka.data.dataset import Dataset, Ints
from svertka.data.preprocessing import Preprocess, resize_shorter_side
from svertka.data.source_opener import open_source
from svertka.evaluation.crop_protocols import get_crop_protocol, to_normalized_batch
from svertka.evaluation.metrics import MetricAccumulator
from svertka.evaluation.predictor import CROPS_PER_BATCH, Predictor
from svertka.graph.fully_convolutional import make_fully_convolutional
from svertka.models.registry import find_model
from svertka.tasks import SINGLE_LABEL
from turns import in_turns, ratios, seconds

CPU = torch.device("cpu")


def classifier(name: str, names: tuple[str, ...]) -> Classifier:
    """Return a classifier with random weights."""
    torch.manual_seed(0)
    model = find_model(name)
    preprocess = Preprocess(size=model.size, resize=model.resize, mean=(0.5,) * 3, std=(0.25,) * 3)
    config = Config(model=name, names=names, preprocess=preprocess)
    return Classifier(config.build().eval(), config)


def judged(predictor: Predictor, dataset: Dataset) -> MetricAccumulator:
    """Return the counts over all images, as `evaluate` computes them."""
    size = predictor.batch_size
    batches: list[Ints] = [np.arange(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)]
    tally = MetricAccumulator(len(dataset.names))
    for indices, said in zip(batches, predictor.predict_batches(batches), strict=True):
        tally.update(said, torch.from_numpy(dataset.labels[indices]), torch.from_numpy(indices))
    return tally


def ten(one: Classifier, dataset: Dataset, rounds: int, threads: int) -> dict[str, Any]:
    """Return crops per second of both sides, and their ratio."""
    predictor = Predictor(one, dataset, get_crop_protocol("10", None, one.preprocess), device=CPU, threads=threads)
    size = one.preprocess.size
    batch = torch.rand(10 * predictor.batch_size, 3, size, size)
    crops = 10 * len(dataset)

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, crops, len(batch)):
                one.network(batch[: crops - start])

    first = seconds(lambda: judged(predictor, dataset))
    times = in_turns({"bare": bare, "ours": lambda: judged(predictor, dataset)}, rounds)
    rates = {name: crops / statistics.median(some) for name, some in times.items()}
    return {"crops_per_second": rates | {"first": crops / first}, **ratios(times["bare"], times["ours"])}


def dense(one: Classifier, dataset: Dataset, rounds: int, threads: int) -> dict[str, Any]:
    """Return seconds per image of both sides, and their ratio."""
    how = get_crop_protocol("dense", None, one.preprocess)
    predictor = Predictor(one, dataset, how, device=CPU, threads=threads)
    size = one.preprocess.size
    stride = make_fully_convolutional(one.network, (1, 3, size, size)).stride
    pictures = [
        [
            to_normalized_batch(one.preprocess, resize_shorter_side(dataset.images.read(k, max(how.scales)), scale, 3))
            for scale in how.scales
        ]
        for k in range(len(dataset))
    ]
    loops: list[Tensor] = []

    def loop() -> None:
        with torch.inference_mode():
            loops[:] = [looped(one, scales, stride) for scales in pictures]

    times = in_turns({"loop": loop, "ours": lambda: judged(predictor, dataset)}, rounds)
    ours = torch.cat(list(predictor.predict_batches([np.arange(len(dataset))])))
    crops = sum(2 * len(positions(image, size, stride)) for scales in pictures for image in scales)
    return {
        "seconds_per_image": {name: statistics.median(some) / len(dataset) for name, some in times.items()},
        "crops_per_image": crops / len(dataset),
        "apart": float((torch.stack(loops).exp() - ours.exp()).abs().max()),
        **ratios(times["loop"], times["ours"]),
    }


def looped(one: Classifier, scales: list[Tensor], stride: tuple[int, int]) -> Tensor:
    """Return log probabilities (K,) of one image: scores averaged over crops, probabilities over scales and mirror."""
    size, said = one.preprocess.size, []
    for image in scales:
        for shown in (image, image.flip(-1)):
            places = positions(shown, size, stride)
            crops = torch.cat([shown[..., y : y + size, x : x + size] for y, x in places])
            scores = torch.cat([one.network(some) for some in crops.split(CROPS_PER_BATCH)])  # type: ignore[no-untyped-call]
            said.append(scores.mean(0).log_softmax(0))
    return SINGLE_LABEL.average(torch.stack(said), 0)


def positions(image: Tensor, size: int, stride: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the first pixels of all crops."""
    height, width = image.shape[-2:]
    return [(y, x) for y in range(0, height - size + 1, stride[0]) for x in range(0, width - size + 1, stride[1])]


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "squeezenet1_1"], help="names of networks")
    parser.add_argument("--images", type=int, default=64, help="images in ten crops (default: 64)")
    parser.add_argument("--dense", type=int, default=1, help="images in dense crops (default: 1; 0: none)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side (default: 2)")
    parser.add_argument("--json", action="store_true", help="one JSON value on stdout")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    everything = open_source(data_folder() / "cats-dogs", to_train=False)

    def some(count: int) -> Dataset:
        return everything.take(np.linspace(0, len(everything) - 1, count).astype(np.int64))

    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # so that the first pass decodes
        for name in options.models:
            one = classifier(name, everything.names)
            result[name] = {}
            if options.images:
                result[name]["ten"] = ten(one, some(options.images), options.rounds, options.threads)
            if options.dense:
                result[name]["dense"] = dense(one, some(options.dense), options.rounds, options.threads)
            if not options.json:
                show(name, result[name])
    if options.json:
        print(json.dumps(result))


def show(name: str, found: dict[str, Any]) -> None:
    """Print the lines of one network."""
    if "ten" in found:
        rates = found["ten"]["crops_per_second"]
        print(
            f"{name:16}ten crops: {rates['ours']:.1f} crops/s, {rates['first']:.1f} with decoding; bare network "
            f"{rates['bare']:.1f}; ratio {found['ten']['ratio_median']:.3f} (best {found['ten']['ratio_of_best']:.3f}, "
            f"least {found['ten']['ratio_least']:.3f})"
        )
    if "dense" in found:
        times = found["dense"]["seconds_per_image"]
        print(
            f"{name:16}dense: {times['ours']:.2f} s an image; loop over {found['dense']['crops_per_image']:.0f} "
            f"crops {times['loop']:.2f} s; ratio {found['dense']['ratio_median']:.1f} (best "
            f"{found['dense']['ratio_of_best']:.1f}, least {found['dense']['ratio_least']:.1f}); "
            f"probabilities up to {found['dense']['apart']:.1g} apart"
        )


if __name__ == "__main__":
    main()
