"""SEMANTICS.md, executed through a real mount: what only the kernel and several processes can show."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.mounts import ENGINES, Mount

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", params=ENGINES)
def mount(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    mount = Mount(tmp_path_factory.mktemp("mount"), "--fuse", str(request.param))
    mount.start()
    yield mount
    mount.close()


@pytest.mark.parametrize("fuse", ENGINES)
def test_p3_an_answered_write_survives_the_death_of_the_process(tmp_path: Path, fuse: str) -> None:
    mount = Mount(tmp_path, "--fuse", fuse)
    try:
        mount.start()
        descriptor = os.open(mount.root / "f", os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, b"x" * 300_000)
        mount.kill()
        written = b"x" * 300_000
        if fuse == "kernel":
            written += b"y" * os.write(descriptor, b"y")  # the kernel itself writes to the local file
            os.close(descriptor)
        else:
            with pytest.raises(OSError, match=r"not connected|aborted"):
                os.write(descriptor, b"y")
            with pytest.raises(OSError, match=r"not connected|aborted"):
                os.close(descriptor)
        mount.start()
        assert (mount.root / "f").read_bytes() == written
    finally:
        mount.close()


STRANGER = """
import os, sys
os.chdir(sys.argv[1])  # the way here is root's, what is here is not
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
def tried(call, *arguments):
    try:
        call(*arguments)
        return "done"
    except PermissionError:
        return "refused"
print(tried(open, "open"), tried(open, "secret"), tried(os.unlink, "sticky/f"), tried(os.mkdir, "closed/d"))
"""


def test_p31_the_kernel_enforces_permissions(mount: Mount) -> None:
    if os.geteuid() != 0:
        pytest.fail("this promise needs two users: run the system tests as root")
    for name, mode in (("open", 0o644), ("secret", 0o600)):
        (mount.root / name).write_bytes(b"x")
        (mount.root / name).chmod(mode)
    for name, mode in (("sticky", 0o1777), ("closed", 0o755)):
        (mount.root / name).mkdir()
        (mount.root / name).chmod(mode)
    (mount.root / "sticky" / "f").write_bytes(b"x")
    said = subprocess.run([sys.executable, "-c", STRANGER, str(mount.root)], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["done", "refused", "refused", "refused"]


def test_p33_appends_of_two_processes_are_all_there(mount: Mount) -> None:
    path = mount.root / "log"
    code = (
        "import os,sys\n"
        "f=os.open(sys.argv[1],os.O_WRONLY|os.O_APPEND|os.O_CREAT)\n"
        "for n in range(300): os.write(f,b'%s-%04d\\n'%(sys.argv[2].encode(),n))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), who]) for who in ("one", "two")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"{who}-{number:04}" for who in ("one", "two") for number in range(300))


def test_p35_stores_to_a_shared_mapping_reach_the_file(mount: Mount) -> None:
    path = mount.root / "mapped"
    path.write_bytes(bytes(10_000))
    descriptor = os.open(path, os.O_RDWR)
    mapping = mmap.mmap(descriptor, 10_000)
    os.close(descriptor)
    mapping[5000:5005] = b"hello"
    mapping.close()
    mount.restart()
    assert path.read_bytes() == bytes(5000) + b"hello" + bytes(4995)


def test_p39_devices_and_set_user_id_have_no_effect(mount: Mount) -> None:
    options = next(
        line.split()[5]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4] == str(mount.point)
    )
    assert {"nosuid", "nodev"} <= set(options.split(","))
    if os.geteuid() == 0:
        os.mknod(mount.root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        with pytest.raises(OSError, match="Permission") as refused:
            os.open(mount.root / "null", os.O_RDWR)
        assert refused.value.errno == errno.EACCES


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length))
    return 0 if done == 0 else ctypes.get_errno()


def test_p78_engines_differ_in_what_the_table_says(mount: Mount) -> None:
    is_kernel = "kernel" in mount.arguments
    path = mount.root / "island"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, 1 << 20)
    os.pwrite(descriptor, b"island", 1 << 19)
    for mode in (0, 0x01, 0x01 | 0x02, 0x10):
        assert fallocate(descriptor, mode, 0, 4096) == (0 if is_kernel else errno.EOPNOTSUPP), mode
    assert fallocate(descriptor, 0x08, 0, 4096) == errno.EOPNOTSUPP  # collapsing is refused by Linux
    assert os.lseek(descriptor, 8192, os.SEEK_DATA) == (1 << 19 if is_kernel else 8192)
    assert os.lseek(descriptor, 1 << 19, os.SEEK_HOLE) == ((1 << 19) + 4096 if is_kernel else 1 << 20)
    copy = os.open(mount.root / "copy", os.O_RDWR | os.O_CREAT)
    assert os.copy_file_range(descriptor, copy, 6, 1 << 19, 0) == 6
    assert os.pread(copy, 100, 0) == b"island"
    os.close(copy)
    os.close(descriptor)
    said = subprocess.run(["stat", "-c", "%W", path], capture_output=True, text=True, check=True)
    assert (int(said.stdout) > 0) == is_kernel
    with pytest.raises(OSError, match=r"No data|not supported") as none:
        os.getxattr(path, "system.posix_acl_access")
    assert none.value.errno == (errno.ENODATA if is_kernel else errno.EOPNOTSUPP)
