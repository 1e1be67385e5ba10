"""Running a study: runs the stages in order, skips finished stages, and stops after a given stage."""

from __future__ import annotations

from pathlib import Path

from jumpahead.activations.origins import ORIGINS
from jumpahead.activations.writer_rank import WriterRank
from jumpahead.errors import DamagedError, StudyError, did_you_mean
from jumpahead.pipeline import STAGES
from jumpahead.pipeline.activations import ActivationsStage
from jumpahead.pipeline.evaluation import EvaluationStage
from jumpahead.pipeline.features import FeaturesStage
from jumpahead.pipeline.frontier import FrontierStage
from jumpahead.pipeline.precision import PrecisionStage
from jumpahead.pipeline.resources import Resources
from jumpahead.pipeline.stage import Stage
from jumpahead.pipeline.targets import TargetStage
from jumpahead.pipeline.tokens import TokensStage
from jumpahead.pipeline.training import TrainingStage
from jumpahead.progress import Progress, make_progress
from jumpahead.storage.atomic import guard_folder
from jumpahead.storage.run_folder import Run
from jumpahead.storage.set_aside import set_aside_damaged
from jumpahead.study.save import to_toml
from jumpahead.study.schema import Study

STAGE_CLASSES: tuple[type[Stage], ...] = (
    PrecisionStage, TokensStage, ActivationsStage, TrainingStage, TargetStage, EvaluationStage, FeaturesStage,
    FrontierStage,
)  # fmt: skip
assert tuple(stage.name for stage in STAGE_CLASSES) == STAGES

TOKENISING_TIMEOUT = 3600.0
"""Seconds that a process waits for another process that tokenises the text."""


def run_study(study: Study, folder: Run, until: str | None = None, progress: Progress | None = None) -> None:
    """Run every unfinished stage of a study, in order; stop after the stage called `until`, if it is given.

    A damaged file of the run is set aside and made again. Raises StudyError if there is no stage called `until`.
    """
    if until is not None and until not in STAGES[:-1]:
        raise StudyError(f"there is no stage '{until}' to stop after.{did_you_mean(until, list(STAGES[:-1]))}")
    progress, repaired = progress or make_progress(), set[Path]()
    while True:
        try:
            return _run_stages(Resources(study, folder, progress), until)
        except DamagedError as exc:
            if folder.folder not in exc.path.parents or exc.path in repaired or not exc.path.exists():
                raise
            repaired.add(exc.path)
            progress.say(f"{exc.path} {exc.what}: it is set aside in {folder.set_aside} and made again.")
            set_aside_damaged(folder, exc.path)


def _run_stages(resources: Resources, until: str | None) -> None:
    """Run every unfinished stage, in order; stop after the stage called `until`.

    Raises DamagedError if a file of the run is damaged; without this file its stage is unfinished.
    """
    for stage_class in STAGE_CLASSES:
        stage = stage_class(resources)
        if isinstance(stage, TrainingStage):
            stage.record_saes()
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
    with guard_folder(folder.folder):
        return ActivationsStage(resources).write(rank)
