"""The command line as a user meets it: results on stdout, everything else on stderr, never a traceback."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import svertka
from svertka.cli.app import app, main

VERBS = (
    "check",
    "train",
    "evaluate",
    "compare",
    "calibrate",
    "ablate",
    "compare-units",
    "predict",
    "look",
    "locate",
    "export",
    "serve",
    "studio",
    "optimize",
    "suggest",
    "similar",
    "extend",
    "shard",
    "models",
    "tune",
)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"svertka {svertka.__version__}\n"


def test_options_of_train_stand_under_headings_each_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    sections = re.split(r"\n(?=\S[^\n]*:\n)", capsys.readouterr().out)
    headings = {section.split(":")[0]: section for section in sections[1:]}
    assert list(headings) == ["Arguments", "Options", "Model and weights", "Data", "Optimization", "Compute", "Output"]
    assert "SOURCE" in headings["Arguments"]
    for option, heading in {"--model": "Model and weights", "--lr": "Optimization", "--threads": "Compute"}.items():
        assert [name for name, text in headings.items() if re.search(rf"^  {option} ", text, re.M)] == [heading]


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)
    assert main([]) == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_and_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Example: svertka {verb}" in shown
    assert "--json" in shown


def test_the_verbs_tested_are_all_there_are() -> None:
    assert {command.name for command in app.registered_commands} == set(VERBS)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["fly"], 2, "svertka: No such command 'fly'"),
        (["train"], 2, "svertka: name a SOURCE to train on, or --resume RUN to continue a run"),
        (["train", "digits", "--resume", "runs/x"], 1, "svertka: runs/x holds no training.json"),
        (["train", "/nowhere"], 2, "svertka: there is no folder /nowhere; give a folder"),
        (["train", "digist"], 2, "svertka: there is no folder digist; did you mean digits?"),
        (["train", __file__], 2, "svertka: "),
        (["train", "digits", "--epochs", "many"], 2, "svertka: Invalid value for '--epochs'"),
        (["train", "digits", "--epochs", "0"], 2, "svertka: epochs=0 must be above 0"),
        (["train", "digits", "--wings", "2"], 2, "svertka: No such option: --wings"),
        (["train", "digits", "--model", "vgg"], 2, "svertka: model=vgg is not known"),
        (["train", "--resume", "x", "--lr", "1"], 2, "svertka: --lr cannot be given with --resume: the run continues"),
        (["train", "--resume", "x", "--no-augment"], 2, "svertka: --augment cannot be given with --resume"),
        (["train", "--resume", "/nowhere"], 1, "svertka: /nowhere holds no training.json"),
        (["train", "--resume", __file__], 1, f"svertka: {__file__} holds no training.json"),
        (["evaluate", "/nowhere", "digits"], 1, "svertka: /nowhere is not a run folder"),
        (["evaluate", "/nowhere", "digits", "--scales", "many"], 2, "svertka: --scales many is not a list of whole"),
        (["compare", "runs/x"], 1, "svertka: runs/x is not a run folder; name one that `svertka train` made"),
        (["compare", "runs/x", "digits"], 1, "svertka: runs/x is not a run folder"),
        (["compare", "/nowhere", "lenet5:x", "digits"], 1, "svertka: /nowhere is not a run folder"),
        (
            ["compare", "/nowhere", "lenet5:x"],
            2,
            "svertka: /nowhere does not say what it was trained on; name a SOURCE",
        ),
        (["predict", "/nowhere", "x.jpg"], 1, "svertka: /nowhere is not a run folder"),
        (["predict", "resnet50:imagnet", "x.jpg"], 2, "svertka: weights=imagnet is neither a file nor published for"),
        (
            ["predict", "resnet50", "x.jpg"],
            2,
            "svertka: resnet50 is a network without weights; name some as in resnet50:",
        ),
        (["evaluate", "resnet51:imagenet", "digits"], 2, "svertka: model=resnet51 is not known; use "),
        (
            ["train", "digits", "--weights", "bundled"],
            2,
            "svertka: weights=bundled is neither a file nor published for",
        ),
        (["train", "--resume", "x", "--weights", "y"], 2, "svertka: --weights cannot be given with --resume"),
        (["predict", "/nowhere"], 2, "svertka: predict needs RUN IMAGE; see svertka predict --help"),
        (["evaluate", "/nowhere"], 2, "svertka: evaluate needs RUN... SOURCE; see svertka evaluate --help"),
        (["models", "resnet21"], 2, "svertka: model=resnet21 is not known; use resnet"),
        (["check", "/nowhere"], 2, "svertka: there is no folder /nowhere"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(sentence)
    assert err.count("\n") == 1


def test_the_whole_way_in_json(
    digit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def ask(*arguments: str) -> object:
        assert main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    source = str(digit_folder)
    settings = ["--model", "mlp", "--size", "8", "--epochs", "20", "--threads", "1", "--output", "runs/x"]
    trained = ask("train", source, *settings)
    assert isinstance(trained, dict)
    not_used = {"bad", "left_out", "not_images", "notes", "warnings"}
    results = {"run", "val_error", "test_error", "epochs", "seconds", "images_per_second"}
    results |= {"part", "images", "cross_validation"}
    chance = {"at_chance", "never_predicted"}
    assert set(trained) == results | not_used | chance | {"findings"}
    assert trained["run"] == "runs/x"
    assert trained["test_error"] is None

    judged = ask("evaluate", "runs/x", source)
    assert isinstance(judged, dict)
    figures = {"images", "top1_error", "top1_interval", "top5_error", "top5_interval", "loss", "per_class"}
    scope = {
        "source",
        "part",
        "training_images",
        "includes_training",
        "unreadable",
        "near_duplicates",
        "unread",
        "copies",
        "optimized",
    }
    scope |= not_used - {"bad"}
    figures |= {"calibration_error", "temperature", "unknown_images", "unknown_share"}
    assert set(judged) == figures | scope | chance
    assert judged["top1_error"] == trained["val_error"]
    assert judged["top5_error"] is None

    named = ask("predict", "runs/x", f"{source}/one/05.png", f"{source}/two")
    assert isinstance(named, list)
    assert len(named) == 61
    assert set(named[0]) == {"path", "labels", "unknown", "unknown_score", "unknown_threshold"}
    assert set(named[0]["labels"][0]) == {"name", "probability"}

    listed = ask("models")
    assert isinstance(listed, list)
    keys = {"name", "parameters", "training_parameters", "multiply_adds", "input", "source", "published"}
    assert all(set(one) == keys for one in listed)
    one = ask("models", "lenet5")
    assert isinstance(one, dict)
    assert {key: one[key] for key in keys} in listed
    assert set(one) == keys | {"layers"}

    checked = ask("check", source)
    assert isinstance(checked, dict)
    assert {"classes", "bad", "duplicates", "near_duplicates", "split"} <= set(checked)


def test_tables_and_csv(digit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    settings = ["--model", "mlp", "--size", "8", "--epochs", "5", "--threads", "1", "--output", run]
    assert main(["train", str(digit_folder), *settings]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1] == f"the run is in {run}; open {run}/report.html"
    assert err.splitlines()[0].startswith("data     ")
    assert main(["evaluate", run, str(digit_folder)]) == 0
    assert "top-1 error" in capsys.readouterr().out
    picture = str(digit_folder / "one" / "05.png")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    assert main(["predict", run, picture, str(bad), "--csv", "--top", "2"]) == 1
    out, err = capsys.readouterr()
    header = "path,rank,name,probability,error,unknown,unknown_score,unknown_threshold,in_set"
    assert out.splitlines()[0] == header
    assert len(out.splitlines()) == 4
    assert out.splitlines()[3] == f"{bad},,,,empty file,,,,"
    assert err.splitlines() == [f"svertka: {bad}: empty file", "svertka: 1 of 2 images could not be read"]
    assert main(["predict", run, picture]) == 0
    assert capsys.readouterr().out.startswith(picture)
    assert main(["models"]) == 0
    assert "lenet5" in capsys.readouterr().out
    assert main(["check", str(digit_folder)]) == 0
    assert "240" in capsys.readouterr().out
    assert main(["train", str(digit_folder), *settings]) == 2
    assert "exists; continue it (svertka train --resume" in capsys.readouterr().err


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = f"{sys.executable} -m svertka models --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "["
    assert "Traceback" not in done.stderr


def test_a_current_folder_that_is_gone_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert main(["models"]) == 1
    assert capsys.readouterr().err.startswith("svertka: the current folder has been deleted or cannot be read; change")
    monkeypatch.chdir(tmp_path)
