"""Conversations: documents that are lists of messages, in chat-template or ShareGPT format. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jumpahead.errors import DataError

Message = Mapping[str, Any]

ROLE_ALIASES = {"human": "user", "gpt": "assistant"}
"""Maps role names of ShareGPT to role names of chat templates."""


class Conversation(NamedTuple):
    """A document that is a list of messages."""

    messages: tuple[Message, ...]
    """Each message has a `role`, usually a `content`, and all further keys of the input."""
    trained_roles: frozenset[str]
    """Roles whose tokens are trained on and measured on."""

    @property
    def text(self) -> str:
        """Return the contents of all messages, separated by blank lines."""
        return "\n\n".join(message["content"] for message in self.messages if message.get("content"))

    @property
    def trained_text(self) -> str:
        """Return the contents of the messages by trained roles, separated by blank lines."""
        trained = tuple(message for message in self.messages if message["role"] in self.trained_roles)
        return self._replace(messages=trained).text

    @property
    def canonical_json(self) -> bytes:
        """Return the messages as UTF-8 JSON with sorted keys; equal messages give equal bytes."""
        return json.dumps(self.messages, ensure_ascii=False, sort_keys=True, default=str).encode()

    @property
    def digest(self) -> bytes:
        """Return the SHA-256 of `canonical_json`, 32 bytes; it is independent of the file format."""
        return hashlib.sha256(self.canonical_json).digest()


def parse_conversation(value: Any, roles: Sequence[str], where: str, column: str) -> Conversation:
    """Parse the chat messages of a row. Raises DataError, naming the row, if they are not a message list.

    value: content of the row's column.
    roles: roles whose tokens are trained on.
    where: name of the row, for error messages.
    column: name of the column, for error messages.
    """
    if not isinstance(value, list):
        raise DataError(
            f"{where} has a {type(value).__name__} in its column '{column}', not the list of messages that text.chat "
            "needs."
        )
    messages = tuple(_parse_message(item, f"{where}, message {number}") for number, item in enumerate(value, start=1))
    return Conversation(messages, frozenset(ROLE_ALIASES.get(role, role) for role in roles))


def _parse_message(value: Any, where: str) -> Message:
    """Return a message in chat-template format: content joined to one string, keys with value None removed.

    where: name of the message, for error messages. Raises DataError if `value` is not a message.
    """
    if isinstance(value, Mapping) and "role" not in value:
        value = {"role": value.get("from"), "content": value.get("value")}
    if not isinstance(value, Mapping) or not isinstance(value["role"], str):
        raise DataError(f"{where} is not a message: it needs a role and a content, or from and value.")
    content: Any = value.get("content")
    if isinstance(content, list):
        parts: list[Any] = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else content
    if not (content is None or isinstance(content, str)):
        shown = json.dumps(content, ensure_ascii=False, default=str)
        raise DataError(f"{where} has {shown[:60]} as its content, not text.")
    role: str = value["role"]
    normalised = {**value, "role": ROLE_ALIASES.get(role, role), "content": content}
    return {key: item for key, item in normalised.items() if item is not None}
