from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest

import svertka
from svertka.run import Run


@pytest.fixture(autouse=True)
def without_display() -> Iterator[None]:
    before = matplotlib.get_backend()
    matplotlib.use("Agg")
    yield
    matplotlib.use(before)


@pytest.fixture(scope="session")
def run(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two epochs of LeNet-5 on real digits, with augmentations, at a learning rate that the finder chose."""
    output = tmp_path_factory.mktemp("plotted") / "run"
    return svertka.train(
        digit_folder, model="lenet5", recipe="lenet5-digits", epochs=2, lr="find", output=output, threads=1
    )
