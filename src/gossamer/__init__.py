"""Gossamer: a deep-learning framework, light enough to see through.

The public API has PyTorch's names and semantics: `import gossamer as gs` where one would import
torch. This file only gathers; functions live in the module of their family.
"""

from __future__ import annotations

from gossamer import (
    autograd as autograd,
    creation as creation,
    gathering as gathering,
    indexing as indexing,
    joining as joining,
    layout as layout,
    linalg as linalg,
    mathematics as mathematics,
    matrices as matrices,
    members as members,
    pointwise as pointwise,
    products as products,
    reductions as reductions,
    scanning as scanning,
    sorting as sorting,
    views as views,
)
from gossamer.dispatch import PUBLIC

globals().update(PUBLIC)
