"""pydantic, as far as this folder uses it; without pydantic the same names, unchecked.

The engine and its benchmark run on machines that have torch, numpy and triton alone. What a study says is checked where
studies are read, and there is pydantic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel as BaseModel
    from pydantic import ConfigDict as ConfigDict
    from pydantic import Field as Field
    from pydantic import TypeAdapter as TypeAdapter
    from pydantic import ValidationError as ValidationError
else:
    try:
        from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
    except ImportError:
        ValidationError = ValueError

        def ConfigDict(**settings: Any) -> dict[str, Any]:
            """Settings that nobody reads."""
            return settings

        def Field(default: Any = None, **_: Any) -> Any:
            """The default alone."""
            return default

        class BaseModel:
            """Values by name, with the defaults of the class."""

            def __init__(self, **given: Any) -> None:
                for kind in reversed(type(self).__mro__):
                    for name in vars(kind).get("__annotations__", {}):
                        if name != "model_config":
                            setattr(self, name, given.pop(name, getattr(kind, name, None)))
                assert not given, f"unknown: {', '.join(given)}"

            @classmethod
            def model_validate(cls, given: dict[str, Any]) -> Any:
                """From a table."""
                return cls(**given)

            def model_dump(self) -> dict[str, Any]:
                """As they are."""
                return dict(vars(self))

        class TypeAdapter:
            """Takes things as they are."""

            def __init__(self, kind: Any) -> None:
                self._kind = kind

            def validate_python(self, given: dict[str, Any]) -> Any:
                return self._kind(**given)
