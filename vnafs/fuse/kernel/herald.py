"""Tells the kernel what to forget, from a process of its own that has nothing but the descriptor of /dev/fuse.

The kernel may make the sender of a notice wait, beyond the reach of any signal, for a request that only the mount
process can answer (fuse_reverse_inval_entry takes the directory's lock). A thread of the mount process that waits so
would keep that process from ending when it is killed, and with it the lock of the archive from the next one. This one
may wait: the next process answers, and it goes on and ends.

Run as a program it needs no module of ours, and starts in the time that Python takes.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys

NOTICE_BYTES_MAX = 4096
END_SECONDS_MAX = 2.0
_NUMBER = struct.Struct("=i")


class Herald:
    """The mount's side. Close it after the mount is taken away or left."""

    def __init__(self, control: int) -> None:
        """Start it. Raises OSError."""
        self._near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-I", "-S", __file__, str(control), str(far.fileno())],
                pass_fds=(control, far.fileno()),
                start_new_session=True,  # what is meant for the mount process is not meant for it
            )
        except BaseException:
            self._near.close()
            raise
        finally:
            far.close()

    def tell(self, notice: bytes) -> None:
        """Send a notice. May block; one thread at a time. Raises OSError, also the kernel's."""
        self._near.sendall(notice)
        number = self._near.recv(_NUMBER.size)
        if len(number) != _NUMBER.size:
            raise ConnectionResetError
        [errno] = _NUMBER.unpack(number)
        if errno:
            raise OSError(errno, os.strerror(errno))

    def close(self) -> None:
        """Let it end; one that the kernel makes wait ends later."""
        self._near.close()
        try:
            self._process.wait(END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.returncode = 0  # nobody waits for it any more


def main() -> int:
    """Until the mount process ends."""
    control, near = int(sys.argv[1]), int(sys.argv[2])
    try:
        while notice := os.read(near, NOTICE_BYTES_MAX):
            number = 0
            try:
                os.write(control, notice)
            except OSError as error:
                number = error.errno or 0
            os.write(near, _NUMBER.pack(number))
    except OSError:
        return 0  # the mount process is gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
