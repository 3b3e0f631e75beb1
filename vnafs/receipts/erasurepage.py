"""The certificate of an erasure as a page: see `vnafs.receipts.page`. Pure; any thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vnafs.receipts import jws
from vnafs.receipts.frame import head, tail, text

TYPE = "vnafs-erasure"


def page(envelope: Mapping[str, Any], payload: Mapping[str, Any]) -> Iterator[str]:
    """What was signed, to read and to print. Raises KeyError, TypeError for what is no certificate."""
    yield from head(f"Erasure {payload['erasure']}")
    yield f"<h1>Certificate of erasure</h1><p><code>{text(payload['erasure'])}</code></p>\n"
    count = payload["contents_count"]
    if payload["complete"] is True:
        yield f'<p class="verdict yes"><strong>Erased:</strong> {text(payload["files"])} files and folders with '
        yield f"{text(count)} contents, on every target, complete since {text(payload['completed'])}.</p>\n"
    else:
        yield '<p class="verdict no"><strong>Not complete yet:</strong> the files are gone from the tree; '
        yield f"what is still there is said below, as of {text(payload['as_of'])}.</p>\n"
    yield "<dl>"
    for term, value in (
        ("Archive", payload["archive"]),
        ("Repository", payload["repository"]),
        ("Reason", payload["reason"]),
        ("Asked for", payload["requested"]),
        ("Completed", payload["completed"] or "not yet"),
        ("As of", payload["as_of"]),
        ("Packs removed", payload["packs"]),
        ("Digest of all contents", payload["contents_sha256"]),
        ("Certificate", payload["certificate"]),
        ("Signed with key", jws.signer(envelope)),
        ("Timestamp", "by a third party, inside" if "header" in envelope else "none by a third party"),
    ):
        yield f"<dt>{text(term)}</dt><dd>{text(value)}</dd>"
    yield "</dl>\n<h2>Targets</h2><table><thead><tr><th>Target</th><th>Seen without it</th><th>How</th>"
    yield "<th>What is left</th></tr></thead><tbody>\n"
    for row in payload["targets"]:
        until = f"; locked until {row['locked_until']}" if row["locked_until"] else ""
        yield f"<tr><td>{text(row['name'])}</td><td>{text(row['proven'] or 'not yet')}</td><td>{text(row['how'])}</td>"
        yield f"<td>{text((row['why'] + until) or 'nothing')}</td></tr>\n"
    yield "</tbody></table>\n<h2>What remains</h2><ul>\n"
    for line in payload["remains"]:
        yield f"<li>{text(line)}</li>\n"
    yield "</ul>\n<h2>Contents</h2><table><thead><tr><th>SHA-256</th><th>Bytes</th><th>Stays</th></tr></thead><tbody>\n"
    for row in payload["contents"]:
        stays = "also the bytes of other files" if row["also_of_other_files"] is True else "no"
        yield f"<tr><td><code>{text(row['sha256'])}</code></td><td>{text(row['size_bytes'])}</td>"
        yield f"<td>{stays}</td></tr>\n"
    yield "</tbody></table>\n<p>The signed form is inside this page; <code>vna receipt verify</code> checks it with "
    yield "the archive's public key and without the archive.</p>\n"
    yield tail(envelope)
