"""Bodies of objects: bytes in memory or a local file, and the reader that adapters send them through.

Knows nothing of targets. A body is immutable and may be opened by several threads at once; a reader belongs to
one thread.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from typing import BinaryIO

from vnafs.domain.errors import Damaged
from vnafs.domain.ids import Sha256
from vnafs.targets.port import Body

BLOCK_BYTES = 1024 * 1024
"""The unit in which bodies are read and objects are handed out."""


@dataclasses.dataclass(frozen=True, slots=True)
class BytesBody:
    """A small object that is in memory already."""

    data: bytes

    @property
    def size_bytes(self) -> int:
        """See Body."""
        return len(self.data)

    @property
    def sha256(self) -> Sha256:
        """See Body."""
        return Sha256(hashlib.sha256(self.data).digest())

    def open(self) -> BinaryIO:
        """See Body."""
        return io.BytesIO(self.data)


@dataclasses.dataclass(frozen=True, slots=True)
class FileBody:
    """A local file that nobody changes any more, such as a closed pack."""

    path: str
    size_bytes: int
    sha256: Sha256

    def open(self) -> BinaryIO:
        """See Body. Raises OSError when the file is gone."""
        return open(self.path, "rb", buffering=0)  # the adapters read in large blocks


class Stretch(io.RawIOBase):
    """A run of a body's bytes as a reader of its own, which never ends early in silence.

    HTTP clients hide what a body's reader raised behind their own errors, so the first failure is kept in
    `failure` and `raise_failure` brings it back: a fault of the local disk must not look like one of the target.
    """

    def __init__(self, body: Body, offset: int = 0, length_bytes: int | None = None) -> None:
        """Opens *body* at *offset*; reads *length_bytes* (None: to the end)."""
        super().__init__()
        self.failure: BaseException | None = None
        self._start = offset
        self._length_bytes = body.size_bytes - offset if length_bytes is None else length_bytes
        self._at = 0
        self._source = body.open()
        if offset:
            self._source.seek(offset)

    def __len__(self) -> int:
        """The bytes there are in all, whatever was read: HTTP clients take the Content-Length from here."""
        return self._length_bytes

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always: HTTP clients hash first and send afterwards."""
        return True

    def tell(self) -> int:
        """Bytes read so far."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move within the stretch."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length_bytes}[whence]
        self._at = base + offset
        self._source.seek(self._start + self._at)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Up to *size* bytes, all the rest when negative. Raises Damaged when the body is shorter than it said."""
        left = self._length_bytes - self._at
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted <= 0:
            return b""
        try:
            data = self._source.read(wanted)
        except BaseException as failure:
            self.failure = self.failure or failure
            raise
        if not data:
            self.failure = Damaged(what=f"The local body of an object ends {left} bytes early; it")
            raise self.failure
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        """All the rest."""
        return b"".join(iter(lambda: self.read(BLOCK_BYTES), b""))

    def readinto(self, buffer: object, /) -> int:
        """Fill *buffer* as far as one read goes."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]  # the buffer protocol has no name before 3.12
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def raise_failure(self) -> None:
        """Raise what reading the body raised, if it did."""
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Close the body's reader too."""
        if not self.closed:
            self._source.close()
        super().close()
