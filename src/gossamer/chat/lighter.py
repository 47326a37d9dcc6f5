"""A trained model with weights of 8 or 4 bits, and what that costs. Layer 7.

The one idea: decoding reads every weight once a round, so smaller weights are faster wherever the
model does not fit a cache; only the large matrices are packed, activations stay as they are.
"""

from __future__ import annotations

import math
from enum import StrEnum

import numpy as np

import gossamer as gs
from gossamer.chat.evaluate import Figure, question_set, to_conversation
from gossamer.chat.spread import ratio_error
from gossamer.chat.tasks import TASKS
from gossamer.chat.tokenizer import Tokenizer
from gossamer.models.gpt import GPT
from gossamer.nn import functional as F
from gossamer.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

__all__ = ["Weights", "lighten", "reply_bits"]

_SMALLEST = 32  # inputs of a layer that is worth packing; gates of value embeddings have 12
_QUESTIONS = 12  # a task


class Weights(StrEnum):
    """How the large matrices are held."""

    float32 = "float32"
    int8 = "int8"
    int4 = "int4"


def lighten(model: GPT, weights: Weights) -> GPT:
    """Pack the large matrices of a trained model, in place.

    Args:
        model: it can decode afterwards, but not be trained or saved as a checkpoint.
        weights: int8 has a scale a row, int4 one for every 32 weights; float32 changes nothing.

    Returns:
        The model.
    """
    if weights is not Weights.float32:
        scheme = Int8WeightOnlyConfig() if weights is Weights.int8 else Int4WeightOnlyConfig()
        quantize_(model, scheme, lambda layer, _: isinstance(layer, gs.nn.Linear)
                  and layer.in_features >= _SMALLEST)
    return model


def reply_bits(model: GPT, tokenizer: Tokenizer) -> Figure:
    """Bits per byte of the right replies to held-out questions of the tasks.

    Its standard error takes a reply as one draw.

    Cost: a forward pass over some hundred short conversations.
    """
    asked = question_set(TASKS, _QUESTIONS)
    bits, size = list[float](), list[float]()
    for questions in asked.values():
        ids = np.full((_QUESTIONS, model.config.sequence_len + 1), tokenizer.bos, np.int64)
        counted = np.zeros(ids.shape, np.bool_)
        for row, question in enumerate(questions):
            words, mask = tokenizer.render(to_conversation(question))
            words = words[: ids.shape[1]]
            ids[row, : len(words)], counted[row, : len(words)] = words, mask[: len(words)]
        with gs.no_grad():
            logits = model(gs.tensor(ids[:, :-1]))
            nats = F.cross_entropy(logits.reshape(-1, logits.shape[-1]),
                                   gs.tensor(ids[:, 1:].reshape(-1)), reduction="none").numpy()
        said = counted[:, 1:]
        bits += ((nats.reshape(said.shape) * said).sum(axis=1) / math.log(2)).tolist()
        size += (tokenizer.bytes_per_token[ids[:, 1:]] * said).sum(axis=1).tolist()
    return Figure("bits per byte", math.fsum(bits) / math.fsum(size), ratio_error(bits, size))
