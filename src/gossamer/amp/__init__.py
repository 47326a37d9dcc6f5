"""Mixed precision: `autocast` and `GradScaler`, with PyTorch's names. Layer 4.

Parameters stay float32 (the master weights); products compute in bfloat16 or float16. bfloat16 has
float32's range and needs no loss scaling; float16 does.

Source: Micikevicius et al., "Mixed Precision Training", 2018.
"""

from gossamer.amp.autocast import (
    autocast as autocast,
    custom_bwd as custom_bwd,
    custom_fwd as custom_fwd,
    is_autocast_available as is_autocast_available,
)
from gossamer.amp.grad_scaler import GradScaler as GradScaler

__all__ = ["GradScaler", "autocast", "custom_bwd", "custom_fwd", "is_autocast_available"]
