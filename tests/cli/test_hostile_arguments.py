"""Every option of every verb with values that nobody means: one sentence, quickly, and nothing is left behind."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer.main

import hostile
import svertka
from svertka.cli.app import app, main

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# What a verb needs besides the option that is tried. RUN, PICTURES and PICTURE are of the fixtures.
NEEDED = {
    "check": ["PICTURES"],
    "train": ["PICTURES", "--model", "mlp", "--size", "8", "--epochs", "0.1", "--output", "NEW", "--threads", "1"],
    "evaluate": ["RUN", "PICTURES", "--threads", "1"],
    "compare": ["RUN", "TWIN", "PICTURES", "--part", "all", "--threads", "1"],
    "predict": ["RUN", "PICTURE", "--threads", "1"],
    "look": ["RUN", "PICTURES", "--units", "1", "--images", "2", "--output", "NEW", "--threads", "1"],
    "locate": ["RUN", "PICTURE", "--threads", "1"],
    "ablate": ["RUN", "PICTURES", "--layers", "conv1", "--images", "2", "--threads", "1"],
    "compare-units": ["RUN", "TWIN", "PICTURES", "--layers", "conv1", "--images", "2", "--threads", "1"],
    "export": ["RUN", "--to", "NEW/"],
    "optimize": ["RUN", "--threads", "1"],
    "calibrate": ["RUN", "--threads", "1"],
    "suggest": ["TWIN", "PICTURES", "--count", "2", "--threads", "1"],
    "similar": ["RUN", "PICTURE", "PICTURES", "--threads", "1"],
    "extend": ["RUN", "PICTURES", "--output", "NEW", "--threads", "1"],
    "shard": ["PICTURES", "--to", "NEW", "--threads", "1"],
    "models": [],
    "tune": [],
}
PATHS = {
    "check": [0, "--output"],
    "train": [0, "--weights", "--boxes", "--unknown", "--output", "--resume"],
    "evaluate": [0, 1, "--output"],
    "compare": [0, 1, 2, "--output"],
    "predict": [0, 1],
    "look": [0, 1, "--output"],
    "locate": [0, 1, "--boxes", "--output"],
    "ablate": [0, 1],
    "compare-units": [0, 1, 2, "--output"],
    "export": [0, "--to"],
    "optimize": [0, 1],
    "calibrate": [0, 1, "--unknown", "--new"],
    "suggest": [0, 1, "--sort-into"],
    "similar": [0, 1, 2],
    "extend": [0, 1, "--output"],
    "shard": [0, "--to"],
    "models": ["NAME"],
    "tune": ["NAME"],
}


def numeric() -> Iterator[tuple[str, str]]:
    """Each option that takes a number, by its verb, and some that are text with numbers in it."""
    for verb, command in COMMANDS.items():
        for parameter in command.params:
            option = max(parameter.opts, key=len)
            kind = parameter.type_descriptor.annotation
            if option.startswith("--") and (kind in (int, float) or option in TEXTS):
                yield verb, option


TEXTS = ("--lr", "--time", "--scales", "--crops", "--device", "--unfreeze", "--max-pixels", "--part", "--schedule")


@pytest.fixture(scope="module")
def places(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("places")
    for name in ("one", "two"):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            shutil.copy(digit_folder / name / f"{number:02}.png", folder / "pictures" / name)
    run = svertka.train(
        folder / "pictures", model="resnet20", size=8, epochs=0.2, batch_size=16, output=folder / "run", threads=1
    )
    run.classifier().save(folder / "twin")
    named = {"RUN": "run", "TWIN": "twin", "PICTURES": "pictures", "PICTURE": "pictures/one/00.png"}
    return {name: str(folder / place) for name, place in named.items()}


def asked(verb: str, places: dict[str, str], new: Path) -> list[str]:
    return [places.get(word, word.replace("NEW", str(new))) for word in NEEDED[verb]]


def refuse_all_but_a_sentence(
    arguments: list[str], capsys: pytest.CaptureFixture[str], *, may_work: bool = False
) -> str:
    capsys.readouterr()
    code = main(arguments)
    printed = capsys.readouterr()
    error = printed.err or printed.out  # rows of pictures that cannot be read are among the others
    shown = [word[:60] for word in arguments]
    assert "internal error in svertka" not in error, (shown, error)
    assert "Traceback" not in error, shown
    if code:
        assert code in (1, 2), (shown, error)
        sentence = error.splitlines()[-1]
        assert sentence.startswith("svertka: ") or not printed.err, (shown, error)
        assert len(sentence) < 1500 or arguments[0] in ("predict", "locate"), shown  # the path of a picture is whole
    else:
        assert may_work, (shown, "was taken")
    return error


OUTPUTS = "--output", "--to", "--sort-into"
CASES = [(verb, place) for verb, some in PATHS.items() for place in some]
SEARCHED = {("check", 0), ("train", 0), ("evaluate", 1), ("compare", 2), ("predict", 1), ("look", 1), ("locate", 1)} | {
    ("suggest", 1),
    ("similar", 2),
    ("ablate", 1),
    ("compare-units", 2),
}


@pytest.mark.sample(10)
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("verb", "place"), CASES)
def test_paths(
    verb: str,
    place: int | str,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    large_count: Callable[[int, int], int],
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    kinds = ["no such user", "long name", "long path", "NUL", "nothing", *["scheme"] * (place in OUTPUTS)]
    others = sorted(hostile.PATHS.keys() - kinds)
    if (verb, place) in SEARCHED:  # for images, which takes an hour of a whole machine
        others.remove("root")
    random.Random(f"{verb} {place}").shuffle(others)
    for kind in [*kinds, *others][: large_count(5 + (place in OUTPUTS), len(hostile.PATHS))]:
        value = hostile.PATHS[kind]
        arguments = asked(verb, places, tmp_path / f"new-{kind}"[:100])
        if place == "NAME":
            arguments = [value]
        elif isinstance(place, str):
            if place in arguments:
                del arguments[arguments.index(place) : arguments.index(place) + 2]
            arguments += [f"{place}={value}"]
            if place == "--resume":
                arguments = [f"--resume={value}"]
        else:
            arguments[place] = value
        if any(word.startswith("-") and word == value for word in arguments):
            arguments = [*[word for word in arguments if word != value], "--", value]
        # As an output some of these are names like any other; "" is no option's value but SOURCE's.
        may_work = place in OUTPUTS or kind in ("here", "above", "root") or place == "NAME"
        is_url = kind == "scheme" and place in OUTPUTS
        error = refuse_all_but_a_sentence([verb, *arguments], capsys, may_work=may_work and not is_url)
        assert not Path("https:").exists()
        if is_url and verb not in ("check", "extend", "shard"):  # which refuse these arguments for other reasons, too
            assert "is a URL; name a file or folder on this machine" in error, arguments


@pytest.mark.sample(15)
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("verb", "option"), [case for case in numeric() if case[0] not in ("serve", "studio")])
def test_numbers(
    verb: str,
    option: str,
    places: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    large_count: Callable[[int, int], int],
) -> None:
    kinds = list(hostile.NUMBERS)
    random.Random(f"{verb} {option}").shuffle(kinds)
    kinds = [*dict.fromkeys(["digits", "big", *kinds])]
    for kind in kinds[: large_count(3, len(kinds))]:
        arguments = asked(verb, places, tmp_path / f"new-{kind}")
        if option in arguments:
            del arguments[arguments.index(option) : arguments.index(option) + 2]
        refuse_all_but_a_sentence([verb, *arguments, f"{option}={hostile.NUMBERS[kind]}"], capsys, may_work=True)
        assert kind not in ("digits", "word") or not (tmp_path / f"new-{kind}").exists()
