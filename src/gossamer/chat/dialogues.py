"""Small talk made by program, so that a model of ten minutes also greets and knows itself. Layer 7.

Not scored: there is no single right reply to "hi". The replies about itself are filled with the
run's own figures; what lies outside first grade is declined.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from gossamer.chat.lexicon import SMALL, Lexicon
from gossamer.chat.message import Message
from gossamer.chat.narrative import draw_tale

__all__ = ["draw_dialogue"]

_SKILLS = ("I can spell words, count letters, add, subtract, multiply, sort numbers, name days "
           "and dates, tell times, read Roman numerals, use a calculator, and answer questions "
           "about a short story.")
_FACTS = {"minutes": "ten", "parameters": "one million"}

_EXCHANGES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hi", "Hello", "Hi!", "Hello!", "Hey", "hi", "hello", "Good morning", "hi there"),
     "Hello! What can I do for you?"),
    (("How are you?", "how are you", "How do you do?", "Are you well?"),
     "I am fine, thank you. Ask me a question!"),
    (("Who are you?", "who are you", "What are you?", "What is your name?", "Tell me who you are."),
     "I am a small language model made with Gossamer. I was trained from nothing in {minutes} "
     "minutes and have {parameters} parameters."),
    (("What can you do?", "what can you do", "Help", "help me", "What do you know?",
      "What should I ask?"), _SKILLS),
    (("Thanks", "Thank you", "thank you!", "Thanks a lot!", "Great, thanks."),
     "You are welcome!"),
    (("Bye", "Goodbye", "bye", "Good night", "See you later."), "Goodbye!"),
    (("What is the meaning of life?", "Who is the president?", "Write a program.",
      "What is the capital of France?", "What is the weather today?", "Tell me a joke.",
      "What do you think about politics?", "Do you like music?", "Sing a song.",
      "How far away is the moon?", "Translate this into German.", "Who wrote Hamlet?"),
     "I only know first grade things. " + _SKILLS),
)
_STORY_REQUESTS = ("Tell me a story.", "tell me a story", "Can you tell a story?",
                   "A story please!", "Write a short story.")
_STORY_ABOUT = ("Tell me a story about a {}.", "tell a story about a {}", "A story about a {}?",
                "Write a story about the {}.")


def draw_dialogue(
    rng: Random, facts: Mapping[str, str], lexicon: Lexicon = SMALL,
) -> list[Message]:
    """One exchange of small talk, or a tale told on request.

    Args:
        facts: `minutes` and `parameters` in words, for questions about the model itself.
    """
    if rng.random() < 0.25:
        tale = draw_tale(rng, lexicon)
        wordings = _STORY_ABOUT if tale.thing and rng.random() < 0.6 else _STORY_REQUESTS
        asked, reply = rng.choice(wordings).format(tale.thing), tale.text
    else:
        questions, answer = rng.choice(_EXCHANGES)
        asked, reply = rng.choice(questions), answer.format_map({**_FACTS, **facts})
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
