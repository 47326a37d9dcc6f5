"""Permission to use AMX tiles. Layer 3.

The one idea: Linux lets a process touch the tiles only after it asked, once; the answer holds for
all its threads. Elsewhere nobody grants them, and products use vectors.

Source: Linux, Documentation/arch/x86/xstate.rst.
"""

from __future__ import annotations

import ctypes
import functools
import sys

from gossamer.runtime.device import Host

__all__ = ["usable_features"]

_ARCH_PRCTL, _REQUEST, _ASK = 158, 0x1023, 0x1022  # system call; ARCH_REQ_ and _GET_XCOMP_PERM
_TILE_DATA = 18  # number of the state component


@functools.cache
def _granted() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    system_call = ctypes.CDLL(None, use_errno=True).syscall
    if system_call(_ARCH_PRCTL, _REQUEST, _TILE_DATA):
        return False
    bits = ctypes.c_uint64()
    return not system_call(_ARCH_PRCTL, _ASK, ctypes.byref(bits)) and bool(bits.value >> 18 & 1)


def usable_features(host: Host) -> frozenset[str]:
    """The host's features, without those of AMX if the system does not grant the tiles."""
    tiles = frozenset(f for f in host.features if f.startswith("amx-"))
    return host.features if not tiles or _granted() else host.features - tiles
