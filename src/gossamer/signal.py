"""`gossamer.signal`: window functions. Layer 4."""

from __future__ import annotations

from gossamer import windows as windows

__all__ = ["windows"]
