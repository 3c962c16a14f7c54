"""Results are written over what svertka made, and over nothing else."""

import os
from pathlib import Path

import pytest

import hostile
import svertka
from svertka.cli.app import main
from svertka.errors import StorageError, SvertkaError, UsageError
from svertka.output_paths import HTML, prepare_output_file, prepare_output_folder
from svertka.run import Run


@pytest.fixture(scope="module")
def run(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("runs") / "run"
    return svertka.train(digit_folder, output=place, model="resnet20", size=8, epochs=0.2, threads=1)


def test_a_project_folder_is_not_written_over(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("README.md", "config.json"):
        Path(name).write_text("mine")
    for to in ("./", ".", str(tmp_path)):
        assert main(["export", str(run.folder), "--to", to]) == 2
        assert "contains other files (README.md, config.json), which may be lost" in capsys.readouterr().err
    assert Path("README.md").read_text() == "mine"
    assert main(["export", str(run.folder), "--to", "./", "--overwrite"]) == 0
    assert svertka.Classifier.load(tmp_path).names
    assert main(["export", str(run.folder), "--to", "./"]) == 0  # now it is svertka's


@pytest.mark.sample(1)
@pytest.mark.parametrize("verb", ["evaluate", "compare", "locate"])
def test_other_outputs_are_svertka_s_or_nobody_s(
    run: Run, digit_folder: Path, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "new" / "result"
    arguments = {
        "evaluate": ["evaluate", str(run.folder), str(digit_folder)],
        "compare": ["compare", str(run.folder), f"resnet20:{run.weights}", str(digit_folder)],
        "locate": ["locate", str(run.folder), str(digit_folder / "one" / "00.png")],
    }[verb]
    if verb == "compare":
        twin = tmp_path / "twin"
        run.classifier().save(twin)
        arguments[2] = str(twin)
    ask = [*arguments, *(["--part", "all"] if verb == "compare" else []), "--threads", "1", "--output", str(place)]
    mine = place / "index.html" if verb == "locate" else place
    assert main(ask) in (0, 1)
    assert main(ask) in (0, 1)
    mine.write_text("mine")
    assert main(ask) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    assert main([*ask, "--overwrite"]) in (0, 1)
    assert HTML in mine.read_bytes()


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    for kind, path in hostile.files(tmp_path / "hostile", ".html").items():
        if kind in ("empty", "absent", "dangling link", "link to itself"):
            assert prepare_output_file(path, HTML) == path
            continue
        with pytest.raises(SvertkaError) as caught:
            prepare_output_file(path, HTML)
        assert "\n" not in str(caught.value), kind
    with pytest.raises(UsageError, match="is a device or a pipe; name a file"):
        prepare_output_file("/dev/null", HTML, overwrite=True)
    with pytest.raises(UsageError, match="is a folder; name a file"):
        prepare_output_file(tmp_path, HTML, overwrite=True)
    with pytest.raises(UsageError, match="is a file; name a folder"):
        prepare_output_folder(__file__, "index.html", HTML, overwrite=True)


def test_a_place_that_takes_nothing_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("/proc/x/report.html", "/proc/report.html", "/dev/null/report.html"):
        with pytest.raises(StorageError, match="cannot write"):
            prepare_output_file(path, HTML)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("svertka.output_paths.tempfile.TemporaryFile", full)
    with pytest.raises(StorageError, match="no space left on device; free space or choose another folder"):
        prepare_output_file(tmp_path / "report.html", HTML)
    assert not os.listdir(tmp_path)  # noqa: PTH208
