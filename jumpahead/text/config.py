"""The configuration table `text` of a study. No torch here."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TextConfig(BaseModel):
    """The text that activations are computed on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    source: str = "stdlib"
    """`stdlib` (the running Python's own library); a UTF-8 text file, a JSON Lines or a Parquet file, or a folder of
    one kind; `hf:owner/name` or `hf:owner/name:configuration`, a Hugging Face dataset; `-`, standard input."""
    pattern: str = "*"
    """File names of a folder that are read, for instance `*.md`."""
    column: str = "text"
    """Column of JSON Lines, Parquet or a dataset that holds the text; each row is a document."""
    chat: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Roles whose tokens are trained on and measured on, for instance `["assistant"]`; other roles are context. The
    column then holds conversations, lists of {role, content} or ShareGPT's {from, value}, which the tokenizer's chat
    template renders."""
    split: str = "train"
    """Split of a Hugging Face dataset that is read; held-out documents are taken from it too."""
    separator: str | None = Field(default=None, min_length=1)
    """Separator of the documents inside a file, for instance `<|endoftext|>`; by default a file is one document."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of the documents that is never trained on; evaluation uses only these. Those of which the training text
    contains more than 80 % are left out."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Maximum number of tokens of training text, and of held-out text; by default all. Takes the first rows of a file.
    Counts all tokens of conversations, context included."""
