"""The cache of compiled kernels and plans on disk, for people and tools. Surface (layer 4).

Example:
    >>> from gossamer import caching
    >>> caching.info().bound
    1073741824
"""

from __future__ import annotations

from gossamer.runtime.cache import CacheInfo, clear, info, verify

__all__ = ["CacheInfo", "clear", "info", "verify"]
