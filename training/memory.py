"""Memory that torch frees on a CPU is kept for its next tensors."""

import ctypes

# Of glibc's malloc.h, see mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = -1
_PAD = 64 << 20  # bytes that are asked of the kernel beyond what is needed


def keep_freed_memory() -> None:
    """Let this process keep what it frees until it ends; does nothing where the C library is not glibc.

    glibc maps every tensor above 32 MiB anew and gives it back when it is freed, and the kernel fills each of its pages
    with zeros: for ResNet-50 at 224 px a fifth of the core time of training and a third of inference (`make bench`).
    The process then holds its peak, which it needs again at the next step anyway.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PAD)):
        mallopt(option, value)
