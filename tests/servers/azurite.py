"""Azurite, Microsoft's emulator of Azure Storage: real protocol, real signatures, Content-MD5 checked.

It comes from npm once, into `.cache/azurite` of the checkout.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator

from tests.servers.endpoints import AzureEndpoint
from tests.servers.processes import ServerFailed, Servers, answers, free_port, need, servers

VERSION = "3.37.0"
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Public: the emulator's documentation gives both."""

CACHE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), ".cache", "azurite")


def program() -> str:
    """The path of azurite-blob; installs it when it is not there yet."""
    path = os.path.join(CACHE, VERSION, "node_modules", ".bin", "azurite-blob")
    if os.path.exists(path):
        return path
    need(("node", "npm"), "nodejs npm")
    os.makedirs(CACHE, exist_ok=True)
    with open(os.path.join(CACHE, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers of one run want it at the same moment
        if os.path.exists(path):
            return path
        with tempfile.TemporaryDirectory(dir=CACHE) as fresh:
            command = ["npm", "install", "--prefix", fresh, "--no-save", "--no-audit", "--no-fund"]
            done = subprocess.run(
                [*command, f"azurite@{VERSION}"], cwd=fresh, capture_output=True, text=True, timeout=600, check=False
            )
            if done.returncode:
                raise ServerFailed(f"azurite could not be installed with npm:\n{done.stderr[-2000:]}")
            os.makedirs(os.path.join(CACHE, VERSION), exist_ok=True)
            os.rename(os.path.join(fresh, "node_modules"), os.path.join(CACHE, VERSION, "node_modules"))
    return path


@contextlib.contextmanager
def azurite(*, in_memory: bool = False) -> Iterator[AzureEndpoint]:
    """A fresh emulator."""
    with azurite_servers(in_memory=in_memory) as (_running, endpoint):
        yield endpoint


@contextlib.contextmanager
def azurite_servers(*, in_memory: bool = False) -> Iterator[tuple[Servers, AzureEndpoint]]:
    """The same, with its process, for a test that wants to kill it."""
    need(("node", "setpriv"), "nodejs util-linux")
    path = program()
    with tempfile.TemporaryDirectory(prefix="vnafs-azurite-") as root, servers(root) as running:
        port = free_port()
        storage = ["--inMemoryPersistence"] if in_memory else ["--location", root]
        flags = ["--disableTelemetry", "--skipApiVersionCheck", "--silent", "--blobHost", "127.0.0.1"]
        running.start("azurite", "node", path, *flags, "--blobPort", str(port), *storage)
        url = f"http://127.0.0.1:{port}"
        running.wait("azurite", lambda: answers(url), 60)
        yield running, AzureEndpoint("azurite", url, ACCOUNT, ACCOUNT_KEY)
