"""What the kernel knows of a mount and only its process would remember, kept where the next process finds it.

A memory file (memfd_create(2)) that whoever holds the descriptor of /dev/fuse holds beside it: both live and die
together. It has the handles that are open, the backing ids that the kernel gave, and the answers that may not have
been given yet. Each slot is written before the answer that makes it true, its first word last; a process that is
killed at any instruction leaves each slot as it was or as it shall be. Nothing here survives loss of power or an
unmount, and nothing needs to. It knows no tree. One thread.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import struct
from collections.abc import Sequence

from vnafs.domain.errors import Refused, TooManyOpen

_MAGIC = b"vnafs/2\n"
"""Whoever changes what is below changes it too: another one's estate is not taken over."""
_HEAD = struct.Struct("=8sQQQ8sI")
"""Magic, then how many slots there are for handles, backing ids and answers, who asks, and whether it is complete."""
_WORD = struct.Struct("=Q")
_HEAD_BYTES = 8192
_COMPLETE_AT = 40
_FLAGS_AT, _NEXT_AT, _SERVED_AT, _TRIES_AT, _OPENING_AT, _LAST_ID_AT, _HEARD_AT, _DEADLY_AT = range(64, 64 + 8 * 8, 8)
_MOUNT = struct.Struct("=16sQH")
"""Archive, connection, length of the place; the place follows."""
_MOUNT_AT = 128
_PLACE_BYTES_MAX = 4095
"""PATH_MAX without its end."""
_HANDLE = struct.Struct("=QQQII")
"""Handle number, request that opened it, inode, flags of the answer, bits."""
_BACKING = struct.Struct("=QQQQQ")
"""Number, inode, device and inode of the local file, whether it is being closed."""
_BACKING_CLOSING_AT = 32
_ANSWER = struct.Struct("=QI")
"""Request, length of the payload; the payload follows."""
PAYLOAD_BYTES_MAX = 180
_ANSWER_BYTES = _ANSWER.size + PAYLOAD_BYTES_MAX
_DONE = 0xFFFFFFFF
"""Instead of a length: it was done, and what to answer must be looked up."""
_READABLE, _WRITABLE, _PRIVILEGED, _UNSEEN = 1, 2, 4, 8


@dataclasses.dataclass(frozen=True, slots=True)
class KeptMount:
    """Whose mount it is, and which: an estate is worth something with this one only."""

    archive: bytes
    """Its id, 16 bytes."""
    place: str
    """Where it is mounted, without symbolic links."""
    connection: int
    """Its number; no other file system has it as long as this one is connected."""


@dataclasses.dataclass(frozen=True, slots=True)
class KeptHandle:
    """A handle that the kernel has."""

    number: int
    request: int
    """The request that opened it."""
    inode: int
    flags: int
    """FOPEN_… as the kernel was or is to be told."""
    readable: bool
    writable: bool
    privileged: bool
    unseen: bool
    """The kernel reads and writes the local file itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class KeptBacking:
    """A backing id that the kernel gave."""

    number: int
    inode: int
    local: tuple[int, int]
    """Device and inode of the local file."""
    closing: bool
    """Somebody began to give it back."""


@dataclasses.dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What a request is answered that changed something."""

    payload: bytes | None
    """None: the change was made, the answer is to be looked up."""


class Estate:
    """One estate, mapped. *descriptor* stays the caller's, except that `close` closes it."""

    def __init__(self, descriptor: int) -> None:
        """Map one. Raises Refused when it is none, or none of this version."""
        self.descriptor = descriptor
        try:
            self._map = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        except (OSError, ValueError) as error:
            raise Refused(what="Taking over", why="what was left to take over is no estate") from error
        found = _HEAD.unpack_from(self._map)
        magic, self._handles_max, self._backings_max, self._answers_max, self.asker, _ = found
        size = self._place(self._handles_max, self._backings_max, self._answers_max)
        if magic != _MAGIC or size != len(self._map):
            raise Refused(what="Taking over", why="another version of vnafs left the mount")
        self._handles_at = _HEAD_BYTES
        self._backings_at = self._place(self._handles_max, 0, 0)
        self._answers_at = self._place(self._handles_max, self._backings_max, 0)
        self._handle_slots = self._slots(self._handles_at, _HANDLE.size, self._handles_max)
        self._backing_slots = self._slots(self._backings_at, _BACKING.size, self._backings_max)
        self._answer_slots = self._slots(self._answers_at, _ANSWER_BYTES, self._answers_max)

    @staticmethod
    def _place(handles: int, backings: int, answers: int) -> int:
        return _HEAD_BYTES + handles * _HANDLE.size + backings * _BACKING.size + answers * _ANSWER_BYTES

    @classmethod
    def new(cls, *, handles_max: int, backings_max: int, requests_max: int) -> Estate:
        """An empty one for a new mount. Raises OSError."""
        descriptor = os.memfd_create("vnafs-estate", os.MFD_CLOEXEC)
        try:
            answers_max = 2 * requests_max + 2  # those of a process and, until they were asked for, of the one before
            os.ftruncate(descriptor, cls._place(handles_max, backings_max, answers_max))
            head = _HEAD.pack(_MAGIC, handles_max, backings_max, answers_max, os.urandom(8), 0)
            os.pwrite(descriptor, head, 0)
            return cls(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def close(self) -> None:
        """Unmap and close."""
        self._map.close()
        os.close(self.descriptor)
        self.descriptor = -1

    def _word(self, at: int) -> int:
        return int(_WORD.unpack_from(self._map, at)[0])

    def _slots(self, at: int, slot_bytes: int, count: int) -> _Slots:
        """A table's slots; the first word of each is its key. Clients wait for this, so no loop looks at each."""
        words = memoryview(self._map[at : at + count * slot_bytes]).cast("Q")
        return _Slots(words[:: slot_bytes // _WORD.size].tolist())

    # -- the mount ------------------------------------------------------------------------------------------

    @property
    def is_complete(self) -> bool:
        """Whether the kernel was answered what is spoken on the mount."""
        return bool(self._map[_COMPLETE_AT])

    @property
    def flags(self) -> int:
        """What is spoken: flags of INIT."""
        return self._word(_FLAGS_AT)

    def complete(self, flags: int) -> None:
        """What is spoken is known."""
        _WORD.pack_into(self._map, _FLAGS_AT, flags)
        self._map[_COMPLETE_AT] = 1

    @property
    def mount(self) -> KeptMount:
        """Which mount it is about."""
        archive, connection, length = _MOUNT.unpack_from(self._map, _MOUNT_AT)
        at = _MOUNT_AT + _MOUNT.size
        return KeptMount(archive, os.fsdecode(self._map[at : at + length]), connection)

    def mounted(self, mount: KeptMount) -> None:
        """It is mounted. Raises Refused when its path is longer than PATH_MAX."""
        place = os.fsencode(mount.place)
        if len(place) > _PLACE_BYTES_MAX:
            raise Refused(what=f"Mounting at {mount.place}", why="the path is too long")
        at = _MOUNT_AT + _MOUNT.size
        self._map[at : at + len(place)] = place
        _MOUNT.pack_into(self._map, _MOUNT_AT, mount.archive, mount.connection, len(place))

    @property
    def heard(self) -> int:
        """The kernel was told of everything before this event of the feed."""
        return self._word(_HEARD_AT)

    @heard.setter
    def heard(self, event: int) -> None:
        _WORD.pack_into(self._map, _HEARD_AT, event)

    # -- the request in hand --------------------------------------------------------------------------------

    def serve(self, request: int) -> None:
        """This request is being served."""
        _WORD.pack_into(self._map, _SERVED_AT, request)

    def outlived(self) -> tuple[int, int]:
        """The request that a process died over, 0 for none, and how many did one after the other; counts this one."""
        served = self._word(_SERVED_AT)
        deaths = (self._word(_TRIES_AT) if served == self._word(_DEADLY_AT) else 0) + bool(served)
        _WORD.pack_into(self._map, _DEADLY_AT, served)
        _WORD.pack_into(self._map, _TRIES_AT, deaths)
        _WORD.pack_into(self._map, _SERVED_AT, 0)
        return served, deaths

    # -- handles --------------------------------------------------------------------------------------------

    @property
    def next_handle(self) -> int:
        """The lowest handle number that was never given."""
        return self._word(_NEXT_AT)

    def handles(self) -> list[KeptHandle]:
        """All that are open."""
        return [
            KeptHandle(
                number,
                request,
                inode,
                flags,
                readable=bool(bits & _READABLE),
                writable=bool(bits & _WRITABLE),
                privileged=bool(bits & _PRIVILEGED),
                unseen=bool(bits & _UNSEEN),
            )
            for number, request, inode, flags, bits in _HANDLE.iter_unpack(
                self._map[self._handles_at : self._backings_at]
            )
            if number
        ]

    def opened(self, handle: KeptHandle) -> None:
        """A handle is about to be given. Raises TooManyOpen."""
        slot = self._handle_slots.take(handle.number)
        if slot < 0:
            raise TooManyOpen(limit=self._handles_max)
        bits = handle.readable * _READABLE | handle.writable * _WRITABLE
        bits |= handle.privileged * _PRIVILEGED | handle.unseen * _UNSEEN
        at = self._handles_at + slot * _HANDLE.size
        _WORD.pack_into(self._map, _NEXT_AT, max(self.next_handle, handle.number + 1))
        _HANDLE.pack_into(self._map, at, 0, handle.request, handle.inode, handle.flags, bits)
        _WORD.pack_into(self._map, at, handle.number)

    def closed(self, number: int) -> None:
        """A handle is no more."""
        slot = self._handle_slots.give_back(number)
        if slot >= 0:
            _WORD.pack_into(self._map, self._handles_at + slot * _HANDLE.size, 0)

    # -- backing ids ----------------------------------------------------------------------------------------

    def backings(self) -> list[KeptBacking]:
        """All that the kernel gave and was not told to forget for sure."""
        found = [
            KeptBacking(number, inode, (device, local), bool(closing))
            for number, inode, device, local, closing in _BACKING.iter_unpack(
                self._map[self._backings_at : self._answers_at]
            )
            if number
        ]
        last = self._word(_LAST_ID_AT)
        if self._word(_OPENING_AT) and all(one.number != last + 1 for one in found):
            # it died while it asked for one: the kernel counts upwards (idr_alloc_cyclic)
            found.append(KeptBacking(last + 1, 0, (0, 0), closing=True))
        return found

    def backing_wanted(self) -> bool:
        """One is about to be asked for; False when there is no room."""
        if not self._backing_slots.has_room:
            return False
        _WORD.pack_into(self._map, _OPENING_AT, 1)
        return True

    def backing_given(self, backing: KeptBacking | None) -> None:
        """It was given, or refused."""
        if backing is not None:
            at = self._backings_at + self._backing_slots.take(backing.number) * _BACKING.size
            _BACKING.pack_into(self._map, at, 0, backing.inode, *backing.local, 0)
            _WORD.pack_into(self._map, at, backing.number)
            _WORD.pack_into(self._map, _LAST_ID_AT, backing.number)
        _WORD.pack_into(self._map, _OPENING_AT, 0)

    def backing_closing(self, number: int) -> None:
        """It is about to be given back: whoever dies now leaves one that may be used no more."""
        slot = self._backing_slots.find(number)
        if slot >= 0:
            _WORD.pack_into(self._map, self._backings_at + slot * _BACKING.size + _BACKING_CLOSING_AT, 1)

    def backing_closed(self, number: int) -> None:
        """It was given back."""
        slot = self._backing_slots.give_back(number)
        if slot >= 0:
            _WORD.pack_into(self._map, self._backings_at + slot * _BACKING.size, 0)
        elif number == self._word(_LAST_ID_AT) + 1:
            _WORD.pack_into(self._map, _OPENING_AT, 0)

    # -- answers --------------------------------------------------------------------------------------------

    def answers(self) -> dict[int, KeptAnswer]:
        """By request."""
        found: dict[int, KeptAnswer] = {}
        for place in range(self._answers_max):
            at = self._answers_at + place * _ANSWER_BYTES
            request, length = _ANSWER.unpack_from(self._map, at)
            if request:
                start = at + _ANSWER.size
                found[request] = KeptAnswer(None if length == _DONE else self._map[start : start + length])
        return found

    def answer(self, request: int, payload: bytes | None) -> None:
        """What a request did is done, and this is to be answered."""
        slot = self._answer_slots.take(request)
        if slot < 0:
            raise Refused(what="A request", why="too many wait for their answer")  # requests_max sees to it
        at = self._answers_at + slot * _ANSWER_BYTES
        _WORD.pack_into(self._map, at, 0)
        if payload is None:
            _ANSWER.pack_into(self._map, at, 0, _DONE)
        else:
            self._map[at + _ANSWER.size : at + _ANSWER.size + len(payload)] = payload
            _ANSWER.pack_into(self._map, at, 0, len(payload))
        _WORD.pack_into(self._map, at, request)

    def answered(self, request: int) -> None:
        """The kernel has it."""
        slot = self._answer_slots.give_back(request)
        if slot >= 0:
            _WORD.pack_into(self._map, self._answers_at + slot * _ANSWER_BYTES, 0)


class _Slots:
    """Which slot of a table has what, and which are free."""

    def __init__(self, keys: Sequence[int]) -> None:
        self._by_key = {key: slot for slot, key in enumerate(keys) if key}
        self._free = [slot for slot in range(len(keys) - 1, -1, -1) if not keys[slot]]

    @property
    def has_room(self) -> bool:
        return bool(self._free)

    def find(self, key: int) -> int:
        return self._by_key.get(key, -1)

    def take(self, key: int) -> int:
        """A slot for *key*, the one it has if it has one; -1 when none is free."""
        slot = self._by_key.get(key)
        if slot is None:
            if not self._free:
                return -1
            slot = self._by_key[key] = self._free.pop()
        return slot

    def give_back(self, key: int) -> int:
        """The slot that *key* had, -1 when it had none."""
        slot = self._by_key.pop(key, -1)
        if slot >= 0:
            self._free.append(slot)
        return slot
