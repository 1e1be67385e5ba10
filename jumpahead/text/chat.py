"""Conversations: what the model's chat template makes of them, and which tokens are of the roles that were asked for.

    messages    user: Hi                     assistant: Hello.                text.chat = ["assistant"]
    rendered    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello.<|im_end|>\\n
    chosen                                                             ××××××

A message's tokens are those of its content: of the stretch of the rendered conversation that changes when the content
is replaced by a stand-in. A token that lies only partly in it counts. Headers, end-of-turn tokens, a system prompt of
the template's own, and what it makes of other keys (tool calls, reasoning) are context. Where only the assistant's
tokens are asked for and the template marks them itself, between {% generation %} and {% endgeneration %}, its marks
decide instead, and may take in the end of a turn.

The rendered text begins as the template has it, but for a BOS that contexts begin with anyway. Its date is `TODAY`, so
that a conversation gives the same tokens on every day. No torch here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from jumpahead.errors import DataError, JumpaheadError, StudyError

Message = Mapping[str, Any]

SPELLINGS = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of roles."""
STAND_IN = "\ue000stands in\ue001"
"""From the private use area: in no template."""
TODAY = datetime(2024, 7, 26, 12)
"""What templates with a date in them (Llama 3's) have where they are told none."""
_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class Conversation(NamedTuple):
    """One document."""

    messages: tuple[Message, ...]
    """Each with a `role`, mostly a `content`, and whatever else the row had."""
    roles: frozenset[str]
    """Whose tokens are trained on and measured on."""

    @property
    def text(self) -> str:
        """What all of them say."""
        return "\n\n".join(message["content"] for message in self.messages if message.get("content"))

    @property
    def chosen(self) -> str:
        """What those of the roles say."""
        return self._replace(messages=tuple(one for one in self.messages if one["role"] in self.roles)).text

    @property
    def content(self) -> bytes:
        """JSON of all that a template is shown."""
        return json.dumps(self.messages, ensure_ascii=False, sort_keys=True, default=str).encode()

    @property
    def digest(self) -> bytes:
        """SHA-256 of `content`: the same however the row was written down."""
        return hashlib.sha256(self.content).digest()


class Encoded(NamedTuple):
    """A conversation as tokens."""

    ids: np.ndarray
    """int64 [tokens]"""
    chosen: np.ndarray
    """bool [tokens]"""


# ---------------------------------------------------------------------------------------------- reading


def conversation(value: Any, roles: Sequence[str], where: str, column: str) -> Conversation:
    """The messages in a row's column; DataError names the row where these are none."""
    if not isinstance(value, list):
        raise DataError(
            f"{where} has a {type(value).__name__} in its column '{column}', not the list of messages that text.chat "
            "asks for."
        )
    messages = tuple(_message(one, f"{where}, message {number}") for number, one in enumerate(value, start=1))
    return Conversation(messages, frozenset(SPELLINGS.get(role, role) for role in roles))


def _message(value: Any, where: str) -> Message:
    """As templates want it: without keys that hold nothing, its content one text."""
    if isinstance(value, Mapping) and "role" not in value:
        value = {"role": value.get("from"), "content": value.get("value")}
    if not isinstance(value, Mapping) or not isinstance(value["role"], str):
        raise DataError(f"{where} is none: it needs a role and a content, or from and value.")
    content: Any = value.get("content")
    if isinstance(content, list):
        parts: list[Any] = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else content
    if not (content is None or isinstance(content, str)):
        shown = json.dumps(content, ensure_ascii=False, default=str)
        raise DataError(f"{where} has {shown[:60]} as its content, not text.")
    role: str = value["role"]
    kept = {**value, "role": SPELLINGS.get(role, role), "content": content}
    return {key: item for key, item in kept.items() if item is not None}


# ---------------------------------------------------------------------------------------------- rendering


class Template:
    """A tokenizer's chat template."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        """name: the model's, for messages. StudyError where its tokenizer cannot do it."""
        if not tokenizer.is_fast:
            raise StudyError(
                f"text.chat needs a tokenizer that says where in the text each token stands, and that of '{name}' does "
                "not: give a model with a tokenizer.json."
            )
        if not tokenizer.chat_template:
            raise StudyError(
                f"text.chat needs a chat template, and the tokenizer of '{name}' has none: give a model that was "
                "trained on conversations, or put a chat_template.jinja into its folder."
            )
        self.tokenizer, self.name = tokenizer, name
        try:
            self.source: str = _dated(tokenizer.get_chat_template())
        except ValueError as exc:  # several, and none of them is the default
            raise StudyError(f"text.chat: the tokenizer of '{name}' has {sorted(tokenizer.chat_template)} as chat "
                             "templates and none that is called 'default'.") from exc  # fmt: skip

    def encode(self, conversations: Sequence[tuple[Conversation, str]], bos_id: int | None) -> list[Encoded]:
        """Each as tokens, without a leading `bos_id`. Beside each stands what it is called in messages."""
        marked = _MARKS.search(self.source) and all(one.roles == {"assistant"} for one, _ in conversations)
        found = self._marked(conversations) if marked else self._located(conversations)
        first = [int(bos_id is not None and ids[:1].tolist() == [bos_id]) for ids, _ in found]
        return [Encoded(ids[skip:], chosen[skip:]) for skip, (ids, chosen) in zip(first, found, strict=True)]

    def _marked(self, conversations: Sequence[tuple[Conversation, str]]) -> list[Encoded]:
        """By the template's own marks."""
        options: dict[str, Any] = {"tokenizer_kwargs": {"verbose": False}, "return_assistant_tokens_mask": True}
        messages = [list(one.messages) for one, _ in conversations]
        try:
            with self._translated(conversations[0][1]):
                made = self.tokenizer.apply_chat_template(messages, chat_template=self.source, **options)
        except DataError:
            if len(conversations) == 1:
                raise
            return [self._marked([one])[0] for one in conversations]  # to name the one that is wrong
        both = zip(made["input_ids"], made["assistant_masks"], strict=True)
        return [Encoded(np.asarray(ids, np.int64), np.asarray(mask, bool)) for ids, mask in both]

    def _located(self, conversations: Sequence[tuple[Conversation, str]]) -> list[Encoded]:
        """By where each message's content stands."""
        texts = [self._rendered(one.messages, name) for one, name in conversations]
        spans = [self._spans(text, *one) for text, one in zip(texts, conversations, strict=True)]
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        made = backend.encode_batch(texts, add_special_tokens=False)
        return [
            Encoded(np.asarray(one.ids, np.int64), _within(np.asarray(one.offsets).reshape(-1, 2), where))
            for one, where in zip(made, spans, strict=True)
        ]

    def _rendered(self, messages: Sequence[Message], name: str) -> str:
        with self._translated(name):
            return self.tokenizer.apply_chat_template(list(messages), chat_template=self.source, tokenize=False)

    def _spans(self, rendered: str, talk: Conversation, name: str) -> list[tuple[int, int]]:
        """First and last + 1 of the characters that are chosen, message by message."""
        filled = [number for number, message in enumerate(talk.messages) if message.get("content")]
        found = {
            number: self._span(rendered, talk.messages, number, name)
            for number in filled
            if talk.messages[number]["role"] in talk.roles
        }
        if not all(span.is_exact for span in found.values()):  # then what changed must be that message's alone
            every = sorted(self._span(rendered, talk.messages, number, name) for number in filled)
            if any(one.high > other.low for one, other in pairwise(every)):
                raise DataError(
                    f"{name}: which part of what the chat template of '{self.name}' makes of it is which message's "
                    "cannot be told: leave the row out, or put {% generation %} marks into the template."
                )
        return [(span.low, span.high) for span in found.values()]

    def _span(self, rendered: str, messages: Sequence[Message], number: int, name: str) -> _Span:
        """What changes when one message says something else."""
        content = messages[number]["content"]
        others = [*messages[:number], {**messages[number], "content": STAND_IN}, *messages[number + 1 :]]
        other = self._rendered(others, name)
        before, _, after = other.partition(STAND_IN)
        if other == rendered:  # the template leaves it out
            return _Span(0, 0, True)
        if len(before) + len(after) <= len(rendered) and rendered.startswith(before) and rendered.endswith(after):
            return _Span(len(before), len(rendered) - len(after), True)
        # The template looks into the content, for instance for reasoning.
        low = _alike(rendered, other)
        high = max(low, len(rendered) - _alike(rendered[::-1], other[::-1]))
        if rendered[:high].endswith(content):
            low = min(low, high - len(content))
        return _Span(low, high, False)

    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        """Turns what a template raises, which may be anything, into one sentence."""
        try:
            yield
        except JumpaheadError:
            raise
        except ImportError as exc:
            raise StudyError("text.chat needs jinja2 3.1.6 or newer: pip install -U jinja2") from exc
        except Exception as exc:
            reason = (str(exc).strip().partition("\n")[0] or type(exc).__name__).rstrip(".")
            raise DataError(
                f"{name} is no conversation to the chat template of '{self.name}' ({reason}): leave the row out."
            ) from exc


class _Span(NamedTuple):
    """Characters of a rendered conversation."""

    low: int
    high: int
    is_exact: bool
    """Whether everything around it is the same whatever the message says."""


def _alike(one: str, other: str) -> int:
    """How many characters at the beginning are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (a, b) in pairs if a != b), min(len(one), len(other)))


def _dated(template: str) -> str:
    """The template, whose `strftime_now` always says `TODAY`."""
    if "strftime_now" not in template:
        return template
    codes = "".join(f" | replace('%{code}', '{TODAY.strftime('%' + code)}')" for code in "aAbBdHIjmMpSyY")
    macro = "{%- macro strftime_now(format) -%}{{- format" + codes + " -}}{%- endmacro +%}"
    return macro + template  # +: what follows keeps its white space


def _within(offsets: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """offsets int64 [n, 2]: first and last + 1 of each token's characters → bool [n]: whether any is in a span.

    White space that a tokenizer leaves out of a token's offsets belongs to the token after it.
    """
    end = offsets[:, 1]
    start = np.minimum(offsets[:, 0], np.concatenate([[0], np.maximum.accumulate(end)[:-1]]))
    found = np.zeros(len(offsets), bool)
    for low, high in spans:
        found |= (start < high) & (end > low)
    return found
