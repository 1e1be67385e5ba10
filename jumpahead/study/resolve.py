"""Options and recipes of a study, validated by the architecture or origin that they are of, and filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from jumpahead.activations.config import ActivationsConfig
from jumpahead.activations.origins import ORIGINS
from jumpahead.errors import StudyError
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.recipe import Recipe, TrainConfig, base_recipe
from jumpahead.study.messages import table_sentence
from jumpahead.study.schema import Series
from jumpahead.study.tables import table_model


def resolve_series(series: Series) -> Series:
    """Return the series with every option of its architecture filled in and its recipe validated."""
    key, kind = f"series.{series.name}", ARCHITECTURES.get(series.architecture).Options
    options = _validate(kind, series.options, f"{key}.options")
    for setting_kind in [*series.settings_by_kind, *(["l0"] if series.delta_loss else [])]:
        if contradiction := kind(**dict(options)).contradiction(setting_kind):
            raise StudyError(f"series '{series.name}': {contradiction}")
    recipe = resolve_recipe(series.recipe, f"{key}.recipe")
    return series.model_copy(update={"options": options.model_dump(), "recipe": recipe})


def resolve_recipe(given: Mapping[str, Any], key: str = "recipe") -> dict[str, Any]:
    """Return the hyper-parameters of a series' `recipe`, validated. Raises StudyError for a wrong name or value."""
    defaults = base_recipe(TrainConfig())._asdict()
    recipe = _validate(Recipe, defaults | dict(given), key)
    return {name: getattr(recipe, name) for name in given}


def check_origin_options(config: ActivationsConfig) -> None:
    """Raise StudyError if the origin of the activations does not accept its options."""
    _validate(ORIGINS.get(config.origin).Options, config.options, "activations.options")


def _validate(kind: type[Any], given: Mapping[str, Any], key: str) -> BaseModel:
    """Return a table as the pydantic model of `kind`. Raises StudyError, naming the key below `key`, if it is wrong."""
    model = table_model(kind)
    try:
        return model.model_validate(given)
    except ValidationError as exc:
        raise StudyError(table_sentence(exc, key, list(model.model_fields))) from exc
