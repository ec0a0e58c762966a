"""What the C library does with freed memory, for XLA on a CPU. Only glibc is told; others are left as they are."""

from __future__ import annotations

import ctypes

MAX_FREED = 2**31  # bytes of freed memory that a training step leaves with the process

_is_kept = False  # whether this process keeps freed memory, by `keep_freed`


def keep_freed() -> None:
    """Keep memory that is freed.

    A compiled program allocates its temporaries at each call. By default glibc gives large blocks back to the kernel,
    which has to clear their pages once more at the next call: an eighth of the CPU time of the quickstart's SFT.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        global _is_kept
        _is_kept = True
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # names of mallopt(3)
        mallopt(trim_threshold, -1)  # never
        mallopt(mmap_max, 0)
        mallopt(arena_max, 1)  # the arenas of threads would still map large blocks


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def give_back(most: int = MAX_FREED) -> None:
    """Give freed memory back to the kernel where `keep_freed` makes the process keep more than `most` bytes of it.

    Small blocks that are allocated inside of a large freed one split it. The temporaries of the next call do not fit
    any more, and the process grows by as much again: SmolLM2 at 4 x 512 tokens took up to 18 GB in place of 7.
    """
    if not _is_kept:  # glibc has given it back
        return
    libc = ctypes.CDLL(None)
    mallinfo, trim = getattr(libc, "mallinfo2", None), getattr(libc, "malloc_trim", None)
    if mallinfo is None or trim is None:
        return
    mallinfo.restype = _Mallinfo
    if mallinfo().fordblks > most:
        trim(ctypes.c_size_t(0))
