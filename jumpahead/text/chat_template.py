"""Chat templates: encode conversations as token ids, with a mask of the tokens of trained roles.

    messages    user: Hi                     assistant: Hello.                text.chat = ["assistant"]
    rendered    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello.<|im_end|>\\n
    role_mask                                                          ××××××

The content span of a message is the range of the rendered conversation that changes when a placeholder replaces the
content. A token belongs to the message if it overlaps the content span. Headers, end-of-turn tokens, a system
prompt of the template, and the rendering of other keys (tool calls, reasoning) are context. If only the assistant's
tokens are trained on and the template has {% generation %} … {% endgeneration %} marks, these marks decide instead. The
marked text may include end-of-turn tokens.

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
"""Replaces a message's content to find its span. The private-use characters at both ends occur in no template."""
TEMPLATE_DATE = datetime(2024, 7, 26, 12)
"""Fixed date for templates that print the current date, such as the template of Llama 3."""
_GENERATION_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class EncodedConversation(NamedTuple):
    """Token ids of a rendered conversation, with a mask of the tokens of trained roles."""

    ids: np.ndarray
    """int64 [tokens]"""
    role_mask: np.ndarray
    """bool [tokens]: True for tokens of trained roles."""


class ChatTemplate:
    """Encodes conversations with the chat template of a tokenizer."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        """Read the tokenizer's chat template. Raises StudyError if the tokenizer or the template cannot be used.

        name: of the model, for error messages.
        """
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
        """Return the tokens of each conversation, without a leading `bos_id`.

        conversations: pairs of a conversation and the document name to use in error messages.
        """
        is_marked = _GENERATION_TAG.search(self.source) and all(
            conversation.trained_roles == {"assistant"} for conversation, _ in conversations
        )
        encoded = self._encode_by_marks(conversations) if is_marked else self._encode_by_spans(conversations)
        skips = [int(bos_id is not None and ids[:1].tolist() == [bos_id]) for ids, _ in encoded]
        return [
            EncodedConversation(ids[skip:], role_mask[skip:])
            for skip, (ids, role_mask) in zip(skips, encoded, strict=True)
        ]

    def _encode_by_marks(self, conversations: Sequence[tuple[Conversation, str]]) -> list[EncodedConversation]:
        """Return the tokens of each conversation, with the role mask from the template's {% generation %} marks."""
        options: dict[str, Any] = {"tokenizer_kwargs": {"verbose": False}, "return_assistant_tokens_mask": True}
        messages = [list(conversation.messages) for conversation, _ in conversations]
        try:
            with self._translate_errors(conversations[0][1]):
                encoded = self.tokenizer.apply_chat_template(messages, chat_template=self.source, **options)
        except DataError:
            if len(conversations) == 1:
                raise
            return [self._encode_by_marks([pair])[0] for pair in conversations]  # the error then names the right one
        both = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        return [EncodedConversation(np.asarray(ids, np.int64), np.asarray(mask, bool)) for ids, mask in both]

    def _encode_by_spans(self, conversations: Sequence[tuple[Conversation, str]]) -> list[EncodedConversation]:
        """Return the tokens of each conversation, with the role mask from the content spans of the messages."""
        texts = [self._render(conversation.messages, name) for conversation, name in conversations]
        spans = [self._trained_spans(text, *pair) for text, pair in zip(texts, conversations, strict=True)]
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        encodings = backend.encode_batch(texts, add_special_tokens=False)
        return [
            EncodedConversation(
                np.asarray(encoding.ids, np.int64),
                _tokens_in_spans(np.asarray(encoding.offsets).reshape(-1, 2), text_spans),
            )
            for encoding, text_spans in zip(encodings, spans, strict=True)
        ]

    def _render(self, messages: Sequence[Message], name: str) -> str:
        """Render messages with the template and return the text. Raises DataError if the template fails."""
        with self._translate_errors(name):
            return self.tokenizer.apply_chat_template(list(messages), chat_template=self.source, tokenize=False)

    def _trained_spans(self, rendered: str, conversation: Conversation, name: str) -> list[tuple[int, int]]:
        """Return the start and end of the content span of each message by a trained role, in characters.

        Raises DataError if the content spans of several messages overlap.
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
        """Return the content span of message `number`: the range of `rendered` that changes with its content."""
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
        """Convert any exception of a template into a DataError of one sentence, which begins with `name`."""
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
    """True if the text before and after the span does not depend on the message's content."""


def _common_prefix_length(one: str, other: str) -> int:
    """Return the length of the longest common prefix of two texts, in characters."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (a, b) in pairs if a != b), min(len(one), len(other)))


def _with_fixed_date(template: str) -> str:
    """Return the template with its function `strftime_now` replaced by a macro that formats `TEMPLATE_DATE`."""
    if "strftime_now" not in template:
        return template
    codes = "".join(f" | replace('%{code}', '{TEMPLATE_DATE.strftime('%' + code)}')" for code in "aAbBdHIjmMpSyY")
    macro = "{%- macro strftime_now(format) -%}{{- format" + codes + " -}}{%- endmacro +%}"
    return macro + template  # the + keeps the white space that follows


def _tokens_in_spans(offsets: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the mask of tokens that overlap one of the spans, bool [n].

    offsets: start and end of each token in characters, int64 [n, 2]. White space between tokens, which some tokenizers
    exclude from the offsets, counts as part of the following token.
    """
    end = offsets[:, 1]
    start = np.minimum(offsets[:, 0], np.concatenate([[0], np.maximum.accumulate(end)[:-1]]))
    mask = np.zeros(len(offsets), bool)
    for low, high in spans:
        mask |= (start < high) & (end > low)
    return mask
