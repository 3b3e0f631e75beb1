"""Receipts of a real archive: what they say, and that others can check them without it."""

import base64
import contextlib
import hashlib
import json
import os
import stat
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from joserfc import jws
from joserfc.jwk import OKPKey

from tests.servers.tsa import make_chain, tsa
from tests.system.archives import QUICK, VNA, an_archive, until
from vnafs.content import keyring
from vnafs.receipts import jws as receipt_jws
from vnafs.receipts import keys

pytestmark = pytest.mark.system
SETTINGS = QUICK + "\n[manifests]\nseconds_max = 0.5\n"


def payload_of(envelope):
    text = envelope["payload"]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def receipt(archive, *paths, name="out", check=0, timeout=30):
    """Its answer and what is signed in it."""
    base = archive.folder / name
    answer = archive.vna("receipt", *paths, "--out", base, "--timeout", timeout, check=check)
    assert answer["written"] == [f"{base}.json", f"{base}.html"]
    return answer, payload_of(answer["receipt"])


def verify(*words, check=0, cwd="/"):
    """In a process that knows of no archive."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("VNA_")}
    done = subprocess.run(
        [*VNA, "receipt", "verify", *map(str, words), "--json"],
        env={**environ, "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.dirname(__file__)))},
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == check, done.stdout + done.stderr
    return json.loads(done.stdout)


def public_key(archive):
    path = archive.folder / "public.pem"
    path.write_text(archive.vna("receipt", "--public-key")["pem"])
    return path


def test_a_receipt_says_what_is_verified_where_and_is_checked_without_the_archive(tmp_path):
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        data = {"a.dcm": b"one" * 5000, "b.dcm": b"two" * 7000, "nothing": b""}
        (archive.share / "study").mkdir()
        for name, content in data.items():
            (archive.share / "study" / name).write_bytes(content)
        answer, said = receipt(archive, archive.share / "study")
        assert not answer["key_is_new"]  # `vna init` made it
        assert said["safe_to_delete"] is True
        assert [row["path"] for row in said["files"]] == [f"archive/study/{name}" for name in sorted(data)]
        for row in said["files"]:
            content = data[os.path.basename(row["path"])]
            assert row["sha256"] == hashlib.sha256(content).hexdigest()
            assert (row["size_bytes"], row["holds"], row["why"]) == (len(content), [], "")
            if content:
                [copy] = row["copies"]
                assert (copy["target"], copy["verified_by"], copy["names_recorded"]) == ("one", ["read back"], True)
                assert said["begun"] >= copy["verified"] or said["as_of"] >= copy["verified"]
        assert said["repositories"] == [{"name": "archive", "acknowledgement": "durable", "copies_min": 1}]
        key = public_key(archive)
        mode = stat.S_IMODE((archive.archive / "keys/receipts.pem").stat().st_mode)
        assert mode == 0o600
    for name in ("out.json", "out.html"):
        assert verify(tmp_path / name, "--key", key)["receipt"] == said


def test_an_encrypted_archive_gives_receipts_of_the_same_hashes(tmp_path):
    words = ("--encryption", "on", "--recovery-key", str(tmp_path / "paper.txt"))
    with an_archive(tmp_path, None, *words, settings=SETTINGS) as archive:
        (archive.share / "f").write_bytes(b"f" * 5000)
        _, said = receipt(archive, archive.share / "f")
        assert said["files"][0]["sha256"] == hashlib.sha256(b"f" * 5000).hexdigest()
        key = public_key(archive)
    verify(tmp_path / "out.json", "--key", key)


def test_what_is_not_verified_at_this_moment_is_not_safe(tmp_path):
    """Open; fewer copies than asked for; and a file of which all is well beside them: each says for itself."""
    targets = {"one": f"file://{tmp_path}/one", "two": f"file://{tmp_path}/two"}
    with an_archive(tmp_path, targets, settings=SETTINGS) as archive:
        (archive.share / "good").write_bytes(b"good" * 1000)
        archive.wait(2)
        (tmp_path / "two").rename(tmp_path / "away")
        (tmp_path / "two").write_bytes(b"a file where the target was")
        (archive.share / "one-copy").write_bytes(b"one copy" * 1000)
        archive.wait(1)
        with (archive.share / "open").open("wb") as file:
            file.write(b"bytes on their way")
            file.flush()
            _, said = receipt(archive, archive.share, check=1, timeout=1)
        rows = {row["path"].removeprefix("archive/"): row for row in said["files"]}
        assert rows["good"]["safe_to_delete"], rows["good"]
        assert len(rows["good"]["copies"]) == 2
        assert not rows["one-copy"]["safe_to_delete"]
        assert rows["one-copy"]["why"] == "2 verified copies are asked for and there are 1 (one)"
        assert not rows["open"]["safe_to_delete"]
        assert "not fixed yet" in rows["open"]["why"]
        assert (said["files_safe"], said["files_not_safe"], said["safe_to_delete"]) == (1, 2, False)
        assert verify(tmp_path / "out.json", "--key", public_key(archive), check=1)["receipt"] == said


def test_local_bytes_that_changed_behind_our_back_are_not_vouched_for(tmp_path):
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        (archive.share / "f").write_bytes(b"first" * 1000)
        archive.wait()
        until(lambda: archive.state(archive.share / "f") == "replicated", "replicated")
        [local] = [p for p in (archive.archive / "spool").rglob("*") if p.is_file() and p.stat().st_size == 5000]
        local.write_bytes(b"other" * 1000)
        _, said = receipt(archive, archive.share / "f", check=1, timeout=0)
        assert said["files"][0]["why"] == "its local bytes are not those that were sealed"


def test_a_stub_is_as_safe_as_its_copies(tmp_path):
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        (archive.share / "f").write_bytes(b"f" * 5000)
        archive.wait()
        archive.evict(archive.share / "f")
        _, said = receipt(archive, archive.share / "f")
        assert said["files"][0]["state"] == "stub"


def test_the_name_must_be_on_a_target_too(tmp_path):
    """Bytes that nobody finds again are not safe: with manifests far away the receipt says no."""
    with an_archive(tmp_path, settings=QUICK) as archive:
        (archive.share / "f").write_bytes(b"f" * 5000)
        archive.wait()
        until(lambda: archive.state(archive.share / "f") == "replicated", "replicated")
        until(lambda: list((tmp_path / "one/manifests/segments").glob("*")), "the first segment")
        (tmp_path / "one/manifests").rename(tmp_path / "aside")
        (tmp_path / "one/manifests").write_bytes(b"")
        (archive.share / "g").write_bytes(b"g" * 5000)
        archive.wait()
        _, said = receipt(archive, archive.share / "g", check=1, timeout=2)
        assert "its name is not recorded yet" in said["files"][0]["why"]


def test_others_check_the_signature_by_their_own_means(tmp_path):
    """openssl(1) with the printed key, and a JOSE library with the JWK."""
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        (archive.share / "f").write_bytes(b"f" * 5000)
        receipt(archive, archive.share / "f")
        key, answer = public_key(archive), archive.vna("receipt", "--public-key")
    envelope = json.loads((tmp_path / "out.json").read_text())
    (tmp_path / "signed").write_bytes(f"{envelope['protected']}.{envelope['payload']}".encode())
    signature = base64.urlsafe_b64decode(envelope["signature"] + "==")
    (tmp_path / "signature").write_bytes(signature)
    words = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(key), "-rawin"]
    words += ["-in", str(tmp_path / "signed"), "-sigfile", str(tmp_path / "signature")]
    assert subprocess.run(words, check=True, capture_output=True).stdout.startswith(b"Signature Verified")
    (tmp_path / "signed").write_bytes((tmp_path / "signed").read_bytes()[:-1] + b"A")
    assert subprocess.run(words, check=False, capture_output=True).returncode != 0
    opened = jws.deserialize_json(envelope, OKPKey.import_key(answer["jwk"]), algorithms=["EdDSA", "Ed25519"])
    assert json.loads(opened.payload)["files"][0]["path"] == "archive/f"


def test_a_changed_receipt_page_or_key_is_refused(tmp_path):
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        (archive.share / "f<b>").write_bytes(b"f" * 5000)
        receipt(archive, archive.share / "f<b>")
        key = public_key(archive)
    page = (tmp_path / "out.html").read_text()
    assert "f&lt;b&gt;" in page
    for old, new in ((">yes<", ">YES<"), ("f&lt;b&gt;", "g&lt;b&gt;"), ("as of", "as  of")):
        assert old in page
        (tmp_path / "changed.html").write_text(page.replace(old, new))
        verify(tmp_path / "changed.html", "--key", key, check=4)
    envelope = json.loads((tmp_path / "out.json").read_text())
    for member in ("payload", "protected", "signature"):
        middle = len(envelope[member]) // 2
        text = envelope[member][:middle] + ("A" if envelope[member][middle] != "A" else "B")
        changed = {**envelope, member: text + envelope[member][middle + 1 :]}
        (tmp_path / "changed.json").write_text(json.dumps(changed))
        verify(tmp_path / "changed.json", "--key", key, check=4)
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "other.pem"], check=True)
    other = tmp_path / "other.pub"
    subprocess.run(["openssl", "pkey", "-in", tmp_path / "other.pem", "-pubout", "-out", other], check=True)
    verify(tmp_path / "out.json", "--key", other, check=4)


def test_an_older_archive_gets_its_key_with_its_first_receipt_and_says_so(tmp_path):
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        (archive.archive / "keys/receipts.pem").unlink()
        (archive.share / "f").write_bytes(b"f" * 5000)
        assert receipt(archive, archive.share / "f", name="first")[0]["key_is_new"]
        assert not receipt(archive, archive.share / "f", name="second")[0]["key_is_new"]


def test_a_key_that_rotted_stops_receipts_and_nothing_else(tmp_path):
    with an_archive(tmp_path, settings=SETTINGS, serve=False) as archive:
        (archive.archive / "keys/receipts.pem").write_text("rubbish")
        archive.start("serve")
        (archive.share / "f").write_bytes(b"f" * 5000)
        archive.wait()
        answer = archive.vna("receipt", archive.share / "f", check=4)
        assert answer["error"]["code"] == "Damaged"
        assert (archive.archive / "keys/receipts.pem").read_text() == "rubbish"


def test_more_files_than_a_receipt_may_hold_are_refused_with_a_way_out(tmp_path):
    with an_archive(tmp_path, settings=SETTINGS + "\n[receipts]\nfiles_max = 3\n") as archive:
        for number in range(4):
            (archive.share / f"f{number}").write_bytes(b"f")
        answer = archive.vna("receipt", archive.share, "--timeout", 0, check=2)
        assert "3 files" in answer["error"]["message"]
        assert "files_max" in answer["error"]["message"]
        assert archive.vna("receipt", archive.share / "none", check=3)["error"]["code"] == "NotFound"
        assert archive.vna("receipt", sys.executable, check=3)["error"]["code"] == "InvalidArgument"


@contextlib.contextmanager
def stamped_archive(tmp_path, authority, *, ca=True):
    lines = f'\n[receipts]\ntimestamp_url = "{authority.url}"\n'
    if ca:
        lines += f'timestamp_ca_file = "{authority.ca_file}"\n'
    with an_archive(tmp_path, settings=SETTINGS + lines) as archive:
        (archive.share / "f").write_bytes(b"f" * 5000)
        yield archive


def test_a_timestamp_of_a_real_authority_is_kept_and_checked_offline(tmp_path):
    """The token is also right for openssl(1), over the signature as text."""
    with tsa(tmp_path / "tsa") as authority, stamped_archive(tmp_path, authority) as archive:
        answer, said = receipt(archive, archive.share / "f")
        assert answer["no_timestamp"] == ""
        assert authority.asked == 1
        key = public_key(archive)
    for name in ("out.json", "out.html"):
        found = verify(tmp_path / name, "--key", key, "--timestamp-ca", authority.ca_file)
        assert found["timestamp"]["trusted"] is True
        assert found["receipt"] == said
        assert verify(tmp_path / name, "--key", key)["timestamp"]["trusted"] is False
    (tmp_path / "else").mkdir()
    make_chain(tmp_path / "else", "-else")
    verify(tmp_path / "out.json", "--key", key, "--timestamp-ca", tmp_path / "else/ca.crt", check=4)
    envelope = json.loads((tmp_path / "out.json").read_text())
    [entry] = envelope["header"]["etsiU"]
    (tmp_path / "token").write_bytes(base64.b64decode(entry["sigTst"]["tstTokens"][0]["val"]))
    (tmp_path / "data").write_text(envelope["signature"])
    words = ["openssl", "ts", "-verify", "-data", tmp_path / "data", "-in", tmp_path / "token", "-token_in"]
    done = subprocess.run([*words, "-CAfile", authority.ca_file], check=False, capture_output=True, text=True)
    assert "Verification: OK" in done.stdout, done.stderr


def test_a_timestamp_of_another_receipt_is_refused(tmp_path):
    with tsa(tmp_path / "tsa") as authority, stamped_archive(tmp_path, authority) as archive:
        first, _ = receipt(archive, archive.share / "f", name="first")
        second, _ = receipt(archive, archive.share / "f", name="second")
        key = public_key(archive)
    (tmp_path / "mixed.json").write_text(json.dumps({**first["receipt"], "header": second["receipt"]["header"]}))
    verify(tmp_path / "mixed.json", "--key", key, check=4)


@pytest.mark.parametrize("answer", [b"", b"nonsense", b"\x30\x05\x30\x03\x02\x01\x02"])
def test_without_a_usable_timestamp_the_receipt_comes_without_and_says_so(tmp_path, answer):
    with tsa(tmp_path / "tsa") as authority, stamped_archive(tmp_path, authority) as archive:
        authority.answers = answer
        given, said = receipt(archive, archive.share / "f")
        assert said["safe_to_delete"]
        assert "timestamp service" in given["no_timestamp"]
        key = public_key(archive)
    assert verify(tmp_path / "out.json", "--key", key)["timestamp"] is None
    verify(tmp_path / "out.json", "--key", key, "--timestamp-ca", authority.ca_file, check=3)


def restored(archive, *words):
    """The archive lost, and made again from its target; what `vna restore` said."""
    archive.stop()
    archive.archive.rename(archive.folder / f"lost-{len(list(archive.folder.iterdir()))}")
    source = f"file://{archive.folder}/one"
    where = ("--into", archive.archive, "--mount", archive.mount)
    return archive.vna("restore", "--from", source, *where, "--no-serve", *words)


def public_keys(archive, name="keys.pem"):
    """All of them, as a file and as rows."""
    answer = archive.vna("receipt", "--public-keys")
    path = archive.folder / name
    path.write_text(answer["pem"])
    return path, answer["keys"]


def test_a_restored_archive_signs_with_a_key_of_its_own_and_knows_those_before(tmp_path):
    """Without encryption no target has a private key: twice restored, three keys, and every receipt verifies."""
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        (archive.share / "f").write_bytes(b"f" * 5000)
        _, said = receipt(archive, archive.share / "f", name="first")
        old = public_key(archive).rename(tmp_path / "old.pem")
        secret = (archive.archive / "keys/receipts.pem").read_bytes()
        for name in ("second", "third"):
            assert restored(archive)["receipt_key_is_new"] is True
            archive.start("serve")
            answer, after = receipt(archive, archive.share / "f", name=name, check=None, timeout=60)
            assert not answer["key_is_new"]  # restore made it, and said so
            assert after["safe_to_delete"] is True
            assert after["public_key"] != said["public_key"]
            assert after["archive"] == said["archive"]
            assert after["files"][0]["sha256"] == said["files"][0]["sha256"]
        last = public_key(archive)
        path, rows = public_keys(archive)
        assert [row["told_by_target"] for row in rows] == [True, True, False]
        assert rows[0]["jwk"] == said["public_key"]
        assert [row["until"] for row in rows] == [rows[1]["from"], rows[2]["from"], None]
        assert ["restored" in row["why"] for row in rows] == [False, True, True]
        there = b"".join(file.read_bytes() for file in (tmp_path / "one").rglob("*") if file.is_file())
        assert secret.splitlines()[1] not in there
    verify(tmp_path / "first.json", "--key", old)
    verify(tmp_path / "first.json", "--key", last, check=4)
    for name, row in zip(("first", "second", "third"), rows, strict=True):
        for ending in ("json", "html"):
            key = verify(tmp_path / f"{name}.{ending}", "--key", path)["key"]
            assert (key["key"], key["told_by_target"]) == (row["key"], row["told_by_target"])


def test_a_machine_that_was_replaced_signs_nothing_that_verifies(tmp_path):
    """It, or whoever took its disk, has the former key; the archive went on without it."""
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        (archive.share / "f").write_bytes(b"f" * 5000)
        receipt(archive, archive.share / "f", name="before")
        former = serialization.load_pem_private_key((archive.archive / "keys/receipts.pem").read_bytes(), None)
        restored(archive)
        path, rows = public_keys(archive)
        forged = payload_of(json.loads((tmp_path / "before.json").read_text()))
        for as_of, check in ((rows[0]["until"], 0), ("2999-01-01T00:00:00Z", 3)):
            envelope = receipt_jws.sign({**forged, "as_of": as_of}, former)
            (tmp_path / "forged.json").write_text(json.dumps(envelope))
            answer = verify(tmp_path / "forged.json", "--key", path, check=check)
        assert "no more" in answer["error"]["message"]


def test_an_encrypted_archive_goes_on_signing_with_the_same_key_after_a_restore(tmp_path):
    """Also after `vna key renew`, which begins another; a drill in between makes, shows and keeps none."""
    paper, fresh = tmp_path / "paper.txt", tmp_path / "fresh.txt"
    with an_archive(tmp_path, None, "--encryption", "on", "--recovery-key", str(paper), settings=SETTINGS) as archive:
        (archive.share / "f").write_bytes(b"f" * 5000)
        _, first = receipt(archive, archive.share / "f", name="first")
        assert not (archive.archive / "keys/receipts.pem").exists()
        before = sorted(path.name for path in (archive.archive / "keys").iterdir())
        ring = keyring.unlock((archive.archive / "keys/keyring").read_bytes(), secret_in(paper))
        [drill] = archive.vna("drill", "--key", paper)
        assert drill["passed"] is True
        assert ring.signing()[0].secret.hex() not in json.dumps(drill)
        assert sorted(path.name for path in (archive.archive / "keys").iterdir()) == before
        assert list((archive.archive / "drill").iterdir()) == []
        assert restored(archive, "--key", paper)["receipt_key_is_new"] is False
        assert not (archive.archive / "keys/receipts.pem").exists()
        archive.start("serve")
        _, second = receipt(archive, archive.share / "f", name="second", check=None, timeout=60)
        assert second["public_key"] == first["public_key"]
        archive.vna("key", "rotate")
        assert receipt(archive, archive.share / "f", name="third")[1]["public_key"] == first["public_key"]
        archive.vna("key", "renew", "--recovery-key", fresh)
        _, fourth = receipt(archive, archive.share / "f", name="fourth")
        assert fourth["public_key"] != first["public_key"]
        assert restored(archive, "--key", fresh)["receipt_key_is_new"] is False
        archive.start("serve")
        _, fifth = receipt(archive, archive.share / "f", name="fifth", check=None, timeout=60)
        assert fifth["public_key"] == fourth["public_key"]
        path, rows = public_keys(archive)
        assert [(row["told_by_target"], bool(row["until"])) for row in rows] == [(False, True), (False, False)]
        there = b"".join(file.read_bytes() for file in (tmp_path / "one").rglob("*") if file.is_file())
        for secret in keyring.unlock((archive.archive / "keys/keyring").read_bytes(), secret_in(fresh)).signing():
            assert secret.secret not in there
            assert secret.secret.hex().encode() not in there
    for name in ("first", "second", "third", "fourth", "fifth"):
        verify(tmp_path / f"{name}.json", "--key", path)


def secret_in(paper):
    return keyring.secret_of(paper.read_bytes())


def test_an_encrypted_archive_of_before_takes_its_key_into_the_keyring(tmp_path):
    """Its file goes, its key stays: a restore has it."""
    paper = tmp_path / "paper.txt"
    with an_archive(
        tmp_path, None, "--encryption", "on", "--recovery-key", str(paper), settings=SETTINGS, serve=False
    ) as archive:
        key, _ = keys.ensure(str(archive.archive / "keys"))
        archive.start("serve")
        (archive.share / "f").write_bytes(b"f" * 5000)
        _, first = receipt(archive, archive.share / "f", name="first")
        assert first["public_key"] == receipt_jws.jwk(key.public_key())
        assert not (archive.archive / "keys/receipts.pem").exists()
        restored(archive, "--key", paper)
        archive.start("serve")
        _, second = receipt(archive, archive.share / "f", name="second", check=None, timeout=60)
        assert second["public_key"] == first["public_key"]


def test_adopting_an_encrypted_archive_changes_nothing_of_its_keys(tmp_path):
    words = ("--encryption", "on", "--recovery-key", str(tmp_path / "paper.txt"))
    with an_archive(tmp_path, None, *words, settings=SETTINGS) as archive:
        (archive.share / "f").write_bytes(b"f" * 5000)
        receipt(archive, archive.share / "f", name="before")
        _, rows = public_keys(archive)
        archive.stop()
        archive.vna("adopt")
        assert public_keys(archive)[1] == rows


def test_an_authority_that_is_down_or_not_trusted_gives_none(tmp_path):
    (tmp_path / "else").mkdir()
    make_chain(tmp_path / "else", "-else")
    with tsa(tmp_path / "tsa") as authority:
        authority.ca_file = tmp_path / "else/ca.crt"
        with stamped_archive(tmp_path, authority) as archive:
            assert "cannot be used" in receipt(archive, archive.share / "f", name="first")[0]["no_timestamp"]
            authority.url = ""
            archive.stop()
    with an_archive(
        tmp_path / "b", settings=SETTINGS + '\n[receipts]\ntimestamp_url = "http://127.0.0.1:9/"\n'
    ) as archive:
        (archive.share / "f").write_bytes(b"f" * 5000)
        given, said = receipt(archive, archive.share / "f")
        assert "timestamp service" in given["no_timestamp"]
        assert said["safe_to_delete"]
