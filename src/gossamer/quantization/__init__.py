"""Weights of 4 and 8 bits for models that are trained already. Layer 5.

    gs.quantize_(model, Int4WeightOnlyConfig(group_size=32))

replaces every `nn.Linear` by one that keeps its weight packed and reads it so. Names are those of
PyTorch's torchao; the storage is described in `ops/quantized.py`.
"""

from gossamer.quantization.configs import (
    Int4WeightOnlyConfig as Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig as Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig as Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig as Int8WeightOnlyConfig,
    QuantizationConfig as QuantizationConfig,
)
from gossamer.quantization.modules import (
    PackedWeight as PackedWeight,
    QuantizedEmbedding as QuantizedEmbedding,
    QuantizedLinear as QuantizedLinear,
    quantize_ as quantize_,
)

__all__ = ["Int4WeightOnlyConfig", "Int8DynamicActivationInt4WeightConfig",
           "Int8DynamicActivationInt8WeightConfig", "Int8WeightOnlyConfig", "PackedWeight",
           "QuantizationConfig", "QuantizedEmbedding", "QuantizedLinear", "quantize_"]
