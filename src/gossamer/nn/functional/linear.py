"""Affine maps, embeddings and one-hot codes. Layer 5."""

from __future__ import annotations

import gossamer.functional as gf
from gossamer.casting import lower_precision
from gossamer.core.dtype import int64
from gossamer.core.errors import DTypeError, ShapeError
from gossamer.nn.functional.common import checked_index, first_max, shape_of
from gossamer.tensor import Tensor, no_grad

__all__ = ["bilinear", "embedding", "embedding_bag", "linear", "one_hot"]


@lower_precision
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x·Wᵀ + b.

    Args:
        input: (..., in_features).
        weight: (out_features, in_features), or (in_features,) for one output without its dimension.
        bias: (out_features) or None.

    Returns:
        (..., out_features).

    Raises:
        ShapeError: the last dimension of the input is not in_features.

    Cost: 2·batch·in·out FLOPs.
    """
    if input.dim() == 0 or weight.dim() not in (1, 2) or input.shape[-1] != weight.shape[-1]:
        features = weight.shape[-1] if weight.dim() else "?"
        raise ShapeError(
            f"linear (in_features={features}): x has shape {shape_of(input)}, the weight "
            f"{shape_of(weight)}; the last dimension of x must be {features}. Build the layer with "
            f"in_features={input.shape[-1] if input.dim() else 1} or reshape x.")
    y = input.matmul(weight.t() if weight.dim() == 2 else weight)
    return y if bias is None else y + bias


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y[o] = x1ᵀ·W[o]·x2 + b[o].

    Args:
        input1, input2: (..., in1) and (..., in2) with equal leading dimensions.
        weight: (out, in1, in2).

    Returns:
        (..., out).
    """
    out, in1, in2 = weight.shape
    if input1.shape[-1] != in1 or input2.shape[-1] != in2 or input1.shape[:-1] != input2.shape[:-1]:
        raise ShapeError(f"bilinear: inputs {shape_of(input1)} and {shape_of(input2)}, weight "
                         f"{shape_of(weight)}; the inputs must be (..., {in1}) and (..., {in2}) "
                         "with equal leading dimensions.")
    lead = shape_of(input1)[:-1]
    half = input1.matmul(weight.permute(1, 0, 2).reshape(in1, out * in2)).reshape(*lead, out, in2)
    y = (half * input2.unsqueeze(-2)).sum(-1)
    return y if bias is None else y + bias


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None,
              max_norm: float | None = None, norm_type: float = 2.0,
              scale_grad_by_freq: bool = False, sparse: bool = False) -> Tensor:
    """Rows of a table: y = W[input].

    Args:
        input: integers of any shape (S), each in [0, V).
        weight: (V, D).
        padding_idx: a row that gets no gradient; negative counts from the end.
        max_norm: rows that are read and longer than this are shortened in place first.
        scale_grad_by_freq: divide a row's gradient by how often the batch reads it.
        sparse: accepted for compatibility; gradients are dense.

    Returns:
        (*S, D).

    Raises:
        ShapeError: the weight is not a matrix; `padding_idx` outside the table.
        DTypeError: the input is not integer.
    """
    if weight.dim() != 2:
        raise ShapeError(f"embedding: 'weight' must be 2-D, but it has shape {shape_of(weight)}.")
    _need_integers("embedding", input)
    rows = weight.shape[0]
    if padding_idx is not None:
        if not -rows <= padding_idx < rows:
            raise ShapeError(f"embedding: padding_idx={padding_idx} must be within num_embeddings="
                             f"{rows}.")
        padding_idx %= rows
    if max_norm is not None:
        _shorten_rows(weight, input, max_norm, norm_type)
    y = weight[checked_index(input, rows)]
    if scale_grad_by_freq:
        flat = input.reshape(-1)
        counts = gf.zeros(rows, dtype=weight.dtype).index_add(
            0, flat, gf.ones(flat.shape[0], dtype=weight.dtype))
        frozen = y.detach()
        y = frozen + (y - frozen) / counts[input].unsqueeze(-1)
    if padding_idx is not None:
        y = gf.where((input == padding_idx).unsqueeze(-1), y.detach(), y)
    return y


def _need_integers(name: str, input: Tensor) -> None:
    if input.dtype.is_floating_point or "bool" in str(input.dtype):
        raise DTypeError(f"{name}: the indices are {input.dtype}; they must be int64 or int32. "
                         "Convert them with .long().")


def _shorten_rows(weight: Tensor, input: Tensor, max_norm: float, norm_type: float) -> None:
    with no_grad():
        norms = weight.norm(norm_type, dim=1)
        reads = gf.zeros_like(norms).index_add(
            0, input.reshape(-1), gf.ones(input.numel(), dtype=norms.dtype))
        # 1e-7 as in PyTorch's renorm, so that the result is never above max_norm
        scale = gf.where((reads > 0) & (norms > max_norm), max_norm / (norms + 1e-7),
                         gf.ones_like(norms))
        weight.mul_(scale.unsqueeze(-1))


def embedding_bag(input: Tensor, weight: Tensor, offsets: Tensor | None = None,
                  max_norm: float | None = None, norm_type: float = 2.0,
                  scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False,
                  per_sample_weights: Tensor | None = None, include_last_offset: bool = False,
                  padding_idx: int | None = None) -> Tensor:
    """Sums, means or maxima of embeddings over bags of indices.

    Args:
        input: (B, N): one bag per row; or (N) with `offsets` (B): where each bag starts.
        weight: (V, D).
        mode: "sum", "mean" or "max". `per_sample_weights` (shaped as input) only with "sum".
        include_last_offset: offsets has B + 1 entries, the last one the end.
        padding_idx: an index that is left out of its bag.

    Returns:
        (B, D); an empty bag gives zeros.
    """
    if mode not in ("sum", "mean", "max"):
        raise ValueError(f"embedding_bag: mode={mode!r} has to be one of sum, mean or max.")
    if per_sample_weights is not None and mode != "sum":
        raise NotImplementedError("embedding_bag: per_sample_weights is only supported for "
                                  f"mode='sum' (got mode={mode!r}).")
    if per_sample_weights is not None and per_sample_weights.shape != input.shape:
        raise ShapeError(f"embedding_bag: per_sample_weights {shape_of(per_sample_weights)} must "
                         f"have the shape of input {shape_of(input)}.")
    bags, length = _bags(input, offsets, include_last_offset)
    flat = input.reshape(-1)
    rows = embedding(flat, weight, None, max_norm, norm_type, scale_grad_by_freq)  # (N, D)
    keep = gf.ones_like(flat) > 0 if padding_idx is None else flat != padding_idx % weight.shape[0]
    if mode == "max":
        return _bag_max(rows, bags, keep, length)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1, 1)
    rows = gf.where(keep.unsqueeze(-1), rows, gf.zeros_like(rows))
    total = gf.zeros(length, weight.shape[1], dtype=rows.dtype).index_add(0, bags, rows)
    if mode == "sum":
        return total
    counts = gf.zeros(length, dtype=rows.dtype).index_add(0, bags, keep.to(rows.dtype))
    return total / counts.clamp(min=1).unsqueeze(-1)


def _bag_max(rows: Tensor, bags: Tensor, keep: Tensor, length: int) -> Tensor:
    """Maximum over each bag, (B, D); rows (N, D). Cost: B·N·D comparisons."""
    if rows.shape[0] == 0:
        return gf.zeros(length, rows.shape[1], dtype=rows.dtype)
    inside = (bags == gf.arange(length).unsqueeze(-1)) & keep  # (B, N)
    low = gf.full((), float("-inf"), dtype=rows.dtype)
    best, _ = first_max(gf.where(inside.unsqueeze(1), rows.t().unsqueeze(0), low))
    return gf.where(inside.any(-1).unsqueeze(-1), best, gf.zeros_like(best))


def _bags(input: Tensor, offsets: Tensor | None, include_last: bool) -> tuple[Tensor, int]:
    """Bag number of each flattened index, and the number of bags."""
    _need_integers("embedding_bag", input)
    if input.dim() == 2:
        if offsets is not None:
            raise ValueError("embedding_bag: if input is 2D, then offsets has to be None, as input "
                             "is treated as a mini-batch of fixed length sequences.")
        b, n = input.shape
        return gf.arange(b).unsqueeze(1).expand(b, n).reshape(-1), b
    if input.dim() != 1 or offsets is None or offsets.dim() != 1:
        raise ShapeError(f"embedding_bag: the input has shape {shape_of(input)}; it must be 2-D, "
                         "or 1-D with 1-D offsets.")
    starts = offsets[:-1] if include_last else offsets
    after = gf.arange(input.shape[0]).unsqueeze(-1) >= starts  # (N, B)
    return after.sum(-1) - 1, starts.shape[0]


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """1 at the index, 0 elsewhere, along a new last dimension.

    Args:
        tensor: int64 of any shape (S).
        num_classes: extent of the new dimension; -1 takes the largest index + 1 (looks at values).

    Returns:
        int64 (*S, num_classes).
    """
    if tensor.dtype is not int64:
        raise DTypeError(f"one_hot: the indices are {tensor.dtype}; it is only applicable to index "
                         "tensors of type int64. Convert them with .long().")
    if num_classes == -1:
        if tensor.numel() == 0:
            raise ShapeError("one_hot: cannot infer the number of classes from an empty tensor. "
                             "Pass num_classes.")
        num_classes = int(tensor.max().item()) + 1
    elif num_classes < 1 and tensor.numel() == 0:
        raise ShapeError(f"one_hot: num_classes={num_classes} must be positive.")
    # reading a table makes an index outside the classes an error instead of a row of zeros
    valid = gf.arange(num_classes)[checked_index(tensor, num_classes)]
    return (valid.unsqueeze(-1) == gf.arange(num_classes)).to(int64)
