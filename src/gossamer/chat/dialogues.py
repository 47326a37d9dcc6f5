"""Conversations made by program: small talk, itself, what it cannot do, and follow-ups. Layer 7.

A conversation is a row of exchanges; an exchange may look back: "and twice that?", "spell it
backwards", "are you sure?", "who has the ball now?". Replies about itself are filled with the run's
own figures. What the assistant says is true and is all that is supervised (`Tokenizer.render`), so
a conversation never teaches a mistake in order to correct it: the user is mistaken, or doubts.
Not scored, since there is no single right reply to "hi"; and like training, never a held-out
question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from gossamer.chat.lexicon import NAMES, PREPOSITION, SMALL, Lexicon
from gossamer.chat.message import Message, words_of
from gossamer.chat.narrative import Tale, numbered_tale
from gossamer.chat.task import ARROW, Task, final_part, is_held_out, pick, sample
from gossamer.chat.tasks import TASKS

__all__ = ["FACTS", "TaleRequest", "draw_dialogue", "tale_request"]

Exchange = tuple[str, str]  # what the user says, what the assistant says

_SKILLS = ("I can spell words, count letters, add, subtract, multiply, sort numbers, name days "
           "and dates, tell times, read Roman numerals, use a calculator, tell a story and answer "
           "questions about it.")
FACTS: Mapping[str, str] = {"name": "Gossamer", "training": "ten minutes",
                            "parameters": "one million", "layers": "four"}

_SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hi", "Hello", "Hi!", "Hello!", "Hey", "hi", "hello", "Good morning", "hi there"),
     "Hello! What can I do for you?"),
    (("How are you?", "how are you", "How do you do?", "Are you well?"),
     "I am fine, thank you. Ask me a question!"),
    (("Who are you?", "who are you", "What are you?", "Tell me who you are.",
      "Introduce yourself."),
     "I am {name}, a small language model. I was trained from nothing in {training} and "
     "have {parameters} parameters."),
    (("What is your name?", "what is your name", "Do you have a name?", "Your name, please?"),
     "My name is {name}."),
    (("How many parameters do you have?", "How big are you?", "how large are you",
      "How many weights do you have?"), "I have {parameters} parameters in {layers} layers."),
    (("How many layers do you have?", "How deep are you?", "how many layers"),
     "I have {layers} layers."),
    (("How long were you trained?", "How long did you learn?", "how long was your training",
      "When were you made?"), "I was trained for {training}."),
    (("Who made you?", "who built you", "What are you made with?", "How were you made?"),
     "I was made with Gossamer, from an empty folder, on an ordinary computer."),
    (("What can you do?", "what can you do", "Help", "help me", "What do you know?",
      "What should I ask?"), _SKILLS),
)
_OUT_OF_SCOPE = (
    "What is the meaning of life?", "Who is the president?", "Write a program.",
    "What is the capital of France?", "What is the weather today?", "Tell me a joke.",
    "What do you think about politics?", "Do you like music?", "Sing a song.",
    "How far away is the moon?", "Translate this into German.", "Who wrote Hamlet?",
    "What is the stock price?", "Explain quantum physics.", "Is there a god?",
    "What should I cook tonight?", "Give me medical advice.", "Who won the game?",
    "Write an essay about history.", "What is love?",
)
_REFUSALS = ("I only know first grade things. " + _SKILLS,
             "I do not know that: I only know first grade things.")
_PARTINGS = (
    (("Thanks", "Thank you", "thank you!", "Thanks a lot!", "Great, thanks."),
     "You are welcome!"),
    (("Bye", "Goodbye", "bye", "Good night", "See you later."), "Goodbye!"),
)
_TALE_REQUESTS = ("Tell me a story.", "tell me a story", "Can you tell a story?",
                  "A story please!", "Write a short story.")
_TALE_ABOUT = ("Tell me a story about a {}.", "tell a story about a {}", "A story about a {}?",
               "Write a story about the {}.")
_DOUBTS = ("Are you sure?", "are you sure", "Is that right?", "Really?", "Check it, please.")
_TWICE = ("And twice that?", "and twice that", "Double it.", "What is that doubled?",
          "And two times that?")
_PLUS = ("And {} more?", "Add {} to it.", "and plus {}?", "Plus {}?", "What if you add {}?")
_MINUS = ("And {} less?", "Take away {}.", "and minus {}?", "Minus {}?")
_BACKWARDS = ("Spell it backwards.", "spell it backwards", "And backwards?", "Now backwards.",
              "And the other way round?")
_COUNT = ("How many {} are in it?", "how many {} does it have?", "And how many {}?",
          "Count the {} in it.")
_SPELL = ("Spell it.", "How is it spelled?", "And spell it, please.", "spell that word")


def draw_dialogue(
    rng: Random, facts: Mapping[str, str], lexicon: Lexicon = SMALL, tale_share: float = 0.25,
) -> list[Message]:
    """A conversation of one to five exchanges.

    Args:
        facts: values for questions about the model itself: keys of FACTS; missing ones as there.
        lexicon: the words of tales.
        tale_share: share of conversations with a tale.

    >>> [turn["role"] for turn in draw_dialogue(Random(1), {})[:2]]
    ['user', 'assistant']
    """
    about = {**FACTS, **facts}
    exchanges = list[Exchange]()
    if rng.random() < 0.3:
        exchanges.append(_greeting(rng, about))
    if rng.random() < tale_share:
        exchanges += _tale(rng, lexicon)
    else:
        for _ in range(1 + (rng.random() < 0.3)):
            exchanges += pick(rng, _TOPICS)(rng, about)
    if rng.random() < 0.2:
        exchanges.append(_one_of(rng, _PARTINGS, about))
    turns = list[Message]()
    for asked, reply in exchanges:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
    return turns


def _one_of(
    rng: Random, table: tuple[tuple[tuple[str, ...], str], ...], about: Mapping[str, str]
) -> Exchange:
    questions, answer = pick(rng, table)
    return pick(rng, questions), answer.format_map(about)


def _greeting(rng: Random, about: Mapping[str, str]) -> Exchange:
    return _one_of(rng, _SMALL_TALK[:2], about)


def _small_talk(rng: Random, about: Mapping[str, str]) -> list[Exchange]:
    return [_one_of(rng, _SMALL_TALK, about)]


def _refusal(rng: Random, about: Mapping[str, str]) -> list[Exchange]:
    return [(pick(rng, _OUT_OF_SCOPE), pick(rng, _REFUSALS))]


def _name(rng: Random, about: Mapping[str, str]) -> list[Exchange]:
    """The user's name, and later what it was."""
    name = pick(rng, NAMES)
    told = pick(rng, ("My name is {}.", "I am {}.", "Hi, I am {}.", "hello, my name is {}"))
    asked = pick(rng, ("What is my name?", "what is my name", "Who am I?", "Do you know my name?"))
    between = [_one_of(rng, _SMALL_TALK, about)] if rng.random() < 0.4 else []
    return [(told.format(name), f"Hello, {name}! What can I do for you?"), *between,
            (asked, f"Your name is {name}.")]


# Follow-ups -------------------------------------------------------------------------------------


def _sum(rng: Random, about: Mapping[str, str]) -> list[Exchange]:
    """A sum; then one with its result, a doubt, or a wrong guess of the user's."""
    question = sample(TASKS["add"], rng)
    exchanges = [(question.text, words_of(question.answer))]
    for _ in range(1 + (rng.random() < 0.4)):
        result = next(int(final_part(said)) for _, said in reversed(exchanges) if ARROW in said)
        exchanges += _next_number(rng, result)
    return exchanges


def _next_number(rng: Random, result: int) -> list[Exchange]:
    """A follow-up on a number; none if it is a held-out question, or too large to be asked."""
    dice = rng.random()
    if dice < 0.2:
        return [(pick(rng, _DOUBTS), f"Yes, it is {result}.")]
    if dice < 0.4:
        guess = result + pick(rng, (-10, -1, 1, 10, 0))
        asked = pick(rng, ("Is it {}?", "I think it is {}.", "It is {}, right?")).format(guess)
        return [(asked, f"Yes, it is {result}." if guess == result else f"No, it is {result}.")]
    if result > 499:
        return []
    other = 1 + int(rng.random() * 99)
    name, operands, wordings = pick(rng, (
        ("add", (result, result), _TWICE), ("add", (result, other), _PLUS),
        ("subtract", (max(result, other), min(result, other)), _MINUS)))
    if name == "subtract" and other > result:
        return []
    return _answered(TASKS[name], operands, pick(rng, wordings).format(other))


def _answered(task: Task, facts: tuple[object, ...], asked: str) -> list[Exchange]:
    """A question with its reply, unless it is a held-out one."""
    if is_held_out(task.key(facts)):
        return []
    return [(asked, words_of(task.answer(facts)))]


def _word(rng: Random, about: Mapping[str, str]) -> list[Exchange]:
    """A word; then backwards, counted, or spelled."""
    question = sample(TASKS["spell"], rng)
    word = question.facts
    exchanges = [(question.text, words_of(question.answer))]
    backwards = _answered(TASKS["reverse_word"], ("backwards", word), pick(rng, _BACKWARDS))
    letter = pick(rng, word)
    counted = _answered(TASKS["count_letters"], (word, letter), pick(rng, _COUNT).format(letter))
    again = [(pick(rng, _SPELL), words_of(question.answer))]
    follow_ups = [backwards, counted, again]
    rng.shuffle(follow_ups)
    for follow_up in follow_ups[:1 + (rng.random() < 0.4)]:
        exchanges += follow_up
    return exchanges


@dataclass(frozen=True)
class TaleRequest:
    """Words that ask for a tale, and the thing it is to be about; "" for any."""

    text: str
    thing: str = ""


def tale_request(rng: Random, lexicon: Lexicon) -> TaleRequest:
    """What somebody asks who wants a tale."""
    return _request(rng, pick(rng, lexicon.things))


def _request(rng: Random, thing: str) -> TaleRequest:
    """For a tale with this thing ("" if it has none), which the words need not name."""
    if thing and rng.random() < 0.6:
        return TaleRequest(pick(rng, _TALE_ABOUT).format(thing), thing)
    return TaleRequest(pick(rng, _TALE_REQUESTS))


def _tale(rng: Random, lexicon: Lexicon) -> list[Exchange]:
    """A tale on request; then perhaps a question about its end."""
    tale = numbered_tale(int(rng.random() * lexicon.tales), lexicon)
    asked = _request(rng, tale.thing).text
    asked_then = _about_end(rng, tale) if rng.random() < 0.4 else []
    return [(asked, tale.text), *asked_then]


def _about_end(rng: Random, tale: Tale) -> list[Exchange]:
    now = tale.trace[-1]
    people = sorted(who for who in now.place if who in NAMES)
    if now.holder and rng.random() < 0.5:
        thing = pick(rng, sorted(now.holder))
        asked = pick(rng, ("Who has the {}?", "Who has the {} now?", "who has got the {}"))
        holder = now.holder[thing]
        return [(asked.format(thing), f"So {holder} has the {thing}.{ARROW}{holder}")]
    who = pick(rng, people)
    place = now.place[who]
    asked = pick(rng, ("Where is {}?", "Where is {} now?", "where is {} at the end?"))
    return [(asked.format(who), f"So {who} is {PREPOSITION[place]} the {place}.{ARROW}{place}")]


_TOPICS: tuple[Callable[[Random, Mapping[str, str]], list[Exchange]], ...] = (
    _small_talk, _small_talk, _refusal, _name, _sum, _word)
