"""`Shared`: memory that a tensor has in common with NumPy code. Layer 4.

The one idea: whoever holds the array may write to it at any time, so a tensor on such memory reads
a fresh copy, until the count of references tells that nobody else can reach it any more.
"""

from __future__ import annotations

import numpy as np

from gossamer.core.references import getrefcount

__all__ = ["Shared"]


class Shared:
    """Memory that NumPy code may write to at any time; a tensor on it reads a fresh copy.

    Attributes:
        array: the array.
        always: others reach the memory by other handles than `array` and its views; otherwise
            the count of references to it tells when the last of them is gone.
    """

    __slots__ = ("always", "array")

    def __init__(self, array: np.ndarray, always: bool) -> None:
        self.array = array
        self.always = always

    def alone(self) -> bool:
        """Whether nobody else can reach the memory any more."""
        # Two references: this object's, and the argument of getrefcount.
        return not self.always and getrefcount(self.array) <= 2
