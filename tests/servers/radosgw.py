"""Ceph's object gateway with one monitor, one manager and one OSD in memory: a real S3 server on loopback.

About 12 s to start and 550 MB. It checks credentials, signatures and Content-MD5 and has versioning and Object
Lock; it knows no x-amz-checksum-*, and If-None-Match only on plain puts. No cephx inside: it serves one test run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator

from tests.servers.endpoints import S3Endpoint
from tests.servers.processes import answers, free_port, need, servers

ACCESS_KEY, SECRET_KEY = "test", "testtest"
DAILY = "daily"
"""Another user, who may do nothing but what the policy of a bucket allows: an appliance's daily credential."""
DAILY_SECRET_KEY = "dailydaily"

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv4 = true
keyring = {root}/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = {capacity_bytes}
mon allow pool size one = true
mon data avail crit = 1
mgr initial modules =
mon data = {root}/mon
mgr data = {root}/mgr
osd data = {root}/osd
run dir = {root}/run
log file = {root}/log/$name.log
admin socket = {root}/run/$name.asok
pid file = {root}/run/$name.pid
debug mon = 0/0
debug paxos = 0/0
debug ms = 0/0
debug osd = 0/0
debug memstore = 0/0
debug rgw = 0/0
debug objclass = 0/0
ms crc data = false
[client.rgw.a]
# Deleted objects give their memory back in seconds instead of hours: a full OSD answers nothing at all.
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw data = {root}/rgw
rgw enable usage log = false
rgw enable ops log = false
rgw gc obj min wait = 2
rgw gc processor period = 2
rgw gc processor max time = 2
"""

_CAPABILITIES = {
    "mon.": ("mon", "allow *"),
    "client.admin": ("mon", "allow *", "osd", "allow *", "mgr", "allow *"),
    "mgr.x": ("mon", "allow profile mgr", "osd", "allow *", "mds", "allow *"),
    "osd.0": ("mon", "allow profile osd", "mgr", "allow profile osd", "osd", "allow *"),
    "client.rgw.a": ("mon", "allow rw", "osd", "allow rwx", "mgr", "allow rw"),
}


@contextlib.contextmanager
def radosgw(capacity_bytes: int = 6 << 30) -> Iterator[S3Endpoint]:
    """A fresh cluster; *capacity_bytes* is how much it takes into memory at most."""
    need(
        ("ceph", "ceph-mon", "ceph-mgr", "ceph-osd", "ceph-authtool", "monmaptool", "radosgw", "radosgw-admin"),
        "radosgw ceph-mon ceph-mgr ceph-osd ceph-common",
    )
    root = tempfile.mkdtemp(prefix="vnafs-rgw-")  # short: the paths of its sockets are limited to 107 bytes
    try:
        yield from _cluster(root, capacity_bytes)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _cluster(root: str, capacity_bytes: int) -> Iterator[S3Endpoint]:
    for directory in ("mon", "mgr", "osd", "run", "log", "rgw"):
        os.mkdir(f"{root}/{directory}")
    fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
    v1, v2, port = free_port(), free_port(), free_port()
    configuration = f"{root}/ceph.conf"
    with open(configuration, "w") as file:
        file.write(_CONFIGURATION.format(fsid=fsid, root=root, v1=v1, v2=v2, port=port, capacity_bytes=capacity_bytes))
    chosen = ("-c", configuration)
    with servers(root, {**os.environ, "CEPH_CONF": configuration}) as running:
        address = f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]"
        running.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, f"{root}/monmap")
        # Every key goes into the monitor at its birth: no `ceph auth` afterwards, each of which costs a second.
        for entity, capabilities in _CAPABILITIES.items():
            create = ["--create-keyring"] if entity == "mon." else []
            pairs = zip(capabilities[::2], capabilities[1::2], strict=True)
            caps = [word for service, grant in pairs for word in ("--cap", service, grant)]
            running.run("ceph-authtool", *create, f"{root}/keyring", "--gen-key", "-n", entity, *caps)
        running.run("ceph-mon", *chosen, "--mkfs", "-i", "a", "--monmap", f"{root}/monmap")
        running.start("mon", "ceph-mon", *chosen, "-f", "-i", "a")
        running.start("mgr", "ceph-mgr", *chosen, "-f", "-i", "x")
        running.run("ceph", *chosen, "osd", "new", osd)
        running.run("ceph-osd", *chosen, "-i", "0", "--mkfs", "--osd-uuid", osd)
        running.start("osd", "ceph-osd", *chosen, "-f", "-i", "0")
        running.start("rgw", "radosgw", *chosen, "-f", "-n", "client.rgw.a")
        endpoint = f"http://127.0.0.1:{port}"
        running.wait("radosgw", lambda: answers(endpoint), 90)
        keys = (f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}")
        running.run("radosgw-admin", *chosen, "user", "create", "--uid=test", "--display-name=test", *keys)
        keys = (f"--access-key={DAILY}", f"--secret-key={DAILY_SECRET_KEY}")
        running.run("radosgw-admin", *chosen, "user", "create", f"--uid={DAILY}", f"--display-name={DAILY}", *keys)
        yield S3Endpoint("radosgw", endpoint, ACCESS_KEY, SECRET_KEY)
