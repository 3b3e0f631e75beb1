"""An NFSv3 client that puts 512 KiB files, one after the other, by libnfs; prints the seconds that this took.

    python nfsput.py NFS-URL FOLDER COUNT

A program of its own, because the servers it is meant for live in a network of their own. Each file is created, written
and closed; libnfs sends COMMIT at close, so a file that is put is on stable storage.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time

LIBRARIES = ("libnfs.so.13", "libnfs.so.14")
"""Of Debian 12 and 13; later ones take the arguments of nfs_write in another order."""
IMAGE_BYTES = 512 * 1024
MODE = 0o644


def main() -> int:
    url, folder, count = sys.argv[1].encode(), sys.argv[2].encode(), int(sys.argv[3])
    nfs = _library()
    for name in ("nfs_init_context", "nfs_parse_url_dir"):
        getattr(nfs, name).restype = ctypes.c_void_p
    nfs.nfs_get_error.restype = ctypes.c_char_p
    nfs.nfs_write.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p)
    context = ctypes.c_void_p(nfs.nfs_init_context())

    def check(done: int) -> int:
        if done < 0:
            raise SystemExit(f"{os.strerror(-done)}: {nfs.nfs_get_error(context).decode(errors='replace')}")
        return done

    parsed = nfs.nfs_parse_url_dir(context, url)
    if not parsed:
        raise SystemExit(f"{url!r} is no address")
    server, path = ctypes.cast(parsed, ctypes.POINTER(ctypes.c_char_p))[:2]
    check(nfs.nfs_mount(context, server, path))
    data = os.urandom(IMAGE_BYTES)
    began = time.perf_counter()
    for number in range(count):
        file = ctypes.c_void_p()
        check(nfs.nfs_creat(context, b"/%s/IM%06d.DCM" % (folder, number), MODE, ctypes.byref(file)))
        written = 0
        while written < IMAGE_BYTES:
            written += check(nfs.nfs_write(context, file, IMAGE_BYTES - written, data[written:]))
        check(nfs.nfs_close(context, file))
    print(time.perf_counter() - began)
    return 0


def _library() -> ctypes.CDLL:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise SystemExit("libnfs is not here: apt-get install libnfs-utils")


if __name__ == "__main__":
    sys.exit(main())
