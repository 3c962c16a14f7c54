"""What all tests share: a cache of their own, the real data, and how many cases to run."""

import functools
import gc
import os
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

# Tests start hundreds of processes, and each would compile what it imports of svertka.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from svertka.classifier import Classifier
    from svertka.data.loader import BatchLoader
    from svertka.run import Run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--large", action="store_true", help="run the large counts whole, not a seeded slice of them")


@pytest.hookimpl(tryfirst=True)  # before pytest-timeout reads its option
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--large") and config.getoption("timeout") is None:
        config.option.timeout = 3600  # seconds a test, in place of what is enough for a slice
    # A loaded machine is no fault of the code; and what `make test` finds, it finds again.
    settings.register_profile("svertka", deadline=None, derandomize=not config.getoption("--large"))
    settings.load_profile("svertka")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Keep the garbage collector from visiting ten thousand tests and all modules again and again: they stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries report what is left at the end


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--large"):
        return
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("large"):
            item.add_marker(pytest.mark.skip(reason="takes long: make test-full"))
        elif item.get_closest_marker("sample"):
            cases[item.nodeid.partition("[")[0]].append(item)
    left = set()
    for name, some in cases.items():
        marker = some[0].get_closest_marker("sample")
        assert marker is not None
        left |= {*some} - {*random.Random(name).sample(some, min(marker.args[0], len(some)))}
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=list(left))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    # Not monkeypatch, which lasts one test: what is timed and remembered must serve the whole session.
    cache = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(cache)
    if "PYTEST_XDIST_WORKER" in os.environ:  # unpacking CIFAR-10 takes ten seconds: it is done once for all workers
        unpacked = tmp_path_factory.getbasetemp().parent / "unpacked"
        unpacked.mkdir(exist_ok=True)
        (cache / "svertka" / "data").mkdir(parents=True)
        (cache / "svertka" / "data" / "unpacked").symlink_to(unpacked)


@pytest.fixture(scope="session", autouse=True)
def _short_timings() -> None:
    """What a test checks does not depend on times, and hundreds of trainings time their steps.

    Ten folds of a new head are enough where not their number is checked; users get three times ten.
    """
    from svertka.compiler import mixed_precision
    from svertka.evaluation import cross_validation, inference_speed, optimize_run
    from svertka.training import time_estimate

    time_estimate.TIMED_FOR = inference_speed.SPENT = optimize_run.TIMED_SECONDS = 0.0
    time_estimate.TIMED_STEPS = time_estimate.TIMED_ENDS = 1
    mixed_precision.TIMING_SECONDS = mixed_precision.COMPARING_SECONDS = 0.2
    cross_validation.REPEATS = 1


@pytest.fixture(scope="session", autouse=True)
def _freed_memory_is_kept() -> None:
    """As the command line sets it, which the first of its tests would do: most page faults are of freed memory."""
    from svertka.malloc import keep_freed_memory

    keep_freed_memory()


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_disks() -> Iterator[None]:
    """No file here has to outlive a crash of the machine, and a disk takes milliseconds for each of thousands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which refuses the same descriptors
        yield


@pytest.fixture(scope="session", autouse=True)
def _onnx_functions_are_read_once() -> None:
    """At each export PyTorch parses all functions of onnxscript again, which is a quarter of its time."""
    import torch

    export = torch.onnx.export

    def export_with_kept_functions(*arguments: Any, **settings: Any) -> Any:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
        torch.onnx.export = export
        return export(*arguments, **settings)

    torch.onnx.export = export_with_kept_functions


@pytest.fixture(scope="session")
def _thread_count() -> int:
    import torch

    return torch.get_num_threads()


@pytest.fixture(autouse=True)
def _own_threads(_thread_count: int) -> Iterator[None]:
    """Undo torch.set_num_threads: more threads than cores wait for one another, in all tests that follow."""
    import torch

    yield
    torch.set_num_threads(_thread_count)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, $SVERTKA_DATA."""
    folder = os.environ.get("SVERTKA_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real data: set SVERTKA_DATA to the folder that holds mnist/, cats-dogs/ and the rest")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def large_count(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """The first number, or the second under --large."""
    whole = request.config.getoption("--large")
    return lambda some, every: every if whole else some


@pytest.fixture(scope="session")
def made() -> "Callable[..., Classifier]":
    """`made(model, size, resize, channels=3, names=…)`: a classifier with random weights."""
    import torch

    from svertka.classifier import Classifier, Config
    from svertka.data.preprocessing import Preprocess

    def make(
        model: str, size: int, resize: int, channels: int = 3, names: Sequence[str] = ("a", "b", "c")
    ) -> Classifier:
        torch.manual_seed(0)
        preprocess = Preprocess(size=size, resize=resize, mean=(0.5, 0.45, 0.4)[:channels], std=(0.2,) * channels)
        config = Config(model=model, names=tuple(names), preprocess=preprocess)
        network = config.build().eval()
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):  # so that it is not the identity
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 1.5)
        return Classifier(network, config)

    return make


@pytest.fixture(scope="session")
def calibrated(made: "Callable[..., Classifier]") -> "Callable[..., Classifier]":
    """`calibrated(model, size, resize, …)`: what `made` gives, compared with rectangles out of two photographs.

    Its prediction sets are calibrated on 99 images, whose true class has a probability of 0.01 to 0.99.
    """
    import numpy as np
    import torch
    from sklearn.datasets import load_sample_image

    from svertka.calibration_file import CalibrationRecord, RunCalibration, UnknownThreshold
    from svertka.unknown_score import fit_unknown_score, split_features_and_logits

    def make(*arguments: Any, **options: Any) -> "Classifier":
        classifier = made(*arguments, **options)
        generator = np.random.default_rng(0)
        images = []
        for number in range(36):
            photograph = load_sample_image(("china.jpg", "flower.jpg")[number % 2])
            top, left = int(generator.integers(300)), int(generator.integers(500))
            images.append(classifier.preprocess(photograph[top : top + 90, left : left + 120]))
        split = split_features_and_logits(classifier.network, classifier.model, classifier.preprocess.input_shape)
        with torch.inference_mode():
            assert split is not None
            features, logits = split(torch.stack(images))
            score = fit_unknown_score(features[:24].numpy(), np.arange(24) % 2, features[24:], logits[24:])
            threshold = float(score(features, logits)[24:].median())
        unknown = UnknownThreshold(method=score.method, threshold=threshold, images=12, kept=0.5)
        record = CalibrationRecord(weights_hash="", unknown=unknown, set_images=99)
        classifier.calibration = RunCalibration(record, score, torch.arange(1, 100) / 100)
        return classifier

    return make


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One photograph in many formats and modes: rotated, gray, CMYK, 16 bits, with alpha, …"""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_image

    photograph = Image.fromarray(load_sample_image("china.jpg")).resize((160, 107))
    turned = Image.Exif()
    turned[0x0112] = 6
    alpha = photograph.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(photograph.size))
    deep = Image.fromarray(np.asarray(photograph.convert("L")).astype(np.uint16) * 257)
    root = tmp_path_factory.mktemp("kinds")
    files = {
        "plain.jpg": (photograph, {"quality": 95}),
        "turned.jpg": (photograph, {"exif": turned}),
        "gray.png": (photograph.convert("L"), {}),
        "cmyk.jpg": (photograph.convert("CMYK"), {}),
        "deep.png": (deep, {}),
        "alpha.png": (alpha, {}),
        "palette.gif": (photograph.convert("P"), {}),
        "one_bit.tif": (photograph.convert("1"), {}),
        "lossy.webp": (photograph, {}),
        "plain.bmp": (photograph, {}),
    }
    for name, (image, options) in files.items():
        image.save(root / name, **options)
    return {name: root / name for name in files}


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 real digits as 8×8 PNG files, in folders "one", "two", "three" and "four"."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    root = tmp_path_factory.mktemp("digits")
    for digit, name in enumerate(("one", "two", "three", "four"), start=1):
        (root / name).mkdir()
        for number, pixels in enumerate(digits.images[digits.target == digit][:60]):
            Image.fromarray((pixels * 15.9).astype(np.uint8)).save(root / name / f"{number:02}.png")
    return root


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 crops of two photographs, 120×160 pixels, in folders "china" and "flower"."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    root = tmp_path_factory.mktemp("photographs")
    for name in ("china", "flower"):
        (root / name).mkdir()
        whole = load_sample_image(f"{name}.jpg")
        for number in range(12):
            top, left = 100 * (number // 4), 160 * (number % 4)
            Image.fromarray(whole[top : top + 120, left : left + 160]).save(root / name / f"{number:02}.png")
    return root


@pytest.fixture(scope="session")
def photo_tiles() -> "npt.NDArray[np.uint8]":
    """520 tiles of two photographs, shuffled, (520, 32, 32, 3)."""
    import numpy as np
    from sklearn.datasets import load_sample_images

    whole = np.stack(load_sample_images().images)[:, :416]
    tiles = whole.reshape(2, 13, 32, 20, 32, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 32, 32, 3)
    return np.random.default_rng(0).permutation(tiles)


@pytest.fixture(scope="session")
def task_tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tables of 200 images, by kind of task: bright halves are labels, and the mean brightness is a number."""
    import numpy as np
    from PIL import Image

    root, rng = tmp_path_factory.mktemp("tasks"), np.random.default_rng(0)
    labels, numbers = ["path,label"], ["path,target"]
    for number in range(200):
        pixels, has = rng.integers(0, 90, (12, 12)), rng.random(3) < 0.5
        pixels[:6] += 80 * has[0]
        pixels[:, :6] += 80 * has[1]
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{number}.png")
        labels.append(f"{number}.png,{'|'.join(np.array(['top', 'left', 'luck'])[has])}")
        numbers.append(f"{number}.png,{pixels.mean():.3f}")
    tables = {"multi-label": root / "labels.csv", "regression": root / "numbers.csv"}
    for table, lines in zip(tables.values(), (labels, numbers), strict=True):
        table.write_text("\n".join(lines))
    return tables


@pytest.fixture(scope="session")
def task_runs(task_tables: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> "dict[str, Run]":
    """Finished runs of an MLP on `task_tables`, by kind of task."""
    import svertka

    folder = tmp_path_factory.mktemp("task_runs")
    return {
        kind: svertka.train(
            str(table), model="mlp", output=str(folder / kind), test=0.3, epochs=12, size=12, lr=0.05, threads=1
        )
        for kind, table in task_tables.items()
    }


@pytest.fixture(scope="session")
def digit_batches() -> Callable[..., "BatchLoader"]:
    """`digit_batches(pictures=1000, batch_size=64)`: shuffled batches of so many digits; further settings as given."""
    import numpy as np
    from sklearn.datasets import load_digits

    from svertka.data.loader import BatchLoader
    from svertka.data.preprocessing import Preprocess

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    rows = (digits.images * 15.9).astype(np.uint8)[..., None]
    preprocess = Preprocess(size=8, resize=8, mean=(0.3,), std=(0.4,))

    def batches(pictures: int = 1000, batch_size: int = 64, **settings: Any) -> BatchLoader:
        order = np.arange(pictures)
        return BatchLoader(rows, labels, order, preprocess, batch_size=batch_size, shuffle=True, **settings)

    return batches


@pytest.fixture
def small_disk() -> Callable[[int], AbstractContextManager[None]]:
    """In `small_disk(size)` no file can grow beyond `size` bytes: writing fails half-way, as on a full disk."""
    import resource

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, so that numbers repeat whatever else the machine does."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def positive() -> "Callable[[nn.Module], nn.Module]":
    """Makes of a network one in float64 with positive weights, and means where it takes maxima: nothing cancels."""
    from torch import nn

    def positive(network: nn.Module) -> nn.Module:
        for name, module in list(network.named_modules()):
            if isinstance(module, nn.MaxPool2d):
                mean = nn.AvgPool2d(module.kernel_size, module.stride, module.padding, module.ceil_mode)
                network.set_submodule(name, mean)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        for parameter in network.parameters():
            nn.init.uniform_(parameter, 0.5, 1)
            if parameter.ndim > 1:  # so that values neither vanish nor grow with depth
                parameter.data /= parameter[0].numel()
        return network.double().eval().requires_grad_(False)

    return positive


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's chromium, which asks nobody for anything by itself. Its camera shows moving shapes."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'svertka[dev]'")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs a browser: install chromium")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    arguments += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=arguments, timeout=120_000)  # milliseconds
        new_context = started.new_context

        def new_patient_context(**settings: Any) -> Any:
            context = new_context(**settings)
            context.set_default_timeout(120_000)  # milliseconds; only a busy machine takes long
            return context

        started.new_context = new_patient_context
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any) -> Callable[..., AbstractContextManager[Any]]:
    """`opened(page, address, **settings)`: a tab with the file `page`, at a place in it.

    While the body runs, the page must neither complain nor ask for anything outside its folder.
    """

    @contextmanager
    def tab_of(page: Path, address: str = "", **settings: Any) -> Iterator[Any]:
        # Nothing moves by itself, or what a test measures would depend on when.
        usual = {"viewport": {"width": 1200, "height": 800}, "reduced_motion": "reduce"}
        context = browser.new_context(**usual | settings)
        tab = context.new_page()
        complaints: list[str] = []
        inside = page.parent.as_uri()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        tab.on("request", lambda one: None if one.url.startswith((inside, "data:")) else complaints.append(one.url))
        tab.goto(page.as_uri() + address)
        yield tab
        assert complaints == []
        context.close()

    return tab_of


@pytest.fixture
def reloaded() -> Callable[[Any, Callable[[], Any]], Any]:
    """`reloaded(tab, read)`: the first true `read()` after a reload of `tab`, or the last one after two minutes.

    Chromium hands what a page stores to other processes later: the next page may begin before.
    """

    def reload(tab: Any, read: Callable[[], Any]) -> Any:
        end = time.monotonic() + 120
        tab.reload()
        while not (found := read()) and time.monotonic() < end:
            tab.reload()
        return found

    return reload


@pytest.fixture(scope="session")
def layout_shift() -> Callable[[Any], float]:
    """How far the content of the page in a tab has moved by itself (cumulative layout shift, 0 to 1)."""
    script = """new Promise(done => { let sum = 0;
        new PerformanceObserver(list => {
            for (const one of list.getEntries()) if (!one.hadRecentInput) sum += one.value;
        }).observe({type: 'layout-shift', buffered: true});
        setTimeout(() => done(sum), 200) })"""
    return lambda tab: float(tab.evaluate(script))


@pytest.fixture(scope="session")
def first_paint() -> Callable[[Any], float]:
    """When the page in a tab was first painted, milliseconds after it was asked for."""
    # Not wait_for_function, which a page's policy forbids: it evaluates text.
    script = """new Promise(done => { new PerformanceObserver(list => list.getEntries()
        .filter(entry => entry.name === 'first-contentful-paint').forEach(entry => done(entry.startTime)))
        .observe({type: 'paint', buffered: true}) })"""
    return lambda tab: float(tab.evaluate(script))


@pytest.fixture(scope="session")
def axe_violations() -> Callable[[Any], list[str]]:
    """Violations of accessibility rules that axe-core finds in a tab, one text per element."""
    script = (Path(__file__).parent / "vendor/axe-core/axe.min.js").read_text(encoding="utf-8")
    # Without preload: it asks for style sheets again, which pages from disk may not.
    run = """async () => (await axe.run(document, {resultTypes: ['violations'], preload: false})).violations
        .flatMap(one => one.nodes.map(node => `${one.id}: ${node.html.slice(0, 120)}`))"""

    def violations(tab: Any) -> list[str]:
        if not tab.url.startswith("file:"):  # of which all is there
            tab.wait_for_load_state("networkidle")
        tab.evaluate(script)
        found: list[str] = tab.evaluate(run)
        return found

    return violations


@pytest.fixture(scope="session")
def cut_texts() -> Callable[[Any], list[str]]:
    """Of the visible elements with text in a tab: how the text of those begins whose box cuts it off."""
    script = """[...document.querySelectorAll('body *')].filter(one => one.checkVisibility()
        && !one.closest('.unseen, .full-name, svg')
        && [...one.childNodes].some(node => (node.nodeType === 3 && node.data.trim()) || node.localName === 'bdi')
        && ['hidden', 'clip'].includes(getComputedStyle(one).overflowX)
        && (one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1))
        .map(one => one.textContent.trim().slice(0, 60))"""
    return lambda tab: list(tab.evaluate(script))


@pytest.fixture(scope="session")
def layout_faults(cut_texts: Callable[[Any], list[str]]) -> Callable[[Any], list[str]]:
    """What displeases in a tab: cut or overlapping texts, what is wider than the window, missing captions, …"""
    script = """() => {
        const faults = [];
        const shown = selector => [...document.querySelectorAll(selector)].filter(one => one.checkVisibility());
        const say = (what, one) => faults.push(`${what}: ${one.outerHTML.slice(0, 100)}`);
        const root = document.documentElement;
        if (root.scrollWidth > root.clientWidth) faults.push(`${root.scrollWidth} pixels wide`);
        for (const one of shown('main *')) {
            const box = one.getBoundingClientRect();
            const isInside = box.right <= innerWidth + 1 || one.closest('.scroll, .strip, svg, .unseen, .full-name');
            if (!isInside) say('beyond the edge', one);
            const { overflowX, backgroundImage } = getComputedStyle(one);
            const scrolls = one.scrollWidth > one.clientWidth + 1 && ['auto', 'scroll'].includes(overflowX);
            if (scrolls && !backgroundImage.includes('gradient')) say('scrolls without a cue', one);
        }
        for (const one of shown('figure')) {
            if (!one.querySelector('figcaption')?.textContent.trim()) say('no caption', one);
        }
        for (const one of shown('img')) if (one.complete && !one.naturalWidth) say('broken', one);
        for (const cell of shown('th, td')) {
            const range = document.createRange();
            range.selectNodeContents(cell);
            const [inner, outer] = [range, cell].map(one => one.getBoundingClientRect());
            const isWide = inner.right > outer.right + 1 || inner.left < outer.left - 1;
            const isHidden = cell.querySelector('.cut, .unseen') !== null;
            if (inner.width && isWide && !isHidden) say('overlaps its neighbor', cell);
        }
        const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        while (texts.nextNode()) {
            const range = document.createRange();
            const text = texts.currentNode;
            range.selectNodeContents(text);
            const isFigure = /^[\\d.,]+\\s%$/.test(text.data.trim()) && text.parentElement.checkVisibility();
            const lines = new Set([...range.getClientRects()].map(one => one.top));
            if (isFigure && lines.size > 1) faults.push(`broken over lines: ${text.data}`);
        }
        const first = document.querySelector('a, button, input, select, [tabindex="0"]');
        const leads = first?.matches('a.skip[href="#main"]') && document.querySelector('main#main');
        if (!leads) faults.push('no skip link');
        return faults;
    }"""
    return lambda tab: [*(f"cut: {text}" for text in cut_texts(tab)), *tab.evaluate(script)]


@pytest.fixture
def contrasts() -> Callable[[Any, str], list[tuple[float, bool, str]]]:
    """Of the elements with text that a selector finds, outside drawings: the contrast to their ground (WCAG 2.2).

    `contrasts(tab, selector)`: from 1 to 21, whether the element can be seen, and how its HTML begins.
    """
    script = """selector => {
        const parse = color => color.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
            .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
            .reduce((sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
        const ground = element => {
            for (; element; element = element.parentElement) {
                const color = parse(getComputedStyle(element).backgroundColor);
                if (color.length < 4 || color[3] > 0) return color;
            }
        };
        return [...document.querySelectorAll(selector)].filter(element => !element.closest('svg')
            && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())).map(element => {
            const [a, b] = [parse(getComputedStyle(element).color), ground(element)].map(light);
            const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            return [contrast, element.checkVisibility(), element.outerHTML.slice(0, 80)];
        });
    }"""
    return lambda tab, selector: [tuple(one) for one in tab.evaluate(script, selector)]
