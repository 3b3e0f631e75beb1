"""A machine with a kernel of its own: Debian 13 under qemu, with this checkout, and servers that need what the kernel
here may not have (nfsd).

Its image is made once for each list of packages and lock file, below build/guest; what a guest writes is gone when it
ends. With /dev/kvm where that runs guests, and emulated where it does not: then all takes many times as long.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from tests.servers.processes import ServerFailed, Servers, free_port, need, servers

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
IMAGES = ROOT / "build" / "guest"
SCRIPT, AGENT = HERE / "guest-image.sh", HERE / "guest_agent.py"
LOCK = ROOT / "requirements.lock"
AGENT_PORT = 4000
PACKAGES = (
    *("linux-image-cloud-amd64", "initramfs-tools", "zstd", "kmod", "systemd-sysv", "udev", "dbus"),
    *("e2fsprogs", "iproute2", "procps", "mount", "acl", "attr", "strace"),
    *("python3", "python3-venv", "python3-dev", "gcc", "libc6-dev", "pkg-config", "libfuse3-dev", "fuse3"),
    *("nfs-kernel-server", "nfs-common", "rpcbind"),
    *("krb5-kdc", "krb5-admin-server", "krb5-user"),
    *("samba", "samba-vfs-modules", "smbclient"),
)
BUILD_SECONDS_MAX = 1500
KVM_BOOT_SECONDS_MAX = 120
BOOT_SECONDS_MAX = 600
"""Emulated, beside other work."""
KVM, EMULATION = "kvm", "tcg,thread=multi,tb-size=512"
CPUS = {KVM: "host", EMULATION: "Nehalem"}
"""Nehalem is what numpy needs at least."""
KERNEL_WORDS = "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 mitigations=off oops=panic clearcpuid=cx16"
"""The last: emulated by qemu 7.2 the guest's kernel fell twice, once right behind a cmpxchg16b; not since."""
COMMAND_SECONDS_MAX = 120.0
MEMORY_MEBIBYTES = 2048
COMMANDS = ("mmdebstrap", "qemu-system-x86_64", "mkfs.ext4", "unshare")


class Guest:
    """One that runs."""

    def __init__(self, home: Path, image: Path, started: Servers) -> None:
        self.home = home
        self._port = free_port()
        self._started = started
        checkout(home / "checkout.tar")
        began = time.monotonic()
        self.accelerator = self._boot(image)
        self.boot_seconds = time.monotonic() - began
        self.must("sh", "-ec", "mkdir -p /opt/vnafs && tar -xf /dev/vdb -C /opt/vnafs")
        warnings.warn(f"the guest runs by {self.accelerator} and took {self.boot_seconds:.0f} s to boot", stacklevel=1)

    @property
    def is_emulated(self) -> bool:
        return self.accelerator != "kvm"

    def _boot(self, image: Path) -> str:
        """Which accelerator runs it. There are machines whose /dev/kvm opens and runs no ordinary kernel."""
        if os.access("/dev/kvm", os.R_OK | os.W_OK):
            process = self._start(KVM, image)
            with contextlib.suppress(ServerFailed):
                self._started.wait("the guest answers", self._answers_or_fails, KVM_BOOT_SECONDS_MAX)
                if not self._kvm_failed():
                    return "kvm"
            self._started.forget(process)
            process.kill()
            process.wait()
        self._start(EMULATION, image)
        try:
            self._started.wait("the guest answers", self._answers, BOOT_SECONDS_MAX)
        except ServerFailed as problem:
            raise ServerFailed(f"{problem}\n{self.console()}") from None
        return "tcg"

    def _start(self, accelerator: str, image: Path) -> subprocess.Popen[bytes]:
        # what the guest writes goes to a file without a name below $TMPDIR, and nothing that it sends reaches anybody
        return self._started.start(
            "qemu", "env", f"TMPDIR={self.home}", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot",
            "-display", "none", "-accel", accelerator, "-cpu", CPUS[accelerator], "-smp", "2",
            "-m", str(MEMORY_MEBIBYTES), "-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd"),
            "-append", KERNEL_WORDS,
            "-drive", f"file={image / 'root.img'},if=virtio,format=raw,snapshot=on,cache=unsafe",
            "-drive", f"file={self.home / 'checkout.tar'},if=virtio,format=raw,readonly=on",
            "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self._port}-10.0.2.15:{AGENT_PORT}",
            "-device", "virtio-net-pci,netdev=net", "-device", "virtio-rng-pci",
            "-serial", f"file:{self.home / 'console'}",
        )  # fmt: skip

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, ServerFailed):
            return self.run("true", seconds=5).code == 0
        return False

    def _answers_or_fails(self) -> bool:
        return self._kvm_failed() or self._answers()

    def _kvm_failed(self) -> bool:
        return "KVM internal error" in (self.home / "qemu.out").read_text(errors="replace")

    # -- commands ----------------------------------------------------------------------------------------------

    def run(self, *words: object, text: str = "", seconds: float = COMMAND_SECONDS_MAX, **environ: str) -> Done:
        """Run a command there to its end, at most for so long."""
        asked = {"words": [*map(str, words)], "text": text, "seconds": seconds, "environ": environ}
        with socket.create_connection(("127.0.0.1", self._port), timeout=seconds + 30) as connection:
            connection.sendall(json.dumps(asked).encode() + b"\n")
            with connection.makefile("rb") as answer:
                line = answer.readline()
        if not line:
            raise ServerFailed(f"the guest did not answer {words[:3]}\n{self.console()}")
        return Done(**json.loads(line))

    def must(self, *words: object, text: str = "", seconds: float = COMMAND_SECONDS_MAX, **environ: str) -> str:
        """Run a command that succeeds; what it says."""
        done = self.run(*words, text=text, seconds=seconds, **environ)
        if done.code:
            raise ServerFailed(f"{shlex.join(map(str, words))} failed in the guest:\n{done}")
        return done.out

    def sh(self, script: str, **environ: str) -> str:
        """Run a script of the shell that succeeds; what it says."""
        return self.must("sh", "-euc", script, **environ)

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file there."""
        self.must("sh", "-euc", 'mkdir -p "$(dirname "$0")"; cat >"$0"; chmod "$1" "$0"', path, f"{mode:o}", text=text)

    def console(self) -> str:
        """The end of what its kernel said."""
        said = self.home / "console"
        return said.read_text(errors="replace")[-3000:] if said.exists() else ""


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """How a command ended: 124 is that it was killed when its time was up."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"{self.code}\n{self.out}\n{self.err}"


def checkout(path: Path) -> None:
    """What git knows here, and what it would: changes that are not committed are tried too."""
    words = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, capture_output=True, check=True, cwd=ROOT).stdout.decode().split("\0")
    with tarfile.open(path, "w") as archive:
        for name in sorted({name for name in listed if name and (ROOT / name).is_file()}):
            archive.add(ROOT / name, name)


def image() -> Path:
    """The folder of the image, which is made if there is none."""
    parts = [SCRIPT.read_bytes(), AGENT.read_bytes(), LOCK.read_bytes(), *(name.encode() for name in PACKAGES)]
    digest = hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    found = IMAGES / digest[:16]
    IMAGES.mkdir(parents=True, exist_ok=True)
    with (IMAGES / "lock").open("w") as making:
        fcntl.flock(making, fcntl.LOCK_EX)
        if not found.exists():
            need(COMMANDS, "mmdebstrap qemu-system-x86 e2fsprogs util-linux")
            for old in IMAGES.iterdir():  # of other lists, or half made
                if old.is_dir():
                    shutil.rmtree(old)
            _make(found)
    return found


def _make(found: Path) -> None:
    fresh = found.with_suffix(".new")
    fresh.mkdir()
    uv = Path(sys.executable).parent / "uv"
    words = ["unshare", "--mount", "--propagation", "private", SCRIPT, fresh, mirror(), uv, LOCK, AGENT, AGENT_PORT]
    with (IMAGES / "log").open("wb") as log:
        process = subprocess.Popen(
            [*map(str, words), *PACKAGES], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code = process.wait(BUILD_SECONDS_MAX)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if code:
        raise ServerFailed(f"the guest's image cannot be made:\n{(IMAGES / 'log').read_text(errors='replace')[-3000:]}")
    fresh.rename(found)


def mirror() -> str:
    """Where this machine has Debian's packages from."""
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages", "Origin: Debian"]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    plain = [one for one in found if "security" not in one]
    if not plain:
        raise ServerFailed("apt has no mirror of Debian here, of which the guest's image could be made")
    return plain[0]


@contextlib.contextmanager
def a_guest(home: Path) -> Iterator[Guest]:
    """A guest for the length of the block; *home* is made."""
    made = image()
    home.mkdir()
    with servers(str(home)) as started:
        yield Guest(home, made, started)
