"""Lines on a control socket to values and back. Knows no method and no socket."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from vnafs.domain.errors import RequestInvalid, VnaError, every_error

VERSION = 1
LINE_BYTES_MAX = 16 * 1024 * 1024


def encode(message: Mapping[str, Any]) -> bytes:
    """One line, ASCII: lone surrogates of odd names travel as escapes."""
    return json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The object on one line. Raises RequestInvalid."""
    try:
        message = json.loads(line)
    except ValueError as problem:
        raise RequestInvalid(method="(none)", why=f"not JSON: {problem}") from None
    if not isinstance(message, dict):
        raise RequestInvalid(method="(none)", why="not a JSON object")
    return message


def text(name: bytes) -> str:
    """A file name or path as JSON can carry it."""
    return os.fsdecode(name)


def name(value: str) -> bytes:
    """The bytes of a file name or path."""
    return os.fsencode(value)


def error(problem: VnaError) -> dict[str, Any]:
    """A refusal as the wire shows it."""
    fields = {
        key: value if isinstance(value, int | float | str) else str(value) for key, value in problem.fields.items()
    }
    return {"error": {"code": problem.code, "message": str(problem), "fields": fields}}


def raised(body: Mapping[str, Any]) -> VnaError:
    """The error that a daemon refused with, as the same class here."""
    kind = every_error().get(str(body.get("code")), VnaError)
    return kind(**{"why": body.get("message", ""), **body.get("fields", {})})


@contextlib.contextmanager
def address(path: str) -> Iterator[str]:
    """The address of a socket at any path: unix(7) allows 107 bytes, a longer one goes through its folder."""
    if len(os.fsencode(path)) <= 107:
        yield path
        return
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{os.path.basename(path)}"
    finally:
        os.close(folder)
