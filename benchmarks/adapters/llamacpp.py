"""llama.cpp through xllamacpp: a server inside the process that continues a list of tokens.

It reads models from files only, so `write_gguf` makes one of the same weights. The wheel's build is
for AVX2; weights of 4 bits are repacked for it when they are loaded.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adapters.base import Arrays, Model, Task

__all__ = ["LlamaCpp", "adapter", "write_gguf"]

_NAMES = {"attention.wq": "attn_q", "attention.wk": "attn_k", "attention.wv": "attn_v",
          "attention.wo": "attn_output", "feed_forward.w1": "ffn_gate",
          "feed_forward.w2": "ffn_down", "feed_forward.w3": "ffn_up",
          "attention_norm": "attn_norm", "ffn_norm": "ffn_norm"}
_KINDS = {"float32": ("F32", 0), "bfloat16": ("BF16", 32), "int8": ("Q8_0", 7), "int4": ("Q4_0", 2)}


def write_gguf(path: Path, p: Arrays, size: Mapping[str, int], dtype: str) -> None:
    """A Llama with a tied head, by the names of `models/llama.py`; matrices in `dtype`."""
    gguf = importlib.import_module("gguf")
    kind, file_type = _KINDS[dtype]
    kind = getattr(gguf.GGMLQuantizationType, kind)
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(size["context"])
    w.add_embedding_length(size["dim"])
    w.add_block_count(size["layers"])
    w.add_feed_forward_length(size["hidden"])
    w.add_head_count(size["heads"])
    w.add_head_count_kv(size["kv_heads"])
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(size["dim"] // size["heads"])
    w.add_vocab_size(size["vocab"])
    w.add_file_type(file_type)
    _add_tokens(w, size["vocab"])
    for name, array in p.items():
        to = {"tok_embeddings.weight": "token_embd.weight", "norm.weight": "output_norm.weight",
              }.get(name) or _layer_name(name)
        if array.ndim == 2 and dtype != "float32":
            w.add_tensor(to, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            w.add_tensor(to, array)
    for step in (w.write_header_to_file, w.write_kv_data_to_file, w.write_tensors_to_file, w.close):
        step()


def _layer_name(name: str) -> str:
    _, number, rest = name.split(".", 2)
    return f"blk.{number}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def _add_tokens(w: Any, count: int) -> None:
    """A vocabulary of which nothing is asked but to exist: three marks, bytes, then words."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    types = [2, 3, 3, *[6] * 256]  # unknown, control, control, bytes
    tokens += [f"t{i}" for i in range(len(tokens), count)]
    w.add_tokenizer_model("llama")
    w.add_token_list(tokens[:count])
    w.add_token_scores([0.0] * count)
    w.add_token_types((types + [1] * count)[:count])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(False)


class LlamaCpp:
    """`xllamacpp` behind the part of the protocol `Adapter` that decoding needs."""

    family = "llamacpp"

    def __init__(self, package: str, threads: int) -> None:
        self.lib = importlib.import_module(package)
        self.version = importlib.metadata.version(package)
        self.threads = threads
        self._server: Any = None

    def load(self, path: Path, context: int) -> None:
        """Start a server for one conversation."""
        p = self.lib.CommonParams()
        p.model.path = str(path)
        p.n_ctx, p.n_parallel, p.warmup, p.verbosity = context, 1, True, -1
        for cpu in (p.cpuparams, p.cpuparams_batch):
            if self.threads:
                cpu.n_threads = self.threads
        self._server = self.lib.Server(p)

    def complete(self, tokens: list[int], count: int, **more: Any) -> dict[str, Any]:
        """`count` further tokens, greedily; nothing is kept between calls."""
        answer = self._server.handle_completions({
            "prompt": tokens, "n_predict": count, "temperature": 0, "ignore_eos": True,
            "cache_prompt": False, "stream": False, **more})
        made: dict[str, Any] = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
        return made

    def scores(self, tokens: list[int], count: int) -> np.ndarray:
        """The largest `count` log-probabilities of the next token, in order."""
        answer = self.complete(tokens, 1, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0,
                               n_probs=count)
        listed = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return np.array([x["logprob"] for x in listed])

    def tensor(self, array: np.ndarray) -> Any:
        raise NotImplementedError(f"llama.cpp takes no array of shape {array.shape}: only models")

    def numpy(self, result: Any) -> np.ndarray:
        return np.asarray(result)

    def wait(self, result: Any) -> Any:
        return result

    def train(self, model: Model, p: Arrays, inputs: list[np.ndarray], optimizer: str,
              lr: float, dtype: str = "float32") -> Task:
        raise NotImplementedError("llama.cpp does not train here")

    def forward(self, model: Model, p: Arrays, inputs: list[np.ndarray]) -> Task:
        raise NotImplementedError("llama.cpp runs only `decode`")

    def gradient(self, model: Model, p: Arrays, inputs: list[np.ndarray]) -> Task:
        raise NotImplementedError("llama.cpp has no gradients")


def adapter(package: str, compiled: bool, threads: int) -> LlamaCpp:
    """`threads` 0 leaves llama.cpp's own choice."""
    return LlamaCpp(package, threads)
