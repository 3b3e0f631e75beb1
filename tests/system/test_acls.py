"""POSIX ACLs through a real mount: what the usual tools say of them is what they say on the local file system."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.mounts import Mount

pytestmark = pytest.mark.system

STRANGER = "daemon"
"""A user of any Debian, as are `games` and `nobody`."""
ENTER = 'as() { who=$1; shift; setpriv --reuid "$who" --regid nogroup --clear-groups sh -c "cd $PWD && $*"; }\n'
SCRIPTS = {
    "set and shown": "touch f; setfacl -m u:daemon:rwx,g:games:r f; getfacl f; stat -c %A f; getfattr -d -m - f",
    "the mask follows chmod": "touch f; setfacl -m u:daemon:rwx f; chmod 604 f; getfacl f; chmod 664 f; getfacl f",
    "removed": "touch f; setfacl -m u:daemon:rwx f; setfacl -b f; getfacl f; setfacl -b f; stat -c %A f",
    "inherited": "mkdir d; setfacl -d -m u:daemon:rwx,o::- d; umask 077; touch d/f; mkdir d/e; mkfifo d/p;"
    "ln -s f d/l; echo x > d/e/g; for n in d d/f d/e d/p d/e/g; do getfacl $n; stat -c '%A %n' $n; done;"
    "stat -c %A d/l",
    "umask without one": "mkdir d; umask 027; touch d/f; mkdir d/e; mkfifo d/p; mknod d/q p -m 666;stat -c '%A %n' d/*",
    "set-group-ID": "mkdir d; chgrp games d; chmod 2775 d; chmod 777 .; as nobody 'touch f; chmod 2755 f' ;"
    "touch g; chown nobody:games g; chmod 2755 g; as nobody 'setfacl -m u:games:r g'; stat -c '%A %G %n' d g",
    "somebody enters": "mkdir d; chmod 700 d; echo secret > d/f; chmod 600 d/f; as daemon 'cat d/f';"
    "setfacl -m u:daemon:x d; setfacl -m u:daemon:r d/f; as daemon 'cat d/f; echo x >> d/f'; as games 'cat d/f';"
    "setfacl -x u:daemon d/f; as daemon 'cat d/f'; setfacl -m u:daemon:r d/f; as daemon 'cat d/f';"
    "chmod g= d/f; as daemon 'cat d/f'; as daemon 'setfacl -m u:daemon:rw d/f'",
    "somebody is kept out": "echo x > f; chmod 644 f; as daemon 'cat f'; setfacl -m u:daemon:- f; as daemon 'cat f';"
    "as games 'cat f'",
    "copied": "mkdir d; setfacl -m u:daemon:rwx,d:g:games:rx d; touch d/f; setfacl -m u:games:r d/f; cp -a d e;"
    "rsync -aA d/ r/; for n in d e r; do (cd $n; getfacl -p .  f); done;"
    "getfacl -R d | setfacl --restore=-; getfacl d/f",
    "for all below": "mkdir -p d/e; touch d/f d/e/g; setfacl -R -m u:daemon:rX,d:u:daemon:rX d;"
    "for n in d d/f d/e d/e/g; do getfacl $n; done; mv d/e/g d/h; ln d/h d/i; getfacl d/h d/i",
    "refused": "touch f; setfattr -n system.posix_acl_access -v 0x0200 f; setfacl -m d:u:daemon:r f; ln -s f l;"
    "setfattr -h -n system.posix_acl_access -v 0x02000000 l; as daemon 'setfacl -m u:daemon:r f'; getfacl f",
}


@pytest.fixture(scope="module")
def mount() -> Iterator[Mount]:
    with tempfile.TemporaryDirectory(prefix="acls") as folder:
        Path(folder).chmod(0o755)  # pytest's own folders keep everybody else out
        made = Mount(Path(folder), "--fuse", "kernel")
        try:
            made.start()
            yield made
        finally:
            made.close()


def said(folder: Path, script: str) -> list[str]:
    folder.mkdir(mode=0o755)
    done = subprocess.run(
        ["sh", "-c", f"{ENTER}{script}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        umask=0o022,
    )
    return (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize("name", SCRIPTS)
def test_tools_say_what_they_say_on_the_local_file_system(mount: Mount, name: str) -> None:
    local = mount.archive.parent / "local"
    local.mkdir(exist_ok=True)
    local.chmod(0o755)
    there = said(local / name.replace(" ", "-"), SCRIPTS[name])
    here = said(mount.root / name.replace(" ", "-"), SCRIPTS[name])
    assert there, "the script says nothing"
    assert not [line for line in there if "can't cd" in line], "others do not get there"
    assert here == [line.replace(str(local), str(mount.root)) for line in there]


def test_what_was_set_is_there_after_a_restart_and_still_enforced(mount: Mount) -> None:
    folder = mount.root / "restarted"
    said(folder, "echo x > f; chmod 600 f; setfacl -m u:daemon:r f")
    before = subprocess.run(["getfacl", "f"], cwd=folder, capture_output=True, check=True).stdout
    mount.restart()
    assert subprocess.run(["getfacl", "f"], cwd=folder, capture_output=True, check=True).stdout == before
    identity = pwd.getpwnam(STRANGER)
    words = ["setpriv", "--reuid", str(identity.pw_uid), "--regid", str(identity.pw_gid), "--clear-groups", "cat", "f"]
    assert subprocess.run(words, cwd=folder, capture_output=True, check=False).stdout == b"x\n"


def test_pyfuse3_says_that_it_has_none(tmp_path: Path) -> None:
    mount = Mount(tmp_path, "--fuse", "kernel")
    try:
        mount.start()
        said(mount.root / "d", "touch f; setfacl -m u:daemon:rw f; setfacl -m d:u:daemon:rwx .")
        mount.stop()
        mount.arguments = ("--fuse", "pyfuse3")
        mount.start()
        path = mount.root / "d" / "f"
        with pytest.raises(OSError, match="not supported"):
            os.getxattr(path, "system.posix_acl_access")
        with pytest.raises(OSError, match="not supported"):
            os.setxattr(path, "system.posix_acl_access", b"\2\0\0\0")
        assert os.listxattr(path) == []
        path.chmod(0o600)
        mount.stop()
        mount.arguments = ("--fuse", "kernel")
        mount.start()
        shown = subprocess.run(["getfacl", "-cE", path], capture_output=True, text=True, check=True).stdout
        assert shown.split() == ["user::rw-", "user:daemon:rw-", "group::r--", "mask::---", "other::---"]
        shutil.rmtree(mount.root / "d")
    finally:
        mount.close()
