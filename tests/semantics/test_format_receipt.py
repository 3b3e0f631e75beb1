"""FORMAT.md's fourth part, executed: receipts are checked as the document says, by other means than ours."""

import base64
import dataclasses
import hashlib
import json
import os
import re
from typing import Any

import pytest
import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from joserfc.jwk import OKPKey
from joserfc.jws import deserialize_json
from rfc3161_client import decode_timestamp_response

from tests.servers.clocks import ManualClock
from tests.servers.tsa import tsa
from vnafs.content import keyring
from vnafs.domain.clock import Instant
from vnafs.domain.copies import VerifiedBy
from vnafs.domain.custody import Custody, CustodyCopy
from vnafs.domain.errors import Damaged, FormatUnknown, Refused
from vnafs.domain.files import FileState
from vnafs.domain.ids import RepositoryId, Sha256, TargetName
from vnafs.domain.recipes import EMPTY
from vnafs.domain.repositories import Repository
from vnafs.index import feeds, signers
from vnafs.index.engines.memory import MemoryEngine
from vnafs.receipts import jws, page, publickeys, timestamps
from vnafs.receipts.document import Occasion, document
from vnafs.receipts.erasure import Subject, certificate
from vnafs.receipts.publickeys import PublicKey
from vnafs.receipts.timestamps import TimestampService
from vnafs.receipts.verifying import verify
from vnafs.upkeep import changes
from vnafs.upkeep.signing import Signing, after_restore

with open(os.path.join(os.path.dirname(__file__), "..", "..", "FORMAT.md")) as stream:
    PART = stream.read().partition("# Receipts, version 1")[2]
KEY = Ed25519PrivateKey.generate()
SECOND = 1_000_000_000
COPY = CustodyCopy(TargetName("one"), Instant(1_700_000_000 * SECOND + 999_999_999), (VerifiedBy.READ_BACK,), True)
FILE = Custody(
    path=b"r/a",
    repository=Repository(RepositoryId(2), "r"),
    size_bytes=3,
    mtime_ns=-1,
    state=FileState.REPLICATED,
    sha256=Sha256(hashlib.sha256(b"abc").digest()),
    copies=(COPY,),
)
FILES = (
    FILE,
    dataclasses.replace(FILE, path=b"r/\xff<&>\n"),
    dataclasses.replace(FILE, path=b"r/empty", size_bytes=0, sha256=EMPTY),
    dataclasses.replace(FILE, path=b"r/open", state=FileState.OPEN, sha256=None, copies=()),
)


def a_receipt(files=FILES):
    occasion = Occasion(b"r" * 16, b"a" * 16, Instant(SECOND), Instant(2 * SECOND), (b"r",), jws.jwk(KEY.public_key()))
    return jws.sign(document(occasion, files), KEY)


def plain(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def payload(envelope):
    return json.loads(plain(envelope["payload"]))


def members(heading):
    """Names in the first column of a table."""
    rest = PART.partition(heading)[2]
    table = rest[rest.index("|") :].partition("\n\n")[0]
    return {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}


def test_r1_the_envelope_is_a_flattened_jws_with_ed25519():
    envelope = a_receipt()
    assert set(envelope) == {"payload", "protected", "signature"}
    key = OKPKey.import_key(jws.jwk(KEY.public_key()))
    header = {"alg": "EdDSA", "kid": key.thumbprint(), "typ": "vnafs-receipt+json"}
    assert json.loads(plain(envelope["protected"])) == header
    signed = f"{envelope['protected']}.{envelope['payload']}".encode()
    KEY.public_key().verify(plain(envelope["signature"]), signed)
    with pytest.raises(InvalidSignature):
        KEY.public_key().verify(plain(envelope["signature"]), signed + b"A")


def test_r2_payload_and_header_are_canonical():
    envelope = a_receipt()
    for member in ("payload", "protected"):
        data = plain(envelope[member])
        assert rfc8785.dumps(json.loads(data)) == data
    assert a_receipt() == envelope


def test_r3_the_key_in_the_payload_is_the_one_that_signed():
    envelope = a_receipt()
    shown = payload(envelope)["public_key"]
    assert (shown["kty"], shown["crv"]) == ("OKP", "Ed25519")
    Ed25519PublicKey.from_public_bytes(plain(shown["x"])).verify(
        plain(envelope["signature"]), f"{envelope['protected']}.{envelope['payload']}".encode()
    )


def test_r4_a_timestamp_is_of_the_signature_as_text_and_beside_it(tmp_path):
    envelope = a_receipt()
    with tsa(tmp_path) as authority:
        token = TimestampService(authority.url, str(authority.ca_file)).stamp(envelope["signature"])
    stamped = timestamps.attach(envelope, token)
    [entry] = stamped.pop("header")["etsiU"]
    assert stamped == envelope
    token = base64.b64decode(entry["sigTst"]["tstTokens"][0]["val"])
    answer = decode_timestamp_response(timestamps._response(token))
    assert answer.tst_info.message_imprint.message == hashlib.sha256(envelope["signature"].encode()).digest()


def test_the_document_names_every_member():
    said = payload(a_receipt())
    assert members("## Payload") == set(said)
    assert members("A file:") == {name for row in said["files"] for name in row}
    row = next(line for line in PART.splitlines() if line.startswith("| `copies` |"))
    assert {f"`{name}`" for name in said["files"][0]["copies"][0]} <= set(re.findall(r"`\w+`", row))
    row = next(line for line in PART.splitlines() if line.startswith("| `repositories` |"))
    assert {f"`{name}`" for name in said["repositories"][0]} <= set(re.findall(r"`\w+`", row))


def test_r5_times_never_say_later_than_it_was():
    [file, *_] = payload(a_receipt())["files"]
    assert file["copies"][0]["verified"] == "2023-11-14T22:13:20Z"
    assert file["modified"] == "1969-12-31T23:59:59Z"


def test_r6_what_changed_in_between_is_not_safe():
    said = payload(a_receipt([dataclasses.replace(FILE, trouble="it was changed")]))
    assert (said["begun"], said["as_of"]) == ("1970-01-01T00:00:01Z", "1970-01-01T00:00:02Z")
    assert (said["files"][0]["safe_to_delete"], said["safe_to_delete"]) == (False, False)


@pytest.mark.parametrize(
    "fields",
    [
        {"state": FileState.OPEN},
        {"trouble": "its local bytes are others"},
        {"copies": ()},
        {"copies": (dataclasses.replace(COPY, names_recorded=False),)},
    ],
)
def test_r7_a_file_is_safe_only_with_everything(fields):
    assert payload(a_receipt([FILE]))["safe_to_delete"] is True
    assert payload(a_receipt([dataclasses.replace(FILE, **fields)]))["files"][0]["safe_to_delete"] is False
    assert [row["safe_to_delete"] for row in payload(a_receipt())["files"]] == [True, True, True, False]
    assert payload(a_receipt([]))["safe_to_delete"] is False


def test_r8_the_page_holds_the_envelope_and_shows_nothing_else():
    envelope = a_receipt()
    shown = page.render(envelope)
    text = shown.partition('id="receipt">')[2].partition("</script>")[0]
    assert json.loads(text) == envelope
    assert page.envelope_of(shown) == envelope
    assert "<&>" not in shown
    assert not re.findall(r"(?:src|href|url)\s*[=(]", shown)
    for at in range(0, len(shown), 97):
        changed = shown[:at] + ("#" if shown[at] != "#" else "+") + shown[at + 1 :]
        with pytest.raises((Damaged, FormatUnknown)):
            jws.opened(page.envelope_of(changed), KEY.public_key())


FOUND: dict[str, Any] = {
    "contents": [{"sha256": hashlib.sha256(b"abc").hexdigest(), "size_bytes": 3, "also_of_other_files": True}],
    "packs": 2,
    "targets": [
        {"name": "one", "proven_ns": 3 * SECOND, "locked_until_ns": 0, "why": ""},
        {"name": "two", "proven_ns": 0, "locked_until_ns": 9 * SECOND, "why": "2 objects are <there> still"},
    ],
    "retired_targets": ["old"],
    "mirrors": [["plain", "it has none of the files"]],
}


def a_certificate(completed=0, found=FOUND):
    subject = Subject(
        b"c" * 16, b"a" * 16, "00000100000000ff", 7, "request <17>", 4, SECOND, completed, Instant(8 * SECOND),
        jws.jwk(KEY.public_key()),
    )  # fmt: skip
    return jws.sign(certificate(subject, found), KEY)


def test_r9_another_library_checks_a_certificate_that_is_complete():
    proven = [row for row in FOUND["targets"] if row["proven_ns"]]
    envelope = a_certificate(7 * SECOND, {**FOUND, "targets": proven})
    key = OKPKey.import_key(jws.jwk(KEY.public_key()))
    said = json.loads(deserialize_json(envelope, key, algorithms=["EdDSA"]).payload)
    assert said == payload(envelope)
    assert (said["complete"], said["completed"]) == (True, "1970-01-01T00:00:07Z")
    assert [target["proven"] for target in said["targets"]] == ["1970-01-01T00:00:03Z"]
    assert said["contents_sha256"] == hashlib.sha256(hashlib.sha256(b"abc").digest()).hexdigest()
    assert members("## Certificate of erasure") == set(said)
    rest = PART.partition("## Certificate of erasure")[2]
    for member in ("contents", "targets"):
        row = next(line for line in rest.splitlines() if line.startswith(f"| `{member}` |"))
        assert {f"`{name}`" for name in said[member][0]} <= set(re.findall(r"`\w+`", row))


def test_r10_what_is_not_complete_is_signed_and_says_what_is_left():
    said = payload(a_certificate())
    assert (said["complete"], said["completed"]) == (False, None)
    assert said["targets"][1] == {
        "name": "two",
        "proven": None,
        "how": "",
        "locked_until": "1970-01-01T00:00:09Z",
        "why": "2 objects are <there> still",
    }
    remains = " ".join(said["remains"])
    for words in ("1 contents stay", "Target old", "Plain mirror plain", "cannot speak"):
        assert words in remains


@pytest.mark.parametrize("completed", [0, 7 * SECOND])
def test_the_page_of_a_certificate_holds_it_and_shows_nothing_else(completed):
    envelope = a_certificate(completed)
    shown = page.render(envelope)
    assert page.envelope_of(shown) == envelope
    assert "<17>" not in shown.partition('id="receipt">')[0]
    for at in range(0, len(shown), 97):
        changed = shown[:at] + ("#" if shown[at] != "#" else "+") + shown[at + 1 :]
        with pytest.raises((Damaged, FormatUnknown)):
            jws.opened(page.envelope_of(changed), KEY.public_key())


# -- keys --------------------------------------------------------------------------------------------------------


def test_r11_a_name_counts_as_recorded_once_the_manifests_tell_of_the_key():
    """What a receipt waits for is the end of the store's feed; a key that begins is an event there."""
    store = MemoryEngine()
    with store.write() as tx:
        signers.begin(tx, b"p" * 32, since=Instant(1), now=Instant(1), reason=signers.Reason.FIRST)
    with store.read() as reader:
        assert feeds.end(reader) == 2
        [(_, event)] = feeds.read_from(reader, 1, 10)
        assert list(changes.of_store(reader, [event])) == []  # no pack of number 0 is told of
        assert (b"sS" + b"p" * 32) in {row.key for row in changes.few_of_store(reader)}


def test_r12_the_private_key_is_in_the_keyring_or_on_this_machine_alone(tmp_path):
    clock = ManualClock()
    plain_one, store = tmp_path / "plain", MemoryEngine()
    key, _ = Signing(store, str(plain_one), None, clock=clock).key()
    with store.read() as reader:
        rows = [bytes(value) for _, value in reader.scan(b"\0", b"\xff")] + [
            bytes(k) for k, _ in reader.scan(b"\0", b"\xff")
        ]
    assert not any(key.private_bytes_raw() in row for row in rows)
    ring = keyring.made(b"a" * 16, clock.now(), master=b"m" * 16, recovery=b"r" * 20, entropy=os.urandom)
    before = ring.with_key(keyring.RECEIPTS, clock.now(), os.urandom)
    restored = keyring.unlock(before.encode(), b"r" * 20)
    kept, is_new = after_restore(MemoryEngine(), str(tmp_path), restored, clock=clock, entropy=os.urandom)
    assert (kept.signing()[-1].secret, is_new) == (before.signing()[-1].secret, False)


def a_key_file(tmp_path, *known):
    path = tmp_path / "keys.pem"
    path.write_text(publickeys.text(known))
    return str(path)


def test_r13_a_key_that_only_a_target_told_of_is_said_to_be(tmp_path):
    told = PublicKey(KEY.public_key(), "1970-01-01T00:00:00Z", "", "the first one", told=True)
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(a_receipt()))
    assert verify(str(path), a_key_file(tmp_path, told)).key.told
    assert not verify(str(path), a_key_file(tmp_path, dataclasses.replace(told, told=False))).key.told


def test_r14_the_right_key_is_taken_and_one_out_of_use_verifies_nothing_younger(tmp_path):
    """The receipt is as of 00:00:02."""
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(a_receipt()))
    other = PublicKey(Ed25519PrivateKey.generate().public_key(), "1970-01-01T00:00:09Z")
    for until, fits in (("", True), ("1970-01-01T00:00:02Z", True), ("1970-01-01T00:00:01Z", False)):
        mine = PublicKey(KEY.public_key(), "1970-01-01T00:00:05Z", until, "the first one")
        for known in ((mine, other), (other, mine)):
            if fits:
                assert verify(str(path), a_key_file(tmp_path, *known)).key.name == mine.name
            else:
                with pytest.raises(Refused):
                    verify(str(path), a_key_file(tmp_path, *known))
    with pytest.raises(Damaged):
        verify(str(path), a_key_file(tmp_path, other, other))
    text = publickeys.text(
        [PublicKey(KEY.public_key(), "1970-01-01T00:00:05Z", "1970-01-01T00:00:06Z", "why", told=True)]
    )
    section = PART.partition("**R-14**")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([\w-]+):", section)) == set(re.findall(r"^([\w-]+): ", text, re.MULTILINE))


def test_every_promise_of_the_document_is_executed():
    promised = set(re.findall(r"\*\*R-(\d+)\*\*", PART))
    executed = {match[1] for name in globals() if (match := re.match(r"test_r(\d+)_", name))}
    assert promised == executed
