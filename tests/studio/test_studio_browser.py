"""The studio in a real browser: from an empty folder to a shipped classifier."""

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fork_server import SERVING, Python

pytest.importorskip("fastapi")

DROP = """files => {
    const transfer = new DataTransfer();
    for (const [name, encoded] of files) {
        const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name, {type: 'image/jpeg'}));
    }
    document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


# What a browser gives for folders that are dropped: entries, which are read in parts.
DROP_FOLDER = """async ([folder, files]) => {
    const file = ([name, encoded]) => {
        const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
        return { isFile: true, name, file: done => done(new File([bytes], name, {type: 'image/jpeg'})) };
    };
    const parts = [files.map(file), []];
    const entry = { isFile: false, name: folder, createReader: () => ({ readEntries: done => done(parts.shift()) }) };
    const event = new Event('drop', {bubbles: true, cancelable: true});
    Object.defineProperty(event, 'dataTransfer', { value: {
        items: [{ webkitGetAsEntry: () => entry }], files: [], types: ['Files'], getData: () => '' } });
    document.body.dispatchEvent(event);
}"""
PASTE = """([name, encoded]) => {
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, {type: 'image/jpeg'}));
    document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true}));
}"""


class Studio:
    """A studio process on `folder`, whose runs are beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        command = ["-m", "svertka", "studio", str(self.folder), "--port", "0", "--json"]
        process = Python(command, modules=SERVING, cwd=self.folder.parent, stdout=subprocess.PIPE)
        assert process.stdout is not None
        text = b""
        while not text.rstrip().endswith(b"}"):
            text += process.stdout.readline()
        self.url = json.loads(text)["url"] + self.folder.name
        return process

    def restart(self) -> None:
        """Kill the server, as by a crash, and start another one."""
        self.process.kill()
        self.process.wait()
        self._close()
        self.process = self._start()

    def _close(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self) -> None:
        """Stop the server as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(600)
        self._close()


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    running = Studio(tmp_path / "pets")
    yield running
    running.stop()


@pytest.fixture
def collecting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a studio in this process, on an empty folder."""
    from svertka.serving.access_control import LOOPBACK
    from svertka.serving.uvicorn_server import ServerReturningOnSignal, bind_socket, build_config
    from svertka.studio.app import StudioApp

    monkeypatch.chdir(tmp_path)
    app, up = StudioApp([tmp_path / "pets"], hosts=LOOPBACK, token=None, threads=1), threading.Event()
    server = ServerReturningOnSignal(build_config(app.asgi), up.set)
    sock = bind_socket("127.0.0.1", 0)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])))
    thread.start()
    assert up.wait(120)
    yield f"http://127.0.0.1:{sock.getsockname()[1]}/pets"
    server.should_exit = True
    thread.join(120)
    sock.close()


def drop(tab: Any, files: list[Path]) -> None:
    """Drop files on the page."""
    tab.evaluate(DROP, [encode(path) for path in files])


def encode(path: Path) -> list[str]:
    """The name and the bytes of a file, for a script."""
    return [path.name, base64.b64encode(path.read_bytes()).decode()]


def add_class(tab: Any, label: str) -> None:
    tab.fill("#new-class", label)
    tab.keyboard.press("Enter")
    tab.locator("h1", has_text=label).wait_for()


def test_pictures_are_collected_moved_deleted_and_brought_back(
    collecting: str,
    tmp_path: Path,
    browser: Any,
    photos: Path,
    axe_violations: Callable[[Any], list[str]],
    layout_faults: Callable[[Any], list[str]],
) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
    tab = context.new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(f"{collecting}/collect")
    assert axe_violations(tab) == []
    add_class(tab, "cat")
    drop(tab, sorted((photos / "cat").iterdir()))
    tab.locator(".cell").nth(len(list((photos / "cat").iterdir())) - 1).wait_for()
    add_class(tab, "dog")
    assert tab.input_value("#new-class") == ""
    drop(tab, [*sorted((photos / "dog").iterdir()), Path(__file__)])
    tab.get_by_text("1\u00a0file not added").wait_for()
    cells = tab.locator(".cell")
    cells.nth(1).wait_for()
    cells.nth(0).click()
    tab.keyboard.press("1")  # to cat
    tab.locator("#class-count", has_text="1\u00a0picture").wait_for()
    tab.keyboard.press("Delete")
    tab.locator("#class-count", has_text="0\u00a0pictures").wait_for()
    tab.locator("#undo").click()
    tab.locator("#class-count", has_text="1\u00a0picture").wait_for()
    tab.reload()
    tab.locator("#undo").click()  # the move, which another page made
    tab.get_by_text("undone: 1\u00a0picture moved to cat").wait_for()
    tab.goto(f"{collecting}/collect#/cat")
    cells.nth(2).wait_for()
    assert axe_violations(tab) == []
    assert layout_faults(tab) == []
    # The count beside a long name stays in one line.
    (tmp_path / "pets" / "a name that is as long as a name of a class can be in a studio, with its number 99").mkdir()
    for number in range(200):
        shutil.copy(photos / "cat" / "0.jpg", next((tmp_path / "pets").glob("a name*")) / f"{number}.jpg")
    tab.set_viewport_size({"width": 1280, "height": 800})
    tab.reload()
    tab.locator("#classes .figure", has_text="200").wait_for()
    heights = tab.locator("#classes .figure").evaluate_all("all => all.map((one) => one.getClientRects()[0].height)")
    assert len(heights) == 3
    assert max(heights) == min(heights)
    shutil.rmtree(next((tmp_path / "pets").glob("a name*")))
    tab.goto(f"{collecting}/try")
    tab.get_by_text("There is no trained run yet").wait_for()
    assert errors == []
    context.close()
    pets = tmp_path / "pets"
    names = {path.relative_to(pets).as_posix() for path in pets.glob("*/*.jpg")}
    assert names == {"cat/0.jpg", "cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "dog/4.jpg"}


def replace_classes(tab: Any, part: str) -> None:
    """Ask for the list of classes again, and return when the part of it that `part` selects has been replaced."""
    tab.evaluate("part => { window.old = document.querySelector(part); htmx.trigger(document.body, 'stale'); }", part)
    # Not wait_for_function, which looks again with eval when it has to wait: the page's policy forbids that.
    tab.evaluate("""() => new Promise(done => {
        const look = () => old.isConnected ? requestAnimationFrame(look) : done();
        look();
    })""")


class HeldRequests:
    """Requests of a page to an address, whose answers come when they are told to.

    Args:
        tab: The page.
        address: The last part of the address.
    """

    def __init__(self, tab: Any, address: str) -> None:
        self._tab, self._address = tab, f"**/{address}"
        self._routes: list[Any] = []
        tab.route(self._address, lambda route: self._routes.append(route))

    def wait_for(self, count: int) -> None:
        """Return when so many requests have been made."""
        while len(self._routes) < count:
            self._tab.wait_for_timeout(10)

    def answer(self) -> None:
        """Let the requests go on, and each one that follows."""
        for route in self._routes:
            route.continue_()
        self._tab.unroute(self._address)


def test_a_class_is_added_while_the_list_is_being_replaced(collecting: str, browser: Any) -> None:
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(f"{collecting}/collect")
    add_class(tab, "cat")
    # A change in another tab, or pictures that are being added, replace the list meanwhile.
    refreshed = HeldRequests(tab, "classes")
    tab.evaluate("htmx.trigger(document.body, 'stale')")
    refreshed.wait_for(1)
    add_class(tab, "dog")
    refreshed.answer()
    # It is asked for again while a class is being added.
    added = HeldRequests(tab, "add-class")
    tab.fill("#new-class", "owl")
    tab.keyboard.press("Enter")
    added.wait_for(1)
    tab.evaluate("htmx.trigger(document.body, 'stale')")
    added.answer()
    tab.locator("h1", has_text="owl").wait_for()
    # What is typed there stays when the list is replaced.
    tab.fill("#new-class", "a bird")
    replace_classes(tab, "#classes-title")
    assert tab.locator("#classes li").count() == 3
    assert tab.input_value("#new-class") == "a bird"
    assert tab.url.endswith("/collect#/owl")
    context.close()


def test_a_button_that_is_replaced_while_it_is_pressed_is_pressed(collecting: str, browser: Any) -> None:
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(f"{collecting}/collect")
    add_class(tab, "cat")
    tab.on("dialog", lambda dialog: dialog.accept())
    tab.locator("#delete-class").click()
    tab.locator("#undo").hover()
    tab.mouse.down()
    replace_classes(tab, "#undo")
    tab.mouse.up()
    tab.locator("h1", has_text="cat").wait_for()
    context.close()


def test_a_folder_is_dropped_a_picture_pasted_and_two_tabs_lose_nothing(
    collecting: str, tmp_path: Path, browser: Any, photos: Path
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    tab, other = context.new_page(), context.new_page()
    tab.goto(f"{collecting}/collect")
    files = sorted((photos / "cat").iterdir())
    tab.evaluate(DROP_FOLDER, ["cat", [encode(path) for path in files]])
    tab.locator("h1", has_text="cat").wait_for()
    tab.locator("#class-count", has_text="3\u00a0pictures").wait_for()
    add_class(tab, "dog")
    tab.evaluate(PASTE, encode(sorted((photos / "dog").iterdir())[0]))
    tab.locator("#class-count", has_text="1\u00a0picture").wait_for()
    other.goto(f"{collecting}/collect#/cat")
    other.locator(".cell").nth(2).wait_for()
    # One moves a picture that the other still shows, and deletes then.
    tab.goto(f"{collecting}/collect#/cat")
    tab.locator(".cell").nth(2).click()
    tab.keyboard.press("2")
    tab.locator("#class-count", has_text="2\u00a0pictures").wait_for()
    other.locator(".cell").nth(2).click()
    other.keyboard.press("Delete")
    other.locator(
        "#said", has_text="there is no image cat/2.jpg; reload the page".replace("image", "picture")
    ).wait_for()
    other.reload()
    other.locator("#class-count", has_text="2\u00a0pictures").wait_for()
    other.keyboard.press("Control+z")
    other.locator("#class-count", has_text="3\u00a0pictures").wait_for()
    assert sorted(path.name for path in (tmp_path / "pets" / "cat").iterdir()) == [path.name for path in files]
    context.close()


def test_a_cell_of_the_confusion_matrix_opens_its_pictures(
    collecting: str,
    tmp_path: Path,
    browser: Any,
    photos: Path,
    make_run: Callable[..., Any],
    axe_violations: Callable[[Any], list[str]],
    layout_faults: Callable[[Any], list[str]],
) -> None:
    shutil.copytree(photos, tmp_path / "pets", dirs_exist_ok=True)
    make_run(tmp_path / "runs", "pets-1", finished=True)
    wrong = {"path": str(tmp_path / "pets" / "cat" / "0.jpg"), "label": 0, "predicted": 1, "probability": 1.0}
    gone = wrong | {"path": str(tmp_path / "pets" / "cat" / "gone.jpg")}
    found = {"names": ["cat", "a name that is as long as a name of a class can be in a studio, with its number 99"],
             "images": 5, "error": 1.0, "interval": [0.1, 1.0], "scope": "", "confusion": [[1, 2], [0, 2]],
             "mistakes": [wrong, gone]}  # fmt: skip
    jobs = tmp_path / "runs" / ".studio" / "jobs"
    jobs.mkdir(parents=True)
    (jobs / "pets-1.mistakes.json").write_text(json.dumps(found))
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
    tab = context.new_page()
    tab.goto(f"{collecting}/understand")
    tab.locator("#mistakes td button").press("Enter")
    shown = tab.locator("#cell img[alt='cat/0.jpg']")
    assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    assert tab.locator("#cell .unreadable").inner_text() == "moved"
    assert tab.locator("#cell .paths li").all_text_contents() == ["cat/0.jpg"]
    assert axe_violations(tab) == []
    assert layout_faults(tab) == []
    tab.locator("#cell li a").first.click()
    tab.locator("h1", has_text="cat").wait_for()
    context.close()


@pytest.mark.large
def test_from_an_empty_folder_to_a_shipped_classifier(
    studio: Studio,
    browser: Any,
    shared_data: Path,
    axe_violations: Callable[[Any], list[str]],
    layout_faults: Callable[[Any], list[str]],
) -> None:
    sources = {"cat": "cats-dogs/cat", "dog": "cats-dogs/dog", "raccoon": "raccoons/images"}
    pictures = {label: sorted((shared_data / path).iterdir())[:20] for label, path in sources.items()}
    pictures["raccoon"].append(sorted((shared_data / sources["raccoon"]).iterdir())[20])  # one is a copy, and not added
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.grant_permissions(["camera"])
    context.set_default_timeout(600_000)  # milliseconds; only a busy machine takes long
    tab = context.new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    began = time.monotonic()
    tab.goto(f"{studio.url}/collect")
    for label, files in pictures.items():
        add_class(tab, label)
        drop(tab, files)
        tab.locator("#class-count", has_text="20\u00a0pictures").wait_for()

    # Trained, with a reload and a crash of the server in the middle.
    tab.get_by_role("link", name="Train").click()
    tab.locator("#start .primary").click()
    tab.locator("#training").wait_for()
    tab.reload()
    tab.locator("#training .meter").wait_for()
    studio.restart()
    tab.goto(f"{studio.url}/train")
    tab.locator("#training", has_text="pets-1: finished").wait_for(timeout=600_000)
    tab.locator("#training", has_text="fitted to the pictures at once, so there are no curves").wait_for()

    # Tried.
    tab.goto(f"{studio.url}/try")
    tab.set_input_files("#drop input", str(sorted((shared_data / "raccoons/images").iterdir())[30]))
    answer = tab.locator("#answers h2", has_text="raccoon with")
    answer.wait_for(timeout=600_000)
    first_answer = answer.inner_text()
    print(f"from opening the page to the first classification: {time.monotonic() - began:.1f} s")

    # A picture with a wrong label is found, corrected by a click, and trained again.
    shutil.copy(sorted((shared_data / sources["cat"]).iterdir())[25], studio.folder / "dog" / "wrong.jpg")
    tab.goto(f"{studio.url}/understand")
    tab.get_by_role("button", name="Check the labels").click()
    wrong = tab.locator("#doubts li", has=tab.locator("img[alt='dog/wrong.jpg']"))
    wrong.wait_for(timeout=600_000)
    wrong.get_by_role("button", name="It is cat").click()
    wrong.wait_for(state="detached")
    assert (studio.folder / "cat" / "wrong.jpg").exists()
    tab.get_by_role("button", name="Train again").click()
    tab.locator("#training", has_text="pets-2: finished").wait_for(timeout=600_000)

    # Taken home.
    tab.goto(f"{studio.url}/ship")
    tab.get_by_role("button", name="ONNX file").click()
    link = tab.locator("a[href*='what=onnx']")
    link.wait_for(timeout=600_000)
    with tab.expect_download() as download:
        link.click()
    assert download.value.path().stat().st_size > 1_000_000
    # The page of the first run gives the same answer without the server.
    tab.goto(f"{studio.url}/ship?run=pets-1")
    tab.get_by_role("button", name="A page").click()
    link = tab.locator("a[href*='what=page']")
    link.wait_for(timeout=600_000)
    with tab.expect_download() as download:
        link.click()
    download.value.save_as(studio.folder.parent / "page.html")
    alone = browser.new_context(offline=True).new_page()
    alone.goto((studio.folder.parent / "page.html").as_uri())
    alone.locator("#ask:not([hidden])").wait_for(timeout=600_000)
    alone.set_input_files("#drop input", str(sorted((shared_data / "raccoons/images").iterdir())[30]))
    answer = alone.locator("#answers h2", has_text="raccoon with")
    answer.wait_for(timeout=600_000)
    assert answer.inner_text() == first_answer
    alone.context.close()
    for view in ("collect", "train", "understand", "try", "ship"):
        for width, scheme in ((1280, "light"), (390, "dark")):
            tab.emulate_media(color_scheme=scheme)
            tab.set_viewport_size({"width": width, "height": 800})
            tab.goto(f"{studio.url}/{view}")
            assert axe_violations(tab) == [], view
            assert layout_faults(tab) == [], view
    assert errors == []
    context.close()


def read_process(run: Path) -> int | None:
    """The process that trains, or the last one that did; None while the file is being replaced."""
    try:
        return json.loads((run / ".lock").read_text())["process"]
    except (FileNotFoundError, ValueError):
        return None


@pytest.mark.large
def test_a_stopped_server_leaves_a_training_that_continues(studio: Studio, browser: Any, digit_folder: Path) -> None:
    shutil.copytree(digit_folder, studio.folder, dirs_exist_ok=True)
    tab = browser.new_context().new_page()
    tab.goto(f"{studio.url}/train")
    tab.get_by_text("More options").click()
    tab.get_by_label("Network").fill("resnet20")
    tab.get_by_label("Epochs").fill("2000")
    tab.locator("#start .primary").click()
    tab.locator("#training .curves").wait_for(timeout=600_000)
    # A training that is killed continues from its last checkpoint.
    run = studio.folder.parent / "runs" / "pets-1"
    killed = read_process(run)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    tab.locator("#training", has_text="pets-1: stopped").wait_for(timeout=600_000)
    tab.get_by_role("button", name="Continue").click()
    tab.locator("#training", has_text="pets-1: training").wait_for(timeout=600_000)
    ended = time.monotonic() + 600  # the curves are there from before
    while read_process(run) in (killed, None) and time.monotonic() < ended:
        time.sleep(0.2)
    studio.stop()
    ended = time.monotonic() + 600  # on a busy machine, the server does not wait for the end of the checkpoint
    while (run / ".lock").exists() and time.monotonic() < ended:
        time.sleep(0.2)
    assert (run / "checkpoint" / "state.safetensors").exists()
    assert not (run / ".lock").exists()
    studio.restart()
    tab.goto(f"{studio.url}/train")
    tab.get_by_role("button", name="Continue").click()
    tab.locator("#training", has_text="pets-1: training").wait_for(timeout=600_000)
    tab.get_by_role("button", name="Stop").click()
    tab.locator("#training", has_text="pets-1: stopped").wait_for(timeout=600_000)
    tab.close()
