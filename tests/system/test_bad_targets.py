"""Two targets, one of which has a bad day: the other one and whoever writes never notice, what it says wrong is never
served, and it catches up by itself once it is well.

The good one is a directory; the bad one a real server behind a proxy that does what networks do.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time

import pytest

from tests.servers.fixtures import azurite_server, moto_server  # noqa: F401 - fixtures work by name
from tests.servers.proxy import Fault, Proxy
from tests.system.archives import an_archive, until
from tests.system.load import Daemons, noise, objects

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
target_bytes = 1048576
"""
ALWAYS = 100_000
UNNOTICED_SECONDS = 5.0
"""A healthy target has its copies by then: quiet time, a pack's age and a busy machine. Far below any time-out."""
PERSISTENT = {
    "403": Fault(answer=403, code="AccessDenied", times=ALWAYS),
    "429": Fault(answer=429, code="SlowDown", headers=(("Retry-After", "1"),), times=ALWAYS),
    "500": Fault(answer=500, code="InternalError", times=ALWAYS),
    "503": Fault(answer=503, code="ServiceUnavailable", times=ALWAYS),
    "slow": Fault(delay_seconds=8, times=ALWAYS),
    "cuts what it is sent": Fault(method="PUT", cut_request_at=5_000, times=ALWAYS),
    "cuts what it sends": Fault(method="GET", cut_reply_at=5_000, times=ALWAYS),
    "garbles what it is sent": Fault(method="PUT", corrupt_request_at=5_000, times=ALWAYS),
    "garbles what it sends": Fault(method="GET", corrupt_reply_at=5_000, times=ALWAYS),
}
PASSING = {
    "loses replies": Fault(method="PUT", drop_reply=True, times=3),
    "loses replies to reads": Fault(method="GET", drop_reply=True, times=3),
    "garbles one byte": Fault(method="GET", corrupt_reply_at=20_000),
}


class Site:
    """An archive on a bad target and a good one, asked in that order."""

    def __init__(self, folder, endpoint, stack, bucket, upstream):
        self.endpoint = endpoint
        self.bucket = bucket
        self.upstream = upstream
        self.proxy = Proxy(upstream)
        stack.callback(lambda: self.proxy.close())  # noqa: PLW0108 - whichever there is by then
        targets = {"bad": endpoint.target_url(bucket, url=self.proxy.url), "good": f"file://{folder}/good"}
        self.good = folder / "good"
        self.archive = stack.enter_context(
            an_archive(folder, targets, environ=endpoint.environ(), settings=SETTINGS, serve=False)
        )
        self.archive.start("mount")
        self.archive.start("tierd")
        self.ask = Daemons(self.archive)
        stack.callback(self.ask.close)
        self.ask.mount.call("repository.set", name="archive", copies_min=1)
        self.serial = 0
        self.written: dict = {}
        self.write(2)
        self.wait(2)  # both were probed while they were well

    def write(self, count, size=40_000):
        """Write files; the longest that one took, in seconds."""
        longest = 0.0
        for _ in range(count):
            self.serial += 1
            path = self.archive.share / f"{self.serial}"
            data = self.written[path] = noise(self.serial, size + self.serial)
            begin = time.monotonic()
            path.write_bytes(data)
            longest = max(longest, time.monotonic() - begin)
        return longest

    def wait(self, copies, seconds=40.0):
        begin = time.monotonic()
        until(lambda: self.ask.all_done(copies), f"{copies} copies\n{self.archive.tail()}", seconds)
        return time.monotonic() - begin

    def health(self, name):
        return next(row for row in self.ask.tierd.call("targets.status") if row["name"] == name)

    def stored(self):
        """What is really on the bad target: name to SHA-256."""
        client = self.endpoint.client()
        found = {}
        for row in client.list_objects_v2(Bucket=self.bucket).get("Contents", []):
            if row["Key"].endswith(".pack"):
                body = client.get_object(Bucket=self.bucket, Key=row["Key"])["Body"].read()
                found[row["Key"]] = hashlib.sha256(body).hexdigest()
        return found

    def good_ones(self):
        return {name: hashlib.sha256((self.good / name).read_bytes()).hexdigest() for name in objects(self.good)}

    def forget_local_bytes(self, paths=None):
        paths = paths or list(self.written)
        self.ask.evict_all(*paths)
        for entry in os.scandir(self.archive.archive / "cache"):
            os.unlink(entry.path)

    def read_all(self):
        for path, data in self.written.items():
            assert path.read_bytes() == data, path.name


@pytest.fixture(scope="module")
def site(tmp_path_factory, moto_server):  # noqa: F811
    with contextlib.ExitStack() as stack:
        bucket = moto_server.make_bucket()
        yield Site(tmp_path_factory.mktemp("site"), moto_server, stack, bucket, moto_server.url)


@pytest.fixture(autouse=True)
def _well_again(request):
    yield
    if "site" in request.fixturenames:
        request.getfixturevalue("site").proxy.forgive()


@pytest.mark.parametrize("fault", PERSISTENT, ids=lambda name: name.replace(" ", "-"))
def test_neither_writers_nor_the_other_target_notice_and_it_catches_up(fault, site):
    site.proxy.script(PERSISTENT[fault])
    slowest_write = site.write(4)
    assert site.wait(1) < UNNOTICED_SECONDS
    # also later, when it is known to be bad
    time.sleep(1)
    slowest_write = max(slowest_write, site.write(4))
    assert site.wait(1) < UNNOTICED_SECONDS
    assert slowest_write < 1
    assert site.proxy.waiting < ALWAYS, "the fault was never met"
    site.proxy.forgive()
    site.wait(2)
    assert site.stored() == site.good_ones()
    assert site.health("bad")["reachable"]


@pytest.mark.parametrize("fault", PASSING, ids=lambda name: name.replace(" ", "-"))
def test_a_passing_fault_leaves_one_right_copy_of_each_pack(fault, site):
    site.proxy.script(PASSING[fault])
    site.write(6)
    site.wait(2)
    assert site.proxy.waiting < PASSING[fault].times, "the fault was never met"
    site.proxy.forgive()
    assert site.stored() == site.good_ones()


def test_a_target_that_is_down_says_so_and_catches_up(site):
    port = site.proxy.port
    site.proxy.close()
    site.write(4)
    assert site.wait(1) < UNNOTICED_SECONDS
    until(lambda: not site.health("bad")["reachable"], "the status says that it is down")
    assert site.health("good")["reachable"]
    # a reader is not kept waiting for what is known to be down
    site.forget_local_bytes()
    begin = time.monotonic()
    site.read_all()
    assert time.monotonic() - begin < 10
    site.proxy = Proxy(site.upstream, port=port)
    site.wait(2)
    until(lambda: site.health("bad")["reachable"], "the status says that it is back")
    assert site.stored() == site.good_ones()


def test_wrong_bytes_are_never_served(site):
    site.write(4)
    site.wait(2)
    site.forget_local_bytes()
    for offset in (100, 20_000):
        site.proxy.script(Fault(method="GET", corrupt_reply_at=offset, times=ALWAYS))
    site.read_all()
    assert site.proxy.waiting < 2 * ALWAYS, "the bad target was never asked"


def test_wrong_bytes_are_never_served_even_where_there_are_no_others(site):
    site.write(4)
    site.wait(2)
    newest = list(site.written)[-4:]
    site.forget_local_bytes(newest)
    site.proxy.script(*(Fault(method="GET", corrupt_reply_at=offset, times=ALWAYS) for offset in (100, 300)))
    away = site.good.with_name("away")
    site.good.rename(away)
    try:
        for path in newest:
            with pytest.raises(OSError, match="Input/output"):
                path.read_bytes()
    finally:
        shutil.rmtree(site.good, ignore_errors=True)
        away.rename(site.good)
        site.proxy.forgive()
    site.read_all()


def test_a_copy_that_rots_is_found_not_served_and_put_again(site):
    site.write(4)
    site.wait(2)
    name = sorted(site.good_ones())[-1]
    rotten = site.good / name
    os.chmod(rotten, 0o600)
    data = bytearray(rotten.read_bytes())
    data[len(data) // 2] ^= 0xFF
    rotten.write_bytes(data)
    assert site.archive.vna("verify", check=4)["damaged"][0]["target"] == "good"
    site.wait(2)
    assert site.stored() == site.good_ones()
    # and one that was cut short, which a new object of its size could not replace
    rotten.write_bytes(rotten.read_bytes()[:-10])
    assert site.archive.vna("verify", check=4)["damaged"]
    site.wait(2)
    assert site.stored() == site.good_ones()


def test_azure_loses_replies_cuts_and_refuses(tmp_path, azurite_server):  # noqa: F811
    endpoint = azurite_server
    with contextlib.ExitStack() as stack:
        container = endpoint.make_container()
        site = Site(tmp_path, endpoint, stack, container, endpoint.url)
        for fault in (
            Fault(method="PUT", drop_reply=True, times=3),
            Fault(method="PUT", cut_request_at=5_000, times=3),
            Fault(answer=503, code="ServerBusy", times=6),
            Fault(answer=403, code="AuthorizationFailure", times=3),
            Fault(method="GET", corrupt_reply_at=5_000, times=1),
        ):
            site.proxy.script(fault)
            site.write(4)
            assert site.wait(1) < UNNOTICED_SECONDS
            site.wait(2)
        site.forget_local_bytes()
        shutil.rmtree(site.good)
        site.read_all()
