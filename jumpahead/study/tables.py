"""Pydantic models of the dataclasses and NamedTuples that `sae/` defines: validated here, where studies are read.

`sae/` and the engine run without pydantic, so an architecture's options, `TrainConfig` and `Recipe` are plain Python
types whose bounds are metadata (sae/bounds.py). `table_model` turns one into a model with the same fields.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from functools import cache
from itertools import pairwise
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, create_model
from pydantic_core import core_schema
from pydantic_core.core_schema import CoreSchema


@cache
def table_model(kind: type[Any]) -> type[BaseModel]:
    """Return the pydantic model of a dataclass or NamedTuple: its types, bounds, defaults and field docstrings.

    The model refuses unknown keys. A type that is a pydantic model already is returned as it is.
    """
    if issubclass(kind, BaseModel):
        return kind
    hints, docs = get_type_hints(kind, include_extras=True), field_docstrings(kind)
    fields: dict[str, Any] = {
        name: (hints[name], Field(default, description=docs.get(name))) for name, default in _defaults(kind).items()
    }
    config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    return create_model(kind.__name__, __config__=config, __doc__=kind.__doc__, **fields)


def model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model of the table that a field holds; None if the field is no table."""
    if not isinstance(annotation, type):
        return None
    is_table = issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)
    return table_model(annotation) if is_table else None


def _defaults(kind: type[Any]) -> dict[str, Any]:
    """Return the fields of a dataclass or NamedTuple with their defaults; `...`, pydantic's "required", without one."""
    if dataclasses.is_dataclass(kind):
        fields = dataclasses.fields(kind)
        return {one.name: ... if one.default is dataclasses.MISSING else one.default for one in fields}
    return {name: kind._field_defaults.get(name, ...) for name in kind._fields}


def field_docstrings(kind: type[Any]) -> dict[str, str]:
    """Return the strings below the fields of a class and of its bases, by field, read from their source."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        try:
            source = inspect.getsource(base) if "__annotations__" in vars(base) else ""
        except (OSError, TypeError):  # defined without a source file
            continue
        body = ast.parse(textwrap.dedent(source)).body
        statements = body[0].body if body and isinstance(body[0], ast.ClassDef) else []
        for pair in pairwise(statements):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=field)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[field] = inspect.cleandoc(text)
    return found


class DataclassTable:
    """Marks a field that holds a dataclass: `Annotated[TrainConfig, DataclassTable()]` reads it from a table."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return a schema that validates a table with `table_model` and builds the dataclass from it."""

        def build(value: Any, validate: core_schema.ValidatorFunctionWrapHandler) -> Any:
            return value if isinstance(value, source) else source(**dict(validate(value)))

        return core_schema.no_info_wrap_validator_function(
            build,
            handler.generate_schema(table_model(source)),
            serialization=core_schema.plain_serializer_function_ser_schema(dataclasses.asdict),
        )
