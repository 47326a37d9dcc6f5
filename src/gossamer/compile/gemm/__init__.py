"""Matrix products: one packed, register-tiled kernel for every shape and stride. Layer 2.

`gemm` returns the calls of C = A B. Read in this order: `operands` (what can be multiplied),
`target` (the micro-tile), `micro` (registers), `pack` (the order in memory), `core` (the loops),
`plan` (the sizes of blocks), `low` (16-bit numbers).
"""

from gossamer.compile.gemm.low import Stored, low_gemm
from gossamer.compile.gemm.operands import Epilogue, Operand, Output, Packed
from gossamer.compile.gemm.plan import gemm
from gossamer.compile.gemm.target import Target, low_products

__all__ = ["Epilogue", "Operand", "Output", "Packed", "Stored", "Target", "gemm", "low_gemm",
           "low_products"]
