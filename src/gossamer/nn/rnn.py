"""Recurrent layers and cells: RNN, LSTM, GRU. Layer 5.

The inputs of all time steps are projected in one product; a step then adds h·W_hhᵀ and applies the
cell. Parameter names, gate order (LSTM i, f, g, o; GRU r, z, n) and shapes are PyTorch's.
Sources: Elman 1990; Hochreiter & Schmidhuber 1997; Cho et al. 2014.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import gossamer.functional as gf
from gossamer.core.errors import ShapeError
from gossamer.nn import functional as F
from gossamer.nn.init import uniform_
from gossamer.nn.module import Module
from gossamer.tensor import Parameter, Tensor

__all__ = ["GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNBase", "RNNCell", "RNNCellBase"]

State = tuple[Tensor, ...]  # (h,) or, for LSTM, (h, c), each (N, H)
_GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "GRU": 3, "LSTM": 4}


def _step(mode: str, projected: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None) -> State:
    """One time step. projected (N, gates·H) is x·W_ihᵀ + b_ih."""
    h = state[0]
    recurrent = F.linear(h, w_hh, b_hh)
    if mode == "GRU":
        xr, xz, xn = projected.chunk(3, -1)
        hr, hz, hn = recurrent.chunk(3, -1)
        r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
        n = (xn + r * hn).tanh()
        return (n + z * (h - n),)
    gates = projected + recurrent
    if mode == "LSTM":
        i, f, g, o = gates.chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    return (gates.tanh() if mode == "RNN_TANH" else F.relu(gates),)


class RNNBase(Module):
    """Layers and directions of one kind of cell over a sequence."""

    def __init__(self, mode: str, input_size: int, hidden_size: int, num_layers: int = 1,
                 bias: bool = True, batch_first: bool = False, dropout: float = 0.0,
                 bidirectional: bool = False, proj_size: int = 0, device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__()
        if proj_size:
            raise NotImplementedError(f"{type(self).__name__}: proj_size={proj_size}; projections "
                                      "of the hidden state are not supported. Put a Linear "
                                      "behind it.")
        if hidden_size <= 0 or num_layers <= 0:
            raise ValueError(f"{type(self).__name__}: hidden_size={hidden_size} and num_layers="
                             f"{num_layers} must be greater than zero.")
        if not 0 <= dropout <= 1:
            raise ValueError(f"{type(self).__name__}: dropout={dropout} should be a number in "
                             "range [0, 1].")
        if dropout > 0 and num_layers == 1:
            warnings.warn("dropout option adds dropout after all but last recurrent layer, so "
                          f"non-zero dropout expects num_layers greater than 1, but got dropout="
                          f"{dropout} and num_layers={num_layers}", stacklevel=3)
        self.mode, self.input_size, self.hidden_size = mode, input_size, hidden_size
        self.num_layers, self.bias, self.batch_first = num_layers, bias, batch_first
        self.dropout, self.bidirectional, self.proj_size = dropout, bidirectional, proj_size
        rows = _GATES[mode] * hidden_size
        directions = 2 if bidirectional else 1
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * directions
            for direction in range(directions):
                for name in self._names(layer, direction):
                    shape = ((rows,) if name.startswith("bias")
                             else (rows, width if "_ih_" in name else hidden_size))
                    setattr(self, name, Parameter(gf.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def _names(self, layer: int, direction: int) -> list[str]:
        suffix = f"_l{layer}" + ("_reverse" if direction else "")
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[:4 if self.bias else 2]
        return [kind + suffix for kind in kinds]

    @property
    def all_weights(self) -> list[list[Parameter]]:
        """Parameters of each layer and direction."""
        directions = 2 if self.bidirectional else 1
        return [[getattr(self, name) for name in self._names(layer, direction)]
                for layer in range(self.num_layers) for direction in range(directions)]

    def reset_parameters(self) -> None:
        """Draw all parameters anew from U(-1/√H, 1/√H)."""
        bound = 1.0 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for param in self.parameters():
            uniform_(param, -bound, bound)

    def flatten_parameters(self) -> None:
        """Does nothing; other libraries gather the weights in memory here."""

    def _check(self, input: Tensor) -> None:
        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size:
            raise ShapeError(f"{type(self).__name__} (input_size={self.input_size}): x has shape "
                             f"{tuple(input.shape)}; it must be 2-D or 3-D with last dimension "
                             f"{self.input_size}.")

    def _initial(self, input: Tensor, given: Any, batched: bool) -> list[Tensor]:
        """(layers·directions, N, H) for h and, for LSTM, c."""
        count = 2 if self.mode == "LSTM" else 1
        layers = self.num_layers * (2 if self.bidirectional else 1)
        shape = (layers, input.shape[1], self.hidden_size)
        if given is None:
            return [gf.zeros(shape, dtype=input.dtype, device=input.device) for _ in range(count)]
        states = list(given) if count == 2 else [given]
        states = states if batched else [s.unsqueeze(1) for s in states]
        for s in states:
            if tuple(s.shape) != shape:
                raise ShapeError(f"{type(self).__name__}: the initial state has shape "
                                 f"{tuple(s.shape)}; it must be {shape} (layers · directions, "
                                 "batch, hidden_size).")
        return states

    def _run(self, input: Tensor, given: Any) -> tuple[Tensor, list[Tensor]]:
        """Outputs, shaped as PyTorch's, and the last states (layers·directions, N, H)."""
        self._check(input)
        batched = input.dim() == 3
        x = input.unsqueeze(1) if not batched else (
            input.transpose(0, 1) if self.batch_first else input)
        states = self._initial(x, given, batched)
        finals: list[State] = []
        directions = 2 if self.bidirectional else 1
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                start = tuple(s[layer * directions + direction] for s in states)
                y, last = self._scan(x, start, self._names(layer, direction), direction == 1)
                outputs.append(y)
                finals.append(last)
            x = outputs[0] if directions == 1 else gf.cat(outputs, -1)
            if self.dropout and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        ends = [gf.stack([f[i] for f in finals]) for i in range(len(states))]
        if not batched:
            return x.squeeze(1), [e.squeeze(1) for e in ends]
        return (x.transpose(0, 1) if self.batch_first else x), ends

    def _scan(self, x: Tensor, state: State, names: list[str],
              backwards: bool) -> tuple[Tensor, State]:
        """One layer in one direction: x (T, N, I) to (T, N, H) and the last state."""
        w_ih, w_hh = getattr(self, names[0]), getattr(self, names[1])
        b_ih, b_hh = [getattr(self, name) for name in names[2:]] if self.bias else (None, None)
        projected = F.linear(x, w_ih, b_ih)  # (T, N, gates·H)
        steps = projected.unbind(0)
        outputs: list[Tensor] = []
        for one in reversed(steps) if backwards else steps:
            state = _step(self.mode, one, state, w_hh, b_hh)
            outputs.append(state[0])
        if not outputs:
            raise ShapeError(f"{type(self).__name__}: the sequence has no time step; it must have "
                             "at least one.")
        return gf.stack(outputs[::-1] if backwards else outputs), state

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        if self.num_layers != 1:
            text += f", num_layers={self.num_layers}"
        if self.bias is not True:
            text += f", bias={self.bias}"
        if self.batch_first is not False:
            text += f", batch_first={self.batch_first}"
        if self.dropout != 0:
            text += f", dropout={self.dropout}"
        return text + (f", bidirectional={self.bidirectional}" if self.bidirectional else "")


class RNN(RNNBase):
    """h' = tanh(W_ih·x + b_ih + W_hh·h + b_hh), or ReLU.

    Args:
        input_size, hidden_size: I and H.
        num_layers, bidirectional, bias, dropout: as in PyTorch (dropout between layers).
        nonlinearity: "tanh" or "relu".
        batch_first: sequences are (N, T, I) instead of (T, N, I).

    Returns (forward): outputs (T, N, directions·H) and the last h (layers·directions, N, H).
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1,
                 nonlinearity: str = "tanh", bias: bool = True, batch_first: bool = False,
                 dropout: float = 0.0, bidirectional: bool = False, device: Any = None,
                 dtype: Any = None) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"RNN: unknown nonlinearity {nonlinearity!r}. Select from 'tanh' or "
                             "'relu'.")
        super().__init__("RNN_" + nonlinearity.upper(), input_size, hidden_size, num_layers, bias,
                         batch_first, dropout, bidirectional, 0, device, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, ends = self._run(input, hx)
        return y, ends[0]


class LSTM(RNNBase):
    """Long short-term memory; arguments as `RNN`, the state is a pair (h, c)."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
                 proj_size: int = 0, device: Any = None, dtype: Any = None) -> None:
        super().__init__("LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, proj_size, device, dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None,
                ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, ends = self._run(input, hx)
        return y, (ends[0], ends[1])


class GRU(RNNBase):
    """Gated recurrent unit; arguments as `RNN`."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
                 device: Any = None, dtype: Any = None) -> None:
        super().__init__("GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, 0, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, ends = self._run(input, hx)
        return y, ends[0]


class RNNCellBase(Module):
    """One step: weights weight_ih, weight_hh, bias_ih, bias_hh."""

    bias_ih: Parameter | None
    bias_hh: Parameter | None

    def __init__(self, mode: str, input_size: int, hidden_size: int, bias: bool, device: Any,
                 dtype: Any) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        self._mode = mode
        rows = _GATES[mode] * hidden_size

        def parameter(*shape: int) -> Parameter:
            return Parameter(gf.empty(*shape, device=device, dtype=dtype))

        self.weight_ih = parameter(rows, input_size)
        self.weight_hh = parameter(rows, hidden_size)
        self.register_parameter("bias_ih", parameter(rows) if bias else None)
        self.register_parameter("bias_hh", parameter(rows) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew from U(-1/√H, 1/√H)."""
        bound = 1.0 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for param in self.parameters():
            uniform_(param, -bound, bound)

    def _advance(self, input: Tensor, given: Any) -> State:
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            raise ShapeError(f"{type(self).__name__} (input_size={self.input_size}): x has shape "
                             f"{tuple(input.shape)}; it must be 1-D or 2-D with last dimension "
                             f"{self.input_size}.")
        count = 2 if self._mode == "LSTM" else 1
        if given is None:
            shape = (*input.shape[:-1], self.hidden_size)
            state: State = tuple(gf.zeros(shape, dtype=input.dtype, device=input.device)
                                 for _ in range(count))
        else:
            state = tuple(given) if count == 2 else (given,)
        projected = F.linear(input, self.weight_ih, self.bias_ih)
        return _step(self._mode, projected, state, self.weight_hh, self.bias_hh)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else f", "
                                                                                f"bias={self.bias}")


class RNNCell(RNNCellBase):
    """One step of `RNN`: (N, I) and (N, H) to (N, H)."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True,
                 nonlinearity: str = "tanh", device: Any = None, dtype: Any = None) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"RNNCell: unknown nonlinearity {nonlinearity!r}. Select from 'tanh' "
                             "or 'relu'.")
        super().__init__("RNN_" + nonlinearity.upper(), input_size, hidden_size, bias, device,
                         dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return self._advance(input, hx)[0]

    def extra_repr(self) -> str:
        tail = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}"
        return super().extra_repr() + tail


class LSTMCell(RNNCellBase):
    """One step of `LSTM`: (N, I) and a pair (h, c) to the next pair."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__("LSTM", input_size, hidden_size, bias, device, dtype)

    def forward(self, input: Tensor,
                hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        h, c = self._advance(input, hx)
        return h, c


class GRUCell(RNNCellBase):
    """One step of `GRU`: (N, I) and (N, H) to (N, H)."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__("GRU", input_size, hidden_size, bias, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return self._advance(input, hx)[0]
