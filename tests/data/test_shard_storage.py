"""Requests to servers that do not answer."""

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from svertka.data import shard_storage
from svertka.errors import DataError


def test_a_server_that_has_never_answered_is_given_up_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_storage, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(shard_storage, "FIRST_PATIENCE", 0.0)
    monkeypatch.setattr(shard_storage, "PATIENCE", 0.2)
    system = MemoryFileSystem(skip_instance_cache=True, name="a server")
    tries: list[int] = []

    def fail() -> int:
        tries.append(1)
        raise TimeoutError("no answer")

    with pytest.raises(DataError, match="^the shard cannot be read .*; check the connection and start again$"):
        shard_storage.retry(fail, "the shard", system)
    assert len(tries) == 1
    assert shard_storage.retry(lambda: 5, "the shard", system) == 5
    with pytest.raises(DataError, match="check the connection"):
        shard_storage.retry(fail, "the shard", system)
    assert len(tries) > 3
