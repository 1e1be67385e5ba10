"""Bounds of options and hyper-parameters, declared beside their types: `Annotated[float, GreaterThan(0)]`.

A study checks the bounds when it is loaded (study/tables.py), with pydantic, which asks each bound for its schema.
Nothing in `sae/` checks them.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class AtLeast(NamedTuple):
    """Annotation: the value is at least `limit`."""

    limit: float

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Return pydantic's schema of the type with the bound."""
        return {**handler(source), "ge": self.limit}


class GreaterThan(NamedTuple):
    """Annotation: the value is greater than `limit`."""

    limit: float

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Return pydantic's schema of the type with the bound."""
        return {**handler(source), "gt": self.limit}


class LessThan(NamedTuple):
    """Annotation: the value is less than `limit`."""

    limit: float

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Return pydantic's schema of the type with the bound."""
        return {**handler(source), "lt": self.limit}


class AtMost(NamedTuple):
    """Annotation: the value is at most `limit`."""

    limit: float

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Return pydantic's schema of the type with the bound."""
        return {**handler(source), "le": self.limit}


class Finite(NamedTuple):
    """Annotation: the value is neither infinite nor NaN."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Return pydantic's schema of the annotated type, without infinities and NaN."""
        return {**handler(source), "allow_inf_nan": False}


class NotEmpty(NamedTuple):
    """Annotation: the sequence has at least one item."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Return pydantic's schema of the annotated type, with a minimum length of one."""
        return {**handler(source), "min_length": 1}
