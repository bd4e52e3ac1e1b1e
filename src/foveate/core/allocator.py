"""The C library's allocator: keep freed memory for the next layer of a network. No torch."""

from __future__ import annotations

import ctypes
import os

# `mallopt`'s parameters, from glibc's malloc.h, with the values that commands run with.
_OPTIONS = {
    -8: 1,  # M_ARENA_MAX: threads share one heap; those of the other arenas are given back at 64 MB
    -1: 1 << 30,  # M_TRIM_THRESHOLD: give the end of the heap back only from 1 GiB on
    # M_MMAP_THRESHOLD: below 128 MiB no mapping that ends with its tensor. Larger tensors are few, and would leave
    # holes that nothing else fits.
    -3: 1 << 27,
    -2: 1 << 26,  # M_TOP_PAD: grow by 64 MiB at a time
}


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed for the next allocation; return whether it was told.

    A network allocates and frees the same megabytes in every layer. By default glibc gives most of them back to the
    system, which fills every page with zeros when it is used again: on two cores with AMX the frozen features of an
    image took 6.3 ms with that and 4.2 ms without. For processes of Foveate's own, early, before there are threads: a
    library must not decide this for the program that imports it. Other C libraries are left as they are, and so is
    glibc where an environment variable tunes it.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # A list: all are set, even where one is refused.
    return all([mallopt(option, value) == 1 for option, value in _OPTIONS.items()])
