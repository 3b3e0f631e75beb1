"""Signing: which key signs an archive's receipts, where it is kept, and that its public half is on record first.

An encrypted archive has it in its keyring, which every target has, wrapped: a restored one goes on signing with it.
Any other has it in a file that never leaves the machine, or a target could forge receipts: a restored one makes
another. The public half is noted with its times before the first signature (`vnafs.index.signers`). Any thread.
"""

from __future__ import annotations

import logging
import threading

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vnafs.content import keyring
from vnafs.content.keyring import SigningKey, Unlocked
from vnafs.domain.clock import Clock, Instant
from vnafs.index import signers
from vnafs.index.engine import Engine
from vnafs.index.signers import Reason, Signer
from vnafs.pipeline.keys import Keys
from vnafs.receipts import keys as files

log = logging.getLogger(__name__)


class Signing:
    """See the module. *folder* has the file, *keys* are those of an encrypted archive."""

    def __init__(self, store: Engine, folder: str, keys: Keys | None, *, clock: Clock) -> None:
        self._store = store
        self._folder = folder
        self._keys = keys
        self._clock = clock
        self._lock = threading.Lock()

    def key(self) -> tuple[Ed25519PrivateKey, bool]:
        """The key that signs now, and whether it was made just now. Raises Damaged, NoSpace, StorageFailed."""
        with self._lock:
            if self._keys is None:
                return _from_file(self._store, self._folder, Reason.REPLACED, self._clock)
            return self._from_keyring(self._keys)

    def _from_keyring(self, keys: Keys) -> tuple[Ed25519PrivateKey, bool]:
        reason, is_new = Reason.RENEWED, False
        if (there := files.find(self._folder)) is not None:  # of a program that knew no other place
            key, written = there
            reason = Reason.REPLACED
            keys.make_signing(SigningKey(files.secret_of(key), written))
            files.remove(self._folder)
        if not keys.signing():
            keys.make_signing()
            is_new = True
        *before, last = keys.signing()
        with self._store.read() as reader:
            missed = [one for one in before if signers.find(reader, _public(one)) is None]
        if missed:
            now = self._clock.now()
            with self._store.write() as tx:
                for one in missed:
                    signers.put(tx, Signer(_public(one), one.created, Reason.REPLACED, until=now))
        note(self._store, _public(last), since=last.created, reason=reason, clock=self._clock)
        return files.private_key(last.secret), is_new


def _public(key: SigningKey) -> bytes:
    return files.public_bytes(files.private_key(key.secret))


def note(store: Engine, public: bytes, *, since: Instant, reason: Reason, clock: Clock) -> None:
    """Have it on stable storage that the archive signs with this key from now on."""
    with store.read() as reader:
        known = signers.every(reader)
    if [(signer.public, signer.told) for signer in known if not signer.until] == [(public, False)]:
        return
    now = clock.now()
    first = Reason.FIRST if reason is not Reason.RESTORED else reason
    with store.write() as tx:
        signers.begin(tx, public, since=min(since, now), now=now, reason=reason if known else first)
    store.sync(store.position)
    log.info("signing.key", extra={"keys": len(known) + 1, "reason": reason.name.lower()})


def _from_file(store: Engine, folder: str, reason: Reason, clock: Clock) -> tuple[Ed25519PrivateKey, bool]:
    key, is_new = files.ensure(folder)
    there = files.find(folder)
    since = clock.now() if is_new or there is None else there[1]
    note(store, files.public_bytes(key), since=since, reason=reason, clock=clock)
    return key, is_new


def after_restore(
    store: Engine, folder: str, unlocked: Unlocked | None, *, clock: Clock, entropy: keyring.Entropy
) -> tuple[Unlocked | None, bool]:
    """Settle what a rebuilt archive signs with: the key in its keyring, or a new one where there is none.

    Returns the keyring, which may have got one more key, and whether the key is new. Raises Damaged, NoSpace,
    StorageFailed.
    """
    if unlocked is None:
        return None, _from_file(store, folder, Reason.RESTORED, clock)[1]
    is_new = not unlocked.signing()
    if is_new:  # its targets have no keyring of a program that knew this
        unlocked = unlocked.with_key(keyring.RECEIPTS, clock.now(), entropy)
    last = unlocked.signing()[-1]
    reason = Reason.RESTORED if is_new else Reason.RENEWED  # after the last manifest that tells of a key
    note(store, _public(last), since=last.created, reason=reason, clock=clock)
    return unlocked, is_new
