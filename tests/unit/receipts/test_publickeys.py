"""Public keys as a file: every one comes back with its times, alone or among others, and nonsense is refused."""

import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vnafs.domain.errors import InvalidArgument, NotFound
from vnafs.receipts import keys, publickeys
from vnafs.receipts.publickeys import PublicKey

PRIVATE = [Ed25519PrivateKey.generate() for _ in range(2)]
OLD = PublicKey(PRIVATE[0].public_key(), "2026-01-02T03:04:05Z", "2026-02-02T03:04:05Z", "the first one", told=True)
NEW = PublicKey(PRIVATE[1].public_key(), "2026-02-02T03:04:05Z", "", "the archive was restored")


def shown(found):
    return [(one.name, one.since, one.until, one.why, one.told) for one in found]


def test_all_keys_come_back_from_a_file_with_their_times(tmp_path):
    path = tmp_path / "keys.pem"
    path.write_text(publickeys.text([OLD, NEW]))
    assert shown(publickeys.read(str(path))) == shown([OLD, NEW])
    path.write_bytes(publickeys.text([OLD, NEW]).replace("\n", "\r\n").encode())  # as mail makes it
    assert shown(publickeys.read(str(path))) == shown([OLD, NEW])


def test_a_key_alone_has_no_times_and_openssl_reads_either_file(tmp_path):
    path = tmp_path / "key.pem"
    path.write_text(publickeys.pem(OLD.key))
    [found] = publickeys.read(str(path))
    assert (found.name, found.since, found.until, found.told) == (OLD.name, "", "", False)
    for text in (publickeys.pem(OLD.key), publickeys.text([OLD, NEW])):
        path.write_text(text)
        words = ["openssl", "pkey", "-pubin", "-in", str(path), "-noout", "-text_pub"]
        assert b"ED25519" in subprocess.run(words, check=True, capture_output=True).stdout


def test_what_is_not_known_of_a_key_is_left_out(tmp_path):
    path = tmp_path / "keys.pem"
    path.write_text(publickeys.text([PublicKey(OLD.key), PublicKey(NEW.key, "unknown", "unknown")]))
    assert shown(publickeys.read(str(path))) == [(one.name, "", "", "", False) for one in (OLD, NEW)]


def test_the_key_with_the_right_thumbprint_is_taken(tmp_path):
    assert publickeys.of_signer([OLD, NEW], OLD.name) is OLD
    assert publickeys.of_signer([OLD, NEW], NEW.name) is NEW
    assert publickeys.of_signer([OLD, NEW], "of somebody else") is NEW


def test_what_is_no_public_key_is_refused(tmp_path):
    path = tmp_path / "key.pem"
    with pytest.raises(NotFound):
        publickeys.read(str(path))
    keys.ensure(str(tmp_path))
    with pytest.raises(InvalidArgument):
        publickeys.read(str(tmp_path / keys.FILE_NAME))
    good = publickeys.text([OLD, NEW])
    for text in ("", "nonsense", good.replace("MCow", "MCo!"), good.replace("Until: 2026", "Until: soon 2026")):
        path.write_text(text)
        with pytest.raises(InvalidArgument):
            publickeys.read(str(path))
    words = ["openssl", "genpkey", "-algorithm", "x25519", "-out", str(tmp_path / "other.pem")]
    subprocess.run(words, check=True)
    subprocess.run(["openssl", "pkey", "-in", tmp_path / "other.pem", "-pubout", "-out", path], check=True)
    with pytest.raises(InvalidArgument):
        publickeys.read(str(path))
