"""The story world: what there is, what may happen in it, and what holds afterwards. Layer 7.

An act (someone goes, takes, gives, loses, finds) has a line of what must hold and what holds then,
and its wordings; both stand in `data/world/acts.txt`. `State.tell` replays one told sentence: it
finds out whom the pronouns mean, complains where the sentence contradicts what was told before,
and takes over what is new. Teller and checker share it, so a drawn story is consistent by test, not
by promise.

Source: stories with exact ground truth follow the idea of bAbI (Weston et al. 2015).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from gossamer.chat.lexicon import GENDER
from gossamer.chat.mention import KIND_OF, PRONOUNS, Mention, Slot, split_slots

__all__ = ["Act", "Fault", "State", "Wording", "acts", "sections"]

_THEY = re.compile(r"\b[Tt]hey\b")
Rule = tuple[str, ...]  # a condition or an effect, as the words it is written in
Fault = tuple[str, str]  # (what kind of contradiction, what it says)


@dataclass(frozen=True)
class Wording:
    """One way to tell an act.

    Args:
        text: as written.
        parts: literal text and slots.
    """

    text: str
    parts: tuple[str | Slot, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Its slots, in order."""
        return tuple(part for part in self.parts if isinstance(part, Slot))

    @property
    def subject(self) -> Slot | None:
        """The person whom it is about, for the next sentence's pronoun."""
        return next((s for s in self.slots if s.kind == "person" and s.form == ""), None)


@dataclass(frozen=True)
class Act:
    """Something that happens.

    Args:
        name: of it.
        letters: its arguments.
        optional: those of them that need not be known.
        needs: what must hold before.
        makes: what holds after.
        wordings: how it is told.
    """

    name: str
    letters: str
    optional: str
    needs: tuple[Rule, ...]
    makes: tuple[Rule, ...]
    wordings: tuple[Wording, ...]

    def brings(self, letter: str) -> bool:
        """Whether it mentions this argument for the first time."""
        return ("new", letter) in self.needs


def sections(name: str) -> list[tuple[str, list[str]]]:
    """The sections of a file beside this package: (what stands in brackets, the lines below)."""
    found = list[tuple[str, list[str]]]()
    path = files("gossamer.chat").joinpath(f"data/world/{name}.txt")
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            found.append((line.strip("[]"), []))
        elif line and not line.startswith("#"):
            found[-1][1].append(line)
    return found


@cache
def acts() -> Mapping[str, Act]:
    """All acts by name."""
    return {act.name: act for act in (_act(*section) for section in sections("acts"))}


def _act(head: str, lines: Sequence[str]) -> Act:
    signature, _, rules = head.partition(":")
    name, *arguments = signature.split()
    needs, _, makes = rules.partition(">")
    return Act(
        name, "".join(word.strip("?") for word in arguments),
        "".join(word[1] for word in arguments if word.startswith("?")),
        _rules(needs), _rules(makes),
        tuple(Wording(line, tuple(split_slots(line))) for line in lines))


def _rules(text: str) -> tuple[Rule, ...]:
    return tuple(tuple(rule.split()) for rule in text.split(",") if rule.strip())


@dataclass
class State:
    """What holds at one moment of a story.

    Attributes:
        known: everyone and everything mentioned, with its kind, in the order of mention.
        place: where people and animals are, and things that nobody has; missing = unknown.
        holder: who has a thing.
        owner: whose a thing is.
        look: the adjective of a thing.
        can: (person, skill) pairs.
        broken: things.
        topic: whom the last sentence was about: a pronoun means this person.
        focus: the thing it named: "it".
    """

    known: dict[str, str] = field(default_factory=dict)
    place: dict[str, str] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)
    owner: dict[str, str] = field(default_factory=dict)
    look: dict[str, str] = field(default_factory=dict)
    can: set[tuple[str, str]] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    topic: str = ""
    focus: str = ""

    def people(self) -> list[str]:
        """Everyone known, in the order of appearance."""
        return [who for who, kind in self.known.items() if kind == "person"]

    def place_of(self, what: str) -> str:
        """Where someone or something is; "" if unknown."""
        return self.place.get(self.holder.get(what, what), "")

    def tell(self, act: Act, wording: Wording, said: Sequence[Mention]) -> list[Fault]:
        """Replay one sentence.

        Returns:
            What in it contradicts the story so far; the state follows the sentence all the same.
        """
        bound, faults = self._named(act, said)
        faults += self._meant(act, bound, said)
        for rule in act.needs:
            if rule[0] != "new" and not self._holds(rule, bound):
                faults.append((_FAULT_OF.get(rule[1], rule[1]), " ".join(_filled(rule, bound))))
        for rule in act.makes:
            self._make(rule, bound)
        self._remember(wording, bound, said)
        return faults

    # Who is meant -------------------------------------------------------------------------------

    def _named(self, act: Act, said: Sequence[Mention]) -> tuple[dict[str, str], list[Fault]]:
        """The arguments that the words name or point to across sentences."""
        bound, faults = dict[str, str](), list[Fault]()
        for mention in said:
            slot = mention.slot
            value = mention.word
            if mention.word == "it":
                value = self.focus
            elif mention.pronoun and slot.form in ("", "obj"):
                value = self.topic
                if value and PRONOUNS[slot.form][GENDER[value]] != mention.word:
                    faults.append(("pronoun", f"{mention.word} for {value}"))
            elif mention.pronoun:
                continue  # it points to a person of this sentence: see `_meant`
            if not value:
                faults.append(("pronoun", f"{mention.word} for nobody"))
            elif bound.setdefault(slot.letter, value) != value:
                faults.append(("pronoun", f"{value} for {bound[slot.letter]}"))
        people = [who for letter, who in bound.items() if KIND_OF[letter] == "person"]
        if len(set(people)) < len(people):
            faults.append(("pronoun", f"{people[0]} twice"))
        return bound, faults

    def _meant(
        self, act: Act, bound: dict[str, str], said: Sequence[Mention]
    ) -> list[Fault]:
        """Complete the arguments by what is known; who is new, and pronouns in the sentence."""
        faults = list[Fault]()
        others = [who for who in self.people() if who not in bound.values()]
        for letter in act.letters:
            kind = KIND_OF[letter]
            if letter in bound:
                if kind in ("person", "thing", "animal") and (
                        act.brings(letter) == (bound[letter] in self.known)):
                    faults.append(("known", f"{bound[letter]} again" if act.brings(letter)
                                   else f"{bound[letter]} not yet"))
            elif kind == "person" and letter not in act.optional and not act.brings(letter):
                if others:
                    bound[letter] = others.pop(0)
                else:
                    faults.append(("known", f"nobody for {letter} in {act.name}"))
            elif kind == "thing" and letter not in act.optional:
                bound.update(zip(letter, self._things()[-1:], strict=False))
        first = next((bound[i] for i in act.letters if KIND_OF[i] == "person" and i in bound), "")
        for letter in act.letters:
            if KIND_OF[letter] == "place" and letter not in bound and self.place_of(first):
                bound[letter] = self.place_of(first)
        for mention in said:
            slot = mention.slot
            if slot.form in ("he", "his", "him", "kind"):
                who = bound.get(slot.letter, "")
                if not who or PRONOUNS[slot.form][GENDER[who]] != mention.word:
                    faults.append(("pronoun", f"{mention.word} for {who or 'nobody'}"))
            elif mention.look and slot.form == "" and self.look.get(mention.word) != mention.look:
                faults.append(("look", f"{mention.look} {mention.word}"))
        return faults

    def _things(self) -> list[str]:
        return [what for what, kind in self.known.items() if kind == "thing"]

    # What holds ---------------------------------------------------------------------------------

    def _holds(self, rule: Rule, bound: Mapping[str, str]) -> bool:
        """Whether a condition holds; one about an argument that is not known does."""
        filled = _filled(rule, bound)
        if any(len(word) == 1 for word in filled):
            return True
        one, verb, *rest = filled
        other = rest[-1] if rest else ""
        places = self.place_of(one), self.place_of(other)
        return {
            "has": self.holder.get(other) == one,
            "without": self.holder.get(other) != one,
            "at": places[0] == other,
            "off": places[0] != other,
            "with": places[0] == places[1] != "",
            "of": self.owner.get(one) == other,
            "lies": one not in self.holder and one in self.place,
            "gone": one not in self.holder and one not in self.place,
            "broken": one in self.broken,
            "can": (one, other) in self.can,
            "cannot": (one, other) not in self.can,
        }[verb]

    def _make(self, rule: Rule, bound: Mapping[str, str]) -> None:
        """Let an effect hold."""
        filled = _filled(rule, bound)
        if any(len(word) == 1 for word in filled):
            return
        one, verb, *rest = filled
        other = rest[-1] if rest else ""
        if verb == "has":
            self.holder[other] = one
            self.place.pop(other, None)
        elif verb in ("at", "gone", "with"):
            self.holder.pop(one, None)
            where = {"at": other, "gone": "", "with": self.place_of(other)}[verb]
            self.place.pop(one, None)
            self.place.update({one: where} if where else {})
        elif verb == "of":
            self.owner[one] = other
        elif verb in ("broken", "mended"):
            (self.broken.add if verb == "broken" else self.broken.discard)(one)
        else:
            (self.can.add if verb == "can" else self.can.discard)((one, other))

    def _remember(
        self, wording: Wording, bound: Mapping[str, str], said: Sequence[Mention]
    ) -> None:
        """Who is known now, and what the next sentence's pronouns mean."""
        for letter, value in bound.items():
            if KIND_OF[letter] in ("person", "thing", "animal"):
                self.known.setdefault(value, KIND_OF[letter])
        for mention in said:
            slot = mention.slot
            if slot.form == "new" and slot.kind == "thing":
                self.look[mention.word] = mention.look
        subject = wording.subject
        if subject is not None:
            self.topic = bound.get(subject.letter, "")
        elif _THEY.search(wording.text) or any(m.slot.kind == "person" for m in said):
            self.topic = ""
        named = [m.slot for m in said if m.slot.kind in ("thing", "animal")]
        self.focus = bound.get(named[-1].letter, "") if named and named[-1].kind == "thing" else ""


def _filled(rule: Rule, bound: Mapping[str, str]) -> list[str]:
    """The words of a rule with its arguments put in; an unknown argument stays a letter."""
    return [bound.get(word, word) for word in rule]


_FAULT_OF = {"has": "owner", "without": "owner", "of": "owner", "at": "place", "off": "place",
             "with": "place", "lies": "owner", "gone": "owner", "can": "skill", "cannot": "skill"}
