"""A receipt as a page: one file for eyes and printers that carries the signed envelope inside.

The page is made from the envelope alone, so it can be made again and compared: what it shows is what was signed. It
loads nothing and runs nothing. Pure; any thread.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from vnafs.domain.errors import Damaged, FormatUnknown
from vnafs.receipts import erasurepage, jws
from vnafs.receipts.frame import BEGIN, END, LAYOUT, head, tail, text


def render(envelope: Mapping[str, Any]) -> str:
    """The page. Raises Damaged for an envelope that holds no receipt."""
    payload = jws.unverified(envelope)
    shown = erasurepage.page if payload.get("type") == erasurepage.TYPE else _page
    try:
        return "".join(shown(envelope, payload))
    except (KeyError, TypeError, AttributeError) as problem:
        raise Damaged(what="The content of a receipt") from problem


def envelope_of(page: str) -> dict[str, Any]:
    """The envelope inside a page, which shows that and nothing else. Raises Damaged, FormatUnknown."""
    _, begin, rest = page.partition(BEGIN)
    signed, end, _ = rest.partition(END)
    if not begin or not end:
        raise Damaged(what="A page without a receipt in it")
    envelope = jws.json_object(signed)
    if f'<meta name="vnafs-layout" content="{LAYOUT}">' not in page:
        raise FormatUnknown(what="The layout of the page", found="another", known=LAYOUT)
    if render(envelope) != page:
        raise Damaged(what="The page, which shows something else than was signed,")
    return envelope


def _page(envelope: Mapping[str, Any], payload: Mapping[str, Any]) -> Iterator[str]:
    safe = payload["safe_to_delete"] is True
    count = len(payload["files"])
    yield from head(f"Receipt {payload['receipt']}")
    yield f"<h1>Custody receipt</h1><p><code>{text(payload['receipt'])}</code></p>\n"
    if safe:
        yield '<p class="verdict yes"><strong>Safe to delete at the sender:</strong> '
        yield f"{'the file' if count == 1 else f'all {count} files'}, as of {text(payload['as_of'])}.</p>\n"
    else:
        yield '<p class="verdict no"><strong>Not safe to delete at the sender:</strong> '
        yield f"{text(payload['files_not_safe'])} of {count} files, as of {text(payload['as_of'])}. "
        yield "Each file below says for itself.</p>\n"
    yield "<dl>"
    for term, value in (
        ("Archive", payload["archive"]),
        ("Looked at from", payload["begun"]),
        ("As of", payload["as_of"]),
        ("Asked for", ", ".join(_path(asked) for asked in payload["asked"])),
        ("Bytes", payload["size_bytes"]),
        ("Signed with key", jws.signer(envelope)),
        ("Timestamp", "by a third party, inside" if "header" in envelope else "none by a third party"),
    ):
        yield f"<dt>{text(term)}</dt><dd>{text(value)}</dd>"
    yield "</dl>\n<h2>Repositories</h2><table><thead><tr><th>Name</th><th>Acknowledgement</th>"
    yield "<th>Copies asked for</th></tr></thead><tbody>\n"
    for row in payload["repositories"]:
        yield f"<tr><td>{text(row['name'])}</td><td>{text(row['acknowledgement'])}</td>"
        yield f"<td>{text(row['copies_min'])}</td></tr>\n"
    yield "</tbody></table>\n<h2>Files</h2><table><thead><tr><th>File</th><th>Bytes</th><th>SHA-256</th>"
    yield "<th>Verified copies</th><th>Holds</th><th>Safe to delete</th></tr></thead><tbody>\n"
    for row in payload["files"]:
        yield from _file(row)
    yield "</tbody></table>\n<p>What is said here was true at a moment between the two times above, and may be true no "
    yield "more. The signed form is inside this page; <code>vna receipt verify</code> checks it with the archive's "
    yield "public key and without the archive.</p>\n"
    yield tail(envelope)


def _file(row: Mapping[str, Any]) -> Iterator[str]:
    yield f"<tr><td><code>{text(_path(row))}</code></td><td>{text(row['size_bytes'])}</td>"
    yield f"<td><code>{text(row['sha256'] or 'not known yet')}</code></td><td>"
    yield "<br>".join(
        f"{text(copy['target'])}, {text(copy['verified'])} ({text(', '.join(copy['verified_by']))})"
        for copy in row["copies"]
    )
    yield f"</td><td>{text(', '.join(str(hold) for hold in row['holds']) or 'none')}</td>"
    yield f"<td>{'yes' if row['safe_to_delete'] is True else 'no: ' + text(row['why'])}</td></tr>\n"


def _path(row: Mapping[str, Any]) -> str:
    if "path" in row:
        return str(row["path"])
    return base64.b64decode(row["path_base64"]).decode("utf-8", "backslashreplace")
