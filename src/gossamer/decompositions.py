"""Inverses, determinants and decompositions of matrices. Layer 4.

These are computed at once, in float64, by NumPy's LAPACK: a slow path beside the compiler, which
therefore cannot be traced. Their derivatives are graph: what a derivative needs (an inverse,
singular vectors) is kept, and the rule is products of matrices.

Sources: Giles 2008, "An extended collection of matrix derivative results"; Golub and Pereyra 1973
(pseudo-inverse); Walter and Lehmann 2012 (QR).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gossamer import prims
from gossamer.core.dtype import DType, float64, int32, int64
from gossamer.core.errors import GossamerError, GradientError, ShapeError
from gossamer.creation import array_node
from gossamer.dispatch import PUBLIC, need_float, node_of, number, public
from gossamer.ir.node import Node, type_text
from gossamer.products import matmul_node
from gossamer.runtime import watch
from gossamer.tensor import CUSTOM, Tensor, wrap

__all__ = ["cholesky", "det", "eigh", "eigvalsh", "inv", "lstsq", "matrix_exp", "matrix_rank",
           "pinv", "qr", "slogdet", "solve", "solve_triangular", "svd", "svdvals"]


class Eigh(NamedTuple):
    """Eigenvalues in ascending order, and eigenvectors as columns."""

    eigenvalues: Tensor
    eigenvectors: Tensor


class Svd(NamedTuple):
    """A = U diag(S) Vh."""

    U: Tensor
    S: Tensor
    Vh: Tensor


class Qr(NamedTuple):
    """A = Q R."""

    Q: Tensor
    R: Tensor


class Slogdet(NamedTuple):
    """Sign and logarithm of the size of a determinant."""

    sign: Tensor
    logabsdet: Tensor


class Lstsq(NamedTuple):
    """A least-squares solution, and what came out on the way."""

    solution: Tensor
    residuals: Tensor
    rank: Tensor
    singular_values: Tensor


class OldSvd(NamedTuple):
    """A = U diag(S) Vᵀ."""

    U: Tensor
    S: Tensor
    V: Tensor


class Triangular(NamedTuple):
    """The solution of a triangular system, and its matrix."""

    solution: Tensor
    cloned_coefficient: Tensor


class InverseInfo(NamedTuple):
    """An inverse and LAPACK's info: 0 where it succeeded."""

    inverse: Tensor
    info: Tensor


class CholeskyInfo(NamedTuple):
    """A Cholesky factor and LAPACK's info: 0 where it succeeded."""

    L: Tensor
    info: Tensor


class SolveInfo(NamedTuple):
    """A solution and LAPACK's info: 0 where it succeeded."""

    result: Tensor
    info: Tensor


# ------------------------------------------------------------------------------------- plumbing

def _matrices(A: Tensor, name: str, square: bool = False) -> Node:
    node = node_of(A, name, "A")
    need_float(node, name)
    if node.ndim < 2 or square and node.shape[-1] != node.shape[-2]:
        kind = "square matrices" if square else "matrices"
        raise ShapeError(f"{name}: A is {type_text(node)}; it must be (a batch of) {kind}.")
    return node


def _value(node: Node) -> np.ndarray:
    return np.asarray(wrap(prims.detach(node))._value().array(), np.float64)


def _lapack(name: str, node: Node, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        with watch.span("numpy", f"{name} of {type_text(node)}"):
            return fn(_value(node), *args, **kwargs)
    except np.linalg.LinAlgError as error:
        raise GossamerError(f"{name}: {type_text(node)}: {error}. Check the matrix for NaN, for "
                            "equal rows, and for what the function asks of it.") from None


def _node(array: np.ndarray) -> Node:
    return array_node(np.asarray(array, np.float64), float64)


def _ruled(value: np.ndarray, source: Node, rule: Any) -> Node:
    """A float64 value with a derivative with respect to `source` (which is float64)."""
    node = _node(value)
    return CUSTOM(node, source, rule=rule) if source.grad else node


def _refuse(g: Node, y: Node, x: Node) -> tuple[Node]:
    raise GradientError(f"linalg: a second derivative at A, {type_text(x)}, is asked for; det, qr, "
                        "eigh and svd have the first only. Use inv, slogdet or cholesky.")


def _frozen(array: np.ndarray, source: Node) -> Node:
    """What a rule needs and cannot differentiate: a constant would make second ones wrong."""
    return _ruled(array, source, _refuse)


def _t(x: Node) -> Node:
    return prims.permute(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def _mm(*factors: Node) -> Node:
    made = factors[0]
    for f in factors[1:]:
        made = matmul_node(made, f, "linalg")
    return made


def _diagonal(v: Node) -> Node:
    return wrap(v).diag_embed()._read()


def _back(node: Node, dtype: DType) -> Tensor:
    return wrap(prims.cast(node, dtype))


def _wide(node: Node) -> Node:
    return prims.cast(node, float64)


def _expand_last(x: Node, shape: tuple[int, ...], columns: bool) -> Node:
    """A vector per matrix, repeated along the rows or the columns."""
    one = (*x.shape, 1) if columns else (*x.shape[:-1], 1, x.shape[-1])
    return prims.expand(prims.reshape(x, one), shape)


# ------------------------------------------------------------------------ inverse and determinant

def _inverse(a: Node, name: str) -> Node:
    def rule(g: Node, y: Node, x: Node) -> tuple[Node]:
        return (prims.neg(_mm(_t(y), g, _t(y))),)
    return _ruled(_lapack(name, a, np.linalg.inv), a, rule)


@public(name="inverse")
def inv(A: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The inverse of square matrices. Computed at once.

    Raises:
        GossamerError: a matrix is singular.
    """
    a = _matrices(A, "linalg.inv", square=True)
    made = _back(_inverse(_wide(a), "linalg.inv"), a.dtype)
    return made if out is None else out.copy_(made)


def inv_ex(A: Tensor, *, check_errors: bool = False) -> InverseInfo:
    """`inv`, and LAPACK's info (0)."""
    return InverseInfo(inv(A), wrap(prims.full(0, A._node.shape[:-2], int32)))


def solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    """X with A X = B (X A = B with left=False). Computed at once.

    Args:
        A: (..., n, n).
        B: (..., n, k), or (..., n) one vector per matrix.
    """
    a = _matrices(A, "linalg.solve", square=True)
    b = node_of(B, "linalg.solve", "B")
    vector = b.ndim == 1 or b.ndim == a.ndim - 1 and b.shape == a.shape[:-1]
    if vector:
        b = prims.reshape(b, (*b.shape, 1) if left else (*b.shape[:-1], 1, b.shape[-1]))
    inverse = _inverse(_wide(a), "linalg.solve")
    wide = _wide(b)
    made = _mm(inverse, wide) if left else _mm(wide, inverse)
    if vector:
        made = prims.reshape(made, made.shape[:-1] if left else
                             (*made.shape[:-2], made.shape[-1]))
    return _back(made, a.dtype)


def solve_ex(A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False) -> SolveInfo:
    """`solve`, and LAPACK's info (0)."""
    return SolveInfo(solve(A, B, left=left), wrap(prims.full(0, A._node.shape[:-2], int32)))


def solve_triangular(A: Tensor, B: Tensor, *, upper: bool, left: bool = True,
                     unitriangular: bool = False, out: Tensor | None = None) -> Tensor:
    """`solve` for a triangular matrix, of which the other triangle is not read."""
    part: Tensor = A.triu() if upper else A.tril()
    if unitriangular:
        n = A._node.shape[-1]
        same = prims.equal(prims.iota(0, (n, n)), prims.iota(1, (n, n)))
        keep = wrap(prims.expand(same, A._node.shape))
        part = part.masked_fill(keep, 1.0)
    made = solve(part, B, left=left)
    return made if out is None else out.copy_(made)


@public(method=False)
def triangular_solve(b: Tensor, A: Tensor, upper: bool = True, transpose: bool = False,
                     unitriangular: bool = False) -> Triangular:
    """The older form of `solve_triangular`."""
    matrix = A.mT if transpose else A
    made = solve_triangular(matrix, b, upper=upper != transpose, unitriangular=unitriangular)
    return Triangular(made, A)


def _cofactors(a: np.ndarray) -> np.ndarray:
    """The derivative of the determinant, also for singular matrices: from the singular values."""
    u, s, vh = np.linalg.svd(a)
    n = s.shape[-1]
    if n == 0:
        return np.zeros(a.shape)
    others = np.stack([np.prod(np.delete(s, i, -1), -1) for i in range(n)], -1)
    sign = np.linalg.det(u) * np.linalg.det(vh)
    return np.asarray((u * (sign[..., None] * others)[..., None, :]) @ vh)


@public()
def det(A: Tensor) -> Tensor:
    """The determinant of square matrices. Computed at once."""
    a = _matrices(A, "linalg.det", square=True)
    wide = _wide(a)

    def rule(g: Node, y: Node, x: Node) -> tuple[Node]:
        each = prims.expand(prims.reshape(g, (*g.shape, 1, 1)), x.shape)
        return (prims.mul(each, _frozen(_cofactors(_value(x)), x)),)
    return _back(_ruled(_lapack("linalg.det", wide, np.linalg.det), wide, rule), a.dtype)


@public()
def slogdet(A: Tensor) -> Slogdet:
    """Sign and logarithm of the size of the determinant. Computed at once."""
    a = _matrices(A, "linalg.slogdet", square=True)
    wide = _wide(a)
    sign, size = _lapack("linalg.slogdet", wide, np.linalg.slogdet)

    def rule(g: Node, y: Node, x: Node) -> tuple[Node]:
        each = prims.expand(prims.reshape(g, (*g.shape, 1, 1)), x.shape)
        return (prims.mul(each, _t(_inverse(x, "linalg.slogdet"))),)
    return Slogdet(_back(prims.flat_slope(_node(sign), wide), a.dtype),
                   _back(_ruled(size, wide, rule), a.dtype))


@public()
def logdet(input: Tensor) -> Tensor:
    """The logarithm of the determinant; NaN where it is negative."""
    found = slogdet(input)
    negative = found.sign.detach() < 0
    return found.logabsdet.masked_fill(negative, math.nan)


# --------------------------------------------------------------------------------- Cholesky, QR

@public(method=True)
def cholesky(A: Tensor, upper: bool = False, *, out: Tensor | None = None) -> Tensor:
    """The triangular factor of symmetric positive-definite matrices: A = L Lᵀ. Computed at once."""
    a = _matrices(A, "linalg.cholesky", square=True)
    wide = _wide(a)
    factor = _lapack("linalg.cholesky", wide, np.linalg.cholesky)

    def rule(g: Node, y: Node, x: Node) -> tuple[Node]:
        inverse = _inverse(y, "linalg.cholesky")
        inner = wrap(_mm(_t(y), g)).tril()
        half = inner - inner.diagonal(0, -2, -1).diag_embed() * 0.5
        made = _mm(_t(inverse), half._read(), inverse)
        return (prims.mul(prims.add(made, _t(made)), prims.const(0.5, made)),)
    node = _ruled(factor, wide, rule)
    made = _back(_t(node) if upper else node, a.dtype)
    return made if out is None else out.copy_(made)


def cholesky_ex(A: Tensor, *, upper: bool = False, check_errors: bool = False) -> CholeskyInfo:
    """`cholesky`, and LAPACK's info (0)."""
    return CholeskyInfo(cholesky(A, upper), wrap(prims.full(0, A._node.shape[:-2], int32)))


@public()
def cholesky_inverse(input: Tensor, upper: bool = False) -> Tensor:
    """The inverse of A from its Cholesky factor."""
    factor = input.mT if upper else input
    lower = factor + (factor.tril() - factor).detach()  # the derivative is PyTorch's, unmasked
    return inv(lower @ lower.mT)


@public(method=False)
def cholesky_solve(B: Tensor, L: Tensor, upper: bool = False) -> Tensor:
    """X with A X = B from the Cholesky factor of A."""
    factor = L.mT if upper else L
    return solve(factor @ factor.mT, B)


@public()
def qr(A: Tensor, mode: Any = "reduced") -> Qr:
    """A = Q R with orthonormal columns in Q and R upper triangular. Computed at once.

    Args:
        A: (..., m, n).
        mode: "reduced", "complete" or "r".
    """
    a = _matrices(A, "linalg.qr")
    mode = {True: "reduced", False: "complete"}.get(mode, mode)
    wide = _wide(a)
    m, n = a.shape[-2:]
    if m < n and wide.grad and mode != "r":  # the square part, and what it makes of the rest
        square, rest = A[..., :m], A[..., m:]
        found = qr(square, mode)
        return Qr(found.Q, PUBLIC["cat"]([found.R, found.Q.mT @ rest], -1))
    q, r = _lapack("linalg.qr", wide, np.linalg.qr, mode="reduced" if mode == "r" else mode)
    if mode == "r":
        return Qr(wrap(prims.full(0, (0,), a.dtype)), _back(_node(r), a.dtype))
    if not wide.grad or mode == "complete" and m != n:
        return Qr(_back(_node(q), a.dtype), _back(_node(r), a.dtype))
    return _qr_ruled(a, wide, q, r)


def _qr_ruled(a: Node, wide: Node, q: np.ndarray, r: np.ndarray) -> Qr:
    """With derivatives, for at least as many rows as columns; `qr` splits wider matrices."""
    q_node, r_node = _node(q), _node(r)
    r_inverse = _frozen(np.linalg.inv(r), wide)

    def pull(gq: Node | None, gr: Node | None) -> Node:
        inner = _mm(r_node, _t(gr)) if gr is not None else None
        if gq is not None:
            part = prims.neg(_mm(_t(gq), q_node))
            inner = part if inner is None else prims.add(inner, part)
        assert inner is not None
        low = wrap(inner).tril(-1)
        diagonal = wrap(inner).diagonal(0, -2, -1).diag_embed()
        symmetric = (low + low.mT + diagonal)._read()
        total = _mm(q_node, symmetric)
        if gq is not None:
            total = prims.add(gq, total)
        return _mm(total, _t(r_inverse))
    return Qr(_back(CUSTOM(q_node, wide, rule=lambda g, y, x: (pull(g, None),)), a.dtype),
              _back(CUSTOM(r_node, wide, rule=lambda g, y, x: (pull(None, g),)), a.dtype))


# ------------------------------------------------------------------- eigenvalues, singular values

def _gaps(values: np.ndarray) -> np.ndarray:
    """1 / (v_j - v_i), 0 on the diagonal."""
    gap = values[..., None, :] - values[..., :, None]
    same = np.eye(values.shape[-1], dtype=bool)
    return np.where(same, 0.0, 1.0 / np.where(same, 1.0, gap))


def eigh(A: Tensor, UPLO: str = "L", *, out: Any = None) -> Eigh:
    """Eigenvalues and eigenvectors of symmetric matrices. Computed at once."""
    a = _matrices(A, "linalg.eigh", square=True)
    wide = _wide(a)
    values, vectors = _lapack("linalg.eigh", wide, np.linalg.eigh, UPLO)
    v = _frozen(vectors, wide)

    def values_rule(g: Node, y: Node, x: Node) -> tuple[Node]:
        return (_mm(v, _diagonal(g), _t(v)),)

    def vectors_rule(g: Node, y: Node, x: Node) -> tuple[Node]:
        inner = _mm(_t(v), g)
        skew = prims.mul(prims.sub(inner, _t(inner)), _node(0.5 * _gaps(values)))
        return (_mm(v, skew, _t(v)),)
    return Eigh(_back(_ruled(values, wide, values_rule), a.dtype),
                _back(_ruled(vectors, wide, vectors_rule), a.dtype))


def eigvalsh(A: Tensor, UPLO: str = "L", *, out: Tensor | None = None) -> Tensor:
    """Eigenvalues of symmetric matrices in ascending order. Computed at once."""
    return eigh(A, UPLO).eigenvalues


def _svd_parts(A: Tensor, name: str) -> tuple[Node, Node, np.ndarray, np.ndarray, np.ndarray]:
    a = _matrices(A, name)
    wide = _wide(a)
    u, s, vh = _lapack(name, wide, np.linalg.svd, full_matrices=False)
    return a, wide, u, s, vh


def svdvals(A: Tensor, *, driver: str | None = None, out: Tensor | None = None) -> Tensor:
    """Singular values in descending order. Computed at once."""
    a, wide, u, s, vh = _svd_parts(A, "linalg.svdvals")

    def rule(g: Node, y: Node, x: Node) -> tuple[Node]:
        return (_mm(_frozen(u, x), _diagonal(g), _node(vh)),)
    return _back(_ruled(s, wide, rule), a.dtype)


def svd(A: Tensor, full_matrices: bool = True, *, driver: str | None = None,
        out: Any = None) -> Svd:
    """A = U diag(S) Vh. Computed at once; with full_matrices U and Vh have no derivative."""
    a, wide, u, s, vh = _svd_parts(A, "linalg.svd")
    values = svdvals(A)
    if full_matrices and a.shape[-1] != a.shape[-2]:
        u, _, vh = np.linalg.svd(_value(wide))
        return Svd(_back(_node(u), a.dtype), values, _back(_node(vh), a.dtype))
    un, vn = _frozen(u, wide), _t(_node(vh))
    gaps = _node(_gaps(s * s))
    inverse = _node(1 / s)
    m, n = a.shape[-2:]
    k = s.shape[-1]
    size = (*a.shape[:-2], k, k)
    s_rows = _expand_last(_node(s), size, True)
    s_columns = _expand_last(_node(s), size, False)

    def outside(x: Node, basis: Node) -> Node:
        return prims.sub(x, _mm(basis, _mm(_t(basis), x)))

    def left(g: Node, y: Node, x: Node) -> tuple[Node]:
        skew = prims.mul(_mm(_t(un), g), gaps)
        skew = prims.add(skew, _t(skew))
        made = _mm(un, prims.mul(skew, s_columns), _t(vn))
        if m > k:
            rest = prims.mul(g, _expand_last(inverse, g.shape, False))
            made = prims.add(made, _mm(outside(rest, un), _t(vn)))
        return (made,)

    def right(g: Node, y: Node, x: Node) -> tuple[Node]:
        g = _t(g)
        skew = prims.mul(_mm(_t(vn), g), gaps)
        skew = prims.add(skew, _t(skew))
        made = _mm(un, prims.mul(skew, s_rows), _t(vn))
        if n > k:
            rest = prims.mul(g, _expand_last(inverse, g.shape, False))
            made = prims.add(made, _mm(un, _t(outside(rest, vn))))
        return (made,)
    return Svd(_back(_ruled(u, wide, left), a.dtype), values,
               _back(_ruled(vh, wide, right), a.dtype))


@public(name="svd")
def torch_svd(input: Tensor, some: bool = True, compute_uv: bool = True) -> OldSvd:
    """The older form of `linalg.svd`: (U, S, V)."""
    found = svd(input, full_matrices=not some)
    if not compute_uv:
        m, n = input._node.shape[-2:]
        lead = input._node.shape[:-2]
        return OldSvd(input.new_zeros(*lead, m, m), found.S, input.new_zeros(*lead, n, n))
    return OldSvd(found.U, found.S, found.Vh.mT)


# ------------------------------------------------------------------------------- least squares

@public(aliases=("pinverse",))
def pinv(A: Tensor, rcond: Any = None, *, atol: Any = None, rtol: Any = None,
         hermitian: bool = False, out: Tensor | None = None) -> Tensor:
    """The pseudo-inverse. Computed at once; differentiable where the rank does not change."""
    if hermitian:
        A = A + (A.tril() + A.tril(-1).mT - A).detach()  # one triangle is read, PyTorch's slope
    a = _matrices(A, "linalg.pinv")
    wide = _wide(a)
    cut = rcond if rcond is not None else rtol
    limit = float(number(cut, "linalg.pinv")) if cut is not None else (
        max(a.shape[-2:]) * (1.1920928955078125e-07 if a.dtype.itemsize <= 4 else 2.2e-16))
    value = _lapack("linalg.pinv", wide, np.linalg.pinv, rcond=limit)

    def rule(g: Node, y: Node, x: Node) -> tuple[Node]:
        yt, gt = _t(y), _t(g)
        first = prims.neg(_mm(yt, g, yt))
        right = _mm(gt, y, yt)
        second = prims.sub(right, _mm(x, _mm(y, right)))
        left = _mm(yt, y, gt)
        third = prims.sub(left, _mm(_mm(left, y), x))
        return (prims.add(first, prims.add(second, third)),)
    made = _back(_ruled(value, wide, rule), a.dtype)
    return made if out is None else out.copy_(made)


def lstsq(A: Tensor, B: Tensor, rcond: float | None = None, *,
          driver: str | None = None) -> Lstsq:
    """X that minimises |A X - B|, by the pseudo-inverse. Computed at once."""
    a = _matrices(A, "linalg.lstsq")
    vector = B.ndim == A.ndim - 1
    right = B.unsqueeze(-1) if vector else B
    solution = pinv(A, rcond) @ right
    m, n = a.shape[-2:]
    rank = matrix_rank(A, rtol=rcond) if driver != "gels" else solution.new_empty(0, dtype=int64)
    told = m > n and driver in ("gels", "gelsd", "gelss")  # as LAPACK's routines do
    residuals = ((A @ solution - right) ** 2).sum(-2) if told else solution.new_empty(0)
    if vector:
        solution = solution.squeeze(-1)
    values = svdvals(A.detach()) if driver in ("gelsd", "gelss") else solution.new_empty(0)
    return Lstsq(solution, residuals, rank, values)


def matrix_rank(A: Tensor, tol: Any = None, *, atol: Any = None, rtol: Any = None,
                hermitian: bool = False, out: Tensor | None = None) -> Tensor:
    """How many singular values are above a threshold. Computed at once."""
    a = _matrices(A, "linalg.matrix_rank")
    s = np.linalg.svd(_value(a), compute_uv=False)
    eps = 1.1920928955078125e-07 if a.dtype.itemsize <= 4 else 2.220446049250313e-16
    absolute = _array(tol if tol is not None else atol)
    if rtol is None:
        relative: Any = 0.0 if absolute is not None and np.any(absolute > 0) else (
            max(a.shape[-2:]) * eps)
    else:
        relative = _array(rtol)
    top = s.max(-1, initial=0)
    limit = np.maximum(0.0 if absolute is None else absolute, relative * top)
    return wrap(array_node((s > np.asarray(limit)[..., None]).sum(-1), int64))


def _array(value: Any) -> Any:
    if isinstance(value, Tensor):
        return np.asarray(value._value().array(), np.float64)
    return None if value is None else np.float64(value)


def cond(A: Tensor, p: Any = None) -> Tensor:
    """The condition number in a norm (2 without `p`). Computed at once."""
    if p in (None, 2, -2):
        s = svdvals(A)
        return s[..., -1] / s[..., 0] if p == -2 else s[..., 0] / s[..., -1]
    one, other = A, inv(A)
    if p == "fro":
        return one.norm(dim=(-2, -1)) * other.norm(dim=(-2, -1))
    if p == "nuc":
        return svdvals(one).sum(-1) * svdvals(other).sum(-1)
    axis = -2 if abs(p) == 1 else -1
    pick = "amax" if p > 0 else "amin"
    return (getattr(one.abs().sum(axis), pick)(-1)
            * getattr(other.abs().sum(axis), pick)(-1))


@public()
def matrix_exp(A: Tensor) -> Tensor:
    """e^A of square matrices: Taylor's series of A / 2^s, squared s times (s from the norm,
    which is computed at once)."""
    a = _matrices(A, "linalg.matrix_exp", square=True)
    size = np.abs(_value(a)).sum(-2).max(initial=0.0)
    halvings = max(0, math.ceil(math.log2(max(size, 1e-30))) + 1) if math.isfinite(size) else 0
    x = prims.mul(_wide(a), prims.full(2.0 ** -halvings, a.shape, float64))
    n = a.shape[-1]
    same = prims.cast(prims.equal(prims.iota(0, (n, n)), prims.iota(1, (n, n))), float64)
    made = term = prims.expand(same, a.shape)
    for k in range(1, 15):  # 0.5^15 / 15! is below 1e-16
        term = prims.mul(_mm(term, x), prims.full(1 / k, a.shape, float64))
        made = prims.add(made, term)
    for _ in range(halvings):
        made = _mm(made, made)
    return _back(made, a.dtype)


def tensorinv(A: Tensor, ind: int = 2) -> Tensor:
    """The inverse of a tensor as a map from its last to its first `ind` dimensions."""
    shape = A._node.shape
    rows = math.prod(shape[:ind])
    return inv(A.reshape(rows, -1)).reshape(*shape[ind:], *shape[:ind])


def tensorsolve(A: Tensor, B: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    """X with tensordot(A, X, X.ndim) = B."""
    if dims is not None:
        rest = [i for i in range(A.ndim) if i not in {d % A.ndim for d in dims}]
        A = A.permute(*rest, *dims)
    shape = A._node.shape[B.ndim:]
    return solve(A.reshape(B.numel(), -1), B.reshape(-1)).reshape(shape)
