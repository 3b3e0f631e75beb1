"""A time-stamping authority (RFC 3161): `openssl ts` behind a small HTTP server, with certificates of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

CONFIG = """
[tsa]
default_tsa = tsa1
[tsa1]
serial = {folder}/serial
crypto_device = builtin
signer_cert = {folder}/tsa.crt
signer_key = {folder}/tsa.key
certs = {folder}/ca.crt
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha512
accuracy = secs:1
ess_cert_id_chain = no
ess_cert_id_alg = sha256
[stamping]
extendedKeyUsage = critical, timeStamping
keyUsage = critical, digitalSignature
basicConstraints = CA:FALSE
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
"""


@dataclasses.dataclass
class Authority:
    """A running one. *answers* may replace what it says; *asked* counts requests."""

    url: str
    ca_file: Path
    folder: Path
    asked: int = 0
    answers: bytes | None = None

    def answer(self, query: bytes) -> bytes:
        self.asked += 1
        if self.answers is not None:
            return self.answers
        (self.folder / "query.tsq").write_bytes(query)
        _openssl("ts", "-reply", "-config", "tsa.cnf", "-queryfile", "query.tsq", "-out", "reply.tsr", at=self.folder)
        return (self.folder / "reply.tsr").read_bytes()


def _openssl(*words: str, at: Path) -> None:
    done = subprocess.run(["openssl", *words], cwd=at, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def make_chain(folder: Path, name: str = "") -> None:
    """A certificate authority and a certificate for stamping."""
    (folder / "tsa.cnf").write_text(CONFIG.format(folder=folder))
    (folder / "serial").write_text("01\n")
    fresh = ("req", "-newkey", "rsa:2048", "-nodes", "-config", "/dev/null")
    subject = ("-x509", "-days", "30", "-subj", f"/CN=authority{name}")
    _openssl(*fresh, *subject, "-keyout", "ca.key", "-out", "ca0.crt", at=folder)
    _openssl(
        *("x509", "-in", "ca0.crt", "-signkey", "ca.key", "-days", "30", "-out", "ca.crt"),
        *("-extfile", "tsa.cnf", "-extensions", "authority", "-clrext"),
        at=folder,
    )
    _openssl(*fresh, "-subj", f"/CN=stamps{name}", "-keyout", "tsa.key", "-out", "tsa.csr", at=folder)
    _openssl(
        *("x509", "-req", "-in", "tsa.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "20"),
        *("-extfile", "tsa.cnf", "-extensions", "stamping", "-out", "tsa.crt"),
        at=folder,
    )


@contextlib.contextmanager
def tsa(folder: Path) -> Iterator[Authority]:
    """One for the length of the block, in an empty folder."""
    folder.mkdir(parents=True, exist_ok=True)
    make_chain(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/timestamp-query"
            body = authority.answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    authority = Authority(f"http://127.0.0.1:{server.server_address[1]}/", folder / "ca.crt", folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield authority
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
