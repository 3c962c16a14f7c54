"""Each figure shows the numbers and images that svertka's functions return."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import svertka
from svertka import inspection, plot
from svertka.errors import UsageError
from svertka.models.published_weights import MEAN, STD
from svertka.plot.figure_canvas import mosaic, to_pixels
from svertka.run import Run


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 5 * 5, 3),
    )  # fmt: skip


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def shown(figure: Figure) -> list[np.ndarray]:
    """The images of a figure, in order."""
    return [np.asarray(one.get_array()) for axis in figure.axes for one in axis.get_images()]


def texts(figure: Figure) -> str:
    """All text of a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(lambda one: hasattr(one, "get_text")))


def test_filters_are_those_of_the_network(network: nn.Module) -> None:
    found = inspection.get_first_layer_filters(network)
    expected = found.to_images()[found.similarity_order]
    assert np.array_equal(np.stack(shown(plot.first_layer_filters(network))), expected)


def test_feature_maps_are_the_layers_output(network: nn.Module, images: torch.Tensor) -> None:
    figure = plot.feature_maps(network, images[2], "4", units=[3, 0])
    expected = inspection.layer_outputs(network, images[2:3], ["4"])["4"][0].detach()
    assert np.allclose(np.stack(shown(figure)), expected[[3, 0]])
    assert "4: 2 of 4 feature maps of 5×5" in texts(figure)


def test_the_tables_bars_are_the_summarys(network: nn.Module) -> None:
    layers = [one for one in svertka.summary(network, 16).trace.layers if one.parameters or one.multiply_adds]
    left, right = plot.layer_table(network, 16).axes
    assert [bar.get_width() for bar in left.patches] == [one.parameters for one in layers]
    assert [bar.get_width() for bar in right.patches] == [one.multiply_adds for one in layers]
    left, _ = plot.receptive_fields(network, 16).axes
    assert [bar.get_width() for bar in left.patches] == [3, 3, 3, 4, 8, 8]


@pytest.mark.parametrize("layers", [1, 2, 9])
def test_heights_of_images_that_are_not_square_are_compared(layers: int) -> None:
    network = nn.Sequential(*(nn.Conv2d(3, 3, (3, 5), padding=(1, 2)) for _ in range(layers)))
    figure = plot.receptive_fields(network, (3, 36, 24))
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == [2 * number + 3 for number in range(layers)]
    assert {bar.get_width() for bar in right.patches} == {36}
    assert list(left.lines[0].get_xdata()) == [36, 36]
    (label,) = (text for text in left.texts if text.get_text() == "image: 36")
    figure.draw_without_rendering()
    assert label._check_xy()  # otherwise it is outside the axes, and left out


@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("lines", [1, 2, 3])
def test_the_title_of_a_mosaic_is_above_the_texts_of_its_images(lines: int, count: int) -> None:
    figure = mosaic([np.zeros((8, 8))] * count, ["\n".join(["line"] * lines)] * count, title="all of them", columns=4)
    figure.draw_without_rendering()
    tops = [axis.title.get_window_extent().y1 for axis in figure.axes if axis.get_title()]
    assert max(tops) <= figure._suptitle.get_window_extent().y0


def test_patches_are_cut_from_the_images(network: nn.Module, images: torch.Tensor) -> None:
    found = inspection.top_patches(network, images, "4", 3)["4"]
    unit = int(np.flatnonzero(~found.is_dead)[0])
    figure = plot.top_patches(network, images, "4", units=[unit], count=3)
    top, left, bottom, right = found.boxes[unit, 0]
    image = images[found.images[unit, 0]].numpy().transpose(1, 2, 0)
    stretched = (image - image.min()) / (image.max() - image.min())
    assert np.allclose(shown(figure)[0], stretched[top:bottom, left:right], atol=1e-6)
    projected = shown(plot.projections(network, images, "4", units=[unit], count=3))
    expected = inspection.to_images(
        inspection.project(network, images, "4", unit, found.positions[unit, :1].tolist(), [int(found.images[unit, 0])])
    )[0]
    assert np.array_equal(projected[3], expected[top:bottom, left:right])


@pytest.mark.parametrize(("count", "bands"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_bands_are_shown_as_gray_or_by_the_first_three(count: int, bands: list[int]) -> None:
    pixels = torch.rand(2, 4, 4, count, generator=torch.Generator().manual_seed(0))
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = 0, 1  # so that nothing is stretched
    shown = to_pixels(pixels.permute(0, 3, 1, 2), None)
    np.testing.assert_array_equal(shown, pixels.numpy()[..., bands])


def test_saliency_leaves_the_network_as_it_was(network: nn.Module, images: torch.Tensor) -> None:
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    figure = plot.saliency(network, images[:2])
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert len(shown(figure)) == 2 * 4
    predicted = network.eval()(images[:2]).argmax(1).tolist()
    assert texts(figure).count("evidence for ") == 2
    assert all(f"evidence for {label}" in texts(figure) for label in predicted)


def test_a_run_is_shown_with_its_own_images(run: Run, digit_folder: Path) -> None:
    evaluation = svertka.evaluate(run, digit_folder)
    confusion = plot.confusion(run)
    assert np.allclose(shown(confusion)[0], evaluation.confusion / evaluation.confusion.sum(1, keepdims=True).clip(1))
    assert f"{evaluation.images:,} images" in texts(confusion)
    points = plot.reliability(evaluation).axes[0].lines[1].get_xydata()
    assert np.allclose(points, [(100 * one.confidence, 100 * one.accuracy) for one in evaluation.calibration.bins])
    if evaluation.mistakes:
        worst = evaluation.mistakes[0]
        assert f"{100 * worst.probability:.0f} %" in texts(plot.top_losses(run, count=1))
    image = next((digit_folder / "one").iterdir())
    assert len(shown(plot.feature_maps(run, image, "c1"))) == 6


def test_the_training_is_shown_as_it_was_recorded(run: Run) -> None:
    epochs = [line for line in run.history() if line["kind"] == "epoch"]
    figure = plot.learning_curves(run)
    drawn = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert [line["val_loss"] for line in epochs] in drawn
    finder = next(line for line in run.history() if line["kind"] == "range_test")
    curve = plot.lr_finder(run.folder).axes[0].lines[0]
    assert list(curve.get_ydata()) == finder["loss"]
    batch = shown(plot.show_batch(run, count=3, draws=2))
    assert len(batch) == 9
    assert not np.array_equal(batch[0], batch[3])


def test_a_network_that_takes_images_of_one_size_only_is_evaluated_on_that_size(run: Run) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 20, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 20, 3), dtype=np.uint8)
    source = pixels, np.arange(30) % 3
    with pytest.raises(UsageError, match="give the size of its images"):
        plot.confusion(network, source)
    with pytest.raises(UsageError, match=r"Sequential takes images of 224×224 pixels, but not of size=20;"):
        plot.confusion(nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 3)), source, size=20)
    with pytest.raises(UsageError, match="size=20 is only for an nn.Module"):
        plot.confusion(run, source, size=20)
    with pytest.raises(UsageError, match="size=0 must be 1 to 4096 pixels"):
        plot.confusion(network, source, size=0)
    mean, std = torch.tensor([MEAN, STD])[..., None, None]
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    expected = np.zeros((3, 3))
    np.add.at(expected, (source[1], network(images).argmax(1).numpy()), 1)
    assert np.allclose(shown(plot.confusion(network, source, size=20))[0], expected / 10)
    assert svertka.evaluate(network, source, size=20).confusion.tolist() == expected.tolist()


def test_a_narrow_figure_is_as_wide_as_its_title(network: nn.Module, images: torch.Tensor) -> None:
    figure = plot.top_patches(network, images[:1], "0")
    figure.canvas.draw()
    (title,) = [text for text in figure.texts if "largest activations" in text.get_text()]
    extent = title.get_window_extent()
    assert 0 < extent.x0 < extent.x1 < figure.bbox.width


def test_of_many_classes_those_that_occur_are_shown() -> None:
    linear = nn.Linear(3 * 8 * 8, 1000).requires_grad_(False)
    linear.weight.zero_()
    linear.bias.zero_()[437] = 5.0  # every image is predicted as this class
    labels = torch.tensor([437, 437, 12, 900])
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    figure = plot.confusion(nn.Sequential(nn.Flatten(), linear), (pixels, labels), size=8)
    assert shown(figure)[0].tolist() == [[0, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert figure.axes[0].get_title("left").endswith("4 images\n3 of 1,000 classes")
    assert len(figure.axes[0].get_xticks()) == 3


def test_dead_units_are_named_with_the_layer_that_makes_them_so(images: torch.Tensor) -> None:
    convolution, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    nn.init.zeros_(norm.weight)
    network = nn.Sequential(convolution, norm, nn.Conv2d(4, 2, 1)).eval()
    with pytest.raises(UsageError, match="all 4 units of 0, read after 1, are dead on these images; give others"):
        plot.top_patches(network, images, "0")
    nn.init.zeros_(convolution.weight)
    nn.init.constant_(convolution.bias, -1.0)
    with pytest.raises(UsageError, match="all 4 units of 0 are dead on these images; give others"):
        plot.top_patches(nn.Sequential(convolution, nn.Conv2d(4, 2, 1)).eval(), images, "0")


def test_what_cannot_be_shown_is_refused_with_a_sentence(network: nn.Module, images: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="unit 9 does not exist; the layer has 4 units, 0 to 3"):
        plot.feature_maps(network, images, "4", units=[9])
    with pytest.raises(UsageError, match="layer=7 has the output 3, which is no set of feature maps"):
        plot.feature_maps(network, images, "7")
    with pytest.raises(UsageError, match="Sequential has no images of its own"):
        plot.confusion(network)
    with pytest.raises(UsageError, match="a network without preprocessing cannot read"):
        plot.saliency(network, "cat.jpg")
    with pytest.raises(UsageError, match="no convolution, so it has no filters"):
        plot.first_layer_filters(nn.Linear(3, 2))
    with pytest.raises(UsageError, match="count=0 must be 1 to 24"):
        plot.top_losses(network, count=0)


def test_arrays_are_shown_as_images_and_curves() -> None:
    gray, color = torch.rand(1, 5, 6), torch.rand(3, 5, 6)
    drawn = shown(plot.images([gray, color], ["gray", "color"]))
    assert np.allclose(drawn[0], gray[0])
    assert np.allclose(drawn[1], color.permute(1, 2, 0))
    signed = plot.images([-gray[0], 3 * gray[0]], signed=True)
    largest = 3 * float(gray.max())
    assert {axis.images[0].get_clim() for axis in signed.axes} == {(-largest, largest)}
    figure = plot.curves({"one": [1, 4, 9], "two": ([1, 10, 100], [3.0, 2.0, 1.0])}, log_x=True, y_label="loss")
    one, two = figure.axes[0].lines
    assert one.get_xydata().tolist() == [[0, 1], [1, 4], [2, 9]]
    assert two.get_xydata().tolist() == [[1, 3], [10, 2], [100, 1]]
    assert {"one", "two", "loss"} <= set(texts(figure).split("\n"))
    with pytest.raises(UsageError, match="there are 1 titles for 2 images"):
        plot.images([gray, color], ["gray"])
    with pytest.raises(UsageError, match=r"an image has the shape \(2, 5, 6\)"):
        plot.images([torch.rand(2, 5, 6)])
    with pytest.raises(UsageError, match=r"loss has x of \(2,\) and y of \(3,\)"):
        plot.curves({"loss": ([1, 2], [1, 2, 3])})
    with pytest.raises(UsageError, match="there are no images to show"):
        plot.images([])
