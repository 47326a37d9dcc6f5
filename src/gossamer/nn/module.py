"""`Module`: the base class of everything that owns parameters. Layer 5.

A module is a tree node: its parameters, buffers and child modules are registered by plain attribute
assignment and live in three ordered dicts; everything else (`state_dict`, `to`, `train`, printing)
is a walk over that tree. Semantics, names and order are those of torch.nn.Module.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from gossamer.core.dtype import DType, bfloat16, float16, float32, float64
from gossamer.modes import MODES
from gossamer.nn.hooks import BackwardHook, HookTable, RemovableHandle, add_hook
from gossamer.nn.state import IncompatibleKeys, Report, load_own, load_tree, save_own
from gossamer.tensor import Parameter, Tensor, no_grad

__all__ = ["Module"]

M = TypeVar("M", bound="Module")
Applied = Callable[[Tensor], Tensor]

_HOOK_TABLES = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks",
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_backward_hooks",
    "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)


class Module:
    """Base class of all layers and models.

    Subclasses call `super().__init__()` first, assign parameters and children as attributes and
    define `forward`. Calling the module runs the hooks around `forward`.

    Example:
        >>> class Scale(Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.by = Parameter(gs.ones(3))
        ...     def forward(self, x):
        ...         return x * self.by
        >>> list(Scale().state_dict())
        ['by']
    """

    training: bool
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]
    _non_persistent_buffers_set: set[str]
    _version: int = 1

    def __init__(self) -> None:
        own = self.__dict__  # not through __setattr__, which reads these very dicts
        own["training"] = True
        own["_parameters"] = {}
        own["_buffers"] = {}
        own["_modules"] = {}
        own["_non_persistent_buffers_set"] = set()
        for table in _HOOK_TABLES:
            own[table] = OrderedDict()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The computation; every subclass defines it."""
        raise NotImplementedError(f"Module [{type(self).__name__}] is missing the required "
                                  '"forward" function')

    # ---------------------------------------------------------------- attributes

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__
        params = own.get("_parameters")
        if isinstance(value, Parameter):
            if params is None:
                raise AttributeError(_before_init(self, name, "parameters"))
            _forget(own, name, "_buffers", "_modules")
            own["_non_persistent_buffers_set"].discard(name)
            self.register_parameter(name, value)
        elif params is not None and name in params:
            if value is not None:
                raise TypeError(f"cannot assign '{type(value).__name__}' as parameter '{name}' of "
                                f"{type(self).__name__}: a Parameter or None is expected. Wrap it "
                                "in Parameter(...), or del the attribute first.")
            params[name] = None
        elif isinstance(value, Module):
            if "_modules" not in own:
                raise AttributeError(_before_init(self, name, "modules"))
            _forget(own, name, "_parameters", "_buffers")
            own["_non_persistent_buffers_set"].discard(name)
            own["_modules"][name] = value
        elif "_modules" in own and name in own["_modules"]:
            if value is not None:
                raise TypeError(f"cannot assign '{type(value).__name__}' as child module '{name}' "
                                f"of {type(self).__name__}: a Module or None is expected.")
            own["_modules"][name] = None
        elif "_buffers" in own and name in own["_buffers"]:
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(f"cannot assign '{type(value).__name__}' as buffer '{name}' of "
                                f"{type(self).__name__}: a Tensor or None is expected.")
            own["_buffers"][name] = value
        else:
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        for table in ("_parameters", "_buffers", "_modules"):
            if table in own and name in own[table]:
                return own[table][name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __delattr__(self, name: str) -> None:
        for table in (self._parameters, self._buffers, self._modules):
            if name in table:
                del table[name]
                self._non_persistent_buffers_set.discard(name)
                return
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        names = [*super().__dir__(), *self._parameters, *self._buffers, *self._modules]
        return sorted(n for n in names if n.isidentifier())

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter (or None, which keeps the name's place).

        Raises:
            TypeError: `param` is not a Parameter.
            KeyError: the name is taken, empty or has a dot.
            ValueError: `param` is the result of an operation, not a leaf.
        """
        self._check_name(name, "_parameters", "parameter")
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(f"register_parameter({name!r}): got a {type(param).__name__}; a "
                            "Parameter or None is expected. Wrap the tensor in Parameter(...).")
        if param is not None and param.grad_fn is not None:
            raise ValueError(f"register_parameter({name!r}): the parameter is the result of an "
                             "operation; parameters must be leaves of the graph. Pass x.detach().")
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that moves and saves with the module but is not trained.

        Args:
            persistent: whether `state_dict` has it.
        """
        self._check_name(name, "_buffers", "buffer")
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"register_buffer({name!r}): got a {type(tensor).__name__}; a Tensor "
                            "or None is expected.")
        self._buffers[name] = tensor
        if persistent:
            self._non_persistent_buffers_set.discard(name)
        else:
            self._non_persistent_buffers_set.add(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a child module (or None)."""
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"add_module({name!r}): got a {type(module).__name__}; a Module or "
                            "None is expected.")
        self._check_name(name, "_modules", "module")
        self._modules[name] = module

    register_module = add_module

    def _check_name(self, name: Any, table: str, what: str) -> None:
        if table not in self.__dict__:
            raise AttributeError(_before_init(self, str(name), what + "s"))
        if not isinstance(name, str):
            raise TypeError(f"{what} name: got a {type(name).__name__}; a string is expected.")
        if not name or "." in name:
            raise KeyError(f"{what} name {name!r}: it must not be empty or contain a dot.")
        if hasattr(self, name) and name not in self.__dict__[table]:
            raise KeyError(f"attribute '{name}' of {type(self).__name__} already exists. Choose "
                           "another name, or del the attribute first.")

    # ---------------------------------------------------------------- the tree

    def named_modules(self, memo: set[Module] | None = None, prefix: str = "",
                      remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        """This module and all below it, depth first, with dotted names; each module once."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, child in self._modules.items():
            if child is not None:
                below = f"{prefix}.{name}" if prefix else name
                yield from child.named_modules(memo, below, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        for _, module in self.named_modules():
            yield module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Direct children with their names, each once."""
        seen: set[Module] = set()
        for name, child in self._modules.items():
            if child is not None and child not in seen:
                seen.add(child)
                yield name, child

    def children(self) -> Iterator[Module]:
        """Direct children, each once."""
        for _, child in self.named_children():
            yield child

    def _named_members(self, table: str, prefix: str, recurse: bool,
                       remove_duplicate: bool) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        walk = (self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate) if recurse
                else iter([(prefix, self)]))
        for path, module in walk:
            for name, member in module.__dict__[table].items():
                if member is None or id(member) in seen:
                    continue
                if remove_duplicate:
                    seen.add(id(member))
                yield (f"{path}.{name}" if path else name), member

    def named_parameters(self, prefix: str = "", recurse: bool = True,
                         remove_duplicate: bool = True) -> Iterator[tuple[str, Parameter]]:
        """Parameters with dotted names; a shared one appears once, under its first name."""
        return self._named_members("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Parameters, each once."""
        for _, param in self.named_parameters(recurse=recurse):
            yield param

    def named_buffers(self, prefix: str = "", recurse: bool = True,
                      remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Buffers with dotted names, each once."""
        return self._named_members("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Buffers, each once."""
        for _, buffer in self.named_buffers(recurse=recurse):
            yield buffer

    def get_submodule(self, target: str) -> Module:
        """The module at a dotted path; the empty path is this module.

        Raises:
            AttributeError: there is no such module.
        """
        module: Any = self
        for name in target.split(".") if target else ():
            if not isinstance(getattr(module, name, None), Module):
                raise AttributeError(f"get_submodule({target!r}): `{name}` is not a module of "
                                     f"{type(module).__name__}, which has "
                                     f"{', '.join(module._modules) or 'none'}.")
            module = getattr(module, name)
        return module

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at a dotted path."""
        return self._get_member(target, "_parameters", "parameter")

    def get_buffer(self, target: str) -> Tensor:
        """The buffer at a dotted path."""
        return self._get_member(target, "_buffers", "buffer")

    def _get_member(self, target: str, table: str, what: str) -> Any:
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        if module.__dict__[table].get(name) is None:
            raise AttributeError(f"get_{what}({target!r}): `{name}` is not a {what} of "
                                 f"{type(module).__name__}.")
        return module.__dict__[table][name]

    # ---------------------------------------------------------------- calling

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if MODES.tracing is not None:  # a compiled function is traced anew when `training` changes
            MODES.tracing.entered(self)
        if not (self._forward_pre_hooks or self._forward_hooks or self._backward_hooks
                or self._backward_pre_hooks):
            return self.forward(*args, **kwargs)
        return self._call_with_hooks(args, kwargs)

    def _call_with_hooks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for number, hook in list(self._forward_pre_hooks.items()):
            if number in self._forward_pre_hooks_with_kwargs:
                changed = hook(self, args, kwargs)
                if changed is not None:
                    args, kwargs = changed
            else:
                changed = hook(self, args)
                if changed is not None:
                    args = changed if isinstance(changed, tuple) else (changed,)
        backward = None
        if self._backward_hooks or self._backward_pre_hooks:
            backward = BackwardHook(self, list(self._backward_hooks.values()),
                                    list(self._backward_pre_hooks.values()))
            args = backward.enter(args)
        called: set[int] = set()
        result = None
        try:
            result = self.forward(*args, **kwargs)
            for number, hook in list(self._forward_hooks.items()):
                called.add(number)
                result = self._run_forward_hook(number, hook, args, kwargs, result)
        except BaseException:
            for number, hook in list(self._forward_hooks.items()):
                if number in self._forward_hooks_always_called and number not in called:
                    self._run_forward_hook(number, hook, args, kwargs, result)
            raise
        return result if backward is None else backward.leave(result)

    def _run_forward_hook(self, number: int, hook: Any, args: tuple[Any, ...],
                          kwargs: dict[str, Any], result: Any) -> Any:
        if number in self._forward_hooks_with_kwargs:
            changed = hook(self, args, kwargs, result)
        else:
            changed = hook(self, args, result)
        return result if changed is None else changed

    def register_forward_pre_hook(self, hook: Any, *, prepend: bool = False,
                                  with_kwargs: bool = False) -> RemovableHandle:
        """`hook(module, args)` before forward; what it returns replaces the arguments."""
        flags = (self._forward_pre_hooks_with_kwargs,) if with_kwargs else ()
        return add_hook(self._forward_pre_hooks, hook, prepend, flags)

    def register_forward_hook(self, hook: Any, *, prepend: bool = False, with_kwargs: bool = False,
                              always_call: bool = False) -> RemovableHandle:
        """`hook(module, args, output)` after forward; what it returns replaces the output."""
        flags: tuple[HookTable, ...] = (self._forward_hooks_with_kwargs,) if with_kwargs else ()
        if always_call:
            flags = (*flags, self._forward_hooks_always_called)
        return add_hook(self._forward_hooks, hook, prepend, flags)

    def register_full_backward_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """`hook(module, grad_input, grad_output)` when the gradients of the inputs are known."""
        return add_hook(self._backward_hooks, hook, prepend)

    def register_full_backward_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """`hook(module, grad_output)` when the gradients of the outputs are known."""
        return add_hook(self._backward_pre_hooks, hook, prepend)

    # ---------------------------------------------------------------- mode and dtype

    def train(self: M, mode: bool = True) -> M:
        """Set training mode here and below (dropout and batch statistics follow it)."""
        if not isinstance(mode, bool):
            raise ValueError(f"train(mode={mode!r}): training mode is expected to be boolean.")
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def eval(self: M) -> M:
        """Set evaluation mode here and below."""
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Whether autograd records operations on the parameters."""
        for param in self.parameters():
            param.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or fill them with zeros."""
        for param in self.parameters():
            if set_to_none:
                param.grad = None
            elif param.grad is not None:
                param.grad.detach_()
                param.grad.zero_()

    def apply(self: M, fn: Callable[[Module], Any]) -> M:
        """Call `fn` on every module of the tree, children first."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    def _apply(self: M, fn: Applied, recurse: bool = True) -> M:
        """Replace the value of every parameter, gradient and buffer by `fn` of it."""
        if recurse:
            for child in self.children():
                child._apply(fn)
        for name, param in self._parameters.items():
            if param is None:
                continue
            with no_grad():
                new = fn(param)
                grad = None if param.grad is None else fn(param.grad)
            if str(new.device) != str(param.device):  # meta to cpu: there is no value to replace
                kept = self._parameters[name] = Parameter(new, param.requires_grad)
            else:
                kept = param
                kept.grad = None
                kept.data = new
            if grad is not None:
                kept.grad = grad.requires_grad_(False)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = fn(buffer)
        return self

    def to(self: M, *args: Any, **kwargs: Any) -> M:
        """Move to a device and/or a floating-point dtype: `to(device)`, `to(dtype)`, `to(tensor)`.

        Raises:
            TypeError: the dtype is not floating-point.
        """
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        for arg in args:
            if isinstance(arg, Tensor):
                device, dtype = arg.device, arg.dtype
            elif isinstance(arg, DType):
                dtype = arg
            elif isinstance(arg, (str, int)) and not isinstance(arg, bool) or hasattr(arg, "type"):
                device = arg
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"{type(self).__name__}.to: got {dtype}; only floating-point dtypes "
                            "are allowed. Integer buffers keep their dtype.")

        def convert(t: Tensor) -> Tensor:
            wanted = dtype if dtype is not None and t.is_floating_point() else t.dtype
            moved = t if wanted is t.dtype else t.to(wanted)
            return moved if device is None or str(device) == str(t.device) else moved.to(device)

        return self._apply(convert)

    def _cast(self: M, dtype: DType) -> M:
        return self._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)

    def float(self: M) -> M:
        """Cast floating-point parameters and buffers to float32."""
        return self._cast(float32)

    def double(self: M) -> M:
        """Cast floating-point parameters and buffers to float64."""
        return self._cast(float64)

    def half(self: M) -> M:
        """Cast floating-point parameters and buffers to float16."""
        return self._cast(float16)

    def bfloat16(self: M) -> M:
        """Cast floating-point parameters and buffers to bfloat16."""
        return self._cast(bfloat16)

    def type(self: M, dst_type: Any) -> M:
        """Cast all parameters and buffers to `dst_type`."""
        return self._apply(lambda t: t.type(dst_type))

    def cpu(self: M) -> M:
        """Move to the CPU."""
        return self._apply(lambda t: t.cpu())

    def to_empty(self: M, *, device: Any, recurse: bool = True) -> M:
        """Move to `device` with uninitialised values (the step after building on `meta`)."""
        return self._apply(lambda t: t.new_empty(t.shape, device=device), recurse=recurse)

    # ---------------------------------------------------------------- state

    def get_extra_state(self) -> Any:
        """State beside tensors that `state_dict` should carry; override with `set_extra_state`."""
        raise RuntimeError(f"{type(self).__name__}.get_extra_state is not defined. Define it "
                           "together with set_extra_state.")

    get_extra_state.is_default = True  # type: ignore[attr-defined]

    def set_extra_state(self, state: Any) -> None:
        """Counterpart of `get_extra_state`."""
        raise RuntimeError(f"{type(self).__name__}.set_extra_state is not defined. Define it "
                           "together with get_extra_state.")

    def state_dict(self, *args: Any, destination: dict[str, Any] | None = None, prefix: str = "",
                   keep_vars: bool = False) -> dict[str, Any]:
        """All parameters and persistent buffers by dotted name, sharing the values' memory.

        Args:
            destination: a dict to add to.
            prefix: put before every name.
            keep_vars: give the parameters themselves instead of detached tensors.
        """
        if args:  # the old positional form: (destination, prefix, keep_vars)
            old = dict(zip(("destination", "prefix", "keep_vars"), args, strict=False))
            destination = old.get("destination", destination)
            prefix, keep_vars = old.get("prefix", prefix), old.get("keep_vars", keep_vars)
        if destination is None:
            destination = OrderedDict()
        for hook in self._state_dict_pre_hooks.values():
            hook(self, prefix, keep_vars)
        self._save_to_state_dict(destination, prefix, keep_vars)
        for name, child in self._modules.items():
            if child is not None:
                child.state_dict(destination=destination, prefix=prefix + name + ".",
                                 keep_vars=keep_vars)
        for hook in self._state_dict_hooks.values():
            result = hook(self, destination, prefix, {"version": self._version})
            if not getattr(hook, "_from_public_api", False) and result is not None:
                destination = result
        return destination

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str,
                            keep_vars: bool) -> None:
        save_own(self, destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str,
                              local_metadata: dict[str, Any], strict: bool,
                              missing_keys: list[str], unexpected_keys: list[str],
                              error_msgs: list[str]) -> None:
        report = Report(missing_keys, unexpected_keys, error_msgs)
        assign = bool(local_metadata.get("assign_to_params_buffers", False))
        load_own(self, state_dict, prefix, strict, assign, report)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True,
                        assign: bool = False) -> IncompatibleKeys:
        """Fill parameters and buffers from a dict of tensors.

        Args:
            strict: every key of the model must be there, and no other.
            assign: take the given tensors themselves instead of copying their values.

        Returns:
            the keys that had no partner (both lists are empty after a strict load).

        Raises:
            CheckpointError: shapes differ, or `strict` and the keys are not the model's.
        """
        return load_tree(self, state_dict, strict, assign)

    def register_state_dict_post_hook(self, hook: Any) -> RemovableHandle:
        """`hook(module, state_dict, prefix, metadata)` after `state_dict` filled the dict."""
        return add_hook(self._state_dict_hooks, hook)

    _register_state_dict_hook = register_state_dict_post_hook

    def register_state_dict_pre_hook(self, hook: Any) -> RemovableHandle:
        """`hook(module, prefix, keep_vars)` before `state_dict`."""
        return add_hook(self._state_dict_pre_hooks, hook)

    def register_load_state_dict_pre_hook(self, hook: Any) -> RemovableHandle:
        """`hook(module, state_dict, prefix, metadata, strict, missing, unexpected, errors)`."""
        return add_hook(self._load_state_dict_pre_hooks, (hook, True))

    def _register_load_state_dict_pre_hook(self, hook: Any,
                                           with_module: bool = False) -> RemovableHandle:
        return add_hook(self._load_state_dict_pre_hooks, (hook, with_module))

    def register_load_state_dict_post_hook(self, hook: Any) -> RemovableHandle:
        """`hook(module, incompatible_keys)` after loading; it may edit the keys in place."""
        return add_hook(self._load_state_dict_post_hooks, hook)

    # ---------------------------------------------------------------- printing

    def _get_name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        """What stands between the parentheses when the module is printed."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        lines = extra.split("\n") if extra else []
        children = [f"({name}): " + repr(child).replace("\n", "\n  ")
                    for name, child in self._modules.items()]
        if not children and len(lines) <= 1:
            return f"{self._get_name()}({extra})"
        return f"{self._get_name()}(\n  " + "\n  ".join(lines + children) + "\n)"


def _before_init(module: Module, name: str, what: str) -> str:
    return (f"{type(module).__name__}.{name}: cannot assign {what} before Module.__init__() call. "
            "Call super().__init__() first.")


def _forget(own: dict[str, Any], name: str, *tables: str) -> None:
    own.pop(name, None)
    for table in tables:
        own[table].pop(name, None)
