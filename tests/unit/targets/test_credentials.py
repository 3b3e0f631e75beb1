from __future__ import annotations

from pathlib import Path

import pytest

from vnafs.domain.errors import ConfigurationInvalid
from vnafs.targets.address import parse_address
from vnafs.targets.credentials import AzureCredentials, NoCredentials, S3Credentials, find_credentials

S3 = parse_address("s3://bucket/prefix")
AZURE = parse_address("azure://account/container")


def private(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_a_directory_needs_none() -> None:
    assert find_credentials(parse_address("file:///srv/x"), environ={"AWS_ACCESS_KEY_ID": "x"}) == NoCredentials()


def test_the_providers_variables_are_taken_when_no_file_is_named() -> None:
    environ = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "token"}
    assert find_credentials(S3, environ=environ) == S3Credentials("id", "secret", "token")
    assert find_credentials(AZURE, environ={"AZURE_STORAGE_KEY": "k"}) == AzureCredentials(account_key="k")
    found = find_credentials(AZURE, environ={"AZURE_STORAGE_SAS_TOKEN": "?sv=1&sig=2"})
    assert found == AzureCredentials(sas_token="sv=1&sig=2")


def test_a_connection_string_gives_its_secret() -> None:
    text = "DefaultEndpointsProtocol=https;AccountName=account;AccountKey=a2V5PT0=;EndpointSuffix=core.windows.net"
    found = find_credentials(AZURE, environ={"AZURE_STORAGE_CONNECTION_STRING": text})
    assert found == AzureCredentials(account_key="a2V5PT0=")


def test_a_connection_string_of_another_account_is_refused() -> None:
    with pytest.raises(ConfigurationInvalid, match="is for account other"):
        find_credentials(AZURE, environ={"AZURE_STORAGE_CONNECTION_STRING": "AccountName=other;AccountKey=S3CRET"})


def test_a_named_file_is_taken_instead_of_the_environment(tmp_path: Path) -> None:
    file = private(tmp_path / "c", 'access_key_id = "id"\nsecret_access_key = "secret"\n')
    environ = {"AWS_ACCESS_KEY_ID": "other", "AWS_SECRET_ACCESS_KEY": "other"}
    assert find_credentials(S3, file=file, environ=environ) == S3Credentials("id", "secret")


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        ('access_key_id = "id"\nsecret_access_key = "S3CRET"\n', 0o604, "open to every user"),
        ('access_key_id = "id"\n', 0o600, "needs access_key_id and secret_access_key"),
        ('access_key_id = "id"\nsecret = "S3CRET"\n', 0o600, "unknown key secret"),
        ('access_key_id = "id"\nsecret_access_key = S3CRET\n', 0o600, "not valid TOML"),
        ('access_key_id = "id"\nsecret_access_key = 5\n', 0o600, "not a string"),
    ],
)
def test_a_wrong_file_says_why_and_shows_no_secret(tmp_path: Path, text: str, mode: int, why: str) -> None:
    file = private(tmp_path / "c", text, mode)
    with pytest.raises(ConfigurationInvalid, match=why) as caught:
        find_credentials(S3, file=file, environ={}, key="target[0].credentials_file")
    assert "S3CRET" not in str(caught.value)
    assert caught.value.fields["key"] == "target[0].credentials_file"
    assert caught.value.fields["fix"]


def test_a_missing_file_and_an_empty_environment_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationInvalid, match="cannot be read"):
        find_credentials(S3, file=str(tmp_path / "none"), environ={})
    with pytest.raises(ConfigurationInvalid, match="set AWS_ACCESS_KEY_ID"):
        find_credentials(S3, environ={})
    with pytest.raises(ConfigurationInvalid, match="AZURE_STORAGE_KEY"):
        find_credentials(AZURE, environ={})


def test_no_secret_is_in_a_repr() -> None:
    shown = repr([S3Credentials("id", "S3CRET", "S3CRET"), AzureCredentials("S3CRET", "S3CRET")])
    assert "S3CRET" not in shown
