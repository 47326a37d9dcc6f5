"""What a client may ask, checked field by field. Layer 8.

The one idea: a request's JSON becomes one `Asked`, or an `ApiError` that names the field, what was
given, and the rule. Fields that would change the answer and that we do not have are refused rather
than ignored.

Source: OpenAI's API reference for chat completions and completions; `top_k`, `min_p` as in vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gossamer.chat.engine import Sampling
from gossamer.chat.message import Message, words_of

__all__ = ["ApiError", "Asked", "chat_messages", "check_media_type", "completion_prompts", "parse",
           "read_json"]

MOST_COPIES = 16  # n
MOST_STOPS = 4
MOST_ALTERNATIVES = 20
MOST_MESSAGES = 1000
# Fields that ask for something else than this server does; harmless ones are simply not read.
UNSUPPORTED = ("tools", "tool_choice", "functions", "function_call", "response_format", "audio",
               "suffix", "logit_bias", "web_search_options", "prediction")


class ApiError(Exception):
    """An answer that is not 200.

    Args:
        status: HTTP status.
        message: what was wrong, for a person.
        param: the field.
        code: a word for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None,
                 code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The JSON that OpenAI's clients expect."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param,
                          "code": self.code}}


@dataclass(frozen=True)
class Asked:
    """A request's options, whatever its prompt."""

    sampling: Sampling
    seed: int | None
    max_tokens: int
    copies: int
    stop: tuple[str, ...]
    alternatives: int | None  # None: no probabilities are wanted
    stream: bool
    usage_at_end: bool
    model: str | None
    cut: bool  # drop the oldest turns if they do not fit
    echo: bool


def check_media_type(given: str | None) -> None:
    """Refuse a Content-Type that says something else than JSON; none at all is taken for JSON.

    Raises:
        ApiError: it does.
    """
    kind = (given or "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, f"Content-Type is {_shown(given)}; it must be application/json.",
                       "Content-Type")


def read_json(body: bytes) -> dict[str, Any]:
    """The body as an object.

    Raises:
        ApiError: it is none.
    """
    try:
        found = json.loads(body.decode("utf-8"))
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # "\ud800" alone is no character
    except UnicodeError:
        raise ApiError(400, "The body is not UTF-8. Send JSON in UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ApiError(400, f"The body is {_kind(found)}; it must be a JSON object.")
    return found


def parse(body: dict[str, Any], defaults: Sampling, chat: bool) -> Asked:
    """The options of a request.

    Raises:
        ApiError: a field is of the wrong type or out of range, or asks for what we do not have.
    """
    for name in UNSUPPORTED:
        if body.get(name) not in (None, [], {}, "none", "auto", {"type": "text"}):
            raise ApiError(400, f"{name} is not supported by this server. Leave it out.", name,
                           "unsupported_parameter")
    for name in ("frequency_penalty", "presence_penalty"):
        if _number(body, name, 0.0, -2.0, 2.0):
            raise ApiError(400, f"{name} is not supported by this server. Leave it out, or 0.",
                           name, "unsupported_parameter")
    best_of = _whole(body, "best_of", 1, 1, MOST_COPIES)
    copies = _whole(body, "n", 1, 1, MOST_COPIES)
    if best_of not in (1, copies):
        raise ApiError(400, "best_of is not supported by this server. Ask for n replies.",
                       "best_of", "unsupported_parameter")
    seed = _whole(body, "seed", None, -(2**63), 2**63 - 1)
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None \
        else "max_tokens"
    options = _dict(body, "stream_options")
    truncation = _text(body, "truncation")
    if truncation not in (None, "auto", "disabled"):
        raise ApiError(400, f"truncation is {_shown(truncation)}; it must be auto or disabled.",
                       "truncation")
    return Asked(
        Sampling(_number(body, "temperature", defaults.temperature, 0.0, 2.0),
                 _whole(body, "top_k", defaults.top_k, 0, 2**31),
                 _number(body, "top_p", defaults.top_p, 1e-6, 1.0),
                 _number(body, "min_p", defaults.min_p, 0.0, 1.0)),
        seed, _whole(body, limit, 1 << 30 if chat else 16, 1, 1 << 30), copies, _stops(body),
        _alternatives(body, chat), _flag(body, "stream"), _flag(options, "include_usage"),
        _text(body, "model"), truncation == "auto", _flag(body, "echo"))


def chat_messages(body: dict[str, Any]) -> list[Message]:
    """The conversation: turns that alternate, beginning and ending with the user.

    A system or developer message joins the user's turn that follows it, as do several user's
    messages in a row.

    Raises:
        ApiError: not a list of messages, an unknown role, content that is not text.
    """
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise ApiError(400, f"messages is {_kind(given)}; it must be a list of at least one "
                       'message, such as {"role": "user", "content": "Hi"}.', "messages")
    if len(given) > MOST_MESSAGES:
        raise ApiError(400, f"messages has {len(given)} entries; at most {MOST_MESSAGES}.",
                       "messages")
    turns: list[Message] = []
    open_turn = False  # the last turn is the user's and may take more
    for number, message in enumerate(given):
        place = f"messages[{number}]"
        if not isinstance(message, dict):
            raise ApiError(400, f"{place} is {_kind(message)}; it must be an object with role and "
                           "content.", place)
        role, content = message.get("role"), _content(message.get("content"), place)
        if role in ("system", "developer", "user"):
            if open_turn:
                said = words_of(turns[-1]["content"])
                turns[-1]["content"] = f"{said}\n\n{content}"
            else:
                turns.append({"role": "user", "content": content})
            open_turn = True
        elif role == "assistant":
            if not open_turn:
                raise ApiError(400, f"{place}: an assistant's message must follow a user's.", place)
            turns.append({"role": "assistant", "content": content})
            open_turn = False
        else:
            raise ApiError(400, f"{place}.role is {_shown(role)}; it must be system, user or "
                           "assistant.", f"{place}.role")
    if not open_turn:
        raise ApiError(400, "The last message is the assistant's; it must be the user's.",
                       "messages")
    return turns


def completion_prompts(body: dict[str, Any]) -> list[str | list[int]]:
    """The prompts: texts or token ids.

    Raises:
        ApiError: something else.
    """
    given = body.get("prompt")
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if all(_is_whole(x) for x in given):
            return [given]
        if all(isinstance(x, str) for x in given) and len(given) <= MOST_COPIES:
            return list(given)
        if all(isinstance(x, list) and x and all(_is_whole(i) for i in x) for x in given) \
                and len(given) <= MOST_COPIES:
            return list(given)
    raise ApiError(400, f"prompt is {_kind(given)}; it must be a text, a list of token ids, or a "
                   f"list of at most {MOST_COPIES} of these.", "prompt")


# fields -------------------------------------------------------------------------------------------
def _kind(value: Any) -> str:
    names = {type(None): "missing", bool: "true or false", int: "a number", float: "a number",
             str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), "unknown")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(body: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ApiError(400, f"{name} is {_shown(value)}; it must be a number from {low:g} to "
                       f"{high:g}.", name)
    return float(value)


def _whole(body: dict[str, Any], name: str, default: Any, low: int, high: int) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not _is_whole(value) or not low <= value <= high:
        raise ApiError(400, f"{name} is {_shown(value)}; it must be a whole number from {low} to "
                       f"{high}.", name)
    return value


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name} is {_shown(value)}; it must be true or false.", name)
    return bool(value)


def _text(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise ApiError(400, f"{name} is {_shown(value)}; it must be a text.", name)
    return value


def _dict(body: dict[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise ApiError(400, f"{name} is {_shown(value)}; it must be an object.", name)
    return value or {}


def _stops(body: dict[str, Any]) -> tuple[str, ...]:
    value = body.get("stop")
    stops: Sequence[Any] = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS \
            or not all(isinstance(s, str) and 0 < len(s) <= 256 for s in stops):
        raise ApiError(400, f"stop is {_shown(value)}; it must be a text of 1 to 256 characters, "
                       f"or a list of at most {MOST_STOPS}.", "stop")
    return tuple(stops)


def _alternatives(body: dict[str, Any], chat: bool) -> int | None:
    """How many likeliest tokens to list beside each; None = no probabilities."""
    if not chat:
        return _whole(body, "logprobs", None, 0, MOST_ALTERNATIVES)
    count = _whole(body, "top_logprobs", None, 0, MOST_ALTERNATIVES)
    if _flag(body, "logprobs"):
        return count or 0
    if count is not None:
        raise ApiError(400, "top_logprobs needs logprobs to be true.", "top_logprobs")
    return None


def _content(value: Any, place: str) -> str:
    """A message's text: a text, or OpenAI's list of parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        texts = [p.get("text") for p in value if isinstance(p, dict) and p.get("type") == "text"]
        if len(texts) == len(value) and all(isinstance(t, str) for t in texts):
            return "".join(texts)  # type: ignore[arg-type]
    raise ApiError(400, f"{place}.content is {_kind(value)}; it must be a text, or a list of "
                   "parts of type text.", f"{place}.content")
