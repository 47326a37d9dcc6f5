"""`gossamer.linalg`: PyTorch's linear algebra by its names. Layer 4.

What needs no decomposition is here; inverses, eigenvalues and singular values are not there yet.
"""

from __future__ import annotations

from gossamer.matrices import (
    linalg_cross as cross,
    linalg_diagonal as diagonal,
    linalg_norm as norm,
    linalg_vander as vander,
    matrix_norm,
    matrix_power,
    multi_dot,
    vecdot,
    vector_norm,
)
from gossamer.products import matmul

__all__ = ["cross", "diagonal", "matmul", "matrix_norm", "matrix_power", "multi_dot", "norm",
           "vander", "vecdot", "vector_norm"]
