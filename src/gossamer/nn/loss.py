"""Loss layers: `nn.functional`'s losses with remembered arguments. Layer 5."""

from __future__ import annotations

from typing import Any

from gossamer.nn import functional as F
from gossamer.nn.module import Module
from gossamer.nn.stateless import Stateless
from gossamer.tensor import Tensor

__all__ = [
    "BCELoss", "BCEWithLogitsLoss", "CTCLoss", "CosineEmbeddingLoss", "CrossEntropyLoss",
    "GaussianNLLLoss", "HingeEmbeddingLoss", "HuberLoss", "KLDivLoss", "L1Loss", "MSELoss",
    "MarginRankingLoss", "MultiLabelMarginLoss", "MultiLabelSoftMarginLoss", "MultiMarginLoss",
    "NLLLoss", "NLLLoss2d", "PoissonNLLLoss", "SmoothL1Loss", "SoftMarginLoss", "TripletMarginLoss",
    "TripletMarginWithDistanceLoss",
]

_RETIRED = {"size_average": None, "reduce": None}


class _Loss(Stateless):
    _shown = ()


class L1Loss(_Loss):
    """|x - y|."""

    _function, _arguments = "l1_loss", {**_RETIRED, "reduction": "mean"}


class MSELoss(_Loss):
    """(x - y)²."""

    _function, _arguments = "mse_loss", {**_RETIRED, "reduction": "mean"}


class SmoothL1Loss(_Loss):
    """|x - y| with a quadratic part below beta."""

    _function = "smooth_l1_loss"
    _arguments = {**_RETIRED, "reduction": "mean", "beta": 1.0}


class HuberLoss(_Loss):
    """(x - y)²/2 below delta, linear above."""

    _function, _arguments = "huber_loss", {"reduction": "mean", "delta": 1.0}


class CrossEntropyLoss(_Loss):
    """-log softmax(x)[y]; see `functional.cross_entropy`.

    Args:
        weight: (C), one factor per class.
        ignore_index: a target that counts for nothing.
        label_smoothing: share of the target spread evenly over the classes.
    """

    _function = "cross_entropy"
    _arguments = {"weight": None, "size_average": None, "ignore_index": -100, "reduce": None,
                  "reduction": "mean", "label_smoothing": 0.0}
    _tensors = ("weight",)


class NLLLoss(_Loss):
    """-x[y], x being log-probabilities."""

    _function = "nll_loss"
    _arguments = {"weight": None, "size_average": None, "ignore_index": -100, "reduce": None,
                  "reduction": "mean"}
    _tensors = ("weight",)


class NLLLoss2d(NLLLoss):
    """`NLLLoss` under its older name for images."""


class BCELoss(_Loss):
    """-(y·log p + (1 - y)·log(1 - p))."""

    _function = "binary_cross_entropy"
    _arguments = {"weight": None, **_RETIRED, "reduction": "mean"}
    _tensors = ("weight",)


class BCEWithLogitsLoss(_Loss):
    """Binary cross entropy of σ(x), without overflow."""

    _function = "binary_cross_entropy_with_logits"
    _arguments = {"weight": None, **_RETIRED, "reduction": "mean", "pos_weight": None}
    _tensors = ("weight", "pos_weight")


class KLDivLoss(_Loss):
    """y·(log y - x), x being log-probabilities."""

    _function = "kl_div"
    _arguments = {**_RETIRED, "reduction": "mean", "log_target": False}


class PoissonNLLLoss(_Loss):
    """eˣ - y·x for a log rate x."""

    _function = "poisson_nll_loss"
    _arguments = {"log_input": True, "full": False, "size_average": None, "eps": 1e-8,
                  "reduce": None, "reduction": "mean"}


class GaussianNLLLoss(_Loss):
    """½·(log v + (x - y)²/v); called with input, target, var."""

    _function = "gaussian_nll_loss"
    _arguments = {"full": False, "eps": 1e-6, "reduction": "mean"}

    def __init__(self, *, full: bool = False, eps: float = 1e-6, reduction: str = "mean") -> None:
        super().__init__(full, eps, reduction)


class HingeEmbeddingLoss(_Loss):
    """x where y = 1, max(0, margin - x) where y = -1."""

    _function = "hinge_embedding_loss"
    _arguments = {"margin": 1.0, **_RETIRED, "reduction": "mean"}


class CosineEmbeddingLoss(_Loss):
    """1 - cos(x1, x2) where y = 1, max(0, cos - margin) where y = -1."""

    _function = "cosine_embedding_loss"
    _arguments = {"margin": 0.0, **_RETIRED, "reduction": "mean"}


class MarginRankingLoss(_Loss):
    """max(0, -y·(x1 - x2) + margin)."""

    _function = "margin_ranking_loss"
    _arguments = {"margin": 0.0, **_RETIRED, "reduction": "mean"}


class SoftMarginLoss(_Loss):
    """log(1 + e^(-y·x))."""

    _function, _arguments = "soft_margin_loss", {**_RETIRED, "reduction": "mean"}


class MultiLabelMarginLoss(_Loss):
    """Hinge between every label and every other class."""

    _function, _arguments = "multilabel_margin_loss", {**_RETIRED, "reduction": "mean"}


class MultiLabelSoftMarginLoss(_Loss):
    """Mean binary cross entropy over the classes."""

    _function = "multilabel_soft_margin_loss"
    _arguments = {"weight": None, **_RETIRED, "reduction": "mean"}
    _tensors = ("weight",)


class MultiMarginLoss(_Loss):
    """Hinge between the target class and every other one."""

    _function = "multi_margin_loss"
    _arguments = {"p": 1, "margin": 1.0, "weight": None, **_RETIRED, "reduction": "mean"}
    _tensors = ("weight",)


class TripletMarginLoss(_Loss):
    """max(0, ‖a - pos‖ - ‖a - neg‖ + margin)."""

    _function = "triplet_margin_loss"
    _arguments = {"margin": 1.0, "p": 2.0, "eps": 1e-6, "swap": False, **_RETIRED,
                  "reduction": "mean"}


class TripletMarginWithDistanceLoss(Module):
    """`TripletMarginLoss` with a distance of your own."""

    def __init__(self, *, distance_function: Any = None, margin: float = 1.0, swap: bool = False,
                 reduction: str = "mean") -> None:
        super().__init__()
        self.distance_function = distance_function
        self.margin, self.swap, self.reduction = margin, swap, reduction

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return F.triplet_margin_with_distance_loss(
            anchor, positive, negative, distance_function=self.distance_function,
            margin=self.margin, swap=self.swap, reduction=self.reduction)


class CTCLoss(_Loss):
    """-log probability of all alignments; called with log_probs, targets and both lengths."""

    _function = "ctc_loss"
    _arguments = {"blank": 0, "reduction": "mean", "zero_infinity": False}
