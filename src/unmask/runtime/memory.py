"""How the process treats memory it has freed."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_MOST_KEPT = 2**31 - 1  # bytes


def keep_freed_memory() -> None:
    """Makes glibc keep up to 2 GiB of freed memory for the next request in place of handing it back to the system.

    By default it maps every large tensor anew and unmaps it when it is freed, so that each batch is written to pages
    which the system first has to find and clear. Other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_MAX, 0)
        set_option(_M_TRIM_THRESHOLD, _MOST_KEPT)
