"""A receipt as a page: one file for eyes and printers that carries the signed envelope inside.

The page is made from the envelope alone, so it can be made again and compared: what it shows is what was signed. It
loads nothing and runs nothing. Pure; any thread.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Mapping
from typing import Any

from vnafs.domain.errors import Damaged, FormatUnknown
from vnafs.receipts import jws

LAYOUT = 1
"""Rises with every change of what is written below: only a page of the same layout can be compared."""
_BEGIN = '<script type="application/jose+json" id="receipt">'
_END = "</script>"
_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; }
.verdict { font-size: 1.15rem; padding: .6rem .9rem; border: 2px solid; border-radius: .3rem; }
.yes { border-color: #17692e; } .no { border-color: #a11; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .5rem; border-bottom: 1px solid #bbb; }
code { font-family: ui-monospace, monospace; font-size: .85em; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; } dd { margin: 0; }
@media print { body { margin: 0; max-width: none; font-size: 10px; } tr { break-inside: avoid; }
  thead { display: table-header-group; } }
"""


def render(envelope: Mapping[str, Any]) -> str:
    """The page. Raises Damaged for an envelope that holds no receipt."""
    payload = jws.unverified(envelope)
    try:
        return "".join(_page(envelope, payload))
    except (KeyError, TypeError, AttributeError) as problem:
        raise Damaged(what="The content of a receipt") from problem


def envelope_of(page: str) -> dict[str, Any]:
    """The envelope inside a page, which shows that and nothing else. Raises Damaged, FormatUnknown."""
    _, begin, rest = page.partition(_BEGIN)
    text, end, _ = rest.partition(_END)
    if not begin or not end:
        raise Damaged(what="A page without a receipt in it")
    envelope = jws.json_object(text)
    if f'<meta name="vnafs-layout" content="{LAYOUT}">' not in page:
        raise FormatUnknown(what="The layout of the page", found="another", known=LAYOUT)
    if render(envelope) != page:
        raise Damaged(what="The page, which shows something else than was signed,")
    return envelope


def _page(envelope: Mapping[str, Any], payload: Mapping[str, Any]) -> Iterator[str]:
    safe = payload["safe_to_delete"] is True
    count = len(payload["files"])
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    yield f'<meta name="vnafs-layout" content="{LAYOUT}"><meta name="viewport" content="width=device-width">'
    yield "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    yield f"<title>Receipt {_text(payload['receipt'])}</title><style>{_STYLE}</style></head><body>\n"
    yield f"<h1>Custody receipt</h1><p><code>{_text(payload['receipt'])}</code></p>\n"
    if safe:
        yield '<p class="verdict yes"><strong>Safe to delete at the sender:</strong> '
        yield f"{'the file' if count == 1 else f'all {count} files'}, as of {_text(payload['as_of'])}.</p>\n"
    else:
        yield '<p class="verdict no"><strong>Not safe to delete at the sender:</strong> '
        yield f"{_text(payload['files_not_safe'])} of {count} files, as of {_text(payload['as_of'])}. "
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
        yield f"<dt>{_text(term)}</dt><dd>{_text(value)}</dd>"
    yield "</dl>\n<h2>Repositories</h2><table><thead><tr><th>Name</th><th>Acknowledgement</th>"
    yield "<th>Copies asked for</th></tr></thead><tbody>\n"
    for row in payload["repositories"]:
        yield f"<tr><td>{_text(row['name'])}</td><td>{_text(row['acknowledgement'])}</td>"
        yield f"<td>{_text(row['copies_min'])}</td></tr>\n"
    yield "</tbody></table>\n<h2>Files</h2><table><thead><tr><th>File</th><th>Bytes</th><th>SHA-256</th>"
    yield "<th>Verified copies</th><th>Holds</th><th>Safe to delete</th></tr></thead><tbody>\n"
    for row in payload["files"]:
        yield from _file(row)
    yield "</tbody></table>\n<p>What is said here was true at a moment between the two times above, and may be true no "
    yield "more. The signed form is inside this page; <code>vna receipt verify</code> checks it with the archive's "
    yield "public key and without the archive.</p>\n"
    yield _BEGIN + jws.canonical(dict(envelope)).decode() + _END + "</body></html>\n"


def _file(row: Mapping[str, Any]) -> Iterator[str]:
    yield f"<tr><td><code>{_text(_path(row))}</code></td><td>{_text(row['size_bytes'])}</td>"
    yield f"<td><code>{_text(row['sha256'] or 'not known yet')}</code></td><td>"
    yield "<br>".join(
        f"{_text(copy['target'])}, {_text(copy['verified'])} ({_text(', '.join(copy['verified_by']))})"
        for copy in row["copies"]
    )
    yield f"</td><td>{_text(', '.join(str(hold) for hold in row['holds']) or 'none')}</td>"
    yield f"<td>{'yes' if row['safe_to_delete'] is True else 'no: ' + _text(row['why'])}</td></tr>\n"


def _path(row: Mapping[str, Any]) -> str:
    if "path" in row:
        return str(row["path"])
    return base64.b64decode(row["path_base64"]).decode("utf-8", "backslashreplace")


def _text(value: object) -> str:
    """Text that is text in HTML too, and in which nothing is hidden: names may hold anything."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(value))
    return html.escape(shown)
