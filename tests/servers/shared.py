"""One server for all who want it at the same time: the workers of one run, and runs that follow each other closely.

Whoever comes first starts a keeper, a process that runs the server. Every user holds a shared lock on a file of
the keeper, which the kernel lets go when the user dies, however it dies. The keeper ends the server once it gets
that lock for itself. So nothing is counted, and nothing is left behind.

    python -m tests.servers.shared radosgw azurite -- COMMAND…

runs COMMAND with servers held from before it to after it: several test runs in a row then start each one once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import IO

from tests.servers.azurite import azurite
from tests.servers.endpoints import AzureEndpoint, S3Endpoint
from tests.servers.moto import moto
from tests.servers.processes import ServerFailed
from tests.servers.radosgw import radosgw

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
STATE = os.path.join(ROOT, ".cache", "servers")
KINDS: dict[str, Callable[[], contextlib.AbstractContextManager[S3Endpoint | AzureEndpoint]]] = {
    "radosgw": radosgw,
    "azurite": azurite,
    "moto": moto,
}
READY_SECONDS_MAX = 180


@contextlib.contextmanager
def shared(kind: str) -> Iterator[S3Endpoint | AzureEndpoint]:
    """The server of *kind* that everybody uses. Give each test a bucket or container of its own."""
    os.makedirs(STATE, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with open(os.path.join(STATE, f"{kind}.lock"), "w") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            users, endpoint = _join(kind) or _start(kind)
            stack.enter_context(users)
        yield endpoint


def _join(kind: str) -> tuple[IO[str], S3Endpoint | AzureEndpoint] | None:
    """Become a user of the keeper that runs, if one does and has not decided to end."""
    try:
        with open(os.path.join(STATE, f"{kind}.json")) as file:
            found = json.load(file)
        users = open(os.path.join(found["directory"], "users"))  # noqa: SIM115  # its lock is held by the caller
    except (OSError, ValueError):
        return None
    try:
        fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.kill(found["keeper"], 0)
    except OSError:
        users.close()
        return None
    return users, _endpoint(found["endpoint"])


def _start(kind: str) -> tuple[IO[str], S3Endpoint | AzureEndpoint]:
    directory = tempfile.mkdtemp(prefix=f"vnafs-{kind}-")
    path = os.path.join(directory, "users")
    open(path, "w").close()
    users = open(path)  # noqa: SIM115  # its lock is held by the caller
    fcntl.flock(users, fcntl.LOCK_SH)
    with open(os.path.join(directory, "keeper.out"), "w") as errors:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.shared", "--keep", kind, directory],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # it outlives the worker that was first
            text=True,
        )
    assert keeper.stdout is not None
    line = keeper.stdout.readline()
    if not line:
        users.close()
        keeper.wait()
        with open(os.path.join(directory, "keeper.out")) as errors:
            why = errors.read()[-4000:]
        shutil.rmtree(directory, ignore_errors=True)
        raise ServerFailed(f"{kind} did not start:\n{why}")
    keeper.stdout.close()
    endpoint = json.loads(line)
    fresh = os.path.join(STATE, f"{kind}.json")
    with open(f"{fresh}.new", "w") as file:
        json.dump({"directory": directory, "keeper": keeper.pid, "endpoint": endpoint}, file)
    os.rename(f"{fresh}.new", fresh)
    return users, _endpoint(endpoint)


def _endpoint(fields: dict[str, str]) -> S3Endpoint | AzureEndpoint:
    return AzureEndpoint(**fields) if "account" in fields else S3Endpoint(**fields)


def _keep(kind: str, directory: str) -> None:
    """Run the server until nobody uses it."""
    try:
        with KINDS[kind]() as endpoint, open(os.path.join(directory, "users")) as users:
            sys.stdout.write(json.dumps(dataclasses.asdict(endpoint)) + "\n")
            sys.stdout.flush()
            fcntl.flock(users, fcntl.LOCK_EX)
    except ServerFailed as error:
        sys.exit(str(error))
    shutil.rmtree(directory, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """The command line; see the module."""
    if arguments[:1] == ["--keep"]:
        _keep(arguments[1], arguments[2])
        return 0
    if "--" not in arguments or not arguments[arguments.index("--") + 1 :]:
        sys.exit("usage: python -m tests.servers.shared KIND… -- COMMAND…")
    cut = arguments.index("--")
    with contextlib.ExitStack() as stack:
        for kind in arguments[:cut]:
            stack.enter_context(shared(kind))
        return subprocess.run(arguments[cut + 1 :], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
