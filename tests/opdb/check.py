"""One sample on both sides: structure, dtype, shape, values, first gradients.

A difference is raised as `Difference`; its text says what differs, first thing first.
"""

from __future__ import annotations

import warnings
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import gossamer as gs
from tests.opdb import exceptions
from tests.opdb.calls import Call, calls
from tests.opdb.database import ABSENT, Carrier, Unrepresentable, load, sample_dtype, samples

RTOL, ATOL = 1e-4, 1e-5
HALF = 1e-2  # float16 and bfloat16 results: 3 or 2 decimal digits


class Difference(AssertionError):
    """Gossamer and PyTorch disagree."""


@dataclass
class Outcome:
    """What happened to one name of the database."""

    name: str
    status: str = "missing"  # "pass", "fail", "missing", "none" (nothing could be compared)
    called: list[str] = field(default_factory=list)
    compared: int = 0
    dtype: str = "float32"
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> samples
    message: str = ""


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, (torch.Tensor, gs.Tensor))


def _array(value: Any) -> np.ndarray:
    value = value.detach()
    if _name(value.dtype) == "bfloat16":
        value = value.float()
    # PyTorch has tensors that are lazily zero or negated; `force` makes them plain.
    theirs = type(value).__module__.split(".")[0] == "torch"
    return np.asarray(value.numpy(force=True) if theirs else value.numpy())


def _name(dtype: Any) -> str:
    return str(dtype).split(".")[-1]


def _same(theirs: Any, ours: Any, where: str, name: str, shape_only: bool) -> None:
    """Raise Difference unless both results agree, nested ones part by part."""
    if _is_tensor(theirs):
        if not _is_tensor(ours):
            raise Difference(f"{where} is a {type(ours).__name__}, not a Tensor")
        _same_tensor(theirs, ours, where, name, shape_only)
    elif isinstance(theirs, (list, tuple)):
        if not isinstance(ours, (list, tuple)) or len(ours) != len(theirs):
            raise Difference(f"{where} is {_kind(ours)}, not {_kind(theirs)}")
        fields = [f for f in dir(theirs) if not f.startswith(("_", "n_")) and f not in dir(())]
        for part in fields if type(theirs).__module__ == "torch.return_types" else ():
            if not hasattr(ours, part):
                raise Difference(f"{where} has no field {part!r}")
        for i, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            _same(a, b, f"{where}[{i}]", name, shape_only)
    elif isinstance(theirs, float) and isinstance(ours, float):
        if not (shape_only or np.isclose(ours, theirs, RTOL, ATOL, equal_nan=True)):
            raise Difference(f"{where} is {ours!r}, not {theirs!r}")
    elif type(theirs).__name__ in ("dtype", "device"):
        if _name(theirs) != _name(ours):
            raise Difference(f"{where} is {ours!r}, not {theirs!r}")
    elif type(theirs) is not type(ours) or (theirs != ours and not shape_only):
        raise Difference(f"{where} is {ours!r}, not {theirs!r}")


def _kind(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (list, tuple)) else (
        type(value).__name__)


def _same_tensor(theirs: Any, ours: Any, where: str, name: str, shape_only: bool) -> None:
    if _name(theirs.dtype).startswith(ABSENT):
        raise Unrepresentable(f"a result of dtype {_name(theirs.dtype)}")
    if _name(ours.dtype) != _name(theirs.dtype):
        raise Difference(f"{where} has dtype {_name(ours.dtype)}, not {_name(theirs.dtype)}")
    if tuple(ours.shape) != tuple(theirs.shape):
        raise Difference(f"{where} has shape {tuple(ours.shape)}, not {tuple(theirs.shape)}")
    if not shape_only:
        close(_array(theirs), _array(ours), where, name, _name(theirs.dtype))


def close(theirs: np.ndarray, ours: np.ndarray, where: str, name: str, dtype: str) -> None:
    """Equal to tolerance (floats) or exactly (integers, booleans); NaN equals NaN."""
    rtol, atol, _ = exceptions.TOLERANCE.get(name, (RTOL, ATOL, ""))
    if dtype in ("float16", "bfloat16"):
        rtol, atol = max(rtol, HALF), max(atol, HALF)
    if theirs.dtype.kind != "f":
        bad = ours != theirs
    else:
        bad = ~np.isclose(ours, theirs, rtol, atol, equal_nan=True)
    if np.any(bad):
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise Difference(f"{where} differs in {int(bad.sum())} of {bad.size} values; at {first} it "
                         f"is {ours[first]!r}, not {theirs[first]!r}")


def _floats(value: Any) -> list[Any]:
    """The differentiable tensors of a result, in order."""
    if _is_tensor(value):
        return [value] if _name(value.dtype) in ("float16", "bfloat16", "float32",
                                                 "float64") else []
    if isinstance(value, (list, tuple)):
        return [t for part in value for t in _floats(part)]
    return []


def _backward(results: list[Any], wanted: list[bool], cotangents: list[np.ndarray],
              tensor: Any) -> None:
    """Backward of sum over results of <result, its fixed random cotangent>."""
    total = None
    for result, want, cotangent in zip(results, wanted, cotangents, strict=True):
        if want:
            term = (result * tensor(cotangent).to(result.dtype)).sum()
            total = term if total is None else total + term
    if total is not None:
        total.backward()


def _same_gradients(theirs: Any, ours: Any, pairs: list[tuple[Any, Any]], name: str) -> None:
    import torch

    their_floats, our_floats = _floats(theirs), _floats(ours)
    wanted = [t.requires_grad for t in their_floats]
    if not pairs or not any(wanted):
        return
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    cotangents = [rng.standard_normal(tuple(t.shape)).astype(np.float32) for t in their_floats]
    try:
        _backward(their_floats, wanted, cotangents, torch.tensor)
    except NotImplementedError as error:  # acosh_, asinh_ and atanh_ have none in PyTorch
        raise Unrepresentable(f"PyTorch refuses it ({type(error).__name__})") from None
    # Where the gradient is zero everywhere (`fill`, x ** 0) PyTorch records it and we need not:
    # the comparison below is with zeros then.
    _backward(our_floats, [want and mine.requires_grad for want, mine in
                           zip(wanted, our_floats, strict=True)], cotangents, gs.tensor)
    for i, (leaf, mine) in enumerate(pairs):
        shape = tuple(leaf.shape)
        expected = np.zeros(shape) if leaf.grad is None else _array(leaf.grad)
        found = np.zeros(shape) if mine.grad is None else _array(mine.grad)
        if found.shape != shape:
            raise Difference(f"gradient {i} has shape {found.shape}, not {shape}")
        close(expected.astype(np.float64), found.astype(np.float64), f"gradient {i}", name,
              _name(leaf.dtype))


def describe(label: str, args: Any, kwargs: Any) -> str:
    """The call as a user would read it: tensors by dtype and shape."""
    def show(value: Any) -> str:
        if _is_tensor(value):
            return f"{_name(value.dtype)}{tuple(value.shape)}"
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(show(v) for v in value) + "]"
        return repr(value)
    inside = [show(a) for a in args] + [f"{k}={show(v)}" for k, v in kwargs.items()]
    return f"{label}({', '.join(inside)})"


def check_sample(info: Any, call: Call, sample: Any) -> None:
    """Compare one sample through one call.

    Raises:
        Unrepresentable: the sample cannot be put to Gossamer, with the reason.
        Difference: the results disagree; any other exception is Gossamer's own.
    """
    name = info.name
    carrier = Carrier()
    arguments = [sample.input, *sample.args]
    if name in exceptions.EDIT_SAMPLE:
        arguments = exceptions.EDIT_SAMPLE[name][0](arguments)
    skip = exceptions.SKIP_SAMPLE.get(name)
    if skip is not None and skip[0](arguments, sample.kwargs):
        raise Unrepresentable(skip[1])
    their_args, our_args = carrier.carry(arguments)
    their_kwargs, our_kwargs = carrier.carry(dict(sample.kwargs))
    if call.label.startswith("Tensor.") and not _is_tensor(our_args[0]):
        raise Unrepresentable("the first argument is no tensor, so there is no method")
    try:
        theirs = call.theirs(*their_args, **their_kwargs)
    except Exception as error:  # for example an in-place form whose result would not fit
        raise Unrepresentable(f"PyTorch refuses it ({type(error).__name__})") from None
    ours = call.ours(*our_args, **our_kwargs)
    shape_only = name in exceptions.SHAPE_ONLY
    _same(theirs, ours, "result", name, shape_only)
    if shape_only or name in exceptions.NO_GRADIENT:
        return
    # Some results are only unique up to a sign or a phase; the database says what part is.
    post = sample.output_process_fn_grad
    _same_gradients(post(theirs), post(ours), carrier.pairs, name)


def check_name(name: str, most: int | None = None) -> Outcome:
    """Every variant, call and sample of one name; stops at the first difference."""
    outcome = Outcome(name)
    for info in load()[name]:
        ways = calls(info)
        outcome.called += [c.label for c in ways if c.label not in outcome.called]
        dtype = sample_dtype(info)
        if not ways or dtype is None:
            continue
        outcome.dtype = _name(dtype)
        for sample in samples(info, most):
            for call in ways:
                if not _checked(info, call, sample, outcome):
                    return outcome
    if outcome.called:
        outcome.status = "pass" if outcome.compared else "none"
    return outcome


def _checked(info: Any, call: Call, sample: Any, outcome: Outcome) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check_sample(info, call, sample)
        except Unrepresentable as reason:
            outcome.left_out[str(reason)] = outcome.left_out.get(str(reason), 0) + 1
            return True
        except Exception as error:
            what = "" if isinstance(error, Difference) else f"{type(error).__name__}: "
            described = describe(call.label, [sample.input, *sample.args], sample.kwargs)
            text = str(error).strip().splitlines() or [""]
            outcome.status, outcome.message = "fail", f"{described}: {what}{text[0]}"
            return False
    outcome.compared += 1
    return True
