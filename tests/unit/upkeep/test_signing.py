"""Which key signs, where it is kept, and that its public half is on record with its times."""

from __future__ import annotations

import os

import pytest

from tests.servers.clocks import ManualClock
from vnafs.content import keyring
from vnafs.domain.clock import Instant
from vnafs.domain.errors import Damaged, FormatUnknown, InvalidArgument
from vnafs.domain.faults import NoFaults
from vnafs.index import keys as index_keys
from vnafs.index import signers
from vnafs.index.engines.memory import MemoryEngine
from vnafs.index.signers import Reason, Signer
from vnafs.pipeline.keys import Keys
from vnafs.receipts import keys as files
from vnafs.upkeep import signing
from vnafs.upkeep.signing import Signing

ARCHIVE, MASTER, RECOVERY = b"a" * 16, b"m" * 16, b"r" * 20


class House:
    """One archive's store and folder of keys, with or without a keyring."""

    def __init__(self, folder, *, encrypted: bool) -> None:
        self.folder = str(folder)
        self.clock = ManualClock()
        self.store = MemoryEngine()
        self.saved: list[bytes] = []
        self.keys: Keys | None = None
        if encrypted:
            made = keyring.made(ARCHIVE, self.clock.now(), master=MASTER, recovery=RECOVERY, entropy=os.urandom)
            self.use(made)
        self.signing = Signing(self.store, self.folder, self.keys, clock=self.clock)

    def use(self, unlocked: keyring.Unlocked) -> None:
        self.keys = Keys(unlocked, save=self.saved.append, random=os.urandom, clock=self.clock, faults=NoFaults())
        self.signing = Signing(self.store, self.folder, self.keys, clock=self.clock)

    def sign(self) -> tuple[bytes, bool]:
        key, is_new = self.signing.key()
        return files.public_bytes(key), is_new

    def history(self) -> list[Signer]:
        with self.store.read() as reader:
            return signers.every(reader)


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def house(request, tmp_path) -> House:
    return House(tmp_path, encrypted=request.param)


def test_the_first_key_is_on_record_before_it_signs_and_stays(house: House) -> None:
    public, is_new = house.sign()
    assert is_new
    house.clock.advance(100)
    assert house.sign() == (public, False)
    [row] = house.history()
    assert (row.public, row.reason, row.until, row.told) == (public, Reason.FIRST, 0, False)
    assert row.since <= house.clock.now() - 100 * 10**9


def test_an_encrypted_archive_has_its_key_in_the_keyring_and_no_file(tmp_path) -> None:
    house = House(tmp_path, encrypted=True)
    public, _ = house.sign()
    assert os.listdir(tmp_path) == []
    opened = keyring.unlock(house.saved[-1], RECOVERY)
    [kept] = opened.signing()
    assert files.public_bytes(files.private_key(kept.secret)) == public
    assert kept.secret.hex() not in house.saved[-1].decode()


def test_a_key_in_a_keyring_decrypts_nothing(tmp_path) -> None:
    house = House(tmp_path, encrypted=True)
    house.sign()
    opened = keyring.unlock(house.saved[-1], RECOVERY)
    signs = {key.id for key in opened.keyring.keys if key.repository == keyring.RECEIPTS}
    assert len(signs) == 1
    assert not signs & opened.every().keys()
    assert not signs & house.keys.manifests().known.keys()
    with pytest.raises(InvalidArgument):
        house.keys.rotate(keyring.RECEIPTS)
    assert house.keys.signing()[-1].secret == opened.signing()[-1].secret


def test_a_file_of_an_older_encrypted_archive_is_taken_into_the_keyring(tmp_path) -> None:
    key, _ = files.ensure(str(tmp_path))
    os.utime(tmp_path / files.FILE_NAME, ns=(1, 5 * 10**9))
    house = House(tmp_path, encrypted=True)
    assert house.sign() == (files.public_bytes(key), False)
    assert os.listdir(tmp_path) == []
    assert house.sign() == (files.public_bytes(key), False)
    assert [(row.since, row.until, row.reason) for row in house.history()] == [(5 * 10**9, 0, Reason.FIRST)]


def test_a_file_that_was_taken_in_when_the_machine_died_is_taken_in_once(tmp_path) -> None:
    key, _ = files.ensure(str(tmp_path))
    house = House(tmp_path, encrypted=True)
    house.keys.make_signing(keyring.SigningKey(files.secret_of(key), Instant(1)))
    assert house.sign() == (files.public_bytes(key), False)
    assert len(house.keys.signing()) == 1
    assert os.listdir(tmp_path) == []


def test_after_renewal_another_key_signs_and_the_one_before_has_an_end(tmp_path) -> None:
    house = House(tmp_path, encrypted=True)
    first, _ = house.sign()
    house.clock.advance(50)
    house.keys.renew(master=b"M" * 16, recovery=b"R" * 20)
    second, is_new = house.sign()
    assert (second != first, is_new) == (True, False)
    before, now = house.history()
    assert (before.public, before.until, now.public) == (first, house.clock.now(), second)
    assert (now.reason, now.until) == (Reason.RENEWED, 0)


def test_rotation_of_data_keys_changes_no_key_of_receipts(tmp_path) -> None:
    house = House(tmp_path, encrypted=True)
    first = house.sign()[0]
    house.keys.rotate(keyring.MANIFESTS)
    assert house.sign() == (first, False)


def test_a_file_that_is_gone_or_another_ones_is_noted_with_its_time(tmp_path) -> None:
    house = House(tmp_path, encrypted=False)
    first, _ = house.sign()
    os.unlink(tmp_path / files.FILE_NAME)
    house.clock.advance(10)
    second, is_new = house.sign()
    assert is_new
    before, now = house.history()
    assert (before.public, before.until) == (first, house.clock.now())
    assert (now.public, now.since, now.reason) == (second, house.clock.now(), Reason.REPLACED)


def test_a_key_that_comes_back_signs_again_and_is_listed_once(tmp_path) -> None:
    house = House(tmp_path, encrypted=False)
    first, _ = house.sign()
    os.rename(tmp_path / files.FILE_NAME, tmp_path / "aside")
    second, _ = house.sign()
    os.rename(tmp_path / "aside", tmp_path / files.FILE_NAME)
    assert house.sign() == (first, False)
    assert [(row.public, bool(row.until)) for row in house.history()] == [(second, True), (first, False)]


def test_what_an_older_keyring_signed_with_is_in_the_history_too(tmp_path) -> None:
    """Of a keyring that a target had and this disk did not: its key comes in as an older one."""
    house = House(tmp_path, encrypted=True)
    house.sign()
    late = keyring.unlock(house.saved[-1], MASTER).with_key(keyring.RECEIPTS, house.clock.now(), os.urandom)
    house.store = MemoryEngine()
    house.use(late)
    last, _ = house.sign()
    before, now = house.history()
    assert (bool(before.until), now.public, now.until) == (True, last, 0)


def test_a_restored_archive_without_encryption_signs_with_another_key(tmp_path) -> None:
    house = House(tmp_path, encrypted=False)
    with house.store.write() as tx:
        signers.put(tx, Signer(b"p" * 32, Instant(7), Reason.FIRST, told=True))
    nothing, is_new = signing.after_restore(house.store, house.folder, None, clock=house.clock, entropy=os.urandom)
    assert (nothing, is_new) == (None, True)
    before, now = house.history()
    assert (before.public, before.since, before.until, before.told) == (b"p" * 32, 7, house.clock.now(), True)
    assert (now.reason, now.told) == (Reason.RESTORED, False)
    assert house.sign() == (now.public, False)
    assert len(house.history()) == 2


@pytest.mark.parametrize("has_key", [True, False])
def test_a_restored_encrypted_archive_goes_on_with_what_its_keyring_has(tmp_path, has_key: bool) -> None:
    house = House(tmp_path, encrypted=True)
    unlocked = keyring.made(ARCHIVE, house.clock.now(), master=MASTER, recovery=RECOVERY, entropy=os.urandom)
    if has_key:
        unlocked = unlocked.with_key(keyring.RECEIPTS, house.clock.now(), os.urandom)
    kept, is_new = signing.after_restore(house.store, house.folder, unlocked, clock=house.clock, entropy=os.urandom)
    assert is_new is not has_key
    assert len(kept.signing()) == 1
    if has_key:
        assert kept is unlocked
    house.use(kept)
    [row] = house.history()
    assert row.reason is (Reason.FIRST if has_key else Reason.RESTORED)
    assert house.sign() == (row.public, False)
    assert os.listdir(tmp_path) == []


def test_a_renewal_that_no_manifest_told_of_yet_is_noted_after_a_restore(tmp_path) -> None:
    house = House(tmp_path, encrypted=True)
    house.sign()
    house.keys.renew(master=b"M" * 16, recovery=b"R" * 20)
    renewed = keyring.unlock(house.saved[-1], b"R" * 20)
    signing.after_restore(house.store, house.folder, renewed, clock=house.clock, entropy=os.urandom)
    before, now = house.history()
    assert (before.until, now.until, now.reason) == (house.clock.now(), 0, Reason.RENEWED)


def test_a_row_of_a_later_version_is_refused_by_name() -> None:
    store = MemoryEngine()
    row = signers.encode(Signer(b"p" * 32, Instant(7), Reason.FIRST))
    with store.write() as tx:
        tx.put(index_keys.signer(b"p" * 32), b"\x02" + row[1:])
    with store.read() as reader, pytest.raises(FormatUnknown):
        signers.every(reader)


@pytest.mark.parametrize("public", [b"", b"p" * 31, b"p" * 33])
def test_a_row_of_what_is_no_key_is_damaged(public: bytes) -> None:
    with pytest.raises(Damaged):
        signers.decode(public, signers.encode(Signer(b"p" * 32, Instant(7), Reason.FIRST)))
