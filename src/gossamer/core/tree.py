"""Nested containers as flat lists of leaves. Layer 0.

`flatten` takes tuples, named tuples, lists and dictionaries apart and returns the leaves with a
`Tree`, a hashable description that puts other leaves together in the same way. Everything else is a
leaf, None too. Dictionaries keep their order of insertion, which is part of their description.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["LEAF", "Tree", "flatten", "leaf_paths", "tree_map", "unflatten"]


@dataclass(frozen=True)
class Tree:
    """The shape of a nested container.

    Attributes:
        kind: its type; None for a leaf.
        keys: keys of a dictionary (and the factory of a defaultdict before them).
        children: descriptions of its elements.
    """

    kind: type | None
    keys: tuple[Any, ...] = ()
    children: tuple[Tree, ...] = ()

    @property
    def count(self) -> int:
        """Number of leaves."""
        return 1 if self.kind is None else sum(child.count for child in self.children)

    def __repr__(self) -> str:
        if self.kind is None:
            return "*"
        keys = self.keys[1:] if self.kind is defaultdict else self.keys
        parts = [f"{key!r}: {child!r}" for key, child in zip(keys, self.children, strict=True)
                 ] if self.keys else map(repr, self.children)
        return f"{self.kind.__name__}({', '.join(parts)})"


LEAF = Tree(None)


def _is_namedtuple(x: object) -> bool:
    return isinstance(x, tuple) and hasattr(type(x), "_fields")


def _parts(x: Any) -> tuple[tuple[Any, ...], Sequence[Any]] | None:
    """(keys, elements) of a container, or None for a leaf."""
    kind = type(x)
    if kind in (dict, OrderedDict):
        return tuple(x), list(x.values())
    if kind is defaultdict:
        return (x.default_factory, *x), list(x.values())
    if kind in (list, tuple) or _is_namedtuple(x):
        return (), x
    return None


def flatten(x: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], Tree]:
    """Leaves of `x` in order, and its description.

    Args:
        x: any nesting of tuples, lists and dictionaries.
        is_leaf: a container for which it holds is a leaf, whatever is inside.

    Example:
        >>> flatten({"a": [1, 2], "b": 3})
        ([1, 2, 3], dict('a': list(*, *), 'b': *))
    """
    leaves: list[Any] = []

    def walk(value: Any) -> Tree:
        parts = None if is_leaf is not None and is_leaf(value) else _parts(value)
        if parts is None:
            leaves.append(value)
            return LEAF
        keys, elements = parts
        return Tree(type(value), keys, tuple(walk(e) for e in elements))

    return leaves, walk(x)


def unflatten(tree: Tree, leaves: Sequence[Any]) -> Any:
    """The container that `tree` describes, holding `leaves`.

    Raises:
        ValueError: the number of leaves is not the tree's.
    """
    if len(leaves) != tree.count:
        raise ValueError(f"unflatten: got {len(leaves)} leaves for {tree!r}, which has "
                         f"{tree.count}; give one for each place.")
    return _build(tree, iter(leaves))


def _build(tree: Tree, leaves: Iterator[Any]) -> Any:
    kind = tree.kind
    if kind is None:
        return next(leaves)
    elements = [_build(child, leaves) for child in tree.children]
    if kind in (dict, OrderedDict):
        return kind(zip(tree.keys, elements, strict=True))
    if kind is defaultdict:
        return defaultdict(tree.keys[0], zip(tree.keys[1:], elements, strict=True))
    return kind(*elements) if hasattr(kind, "_fields") else kind(elements)


def tree_map(fn: Callable[..., Any], x: Any, *others: Any,
             is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """`fn` applied to each leaf of `x` together with the same leaf of each of `others`.

    Raises:
        ValueError: the containers are nested differently.
    """
    leaves, tree = flatten(x, is_leaf)
    rest = []
    for other in others:
        found, own = flatten(other, is_leaf)
        if own != tree:
            raise ValueError(f"tree_map: got {tree!r} and {own!r}; all must be nested alike.")
        rest.append(found)
    return unflatten(tree, [fn(*parts) for parts in zip(leaves, *rest, strict=True)])


def leaf_paths(tree: Tree, root: str = "") -> list[str]:
    """What one writes to reach each leaf, for messages: `args[0]['w']`."""
    if tree.kind is None:
        return [root]
    names: Sequence[str]
    if tree.keys:
        keys = tree.keys[1:] if tree.kind is defaultdict else tree.keys
        names = [f"[{key!r}]" for key in keys]
    elif hasattr(tree.kind, "_fields"):
        names = [f".{field}" for field in tree.kind._fields]
    else:
        names = [f"[{i}]" for i in range(len(tree.children))]
    return [path for name, child in zip(names, tree.children, strict=True)
            for path in leaf_paths(child, root + name)]
