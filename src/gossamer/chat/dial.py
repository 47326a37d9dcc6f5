"""One dial: from the minutes, or a depth, everything else of a run follows. Layer 7.

    tokens of the run   D = seconds * FLOP/s of this machine / FLOPs of a token
    depth               the deepest whose D is at least 4 tokens a matrix parameter
    width, heads        32 * depth, one head for every 32
    tokens of a step    B = 2,048 * 2^round(log2((D / D0)^0.383)), never less than 2,048
    learning rates      of all: * sqrt(B / B0); of embedding and head: * (width / 128)^-0.5
    weight decay        * sqrt(B / B0) * D0 / D

B0 and D0 are those of the ten minutes on two cores for which all constants were measured, so there
every factor is 1. Rates are what the doctor measures, times the share that training reaches.

Source: nanochat's scaling rules (base_train.py: Power Lines, arXiv 2505.13738; T_epoch, arXiv
2405.13698), anchored at our run instead of at twelve layers of 768.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import gossamer as gs
from gossamer.chat.train import MATRIX_LR, TrainSettings
from gossamer.models.gpt import SWITCHES, GPTConfig

__all__ = ["Dial", "chosen_dtype", "switched", "training_rate", "turn"]

HEAD = 32  # width of a head: at 128 to 512 wide, narrow heads in number beat few of nanochat's 128
SHALLOWEST, DEEPEST, STEP = 4, 32, 2  # layers; even depths have value embeddings in half of them
# Tokens a matrix parameter. nanochat trains 8 to 12 on the open web; text of a small world needs
# fewer of them and gains more by depth (two-hop stories): an hour on two cores is six layers.
TOKENS_PER_PARAMETER = 4
REFERENCE_MINUTES, REFERENCE_WIDTH = 10.0, 128
REFERENCE_RATE = 107e9  # FLOP/s of that run
REFERENCE_BATCH = 2048  # tokens: 8 rows of 256
REFERENCE_TOKENS = 8.6e6  # 4,197 steps in ten quiet minutes (docs/log.md)
BATCH_EXPONENT = 0.383  # best batch ~ D^0.383: Power Lines, as nanochat uses it
# Share of the peak rate of float32 products that a training step reaches (107 of 231 GFLOP/s, two
# cores of Zen 4), and what bfloat16 products make of it where they are twice as fast: 1.5.
SHARE, LOW_GAIN = 0.46, 0.5
MEASURED_FROM = 1.0  # minutes
LOW_PAYS = 1.3  # peak of bfloat16 over float32 from which the conversions are worth their time
# Tokens of a row up to 4 layers (questions and short tales), and of deeper models. Tokens of the
# vocabulary up to 6 layers, and of deeper models or where a person's own text is read: with 2,048
# at 6 layers whole words were tokens that no question had spelled, and unseen words were spelled
# right in .92 of the questions.
ROWS = (256, 512)
VOCABULARIES, SMALL_WORLD = (1024, 2048), 6


@dataclass(frozen=True)
class Dial:
    """What follows from the minutes.

    Args:
        depth: layers.
        tokens: that the run is foreseen to see (D).
        own_text: whether a person's own text is read besides.
        dtype: of products, "float32" or "bfloat16".
    """

    depth: int
    tokens: int
    own_text: bool = False
    dtype: str = "float32"

    @property
    def vocabulary(self) -> int:
        """Tokens of the tokenizer."""
        return VOCABULARIES[self.own_text or self.depth > SMALL_WORLD]

    @property
    def batch_tokens(self) -> int:
        """Tokens of a step (B)."""
        ideal = math.log2(max(self.tokens, 1) / REFERENCE_TOKENS) * BATCH_EXPONENT
        return REFERENCE_BATCH * 2 ** max(0, round(ideal))

    def config(self, vocab_size: int = 0, *, off: Iterable[str] = (),
               on: Iterable[str] = ()) -> GPTConfig:
        """Sizes of the model; `off` and `on` name the switches to turn.

        >>> Dial(4, 8_600_000).config()
        GPTConfig(vocab_size=1024, n_layer=4, n_head=4, n_kv_head=0, n_embd=128, sequence_len=256, \
rotary=True, qk_norm=True, relu2=True, value_embeddings=True, smear=True, untied=True, \
padded_head=True, layer_scalars=False, backout=False, softcap=0.0, windows='L')
        """
        row = ROWS[self.depth > SHALLOWEST]
        sizes = GPTConfig(vocab_size or self.vocabulary, self.depth, self.depth, 0,
                          HEAD * self.depth, row)
        return switched(sizes, off, on)

    def settings(self, base: TrainSettings, config: GPTConfig) -> TrainSettings:
        """`base`, whose rates are those of the reference, for a model of this size."""
        batch = self.batch_tokens / REFERENCE_BATCH
        rate = math.sqrt(batch)  # Adam and Muon: noise of the gradient falls with sqrt(B)
        narrow = rate * (config.n_embd / REFERENCE_WIDTH) ** -0.5  # nanochat: (width / 768)^-0.5
        matrix_lr = base.matrix_lr or MATRIX_LR[base.optimizer]
        return replace(
            base, dtype=self.dtype, batch_size=max(1, self.batch_tokens // config.sequence_len),
            matrix_lr=matrix_lr * rate, embedding_lr=base.embedding_lr * narrow,
            head_lr=base.head_lr * narrow,
            weight_decay=base.weight_decay * rate * REFERENCE_TOKENS / max(self.tokens, 1),
        )


def turn(minutes: float, depth: int = 0, *, tokens: int = 0, steps: int = 0,
         own_text: bool = False, dtype: str = "auto", rate: float = 0.0) -> Dial:
    """Everything that follows from the minutes.

    Up to ten of them nothing is left to the machine but the dtype: so long is the run that is
    compared between machines.

    Args:
        minutes: of training.
        depth: layers; 0 = the deepest that sees enough tokens.
        tokens: that the run will see, if that is known; 0 = by the rate.
        steps: of the run, if they set its length.
        own_text: whether a person's own text is read besides.
        dtype: of products; "auto" = what the machine is faster at.
        rate: FLOP/s of training; 0 = as measured.

    Raises:
        ValueError: no such dtype.

    >>> turn(10).depth, turn(60, dtype="float32", rate=107e9).depth
    (4, 6)
    """
    dtype = chosen_dtype(dtype, minutes)
    if not rate:
        known = minutes <= REFERENCE_MINUTES or (depth and (tokens or steps))
        rate = REFERENCE_RATE if known else training_rate(dtype)
    budget = 60.0 * minutes * rate
    tokens = tokens or steps * REFERENCE_BATCH

    def seen(layers: int) -> int:
        return int(budget / Dial(layers, 0).config().flops_per_token)

    if not depth:
        fitting = [n for n in range(SHALLOWEST + STEP, DEEPEST + 1, STEP)
                   if seen(n) >= TOKENS_PER_PARAMETER * Dial(n, 0).config().matrix_count]
        depth = max(fitting, default=SHALLOWEST)
    return Dial(depth, tokens or max(seen(depth), 1), own_text, dtype)


def training_rate(dtype: str = "float32") -> float:
    """FLOP/s that training reaches on this machine, all threads together.

    Cost: 2 s the first time on a machine, nothing later.
    """
    flops = gs.insight.peaks().flops
    gain = flops.get("bfloat16", 0.0) / flops["float32"] - 1.0 if dtype == "bfloat16" else 0.0
    return SHARE * flops["float32"] * (1.0 + LOW_GAIN * max(0.0, gain))


def chosen_dtype(wanted: str = "auto", minutes: float = 10.0) -> str:
    """The dtype of products: as wanted, or what this machine is faster at.

    A run of seconds is over before a measurement pays: "auto" is float32 there.

    Raises:
        ValueError: neither "auto", "float32" nor "bfloat16".
    """
    if wanted in ("float32", "bfloat16"):
        return wanted
    if wanted != "auto":
        raise ValueError(f"--dtype {wanted}: products are in float32 or bfloat16; auto takes the "
                         "one that this machine is faster at.")
    if minutes < MEASURED_FROM:
        return "float32"
    flops = gs.insight.peaks().flops
    return "bfloat16" if flops.get("bfloat16", 0.0) > LOW_PAYS * flops["float32"] else "float32"


def switched(config: GPTConfig, off: Iterable[str] = (), on: Iterable[str] = ()) -> GPTConfig:
    """The same sizes with features of the model off or on, for ablations.

    Raises:
        ValueError: there is no such switch, or it is to be both.
    """
    off, on = tuple(off), tuple(on)
    for flag, names, others in (("--without", off, on), ("--with", on, ())):
        for name in names:
            if name not in SWITCHES:
                raise ValueError(f"{flag} {name}: there is no such feature of the model. It has "
                                 f"{', '.join(SWITCHES)}.")
            if name in others:
                raise ValueError(f"{flag} {name} --with {name}: it is either off or on. Leave one "
                                 "out.")
    values = {SWITCHES[name][0]: SWITCHES[name][1] for name in off}
    values |= {SWITCHES[name][0]: SWITCHES[name][2] for name in on}
    return replace(config, **values)
