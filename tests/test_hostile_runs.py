"""Run folders that strangers made: whatever is in them, every verb answers, or says one sentence."""

import json
import random
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import hostile
import svertka
from svertka.classifier import read_initial_weights, read_model_of_run
from svertka.compiler import accuracy_check, optimize
from svertka.errors import Interrupted, RunError, SvertkaError
from svertka.evaluation import inference_speed
from svertka.models import registry
from svertka.run import MAX_HISTORY_BYTES, Run
from svertka.serving.served_model import ServedModel
from svertka.tensor_files import read_tensors_and_header, write_tensors
from svertka.training.run_recorder import Recorder

OPTIONS: dict[str, Any] = {"model": "resnet20", "size": 8, "batch_size": 32, "threads": 1}


@pytest.fixture(scope="module")
def pictures(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few enough that a verb takes no time."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("one", "two"):
        shutil.copytree(digit_folder / name, folder / name)
        for path in sorted((folder / name).iterdir())[30:]:
            path.unlink()
    return folder


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return svertka.train(pictures, output=tmp_path_factory.mktemp("runs") / "finished", epochs=2, **OPTIONS)


@pytest.fixture(scope="module")
def begun(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Stopped after its first epoch."""
    run = Run(tmp_path_factory.mktemp("runs") / "begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "wants_stop", lambda recorder: recorder.state.step == 2)
        with pytest.raises(Interrupted):
            svertka.train(pictures, output=run.folder, epochs=2, **OPTIONS)
    return run


@pytest.fixture(scope="module")
def optimized(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = copied(finished, tmp_path_factory.mktemp("runs") / "optimized")
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("INT8_TOLERANCE", "INT8_CHANNEL_TOLERANCE", "INT8_OTHER_CLASSES"):
            patch.setattr(accuracy_check, limit, 10.0)  # two epochs on so few images leave scores that hardly vary
        with pytest.warns(UserWarning, match="calibration= has"):
            svertka.optimize_run(run, precision="int8", threads=1)
    return run


Verb = Callable[[Path, Path, Path], object]


def resumed(run: Path, _pictures: Path, _place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "wants_stop", lambda _: True)  # after a step: what is written need not end
        svertka.resume(run)


def started_from(run: Path, _pictures: Path, _place: Path) -> None:
    model = read_model_of_run(str(run)) or registry.find_model("resnet20")
    weights = read_initial_weights(model, str(run))
    with torch.device("meta"):
        weights.check(model.build(2, weights.preprocess.channels, weights.preprocess.size))


VERBS: dict[str, Verb] = {
    "predict": lambda run, pictures, _: json.dumps(
        svertka.predict(run, str(pictures / "one" / "00.png"), threads=1), allow_nan=False
    ),
    "evaluate": lambda run, pictures, _: json.dumps(
        svertka.evaluate(run, pictures, threads=1).to_dict(), allow_nan=False
    ),
    "export": lambda run, _, place: svertka.export(run, place / "folder"),
    "serve": lambda run, *_: ServedModel(run, torch.device("cpu"), precision=None).sentence,
    "weights": started_from,
    "result": lambda run, *_: json.dumps(Run(run).result(), allow_nan=False),
    "resume": resumed,
    "look": lambda run, pictures, place: svertka.look(
        run, layers=["conv1"], units=1, images=2, output=place / "atlas", threads=1
    ),
    "locate": lambda run, pictures, place: svertka.locate(
        run, str(pictures / "one" / "00.png"), output=place / "found", threads=1
    ),
}


def compared(good: Run) -> Verb:
    return lambda run, pictures, place: json.dumps(
        svertka.compare([good, run], pictures, output=place / "comparison.html", threads=1).to_dict(), allow_nan=False
    )


def outcome(verb: Verb, run: Path, pictures: Path, place: Path) -> str:
    """ "" or the sentence; anything else that is raised is a fault."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    sentence = ""
    try:
        verb(run, pictures, place)
    except SvertkaError as error:
        sentence = str(error)
    assert "\n" not in sentence
    assert len(sentence) < 2000
    return sentence


# ---- what is done to a file


Write = Callable[[Path], object]


def written(content: bytes) -> Write:
    return lambda path: path.write_bytes(content)


def documents(good: bytes) -> Iterator[bytes]:
    yield from hostile.json_documents(json.loads(good))


def lines(good: bytes) -> Iterator[bytes]:
    """metrics.jsonl with one line of each kind damaged, and as a whole."""
    whole = good.splitlines(keepends=True)
    kinds = {json.loads(line)["kind"]: number for number, line in enumerate(whole)}
    for number in kinds.values():
        for line in hostile.json_documents(json.loads(whole[number])):
            yield b"".join([*whole[:number], line, b"\n", *whole[number + 1 :]])
    yield b"x" * 3_000_000 + b"\n" + good
    yield b'{"kind": "epoch"}\n' * 1000
    yield b"\n".join(value.encode() for value in hostile.JSON_VALUES)


def headers(good: bytes) -> Iterator[bytes]:
    """A file of tensors, damaged, and with a hostile header."""
    size = struct.unpack("<Q", good[:8])[0]
    header, rest = json.loads(good[8 : 8 + size]), good[8 + size :]
    some = dict(list(header.items())[:3])
    for text in hostile.json_documents(some):
        yield struct.pack("<Q", len(text)) + text + rest
    for length in (0, 1, size - 1, size + 1, 2**31, 2**63 - 1, 2**64 - 1):
        yield struct.pack("<Q", length) + good[8:]
    generator = random.Random(0)
    for _ in range(100):
        changed = bytearray(good)
        for _ in range(generator.randrange(1, 4)):
            changed[generator.randrange(len(good))] ^= 1 << generator.randrange(8)
        yield bytes(changed)
        yield good[: generator.randrange(len(good))]


TENSORS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda t: t * float("nan"),
    lambda t: torch.full_like(t, float("inf")) if t.is_floating_point() else t,
    lambda t: t * 1e38 if t.is_floating_point() else t,
    lambda t: t.reshape(-1)[:0],
    lambda t: t[None],
    lambda t: t.new_zeros(()) if t.numel() == 0 else t.reshape(-1)[0],
    lambda t: torch.cat([t.reshape(-1), t.reshape(-1)]),
    lambda t: t.to(torch.int64),
    lambda t: t.to(torch.bool),
    lambda t: t.to(torch.complex64),
    lambda t: t.to(torch.float8_e4m3fn) if t.is_floating_point() else t.to(torch.uint8),
    lambda t: torch.zeros_like(t),
]


def rewritten(good: Path) -> Iterator[Write]:
    """A file of tensors whose digest is right, with other tensors, or another header, in it."""
    tensors, header = read_tensors_and_header(good)
    # One of each role, such as bn.weight: the layers of a network repeat them.
    roles = {name: re.sub(r"\d", "", ".".join(name.split(".")[-2:])) for name in tensors}
    kinds = {(roles[name], tensor.dim()): name for name, tensor in tensors.items()}

    def write(others: dict[str, torch.Tensor], head: Any = header) -> Write:
        return lambda path: write_tensors(path, others, head)

    for name in kinds.values():
        yield from (write(tensors | {name: change(tensors[name])}) for change in TENSORS)
        yield write({other: tensor for other, tensor in tensors.items() if other != name})
        yield write(tensors | {f"{name}.more": tensors[name].clone()})
    yield from (write({name: change(tensor) for name, tensor in tensors.items()}) for change in TENSORS)
    if "optimized" in header:  # too large for every document
        yield from (write(tensors, mutated(header, seed)) for seed in range(100))
        return
    for text in hostile.json_documents(header) if header else ():
        with suppress(ValueError, RecursionError):
            yield write(tensors, json.loads(text))


def mutated(header: dict[str, Any], seed: int) -> dict[str, Any]:
    """A header with a hostile value in a random place."""
    generator, changed = random.Random(seed), json.loads(json.dumps(header))
    inside, key = changed, "optimized"
    while isinstance(inside[key], dict | list) and inside[key] and generator.random() < 0.9:
        inside = inside[key]
        key = generator.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
    inside[key] = generator.choice(
        [None, True, -1, 0, 1, 1 << 40, 1 << 62, 0.5, -1e300, "", "x", [], {}, [[]], [0] * 9]
    )
    return changed


FILES: dict[str, tuple[bool, tuple[str, ...]]] = {  # whether the run is finished, and who reads it
    "config.json": (True, ("predict", "evaluate", "export", "serve", "weights", "look", "locate", "compare")),
    "training.json": (True, ("export", "serve", "evaluate", "look", "compare")),
    "metrics.jsonl": (True, ("export", "result", "compare")),
    "model.safetensors": (True, ("predict", "weights", "evaluate", "export")),
    "begun training.json": (False, ("resume",)),
    "begun metrics.jsonl": (False, ("resume",)),
    "begun model.safetensors": (False, ("resume",)),
    "checkpoint/state.safetensors": (False, ("resume",)),
    "calibration.safetensors": (True, ("predict", "evaluate", "serve")),
    "optimized.safetensors": (True, ("predict", "evaluate", "serve", "compare")),
}


@pytest.fixture
def unoptimized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks are used as they are, and their speed is measured once: both take longer than all of the reading."""
    monkeypatch.setattr(optimize, "MIN_NUM_IMAGES", optimize.MANY_IMAGES + 1)
    monkeypatch.setattr(inference_speed, "ROUNDS", range(1, 2))


@pytest.mark.sample(3)
@pytest.mark.usefixtures("quiet", "unoptimized")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", list(FILES))
def test_a_damaged_file_is_read_or_one_sentence(
    finished: Run,
    begun: Run,
    optimized: Run,
    pictures: Path,
    tmp_path: Path,
    file: str,
    large_count: Callable[[int, int], int],
) -> None:
    is_finished, verbs = FILES[file]
    good, name = (finished if is_finished else begun), file.removeprefix("begun ")
    good = optimized if name == "optimized.safetensors" else good
    content = (good.folder / name).read_bytes()
    if name.endswith(".safetensors"):
        cases = [*map(written, headers(content)), *rewritten(good.folder / name)]
    else:
        cases = list(map(written, (lines if name.endswith(".jsonl") else documents)(content)))
    random.Random(file).shuffle(cases)
    all_verbs = VERBS | {"compare": compared(finished)}
    refused = 0
    for number, case in enumerate(cases[: large_count(6, len(cases))]):
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(good.folder, run)
        (run / name).unlink()
        case(run / name)
        verb = verbs[number % len(verbs)]
        try:
            refused += bool(outcome(all_verbs[verb], run, pictures, tmp_path / "place"))
        except Exception as error:
            raise AssertionError(f"{verb}: {(run / name).read_bytes()[:300]!r}") from error
    # Damaged lines of metrics.jsonl are left out, and most verbs need nothing of training.json.
    assert refused or name in ("metrics.jsonl", "training.json")


def copied(good: Run, place: Path) -> Run:
    shutil.copytree(good.folder, place)
    return Run(place)


def test_a_history_that_no_training_writes_is_refused_before_it_is_read(finished: Run, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    with run.metrics.open("r+b") as file:
        file.truncate(6 * 10**9)
    with pytest.raises(RunError, match=r"jsonl cannot be read \(a file of 6 GB, larger than the limit of 134 MB"):
        run.history()
    with run.metrics.open("r+b") as file:
        file.truncate(MAX_HISTORY_BYTES)
    assert [entry["kind"] for entry in run.history()][-1] == "result"


@pytest.mark.sample(1)
@pytest.mark.usefixtures("quiet", "unoptimized")
@pytest.mark.parametrize("name", ["config.json", "training.json", "metrics.jsonl", "model.safetensors"])
def test_what_is_no_file_is_one_sentence(finished: Run, pictures: Path, tmp_path: Path, name: str) -> None:
    run = copied(finished, tmp_path / "run")
    for kind, path in hostile.files(tmp_path / "hostile", ".x").items():
        if kind == "unreadable":  # which the superuser reads
            path.chmod(0o644)
        (run.folder / name).unlink(missing_ok=True)
        (run.folder / name).symlink_to(path)
        for verb in ("predict", "export", "result"):
            if name in ("config.json", "model.safetensors") or (verb == "result" and name == "metrics.jsonl"):
                assert outcome(VERBS[verb], run.folder, pictures, tmp_path / "place") or verb == "result", (kind, verb)
            else:
                outcome(VERBS[verb], run.folder, pictures, tmp_path / "place")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_predict_nothing_are_refused_when_they_are_loaded(
    finished: Run, pictures: Path, tmp_path: Path, value: float
) -> None:
    run = copied(finished, tmp_path / "run")
    tensors, header = read_tensors_and_header(run.weights)
    tensors["linear.weight"][0, 0] = value
    write_tensors(run.weights, tensors, header)
    for verb in ("predict", "evaluate", "export", "serve", "weights", "look", "locate"):
        sentence = outcome(VERBS[verb], run.folder, pictures, tmp_path / "place")
        assert "contains NaN or infinity (in linear.weight), so it cannot predict" in sentence, verb


def test_scores_that_are_no_numbers_never_become_probabilities(finished: Run, pictures: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    tensors, header = read_tensors_and_header(run.weights)
    tensors["linear.weight"] *= 3e38  # finite, and the scores are not
    write_tensors(run.weights, tensors, header)
    for verb in ("predict", "evaluate", "serve"):
        sentence = outcome(VERBS[verb], run.folder, pictures, tmp_path / "place")
        assert "gives scores that are NaN or infinite" in sentence or verb == "serve", verb


def test_a_run_of_a_graphics_card_is_used_where_there_is_none(
    finished: Run,
    begun: Run,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    large_count: Callable[[int, int], int],
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    for device in ("cuda:3", "mps", "cuda")[: large_count(2, 3)]:
        run = copied(finished, tmp_path / device / "finished")
        settings = run.settings() | {"device": device, "hardware": None}
        run.training.write_text(json.dumps(settings))
        for verb in ("predict", "evaluate", "export", "serve", "look")[: large_count(5 * (device == "mps"), 5)]:
            assert not outcome(VERBS[verb], run.folder, pictures, tmp_path / "place"), verb
        assert device in (svertka.export(run, tmp_path / device / "folder").path / "README.md").read_text()
        stopped = copied(begun, tmp_path / device / "begun")
        settings = stopped.settings() | {"device": device}
        stopped.training.write_text(json.dumps(settings))
        assert svertka.resume(stopped).result()["epochs"] == 2
        why = "svertka no longer supports" if device == "mps" else "is not on this machine"
        said = capsys.readouterr().err
        assert f"was started on {device}, which {why}; it continues on cpu" in said
        assert device != "mps" or "train again: svertka train" in said
