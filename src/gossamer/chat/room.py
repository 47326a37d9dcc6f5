"""Which turns of a conversation a model gets to read. Layer 7.

The one idea: turns are encoded from the newest on, each once, until one more exchange would leave
no room for a reply. So the price of a long conversation is what is read of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from gossamer.chat.message import Message
from gossamer.chat.tokenizer import Tokenizer

__all__ = ["REPLY_ROOM", "newest_turns"]

REPLY_ROOM = 64  # positions kept free for the reply


def newest_turns(
    tokenizer: Tokenizer, turns: Sequence[Message], context: int
) -> tuple[list[int], int]:
    """The prompt of the newest turns that leave REPLY_ROOM positions for a reply.

    Args:
        tokenizer: of the model.
        turns: they alternate; the first and the last are the user's.
        context: positions that the model has.

    Returns:
        Ids, and how many of the oldest turns are left out. The last turn never is, so the ids may
        be too many: where they are not fewer than `context`, that turn alone does not fit.

    Raises:
        ValueError: turns do not alternate.

    Cost: encodes what is returned and one exchange more.
    """
    first = len(turns) - 1
    parts = [tokenizer.render_prompt(turns[first:])]
    left = context - REPLY_ROOM - len(parts[0])
    while first > 0:
        exchange = tokenizer.render(turns[first - 2:first])[0]
        left -= len(exchange) - 1  # every rendering begins with the same token; one remains
        if left < 0:
            break
        parts.append(exchange)
        first -= 2
    return [tokenizer.bos, *(i for part in reversed(parts) for i in part[1:])], first
