"""What keeps the mount while its process is replaced: the supervisor's side, the mount's side, and their few words.

Both ends of a socketpair(2) that keeps messages apart. The mount sends its descriptors with `keep`, `serves` once it
answers, and `let go` when it unmounted. The next mount gets the descriptors as it is started, or with `go` when it is
the spare: a process that has all its modules loaded and waits. Spares are copies of a template, which loads the modules
and then does nothing else: it is sent `copy` with a spare's end of the pair, and the copy says `here` and its number on
that. So no spare is ever without a way to the supervisor, and none gets a mount that the supervisor does not know.

Where a service manager keeps copies of the descriptors, the supervisor itself may be replaced too. When nobody has them
any more the kernel ends the mount. No file on disk tells of it, so nothing is ever stale.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import os
import socket
from collections.abc import Mapping, Sequence

from appliance import system
from appliance.daemons import kinship
from appliance.service.systemd import ServiceManager
from vnafs.domain.errors import InvalidArgument, Refused

log = logging.getLogger(__name__)

KEEP, SERVES, LET_GO, GO, COPY, HERE = b"keep", b"serves", b"let go", b"go", b"copy", b"here "
TEMPLATE = "template"
NAMES = {TEMPLATE: "vna-template", "spare": "vna-spare", "mount": "vna-mount"}
"""What the processes call themselves (/proc/PID/comm): a copy has its template's command line."""
SILENT_DEATHS_MAX = 3
"""So many processes may die before they answer on a mount that they were given; then it is taken away."""
_WORD_BYTES_MAX = 16
MOUNT_NAME, ESTATE_NAME = "vnafs-mount", "vnafs-estate"
"""What a service manager calls the two."""


class KeeperEnd:
    """The mount's side; see `vnafs.fuse.kernel.keeper.Keeper`."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.settimeout(0)  # a supervisor that does not listen holds up nobody

    def wait(self) -> list[int]:
        """A spare waits until it is needed; what it is given then. Ends the process when it never will be."""
        self._socket.settimeout(None)
        word, descriptors, _, _ = socket.recv_fds(self._socket, _WORD_BYTES_MAX, 2, socket.MSG_CMSG_CLOEXEC)
        self._socket.settimeout(0)
        if word != GO:
            raise SystemExit(0)
        return descriptors

    def here(self) -> None:
        """Say which process this is."""
        self._say(HERE + str(os.getpid()).encode())

    def keep(self, control: int, estate: int) -> None:
        """See Keeper."""
        try:
            socket.send_fds(self._socket, [KEEP], [control, estate])
        except OSError as error:
            raise Refused(what="Keeping the mount", why=os.strerror(error.errno or 0)) from error

    def serves(self) -> None:
        """See Keeper."""
        self._say(SERVES)

    def let_go(self) -> None:
        """See Keeper."""
        self._say(LET_GO)

    def _say(self, word: bytes) -> None:
        with contextlib.suppress(OSError):  # the supervisor died: then we are being stopped
            self._socket.send(word)


class Keeping:
    """The supervisor's side."""

    def __init__(self, manager: ServiceManager | None = None) -> None:
        """With a *manager* it keeps copies of all that is kept here, and may have some from before."""
        self._manager = manager
        self._near: socket.socket | None = None
        self._template: socket.socket | None = None
        self._spare: socket.socket | None = None
        self._spare_is_here = False
        self._far: socket.socket | None = None
        self._kept: tuple[int, ...] = ()
        self._silent_deaths = 0
        self.has_served = False
        """Whether the process that was started last answered on the mount."""
        if manager is not None:
            self._take(manager.given)

    def _take(self, given: Mapping[str, int]) -> None:
        """Go on with what a supervisor before this one kept."""
        pair = [given[name] for name in (MOUNT_NAME, ESTATE_NAME) if name in given]
        if len(pair) == 2:
            self._kept = tuple(pair)
            log.info("supervisor.keeps_mount", extra={"of": "another"})
        for descriptor in set(given.values()) - set(self._kept):
            os.close(descriptor)
        if not self._kept:
            self._tell_forgotten()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What is kept: /dev/fuse and its estate, or nothing."""
        return self._kept

    def begin(self) -> tuple[list[str], tuple[int, ...]]:
        """A process is about to be started: words for its command line, and descriptors that it must inherit."""
        self._near, far = self._pair(self._near)
        self.has_served = False
        words = ["--keeper", ",".join(str(number) for number in (far, *self._kept))]
        return words, (far, *self._kept)

    def begin_template(self) -> tuple[list[str], tuple[int, ...]]:
        """As `begin`, for a process that loads everything and is copied."""
        self._template, far = self._pair(self._template)
        return ["--keeper", f"{far},{TEMPLATE}"], (far,)

    @property
    def awaited(self) -> Sequence[socket.socket]:
        """Where a copy will say that it is there, if one was asked for and has not yet."""
        return () if self._spare is None or self._spare_is_here else (self._spare,)

    def ask_spare(self) -> None:
        """Ask the template for a copy, which it makes as soon as it has loaded."""
        if self._template is None:
            return
        self.forget_spare()
        self._spare, far = self._pair(None)
        try:
            socket.send_fds(self._template, [COPY], [far])
        except OSError:  # it died: then it is started again
            self.forget_spare()
        self.begun()

    def spare(self) -> int | None:
        """The process id that the copy said; None so far. Does not block."""
        if self._spare is None or self._spare_is_here:
            return None
        try:
            word = self._spare.recv(_WORD_BYTES_MAX)
        except BlockingIOError:
            return None
        except OSError:
            word = b""
        if word.startswith(HERE):
            self._spare_is_here = True
            return int(word[len(HERE) :])
        self.forget_spare()
        return None

    def forget_template(self) -> None:
        """It died, or shall."""
        if self._template is not None:
            self._template.close()
            self._template = None

    def forget_spare(self) -> None:
        """It died, or shall: whoever is made in vain ends."""
        if self._spare is not None:
            self._spare.close()
            self._spare = None
        self._spare_is_here = False

    def promote(self) -> bool:
        """The spare takes over from the process that died; False when it cannot."""
        if self._spare is None or not self._spare_is_here or not self._kept:
            return False
        try:
            socket.send_fds(self._spare, [GO], list(self._kept))
        except OSError:
            return False
        if self._near is not None:
            self._near.close()
        self._near, self._spare, self._spare_is_here, self.has_served = self._spare, None, False, False
        return True

    def _pair(self, before: socket.socket | None) -> tuple[socket.socket, int]:
        if before is not None:
            before.close()
        self.begun()
        near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.settimeout(0)
        return near, self._far.fileno()

    def begun(self) -> None:
        """It was started."""
        if self._far is not None:
            self._far.close()
            self._far = None

    def look(self) -> None:
        """Hear what it said. Does not block."""
        while self._near is not None:
            try:
                word, descriptors, _, _ = socket.recv_fds(self._near, _WORD_BYTES_MAX, 2, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                word, descriptors = b"", []
            if word == KEEP:
                self._drop()
                self._kept = tuple(descriptors)
                if self._manager is not None:
                    for name, descriptor in zip((MOUNT_NAME, ESTATE_NAME), descriptors, strict=False):
                        self._manager.keep(name, descriptor)
                log.info("supervisor.keeps_mount")
            elif word == SERVES:
                self.has_served, self._silent_deaths = True, 0
            elif word == LET_GO:
                self._drop()
            elif not word:
                self._near.close()
                self._near = None

    def ended(self) -> None:
        """It died. After too many that never answered the mount is taken away, or clients would wait for ever."""
        self.look()
        if not self._kept or self.has_served:
            return
        self._silent_deaths += 1
        if self._silent_deaths >= SILENT_DEATHS_MAX:
            log.error("supervisor.mount_given_up", extra={"deaths": self._silent_deaths})
            self._drop()

    def close(self) -> None:
        """Keep nothing."""
        self._drop()
        self._forget_sockets()

    def leave(self) -> None:
        """Keep nothing here: the service manager has it for the next supervisor."""
        self._close_kept()
        self._forget_sockets()

    def _drop(self) -> None:
        if self._kept:
            self._tell_forgotten()
        self._close_kept()

    def _tell_forgotten(self) -> None:
        if self._manager is not None:
            for name in (MOUNT_NAME, ESTATE_NAME):
                self._manager.forget(name)

    def _close_kept(self) -> None:
        for descriptor in self._kept:
            os.close(descriptor)
        self._kept = ()
        self._silent_deaths = 0

    def _forget_sockets(self) -> None:
        self.forget_template()
        self.forget_spare()
        for one in (self._near, self._far):
            if one is not None:
                one.close()
        self._near = self._far = None


def given(text: str) -> tuple[KeeperEnd, list[int]]:
    """What the words of `Keeping` name: the way to the supervisor, and what was kept. Raises InvalidArgument.

    A template stays in here, and returns in each of its copies once that is needed.
    """
    first, _, rest = text.partition(",")
    if rest == TEMPLATE and first.isascii() and first.isdigit():
        end = _copies(int(first))
        descriptors = end.wait()
        system.call_itself(NAMES["mount"])
        return end, descriptors
    words: Sequence[str] = text.split(",")
    if len(words) not in (1, 3) or not all(word.isascii() and word.isdigit() for word in words):
        raise InvalidArgument(why="--keeper is for the supervisor")
    descriptors = [int(word) for word in words]
    for descriptor in descriptors:
        fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)  # no child of ours keeps a mount
    return KeeperEnd(descriptors[0]), descriptors[1:]


def _copies(descriptor: int) -> KeeperEnd:
    """Make copies of this process, which is and stays a template; returns in them alone.

    Ends the process when no more are wanted. Raises Refused when it has threads: of these a copy has none, and what
    they held when it was made would be held for ever (fork(2)).
    """
    asked = socket.socket(fileno=descriptor)
    asked.set_inheritable(False)
    supervisor, number = os.getppid(), kinship.at_parents_end()
    ends_with_supervisor = kinship.ends_with(supervisor, number)
    system.call_itself(NAMES[TEMPLATE])
    gc.collect()
    gc.freeze()  # a collector that writes to all of it would make each copy's pages its own
    while True:
        word, descriptors, _, _ = socket.recv_fds(asked, _WORD_BYTES_MAX, 1, socket.MSG_CMSG_CLOEXEC)
        if word != COPY or not descriptors:
            raise SystemExit(0)
        if len(os.listdir("/proc/self/task")) != 1:
            raise Refused(what="Making a spare", why="what was loaded started threads")
        waits, holds = os.pipe()
        between = os.fork()
        if between:
            for one in (waits, *descriptors):
                os.close(one)
            os.waitpid(between, 0)
            os.close(holds)
            continue
        asked.close()
        os.close(holds)
        if _is_between():
            os._exit(0)  # whose child is the supervisor's from now on
        # Not before it was handed on: who asks for the signal meanwhile may get it for the death of the one between.
        os.read(waits, 1)
        os.close(waits)
        ends_with_supervisor()
        system.call_itself(NAMES["spare"])
        end = KeeperEnd(descriptors[0])
        end.here()
        return end


def _is_between() -> bool:
    """Copy this process once more; True in the one between."""
    try:
        return os.fork() != 0
    except OSError:  # no memory for it: whoever asked finds that its end was closed
        return True
