"""Train the SAEs that have no result yet, and store one line per SAE.

A result is one line of a `.jsonl` file, sorted by key, so that files from several machines merge line by line. The key
is a digest of everything that the SAE depends on, including the resolved recipe; it contains no path. The runs
themselves (weights, activations) are in an ignored folder and can be deleted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.result_lines import load_results, round_to_five_digits, save_results
from benchmarks.sparsity import setups
from benchmarks.sparsity.setups import SETUPS, TextPart, study_tables
from jumpahead import frontier, report, versions
from jumpahead.pipeline import run as pipeline_run
from jumpahead.pipeline.frontier import series_legend
from jumpahead.progress import make_progress
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.recipe import Recipe, Setting, Shape, TrainConfig
from jumpahead.storage.digests import digest_json
from jumpahead.storage.json_files import read_json, write_json
from jumpahead.storage.layout import sae_key
from jumpahead.storage.packed_numbers import unpack_numbers
from jumpahead.storage.run_folder import Run
from jumpahead.study import schema as studies
from jumpahead.study.load import parse
from jumpahead.study.save import to_toml

BOOTSTRAPPED_METRICS = ("l0", "delta_lm_loss", "above_10pct")


class RequestedRun(NamedTuple):
    """One SAE to train and measure."""

    place: str
    part: TextPart
    tokens: int
    """Training tokens."""
    held_out: int
    """Approximate number of tokens to evaluate on."""
    series: str
    """Its name in the tables."""
    architecture: str
    setting: tuple[str, float]
    seed: int = 0
    options: str = "{}"
    """JSON."""
    recipe: str = "{}"
    """JSON: changes of the architecture's own recipe."""

    @property
    def key(self) -> str:
        """Return the digest of the recipe and all other fields.

        Defaults do not count, so that a new option leaves old results valid. `Architecture.revision` does not count, so
        that the results that a recipe was chosen by stay valid.
        """
        kind, place = ARCHITECTURES.get(self.architecture), SETUPS[self.place]
        config = TrainConfig(tokens=self.tokens, batch=setups.BATCH)
        shape = Shape(place.d, place.width, Setting(*self.setting))
        recipe = kind.recipe_for(config, shape, json.loads(self.recipe))._asdict()
        plain = {name: value for name, value in recipe.items() if value != Recipe._field_defaults.get(name, ...)}
        given, defaults = asdict(kind.Options(**json.loads(self.options))), asdict(kind.Options())
        options = {name: value for name, value in given.items() if value != defaults[name]}
        known = [versions.TRAINING_VERSION, self.place, place.site, place.width, self.part, self.tokens, self.held_out,
                 self.architecture, options, plain, self.setting, self.seed]  # fmt: skip
        return digest_json(known)[:16]


def train_missing(wanted: Iterable[RequestedRun], path: Path, folder: Path, threads: int | None = None) -> None:
    """Train and measure the SAEs missing in `path`, with one study per setup, text and number of tokens."""
    done = load_results(path)
    groups: dict[tuple[str, TextPart, int, int], list[RequestedRun]] = {}
    for one in wanted:
        if one.key not in done:
            groups.setdefault((one.place, one.part, one.tokens, one.held_out), []).append(one)
    for (name, part, tokens, held_out), members in groups.items():
        place = SETUPS[name]
        if missing := place.missing():
            print(f"{name}: {missing} is not here; {len(members)} SAEs are left out.", flush=True)
            continue
        run = Run(folder / f"{name}-{part}-{tokens}")
        run.folder.mkdir(parents=True, exist_ok=True)
        tables = study_tables(place, part, tokens, series_tables(members), folder, held_out, distinct_seeds(members))
        if threads is not None:
            tables["train"]["threads"] = threads
        study = parse(tables)
        print(f"{name}, {part} text, {tokens:,} tokens: {len(members)} SAEs", flush=True)
        pipeline_run.run_study(study, run, until="evaluate", progress=make_progress())
        save_results(path, {one.key: result_line(one, run) for one in members})


def series_tables(members: list[RequestedRun]) -> list[dict[str, Any]]:
    """Return the series tables of a study: one per name, options and recipe."""
    found: dict[str, dict[str, Any]] = {}
    for one in members:
        table = {"architecture": one.architecture, "name": folder_name(one), "options": json.loads(one.options),
                 "recipe": json.loads(one.recipe)}  # fmt: skip
        settings = found.setdefault(folder_name(one), table).setdefault(one.setting[0], [])
        if one.setting[1] not in settings:
            settings.append(one.setting[1])
    return list(found.values())


def distinct_seeds(members: list[RequestedRun]) -> tuple[int, ...]:
    return tuple(sorted({one.seed for one in members}))


def folder_name(one: RequestedRun) -> str:
    """Return the series' name within a study, with a digest of its options and recipe."""
    digest = digest_json([one.options, one.recipe])[:6]
    return one.architecture if one.options == one.recipe == "{}" else f"{one.architecture}-{digest}"


def result_line(one: RequestedRun, run: Run) -> dict[str, Any]:
    """Return the line of an SAE's results."""
    place = SETUPS[one.place]
    key = sae_key(place.site, place.width, folder_name(one), studies.Setting(*one.setting), one.seed, 0)
    evaluation = read_json(run.sae_folder(key).evaluation)
    metrics, errors = evaluation["metrics"], evaluation.get("standard_errors") or {}
    kept = ("l0", "delta_lm_loss", "fvu", "above_10pct", "above_1pct", "kl", "loss_recovered_zero")
    found = {name: round_to_five_digits(metrics[name]) for name in kept}
    found["dead"] = round_to_five_digits(metrics["never_fired"])
    return {
        "key": one.key, "series": one.series, "place": one.place, "part": one.part, "tokens": one.tokens,
        "architecture": one.architecture, "options": json.loads(one.options), "recipe": json.loads(one.recipe),
        "setting": list(one.setting), "seed": one.seed, **found, "se": round_to_five_digits(errors["delta_lm_loss"]),
        "measured_on": evaluation["text"]["tokens"], "sparsity_coefficient": evaluation["sparsity_coefficient"],
        **{name: evaluation[name] for name in ("converged_after", "health") if name in evaluation},
        "seconds": round(evaluation["training"]["seconds"], 1), **bootstrap_replicates(one, evaluation),
    }  # fmt: skip


def bootstrap_replicates(one: RequestedRun, evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the bootstrap replicates over documents, shared by all SAEs of a setup; {} for the development text."""
    if one.part != "final":
        return {}
    kept = {
        name: [round_to_five_digits(value) for value in unpack_numbers(evaluation["bootstrap"][name])]
        for name in BOOTSTRAPPED_METRICS
    }
    return {"clusters": evaluation["text"]["clusters"], "bootstrap": kept}


def write_report(wanted: list[RequestedRun], folder: Path) -> Path:
    """Write the frontier and the page of SAEs of one setup, text and budget that were trained on this machine."""
    one = wanted[0]
    place, run = SETUPS[one.place], Run(folder / f"{one.place}-{one.part}-{one.tokens}")
    evaluations, legends = [], {}
    for each in wanted:
        key = sae_key(place.site, place.width, folder_name(each), Setting(*each.setting), each.seed, 0)
        evaluation = read_json(run.sae_folder(key).evaluation)
        evaluation["sae"]["series"] = each.series
        evaluations.append({**evaluation, "path": key})
        legends[each.series] = series_legend(each.series, each.architecture)
    study = to_toml(parse(study_tables(place, one.part, one.tokens, series_tables(wanted), folder, one.held_out)))
    target = Run.create(folder / f"{one.place}-{one.part}-{one.tokens}-page", study)
    text = {"source": place.texts[one.part], "train_tokens": one.tokens, "held_out_tokens": one.held_out}
    built = frontier.build_frontier(
        evaluations, name=f"{one.place}, {one.tokens / 1e6:g}e6 tokens", study_text=study,
        manifest=target.read_manifest(), series=list(legends.values()), text=text,
        lm={"name": one.place, "dtype": "float32"},
    )  # fmt: skip
    write_json(target.frontier, built, indent=None)
    report.write_report(target.folder)
    return target.report
