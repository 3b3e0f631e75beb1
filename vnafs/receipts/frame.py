"""The frame of every page: its look, where the signed envelope is in it, and how text is shown so that nothing hides.

Pure; any thread.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

from vnafs.receipts import jws

LAYOUT = 1
"""Rises with every change of what is written in a page: only a page of the same layout can be compared."""
BEGIN = '<script type="application/jose+json" id="receipt">'
END = "</script>"
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


def head(title: str) -> Iterator[str]:
    """From the first byte to where the body begins."""
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    yield f'<meta name="vnafs-layout" content="{LAYOUT}"><meta name="viewport" content="width=device-width">'
    yield "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    yield f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>\n"


def tail(envelope: Mapping[str, Any]) -> str:
    """The envelope, and the end."""
    return BEGIN + jws.canonical(dict(envelope)).decode() + END + "</body></html>\n"


def text(value: object) -> str:
    """Text that is text in HTML too, and in which nothing is hidden: names may hold anything."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(value))
    return html.escape(shown)
