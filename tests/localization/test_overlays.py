"""Overlays: clear where it is hot, gray where it is cold, and a page that holds them."""

from pathlib import Path

import numpy as np

from svertka.data.box_annotations import Annotation, Box
from svertka.localization.heatmap import Region
from svertka.localization.overlays import GRAY, MAX_SIDE, VEIL, OverlayFolder, describe_pointing_result, draw_overlay
from svertka.localization.pointing_game import PointingGame

FOUND = Region((30.0, 20.0), Box("<b>", 20, 10, 40, 30))


def test_cold_is_veiled_and_hot_is_not() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    hot = np.zeros((6, 8), np.float32)
    hot[0:4, 1:5] = 0.01  # only what it is beside the highest counts
    drawn = draw_overlay(rgb, hot, FOUND, ())
    assert drawn.shape == rgb.shape
    np.testing.assert_allclose(drawn[50:, 60:], rgb[50:, 60:] * (1 - VEIL) + np.array(GRAY) * VEIL, atol=1)
    assert np.array_equal(drawn[24:26, 24:26], rgb[24:26, 24:26])
    assert not np.array_equal(drawn[10, 20:40], rgb[10, 20:40])  # the box


def test_large_pictures_are_drawn_smaller() -> None:
    rgb = np.zeros((30, MAX_SIDE + 500, 3), np.uint8)
    assert draw_overlay(rgb, np.ones((4, 8), np.float32), FOUND, (FOUND.box,)).shape[1] == MAX_SIDE


def test_the_page_shows_every_picture(tmp_path: Path) -> None:
    folder = OverlayFolder(tmp_path / "found")
    rgb, hot = np.zeros((60, 80, 3), np.uint8), np.ones((6, 8), np.float32)
    annotation = Annotation("a.png", "a.xml", None, (Box("<b>", 0, 0, 80, 60),))
    files = [folder.add(path, rgb, hot, FOUND, 0.5, annotation) for path in ("x/a.png", "y/a.png", "ä/☃&.png")]
    assert len(set(files)) == 3
    pointing = PointingGame()
    pointing.add(annotation, (80, 60), {"<b>": 0.5}, lambda name: (30, 20))
    text = folder.write_page(pointing.to_dict()).read_text(encoding="utf-8")
    assert all(f'src="overlays/{file.name}"' in text for file in files)
    assert "&lt;b&gt;" in text
    assert "<b>" not in text.split("<main ")[1]
    assert "<p>The point lies in a box in 100.0\u00a0% of 1 cases" in text


def test_without_boxes_nothing_is_evaluated() -> None:
    assert describe_pointing_result(PointingGame().to_dict()) == "no picture has a box, so nothing was evaluated"
