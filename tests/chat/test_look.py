"""`gossamer data`: all that there is to learn from is shown, and what could not be read is told."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from gossamer.chat import look
from gossamer.chat.parser import check_story
from gossamer.chat.prose import Prose
from gossamer.chat.tasks import TASKS


def test_a_piece_of_each_kind_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    skipped = ("pydoc_data/topics.py", "No such file or directory")
    monkeypatch.setattr(look, "read_prose", lambda: Prose(("x" * 2_000_000,), 571, (skipped,)))
    out = io.StringIO()
    look.show_made(Console(file=out, width=400), seed=2)
    shown = out.getvalue()
    assert all(name in shown for name in TASKS)
    tale = [re.split(" *[│┃] *", line)[1:4] for line in shown.split("its trace")[1].splitlines()
            if line.startswith("│")]
    check = check_story(" ".join(sentence for sentence, _, _ in tale))
    assert len(tale) > 4 and check.consistent
    where = ", ".join(f"{who}: {place}" for who, place in check.state.place.items())
    assert tale[-1][1] == where and any(row[2] for row in tale) == bool(check.state.holder)
    assert re.search(r"a dialogue:\n  user: .+\n  assistant: .+\n", shown)
    assert ("1 document of 571 files, 2.00 MB of text; 1 file could not be read: "
            "pydoc_data/topics.py (No such file or directory)") in shown
