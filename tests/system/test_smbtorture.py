"""Samba's own judge finds in a share of ours what it finds on the disk below: a sample, `make soak` has all of smb2."""

from __future__ import annotations

import concurrent.futures
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.smbtorture import SUCCESS, Pair, known_tests, pairs
from tests.system.mounts import ENGINES

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("smbtorture")]

SAMPLE = {
    "smb2.acls": ("CREATOR", "DYNAMIC", "OWNER-RIGHTS"),
    "smb2.create": ("open", "leading-slash", "impersonation"),
    "smb2.delete-on-close-perms": ("OVERWRITE_IF", "CREATE", "FIND_and_set_DOC"),
    "smb2.dir": ("sorted",),
    "smb2.lock": ("rw-shared", "async", "contend"),
    "smb2.rename": ("simple", "msword", "rename_dir_openfile"),
    "smb2.rw": ("rw1", "rw2"),
    "smb2.streams": ("dir", "rename", "delete", "sharemodes"),
    "smb2.timestamps": ("test_close_not_attrib", "freeze-thaw", "delayed-write-vs-setbasic"),
    "smb2.durable-open": ("reopen1",),
    "smb2.lease": ("request",),
    "smb2.ioctl": ("sparse_file_flag", "copy_chunk_simple", "trim_simple"),
}


@pytest.fixture(scope="module", params=ENGINES)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="torture") as folder:
        Path(folder).chmod(0o755)  # pytest's own folders keep everybody else out
        with pairs(Path(folder), str(request.param)) as (_, [found]):
            yield found


@pytest.mark.parametrize("suite", SAMPLE)
def test_what_passes_on_the_disk_passes_in_a_share_of_ours(pair: Pair, suite: str) -> None:
    judged, known = 0, known_tests(suite)
    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        for name in SAMPLE[suite]:
            test = f"{suite}.{name}"
            assert test in known
            future = beside.submit(pair.disk.torture, test)
            ours, disk = pair.ours.torture(test), future.result()
            if disk.result == SUCCESS:
                assert ours.result == SUCCESS, ours.said[-3000:]
                judged += 1
    assert judged, "the disk passes none of them"
