"""Every kind of page, narrow and wide, light and dark: nothing is cut, overlaps, moves or lacks a name."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from svertka.classifier import Classifier
from svertka.curation.check_page import write_check_page
from svertka.curation.dataset_check import check
from svertka.curation.dataset_findings import DuplicateGroup
from svertka.curation.label_check import AmbiguousPair, GlobalOutlier, LabelError, LabelFindings, Neighbor
from svertka.data.box_annotations import Annotation, Box
from svertka.data.folder_and_table_sources import open_folder
from svertka.evaluation.compare import compare
from svertka.evaluation.metrics import Evaluation, MetricAccumulator
from svertka.evaluation.report_page import Report, write_report
from svertka.inspection.atlas.build import look
from svertka.localization.heatmap import Region
from svertka.localization.overlays import OverlayFolder

INTERACTIVE = Path(__file__).parents[2] / "docs" / "reference" / "interactive"
LONG = "greater sulphur-crested cockatoo, Kakatoe galerita, Cacatua galerita, of the bird atlas of 1899"
HOSTILE = f"<script>window.broken = 1</script><img src=x onerror='window.broken = 1'>\" قطة 👩‍🔬 {'W' * 30}"


def random_pixels(seed: int, height: int = 40, width: int = 40) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def random_evaluation(names: list[str]) -> Evaluation:
    """Two of three images are right."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6 * len(names)) % len(names)
    scores = torch.randn(len(labels), len(names), generator=generator)
    scores[torch.arange(len(labels)), labels] += 4 * (torch.arange(len(labels)) % 3 > 0)
    tally = MetricAccumulator(len(names))
    tally.update(scores, labels, torch.arange(len(labels)))
    return tally.result(names)


def write_random_report(path: Path, names: list[str]) -> Path:
    epochs: list[dict[str, Any]] = [
        {"kind": "epoch", "epoch": k, "step": k, "train_loss": 2 / k, "train_error": 1 / k, "val_loss": 2.1 / k,
         "val_error": 1 / k, "kept": True, "learning_rate": 0.1, "images_per_second": 5, "seconds": 2.0 * k}
        for k in range(1, 6)
    ]  # fmt: skip
    report = Report(
        name=names[0],
        network="resnet18",
        source="photographs",
        facts=[("Device", "cpu, 2 threads"), ("Recipe", LONG)],
        history=epochs,
        part="test",
        evaluation=random_evaluation(names),
        read_image=lambda index: random_pixels(index, 12, 12),
        image_name=lambda index: f"album/holidays of the year 2024/{names[0].replace('/', '∕')} {index}.jpg",
    )
    write_report(path, report)
    return path


def write_random_check(root: Path) -> Path:
    for number, label in enumerate((LONG, HOSTILE.replace("/", "∕"), "dog")):
        (root / label).mkdir(parents=True)
        for place in range(4):
            Image.fromarray(random_pixels(9 * number + place, 60, 40 + 9 * place)).save(
                root / label / f"{LONG} {place}.png"
            )
    dataset = open_folder(root)
    paths = [dataset.images.name(index) for index in range(len(dataset))]
    labels = [dataset.names[label] for label in dataset.labels]
    near = tuple(Neighbor(paths[k], labels[k], 0.9 - k / 100, k) for k in range(5, 10))
    wrong = tuple(LabelError(paths[k], labels[k], dataset.names[-1], 0.9 - k / 100, near, k) for k in range(6))
    found = LabelFindings(
        len(dataset), 0.125, (0.1, 0.15), "efficientnet_lite0:bundled", wrong,
        (GlobalOutlier(paths[7], labels[7], 3.2, near[:3], 7),),
        (AmbiguousPair((dataset.names[0], dataset.names[1]), 5, 20, (0.1, 0.4), (paths[8],), (8,)),),
        map=(np.arange(12), np.random.default_rng(0).random((12, 2)).astype(np.float32)),
    )  # fmt: skip
    copies = DuplicateGroup((paths[0], paths[-1]), (labels[0], labels[-1]), ("train", "train"))
    page = root.with_suffix(".html")
    write_check_page(page, dataset, replace(check(root), labels=found, near_duplicates=(copies,)), threads=1)
    return page


def write_random_overlays(folder: Path) -> Path:
    overlays = OverlayFolder(folder)
    for name, (height, width) in {"a.png": (8, 8), "b.png": (60, 900), f"{HOSTILE} {LONG}.png": (900, 60)}.items():
        box = Box(HOSTILE, 1, 1, width // 2, height // 2)
        found = Region((2.0, 2.0), box)
        annotation = Annotation(name, "a.xml", None, (box,))
        overlays.add(name, random_pixels(1, height, width), np.ones((6, 8), np.float32), found, 0.5, annotation)
    return overlays.write_page(None)


@pytest.fixture(scope="module")
def zoo(
    tmp_path_factory: pytest.TempPathFactory, made: Callable[..., Classifier], digit_folder: Path
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("zoo")
    runs = [root / f"run {number} of {LONG[:60]}" for number in range(2)]
    for run in runs:
        made("lenet5", 32, 32, channels=1, names=("one", "two", "three", "four")).save(run)
    compare(runs, str(digit_folder), part="all", output=root / "comparison.html", threads=1)
    atlas = look(runs[0], digit_folder, layers=("c1", "c3"), units=8, images=12, output=root / "atlas", threads=1).page
    pages = {
        "report": write_random_report(root / "report.html", ["cat", "dog"]),
        "report of long names": write_random_report(root / "long.html", [f"{LONG} {k}" for k in range(12)]),
        "report of hostile names": write_random_report(root / "hostile.html", [f"{HOSTILE} {k}" for k in range(8)]),
        "report of 100 classes": write_random_report(root / "hundred.html", [f"{LONG} {k}" for k in range(100)]),
        "check": write_random_check(root / "checked"),
        "overlays": write_random_overlays(root / "located"),
        "comparison": root / "comparison.html",
        "atlas": atlas,
    }
    return pages | {path.stem: path for path in sorted(INTERACTIVE.glob("*.html"))}


KINDS = ("report", "report of long names", "report of hostile names", "report of 100 classes", "check", "overlays",
         "comparison", "atlas", "convolution", "winograd", "receptive_field", "backward", "lenet")  # fmt: skip


@pytest.mark.large
@pytest.mark.parametrize("kind", KINDS)
def test_no_page_displeases(
    zoo: dict[str, Path],
    kind: str,
    opened: Callable[..., AbstractContextManager[Any]],
    axe_violations: Callable[[Any], list[str]],
    layout_faults: Callable[[Any], list[str]],
    layout_shift: Callable[[Any], float],
    first_paint: Callable[[Any], float],
) -> None:
    faults = []
    for width, scheme in ((390, "dark"), (1200, "light"), (390, "light"), (1200, "dark")):
        with opened(zoo[kind], viewport={"width": width, "height": 800}, color_scheme=scheme) as tab:
            tab.wait_for_load_state("networkidle")
            shift, paint = layout_shift(tab), first_paint(tab)
            found = [*layout_faults(tab), *axe_violations(tab)]
            found += [f"moved by {shift:.4f}"] * (shift >= 0.001) + [f"painted after {paint:.0f} ms"] * (paint >= 500)
            faults += [f"{width} {scheme}: {fault}" for fault in found]
            assert tab.evaluate("window.broken") is None
    assert faults == []
