"""The study file: one TOML that says everything, checked before any work.

    name = "demo"                          evaluate.tokens, evaluate.replicates
    [lm]  [text]  [activations]  [train]   described beside their owners: lm/config.py, activations/, sae/recipe.py
    [sae]     width = [4096]   seed = [0]
    [stream]  seed = [0]
    [[series]] architecture = "jumprelu"   name (default: the architecture's)   options = {…}
               l0 = [4, 8, 16]             or lambda = [...], or k = [...]: exactly one

Where a list is meant, one value will do. Overrides are dotted: `train.lr=3e-4`, `series.topk.k=[16,32]`; an empty value
(`train.lr=`) takes the key out. A study that is loaded is resolved: sites in their own grammar, series named, every
option filled in; `to_toml` writes it so that `load` reads the same study back.

A study's size is the product site × width × Σ settings of the series × sae.seed × stream.seed: `units`.
"""

from __future__ import annotations

import json
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jumpahead import activations as origins
from jumpahead import store
from jumpahead.activations import ActivationsConfig
from jumpahead.activations.origins import ORIGINS
from jumpahead.errors import ArtefactError, JumpaheadError, SiteError, StudyError, nearest
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model_shape import outline
from jumpahead.lm.sites import parse_site
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.recipe import Setting, TrainConfig, check_changes
from jumpahead.text.config import TextConfig
from jumpahead.text.sources import source_of

KINDS = ("l0", "lambda", "k")


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True)


class SAETable(_Table):
    """The study's `[sae]` table."""

    width: tuple[int, ...] = Field(min_length=1)
    """Features of an SAE; each width is a panel of its own."""
    seed: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Initialisations: every SAE is trained once per seed."""


class StreamTable(_Table):
    """The study's `[stream]` table."""

    seed: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Orders of the data: every SAE is trained once per seed. All SAEs share one stream unless there are several."""


class EvaluateTable(_Table):
    """The study's `[evaluate]` table."""

    tokens: int = Field(default=100_000, gt=0)
    """Held-out tokens that are scored with each SAE spliced in."""
    replicates: int = Field(default=200, ge=20)
    """Bootstrap replicates behind every interval."""


class Series(_Table):
    """One `[[series]]`: an architecture with its options, at several sparsity settings."""

    architecture: str
    """A file of jumpahead/sae/: jumprelu, gated, topk, batchtopk, relu, …"""
    name: str = ""
    """What the curve is called; the architecture's name by default."""
    l0: tuple[float, ...] = ()
    """Mean numbers of active features per token that are asked for."""
    lambda_: tuple[float, ...] = Field(default=(), alias="lambda")
    """Weights of the sparsity penalty, in the unit E‖x‖² = 1."""
    k: tuple[int, ...] = ()
    """Numbers of features kept per token."""
    options: dict[str, Any] = {}
    """The architecture's own options."""
    recipe: dict[str, Any] = {}
    """Hyper-parameters of its own, by the names of sae/recipe.py: `{lr = 2e-3, bandwidth_share = 0.5}`."""
    start_from: str | None = None
    """The folder of a saved SAE that all of its SAEs begin as, seen from the current folder; it must be of the same
    architecture, width and site's d."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and isinstance(raw.get("architecture"), str):
            return {"name": raw["architecture"], **raw}
        return raw

    @property
    def given(self) -> dict[str, tuple[float, ...]]:
        """The kinds of setting that the series has: exactly one in a study that loads."""
        values = {"l0": self.l0, "lambda": self.lambda_, "k": self.k}
        return {kind: values[kind] for kind in KINDS if values[kind]}

    @property
    def settings(self) -> list[Setting]:
        """What its SAEs are trained at, in the order given."""
        return [Setting(kind, value) for kind, values in self.given.items() for value in values]


class Study(_Table):
    """A resolved study."""

    name: str
    """The name of the run's folder; the study file's by default."""
    lm: LMConfig = LMConfig()
    text: TextConfig = TextConfig()
    activations: ActivationsConfig = ActivationsConfig()
    sae: SAETable
    stream: StreamTable = StreamTable()
    train: TrainConfig = Field(default_factory=lambda: TrainConfig.model_validate({}))
    series: tuple[Series, ...] = Field(min_length=1)
    """The curves."""
    evaluate: EvaluateTable = EvaluateTable()

    @model_validator(mode="after")
    def _checked(self) -> Self:
        _check_names(self)
        _check_numbers(self)
        _check_text(self.text)
        for one in self.series:
            _check_series(one, min(self.sae.width))
        return self


class Unit(NamedTuple):
    """One SAE to be trained."""

    site: str
    width: int
    series: Series
    setting: Setting
    sae_seed: int
    stream_seed: int

    @property
    def key(self) -> str:
        """Its folder below the run: saes/<site>/<width>/<series>/<setting>_seed-<s>[_stream-<t>]."""
        return store.sae_key(self.site, self.width, self.series.name, self.setting, self.sae_seed, self.stream_seed)

    @property
    def label(self) -> str:
        """For people, within one panel: `jumprelu l0 = 16`, `topk k = 32, seed 1, stream 2`."""
        seeds = [(" seed", self.sae_seed), (" stream", self.stream_seed)]
        return f"{self.series.name} {self.setting.label}" + "".join(f",{name} {seed}" for name, seed in seeds if seed)


def units(study: Study) -> list[Unit]:
    """Every SAE of the study, panel by panel, seed after seed within a setting."""
    return [
        Unit(site, width, series, setting, sae_seed, stream_seed)
        for site in study.activations.sites
        for width in study.sae.width
        for series in study.series
        for setting in series.settings
        for sae_seed in study.sae.seed
        for stream_seed in study.stream.seed
    ]


# ---------------------------------------------------------------------------------------------- reading


def load(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """The study in a TOML file, with overrides such as `train.lr=3e-4`; StudyError for whatever is wrong with it."""
    path = Path(path)
    raw = _read_toml(path)
    raw.setdefault("name", path.stem if path.stem != "study" else path.resolve().parent.name)
    for text in overrides:
        _override(raw, text)
    study = parse(raw, str(path))
    check_files(study, str(path))
    return study


def parse(raw: Mapping[str, Any], where: str = "the study") -> Study:
    """A study from plain tables, as TOML gives them, resolved. `where` begins the sentence of an error."""
    try:
        fitted = _fit(raw, Study)
        _check_sites(fitted)  # before the schema makes them canonical
        study = Study.model_validate(fitted, strict=True)
        return study.model_copy(update={"series": tuple(_resolve(one) for one in study.series)})
    except ValidationError as exc:
        raise StudyError(f"{where}: {_sentence(exc, raw)}") from exc
    except JumpaheadError as exc:
        raise StudyError(f"{where}: {exc}") from exc


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise StudyError(f"{path} does not exist: `jumpahead init MODEL --layer 1` writes a study.") from exc
    except IsADirectoryError as exc:
        hint = f": name {path / 'study.toml'}" if (path / "study.toml").is_file() else ", not a study"
        raise StudyError(f"{path} is a folder{hint}.") from exc
    except UnicodeDecodeError as exc:
        raise StudyError(f"{path} is not UTF-8 text.") from exc
    except tomllib.TOMLDecodeError as exc:
        what, _, place = str(exc).partition(" (at ")
        line = place.removesuffix(")").partition(",")[0]
        raise StudyError(f"{path}{', ' + line if line else ''}: {what[0].lower()}{what[1:]}.") from exc


def _override(raw: dict[str, Any], text: str) -> None:
    """Applies one `a.b=c`; c is TOML, or else a plain word."""
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
        table[last] = _value(value)
    else:
        table.pop(last, None)


def _series_called(series: list[Any], part: str, text: str) -> dict[str, Any]:
    """The `[[series]]` of that name, or of that architecture if it is the only one, or of that index."""
    names = [str(one.get("name") or one.get("architecture")) if isinstance(one, dict) else "" for one in series]
    architectures = [one.get("architecture") if isinstance(one, dict) else "" for one in series]
    for candidates in (names, architectures, [str(i) for i in range(len(series))]):
        if candidates.count(part) == 1:
            return series[candidates.index(part)]
    raise StudyError(f"--set {text}: there is no series '{part}'.{nearest(part, names)}")


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _fit(value: Any, annotation: Any) -> Any:
    """`value` as TOML gave it, in the shape of `annotation`: one value → a list of one, 1e6 → 1000000 for an int."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _fit(value, kinds[0]) if len(kinds) == 1 else value
    if get_origin(annotation) in (list, tuple):
        items = value if isinstance(value, list | tuple) else [value]
        return get_origin(annotation)(_fit(item, get_args(annotation)[0]) for item in items)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and isinstance(value, Mapping):
        fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
        return {key: _fit(item, fields[key].annotation) if key in fields else item for key, item in value.items()}
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


# ---------------------------------------------------------------------------------------------- errors


_LIMITS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "string": "text in quotes",
    "bool": "true or false",
    "model": "a table",
    "dict": "a table",
    "tuple": "a list",
    "list": "a list",
    "finite": "a finite number",
}


def _first(error: ValidationError) -> Mapping[str, Any]:
    """What pydantic found, an unknown key first, being the likely cause of what else is wrong."""
    return min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")


def _sentence(error: ValidationError, raw: Mapping[str, Any]) -> str:
    """What pydantic found, as one sentence with the dotted key."""
    found = _first(error)
    loc, key = found["loc"], _dotted(found["loc"], raw)
    if found["type"] == "extra_forbidden":
        tables = ["", *(f"{table}." for table in _keys_at(()))]
        elsewhere = [f"{table}{loc[-1]}" for table in tables if loc[-1] in _keys_at((table[:-1],) if table else ())]
        hint = f" Did you mean '{elsewhere[0]}'?" if elsewhere else nearest(str(loc[-1]), _keys_at(loc[:-1]))
        return f"there is no key '{key}'.{hint}"
    if found["type"] == "missing":
        return f"'{key}' is missing{_description(loc)}."
    return _wrong_value(found, key)


def _wrong_value(found: Mapping[str, Any], key: str) -> str:
    """`'train.batch' must be greater than 0, not -3.`"""
    value, context = _shown(found["input"]), found.get("ctx", {})
    if found["type"] == "literal_error":
        return f"'{key}' must be {context['expected']}, not {value}."
    if found["type"] in _LIMITS:
        words, limit = _LIMITS[found["type"]]
        return f"'{key}' must be {words} {context[limit]:g}, not {value}."
    if found["type"] == "too_short":
        return f"'{key}' must not be empty."
    kind = _KINDS.get(found["type"].partition("_")[0])
    return f"'{key}' must be {kind}, not {value}." if kind else f"'{key}': {found['msg']}."


def _shown(value: Any) -> str:
    text = value.isoformat() if hasattr(value, "isoformat") else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) < 60 else text[:57] + "…"


def _dotted(loc: Iterable[int | str], raw: Mapping[str, Any]) -> str:
    """`series.topk.k` for ("series", 2, "k", 0): the name that --set takes."""
    parts: list[int | str] = list(loc)
    if len(parts) > 1 and parts[0] == "series" and isinstance(parts[1], int):
        series = raw.get("series")
        one = series[parts[1]] if isinstance(series, list) and parts[1] < len(series) else series
        if isinstance(one, Mapping):
            parts[1] = str(one.get("name") or one.get("architecture") or parts[1])
    kept = [str(part) for i, part in enumerate(parts) if isinstance(part, str) or (i == 1 and parts[0] == "series")]
    return ".".join(kept)


def _model_at(loc: Iterable[int | str]) -> type[BaseModel] | None:
    """The schema of the table at `loc`."""
    model: Any = Study
    for part in loc:
        if isinstance(part, int):
            continue
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if part not in fields:
            return None
        annotation = fields[part].annotation
        model = get_args(annotation)[0] if get_origin(annotation) in (list, tuple) else annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return None
    return model


def _keys_at(loc: Iterable[int | str]) -> list[str]:
    model = _model_at(loc)
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _description(loc: tuple[int | str, ...]) -> str:
    model = _model_at(loc[:-1])
    field = model.model_fields.get(str(loc[-1])) if model else None
    return f" ({field.description.rstrip('.')})" if field and field.description else ""


# ---------------------------------------------------------------------------------------------- checks


def _once(values: Sequence[Any], key: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise StudyError(f"'{key}' names {_shown(value)} twice.")


def _check_names(study: Study) -> None:
    """Names that become folders, and the origin."""
    for key, name in [("name", study.name), *((f"series.{one.name}.name", one.name) for one in study.series)]:
        try:
            store.safe_name(name)
        except ArtefactError as exc:
            raise StudyError(f"'{key}': {exc}") from exc
    names = [one.name for one in study.series]
    for name in names:
        if names.count(name) > 1:
            raise StudyError(f"two series are called '{name}': give each a name = \"…\" of its own.")
    if study.activations.origin not in ORIGINS.names():
        raise StudyError(
            f"'activations.origin' is '{study.activations.origin}', and there is no such origin."
            f"{nearest(study.activations.origin, ORIGINS.names())}"
        )


def _check_sites(raw: Mapping[str, Any]) -> None:
    """Sites that are unknown, or the same place under two names."""
    activations = raw.get("activations")
    if not isinstance(activations, Mapping):
        return
    is_free = activations.get("origin") in origins.WITHOUT_LM
    try:
        sites = [site for site in activations.get("sites", ()) if isinstance(site, str)]
        keys = [origins.site_key(site, is_free) for site in sites]
    except (SiteError, ArtefactError) as exc:
        raise StudyError(f"'activations.sites': {exc}") from exc
    _once(keys, "activations.sites")


def _check_numbers(study: Study) -> None:
    """Limits that involve more than one key."""
    for key, values, least in [
        ("sae.width", study.sae.width, 2),
        ("sae.seed", study.sae.seed, 0),
        ("stream.seed", study.stream.seed, 0),
    ]:
        _once(values, key)
        if min(values) < least:
            raise StudyError(f"'{key}' must be at least {least}, not {min(values)}.")
    if study.train.tokens < study.train.batch:
        raise StudyError(
            f"'train.tokens' is {study.train.tokens:,} and must be at least one batch,"
            f" {study.train.batch:,} (train.batch)."
        )


def _check_text(text: TextConfig) -> None:
    """Keys that do not go together."""
    _once(text.chat or (), "text.chat")
    if text.chat and text.separator is not None:
        raise StudyError("'text.separator' cuts text, and with 'text.chat' documents are conversations: leave one out.")


def _check_series(one: Series, width: int) -> None:
    """An architecture we have, one kind of setting that it takes, and values below `width`."""
    if one.architecture not in ARCHITECTURES.names():
        raise StudyError(
            f"series '{one.name}' asks for the architecture '{one.architecture}', which does not exist."
            f"{nearest(one.architecture, ARCHITECTURES.names())}"
        )
    accepted = ARCHITECTURES.get(one.architecture).settings
    if not one.given:
        raise StudyError(f"series '{one.name}' has no sparsity setting: give it {' = […] or '.join(accepted)} = […].")
    for kind in one.given:
        if kind not in accepted:
            raise StudyError(
                f"series '{one.name}' has no setting '{kind}': {one.architecture} takes {_either(accepted)}."
            )
    if len(one.given) > 1:
        raise StudyError(f"series '{one.name}' has {' and '.join(one.given)}: give it exactly one of them.")
    for kind, values in one.given.items():
        key = f"series.{one.name}.{kind}"
        _once(values, key)
        if not all(0 < value < float("inf") for value in values):
            raise StudyError(f"'{key}' must be positive, not {_shown(min(values))}.")
        fractions = [value for value in values if value != int(value)]
        if kind == "l0" and ARCHITECTURES.get(one.architecture).keeps_whole and fractions:
            raise StudyError(
                f"'{key}' must be whole numbers, not {fractions[0]:g}: {one.architecture} keeps whole features."
            )
        if kind != "lambda" and max(values) > width:
            raise StudyError(f"'{key}' is {max(values):g} and cannot exceed the width, {width:,} (sae.width).")


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)


def _resolve(one: Series) -> Series:
    """The series with every option of its architecture filled in."""
    options = ARCHITECTURES.get(one.architecture).Options
    try:
        full = options(**one.options)
    except ValidationError as exc:
        found = _first(exc)
        name = ".".join(str(part) for part in found["loc"])
        if found["type"] == "extra_forbidden":
            known = list(options.model_fields)
            hint = nearest(name, known) if known else f" {one.architecture} has no options."
            raise StudyError(f"series '{one.name}' has no option '{name}'.{hint}") from exc
        raise StudyError(_wrong_value(found, f"series.{one.name}.options.{name}")) from exc
    for kind in one.given:
        if objection := full.objection(kind):
            raise StudyError(f"series '{one.name}': {objection}")
    try:
        changes = check_changes(one.recipe)
    except StudyError as exc:
        raise StudyError(f"series '{one.name}', recipe: {exc}") from exc
    return one.model_copy(update={"options": full.model_dump(), "recipe": changes})


def check_files(study: Study, where: str) -> None:
    """What the study names must be there. A model that is not a path is a name on the hub and is not looked for.

    Nothing of it is needed without an LM, or where a run's activations lie on disk: `sweep` knows whether they do.
    """
    if study.activations.origin in {*origins.WITHOUT_LM, "shards"}:
        return
    if objection := source_of(study.text).objection():
        raise StudyError(f"{where}: 'text.source' names {study.text.source}, {objection}.")
    model = Path(study.lm.model).expanduser()
    looks_like_a_path = study.lm.model.startswith((".", "/", "~")) or study.lm.model.count("/") > 1
    if model.is_dir() and not (model / "config.json").is_file():
        raise StudyError(f"{where}: 'lm.model' names {study.lm.model}, a folder without a config.json: not a model.")
    if looks_like_a_path and not model.exists():
        raise StudyError(
            f"{where}: 'lm.model' names {study.lm.model}, which does not exist (seen from the current folder)."
        )
    _check_blocks(study, where)


def _check_blocks(study: Study, where: str) -> None:
    """SiteError for a block that the model lacks, where its config.json is here and says how many there are."""
    try:
        shape = outline(study.lm)
    except StudyError:  # of a kind that only the model's own code understands: loading it will tell
        shape = None
    if shape is None:
        return
    for site in study.activations.sites:
        try:
            shape.width_at(parse_site(site))
        except SiteError as exc:
            raise SiteError(f"{where}: 'activations.sites': {exc}") from exc


# ---------------------------------------------------------------------------------------------- writing


_SUBTABLES = ("options", "recipe")
"""Of a series."""


def to_toml(study: Study) -> str:
    """The resolved study as TOML; `load` of it gives the same study."""
    tables = study.model_dump(by_alias=True)
    series = tables.pop("series")
    lines = ["# The study as it was run: every default filled in."]
    lines += _lines({key: value for key, value in tables.items() if not isinstance(value, dict)})
    for key, table in tables.items():
        if isinstance(table, dict):
            lines += ["", f"[{key}]", *_lines(table)]
    for one in series:
        given = {key: value for key, value in one.items() if value != () and key not in _SUBTABLES}
        lines += ["", "[[series]]", *_lines(given)]
        for table in _SUBTABLES:
            if one[table]:
                lines += ["", f"[series.{table}]", *_lines(one[table])]
    return "\n".join(lines) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in table.items() if value is not None]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_lines(value)) + " }"
    assert isinstance(value, list | tuple), f"no TOML for a {type(value).__name__}"
    return "[" + ", ".join(_toml(item) for item in value) + "]"
