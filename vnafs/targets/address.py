"""Where a target is, as an administrator writes it: a URL in, a frozen value out, or what is wrong and how to fix it.

    file:///abs/path
    s3://BUCKET/PREFIX?endpoint=http://host:port&region=R&proxy=http://host:port&ca=/path/to/ca.pem
    azure://ACCOUNT/CONTAINER/PREFIX?endpoint=…&proxy=…&ca=…

Pure. Never a secret: what looks like one is refused, because URLs end up in status, logs and argv.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from typing import NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

from vnafs.domain.errors import ConfigurationInvalid
from vnafs.targets.names import is_object_name

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER = re.compile(r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*|\$root")
_SECRET_KEYS = frozenset({"sig", "se", "sp", "sv", "key", "secret", "password", "token", "accountkey", "sas"})
_OPTIONS = {"file": frozenset[str](), "s3": frozenset({"endpoint", "region", "proxy", "ca"})}
_OPTIONS["azure"] = frozenset({"endpoint", "proxy", "ca"})
_WITHOUT = "Take it out of the URL; name a file with `credentials_file` or set the provider's environment variables"


@dataclasses.dataclass(frozen=True, slots=True)
class DirectoryAddress:
    """An absolute path."""

    path: str


@dataclasses.dataclass(frozen=True, slots=True)
class Reach:
    """How to get to a server on the network; empty is the provider's or the system's default."""

    endpoint: str = ""
    proxy: str = ""
    """An HTTP proxy; none is used unless it is named here."""
    ca_file: str = ""
    """Certificates (PEM) to trust instead of the system's."""


@dataclasses.dataclass(frozen=True, slots=True)
class S3Address:
    """A bucket and a prefix without slashes at its ends."""

    bucket: str
    prefix: str
    region: str
    reach: Reach


@dataclasses.dataclass(frozen=True, slots=True)
class AzureAddress:
    """An account, a container and a prefix without slashes at its ends."""

    account: str
    container: str
    prefix: str
    reach: Reach

    @property
    def account_url(self) -> str:
        """The blob service. An endpoint that is a bare address has the account in its path, as emulators want it."""
        endpoint = self.reach.endpoint
        if not endpoint:
            return f"https://{self.account}.blob.core.windows.net"
        parts = urlsplit(endpoint)
        if parts.path.strip("/") or not _is_bare_host(parts.hostname or ""):
            return endpoint.rstrip("/")
        return f"{endpoint.rstrip('/')}/{self.account}"


Address = DirectoryAddress | S3Address | AzureAddress


def parse_address(url: str, *, file: str = "", key: str = "url") -> Address:
    """The value of a target URL. Raises ConfigurationInvalid about *key* in *file*."""
    return _Parser(url, file, key).address()


class _Parser:
    """One URL under examination, so that every message names where it came from."""

    def __init__(self, url: str, file: str, key: str) -> None:
        self._url = url
        self._file = file
        self._key = key
        self._shown = _without_secrets(url)

    def address(self) -> Address:
        try:
            parts = urlsplit(self._url)
        except ValueError:
            self._fail("is not a URL", "Write for example s3://bucket/prefix")
        if parts.scheme not in _OPTIONS:
            self._fail(
                f"has the unknown scheme {parts.scheme!r}" if parts.scheme else "has no scheme",
                "Begin with file://, s3:// or azure://",
            )
        if "@" in parts.netloc or ":" in parts.netloc:
            self._fail("has a user, a password or a port before its path", _WITHOUT)
        if parts.fragment:
            self._fail("has a fragment", "Remove everything from # on")
        options = self._options(parts.scheme, parts.query)
        path = unquote(parts.path)
        if parts.scheme == "file":
            return self._directory(parts.netloc, path)
        reach = self._reach(options)
        if parts.scheme == "s3":
            if not _BUCKET.fullmatch(parts.netloc):
                self._fail(
                    f"has no valid bucket name ({parts.netloc!r})", "Write s3://BUCKET/PREFIX, BUCKET in lower case"
                )
            return S3Address(parts.netloc, self._prefix(path), options.get("region", ""), reach)
        if not _ACCOUNT.fullmatch(parts.netloc):
            self._fail(f"has no valid account name ({parts.netloc!r})", "Write azure://ACCOUNT/CONTAINER/PREFIX")
        container, _, prefix = path.strip("/").partition("/")
        if not _CONTAINER.fullmatch(container):
            self._fail(f"has no valid container name ({container!r})", "Write azure://ACCOUNT/CONTAINER/PREFIX")
        return AzureAddress(parts.netloc, container, self._prefix(prefix), reach)

    def _directory(self, host: str, path: str) -> DirectoryAddress:
        if host not in {"", "localhost"}:
            self._fail(f"names the host {host!r}", "Write three slashes: file:///abs/path")
        if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
            self._fail("is not an absolute path", "Write file:///abs/path without ..")
        if not path.strip("/"):
            self._fail("is the root directory", "Name a directory of its own for the target")
        return DirectoryAddress("/" + path.strip("/"))

    def _options(self, scheme: str, query: str) -> dict[str, str]:
        options: dict[str, str] = {}
        for option, value in parse_qsl(query, keep_blank_values=True):
            if option.lower() in _SECRET_KEYS:
                self._fail(f"carries a secret or a SAS token ({option}=…)", _WITHOUT)
            if option not in _OPTIONS[scheme]:
                known = ", ".join(sorted(_OPTIONS[scheme])) or "none"
                self._fail(f"has the unknown option {option!r}", f"Options of {scheme}:// are: {known}")
            if option in options or not value:
                self._fail(f"has no or more than one value for {option}", "Give each option one value")
            options[option] = value
        return options

    def _reach(self, options: dict[str, str]) -> Reach:
        for option in ("endpoint", "proxy"):
            if option in options:
                self._check_server(option, options[option])
        ca_file = options.get("ca", "")
        if ca_file and not ca_file.startswith("/"):
            self._fail("names a ca file that is not an absolute path", "Write ca=/path/to/ca.pem")
        return Reach(options.get("endpoint", "").rstrip("/"), options.get("proxy", ""), ca_file)

    def _check_server(self, option: str, value: str) -> None:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            self._fail(f"has an {option} that is no http URL", f"Write {option}=https://host:port")
        if parts.username or parts.password or parts.query:
            self._fail(f"has an {option} with a user, a password or a query", _WITHOUT)
        try:
            _ = parts.port
        except ValueError:
            self._fail(f"has an {option} with an impossible port", f"Write {option}=https://host:port")

    def _prefix(self, path: str) -> str:
        prefix = path.strip("/")
        if prefix and not is_object_name(prefix):
            self._fail(f"has the prefix {prefix!r}", "Use ASCII letters, digits, - _ . and / in a prefix")
        return prefix

    def _fail(self, why: str, fix: str) -> NoReturn:
        raise ConfigurationInvalid(file=self._file, key=self._key, value=self._shown, why=why, fix=fix)


def _without_secrets(url: str) -> str:
    """*url* as a message may show it: nothing of what might be a user, a password or a token."""
    shown, question, query = url.partition("?")
    shown = re.sub(r"//[^/]*@", "//…@", shown)
    for option, value in parse_qsl(query, keep_blank_values=True):
        if option.lower() in _SECRET_KEYS or "@" in value or "?" in value:
            return shown + question + "…"
    return shown + question + query


def _is_bare_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host
    return True
