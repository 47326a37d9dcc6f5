"""Convolutions: thin names over the operators of the table. Layer 5."""

from __future__ import annotations

import gossamer.functional as gf

__all__ = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
           "conv_transpose3d"]

conv1d = gf.conv1d
conv2d = gf.conv2d
conv3d = gf.conv3d
conv_transpose1d = gf.conv_transpose1d
conv_transpose2d = gf.conv_transpose2d
conv_transpose3d = gf.conv_transpose3d
