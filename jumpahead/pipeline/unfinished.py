"""The frontier of a run that is not finished: of the SAEs that are evaluated, and the training logs of the others."""

from __future__ import annotations

import tomllib
from typing import Any

from jumpahead.errors import JumpaheadError
from jumpahead.pipeline.evaluation import EvaluationStage
from jumpahead.pipeline.frontier import frontier_json, read_evaluations
from jumpahead.pipeline.resources import Resources
from jumpahead.pipeline.training import TrainingStage
from jumpahead.progress import SilentProgress
from jumpahead.storage.run_folder import Run
from jumpahead.study.load import parse
from jumpahead.study.schema import SAESpec


def unfinished_frontier(run: Run) -> dict[str, Any]:
    """Return the content of frontier.json for what a run has so far; write nothing.

    Results of another study in the same folder are left out. `progress` counts the SAEs of the study, those that are
    trained and those that are evaluated. Raises StudyError or ArtefactError if study.toml or a result is damaged.
    """
    study = parse(tomllib.loads(run.study.read_text(encoding="utf-8")), str(run.study))
    resources = Resources(study, run, SilentProgress())
    evaluated = _done(EvaluationStage(resources))
    trained = {spec.key for spec in _done(TrainingStage(resources))} | {spec.key for spec in evaluated}
    evaluations = read_evaluations(evaluated, run)
    progress = {"saes": len(resources.specs_to_evaluate()), "trained": len(trained), "evaluated": len(evaluations)}
    held_out = evaluations[0]["text"]["tokens"] if evaluations else None
    return frontier_json(resources, evaluations, train_tokens=None, held_out_tokens=held_out, progress=progress)


def _done(stage: EvaluationStage | TrainingStage) -> list[SAESpec]:
    """Return the SAEs that a stage has finished for this study.

    Where the model or the text is gone, digests cannot be computed: then all SAEs with a result on disk.
    """
    specs, folder = stage.resources.specs_to_evaluate(), stage.folder
    is_evaluation = isinstance(stage, EvaluationStage)
    there = [
        spec
        for spec in specs
        if (folder.sae_folder(spec.key).evaluation if is_evaluation else folder.sae_folder(spec.key).config).is_file()
    ]
    if not there or not stage.provenance.is_precision_known():
        return []
    try:
        pending = {spec.key for spec in stage.pending()}
    except JumpaheadError:
        return there
    return [spec for spec in there if spec.key not in pending]
