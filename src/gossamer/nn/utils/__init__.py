"""Helpers around parameters: clipping, flattening into one vector, padding sequences. Layer 5."""

from gossamer.nn.utils.clip import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)
from gossamer.nn.utils.rnn import pad_sequence, unpad_sequence
from gossamer.nn.utils.vector import parameters_to_vector, vector_to_parameters

__all__ = ["clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm",
           "pad_sequence", "parameters_to_vector", "unpad_sequence", "vector_to_parameters"]
