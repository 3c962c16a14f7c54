"""Data sets that are renamed and archived: nothing is lost, and the next server finds them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svertka.errors import RunError, UsageError
from svertka.files import lock_descriptor
from svertka.run import Run
from svertka.studio.data_set_list import DataSetList
from svertka.studio.run_list import RunList
from svertka.studio.training_process import TrainingProcesses


@pytest.fixture
def data_sets(tmp_path: Path, make_run: Callable[..., Run], photos: Path) -> DataSetList:
    """The list beside a run on `photos` and one on something else."""
    runs = RunList(tmp_path / "runs")
    for name, source in (("photos-1", photos), ("other-1", tmp_path / "other")):
        run = make_run(runs.folder, name, finished=False)
        run.training.write_text(json.dumps(run.settings() | {"source": str(source)}))
    return DataSetList(runs, TrainingProcesses(runs))


def test_a_renamed_data_set_keeps_its_decisions_and_its_runs(data_sets: DataSetList, photos: Path) -> None:
    (photos.parent / "photos.confirmed.json").write_text('{"cat/0.jpg": "cat"}')
    to = data_sets.rename(photos, "pets")
    assert to == photos.parent / "pets"
    assert (to / "cat" / "0.jpg").exists()
    assert (photos.parent / "pets.confirmed.json").read_text() == '{"cat/0.jpg": "cat"}'
    sources = {name: Run(photos.parent / "runs" / name).settings()["source"] for name in ("photos-1", "other-1")}
    assert sources == {"photos-1": str(to), "other-1": str(photos.parent / "other")}
    assert data_sets.place(photos) == to
    again = data_sets.rename(to, "animals")
    assert data_sets.place(photos) == again
    assert set(data_sets.former_places(again)) == {photos, to}
    assert data_sets.rename(again, "photos") == photos
    assert data_sets.place(photos) == photos


def test_what_cannot_be_renamed_stays(data_sets: DataSetList, photos: Path) -> None:
    (photos.parent / "taken").mkdir()
    for name, sentence in (("taken", "choose another name"), ("../x", "cannot be the name"), ("", "needs a name")):
        with pytest.raises(UsageError, match=sentence):
            data_sets.rename(photos, name)
    for name in ("old", "v1.2"):
        (photos.parent / f"{name}.confirmed.json").write_text("{}")
        with pytest.raises(UsageError, match="holds decisions on other labels"):
            data_sets.rename(photos, name)
    lock = Run(photos.parent / "runs" / "photos-1").lock
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
    assert lock_descriptor(descriptor)
    lock.write_text(json.dumps({"process": os.getpid(), "host": os.uname().nodename}))
    with pytest.raises(RunError, match="a training reads photos"):
        data_sets.rename(photos, "pets")
    os.close(descriptor)
    assert photos.exists()


@pytest.fixture
def two(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """`two()`: a client of a new studio on `photos` and `birds`, whose paths are relative to the pages of `photos`."""
    test_client = pytest.importorskip("starlette.testclient").TestClient
    from svertka.serving.access_control import LOOPBACK
    from svertka.studio.app import StudioApp

    monkeypatch.chdir(tmp_path)

    def start() -> Any:
        app = StudioApp([photos, "birds"], hosts=LOOPBACK, token=None, threads=1)
        return test_client(app.asgi, base_url=f"http://127.0.0.1/{app.workspaces[0].key}/")

    return start


def test_the_archive_and_new_names_outlive_the_server(two: Callable[[], Any], tmp_path: Path) -> None:
    with two() as client:
        assert client.post("rename-data-set", data={"to": "pets"}).headers["HX-Refresh"] == "true"
        assert client.get("images", params={"label": "cat"}).json()["images"][0][0] == "0.jpg"
        assert client.post("archive-data-set").headers["HX-Redirect"] == "../birds/collect"
        assert "pets</bdi></a>" not in client.get("../birds/collect").text
        assert client.post("../birds/archive-data-set").status_code == 409  # the only one
    with two() as client:
        assert (tmp_path / "pets" / "cat" / "0.jpg").exists()
        assert not (tmp_path / "photos").exists()
        page = client.get("../birds/collect").text
        assert "pets</bdi>, archived" in page
        assert client.get("http://127.0.0.1/", follow_redirects=False).headers["location"] == "birds/collect"
        assert client.post("restore-data-set", data={"data_set": "pets"}).status_code == 200
        assert "pets</bdi></a>" in client.get("../birds/collect").text
        assert client.post("restore-data-set", data={"data_set": "x"}).status_code == 404


def test_pictures_in_deeper_folders_are_mentioned(client: Any, photos: Path) -> None:
    (photos / "train" / "cat").mkdir(parents=True)
    (photos / "cat" / "0.jpg").rename(photos / "train" / "cat" / "0.jpg")
    assert (
        "1\u00a0picture of this folder is not shown, such as <bdi>train/cat/0.jpg</bdi>" in client.get("collect").text
    )
