"""The control sockets: how `vna`, the daemons and later doors ask a daemon for something.

One JSON object a line over a unix socket. A request is `{"v": 1, "method": …, "params": {…}}`; the answer is any
number of `{"event": {…}}` lines and then `{"result": …}` or `{"error": {"code", "message", "fields"}}`. A
connection carries one request after another. Names and paths are strings with surrogate escapes (PEP 383), so
that any byte survives. The socket's mode and the peer's credentials (SO_PEERCRED) decide who may ask.
"""
