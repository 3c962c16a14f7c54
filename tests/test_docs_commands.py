"""Every command and every Python block of the documentation runs, or is listed here with the reason why it cannot.

The guides run whole under --large, each page in order, in a folder with the files that it names. In every run of the
tests, each `svertka` command is parsed with the options of the command line, and each script of bench/ and experiments/
parses its own. A command inside a sentence has to exist with its options; those of the lecture run with the guides.
"""

import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from markdown_it import MarkdownIt

from svertka.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = [
    *("README.md", "docs/index.md", "docs/own_folder.md", "docs/own_network.md", "docs/faster_on_cpu.md"),
    *("docs/serve.md", "docs/reference/plot.md", "docs/reference/similar.md", "docs/reference/check.md"),
    *("docs/reference/calibrate.md", "docs/reference/export.md", "docs/reference/extend.md"),
    *("docs/reference/labels_and_numbers.md", "docs/reference/optimize.md", "docs/reference/suggest.md"),
    *("docs/reference/studio.md", "docs/reference/shards.md", "docs/reference/units.md", "docs/lecture.md"),
]
SHELLS = {"sh", "bash", ""}
PROGRAMS = ("svertka", "python", "make", "pip", "pytest", "curl", "torchrun", ".venv/bin/svertka")
SERVERS = ("svertka serve", "svertka studio")

# Pattern of a command -> why it does not run here.
NOT_HERE = {
    r"^(pip install|make\b)": "installs, or runs these tests",
    r"^pytest ": "runs tests: test_named_tests_exist",
    r"python (bench|experiments)/|python tests/": "takes minutes to days: its options are parsed",
    r"python -m doctest|python -m svertka": "test_docs.py runs the examples; torchrun needs several processes",
    r"^torchrun ": "needs several processes or machines",
    r":(imagenet|pretrained)\b|--weights (imagenet|pretrained)": "downloads weights",
    r"s3://|https://": "needs a server",
    r"--host ": "binds to every address of this machine",
    r"train --resume runs/photos-resnet18|photos-resnet18|photos-vgg16": "follows a training that downloads weights",
    r"weights\.safetensors|-imagenet\.safetensors": "needs weights of ImageNet",
    r"timm:": "needs the extra timm, which development does not install",
    r"^svertka train mnist": "downloads MNIST and trains for minutes",
    r"file\.py:build": "a placeholder; docs/own_network.md runs a file",
    r"^svertka train photos/ --unknown": "needs a hundred images of no class",
    r"^svertka train fields/": "needs images of several bands",
    r"^svertka extend runs/films": "needs a run of several labels: tests/training/test_extend_labels.py",
    r"(cifar10|mnist)-test/": "checks thousands of test images, which takes minutes",
    r"--sets 95%": "needs 19 images that calibrate",
    r"optimize runs/flowers$": "needs 553 validation images",
    r"/photos/predict\?run=": "follows a training in the studio",
    r"--boxes annotations/": "needs boxes",
    r"--apply ": "needs corrections, which the page of check writes",
}
PLACEHOLDER = re.compile(r"\b(RUN|NAME|FILE|FOLDER|SOURCE|SEED|N|C)\b|…")  # of what a reader has, or chooses


@dataclass(frozen=True)
class Block:
    """Code on a page: its language, the line on which it begins, and the files that the reader then opens."""

    page: str
    line: int
    language: str
    text: str
    opened: tuple[str, ...] = ()


def blocks(page: Path) -> Iterator[Block]:
    name = page.relative_to(ROOT).as_posix()
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if not token.map:
            continue
        if token.type in ("fence", "code_block"):
            yield Block(name, token.map[0] + 1, token.info.strip(), token.content)
        elif token.type == "inline" and token.content.startswith("Try: "):  # the lecture
            command, *named = re.findall(r"`([^`]+)`", token.content)
            yield Block(name, token.map[0] + 1, "", command, tuple(named) if "then open" in token.content else ())


def in_sentences(page: Path) -> set[str]:
    """The `svertka` commands inside the sentences of a page."""
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    code = [child.content for token in tokens for child in token.children or () if child.type == "code_inline"]
    return {one for one in code if re.match(r"svertka [a-z]", one)}


def commands(block: Block) -> list[str]:
    """The commands of a block, without comments, each on one line."""
    if block.language not in SHELLS:
        return []
    lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
    plain = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
    found = [line for line in plain if re.sub(r"^(\w+=\S+ )+", "", line).startswith(PROGRAMS)]
    return [line.removeprefix(".venv/bin/") for line in found]


BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [(block, command) for block in BLOCKS for command in commands(block)]


@cache
def click_commands() -> dict[str, Any]:
    """The commands of the command line by name."""
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def reason(command: str) -> str | None:
    return next((why for pattern, why in NOT_HERE.items() if re.search(pattern, command)), None)


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS) > 100
    assert {page.relative_to(ROOT).as_posix() for page in PAGES} >= set(GUIDES)


def test_every_command_outside_the_guides_has_a_reason() -> None:
    left = [
        f"{block.page}:{block.line}: {command}"
        for block, command in COMMANDS
        if block.page not in GUIDES and not reason(command) and not PLACEHOLDER.search(command)
    ]
    assert left == []


@pytest.mark.parametrize(
    "command", sorted({command for _, command in COMMANDS if command.startswith("svertka ")}), ids=str
)
def test_the_options_of_a_command_exist(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    parser = click_commands()[name]
    parser.make_context(name, ["1" if PLACEHOLDER.fullmatch(one) else one for one in arguments])


@pytest.mark.parametrize("command", sorted({one for page in PAGES for one in in_sentences(page)}))
def test_the_options_of_a_command_in_a_sentence_exist(command: str) -> None:
    _, name, *arguments = command.split()
    parameters = click_commands()[name].params
    options = {option for one in parameters for option in one.opts}
    assert {one.partition("=")[0] for one in arguments if one.startswith("-")} <= options


def scripts() -> list[str]:
    """The calls of scripts in this repository, without the environment."""
    found = (re.sub(r"^(\w+=\S+ )+", "", command) for _, command in COMMANDS)
    inline = (one for page in PAGES for one in re.findall(r"`(python (?:bench|experiments)/[^`…]*)`", page.read_text()))
    return sorted({one for one in (*found, *inline) if re.match(r"python (bench|experiments|tests)/", one)})


@pytest.mark.parametrize("script", scripts())
def test_the_options_of_a_script_exist(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path, *arguments = shlex.split(script.replace("…", "1"))
    text = (ROOT / path).read_text(encoding="utf-8")
    if "parse_args" not in text and "main(__doc__" not in text:
        assert not arguments or "sys.argv" in text
        return

    class Parsed(BaseException):
        """The script has read its options."""

    real = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    monkeypatch.syspath_prepend(str((ROOT / path).parent))
    monkeypatch.setenv("SVERTKA_DATA", os.environ.get("SVERTKA_DATA", "data"))
    try:
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / path), run_name="__main__")
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}: make bench-peers")


def test_named_tests_exist() -> None:
    named = {path for _, command in COMMANDS for path in re.findall(r"tests/[\w/]+\.py", command)}
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.fixture
def workspace(tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the guides name."""
    import numpy as np
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for name in ("photos", "other-photos"):
        shutil.copytree(photographs, name)
    for source, name in ((photographs / "flower", "unlabeled"), (photographs / "china", "new-classes/temple")):
        Path(name).mkdir(parents=True)
        for path in source.iterdir():  # images that no run knows
            Image.open(path).rotate(180).save(Path(name) / path.name)
    image = Image.open(photographs / "china" / "00.png")
    for name in ("holiday.jpg", "image.jpg"):
        image.save(name)
    image.convert("L").resize((28, 28)).save("seven.png")
    files = sorted(str(path) for path in Path("photos").rglob("*.png"))
    labels = ["comedy|crime" if "china" in name else "crime" for name in files]
    Path("films.csv").write_text("\n".join(["path,label", *map(",".join, zip(files, labels, strict=True))]))
    ages = [f"{path},{np.asarray(Image.open(path)).mean():.2f}" for path in files]
    Path("faces.csv").write_text("\n".join(["file,age", *ages]))
    shutil.copytree("photos", "cats-dogs")
    return tmp_path


def environment() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "2"} | os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@contextmanager
def served(command: str) -> Iterator[None]:
    """The server that a command starts, until the body ends."""
    with subprocess.Popen(
        shlex.split(command), env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as server:
        try:
            assert server.stdout
            assert any("http://" in line for line in server.stdout), "it ended without an address"
            yield
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Callable[[Path], None]:
    """Copies the runs that the guides name into a folder."""
    import svertka

    folder = tmp_path_factory.mktemp("runs")
    svertka.train("digits", epochs=2, output=str(folder / "demo"), threads=2)
    svertka.train(str(photographs), output=str(folder / "photos-efficientnet_lite0"), val=0.25, threads=2)
    for name in ("photos", "flowers"):
        shutil.copytree(folder / "photos-efficientnet_lite0", folder / name)
    return lambda place: shutil.copytree(folder, place / "runs", dirs_exist_ok=True) and None


def prepare(page: str, command: str, runs: Callable[[Path], None], workspace: Path) -> None:
    """Give a command the run that it names, unless an earlier command of its page has made it."""
    named = re.findall(r"runs/([\w-]+)", command)
    if named and "--output" not in command and not (workspace / "runs" / named[0]).exists():
        runs(workspace)


@pytest.mark.large
@pytest.mark.parametrize("page", GUIDES)
def test_a_guide_runs(page: str, workspace: Path, runs: Callable[[Path], None]) -> None:
    servers: list[AbstractContextManager[None]] = []
    code: list[str] = []
    try:
        for block in (one for one in BLOCKS if one.page == page):
            if block.language == "python":
                run_python(block, workspace, runs, code)
            for command in commands(block):
                if reason(command) or PLACEHOLDER.search(command):
                    continue
                prepare(page, command, runs, workspace)
                if command.startswith(SERVERS):
                    servers.append(served(command))
                    servers[-1].__enter__()
                    continue
                command = command.replace("--time 10m", "--epochs 2")  # how much fits into a time depends on the load
                print(f"{page}:{block.line}: {command}")
                flags = ["--fail", "--silent", "--show-error"] if command.startswith("curl") else []
                name, *arguments = shlex.split(command)
                subprocess.run([name, *flags, *arguments], env=environment(), check=True, timeout=900)
            assert [path for path in block.opened if not (workspace / path).exists()] == []
    finally:
        for server in servers:
            server.__exit__(None, None, None)


def run_python(block: Block, workspace: Path, runs: Callable[[Path], None], code: list[str]) -> None:
    """Run a block of Python. One that defines a function is saved as the file that the page names."""
    if re.match(r"from torch import nn\n\n\ndef build", block.text):
        Path("small_network.py").write_text(block.text)
        return
    if "network" in block.text and "network =" not in block.text:  # README: any network
        code.append("import svertka, torch\nnetwork = svertka.Classifier.load('efficientnet_lite0:bundled').network\n")
    prepare(block.page, block.text, runs, workspace)
    text = "".join([*code, block.text.replace('time="10m"', "epochs=2")])
    code.clear()
    subprocess.run([sys.executable, "-c", text], env=environment() | {"PYTHONPATH": "."}, check=True, timeout=900)
