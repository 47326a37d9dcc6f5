"""A small world whose stories are true by construction, and questions about them. Layer 7.

A story is a list of events (someone goes, takes, gives); `state_after` replays them, so every
question has an exact answer. The reply names each hop before the result, "So Mia has the cup. Mia
is in the garden. => garden": two one-hop look-ups instead of one two-hop inference, which a model
of four layers learns within minutes. It does not begin with the name, since a name without the
space before it is another token than the one in the story.
"""

from __future__ import annotations

from random import Random

from gossamer.chat.lexicon import NAMES, SHORT_PLACES, SHORT_THINGS
from gossamer.chat.task import ARROW, Task, final_part, pick

__all__ = ["NAMES", "PLACES", "STORIES", "THINGS", "Event", "state_after", "tell"]

THINGS, PLACES = SHORT_THINGS, SHORT_PLACES

# (verb, who, what): to "go" to a place, to "take" a thing, to "give" thing>receiver.
Event = tuple[str, str, str]
StoryFacts = tuple[tuple[Event, ...], str, str]  # events, kind of question, its subject

_GO = ("{0} went to the {1}.", "{0} walked to the {1}.", "{0} ran to the {1}.")
_TAKE = ("{0} took the {1}.", "{0} picked up the {1}.", "{0} got the {1}.")
_GIVE = ("{0} gave the {1} to {2}.", "{0} handed the {1} to {2}.")
_PHRASES = {"go": _GO, "take": _TAKE, "give": _GIVE}


def draw_events(rng: Random) -> tuple[Event, ...]:
    """Two or three people who all went somewhere, one or two things, four to six events."""
    people = rng.sample(NAMES, 2 + (rng.random() < 0.5))
    things = rng.sample(THINGS, 1 + (rng.random() < 0.6))
    places = rng.sample(PLACES, 4)
    events: list[Event] = [("go", who, places[i]) for i, who in enumerate(people)]
    owner: dict[str, str] = {}
    for thing in things:
        owner[thing] = people[int(rng.random() * len(people))]
        events.insert(int(rng.random() * (len(events) + 1)), ("take", owner[thing], thing))
    for _ in range(1 + int(rng.random() * 2)):
        who = people[int(rng.random() * len(people))]
        held = [t for t in things if owner[t] == who]
        if held and rng.random() < 0.5:
            other = [p for p in people if p != who][0]
            events.append(("give", who, f"{held[0]}>{other}"))
            owner[held[0]] = other
        else:
            here = next(what for verb, p, what in reversed(events) if verb == "go" and p == who)
            events.append(("go", who, rng.choice([p for p in places if p != here])))
    return tuple(events)


def state_after(events: tuple[Event, ...]) -> tuple[dict[str, str], dict[str, str]]:
    """Replay the events: where each person is, and who holds each thing."""
    where: dict[str, str] = {}
    holder: dict[str, str] = {}
    for verb, who, what in events:
        if verb == "go":
            where[who] = what
        elif verb == "take":
            holder[what] = who
        else:
            thing, other = what.split(">")
            holder[thing] = other
    return where, holder


def tell(events: tuple[Event, ...], rng: Random) -> str:
    """The events as sentences, each in one of its wordings."""
    sentences = []
    for verb, who, what in events:
        sentences.append(pick(rng, _PHRASES[verb]).format(who, *what.split(">")))
    return " ".join(sentences)


def _draw_story(rng: Random) -> StoryFacts:
    events = draw_events(rng)
    where, holder = state_after(events)
    dice = rng.random()
    if dice < 0.3:
        return events, "person", rng.choice(sorted(where))
    kind = "holder" if dice < 0.6 else "thing"
    return events, kind, rng.choice(sorted(holder))


def _story_answer(facts: StoryFacts) -> str:
    events, kind, subject = facts
    where, holder = state_after(events)
    if kind == "person":
        return f"So {subject} is in the {where[subject]}.{ARROW}{where[subject]}"
    first = f"So {holder[subject]} has the {subject}."
    if kind == "holder":
        return f"{first}{ARROW}{holder[subject]}"
    place = where[holder[subject]]
    return f"{first} {holder[subject]} is in the {place}.{ARROW}{place}"


def _story_is(facts: StoryFacts, reply: str) -> bool:
    """Judge by reading the events backwards, not by the replay that wrote the answer."""
    events, kind, subject = facts
    if kind != "person":
        last = next(e for e in reversed(events)
                    if e[0] != "go" and e[2].split(">")[0] == subject)
        subject = last[2].split(">")[1] if last[0] == "give" else last[1]
    if kind == "holder":
        return final_part(reply).lower() == subject.lower()
    place = next(e[2] for e in reversed(events) if e[0] == "go" and e[1] == subject)
    return final_part(reply).lower().removeprefix("the ") == place


def _story_fields(facts: StoryFacts, rng: Random) -> dict[str, str]:
    events, _, subject = facts
    return {"story": tell(events, rng), "subject": subject}


def _story_key(facts: StoryFacts) -> str:
    events, kind, subject = facts
    return f"story:{kind}:{subject}:" + ";".join("/".join(e) for e in events)


STORIES = (
    Task(
        name="story",
        doc="who has a thing or where it is, after a short story",
        draw=_draw_story,
        key=_story_key,
        fields=_story_fields,
        answer=_story_answer,
        verify=_story_is,
        kind=lambda facts: facts[1],
    ),
)
