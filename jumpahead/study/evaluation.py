"""The tables of a study that an evaluation without a run needs: `lm`, `text` and `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from jumpahead.errors import StudyError
from jumpahead.lm.config import LMConfig
from jumpahead.study.load import apply_override, coerce_tables
from jumpahead.study.messages import study_sentence
from jumpahead.study.schema import EvaluateTable
from jumpahead.text.config import TextConfig


class EvaluationStudy(BaseModel):
    """The language model, the text and the size of an evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    lm: LMConfig = LMConfig()
    """The language model, and how text is divided into contexts."""
    text: TextConfig = TextConfig()
    """The text, of which the held-out part is evaluated."""
    evaluate: EvaluateTable = EvaluateTable()
    """The number of tokens and of bootstrap replicates."""


def parse_evaluation(tables: Mapping[str, Any], overrides: Sequence[str] = ()) -> EvaluationStudy:
    """Return the tables of an evaluation, validated as those of a study. overrides: as after `--set`.

    Raises StudyError, naming the key, if anything is wrong.
    """
    raw: dict[str, Any] = {name: dict(table) for name, table in tables.items()}
    for text in overrides:
        apply_override(raw, text)
    try:
        return EvaluationStudy.model_validate(coerce_tables(raw, EvaluationStudy), strict=True)
    except ValidationError as exc:
        raise StudyError(f"evaluate: {study_sentence(exc, raw, EvaluationStudy)}") from exc
