"""Logs: one structured line an event on standard error, free of file names and patient data.

A line is a time, a level, the event's name and its fields as key=value; a service manager adds the rest.
"""

from __future__ import annotations

import json
import logging
import sys
import time

_PLAIN = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {"message", "asctime", "taskName"}


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {key: value for key, value in record.__dict__.items() if key not in _PLAIN}
        shown = " ".join(f"{key}={json.dumps(value, default=str)}" for key, value in fields.items())
        line = f"{moment}.{int(record.msecs):03d}Z {record.levelname.lower()} {record.getMessage()} {shown}".rstrip()
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def begin(level: str) -> None:
    """Send this process's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("botocore", "boto3", "azure", "urllib3", "s3transfer"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
