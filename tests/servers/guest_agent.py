"""Runs commands in the guest for whoever connects: one line of JSON each way, one command a connection.

Installed into the guest's image as a unit of systemd; needs nothing but Python. Trusts everybody: the guest's network
reaches nobody, and only the machine that booted it reaches the guest.
"""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys


class Command(socketserver.StreamRequestHandler):
    """One of them."""

    def handle(self) -> None:
        asked = json.loads(self.rfile.readline())
        self.wfile.write(json.dumps(run(**asked)).encode() + b"\n")


def run(words: list[str], text: str, seconds: float, environ: dict[str, str]) -> dict[str, object]:
    """Its exit code and what it said; all that it started is killed with it when time is up."""
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
            env={**os.environ, **environ}, start_new_session=True,
        )  # fmt: skip
    except OSError as problem:
        return {"code": 127, "out": "", "err": str(problem)}
    try:
        out, err = process.communicate(text.encode(), seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        try:
            out, err = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:  # it waits in the kernel, and is left there
            out, err = b"", b""
        err += f"\nnot done within {seconds} s".encode()
    # a process that could not be killed has no code yet
    code = 124 if process.returncode is None or process.returncode == -signal.SIGKILL else process.returncode
    return {"code": code, "out": out.decode(errors="replace"), "err": err.decode(errors="replace")}


class Server(socketserver.ThreadingTCPServer):
    """All at once."""

    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    Server(("", int(sys.argv[1])), Command).serve_forever()
