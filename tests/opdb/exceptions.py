"""Where the comparison is not the plain one, each row with its reason. Printed by `make opdb`.

A row is never a way to hide a wrong value: it says what cannot be compared, or what Gossamer
deliberately has not (complex numbers, unsigned integers above eight bits, sparse layouts).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# The fewest names that must pass; raised whenever more do, never lowered.
MINIMUM = 220

# Random or uninitialised results: the values cannot agree, so only shape and dtype are compared.
SHAPE_ONLY: dict[str, str] = {
    **dict.fromkeys(
        ("bernoulli", "cauchy", "exponential", "geometric", "log_normal", "multinomial", "normal",
         "rand_like", "randint", "randint_like", "randn", "randn_like", "uniform",
         "nn.functional.alpha_dropout", "nn.functional.dropout", "nn.functional.dropout2d",
         "nn.functional.dropout3d", "nn.functional.feature_alpha_dropout", "nn.functional.rrelu"),
        "random: another generator than PyTorch's"),
    **dict.fromkeys(
        ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty",
         "new_empty_strided", "resize_", "resize_as_"), "uninitialised memory"),
}

# name -> (rtol, atol, reason), where float32's 1e-4 and 1e-5 are too narrow for a sound reason.
TOLERANCE: dict[str, tuple[float, float, str]] = {}

# name -> (does this sample fall under the row?, reason); `args` and `kwargs` are the sample's, the
# input first.
Predicate = Callable[[list[Any], dict[str, Any]], bool]
SKIP_SAMPLE: dict[str, tuple[Predicate, str]] = {
    "nn.functional.scaled_dot_product_attention": (
        lambda args, kwargs: kwargs.get("dropout_p", 0.0) > 0.0, "random: attention dropout"),
}

# name -> (the sample's positional arguments as they are put to both sides, reason).
EDIT_SAMPLE: dict[str, tuple[Callable[[list[Any]], list[Any]], str]] = {
    "nn.functional.multi_head_attention_forward": (
        lambda args: [*args[:10], 0.0, *args[11:]], "dropout_p set to 0: its values are random"),
}

# name -> reason: first gradients are not compared (the values are).
NO_GRADIENT: dict[str, str] = {}

# name -> reason: a public name of ours that is not held against PyTorch's operator of that name.
NOT_THE_SAME: dict[str, str] = {}
