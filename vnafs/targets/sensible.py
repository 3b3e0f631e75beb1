"""What a client library makes of an answer that makes no sense, as an error of the target.

Libraries take apart what a server sends and trip over what no server of their kind would: pages of a captive portal,
half a document, a length that is no number. Their parsers then raise what a programming error would raise; here it
becomes TargetUnavailable, logged with its trace, because whoever drains to the other targets must go on. Around an
adapter of a provider's library, inside everything else; any thread.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from vnafs.domain.clock import Instant
from vnafs.domain.copies import Capabilities, Evidence
from vnafs.domain.errors import TargetUnavailable
from vnafs.domain.ids import WHOLE, ObjectName, Span, TargetName
from vnafs.domain.locks import Powers
from vnafs.domain.rehydration import Rehydration
from vnafs.targets.names import checked
from vnafs.targets.port import Body, Target

log = logging.getLogger(__name__)


class SensibleTarget:
    """See Target. *foreign*: what else the library raises without saying so."""

    def __init__(self, inner: Target, foreign: tuple[type[Exception], ...]) -> None:
        self._inner = inner
        self._nonsense: tuple[type[Exception], ...] = (
            *(ValueError, LookupError, TypeError, AttributeError),
            RecursionError,  # redirects in circles
            *foreign,
        )

    @property
    def name(self) -> TargetName:
        """See Target."""
        return self._inner.name

    def probe(self) -> Capabilities:
        """See Target."""
        with self._told_apart("probing"):
            return self._inner.probe()

    def powers(self) -> Powers:
        """See Target."""
        with self._told_apart("probing the credential"):
            return self._inner.powers()

    def put(self, name: ObjectName, body: Body) -> Evidence:
        """See Target."""
        checked(name)  # a caller's mistake, not the server's
        with self._told_apart("putting an object"):
            return self._inner.put(name, body)

    def get(self, name: ObjectName, span: Span = WHOLE) -> Iterator[bytes]:
        """See Target."""
        checked(name)  # a caller's mistake, not the server's
        with self._told_apart("getting an object"):
            yield from self._inner.get(name, span)

    def read_back(self, name: ObjectName) -> Iterator[bytes]:
        """See Target."""
        checked(name)  # a caller's mistake, not the server's
        with self._told_apart("reading an object back"):
            yield from self._inner.read_back(name)

    def rehydrate(self, name: ObjectName) -> Rehydration:
        """See Target."""
        checked(name)  # a caller's mistake, not the server's
        with self._told_apart("asking an object back"):
            return self._inner.rehydrate(name)

    def evidence(self, name: ObjectName) -> Evidence:
        """See Target."""
        checked(name)  # a caller's mistake, not the server's
        with self._told_apart("asking for an object"):
            return self._inner.evidence(name)

    def list(self, prefix: str = "") -> Iterator[ObjectName]:
        """See Target."""
        with self._told_apart("listing"):
            yield from self._inner.list(prefix)

    def delete(self, name: ObjectName) -> None:
        """See Target."""
        checked(name)  # a caller's mistake, not the server's
        with self._told_apart("deleting an object"):
            self._inner.delete(name)

    def retain(self, name: ObjectName, until: Instant) -> None:
        """See Target."""
        checked(name)  # a caller's mistake, not the server's
        with self._told_apart("locking an object"):
            self._inner.retain(name, until)

    def retained(self, name: ObjectName) -> Instant | None:
        """See Target."""
        checked(name)  # a caller's mistake, not the server's
        with self._told_apart("asking for a lock"):
            return self._inner.retained(name)

    def exists(self, name: ObjectName) -> bool:
        """See Target."""
        checked(name)  # a caller's mistake, not the server's
        with self._told_apart("looking for an object"):
            return self._inner.exists(name)

    def close(self) -> None:
        """See Target."""
        self._inner.close()

    @contextlib.contextmanager
    def _told_apart(self, doing: str) -> Iterator[None]:
        try:
            yield
        except self._nonsense as problem:
            log.exception("target.nonsense", extra={"target": self.name})
            why = f"{doing}: the answer makes no sense ({type(problem).__name__}); is something between us and it?"
            raise TargetUnavailable(target=self.name, why=why) from problem
