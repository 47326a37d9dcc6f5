"""Building blocks of models: modules, layers, losses, initialisation. Layer 5.

Names, defaults and state_dict keys are those of torch.nn, so weights interchange.
"""

# ruff: noqa: F403
from gossamer.nn import functional as functional, init as init, utils as utils
from gossamer.nn.activation import *
from gossamer.nn.attention import *
from gossamer.nn.cache import *
from gossamer.nn.containers import *
from gossamer.nn.conv import *
from gossamer.nn.dropout import *
from gossamer.nn.embedding import *
from gossamer.nn.linear import *
from gossamer.nn.loss import *
from gossamer.nn.module import *
from gossamer.nn.normalization import *
from gossamer.nn.padding import *
from gossamer.nn.pooling import *
from gossamer.nn.rnn import *
from gossamer.nn.shape import *
from gossamer.nn.transformer import *
from gossamer.tensor import Parameter as Parameter

__all__ = [name for name in dir() if not name.startswith("_") and name != "annotations"]
