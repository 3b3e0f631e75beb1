"""The keys of an encrypted archive at work: which key encrypts what, and that every target has the keyring first.

A pack or a manifest object is of no use to anybody without the keyring that wraps its key, so none goes to a target
before the newest keyring is there, verified. A keyring is only ever added to: one that a target has and this index
does not know (its disk was reverted, or the archive was adopted) gives its keys to ours, and loses none. The file is
on stable storage before a new key is used. Any thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from vnafs.content import crypt, keyring, manifest
from vnafs.content.crypt import Cipher, Key
from vnafs.content.keyring import SigningKey, Unlocked
from vnafs.domain.clock import Clock
from vnafs.domain.copies import Capabilities
from vnafs.domain.envelopes import Envelope, KeyId
from vnafs.domain.errors import (
    Busy,
    Damaged,
    FormatUnknown,
    InvalidArgument,
    KeyMissing,
    KeyWrong,
    ObjectArchived,
    ObjectExists,
    ObjectMissing,
    TargetRefused,
)
from vnafs.domain.faults import Faults
from vnafs.domain.ids import ObjectName, PackId, RepositoryId, TargetName
from vnafs.targets.body import BytesBody
from vnafs.targets.discarding import discard
from vnafs.targets.port import Target
from vnafs.targets.verifying import verify

log = logging.getLogger(__name__)

AGAIN_SECONDS = 86_400.0
"""A keyring that rotted on a target, or was removed there, is back within a day."""


class Keys:
    """See the module. *save* puts a keyring on stable storage, *random* gives so many random bytes."""

    def __init__(
        self,
        unlocked: Unlocked,
        *,
        save: Callable[[bytes], None],
        random: Callable[[int], bytes],
        clock: Clock,
        faults: Faults,
    ) -> None:
        self._save = save
        self._random = random
        self._clock = clock
        self._faults = faults
        self._lock = threading.Lock()
        self._places: dict[int, _Place] = {}
        """By identity: another target may get a name that was used before."""
        self._use(unlocked)

    def _use(self, unlocked: Unlocked) -> None:
        self._unlocked = unlocked
        self._known = unlocked.every()
        self._latest = {
            wrapped.repository: self._known[wrapped.id]
            for wrapped in unlocked.keyring.keys
            if wrapped.id in self._known
        }

    def _change(self, unlocked: Unlocked) -> None:
        """Needs the lock."""
        self._save(unlocked.encode())
        self._faults.reach("keys.saved")
        self._use(unlocked)
        log.info("keys.changed", extra={"number": unlocked.keyring.number, "keys": len(self._known)})

    @property
    def keyring(self) -> keyring.Keyring:
        """As it is now, for status."""
        with self._lock:
            return self._unlocked.keyring

    def manifests(self) -> manifest.Keys:
        """What manifest objects are written and read with."""
        with self._lock:
            return manifest.Keys(self._latest[keyring.MANIFESTS], self._known)

    def rotate(self, repository: RepositoryId) -> Key:
        """A new key for all that is written from now on; what is written already stays as it is, and readable.

        Raises InvalidArgument for the key that signs receipts, which changes only when all are renewed.
        """
        if repository == keyring.RECEIPTS:
            raise InvalidArgument(why="the key that signs receipts changes only with `vna key renew`")
        with self._lock:
            return self._add(repository)

    def renew(self, *, master: bytes, recovery: bytes) -> None:
        """See keyring.Unlocked.renewed."""
        with self._lock:
            unlocked = self._unlocked
        # stretching two secrets takes a moment, and packing goes on
        renewed = unlocked.renewed(self._clock.now(), master=master, recovery=recovery, entropy=self._random)
        with self._lock:
            if self._unlocked is not unlocked:
                raise Busy(what="The keyring", why="it changed at the same moment; try again")
            self._change(renewed)

    def signing(self) -> list[SigningKey]:
        """The keys that sign receipts, the oldest first; the last one does from now on. None before one was made."""
        with self._lock:
            return self._unlocked.signing()

    def make_signing(self, taken: SigningKey | None = None) -> None:
        """A key that signs receipts from now on: a new one, or one that was kept elsewhere so far."""
        with self._lock:
            now = self._clock.now()
            if taken is None:
                changed = self._unlocked.with_key(keyring.RECEIPTS, now, self._random)
            else:
                changed = self._unlocked.with_signing(taken, now, self._random)
            if changed is not self._unlocked:
                self._change(changed)

    def _add(self, repository: RepositoryId) -> Key:
        self._change(self._unlocked.with_key(repository, self._clock.now(), self._random))
        return self._latest[repository]

    def new_pack(self, repository: RepositoryId, pack: PackId) -> tuple[Envelope, Cipher]:
        """What encrypts a new pack. Raises NoSpace, StorageFailed when a first key cannot be kept."""
        with self._lock:
            key = self._latest.get(repository) or self._add(repository)
        return crypt.seal_pack(key, pack, self._clock.now(), self._random(crypt.KEY_BYTES))

    def cipher(self, envelope: Envelope, pack: PackId) -> Cipher:
        """What decrypts a pack. Raises KeyMissing, Damaged."""
        return crypt.open_pack(self._key(envelope.key), envelope, pack)

    def _key(self, identity: KeyId) -> Key:
        with self._lock:
            key = self._known.get(identity)
        if key is None:
            raise KeyMissing(what="A pack", why=f"no key {identity.hex()}")
        return key

    # -- on targets ------------------------------------------------------------------------------------------------

    def bring(self, target: Target, capabilities: Capabilities) -> None:
        """Have the newest keyring on *target*, verified now or in the last AGAIN_SECONDS.

        Raises TargetError, Damaged, NoSpace, StorageFailed; TargetRefused also when a keyring is there that another
        root key wraps: whoever renewed the keys elsewhere has the right one.
        """
        if self._is_brought(target):
            return
        with self._lock:
            turn = self._places.setdefault(id(target), _Place(target))
        with turn.lock:  # not under the other lock: a target may take its time, and the others go on
            if self._is_brought(target):
                return
            self._gather(target)
            with self._lock:
                unlocked = self._unlocked
            self._put(target, unlocked, capabilities)
            self._faults.reach("keys.brought")
            with self._lock:
                turn.number, turn.seen = unlocked.keyring.number, self._clock.monotonic()

    def _put(self, target: Target, unlocked: Unlocked, capabilities: Capabilities) -> None:
        name, body = keyring.keyring_name(unlocked.keyring.number), BytesBody(unlocked.encode())
        try:
            target.put(name, body)
            verify(target, name, body.size_bytes, body.sha256, capabilities)
        except (ObjectExists, Damaged):
            try:
                keyring.decode(_get(target, name))
            except Damaged:  # what became of ours, by its name; a whole one is somebody's, and is gathered next time
                discard(target, name)
            raise

    def look_again(self, target: Target, capabilities: Capabilities) -> bool:
        """Whether the newest keyring was not whole on *target*; it is there now. Raises as `bring` does."""
        with self._lock:
            data, number = self._unlocked.encode(), self._unlocked.keyring.number
        body = BytesBody(data)
        try:
            verify(target, keyring.keyring_name(number), body.size_bytes, body.sha256, capabilities)
        except (ObjectMissing, Damaged):
            with self._lock:
                self._places.pop(id(target), None)
            self.bring(target, capabilities)
            return True
        return False

    def brought(self) -> dict[TargetName, int]:
        """The number of the newest keyring that each target was seen to have."""
        with self._lock:
            return {place.target.name: place.number for place in self._places.values() if place.number}

    def _is_brought(self, target: Target) -> bool:
        with self._lock:
            place = self._places.get(id(target))
            is_newest = place is not None and place.number == self._unlocked.keyring.number
            return is_newest and place is not None and self._clock.monotonic() - place.seen < AGAIN_SECONDS

    def _gather(self, target: Target) -> None:
        """Take over the keys of every keyring there, and a number past theirs if one is not ours."""
        for name in list(target.list(keyring.KEYRINGS)):
            if keyring.number_in(name) is None:
                continue
            theirs = self._read(target, name)
            with self._lock:
                ours = self._unlocked
                if theirs is None or theirs.keyring == ours.keyring:
                    continue
                merged = ours.with_keys_of(theirs, self._clock.now())
                if merged is not ours or theirs.keyring.number >= ours.keyring.number:
                    log.warning("keys.gathered", extra={"target": target.name, "number": theirs.keyring.number})
                    last = max(theirs.keyring.number, ours.keyring.number)  # as guarded, not as the name says
                    self._change(merged.numbered(last + 1, self._clock.now()))

    def _read(self, target: Target, name: ObjectName) -> Unlocked | None:
        """A keyring that our root key opens; None for one that is damaged, or of an earlier root key.

        Raises TargetRefused for one of another archive, and for one that came after ours and that we cannot open.
        """
        with self._lock:
            ours = self._unlocked
        try:
            data = _get(target, name)
            theirs = keyring.decode(data)
        except (Damaged, FormatUnknown, ObjectArchived, ObjectMissing) as problem:
            log.warning("keys.unreadable", extra={"target": target.name, "object": name, "why": str(problem)})
            return None
        if theirs.archive != ours.keyring.archive:
            raise TargetRefused(target=target.name, why=f"it holds {name} of another archive, {theirs.archive.hex()}")
        try:
            return keyring.with_root(data, ours.root)
        except Damaged:
            if theirs.number >= ours.keyring.number:
                raise TargetRefused(
                    target=target.name,
                    why=f"it holds {name}, which our root key does not open: the keys were renewed elsewhere",
                ) from None
            return None


class _Place:
    """What is known of one target in the life of this process. Holds on to it, so that its id is nobody else's."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.lock = threading.Lock()
        self.number = 0
        self.seen = 0.0


def _get(target: Target, name: ObjectName) -> bytes:
    data = bytearray()
    for block in target.get(name):
        data += block
        if len(data) > keyring.KEYRING_BYTES_MAX:
            raise Damaged(what=f"Object {name} on target {target.name}")
    return bytes(data)


def unlocked_from(target: Target, secret: bytes, *, may_be_older: bool = False) -> Unlocked | None:
    """The newest keyring on a target that *secret* opens, with the keys of all that it opens; None without any there.

    Its number is that of the newest one of this archive, opened or not, so that what is made from it takes no other's
    name. Raises KeyWrong when none opens, or when one that came later does not, unless it *may_be_older*; TargetError.
    """
    found: Unlocked | None = None
    problem: KeyWrong | Damaged | FormatUnknown | ObjectArchived | ObjectMissing | None = None
    numbered = ((keyring.number_in(name), name) for name in target.list(keyring.KEYRINGS))
    intact: list[keyring.Keyring] = []
    for number, name in sorted(((number, name) for number, name in numbered if number is not None), reverse=True):
        try:
            data = _get(target, name)
            theirs = keyring.decode(data)
            if theirs.number != number:
                continue  # nobody's of ours: the name is part of what is guarded
            intact.append(theirs)
            if found is None:
                found = keyring.unlock(data, secret)
            else:
                older = keyring.with_root(data, found.root)
                found = found.with_keys_of(older, found.keyring.created).numbered(
                    found.keyring.number, found.keyring.created
                )
        except (KeyWrong, Damaged, FormatUnknown, ObjectArchived, ObjectMissing) as why:
            problem = problem or why
    if found is None:
        if problem is not None:
            raise problem
        return None
    last = max(theirs.number for theirs in intact if theirs.archive == found.keyring.archive)
    if last > found.keyring.number and not may_be_older:
        raise KeyWrong(
            what=f"keyring {last} of archive {found.keyring.archive.hex()}: it is an older one, the keys were renewed "
            "since. Use the newer recovery key; --older-key restores what the older one opens"
        )
    return found.numbered(last, found.keyring.created)
