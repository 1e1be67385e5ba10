"""Running a study: its stages in order, each skipped if it is done, as far as was asked."""

from __future__ import annotations

from jumpahead.activations.origins import ORIGINS
from jumpahead.activations.writer_rank import WriterRank
from jumpahead.errors import StudyError, nearest
from jumpahead.pipeline import STAGES
from jumpahead.pipeline.activations import ActivationsStage
from jumpahead.pipeline.evaluation import EvaluationStage
from jumpahead.pipeline.frontier import FrontierStage
from jumpahead.pipeline.precision import PrecisionStage
from jumpahead.pipeline.resources import Resources
from jumpahead.pipeline.stage import Stage
from jumpahead.pipeline.tokens import TokensStage
from jumpahead.pipeline.training import TrainingStage
from jumpahead.progress import Progress, progress_on
from jumpahead.storage.run_folder import Run
from jumpahead.study.save import to_toml
from jumpahead.study.schema import Study

IN_ORDER: tuple[type[Stage], ...] = (
    PrecisionStage, TokensStage, ActivationsStage, TrainingStage, EvaluationStage, FrontierStage,
)  # fmt: skip
assert tuple(stage.name for stage in IN_ORDER) == STAGES

TOKENISING_TIMEOUT = 3600.0
"""Seconds that a process which writes activations waits for the one that tokenises."""


def run_study(study: Study, folder: Run, until: str | None = None, progress: Progress | None = None) -> None:
    """Run every stage that is not done, in the run's folder; stop after the stage `until`.

    Raises StudyError if there is no stage of that name.
    """
    if until is not None and until not in STAGES[:-1]:
        raise StudyError(f"there is no stage '{until}' to stop after.{nearest(until, list(STAGES[:-1]))}")
    resources = Resources(study, folder, progress or progress_on())
    for kind in IN_ORDER:
        stage = kind(resources)
        if not stage.is_done():
            stage.run()
        elif kind is FrontierStage:
            resources.progress.say("Nothing to do: every SAE is trained, evaluated and on the page.")
        if kind.name == until:
            return


def harvest_activations(study: Study, folder: Run, part: WriterRank, progress: Progress | None = None) -> bool:
    """Write this process's part of the study's activations to disk; return whether all parts are complete.

    Any number of processes may do so at once, on any machine that shares the run's folder: the first one tokenises.
    Raises StudyError if the study's activations are not kept on disk.
    """
    progress = progress or progress_on()
    if not ORIGINS.get(study.activations.origin).on_disk:
        raise StudyError(
            f"activations.origin = '{study.activations.origin}' keeps nothing on disk: say "
            "--set activations.origin=shards, here and when the study is run."
        )
    resources = Resources(study, folder, progress)
    with folder.lock(
        TOKENISING_TIMEOUT, lambda: progress.say(f"waiting for the process that writes {folder.folder} …")
    ):
        folder.record_study(to_toml(study))
        for stage in (PrecisionStage(resources), TokensStage(resources)):
            if not stage.is_done():
                stage.run()
    return ActivationsStage(resources).write(part)
