"""Benchmark of localization, speed and accuracy, after Oquab et al. 2014.

    python bench/locate.py speed [RUN] [--image raccoon-1] [--rounds 3] [--threads 2] [--json]
    python bench/locate.py raccoons [--only boxes] [--folder FOLDER] [--threads 2] [--json]

`speed`: the score maps of one photograph at eight scales (`svertka locate`) against the same network on the same
patches, about 500, in batches; both include resizing. They take turns. It also reports the rank correlation (Spearman)
of the two over the patches, and over the pixels of their heat maps, for the class with the highest score. RUN is a run
folder (default: `efficientnet_lite0:bundled`).

`raccoons`: trains on 150 raccoons, 100 cats and 100 dogs with the features of the bundled network, once on patches with
boxes and once with image labels alone, and locates the raccoons in 50 other images. Images are drawn with a fixed seed.
A run that exists in FOLDER is resumed. Needs SVERTKA_DATA.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

import svertka
from shared_data import data_folder
from svertka.classifier import Classifier
from svertka.data.dataset import Pixels
from svertka.data.preprocessing import load_rgb_image
from svertka.localization.heatmap import make_heat_map
from svertka.localization.score_maps import PatchScorer, ScoreMap, resize_to_level
from turns import Way, in_turns, ratios

BACKBONE = "efficientnet_lite0:bundled"
BATCH = 32
TRAINED, OTHERS, SEED = 150, 100, 0


@torch.inference_mode()
def patch_by_patch(classifier: Classifier, locator: PatchScorer, rgb: Pixels) -> list[ScoreMap]:
    """Return the score maps, computed patch by patch."""
    parts, levels, crops = locator.network, locator.levels(rgb), []
    for level in levels:
        image = resize_to_level(classifier.preprocess, rgb, level)[0]
        for y, x in (level.places * parts.stride).tolist():
            crops.append(image[:, y : y + parts.window[0], x : x + parts.window[1]])
    batches = [torch.stack(crops[start : start + BATCH]) for start in range(0, len(crops), BATCH)]
    logits = [classifier.network(batch.contiguous(memory_format=torch.channels_last)) for batch in batches]
    each = torch.split(torch.cat(logits).softmax(1), [len(level.places) for level in levels])
    return [
        ScoreMap(level, some.numpy().T.reshape(-1, len(level.rows), len(level.columns)))
        for level, some in zip(levels, each, strict=True)
    ]


def speed(run: str, image: str, rounds: int) -> dict[str, Any]:
    """Return the seconds of both ways and their rank correlations."""
    classifier = Classifier.load(run)
    locator = PatchScorer(classifier)
    rgb = load_rgb_image(data_folder() / "raccoons" / "images" / f"{image}.jpg")
    ways: dict[str, Way] = {
        "patches": lambda: patch_by_patch(classifier, locator, rgb),
        "dense": lambda: locator.score_maps(rgb),
    }
    times = in_turns(ways, rounds)
    patches, dense = patch_by_patch(classifier, locator, rgb), locator.score_maps(rgb)
    name = max(locator.names, key=lambda one: max(each.scores[locator.index[one]].max() for each in patches))
    index, sides = locator.index[name], rgb.shape[:2]
    of_class = [np.concatenate([one.scores[index].ravel() for one in maps]) for maps in (patches, dense)]
    return {
        "image": f"{sides[1]}×{sides[0]}",
        "patches": len(of_class[0]),
        "seconds": {way: {"min": min(some), "median": statistics.median(some)} for way, some in times.items()},
        **ratios(times["patches"], times["dense"]),
        "class": name,
        "spearman": float(spearmanr(*of_class).statistic),
        "spearman_of_heat": float(
            spearmanr(*(make_heat_map(maps, index, *sides).ravel() for maps in (patches, dense))).statistic
        ),
    }


def raccoons(folder: Path, only: str | None) -> dict[str, Any]:
    """Return the results of locating raccoons in 50 images with both runs, or `only` one of them."""
    sources = data_folder()
    images = sorted((sources / "raccoons" / "images").iterdir(), key=lambda path: int(path.stem.rpartition("-")[2]))
    drawn = np.random.default_rng(SEED).permutation(len(images))
    learned, asked = (sorted(drawn[some].tolist()) for some in (slice(TRAINED), slice(TRAINED, None)))
    photos, boxes, all_boxes = folder / "photos", folder / "annotations", sources / "raccoons" / "annotations"
    for index in learned:
        link(images[index], photos / "raccoon")
        link(all_boxes / f"{images[index].stem}.xml", boxes)
    for animal in ("cat", "dog"):
        for path in sorted((sources / "cats-dogs" / animal).iterdir())[:OTHERS]:
            link(path, photos / animal)
    found = {}
    for name, given in (("boxes", boxes), ("labels", None)):
        if only not in (None, name):
            continue
        run = folder / name
        began = time.perf_counter()
        if not run.exists():
            svertka.train(photos, output=run, boxes=given)
        elif all(line["kind"] != "result" for line in svertka.Run(run).history()):
            svertka.resume(run)
        trained = time.perf_counter() - began
        began = time.perf_counter()
        located = svertka.locate(
            run, *(images[index] for index in asked), boxes=all_boxes, output=folder / f"{name}-found"
        )
        found[name] = {
            "train_seconds": trained,
            "locate_seconds_a_image": (time.perf_counter() - began) / len(asked),
            "result": svertka.Run(run).result(),
            "judgement": located.judgement,
        }
    return found


def link(file: Path, folder: Path) -> None:
    """Link `file` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / file.name).exists():
        (folder / file.name).symlink_to(file)


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "raccoons"))
    parser.add_argument("run", nargs="?", default=BACKBONE)
    parser.add_argument("--image", default="raccoon-1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("boxes", "labels"), help="one of the two runs (default: both)")
    parser.add_argument("--folder", type=Path, help="folder of the runs (default: a temporary one)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.what == "speed":
        result = speed(asked.run, asked.image, asked.rounds)
    else:
        with TemporaryDirectory() as passing:
            result = raccoons(asked.folder or Path(passing), asked.only)
    if asked.json:
        print(json.dumps(result, indent=2))
    elif asked.what == "speed":
        times = ", ".join(
            f"{way} {some['min']:.2f} s (median {some['median']:.2f})" for way, some in result["seconds"].items()
        )
        print(f"{result['image']}: {result['patches']} patches: {times}")
        print(f"{result['ratio_of_best']:.1f} times as fast (median {result['ratio_median']:.1f})")
        print(f"{result['class']}: Spearman {result['spearman']:.3f}, of heat maps {result['spearman_of_heat']:.3f}")
    else:
        for name, one in result.items():
            judged, small = one["judgement"], one["judgement"]["small"]
            print(
                f"{name}: trained in {one['train_seconds']:.0f} s, val error {one['result']['val_error']:.2%}; ", end=""
            )
            print(f"{one['locate_seconds_a_image']:.1f} s an image; inside a box {judged['hits']:.1%}", end="")
            print(f" (the center {judged['centre_hits']:.1%}, covered {judged['covered']:.1%})", end="")
            print(f"; boxes under a quarter, {small['images']}: {small['hits']:.1%} (covered {small['covered']:.1%})")


if __name__ == "__main__":
    main()
