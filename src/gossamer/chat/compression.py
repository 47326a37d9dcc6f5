"""How many bytes of text a token holds, on texts of many kinds, beside other tokenizers. Layer 7.

More bytes a token mean fewer steps for the same text; fewer mean a smaller table and more meaning
of each entry. The others are read from the files their makers publish: ranks (`.tiktoken`, GPT-4's
and GPT-4o's), merges (`merges.txt` or `vocab.bpe`, GPT-2's) or a `tokenizer.json`.

Source: the split patterns are those of openai/tiktoken's registry; that a merge's rank is the only
thing its encoder needs is from there too.
"""

from __future__ import annotations

import base64
import binascii
import codecs
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from random import Random

from rich.console import Console
from rich.table import Column, Table
from tokenizers import Regex, Tokenizer as Backend
from tokenizers.pre_tokenizers import Split

from gossamer.chat.corpus import Corpus, find_shards
from gossamer.chat.document import text_of
from gossamer.chat.formats import FORMATS
from gossamer.chat.message import pieces_of
from gossamer.chat.task import sample
from gossamer.chat.tasks import TASKS
from gossamer.chat.tokenizer import BYTE_NAMES, Tokenizer
from gossamer.core.errors import DataError
from gossamer.data.safetensors import write_atomically

__all__ = ["Rival", "our_texts", "print_compression", "read_rival", "texts_of", "train_tokenizer"]

_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT4 = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}"
         r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s")
_CAPITALS, _SMALL = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_END = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (rf"[^\r\n\p{{L}}\p{{N}}]?[{_CAPITALS}]*[{_SMALL}]+{_END}"
          rf"|[^\r\n\p{{L}}\p{{N}}]?[{_CAPITALS}]+[{_SMALL}]*{_END}"
          r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_PUBLISHED = {  # by the number of ranks
    50_256: ("GPT-2", _GPT2), 100_256: ("GPT-4", _GPT4), 199_998: ("GPT-4o", _GPT4O)}
_MERGES = ("merges.txt", "vocab.bpe")
_QUESTIONS = 40  # of each task, in the row of what the model itself is asked
_OF_A_FILE = 1 << 20  # bytes of each of a person's files that are counted
_PIECES_KEPT = 1 << 16

Count = Callable[[str], int]  # tokens of a text


@dataclass(frozen=True)
class Rival:
    """Another tokenizer, as far as counting needs it.

    Args:
        name: what it is called.
        size: of its vocabulary, without special tokens.
        count: tokens of a text.
    """

    name: str
    size: int
    count: Count


def read_rival(path: str | Path) -> Rival:
    """A tokenizer from the file that its makers publish, or from the folder it lies in.

    Args:
        path: `*.tiktoken` or `*.bpe` with a rank a line, `merges.txt`, `vocab.bpe`, a `vocab.json`
            or `encoder.json` beside one of the two, or a `tokenizer.json`.

    Raises:
        DataError: there is no such file, or it is none of these.

    Cost: 0.1 s for 100,000 tokens.
    """
    path = _the_file(Path(path))
    try:
        if path.suffix == ".json":
            return _of_json(path)
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"--against {path}: it cannot be read ({error.strerror}). Check the path."
                        ) from None
    ranks = _tiktoken_ranks(path, data) or _merge_ranks(path, data)
    name, pattern = _PUBLISHED.get(len(ranks), (path.stem, _GPT4))
    return Rival(name, len(ranks), _counter(ranks, pattern))


def _the_file(path: Path) -> Path:
    folder = path if path.is_dir() else path.parent
    merges = [folder / name for name in _MERGES if (folder / name).is_file()]
    if path.is_dir():
        found = [*merges, *sorted(path.glob("*.tiktoken")), *path.glob("tokenizer.json")]
        if not found:
            raise DataError(f"--against {path}: the folder has no {', '.join(_MERGES)}, *.tiktoken "
                            "or tokenizer.json; name the file.")
        return found[0]
    if path.name in ("vocab.json", "encoder.json"):
        if not merges:
            raise DataError(f"--against {path}: the merges are not beside it; put {_MERGES[0]} or "
                            f"{_MERGES[1]} into {folder}.")
        return merges[0]
    return path


def _of_json(path: Path) -> Rival:
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # `tokenizers` raises bare Exception for damaged files
        if not path.is_file():
            raise DataError(f"--against {path}: there is no such file; check the path.") from None
        raise DataError(f"--against {path}: {error}; it must be a tokenizer.json. Check the path."
                        ) from None
    return Rival(path.parent.name or path.stem, backend.get_vocab_size(with_added_tokens=False),
                 lambda text: len(backend.encode(text, add_special_tokens=False).ids))


def _tiktoken_ranks(path: Path, data: bytes) -> dict[bytes, int]:
    """Lines of a token in base 64 and its rank; {} if the file is of another kind."""
    ranks = dict[bytes, int]()
    for line in data.splitlines():
        fields = line.split()
        if not fields:
            continue
        try:
            token, rank = fields
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            if ranks:
                raise DataError(f"--against {path}: line {len(ranks) + 1:,} is {line[:40]!r}; a "
                                "line is a token in base 64 and its rank. Fetch it again."
                                ) from None
            return {}
    return _with_all_bytes(path, ranks)


def _merge_ranks(path: Path, data: bytes) -> dict[bytes, int]:
    """Lines of two tokens that are joined; the 256 bytes come first."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    try:
        lines = data.decode("utf-8").splitlines()
        for line in lines[lines[0].startswith("#version"):]:
            if line:
                first, second = line.split(" ")
                token = bytes(BYTE_NAMES[character] for character in first + second)
                ranks.setdefault(token, len(ranks))
    except (ValueError, KeyError, IndexError):
        raise DataError(f"--against {path}: it has neither ranks (`IQ== 0`) nor merges (`th e`) of "
                        "a byte-level tokenizer; give a .tiktoken file, a merges.txt or a "
                        "tokenizer.json.") from None
    return ranks


def _with_all_bytes(path: Path, ranks: dict[bytes, int]) -> dict[bytes, int]:
    missing = sum(bytes([byte]) not in ranks for byte in range(256))
    if ranks and missing:
        raise DataError(f"--against {path}: {missing} of the 256 bytes have no rank; the file is "
                        "cut short. Fetch it again.")
    return ranks


def _counter(ranks: Mapping[bytes, int], pattern: str) -> Count:
    split = Split(Regex(pattern), behavior="isolated")

    @lru_cache(_PIECES_KEPT)
    def pieces(piece: str) -> int:
        return len(merged(piece.encode("utf-8", "replace"), ranks))

    return lambda text: sum(pieces(piece) for piece, _ in split.pre_tokenize_str(text))


def merged(piece: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The tokens of one piece: neighbours that join to the lowest rank are joined, until none do.

    >>> merged(b"banana", {b"an": 1, b"ana": 2})
    [b'b', b'an', b'ana']
    """
    if piece in ranks:
        return [piece]
    parts = [piece[i:i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        best = min((a + b for a, b in pairwise(parts)), key=lambda t: ranks.get(t, len(ranks)))
        if best not in ranks:
            break
        parts = list(_joined(parts, best))
    return parts


def _joined(parts: Sequence[bytes], token: bytes) -> Iterator[bytes]:
    """The parts with every pair that makes `token` joined, from the left."""
    at = 0
    while at < len(parts):
        pair = at + 1 < len(parts) and parts[at] + parts[at + 1] == token
        yield token if pair else parts[at]
        at += 2 if pair else 1


# Texts ------------------------------------------------------------------------------------------


def our_texts() -> dict[str, str]:
    """Texts by name: prose, code, digits and languages (`data/texts.txt`), and our own tasks."""
    whole = files("gossamer.chat").joinpath("data/texts.txt").read_text(encoding="utf-8")
    texts = {}
    for section in whole.removeprefix("=== ").split("\n=== "):
        name, _, text = section.partition("\n")
        texts[name] = text.rstrip("\n")
    rng = Random("compression")
    questions = [sample(task, rng) for task in TASKS.values() for _ in range(_QUESTIONS)]
    texts["first grade"] = "\n".join(
        words for q in questions for words in (q.text, *(t for _, t in pieces_of(q.answer))))
    return texts


def texts_of(paths: Sequence[str], console: Console | None = None) -> dict[str, str]:
    """The beginning of each of a person's files, by its name; of any kind that is text.

    Raises:
        DataError: as `find_shards`.
    """
    plain = [path for path in map(Path, paths)
             if path.is_file() and path.suffix.lower() not in FORMATS]
    texts = {str(path): _beginning(path) for path in plain}
    others = [path for path in paths if Path(path) not in plain]
    for shard in find_shards(others, console) if others else ():
        parts, size = list[str](), 0
        for block in shard.blocks:
            if size >= _OF_A_FILE:
                break
            parts += map(text_of, shard.format.read(shard.path, block))
            size += block.size
        texts[shard.name] = "\n\n".join(parts)
    return texts


def _beginning(path: Path) -> str:
    """Of a file of source code, say: its first bytes up to a whole character."""
    try:
        with path.open("rb") as file:
            return codecs.getincrementaldecoder("utf-8")().decode(file.read(_OF_A_FILE))
    except OSError as error:
        raise DataError(f"{path}: it cannot be read ({error.strerror}). Check its permissions."
                        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 at byte {error.start:,}; only text is counted. Convert "
                        "it, or leave it out.") from None


def print_compression(
    console: Console, tokenizer: Tokenizer, rivals: Sequence[Rival], texts: Mapping[str, str],
) -> None:
    """Bytes per token of each text: ours, and each rival's with how many of its tokens we need.

    Args:
        rivals: others to compare with; their column says `bytes (our tokens / theirs)`.
        texts: by name.
    """
    table = Table(Column("text", overflow="fold"), "bytes", f"ours ({tokenizer.vocab_size:,})",
                  *(f"{rival.name} ({rival.size:,})" for rival in rivals),
                  title="bytes per token")
    for name, text in texts.items():
        size = len(text.encode("utf-8", "replace"))
        ours = len(tokenizer.encode(text))
        if not ours:
            continue
        theirs = [rival.count(text) for rival in rivals]
        table.add_row(name, f"{size:,}", f"{size / ours:.2f}",
                      *(f"{size / count:.2f} ({ours / count:.2f}x)" for count in theirs))
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    if not rivals:
        console.print("Compare with others by --against: GPT-2's vocab.bpe, GPT-4's "
                      "cl100k_base.tiktoken, any tokenizer.json.", highlight=False)


def train_tokenizer(
    console: Console, paths: Sequence[str], out: Path, vocab_size: int, digits: int | None,
    most_bytes: int, seed: int,
) -> Tokenizer:
    """Learn a tokenizer from files, write it, and say what it makes of text that it did not see.

    Args:
        console: where to say it.
        paths: files, folders and addresses.
        out: a file that is not there yet.
        vocab_size, digits: as `Tokenizer.train`.
        most_bytes: of text.
        seed: of which text that is.

    Raises:
        DataError: as `find_shards`; or `out` exists.
        CheckpointError: `out` cannot be written.
        ValueError: the vocabulary is too small.
    """
    if out.exists():
        raise DataError(f"--out {out}: it exists already, and a model may need it. Choose another "
                        "name, or remove it.")
    corpus = Corpus(find_shards(paths, console), seed)
    texts = corpus.sample(most_bytes)
    tokenizer = Tokenizer.train(texts, vocab_size, digits)
    with write_atomically(out) as file:
        file.write(tokenizer.to_json().encode())
    console.print(f"{out}: {tokenizer.vocab_size:,} tokens from {sum(map(len, texts)) / 1e6:.1f} "
                  "million characters", highlight=False, markup=False)
    if tokenizer.vocab_size < vocab_size:
        console.print(f"{vocab_size:,} were asked for; the text has no more pairs to merge.",
                      highlight=False)
    unseen = "\n\n".join(map(text_of, corpus.measured(_OF_A_FILE)))
    for name, text in (("what it learned from", "\n\n".join(texts)[:_OF_A_FILE]),
                       ("documents held out", unseen)):
        if text:
            size = len(text.encode("utf-8", "replace")) / len(tokenizer.encode(text))
            console.print(f"{size:.2f} bytes per token on {name}", highlight=False)
    return tokenizer
