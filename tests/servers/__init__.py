"""Real object servers and what stands between them and us, for any test: no server is replaced by a mock.

Each is a context manager here and a fixture in `tests.servers.fixtures`. All listen on loopback, keep their files
in a temporary directory and end with whoever started them, also when that is killed.
"""
