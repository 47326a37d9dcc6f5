"""`autograd.Function`: an operation with a derivative written by the user. Layer 4.

`apply` runs `forward` without recording, then puts a `custom` node in the graph whose rule is the
user's `backward`. Results of one call share one such node (packed into one vector), so `backward`
runs once with all their gradients, as in PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from gossamer import prims
from gossamer.core.dtype import DType, promote
from gossamer.core.errors import DTypeError, GradientError, ShapeError
from gossamer.ir.node import STATE, Node, type_text
from gossamer.modes import no_grad
from gossamer.tensor import CUSTOM, Tensor, twin, wrap

__all__ = ["Context", "Function", "once_differentiable"]


class Context:
    """What `forward` hands to `backward`: any attributes, and saved tensors."""

    def __init__(self) -> None:
        self.needs_input_grad: tuple[bool, ...] = ()
        self._saved: list[tuple[Tensor, Node] | None] = []
        self._outputs: dict[int, Node] = {}  # id of a saved result -> its differentiable node
        self._blind: set[int] = set()
        self._dirty: list[Tensor] = []
        self._fill = True

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for `backward`, with the values that they have now."""
        self._saved = [None if t is None else (t, t._read()) for t in tensors]

    save_for_forward = save_for_backward

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        """What `save_for_backward` kept."""
        out: list[Tensor | None] = []
        for saved in self._saved:
            if saved is None:
                out.append(None)
                continue
            tensor, node = saved
            node = self._outputs.get(id(tensor), node)
            out.append(tensor if tensor._read() is node else wrap(twin(node)))
        return tuple(out)

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """These results get no gradient."""
        self._blind |= {id(t) for t in tensors}

    def mark_dirty(self, *tensors: Tensor) -> None:
        """`forward` changed these inputs in place and returns them."""
        self._dirty.extend(tensors)

    def set_materialize_grads(self, value: bool) -> None:
        """Whether `backward` gets zeros (True) or None for results without a gradient."""
        self._fill = value


def once_differentiable(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for `backward`: its result cannot be differentiated again."""
    @functools.wraps(fn)
    def wrapped(ctx: Any, *args: Any) -> Any:
        with no_grad():
            return fn(ctx, *args)
    return wrapped


class _Rule:
    """The derivative rule of one call: cotangent of the packed results -> those of the inputs."""

    def __init__(self, owner: type[Function], ctx: Context, places: list[int], count: int,
                 outputs: list[tuple[tuple[int, ...], DType]]) -> None:
        self.owner = owner
        self.ctx = ctx
        self.places = places  # positions among the arguments of the differentiable ones
        self.count = count
        self.outputs = outputs
        self.function_name = owner.__name__

    def __call__(self, g: Node, y: Node, *inputs: Node) -> tuple[Node | None, ...]:
        found = self.owner.backward(self.ctx, *self._gradients(g))
        if not isinstance(found, (tuple, list)):
            found = (found,)
        found = tuple(found)
        if len(found) > self.count and all(x is None for x in found[self.count:]):
            found = found[:self.count]
        name = f"{self.owner.__name__}.backward"
        if len(found) != self.count:
            raise GradientError(f"{name}: returned {len(found)} gradients for {self.count} "
                                "arguments of forward; there must be one (or None) for each.")
        out: list[Node | None] = []
        for place, node in zip(self.places, inputs, strict=True):
            g_in = found[place]
            if g_in is None:
                out.append(None)
                continue
            if not isinstance(g_in, Tensor):
                raise DTypeError(f"{name}: gradient {place} is {type(g_in).__name__}, not a "
                                 "tensor.")
            out.append(self._fitting(g_in._read(), node, name, place))
        return tuple(out)

    def _fitting(self, g: Node, node: Node, name: str, place: int) -> Node:
        if g.shape != node.shape:
            lead = g.ndim - node.ndim
            if lead < 0 or any(b not in (1, a) for a, b in zip(g.shape[lead:], node.shape,
                                                               strict=True)):
                raise ShapeError(f"{name}: gradient {place} is {type_text(g)}, but the argument "
                                 f"{type_text(node)}; the shapes must be equal.")
            axes = [*range(lead), *(lead + i for i, n in enumerate(node.shape)
                                    if n == 1 and g.shape[lead + i] != 1)]
            g = prims.reshape(prims.reduce_sum(g, axes), node.shape)
        return prims.cast(g, node.dtype)

    def _gradients(self, g: Node) -> list[Tensor | None]:
        """The packed cotangent as one tensor per result."""
        if len(self.outputs) == 1:
            return [wrap(g)]
        parts: list[Tensor | None] = []
        start = 0
        for shape, dtype in self.outputs:
            if dtype.kind != "f":
                parts.append(wrap(prims.full(0, shape, dtype)) if self.ctx._fill else None)
                continue
            size = 1
            for n in shape:
                size *= n
            piece = prims.narrow(g, 0, start, start + size)
            parts.append(wrap(prims.cast(prims.reshape(piece, shape), dtype)))
            start += size
        return parts


class Function:
    """Base class of operations with their own derivative.

    Subclass it with static methods `forward(ctx, *args)` and `backward(ctx, *grads)` (or
    `forward(*args)` and `setup_context(ctx, inputs, output)`), and call `apply`.

    Example:
        >>> class Cube(gs.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x ** 3
        ...     @staticmethod
        ...     def backward(ctx, g):
        ...         x, = ctx.saved_tensors
        ...         return 3 * x ** 2 * g
        >>> x = gs.tensor(2., requires_grad=True)
        >>> Cube.apply(x).backward()
        >>> x.grad
        tensor(12.)
    """

    setup_context: Any = None

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        """The value. Tensors are plain here: nothing is recorded."""
        raise NotImplementedError("autograd.Function: define the static method forward(ctx, ...).")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """One gradient (or None) for each argument of `forward`."""
        raise NotImplementedError("autograd.Function: define the static method backward(ctx, ...) "
                                  "to use it with tensors that require grad.")

    vjp = backward

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run `forward` and record `backward` as its derivative."""
        ctx = Context()
        nodes = [a._read() if isinstance(a, Tensor) else None for a in args]
        ctx.needs_input_grad = tuple(n is not None and n.grad and STATE.grad_enabled for n in nodes)
        with no_grad():
            if cls.setup_context is not None:
                made = cls.forward(*args)
                cls.setup_context(ctx, args, made)
            else:
                made = cls.forward(ctx, *args)
        if not any(ctx.needs_input_grad):
            return made
        results = list(made) if isinstance(made, (tuple, list)) else [made]
        places = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
        _record(cls, ctx, args, results, places)
        if isinstance(made, (tuple, list)):
            return tuple(results)
        return results[0]


def _record(cls: type[Function], ctx: Context, args: Sequence[Any], results: list[Any],
            places: list[int]) -> None:
    """Replace the differentiable results by tensors behind one `custom` node."""
    chosen = [i for i, r in enumerate(results) if isinstance(r, Tensor)]
    plain = [prims.detach(results[i]._read()) for i in chosen]
    inputs = [args[i]._read() for i in places]
    rule = _Rule(cls, ctx, places, len(args), [(n.shape, n.dtype) for n in plain])
    if len(chosen) == 1:
        shown = [CUSTOM(plain[0], *inputs, rule=rule)] if plain[0].dtype.kind == "f" else plain
    else:
        shown = _packed(plain, inputs, rule)
    for i, node in zip(chosen, shown, strict=True):
        original = results[i]
        if id(original) in ctx._blind or node.dtype.kind != "f":
            continue
        if any(original is d for d in ctx._dirty):
            original._check_inplace(f"{cls.__name__}.apply")
            original._write(node)
            ctx._outputs[id(original)] = original._read()
        else:
            results[i] = wrap(node)
            ctx._outputs[id(original)] = results[i]._read()


def _packed(plain: list[Node], inputs: list[Node], rule: _Rule) -> list[Node]:
    """All floating results as slices of one vector with one rule."""
    floats = [n for n in plain if n.dtype.kind == "f"]
    if not floats:
        return plain
    dtype = floats[0].dtype
    for n in floats:
        dtype = promote(dtype, n.dtype)
    flat = [prims.cast(prims.reshape(n, (n.size,)), dtype) for n in floats]
    node = CUSTOM(prims.concat(flat, 0), *inputs, rule=rule)
    out, start = [], 0
    for n in plain:
        if n.dtype.kind != "f":
            out.append(n)
            continue
        piece = prims.reshape(prims.narrow(node, 0, start, start + n.size), n.shape)
        out.append(prims.cast(piece, n.dtype))
        start += n.size
    return out
