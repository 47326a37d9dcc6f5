"""Modules with packed weights, and `quantize_`, which puts them in a model. Layer 5.

The one idea: a packed weight is a small module of its own with two buffers. A tied embedding and
output layer hold the same one, so it is stored, saved and loaded like any shared parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gossamer.functional as gf
from gossamer.core.dtype import float32, float64, int8, int64, uint8
from gossamer.core.errors import ShapeError
from gossamer.dispatch import node_of
from gossamer.ir.op import TABLE
from gossamer.nn.embedding import Embedding
from gossamer.nn.linear import Linear
from gossamer.nn.module import Module
from gossamer.ops.quantized import BLOCK, TILE
from gossamer.quantization.configs import QuantizationConfig
from gossamer.quantization.packing import pack, quantize
from gossamer.tensor import Tensor, wrap

__all__ = ["PackedWeight", "QuantizedEmbedding", "QuantizedLinear", "quantize_"]


class PackedWeight(Module):
    """A matrix (N, K) of 4 or 8 bits with scales, in two buffers.

    Args:
        rows, columns: N and K.
        config: the scheme.

    Attributes:
        packed: int8 (N/16, K/4, 16, 4) or uint8 (N/16, K/8, 16, 4); see `ops/quantized.py`.
        scale: (N/16, groups, 16) in the scheme's dtype.

    Cost: N·K·bits/8 bytes and a scale for each group.
    """

    packed: Tensor
    scale: Tensor

    def __init__(self, rows: int, columns: int, config: QuantizationConfig) -> None:
        super().__init__()
        self.rows, self.columns, self.config = rows, columns, config
        width = -(-columns // BLOCK) * BLOCK
        group = min(config.group_size or width, width)
        width = -(-columns // group) * group
        tiles = -(-rows // TILE)
        shape = (tiles, width // (32 // config.bits), TILE, 4)
        # Code 0 of 4 bits is stored as 8, in both halves of a byte.
        empty = gf.zeros(shape, dtype=int8) if config.bits == 8 \
            else gf.full(shape, 0x88, dtype=uint8)
        self.register_buffer("packed", empty)
        self.register_buffer("scale", gf.zeros(tiles, width // group, TILE,
                                               dtype=config.scale_dtype))

    @classmethod
    def from_float(cls, weight: Tensor, config: QuantizationConfig) -> PackedWeight:
        """Quantise a matrix (N, K) of floats.

        Raises:
            ValueError: a weight is not finite, or too large for the scale's dtype.
        """
        if weight.dim() != 2:
            raise ShapeError(f"PackedWeight.from_float: the weight has shape "
                             f"{tuple(weight.shape)}; it must be a matrix.")
        made = cls(weight.shape[0], weight.shape[1], config)
        floats = weight.detach().to(float32).numpy()
        codes, scale = quantize(floats, config.bits, config.group_size, config.scale_dtype)
        packed, scales = pack(codes, scale, config.bits)
        made.packed = gf.tensor(packed)
        made.scale = gf.tensor(scales).to(config.scale_dtype)
        return made

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.rows, self.columns

    @property
    def nbytes(self) -> int:
        """Bytes of both buffers."""
        return sum(t.numel() * t.dtype.itemsize for t in (self.packed, self.scale))

    def dequantize(self) -> Tensor:
        """The matrix that is stood for, float32 (N, K)."""
        packed, scale = self._nodes()
        return wrap(TABLE["dequantize"](packed, scale, shape=self.shape))

    def product(self, x: Tensor) -> Tensor:
        """x·Wᵀ: (…, K) to (…, N), in the dtype of x; computed in float32 (float64 for float64)."""
        node = node_of(x, "linear")
        if not node.ndim or node.shape[-1] != self.columns:
            raise ShapeError(
                f"linear (in_features={self.columns}): x has shape {node.shape}; its last "
                f"dimension must be {self.columns}. Reshape x, or quantise another layer.")
        dtype = node.dtype
        if dtype not in (float32, float64):
            node = TABLE["cast"](node, dtype=float32)
        packed, scale = self._nodes()
        y = TABLE["quantized_linear"](node, packed, scale, features=self.rows,
                                      dynamic=self.config.dynamic)
        return wrap(y if y.dtype is dtype else TABLE["cast"](y, dtype=dtype))

    def look_up(self, index: Tensor) -> Tensor:
        """Rows by number: int (…) to float32 (…, K).

        Raises:
            IndexingError: a number is not in [-N, N).
        """
        config, (tiles, quads) = self.config, self.packed.shape[:2]
        index = index.to(int64)
        # Numbers of padded rows are not the user's: make them fall out of the table.
        row = gf.where(index < 0, index + self.rows, index)
        row = gf.where(row < self.rows, row, tiles * TILE)
        tile, lane = (row // TILE)[..., None], (row % TILE)[..., None]
        k = gf.arange(self.columns)
        quad, half = k // 4, None
        if config.bits == 4:
            quad, half = k // BLOCK * 4 + k % 16 // 4, k % BLOCK // 16
        place = (tile * quads + quad) * (TILE * 4) + lane * 4 + k % 4
        codes = self.packed.flatten()[place]
        if half is not None:
            codes = ((codes >> (half * 4).to(uint8)) & 15).to(float32) - 8
        groups = self.scale.shape[1]
        size = quads * (32 // config.bits) // groups
        scale = self.scale.flatten()[(tile * groups + k // size) * TILE + lane]
        return codes.to(float32) * scale.to(float32)

    def _nodes(self) -> list[Any]:
        return [node_of(t, "quantized weight") for t in (self.packed, self.scale)]

    def extra_repr(self) -> str:
        c = self.config
        group = f", group_size={c.group_size}" if c.group_size else ", one scale a row"
        return (f"{self.rows}, {self.columns}, bits={c.bits}{group}, "
                f"scale_dtype={c.scale_dtype.name}")


class QuantizedLinear(Module):
    """y = x·Wᵀ + b with a packed W.

    Args:
        in_features, out_features: extents of the last dimension before and after.
        bias: whether there is a b.
        config: the scheme.

    Shape: (..., in_features) to (..., out_features).
    """

    weight: PackedWeight
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *,
                 config: QuantizationConfig) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = PackedWeight(out_features, in_features, config)
        self.register_buffer("bias", gf.zeros(out_features) if bias else None)

    @classmethod
    def from_float(cls, layer: Linear, config: QuantizationConfig,
                   weight: PackedWeight | None = None) -> QuantizedLinear:
        """The quantised twin of a layer; `weight`, if its weight is packed already."""
        made = cls.__new__(cls)
        Module.__init__(made)
        made.in_features, made.out_features = layer.in_features, layer.out_features
        made.weight = weight or PackedWeight.from_float(layer.weight, config)
        made.register_buffer("bias", None if layer.bias is None else layer.bias.detach())
        made.train(layer.training)
        return made

    def forward(self, input: Tensor) -> Tensor:
        y = self.weight.product(input)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return (f"in_features={self.in_features}, out_features={self.out_features}, "
                f"bias={self.bias is not None}, dynamic={self.weight.config.dynamic}")


class QuantizedEmbedding(Module):
    """y = W[input] for a packed W: integers (...) to float32 (..., embedding_dim)."""

    weight: PackedWeight

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.weight = weight

    def forward(self, input: Tensor) -> Tensor:
        return self.weight.look_up(input)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


def quantize_(model: Module, config: QuantizationConfig,
              filter_fn: Callable[[Module, str], bool] | None = None) -> Module:
    """Replace the linear layers of a model by quantised ones, in place.

    An embedding whose weight is that of a replaced layer (a tied output layer) shares the packed
    weight; other embeddings stay, because only a few of their rows are read.

    Args:
        model: a trained model. Its replaced weights are no parameters any more.
        config: the scheme, such as `Int8WeightOnlyConfig()`.
        filter_fn: (module, its name) -> whether to replace it; default: every `nn.Linear`.

    Returns:
        The model.

    Raises:
        TypeError: `config` is no scheme, or the model itself is the layer to replace.

    Cost: one pass over the weights.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        >>> _ = quantize_(model, Int8WeightOnlyConfig())
        >>> model(gs.ones(5, 64)).shape
        gossamer.Size([5, 8])
    """
    if not isinstance(config, QuantizationConfig):
        raise TypeError(f"quantize_(config={config!r}): it must be a scheme. Pass "
                        "Int8WeightOnlyConfig() or another one of gossamer.quantization.")
    if isinstance(model, Linear):
        raise TypeError("quantize_: the model is itself a Linear, which cannot be replaced in "
                        "place. Use QuantizedLinear.from_float(layer, config).")
    packed: dict[int, tuple[Any, PackedWeight]] = {}  # by identity of the parameter, kept alive
    for parent, name, child, path in _children(model):
        if isinstance(child, Linear) and (filter_fn is None or filter_fn(child, path)):
            known = packed.get(id(child.weight))
            made = QuantizedLinear.from_float(child, config, known[1] if known else None)
            packed[id(child.weight)] = child.weight, made.weight
            setattr(parent, name, made)
    for parent, name, child, _ in _children(model):
        if isinstance(child, Embedding) and id(child.weight) in packed:
            setattr(parent, name, QuantizedEmbedding(packed[id(child.weight)][1]))
    return model


def _children(model: Module) -> list[tuple[Module, str, Module, str]]:
    """(parent, name, child, path) of every module below."""
    return [(parent, name, child, f"{path}.{name}" if path else name)
            for path, parent in model.named_modules()
            for name, child in parent.named_children()]
