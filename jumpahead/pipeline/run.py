"""Running a study: runs the stages in order, skips finished stages, and stops after a given stage."""

from __future__ import annotations

from jumpahead.activations.origins import ORIGINS
from jumpahead.activations.writer_rank import WriterRank
from jumpahead.errors import StudyError, did_you_mean
from jumpahead.pipeline import STAGES
from jumpahead.pipeline.activations import ActivationsStage
from jumpahead.pipeline.evaluation import EvaluationStage
from jumpahead.pipeline.frontier import FrontierStage
from jumpahead.pipeline.precision import PrecisionStage
from jumpahead.pipeline.resources import Resources
from jumpahead.pipeline.stage import Stage
from jumpahead.pipeline.tokens import TokensStage
from jumpahead.pipeline.training import TrainingStage
from jumpahead.progress import Progress, make_progress
from jumpahead.storage.run_folder import Run
from jumpahead.study.save import to_toml
from jumpahead.study.schema import Study

STAGE_CLASSES: tuple[type[Stage], ...] = (
    PrecisionStage, TokensStage, ActivationsStage, TrainingStage, EvaluationStage, FrontierStage,
)  # fmt: skip
assert tuple(stage.name for stage in STAGE_CLASSES) == STAGES

TOKENISING_TIMEOUT = 3600.0
"""Seconds that a process waits for another process that tokenises the text."""


def run_study(study: Study, folder: Run, until: str | None = None, progress: Progress | None = None) -> None:
    """Run every unfinished stage of a study, in order; stop after the stage called `until`, if it is given.

    Raises StudyError if there is no stage called `until`.
    """
    if until is not None and until not in STAGES[:-1]:
        raise StudyError(f"there is no stage '{until}' to stop after.{did_you_mean(until, list(STAGES[:-1]))}")
    resources = Resources(study, folder, progress or make_progress())
    for stage_class in STAGE_CLASSES:
        stage = stage_class(resources)
        if not stage.is_done():
            stage.run()
        elif stage_class is FrontierStage:
            resources.progress.say("Nothing to do: every SAE is trained, evaluated and on the page.")
        if stage_class.name == until:
            return


def harvest_activations(study: Study, folder: Run, rank: WriterRank, progress: Progress | None = None) -> bool:
    """Write the activations assigned to this process to disk; return True if those of all processes are complete.

    Several processes may run this concurrently, on machines that share the run's folder. The first process tokenises.
    Raises StudyError if `activations.origin` does not store activations on disk.
    rank: this process among the processes that write.
    """
    progress = progress or make_progress()
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
    return ActivationsStage(resources).write(rank)
