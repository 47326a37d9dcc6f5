"""Stateless layers with torch.nn.functional's names. Layer 5.

Operators that are records of the table come from `gossamer.functional`; everything else is written
here from tensor functions, one family per file.
"""

# ruff: noqa: F403
from gossamer.nn.functional.activation import *
from gossamer.nn.functional.adaptive import *
from gossamer.nn.functional.attention import *
from gossamer.nn.functional.chunked import *
from gossamer.nn.functional.classification import *
from gossamer.nn.functional.convolution import *
from gossamer.nn.functional.distance import *
from gossamer.nn.functional.dropout import *
from gossamer.nn.functional.interpolate import *
from gossamer.nn.functional.linear import *
from gossamer.nn.functional.loss import *
from gossamer.nn.functional.norm import *
from gossamer.nn.functional.padding import *
from gossamer.nn.functional.pooling import *
from gossamer.nn.functional.vision import *
