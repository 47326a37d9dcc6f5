"""What several tests of the chat model share; a file may have its own fixture of the same name."""

from __future__ import annotations

import pytest

from gossamer.chat.evaluate import question_set
from gossamer.chat.tasks import TASKS
from gossamer.chat.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A small one that knows the tasks' letters and words."""
    drawn = question_set(TASKS, 100, held_out=False)
    return Tokenizer.train([q.text for questions in drawn.values() for q in questions], 320)
