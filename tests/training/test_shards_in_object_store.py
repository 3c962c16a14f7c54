"""Training on shards in an S3 store that goes away, refuses or is damaged: retried, or ended with one sentence."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import svertka
from range_server import RangeServer, serving
from svertka.cli.app import main
from svertka.data import shard_cache, shard_storage
from svertka.data.shard import shard
from svertka.errors import DataError
from svertka.run import Run
from svertka.training import run_recorder, training_loop

OPTIONS = {"model": "mlp", "size": 8, "epochs": 2, "batch_size": 16, "threads": 1}
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAHIDDENKEY",
    "AWS_SECRET_ACCESS_KEY": "hiddensecretvalue",
    "AWS_SESSION_TOKEN": "hiddentoken",
}


@pytest.fixture(scope="module")
def original(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bucket") / "digits"
    shard(digit_folder, folder, val=0.2, test=0.2, shard_size=0.05, threads=1)
    return folder


@pytest.fixture
def bucket(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shards in a bucket, with small blocks and short waits."""
    store = pytest.importorskip("s3fs").S3FileSystem
    store.clear_instance_cache()
    monkeypatch.setattr(store, "retries", 1)  # svertka's own are tested
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name, value in SECRETS.items() | {
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("XDG_CACHE_HOME", str(tmp_path / "cache")),
    }:
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(shard_cache, "BLOCK", 4096)
    monkeypatch.setattr(shard_storage, "FIRST_WAIT", 0.02)
    monkeypatch.setitem(shard_storage._reported, "until", 0.0)
    return Path(shutil.copytree(original, tmp_path / "web" / "digits"))


@pytest.fixture
def server(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    with serving(bucket.parent) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        yield found


def record_batches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Record the images of each step."""
    seen: list[list[int]] = []
    step = training_loop.take_step

    def counted(network, optimizer, batch, *rest):
        seen.append(sorted(batch.indices.tolist()))
        return step(network, optimizer, batch, *rest)

    monkeypatch.setattr(training_loop, "take_step", counted)
    return seen


def check_epochs(seen: list[list[int]], run: Run) -> None:
    """Check that each epoch has each training image once; the first steps may be those that are timed."""
    count = run.settings()["parts"]["train"]
    steps = -(-count // OPTIONS["batch_size"])
    images = [index for batch in seen[-2 * steps :] for index in batch]
    assert len(images) == 2 * count
    for epoch in (images[:count], images[count:]):
        assert len(set(epoch)) == count


def test_a_training_waits_for_a_store_that_is_away(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = record_batches(monkeypatch)
    back = threading.Timer(0.5, lambda: setattr(server, "is_away", False))

    def go_away(path: str, number: int) -> int | None:
        if ".tar" in path and number > 12 and back.ident is None:
            server.is_away = True
            back.start()
            return 500
        return None

    server.fault = go_away
    run = svertka.train("s3://digits", output=tmp_path / "run", **OPTIONS)
    assert back.ident is not None  # it was away
    check_epochs(seen, run)


def test_a_store_that_stays_away_ends_the_training_which_resumes(
    bucket: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = record_batches(monkeypatch)
    monkeypatch.setattr(shard_storage, "PATIENCE", 0.1)
    stops: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(run_recorder.Recorder, "wants_stop", lambda self: stops.append(1) or len(stops) == 3)
        with pytest.raises(svertka.SvertkaError, match="continue with"):
            svertka.train("s3://digits", output=tmp_path / "run", **OPTIONS)
    shutil.rmtree(tmp_path / "cache")
    for status, sentence in (
        (503, "cannot be read .*check the connection and start again"),
        (403, "may not be read: access is denied .403.; check the credentials"),
    ):
        server.fault = lambda path, number, status=status: status if ".tar" in path else None
        with pytest.raises(DataError, match=sentence):
            svertka.resume(tmp_path / "run")
    path = bucket / "train-000000.tar"
    content = path.read_bytes()
    path.write_bytes(content[:6000])
    server.fault = lambda path, number: None
    with pytest.raises(DataError, match=r"train-000000.tar (ends at byte|cannot be read)"):
        svertka.resume(tmp_path / "run")
    path.write_bytes(content)
    check_epochs(seen, svertka.resume(tmp_path / "run"))


def test_missing_credentials_are_a_sentence(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in SECRETS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(DataError, match="needs credentials, and the environment has none; set AWS_ACCESS_KEY_ID"):
        svertka.train("s3://digits", output=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()


def test_a_full_cache_disk_costs_nothing_but_requests(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = record_batches(monkeypatch)
    monkeypatch.setattr(shard_cache, "BLOCK", 2**16)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_cache.tempfile, "NamedTemporaryFile", full)
    check_epochs(seen, svertka.train("s3://digits", output=tmp_path / "run", **OPTIONS))
    assert capsys.readouterr().err.count("shards are not cached on the disk (no space left on device)") == 1


def test_credentials_are_in_no_file_and_no_message(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    assert main(["train", "s3://digits", "--output", str(tmp_path / "run"), "--tensorboard", *options]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "s3://digits", "--output", str(tmp_path / "e.html")]) == 0
    assert main(["train", "s3://AKIAHIDDENKEY:hiddensecretvalue@digits", "--model", "mlp"]) == 2
    assert main(["train", "s3://nothing", "--model", "mlp"]) == 1
    server.fault = lambda path, number: 403
    monkeypatch.setenv("SVERTKA_TRACEBACK", "0")
    assert main(["check", "s3://digits"]) == 1
    said = capfd.readouterr()
    files = [path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "web" not in path.parents]
    assert any(path.name == "training.json" for path in files)
    assert any(path.parent.name == "0" for path in files)  # blocks of the cache
    written = [said.out.encode(), said.err.encode(), *(path.read_bytes() for path in files)]
    for secret in SECRETS.values():
        assert not any(secret.encode() in content for content in written)
