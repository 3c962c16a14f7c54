import json
from pathlib import Path

import pytest

import svertka
from svertka.cli.app import main


@pytest.fixture(scope="module")
def run(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "run"
    svertka.train(digit_folder, model="mlp", size=8, epochs=1, threads=1, output=folder)
    return str(folder)


@pytest.fixture
def other(digit_folder: Path, tmp_path: Path) -> Path:
    """Four images, of which two cannot be read, a file of a format that is not read, and two others."""
    for name in ("one", "two"):
        (tmp_path / "other" / name).mkdir(parents=True)
        content = (digit_folder / name / "00.png").read_bytes()
        (tmp_path / "other" / name / "new.png").write_bytes(content + b"changed")
        (tmp_path / "other" / name / "cut.png").write_bytes(content[:-30])
    (tmp_path / "other" / "one" / "x.psd").write_bytes(b"x")
    (tmp_path / "other" / "one" / "LICENSE").write_bytes(b"x")
    (tmp_path / "other" / "notes.txt").write_bytes(b"x")
    return tmp_path / "other"


def test_what_was_not_judged_is_said_everywhere(run: str, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = other.parent / "report.html"
    assert main(["evaluate", run, str(other), "--threads", "1", "--output", str(report)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 images: ")
    unread = [f"{other}/{name}/cut.png" for name in ("one", "two")]
    wanted = ["2 images could not be read", *unread, "left out: 1 .psd, unsupported format (one/x.psd)"]
    assert all(sentence in said for sentence in wanted)
    assert all(sentence in report.read_text() for sentence in wanted)

    assert main(["evaluate", run, str(other), "--threads", "1", "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in judged["unread"]] == unread
    assert judged["left_out"] == [
        {"suffix": ".psd", "reason": "unsupported format", "count": 1, "examples": ["one/x.psd"]}
    ]
    assert judged["not_images"] == {".txt": 1, "no suffix": 1}


def test_what_is_not_trained_on_is_said_everywhere(
    digit_folder: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        for path in sorted((digit_folder / name).iterdir())[1:15]:
            (other / name / path.name).write_bytes(path.read_bytes())
    (other / "two" / "cut.png").unlink()
    output = tmp_path / "run"
    arguments = ["--model", "mlp", "--size", "8", "--epochs", "1", "--threads", "1", "--output", str(output), "--json"]
    assert main(["train", str(other), *arguments]) == 0
    out, err = capsys.readouterr()
    wanted = [f"1 image that cannot be read: {other}/one/cut.png", "left out: 1 .psd, unsupported format (one/x.psd)"]
    assert all(sentence in err for sentence in wanted)
    assert all(sentence in (output / "report.html").read_text() for sentence in wanted)
    settings, trained = json.loads((output / "training.json").read_text()), json.loads(out)
    assert settings["bad"] == trained["bad"]
    assert settings["account"]["left_out"] == trained["left_out"] != []


def test_columns_are_remembered_with_the_run(
    digit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{path},{path.parent.name}" for name in ("one", "two") for path in sorted((digit_folder / name).iterdir())]
    table = tmp_path / "all.csv"
    table.write_text("\n".join(["img,digit", *rows]))
    settings = ["--model", "mlp", "--size", "8", "--epochs", "1", "--threads", "1", "--output", str(tmp_path / "run")]
    assert main(["train", str(table), *settings]) == 1
    assert "--columns path=img,label=COLUMN" in capsys.readouterr().err
    assert main(["train", str(table), *settings, "--columns", "path=img,label=digit"]) == 0
    assert main(["evaluate", str(tmp_path / "run"), str(table), "--threads", "1"]) == 0
    assert main(["check", str(table), "--columns", "path=img,label=digit"]) == 0
