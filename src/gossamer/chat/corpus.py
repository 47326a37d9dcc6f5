"""Documents from a person's own files, in an endless order that can be resumed. Layer 7.

A file is surveyed once: it is checked from end to end and cut into blocks of some hundred
documents, each with a sum. An epoch is a permutation of all blocks, and of the documents in each;
so the place in the corpus is three numbers, and a run that goes on reads exactly what it would have
read. A fixed share of the documents, chosen by their content, is held out for measuring.

Source: blocks in random order instead of a shuffle buffer, which cannot be resumed cheaply, are the
order of WebDataset and of MosaicML's StreamingDataset.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

from rich.console import Console

from gossamer.chat.formats import FORMATS, Block, Document, Format, text_of
from gossamer.chat.remote import bring, is_remote, pinned
from gossamer.core.errors import DataError

__all__ = ["Corpus", "Shard", "find_shards", "is_measured", "pin"]

MEASURED_PARTS = 50  # one document in fifty is held out
MOST_FILES = 100_000


@dataclass(frozen=True)
class Shard:
    """One file, checked.

    Args:
        path: of the file.
        format: how it is read.
        blocks: its parts, in order.
        documents: how many it has.
        size: bytes of text.
        address: where it was brought from, "" for a file of this machine.
    """

    path: Path
    format: Format
    blocks: tuple[Block, ...]
    documents: int
    size: int
    address: str = ""

    @property
    def split(self) -> int:
        """How many rows were longer than a document may be and were cut in pieces."""
        return sum(block.split for block in self.blocks)

    @property
    def name(self) -> str:
        """What a person calls it."""
        return self.address.partition("#")[0] or str(self.path)


def is_measured(document: Document) -> bool:
    """Whether a document is held out, by its content alone: copies of it are held out too."""
    digest = hashlib.md5(text_of(document).encode("utf-8", "surrogatepass"), usedforsecurity=False)
    return int.from_bytes(digest.digest()[:4], "big") % MEASURED_PARTS == 0


def find_shards(paths: Sequence[str | Path], console: Console | None = None) -> list[Shard]:
    """Check files and folders, and cut each file into blocks.

    Args:
        paths: files, patterns, or folders that are searched through; hidden files are left out,
            and in folders files of other kinds too. An address is brought here first.
        console: where the progress of downloads is shown.

    Raises:
        DataError: a path is missing, a file is empty, binary, broken or of an unknown kind, or
            nothing is found. The text names the file and the place in it.

    Cost: each file is read once.
    """
    shards = list[Shard]()
    for given in paths:
        found = [_survey(*place) for place in _find(given, console)]
        if not any(shard.documents for shard in found):
            raise DataError(f"--data {given}: no document is in there; give files of {_known()} "
                            "that hold text.")
        shards += found
    return shards


def pin(paths: Sequence[str], console: Console | None = None) -> tuple[str, ...]:
    """The same data for ever: each address becomes those of its files with their sums.

    Raises:
        DataError: as `find_shards`.
    """
    return pinned(paths, tuple(FORMATS), console)


def _find(given: str | Path, console: Console | None) -> list[tuple[Path, str]]:
    """Files here, each with the address it is from."""
    if is_remote(given):
        return [(copy.path, copy.address) for copy in bring(str(given), tuple(FORMATS), console)]
    return [(path, "") for path in _expand(Path(given))]


def _expand(given: Path) -> list[Path]:
    if given.is_dir():
        found = sorted(p for p in given.rglob("*")
                       if p.suffix.lower() in FORMATS and p.is_file()
                       and not any(part.startswith(".") for part in p.relative_to(given).parts))
        if not found:
            raise DataError(f"--data {given}: the folder has no file of {_known()}; give another.")
        if len(found) > MOST_FILES:
            raise DataError(f"--data {given}: {len(found):,} files; at most {MOST_FILES:,} are "
                            "read. Join them into JSON lines or Parquet files.")
        return found
    if not given.exists() and set(given.name) & set("*?[") and given.parent.is_dir():
        if found := [path for match in sorted(given.parent.glob(given.name))
                     for path in _expand(match)]:
            return found
        raise DataError(f"--data {given}: no file fits this pattern; check it.")
    if not given.exists():
        raise DataError(f"--data {given}: there is no such file or folder; check the path.")
    if not given.is_file():
        raise DataError(f"--data {given}: it is no file that can be read twice, but a pipe or a "
                        "device. Write what comes out of it into a file.")
    if given.suffix.lower() not in FORMATS:
        raise DataError(f"--data {given}: a file of kind {given.suffix or 'without a name ending'};"
                        f" {_known()} can be read. Convert or rename it.")
    return [given]


def _known() -> str:
    *some, last = FORMATS
    return f"{', '.join(some)} or {last}"


def _survey(path: Path, address: str) -> Shard:
    format = FORMATS[path.suffix.lower()]
    try:
        blocks = tuple(format.survey(path))
    except OSError as error:
        raise DataError(f"--data {path}: it cannot be read ({error.strerror or error}). Check its "
                        "permissions, or leave it out.") from None
    except DataError as error:
        if not address:
            raise
        raise DataError(f"{error} It is the copy of {address.partition('#')[0]}.") from None
    return Shard(path, format, blocks, sum(b.documents for b in blocks),
                 sum(b.size for b in blocks), address)


class Corpus:
    """An endless stream of the documents that are not held out.

    Args:
        shards: as `find_shards` returns them.
        seed: of the order.
    """

    def __init__(self, shards: Sequence[Shard], seed: int = 0) -> None:
        self.shards, self.seed = list(shards), seed
        self._blocks = [(s, b) for s in self.shards for b in s.blocks]
        self._sum = crc32(repr([b.sum for _, b in self._blocks]).encode())
        self.epoch = 0
        self._block, self._place = 0, 0  # in the epoch's order, in the block's order
        self._order: list[int] = []
        self._ready: list[Document] = []
        self._open_epoch()

    @property
    def documents(self) -> int:
        """How many there are, the held-out ones included."""
        return sum(shard.documents for shard in self.shards)

    @property
    def size(self) -> int:
        """Bytes of text."""
        return sum(shard.size for shard in self.shards)

    @property
    def split(self) -> int:
        """How many rows were longer than a document may be and were cut in pieces."""
        return sum(shard.split for shard in self.shards)

    def next(self) -> Document:
        """The next document.

        Raises:
            DataError: a file has changed since it was checked; or every document is held out.
        """
        epochs = self.epoch
        while self._place >= len(self._ready):
            self._block, self._place = self._block + 1, 0
            if self._block >= len(self._order):
                self._block, self.epoch = 0, self.epoch + 1
                if self.epoch > epochs + 1:
                    raise DataError("--data: every document is held out for measuring (one in "
                                    f"{MEASURED_PARTS} is); give more text.")
                self._open_epoch()
            else:
                self._open_block()
        self._place += 1
        return self._ready[self._place - 1]

    def state(self) -> dict[str, Any]:
        """Where it stands, as plain JSON values."""
        return {"epoch": self.epoch, "block": self._block, "place": self._place,
                "blocks": len(self._blocks), "sum": self._sum}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state()` was taken.

        Raises:
            DataError: the files are not those of the run.
        """
        if state["blocks"] != len(self._blocks):
            raise DataError(f"--data: the run's files had {state['blocks']} blocks and now have "
                            f"{len(self._blocks)}; a resumed run needs the files it began with. "
                            "Put them back, or start a new run.")
        if state.get("sum", self._sum) != self._sum:  # checkpoints of before have none
            raise DataError("--data: the text of the run's files is not what it was when the run "
                            "began; a resumed run reads what it would have read. Put the files "
                            "back as they were, or start a new run.")
        self.epoch, self._block = state["epoch"], state["block"]
        self._open_epoch(self._block)
        self._place = state["place"]

    def measured(self, most_bytes: int) -> list[Document]:
        """The first held-out documents in the order of the files, up to so many bytes of text."""
        found, size = list[Document](), 0
        for document in self._in_order():
            if is_measured(document):
                size += len(text_of(document).encode("utf-8", "surrogatepass"))
                if size > most_bytes and found:
                    break
                found.append(document)
        return found

    def sample(self, most_bytes: int) -> list[str]:
        """Texts that are not held out, from blocks in random order, for a tokenizer to learn: each
        at most once, until there are so many bytes of them."""
        texts, size = list[str](), 0
        again = Corpus(self.shards, self.seed + 1)
        while size < most_bytes:
            text = text_of(again.next())
            if again.epoch:
                break
            texts.append(text)
            size += len(text.encode())
        return texts

    def _in_order(self) -> Iterator[Document]:
        for shard, block in self._blocks:
            yield from shard.format.read(shard.path, block)

    def _open_epoch(self, block: int = 0) -> None:
        self._order = list(range(len(self._blocks)))
        Random(f"epoch:{self.seed}:{self.epoch}").shuffle(self._order)
        self._block = block
        self._open_block()

    def _open_block(self) -> None:
        number = self._order[self._block]
        shard, block = self._blocks[number]
        documents = shard.format.read(shard.path, block)
        self._ready = [d for d in documents if not is_measured(d)]
        Random(f"block:{self.seed}:{self.epoch}:{number}").shuffle(self._ready)
        self._place = 0
