from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.clocks import ManualClock
from vnafs.domain.errors import ConfigurationInvalid
from vnafs.domain.ids import ObjectName, TargetName
from vnafs.targets.address import parse_address
from vnafs.targets.body import BytesBody
from vnafs.targets.credentials import AzureCredentials, NoCredentials, S3Credentials
from vnafs.targets.open import open_target


@pytest.mark.parametrize(
    ("url", "credentials"),
    [
        ("s3://bucket", NoCredentials()),
        ("s3://bucket", AzureCredentials(account_key="a2V5")),
        ("azure://account/container", S3Credentials("id", "secret")),
    ],
)
def test_credentials_of_another_provider_are_refused(url: str, credentials: NoCredentials) -> None:
    with pytest.raises(ConfigurationInvalid, match="do not fit"):
        open_target(TargetName("t"), parse_address(url), credentials, ManualClock())


def test_a_directory_is_ready_after_its_first_probe(tmp_path: Path) -> None:
    address = parse_address(f"file://{tmp_path}/target")
    target = open_target(TargetName("t"), address, NoCredentials(), ManualClock())
    known = target.probe()
    target.put(ObjectName("a"), BytesBody(b"1"))
    again = open_target(TargetName("t"), address, NoCredentials(), ManualClock(), known=known)
    assert list(again.list()) == ["a"]


def test_a_directory_alone_loads_no_library_of_a_cloud() -> None:
    program = (
        "import sys, vnafs.targets.open; sys.exit(any(m.split('.')[0] in ('boto3', 'azure') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
