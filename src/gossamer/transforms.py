"""Functions of functions: grad, value_and_grad, vjp, jvp, vmap, jacobians, checkpoint. Layer 4.

Each runs the function once on marked arguments and transforms the graph that came out; so they nest
freely, and compose with `compile`. A mark is an identity node that differentiation treats as an
input; `vmap` marks with an input node of the shape without the batch dimension and rewrites the
graph by the operators' batching rules. Forward mode is reverse mode twice.

Source of the last: Radul et al. 2022, "You only linearize once"; Townsend 2017, "A new trick for
calculating Jacobian vector products".
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

from gossamer import prims
from gossamer.compile.batch import batch
from gossamer.compile.vjp import vjp as pull_back
from gossamer.core.errors import DTypeError, GradientError, ShapeError
from gossamer.dispatch import PUBLIC
from gossamer.ir.node import STATE, Node, toposort, type_text
from gossamer.ir.op import INPUT
from gossamer.modes import MODES, enable_grad
from gossamer.tensor import LEAF, RESHAPE, Tensor, twin, wrap

__all__ = ["checkpoint", "grad", "grad_and_value", "hessian", "jacfwd", "jacrev", "jvp",
           "value_and_grad", "vjp", "vmap", "wait"]

AFTER = prims.op("after")


# ------------------------------------------------------------------------------------- structure

class _Hole:
    """The place of tensor number `index` in a flattened structure."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


def flatten(value: Any, found: list[Tensor]) -> Any:
    """The structure of nested tuples, lists and dicts, its tensors appended to `found`."""
    if isinstance(value, Tensor):
        found.append(value)
        return _Hole(len(found) - 1)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(flatten(v, found) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(flatten(v, found) for v in value)
    if isinstance(value, dict):
        return {k: flatten(v, found) for k, v in value.items()}
    return value


def unflatten(spec: Any, values: Sequence[Any]) -> Any:
    """`spec` with its holes filled."""
    if isinstance(spec, _Hole):
        return values[spec.index]
    if isinstance(spec, tuple) and hasattr(spec, "_fields"):
        return type(spec)(*(unflatten(v, values) for v in spec))
    if isinstance(spec, (tuple, list)):
        return type(spec)(unflatten(v, values) for v in spec)
    if isinstance(spec, dict):
        return {k: unflatten(v, values) for k, v in spec.items()}
    return spec


# ----------------------------------------------------------------------------------------- marks

def _mark(node: Node) -> Node:
    """An identity node that counts as an input of differentiation."""
    made = Node(RESHAPE, (node,), {"shape": node.shape}, node.shape, node.dtype, True)
    made.value = node.value if MODES.tracing is None else None
    return made


def _marked(value: Any, name: str) -> tuple[Any, list[Node]]:
    """`value` with its tensors replaced by marked ones, and the marks."""
    tensors: list[Tensor] = []
    spec = flatten(value, tensors)
    for t in tensors:
        if t._node.dtype.kind != "f":
            raise DTypeError(f"{name}: an argument to differentiate is {type_text(t._node)}; it "
                             "must be floating. Use .float(), or name other arguments by argnums.")
    marks = [_mark(t._read()) for t in tensors]
    return unflatten(spec, [wrap(m) for m in marks]), marks


def _has_source(root: Node, marks: set[int]) -> bool:
    """Whether `root` depends on something else that requires grad than the marks."""
    for n in toposort([root], stop=lambda n: not n.grad or n.op is LEAF):
        if not n.grad:
            continue
        if n.op is LEAF or id(n) not in marks and not any(x.grad for x in n.inputs):
            return True
    return False


def _unmarked(node: Node, marks: Sequence[Node]) -> Tensor:
    """`node` as a tensor that requires grad only if something outside does."""
    if not node.grad:
        return wrap(node)
    if STATE.grad_enabled and _has_source(node, set(map(id, marks))):
        return wrap(node)
    return wrap(prims.detach(node))


def _release(value: Any, marks: Sequence[Node]) -> Any:
    tensors: list[Tensor] = []
    spec = flatten(value, tensors)
    return unflatten(spec, [_unmarked(t._read(), marks) for t in tensors])


def _picked(args: tuple[Any, ...], argnums: int | tuple[int, ...], name: str) -> list[int]:
    places = [argnums] if isinstance(argnums, int) else list(argnums)
    for i in places:
        if not -len(args) <= i < len(args):
            raise GradientError(f"{name}(argnums={argnums}): the function was called with "
                                f"{len(args)} arguments.")
    return [i % len(args) for i in places]


# ------------------------------------------------------------------------------------------ grad

def _value_and_grad(func: Callable[..., Any], argnums: int | tuple[int, ...], has_aux: bool,
                    name: str) -> Callable[..., tuple[Any, Any]]:
    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        places = _picked(args, argnums, name)
        chosen, marks = _marked([args[i] for i in places], name)
        given = list(args)
        for i, value in zip(places, chosen, strict=True):
            given[i] = value
        with enable_grad():
            made = func(*given, **kwargs)
            result, aux = made if has_aux else (made, None)
            if not isinstance(result, Tensor):
                raise DTypeError(f"{name}: the function returned {type(result).__name__}; it must "
                                 "return a tensor (and, with has_aux=True, a second value).")
            root = result._read()
            if root.shape:
                raise ShapeError(f"{name}: the function returned {type_text(root)}; it must return "
                                 "a tensor without dimensions. Reduce it, or use vjp or jacrev.")
            found = pull_back([root], [prims.const(1, root)], marks)
        grads = [prims.const(0, m) if g is None else g for g, m in zip(found, marks, strict=True)]
        tensors: list[Tensor] = []
        spec = flatten(chosen, tensors)
        shaped = unflatten(spec, [_unmarked(g, marks) for g in grads])
        value = _unmarked(root, marks)
        answer = shaped[0] if isinstance(argnums, int) else tuple(shaped)
        return answer, (value, _release(aux, marks)) if has_aux else value
    return wrapped


def grad(func: Callable[..., Any], argnums: int | tuple[int, ...] = 0,
         has_aux: bool = False) -> Callable[..., Any]:
    """The function that computes the gradient of `func`, which returns one number.

    Args:
        func: returns a tensor without dimensions (with has_aux: it and anything else).
        argnums: which arguments; each a tensor or a nested structure of tensors.
        has_aux: give (gradient, auxiliary value).

    Returns:
        A function with the arguments of `func`; it returns what is shaped as the arguments.

    Example:
        >>> gs.func.grad(lambda x: x ** 3)(gs.tensor(2.))
        tensor(12.)
    """
    both = _value_and_grad(func, argnums, has_aux, "grad")

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        answer, value = both(*args, **kwargs)
        return (answer, value[1]) if has_aux else answer
    return wrapped


def grad_and_value(func: Callable[..., Any], argnums: int | tuple[int, ...] = 0,
                   has_aux: bool = False) -> Callable[..., Any]:
    """As `grad`, giving (gradient, value)."""
    return _value_and_grad(func, argnums, has_aux, "grad_and_value")


def value_and_grad(func: Callable[..., Any], argnums: int | tuple[int, ...] = 0,
                   has_aux: bool = False) -> Callable[..., Any]:
    """As `grad`, giving (value, gradient)."""
    both = _value_and_grad(func, argnums, has_aux, "value_and_grad")

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        answer, value = both(*args, **kwargs)
        return value, answer
    return wrapped


# ------------------------------------------------------------------------------------ vjp and jvp

def vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> tuple[Any, ...]:
    """The value of `func` and the function that maps cotangents of it to those of `primals`.

    Returns:
        (value, pull) or (value, pull, aux); `pull(cotangents)` returns one for each primal.
    """
    chosen, marks = _marked(list(primals), "vjp")
    with enable_grad():
        made = func(*chosen)
    result, aux = made if has_aux else (made, None)
    results: list[Tensor] = []
    spec = flatten(result, results)
    roots = [t._read() for t in results]
    primal_tensors: list[Tensor] = []
    primal_spec = flatten(tuple(primals), primal_tensors)

    def pull(*cotangents: Any, retain_graph: bool | None = None,
             create_graph: bool | None = None) -> tuple[Any, ...]:
        given: list[Tensor] = []
        flatten(cotangents[0] if len(cotangents) == 1 else cotangents, given)
        if len(given) != len(roots):
            raise GradientError(f"vjp: the function has {len(roots)} results, and {len(given)} "
                                "cotangents were given.")
        seeds = [prims.cast(g._read(), r.dtype) for g, r in zip(given, roots, strict=True)]
        with enable_grad():
            found = pull_back(roots, seeds, marks)
        grads = [prims.const(0, m) if g is None else g for g, m in zip(found, marks, strict=True)]
        pulled: tuple[Any, ...] = unflatten(primal_spec, [_unmarked(g, marks) for g in grads])
        return pulled

    value = unflatten(spec, [_unmarked(r, marks) for r in roots])
    return (value, pull, _release(aux, marks)) if has_aux else (value, pull)


def jvp(func: Callable[..., Any], primals: Any, tangents: Any, *, strict: bool = False,
        has_aux: bool = False) -> tuple[Any, ...]:
    """The value of `func` and its derivative in the direction of `tangents`.

    The pull-back is linear in its cotangent; its own pull-back is the push-forward.

    Args:
        func: any function of tensors.
        primals: a tuple of its arguments.
        tangents: a tuple of their directions.

    Returns:
        (value, derivative) or (value, derivative, aux).
    """
    chosen, marks = _marked(tuple(primals), "jvp")
    directions: list[Tensor] = []
    flatten(tuple(tangents), directions)
    if [d._node.shape for d in directions] != [m.shape for m in marks]:
        raise GradientError(f"jvp: primals {[m.shape for m in marks]} and tangents "
                            f"{[d._node.shape for d in directions]}; the shapes must be equal.")
    with enable_grad():
        made = func(*chosen)
        result, aux = made if has_aux else (made, None)
        results: list[Tensor] = []
        spec = flatten(result, results)
        roots = [t._read() for t in results]
        dummies = [_mark(prims.full(0, r.shape, r.dtype)) for r in roots]
        pulled = pull_back(roots, dummies, marks)
        used = [(p, prims.cast(d._read(), p.dtype)) for p, d in zip(pulled, directions, strict=True)
                if p is not None and p.grad]
        pushed = pull_back([p for p, _ in used], [d for _, d in used], dummies)
    out = [prims.const(0, r) if g is None else g for g, r in zip(pushed, roots, strict=True)]
    known = [*marks, *dummies]
    value = unflatten(spec, [_unmarked(r, known) for r in roots])
    derivative = unflatten(spec, [_unmarked(g, known) for g in out])
    return (value, derivative, _release(aux, known)) if has_aux else (value, derivative)


# ------------------------------------------------------------------------------------------ vmap

def _dims(in_dims: Any, args: tuple[Any, ...]) -> list[int | None]:
    """One batch dimension (or None) for each tensor of the arguments."""
    out: list[int | None] = []

    def spread(dim: Any, value: Any) -> None:
        if isinstance(value, Tensor):
            if dim is not None and not isinstance(dim, int):
                raise ShapeError(f"vmap(in_dims={in_dims!r}): expected a number or None for each "
                                 "tensor.")
            out.append(dim)
        elif isinstance(value, dict):
            for k, v in value.items():
                spread(dim[k] if isinstance(dim, dict) else dim, v)
        elif isinstance(value, (tuple, list)):
            several = isinstance(dim, (tuple, list))
            if several and len(dim) != len(value):
                raise ShapeError(f"vmap(in_dims={in_dims!r}): it does not fit the structure of the "
                                 "arguments.")
            for i, v in enumerate(value):
                spread(dim[i] if several else dim, v)
    spread(in_dims, args)
    return out


def _size(tensors: Sequence[Tensor], dims: Sequence[int | None]) -> int:
    sizes = set()
    for t, d in zip(tensors, dims, strict=True):
        if d is None:
            continue
        if not -t._node.ndim <= d < t._node.ndim:
            raise ShapeError(f"vmap: in_dims names dimension {d} of {type_text(t._node)}, which "
                             "does not exist.")
        sizes.add(t._node.shape[d])
    if len(sizes) != 1:
        raise ShapeError(f"vmap: the batch dimensions have extents {sorted(sizes)}; they must be "
                         "equal." if sizes else "vmap: at least one argument must be batched.")
    return sizes.pop()


def vmap(func: Callable[..., Any], in_dims: Any = 0, out_dims: Any = 0, randomness: str = "error",
         *, chunk_size: int | None = None) -> Callable[..., Any]:
    """The function that applies `func` to every element of a batch at once.

    Args:
        func: written for one element.
        in_dims: the batch dimension of each argument (None: the same for all), as a number for all
            arguments or nested as they are.
        out_dims: where the results get the batch dimension.
        randomness: "error" and "same": draws inside are the same for all elements.

    Raises:
        ShapeError: the batch dimensions do not fit.
        TraceError: `func` reads a value that depends on the element.
    """
    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        tensors: list[Tensor] = []
        spec = flatten(args, tensors)
        dims = _dims(in_dims if not isinstance(in_dims, list) else tuple(in_dims), args)
        size = _size(tensors, dims)
        inputs: dict[Node, Node] = {}
        inner: list[Tensor] = []
        for t, d in zip(tensors, dims, strict=True):
            if d is None:
                inner.append(t)
                continue
            moved = prims.move_axis(t._read(), d, 0)
            node = INPUT(index=-1 - len(inputs), shape=moved.shape[1:], dtype=moved.dtype)
            node.grad = moved.grad and STATE.grad_enabled
            inputs[node] = moved
            inner.append(wrap(node))
        MODES.mapped += 1
        try:
            made = func(*unflatten(spec, inner), **kwargs)
        finally:
            MODES.mapped -= 1
        results: list[Tensor] = []
        out_spec = flatten(made, results)
        found = batch([t._read() for t in results], inputs, size)
        places = _out_places(out_dims, made, len(found))
        return unflatten(out_spec, [_placed(n, p) for n, p in zip(found, places, strict=True)])
    return wrapped


def _placed(node: Node, place: int | None) -> Tensor:
    if place is None:
        return wrap(prims.select(node, 0, 0))
    return wrap(prims.move_axis(node, 0, place))


def _out_places(out_dims: Any, made: Any, count: int) -> list[int | None]:
    if isinstance(out_dims, int) or out_dims is None:
        return [out_dims] * count
    parts = made if isinstance(made, (tuple, list)) else (made,)
    out: list[int | None] = []
    for dim, part in zip(out_dims, parts, strict=True):
        inside: list[Tensor] = []
        flatten(part, inside)
        out.extend([dim] * len(inside))
    return out


# ------------------------------------------------------------------------------------- jacobians

def _basis(shape: tuple[int, ...], dtype: Any) -> Tensor:
    """All unit tensors of a shape: (size, *shape)."""
    n = 1
    for extent in shape:
        n *= extent
    same = prims.equal(prims.iota(0, (n, n)), prims.iota(1, (n, n)))
    return wrap(prims.reshape(prims.cast(same, dtype), (n, *shape)))


def _on_one(func: Callable[..., Any], argnums: int, args: tuple[Any, ...],
            ) -> Callable[[Any], Any]:
    def one(x: Any) -> Any:
        given = list(args)
        given[argnums] = x
        return func(*given)
    return one


def jacrev(func: Callable[..., Any], argnums: int = 0) -> Callable[..., Tensor]:
    """The Jacobian by reverse mode: (*R, *A) for an argument of shape A, a result of shape R."""
    @functools.wraps(func)
    def wrapped(*args: Any) -> Tensor:
        x = args[argnums]
        value, pull = vjp(_on_one(func, argnums, args), x)
        rows = vmap(lambda g: pull(g)[0])(_basis(value._node.shape, value._node.dtype))
        return rows.reshape(*value._node.shape, *x._node.shape)
    return wrapped


def jacfwd(func: Callable[..., Any], argnums: int = 0) -> Callable[..., Tensor]:
    """The Jacobian by forward mode: (*R, *A) for an argument of shape A, a result of shape R."""
    @functools.wraps(func)
    def wrapped(*args: Any) -> Tensor:
        x = args[argnums]
        one = _on_one(func, argnums, args)
        columns = vmap(lambda t: jvp(one, (x,), (t,))[1], out_dims=-1)(
            _basis(x._node.shape, x._node.dtype))
        shape = (*columns._node.shape[:-1], *x._node.shape)
        return columns.reshape(shape)
    return wrapped


def hessian(func: Callable[..., Any], argnums: int = 0) -> Callable[..., Tensor]:
    """The matrix of second derivatives: forward over reverse."""
    return jacfwd(jacrev(func, argnums), argnums)


# ------------------------------------------------------------------------------------ checkpoint

def _copied(roots: Sequence[Node], known: dict[int, Node]) -> list[Node]:
    """The graph of `roots` built anew on other sources."""
    new = dict(known)
    for n in toposort(roots, stop=lambda n: id(n) in known or n.value is not None or not n.inputs):
        if id(n) in new:
            continue
        if n.value is not None or not n.inputs:
            new[id(n)] = n
            continue
        made = Node(n.op, tuple(new[id(x)] for x in n.inputs), n.attrs, n.shape, n.dtype)
        made.outs = n.outs
        made.grad = n.grad
        new[id(n)] = made
    return [new[id(r)] for r in roots]


def wait(x: Tensor, *others: Tensor) -> Tensor:
    """`x`, of which nothing is made before `others` have been computed: an order for work that
    could be done in any, so that its memory is used again."""
    node = x._read()
    for other in others:
        node = AFTER(node, other._read())
    return wrap(node)


def checkpoint(function: Callable[..., Any], *args: Any, use_reentrant: bool | None = None,
               preserve_rng_state: bool = True, **kwargs: Any) -> Any:
    """`function(*args)`, whose intermediate values are computed again in the backward pass.

    Saves memory for time: one more forward pass through `function`, which begins when the first
    cotangent of its results is there. Random draws repeat exactly.

    Args:
        function: any function of tensors.
        args, kwargs: its arguments.

    Cost: `function` once more in the backward pass; between the passes only its arguments and
    results are held.
    """
    with enable_grad() if STATE.grad_enabled else _nothing():
        made = function(*args, **kwargs)
    results: list[Tensor] = []
    spec = flatten(made, results)
    given: list[Tensor] = []
    flatten((args, kwargs), given)
    inputs = {id(t._node): t._node for t in given}
    late: WeakValueDictionary[int, Node] = WeakValueDictionary()
    out = [_recomputed(t._read(), inputs, late) for t in results]
    return unflatten(spec, out)


class _nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _recomputed(root: Node, inputs: dict[int, Node],
                late: WeakValueDictionary[int, Node]) -> Tensor:
    """`root` behind a node whose derivative rule rebuilds the graph between its sources and it.

    Args:
        root: a result of the function.
        inputs: the function's arguments, by id.
        late: id of a source -> that source in the backward pass, which starts no earlier than the
            first cotangent is there: results that go back together are computed again once.
    """
    if not root.grad:
        return wrap(root)
    order = toposort([root], stop=lambda n: id(n) in inputs or not n.grad or n.op is LEAF)
    sources = [n for n in order if n.grad and (id(n) in inputs or n.op is LEAF)]

    def rule(g: Node, y: Node, *values: Node) -> tuple[Node | None, ...]:
        marks = [_mark(late.setdefault(id(v), AFTER(v, g))) for v in values]
        before = STATE.grad_enabled
        (again,) = _copied([root], {id(s): m for s, m in zip(sources, marks, strict=True)})
        try:
            return tuple(pull_back([again], [g], marks))
        finally:
            STATE.grad_enabled = before
    if not sources or root in sources:
        return wrap(twin(root))
    return wrap(prims.op("custom")(prims.detach(root), *sources, rule=rule))


for _function in (vmap, value_and_grad, vjp, jvp, checkpoint):
    PUBLIC[_function.__name__] = _function
PUBLIC["grad"] = grad
