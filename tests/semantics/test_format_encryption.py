"""FORMAT.md, "Encryption", executed: what the product writes is opened here by the document's words and by primitives.

Nothing of the product's own reading is used, except where it has to refuse.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

from tests.semantics.test_format import DOCUMENT, ENTRY, HEADER, RECORD, Pack
from tests.semantics.test_format_manifest import HEADER as MANIFEST_HEADER
from vnafs.content import crypt, keyring, manifest, packfile
from vnafs.content.crypt import Part
from vnafs.content.manifest import Header, Kind, Operation, Row
from vnafs.content.packfile import FileHints, PackHeader, PackReader, PackWriter
from vnafs.domain import errors
from vnafs.domain.clock import Instant
from vnafs.domain.envelopes import KeyId
from vnafs.domain.faults import NoFaults
from vnafs.domain.ids import Inode, PackId, RepositoryId, Sha256, Span, TargetName, Version, new_pack_id
from vnafs.domain.recipes import Codec, PieceKind, Recipe
from vnafs.extract import vna_extract
from vnafs.pipeline.keys import Keys, unlocked_from
from vnafs.targets.body import BytesBody
from vnafs.targets.memory import MemoryTarget

SECTION = DOCUMENT.split("\n# Encryption")[1]
ARCHIVE, REPOSITORY, NOW = bytes(range(16)), RepositoryId(4711), Instant(1_760_000_000_123_456_789)
MASTER, RECOVERY = b"correct horse", bytes(range(100, 120))
PLAIN = b"a piece that nobody without a key may read " * 100


def purpose(word: str) -> bytes:
    """One of the document's purposes, by a word in it."""
    (found,) = {text for text in re.findall(r'"(vnafs: [^"]+)"', SECTION) if word in text}
    return str(found).encode()


def derived(secret: bytes, word: str) -> bytes:
    return hmac.digest(secret, purpose(word) + b"\1", "sha256")


def unwrapped(secret: bytes, word: str, wrapped: bytes) -> bytes:
    return aes_key_unwrap(derived(secret, word), wrapped)


def made(entropy=os.urandom) -> keyring.Unlocked:
    first = keyring.made(ARCHIVE, NOW, master=MASTER, recovery=RECOVERY, entropy=entropy)
    return first.with_key(REPOSITORY, NOW, entropy)


@pytest.fixture(scope="module")
def ring() -> keyring.Unlocked:
    return made()


def root_of(document: dict, secret: bytes) -> bytes:
    """The root key, by the document."""
    for slot in document["slots"]:
        assert slot["kdf"] == "scrypt"
        stretched = hashlib.scrypt(
            secret, salt=bytes.fromhex(slot["salt"]), n=slot["n"], r=slot["r"], p=slot["p"], maxmem=1 << 27, dklen=32
        )
        try:
            return unwrapped(stretched, "the root key", bytes.fromhex(slot["wrapped"]))
        except InvalidUnwrap:
            continue
    pytest.fail("no slot opens")


def keys_of(document: dict, secret: bytes) -> dict[bytes, bytes]:
    root = root_of(document, secret)
    return {
        bytes.fromhex(entry["id"]): unwrapped(root, "keys of repositories", bytes.fromhex(entry["wrapped"]))
        for entry in document["keys"]
    }


def keys_object(ring: keyring.Unlocked, random=os.urandom) -> Keys:
    class Still:
        def now(self):
            return NOW

        def monotonic(self):
            return 1.0

        def sleep(self, _):
            raise AssertionError

    return Keys(ring, save=lambda _: None, random=random, clock=Still(), faults=NoFaults())


def write_pack(folder: Path, keys: Keys, pack: PackId) -> tuple[bytes, Span]:
    envelope, cipher = keys.new_pack(REPOSITORY, pack)
    header = PackHeader(pack, ARCHIVE, REPOSITORY, 0, NOW, envelope)
    writer = PackWriter(str(folder / pack.hex()), header, repository_name="secret-repository", cipher=cipher)
    sha256 = Sha256(hashlib.sha256(PLAIN).digest())
    ref = writer.append_piece(PLAIN, raw_bytes=len(PLAIN), codec=Codec.NONE, kind=PieceKind.BYTES, sha256=sha256)
    hints = FileHints(b"secret-repository/MUELLER^ANNA.dcm", Inode(5), Version(1))
    span = writer.append_content(Recipe(sha256, len(PLAIN), (ref,)), hints)
    writer.close()
    return (folder / pack.hex()).read_bytes(), span


@pytest.fixture
def pack(tmp_path: Path, ring: keyring.Unlocked) -> Pack:
    return Pack(write_pack(tmp_path, keys_object(ring), new_pack_id())[0])


def data_key(ring: keyring.Unlocked, head: bytes, fields: dict) -> bytes:
    assert fields["encryption"].number_in(head) == 1
    assert fields["wrapped_key_bytes"].number_in(head) == 40
    key = keys_of(json.loads(ring.encode()), MASTER)[fields["key_id"].bytes_in(head)]
    return unwrapped(key, "data keys, 1", fields["wrapped_key"].bytes_in(head)[:40])


def part(key: bytes, kind: int, data: bytes, offset: int, length: int, about: bytes) -> bytes:
    """One part of an object, decrypted as the document says."""
    return AESGCM(key).decrypt(struct.pack("<IQ", kind, offset), data[offset : offset + length], about)


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [MASTER, RECOVERY])
def test_c4_each_secret_opens_the_keyring_and_the_guard_fits(ring: keyring.Unlocked, secret: bytes) -> None:
    document = json.loads(ring.encode())
    assert (document["format"], document["version"]) == ("vnafs keys", 1)
    assert (document["archive"], document["number"]) == (ARCHIVE.hex(), 2)
    assert sorted(slot["takes"] for slot in document["slots"]) == ["master", "recovery"]
    assert [entry["repository"] for entry in document["keys"]] == [0, REPOSITORY]
    rest = {name: value for name, value in document.items() if name not in {"guard", "sha256"}}
    plain = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode("ascii")
    assert document["guard"] == hmac.digest(derived(root_of(document, secret), "guards"), plain, "sha256").hex()
    assert document["sha256"] == hashlib.sha256(plain + document["guard"].encode()).hexdigest()
    assert len(keys_of(document, secret)) == 2


def checked(document: dict) -> bytes:
    rest = {name: value for name, value in document.items() if name not in {"guard", "sha256"}}
    plain = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps(document | {"sha256": hashlib.sha256(plain + document["guard"].encode()).hexdigest()}).encode()


def test_c5_a_keyring_of_another_archive_is_left_alone(ring: keyring.Unlocked) -> None:
    target = MemoryTarget(TargetName("a"))
    other = keyring.made(b"o" * 16, NOW, master=MASTER, recovery=RECOVERY, entropy=os.urandom).with_key(
        REPOSITORY, NOW, os.urandom
    )
    target.put(keyring.keyring_name(2), BytesBody(other.encode()))
    with pytest.raises(errors.TargetRefused, match="another archive"):
        keys_object(ring).bring(target, target.probe())
    assert b"".join(target.get(keyring.keyring_name(2))) == other.encode()
    spoilt = bytearray(ring.encode())
    spoilt[spoilt.index(ARCHIVE.hex().encode())] ^= 4  # looks like another's, and is only damaged
    target.replace(keyring.keyring_name(2), bytes(spoilt))
    keys = keys_object(ring)
    with pytest.raises(errors.Damaged):
        keys.bring(target, target.probe())
    keys.bring(target, target.probe())
    assert b"".join(target.get(keyring.keyring_name(2))) == ring.encode()


def test_keys_of_an_earlier_life_are_gathered_and_none_is_lost(ring: keyring.Unlocked) -> None:
    """The disk was reverted: the target has a keyring with the number that is about to be used again."""
    target = MemoryTarget(TargetName("a"))
    lived, reverted = keys_object(ring), keys_object(ring)
    other = RepositoryId(99)
    lived.rotate(REPOSITORY)
    lived.bring(target, target.probe())
    reverted.rotate(other)
    reverted.bring(target, target.probe())
    assert reverted.keyring.number == 4
    assert {key.id for key in lived.keyring.keys} < {key.id for key in reverted.keyring.keys}
    assert reverted.keyring.keys[-1].repository == other
    assert unlocked_from(target, RECOVERY).keyring == reverted.keyring


def test_c4_a_keyring_that_was_changed_is_refused(ring: keyring.Unlocked) -> None:
    document = json.loads(ring.encode())
    for change in ({"number": 9}, {"keys": document["keys"][:1]}, {"slots": document["slots"][:1]}, {"more": 1}):
        with pytest.raises(errors.Damaged):
            keyring.unlock(json.dumps(document | change).encode(), MASTER)
        with pytest.raises(errors.Damaged):  # with a right checksum, which anybody can make
            keyring.unlock(checked(document | change), MASTER)
    with pytest.raises(errors.FormatUnknown):
        keyring.unlock(json.dumps(document | {"version": 2}).encode(), MASTER)
    with pytest.raises(errors.KeyWrong):
        keyring.unlock(ring.encode(), b"another secret")


def test_c1_other_secrets_and_other_keys_change_no_pack(tmp_path: Path, ring: keyring.Unlocked) -> None:
    before, span = write_pack(tmp_path, keys_object(ring), new_pack_id())
    renewed = ring.renewed(NOW, master=b"other", recovery=bytes(20), entropy=os.urandom)
    identity = PackId(HEADER["pack_id"].bytes_in(before))
    envelope = packfile.decode_header(before).envelope
    assert envelope is not None
    cipher = keys_object(keyring.unlock(renewed.encode(), b"other")).cipher(envelope, identity)
    reader = PackReader(lambda s: before[s.offset :][: s.length], len(before), identity, cipher)
    assert b"".join(packfile.rebuild(reader.recipe(span), reader.piece)) == PLAIN
    after, _ = write_pack(tmp_path, keys_object(renewed), new_pack_id())
    assert HEADER["key_id"].bytes_in(after) != HEADER["key_id"].bytes_in(before)
    with pytest.raises(errors.KeyWrong):
        keyring.unlock(renewed.encode(), MASTER)


def test_c2_a_recovery_key_survives_being_typed() -> None:
    check = hashlib.sha256(b"vnafs recovery key" + RECOVERY).digest()[:5]
    bare = base64.b32encode(RECOVERY + check).decode()
    text = keyring.recovery_text(RECOVERY)
    assert text == "-".join(bare[at : at + 5] for at in range(0, 40, 5))
    for typed in (text.lower(), bare, f" {text.replace('-', ' ')}\n", text.replace("O", "0").replace("I", "1")):
        assert keyring.recovery_secret(typed) == RECOVERY == keyring.secret_of(typed.encode())
    for at in range(0, len(text), 3):
        slip = text[:at] + ("A" if text[at] != "A" else "C") + text[at + 1 :]
        assert text[at] == "-" or keyring.recovery_secret(slip) is None


def test_c3_any_other_secret_is_the_bytes_of_its_file() -> None:
    assert keyring.secret_of(b"correct horse\r\n") == b"correct horse"
    assert keyring.secret_of(b" \xff spaces count \n") == b" \xff spaces count "


def test_c5_no_target_gets_anything_encrypted_before_the_keyring(ring: keyring.Unlocked) -> None:
    target = MemoryTarget(TargetName("a"))
    keys = keys_object(ring)
    keys.bring(target, target.probe())
    assert list(target.list("keys/")) == ["keys/0000000000000002.keys"]
    assert b"".join(target.get(next(target.list("keys/")))) == ring.encode()
    keys.rotate(REPOSITORY)
    keys.bring(target, target.probe())
    assert list(target.list("keys/")) == ["keys/0000000000000002.keys", "keys/0000000000000003.keys"]


# -- objects -----------------------------------------------------------------------------------------------------------


def test_c6_every_part_of_a_pack_opens_by_the_document_alone(pack: Pack, ring: keyring.Unlocked) -> None:
    head, about = pack.header, HEADER["pack_id"].bytes_in(pack.header)
    key = data_key(ring, head, HEADER)
    at, stored = pack.footer_number("catalogue_offset"), pack.footer_number("catalogue_stored_bytes")
    frame = part(key, 3, pack.data, at, stored, about)
    assert zstandard.frame_content_size(frame) == pack.footer_number("catalogue_raw_bytes")
    lines = [json.loads(line) for line in zstandard.ZstdDecompressor().decompress(frame).splitlines()]
    assert lines[-1]["path"] == "secret-repository/MUELLER^ANNA.dcm"
    (recipe,) = (line for line in lines if line["kind"] == "recipe")
    record = part(key, 2, pack.data, recipe["offset"], recipe["length"], about)
    assert RECORD["record_bytes"].number_in(record) == len(record) == recipe["length"] - 16
    entry = record[56 : 56 + 56]
    offset, length = ENTRY["offset"].number_in(entry), ENTRY["stored_bytes"].number_in(entry)
    assert length == len(PLAIN) + 16
    assert part(key, 1, pack.data, offset, length, about) == PLAIN


def segment(keys: manifest.Keys | None, number: int = 7) -> bytes:
    rows = [Row(Operation.PUT, b"nE" + bytes(8) + b"MUELLER^ANNA", b"value " * 50)]
    return manifest.encode(Header(Kind.SEGMENT, ARCHIVE, number=number, created=NOW), rows, keys)


def test_c6_a_manifest_object_opens_by_the_document_alone(ring: keyring.Unlocked) -> None:
    data = segment(keys_object(ring).manifests())
    key = data_key(ring, data, MANIFEST_HEADER)
    body = data[384:]
    assert MANIFEST_HEADER["body_stored_bytes"].number_in(data) == len(body)
    assert MANIFEST_HEADER["body_sha256"].bytes_in(data) == hashlib.sha256(body).digest()
    frame = AESGCM(key).decrypt(struct.pack("<IQ", 4, 0), body, data[:88])
    assert zstandard.ZstdDecompressor().decompress(frame) == zstandard.ZstdDecompressor().decompress(
        segment(None)[384:]
    )


def test_c7_neither_a_repeated_random_number_nor_a_repeated_object_repeats_a_nonce(ring: keyring.Unlocked) -> None:
    def repeating(length: int) -> bytes:
        return b"\x07" * length

    repository = next(wrapped for wrapped in ring.keyring.keys if wrapped.repository == REPOSITORY)
    secret = ring.key(repository)
    identity, other = PackId(b"p" * 16), PackId(b"q" * 16)
    envelopes = [
        crypt.seal_pack(secret, pack, now, repeating(32))[0]
        for pack, now in ((identity, NOW), (other, NOW), (identity, Instant(NOW + 1)))
    ]
    assert len({envelope.wrapped for envelope in envelopes}) == 3
    expected = hmac.digest(repeating(32), identity + NOW.to_bytes(8, "little"), "sha256")
    assert unwrapped(secret.secret, "data keys, 1", envelopes[0].wrapped) == expected
    keys = keys_object(ring).manifests()
    one, again, another = segment(keys), segment(keys), segment(keys, 8)
    assert one == again
    wrapped = [MANIFEST_HEADER["wrapped_key"].bytes_in(data) for data in (one, another)]
    assert wrapped[0] != wrapped[1]
    plain = segment(None)
    digest = hashlib.sha256(plain[:88] + plain[384:]).digest()
    expected = hmac.digest(derived(keys.current.secret, "data keys of manifest objects"), digest, "sha256")
    assert data_key(ring, one, MANIFEST_HEADER) == expected


def test_c7_two_keyrings_made_with_the_same_random_numbers_differ_by_their_time() -> None:
    rings = [keyring.made(ARCHIVE, now, master=b"m", recovery=RECOVERY, entropy=bytes) for now in (NOW, Instant(8))]
    assert rings[0].root != rings[1].root


def everything(reader: PackReader, span: Span) -> None:
    list(packfile.rebuild(reader.recipe(span), reader.piece))
    reader.catalogue()


def test_c8_changed_moved_and_foreign_bytes_are_never_given(tmp_path: Path, ring: keyring.Unlocked) -> None:
    keys = keys_object(ring)
    data, span = write_pack(tmp_path, keys, identity := new_pack_id())
    envelope = packfile.decode_header(data).envelope
    assert envelope is not None
    cipher = keys.cipher(envelope, identity)
    for at in range(256, len(data) - 160, 61):
        broken = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        reader = PackReader(lambda s, broken=broken: broken[s.offset :][: s.length], len(broken), identity, cipher)
        with pytest.raises(errors.Damaged):
            everything(reader, span)
    with pytest.raises(errors.Damaged):  # moved
        cipher.open(Part.PIECE, 300, data[256 : 256 + len(PLAIN) + 16])
    with pytest.raises(errors.Damaged):  # passed off as something else
        cipher.open(Part.CATALOGUE, 256, data[256 : 256 + len(PLAIN) + 16])
    with pytest.raises(errors.Damaged):  # of another pack
        keys.cipher(envelope, PackId(b"z" * 16)).open(Part.PIECE, 256, data[256 : 256 + len(PLAIN) + 16])


def test_c8_a_manifest_object_without_the_key_is_not_taken(ring: keyring.Unlocked) -> None:
    keys = keys_object(ring).manifests()
    whole = segment(keys)
    assert len(list(manifest.decode(whole, keys)[1])) == 1
    for forged in (segment(None), segment(keys_object(made()).manifests())):
        with pytest.raises((errors.Damaged, errors.KeyMissing)):
            manifest.decode(forged, keys)
    with pytest.raises(errors.KeyMissing):
        manifest.decode(whole)
    head = bytearray(whole)  # another number, guard and all: what the guard cannot show, the key does
    head[40] = 9
    head[376:384] = xxhash.xxh3_64_intdigest(bytes(head[:376])).to_bytes(8, "little")
    with pytest.raises(errors.Damaged):
        manifest.decode(bytes(head), keys)


def test_c10_the_key_of_receipts_is_wrapped_as_others_and_reads_nothing(tmp_path: Path) -> None:
    with_receipts = made().with_key(keyring.RECEIPTS, NOW, os.urandom)
    document = json.loads(with_receipts.encode())
    [entry] = [entry for entry in document["keys"] if entry["repository"] == 1]
    seed = keys_of(document, RECOVERY)[bytes.fromhex(entry["id"])]
    signing = Ed25519PrivateKey.from_private_bytes(seed)
    keys = keys_object(with_receipts)
    assert [one.secret for one in keys.signing()] == [seed]
    keys.rotate(REPOSITORY)
    assert [one.secret for one in keys.signing()] == [seed]
    # a manifest object that somebody made with the stolen key of receipts is not read with it
    stolen = crypt.Key(KeyId(bytes.fromhex(entry["id"])), seed)
    forged = manifest.encode(Header(Kind.SEGMENT, ARCHIVE, 1, 1, NOW), [], manifest.Keys(stolen, {stolen.id: stolen}))
    with pytest.raises(errors.KeyMissing):
        manifest.decode(forged, keys.manifests())
    target = tmp_path / "target"
    (target / "keys").mkdir(parents=True)
    (target / "keys" / "0000000000000003.keys").write_bytes(with_receipts.encode())
    assert (
        signing.private_bytes_raw()
        not in vna_extract.Keys(
            vna_extract.open_target(f"file://{target}"), keyring.recovery_text(RECOVERY).encode()
        )._keys.values()
    )
    keys.renew(master=MASTER, recovery=RECOVERY)
    assert [one.secret == seed for one in keys.signing()] == [True, False]


def test_c9_an_object_without_its_key_says_no_name_and_no_hash(pack: Pack, ring: keyring.Unlocked) -> None:
    data = pack.data + segment(keys_object(ring).manifests()) + ring.encode()
    digest = hashlib.sha256(PLAIN).digest()
    for secret in (
        b"MUELLER",
        b"secret-repository",
        b"nobody without",
        digest,
        digest.hex().encode(),
        MASTER,
        RECOVERY,
    ):
        assert secret not in data
    with pytest.raises(InvalidTag):
        part(bytes(32), 1, pack.data, 256, len(PLAIN) + 16, HEADER["pack_id"].bytes_in(pack.header))


def test_the_documents_words_name_every_promise() -> None:
    assert sorted(set(re.findall(r"\*\*C-(\d+)\*\*", SECTION)), key=int) == [str(n) for n in range(1, 11)]
    source = Path(__file__).read_text(encoding="utf-8")
    assert set(re.findall(r"def test_c(\d+)_", source)) == {str(n) for n in range(1, 11)}


def test_the_extractor_reads_the_same_keys(tmp_path: Path, ring: keyring.Unlocked) -> None:
    """A target as the document describes it, and a bare interpreter with public packages."""
    target = tmp_path / "target"
    (target / "keys").mkdir(parents=True)
    (target / "keys" / "0000000000000002.keys").write_bytes(ring.encode())
    (tmp_path / "packs").mkdir()
    data, _ = write_pack(tmp_path / "packs", keys_object(ring), identity := new_pack_id())
    place = target / "packs" / identity.hex()[:2] / f"{identity.hex()}.pack"
    place.parent.mkdir(parents=True)
    place.write_bytes(data)
    paper = tmp_path / "paper.txt"
    paper.write_text(keyring.recovery_text(RECOVERY).lower())
    program = Path(__file__).parents[2] / "vnafs" / "extract" / "vna_extract.py"

    def extracted(*more: str) -> subprocess.CompletedProcess[bytes]:
        words = [sys.executable, "-I", str(program), str(target), str(tmp_path / "out"), *more]
        return subprocess.run(words, capture_output=True, check=False, timeout=60)

    assert extracted().returncode == 3
    assert extracted("--key", __file__).returncode == 3
    done = extracted("--key", str(paper))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "secret-repository" / "MUELLER^ANNA.dcm").read_bytes() == PLAIN


def test_c8_the_extractor_takes_no_plain_pack_of_an_encrypted_repository(
    tmp_path: Path, ring: keyring.Unlocked
) -> None:
    target, program = tmp_path / "target", Path(__file__).parents[2] / "vnafs" / "extract" / "vna_extract.py"
    (target / "keys").mkdir(parents=True)
    (target / "keys" / "0000000000000002.keys").write_bytes(ring.encode())
    forged, identity = b"a forged image", PackId(b"f" * 16)
    place = target / "packs" / identity.hex()[:2]
    place.mkdir(parents=True)
    header = PackHeader(identity, ARCHIVE, REPOSITORY, 0, Instant(NOW + 1))
    writer = PackWriter(str(place / f"{identity.hex()}.pack"), header, repository_name="secret-repository")
    sha256 = Sha256(hashlib.sha256(forged).digest())
    ref = writer.append_piece(forged, raw_bytes=len(forged), codec=Codec.NONE, kind=PieceKind.BYTES, sha256=sha256)
    hints = FileHints(b"secret-repository/MUELLER^ANNA.dcm", Inode(5), Version(1))
    writer.append_content(Recipe(sha256, len(forged), (ref,)), hints)
    writer.close()
    paper = tmp_path / "paper.txt"
    paper.write_text(keyring.recovery_text(RECOVERY))
    words = [sys.executable, "-I", str(program), str(target), str(tmp_path / "out"), "--key", str(paper)]
    done = subprocess.run(words, capture_output=True, check=False, timeout=60)
    assert done.returncode == 4, done.stderr
    assert b"should be encrypted and is not" in done.stderr
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
