"""The page of svertka locate in a browser."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from svertka.data.box_annotations import Annotation, Box
from svertka.localization.heatmap import Region
from svertka.localization.overlays import OverlayFolder
from svertka.localization.pointing_game import PointingGame

NAME = "greater sulphur-crested cockatoo"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Overlays of a small, a wide and a tall image with a long name, and the result of the pointing game."""
    folder = OverlayFolder(tmp_path_factory.mktemp("located") / "found")
    pointing = PointingGame()
    for name, (height, width) in {"a.png": (8, 8), "b.png": (60, 900), "a name from a camera " * 4: (900, 60)}.items():
        box = Box(NAME, 1, 1, width // 2, height // 2)
        annotation = Annotation(name, "a.xml", None, (box,))
        pointing.add(annotation, (width, height), {NAME: 0.5}, lambda _: (2, 2))
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        folder.add(name, pixels, np.ones((6, 8), np.float32), Region((2.0, 2.0), box), 0.5, annotation)
    return folder.write_page(pointing.to_dict())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_axe_finds_no_violation(
    opened: Callable[..., AbstractContextManager[Any]],
    axe_violations: Callable[[Any], list[str]],
    layout_faults: Callable[[Any], list[str]],
    page: Path,
    width: int,
    scheme: str,
) -> None:
    with opened(page, viewport={"width": width, "height": 800}, color_scheme=scheme) as tab:
        assert axe_violations(tab) == []
        assert layout_faults(tab) == []
        assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        scales = """[...document.images].map(image => [image.getBoundingClientRect().width / image.naturalWidth,
            getComputedStyle(image).imageRendering])"""
        assert tab.evaluate(scales)[0] == [36, "pixelated"]
