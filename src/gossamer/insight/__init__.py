"""See through: what a function becomes, and where its time goes. Surface (layer 4).

`gs.explain` and `gs.profile` load this room when they are first named.
"""

from gossamer.insight.explaining import explain
from gossamer.insight.explanation import Explanation

__all__ = ["Explanation", "explain"]
