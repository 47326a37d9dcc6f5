"""Modules that hold modules or parameters: Sequential and the lists and dicts. Layer 5.

A plain Python list of modules would hide them from the tree; these register what they hold, under
"0", "1", … or the dict's keys, which are also the keys of `state_dict`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from gossamer.nn.module import Module
from gossamer.tensor import Parameter, Tensor

__all__ = ["ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential"]


def _position(container: Any, index: Any) -> int:
    """A non-negative position; raises IndexError outside the container."""
    size, position = len(container), operator.index(index)
    if not -size <= position < size:
        raise IndexError(f"{type(container).__name__}: index {position} is out of range; it holds "
                         f"{size} entries.")
    return position % size


def _need_module(container: Any, value: Any) -> None:
    if not isinstance(value, Module):
        raise TypeError(f"{type(container).__name__}: got a {type(value).__name__}; only modules "
                        "can be held. Use a Python list for other values.")


class _Numbered(Module):
    """Children named "0", "1", …: what Sequential and ModuleList share."""

    def _renumber(self, children: list[Module | None]) -> None:
        self._modules.clear()
        for i, child in enumerate(children):
            self._modules[str(i)] = child

    def _key(self, index: Any) -> str:
        return next(islice(self._modules, _position(self, index), None))

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def __contains__(self, module: object) -> bool:
        return any(child is module for child in self._modules.values())

    def __setitem__(self, index: int, module: Module) -> None:
        key = self._key(index)
        _need_module(self, module)
        self._modules[key] = module

    def __delitem__(self, index: Any) -> None:
        children = list(self._modules.values())
        if isinstance(index, slice):
            del children[index]
        else:
            del children[_position(self, index)]
        self._renumber(children)

    def append(self, module: Module) -> Any:
        """Add a module at the end."""
        _need_module(self, module)
        self.add_module(str(len(self)), module)
        return self

    def insert(self, index: int, module: Module) -> None:
        """Add a module before `index`."""
        _need_module(self, module)
        children = list(self._modules.values())
        children.insert(index, module)
        self._renumber(children)

    def extend(self, modules: Iterable[Module]) -> Any:
        """Add several modules at the end."""
        if not isinstance(modules, Iterable):
            raise TypeError(f"{type(self).__name__}.extend: got a {type(modules).__name__}; an "
                            "iterable of modules is expected.")
        for module in list(modules):
            self.append(module)
        return self

    def pop(self, index: int) -> Any:
        """Remove the module at `index` and return it."""
        module = self[index]  # type: ignore[index]
        del self[index]
        return module


class Sequential(_Numbered):
    """Modules applied one after the other; takes modules or one dict of named modules.

    Example:
        >>> net = Sequential(Linear(2, 8), ReLU(), Linear(8, 1))
        >>> net(gs.ones(4, 2)).shape
        gossamer.Size([4, 1])
    """

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self.add_module(name, module)
        else:
            for i, module in enumerate(modules):
                _need_module(self, module)
                self.add_module(str(i), module)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return type(self)(dict(list(self._modules.items())[index]))
        return self._modules[self._key(index)]

    def forward(self, input: Any) -> Any:
        for module in self:
            input = module(input)
        return input

    def __add__(self, other: Sequential) -> Sequential:
        return Sequential(*self, *other)

    def __iadd__(self, other: Sequential) -> Sequential:
        self.extend(other)
        return self

    def __mul__(self, times: int) -> Sequential:
        return Sequential(*(list(self) * times))

    __rmul__ = __mul__


class ModuleList(_Numbered):
    """A list of modules; it has no `forward`, the owner decides how to use them."""

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__()
        if modules is not None:
            self.extend(modules)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            children: list[Any] = list(self._modules.values())
            return type(self)(children[index])
        return self._modules[self._key(index)]

    def __add__(self, other: Iterable[Module]) -> ModuleList:
        return type(self)([*self, *other])

    def __iadd__(self, other: Iterable[Module]) -> ModuleList:
        self.extend(other)
        return self

    def __repr__(self) -> str:
        """Runs of equal modules are printed once: `(0-5): 6 x Block(...)`."""
        runs: list[list[Any]] = []  # [first, last, text]
        for i, module in enumerate(self):
            text = repr(module)
            if runs and runs[-1][2] == text:
                runs[-1][1] = i
            else:
                runs.append([i, i, text])
        if not runs:
            return self._get_name() + "()"
        lines = []
        for first, last, text in runs:
            head = f"({first})" if first == last else f"({first}-{last})"
            count = "" if first == last else f"{last - first + 1} x "
            lines.append(f"{head}: {count}{text}".replace("\n", "\n  "))
        return f"{self._get_name()}(\n  " + "\n  ".join(lines) + "\n)"


class ModuleDict(Module):
    """A dict of modules, in insertion order; it has no `forward`."""

    def __init__(self, modules: Any = None) -> None:
        super().__init__()
        if modules is not None:
            self.update(modules)

    def __getitem__(self, key: str) -> Any:
        return self._modules[key]

    def __setitem__(self, key: str, module: Module | None) -> None:
        self.add_module(key, module)

    def __delitem__(self, key: str) -> None:
        del self._modules[key]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, key: object) -> bool:
        return key in self._modules

    def clear(self) -> None:
        """Remove all."""
        self._modules.clear()

    def pop(self, key: str) -> Any:
        """Remove the module under `key` and return it."""
        return self._modules.pop(key)

    def keys(self) -> Iterable[str]:
        """Names."""
        return self._modules.keys()

    def items(self) -> Iterable[tuple[str, Any]]:
        """Pairs of name and module."""
        return self._modules.items()

    def values(self) -> Iterable[Any]:
        """Modules."""
        return self._modules.values()

    def update(self, modules: Any) -> None:
        """Add modules from a mapping or from pairs."""
        pairs = modules.items() if isinstance(modules, (Mapping, ModuleDict)) else modules
        for key, module in pairs:
            self[key] = module


def _registered(value: Any) -> Any:
    """A plain tensor becomes a Parameter, as PyTorch does; anything else is left alone."""
    if isinstance(value, Tensor) and not isinstance(value, Parameter):
        return Parameter(value)
    return value


def _shown(value: Any) -> str:
    kind = "Parameter" if isinstance(value, Parameter) else type(value).__name__
    if isinstance(value, Tensor):
        size = "x".join(str(extent) for extent in value.shape)
        return f"{kind} containing: [{value.dtype} of size {size}]"
    return f"Object of type: {kind}"


class ParameterList(Module):
    """A list of parameters (plain tensors become parameters)."""

    def __init__(self, values: Iterable[Any] | None = None) -> None:
        super().__init__()
        self._size = 0
        if values is not None:
            self.extend(values)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return type(self)([self[i] for i in range(*index.indices(len(self)))])
        return getattr(self, str(_position(self, index)))

    def __setitem__(self, index: int, value: Any) -> None:
        setattr(self, str(_position(self, index)), _registered(value))

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Any]:
        return iter(self[i] for i in range(len(self)))

    def __iadd__(self, values: Iterable[Any]) -> ParameterList:
        return self.extend(values)

    def append(self, value: Any) -> ParameterList:
        """Add a parameter at the end."""
        self._size += 1
        self[self._size - 1] = value
        return self

    def extend(self, values: Iterable[Any]) -> ParameterList:
        """Add several parameters at the end."""
        for value in values:
            self.append(value)
        return self

    def extra_repr(self) -> str:
        return "\n".join(f"({i}): {_shown(value)}" for i, value in enumerate(self))


class ParameterDict(Module):
    """A dict of parameters (plain tensors become parameters), in insertion order."""

    def __init__(self, values: Any = None) -> None:
        super().__init__()
        self._keys: dict[str, None] = {}
        if values is not None:
            self.update(values)

    def __getitem__(self, key: str) -> Any:
        if key not in self._keys:
            raise KeyError(key)
        return getattr(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        self._keys[key] = None
        setattr(self, key, _registered(value))

    def __delitem__(self, key: str) -> None:
        del self._keys[key]
        delattr(self, key)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def keys(self) -> Iterable[str]:
        """Names."""
        return self._keys.keys()

    def values(self) -> Iterable[Any]:
        """Parameters."""
        return (self[key] for key in self._keys)

    def items(self) -> Iterable[tuple[str, Any]]:
        """Pairs of name and parameter."""
        return ((key, self[key]) for key in self._keys)

    def get(self, key: str, default: Any = None) -> Any:
        """The parameter under `key`, or `default`."""
        return self[key] if key in self._keys else default

    def pop(self, key: str) -> Any:
        """Remove the parameter under `key` and return it."""
        value = self[key]
        del self[key]
        return value

    def clear(self) -> None:
        """Remove all."""
        for key in list(self._keys):
            del self[key]

    def update(self, values: Any) -> None:
        """Add parameters from a mapping or from pairs."""
        pairs = values.items() if isinstance(values, (Mapping, ParameterDict)) else values
        for key, value in pairs:
            self[key] = value

    def extra_repr(self) -> str:
        return "\n".join(f"({key}): {_shown(value)}" for key, value in self.items())
