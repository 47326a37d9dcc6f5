"""`gossamer.linalg`: PyTorch's linear algebra by its names. Layer 4.

Products and norms are graph as everything else; decompositions are computed at once (see
`decompositions`).
"""

from __future__ import annotations

from gossamer.casting import full_precision
from gossamer.decompositions import (
    cholesky,
    cholesky_ex,
    cond,
    det,
    eigh,
    eigvalsh,
    inv,
    inv_ex,
    lstsq,
    matrix_exp,
    matrix_rank,
    pinv,
    qr,
    slogdet,
    solve,
    solve_ex,
    solve_triangular,
    svd,
    svdvals,
    tensorinv,
    tensorsolve,
)
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

__all__ = ["cholesky", "cholesky_ex", "cond", "cross", "det", "diagonal", "eigh", "eigvalsh", "inv",
           "inv_ex", "lstsq", "matmul", "matrix_exp", "matrix_norm", "matrix_power", "matrix_rank",
           "multi_dot", "norm", "pinv", "qr", "slogdet", "solve", "solve_ex", "solve_triangular",
           "svd", "svdvals", "tensorinv", "tensorsolve", "vander", "vecdot", "vector_norm"]

for _name in ("cholesky", "cholesky_ex", "cond", "eigh", "eigvalsh", "inv", "inv_ex", "lstsq",
              "matrix_rank", "qr", "solve", "svd", "svdvals", "tensorinv", "tensorsolve"):
    globals()[_name] = full_precision(globals()[_name])
