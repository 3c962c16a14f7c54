"""Requests to servers that do not answer."""

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from svertka.data import shard_storage
from svertka.errors import DataError, UsageError


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


def test_a_certificate_that_is_not_trusted_is_said() -> None:
    untrusted = type("ClientConnectorCertificateError", (Exception,), {"__module__": "aiohttp.client_exceptions"})

    def fail() -> int:  # as fsspec does
        raise FileNotFoundError("https://localhost/a.tar") from untrusted("self-signed certificate")

    system = MemoryFileSystem(skip_instance_cache=True, name="another server")
    with pytest.raises(DataError, match="the certificate of its server is not trusted; set SSL_CERT_FILE"):
        shard_storage.retry(fail, "a.tar", system)


def test_braces_inside_braces_are_refused() -> None:
    with pytest.raises(UsageError, match="has braces inside braces"):
        shard_storage.expand_braces("{train-{0..4},val-{0..1}}.tar")
    assert shard_storage.expand_braces("a{0..1}{x,y}.tar") == ["a0x.tar", "a0y.tar", "a1x.tar", "a1y.tar"]
