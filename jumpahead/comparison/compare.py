"""The walk of a comparison: name the SAEs, evaluate those that are not, write frontier.json and the page.

Evaluations that a run has are used if they are of the same text and model; others are written to the comparison's own
folder, a few SAEs at a time, and found there by the next call.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jumpahead import formats, frontier
from jumpahead.comparison.basis import AskedFor, Basis, resolve_options
from jumpahead.comparison.members import ComparedRun, Member, Named, known_site, sae_member
from jumpahead.comparison.naming import NamedSeries, named_series, with_settings
from jumpahead.errors import DataError, StudyError
from jumpahead.evaluation.evaluate import evaluate
from jumpahead.evaluation.sums import EVALUATION_SCHEMA, evaluation_json
from jumpahead.interchange.fetch import PREFIX
from jumpahead.lm.sae_location import common_lm
from jumpahead.progress import Progress
from jumpahead.report import write_report
from jumpahead.report.series_style import sort_series
from jumpahead.sae.saved import SAE
from jumpahead.storage.digests import has_inputs
from jumpahead.storage.json_files import read_json, write_json
from jumpahead.storage.run_folder import Run

SAES_AT_ONCE = 8
"""SAEs that are evaluated together, after which their evaluations are written: they share the model's passes without
an SAE, which cost about as much as three SAEs."""


def compare(named: Sequence[Named], asked: AskedFor, folder: Run, progress: Progress) -> None:
    """Compare SAEs and runs; write the evaluations, frontier.json and the page into `folder`. Its lock must be held.

    Raises StudyError or DataError, naming the SAE or run, if one cannot be compared with the others.
    """
    members, basis = collect(named, asked, progress)
    manifest = folder.record_comparison([_relative(one.path, folder.folder) for one in named])
    missing = [member for member in members if _evaluation(folder, member, basis) is None]
    if missing:
        progress.say(f"{len(members)} SAEs, {len(missing)} of them to evaluate")
    by_site: dict[str, list[Member]] = defaultdict(list)
    for member in missing:
        by_site[member.site].append(member)
    for site, found in by_site.items():
        for first in range(0, len(found), SAES_AT_ONCE):
            _evaluate(folder, site, found[first : first + SAES_AT_ONCE], basis)
    _write_frontier(folder, named_series(members), basis, manifest)


def collect(named: Sequence[Named], asked: AskedFor, progress: Progress) -> tuple[list[Member], Basis]:
    """Return the SAEs of a comparison in the order in which they were named, and what they are evaluated on."""
    site = known_site(asked.site)
    runs = {one: ComparedRun.open(one, progress) for one in named if one.is_run}
    first = next(iter(runs.values()), None)
    others = [one for one in named if one not in runs]
    known_lm = common_lm(formats.load(one.path) for one in others) if first is None and asked.lm is None else None
    config = resolve_options(asked, first.study if first else None, known_lm)
    facts: dict[str, Mapping[str, Any]] = {}
    for run in runs.values():
        for spec in run.specs:
            if spec.site not in facts:
                facts[spec.site] = read_json(run.run.sae_folder(spec.key).config)
    tokens_of = next((run.run for run in runs.values() if _has_tokens(run, config)), None)
    basis = Basis(config, tokens_of, facts, progress)
    members: list[Member] = []
    for one in named:
        if one in runs:
            runs[one].check_same(basis, first.named.path if first else "--lm", asked)
            members += runs[one].members(basis, site)
        else:
            members.append(sae_member(one, asked, next(iter(facts)) if len(facts) == 1 else None))
    _check_comparable(members, basis, runs)
    return members, basis


def _has_tokens(run: ComparedRun, config: Any) -> bool:
    """Return True if the held-out tokens of a run are on disk and are those of this configuration."""
    is_same = run.study.text == config.text and run.study.lm == config.lm
    return is_same and (run.run.tokens / "held_out" / "contexts.json").is_file()


def _check_comparable(members: Sequence[Member], basis: Basis, runs: Mapping[Named, ComparedRun]) -> None:
    """Raise StudyError if there is no SAE, or a run has none at a site of the others; DataError if d is another."""
    if not members:
        raise StudyError("There is no trained SAE to compare at this site: name other runs, or another --site.")
    for member in members:
        if member.study is None and member.d != (width := basis.width_at(member.site)):
            raise DataError(f"{member.address} takes activations of width {member.d}; {member.site} has {width}.")
    for run in runs.values():
        own = {member.site for member in members if member.study is run.study}
        others = {member.site for member in members if member.study is not run.study}
        if others and not own & others:
            raise StudyError(
                f"{run.named.path} has no SAE at {' or '.join(sorted(others))}, where the others are: compare SAEs of "
                "one site."
            )


# ---------------------------------------------------------------------------------------------- evaluations


def _evaluation(folder: Run, member: Member, basis: Basis) -> dict[str, Any] | None:
    """Return the evaluation of an SAE, of its run or of this comparison; None if there is none for this basis."""
    own = member.evaluation
    if own is not None and member.study and basis.agrees(member.site, own, member.about, member.study):
        return own
    inputs = basis.inputs(member.site, member.digest)
    path = folder.evaluation_file(inputs)
    return read_json(path, EVALUATION_SCHEMA) if has_inputs(path, inputs) else None


def _evaluate(folder: Run, site: str, members: Sequence[Member], basis: Basis) -> None:
    """Evaluate SAEs at a site together and write the evaluation of each."""
    saes = {str(i): member.load() for i, member in enumerate(members)}
    constants = basis.constants(site)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        measured = evaluate(
            saes, basis.lm, basis.held_out, site, constants.mean, basis.progress, device=basis.lm.device,
            outliers=constants.outliers,
        )  # fmt: skip
    for name, member in zip(saes, members, strict=True):
        inputs = basis.inputs(site, member.digest)
        notes = [*member.notes, *_location_notes(saes[name], raised)]
        content = evaluation_json(measured[name], basis.held_out, basis.weights, notes)
        write_json(folder.evaluation_file(inputs), {"inputs": inputs, "sae": member.address, **content})


def _location_notes(sae: SAE, raised: Sequence[warnings.WarningMessage]) -> Iterator[str]:
    """Yield the warnings that an SAE belongs to another model or site."""
    for one in raised:
        if issubclass(one.category, UserWarning) and str(one.message).startswith(repr(sae)):
            yield str(one.message)


# ---------------------------------------------------------------------------------------------- the frontier


def _write_frontier(folder: Run, series: Sequence[NamedSeries], basis: Basis, manifest: Mapping[str, Any]) -> None:
    """Write frontier.json and the page."""
    evaluations = []
    for each in series:
        found = [_evaluation(folder, member, basis) for member in each.members]
        assert all(one is not None for one in found), "every SAE is evaluated by now"
        l0 = {m.digest: one["metrics"]["l0"] for m, one in zip(each.members, found, strict=True) if one}
        for member, evaluation, given in zip(each.members, found, with_settings(each, l0), strict=True):
            identity = {"site": member.site, "width": member.group.width, "d": member.d, "series": each.name}
            path = _relative(member.address, folder.folder)
            known = {**_training_facts(member.about), **(evaluation or {})}
            evaluations.append({**known, "sae": {**identity, **given}, "path": path})
    built = frontier.build_frontier(
        evaluations, name=folder.name, study_text="", manifest=manifest,
        series=sort_series({key: getattr(one, key) for key in ("name", "title", "architecture")} for one in series),
        lm={"name": basis.config.lm.model, "dtype": basis.config.lm.dtype},
        text={"source": basis.config.text.source, "train_tokens": None, "held_out_tokens": basis.held_out.tokens},
        by_width=False,
    )  # fmt: skip
    write_json(folder.frontier, built, indent=None)
    write_report(folder.folder)


def _training_facts(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an evaluation.json on the training of an SAE; empty if jumpahead did not train it."""
    if "training" not in about:
        return {}
    training = {**about["training"], "steps": about["steps"], "seconds": about["seconds"]}
    return {"training": training, "sparsity_coefficient": about["sparsity_coefficient"]}


def _relative(address: str, folder: Path) -> str:
    """Return a path relative to the comparison's folder; an address on the hub as it is."""
    if address.startswith(PREFIX):
        return address
    return Path(os.path.relpath(Path(address).expanduser().resolve(), folder.resolve())).as_posix()
