"""Chat templates: conversations as token ids, with a mask of the tokens by the roles that are trained on.

    messages    user: Hi                     assistant: Hello.                text.chat = ["assistant"]
    rendered    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello.<|im_end|>\\n
    role_mask                                                          ××××××

The tokens of a message are those of its content: of the span of the rendered conversation that changes when the content
is replaced by a placeholder. A token that lies only partly in the span counts. Headers, end-of-turn tokens, a system
prompt of the template, and the rendering of other keys (tool calls, reasoning) are context. If only the assistant's
tokens are trained on and the template marks them with {% generation %} and {% endgeneration %}, its marks decide
instead; they may include the end of a turn.

A leading BOS of the template is removed, because contexts begin with BOS anyway. Templates with a date get
`TEMPLATE_DATE`, so that a conversation gives the same tokens on every day. No torch here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from jumpahead.errors import DataError, JumpaheadError, StudyError
from jumpahead.text.chat import Conversation, Message

PLACEHOLDER = "\ue000stands in\ue001"
"""Replaces a content to find its span. Its first and last characters, for private use, are in no template."""
TEMPLATE_DATE = datetime(2024, 7, 26, 12)
"""The date that templates such as Llama 3's state if they are given none."""
_GENERATION_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class EncodedConversation(NamedTuple):
    """A conversation as token ids."""

    ids: np.ndarray
    """int64 [tokens]"""
    role_mask: np.ndarray
    """bool [tokens]: the token is by a role that is trained on."""


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        """name: of the model, for messages. Raises StudyError if its tokenizer or its template cannot be used."""
        if not tokenizer.is_fast:
            raise StudyError(
                f"text.chat needs a tokenizer that knows each token's position in the text, and that of '{name}' does "
                "not: give a model with a tokenizer.json."
            )
        if not tokenizer.chat_template:
            raise StudyError(
                f"text.chat needs a chat template, and the tokenizer of '{name}' has none: give a model that was "
                "trained on conversations, or put a chat_template.jinja into its folder."
            )
        self.tokenizer, self.name = tokenizer, name
        try:
            self.source: str = _with_fixed_date(tokenizer.get_chat_template())
        except ValueError as exc:  # there are several templates, and none is the default
            raise StudyError(f"text.chat: the tokenizer of '{name}' has {sorted(tokenizer.chat_template)} as chat "
                             "templates and none that is called 'default'.") from exc  # fmt: skip

    def encode(
        self, conversations: Sequence[tuple[Conversation, str]], bos_id: int | None
    ) -> list[EncodedConversation]:
        """Return the tokens of each conversation, given with its name in messages, without a leading `bos_id`."""
        is_marked = _GENERATION_TAG.search(self.source) and all(
            one.trained_roles == {"assistant"} for one, _ in conversations
        )
        encoded = self._encode_by_marks(conversations) if is_marked else self._encode_by_spans(conversations)
        skips = [int(bos_id is not None and ids[:1].tolist() == [bos_id]) for ids, _ in encoded]
        return [
            EncodedConversation(ids[skip:], role_mask[skip:])
            for skip, (ids, role_mask) in zip(skips, encoded, strict=True)
        ]

    def _encode_by_marks(self, conversations: Sequence[tuple[Conversation, str]]) -> list[EncodedConversation]:
        """Return the tokens of each conversation, with the template's own marks as role mask."""
        options: dict[str, Any] = {"tokenizer_kwargs": {"verbose": False}, "return_assistant_tokens_mask": True}
        messages = [list(one.messages) for one, _ in conversations]
        try:
            with self._translate_errors(conversations[0][1]):
                made = self.tokenizer.apply_chat_template(messages, chat_template=self.source, **options)
        except DataError:
            if len(conversations) == 1:
                raise
            return [self._encode_by_marks([one])[0] for one in conversations]  # the error then names the right one
        both = zip(made["input_ids"], made["assistant_masks"], strict=True)
        return [EncodedConversation(np.asarray(ids, np.int64), np.asarray(mask, bool)) for ids, mask in both]

    def _encode_by_spans(self, conversations: Sequence[tuple[Conversation, str]]) -> list[EncodedConversation]:
        """Return the tokens of each conversation, with a role mask from the spans of the messages' contents."""
        texts = [self._render(one.messages, name) for one, name in conversations]
        spans = [self._trained_spans(text, *one) for text, one in zip(texts, conversations, strict=True)]
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        made = backend.encode_batch(texts, add_special_tokens=False)
        return [
            EncodedConversation(
                np.asarray(one.ids, np.int64), _tokens_in_spans(np.asarray(one.offsets).reshape(-1, 2), where)
            )
            for one, where in zip(made, spans, strict=True)
        ]

    def _render(self, messages: Sequence[Message], name: str) -> str:
        """Return the text that the template makes of messages. Raises DataError if it fails."""
        with self._translate_errors(name):
            return self.tokenizer.apply_chat_template(list(messages), chat_template=self.source, tokenize=False)

    def _trained_spans(self, rendered: str, conversation: Conversation, name: str) -> list[tuple[int, int]]:
        """Return start and end of the characters that are trained on, message by message.

        Raises DataError if it cannot be told which message the characters belong to.
        """
        messages = conversation.messages
        filled = [number for number, message in enumerate(messages) if message.get("content")]
        trained = {
            number: self._content_span(rendered, messages, number, name)
            for number in filled
            if messages[number]["role"] in conversation.trained_roles
        }
        if not all(span.is_exact for span in trained.values()):  # then the spans of all messages must not overlap
            every = sorted(self._content_span(rendered, messages, number, name) for number in filled)
            if any(one.end > other.start for one, other in pairwise(every)):
                raise DataError(
                    f"{name}: the chat template of '{self.name}' mixes the contents of several messages. Leave the row "
                    "out, or put {% generation %} marks into the template."
                )
        return [(span.start, span.end) for span in trained.values()]

    def _content_span(self, rendered: str, messages: Sequence[Message], number: int, name: str) -> _Span:
        """Return the span of the rendered text that changes with the content of one message."""
        content = messages[number]["content"]
        others = [*messages[:number], {**messages[number], "content": PLACEHOLDER}, *messages[number + 1 :]]
        other = self._render(others, name)
        before, _, after = other.partition(PLACEHOLDER)
        if other == rendered:  # the template leaves the content out
            return _Span(0, 0, True)
        if len(before) + len(after) <= len(rendered) and rendered.startswith(before) and rendered.endswith(after):
            return _Span(len(before), len(rendered) - len(after), True)
        # The rest of the rendered text depends on the content too: a template may look for reasoning in it.
        start = _common_prefix_length(rendered, other)
        end = max(start, len(rendered) - _common_prefix_length(rendered[::-1], other[::-1]))
        if rendered[:end].endswith(content):
            start = min(start, end - len(content))
        return _Span(start, end, False)

    @contextlib.contextmanager
    def _translate_errors(self, name: str) -> Iterator[None]:
        """Raise DataError, in one sentence, for any exception of a template."""
        try:
            yield
        except JumpaheadError:
            raise
        except ImportError as exc:
            raise StudyError("text.chat needs jinja2 3.1.6 or newer: pip install -U jinja2") from exc
        except Exception as exc:
            reason = (str(exc).strip().partition("\n")[0] or type(exc).__name__).rstrip(".")
            raise DataError(
                f"{name} is not a conversation that the chat template of '{self.name}' accepts ({reason}): leave the "
                "row out."
            ) from exc


class _Span(NamedTuple):
    """A range of characters of a rendered conversation."""

    start: int
    end: int
    is_exact: bool
    """The text before and after the span does not depend on the content."""


def _common_prefix_length(one: str, other: str) -> int:
    """Return the number of characters at the beginning that two texts share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (a, b) in pairs if a != b), min(len(one), len(other)))


def _with_fixed_date(template: str) -> str:
    """Return the template with a `strftime_now` that always formats `TEMPLATE_DATE`."""
    if "strftime_now" not in template:
        return template
    codes = "".join(f" | replace('%{code}', '{TEMPLATE_DATE.strftime('%' + code)}')" for code in "aAbBdHIjmMpSyY")
    macro = "{%- macro strftime_now(format) -%}{{- format" + codes + " -}}{%- endmacro +%}"
    return macro + template  # the + keeps the white space that follows


def _tokens_in_spans(offsets: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the mask of tokens that have a character in one of the spans, bool [n].

    offsets: start and end of each token's characters, int64 [n, 2]. White space between tokens, which some tokenizers
    leave out of the offsets, belongs to the token after it.
    """
    end = offsets[:, 1]
    start = np.minimum(offsets[:, 0], np.concatenate([[0], np.maximum.accumulate(end)[:-1]]))
    found = np.zeros(len(offsets), bool)
    for low, high in spans:
        found |= (start < high) & (end > low)
    return found
