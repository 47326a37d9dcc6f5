"""How many references an object has, where the number can be relied on. Layer 0.

The one idea: memory may be given away or written in place when nobody else can see it, and CPython
counts who can. From 3.14 on it leaves references uncounted that it only borrows, other Pythons
count differently or not at all; there the answer is "many", and everything is copied.
"""

from __future__ import annotations

import sys

__all__ = ["getrefcount"]


def _many(_: object) -> int:
    return sys.maxsize


getrefcount = (sys.getrefcount
               if sys.implementation.name == "cpython" and sys.version_info < (3, 14) else _many)
