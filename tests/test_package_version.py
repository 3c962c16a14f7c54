from importlib import metadata

import pytest

import svertka
from svertka.package_version import VERSION
from svertka.training.config import get_versions


def test_the_version_is_that_of_the_installed_package() -> None:
    assert svertka.__version__ == VERSION == metadata.version("svertka")


def test_a_training_records_the_version_where_svertka_has_no_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata.Distribution, "from_name", find_none)
    assert get_versions()["svertka"] == VERSION
