import csv
import io
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fork_server import Python
from hostile import DEVICES, PATHS, TEXTS, files
from svertka.classifier import Classifier, Config
from svertka.cli.app import main
from svertka.cli.predict import _table_form
from svertka.data.preprocessing import Preprocess
from svertka.escaping import to_printable

NAMES = ("=1+1", "\x1b[31mred\n", "plain")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    preprocess = Preprocess(size=16, resize=16, mean=(0.5,), std=(0.25,))
    config = Config(model="mlp", names=NAMES, preprocess=preprocess)
    folder = tmp_path_factory.mktemp("saved") / "run"
    Classifier(config.build().eval(), config).save(folder)
    return str(folder)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """An image by each of the hostile names, and one more that is none."""
    folder = tmp_path / "album"
    folder.mkdir()
    for name in TEXTS.values():
        Image.effect_noise((20, 20), 90).save(folder / f"{name[:200]}.png", "PNG")
    (folder / "bad.png").write_bytes(b"no image")
    return folder


def test_names_of_every_kind_are_rows(run: str, album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = {str(path) for path in album.iterdir() if not path.name.startswith(".")}
    assert main(["predict", run, str(album)]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == len(images)
    assert f"{album}/bad.png  cannot be read: not an image" in out
    assert "\x1b" not in out + err

    assert main(["predict", run, str(album), "--json"]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert {one["path"] for one in found} == {path.encode("utf-8", "backslashreplace").decode() for path in images}
    json.dumps(found, ensure_ascii=False).encode()  # no lone surrogate
    assert [one["path"] for one in found if "error" in one] == [f"{album}/bad.png"]
    assert err.endswith(f"svertka: 1 of {len(images)} images could not be read\n")
    assert err.count("\n") == 2 + err.count("left out")

    assert main(["predict", run, str(album), "--csv", "--top", "1"]) == 1
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out, newline="")))
    assert rows[0][:5] == ["path", "rank", "name", "probability", "error"]
    assert {row[0] for row in rows[1:]} == {to_printable(path) for path in images}
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)


NO_FILES = [path for path in PATHS.values() if path not in (".", "..", "/")] + [*DEVICES.values(), "list.csv"]


@pytest.mark.parametrize("form", [[], ["--csv"], ["--json"]])
@pytest.mark.parametrize(
    "path",
    ["typo.jpg", "x" * 300, "a\0b", "", "~nosuchuser/x", "list.csv", "new\nline", "/dev/null", "https://x/y.jpg"],
)
def test_a_path_that_leads_to_no_image_is_one_sentence(
    run: str,
    path: str,
    form: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.csv").write_text("path\na.jpg\n")
    code = main(["predict", run, *form, "--", path])
    out, err = capsys.readouterr()
    assert code in (1, 2)
    (line,) = (err if form or code == 2 else out).splitlines()
    assert len(line) < 900
    assert ("a URL; download the image" in line) == path.startswith("https")


def test_hostile_paths_are_a_row_each(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", run, "--json", "--", *NO_FILES]) == 1
    found = json.loads(capsys.readouterr().out)
    assert len(found) == len(NO_FILES)
    assert all(one["error"] and not one["labels"] for one in found)


def test_what_is_no_image_among_good_ones_is_a_row(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good.png"
    Image.effect_noise((20, 20), 90).save(good)
    odd = [path for kind, path in files(tmp_path / "odd", ".png").items() if kind not in ("folder", "unreadable")]
    assert main(["predict", run, str(good), *map(str, odd), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in found] == [str(good), *map(str, odd)]
    assert [bool(one["labels"]) for one in found] == [True] + [False] * len(odd)


@pytest.mark.parametrize("name", ["photo.txt", "photo.png", "photo.dat", "photo"])
def test_an_image_under_any_name_is_read_and_mentioned(
    run: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.effect_noise((20, 20), 90).save(tmp_path / name, "JPEG")
    for path in (tmp_path / name, tmp_path):
        assert main(["predict", run, str(path)]) == 0
        out, err = capsys.readouterr()
        assert out.startswith(f"{tmp_path / name}  ")
        assert (f"the name says another format: {tmp_path / name} is JPEG" in err) == ("." in name)


@pytest.mark.parametrize(
    "kind", ["empty", "noise", "zeros", "text", "zip", "pipe", "dangling link", "absent", "sparse"]
)
def test_arrays_that_are_none_are_one_sentence(
    run: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", run, str(files(tmp_path, ".npy")[kind])]) == 2
    err = capsys.readouterr().err
    assert "cannot be read as an array" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("shape", [(2, 0, 9), (2, 9, 0, 3), (9,), (1, 9, 9, 2), (9, 9, 2)])
def test_arrays_of_other_shapes_are_one_sentence(
    run: str, shape: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    assert main(["predict", run, str(tmp_path / "a.npy")]) == 2
    assert "it needs uint8 (N, H, W)" in capsys.readouterr().err


def test_what_a_folder_leaves_out_is_said(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.effect_noise((20, 20), 90).save(tmp_path / "a.png")
    (tmp_path / "b.psd").write_bytes(b"x")
    assert main(["predict", run, str(tmp_path)]) == 0
    assert "left out: 1 .psd, unsupported format (b.psd)" in capsys.readouterr().err
    (tmp_path / "a.png").unlink()
    assert main(["predict", run, str(tmp_path)]) == 2
    assert "holds no image (left out: 1 .psd, unsupported format (b.psd))" in capsys.readouterr().err


@pytest.mark.sample(1)
@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_rows_appear_as_they_are_computed_and_are_whole_when_stopped(run: str, form: str, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    Image.effect_noise((20, 20), 90).save(folder / "0000.png")
    for number in range(1, 500):
        (folder / f"{number:04}.png").hardlink_to(folder / "0000.png")
    os.mkfifo(tmp_path / "last.npy")  # is refused before anything is computed
    # A network that waits after its second batch, so that the test need not be fast.
    script = (
        "import sys, time, svertka.classifier as one\n"
        "from svertka.cli.app import main\n"
        "real, calls = one.Classifier.probabilities, []\n"
        "def slow(self, pictures):\n"
        "    calls.append(1)\n"
        "    time.sleep(3600 if len(calls) > 2 else 0)\n"
        "    return real(self, pictures)\n"
        "one.Classifier.probabilities = slow\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["-c", script, "predict", run, str(folder), form, "--top", "1", "--threads", "1"]
    out = tmp_path / "out"
    with out.open("wb") as file, Python(arguments, stdout=file, stderr=subprocess.PIPE) as process:
        while out.read_bytes().count(b".png") < 128:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert b"Traceback" not in err
    text = out.read_text()
    rows = json.loads(text) if form == "--json" else list(csv.reader(text.splitlines()))[1:]
    assert len(rows) == 128


@pytest.mark.parametrize(("answer", "count"), [([], 1), (["cat"], 0)])
def test_a_line_says_once_what_empty_prediction_sets_mean(
    answer: list[str], count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"path": "a.png", "labels": [{"name": "cat", "probability": 0.6}, {"name": "dog", "probability": 0.4}]}
    with _table_form() as write:
        write([one | {"set": answer}, one | {"set": answer}])
        write([one | {"set": answer}])
    printed = capsys.readouterr()
    assert printed.out.count("{" + ", ".join(answer) + "}") == 3
    assert printed.err.count("{} is an empty set: no class is probable enough") == count
