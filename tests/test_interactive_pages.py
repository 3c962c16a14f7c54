"""The interactive pages of the documentation compute what PyTorch and svertka compute, and everybody can use them."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from svertka.conv.sparse_matrix import build_matrix
from svertka.conv.winograd import cook_toom
from svertka.conv_shape import ConvShape
from svertka.models.lenet import LeNet5
from svertka.models.registry import find_model, trace_model

PAGES = Path(__file__).parents[1] / "docs" / "reference" / "interactive"
NAMES = ("convolution", "winograd", "receptive_field", "backward", "lenet")


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", NAMES)
def test_is_accessible_in_both_color_schemes_and_on_a_phone(name, opened, axe_violations, layout_faults, layout_shift):
    with opened(PAGES / f"{name}.html", color_scheme="light") as tab:
        assert layout_shift(tab) < 0.001
        assert layout_faults(tab) == []
        assert axe_violations(tab) == []
        tab.set_viewport_size({"width": 390, "height": 800})
        tab.emulate_media(color_scheme="dark", reduced_motion="reduce")
        assert axe_violations(tab) == []
        assert layout_faults(tab) == []


@pytest.mark.parametrize("name", NAMES)
def test_sentences_are_whole_without_scripts(name, opened):
    script = """Object.fromEntries([...document.querySelectorAll('main p [id], main figcaption [id], main h3 [id]')]
        .filter(one => !one.matches('.quiet')).map(one => [one.id, one.textContent]))"""
    with opened(PAGES / f"{name}.html", java_script_enabled=False) as plain, opened(PAGES / f"{name}.html") as scripted:
        assert plain.evaluate(script) == scripted.evaluate(script)


def arrays(tab: Any, script: str, argument: Any = None) -> Any:
    """What a script in the page returns, through JSON."""
    return json.loads(tab.evaluate(f"argument => JSON.stringify(({script})(argument))", argument))


def test_convolution_equals_pytorchs(opened, large_count):
    generator = np.random.default_rng(0)
    with opened(PAGES / "convolution.html") as tab:
        seen = 0
        for _ in range(large_count(20, 200)):
            size, kernel, stride, padding, dilation = (
                int(generator.integers(low, high + 1)) for low, high in ((3, 10), (1, 5), (1, 4), (0, 2), (1, 3))
            )
            setting = {"size": size, "kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
            mode = ("zeros", "reflect")[int(generator.integers(2))]
            if dilation * (kernel - 1) + 1 > size + 2 * padding:
                assert "spans" in arrays(tab, "Convolution.refusal", setting)
                continue
            assert arrays(tab, "Convolution.refusal", setting) is None
            image, weights = generator.integers(0, 10, (size, size)), generator.integers(-3, 4, (kernel, kernel))
            argument = [image.tolist(), weights.tolist(), setting | {"mode": mode}]
            result = arrays(
                tab, "([image, weights, setting]) => Convolution.forward(image, weights, setting)", argument
            )
            matrix = arrays(tab, "([image, weights, setting]) => Convolution.matrix(weights, setting)", argument)
            x, w = torch.from_numpy(image)[None, None].double(), torch.from_numpy(weights)[None, None].double()
            padded = F.pad(x, [padding] * 4, mode="constant" if mode == "zeros" else "reflect")
            expected = F.conv2d(padded, w, stride=stride, dilation=dilation)[0, 0]
            assert result == expected.tolist()
            assert (torch.tensor(matrix).double() @ x.flatten()).tolist() == expected.flatten().tolist()
            if mode == "zeros":
                shape = ConvShape.of(x.shape, w.shape, stride, padding, dilation)
                assert matrix == build_matrix(w, shape).to_dense().tolist()
            seen += 1
        assert seen > 5


def uses_space(tab: Any) -> list[bool]:
    """Whether each element that arrow keys move in keeps Space from scrolling the page."""
    script = """[...document.querySelectorAll('[tabindex="0"][role=slider]')]
        .map(one => !one.dispatchEvent(new KeyboardEvent('keydown', {key: ' ', cancelable: true})))"""
    return list(tab.evaluate(script))


def test_the_window_moves_by_mouse_touch_and_keyboard(opened):
    with opened(PAGES / "convolution.html", has_touch=True) as tab:
        assert uses_space(tab) == [True] * 3
        formula = tab.locator("#formula")
        assert formula.text_content().startswith("y(2, 3) = ")
        tab.locator("#output svg").focus()
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("ArrowDown")
        assert formula.text_content().startswith("y(3, 4) = ")
        tab.locator("#input svg").scroll_into_view_if_needed()
        box = tab.locator("#input svg").bounding_box()
        cell = box["width"] / 9
        tab.touchscreen.tap(box["x"] + 1.5 * cell, box["y"] + 1.5 * cell)
        assert formula.text_content().startswith("y(0, 0) = ")
        tab.mouse.move(box["x"] + 1.5 * cell, box["y"] + 1.5 * cell)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 6.5 * cell, box["y"] + 4.5 * cell, steps=4)
        tab.mouse.up()
        assert formula.text_content().startswith("y(3, 5) = ")
        tab.get_by_label("Weight, row 1, column 1").fill("5")
        assert tab.locator("#preset").input_value() == "own"
        value = float(formula.text_content().rpartition("= ")[2].replace("−", "-"))
        shown = arrays(tab, "() => document.querySelector('#output svg').getAttribute('aria-valuetext')")
        assert shown == f"row 3, column 5: {value:.0f}".replace("-", "−")


def test_what_does_not_fit_is_refused_with_a_sentence(opened):
    with opened(PAGES / "convolution.html", "#size=3&kernel=5&padding=0") as tab:
        text = "A kernel of 5 with dilation 1 spans 5 pixels, more than the 3 of an input of 3 with padding 0."
        assert tab.locator("#refusal").text_content().startswith(text)
        assert tab.locator("#output svg rect").count() == 0


def test_winograd_equals_the_convolution_and_svertkas_transforms(opened):
    generator = np.random.default_rng(1)
    points = {2: [0, 1, -1], 4: [0, 0.625, -0.625, 1.5, -1.5], 6: [0, 0.5, -0.5, 1, -1, 2, -2]}
    with opened(PAGES / "winograd.html") as tab:
        for _ in range(5):
            tile, kernel = generator.integers(-9, 10, (4, 4)), generator.integers(-9, 10, (3, 3))
            found = arrays(tab, "([d, g]) => Winograd.tile(d, g)", [tile.tolist(), kernel.tolist()])
            expected = F.conv2d(torch.from_numpy(tile)[None, None], torch.from_numpy(kernel)[None, None])[0, 0]
            assert found["Y"] == expected.tolist()
            assert np.allclose(found["M"], np.multiply(found["U"], found["V"]))
        for outputs, values in points.items():
            found = arrays(tab, "([outputs, points]) => Winograd.transforms(outputs, 3, points)", [outputs, values])
            ours = cook_toom(outputs, 3, values)
            for name in ("data", "kernel", "inverse"):
                assert np.allclose(found[name], np.array(getattr(ours, name), dtype=float), atol=1e-12)
        errors = [
            float(text.partition("·")[0]) for text in tab.locator("#error-rows td:nth-child(3)").all_text_contents()
        ]
        assert errors == sorted(errors)
        assert 0.5 < errors[0] < 2  # float32 has 24 bits: 6e-8
        rows = tab.locator("#tile-rows tr").all_text_contents()
        assert rows == ["directly–1,7641.00×", "F(2×2, 3×3)497842.25×", "F(4×4, 3×3)165763.06×", "F(6×6, 3×3)95763.06×"]


def test_both_methods_count_to_the_same_outputs(opened):
    with opened(PAGES / "winograd.html", "#done=16") as tab:
        assert tab.locator("#winograd-count").text_content() == "16"
        texts = tab.locator("#winograd-output text").all_text_contents()
        assert len(tab.locator("#direct-output text").all_text_contents()) == 2
        tab.locator('input[data-bind="done"]').fill("36")
        assert tab.locator("#direct-output text").all_text_contents() == texts
        tab.get_by_label("Pixel, row 0, column 0").first.fill("7")
        assert tab.locator("#row-y0").text_content() == str(7 * 2 + 1 * 1 - 3)


LARGE = [pytest.param(name, marks=pytest.mark.large) for name in ("vgg16", "googlenet")]


@pytest.mark.parametrize("name", ["alexnet", "resnet18", *LARGE])
def test_receptive_fields_are_svertkas(name, opened):
    script = """name => { const network = RECEPTIVE_FIELD_DATA.networks[name];
        const fields = (index, position) =>
            [ReceptiveField.interval(network, index, position), ReceptiveField.cone(network, index, position).get(-1)];
        return network.layers.map((layer, index) =>
            [layer, Array.from({length: layer.side}, (_, position) => fields(index, position))]) }"""
    with opened(PAGES / "receptive_field.html", f"#network={name}") as tab:
        found = arrays(tab, script, name)
    size, traced = find_model(name).input_shape[1], trace_model(find_model(name)).layers
    for layer, pairs in found:
        for interval, cone in pairs:
            assert cone == [max(0, interval[0]), min(size - 1, interval[1])], layer["name"]
    grids = {(layer.shape[1], layer.shape[2], layer.fields[0].grid) for layer in traced if layer.fields[0].grid}
    assert {(one["channels"], one["side"], tuple(one["grid"])) for one, _ in found if one["grid"]} <= grids
    by_grid = {layer.fields[0].grid: layer.fields[0].intervals for layer in traced if layer.fields[0].grid}
    for one, pairs in found:
        if one["grid"]:
            assert tuple(tuple(cone) for _, cone in pairs) == by_grid[tuple(one["grid"])]


def test_the_profile_is_the_gradient_of_a_network_of_means(opened):
    with opened(PAGES / "receptive_field.html") as tab:
        network = arrays(tab, "() => RECEPTIVE_FIELD_DATA.networks.alexnet")
        for index, position in ((0, 3), (4, 0), (7, 2)):
            script = "([index, at]) => [...ReceptiveField.profile(RECEPTIVE_FIELD_DATA.networks.alexnet, index, at)]"
            found = arrays(tab, script, [index, position])
            windows = [
                arrays(tab, "i => ReceptiveField.window(RECEPTIVE_FIELD_DATA.networks.alexnet, i, i - 1)", i)
                for i in range(index + 1)
            ]
            x = torch.zeros(1, 1, network["size"], dtype=torch.float64, requires_grad=True)
            y = x
            for window in windows:
                weight = torch.full((1, 1, window["span"]), 1 / window["span"], dtype=torch.float64)
                y = F.conv1d(y, weight, stride=window["stride"], padding=window["padding"])
            y[0, 0, position].backward()
            assert np.allclose(found, x.grad[0, 0], atol=1e-15)


def test_a_layer_is_chosen_in_the_diagram_and_by_keyboard(opened):
    with opened(PAGES / "receptive_field.html", "#network=vgg16&layer=16") as tab:
        assert tab.locator("#says").text_content().startswith("conv5_3(")
        assert "196×196 pixels" in tab.locator("#says").text_content()
        tab.locator("#cone svg").focus()
        tab.keyboard.press("ArrowUp")
        assert "212×212 pixels" in tab.locator("#says").text_content()
        tab.locator("#network").select_option("resnet18")
        assert "layer4" in tab.locator("#says").text_content()
        tab.get_by_role("button", name="conv1", exact=True).focus()
        tab.keyboard.press("Enter")
        assert "7×7 pixels" in tab.locator("#says").text_content()
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.textContent") == "maxpool"
        assert set(uses_space(tab)) == {True}


def test_gradients_equal_pytorchs(opened):
    generator = np.random.default_rng(2)
    with opened(PAGES / "backward.html") as tab:
        for kind, window, stride in (("max", 2, 2), ("max", 3, 1), ("max", 2, 3), ("average", 2, 2), ("average", 3, 2)):
            x = torch.from_numpy(generator.integers(0, 4, (1, 1, 6, 6))).double().requires_grad_()  # with ties
            y = (F.max_pool2d if kind == "max" else F.avg_pool2d)(x, window, stride)
            gradient = torch.from_numpy(generator.integers(-3, 4, tuple(y.shape))).double()
            y.backward(gradient)
            argument = [x[0, 0].tolist(), gradient[0, 0].tolist(), {"kind": kind, "window": window, "stride": stride}]
            found = arrays(tab, "([x, g, s]) => [Backward.pool(x, s), Backward.poolGradient(x, g, s)]", argument)
            assert np.allclose(found[0], y[0, 0].detach())
            assert np.allclose(found[1], x.grad[0, 0])
        for stride, padding, dilation in ((1, 0, 1), (1, 1, 1), (2, 1, 1), (3, 0, 1), (1, 1, 2), (2, 1, 2)):
            x = torch.from_numpy(generator.integers(0, 6, (1, 1, 5, 5))).double().requires_grad_()
            w = torch.from_numpy(generator.integers(-2, 3, (1, 1, 3, 3))).double().requires_grad_()
            y = F.conv2d(x, w, stride=stride, padding=padding, dilation=dilation)
            gradient = torch.from_numpy(generator.integers(-3, 4, tuple(y.shape))).double()
            y.backward(gradient)
            setting = {"stride": stride, "padding": padding, "dilation": dilation}
            argument = [x[0, 0].tolist(), w[0, 0].tolist(), gradient[0, 0].tolist(), setting]
            script = "([x, w, g, s]) => [Backward.inputGradient(g, w, 5, s), Backward.weightGradient(x, g, 3, s)]"
            assert arrays(tab, script, argument) == [x.grad[0, 0].tolist(), w.grad[0, 0].tolist()]
        for kernel, stride, padding in ((1, 1, 0), (3, 2, 0), (4, 2, 1), (5, 3, 2), (2, 3, 0)):
            x, w = generator.integers(0, 5, (4, 4)), generator.integers(-2, 3, (kernel, kernel))
            expected = F.conv_transpose2d(
                torch.from_numpy(x)[None, None], torch.from_numpy(w)[None, None], stride=stride, padding=padding
            )
            found = arrays(
                tab, "([x, w, s, p]) => Backward.transposed(x, w, s, p)", [x.tolist(), w.tolist(), stride, padding]
            )
            assert found == expected[0, 0].tolist()


def numbers(tab: Any, selector: str) -> list[float]:
    """The numbers that elements show, in order."""
    texts = tab.evaluate("selector => [...document.querySelectorAll(selector)].map(one => one.textContent)", selector)
    return [float(text.replace("−", "-").strip("()")) for text in texts]


def set_controls(tab: Any, settings: dict[str, Any], **values: list[int]) -> None:
    """Set the controls, and the fields of each grid of numbers, as typing does."""
    script = """([settings, grids]) => {
        const set = (one, value) => { one.value = value; one.dispatchEvent(new Event('input', {bubbles: true})) };
        const control = name => document.querySelector(`[data-bind="${name}"]`);
        for (const [name, value] of Object.entries(settings)) set(control(name), value);
        for (const [name, all] of Object.entries(grids))
            all.forEach((value, k) => set(document.querySelectorAll(`#${name} input`)[k], value)) }"""
    tab.evaluate(script, [settings, {name.replace("_", "-"): one for name, one in values.items()}])


def products(formula: str) -> float:
    """The sum of the products of a formula, "y(0, 1) = 2·3 + (−1)·4 = 2"."""
    sums = formula.partition(" = ")[2].rpartition(" = ")[0].replace("−", "-")
    terms = [] if sums.startswith("nothing: ") else sums.split(" + ")
    pairs = [[float(one.strip("() ")) for one in term.split("·")] for term in terms]
    return sum(one * other for one, other in pairs)


@pytest.mark.large
def test_the_numbers_on_the_pages_are_pytorchs_for_random_settings(opened):
    generator = np.random.default_rng(4)
    with opened(PAGES / "convolution.html") as tab:
        for _ in range(60):
            size, kernel, stride, padding, dilation = (
                int(generator.integers(low, high + 1)) for low, high in ((5, 10), (1, 5), (1, 4), (0, 2), (1, 3))
            )
            if dilation * (kernel - 1) + 1 > size + 2 * padding:
                continue
            setting = {"size": size, "kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
            weights = generator.integers(-9, 10, (kernel, kernel))
            set_controls(tab, setting | {"image": "noise", "mode": "zeros"})
            set_controls(tab, {}, kernel=weights.flatten().tolist())
            side = size + 2 * padding
            shown = torch.tensor(numbers(tab, "#input svg text[text-anchor=middle]"), dtype=torch.float64).reshape(
                1, 1, side, side
            )
            expected = F.conv2d(shown, torch.from_numpy(weights).double()[None, None], stride=stride, dilation=dilation)
            assert numbers(tab, "#output svg text") == expected.flatten().tolist()
            formula = tab.locator("#formula").text_content()
            row, column = (int(one) for one in formula[2 : formula.index(")")].split(", "))
            assert products(formula) == expected[0, 0, row, column]
            shape = ConvShape.of((1, 1, size, size), (1, 1, kernel, kernel), stride, padding, dilation)
            matrix = build_matrix(torch.from_numpy(weights).double()[None, None], shape).to_dense()
            assert numbers(tab, "#row svg text") == matrix[row * expected.shape[3] + column].tolist()
    with opened(PAGES / "backward.html") as tab:
        for _ in range(30):
            stride, padding, dilation = (int(generator.integers(low, high)) for low, high in ((1, 4), (0, 2), (1, 3)))
            x, w = (torch.from_numpy(generator.integers(-9, 10, (1, 1, side, side))).double() for side in (5, 3))
            set_controls(
                tab, {"stride": stride, "padding": padding, "dilation": dilation},
                weight_input=x.flatten().int().tolist(), conv_kernel=w.flatten().int().tolist(),
            )  # fmt: skip
            y = F.conv2d(x.requires_grad_(), w.requires_grad_(), stride=stride, padding=padding, dilation=dilation)
            y.backward(torch.tensor(numbers(tab, "#conv-gradient svg text")).double().reshape(y.shape))
            assert numbers(tab, "#conv-back svg text") == x.grad.flatten().tolist()
            assert numbers(tab, "#weight-gradient svg text") == w.grad.flatten().tolist()
            assert products(tab.locator("#weight-says").text_content()) == w.grad[0, 0, 0, 0]


def test_the_gradient_moves_to_the_pixel_that_wins(opened):
    with opened(PAGES / "backward.html") as tab:
        tab.locator("#pool-output svg").focus()
        tab.get_by_label("Pixel, row 2, column 2").first.fill("50")
        assert "the pixel (2, 2), which gets the whole gradient" in tab.locator("#pool-says").text_content()
        sums = [tab.locator(f"#{name}").text_content() for name in ("pool-sum", "pool-back-sum")]
        assert sums[0] == sums[1]
        tab.get_by_role("button", name="Average").click()
        assert "is the mean of 4 pixels" in tab.locator("#pool-says").text_content()


@pytest.fixture(scope="module")
def lenet() -> tuple[LeNet5, dict[str, Any]]:
    """svertka's LeNet-5 with the weights of the page, and the page's data."""
    text = (PAGES / "lenet_data.js").read_text(encoding="utf-8")
    data = json.loads(text[text.index("{") : text.rindex(";")])
    network = LeNet5().eval()
    for name, parameter in network.named_parameters():
        values = np.frombuffer(base64.b64decode(data["weights"][name]["data"]), np.float16)
        parameter.data = torch.from_numpy(values.reshape(data["weights"][name]["shape"]).astype(np.float32))
    return network, data


def torch_layers(network: LeNet5, pixels: np.ndarray, data: dict[str, Any]) -> dict[str, np.ndarray]:
    """The values of every layer for 28×28 pixels of 0 to 255."""
    x = (torch.from_numpy(np.pad(pixels, 2)).float()[None, None] / 255 - data["mean"]) / data["std"]
    found = {"input": x}
    with torch.no_grad():
        found["c1"] = network.tanh1(network.c1(x))
        found["s2"] = network.tanh2(network.s2(found["c1"]))
        found["c3"] = network.tanh3(network.c3(found["s2"]))
        found["s4"] = network.tanh4(network.s4(found["c3"]))
        found["c5"] = network.tanh5(network.c5(found["s4"]))
        found["f6"] = network.tanh6(network.f6(found["c5"].flatten(1)))
        found["scores"] = network(x)
    return {name: value.numpy().reshape(-1) for name, value in found.items()}


def test_every_map_of_lenet_equals_pytorchs(opened, lenet):
    network, data = lenet
    images = [np.frombuffer(base64.b64decode(one["pixels"]), np.uint8).reshape(28, 28) for one in data["digits"]]
    images.append(np.random.default_rng(3).integers(0, 256, (28, 28), dtype=np.uint8))
    script = """pixels => { const net = LeNet.load(LENET_DATA);
        return Object.entries(LeNet.forward(net, LeNet.prepare(pixels, net))).map(([name, maps]) =>
            [name, maps.map(map => map.length === undefined ? map : [...map]).flat()]) }"""
    with opened(PAGES / "lenet.html") as tab:
        for pixels in images:
            found = dict(arrays(tab, script, pixels.flatten().tolist()))
            expected = torch_layers(network, pixels, data)
            assert found.keys() == expected.keys()
            for name, values in expected.items():
                assert np.abs(np.array(found[name]) - values).max() < 1e-4, name
            assert int(np.argmax(found["scores"])) == int(np.argmax(expected["scores"]))
    for one, pixels in zip(data["digits"], images, strict=False):
        right = int(np.argmax(torch_layers(network, pixels, data)["scores"])) == one["label"]
        assert right == (one in data["digits"][:10])


def test_a_digit_is_drawn_by_keyboard_and_by_mouse(opened):
    with opened(PAGES / "lenet.html") as tab:
        tab.get_by_role("button", name="Clear").click()
        assert tab.locator("#answer").text_content() == "–"
        pad = tab.locator("#pad")
        pad.focus()
        for key in (" ", *["ArrowDown"] * 15):
            tab.keyboard.press(key)
        assert tab.locator("#answer").text_content() == "1"
        tab.keyboard.press("Backspace")
        box = pad.bounding_box()
        tab.mouse.move(box["x"] + 60, box["y"] + 60)
        tab.mouse.down()
        for x, y in ((210, 60), (110, 240)):
            tab.mouse.move(box["x"] + x, box["y"] + y, steps=8)
        tab.mouse.up()
        assert tab.locator("#answer").text_content() == "7"
        tab.locator("#c1").focus()
        tab.keyboard.press("ArrowRight")
        assert tab.locator("#unit-says").text_content().startswith("C1 map 0, row 0, column 1 is ")
        assert set(uses_space(tab)) == {True}


@pytest.mark.large
def test_the_test_error_that_the_page_quotes(lenet, shared_data):
    from svertka.data.builtin import open_builtin

    network, data = lenet
    dataset = open_builtin("mnist")
    test = np.asarray(dataset.parts) == "test"
    pixels = torch.from_numpy(np.pad(dataset.images.array[test], ((0, 0), (2, 2), (2, 2), (0, 0)))).permute(0, 3, 1, 2)
    with torch.no_grad():
        predicted = torch.cat(
            [network((part / 255 - data["mean"]) / data["std"]).argmax(1) for part in pixels.split(500)]
        )
    assert int((predicted.numpy() != dataset.labels[test]).sum()) == data["wrong"]
    assert int(test.sum()) == data["images"]
