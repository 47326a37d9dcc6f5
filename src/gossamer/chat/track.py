"""What a run learns, by the time it has: short stories in ten minutes, the whole world in an hour.

Layer 7. One row a track; the curriculum, the speedrun and the report read it. More time goes into
longer stories and more reading, not into another kind of run: both have the same twelve tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gossamer.chat.lexicon import LARGE, SMALL, Lexicon
from gossamer.chat.stories import WORLD_STORIES
from gossamer.chat.task import Task
from gossamer.chat.tasks import TASKS

__all__ = ["HOUR", "LONG_MINUTES", "SHORT", "Track", "track_for"]

LONG_MINUTES = 25.0  # from here on the model has six layers (`speedrun.plan`)


@dataclass(frozen=True)
class Track:
    """One way to spend the time.

    Args:
        name: of it.
        tasks: the twelve tasks.
        lexicon: the words of the tales.
        read_share: of the budget for the first stage.
        talk_share: small talk and tales on request, of the examples answered.
        tale_share: tales on request, of the talk.
        vocabulary: tokens.
    """

    name: str
    tasks: Mapping[str, Task]
    lexicon: Lexicon
    read_share: float
    talk_share: float
    tale_share: float
    vocabulary: int


# Ten minutes: reading raises no score there, so it is short. An hour: tales are a quarter of all
# tokens, so that each of 490 wordings is met a thousand times and more.
SHORT = Track("short", TASKS, SMALL, 0.06, 0.03, 0.25, 1024)
HOUR = Track("hour", {**TASKS, "story": WORLD_STORIES}, LARGE, 0.2, 0.15, 0.6, 2048)


def track_for(minutes: float) -> Track:
    """The track of a run of so many minutes.

    >>> track_for(10).name, track_for(60).name
    ('short', 'hour')
    """
    return SHORT if minutes < LONG_MINUTES else HOUR
