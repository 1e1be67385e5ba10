"""Studies read from TOML, with overrides.

Where a list is meant, one value will do. Overrides are dotted: `train.lr=3e-4`, `series.topk.k=[16,32]`; an empty value
(`train.lr=`) removes the key. A study that is loaded is resolved: sites in canonical form, series named, options filled
in; save.py writes it so that `load` reads the same study back.
"""

from __future__ import annotations

import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError

from jumpahead.errors import ArtefactError, JumpaheadError, StudyError, did_you_mean
from jumpahead.storage.plain_files import read_plain
from jumpahead.study.checks import check_files, check_sites, check_study
from jumpahead.study.messages import study_sentence
from jumpahead.study.resolve import check_origin_options, resolve_series
from jumpahead.study.schema import Study
from jumpahead.study.tables import model_of
from jumpahead.study.values import check_values

MAX_STUDY_BYTES = 2**24
"""Largest study file that is read."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Return the study in a TOML file, with overrides such as `train.lr=3e-4`.

    Raises StudyError, naming file and key, if anything is wrong with it; SiteError if the model has no such site.
    """
    path = Path(path)
    if path.is_dir():
        hint = f": name {path / 'study.toml'}" if (path / "study.toml").is_file() else ", not a study"
        raise StudyError(f"{path} is a folder{hint}.")
    raw = _read_toml(path)
    raw.setdefault("name", path.stem if path.stem != "study" else path.resolve().parent.name)
    for text in overrides:
        apply_override(raw, text)
    study = parse(raw, str(path))
    check_files(study, str(path))
    return study


def parse(raw: Mapping[str, Any], where: str = "the study") -> Study:
    """Return the resolved study in plain tables, as TOML gives them. where: begins the sentence of an error."""
    try:
        check_values(raw)
        fitted = coerce_tables(raw, Study)
        check_sites(fitted)  # before validation makes them canonical
        study = Study.model_validate(fitted, strict=True)
        check_study(study)
        check_origin_options(study.activations)
        return study.model_copy(update={"series": tuple(resolve_series(one) for one in study.series)})
    except ValidationError as exc:
        raise StudyError(f"{where}: {study_sentence(exc, raw, Study)}") from exc
    except JumpaheadError as exc:
        raise StudyError(f"{where}: {exc}") from exc


def with_delta_loss(study: Study, losses: Sequence[float]) -> Study:
    """Return the study with requested delta LM losses added to every series. Raises StudyError for a wrong loss."""
    series = tuple(
        one.model_copy(update={"delta_loss": tuple(dict.fromkeys([*one.delta_loss, *losses]))}) for one in study.series
    )
    asked = study.model_copy(update={"series": series})
    check_study(asked)
    return asked.model_copy(update={"series": tuple(resolve_series(one) for one in series)})


def _read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file. Raises StudyError, naming the line, if it cannot be read."""
    try:
        return tomllib.loads(read_plain(path, MAX_STUDY_BYTES).decode("utf-8"))
    except FileNotFoundError as exc:
        raise StudyError(f"{path} does not exist: `jumpahead init MODEL --layer 1` writes a study.") from exc
    except ArtefactError as exc:
        raise StudyError(str(exc)) from exc
    except UnicodeDecodeError as exc:
        raise StudyError(f"{path} is not UTF-8 text.") from exc
    except RecursionError as exc:
        raise StudyError(f"{path} holds tables or lists nested too deep.") from exc
    except tomllib.TOMLDecodeError as exc:
        what, _, place = str(exc).partition(" (at ")
        line = place.removesuffix(")").partition(",")[0]
        raise StudyError(f"{path}{', ' + line if line else ''}: {what[0].lower()}{what[1:]}.") from exc
    except ValueError as exc:
        raise StudyError(f"{path} holds a number with thousands of digits.") from exc


def apply_override(raw: dict[str, Any], text: str) -> None:
    """Apply one override `a.b=c` to the tables, in place; c is TOML, or else a plain word."""
    dotted, equals, value = text.partition("=")
    *folders, last = [part.strip() for part in dotted.split(".")]
    if not equals or not last or not all(folders):
        raise StudyError(f"--set {text}: write it as KEY=VALUE, for instance --set train.tokens=2_000_000.")
    table: Any = raw
    for depth, part in enumerate(folders):
        table = _series_called(table, part, text) if isinstance(table, list) else table.setdefault(part, {})
        if not isinstance(table, dict | list):
            raise StudyError(f"--set {text}: {'.'.join(folders[: depth + 1])} is a value, not a table.")
    if isinstance(table, list):
        raise StudyError(f"--set {text}: say which key of the series, for instance --set {dotted}.l0=16.")
    if value.strip():
        table[last] = _toml_value(value)
    else:
        table.pop(last, None)


def _series_called(series: list[Any], part: str, text: str) -> dict[str, Any]:
    """Return the `[[series]]` of that name, of that architecture if it is the only one, or of that index."""
    names = [str(one.get("name") or one.get("architecture")) if isinstance(one, dict) else "" for one in series]
    architectures = [one.get("architecture") if isinstance(one, dict) else "" for one in series]
    for candidates in (names, architectures, [str(i) for i in range(len(series))]):
        if candidates.count(part) == 1:
            return series[candidates.index(part)]
    raise StudyError(f"--set {text}: there is no series '{part}'.{did_you_mean(part, names)}")


def _toml_value(text: str) -> Any:
    """Return the value that the text is in TOML; the text itself if it is none."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except (ValueError, KeyError):  # also of a number with thousands of digits
        return text.strip()
    except RecursionError as exc:
        raise StudyError(f"--set: {text[:20]}… is nested too deep.") from exc


def coerce_tables(value: Any, annotation: Any) -> Any:
    """Return `value` in the shape of `annotation`: one value becomes a list of one, 1e6 becomes 1000000 for an int."""
    if get_origin(annotation) is Annotated:
        return coerce_tables(value, get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return coerce_tables(value, kinds[0]) if len(kinds) == 1 else value
    if get_origin(annotation) in (list, tuple):
        items = value if isinstance(value, list | tuple) else [value]
        return get_origin(annotation)(coerce_tables(item, get_args(annotation)[0]) for item in items)
    if (model := model_of(annotation)) and isinstance(value, Mapping):
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        return {
            key: coerce_tables(item, fields[key].annotation) if key in fields else item for key, item in value.items()
        }
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value
