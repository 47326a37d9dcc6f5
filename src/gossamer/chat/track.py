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

__all__ = ["HOUR", "SHORT", "Track", "track_for"]

_SHALLOW = 4  # layers up to which a model is one of ten minutes (`dial.py`)


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
        practice: share of the training, at its end, for reinforcement of told tales, unless a
            person says otherwise.
        told: stories that the finished model tells to be measured.
    """

    name: str
    tasks: Mapping[str, Task]
    lexicon: Lexicon
    read_share: float
    talk_share: float
    tale_share: float
    practice: float
    told: int


# Ten minutes: reading raises no score there, so it is short. An hour: tales are a third of all
# tokens (0.12 * 66 % while reading, 0.8 * 33 % later) and then practised, as reading alone leaves a
# quarter of the told ones with a contradiction (two fifths of 30 million tokens; a third of them
# with a quarter of 36 million). To measure 100 takes 7 s of two cores, 400 half a minute.
SHORT = Track("short", TASKS, SMALL, 0.06, 0.03, 0.25, 0.0, 100)
HOUR = Track("hour", {**TASKS, "story": WORLD_STORIES}, LARGE, 0.12, 0.25, 0.65, 0.10, 400)


def track_for(layers: int) -> Track:
    """The track of a model of so many layers, which follow from the minutes.

    >>> track_for(4).name, track_for(6).name
    ('short', 'hour')
    """
    return SHORT if layers <= _SHALLOW else HOUR
