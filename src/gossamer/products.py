"""Products of vectors, matrices and tensors, all by one contraction operator. Layer 4.

`matmul`, `einsum`, `tensordot` and their relatives differ only in which axes they pair (batch), sum
(contract) and keep (free); each builds one `dot_general`, so a broadcast weight is never copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gossamer import prims
from gossamer.casting import full_precision, lower_precision
from gossamer.core.dtype import bool_, promote
from gossamer.core.errors import DTypeError, ShapeError
from gossamer.dispatch import (
    PUBLIC,
    axis_of,
    broadcast_shapes,
    give,
    node_of,
    number,
    operands,
    public,
    with_out,
)
from gossamer.ir.node import Node, type_text
from gossamer.prims import matmul_nodes
from gossamer.tensor import Tensor, attach, wrap

__all__ = ["contract", "matmul_node"]


def _pair(a: Any, b: Any, name: str, what: tuple[str, str] = ("input", "other"),
          ) -> tuple[Node, Node]:
    x, y = node_of(a, name, what[0]), node_of(b, name, what[1])
    if x.dtype is not y.dtype:
        raise DTypeError(f"{name}: got {type_text(x)} and {type_text(y)}; both must have one "
                         f"dtype. Use .to({promote(x.dtype, y.dtype).name}).")
    return x, y


def contract(a: Node, b: Node, a_batch: Sequence[int], a_contract: Sequence[int],
             b_batch: Sequence[int], b_contract: Sequence[int]) -> Node:
    """`dot_general`, also for bool (any of ands) by way of int64."""
    if a.dtype is bool_:
        raise DTypeError(f"matmul: got {type_text(a)} and {type_text(b)}; products of matrices are "
                         "not defined for bool. Use .float().")
    return matmul_nodes(a, b, a_batch, a_contract, b_batch, b_contract)


def matmul_node(a: Node, b: Node, name: str) -> Node:
    """`a @ b` by NumPy's rules."""
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(f"{name}: got {type_text(a)} and {type_text(b)}; both must have at least "
                         "one dimension. Use * for a number.")
    inner = -2 if b.ndim > 1 else -1
    if a.shape[-1] != b.shape[inner]:
        raise ShapeError(
            f"{name}: got {type_text(a)} and {type_text(b)}; the last dimension of the first, "
            f"{a.shape[-1]}, must equal {'the second to last' if b.ndim > 1 else 'the last'} of "
            f"the second, {b.shape[inner]}. Transpose or reshape one of them.")
    if b.ndim <= 2:  # the batch of `a` is free: no batch axes at all
        return contract(a, b, (), (a.ndim - 1,), (), (b.ndim + inner,))
    if a.ndim == 1:
        rest = tuple(range(b.ndim - 2))
        made = contract(b, a, (), (b.ndim - 2,), (), (0,))
        assert made.shape == tuple(b.shape[i] for i in rest) + (b.shape[-1],)
        return made
    batch = broadcast_shapes(name, [a.shape[:-2], b.shape[:-2]])
    if all(n == 1 for n in b.shape[:-2]) and len(b.shape) <= len(batch) + 2:
        flat = prims.reshape(b, b.shape[-2:])
        made = contract(a, flat, (), (a.ndim - 1,), (), (0,))
        return prims.reshape(made, (*batch, a.shape[-2], b.shape[-1]))
    a = prims.expand(a, (*batch, *a.shape[-2:]))
    b = prims.expand(b, (*batch, *b.shape[-2:]))
    axes = tuple(range(len(batch)))
    return contract(a, b, axes, (a.ndim - 1,), axes, (b.ndim - 2,))


@public()
@lower_precision
@with_out
def matmul(input: Tensor, other: Tensor) -> Tensor:
    """The product of two vectors, matrices or (broadcast) batches of matrices.

    Args:
        input: (..., n, k) or (k,).
        other: (..., k, m) or (k,); the same dtype.

    Returns:
        (..., n, m), without the dimensions that a vector lacks.

    Raises:
        ShapeError: the inner dimensions differ.
        DTypeError: the dtypes differ.

    Cost: 2 n k m FLOPs a matrix.
    """
    return wrap(matmul_node(*_pair(input, other, "gs.matmul"), "gs.matmul"))


def _matmul_operator(self: Tensor, other: Any) -> Any:
    if not isinstance(other, Tensor):
        return NotImplemented
    return wrap(matmul_node(*_pair(self, other, "x @ y", ("x", "y")), "x @ y"))


def _rmatmul_operator(self: Tensor, other: Any) -> Any:
    if not isinstance(other, Tensor):
        return NotImplemented
    return wrap(matmul_node(*_pair(other, self, "x @ y", ("x", "y")), "x @ y"))


attach("__matmul__", lower_precision(_matmul_operator))
attach("__rmatmul__", lower_precision(_rmatmul_operator))


def _ranked(name: str, ranks: tuple[int, int], doc: str) -> None:
    def fn(input: Tensor, other: Tensor) -> Tensor:
        a, b = _pair(input, other, f"gs.{name}")
        if (a.ndim, b.ndim) != ranks:
            raise ShapeError(f"gs.{name}: got {type_text(a)} and {type_text(b)}; they must have "
                             f"{ranks[0]} and {ranks[1]} dimensions. gs.matmul takes any.")
        if name == "bmm" and a.shape[0] != b.shape[0]:
            raise ShapeError(f"gs.bmm: got {type_text(a)} and {type_text(b)}; both must hold the "
                             "same number of matrices.")
        return wrap(matmul_node(a, b, f"gs.{name}"))
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = doc
    low = name in ("mm", "bmm")  # products with vectors stay in float32, as in PyTorch
    public()(lower_precision(with_out(fn)) if low else with_out(fn))


_ranked("mm", (2, 2), "The product of two matrices.")
_ranked("bmm", (3, 3), "The products of two equally long batches of matrices.")
_ranked("mv", (2, 1), "The product of a matrix and a vector.")
_ranked("dot", (1, 1), "The inner product of two vectors.")
_ranked("vdot", (1, 1), "The inner product of two vectors (the first conjugated, if complex).")


@public()
@lower_precision
@with_out
def inner(input: Tensor, other: Tensor) -> Tensor:
    """The inner products over the last dimensions."""
    a, b = _pair(input, other, "gs.inner")
    if a.ndim == 0 or b.ndim == 0:
        return wrap(prims.mul(*operands("gs.inner", (input, other))))
    if a.shape[-1] != b.shape[-1]:
        raise ShapeError(f"gs.inner: got {type_text(a)} and {type_text(b)}; the last dimensions "
                         "must be equal.")
    return wrap(contract(a, b, (), (a.ndim - 1,), (), (b.ndim - 1,)))


@public(aliases=("ger",))
@with_out
def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """All products of an element of one vector with one of the other: (n,), (m,) -> (n, m)."""
    a, b = node_of(input, "gs.outer"), node_of(vec2, "gs.outer", "vec2")
    if a.ndim != 1 or b.ndim != 1:
        raise ShapeError(f"gs.outer: got {type_text(a)} and {type_text(b)}; both must be vectors.")
    return input.reshape(-1, 1) * vec2


def _added(name: str, ranks: tuple[int, int], doc: str) -> None:
    def fn(input: Tensor, first: Tensor, second: Tensor, *, beta: Any = 1,
           alpha: Any = 1) -> Tensor:
        a, b = _pair(first, second, f"gs.{name}")
        if (a.ndim, b.ndim) != ranks:
            raise ShapeError(f"gs.{name}: got {type_text(a)} and {type_text(b)} to multiply; they "
                             f"must have {ranks[0]} and {ranks[1]} dimensions.")
        if name == "addbmm":
            if a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
                raise ShapeError(f"gs.addbmm: got {type_text(a)} and {type_text(b)}; they must be "
                                 "(b, n, k) and (b, k, m).")
            product = contract(a, b, (), (0, 2), (), (0, 1))
        elif name == "addr":
            product = outer(first, second)._node
        else:
            product = matmul_node(a, b, f"gs.{name}")
        made = wrap(product)
        if alpha != 1:
            made = made * alpha
        if beta == 0:
            shape = broadcast_shapes(f"gs.{name}", [node_of(input, f"gs.{name}").shape,
                                                    made._node.shape])
            return wrap(prims.expand(made._node, shape))
        return (input if beta == 1 else input * beta) + made
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = doc
    low = name in ("addmm", "baddbmm", "addbmm")
    public(inplace=True)(lower_precision(with_out(fn)) if low else with_out(fn))


_added("addmm", (2, 2), "beta * input + alpha * (matrix @ matrix).")
_added("addmv", (2, 1), "beta * input + alpha * (matrix @ vector).")
_added("addr", (1, 1), "beta * input + alpha * outer(vector, vector).")
_added("baddbmm", (3, 3), "beta * input + alpha * (batch of products of matrices).")
def _addbmm_(self: Tensor, first: Tensor, second: Tensor, *, beta: Any = 1,
             alpha: Any = 1) -> Tensor:
    """`addbmm`, written into this tensor, which takes the shape of the result."""
    made = PUBLIC["addbmm"](self, first, second, beta=beta, alpha=alpha)
    if self._base is None and not self._leaf and made._node.shape != self._node.shape:
        self._node = made._read()
    self._check_inplace("x.addbmm_")
    return give(self, made._read(), "x.addbmm_")


_added("addbmm", (3, 3), "beta * input + alpha * (sum of a batch of products of matrices).")
attach("addbmm_", _addbmm_)


@public(method=False)
def chain_matmul(*matrices: Tensor) -> Tensor:
    """The product of several matrices."""
    made = matrices[0]
    for m in matrices[1:]:
        made = made @ m
    return made


@public()
def kron(input: Tensor, other: Tensor) -> Tensor:
    """The Kronecker product: every element of `input` times all of `other`."""
    a, b = operands_of_rank(input, other)
    shape = tuple(m * n for m, n in zip(a.shape, b.shape, strict=True))
    wide_a = tuple(v for n in a.shape for v in (n, 1))
    wide_b = tuple(v for n in b.shape for v in (1, n))
    made = wrap(prims.reshape(a, wide_a)) * wrap(prims.reshape(b, wide_b))
    return wrap(prims.reshape(made._node, shape))


def operands_of_rank(input: Tensor, other: Tensor) -> tuple[Node, Node]:
    """Both nodes with leading ones up to the same number of dimensions."""
    a, b = node_of(input, "gs.kron"), node_of(other, "gs.kron", "other")
    n = max(a.ndim, b.ndim)
    return (prims.reshape(a, (1,) * (n - a.ndim) + a.shape),
            prims.reshape(b, (1,) * (n - b.ndim) + b.shape))


# ------------------------------------------------------------------------- tensordot and einsum

@public(method=False)
@lower_precision
@with_out
def tensordot(a: Tensor, b: Tensor, dims: Any = 2) -> Tensor:
    """The product of two tensors summed over pairs of dimensions.

    Args:
        a, b: tensors of one dtype.
        dims: how many of the last dimensions of `a` meet the first of `b`; or two lists.
    """
    x, y = _pair(a, b, "gs.tensordot", ("a", "b"))
    if isinstance(dims, Tensor):
        dims = dims.tolist()
    if isinstance(dims, int):
        if not 0 <= dims <= min(x.ndim, y.ndim):
            raise ShapeError(f"gs.tensordot(dims={dims}): got {type_text(x)} and {type_text(y)}; "
                             "it must not be negative nor exceed their dimensions.")
        first, second = list(range(x.ndim - dims, x.ndim)), list(range(dims))
    else:
        first, second = ([d] if isinstance(d, int) else list(d) for d in dims)
    ours = [axis_of(d, x.ndim, "gs.tensordot", "dims") for d in first]
    theirs = [axis_of(d, y.ndim, "gs.tensordot", "dims") for d in second]
    x, y = _matched(x, ours, y, theirs), _matched(y, theirs, x, ours)
    if [x.shape[i] for i in ours] != [y.shape[i] for i in theirs]:
        raise ShapeError(f"gs.tensordot: dims {first} of {type_text(x)} and {second} of "
                         f"{type_text(y)}; paired extents must be equal.")
    return wrap(contract(x, y, (), ours, (), theirs))


def _matched(x: Node, ours: Sequence[int], y: Node, theirs: Sequence[int]) -> Node:
    """`x` summed along its axes that meet an axis of extent 1 (which PyTorch broadcasts)."""
    axes = [i for i, j in zip(ours, theirs, strict=False) if y.shape[j] == 1 != x.shape[i]]
    return prims.reshape(prims.reduce_sum(x, axes),
                         tuple(1 if i in axes else n for i, n in enumerate(x.shape)))


Term = tuple[Node, str]  # a node and one letter for each of its axes


def _parse(equation: str, nodes: Sequence[Node]) -> tuple[list[Term], str]:
    """Operands with their letters, and those of the result. Axes under `...` get capital letters
    that the equation does not use, counted from the back."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    parts = left.split(",")
    if len(parts) != len(nodes):
        raise ShapeError(f"gs.einsum({equation!r}): it names {len(parts)} operands, and "
                         f"{len(nodes)} were given.")
    spare = [c for c in map(chr, range(0x3B1, 0x3B1 + 64)) if c not in text]
    widest = 0
    terms: list[Term] = []
    for node, letters in zip(nodes, parts, strict=True):
        if "..." in letters:
            extra = node.ndim - len(letters.replace("...", ""))
            if extra >= 0:
                widest = max(widest, extra)
                letters = letters.replace("...", "".join(reversed(spare[:extra])))
        if len(letters) != node.ndim:
            raise ShapeError(f"gs.einsum({equation!r}): the operand {type_text(node)} has "
                             f"{node.ndim} dimensions, but {letters!r} names {len(letters)}.")
        terms.append((node, letters))
    rest = "".join(reversed(spare[:widest]))
    if arrow:
        out = right.replace("...", rest)
    else:
        named = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
        out = rest + "".join(named)
    known = {c for _, letters in terms for c in letters}
    if len(set(out)) < len(out) or any(c not in known for c in out):
        raise ShapeError(f"gs.einsum({equation!r}): each letter of the result must occur in an "
                         "operand, and once in the result.")
    return terms, out


def _diagonal(term: Term) -> Term:
    """Repeated letters of one operand become one axis."""
    node, letters = term
    for c in letters:
        while letters.count(c) > 1:
            i = letters.index(c)
            j = letters.index(c, i + 1)
            found = wrap(node).diagonal(0, i, j)._read()
            node = found
            letters = letters[:i] + letters[i + 1:j] + letters[j + 1:] + c
    return node, letters


def _widen(terms: list[Term], equation: str) -> list[Term]:
    """Axes of extent 1 that meet a larger extent are dropped: broadcasting."""
    extent: dict[str, int] = {}
    for node, letters in terms:
        for c, n in zip(letters, node.shape, strict=True):
            if extent.get(c, 1) != 1 and n not in (1, extent[c]):
                raise ShapeError(f"gs.einsum({equation!r}): {c!r} is {extent[c]} in one operand "
                                 f"and {n} in another; they must be equal.")
            extent[c] = n if extent.get(c, 1) == 1 else extent[c]
    out = []
    for node, letters in terms:
        keep = [i for i, c in enumerate(letters) if node.shape[i] == extent[c]]
        if len(keep) < len(letters):
            node = prims.reshape(node, tuple(node.shape[i] for i in keep))
            letters = "".join(letters[i] for i in keep)
        out.append((node, letters))
    return out


def _sum_alone(term: Term, needed: set[str]) -> Term:
    """Sum the axes that nothing else needs."""
    node, letters = term
    axes = [i for i, c in enumerate(letters) if c not in needed]
    return prims.reduce_sum(node, axes), "".join(c for c in letters if c in needed)


def _multiply(a: Term, b: Term, needed: set[str]) -> Term:
    """One contraction of two operands; letters not needed afterwards are summed."""
    (x, xs), (y, ys) = a, b
    xs_set, ys_set = set(xs), set(ys)
    x, xs = _sum_alone((x, xs), needed | ys_set)
    y, ys = _sum_alone((y, ys), needed | xs_set)
    common = [c for c in xs if c in ys]
    batch = [c for c in common if c in needed]
    summed = [c for c in common if c not in needed]
    made = contract(x, y, [xs.index(c) for c in batch], [xs.index(c) for c in summed],
                    [ys.index(c) for c in batch], [ys.index(c) for c in summed])
    letters = batch + [c for c in xs if c not in common] + [c for c in ys if c not in common]
    return made, "".join(letters)


@public(method=False)
@lower_precision
def einsum(equation: str, *operands_: Any) -> Tensor:
    """Sums of products named by letters: `einsum("bij,bjk->bik", a, b)` is a batched product.

    Args:
        equation: letters for the axes of each operand; after `->` those of the result. A letter
            that the result lacks is summed; `...` stands for further axes that broadcast.
        operands_: tensors of one dtype.

    Raises:
        ShapeError: the equation does not fit the operands.
    """
    if len(operands_) == 1 and isinstance(operands_[0], (list, tuple)):
        operands_ = tuple(operands_[0])
    nodes = [node_of(t, "gs.einsum", "operands") for t in operands_]
    terms, out = _parse(equation, nodes)
    terms = _widen([_diagonal(t) for t in terms], equation)
    current = terms[0]
    for k, term in enumerate(terms[1:], 1):
        later = {c for _, letters in terms[k + 1:] for c in letters}
        current = _multiply(current, term, set(out) | later)
    node, letters = _sum_alone(current, set(out))
    for c in out:  # an axis of extent 1 everywhere was never dropped; nothing is missing
        assert c in letters, (equation, c)
    return wrap(prims.permute(node, [letters.index(c) for c in out]))


# ------------------------------------------------------------------------------------ distances

@public(method=False)
@full_precision
def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """The p-norm distances between all rows: (..., n, d), (..., m, d) -> (..., n, m)."""
    a, b = _pair(x1, x2, "gs.cdist", ("x1", "x2"))
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-1]:
        raise ShapeError(f"gs.cdist: got {type_text(a)} and {type_text(b)}; both need at least 2 "
                         "dimensions, and equal last ones.")
    gap = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    return gap.norm(float(number(p, "gs.cdist")), -1)


@public()
@with_out
def cross(input: Tensor, other: Tensor, dim: int | None = None) -> Tensor:
    """The cross product of vectors of 3 along `dim` (default: the first dimension of extent 3)."""
    a, b = operands("gs.cross", (input, other))
    if dim is None:
        found = [i for i, n in enumerate(a.shape) if n == 3]
        axis = found[0] if found else -1
    else:
        axis = axis_of(dim, a.ndim, "gs.cross")
    if axis < 0 or a.shape[axis] != 3:
        raise ShapeError(f"gs.cross: got shape {a.shape}; the dimension must have extent 3.")

    def turned(x: Node, k: int) -> Node:
        return prims.concat([prims.narrow(x, axis, k, 3), prims.narrow(x, axis, 0, k)], axis)
    return wrap(prims.sub(prims.mul(turned(a, 1), turned(b, 2)),
                          prims.mul(turned(a, 2), turned(b, 1))))
