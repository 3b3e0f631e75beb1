"""moto: the breadth of the S3 API in memory, but it checks neither credentials nor checksums."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

from tests.servers.endpoints import S3Endpoint
from tests.servers.processes import Servers, answers, free_port, servers

ACCESS_KEY, SECRET_KEY = "test", "testtest"


@contextlib.contextmanager
def moto() -> Iterator[S3Endpoint]:
    """A fresh server in a process of its own, so that it takes no turns of the test's interpreter."""
    with moto_servers() as (_running, endpoint):
        yield endpoint


@contextlib.contextmanager
def moto_servers() -> Iterator[tuple[Servers, S3Endpoint]]:
    """The same, with its process, for a test that wants to kill it."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="vnafs-moto-") as root, servers(root) as running:
        program = os.path.join(os.path.dirname(sys.executable), "moto_server")
        running.start("moto", sys.executable, program, "-H", "127.0.0.1", "-p", str(port))
        url = f"http://127.0.0.1:{port}"
        running.wait("moto", lambda: answers(f"{url}/moto-api/"), 60)
        yield running, S3Endpoint("moto", url, ACCESS_KEY, SECRET_KEY)
