"""Byte-level byte-pair tokenizer of a chat model, and how a conversation becomes ids. Layer 7.

Trained with Hugging Face `tokenizers` and kept in one `tokenizer.json`. In small vocabularies each
digit is a token, so that columns line up for arithmetic. Special tokens come only from `render`:
text that spells one out is encoded as the characters it is made of. A rendered conversation has a
mask that is 1 exactly on what the assistant must produce (its words and its end token).

Source: the split pattern is GPT-4's with one digit a piece; an apostrophe belongs to a contraction
only where the word ends there (so `'scatter'` is not `'s` + `catter`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence as Chain, Split
from tokenizers.trainers import BpeTrainer

from gossamer.chat.document import mended
from gossamer.chat.message import Content, Message, pieces_of
from gossamer.core.errors import CheckpointError

__all__ = ["BYTE_NAMES", "SPECIALS", "Rendered", "Tokenizer", "split_pattern"]

# From this vocabulary on two digits are one piece: at 32,768 nanochat measured 0.965 bits per byte
# with them and 0.969 with one (its log); below, columns that line up are worth more.
TWO_DIGITS_FROM = 32_768
SPECIALS = (
    "<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>",
    "<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>",
)
# Characters from which on other threads may run meanwhile: `encode` holds the interpreter's lock to
# the end (a second for a megabyte), `encode_batch` gives it up but costs more to begin.
_LONG = 1 << 14
_SMALLEST_VOCABULARY = 256 + len(SPECIALS)


def _byte_names() -> dict[str, int]:
    """Byte-level tokens are written with one printable character a byte: itself where it is
    printable in Latin-1, else the next free one from U+0100 on (Radford et al. 2019)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return ({chr(byte): byte for byte in plain}
            | {chr(0x100 + n): byte for n, byte in enumerate(others)})


BYTE_NAMES = _byte_names()
Rendered = tuple[list[int], list[int]]  # token ids and their mask (1 = supervised)


def split_pattern(digits: int) -> str:
    """The pattern that cuts text into the pieces no token crosses.

    Args:
        digits: most digits of a piece.
    """
    return (r"'(?i:[sdmt]|ll|ve|re)(?!\p{L})|[^\r\n\p{L}\p{N}]?+\p{L}+"
            r"|\p{N}" + (f"{{1,{digits}}}" if digits > 1 else "") +
            r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")


class Tokenizer:
    """Text to token ids and back.

    Args:
        backend: a trained `tokenizers.Tokenizer` that has every token of SPECIALS.

    Attributes:
        special: id of each of SPECIALS.
    """

    def __init__(self, backend: Backend) -> None:
        special = {s: i for s in SPECIALS if (i := backend.token_to_id(s)) is not None}
        missing = [s for s in SPECIALS if s not in special]
        if missing:
            raise CheckpointError(
                f"Tokenizer: the vocabulary lacks {', '.join(missing)}; a chat model needs all "
                f"{len(SPECIALS)} special tokens. Use the tokenizer.json beside the checkpoint."
            )
        vocabulary = backend.get_vocab()
        if not BYTE_NAMES.keys() <= vocabulary.keys():
            raise CheckpointError(
                f"Tokenizer: {len(BYTE_NAMES.keys() - vocabulary.keys())} of the 256 bytes have no "
                "token, so some text could not be written. Use the tokenizer.json beside the "
                "checkpoint, or `gossamer tok train`."
            )
        backend.encode_special_tokens = True  # text never becomes a special token
        self._backend, self.special = backend, special
        self.bos = special["<|bos|>"]
        self.user_start, self.user_end = special["<|user_start|>"], special["<|user_end|>"]
        self.assistant_start = special["<|assistant_start|>"]
        self.assistant_end = special["<|assistant_end|>"]
        self.python_start, self.python_end = special["<|python_start|>"], special["<|python_end|>"]
        self.output_start, self.output_end = special["<|output_start|>"], special["<|output_end|>"]
        self._marks: dict[str, tuple[list[int], list[int]]] = {
            "text": ([], []), "call": ([self.python_start], [self.python_end]),
            "output": ([self.output_start], [self.output_end])}

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int = 1024, digits: int | None = None,
    ) -> Tokenizer:
        """Learn the merges that shorten `texts` most.

        Args:
            texts: training text; words and digits are counted, order does not matter.
            vocab_size: tokens in all, at least 265 (256 bytes and the special tokens); fewer are
                made of a text that has no more pairs to merge.
            digits: most digits of a token; None = one, and two from TWO_DIGITS_FROM tokens on.

        Raises:
            ValueError: the vocabulary is too small to hold the bytes.

        Cost: about 0.5 s for 2 MB of text.
        """
        if vocab_size < _SMALLEST_VOCABULARY:
            raise ValueError(
                f"Tokenizer.train(vocab_size={vocab_size}): the {256} bytes and {len(SPECIALS)} "
                f"special tokens need {_SMALLEST_VOCABULARY}; ask for that many or more."
            )
        if digits is None:
            digits = 2 if vocab_size >= TWO_DIGITS_FROM else 1
        split = Split(Regex(split_pattern(digits)), behavior="isolated")
        backend = Backend(BPE())
        backend.pre_tokenizer = Chain([split, ByteLevel(add_prefix_space=False, use_regex=False)])
        backend.decoder = ByteLevelDecoder()
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(map(mended, texts), trainer)
        return cls(backend)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.json`.

        Raises:
            CheckpointError: the file is missing, damaged or not a chat tokenizer.
        """
        try:
            return cls(Backend.from_str(Path(path).read_text(encoding="utf-8")))
        except CheckpointError:
            raise
        except Exception as error:  # `tokenizers` raises bare Exception for damaged files
            raise CheckpointError(
                f"Tokenizer.load({str(path)!r}): {error}; the file must be a tokenizer.json as "
                "`save` wrote it. Take it from another checkpoint of the same run."
            ) from None

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`."""
        Path(path).write_text(self._backend.to_str(), encoding="utf-8")

    def to_json(self) -> str:
        """The whole tokenizer as the text of a `tokenizer.json`."""
        return self._backend.to_str()

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the special ones included."""
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a special token, whatever the text says.

        Half a surrogate pair (what Python makes of bytes that are no text) is read as U+FFFD.
        """
        text = mended(text)
        if len(text) > _LONG:
            return self._backend.encode_batch([text], add_special_tokens=False)[0].ids
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens show as their names, broken UTF-8 as U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes each id stands for; of a special token, its name."""
        found = [b""] * self.vocab_size
        for token, index in self._backend.get_vocab().items():
            found[index] = (token.encode() if token in SPECIALS
                            else bytes(BYTE_NAMES[character] for character in token))
        return found

    @cached_property
    def bytes_per_token(self) -> np.ndarray:
        """(V,) int64: how many bytes of text each id stands for; 0 for the special tokens."""
        sizes = np.array([len(b) for b in self.token_bytes], np.int64)
        sizes[[self.special[name] for name in SPECIALS]] = 0
        return sizes

    def render(self, conversation: Sequence[Message]) -> Rendered:
        """Ids and mask of a whole conversation.

        Args:
            conversation: turns that begin with the user's and alternate.

        Returns:
            Ids, and a mask of the same length: 1 on the assistant's words, its calls and its end
            token, 0 on what it is given: the user's turns and the calculator's outputs.

        Raises:
            ValueError: an unknown role, or two turns in a row by the same one.

        >>> ids, mask = Tokenizer.train(["hi there"], 265).render(
        ...     [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}])
        >>> mask
        [0, 0, 0, 0, 0, 0, 1, 1, 1]
        """
        ids, mask = [self.bos], [0]
        for turn, message in enumerate(conversation):
            expected = "assistant" if turn % 2 else "user"
            if message["role"] != expected:
                raise ValueError(
                    f"render: turn {turn} has role {message['role']!r}; turns alternate and begin "
                    f"with the user, so it must be {expected!r}. Merge or reorder the turns."
                )
            body, asked = self._render_content(message["content"])
            if turn % 2:
                ids += [self.assistant_start, *body, self.assistant_end]
                mask += [0, *asked, 1]
            else:
                ids += [self.user_start, *body, self.user_end]
                mask += [0] * (len(body) + 2)
        return ids, mask

    def _render_content(self, content: Content) -> Rendered:
        """Ids of one turn between its marks; an output is never the model's to produce."""
        ids, mask = list[int](), list[int]()
        for kind, text in pieces_of(content):
            first, last = self._marks[kind]
            body = [*first, *self.encode(text), *last]
            ids += body
            mask += [int(kind != "output")] * len(body)
        return ids, mask

    def render_prompt(self, conversation: Sequence[Message]) -> list[int]:
        """Ids of a conversation that ends with the user, ready for the assistant to go on."""
        return [*self.render(conversation)[0], self.assistant_start]

    def render_document(self, text: str) -> Rendered:
        """Ids and mask of plain text to read in pretraining: all of it supervised but the start."""
        body = self.encode(text)
        return [self.bos, *body], [0] + [1] * len(body)
