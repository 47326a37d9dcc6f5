"""`gossamer.signal.windows`: window functions by PyTorch's names, and the older `hann_window`, …
Layer 4.

Source: Harris 1978, "On the use of windows for harmonic analysis with the discrete Fourier
transform".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gossamer.core.dtype import as_dtype, get_default_dtype
from gossamer.core.errors import DTypeError, ShapeError
from gossamer.creation import array_node, finish
from gossamer.dispatch import public
from gossamer.tensor import Tensor

__all__ = ["bartlett", "blackman", "cosine", "exponential", "gaussian", "general_cosine",
           "general_hamming", "hamming", "hann", "kaiser", "nuttall"]

Build = Callable[[int, bool], np.ndarray]


def _make(name: str, M: int, sym: bool, dtype: Any, device: Any, requires_grad: bool,
          build: Build) -> Tensor:
    if M < 0:
        raise ShapeError(f"signal.windows.{name}(M={M}): the length must not be negative.")
    chosen = as_dtype(dtype) if dtype is not None else get_default_dtype()
    if chosen.kind != "f":
        raise DTypeError(f"signal.windows.{name}(dtype={chosen!r}): a window is floating.")
    values = np.ones(M) if M <= 1 else build(M if sym else M + 1, sym)[:M]
    return finish(array_node(values, chosen), device, requires_grad)


def _cosines(n: int, weights: Sequence[float]) -> np.ndarray:
    """sum over k of (-1)^k a_k cos(2 pi k i / (n - 1))."""
    angle = 2 * np.pi * np.arange(n) / (n - 1)
    terms = [(-1) ** k * a * np.cos(k * angle) for k, a in enumerate(weights)]
    return np.asarray(sum(terms))


def general_cosine(M: int, *, a: Sequence[float], sym: bool = True, dtype: Any = None,
                   layout: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A weighted sum of cosines with alternating signs."""
    return _make("general_cosine", M, sym, dtype, device, requires_grad,
                 lambda n, _: _cosines(n, a))


def general_hamming(M: int, *, alpha: float = 0.54, sym: bool = True, dtype: Any = None,
                    layout: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """alpha - (1 - alpha) cos."""
    return general_cosine(M, a=(alpha, 1 - alpha), sym=sym, dtype=dtype, device=device,
                          requires_grad=requires_grad)


def hamming(M: int, *, sym: bool = True, dtype: Any = None, layout: Any = None, device: Any = None,
            requires_grad: bool = False) -> Tensor:
    """Hamming's window."""
    return general_hamming(M, sym=sym, dtype=dtype, device=device, requires_grad=requires_grad)


def hann(M: int, *, sym: bool = True, dtype: Any = None, layout: Any = None, device: Any = None,
         requires_grad: bool = False) -> Tensor:
    """von Hann's window."""
    return general_hamming(M, alpha=0.5, sym=sym, dtype=dtype, device=device,
                           requires_grad=requires_grad)


def blackman(M: int, *, sym: bool = True, dtype: Any = None, layout: Any = None, device: Any = None,
             requires_grad: bool = False) -> Tensor:
    """Blackman's window."""
    return general_cosine(M, a=(0.42, 0.5, 0.08), sym=sym, dtype=dtype, device=device,
                          requires_grad=requires_grad)


def nuttall(M: int, *, sym: bool = True, dtype: Any = None, layout: Any = None, device: Any = None,
            requires_grad: bool = False) -> Tensor:
    """Nuttall's minimum 4-term window."""
    return general_cosine(M, a=(0.3635819, 0.4891775, 0.1365995, 0.0106411), sym=sym, dtype=dtype,
                          device=device, requires_grad=requires_grad)


def bartlett(M: int, *, sym: bool = True, dtype: Any = None, layout: Any = None, device: Any = None,
             requires_grad: bool = False) -> Tensor:
    """A triangle."""
    return _make("bartlett", M, sym, dtype, device, requires_grad,
                 lambda n, _: 1 - np.abs(2 * np.arange(n) / (n - 1) - 1))


def cosine(M: int, *, sym: bool = True, dtype: Any = None, layout: Any = None, device: Any = None,
           requires_grad: bool = False) -> Tensor:
    """Half a period of a sine."""
    return _make("cosine", M, sym, dtype, device, requires_grad,
                 lambda n, _: np.sin(np.pi * (np.arange(n) + 0.5) / n))


def gaussian(M: int, *, std: float = 1.0, sym: bool = True, dtype: Any = None, layout: Any = None,
             device: Any = None, requires_grad: bool = False) -> Tensor:
    """exp(-(distance from the middle / std)^2 / 2)."""
    if std <= 0:
        raise ShapeError(f"signal.windows.gaussian(std={std}): it must be positive.")
    return _make("gaussian", M, sym, dtype, device, requires_grad,
                 lambda n, _: np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / std) ** 2))


def exponential(M: int, *, center: float | None = None, tau: float = 1.0, sym: bool = True,
                dtype: Any = None, layout: Any = None, device: Any = None,
                requires_grad: bool = False) -> Tensor:
    """exp(-|distance from the centre| / tau)."""
    if tau <= 0 or sym and center is not None:
        raise ShapeError(f"signal.windows.exponential(tau={tau}, center={center}): tau must be "
                         "positive, and a symmetric window has its own centre.")
    return _make("exponential", M, sym, dtype, device, requires_grad,
                 lambda n, _: np.exp(-np.abs(
                     np.arange(n) - ((n - 1) / 2 if center is None else center)) / tau))


def kaiser(M: int, *, beta: float = 12.0, sym: bool = True, dtype: Any = None, layout: Any = None,
           device: Any = None, requires_grad: bool = False) -> Tensor:
    """Kaiser's window, by the Bessel function I0."""
    if beta < 0:
        raise ShapeError(f"signal.windows.kaiser(beta={beta}): it must not be negative.")
    return _make("kaiser", M, sym, dtype, device, requires_grad,
                 lambda n, _: np.i0(beta * np.sqrt(np.maximum(
                     0, 1 - (2 * np.arange(n) / (n - 1) - 1) ** 2))) / np.i0(beta))


def _older(name: str, window: Callable[..., Tensor], *extra: str) -> None:
    def fn(window_length: int, periodic: bool = True, *args: Any, dtype: Any = None,
           layout: Any = None, device: Any = None, requires_grad: bool = False,
           **kwargs: Any) -> Tensor:
        kwargs.update(zip(extra, args, strict=False))
        return window(window_length, sym=not periodic, dtype=dtype, device=device,
                      requires_grad=requires_grad, **kwargs)
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"`signal.windows.{window.__name__}`, periodic unless asked otherwise."
    public(method=False)(fn)


_older("hann_window", hann)
_older("blackman_window", blackman)
_older("bartlett_window", bartlett)
_older("kaiser_window", kaiser, "beta")
_older("hamming_window", general_hamming, "alpha")
