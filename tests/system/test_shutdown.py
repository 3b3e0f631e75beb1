"""Stopping tierd while targets hang: it ends in seconds, and what it knew is whole."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.system.archives import an_archive, until
from tests.system.load import noise

pytestmark = pytest.mark.system

SETTINGS = """
[file_system]
quiet_seconds = 0.2

[spool]
reserve_bytes = 1048576
high_watermark_percent = 99.0
low_watermark_percent = 98.0

[packs]
age_seconds_max = 0.3
"""
STOP_SECONDS_MAX = 10.0
KEYS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "something"}


class Silent:
    """A server that takes every connection and never says a word."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.taken: list[socket.socket] = []
        threading.Thread(target=self._take, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.taken.append(self._listener.accept()[0])

    def close(self) -> None:
        self._listener.close()
        for connection in self.taken:
            connection.close()


@pytest.fixture
def silent() -> Iterator[list[Silent]]:
    servers = [Silent(), Silent()]
    yield servers
    for server in servers:
        server.close()


def test_two_targets_that_hang_delay_the_end_of_tierd_by_seconds_only(tmp_path, silent):
    targets = {f"hangs-{n}": f"s3://bucket/{n}?endpoint={server.url}&region=r" for n, server in enumerate(silent)}
    targets["good"] = f"file://{tmp_path}/good"
    with an_archive(tmp_path, targets, environ=KEYS, settings=SETTINGS, serve=False) as archive:
        mount = archive.start("mount")
        tierd = archive.start("tierd")
        files = {archive.share / f"{n}": noise(n, 50_000) for n in range(20)}
        for path, data in files.items():
            path.write_bytes(data)
        archive.wait(copies=1, seconds=60)
        until(lambda: all(server.taken for server in silent), "both are being asked", 30)
        began = time.monotonic()
        tierd.send_signal(signal.SIGTERM)
        assert tierd.wait(60) == 0, archive.tail()
        assert time.monotonic() - began < STOP_SECONDS_MAX
        assert mount.poll() is None

        archive.start("tierd")
        archive.wait(copies=1, seconds=60)
        for path, data in files.items():
            assert path.read_bytes() == data
        assert archive.vna("status")["contents"] == len(files)
