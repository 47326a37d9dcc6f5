"""Gradients of tensors: `backward`, `grad`, hooks and user-defined functions. Layer 4.

The graph is the tape. `backward` finds the leaves below its roots, asks `compile/vjp` once for all
their cotangents, and accumulates those into `.grad`. The backward pass is more graph: with
`create_graph` it can be differentiated again. Unless the graph is retained, its edges are dropped
once everything that a live tensor shows has been computed.

Source of the semantics: PyTorch, "Autograd mechanics".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gossamer import prims
from gossamer.compile.vjp import vjp
from gossamer.core.errors import DTypeError, GradientError, ShapeError
from gossamer.dispatch import PUBLIC
from gossamer.function import Function, once_differentiable
from gossamer.hooks import Hooks, RemovableHandle, hooks_of
from gossamer.ir.node import STATE, Node, toposort, type_text, user_line
from gossamer.modes import (
    MODES,
    enable_grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from gossamer.realize import settle
from gossamer.tensor import LEAF, Tensor, attach, wrap

__all__ = ["Function", "backward", "enable_grad", "grad", "inference_mode", "is_grad_enabled",
           "no_grad", "once_differentiable", "set_grad_enabled"]


def _several(value: Any, name: str, what: str) -> list[Tensor]:
    values = [value] if isinstance(value, Tensor) else list(value)
    for v in values:
        if not isinstance(v, Tensor):
            raise DTypeError(f"{name}: `{what}` holds {type(v).__name__}; expected tensors.")
    return values


def _is_end(node: Node) -> bool:
    return not node.grad or node.op is LEAF


def _graph(roots: Sequence[Node]) -> list[Node]:
    """The differentiable nodes below `roots`.

    Raises:
        GradientError: part of the graph was freed by an earlier backward().
    """
    order = [n for n in toposort(roots, stop=_is_end) if n.grad]
    for node in order:
        if not node.inputs and node.op is not LEAF:
            name, line = user_line(node)
            raise GradientError(
                f"backward(): the graph of {node.op.name} ({name}:{line}) was freed by an earlier "
                "backward(). Pass retain_graph=True to the earlier call, or compute the loss "
                "again.")
    return order


def _seeds(roots: Sequence[Tensor], nodes: Sequence[Node], given: Any, name: str,
           what: str) -> list[Node]:
    """Cotangents of the roots: ones for a single number, else what was passed."""
    if given is None or isinstance(given, Tensor):
        given = [given] * len(nodes) if given is None else [given]
    if len(given) != len(nodes):
        raise GradientError(f"{name}: {len(nodes)} results but {len(given)} gradients in `{what}`; "
                            "there must be one for each.")
    seeds = []
    for node, g in zip(nodes, given, strict=True):
        if not node.grad:
            raise GradientError(
                f"{name}: {type_text(node)} does not require grad and has no graph. Make its "
                "inputs with requires_grad=True, and look for detach() or no_grad() on the way.")
        if g is None:
            if node.size != 1:
                raise GradientError(
                    f"{name}: the result is {type_text(node)}; a gradient can be created "
                    "implicitly only for one number. Reduce it (.sum(), .mean()), or pass "
                    f"{what}=.")
            seeds.append(prims.const(1, node))
            continue
        held = g._read()
        if held.shape != node.shape:
            raise ShapeError(f"{name}: the result is {type_text(node)} and its gradient in "
                             f"`{what}` {type_text(held)}; the shapes must be equal.")
        seeds.append(prims.cast(held, node.dtype))
    return seeds


def _hook_caller(order: Sequence[Node], leaves: bool) -> Any:
    """The hook for `vjp`: calls what was registered on tensors of the graph."""
    hooked: dict[int, tuple[Tensor, Hooks]] = {}
    for node in order:
        owner = node.owner() if node.owner is not None else None
        if owner is not None and owner._hooks is not None and (leaves or node.op is not LEAF):
            hooked[id(node)] = (owner, owner._hooks)
    if not hooked:
        return None

    def call(node: Node, g: Node) -> Node:
        found = hooked.get(id(node))
        if found is None:
            return g
        tensor, hooks = found
        for hook in list(hooks.gradient.values()):
            returned = hook(wrap(g))
            if returned is not None:
                g = returned._read()
        if hooks.retain:
            tensor.grad = wrap(g)
        return g
    return call


def _pull(nodes: Sequence[Node], seeds: Sequence[Node], wrt: Sequence[Node], order: Sequence[Node],
          create_graph: bool, leaves: bool) -> list[Node | None]:
    before = STATE.grad_enabled
    STATE.grad_enabled = create_graph
    try:
        return vjp(nodes, seeds, wrt, hook=_hook_caller(order, leaves))
    finally:
        STATE.grad_enabled = before


def _accumulate(tensor: Tensor, g: Node, create_graph: bool) -> None:
    if MODES.tracing is not None:
        MODES.tracing.read_grad(tensor)
    old = tensor._grad
    if g.dtype is not tensor._node.dtype:
        g = prims.cast(g, tensor._node.dtype)
    if old is None:
        tensor.grad = wrap(g)
    elif create_graph:
        tensor.grad = wrap(prims.add(old._read(), g))
    else:
        with no_grad():
            old._write(prims.add(old._read(), g))
    if tensor._hooks is not None:
        for hook in list(tensor._hooks.post.values()):
            hook(tensor)


def _release(order: Sequence[Node]) -> None:
    """Drop the edges of a used graph where the values are there."""
    if MODES.tracing is not None:
        return
    for node in order:
        if node.value is not None and node.op is not LEAF:
            node.inputs = ()
            node.expansion = None


def backward(tensors: Any, grad_tensors: Any = None, retain_graph: bool | None = None,
             create_graph: bool = False, inputs: Any = None) -> None:
    """Accumulate the gradients of `tensors` into the `.grad` of the leaves they depend on.

    Args:
        tensors: one result or several.
        grad_tensors: cotangents of the results; may be left out for single numbers.
        retain_graph: keep the graph for another backward(); default: `create_graph`.
        create_graph: record the backward pass, for higher derivatives.
        inputs: accumulate into these leaves only.

    Raises:
        GradientError: a result has no graph, is not a number, or its graph was freed.

    Cost: builds about twice the nodes of the forward pass; computed in one program with it.
    """
    roots = _several(tensors, "backward()", "tensors")
    nodes = [t._read() for t in roots]
    seeds = _seeds(roots, nodes, grad_tensors, "backward()", "gradient")
    order = _graph(nodes)
    if inputs is None:
        wrt = [n for n in order if n.op is LEAF]
        owners = [n.owner() for n in wrt]
    else:
        owners = _several(inputs, "backward()", "inputs")
        wrt = [t._read() for t in owners]
    found = _pull(nodes, seeds, wrt, order, create_graph, leaves=True)
    touched: list[Node] = []
    for owner, g in zip(owners, found, strict=True):
        if owner is not None and g is not None:
            _accumulate(owner, g, create_graph)
            if owner._grad is not None:
                touched.append(owner._grad._node)
    settle([*nodes, *touched])
    if not (create_graph if retain_graph is None else retain_graph):
        _release(order)


def grad(outputs: Any, inputs: Any, grad_outputs: Any = None, retain_graph: bool | None = None,
         create_graph: bool = False, allow_unused: bool | None = None,
         is_grads_batched: bool = False, materialize_grads: bool = False,
         ) -> tuple[Tensor | None, ...]:
    """The gradients of `outputs` with respect to `inputs`, without touching any `.grad`.

    Args:
        outputs: one result or several.
        inputs: tensors that the results depend on; need not be leaves.
        grad_outputs: cotangents of the results; may be left out for single numbers.
        retain_graph: keep the graph; default: `create_graph`.
        create_graph: record the backward pass, for higher derivatives.
        allow_unused: give None for an input that no result depends on, instead of raising.
        materialize_grads: give zeros instead of None.

    Returns:
        One gradient for each input.

    Raises:
        GradientError: as `backward`; or an input is not used.

    Example:
        >>> x = gs.tensor(3., requires_grad=True)
        >>> gs.autograd.grad(x * x, x)
        (tensor(6.),)
    """
    name = "autograd.grad"
    roots, wanted = _several(outputs, name, "outputs"), _several(inputs, name, "inputs")
    nodes = [t._read() for t in roots]
    for t in wanted:
        if not t.requires_grad:
            raise GradientError(f"{name}: an input ({type_text(t._node)}) does not require grad. "
                                "Call requires_grad_() on it before computing the outputs.")
    seeds = _seeds(roots, nodes, grad_outputs, name, "grad_outputs")
    order = _graph(nodes)
    wrt = [t._read() for t in wanted]
    found = _pull(nodes, seeds, wrt, order, create_graph, leaves=False)
    if any(g is None for g in found) and not (allow_unused or materialize_grads):
        which = [i for i, g in enumerate(found) if g is None]
        raise GradientError(f"{name}: inputs {which} are not used by the outputs. Pass "
                            "allow_unused=True to get None for them.")
    results = tuple(
        wrap(g) if g is not None else
        wrap(prims.const(0, n)) if materialize_grads else None
        for g, n in zip(found, wrt, strict=True))
    if not (create_graph if retain_graph is None else retain_graph):
        settle([*nodes, *(r._node for r in results if r is not None)])
        _release(order)
    return results


# ---------------------------------------------------------------------------- methods of Tensor

def _backward_method(self: Tensor, gradient: Tensor | None = None,
                     retain_graph: bool | None = None, create_graph: bool = False,
                     inputs: Any = None) -> None:
    """Accumulate this tensor's gradient into the leaves it depends on; see autograd.backward."""
    backward(self, gradient, retain_graph, create_graph, inputs)


def _keep(tensor: Tensor) -> Hooks:
    """The hooks of a tensor, which its node now keeps alive."""
    hooks = hooks_of(tensor)
    tensor._read().owner = lambda: tensor
    return hooks


def register_hook(self: Tensor, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call `hook(gradient)` when this tensor's gradient is known; what it returns replaces it.

    Raises:
        GradientError: the tensor does not require grad.
    """
    if not self.requires_grad:
        raise GradientError(f"x.register_hook: x is {type_text(self._node)} and does not require "
                            "grad, so no gradient will come. Use requires_grad_() first.")
    hooks = hooks_of(self) if self._leaf else _keep(self)
    return RemovableHandle(hooks.gradient, hook)


def register_post_accumulate_grad_hook(self: Tensor,
                                       hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `hook(tensor)` each time backward() has added to this leaf's `.grad`."""
    if not self._leaf:
        raise GradientError("x.register_post_accumulate_grad_hook: x is not a leaf that requires "
                            "grad. Use register_hook.")
    return RemovableHandle(hooks_of(self).post, hook)


def retain_grad(self: Tensor) -> None:
    """Have backward() keep this result's gradient in `.grad`, as it does for leaves."""
    if not self.requires_grad:
        raise GradientError(f"x.retain_grad(): x is {type_text(self._node)} and does not require "
                            "grad.")
    if not self._leaf:
        _keep(self).retain = True


class GradFn:
    """What made a tensor, as `x.grad_fn` shows it."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def name(self) -> str:
        """The operator's name, such as AddBackward."""
        rule = self._node.attrs.get("rule")
        own = getattr(rule, "function_name", None)
        word = own or "".join(p.capitalize() for p in self._node.op.name.split("_"))
        return f"{word}Backward"

    @property
    def next_functions(self) -> tuple[tuple[GradFn | None, int], ...]:
        """What made the operands."""
        return tuple((GradFn(n), 0) if n.grad else (None, 0) for n in self._node.inputs)

    def __repr__(self) -> str:
        return f"<{self.name()}>"


def _grad_fn(self: Tensor) -> GradFn | None:
    """What made this tensor, or None for a leaf."""
    return None if self.is_leaf else GradFn(self._read())


def _retains_grad(self: Tensor) -> bool:
    """Whether backward() keeps this result's gradient."""
    return not self._leaf and self._hooks is not None and self._hooks.retain


for _name, _member in (("backward", _backward_method), ("register_hook", register_hook),
                       ("register_post_accumulate_grad_hook", register_post_accumulate_grad_hook),
                       ("retain_grad", retain_grad), ("grad_fn", property(_grad_fn)),
                       ("retains_grad", property(_retains_grad))):
    attach(_name, _member)
for _mode in (no_grad, enable_grad, inference_mode, set_grad_enabled, is_grad_enabled):
    PUBLIC[_mode.__name__] = _mode
