"""All functions of tensors in one namespace. Layer 4.

The families live in their own modules and register themselves in `dispatch.PUBLIC`; importing this
module imports them all. It also offers the composites of neural networks (`gelu`, `conv2d`,
`layer_norm`, `scaled_dot_product_attention`, …) with few parameters, for `nn.functional` to build
on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gossamer import (
    autograd as autograd,
    copies as copies,
    creation as creation,
    decompositions as decompositions,
    gathering as gathering,
    indexing as indexing,
    interop as interop,
    joining as joining,
    limits as limits,
    masking as masking,
    mathematics as mathematics,
    matrices as matrices,
    members as members,
    pointwise as pointwise,
    printing as printing,
    products as products,
    random as random,
    reductions as reductions,
    scanning as scanning,
    sorting as sorting,
    special as special,
    transforms as transforms,
    views as views,
    windows as windows,
)
from gossamer.dispatch import PUBLIC
from gossamer.neural import NEURAL

if TYPE_CHECKING:
    def __getattr__(name: str) -> Any: ...

globals().update({**NEURAL, **PUBLIC})
