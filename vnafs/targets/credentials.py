"""Secrets that open a target, and where they may come from: a private file, or the provider's usual variables.

Reads the one file it is given and the mapping it is handed, never the environment itself. No secret appears in a
repr, a message or a log.

The file is TOML:

    access_key_id = "…"          # S3
    secret_access_key = "…"
    session_token = "…"          # optional

    account_key = "…"            # Azure: one of the three
    sas_token = "…"
    connection_string = "…"
"""

from __future__ import annotations

import dataclasses
import os
import stat
import tomllib
from collections.abc import Mapping
from typing import NoReturn

from vnafs.domain.errors import ConfigurationInvalid
from vnafs.targets.address import Address, AzureAddress, DirectoryAddress

CREDENTIALS_BYTES_MAX = 64 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class NoCredentials:
    """A directory needs none: the file system knows who we are."""


@dataclasses.dataclass(frozen=True, slots=True)
class S3Credentials:
    """An access key."""

    access_key_id: str
    secret_access_key: str = dataclasses.field(repr=False)
    session_token: str = dataclasses.field(default="", repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class AzureCredentials:
    """An account key or a shared access signature; exactly one is set."""

    account_key: str = dataclasses.field(default="", repr=False)
    sas_token: str = dataclasses.field(default="", repr=False)


Credentials = NoCredentials | S3Credentials | AzureCredentials


def find_credentials(
    address: Address, *, file: str = "", environ: Mapping[str, str], key: str = "credentials_file"
) -> Credentials:
    """What opens *address*: from *file* when one is named, else from *environ*.

    Raises ConfigurationInvalid (about *key*) when it is missing, readable by others, or not understood.
    """
    if isinstance(address, DirectoryAddress):
        return NoCredentials()
    values = _read(file, key) if file else {}
    if isinstance(address, AzureAddress):
        return _azure(values if file else _azure_variables(environ), address, file, key)
    return _s3(values if file else _s3_variables(environ), file, key)


def _s3_variables(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        "access_key_id": environ.get("AWS_ACCESS_KEY_ID", ""),
        "secret_access_key": environ.get("AWS_SECRET_ACCESS_KEY", ""),
        "session_token": environ.get("AWS_SESSION_TOKEN", ""),
    }


def _azure_variables(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        "account_key": environ.get("AZURE_STORAGE_KEY", "") or environ.get("AZURE_STORAGE_ACCOUNT_KEY", ""),
        "sas_token": environ.get("AZURE_STORAGE_SAS_TOKEN", ""),
        "connection_string": environ.get("AZURE_STORAGE_CONNECTION_STRING", ""),
    }


def _s3(values: Mapping[str, str], file: str, key: str) -> S3Credentials:
    _only(values, {"access_key_id", "secret_access_key", "session_token"}, file, key)
    if not values.get("access_key_id") or not values.get("secret_access_key"):
        _fail(
            file,
            key,
            "an S3 target needs access_key_id and secret_access_key",
            "Name a private file with both, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    return S3Credentials(values["access_key_id"], values["secret_access_key"], values.get("session_token", ""))


def _azure(values: Mapping[str, str], address: AzureAddress, file: str, key: str) -> AzureCredentials:
    _only(values, {"account_key", "sas_token", "connection_string"}, file, key)
    given = {name: value for name, value in values.items() if value}
    if "connection_string" in given and not {"account_key", "sas_token"} & set(given):
        given = _connection_string(given["connection_string"], address, file, key)
    given.pop("connection_string", None)
    if not given:
        _fail(
            file,
            key,
            "an Azure target needs account_key, sas_token or connection_string",
            "Name a private file with one of them, or set AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN "
            "or AZURE_STORAGE_CONNECTION_STRING",
        )
    if "account_key" in given:
        return AzureCredentials(account_key=given["account_key"])
    return AzureCredentials(sas_token=given["sas_token"].lstrip("?"))


def _connection_string(text: str, address: AzureAddress, file: str, key: str) -> dict[str, str]:
    """The secret in `AccountName=…;AccountKey=…;…`; the rest is in the address already."""
    pairs = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    account = pairs.get("AccountName", address.account)
    if account != address.account:
        _fail(
            file,
            key,
            f"the connection string is for account {account}, the target's URL names {address.account}",
            "Use the connection string of the account in the URL",
        )
    return {
        name: pairs[theirs]
        for name, theirs in (("account_key", "AccountKey"), ("sas_token", "SharedAccessSignature"))
        if pairs.get(theirs)
    }


def _read(file: str, key: str) -> dict[str, str]:
    try:
        with open(file, "rb") as source:
            mode = stat.S_IMODE(os.fstat(source.fileno()).st_mode)
            text = source.read(CREDENTIALS_BYTES_MAX).decode()
    except OSError as error:
        _fail(file, key, f"cannot be read ({os.strerror(error.errno or 0)})", "Check the path and its owner", error)
    except UnicodeDecodeError:
        _fail(file, key, "is not text", "Write it as TOML")
    if mode & 0o007:
        _fail(file, key, f"is open to every user (mode {mode:04o})", f"Run chmod 600 {file}")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        _fail(file, key, "is not valid TOML", 'Write lines like access_key_id = "…"')
    if not all(isinstance(value, str) for value in values.values()):
        _fail(file, key, "has a value that is not a string", 'Write lines like access_key_id = "…"')
    return values


def _only(values: Mapping[str, str], known: set[str], file: str, key: str) -> None:
    for name in values:
        if name not in known:
            _fail(file, key, f"has the unknown key {name}", f"Known are: {', '.join(sorted(known))}")


def _fail(file: str, key: str, why: str, fix: str, cause: BaseException | None = None) -> NoReturn:
    """The value shown is the file's name, never what is in it; nothing of a parser's own error is passed on."""
    raise ConfigurationInvalid(
        file=file or "the environment", key=key, value=file or "unset", why=why, fix=fix
    ) from cause
