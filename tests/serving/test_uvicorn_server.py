"""What the server asks of the system."""

import pytest

from fork_server import SERVING, run_python

pytest.importorskip("uvicorn")
resource = pytest.importorskip("resource")


def test_as_many_connections_as_it_takes_can_be_open() -> None:
    code = (
        "import resource; from svertka.serving import uvicorn_server as server;"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard));"
        "server._raise_file_limit(100); before = resource.getrlimit(resource.RLIMIT_NOFILE)[0];"
        "server._raise_file_limit(2000); print(before, resource.getrlimit(resource.RLIMIT_NOFILE)[0], hard)"
    )
    done = run_python(["-c", code], modules=SERVING, text=True, check=True)
    before, after, hard = map(int, done.stdout.split())
    assert before == 256
    assert after == (2000 if hard < 0 else min(2000, hard))
