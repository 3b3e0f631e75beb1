"""vnafs: bytes in, bytes kept, bytes back.

This package is a library without processes: it reads no environment and starts no daemon.
`appliance` wires it into daemons and the `vna` command line.
"""
