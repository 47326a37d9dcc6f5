"""See through: what a function becomes, and where its time goes. Surface (layer 4).

`gs.explain` and `gs.profile` load this room when they are first named.
"""

from gossamer.insight.diagnosis import Diagnosis, doctor
from gossamer.insight.explaining import explain
from gossamer.insight.explanation import Explanation
from gossamer.insight.limits import Peaks, peaks
from gossamer.insight.profiling import profile
from gossamer.insight.script import explain_script

__all__ = ["Diagnosis", "Explanation", "Peaks", "doctor", "explain", "explain_script", "peaks",
           "profile"]
