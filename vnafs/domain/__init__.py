"""Plain frozen values and pure decisions. Nothing here opens a file, a socket or a clock."""
