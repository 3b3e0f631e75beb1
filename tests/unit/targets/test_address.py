from __future__ import annotations

import pytest

from vnafs.domain.errors import ConfigurationInvalid
from vnafs.targets.address import AzureAddress, DirectoryAddress, Reach, S3Address, parse_address


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///srv/copies", DirectoryAddress("/srv/copies")),
        ("file:///srv/with%20space/", DirectoryAddress("/srv/with space")),
        ("file://localhost/srv", DirectoryAddress("/srv")),
        ("s3://bucket", S3Address("bucket", "", "", Reach())),
        ("s3://bucket/", S3Address("bucket", "", "", Reach())),
        ("s3://my.bucket/a/b/?region=eu-central-1", S3Address("my.bucket", "a/b", "eu-central-1", Reach())),
        (
            "s3://bucket/p?endpoint=http://127.0.0.1:9000/&region=r&proxy=http://proxy:3128&ca=/etc/ca.pem",
            S3Address("bucket", "p", "r", Reach("http://127.0.0.1:9000", "http://proxy:3128", "/etc/ca.pem")),
        ),
        ("azure://account/container/a/b", AzureAddress("account", "container", "a/b", Reach())),
        ("azure://account/container", AzureAddress("account", "container", "", Reach())),
    ],
)
def test_an_address_is_read_from_its_url(url: str, expected: object) -> None:
    assert parse_address(url) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("azure://acct/cont", "https://acct.blob.core.windows.net"),
        ("azure://acct/cont?endpoint=http://127.0.0.1:10000", "http://127.0.0.1:10000/acct"),
        ("azure://acct/cont?endpoint=http://127.0.0.1:10000/acct", "http://127.0.0.1:10000/acct"),
        ("azure://acct/cont?endpoint=http://localhost:10000/", "http://localhost:10000/acct"),
        ("azure://acct/cont?endpoint=https://acct.blob.example.org", "https://acct.blob.example.org"),
    ],
)
def test_only_a_bare_address_gets_the_account_in_its_path(url: str, expected: str) -> None:
    address = parse_address(url)
    assert isinstance(address, AzureAddress)
    assert address.account_url == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "has no scheme"),
        ("/srv/copies", "has no scheme"),
        ("ftp://host/x", "unknown scheme"),
        ("file://srv/copies", "names the host"),
        ("file:///", "root directory"),
        ("file:///a/../b", "not an absolute path"),
        ("file:///a?x=1", "unknown option"),
        ("s3://", "no valid bucket name"),
        ("s3://Bucket", "no valid bucket name"),
        ("s3://b", "no valid bucket name"),
        ("s3://bucket/a b", "prefix"),
        ("s3://bucket/%C3%A4", "prefix"),
        ("s3://bucket?endpoint=127.0.0.1:9000", "endpoint"),
        ("s3://bucket?endpoint=ftp://host", "endpoint"),
        ("s3://bucket?endpoint=http://host:99999", "port"),
        ("s3://bucket?endpoint=", "no or more than one value"),
        ("s3://bucket?region=a&region=b", "no or more than one value"),
        ("s3://bucket?ca=ca.pem", "absolute path"),
        ("s3://bucket?regoin=x", "unknown option"),
        ("s3://bucket#x", "fragment"),
        ("azure://Account/c", "account name"),
        ("azure://account", "container name"),
        ("azure://account/UPPER", "container name"),
        ("azure://account/cont?region=x", "unknown option"),
    ],
)
def test_a_wrong_url_says_what_is_wrong_and_how_to_fix_it(url: str, why: str) -> None:
    with pytest.raises(ConfigurationInvalid) as caught:
        parse_address(url, file="/etc/vnafs.toml", key="target[0].url")
    assert why in str(caught.value.fields["why"])
    assert caught.value.fields["fix"]
    assert caught.value.fields["value"] == url
    assert str(caught.value).startswith("/etc/vnafs.toml: target[0].url = ")


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:S3CRET@bucket/prefix",
        "s3://S3CRET@bucket/prefix",
        "s3://bucket/p?secret=S3CRET",
        "s3://bucket/p?endpoint=http://user:S3CRET@host",
        "s3://bucket/p?proxy=http://user:S3CRET@host",
        "azure://account/container?sv=2024&sig=S3CRET",
        "azure://account/container?endpoint=https://host/x%3Fsig%3DS3CRET",
        "azure://account/container?AccountKey=S3CRET",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationInvalid) as caught:
        parse_address(url)
    assert "S3CRET" not in str(caught.value)
    assert "credentials_file" in str(caught.value)
