"""Exercises of the notebook "What units look for"."""

from typing import Any

import numpy as np
import torch

from svertka.lessons.answer_checks import check_array, check_function, check_number, to_values
from svertka.lessons.shape_network import SHAPES


def check_strongest(answer: Any) -> str | None:
    """8.1: a function (maps, unit) that returns image, row and column of the largest activation."""
    if reason := check_function(answer, "feature maps and a unit"):
        return reason
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(5, 3, 4, 7, generator=generator)
    for unit in range(3):
        place = divmod(int(maps[:, unit].argmax()), 4 * 7)
        expected = [place[0], *divmod(place[1], 7)]
        result = answer(maps, unit)
        if result is None:
            return "It returns None. Three numbers are asked for."
        values = to_values(result)
        if values is None or not values.isfinite().all():
            return "It has to return three numbers: image, row and column."
        found = [int(one) if one == int(one) else one for one in values.flatten().tolist()]
        if found == expected:
            continue
        if found == [int(maps[:, unit].argmax())]:
            return "This is one number, counted through all images, rows and columns. Take it apart into the three."
        if len(found) != 3:
            count = "one number" if len(found) == 1 else f"{len(found)} numbers"
            return f"It returns {count}; image, row and column are asked for."
        if found == [expected[0], expected[2], expected[1]]:
            return "The row comes before the column."
        if found[0] == unit and found[1:] == list(divmod(int(maps[unit].argmax()) % 28, 7)):
            return "maps[unit] is the image number `unit`. The maps of one unit are maps[:, unit]."
        whole = int(maps.argmax())
        if found == [whole // (3 * 28), whole % 28 // 7, whole % 7]:
            return "This is the largest activation of all units. Look at the maps of one unit, maps[:, unit]."
        return f"For unit {unit} of random maps it returns {found}, and the largest activation is elsewhere."
    return None


def check_seen_rows(answer: Any) -> str | None:
    """8.2: the rows of pixels that row 5 sees."""
    hints = {
        (20, 34): "The last convolution is padded: its row 5 reads the rows 4 to 6, not 5 to 7.",
        (16, 31): "The kernel of 3 reads the rows 2i to 2i + 2. Row 31 is one too many.",
        (20, 26): "The last convolution reads three rows, 4 to 6, not only row 5.",
        (8, 14): "This is what it sees of the output of the first convolution. One layer is left.",
        (16, 28): "The last window of the first convolution begins at row 28. It reads three rows.",
        (16, 26): "The last window of the pooling reads three rows, 12 to 14.",
        (14, 30): "Row 4 of the pooling begins at row 8 of the first convolution, and this at row 2 · 8 of the pixels.",
        (18, 30): "Row 4 of the pooling begins at row 8 of the first convolution, and this at row 2 · 8 of the pixels.",
        (
            16,
            32,
        ): "Row 6 of the pooling reads the rows 12 to 14, and row 14 of the first convolution the rows 28 to 30.",
        (4, 6): "This is what it reads of the output of the pooling. Two layers are left.",
    }
    return check_array(
        answer, torch.tensor([16, 30]), "The list of the first and last row", tuple(hints.items()), shows_expected=False
    )


def check_projection(answer: Any) -> str | None:
    """8.3: the projection of an activation through max-pooling and ReLU."""
    hints = (
        ([2, 0, 0, -1, 0, 3], "This is the gradient. On the way back, ReLU lets only positive values through."),
        ([2, 0, 0, 0, 3, 0], "The last value goes back to where the maximum was: 5, not 0."),
        ([2, 2, 0, 0, 3, 3], "A value goes back to the maximum of its pair only."),
        ([40, 0, 0, 0, 0, 60], "Start with an activation of 1, not with the 20 that the network computes."),
        ([8, 0, 0, 0, 0, 15], "The pixels themselves do not count on the way back, only where the maxima were."),
        ([3, 0, 0, 0, 0, 2], "The kernel is not turned around: its first weight belongs to the first pair."),
        ([2, 0, 0, 1, 0, 3], "ReLU makes a negative value 0, not positive."),
        ([2, -1, 3], "These are values of three pairs. Put each where the maximum of its pair was; ReLU comes last."),
        ([2, 0, 3], "These are values of three pairs. Put each where the maximum of its pair was."),
        ([1, 1, 0, 0, 1.5, 1.5], "Max-pooling does not spread a value over its pair, as mean pooling would."),
    )
    return check_array(answer, torch.tensor([2, 0, 0, 0, 0, 3]), "The projection", hints, shows_expected=False)


def check_shapes(answer: Any) -> str | None:
    """8.4: what the four units look for."""
    words = answer.tolist() if isinstance(answer, np.ndarray) else answer
    if not isinstance(words, list | tuple) or len(words) != len(SHAPES):
        return "A list of four words is asked for."
    for unit, (word, right) in enumerate(zip(words, SHAPES, strict=True)):
        if word not in SHAPES:
            return f"{word} is not one of {', '.join(sorted(SHAPES))}."
        if word != right:
            return f"Unit {unit} does not look for a {word}. See plot.top_patches(shape_network, shapes, '0')."
    return None


def check_occlusions(answer: Any) -> str | None:
    """8.5: forward passes of occlusion, 224 pixels, side 32, stride 16."""
    hints = {
        196.0: "The last square begins at 192, so that it ends at 224: these are 13 places along an axis.",
        144.0: "The first place counts, too: (224 − 32) / 16 + 1.",
        49.0: "The squares overlap: they move in steps of 16.",
        13.0: "This is along one axis.",
        170.0: "The image as it is does not count.",
        26.0: "There are 13 places along each axis, and each of one goes with each of the other.",
        197.0: "The last square begins at 192, so that it ends at 224. The image as it is does not count.",
    }
    return check_number(answer, 169, hints)


EXERCISES = {
    "8.1": check_strongest, "8.2": check_seen_rows, "8.3": check_projection, "8.4": check_shapes,
    "8.5": check_occlusions,
}  # fmt: skip
