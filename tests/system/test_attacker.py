"""Somebody has the PACS account and the appliance's daily credential, and wants everything gone.

On Ceph's gateway, in a bucket with Object Lock and the policy that README shows: what the server refuses, what is
allowed and does no harm, and that every byte is back afterwards, in this archive and in a new one from the bucket.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.servers.endpoints import S3Endpoint
from tests.servers.fixtures import radosgw_server  # noqa: F401 - fixtures work by name
from tests.servers.policies import daily_policy
from tests.servers.radosgw import DAILY, DAILY_SECRET_KEY
from tests.system.archives import ROOT, Archive, an_archive, until
from tests.system.test_restore import SETTINGS, everything_sent
from tests.system.test_versions import digests

pytestmark = pytest.mark.system

EXTRACTOR = ROOT / "vnafs/extract/vna_extract.py"
FILES = 240
PACS = 4711
"""The user and the group that the share belongs to."""
LOCK_SECONDS = 3600
ENCRYPT = """
for file in */*.dcm; do
    case $((count % 3)) in
        0) head -c 2000 /dev/urandom > "$file"; mv "$file" "$file.locked" ;;
        1) head -c 2000 /dev/urandom > "$file.locked"; rm "$file" ;;
        2) head -c 2000 /dev/urandom > "$file" ;;
    esac
    count=$((count + 1))
done
echo pay > READ_ME.txt
"""


@dataclasses.dataclass
class Site:
    """A bucket with Object Lock, its owner, and whoever has the daily credential."""

    server: S3Endpoint
    bucket: str
    folder: Path

    @property
    def owner(self) -> Any:
        return self.server.client()

    @property
    def attacker(self) -> Any:
        stolen = dataclasses.replace(self.server, access_key_id=DAILY, secret_access_key=DAILY_SECRET_KEY)
        return stolen.client()

    @property
    def url(self) -> str:
        return self.server.target_url(self.bucket, "archive")

    def credentials(self, name: str, key: str, secret: str) -> Path:
        file = self.folder / f"{name}.toml"
        file.write_text(f'access_key_id = "{key}"\nsecret_access_key = "{secret}"\n')
        file.chmod(0o600)
        return file

    @property
    def daily(self) -> Path:
        return self.credentials("daily", DAILY, DAILY_SECRET_KEY)

    def add_to(self, archive: Archive, *words: object) -> None:
        removal = self.credentials("removal", self.server.access_key_id, self.server.secret_access_key)
        archive.vna(
            "target", "add", "vault", self.url, "--credentials-file", self.daily,
            "--removal-credentials-file", removal, *words,
        )  # fmt: skip

    def objects(self) -> dict[str, str]:
        """Key to the version that is first, the probe's own left out."""
        found = {}
        pages = self.owner.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix="archive/")
        for page in pages:
            for row in page.get("Versions", []):
                if "/probe/" not in row["Key"]:
                    found[row["Key"]] = row["VersionId"]
        return found

    def restored(self, folder: Path, *words: object) -> Archive:
        """A new archive, made from the bucket alone with the daily credential."""
        folder.mkdir()
        archive = Archive(folder, {}, {}, SETTINGS)
        report = archive.vna(
            "restore", "--from", self.url, "--into", archive.archive, "--mount", archive.mount, "--no-serve",
            "--credentials-file", self.daily, *words,
        )  # fmt: skip
        assert isinstance(report, dict)
        assert report["problems"] == []
        assert report["files_without_bytes"] == report["packs_missing"] == 0
        return archive


@pytest.fixture
def site(tmp_path: Path, radosgw_server: S3Endpoint) -> Site:  # noqa: F811
    bucket = radosgw_server.make_bucket(ObjectLockEnabledForBucket=True)
    radosgw_server.client().put_bucket_policy(Bucket=bucket, Policy=daily_policy(bucket, DAILY))
    return Site(radosgw_server, bucket, tmp_path)


def filled(archive: Archive, files: int) -> dict[str, tuple[str, int]]:
    """Files of the PACS, all on the bucket."""
    os.chown(archive.share, PACS, PACS)
    for number in range(files):
        path = archive.share / f"study{number % 6}" / f"{number}.dcm"
        path.parent.mkdir(exist_ok=True)
        os.chown(path.parent, PACS, PACS)
        path.write_bytes(hashlib.sha256(b"%d" % number).digest() * 400)
        os.chown(path, PACS, PACS)
    archive.wait()
    archive.vna("status")
    until(lambda: everything_sent(archive), "manifests sent", 60)
    return digests(archive.share)


def refused(call: Any, **parameters: Any) -> bool:
    """Whether the server says no; any other failure is raised."""
    try:
        call(**parameters)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 403:
            raise
        return True
    return False


def deletes_nothing(client: Any, bucket: str, keys: dict[str, str]) -> None:
    for key, version in keys.items():
        assert refused(client.delete_object, Bucket=bucket, Key=key)
        assert refused(client.delete_object, Bucket=bucket, Key=key, VersionId=version)
        bypass = {"VersionId": version, "BypassGovernanceRetention": True}
        assert refused(client.delete_object, Bucket=bucket, Key=key, **bypass)
    rows = [{"Key": key, "VersionId": version} for key, version in keys.items()]
    assert refused(client.delete_objects, Bucket=bucket, Delete={"Objects": rows})


def unlocks_nothing(client: Any, bucket: str, keys: dict[str, str]) -> None:
    for key, version in keys.items():
        soon = {"Mode": "GOVERNANCE", "RetainUntilDate": dt.datetime.now(dt.UTC) + dt.timedelta(seconds=60)}
        which = {"Bucket": bucket, "Key": key, "VersionId": version}
        assert refused(client.put_object_retention, **which, Retention=soon)
        assert refused(client.put_object_retention, **which, Retention=soon, BypassGovernanceRetention=True)
        assert refused(client.put_object_legal_hold, **which, LegalHold={"Status": "OFF"})
        assert refused(client.put_object_acl, Bucket=bucket, Key=key, ACL="public-read-write")


def configures_nothing(client: Any, bucket: str) -> None:
    rules = {"Rules": [{"ID": "x", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}]}
    everything = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{bucket}/*"}],
    }
    calls: list[tuple[Any, dict[str, Any]]] = [
        (client.put_bucket_lifecycle_configuration, {"LifecycleConfiguration": rules}),
        (client.put_bucket_versioning, {"VersioningConfiguration": {"Status": "Suspended"}}),
        (client.put_object_lock_configuration, {"ObjectLockConfiguration": {"ObjectLockEnabled": "Enabled"}}),
        (client.put_bucket_policy, {"Policy": json.dumps(everything)}),
        (client.delete_bucket_policy, {}),
        (client.put_bucket_acl, {"ACL": "public-read-write"}),
        (client.delete_bucket, {}),
    ]
    for call, parameters in calls:
        assert refused(call, Bucket=bucket, **parameters), parameters


@pytest.mark.parametrize("mode", ["governance", "compliance"])
def test_with_the_daily_credential_nothing_is_lost(tmp_path: Path, site: Site, mode: str) -> None:
    paper = tmp_path / "paper.txt"
    encrypted = ("--encryption", "on", "--recovery-key", str(paper)) if mode == "compliance" else ()
    with an_archive(tmp_path, {}, *encrypted, settings=SETTINGS, serve=False) as archive:
        site.add_to(archive, "--lock-seconds", LOCK_SECONDS, "--lock-mode", mode)
        archive.start("serve")
        tested = archive.vna("target", "test", "vault")
        assert isinstance(tested, dict)
        assert tested["warnings"] == []
        assert tested["object_lock"]
        good = filled(archive, FILES)
        assert len(good) == FILES
        moment = f"@{time.time_ns() // 10**9}.{time.time_ns() % 10**9:09d}"
        time.sleep(0.1)

        user = ("setpriv", f"--reuid={PACS}", f"--regid={PACS}", "--clear-groups")
        subprocess.run([*user, "sh", "-c", ENCRYPT], cwd=archive.share, check=True)
        assert set(digests(archive.share).items()).isdisjoint(good.items())
        archive.wait()

        client, before = site.attacker, site.objects()
        assert len([key for key in before if "/packs/" in key]) >= 2
        assert len([key for key in before if "/manifests/" in key]) >= 3
        deletes_nothing(client, site.bucket, before)
        unlocks_nothing(client, site.bucket, before)
        configures_nothing(client, site.bucket)
        for key in before:  # allowed to whoever may write: a version that nobody reads
            client.put_object(Bucket=site.bucket, Key=key, Body=b"pay " * 400)
        number = archive.vna("status")["manifests"]["number"]
        for squatted in range(number + 1, number + 4):  # names of the manifests to come
            name = f"archive/manifests/segments/{squatted:016x}.segment"
            client.put_object(Bucket=site.bucket, Key=name, Body=b"rubbish" * 40)
        now = {key: version for key, version in site.objects().items() if key in before}
        assert now == before
        for key, version in now.items():
            head = client.head_object(Bucket=site.bucket, Key=key, VersionId=version)
            assert head["ObjectLockMode"] == mode.upper(), key
            left = head["ObjectLockRetainUntilDate"] - dt.datetime.now(dt.UTC)
            assert left.total_seconds() > LOCK_SECONDS * 0.4

        done = archive.vna("rollback", "archive", "--to", moment)
        assert isinstance(done, dict)
        assert done["counts"]["restored"] == FILES
        archive.wait()
        archive.evict(archive.share)
        assert {os.getxattr(archive.share / name, "user.vna.state") for name in good} == {b"stub"}
        assert digests(archive.share) == good
        assert archive.vna("verify") == {"checked": len(archive_packs(archive)), "damaged": [], "unreachable": []}
        until(lambda: everything_sent(archive), "manifests sent past the rubbish", 60)
    copy = site.restored(tmp_path / "new", *(("--key", paper) if encrypted else ()))
    try:
        copy.start("serve")
        assert digests(copy.share) == good
    finally:
        copy.stop()


def archive_packs(archive: Archive) -> list[str]:
    status = archive.vna("status")
    assert isinstance(status, dict)
    return [""] * status["packs"]


def test_a_bucket_full_of_delete_markers_and_rubbish_gives_everything_back(tmp_path: Path, site: Site) -> None:
    """A credential that may delete, and versions that it may not: nothing is gone, only out of sight."""
    with an_archive(tmp_path, {}, settings=SETTINGS, serve=False) as archive:
        site.add_to(archive, "--lock-seconds", LOCK_SECONDS)
        archive.start("serve")
        good = filled(archive, 40)
        client = site.owner
        for number, key in enumerate(site.objects()):
            if number % 2:
                client.put_object(Bucket=site.bucket, Key=key, Body=b"rubbish" * 50)
            client.delete_object(Bucket=site.bucket, Key=key)
        listed = client.list_objects_v2(Bucket=site.bucket, Prefix="archive/").get("Contents", [])
        assert [row["Key"] for row in listed if "/probe/" not in row["Key"]] == []
        archive.evict(archive.share)
        assert digests(archive.share) == good
        (archive.share / "after").write_bytes(b"work goes on")
        archive.wait()
        good = digests(archive.share)
        until(lambda: everything_sent(archive), "manifests sent", 60)
    left = tmp_path / "left"
    environ = {**os.environ, "AWS_ACCESS_KEY_ID": DAILY, "AWS_SECRET_ACCESS_KEY": DAILY_SECRET_KEY}
    subprocess.run([sys.executable, EXTRACTOR, site.url, left], check=True, env=environ)
    assert {name: sha for name, (sha, _) in digests(left / "archive").items()} == {
        name: sha for name, (sha, _) in good.items()
    }
    copy = site.restored(tmp_path / "new")
    try:
        copy.start("serve")
        assert digests(copy.share) == good
    finally:
        copy.stop()


def test_a_target_that_cannot_lock_is_refused_by_name(tmp_path: Path, radosgw_server: S3Endpoint) -> None:  # noqa: F811
    plain = radosgw_server.target_url(radosgw_server.make_bucket())
    with an_archive(tmp_path, {}, environ=radosgw_server.environ(), settings=SETTINGS, serve=False) as archive:
        for url, key in ((plain, "--lock-seconds"), (f"file://{tmp_path}/one", "target one.lock_seconds")):
            answer = archive.vna("target", "add", "one", url, "--lock-seconds", 60, check=2)
            assert isinstance(answer, dict)
            assert answer["error"]["code"] == "ConfigurationInvalid"
            assert f"{key} = 60" in answer["error"]["message"]
        archive.vna("target", "add", "one", plain)
        with open(archive.archive / "vnafs.toml", "a") as file:
            file.write("lock_seconds = 60\n")
        archive.start("serve")
        (archive.share / "a").write_bytes(b"stays here")

        def why() -> str:
            [row] = archive.vna("target", "list")
            return str(row["why"])

        until(lambda: "lock_seconds is set" in why(), "a reason", 60)
        answer = archive.vna("target", "test", "one", check=2)
        assert isinstance(answer, dict)
        assert "target one: lock_seconds = 60: the bucket has no Object Lock" in answer["error"]["message"]


def test_locks_of_what_is_needed_do_not_run_out(tmp_path: Path, site: Site) -> None:
    with an_archive(tmp_path, {}, settings=SETTINGS, serve=False) as archive:
        site.add_to(archive, "--lock-seconds", 8)
        archive.start("serve")
        filled(archive, 12)
        packs = {key: version for key, version in site.objects().items() if "/packs/" in key}
        assert packs
        time.sleep(12)
        status = archive.vna("status")
        assert isinstance(status, dict)
        assert status["locks"]["vault"]["why"] == ""
        assert status["locks"]["vault"]["renewed"] >= len(packs)
        for key, version in packs.items():
            head = site.attacker.get_object_retention(Bucket=site.bucket, Key=key, VersionId=version)
            assert head["Retention"]["RetainUntilDate"] > dt.datetime.now(dt.UTC)
        denied = '"s3:BypassGovernanceRetention", "s3:PutObjectRetention"'
        policy = daily_policy(site.bucket, DAILY).replace('"s3:BypassGovernanceRetention"', denied)
        site.owner.put_bucket_policy(Bucket=site.bucket, Policy=policy)

        def why() -> str:
            [row] = archive.vna("target", "list")
            return str(row["why"])

        until(lambda: "locks are not renewed" in why(), "a reason", 60)
