"""TODO: one sentence that says what this module holds."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TextConfig(BaseModel):
    """Where text comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    source: str = "stdlib"
    """`stdlib` (the running Python's own library); a UTF-8 text file, a JSON Lines or a Parquet file, or a folder of
    one kind; `hf:owner/name` or `hf:owner/name:configuration`, a Hugging Face dataset; `-`, standard input."""
    pattern: str = "*"
    """Which file names of a folder are read, for instance `*.md`."""
    column: str = "text"
    """Where rows of JSON Lines, Parquet and datasets hold their text; a row is a document."""
    chat: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The column holds conversations, lists of {role, content} or ShareGPT's {from, value}, which the tokenizer's chat
    template renders: the roles whose tokens are trained on and measured on, `["assistant"]`; others are context."""
    split: str = "train"
    """Which split of a Hugging Face dataset is read; what is held out is taken from it."""
    separator: str | None = None
    """What separates the documents inside a file, for instance `<|endoftext|>`; by default a file is one document."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of the documents that is never trained on; evaluation uses only these."""
    max_tokens: int | None = Field(default=None, ge=1)
    """At most so many tokens of training text, and of held-out text; by default all. Of rows, the first ones. Of
    conversations all tokens count, context too."""
